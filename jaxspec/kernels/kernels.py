"""Kernels, bandwidths, and the blocked kernel sums that everything else is made of.

A kernel is a frozen pytree whose only leaf is its bandwidth, so `jit`, `vmap` and `grad` pass
through it. A `ReducedSet` is a weighted point set: the element sum_j w_j k(U_j, .) of the
kernel's Hilbert space H. Features are (n, d) rows; the plain mean embedding of features is the
set with weights 1/n.

Nothing here forms an n x n array when n is large: `weighted_sum` goes over blocks of at most
`block_size` rows of either argument. Squared distances are formed from one matrix product after
both arguments are moved to a common origin; at an offset of 100 this is what keeps float32 exact
to rounding.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.base.checks import as_features, as_key, as_size, is_concrete
from jaxspec.base.pytrees import register

__all__ = [
    "Gaussian",
    "InverseMultiquadric",
    "Kernel",
    "Laplacian",
    "ReducedSet",
    "as_kernel",
    "distances",
    "gram",
    "inner_product",
    "kernel_label",
    "median_bandwidth",
    "mmd",
    "one_by_one",
    "square_norm",
    "squared_mmd",
    "weighted_sum",
]

Array = Any  # jax.Array or numpy.ndarray
BLOCK_SIZE = 2048  # rows a block: 2048 x 2048 float32 is 16 MiB, about a last-level cache


@register
@dataclasses.dataclass(frozen=True)
class Gaussian:
    """k(x, y) = exp(-|x - y|_2^2 / (2 bandwidth^2)).

    Attributes:
        bandwidth: positive scalar, in units of the features.
    """

    bandwidth: Array
    metric: ClassVar[str] = "sqeuclidean"

    def __post_init__(self) -> None:
        _check_bandwidth(self.bandwidth)

    def profile(self, distance: Array) -> Array:
        """Return the kernel's value at squared Euclidean distances, elementwise."""
        return jnp.exp(distance * (-0.5 / jnp.square(self.bandwidth)))


@register
@dataclasses.dataclass(frozen=True)
class Laplacian:
    """k(x, y) = exp(-|x - y|_1 / bandwidth).

    The sum norm, as in scikit-learn's `laplacian_kernel` with gamma = 1 / bandwidth. It is no
    function of a matrix product, so it costs n m d elementwise operations.

    Attributes:
        bandwidth: positive scalar, in units of the features.
    """

    bandwidth: Array
    metric: ClassVar[str] = "cityblock"

    def __post_init__(self) -> None:
        _check_bandwidth(self.bandwidth)

    def profile(self, distance: Array) -> Array:
        """Return the kernel's value at sum-norm distances, elementwise."""
        return jnp.exp(-distance / self.bandwidth)


@register
@dataclasses.dataclass(frozen=True)
class InverseMultiquadric:
    """k(x, y) = (1 + |x - y|_2^2 / bandwidth^2)^(-1/2).

    Attributes:
        bandwidth: positive scalar, in units of the features.
    """

    bandwidth: Array
    metric: ClassVar[str] = "sqeuclidean"

    def __post_init__(self) -> None:
        _check_bandwidth(self.bandwidth)

    def profile(self, distance: Array) -> Array:
        """Return the kernel's value at squared Euclidean distances, elementwise."""
        return jax.lax.rsqrt(1.0 + distance / jnp.square(self.bandwidth))


Kernel = Gaussian | Laplacian | InverseMultiquadric


def _check_bandwidth(bandwidth: Array) -> None:
    if not is_concrete(bandwidth):
        return
    if not isinstance(bandwidth, (int, float, np.ndarray, np.generic, jax.Array)):
        raise TypeError(
            f"bandwidth: expected a number or an array, got a {type(bandwidth).__name__}: "
            f"{bandwidth!r:.80}"
        )
    value = np.asarray(bandwidth)
    if value.dtype.kind not in "fiu" or not np.all(np.isfinite(value)) or np.any(value <= 0):
        raise ValueError(f"bandwidth: expected a positive finite number, got {bandwidth!r}")
    kept = jax.dtypes.canonicalize_dtype(value.dtype if value.dtype.kind == "f" else float)
    with np.errstate(over="ignore", under="ignore"):
        square = np.square(value.astype(kept))
    if not np.all((square > 0) & (square < np.inf)):
        raise ValueError(f"bandwidth: expected one whose square {kept} holds, got {bandwidth!r}")


