"""Which of a learnware's classes stands for a user's, and how similar the two are.

Everything follows from inner products of class vectors. Shapes: L learnwares of C classes, Q users
of k.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = ["MISSING", "assign", "centred", "cosines", "divided", "same_names", "shared_similarity"]

MISSING = -1.0  # similarity of a class that a learnware does not have: the worst there is


def centred(values: Array, mask: Array, axis: int) -> Array:
    """Return values minus their mean over the masked entries of an axis, zero elsewhere."""
    mask = jnp.broadcast_to(mask, values.shape)
    count = jnp.maximum(mask.sum(axis=axis, keepdims=True), 1)
    values = jnp.where(mask, values, 0.0)
    return jnp.where(mask, values - values.sum(axis=axis, keepdims=True) / count, 0.0)


def divided(values: Array, norms: Array) -> Array:
    """Return values over norms, zero where the norm is."""
    return jnp.where(norms > 0, values / jnp.where(norms > 0, norms, 1.0), 0.0)


def cosines(cross: Array, own_gram: Array, user_gram: Array) -> Array:
    """Return cosines between class vectors, each centred over its own classes: (L, Q, C, k)."""
    own = jnp.diagonal(own_gram, axis1=-2, axis2=-1)[:, None, :, None]
    user = jnp.diagonal(user_gram, axis1=-2, axis2=-1)[None, :, None, :]
    return divided(cross, jnp.sqrt(jnp.maximum(own * user, 0.0)))


def same_names(allowed: Array) -> Array:
    """Return what `assign` does where a user class may be matched with one class only."""
    chosen = jnp.where(allowed.any(axis=-2), allowed.argmax(axis=-2), -1)
    return chosen.astype(jnp.int32)


def assign(similarity: Array, allowed: Array) -> Array:
    """Give every user class a learnware class: one to one greedily, best pair first.

    User classes that are left over when the learnware's classes run out share the best of them.

    Args:
        similarity: (..., classes, k).
        allowed: bool, the same shape; pairs that may be matched.

    Returns:
        the chosen learnware class, (..., k) int32, -1 where nothing is allowed.
    """
    classes, k = similarity.shape[-2:]
    low = jnp.finfo(similarity.dtype).min
    value = jnp.where(allowed, similarity, low)

    def pick(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        open_value, chosen = state
        flat = open_value.reshape(*open_value.shape[:-2], classes * k)
        best = flat.argmax(axis=-1)
        some = flat.max(axis=-1) > low
        row, column = best // k, best % k
        is_row = (jnp.arange(classes) == row[..., None])[..., :, None]
        is_column = jnp.arange(k) == column[..., None]
        chosen = jnp.where(is_column & some[..., None], row[..., None], chosen)
        return jnp.where(is_row | is_column[..., None, :], low, open_value), chosen

    start = jnp.full((*value.shape[:-2], k), -1, jnp.int32)
    _, chosen = jax.lax.fori_loop(0, min(classes, k), pick, (value, start))
    shared = jnp.where(allowed.any(axis=-2), value.argmax(axis=-2), -1).astype(jnp.int32)
    return jnp.where(chosen >= 0, chosen, shared)


def shared_similarity(cross: Array, own_gram: Array, user_gram: Array, chosen: Array) -> Array:
    """Return cosines of the chosen pairs, both sides centred over the matched classes: (L, Q, k).

    So a learnware's further classes do not count. Everything follows from the inner products. A
    form with one-hot sums instead of gathers was faster and wrong: jax 0.10.2 compiled it for CPU
    to other numbers from some thousand learnwares on (tested below that size and above it).
    """
    matched = chosen >= 0
    at = jnp.maximum(chosen, 0)
    own = jax.vmap(lambda gram, rows: gram[rows[:, :, None], rows[:, None, :]])(own_gram, at)
    pairs = jnp.take_along_axis(cross, at[..., None], axis=-2)  # (L, Q, k, k): own row, user column
    both = matched[..., :, None] & matched[..., None, :]

    def twice(gram: Array) -> Array:
        return centred(centred(gram, both, axis=-1), both, axis=-2)

    own = jnp.diagonal(twice(own), axis1=-2, axis2=-1)
    user = jnp.diagonal(twice(jnp.broadcast_to(user_gram, pairs.shape)), axis1=-2, axis2=-1)
    top = jnp.diagonal(twice(pairs), axis1=-2, axis2=-1)
    # Rounding of a centred square that should be zero must not become a direction.
    norms = jnp.sqrt(jnp.maximum(own, 0.0)) * jnp.sqrt(jnp.maximum(user, 0.0))
    return jnp.where(matched, jnp.clip(divided(top, norms), -1.0, 1.0), MISSING)
