"""Kernels, distances and dense kernel matrices.

A kernel is a frozen pytree whose only leaf is its bandwidth, so `jit`, `vmap` and `grad` pass
through it. To add a kernel, write one more class here, name it in `Kernel`, and export it in the
package's `__init__`.

`gram` checks its arguments. `distances` and `kernel_values` are for use inside compiled functions
and check nothing. All of them return the whole (n, m) matrix: sums over large sets belong to
`jaxspec.kernels.mean_embedding`, which never forms it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.base.checks import as_features, is_concrete
from jaxspec.base.pytrees import register

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import ArrayLike, Float

__all__ = [
    "Gaussian",
    "InverseMultiquadric",
    "Kernel",
    "Laplacian",
    "as_kernel",
    "distances",
    "gram",
    "kernel_label",
    "kernel_values",
    "usable_bandwidth",
]

FAR_TOLERANCE = 1e-5  # largest rounding error of a squared distance, in squared bandwidths


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
        _store_bandwidth(self)

    def profile(self, distance: Array) -> Array:
        """Return the kernel's value at squared Euclidean distances, elementwise."""
        return jnp.exp(distance * (-0.5 / jnp.square(_bandwidth_for(self, distance))))


@register
@dataclasses.dataclass(frozen=True)
class Laplacian:
    """k(x, y) = exp(-|x - y|_1 / bandwidth).

    The sum norm, as in scikit-learn's `laplacian_kernel` with gamma = 1 / bandwidth. It cannot be
    written with a matrix product, so it costs n m d elementwise operations.

    Attributes:
        bandwidth: positive scalar, in units of the features.
    """

    bandwidth: Array
    metric: ClassVar[str] = "cityblock"

    def __post_init__(self) -> None:
        _store_bandwidth(self)

    def profile(self, distance: Array) -> Array:
        """Return the kernel's value at sum-norm distances, elementwise."""
        return jnp.exp(-distance / _bandwidth_for(self, distance))


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
        _store_bandwidth(self)

    def profile(self, distance: Array) -> Array:
        """Return the kernel's value at squared Euclidean distances, elementwise."""
        return jax.lax.rsqrt(1.0 + distance / jnp.square(_bandwidth_for(self, distance)))


Kernel = Gaussian | Laplacian | InverseMultiquadric


def _bandwidth_for(kernel: Any, distance: Array) -> Array:
    """Return the bandwidth in the distances' type, so that a kernel never changes that type."""
    return jnp.asarray(kernel.bandwidth, distance.dtype)


def _store_bandwidth(kernel: Any) -> None:
    """Check the bandwidth and store it as an array of the default float type.

    Python numbers, numpy numbers and arrays then have one type, and a function compiled for one of
    them serves the others. Tracers stay as they are.
    """
    bandwidth = kernel.bandwidth
    if not is_concrete(bandwidth):
        return
    if isinstance(bandwidth, np.ma.MaskedArray) or not isinstance(
        bandwidth, (int, float, np.ndarray, np.generic, jax.Array)
    ):
        raise TypeError(
            f"bandwidth: expected a number or an array, got a {type(bandwidth).__name__}: "
            f"{bandwidth!r:.80}"
        )
    value = np.asarray(bandwidth)
    real = jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
    if not real or not np.all(np.isfinite(value)) or np.any(value <= 0):
        raise ValueError(f"bandwidth: expected a positive finite number, got {bandwidth!r}")
    stored = jax.dtypes.canonicalize_dtype(float)
    with np.errstate(over="ignore", under="ignore"):
        value = value.astype(stored)
    if not usable_bandwidth(value):
        raise ValueError(f"bandwidth: expected one whose square {stored} holds, got {bandwidth!r}")
    if not (isinstance(bandwidth, jax.Array) and bandwidth.dtype == stored) or bandwidth.weak_type:
        with jax.ensure_compile_time_eval():  # an array, not a tracer, also while jax traces
            bandwidth = jnp.asarray(value)
    object.__setattr__(kernel, "bandwidth", bandwidth)


def usable_bandwidth(bandwidth: Any) -> bool:
    """Tell whether kernels can be computed with bandwidths, in the type of floats they come in.

    A profile multiplies by 0.5 / bandwidth^2. Numbers below the smallest normal one count as zero
    where jax computes: a smaller square would divide by zero, and a larger one than half of that
    number's reciprocal would leave zero, so that all points were equal. In float32 bandwidths lie
    between 1.1e-19 and 6.5e18.
    """
    value = np.asarray(bandwidth)
    tiny = float(np.finfo(value.dtype).tiny)
    with np.errstate(over="ignore", under="ignore"):
        square = np.square(value)
    return bool(np.all((value > 0) & (square >= tiny) & (square <= 0.5 / tiny)))


def as_kernel(name: str, value: object) -> Kernel:
    """Return `value` if it is a kernel with one bandwidth.

    Raises:
        TypeError: `value` is not a kernel.
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
    shortest = float(str(np.asarray(kernel.bandwidth)[()]))  # 3.01, not the float32 3.00999999
    return f"{type(kernel).__name__}(bandwidth={shortest:.9g})"


def distances(
    metric: str,
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    *,
    resolution: Float[Array, ""] | float | None = None,
) -> Float[Array, "n m"]:
    """Return the distances between the rows of x and the rows of y; none is negative. Unchecked.

    A squared Euclidean distance comes from one matrix product around the mean of y. Its rounding
    error grows with the squared distance from that mean: between two rows of a group that lies far
    from the mean it may exceed the distance itself.

    Args:
        metric: 'sqeuclidean', or 'cityblock' (the sum norm, one column at a time, so that no
            (n, m, d) array exists; exact to rounding for groups of any place).
        x: (n, d).
        y: (m, d).
        resolution: a squared distance, such as the squared bandwidth. If given and rounding
            errors may exceed 1e-5 of it, distances are direct sums of squared differences: n m d
            elementwise operations. Otherwise the check costs (n + m) d operations.
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    if metric == "cityblock":
        return _cityblock(x, y)
    if resolution is None:
        return _product_distances(x, y)
    return _resolved_distances(x, y, jnp.asarray(resolution, x.dtype))


