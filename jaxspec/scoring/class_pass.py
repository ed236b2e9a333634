"""Class vectors and proxies of a market compared with users', chunk by chunk.

Per learnware and user: which class stands for which and how similar they are, how likely the proxy
finds the user's labels or how much of them its outputs explain, and its agreement with the peer.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.base import stored_chunk, stored_gram, stored_product
from jaxspec.market.arrays import CHANCE_STEPS, MarketArrays
from jaxspec.market.calibration import agreement, chances
from jaxspec.scoring.class_vectors import assign, centred, cosines, same_names, shared_similarity
from jaxspec.scoring.embedding_pass import chunk_rows
from jaxspec.scoring.leave_one_out import HIDDEN_RIDGE, OUTPUT_RIDGE, explained
from jaxspec.scoring.types import LEAST_POINTS, Parts, Peers, UserArrays
from jaxspec.specify.probe_proxy import lift

__all__ = ["IMPUTED_HIDDEN", "compare_classes", "has_probes"]

Array = Any
# By how much a representation scores above the outputs: mean of six markets, deviation 0.05.
IMPUTED_HIDDEN = 0.12


def has_probes(market: MarketArrays) -> bool:
    """Tell whether a market has room for probe proxies."""
    return market.landmarks.shape[0] > 0


def _has_maps(market: MarketArrays) -> bool:
    return market.hidden_maps is not None and market.hidden_maps.shape[1] > 0


def compare_classes(
    market: MarketArrays,
    users: UserArrays,
    length: Array,
    method: str,
    peers: Peers | None,
    *,
    by_name: bool | None = None,
) -> Parts:
    """Compare the class vectors and, where the method asks for it, the proxies of each slot.

    Args:
        market: stacked arrays.
        users: Q stacked users.
        length: scalar int32; slots from here on are not computed.
        method: one of `scoring.METHODS`.
        peers: of the users, where the method needs them.
        by_name: whether all of the users are compared by name, if that is known when compiling:
            an accelerator then need not ask its host which way to go.
    """
    behaves = method == "transfer" or peers is not None
    run = partial(_compare, market, length=length, method=method, peers=peers, by_name=by_name)
    if not behaves or users.points.shape[1] != LEAST_POINTS:
        return run(users)
    # Ten examples of each of five classes fill less than half of the room.
    half = LEAST_POINTS // 2
    some = {name: getattr(users, name)[:, :half] for name in ("points", "weights", "labels")}
    few = dataclasses.replace(users, **some)
    return jax.lax.cond(users.counts.max() <= half, lambda: run(few), lambda: run(users))


def _compare(
    market: MarketArrays,
    users: UserArrays,
    *,
    length: Array,
    method: str,
    peers: Peers | None,
    by_name: bool | None,
) -> Parts:
    """Return what `compare_classes` does, for as many points as users have room for."""
    slots, classes, d = market.class_vectors.shape
    batch, k, _ = users.class_vectors.shape
    n = users.points.shape[1]
    behaves = method == "transfer" or peers is not None
    hidden = market.hidden_maps.shape[1] if method == "transfer" and _has_maps(market) else 0
    entries = batch * ((2 * n * max(classes, hidden) if behaves else 0) + classes * k)
    entries += classes * market.landmarks.shape[0]
    chunk = chunk_rows(slots, entries)
    directions = centred(users.class_vectors, users.class_mask[..., None], axis=1)
    user_gram = jnp.matmul(directions, directions.swapaxes(1, 2), precision="highest")
    inputs = users.points.reshape(batch * n, d)
    weights = jnp.where(users.labels >= 0, users.weights, 0.0)
    weights = weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1e-30)
    is_label = users.labels[:, None, :] == jnp.arange(k)[None, :, None]  # (Q, k, n)
    class_weights = (is_label * weights[:, None, :]).sum(axis=2)  # (Q, k)
    lifted = (
        lift(market.kernel, market.landmarks, market.white, inputs)
        if behaves and has_probes(market)
        else None
    )

    def one_chunk(i: Array, out: Parts) -> Parts:
        start = jnp.minimum(i * chunk, slots - chunk)
        vectors = stored_chunk(market.class_vectors, start, chunk)
        ids = stored_chunk(market.class_ids, start, chunk)
        cross = _products(vectors, directions.reshape(batch * k, d))
        cross = cross.reshape(chunk, classes, batch, k).transpose(0, 2, 1, 3)  # (L, Q, C, k)
        kept = market.class_grams is not None and market.class_grams.shape[1] > 0
        own_gram = stored_chunk(market.class_grams, start, chunk) if kept else stored_gram(vectors)
        named = ids[:, None, :, None] == users.class_numbers[None, :, None, :]
        allowed = jnp.where(users.by_name[None, :, None, None], named, True)
        allowed &= (ids >= 0)[:, None, :, None] & users.class_mask[None, :, None, :]
        ways = (
            lambda allowed=allowed: same_names(allowed),
            lambda allowed=allowed: assign(cosines(cross, own_gram, user_gram), allowed),
        )
        if by_name is None:
            chosen = jax.lax.cond(users.by_name.all(), *ways)
        else:
            chosen = ways[0 if by_name else 1]()
        similarity = shared_similarity(cross, own_gram, user_gram, chosen)
        similarity = jnp.where(users.class_mask[None], similarity, 0.0)
        behaviour = deeper = agreed = jnp.zeros((chunk, batch), jnp.float32)
        if behaves:
            logits = _logits(market, start, chunk, inputs, lifted)
            logits = logits.reshape(chunk, classes, batch, n).transpose(0, 2, 1, 3)
            if peers is None:
                valid = (ids >= 0)[:, None, :, None]
                behaviour = explained(centred(logits, valid, axis=2), users, OUTPUT_RIDGE)
                deeper = behaviour
                if hidden:
                    deeper = _deeper(market, start, chunk, inputs, users, behaviour)
            else:
                behaviour = _mean_chance(logits, chosen, is_label, weights)
                own = stored_chunk(market.probe_chances, start, chunk) * jnp.float32(
                    1.0 / CHANCE_STEPS
                )
                agreed = agreement(own, ids >= 0, peers.chance, peers.valid, peers.region)
        share = jnp.where(chosen >= 0, class_weights, 0.0).sum(axis=2)
        found = Parts(similarity, chosen, share, behaviour, deeper, agreed)
        return jax.tree.map(
            lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, start, axis=0),
            out,
            found,
        )

    out = Parts(
        jnp.zeros((slots, batch, k), jnp.float32),
        jnp.full((slots, batch, k), -1, jnp.int32),
        *(jnp.zeros((slots, batch), jnp.float32) for _ in range(4)),
    )
    if chunk == slots:  # no loop, which an accelerator would wait for
        return one_chunk(jnp.int32(0), out)
    return jax.lax.fori_loop(0, -(-length // chunk), one_chunk, out)


def _products(vectors: Array, others: Array) -> Array:
    """Return products of stored vectors (L, C, d) with others (n, d): (L, C, n) float32."""
    length, classes, d = vectors.shape
    return stored_product(vectors.reshape(-1, d), others).reshape(length, classes, -1)


def _logits(
    market: MarketArrays, start: Array, chunk: int, inputs: Array, lifted: Array | None
) -> Array:
    """Return the proxies' logits (L, C, Q n): of the probe proxy where there is one."""
    vectors = stored_chunk(market.class_vectors, start, chunk)
    at_origin = _products(vectors, market.origin[None])
    own = _products(vectors, inputs) + at_origin
    own += stored_chunk(market.class_bias, start, chunk)[..., None]
    if lifted is None:
        return own
    probed = _products(stored_chunk(market.probe_weights, start, chunk), lifted)
    probed += stored_chunk(market.probe_bias, start, chunk)[..., None]
    return jnp.where(stored_chunk(market.has_probe, start, chunk)[:, None, None] > 0, probed, own)


