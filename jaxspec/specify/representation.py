"""Representations: a model's hidden features, as a linear map of the public features.

Fine-tuning reuses the hidden layers of a model and not its classes, so a user whose classes are in
no learnware asks whether hidden features separate them. A specification may hold the answer's first
approximation: the ridge regression of the model's leading hidden directions on the public features
of the submitter's data, `RANK` columns of d numbers. `fit_representation` makes it, from data on
the host; nothing here scores it.
Source: Cristianini et al., "On kernel-target alignment" (2001), with a kernel on hidden features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import numpy as np

from jaxspec.base import as_features

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float

__all__ = ["RANK", "fit_representation"]

RANK = 16  # hidden directions that a specification keeps
RIDGE = 1e-2  # relative to the mean variance of the features


def fit_representation(
    features: Float[ArrayLike, "n d"], hidden: Float[ArrayLike, "n h"], *, name: str = "hidden"
) -> Float[Array, "d r"]:
    """Return the map (d, RANK), in float32, from public features to leading hidden directions.

    It is scaled to Frobenius norm one, since only proportions count. With fewer than RANK hidden
    directions, the last columns are zero.

    Args:
        features: public features of the submitter's data.
        hidden: the model's activations before its output layer on the same data, one row each.
        name: what errors call `hidden`.

    Raises:
        TypeError, ValueError: an argument that is not as described; the message names it.
    """
    z = np.asarray(as_features("features", features), np.float64)
    h = np.asarray(as_features(name, hidden), np.float64)
    if len(h) != len(z):
        raise ValueError(f"{name}: expected {len(z)} rows as in features, got {len(h)}")
    z, h = z - z.mean(axis=0), h - h.mean(axis=0)
    left, sizes, _ = np.linalg.svd(h, full_matrices=False)
    leading = (left * sizes)[:, :RANK]
    second_moment = z.T @ z
    ridge = RIDGE * max(np.trace(second_moment) / len(second_moment), np.finfo(np.float32).tiny)
    fitted = np.linalg.solve(second_moment + ridge * np.eye(len(second_moment)), z.T @ leading)
    found = np.zeros((z.shape[1], RANK), np.float32)
    norm = np.linalg.norm(fitted)
    if norm > 0:
        found[:, : fitted.shape[1]] = fitted / norm
    return jax.device_put(found)