def _cityblock(x: Array, y: Array) -> Array:
    zero = jnp.zeros((x.shape[0], y.shape[0]), x.dtype)

    def add(total: Array, column: tuple[Array, Array]) -> tuple[Array, None]:
        return total + jnp.abs(column[0][:, None] - column[1][None, :]), None

    return jax.lax.scan(add, zero, (x.T, y.T))[0]


def _centred(x: Array, y: Array) -> tuple[Array, Array]:
    origin = jax.lax.stop_gradient(y.mean(axis=0, keepdims=True))
    return x - origin, y - origin


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _product_distances(x: Array, y: Array) -> Array:
    x, y = _centred(x, y)
    norms = jnp.square(x).sum(1)[:, None] + jnp.square(y).sum(1)[None, :]
    return jnp.maximum(norms - 2.0 * _matmul(x, y.T), 0.0)


def _or_direct(
    values: Array, x: Array, y: Array, resolution: Array, function: Callable[[Array], Array]
) -> Array:
    """Return `values` (n, m), or `function` of direct distances where those may be far off.

    That is so if rows of both x and y are far from their common origin: a row near it has either
    small norms on both sides or a distance so large that rounding does not matter. Rows enter the
    differences as they are, not centred: the difference of two near numbers is exact, wherever
    they lie. This is a loop of at most one step, and not `lax.cond`, because `vmap` turns the
    latter into both branches for all.
    """
    norms = (jnp.square(one).sum(1).max() for one in _centred(x, y))
    limit = resolution * (FAR_TOLERANCE / float(jnp.finfo(x.dtype).eps))
    far = jnp.minimum(*norms) > limit

    def direct(state: tuple[Array, Array]) -> tuple[Array, Array]:
        squared = jnp.square(x[:, None, :] - y[None, :, :]).sum(2)  # fused: never (n, m, d)
        return jnp.zeros_like(state[0]), function(squared)

    return jax.lax.while_loop(lambda state: state[0], direct, (far, values))[1]


@jax.custom_jvp
def _resolved_distances(x: Array, y: Array, resolution: Array) -> Array:
    return _or_direct(_product_distances(x, y), x, y, resolution, lambda distance: distance)


@_resolved_distances.defjvp
def _resolved_distances_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    """Return the distances and 2 (x - y) (dx - dy), which, unlike the loop, can be transposed."""
    x, y = _centred(*primals[:2])
    dx, dy, _ = tangents
    norms = (x * dx).sum(1)[:, None] + (y * dy).sum(1)[None, :]
    return _resolved_distances(*primals), 2.0 * (norms - _matmul(x, dy.T) - _matmul(dx, y.T))


@jax.jit
def kernel_values(
    kernel: Kernel, x: Float[Array, "n d"], y: Float[Array, "m d"]
) -> Float[Array, "n m"]:
    """Return the matrix k(x_i, y_j), unchecked: for use inside compiled functions.

    Like `kernel.profile(distances(kernel.metric, x, y))`, and exact to about 1e-5 also within
    groups that lie many bandwidths apart, where k(x, x) = 1.
    """
    return _kernel_values(kernel, x, y)


@jax.custom_jvp
def _kernel_values(kernel: Kernel, x: Array, y: Array) -> Array:
    values = kernel.profile(distances(kernel.metric, x, y))
    if kernel.metric == "cityblock":
        return values
    return _or_direct(values, x, y, jnp.square(_bandwidth_for(kernel, x)), kernel.profile)


@_kernel_values.defjvp
def _kernel_values_jvp(
    primals: tuple[Kernel, Array, Array], tangents: tuple[Any, Array, Array]
) -> tuple[Array, Array]:
    def values(kernel: Kernel, x: Array, y: Array) -> Array:
        resolution = jax.lax.stop_gradient(jnp.square(_bandwidth_for(kernel, x)))
        return kernel.profile(distances(kernel.metric, x, y, resolution=resolution))

    return jax.jvp(values, primals, tangents)


def gram(
    kernel: Kernel, x: Float[ArrayLike, "n d"], y: Float[ArrayLike, "m d"]
) -> Float[Array, "n m"]:
    """Return the Gram matrix k(x_i, y_j) of x (n, d) and y (m, d) as one dense (n, m) array.

    For small sets; sums over a large set go through `weighted_sum`. Groups of rows may lie any
    number of bandwidths apart.

    Raises:
        TypeError: `kernel` is not a kernel, or entries are not real numbers.
        ValueError: x or y is not two-dimensional, or their numbers of columns differ.
    """
    kernel, x = as_kernel("kernel", kernel), as_features("x", x)
    y = as_features("y", y, dimension=x.shape[1])
    return kernel_values(kernel, *as_one_type(x, y))


def as_one_type(*arrays: Any) -> list[Array]:
    """Return floating arrays as jax arrays of the widest of their types.

    Explicit, because jax refuses to mix types under `jax_numpy_dtype_promotion="strict"`.
    """
    widest = max((array.dtype for array in arrays), key=lambda dtype: dtype.itemsize)
    return [jnp.asarray(array, widest) for array in arrays]
