"""What a model has learnt to look at: its hidden features, as a linear map of the public ones.

Fine-tuning reuses a model's hidden layers and not its labels, so a user whose classes nobody has
asks whether hidden features separate these classes. A specification may hold the answer's first
approximation: the ridge regression of the model's leading hidden directions on the public features
of the submitter's data, RANK columns of d numbers. `transfer.explained` scores it. The form follows
kernel alignment (Cristianini et al., "On kernel-target alignment", 2001), of a kernel on hidden
features; `benchmarks/hidden.py` compares ranks, fits and penalties.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxspec.base.checks import as_features

__all__ = ["RANK", "fit_representation"]

Array = Any
RANK = 16
RIDGE = 1e-2  # of the features' mean variance


def fit_representation(features: Array, hidden: Array, *, name: str = "hidden") -> np.ndarray:
    """Return the map (d, RANK) float32 from public features to leading hidden directions.

    It is brought to squared norm one: only proportions count. A model with fewer than RANK hidden
    directions has zero columns at the end.

    Args:
        features: (n, d) public features of the submitter's data.
        hidden: (n, h) the model's activations before its output layer, flattened, on the same data.
        name: what errors call `hidden`.

    Raises:
        ValueError, TypeError: an argument that is not as described; the message names it.
    """
    z = np.asarray(as_features("features", features), np.float64)
    h = np.asarray(as_features(name, hidden), np.float64)
    if len(h) != len(z):
        raise ValueError(f"{name}: expected {len(z)} rows as in features, got {len(h)}")
    z, h = z - z.mean(axis=0), h - h.mean(axis=0)
    left, size, _ = np.linalg.svd(h, full_matrices=False)
    leading = (left * size)[:, :RANK]
    second = z.T @ z
    penalty = RIDGE * max(np.trace(second) / second.shape[0], np.finfo(np.float32).tiny)
    fitted = np.linalg.solve(second + penalty * np.eye(len(second)), z.T @ leading)
    found = np.zeros((z.shape[1], RANK))
    norm = np.linalg.norm(fitted)
    if norm > 0:
        found[:, : fitted.shape[1]] = fitted / norm
    return found.astype(np.float32)
