"""The bandwidth of a kernel from data: the median heuristic.

`median_bandwidth` may be called on arrays and inside compiled functions. Arrays are measured by
numpy in float64, which compiles nothing; tracers by direct differences in their own type. Neither
way takes near rows for equal ones, however far an outlier lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.base.checks import as_features, as_key, as_size, is_concrete
from jaxspec.kernels.kernels import distances

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import ArrayLike, Float

__all__ = ["median_bandwidth"]

MIN_PAIRS = 500_000  # their median is within 0.5 % of that of all pairs, also for Cauchy rows
MAX_ROWS = 200_000  # rows that are read at most
MAX_TRACED_ROWS = 2048  # a group's distances under `jit`: 16 MiB
MAX_KEPT_PAIRS = 4_000_000  # 32 MB; more are measured again in the second pass
BLOCK_ROWS = 128  # 128 x 2000 float64 distances stay in a processor's cache
CANCELLED = 1e-10  # of the norms: a smaller distance has lost digits that the median may need


def median_bandwidth(
    features: Float[ArrayLike, "n d"],
    *,
    metric: str = "euclidean",
    sample_size: int | None = 2000,
    key: Array | None = None,
) -> Float[Array, ""]:
    """Return the median distance between two different rows, a scalar: the median heuristic.

    Args:
        features: (n, d).
        metric: 'euclidean', or 'cityblock' for `Laplacian`.
        sample_size: about as many pairs are measured as this many rows have, but at least 500,000.
            Where there are many more, rows are put in random groups, so that each row counts in
            equally many pairs, and pairs within a group are measured. None measures every pair
            (under `jit`, every pair within groups of 2048 rows).
        key: a jax random key for the groups; None stands for a fixed one.

    Returns:
        the median, in units of the features. The median of an even number of pairs is the mean
        of the two in the middle. Pairs of equal rows are left out if they are half of the pairs
        or more.

    Raises:
        TypeError: entries are not real numbers, or `key` is not a jax random key.
        ValueError: a single row, or all rows equal. Garreau et al., arXiv 1707.07269.
    """
    if metric not in ("euclidean", "cityblock"):
        raise ValueError(f"metric: expected 'euclidean' or 'cityblock', got {metric!r}")
    rows: Any = as_features("features", features, copy=False)
    if rows.shape[0] < 2:
        raise ValueError(f"features: expected at least two rows, got shape {rows.shape}")
    if sample_size is not None:
        as_size("sample_size", sample_size, minimum=2)
    if key is not None:
        as_key("key", key)
    traced = not is_concrete(rows, key)
    groups = _groups(rows.shape[0], sample_size, key, traced)
    if traced:
        return _traced_median(metric, jnp.asarray(rows), groups)
    rows = np.asarray(rows)
    measure = _euclidean_pairs if metric == "euclidean" else _cityblock_pairs

    def parts() -> Iterator[np.ndarray]:
        return (pairs for group in groups for pairs in measure(rows[group]))

    kept = list(parts()) if groups.size * groups.shape[1] <= 2 * MAX_KEPT_PAIRS else None
    median = _median(parts if kept is None else lambda: iter(kept))
    with np.errstate(over="ignore", under="ignore"):
        square = np.square(rows.dtype.type(median))
    if not 0 < square < np.inf:
        raise ValueError(
            "features: expected rows that differ, got equal rows (or differences whose squares "
            f"{rows.dtype} does not hold): no bandwidth"
        )
    return jnp.asarray(median, rows.dtype)


def _groups(n: int, sample_size: int | None, key: Array | None, traced: bool) -> Array | np.ndarray:
    """Return row indices (groups, rows of a group); pairs within a group are measured."""
    if sample_size is None:
        used, size = n, min(n, MAX_TRACED_ROWS) if traced else n
    else:
        pairs = max(sample_size * (sample_size - 1) // 2, MIN_PAIRS)
        used = min(n, MAX_ROWS)
        size = n if n * (n - 1) // 2 <= 2 * pairs else 1 + 2 * pairs // used
    if size == n:
        return np.arange(n)[None]
    count = round(used / size)
    size = used // count
    if key is None:
        return np.random.default_rng(0).permutation(n)[: count * size].reshape(count, size)
    order = jax.random.permutation(key, n)[: count * size].reshape(count, size)
    return order if traced else np.asarray(order)


def _row_codes(rows: np.ndarray) -> np.ndarray:
    """Return a number for each row, the same for equal rows and for no others."""
    joined = np.ascontiguousarray(rows + rows.dtype.type(0))  # so that -0.0 has the bytes of 0.0
    whole_rows = joined.view(np.dtype((np.void, joined.itemsize * joined.shape[1]))).reshape(-1)
    return np.unique(whole_rows, return_inverse=True)[1].reshape(-1)


def _euclidean_pairs(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the Euclidean distances between the rows, in parts; only equal rows are at zero."""
    codes = _row_codes(rows)
    wide = rows.astype(np.float64)
    centred = wide - np.median(wide, axis=0)  # unlike the mean, it stays among most of the rows
    norms = np.einsum("nd,nd->n", centred, centred)
    for start in range(0, len(rows) - 1, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, len(rows))
        sums = norms[start:stop, None] + norms[start:]
        squared = sums - 2 * (centred[start:stop] @ centred[start:].T)
        equal = codes[start:stop, None] == codes[start:]
        if ((squared < CANCELLED * sums) & ~equal).any():
            squared = _sum_over_columns(np.square, wide[start:stop], wide[start:])
        squared[equal] = 0.0
        yield np.sqrt(squared)[_above_diagonal(squared.shape)]


