"""Arrays of a market that follow from others: norms, Gram matrices, probabilities at landmarks.

Each function takes the float32 rows as they were read, the rows that are finished so far, and what
is known of the market; `jaxspec.market.schema` says which array it computes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.base import bucket
from jaxspec.kernels import Kernel, square_norm
from jaxspec.market.calibration import chances
from jaxspec.market.precision import decode_points, point_scales

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = [
    "CHANCE_STEPS",
    "MAX_GRAM_CLASSES",
    "Making",
    "Rows",
    "class_grams",
    "probe_chances",
    "scales",
    "self_terms",
    "square_norms",
]

Rows = dict[str, np.ndarray]
CHANCE_STEPS = 255  # probabilities are stored in as many steps
MAX_GRAM_CLASSES = 16  # 1 KiB per learnware; with more classes the pass multiplies anew
# What rounding may leave of a squared norm that is zero, in units of the squared sum of the sizes
# of the weights: kernel values are exact to 1e-5.
SELF_TERM_ROUNDING = 1e-5
GRAM_CHUNK = 4096  # learnwares whose class vectors become float32 at once
SELF_TERM_CHUNK = 256  # learnwares whose m x m Gram matrices are in memory at once


@dataclasses.dataclass(frozen=True)
class Making:
    """What is known of a market while its rows are made.

    Attributes:
        kernel: of the space, with a float32 bandwidth.
        origin: (d,) what is subtracted from all points.
        precision: in which rows are stored.
        lifted_landmarks: (D, D) the landmarks as lifted features; empty without a probe.
        number_names: gives every class name its number, a new one if it has none yet.
    """

    kernel: Kernel
    origin: np.ndarray
    precision: str
    lifted_landmarks: np.ndarray
    number_names: Callable[[Sequence[str]], np.ndarray]

    def class_numbers(self, spec: Any) -> np.ndarray:
        """Return the numbers of a specification's class names, (C,) int32."""
        return self.number_names(spec.class_names)


def scales(read: Rows, done: Rows, making: Making) -> np.ndarray:
    """Return what stored points are multiplied by, (rows, m)."""
    return point_scales(read["points"], making.precision)


def square_norms(read: Rows, done: Rows, making: Making) -> np.ndarray:
    """Return the squared norms of the points as they are stored, (rows, m)."""
    return np.square(decode_points(done["points"], done["scales"])).sum(axis=2)


def class_grams(read: Rows, done: Rows, making: Making | None = None) -> np.ndarray:
    """Return inner products of the stored class vectors, (rows, C, C), or (rows, 0, 0)."""
    vectors = done["class_vectors"]
    if vectors.shape[1] > MAX_GRAM_CLASSES:
        return np.zeros((len(vectors), 0, 0), np.float32)
    found = np.empty((len(vectors), vectors.shape[1], vectors.shape[1]), np.float32)
    for start in range(0, len(vectors), GRAM_CHUNK):
        part = vectors[start : start + GRAM_CHUNK].astype(np.float32)
        np.matmul(part, part.swapaxes(1, 2), out=found[start : start + GRAM_CHUNK])
    return found


@jax.jit
def _self_terms(kernel: Kernel, points: Array, scales: Array, weights: Array) -> Array:
    return jax.vmap(partial(square_norm, kernel))(decode_points(points, scales), weights)


def self_terms(read: Rows, done: Rows, making: Making) -> np.ndarray:
    """Return the squared norms of the embeddings, (rows,).

    Where the terms of a norm cancel, rounding could leave a number far below the true one, or a
    negative one, and cosines (products over norms) far above one: weights of both signs at two
    points that nearly coincide would buy the first rank. So a norm is at least its rounding error;
    reduced sets of data lie over a hundred times above it.
    """
    count = len(done["points"])
    size = min(SELF_TERM_CHUNK, bucket(count, minimum=1))
    found = np.zeros(-(-count // size) * size, np.float32)
    for start in range(0, count, size):
        part = [done[name][start : start + size] for name in ("points", "scales", "weights")]
        short = size - len(part[0])
        padded = [np.pad(one, [(0, short)] + [(0, 0)] * (one.ndim - 1)) for one in part]
        found[start : start + size] = _self_terms(making.kernel, *padded)
    total = np.abs(done["weights"].astype(np.float64)).sum(axis=1)
    least = (SELF_TERM_ROUNDING * np.square(total)).astype(np.float32)
    return np.maximum(found[:count], least)


@jax.jit
def _chances(lifted: Array, weights: Array, bias: Array, ids: Array, has_probe: Array) -> Array:
    logits = jnp.matmul(weights, lifted.T, precision="highest") + bias[..., None]
    valid = (ids >= 0) & (has_probe > 0)[:, None]
    found = chances(logits, valid[..., None])
    return jnp.rint(found * CHANCE_STEPS).astype(jnp.uint8)


def probe_chances(read: Rows, done: Rows, making: Making) -> np.ndarray:
    """Return the probe proxies' class probabilities at the landmarks, (rows, C, D) uint8."""
    if not read["has_probe"].any():
        return np.zeros(read["probe_weights"].shape, np.uint8)
    names = ("probe_weights", "probe_bias", "class_ids", "has_probe")
    return np.asarray(_chances(making.lifted_landmarks, *(read[name] for name in names)))
