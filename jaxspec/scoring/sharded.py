"""The pass over a market on one device or on all devices of a mesh, and its best k learnwares.

Every device scores the rows that it holds, under `shard_map`. What the devices tell each other is
small: the nearest learnware for a user, the largest agreement with it, and the best k. The
functions are the same on one device (mesh None).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxspec.base import largest
from jaxspec.kernels import one_by_one
from jaxspec.market import ROW_ARRAYS, MarketArrays, in_float32, on_mesh, over_devices
from jaxspec.scoring.class_pass import compare_classes
from jaxspec.scoring.host_transfer import PackedLayout, pack, pack_scores, unpack, unpack_scores
from jaxspec.scoring.market_pass import score_devices
from jaxspec.scoring.methods import Score
from jaxspec.scoring.types import Scores, UserArrays

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

__all__ = ["best_scores", "compared_rows", "score_all", "start_best_scores"]


def score_all(
    market: MarketArrays, users: UserArrays, *, score: Score, mesh: Mesh | None = None
) -> Scores:
    """Return the scores of all rows for Q users.

    Args:
        market: `Market.arrays`.
        users: Q stacked users.
        score: which score.
        mesh: the devices that the rows are spread over, or None.
    """
    with on_mesh(mesh), in_float32():
        return _score_all(market, users, score=score, mesh=mesh)


@partial(jax.jit, static_argnames=("score", "mesh"))
def _score_all(
    market: MarketArrays, users: UserArrays, *, score: Score, mesh: Mesh | None
) -> Scores:
    if mesh is None:
        return score_devices(market, users, score=score)
    axis = mesh.axis_names

    def local(market: MarketArrays, users: UserArrays) -> Scores:
        found = score_devices(market, users, score=score, axis=axis)
        return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, axis, axis=1, tiled=True), found)

    return over_devices(local, mesh, market, by_row=0, everywhere=1)(market, users)


def best_scores(
    market: MarketArrays, users: UserArrays, *, score: Score, k: int, mesh: Mesh | None = None
) -> tuple[np.ndarray, Scores]:
    """Return slots and scores of the best k learnwares: those of every device, then of all.

    Args:
        market: `Market.arrays`.
        users: Q stacked users, as numpy arrays.
        score: which score.
        k: at most the number of rows.
        mesh: the devices that the rows are spread over, or None.

    Returns:
        numpy arrays (Q, k, ...), best first and equal scores in the order of slots; a score of
        minus infinity where there is no learnware.
    """
    return start_best_scores(market, users, score=score, k=k, mesh=mesh)()


def start_best_scores(
    market: MarketArrays,
    users: UserArrays,
    *,
    score: Score,
    k: int,
    mesh: Mesh | None = None,
    with_classes: bool = True,
) -> Callable[[], tuple[np.ndarray, Scores]]:
    """Start what `best_scores` does, and return a function that waits for it.

    So a device works on one batch of users while the one before is taken from it.

    Args:
        market: as of `best_scores`.
        users: as of `best_scores`.
        score: as of `best_scores`.
        k: as of `best_scores`.
        mesh: as of `best_scores`.
        with_classes: whether to say how the classes of the best learnwares stand for the users';
            if not, these arrays have no classes.
    """
    asked, layout = pack(users)
    with on_mesh(mesh), in_float32():
        found = _best(
            market, asked, layout=layout, score=score, k=k, mesh=mesh, with_classes=with_classes
        )
    return lambda: unpack_scores(np.asarray(found))


@partial(jax.jit, static_argnames=("layout", "score", "k", "mesh", "with_classes"))
def _best(
    market: MarketArrays,
    asked: Array,
    *,
    layout: PackedLayout,
    score: Score,
    k: int,
    mesh: Mesh | None,
    with_classes: bool,
) -> Array:
    """Return what `best_scores` does, packed; the users come packed too."""
    users = unpack(asked, layout)
    axis: Hashable | None = None if mesh is None else mesh.axis_names
    devices = 1 if mesh is None else mesh.size

    def local(market: MarketArrays, users: UserArrays) -> tuple[Array, Scores]:
        assert market.alive is not None
        found = score_devices(market, users, score=score, axis=axis)
        # A score of NaN is never among the best.
        usable = market.alive[None, :] & ~jnp.isnan(found.scores)
        scores = jnp.where(usable, found.scores, -jnp.inf)
        k_here = min(k, scores.shape[1])
        rows = jax.vmap(lambda values: largest(values, k_here))(scores)
        # Equal ones come in the order of rows. Classes are compared for the best only: arrays of
        # (Q, rows, classes) are never made.
        similarity = jnp.zeros((*rows.shape, 0), jnp.float32)
        class_map = jnp.zeros((*rows.shape, 0), jnp.int32)
        if with_classes:
            similarity, class_map = compared_rows(market, users, rows)
        taken = Scores(_taken(scores, rows), _taken(found.squared_mmd, rows), similarity, class_map)
        if axis is None:
            return rows.astype(jnp.int32), taken
        slots = (rows * devices + jax.lax.axis_index(axis)).astype(jnp.int32)
        all_slots, all_scores = jax.tree.map(
            lambda leaf: jax.lax.all_gather(leaf, axis, axis=1, tiled=True), (slots, taken)
        )
        return _best_of(all_slots, all_scores, min(k, all_slots.shape[1]))

    spread = local if mesh is None else over_devices(local, mesh, market, by_row=0, everywhere=1)
    return pack_scores(*spread(market, users))


def compared_rows(
    market: MarketArrays, users: UserArrays, rows: Int[Array, "Q n"]
) -> tuple[Float[Array, "Q n k"], Int[Array, "Q n k"]]:
    """Return class similarity and class map of each user with rows of its own."""

    def one(part: tuple[UserArrays, Array]) -> tuple[Array, Array]:
        user, at = part
        picked = {name: getattr(market, name)[at] for name in ROW_ARRAYS}
        own: Any = jax.tree.map(lambda leaf: leaf[None], user)
        count = jnp.int32(at.shape[0])
        found = compare_classes(dataclasses.replace(market, **picked), own, count, (), None)
        return found.class_similarity[:, 0], found.class_map[:, 0]

    return one_by_one(one, (users, rows))


def _taken(leaf: Array, rows: Array) -> Array:
    """Return leaf[q, rows[q]] for every user q."""
    return jax.vmap(lambda values, at: values[at])(leaf, rows)


def _best_of(slots: Array, scores: Scores, k: int) -> tuple[Array, Scores]:
    """Return the best k of candidates (Q, K k), by score and then by slot."""
    places = jnp.broadcast_to(jnp.arange(slots.shape[1]), slots.shape)
    order = jax.lax.sort((-scores.scores, slots, places), num_keys=2)[2][:, :k]
    return jax.tree.map(lambda leaf: _taken(leaf, order), (slots, scores))
