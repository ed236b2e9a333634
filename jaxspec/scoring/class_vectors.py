"""Which class of a learnware stands for a class of a user, and how similar the two are.

Everything follows from inner products of class vectors: `cross` (L, Q, C, k) between L learnwares
of C classes and Q users of k classes, `own_gram` (L, C, C) and `user_gram` (Q, k, k).

May be called: all functions, inside compiled functions; nothing here checks its arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxspec.scoring.chunk_loop import varying_like

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

__all__ = [
    "MISSING",
    "assign",
    "centred",
    "cosines",
    "divided",
    "root",
    "same_names",
    "shared_similarity",
]

MISSING = -1.0  # similarity of a class that a learnware does not have: the lowest cosine


def centred(
    values: Float[Array, "*shape"], mask: Bool[Array, "*mask"], axis: int
) -> Float[Array, "*shape"]:
    """Return values minus their mean over the masked entries of an axis; zero elsewhere."""
    mask = jnp.broadcast_to(mask, values.shape)
    count = jnp.maximum(mask.sum(axis=axis, keepdims=True), 1)
    values = jnp.where(mask, values, 0.0)
    return jnp.where(mask, values - values.sum(axis=axis, keepdims=True) / count, 0.0)


def root(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return the square root, with value and derivative zero where `values` is not positive."""
    return jnp.where(values > 0, jnp.sqrt(jnp.where(values > 0, values, 1.0)), 0.0)


def divided(
    values: Float[Array, "*shape"], norms: Float[Array, "*norms"]
) -> Float[Array, "*shape"]:
    """Return values / norms, and zero where the norm is zero."""
    return jnp.where(norms > 0, values / jnp.where(norms > 0, norms, 1.0), 0.0)


def cosines(
    cross: Float[Array, "L Q C k"],
    own_gram: Float[Array, "L C C"],
    user_gram: Float[Array, "Q k k"],
) -> Float[Array, "L Q C k"]:
    """Return cosines between class vectors, each centred over all classes of its own side."""
    own = jnp.diagonal(own_gram, axis1=-2, axis2=-1)[:, None, :, None]
    user = jnp.diagonal(user_gram, axis1=-2, axis2=-1)[None, :, None, :]
    return divided(cross, root(own * user))


def same_names(allowed: Bool[Array, "*batch C k"]) -> Int[Array, "*batch k"]:
    """Return the one learnware class that each user class may be matched with, or -1."""
    chosen = jnp.where(allowed.any(axis=-2), allowed.argmax(axis=-2), -1)
    return chosen.astype(jnp.int32)


def assign(
    similarity: Float[Array, "*batch C k"], allowed: Bool[Array, "*batch C k"]
) -> Int[Array, "*batch k"]:
    """Give every user class a learnware class: one to one, greedily, best pair first.

    Where a learnware has fewer classes than the user, each user class that is left over gets the
    learnware class that is most similar to it, which several may share.

    Args:
        similarity: of the pairs.
        allowed: pairs that may be matched.

    Returns:
        the chosen learnware class, int32, -1 where nothing is allowed.
    """
    classes, k = similarity.shape[-2:]
    low = jnp.finfo(similarity.dtype).min
    value = jnp.where(allowed, similarity, low)

    def pick(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        open_value, chosen = state
        flat = open_value.reshape(*open_value.shape[:-2], classes * k)
        best = flat.argmax(axis=-1)
        found = flat.max(axis=-1) > low
        row, column = best // k, best % k
        is_row = (jnp.arange(classes) == row[..., None])[..., :, None]
        is_column = jnp.arange(k) == column[..., None]
        chosen = jnp.where(is_column & found[..., None], row[..., None], chosen)
        return jnp.where(is_row | is_column[..., None, :], low, open_value), chosen

    start = varying_like(jnp.full((*value.shape[:-2], k), -1, jnp.int32), value)
    _, chosen = jax.lax.fori_loop(0, min(classes, k), pick, (value, start))
    shared = jnp.where(allowed.any(axis=-2), value.argmax(axis=-2), -1).astype(jnp.int32)
    return jnp.where(chosen >= 0, chosen, shared)


def shared_similarity(
    cross: Float[Array, "L Q C k"],
    own_gram: Float[Array, "L C C"],
    user_gram: Float[Array, "Q k k"],
    chosen: Int[Array, "L Q k"],
) -> Float[Array, "L Q k"]:
    """Return cosines of the chosen pairs, both sides centred over the matched classes.

    So further classes of a learnware do not count. Sums over one-hot arrays would be faster than
    these gathers, but jax 0.10.2 compiles them to wrong numbers on a processor from about a
    thousand learnwares on; tests look at sizes below and above that.
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
    norms = root(own) * root(user)
    return jnp.where(matched, jnp.clip(divided(top, norms), -1.0, 1.0), MISSING)
