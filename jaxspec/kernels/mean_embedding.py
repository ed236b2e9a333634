"""Mean embeddings: weighted point sets as elements of the kernel's Hilbert space H, and their MMD.

A `ReducedSet` stands for sum_j w_j k(U_j, .); features (n, d) stand for their plain mean
embedding, with weights 1/n. `weighted_sum` evaluates such an element; `inner_product`,
`squared_mmd` and `mmd` compare two. All four check their arguments, and none forms an n x n array
when n is large: they go over blocks of at most `block_size` rows of either argument.

`square_norm` and `one_by_one` are for use inside compiled functions and check nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.base.checks import as_features, as_size, as_weights
from jaxspec.base.platform import device_kind
from jaxspec.base.pytrees import register
from jaxspec.kernels.kernels import Kernel, as_kernel, as_one_type, kernel_values

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import ArrayLike, Float

__all__ = [
    "ReducedSet",
    "inner_product",
    "mmd",
    "one_by_one",
    "square_norm",
    "squared_mmd",
    "weighted_sum",
]

# Rows per block. On a processor 1024 x 1024 float32, 4 MiB, stay in its cache: blocks of 2048 took
# the same time to four times as long, by how the system hands out memory. An accelerator waits at
# each step, so its blocks are larger.
BLOCK_SIZES = {"processor": 1024, "accelerator": 2048}


@register
@dataclasses.dataclass(frozen=True)
class ReducedSet:
    """A weighted point set: the element sum_j weights_j k(points_j, .) of H.

    Attributes:
        points: (m, d), in units of the features. A batch has leading axes: (b, m, d).
        weights: (m,), signed, never rescaled. A point of weight zero has no effect.
    """

    points: Array
    weights: Array


def one_by_one(function: Callable[[Any], Any], values: Any) -> Any:
    """Return `jax.lax.map(function, values)`, without a loop where there is a single value.

    An accelerator would wait for the host at each step of a loop.
    """
    leaves = jax.tree.leaves(values)
    if leaves[0].shape[0] != 1:
        return jax.lax.map(function, values)
    found = function(jax.tree.map(lambda leaf: leaf[0], values))
    return jax.tree.map(lambda leaf: leaf[None], found)


def square_norm(
    kernel: Kernel, points: Float[Array, "m d"], weights: Float[Array, " m"]
) -> Float[Array, ""]:
    """Return |sum_j w_j k(u_j, .)|^2, unchecked: for use inside compiled functions.

    The dense (m, m) Gram matrix is formed: for reduced sets and few examples.
    """
    return _matmul(weights, _matmul(kernel_values(kernel, points, points), weights))


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _block_size(block_size: int | None) -> int:
    return BLOCK_SIZES[device_kind()] if block_size is None else as_size("block_size", block_size)


def _blocks(array: Array, block_size: int, mode: str) -> Array:
    """Return `array` (n, ...) as (ceil(n / block), block, ...), padded at the end."""
    size = min(block_size, array.shape[0])
    count = -(-array.shape[0] // size)
    widths = [(0, count * size - array.shape[0])] + [(0, 0)] * (array.ndim - 1)
    return jnp.pad(array, widths, mode=mode).reshape(count, size, *array.shape[1:])


def _weighted_sum(kernel: Kernel, x: Array, y: Array, weights: Array, block_size: int) -> Array:
    if x.shape[0] <= block_size and y.shape[0] <= block_size:
        return _matmul(kernel_values(kernel, x, y), weights)
    # Padding repeats the last row, so that it does not move the centre of a block.
    x_blocks, y_blocks = _blocks(x, block_size, "edge"), _blocks(y, block_size, "edge")
    weight_blocks = _blocks(weights, block_size, "constant")  # zero weights for padding

    def rows(x_block: Array) -> Array:
        def add(total: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
            return total + _matmul(kernel_values(kernel, x_block, block[0]), block[1]), None

        zero = jnp.zeros((x_block.shape[0], *weights.shape[1:]), x.dtype)
        return jax.lax.scan(add, zero, (y_blocks, weight_blocks))[0]

    sums = one_by_one(rows, x_blocks)
    return sums.reshape(-1, *weights.shape[1:])[: x.shape[0]]


def weighted_sum(
    kernel: Kernel,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, "m d"],
    weights: Float[ArrayLike, "m ..."],
    *,
    block_size: int | None = None,
) -> Float[Array, "n ..."]:
    """Return sum_j k(x_i, y_j) weights_j for every row x_i, in blocks.

    Args:
        kernel: a kernel.
        x: (n, d) points at which the sum is evaluated.
        y: (m, d) points of the weighted set.
        weights: (m,) or (m, p), signed.
        block_size: at most this many rows of x and of y are in a Gram block at once; None
            chooses by the device.

    Returns:
        (n,) or (n, p).

    Raises:
        TypeError: `kernel` is not a kernel, or `block_size` is not an integer.
        ValueError: shapes that do not agree, or entries that are not finite.
    """
    kernel, x = as_kernel("kernel", kernel), as_features("x", x)
    y = as_features("y", y, dimension=x.shape[1])
    block_size = _block_size(block_size)
    weights = as_weights("weights", weights, rows=y.shape[0], columns=True)
    x, y = as_one_type(x, y)
    return _weighted_sum_jit(kernel, x, y, jnp.asarray(weights, x.dtype), block_size)


_weighted_sum_jit = jax.jit(_weighted_sum, static_argnums=4)


def _as_weighted(name: str, value: Any) -> tuple[Any, Any]:
    """Return points and weights of a `ReducedSet`, or of features with weights 1/n."""
    if hasattr(value, "points") and hasattr(value, "weights"):
        points = as_features(f"{name}.points", value.points)
        return points, as_weights(f"{name}.weights", value.weights, rows=points.shape[0])
    points = as_features(name, value)
    return points, np.full(points.shape[0], 1.0 / points.shape[0], points.dtype)


def _pair(a: Any, b: Any) -> tuple[Array, Array, Array, Array]:
    a_points, a_weights = _as_weighted("a", a)
    b_points, b_weights = _as_weighted("b", b)
    if a_points.shape[1] != b_points.shape[1]:
        raise ValueError(
            f"b: expected {a_points.shape[1]} columns as in a, got {b_points.shape[1]}; "
            "sets from different feature spaces cannot be compared"
        )
    x, y = as_one_type(a_points, b_points)
    return x, jnp.asarray(a_weights, x.dtype), y, jnp.asarray(b_weights, x.dtype)


def inner_product(
    kernel: Kernel,
    a: ReducedSet | Float[ArrayLike, "n d"],
    b: ReducedSet | Float[ArrayLike, "m d"],
    *,
    block_size: int | None = None,
) -> Float[Array, ""]:
    """Return <a, b> in H = sum_ij w_i v_j k(a_i, b_j), a scalar.

    Args:
        kernel: a kernel.
        a: a `ReducedSet`, or features (n, d) which stand for their mean embedding.
        b: likewise.
        block_size: see `weighted_sum`.

    Raises:
        TypeError: `kernel` is not a kernel, or `block_size` is not an integer.
        ValueError: shapes that do not agree, or entries that are not finite.
    """
    kernel, block_size = as_kernel("kernel", kernel), _block_size(block_size)
    return _inner_product(kernel, *_pair(a, b), block_size)


@partial(jax.jit, static_argnums=5)
def _inner_product(
    kernel: Kernel, x: Array, x_weights: Array, y: Array, y_weights: Array, block_size: int
) -> Array:
    return _matmul(x_weights, _weighted_sum(kernel, x, y, y_weights, block_size))


def squared_mmd(
    kernel: Kernel,
    a: ReducedSet | Float[ArrayLike, "n d"],
    b: ReducedSet | Float[ArrayLike, "m d"],
    *,
    block_size: int | None = None,
) -> Float[Array, ""]:
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
        TypeError: `kernel` is not a kernel, or `block_size` is not an integer.
        ValueError: shapes that do not agree, or entries that are not finite.
    """
    kernel, block_size = as_kernel("kernel", kernel), _block_size(block_size)
    return _squared_mmd(kernel, *_pair(a, b), block_size)


