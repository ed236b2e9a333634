"""Ways to make reduced sets that `benchmarks.speed.specifications` compares: jaxspec and rivals.

Every function here takes a case of `specification_cases` and returns a function of a seed that
gives [(points, weights), ...], one pair per data set, or `Timed` with such a list.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from sklearn.cluster import KMeans

import jaxspec as js
from benchmarks.speed.learnware_package import LearnwareProcess
from benchmarks.speed.specification_cases import Case
from benchmarks.speed.timing import Timed

__all__ = ["LOOPED", "jaxspec_sets", "k_means", "learnware_sets", "stopped_after"]

LOOPED = 16  # data sets of a batch on which methods without a batched call are timed


def jaxspec_sets(case: Case, **options: Any) -> Callable[[int], list[tuple[Any, Any]]]:
    """Return the call of jaxspec for a case."""
    shared = {"size": case.size, "kernel": case.kernel, **options}

    def call(seed: int) -> list[tuple[Any, Any]]:
        key = jax.random.key(seed)
        if len(case.sets) == 1:
            made = jax.block_until_ready(js.reduce_set(case.sets[0], key=key, **shared))
            return [(made.points, made.weights)]
        made = jax.block_until_ready(js.reduce_sets(case.sets, key=key, **shared))
        return list(zip(made.points, made.weights, strict=True))

    return call


def stopped_after(case: Case, passes: int) -> Callable[[int], list[tuple[Any, Any]]]:
    """Return the call of jaxspec with a fixed number of passes over the data."""
    return jaxspec_sets(case, max_iterations=passes, tolerance=0.0, exact_error=False)


def looped(case: Case, one: Callable[[int, int], Timed]) -> Callable[[int], Timed]:
    """Return a call of `one(number of the set, seed)` for every set, or for a sample of a batch.

    The time of a sample is scaled to the batch, since without a batched call it is a plain loop.
    """
    count = min(len(case.sets), LOOPED)

    def call(seed: int) -> Timed:
        made = [one(number, seed) for number in range(count)]
        seconds = sum(each.seconds for each in made) * len(case.sets) / count
        return Timed([each.result for each in made], seconds)

    return call


def k_means(case: Case, *, best: bool = True) -> Callable[[int], Timed]:
    """Return k-means of scikit-learn, with the best weights for its centres or with 1/m."""
    from scipy.linalg import cho_factor, cho_solve
    from sklearn.metrics.pairwise import rbf_kernel

    def one(number: int, seed: int) -> Timed:
        began, rows = time.perf_counter(), case.sets[number]
        centres = KMeans(case.size, n_init=1, random_state=seed).fit(rows).cluster_centers_
        weights = np.full(case.size, 1 / case.size)
        if best:
            target = rbf_kernel(centres, rows, gamma=case.gamma).mean(axis=1, dtype=np.float64)
            gram = rbf_kernel(centres.astype(np.float64), gamma=case.gamma)
            weights = cho_solve(cho_factor(gram + 1e-8 * np.eye(case.size)), target)
        return Timed((centres, weights), time.perf_counter() - began)

    return looped(case, one)


def learnware_sets(
    case: Case, process: LearnwareProcess, names: list[str], **options: Any
) -> Callable[[int], Timed]:
    """Return the call of `learnware`; `names` are those of the data sets in its process."""

    def one(number: int, seed: int) -> Timed:
        shared = {"gamma": case.gamma, "size": case.size, "seed": seed}
        return process.specify(names[number], **shared, **options)

    return looped(case, one)
