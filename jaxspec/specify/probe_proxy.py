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
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.base.checks import as_features, as_probabilities, as_size
from jaxspec.base.padding import bucket, pad_to
from jaxspec.base.pytrees import register
from jaxspec.kernels.kernels import Kernel, as_kernel, distances

__all__ = [
    "ProbeProxy",
    "fit_probe_proxies",
    "fit_probe_proxy",
    "lift",
    "probe_fingerprint",
    "whitening",
]

Array = Any
SIZE = 800  # landmarks; of small nets' answers elsewhere 66.6, 68.1, 69.4 % at 200, 400, 800
RIDGE = 1e-5  # 1e-6 to 3e-5 were equal within noise on six markets, 1e-3 clearly worse
SMALLEST_PROBABILITY = 1e-2  # a log-probability below is a matter of training length
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
    kernel: Kernel, landmarks: Array, rows: Array, targets: Array, weights: Array
) -> tuple[Array, Array, Array]:
    """Weighted ridge regression of targets (n, T) on lifted rows: (D, T), (T,), fitted (n, T)."""
    lifted = lift(kernel, landmarks, whitening(kernel, landmarks), rows)
    weights = weights / weights.sum()
    centre = jnp.matmul(weights, lifted, precision="highest")
    mean = jnp.matmul(weights, targets, precision="highest")
    lifted, targets = lifted - centre, targets - mean
    weighted = lifted * weights[:, None]
    matrix = jnp.matmul(weighted.T, lifted, precision="highest")
    matrix += RIDGE * jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    right = jnp.matmul(weighted.T, targets, precision="highest")
    solution = jax.scipy.linalg.solve(matrix, right, assume_a="pos")
    bias = mean - jnp.matmul(centre, solution, precision="highest")
    return solution, bias, jnp.matmul(lifted, solution, precision="highest") + mean


def _targets(probabilities: np.ndarray) -> np.ndarray:
    """Return centred log-probabilities, (n, C)."""
    logits = np.log(np.maximum(probabilities, SMALLEST_PROBABILITY))
    return logits - logits.mean(axis=1, keepdims=True)


def fit_probe_proxy(
    kernel: Kernel,
    probe: Array,
    probabilities: Array,
    *,
    own_features: Array | None = None,
    own_probabilities: Array | None = None,
    size: int = SIZE,
) -> ProbeProxy:
    """Fit the lifted proxy of one model.

    Args:
        kernel: the market's kernel.
        probe: (p, d) features of the market's probe set.
        probabilities: (p, C) of the model on the probe.
        own_features: (n, d) of the owner's data, used beside the probe if given. More faithful at
            home (61 to 73 % of small nets' answers), less so elsewhere (67 to 64 %).
        own_probabilities: (n, C) of the model there.
        size: D, how many landmarks (fewer if the probe has fewer rows).

    Raises:
        TypeError: no kernel.
        ValueError: shapes that do not agree, rows that do not sum to one, NaN; one of the two
            `own_` arrays without the other.
    """
    if (own_features is None) != (own_probabilities is None):
        missing = "own_features" if own_features is None else "own_probabilities"
        raise ValueError(f"{missing}: expected an array beside its counterpart, got None")
    own = None if own_features is None else (own_features, own_probabilities)
    return fit_probe_proxies(kernel, probe, [probabilities], own=own, size=size)[0]


def fit_probe_proxies(
    kernel: Kernel,
    probe: Array,
    probabilities: Sequence[Array],
    *,
    own: tuple[Array, Array] | None = None,
    size: int = SIZE,
) -> list[ProbeProxy]:
    """Fit the lifted proxies of many models: one factorisation serves all of them.

    Args:
        kernel: the market's kernel.
        probe: (p, d) features of the market's probe set.
        probabilities: B arrays (p, C_i) of the models on the probe.
        own: with a single model, features and probabilities of its owner's data.
        size: D, how many landmarks (fewer if the probe has fewer rows).

    Raises:
        ValueError: as `fit_probe_proxy`.
    """
    kernel, probe = as_kernel("kernel", kernel), np.asarray(as_features("probe[0]", probe))
    outputs = []
    for i, value in enumerate(probabilities):
        name = "probe[1]" if len(probabilities) == 1 else f"probe[1][{i}]"
        classes = np.shape(value)[-1] if np.ndim(value) == 2 else 0
        checked = as_probabilities(name, value, rows=probe.shape[0], num_classes=classes)
        outputs.append(np.asarray(checked))
    landmarks = probe[: as_size("size", size)]
    rows, count = probe, len(probe)
    if own is not None:
        features = as_features("own_features", own[0], dimension=probe.shape[1])
        given = as_probabilities(
            "own_probabilities", own[1], rows=features.shape[0], num_classes=outputs[0].shape[1]
        )
        rows = np.concatenate([probe, features])
        outputs = [np.concatenate([outputs[0], given])]
    targets = np.concatenate([_targets(one) for one in outputs], axis=1)
    padded, width = bucket(len(rows), minimum=256), bucket(targets.shape[1])
    fitted = _fit(
        kernel,
        landmarks,
        pad_to(rows, (padded, rows.shape[1])),
        pad_to(targets, (padded, width)),
        pad_to(np.ones(len(rows), rows.dtype), (padded,)),
    )
    weights, bias, values = map(np.asarray, fitted)
    fingerprint, proxies, first = probe_fingerprint(probe), [], 0
    for one in outputs:
        at = slice(first, first + one.shape[1])
        agree = values[:count, at].argmax(axis=1) == one[:count].argmax(axis=1)
        fidelity = np.asarray(agree.mean(dtype=np.float32))
        proxies.append(ProbeProxy(landmarks, weights[:, at], bias[at], fidelity, fingerprint))
        first = at.stop
    return proxies
