"""What a model does beyond its owner's data: proxies learnt on the market's public probe set.

The market publishes unlabelled probe features. A submitter runs its model on the probe once, and
`fit_probe_proxy` keeps a linear proxy of the model's log-probabilities over lifted features

    phi(z) = K_LL^{-1/2} k(L, z),

on landmarks L that all specifications share: the probe's first rows (a probe set is in random
order). So the proxy is D x C numbers, kernel ridge regression by its Nystroem form, and a whole
market of them meets a user's lifted examples in one matrix product. A linear proxy on the owner's
data alone says little about what the model does elsewhere; `benchmarks/identification.py`
measures both.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checks import as_features, as_probabilities, as_size
from jaxspec.kernels import Kernel, distances
from jaxspec.pytrees import register
from jaxspec.shapes import bucket, pad_to

__all__ = ["ProbeProxy", "fit_probe_proxy", "lift", "probe_fingerprint", "whitening"]

Array = Any
RIDGE = 1e-4  # 1e-5 and 1e-4 were equal within noise on ten markets
SMALLEST_PROBABILITY = 1e-3  # a log-probability below is a matter of training length
EIGENVALUE_FLOOR = 1e-6  # of the largest: about the rounding of a float32 Gram matrix


@register
@dataclasses.dataclass(frozen=True)
class ProbeProxy:
    """The logits of a model as a linear function of lifted features.

    Attributes:
        landmarks: (D, d) shared by the market.
        weights: (D, C), columns sum to zero over classes.
        bias: (C,).
        fidelity: share of the probe on which the proxy names the model's class.
        fingerprint: of the probe set; proxies of different probes are not compared.
    """

    landmarks: Array
    weights: Array
    bias: Array
    fidelity: Array
    fingerprint: str = dataclasses.field(metadata={"static": True})


def probe_fingerprint(probe: Array) -> str:
    """Return a digest of the probe features (n, d), as float32 in C order."""
    rows = np.ascontiguousarray(np.asarray(probe, np.float32))
    head = f"{rows.shape}".encode()
    return hashlib.sha256(head + rows.tobytes()).hexdigest()[:32]


@jax.jit
def whitening(kernel: Kernel, landmarks: Array) -> Array:
    """Return K_LL^{-1/2}, (D, D), with eigenvalues floored at 1e-6 of the largest."""
    gram = kernel.profile(distances(kernel.metric, landmarks, landmarks))
    values, vectors = jnp.linalg.eigh(0.5 * (gram + gram.T))
    values = jnp.maximum(values, EIGENVALUE_FLOOR * values[-1])
    return jnp.matmul(vectors / jnp.sqrt(values), vectors.T, precision="highest")


def lift(kernel: Kernel, landmarks: Array, white: Array, features: Array) -> Array:
    """Return phi(z) for features (n, d): (n, D); `white` is `whitening(kernel, landmarks)`."""
    values = kernel.profile(distances(kernel.metric, features, landmarks))
    return jnp.matmul(values, white, precision="highest")


@jax.jit
def _fit(
    kernel: Kernel, landmarks: Array, rows: Array, probabilities: Array, weights: Array
) -> tuple[Array, Array, Array]:
    """Weighted ridge regression of centred log-probabilities on lifted rows."""
    lifted = lift(kernel, landmarks, whitening(kernel, landmarks), rows)
    logits = jnp.log(jnp.maximum(probabilities, SMALLEST_PROBABILITY))
    logits = logits - logits.mean(axis=1, keepdims=True)
    weights = weights / weights.sum()
    centre, mean = weights @ lifted, weights @ logits
    lifted, logits = lifted - centre, logits - mean
    weighted = lifted * weights[:, None]
    matrix = jnp.matmul(weighted.T, lifted, precision="highest")
    matrix += RIDGE * jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    right = jnp.matmul(weighted.T, logits, precision="highest")
    solution = jax.scipy.linalg.solve(matrix, right, assume_a="pos")
    agree = (lifted @ solution + mean).argmax(axis=1) == (logits + mean).argmax(axis=1)
    return solution, mean - centre @ solution, agree


def fit_probe_proxy(
    kernel: Kernel,
    probe: Array,
    probabilities: Array,
    *,
    own_features: Array | None = None,
    own_probabilities: Array | None = None,
    size: int = 200,
) -> ProbeProxy:
    """Fit the lifted proxy of one model.

    Args:
        kernel: the market's kernel.
        probe: (p, d) features of the market's probe set.
        probabilities: (p, C) of the model on the probe.
        own_features: (n, d) of the owner's data, used beside the probe if given.
        own_probabilities: (n, C) of the model there.
        size: D, how many landmarks (fewer if the probe has fewer rows).

    Raises:
        ValueError: shapes that do not agree, rows that do not sum to one, NaN.
    """
    probe = as_features("probe[0]", probe)
    classes = np.shape(probabilities)[-1] if np.ndim(probabilities) == 2 else 0
    probabilities = as_probabilities(
        "probe[1]", probabilities, rows=probe.shape[0], num_classes=classes
    )
    landmarks = probe[: as_size("size", size)]
    rows, targets = probe, probabilities
    if own_features is not None and own_probabilities is not None:
        own = as_features("own_features", own_features, dimension=probe.shape[1])
        given = as_probabilities(
            "own_probabilities", own_probabilities, rows=own.shape[0], num_classes=classes
        )
        rows, targets = np.concatenate([probe, own]), np.concatenate([probabilities, given])
    count = rows.shape[0]
    padded = bucket(count, minimum=256)
    weights, bias, agree = _fit(
        kernel,
        landmarks,
        pad_to(rows, (padded, rows.shape[1])),
        pad_to(targets, (padded, classes), value=1.0),
        pad_to(np.ones(count, rows.dtype), (padded,)),
    )
    fidelity = np.asarray(agree)[: probe.shape[0]].mean(dtype=np.float32)
    return ProbeProxy(
        np.asarray(landmarks),
        np.asarray(weights),
        np.asarray(bias),
        np.asarray(fidelity),
        probe_fingerprint(probe),
    )