def as_kernel(name: str, value: Any) -> Kernel:
    """Return `value` if it is a kernel with one bandwidth.

    Raises:
        TypeError: it is no kernel.
        ValueError: its bandwidth has axes, and would broadcast against distances.
    """
    if not isinstance(value, Kernel):
        raise TypeError(
            f"{name}: expected a kernel such as Gaussian(bandwidth=...), got {value!r:.80}"
        )
    if np.shape(value.bandwidth) != ():
        raise ValueError(
            f"{name}.bandwidth: expected a scalar, got shape {np.shape(value.bandwidth)}; "
            "jax.vmap goes over many bandwidths"
        )
    return value


def kernel_label(kernel: Kernel) -> str:
    """Return a readable name such as 'Gaussian(bandwidth=1.25)' for messages."""
    return f"{type(kernel).__name__}(bandwidth={float(kernel.bandwidth):.9g})"


@register
@dataclasses.dataclass(frozen=True)
class ReducedSet:
    """A weighted point set: the element sum_j weights_j k(points_j, .) of H.

    Attributes:
        points: (m, d), the features' unit. A batch has leading axes: (b, m, d).
        weights: (m,), signed, never rescaled. A point of weight zero counts for nothing.
        diagnostics: how the set was found (`jaxspec.specify.reduced_set.Diagnostics`), or None.
    """

    points: Array
    weights: Array
    diagnostics: Any = None


def distances(metric: str, x: Array, y: Array) -> Array:
    """Return distances between the rows of x (n, d) and y (m, d): (n, m), not negative.

    `metric` is 'sqeuclidean' (one matrix product around the mean of y) or 'cityblock' (a sum over
    the d columns, one column at a time, so that no (n, m, d) array exists).
    """
    if metric == "cityblock":
        zero = jnp.zeros((x.shape[0], y.shape[0]), x.dtype)

        def add(total: Array, column: tuple[Array, Array]) -> tuple[Array, None]:
            return total + jnp.abs(column[0][:, None] - column[1][None, :]), None

        return jax.lax.scan(add, zero, (x.T, y.T))[0]
    origin = jax.lax.stop_gradient(y.mean(axis=0))
    x, y = x - origin, y - origin
    product = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    squared = jnp.square(x).sum(1)[:, None] + jnp.square(y).sum(1)[None, :] - 2.0 * product
    return jnp.maximum(squared, 0.0)


def one_by_one(function: Any, values: Any) -> Any:
    """Return `jax.lax.map`; a single one is no loop, which an accelerator would wait for."""
    leaves = jax.tree.leaves(values)
    if leaves[0].shape[0] != 1:
        return jax.lax.map(function, values)
    found = function(jax.tree.map(lambda leaf: leaf[0], values))
    return jax.tree.map(lambda leaf: leaf[None], found)


def square_norm(kernel: Kernel, points: Array, weights: Array) -> Array:
    """Return |sum_j w_j k(u_j, .)|^2 of points (m, d) and weights (m,); unchecked, for use in jit.

    The whole (m, m) Gram matrix is formed: for reduced sets and few examples.
    """
    values = kernel.profile(distances(kernel.metric, points, points))
    return jnp.matmul(weights, _product(values, weights), precision="highest")


def gram(kernel: Kernel, x: Array, y: Array) -> Array:
    """Return the Gram matrix k(x_i, y_j) of x (n, d) and y (m, d) as one dense (n, m) array.

    For small sets; sums over a large set go through `weighted_sum`.

    Raises:
        ValueError: x or y is not two-dimensional, or their numbers of columns differ.
    """
    kernel, x = as_kernel("kernel", kernel), as_features("x", x)
    y = as_features("y", y, dimension=x.shape[1])
    return _gram(kernel, jnp.asarray(x), jnp.asarray(y))


