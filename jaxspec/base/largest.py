"""The k largest of many values: by groups first, which is far less to sort."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["largest"]

Array = Any
GROUP = 64


def largest(values: Array, k: int) -> Array:
    """Return the places of the k largest of (n,), (k,) int32, largest first, the first of equals.

    They lie in the k groups with the largest maxima.
    """
    short = -len(values) % GROUP
    groups = jnp.pad(values, (0, short), constant_values=-jnp.inf).reshape(-1, GROUP)
    if groups.shape[0] <= k:
        return jax.lax.top_k(values, k)[1]
    _, chosen = jax.lax.top_k(groups.max(axis=1), k)
    chosen = jnp.sort(chosen)
    _, at = jax.lax.top_k(groups[chosen].reshape(-1), k)
    return chosen[at // GROUP] * GROUP + at % GROUP