def _mean_chance(logits: Array, chosen: Array, is_label: Array, weights: Array) -> Array:
    """Return the mean probability that proxies give the users' labels, (L, Q).

    The learnware says which of the classes it shares with the user it is; a label that it does
    not share has probability zero.

    Args:
        logits: (L, Q, C, n).
        chosen: (L, Q, k) learnware classes for user classes, or -1.
        is_label: (Q, k, n) bool.
        weights: (Q, n), sum one, zero where there is no label.
    """
    matched = (chosen >= 0)[..., None]
    values = jnp.take_along_axis(logits, jnp.maximum(chosen, 0)[..., None], axis=2)  # (L, Q, k, n)
    chance = chances(values, matched & (weights > 0)[None, :, None, :])
    return (chance * (is_label * weights[:, None, :])).sum(axis=(2, 3))


def _deeper(
    market: MarketArrays,
    start: Array,
    chunk: int,
    inputs: Array,
    users: UserArrays,
    outputs: Array,
) -> Array:
    """Return `explained` (L, Q) of representations, for users of other class names where known.

    Args:
        market: with representations.
        start: first row of the chunk.
        chunk: L.
        inputs: (Q n, d) users' points.
        users: Q of them.
        outputs: (L, Q), `explained` of the outputs: it stays for users whose names are known, and
            stands in, raised by `IMPUTED_HIDDEN`, where there is no representation.
    """
    batch, n, _ = users.points.shape
    maps = stored_chunk(market.hidden_maps, start, chunk)
    hidden = _products(maps, inputs).reshape(chunk, -1, batch, n).transpose(0, 2, 1, 3)
    known = (maps != 0).any(axis=(1, 2))[:, None]
    deeper = jnp.where(known, explained(hidden, users, HIDDEN_RIDGE), outputs + IMPUTED_HIDDEN)
    return jnp.where(users.by_name, outputs, deeper)
