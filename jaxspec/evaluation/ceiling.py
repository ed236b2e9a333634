"""The ceiling: how well any method can do, given the noise of a finite test set.

May be called: `split_half_ceiling`. It draws random splits from the generator that it is given and
never from a generator of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxspec.base import as_size, to_numpy
from jaxspec.evaluation.inputs import as_counts, check_generator
from jaxspec.evaluation.ranking import EvaluationSummary, summarize

if TYPE_CHECKING:
    from jaxtyping import Bool

__all__ = ["split_half_ceiling"]


def split_half_ceiling(
    correct: Bool[np.ndarray, "Q M T"] | Sequence[Bool[np.ndarray, "M T"]],
    *,
    rng: np.random.Generator,
    ks: Sequence[int] = (1, 2, 3),
    repeats: int = 100,
) -> EvaluationSummary:
    """Return the metrics of ranking by one half of the test set and judging on the other half.

    In every repeat a user's T test examples are split at random; the learnwares' accuracies on
    floor(T/2) of them are the scores and their accuracies on the others are the truth. Both sides
    see about half of the examples, so a method that is judged on all T may come out a little
    above this.

    Args:
        correct: bool (Q, M, T), whether learnware m is right on test example t of user q; or a
            list with one (M, T) array per user, where M and T may differ.
        rng: draws the splits.
        ks: the k of Pre@k.
        repeats: number of random splits per user.

    Returns:
        Means over repeats, then over users (every user has the same weight).

    Raises:
        TypeError: if `correct` is not boolean, or rng is not a numpy Generator.
        ValueError: if shapes are wrong or empty, entries are masked, or a user has fewer than 2
            examples.
    """
    users = _checked_correct(correct)
    sizes = as_counts("ks", ks)
    splits = as_size("repeats", repeats)
    check_generator(rng)
    rows = []
    for right in users:
        examples = right.shape[1]
        half = examples // 2
        in_first = rng.permuted(np.tile(np.arange(examples) < half, (splits, 1)), axis=1)
        right_by_example = right.astype(np.float64).T
        right_in_first = in_first.astype(np.float64) @ right_by_example  # (repeats, M) counts
        right_in_second = right_by_example.sum(axis=0) - right_in_first
        summary = summarize(right_in_first, right_in_second / (examples - half), sizes)
        rows.append([*summary.precision, summary.regret, summary.tau])
    means = np.mean(rows, axis=0).tolist()
    return EvaluationSummary(sizes, tuple(means[:-2]), regret=means[-2], tau=means[-1])


def _checked_correct(
    correct: Bool[np.ndarray, "Q M T"] | Sequence[Bool[np.ndarray, "M T"]],
) -> list[Bool[np.ndarray, "M T"]]:
    """Return one boolean (M, T) array per user."""
    if isinstance(correct, (list, tuple)):
        users = [to_numpy("correct", user) for user in correct]
    else:
        stacked = to_numpy("correct", correct)
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
                "correct: expected (M, T) with at least 1 learnware and 2 test examples, "
                f"got shape {user.shape} for user {place}"
            )
    return users
