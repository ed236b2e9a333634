"""How well scores rank a market's learnwares: Pre@k, Kendall's tau, regret, ceilings, intervals.

Everything here is a pure numpy function of `scores` (what a method says) and `performance` (the
truth: the measured test accuracy of every learnware for every user). Both have shape (M,) for one
user or (Q, M) for a batch of users. Functions in the plural (`kendall_taus`, `regrets`) and
`hit_at_k` give one value a user; the others give the mean over users.

Only the order of scores matters, so scores may be infinite (-inf for a learnware that a method
rules out). Ties are never broken by position: a metric is the expectation over random
tie-breaking. NaN is refused. Nothing here draws random numbers from a generator of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "EvaluationSummary",
    "Interval",
    "bootstrap_interval",
    "hit_at_k",
    "kendall_tau",
    "kendall_taus",
    "precision_at_k",
    "regret",
    "regrets",
    "split_half_ceiling",
    "summarize",
]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class EvaluationSummary:
    """Means over users: Pre@k for each k in `ks`, regret, and Kendall's tau-b."""

    ks: tuple[int, ...]
    precision: tuple[float, ...]
    regret: float
    tau: float

    def as_dict(self) -> dict[str, float]:
        """Flat names and numbers for a table or a JSON file: pre@1, ..., regret, tau."""
        named = {f"pre@{k}": value for k, value in zip(self.ks, self.precision, strict=True)}
        return {**named, "regret": self.regret, "tau": self.tau}


class Interval(NamedTuple):
    """A confidence interval: floats for values of shape (markets,), arrays for more axes."""

    lower: Any
    upper: Any


def hit_at_k(scores: ArrayLike, performance: ArrayLike, k: int) -> FloatArray:
    """Probability that a truly best learnware stands among the k best scores, for every user.

    Learnwares that tie for the best performance all count as truly best. Let t be the k-th
    largest score, a the number of scores above t, e the number equal to t, and b the number of
    truly best learnwares among those e. The hit is 1 if a truly best learnware scores above t;
    otherwise r = k - a of the e tied learnwares get in, chosen uniformly at random, and

        hit = 1 - C(e - b, r) / C(e, r).

    Args:
        scores: (M,) or (Q, M), larger is better.
        performance: the true values, same shape, finite.
        k: at least 1; k >= M holds the whole market and gives 1.

    Returns:
        (Q,) values in [0, 1]; Q = 1 for one user.

    Raises:
        TypeError: if an input is not numeric or k is not an integer.
        ValueError: if shapes disagree or are empty, values are NaN, or k < 1.
    """
    given, truth = _checked_pair(scores, performance)
    size = _checked_count("k", k)
    learnwares = given.shape[1]
    if size >= learnwares:
        return np.ones(given.shape[0])
    is_best = truth == truth.max(axis=1, keepdims=True)
    cut = np.partition(given, learnwares - size, axis=1)[:, learnwares - size, None]
    above, level = given > cut, given == cut
    hits: FloatArray = (is_best & above).any(axis=1).astype(np.float64)
    slots = size - above.sum(axis=1)
    tied = level.sum(axis=1)
    tied_best = (is_best & level).sum(axis=1)
    for user in np.flatnonzero((hits == 0) & (tied_best > 0)):
        hits[user] = 1.0 - _miss_probability(tied[user], tied_best[user], slots[user])
    return hits


def precision_at_k(scores: ArrayLike, performance: ArrayLike, k: int) -> float:
    """Pre@k: the mean over users of `hit_at_k` (see there for ties, shapes and errors).

    >>> precision_at_k([[3.0, 2.0, 1.0], [3.0, 3.0, 1.0]], [[0.9, 0.5, 0.4], [0.2, 0.7, 0.1]], 1)
    0.75
    """
    return float(hit_at_k(scores, performance, k).mean())


