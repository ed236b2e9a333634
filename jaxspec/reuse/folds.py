"""Stratified folds for cross-validation on few labelled examples.

May be called: `stratified_folds`. It is deterministic: nothing here draws random numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Int, Int32

__all__ = ["stratified_folds"]


def stratified_folds(labels: Int[np.ndarray, " n"], folds: int) -> Int32[np.ndarray, " n"] | None:
    """Return the fold of every example, or None if a class has one example only.

    The examples of a class go to the folds in turn. There are as many folds as asked for, or as
    many as the smallest class has examples, so that every class is in every fold.

    Args:
        labels: (n,) integers >= 0; classes without examples are ignored.
        folds: the largest number of folds, at least 2.
    """
    counts = np.bincount(labels)
    number = min(folds, int(counts[counts > 0].min()))
    if number < 2:
        return None
    fold = np.zeros(len(labels), np.int32)
    for label in np.flatnonzero(counts):
        members = np.flatnonzero(labels == label)
        fold[members] = np.arange(len(members)) % number
    return fold
