"""Products of stored numbers with float32, as exact as float32, on matrix units that know less.

A float32 number is the sum of three bfloat16 ones, or of three int8 ones on scales of their own.
Products of two bfloat16 numbers are exact in float32, those of two int8 ones in int32. So what is
stored in few bits meets the parts of the other side instead of becoming float32 first: nothing is
copied, and an accelerator multiplies at the speed of these types. What is stored in bfloat16
becomes float32 on a processor, which has no unit for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.base.platform import on_processor

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

Array = Any
PARTS = 3  # of 8 bits each
STEP = 254.0  # a part in int8 is half a unit of the part before, at most


def rounded(values: Array) -> Array:
    """Return float32 values that bfloat16 holds. A cast there and back XLA may take for nothing."""
    return jax.lax.reduce_precision(values, exponent_bits=8, mantissa_bits=7)


def parts_of(values: Array) -> list[Array]:
    """Return `PARTS` bfloat16 arrays that sum to float32 values."""
    found: list[Array] = []
    for _ in range(PARTS):
        part = rounded(values)
        found.append(part.astype(jnp.bfloat16))
        values = values - part
    return found


def integer_parts(values: Array, count: int = PARTS) -> tuple[list[Array], Array]:
    """Return `count` int8 arrays p_i and scales s: values (.., d) are s sum_i p_i / STEP^i."""
    largest = jnp.abs(values).max(axis=-1)
    scale = jnp.where(largest > 0, largest / 127.0, 1.0)
    values = values / scale[..., None]
    found: list[Array] = []
    for _ in range(count):
        part = jnp.rint(values)
        found.append(part.astype(jnp.int8))
        values = (values - part) * STEP
    return found, scale


def integer_sum(parts: Sequence[Array]) -> Array:
    """Return sum_i parts_i / STEP^i in float32, of products (int32) with `integer_parts`."""
    total = parts[-1].astype(jnp.float32)
    for one in parts[-2::-1]:
        total = total * (1.0 / STEP) + one.astype(jnp.float32)
    return total


def stored_chunk(stored: Array, start: Array, count: int) -> Array:
    """Return `count` rows of stored numbers from `start` on, in a loop over such chunks.

    XLA for processors slices bfloat16 as float32: it would convert all that is stored, once and out
    of the loop, four times the time of the pass and a copy in float32. So it is sliced as bits, in
    one step with the view as bits, which the barrier ties to the loop's own `start`.
    """
    if stored.dtype != jnp.bfloat16 or not on_processor():
        return jax.lax.dynamic_slice_in_dim(stored, start, count)
    stored, start = jax.lax.optimization_barrier((stored, start))
    bits = jax.lax.bitcast_convert_type(stored, jnp.uint16)
    chunk = jax.lax.dynamic_slice_in_dim(bits, start, count)
    return jax.lax.bitcast_convert_type(chunk, jnp.bfloat16)


def _as_stored(stored: Array) -> bool:
    return bool(stored.dtype == jnp.bfloat16) and not on_processor()


def stored_product(stored: Array, others: Array) -> Array:
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


def stored_gram(stored: Array) -> Array:
    """Return the inner products of rows within each of L arrays (L, c, d): (L, c, c) float32."""
    if not _as_stored(stored):
        stored = stored.astype(jnp.float32)
        return jnp.einsum("lcd,led->lce", stored, stored, precision="highest")
    return jnp.einsum("lcd,led->lce", stored, stored, preferred_element_type=jnp.float32)