def kendall_taus(scores: ArrayLike, performance: ArrayLike) -> FloatArray:
    """Kendall's tau-b between scores and performance, for every user, in O(M log M).

    With C concordant and D discordant pairs, and n_s, n_p pairs tied in scores and performance
    among the n = M(M - 1)/2,

        tau_b = (C - D) / sqrt((n - n_s) (n - n_p)).

    Where the denominator is zero (constant scores, constant performance, a single learnware) the
    scores order nothing and tau is defined as 0.0.

    Args:
        scores: (M,) or (Q, M).
        performance: the true values, same shape, finite.

    Returns:
        (Q,) values in [-1, 1]; Q = 1 for one user.

    Raises:
        TypeError: if an input is not numeric.
        ValueError: if shapes disagree or are empty, or values are NaN.
    """
    given, truth = _checked_pair(scores, performance)
    learnwares = given.shape[1]
    truth_order = np.argsort(truth, axis=1)
    truth_starts = _run_starts(np.take_along_axis(truth, truth_order, axis=1))
    ranks = np.empty(truth.shape, dtype=np.int64)
    np.put_along_axis(ranks, truth_order, np.cumsum(truth_starts, axis=1), axis=1)

    # By score, and by performance among equal scores: what then stands inverted is discordant.
    order = np.lexsort((ranks, given), axis=1)
    ordered_ranks = np.take_along_axis(ranks, order, axis=1)
    score_starts = _run_starts(np.take_along_axis(given, order, axis=1))
    both_starts = score_starts | _run_starts(ordered_ranks)

    pairs = learnwares * (learnwares - 1) // 2
    untied_scores = pairs - _tied_pairs(score_starts)
    untied_truth = pairs - _tied_pairs(truth_starts)
    ordered_pairs = untied_scores + untied_truth - pairs + _tied_pairs(both_starts)
    difference = ordered_pairs - 2 * _inversions(ordered_ranks)
    # A product in floats: in int64 it overflows beyond M = 80,000. And one root, because
    # sqrt(n n) is n to the last bit: a perfect order of ten has tau 1, not 0.9999999999999998.
    scale = np.sqrt(untied_scores.astype(np.float64) * untied_truth)
    taus: FloatArray = np.divide(difference, scale, out=np.zeros(len(given)), where=scale > 0)
    return np.asarray(np.clip(taus, -1.0, 1.0))


def kendall_tau(scores: ArrayLike, performance: ArrayLike) -> float:
    """Kendall's tau-b, mean over users of `kendall_taus` (see there for ties, shapes and errors).

    >>> kendall_tau([1.0, 2.0, 3.0], [0.1, 0.2, 0.3])
    1.0
    """
    return float(kendall_taus(scores, performance).mean())


def regrets(scores: ArrayLike, performance: ArrayLike) -> FloatArray:
    """Performance lost by taking the top-ranked learnware instead of the best, for every user.

    max_m performance_m - E[performance of the top-ranked], the expectation over learnwares that
    tie for the highest score.

    Args:
        scores: (M,) or (Q, M), larger is better.
        performance: the true values, same shape, finite.

    Returns:
        (Q,) values, never negative, in units of `performance`; Q = 1 for one user.

    Raises:
        TypeError: if an input is not numeric.
        ValueError: if shapes disagree or are empty, or values are NaN.
    """
    given, truth = _checked_pair(scores, performance)
    top = given == given.max(axis=1, keepdims=True)
    loss = truth.max(axis=1, keepdims=True) - truth
    return np.asarray(loss.mean(axis=1, where=top))


def regret(scores: ArrayLike, performance: ArrayLike) -> float:
    """Mean over users of `regrets` (see there for ties, shapes and errors)."""
    return float(regrets(scores, performance).mean())


