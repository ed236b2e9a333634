"""Products of stored numbers with float32, as exact as float32, on matrix units that know less.

A float32 number is the sum of three bfloat16 ones, and a product of two bfloat16 numbers is exact
in float32. So what is stored in bfloat16 meets three parts of the other side instead of becoming
float32 first: nothing is copied, and an accelerator multiplies at the speed of bfloat16. A
processor has no such unit: there everything becomes float32.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.backend import on_processor

__all__ = ["PARTS", "parts_of", "stored_gram", "stored_product"]

Array = Any
PARTS = 3  # of 8 bits each


def parts_of(values: Array) -> list[Array]:
    """Return `PARTS` bfloat16 arrays that sum to float32 values."""
    found: list[Array] = []
    for _ in range(PARTS):
        # Not a cast there and back, which XLA may take for nothing.
        part = jax.lax.reduce_precision(values, exponent_bits=8, mantissa_bits=7)
        found.append(part.astype(jnp.bfloat16))
        values = values - part
    return found


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