def _gram(kernel: Kernel, x: Array, y: Array) -> Array:
    return kernel.profile(distances(kernel.metric, x, y))


def _blocks(array: Array, block_size: int) -> Array:
    """Return `array` (n, ...) as (ceil(n / block), block, ...), zeros at the end."""
    count = -(-array.shape[0] // block_size)
    widths = [(0, count * block_size - array.shape[0])] + [(0, 0)] * (array.ndim - 1)
    return jnp.pad(array, widths).reshape(count, block_size, *array.shape[1:])


def _weighted_sum(kernel: Kernel, x: Array, y: Array, weights: Array, block_size: int) -> Array:
    if x.shape[0] <= block_size and y.shape[0] <= block_size:
        return _product(_gram(kernel, x, y), weights)
    origin = jax.lax.stop_gradient(y.mean(axis=0))  # before the zeros of the padding come in
    x, y = x - origin, y - origin
    y_blocks = _blocks(y, min(block_size, y.shape[0]))
    weight_blocks = _blocks(weights, min(block_size, y.shape[0]))  # zero weights for padding
    x_blocks = _blocks(x, min(block_size, x.shape[0]))

    def rows(x_block: Array) -> Array:
        def add(total: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
            return total + _product(_gram(kernel, x_block, block[0]), block[1]), None

        zero = jnp.zeros((x_block.shape[0], *weights.shape[1:]), x.dtype)
        return jax.lax.scan(add, zero, (y_blocks, weight_blocks))[0]

    sums = jax.lax.map(rows, x_blocks)
    return sums.reshape(-1, *weights.shape[1:])[: x.shape[0]]


def _product(matrix: Array, weights: Array) -> Array:
    return jnp.matmul(matrix, weights, precision=jax.lax.Precision.HIGHEST)


def weighted_sum(
    kernel: Kernel, x: Array, y: Array, weights: Array, *, block_size: int = BLOCK_SIZE
) -> Array:
    """Return sum_j k(x_i, y_j) weights_j for every row x_i, in blocks.

    Args:
        kernel: a kernel.
        x: (n, d) points at which the sum is evaluated.
        y: (m, d) points of the weighted set.
        weights: (m,) or (m, p), signed.
        block_size: at most this many rows of x and of y are in a Gram block at once.

    Returns:
        (n,) or (n, p).

    Raises:
        TypeError: no kernel, or a block size that is no integer.
        ValueError: shapes that do not agree, or entries that are not finite.
    """
    kernel, x = as_kernel("kernel", kernel), as_features("x", x)
    y = as_features("y", y, dimension=x.shape[1])
    as_size("block_size", block_size)
    weights = jnp.asarray(weights)
    if weights.ndim not in (1, 2) or weights.shape[0] != y.shape[0]:
        raise ValueError(
            f"weights: expected shape ({y.shape[0]},) or ({y.shape[0]}, p), got {weights.shape}"
        )
    _check_finite("weights", weights)
    return _weighted_sum_jit(kernel, jnp.asarray(x), jnp.asarray(y), weights, block_size)


_weighted_sum_jit = partial(jax.jit, static_argnums=4)(_weighted_sum)


def _as_weighted(name: str, value: Any) -> tuple[Array, Array]:
    """Return points and weights of a `ReducedSet`, or of features with weights 1/n."""
    if hasattr(value, "points") and hasattr(value, "weights"):
        points = as_features(f"{name}.points", value.points)
        weights = jnp.asarray(value.weights, points.dtype)
        if weights.shape != points.shape[:1]:
            raise ValueError(
                f"{name}.weights: expected shape {points.shape[:1]}, got {weights.shape}"
            )
        _check_finite(f"{name}.weights", weights)
        return jnp.asarray(points), weights
    points = jnp.asarray(as_features(name, value))
    return points, jnp.full(points.shape[0], 1.0 / points.shape[0], points.dtype)


def _check_finite(name: str, weights: Array) -> None:
    if is_concrete(weights) and not bool(np.isfinite(np.asarray(weights)).all()):
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")


def _pair(a: Any, b: Any) -> tuple[Array, Array, Array, Array]:
    a_points, a_weights = _as_weighted("a", a)
    b_points, b_weights = _as_weighted("b", b)
    if a_points.shape[1] != b_points.shape[1]:
        raise ValueError(
            f"b: expected {a_points.shape[1]} columns as in a, got {b_points.shape[1]}; "
            "sets from different feature spaces cannot be compared"
        )
    return a_points, a_weights, b_points, b_weights


def inner_product(kernel: Kernel, a: Any, b: Any, *, block_size: int = BLOCK_SIZE) -> Array:
    """Return <a, b> in H = sum_ij w_i v_j k(a_i, b_j), a scalar.

    Args:
        kernel: a kernel.
        a: a `ReducedSet`, or features (n, d) which stand for their mean embedding.
        b: likewise.
        block_size: see `weighted_sum`.

    Raises:
        ValueError: shapes that do not agree, or entries that are not finite.
    """
    kernel, block_size = as_kernel("kernel", kernel), as_size("block_size", block_size)
    return _inner(kernel, *_pair(a, b), block_size)


@partial(jax.jit, static_argnums=5)
def _inner(
    kernel: Kernel, x: Array, x_weights: Array, y: Array, y_weights: Array, block_size: int
) -> Array:
    return _product(x_weights, _weighted_sum(kernel, x, y, y_weights, block_size))


def squared_mmd(kernel: Kernel, a: Any, b: Any, *, block_size: int = BLOCK_SIZE) -> Array:
    """Return |a - b|_H^2, the squared maximum mean discrepancy, a scalar.

    Formed from the witness h = a - b, as sum_i w_i h(a_i) - sum_j v_j h(b_j): the large terms
    cancel point by point, where the usual three sums cancel only at the end and lose the digits
    of a small discrepancy. Unclamped: rounding may give a tiny negative number.
    Gretton et al., "A Kernel Two-Sample Test", JMLR 13 (2012), eq. 5.

    Args:
        kernel: a kernel.
        a: a `ReducedSet`, or features (n, d) which stand for their mean embedding.
        b: likewise.
        block_size: see `weighted_sum`.

    Raises:
        ValueError: shapes that do not agree, or entries that are not finite.
    """
    kernel, block_size = as_kernel("kernel", kernel), as_size("block_size", block_size)
    return _squared_mmd(kernel, *_pair(a, b), block_size)


@partial(jax.jit, static_argnums=5)
def _squared_mmd(
    kernel: Kernel, a: Array, a_weights: Array, b: Array, b_weights: Array, block_size: int
) -> Array:
    def witness(x: Array) -> Array:
        return _weighted_sum(kernel, x, a, a_weights, block_size) - _weighted_sum(
            kernel, x, b, b_weights, block_size
        )

    return _product(a_weights, witness(a)) - _product(b_weights, witness(b))


def mmd(kernel: Kernel, a: Any, b: Any, *, block_size: int = BLOCK_SIZE) -> Array:
    """Return |a - b|_H, the root of `squared_mmd` where that is positive, else zero.

    The gradient at zero is zero, not NaN; a `squared_mmd` of NaN stays NaN.
    """
    squared = squared_mmd(kernel, a, b, block_size=block_size)
    negative = squared <= 0
    return jnp.where(negative, 0.0, jnp.sqrt(jnp.where(negative, 1.0, squared)))


def median_bandwidth(
    features: Array,
    *,
    metric: str = "euclidean",
    sample_size: int | None = 2000,
    key: Array | None = None,
) -> Array:
    """Return the median distance between two different rows, a scalar: the median heuristic.

    Args:
        features: (n, d).
        metric: 'euclidean', or 'cityblock' for `Laplacian`.
        sample_size: with more rows than this, a subset of this size stands for all: a random one
            if `key` is given, else evenly spaced rows. None uses every pair, in blocks.
        key: a jax random key for the subset.

    Returns:
        the median, in units of the features. The median of an even number of pairs is the mean
        of the two in the middle; with None and more than 2048 rows it is found by bisection to
        rounding. Pairs of equal rows are left out if they are half of the pairs or more.

    Raises:
        ValueError: a single row, or all rows equal. Garreau et al., arXiv 1707.07269.
    """
    if metric not in ("euclidean", "cityblock"):
        raise ValueError(f"metric: expected 'euclidean' or 'cityblock', got {metric!r}")
    rows = as_features("features", features)
    if rows.shape[0] < 2:
        raise ValueError(f"features: expected at least two rows, got shape {rows.shape}")
    if sample_size is not None and rows.shape[0] > as_size("sample_size", sample_size, minimum=2):
        if key is None:
            chosen: Array = np.linspace(0, rows.shape[0] - 1, sample_size).round().astype(int)
        else:
            as_key("key", key)
            chosen = jax.random.choice(key, rows.shape[0], (sample_size,), replace=False)
        rows = rows[chosen]
    distance_metric = "sqeuclidean" if metric == "euclidean" else metric
    if rows.shape[0] <= BLOCK_SIZE:
        median = _dense_median(distance_metric, jnp.asarray(rows))
    else:
        median = _bisected_median(distance_metric, jnp.asarray(rows))
    if is_concrete(median) and not float(median) > 0:
        raise ValueError(
            "features: expected rows that differ, got equal rows (or differences whose squares "
            f"{rows.dtype} does not hold): no bandwidth"
        )
    return median


@partial(jax.jit, static_argnums=0)
def _dense_median(metric: str, rows: Array) -> Array:
    n = rows.shape[0]
    values = distances(metric, rows, rows)[jnp.triu_indices(n, 1)]
    # A matrix product leaves rounding, not zero, between equal rows.
    floor = 1e-6 * jnp.max(values)
    values = jnp.where(values > floor, values, 0.0)
    median = jnp.median(values)
    median = jnp.where(median > 0, median, jnp.nanmedian(jnp.where(values > 0, values, jnp.nan)))
    return jnp.sqrt(median) if metric == "sqeuclidean" else median


@partial(jax.jit, static_argnums=0)
def _bisected_median(metric: str, rows: Array) -> Array:
    """Bisect on the number of pairs within a distance; one pass over the blocks a step."""
    n = rows.shape[0]
    blocks, valid = _blocks(rows, BLOCK_SIZE), _blocks(jnp.ones(n, rows.dtype), BLOCK_SIZE)

    def over_pairs(reduce: Any) -> Array:
        def one(block: tuple[Array, Array]) -> Array:
            return jax.lax.map(lambda other: reduce(block, other), (blocks, valid))

        return jax.lax.map(one, (blocks, valid))

    def largest(a: tuple[Array, Array], b: tuple[Array, Array]) -> Array:
        return jnp.max(distances(metric, a[0], b[0]) * a[1][:, None] * b[1][None, :])

    top = jnp.max(over_pairs(largest))
    floor = 1e-6 * top

    def fraction_within(threshold: Array) -> Array:
        def count(a: tuple[Array, Array], b: tuple[Array, Array]) -> Array:
            inside = distances(metric, a[0], b[0]) <= threshold
            return jnp.mean(inside * a[1][:, None] * b[1][None, :])

        share = jnp.mean(over_pairs(count)) * (valid.size / n) ** 2
        return (share * n - 1.0) / (n - 1.0)  # without the n pairs of a row with itself

    equal = fraction_within(floor)
    target = jnp.where(equal < 0.5, 0.5, 0.5 * (1.0 + equal))

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        below = fraction_within(middle) < target
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, 24, halve, (floor, top))
    median = 0.5 * (low + high)
    return jnp.sqrt(median) if metric == "sqeuclidean" else median
