"""The pass over a market on one device or on all devices of a mesh, and its best k learnwares.

Every device scores the rows that it holds, under `shard_map`. What they tell each other is small:
the nearest learnware for a user, the largest agreement with it, and the best k. The functions are
the same on one device (mesh None); `jaxspec.matching` calls them.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxspec.base import largest, register
from jaxspec.kernels import one_by_one
from jaxspec.market.arrays import ROW_FIELDS, MarketArrays, in_float32, on_mesh, over_devices
from jaxspec.market.calibration import Calibration
from jaxspec.scoring.class_pass import compare_classes
from jaxspec.scoring.host_transfer import Layout, pack, pack_scores, unpack, unpack_scores
from jaxspec.scoring.score_pass import score
from jaxspec.scoring.types import Scores, UserArrays

__all__ = ["Best", "best_spread", "score_spread"]

Array = Any


@register
@dataclasses.dataclass(frozen=True)
class Best:
    """The best k learnwares for each user, best first; equal scores in the order of slots.

    Attributes:
        slots: (Q, k) int32; k is at most the number of rows.
        scores: arrays (Q, k, ...), a score of minus infinity where there is no learnware.
    """

    slots: Array
    scores: Scores


def score_spread(
    market: MarketArrays,
    users: UserArrays,
    length: Array,
    alive: Array,
    calibration: Calibration,
    *,
    method: str,
    mesh: Mesh | None = None,
) -> Scores:
    """Return the scores of all rows, (Q, rows), for Q users; see `scoring.score`."""
    with on_mesh(mesh), in_float32():
        return _score(market, users, length, alive, calibration, method=method, mesh=mesh)


@partial(jax.jit, static_argnames=("method", "mesh"))
def _score(
    market: MarketArrays,
    users: UserArrays,
    length: Array,
    alive: Array,
    calibration: Calibration,
    *,
    method: str,
    mesh: Mesh | None,
) -> Scores:
    if mesh is None:
        return score(market, users, length, alive, calibration, method=method)
    axis = mesh.axis_names

    def local(
        market: MarketArrays,
        alive: Array,
        users: UserArrays,
        length: Array,
        calibration: Calibration,
    ) -> Scores:
        found = score(market, users, length, alive, calibration, method=method, axis=axis)
        return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, axis, axis=1, tiled=True), found)

    spread = over_devices(local, mesh, market, by_row=1, whole=3)
    return spread(market, alive, users, length, calibration)


def best_spread(
    market: MarketArrays,
    users: UserArrays,
    length: Array,
    alive: Array,
    calibration: Calibration,
    *,
    method: str,
    k: int,
    mesh: Mesh | None = None,
) -> Best:
    """Return the best k learnwares: those of every device, then of all; see `scoring.score`.

    Users are numpy arrays, and so is what comes back.
    """
    asked, layout = pack((users, length))
    with on_mesh(mesh), in_float32():
        found = _best(
            market, asked, alive, calibration, layout=layout, method=method, k=k, mesh=mesh
        )
        return Best(*unpack_scores(np.asarray(found)))


@partial(jax.jit, static_argnames=("layout", "method", "k", "mesh"))
def _best(
    market: MarketArrays,
    asked: Array,
    alive: Array,
    calibration: Calibration,
    *,
    layout: Layout,
    method: str,
    k: int,
    mesh: Mesh | None,
) -> Array:
    """Return what `best_spread` does, packed; users and length come packed too."""
    users, length = unpack(asked, layout)
    axis = None if mesh is None else mesh.axis_names
    devices = 1 if mesh is None else mesh.size

    def local(
        market: MarketArrays,
        alive: Array,
        users: UserArrays,
        length: Array,
        calibration: Calibration,
    ) -> Best:
        found = score(market, users, length, alive, calibration, method=method, axis=axis)
        scores = jnp.where(alive, found.scores, -jnp.inf)
        k_here = min(k, scores.shape[1])
        rows = jax.vmap(lambda values: largest(values, k_here))(scores)
        # Equal ones come in order of rows. Classes are compared for the best only: arrays of
        # (Q, rows, classes) are never made.
        similarity, class_map = _classes_of(market, users, rows)
        taken = Scores(_taken(scores, rows), _taken(found.squared_mmd, rows), similarity, class_map)
        if axis is None:
            return Best(rows.astype(jnp.int32), taken)
        slots = rows * devices + jax.lax.axis_index(axis)
        best = Best(slots.astype(jnp.int32), taken)
        best = jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, axis, axis=1, tiled=True), best)
        return _best_of(best, min(k, best.slots.shape[1]))

    spread = local if mesh is None else over_devices(local, mesh, market, by_row=1, whole=3)
    best = spread(market, alive, users, length, calibration)
    return pack_scores(best.slots, best.scores)


def _classes_of(market: MarketArrays, users: UserArrays, rows: Array) -> tuple[Array, Array]:
    """Return similarity and class map (Q, n, k) of each user with its own rows (Q, n)."""

    def one(part: tuple[UserArrays, Array]) -> tuple[Array, Array]:
        user, at = part
        some = {name: getattr(market, name)[at] for name in ROW_FIELDS}
        own = jax.tree.map(lambda leaf: leaf[None], user)
        count = jnp.int32(at.shape[0])
        parts = compare_classes(dataclasses.replace(market, **some), own, count, "classwise", None)
        return parts.similarity[:, 0], parts.class_map[:, 0]

    return one_by_one(one, (users, rows))


def _taken(leaf: Array, rows: Array) -> Array:
    """Return leaf[q, rows[q]] for every user q."""
    return jax.vmap(lambda values, at: values[at])(leaf, rows)


def _best_of(best: Best, k: int) -> Best:
    """Return the best k of candidates (Q, K k), by score and then by slot."""
    places = jnp.broadcast_to(jnp.arange(best.slots.shape[1]), best.slots.shape)
    order = jax.lax.sort((-best.scores.scores, best.slots, places), num_keys=2)[2][:, :k]
    return jax.tree.map(lambda leaf: _taken(leaf, order), best)
