"""The k largest of many values, found by groups first, which leaves far fewer values to sort.

`largest` is for use inside compiled functions and checks nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Float, Int32

__all__ = ["largest"]

GROUP = 64  # values per group


def largest(values: Float[Array, " n"], k: int) -> Int32[Array, " k"]:
    """Return the indices of the k largest values, largest first; of equal values the first.

    Only the k groups with the largest maxima can hold them.
    """
    short = -len(values) % GROUP
    groups = jnp.pad(values, (0, short), constant_values=-jnp.inf).reshape(-1, GROUP)
    if groups.shape[0] <= k:
        return jax.lax.top_k(values, k)[1]
    _, chosen = jax.lax.top_k(groups.max(axis=1), k)
    chosen = jnp.sort(chosen)
    _, at = jax.lax.top_k(groups[chosen].reshape(-1), k)
    return chosen[at // GROUP] * GROUP + at % GROUP
