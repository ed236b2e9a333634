"""How many points a reduced set of some data needs.

`suggest_size` may be called; it returns a number and keeps no reduced set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.base import as_features, as_key, as_size, bucket, pad_to
from jaxspec.kernels import Kernel, ReducedSet, as_kernel, inner_product
from jaxspec.specify.compiled_inputs import (
    BLOCK_SIZE,
    as_bandwidth_of,
    as_row_weights,
    as_typed_key,
    padded_rows,
)
from jaxspec.specify.reduced_set_solver import centre, fit
from jaxspec.specify.variable_projection import JITTER

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float, Key

__all__ = ["suggest_size"]

ROUNDING = 16  # times the eps of the type: the error of a difference of two squared norms


def suggest_size(
    Z: Float[ArrayLike, "n d"],
    kernel: Kernel,
    *,
    key: Key[Array, ""] | None = None,
    max_size: int | None = None,
    max_iterations: int = 10,
) -> int:
    """Return the smallest size at which a reduced set's error is below the data's noise.

    The noise is the expected squared MMD between the embedding of n rows and that of their
    distribution, (mean k(z, z) - |mu|^2) / (n - 1), unbiased. Sizes double until the error is below
    it, and bisection between the last two follows. The error of an optimiser does not fall
    strictly, so the answer may be off by a point or two. |mu|^2 costs n^2 d work once.

    Args:
        Z: (n, d) features.
        kernel: a kernel.
        key: a jax random key for the starts; None means jax.random.key(0).
        max_size: the largest answer. It is never larger than the number of distinct rows.
        max_iterations: of every trial, as in `reduce_set`.

    Raises:
        TypeError, ValueError: as `reduce_set`.
    """
    kernel, rows = as_kernel("kernel", kernel), as_features("Z", Z)
    kernel = as_bandwidth_of(kernel, rows.dtype)
    limit = len(np.unique(rows, axis=0))
    if max_size is not None:
        limit = min(limit, as_size("max_size", max_size))
    if limit == 1:
        return 1
    key = as_typed_key(jax.random.key(0) if key is None else as_key("key", key))
    steps = np.int32(as_size("max_iterations", max_iterations, minimum=0))
    n = rows.shape[0]
    padded = padded_rows(n)
    weights = pad_to(as_row_weights(None, rows), (padded,))
    rows = pad_to(
        rows - rows.mean(axis=0, keepdims=True, dtype=np.float64).astype(rows.dtype),
        (padded, rows.shape[1]),
    )
    data = ReducedSet(jax.device_put(rows), jax.device_put(weights))
    norm = float(inner_product(kernel, data, data))
    noise = max((1.0 - norm) / (n - 1), ROUNDING * float(np.finfo(rows.dtype).eps))

    def enough(size: int) -> bool:
        active = np.arange(bucket(size)) < size  # one compilation for all sizes of a bucket
        return norm - float(_explained(key, rows, weights, active, kernel, steps)) < noise

    low, high = 0, 1  # `low` is too small, `high` is the next to try
    while high < limit and not enough(high):
        low, high = high, 2 * high
    high = min(high, limit)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


@jax.jit
def _explained(
    key: Array, rows: Array, weights: Array, active: Array, kernel: Kernel, max_iterations: Array
) -> Array:
    """Return the part of the data's squared norm that a reduced set explains."""
    rows, weights, _ = centre(rows, weights)
    state = fit(
        key[None],
        rows[None],
        weights[None],
        active,
        kernel,
        jnp.zeros((), rows.dtype),
        max_iterations,
        nonnegative=False,
        block_size=BLOCK_SIZE,
    )
    # The best value counts the jitter of the Gram matrix as an error, which matters for one point.
    jitter = JITTER * active.shape[0] * float(jnp.finfo(rows.dtype).eps)
    return jitter * jnp.square(state.best.weights[0]).sum() - state.best.value[0]
