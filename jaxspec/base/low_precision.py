"""Products of stored numbers with float32, exact to float32, on bfloat16 and int8 matrix units.

A float32 number is the sum of three bfloat16 numbers, or of three int8 numbers on scales of their
own. Products of two bfloat16 numbers are exact in float32, products of two int8 numbers in int32.
So numbers that are stored in few bits are multiplied by the parts of the other side and are not
converted to float32 first: nothing is copied, and an accelerator multiplies at the speed of these
types. A processor has no matrix unit for bfloat16, so there the stored numbers become float32.

Everything here is for use inside compiled functions and checks nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxspec.base.platform import on_processor

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import BFloat16, Float, Float32, Int8, Num

__all__ = [
    "PARTS",
    "integer_parts",
    "integer_sum",
    "parts_of",
    "rounded",
    "stored_chunk",
    "stored_gram",
    "stored_product",
]

PARTS = 3  # a float32 number has 24 significant bits, a part 8
STEP = 254.0  # rounding to a part leaves at most half a unit: 127 steps of the next part


def rounded(values: Float32[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """Return `values` rounded to what bfloat16 holds, in float32.

    Not by a cast to bfloat16 and back, which XLA may remove.
    """
    return jax.lax.reduce_precision(values, exponent_bits=8, mantissa_bits=7)


def parts_of(values: Float32[Array, "*shape"]) -> list[BFloat16[Array, "*shape"]]:
    """Return `PARTS` bfloat16 arrays that sum to `values`."""
    found: list[Array] = []
    for _ in range(PARTS):
        part = rounded(values)
        found.append(part.astype(jnp.bfloat16))
        values = values - part
    return found


def integer_parts(
    values: Float32[Array, "... d"], count: int = PARTS
) -> tuple[list[Int8[Array, "... d"]], Float32[Array, "*shape"]]:
    """Return `count` int8 arrays p_i and a scale s for each row: values = s sum_i p_i / STEP^i."""
    largest = jnp.abs(values).max(axis=-1)
    scale = jnp.where(largest > 0, largest / 127.0, 1.0)
    values = values / scale[..., None]
    found: list[Array] = []
    for _ in range(count):
        part = jnp.rint(values)
        found.append(part.astype(jnp.int8))
        values = (values - part) * STEP
    return found, scale


def integer_sum(parts: Sequence[Num[Array, "*shape"]]) -> Float32[Array, "*shape"]:
    """Return sum_i parts_i / STEP^i; the parts are int32 products with `integer_parts`."""
    total = parts[-1].astype(jnp.float32)
    for one in parts[-2::-1]:
        total = total * (1.0 / STEP) + one.astype(jnp.float32)
    return total


def stored_chunk(
    stored: Num[Array, "n ..."], start: Num[Array, ""], count: int
) -> Num[Array, "c ..."]:
    """Return `count` rows of stored numbers from `start` on, for a loop over such chunks.

    On processors XLA slices bfloat16 as float32: it would convert the stored array before the loop,
    which took four times as long as the pass itself and needs a copy in float32. So the array is
    sliced as 16-bit integers. The barrier ties their view of it to the loop's own `start`, so that
    XLA does not move that out of the loop either.
    """
    if stored.dtype != jnp.bfloat16 or not on_processor():
        return jax.lax.dynamic_slice_in_dim(stored, start, count)
    stored, start = jax.lax.optimization_barrier((stored, start))
    bits = jax.lax.bitcast_convert_type(stored, jnp.uint16)
    chunk = jax.lax.dynamic_slice_in_dim(bits, start, count)
    return jax.lax.bitcast_convert_type(chunk, jnp.bfloat16)


def _as_stored(stored: Array) -> bool:
    return bool(stored.dtype == jnp.bfloat16) and not on_processor()


def stored_product(
    stored: Float[Array, "n d"], others: Float32[Array, "c d"]
) -> Float32[Array, "n c"]:
    """Return stored @ others.T, (n, c) float32.

    Args:
        stored: (n, d) float32 or bfloat16.
        others: (c, d) float32.
    """
    if not _as_stored(stored):
        return jnp.matmul(stored.astype(jnp.float32), others.T, precision="highest")
    parts = jnp.concatenate(parts_of(others))
    found = jnp.matmul(stored, parts.T, preferred_element_type=jnp.float32)
    return found.reshape(len(stored), PARTS, len(others)).sum(axis=1)


def stored_gram(stored: Float[Array, "L c d"]) -> Float32[Array, "L c c"]:
    """Return the inner products of the rows within each of L arrays, in float32."""
    if not _as_stored(stored):
        stored = stored.astype(jnp.float32)
        return jnp.einsum("lcd,led->lce", stored, stored, precision="highest")
    return jnp.einsum("lcd,led->lce", stored, stored, preferred_element_type=jnp.float32)
