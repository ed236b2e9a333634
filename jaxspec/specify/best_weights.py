"""The best weights of given points: a closed form, without an optimisation of the points.

`best_weights` may be called; it never moves the points and never rescales their weights.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxspec.base import as_features, as_size, is_concrete, pad_to
from jaxspec.kernels import Kernel, as_kernel
from jaxspec.specify.compiled_inputs import (
    BLOCK_SIZE,
    as_bandwidth_of,
    as_row_weights,
    padded_rows,
)
from jaxspec.specify.reduced_set_solver import centre, nan_unless_sound
from jaxspec.specify.variable_projection import evaluate, in_blocks

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float

__all__ = ["best_weights"]


def best_weights(
    kernel: Kernel,
    points: Float[ArrayLike, "m d"],
    Z: Float[ArrayLike, "n d"],
    *,
    weights: Float[ArrayLike, " n"] | None = None,
    nonnegative: bool = False,
    block_size: int = BLOCK_SIZE,
) -> Float[Array, " m"]:
    """Return the weights that bring the points' embedding closest to that of Z.

    (K_UU + jitter I)^-1 K_UZ 1/n by Cholesky, with jitter = 2 m eps: about the rounding in the
    factor itself. Equal points share their weight.

    Args:
        kernel: a kernel.
        points: (m, d), U.
        Z: (n, d) features.
        weights: (n,) weights of the rows, as in `reduce_set`.
        nonnegative: whether to return the best nonnegative weights, found by an active set.
        block_size: largest number of rows of Z per block.

    Raises:
        TypeError: `kernel` is not a kernel.
        ValueError: shapes that do not agree, or entries that are not finite.
    """
    kernel, points = as_kernel("kernel", kernel), as_features("points", points)
    rows = as_features("Z", Z, dimension=points.shape[1])
    row_weights = as_row_weights(weights, rows)
    n = rows.shape[0]
    padded = padded_rows(n) if is_concrete(rows, row_weights) else n
    return _best_weights(
        as_bandwidth_of(kernel, rows.dtype),
        points.astype(rows.dtype),
        pad_to(rows, (padded, rows.shape[1])),
        pad_to(row_weights, (padded,)),
        bool(nonnegative),
        as_size("block_size", block_size),
    )


@partial(jax.jit, static_argnums=(4, 5))
def _best_weights(
    kernel: Kernel, points: Array, rows: Array, weights: Array, nonnegative: bool, block_size: int
) -> Array:
    rows, weights, origin = centre(rows, weights)
    data = in_blocks(rows, weights, block_size)
    active = jnp.ones(points.shape[0], bool)
    found = evaluate(kernel, points - origin[None, :], data, active, nonnegative).weights
    return nan_unless_sound(found, origin, kernel)
