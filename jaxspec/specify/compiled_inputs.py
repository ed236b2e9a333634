"""Arguments of one shape and one type, so that few functions are compiled.

A compiled function serves one set of shapes and types. `padded_rows` gives the number of rows that
a data set is padded to, `as_scalar` and `as_bandwidth_of` make a Python number, a numpy number and
a jax array look the same, `as_typed_key` does so for random keys, and `as_row_weights` for the
weights of rows. Nothing here computes with features.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxspec.base import as_weights, is_concrete
from jaxspec.kernels import Kernel

if TYPE_CHECKING:
    from jax.typing import ArrayLike, DTypeLike

__all__ = [
    "BLOCK_SIZE",
    "as_bandwidth_of",
    "as_row_weights",
    "as_scalar",
    "as_typed_key",
    "padded_rows",
]

BLOCK_SIZE = 8192  # rows of data per block: with m = 200 its Gram block has 6.5 MB
MIN_PADDED_ROWS = 128


def padded_rows(count: int) -> int:
    """Return the padded size for `count` rows: four sizes per octave, from 128 on.

    The work grows with the rows, and powers of two alone would double it in the worst case; four
    sizes per octave add at most a quarter.

    >>> padded_rows(100), padded_rows(101), padded_rows(129), padded_rows(1000)
    (128, 128, 160, 1024)
    """
    if count <= MIN_PADDED_ROWS:
        return MIN_PADDED_ROWS
    octave = 1 << (count - 1).bit_length() - 1  # the largest power of two below count
    step = octave // 4
    return -(-count // step) * step


def as_scalar(value: ArrayLike, dtype: DTypeLike) -> Any:
    """Return a number as an array without axes of this type; a traced one is converted."""
    return np.asarray(value, dtype) if is_concrete(value) else value.astype(dtype)  # type: ignore[union-attr]


def as_bandwidth_of(kernel: Kernel, dtype: DTypeLike) -> Kernel:
    """Return the kernel with its bandwidth as a number of this type."""
    return dataclasses.replace(kernel, bandwidth=as_scalar(kernel.bandwidth, dtype))


def as_typed_key(key: jax.Array) -> jax.Array:
    """Return a key of `jax.random.key`, also for one of the older `jax.random.PRNGKey`."""
    if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    return jax.random.wrap_key_data(key)


def as_row_weights(weights: Any, rows: Any) -> Any:
    """Return the weights (n,) of rows (n, d), checked, in the type of the rows; 1/n for None."""
    n = rows.shape[0]
    if weights is None:
        return np.full(n, 1.0 / n, rows.dtype)
    weights = as_weights("weights", weights, rows=n).astype(rows.dtype)
    if is_concrete(weights) and not (weights.min() >= 0 and weights.sum() > 0):
        raise ValueError(
            "weights: expected finite nonnegative numbers, not all zero, "
            f"got a smallest weight of {weights.min()} and a sum of {weights.sum()}"
        )
    return weights
