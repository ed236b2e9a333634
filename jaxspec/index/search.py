"""The search of an index, compiled: codes filter, exact scores rank; on one device or over a mesh.

Every device filters the rows that it holds and scores those of them that are among the best of
all by the filter, where they lie. What devices tell each other: the filter's values of their own
best, each user's peer, and the candidates' scores. So the candidates and their scores are those of
one device, whatever the number of devices. `jaxspec.index` calls `search`.
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
from jaxspec.index import encoder as index_codes
from jaxspec.index.encoder import Coded, Encoder
from jaxspec.kernels import one_by_one
from jaxspec.market.arrays import ROW_FIELDS, MarketArrays, in_float32, on_mesh, over_devices
from jaxspec.market.calibration import Calibration
from jaxspec.scoring.host_transfer import Layout, pack, pack_scores, unpack, unpack_scores
from jaxspec.scoring.score_pass import score_rows
from jaxspec.scoring.types import Scores, UserArrays

__all__ = ["FEATURES", "Filter", "features_of", "search"]

Array = Any
FEATURES = 6
NEIGHBOURS = 16  # candidates by closeness alone, so that a user's peer is among them


@register
@dataclasses.dataclass(frozen=True)
class Filter:
    """A linear model of one method's score.

    Attributes:
        weights: (FEATURES,) of share, share x similarity, share x closeness, closeness, norm and
            one.
    """

    weights: Array


def search(
    market: MarketArrays,
    encoder: Encoder,
    codes: Coded,
    spaces: Array,
    table: Array,
    model: Filter,
    users: UserArrays,
    alive: Array,
    calibration: Calibration,
    *,
    method: str,
    depth: int,
    mesh: Mesh | None = None,
) -> tuple[Array, Scores]:
    """Return candidates' slots (Q, depth), best first, and their exact scores (Q, depth, ...).

    Users are numpy arrays, and so is what comes back.

    Args:
        market: its arrays, over the mesh if there is one.
        encoder: of the index.
        codes: of the market's rows, lying as they do.
        spaces: (rows,) label spaces, likewise.
        table: (spaces, classes) their classes.
        model: the filter of the method.
        users: Q of them, all or none of them compared by name.
        alive: (rows,) bool, likewise.
        calibration: of the market.
        method: of the score.
        depth: candidates a user, at most as many as there are rows; in a market with probes up to
            `NEIGHBOURS` of them by closeness. A score of minus infinity marks a place without one.
        mesh: the devices, None for one.
    """
    asked, layout = pack((users, model))
    with on_mesh(mesh), in_float32():
        found = _search(
            market, codes, spaces, alive, encoder, table, calibration, asked,
            layout=layout, by_name=bool(users.by_name[0]), method=method, depth=depth, mesh=mesh,
        )  # fmt: skip
        return unpack_scores(np.asarray(found))


@partial(jax.jit, static_argnames=("layout", "by_name", "method", "depth", "mesh"))
def _search(
    market: MarketArrays,
    *others: Any,
    layout: Layout,
    by_name: bool,
    method: str,
    depth: int,
    mesh: Mesh | None,
) -> Array:
    """Return what `search` does, packed; the other arguments are those of `local`.

    `layout` is of the last of them: users and the model, packed.
    """
    axis = None if mesh is None else mesh.axis_names
    by_closeness = 0
    if method == "likelihood" and market.landmarks.shape[0] > 0:
        by_closeness = min(NEIGHBOURS, depth - 1)

    def local(
        market: MarketArrays,
        codes: Coded,
        spaces: Array,
        alive: Array,
        encoder: Encoder,
        table: Array,
        calibration: Calibration,
        asked: Array,
    ) -> tuple[Array, Scores]:
        users, model = unpack(asked, layout)
        wanted = index_codes.encode_users(encoder, market, users)
        near, alike, share = _filtered(encoder, codes, spaces, table, wanted, users)
        features = _features(near, alike, share, market.self_terms)
        guess = jnp.matmul(features, model.weights, precision="highest")

        def one(parts: tuple[Array, Array, UserArrays]) -> tuple[Array, Scores]:
            guess, near, user = parts
            guess = jnp.where(alive, guess, -jnp.inf)
            rows, real = _largest_of_all(guess, depth - by_closeness, axis)
            if by_closeness:  # the nearest of those that are not among them yet
                rest = jnp.where(alive, near, -jnp.inf)
                rest = rest.at[jnp.where(real, rows, len(rest))].set(-jnp.inf, mode="drop")
                nearest, other = _largest_of_all(rest, by_closeness, axis)
                rows = jnp.concatenate([rows, nearest])
                real = jnp.concatenate([real, other])
            # In order of slots: on equal distance the peer is the one that came first.
            rows = jnp.sort(jnp.where(real, rows, len(alive)))
            count = real.sum().astype(jnp.int32)
            real = jnp.arange(len(rows)) < count
            at = jnp.where(real, rows, 0)
            some = {name: getattr(market, name)[at] for name in ROW_FIELDS}
            candidates = dataclasses.replace(market, **some)
            user = jax.tree.map(lambda leaf: leaf[None], user)
            slots = _slots_of(at, axis)
            found = score_rows(
                candidates, user, count, real, calibration, slots,
                method=method, axis=axis, by_name=by_name,
            )  # fmt: skip
            found = jax.tree.map(lambda leaf: leaf[0], found)
            found = dataclasses.replace(found, scores=jnp.where(real, found.scores, -jnp.inf))
            if axis is not None:
                slots, found = jax.tree.map(
                    lambda leaf: jax.lax.all_gather(leaf, axis, tiled=True), (slots, found)
                )
            places = jnp.arange(len(slots))
            order = jax.lax.sort((-found.scores, slots, places), num_keys=2)[2][:depth]
            return slots[order], jax.tree.map(lambda leaf: leaf[order], found)

        return one_by_one(one, (guess, near, users))

    spread = local if mesh is None else over_devices(local, mesh, market, by_row=3, whole=4)
    return pack_scores(*spread(market, *others))


def _features(first: Array, second: Array, share: Array, norms: Array) -> Array:
    """Return the filter's features, (..., FEATURES), of inner products, shares and |Phi_l|^2."""
    one = jnp.ones_like(first)
    norms = jnp.broadcast_to(norms, first.shape)
    return jnp.stack([share, share * second, share * first, first, norms, one], axis=-1)


