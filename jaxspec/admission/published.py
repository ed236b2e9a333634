"""The answers that a specification publishes at given rows of features.

`published_logits` takes the probe proxy, or the linear proxy where there is none; `linear_logits`
always takes the linear one. Nothing here runs a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import numpy as np

from jaxspec.base import bucket, pad_to
from jaxspec.kernels import kernel_values, lift
from jaxspec.market import in_float32
from jaxspec.specify import Proxy, Space, Specification

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "corrected_agreement",
    "kernel_table",
    "lifted_rows",
    "linear_logits",
    "nearness",
    "proxy_of",
    "published_logits",
]


def proxy_of(spec: Specification) -> Proxy:
    """Return the linear proxy.

    Raises:
        ValueError: there is none, so nothing is stated about a model.
    """
    if spec.proxy is None:
        raise ValueError(
            "specification: expected one with a proxy, got a reduced set alone, which states "
            "nothing about a model"
        )
    return spec.proxy


def linear_logits(spec: Specification, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n C"]:
    """Return the logits of the linear proxy."""
    proxy = proxy_of(spec)
    weights = np.asarray(proxy.weights, np.float64)
    return np.asarray(rows, np.float64) @ weights + np.asarray(proxy.bias, np.float64)


def published_logits(
    space: Space,
    spec: Specification,
    rows: Float[np.ndarray, "n d"],
    lifted: Float[np.ndarray, "n D"] | None = None,
) -> Float[np.ndarray, "n C"]:
    """Return the logits of the probe proxy, or of the linear proxy where there is none.

    Args:
        space: of the specification.
        spec: what was published.
        rows: features.
        lifted: the rows on the space's landmarks, if they are known.
    """
    if spec.probe_proxy is None:
        return linear_logits(spec, rows)
    if lifted is None:
        lifted = lifted_rows(space, rows)
    weights = np.asarray(spec.probe_proxy.weights, np.float64)
    return lifted @ weights + np.asarray(spec.probe_proxy.bias, np.float64)


def lifted_rows(space: Space, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n D"]:
    """Return rows as features on the space's landmarks."""
    padded = pad_to(np.asarray(rows, np.float32), (bucket(len(rows), minimum=64), rows.shape[1]))
    parts = (np.asarray(space.landmarks), np.asarray(space.whitening), padded)
    with in_float32():
        found = np.asarray(_lift(space.kernel, *parts), np.float64)
    return found[: len(rows)]


_lift = jax.jit(lift)


def nearness(
    space: Space, spec: Specification, rows: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, " n"]:
    """Return the embedding's value at every row: large where the owner's data lie."""
    values = kernel_table(space, rows, np.asarray(spec.reduced_set.points))
    return values @ np.asarray(spec.reduced_set.weights, np.float64)


_kernel_values = jax.jit(kernel_values)


def kernel_table(
    space: Space, one: Float[np.ndarray, "n d"], other: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, "n m"]:
    """Return k(x_i, y_j) in float64, computed in float32 with few shapes to compile."""
    padded = [
        pad_to(np.asarray(rows, np.float32), (bucket(len(rows), minimum=64), rows.shape[1]))
        for rows in (one, other)
    ]
    with in_float32():
        values = np.asarray(_kernel_values(space.kernel, *padded), np.float64)
    return values[: len(one), : len(other)]


def corrected_agreement(
    one: np.ndarray, other: np.ndarray, weights: np.ndarray | None = None
) -> tuple[float, float]:
    """Return Cohen's kappa of two sequences of classes, and the agreement expected by chance.

    Args:
        one: (n,) classes.
        other: (n,) classes.
        weights: (n,) of the rows, or None for equal ones.
    """
    size = int(max(one.max(), other.max())) + 1
    share = np.full(len(one), 1.0) if weights is None else np.asarray(weights, np.float64)
    share = share / max(share.sum(), 1e-30)
    agreement = share[one == other].sum()
    counts = [np.bincount(classes, share, minlength=size) for classes in (one, other)]
    chance = float(counts[0] @ counts[1])
    return float((agreement - chance) / max(1.0 - chance, 1e-9)), chance
