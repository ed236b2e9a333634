"""The answers that a specification publishes at given rows of features.

`published_logits` takes the probe proxy, or the linear proxy where there is none; `linear_logits`
always takes the linear one. Nothing here runs a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxspec.kernels import kernel_values, lift
from jaxspec.market import in_float32
from jaxspec.specify import Space, Specification

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["corrected_agreement", "linear_logits", "nearness", "published_logits"]


def linear_logits(spec: Specification, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n C"]:
    """Return the logits of the linear proxy."""
    weights = np.asarray(spec.proxy.weights, np.float64)
    return np.asarray(rows, np.float64) @ weights + np.asarray(spec.proxy.bias, np.float64)


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
    with in_float32():
        found = lift(
            space.kernel,
            np.asarray(space.landmarks),
            np.asarray(space.whitening),
            np.asarray(rows, np.float32),
        )
    return np.asarray(found, np.float64)


def nearness(
    space: Space, spec: Specification, rows: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, " n"]:
    """Return the embedding's value at every row: large where the owner's data lie."""
    points = np.asarray(spec.reduced_set.points, np.float32)
    with in_float32():
        values = kernel_values(space.kernel, np.asarray(rows, np.float32), points)
    return np.asarray(values, np.float64) @ np.asarray(spec.reduced_set.weights, np.float64)


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