def _cityblock_pairs(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the sum-norm distances between the rows, in parts; only equal rows are at zero."""
    wide = rows.astype(np.float64)
    for start in range(0, len(rows) - 1, BLOCK_ROWS):
        total = _sum_over_columns(np.abs, wide[start : start + BLOCK_ROWS], wide[start:])
        yield total[_above_diagonal(total.shape)]


def _sum_over_columns(function: np.ufunc, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return sum_c function(x_ic - y_jc)."""
    total = np.zeros((len(x), len(y)))
    part = np.empty_like(total)
    for a, b in zip(np.ascontiguousarray(x.T), np.ascontiguousarray(y.T), strict=True):
        np.subtract(a[:, None], b, out=part)
        total += function(part, out=part)
    return total


def _above_diagonal(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(shape[0])[:, None] < np.arange(shape[1])


def _median(parts: Callable[[], Iterator[np.ndarray]]) -> float:
    """Return the median of nonnegative numbers that `parts` yields; zeros count if below half.

    Exact, in two passes and little memory: the first counts numbers by the upper half of their
    float32 bits, which are in the order of the numbers; the second keeps the few in the cells in
    which the middle lies.
    """
    counts, zeros = np.zeros(1 << 16, np.int64), 0
    for values in parts():
        zeros += values.size - int(np.count_nonzero(values))
        counts += np.bincount(_cells(values), minlength=len(counts))
    total = int(counts.sum())
    skipped = zeros if 2 * zeros >= total else 0
    if skipped == total:
        return 0.0
    middle = skipped + np.array([(total - skipped - 1) // 2, (total - skipped) // 2])
    ends = np.cumsum(counts)
    first, last = np.searchsorted(ends, middle, side="right").tolist()
    kept = [v[(cells >= first) & (cells <= last)] for v in parts() for cells in [_cells(v)]]
    found = np.concatenate(kept)
    ranks = middle - (ends[first] - counts[first])
    return float(np.partition(found, ranks)[ranks].mean())


def _cells(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float32).view(np.uint32) >> 16


def _traced_median(metric: str, rows: Array, groups: Array | np.ndarray) -> Array:
    """Return the median by the same rule, inside a compiled function."""
    above = np.triu_indices(groups.shape[1], 1)
    squared = metric == "euclidean"
    name = "sqeuclidean" if squared else metric

    def pairs(group: Array) -> Array:  # a resolution of zero asks for direct differences only
        return distances(name, rows[group], rows[group], resolution=0.0)[above]

    values = jax.lax.map(pairs, jnp.asarray(groups))
    values = jnp.sqrt(values) if squared else values
    different = jnp.nanmedian(jnp.where(values > 0, values, jnp.nan))
    return jnp.where(2 * jnp.sum(values == 0) >= values.size, different, jnp.median(values))
