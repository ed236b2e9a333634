"""How good the top of a ranking is: Pre@k, regret, and a summary with Kendall's tau.

May be called: `hit_at_k` and `regrets` (one value per user), `precision_at_k` and `regret` (means
over users) and `summarize` (all of them as an `EvaluationSummary`). Nothing here draws random
numbers: where scores tie, the expectation over random tie-breaking is computed exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jaxspec.base import as_size
from jaxspec.evaluation.inputs import as_counts, as_score_pair
from jaxspec.evaluation.rank_correlation import kendall_tau

if TYPE_CHECKING:
    from jaxtyping import Float64
    from numpy.typing import ArrayLike

__all__ = [
    "EvaluationSummary",
    "hit_at_k",
    "precision_at_k",
    "regret",
    "regrets",
    "summarize",
]


@dataclass(frozen=True)
class EvaluationSummary:
    """Means over users of Pre@k for each k in `ks`, of the regret, and of Kendall's tau-b."""

    ks: tuple[int, ...]
    precision: tuple[float, ...]
    regret: float
    tau: float

    def as_dict(self) -> dict[str, float]:
        """Return {"pre@1": ..., "regret": ..., "tau": ...}, for a table or a JSON file."""
        named = {f"pre@{k}": value for k, value in zip(self.ks, self.precision, strict=True)}
        return {**named, "regret": self.regret, "tau": self.tau}


def hit_at_k(scores: ArrayLike, performance: ArrayLike, k: int) -> Float64[np.ndarray, " Q"]:
    """Return the probability that a truly best learnware is among the k best scores.

    Learnwares that tie for the best performance all count as truly best. Let t be the k-th
    largest score, a the number of scores above t, e the number equal to t, and b the number of
    truly best learnwares among those e. The hit is 1 if a truly best learnware scores above t;
    otherwise r = k - a of the e tied learnwares are taken, chosen uniformly at random, and

        hit = 1 - C(e - b, r) / C(e, r).

    Args:
        scores: (M,) or (Q, M), larger is better.
        performance: the true values, same shape, finite.
        k: at least 1; k >= M takes the whole market and gives 1.

    Returns:
        (Q,) values in [0, 1], one per user; Q = 1 for one user.

    Raises:
        TypeError: if an input is not numeric, or k is not an integer.
        ValueError: if shapes disagree or are empty, values are NaN or masked, or k < 1.
    """
    given, truth = as_score_pair(scores, performance)
    size = as_size("k", k)
    learnwares = given.shape[1]
    if size >= learnwares:
        return np.ones(given.shape[0])
    is_best = truth == truth.max(axis=1, keepdims=True)
    threshold = np.partition(given, learnwares - size, axis=1)[:, learnwares - size, None]
    above, level = given > threshold, given == threshold
    hits = (is_best & above).any(axis=1).astype(np.float64)
    taken = size - above.sum(axis=1)
    tied = level.sum(axis=1)
    tied_best = (is_best & level).sum(axis=1)
    for user in np.flatnonzero((hits == 0) & (tied_best > 0)):
        hits[user] = 1.0 - _miss_probability(tied[user], tied_best[user], taken[user])
    return hits


def precision_at_k(scores: ArrayLike, performance: ArrayLike, k: int) -> float:
    """Return Pre@k: the mean over users of `hit_at_k` (see there for ties, shapes and errors).

    >>> precision_at_k([[3.0, 2.0, 1.0], [3.0, 3.0, 1.0]], [[0.9, 0.5, 0.4], [0.2, 0.7, 0.1]], 1)
    0.75
    """
    return float(hit_at_k(scores, performance, k).mean())


def regrets(scores: ArrayLike, performance: ArrayLike) -> Float64[np.ndarray, " Q"]:
    """Return the performance lost by taking the learnware of the highest score, per user.

        regret = max_m performance_m - E[performance of the learnware of the highest score]

    The expectation is over learnwares that tie for the highest score.

    Args:
        scores: (M,) or (Q, M), larger is better.
        performance: the true values, same shape, finite.

    Returns:
        (Q,) values, never negative, in units of `performance`; Q = 1 for one user.

    Raises:
        TypeError: if an input is not numeric.
        ValueError: if shapes disagree or are empty, or values are NaN or masked.
    """
    given, truth = as_score_pair(scores, performance)
    top = given == given.max(axis=1, keepdims=True)
    loss = truth.max(axis=1, keepdims=True) - truth
    return np.asarray(loss.mean(axis=1, where=top))


def regret(scores: ArrayLike, performance: ArrayLike) -> float:
    """Return the mean over users of `regrets` (see there for ties, shapes and errors)."""
    return float(regrets(scores, performance).mean())


def summarize(
    scores: ArrayLike, performance: ArrayLike, ks: Sequence[int] = (1, 2, 3)
) -> EvaluationSummary:
    """Return Pre@k for every k in `ks`, regret and tau; shapes and errors as in `hit_at_k`."""
    given, truth = as_score_pair(scores, performance)
    sizes = as_counts("ks", ks)
    return EvaluationSummary(
        ks=sizes,
        precision=tuple(precision_at_k(given, truth, k) for k in sizes),
        regret=regret(given, truth),
        tau=kendall_tau(given, truth),
    )


def _miss_probability(tied: int, tied_best: int, taken: int) -> float:
    """Return C(tied - tied_best, taken) / C(tied, taken).

    A product of min(tied_best, taken) factors: the two binomials alone would overflow.
    """
    fewer, more = sorted((int(tied_best), int(taken)))
    drawn = np.arange(fewer)
    return float(np.prod(np.maximum(tied - more - drawn, 0) / (tied - drawn)))