@partial(jax.jit, static_argnums=5)
def _squared_mmd(
    kernel: Kernel, a: Array, a_weights: Array, b: Array, b_weights: Array, block_size: int
) -> Array:
    if a.shape[0] <= block_size and b.shape[0] <= block_size:
        cross = kernel_values(kernel, a, b)
        at_a = _matmul(kernel_values(kernel, a, a), a_weights) - _matmul(cross, b_weights)
        at_b = _matmul(a_weights, cross) - _matmul(kernel_values(kernel, b, b), b_weights)
        return _matmul(a_weights, at_a) - _matmul(b_weights, at_b)

    def witness(x: Array) -> Array:
        return _weighted_sum(kernel, x, a, a_weights, block_size) - _weighted_sum(
            kernel, x, b, b_weights, block_size
        )

    return _matmul(a_weights, witness(a)) - _matmul(b_weights, witness(b))


def mmd(
    kernel: Kernel,
    a: ReducedSet | Float[ArrayLike, "n d"],
    b: ReducedSet | Float[ArrayLike, "m d"],
    *,
    block_size: int | None = None,
) -> Float[Array, ""]:
    """Return |a - b|_H, the root of `squared_mmd` where that is positive, else zero.

    The gradient at zero is zero, not NaN; a `squared_mmd` of NaN stays NaN. Arguments and errors
    are those of `squared_mmd`.
    """
    squared = squared_mmd(kernel, a, b, block_size=block_size)
    negative = squared <= 0
    return jnp.where(negative, 0.0, jnp.sqrt(jnp.where(negative, 1.0, squared)))
