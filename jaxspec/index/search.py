"""The compiled search of an index: codes choose candidates, exact scores rank them.

On a mesh every device filters the rows that it holds, and scores those of them that are among the
best of all by the filter, where they lie. Devices tell each other the filter's values of their own
best, each user's peer, and the candidates' scores. So the candidates and their scores are those of
one device, whatever the number of devices. `start_search` and `filter_features` may be called;
nothing here decides how many candidates there are.
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
from jaxspec.index.codes import Codes
from jaxspec.index.encoder import Encoder, StoredCodes, encode_users, inner_products
from jaxspec.kernels import one_by_one
from jaxspec.market import ROW_ARRAYS, MarketArrays, in_float32, on_mesh, over_devices
from jaxspec.scoring import (
    PackedLayout,
    Score,
    Scores,
    UserArrays,
    needs_peers,
    pack,
    pack_scores,
    score_rows,
    unpack,
    unpack_scores,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

__all__ = [
    "FEATURES",
    "NEIGHBOURS",
    "feature_terms",
    "filter_features",
    "largest_of_all",
    "start_search",
]

FEATURES = 6  # numbers that the filter combines
NEIGHBOURS = 16  # candidates by closeness alone, so that a user's peer is among them
ALWAYS = 1e30  # the filter's value of a learnware that is a candidate for everybody


def start_search(
    market: MarketArrays,
    codes: Codes,
    weights: Float[np.ndarray, " FEATURES"],
    users: UserArrays,
    *,
    score: Score,
    by_name: bool,
    depth: int,
    always_from: int,
    k: int,
) -> Callable[[], tuple[Int[np.ndarray, "Q k"], Scores]]:
    """Start a search, and return a function that waits for it.

    The function returns the slots of the best candidates, best first, and their exact scores
    (Q, k, ...).

    Args:
        market: its arrays; rows that are not alive are no candidates.
        codes: of its rows.
        weights: of the filter, see `jaxspec.index.filter`.
        users: Q of them, as numpy arrays.
        score: which score.
        by_name: whether all users' classes are compared by name, or none's.
        depth: candidates per user, at most as many as there are rows. Where the score needs peers,
            up to `NEIGHBOURS` of them are chosen by closeness.
        always_from: learnwares from this slot on are candidates for everybody, up to `depth`.
        k: how many of the candidates are returned, at most `depth`. A score of minus infinity marks
            a place without a learnware.
    """
    asked, layout = pack((users, weights, np.array([always_from], np.int32)))
    with on_mesh(codes.mesh), in_float32():
        found = _search(
            market,
            codes.stored,
            codes.encoder,
            codes.table,
            asked,
            layout=layout,
            score=score,
            by_name=by_name,
            depth=depth,
            k=k,
            mesh=codes.mesh,
        )
    return lambda: unpack_scores(np.asarray(found))


@partial(jax.jit, static_argnames=("layout", "score", "by_name", "depth", "k", "mesh"))
def _search(
    market: MarketArrays,
    stored: StoredCodes,
    encoder: Encoder,
    table: Array,
    asked: Array,
    *,
    layout: PackedLayout,
    score: Score,
    by_name: bool,
    depth: int,
    k: int,
    mesh: Mesh | None,
) -> Array:
    """Return what `start_search` does, packed; what is asked comes packed too."""
    axis = None if mesh is None else mesh.axis_names
    by_closeness = 0
    if needs_peers(score) and market.landmarks.shape[0] > 0:
        by_closeness = min(NEIGHBOURS, depth - 1)

    def local(
        market: MarketArrays, stored: StoredCodes, encoder: Encoder, table: Array, asked: Array
    ) -> tuple[Array, Scores]:
        assert market.alive is not None
        alive = market.alive
        users, weights, always_from = unpack(asked, layout)
        features, near = _features(market, stored, encoder, table, users)
        # Term by term, so that no array of all features is made.
        guesses = sum(weights[i] * features[i] for i in range(FEATURES))
        always = _slots_of(jnp.arange(alive.shape[0]), axis) >= always_from
        guesses = jnp.where(always, ALWAYS, guesses)

        def one(parts: tuple[Array, Array, UserArrays]) -> tuple[Array, Scores]:
            guess, near, user = parts
            rows, real = largest_of_all(
                jnp.where(alive, guess, -jnp.inf), depth - by_closeness, axis
            )
            if by_closeness:  # the nearest of those that are not among them yet
                others = jnp.where(alive, near, -jnp.inf)
                others = others.at[jnp.where(real, rows, len(others))].set(-jnp.inf, mode="drop")
                nearest, also_real = largest_of_all(others, by_closeness, axis)
                rows = jnp.concatenate([rows, nearest])
                real = jnp.concatenate([real, also_real])
            # In the order of slots: of equally near learnwares the first is the peer.
            rows = jnp.sort(jnp.where(real, rows, len(alive)))
            count = real.sum().astype(jnp.int32)
            real = jnp.arange(len(rows)) < count
            at = jnp.where(real, rows, 0)
            slots = _slots_of(at, axis)
            chosen = {name: getattr(market, name)[at] for name in ROW_ARRAYS}
            found = score_rows(
                dataclasses.replace(market, **chosen),
                jax.tree.map(lambda leaf: leaf[None], user),
                count,
                real,
                slots,
                score=score,
                axis=axis,
                by_name=by_name,
            )
            found = jax.tree.map(lambda leaf: leaf[0], found)
            # A score of NaN is never among the best.
            usable = real & ~jnp.isnan(found.scores)
            found = dataclasses.replace(found, scores=jnp.where(usable, found.scores, -jnp.inf))
            if axis is not None:
                slots, found = jax.tree.map(
                    lambda leaf: jax.lax.all_gather(leaf, axis, tiled=True), (slots, found)
                )
            places = jnp.arange(len(slots))
            order = jax.lax.sort((-found.scores, slots, places), num_keys=2)[2][:k]
            return slots[order], jax.tree.map(lambda leaf: leaf[order], found)

        return one_by_one(one, (guesses, near, users))

    spread = local if mesh is None else over_devices(local, mesh, market, by_row=1, everywhere=3)
    return pack_scores(*spread(market, stored, encoder, table, asked))


def feature_terms(
    closeness: Float[Array, "*shape"],
    similarity: Float[Array, "*shape"],
    share: Float[Array, "*shape"],
    self_terms: Float[Array, " rows"],
) -> tuple[Float[Array, "*shape"], ...]:
    """Return the `FEATURES` numbers that the filter combines linearly.

    Args:
        closeness: by the codes.
        similarity: of the classes, by the codes.
        share: of the user's examples, the part whose class the learnware has.
        self_terms: squared norms of the embeddings.
    """
    norms = jnp.broadcast_to(self_terms, closeness.shape)
    one = jnp.ones_like(closeness)
    return share, share * similarity, share * closeness, closeness, norms, one


def _features(
    market: MarketArrays, stored: StoredCodes, encoder: Encoder, table: Array, users: UserArrays
) -> tuple[tuple[Array, ...], Array]:
    """Return the filter's features and the closeness of all rows, each (Q, rows)."""
    near, alike = inner_products(encoder, stored, encode_users(encoder, market, users))
    # Which of the user's classes a label space has, per label space rather than per learnware.
    weights = jnp.where(users.labels >= 0, users.weights, 0.0)
    is_label = users.labels[:, None, :] == jnp.arange(users.class_mask.shape[1])[None, :, None]
    counts = (is_label * weights[:, None, :]).sum(axis=2)
    even = users.class_mask / jnp.maximum(users.class_mask.sum(axis=1, keepdims=True), 1)
    total = counts.sum(axis=1, keepdims=True)
    counts = jnp.where(total > 0, counts / jnp.where(total > 0, total, 1.0), even)
    has = (table[None, :, :, None] == users.class_numbers[:, None, None, :]).any(axis=2)
    share = jnp.where(has & users.class_mask[:, None, :], counts[:, None, :], 0.0).sum(axis=2)
    share = jnp.where(users.by_name[:, None], share, 1.0)[:, stored.label_spaces]
    return feature_terms(near, alike, share, market.self_terms), near