def _filtered(
    encoder: Encoder,
    codes: Coded,
    spaces: Array,
    table: Array,
    asked: tuple[Array, Array],
    users: UserArrays,
) -> tuple[Array, Array, Array]:
    """Return closeness and similarity by the codes, and shares, each (Q, rows)."""
    near, alike = index_codes.inner_products(encoder, codes, asked)
    # Which of the user's classes a label space has: by label space, not by learnware.
    weights = jnp.where(users.labels >= 0, users.weights, 0.0)
    is_label = users.labels[:, None, :] == jnp.arange(users.class_mask.shape[1])[None, :, None]
    counts = (is_label * weights[:, None, :]).sum(axis=2)
    shared = users.class_mask / jnp.maximum(users.class_mask.sum(axis=1, keepdims=True), 1)
    total = counts.sum(axis=1, keepdims=True)
    counts = jnp.where(total > 0, counts / jnp.where(total > 0, total, 1.0), shared)
    has = (table[None, :, :, None] == users.class_numbers[:, None, None, :]).any(axis=2)
    share = jnp.where(has & users.class_mask[:, None, :], counts[:, None, :], 0.0).sum(axis=2)
    share = jnp.where(users.by_name[:, None], share, 1.0)
    return near, alike, share[:, spaces]


def features_of(
    market: MarketArrays,
    encoder: Encoder,
    codes: Coded,
    spaces: Array,
    table: Array,
    users: UserArrays,
    *,
    mesh: Mesh | None = None,
) -> Array:
    """Return the filter's features of all rows, (Q, rows, FEATURES); arguments as of `search`."""
    with on_mesh(mesh), in_float32():
        return _features_of(market, codes, spaces, encoder, table, users, mesh=mesh)


@partial(jax.jit, static_argnames="mesh")
def _features_of(market: MarketArrays, *others: Any, mesh: Mesh | None) -> Array:
    """Return what `features_of` does; the other arguments are those of `local`."""

    def local(
        market: MarketArrays,
        codes: Coded,
        spaces: Array,
        encoder: Encoder,
        table: Array,
        users: UserArrays,
    ) -> Array:
        asked = index_codes.encode_users(encoder, market, users)
        near, alike, share = _filtered(encoder, codes, spaces, table, asked, users)
        found = _features(near, alike, share, market.self_terms)
        if mesh is None:
            return found
        return jax.lax.all_gather(found, mesh.axis_names, axis=1, tiled=True)

    if mesh is None:
        return local(market, *others)
    return over_devices(local, mesh, market, by_row=2, whole=3)(market, *others)


def _slots_of(rows: Array, axis: Any) -> Array:
    """Return the slots of a device's rows; see `jaxspec.market.arrays`."""
    if axis is None:
        return rows.astype(jnp.int32)
    return (rows * jax.lax.axis_size(axis) + jax.lax.axis_index(axis)).astype(jnp.int32)


def _largest_of_all(values: Array, k: int, axis: Any) -> tuple[Array, Array]:
    """Return a device's rows (n,) that may be, and whether they are, of the k largest of all.

    Of equal values those of lower slots come first. Entries of minus infinity are none.
    """
    rows = largest(values, min(k, len(values)))
    own = values[rows]
    real = jnp.isfinite(own)
    if axis is None:
        return rows, real
    pair = (-own, _slots_of(rows, axis))
    everywhere = [jax.lax.all_gather(one, axis, tiled=True) for one in pair]
    last = [one[min(k, len(one)) - 1] for one in jax.lax.sort(everywhere, num_keys=2)]
    return rows, real & ((pair[0] < last[0]) | ((pair[0] == last[0]) & (pair[1] <= last[1])))
