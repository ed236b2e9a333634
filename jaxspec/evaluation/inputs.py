"""Checks of the arguments that the evaluation functions share.

`as_real_array` and `as_score_pair` return float64 arrays or raise an error that names the argument;
`as_counts` and `check_generator` do the same for integers and random generators. Nothing here
computes a metric, and nothing changes the arrays that it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxspec.base import as_size, to_numpy

if TYPE_CHECKING:
    from jaxtyping import Float64
    from numpy.typing import ArrayLike

__all__ = ["as_counts", "as_real_array", "as_score_pair", "check_generator"]


def as_real_array(name: str, value: ArrayLike) -> Float64[np.ndarray, ...]:
    """Return `value` as a float64 array without NaN."""
    array = to_numpy(name, value)
    if array.dtype.kind in "cOSUMm":
        raise TypeError(f"{name}: expected an array of real numbers, got dtype {array.dtype}")
    numbers = array.astype(np.float64)
    if np.isnan(numbers).any():
        raise ValueError(f"{name}: expected no NaN, got {int(np.isnan(numbers).sum())}")
    return numbers


def as_score_pair(
    scores: ArrayLike, performance: ArrayLike
) -> tuple[Float64[np.ndarray, "Q M"], Float64[np.ndarray, "Q M"]]:
    """Return scores and performance as (Q, M) float64 arrays; Q = 1 for inputs of shape (M,)."""
    given = as_real_array("scores", scores)
    truth = as_real_array("performance", performance)
    if given.ndim not in (1, 2) or given.size == 0:
        raise ValueError(f"scores: expected (M,) or (Q, M), not empty, got shape {given.shape}")
    if truth.shape != given.shape:
        raise ValueError(
            f"performance: expected the shape of scores {given.shape}, got {truth.shape}"
        )
    if not np.isfinite(truth).all():
        raise ValueError("performance: expected finite numbers, got infinity")
    return np.atleast_2d(given), np.atleast_2d(truth)


def as_counts(name: str, values: Sequence[int]) -> tuple[int, ...]:
    """Return `values` as a tuple of integers of at least 1."""
    try:
        counts = tuple(values)
    except TypeError:
        raise TypeError(f"{name}: expected a sequence of integers, got {values!r}") from None
    return tuple(as_size(name, count) for count in counts)


def check_generator(rng: np.random.Generator) -> None:
    """Raise a TypeError unless `rng` is a numpy random generator."""
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng: expected a numpy.random.Generator, got {type(rng).__name__}")