def filter_features(
    market: MarketArrays, codes: Codes, users: UserArrays
) -> Float[Array, "Q rows FEATURES"]:
    """Return the numbers that the filter combines for all rows; arguments as of `start_search`."""
    with on_mesh(codes.mesh), in_float32():
        return _filter_features(
            market, codes.stored, codes.encoder, codes.table, users, mesh=codes.mesh
        )


@partial(jax.jit, static_argnames="mesh")
def _filter_features(
    market: MarketArrays,
    stored: StoredCodes,
    encoder: Encoder,
    table: Array,
    users: UserArrays,
    *,
    mesh: Mesh | None,
) -> Array:
    def local(*arguments: Any) -> Array:
        found = jnp.stack(_features(*arguments)[0], axis=-1)
        if mesh is None:
            return found
        return jax.lax.all_gather(found, mesh.axis_names, axis=1, tiled=True)

    spread = local if mesh is None else over_devices(local, mesh, market, by_row=1, everywhere=3)
    return spread(market, stored, encoder, table, users)


def _slots_of(rows: Array, axis: Hashable | None) -> Array:
    """Return the slots of a device's rows; see `jaxspec.market.devices`."""
    if axis is None:
        return rows.astype(jnp.int32)
    return (rows * jax.lax.axis_size(axis) + jax.lax.axis_index(axis)).astype(jnp.int32)


def largest_of_all(
    values: Float[Array, " rows"], k: int, axis: Hashable | None
) -> tuple[Int[Array, " n"], Bool[Array, " n"]]:
    """Return rows of a device, and whether each of them is among the k largest of all devices.

    Of equal values those of lower slots come first. Values of minus infinity are never among them.

    Args:
        values: of the device's rows.
        k: how many.
        axis: name (or names) of the mesh's axes inside `shard_map`, else None.
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
