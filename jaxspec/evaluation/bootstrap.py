"""Confidence intervals of means over markets, by the bootstrap.

May be called: `bootstrap_interval`, which returns an `Interval`. It draws from the generator that
it is given and never from a generator of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy  # its subpackage `stats` (0.7 s) is loaded on first use

from jaxspec.base import as_size
from jaxspec.evaluation.inputs import as_real_array, check_generator

if TYPE_CHECKING:
    from jaxtyping import Float64
    from numpy.typing import ArrayLike

__all__ = ["Interval", "bootstrap_interval"]

RESAMPLED_NUMBERS = 4_000_000  # in memory at a time (32 MB), however many resamples are drawn


class Interval(NamedTuple):
    """A confidence interval: floats for values of shape (markets,), arrays for more axes."""

    lower: float | Float64[np.ndarray, ...]
    upper: float | Float64[np.ndarray, ...]


def bootstrap_interval(
    values: ArrayLike,
    *,
    rng: np.random.Generator,
    level: float = 0.95,
    repeats: int = 2000,
) -> Interval:
    """Return the percentile bootstrap interval of the mean over markets.

    Markets are drawn with replacement, and the same draw serves every trailing entry, so that the
    columns of one benchmark stay paired. To compare two methods, pass their difference.

    Args:
        values: (markets,) or (markets, ...), finite, at least two markets.
        rng: draws the resamples.
        level: confidence, strictly between 0 and 1.
        repeats: number of resamples.

    Returns:
        `Interval(lower, upper)`, each of shape `values.shape[1:]`.

    Raises:
        TypeError: if values are not numeric, or rng is not a numpy Generator.
        ValueError: if values are not finite or are masked, there are fewer than two markets, or
            level is not between 0 and 1.
    """
    numbers = as_real_array("values", values)
    draws = as_size("repeats", repeats)
    check_generator(rng)
    if numbers.ndim == 0 or numbers.shape[0] < 2 or numbers.size == 0:
        raise ValueError(
            "values: expected (markets, ...) with at least 2 markets and no empty axis, "
            f"got shape {numbers.shape}"
        )
    if not np.isfinite(numbers).all():
        raise ValueError("values: expected finite numbers, got infinity")
    if isinstance(level, str) or not 0.0 < level < 1.0:
        raise ValueError(f"level: expected a number strictly between 0 and 1, got {level!r}")
    found = scipy.stats.bootstrap(
        (numbers,),
        np.mean,
        n_resamples=draws,
        batch=max(1, RESAMPLED_NUMBERS // numbers.size),
        vectorized=True,
        axis=0,
        confidence_level=level,
        method="percentile",
        random_state=rng,  # called `rng` from scipy 1.15 on; jax accepts 1.14
    ).confidence_interval
    if numbers.ndim == 1:
        return Interval(float(found.low), float(found.high))
    return Interval(found.low, found.high)