def summarize(
    scores: ArrayLike, performance: ArrayLike, ks: Sequence[int] = (1, 2, 3)
) -> EvaluationSummary:
    """Pre@k for every k, regret and tau together; shapes and errors as in `hit_at_k`."""
    given, truth = _checked_pair(scores, performance)
    sizes = _checked_ks(ks)
    return EvaluationSummary(
        ks=sizes,
        precision=tuple(precision_at_k(given, truth, k) for k in sizes),
        regret=regret(given, truth),
        tau=kendall_tau(given, truth),
    )


def split_half_ceiling(
    correct: Any,
    *,
    rng: np.random.Generator,
    ks: Sequence[int] = (1, 2, 3),
    repeats: int = 100,
) -> EvaluationSummary:
    """What the noise of the test pictures leaves to be won: rank by one half, judge on the other.

    In every repeat a user's T test pictures are split at random; the learnwares' accuracies on
    floor(T/2) of them are the scores and their accuracies on the rest are the truth. Both sides
    see about half the pictures, so a method judged on all T may come out a little above this.

    Args:
        correct: bool (Q, M, T), whether learnware m is right on test picture t of user q; or a
            list with one (M, T) array a user, where M and T may differ.
        rng: draws the splits.
        ks: the k of Pre@k.
        repeats: random splits a user.

    Returns:
        Means over repeats, then over users (every user weighs the same).

    Raises:
        TypeError: if `correct` is not boolean, or rng is not a numpy Generator.
        ValueError: if shapes are wrong or empty, or a user has fewer than 2 pictures.
    """
    users = _checked_correct(correct)
    sizes = _checked_ks(ks)
    splits = _checked_count("repeats", repeats)
    _check_generator(rng)
    rows = []
    for right in users:
        pictures = right.shape[1]
        half = pictures // 2
        first = rng.permuted(np.tile(np.arange(pictures) < half, (splits, 1)), axis=1)
        hits = right.astype(np.float64).T
        found = first.astype(np.float64) @ hits  # (repeats, M) pictures right in the first half
        rest = hits.sum(axis=0) - found
        summary = summarize(found, rest / (pictures - half), sizes)
        rows.append([*summary.precision, summary.regret, summary.tau])
    means = np.mean(rows, axis=0).tolist()
    return EvaluationSummary(sizes, tuple(means[:-2]), regret=means[-2], tau=means[-1])


def bootstrap_interval(
    values: ArrayLike,
    *,
    rng: np.random.Generator,
    level: float = 0.95,
    repeats: int = 2000,
) -> Interval:
    """Percentile bootstrap interval of the mean over markets.

    Whole markets are drawn with replacement, the same draw for every trailing entry, so that
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
        ValueError: if values are not finite, there are fewer than two markets, or level is not
            between 0 and 1.
    """
    numbers = _checked_numbers("values", values)
    draws = _checked_count("repeats", repeats)
    _check_generator(rng)
    if numbers.ndim == 0 or numbers.shape[0] < 2 or numbers.size == 0:
        raise ValueError(
            "values: expected (markets, ...) with at least 2 markets and no empty axis, "
            f"got shape {numbers.shape}"
        )
    if not np.isfinite(numbers).all():
        raise ValueError("values: expected finite numbers, got infinity")
    if isinstance(level, str) or not 0.0 < level < 1.0:
        raise ValueError(f"level: expected a number strictly between 0 and 1, got {level!r}")
    markets = numbers.shape[0]
    counts = rng.multinomial(markets, np.full(markets, 1.0 / markets), size=draws)
    means = np.tensordot(counts / markets, numbers, axes=1)
    lower, upper = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0], axis=0)
    if numbers.ndim == 1:
        return Interval(float(lower), float(upper))
    return Interval(lower, upper)


def _miss_probability(tied: int, tied_best: int, slots: int) -> float:
    """C(tied - tied_best, slots) / C(tied, slots), as a product of min(tied_best, slots) terms."""
    few, many = sorted((int(tied_best), int(slots)))
    drawn = np.arange(few)
    return float(np.prod(np.maximum(tied - many - drawn, 0) / (tied - drawn)))


def _run_starts(ordered: NDArray[Any]) -> NDArray[np.bool_]:
    """(Q, M) mask of the places where a run of equal values begins."""
    starts = np.ones(ordered.shape, dtype=bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return starts


def _tied_pairs(starts: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(Q,) pairs inside the runs: every element pairs with those before it in its run."""
    places = np.arange(starts.shape[1])
    begin = np.maximum.accumulate(np.where(starts, places, 0), axis=1)
    return np.asarray((places - begin).sum(axis=1))


def _inversions(ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """(Q,) pairs i < j with ranks_i > ranks_j, by a merge sort of all users at once."""
    users, length = ranks.shape
    padded_length = 1 << (length - 1).bit_length()
    runs = np.full((users, padded_length), length + 1, dtype=np.int64)  # the padding never inverts
    runs[:, :length] = ranks
    total = np.zeros(users, dtype=np.int64)
    width = 1
    while width < padded_length:
        blocks = runs.reshape(users, -1, 2 * width)
        order = np.argsort(blocks, axis=2, kind="stable")
        from_left = order < width
        left_greater = width - np.cumsum(from_left, axis=2)
        total += left_greater.sum(axis=(1, 2), where=~from_left)
        runs = np.take_along_axis(blocks, order, axis=2)
        width *= 2
    return total


def _checked_numbers(name: str, value: ArrayLike) -> FloatArray:
    """`value` as float64 without NaN."""
    try:
        array = np.asarray(value)
        if array.dtype.kind in "cOSUMm":
            raise TypeError(f"dtype {array.dtype}")
        numbers = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected an array of real numbers, got {error}") from None
    if np.isnan(numbers).any():
        raise ValueError(f"{name}: expected no NaN, got {int(np.isnan(numbers).sum())}")
    return numbers


def _checked_pair(scores: ArrayLike, performance: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Both as (Q, M) float64."""
    given = _checked_numbers("scores", scores)
    truth = _checked_numbers("performance", performance)
    if given.ndim not in (1, 2) or given.size == 0:
        raise ValueError(f"scores: expected (M,) or (Q, M), not empty, got shape {given.shape}")
    if truth.shape != given.shape:
        raise ValueError(
            f"performance: expected the shape of scores {given.shape}, got {truth.shape}"
        )
    if not np.isfinite(truth).all():
        raise ValueError("performance: expected finite numbers, got infinity")
    return np.atleast_2d(given), np.atleast_2d(truth)


def _checked_count(name: str, value: int) -> int:
    """`value` as an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return int(value)


def _checked_ks(ks: Sequence[int]) -> tuple[int, ...]:
    """`ks` as a tuple of positive ints."""
    try:
        sizes = tuple(ks)
    except TypeError:
        raise TypeError(f"ks: expected a sequence of integers, got {ks!r}") from None
    return tuple(_checked_count("ks", k) for k in sizes)


def _check_generator(rng: np.random.Generator) -> None:
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng: expected a numpy.random.Generator, got {type(rng).__name__}")


def _checked_correct(correct: Any) -> list[NDArray[np.bool_]]:
    """One bool (M, T) array a user."""
    if isinstance(correct, (list, tuple)):
        users = [np.asarray(user) for user in correct]
    else:
        stacked = np.asarray(correct)
        if stacked.ndim != 3:
            raise ValueError(
                f"correct: expected (Q, M, T) or a list of (M, T) arrays, got shape {stacked.shape}"
            )
        users = list(stacked)
    if not users:
        raise ValueError("correct: expected at least one user, got none")
    for place, user in enumerate(users):
        if user.dtype != np.bool_:
            raise TypeError(f"correct: expected bool, got {user.dtype} for user {place}")
        if user.ndim != 2 or user.shape[0] < 1 or user.shape[1] < 2:
            raise ValueError(
                "correct: expected (M, T) with at least 1 learnware and 2 test pictures, "
                f"got shape {user.shape} for user {place}"
            )
    return users
