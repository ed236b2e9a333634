"""Class vectors and proxies of a market compared with the users', chunk by chunk.

Per learnware and user: which class stands for which and how similar they are, how likely the probe
proxy finds the user's labels, how much of the labels outputs or hidden directions explain, and the
agreement with the peer. Only what a score needs is computed.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxspec.base import stored_chunk, stored_gram, stored_product
from jaxspec.kernels import lift
from jaxspec.market import CHANCE_STEPS, MarketArrays, agreement, chances
from jaxspec.scoring.chunk_loop import over_chunks
from jaxspec.scoring.class_vectors import (
    assign,
    centred,
    cosines,
    same_names,
    shared_similarity,
)
from jaxspec.scoring.embedding_pass import chunk_rows
from jaxspec.scoring.leave_one_out import HIDDEN_RIDGE, OUTPUT_RIDGE, explained
from jaxspec.scoring.types import MIN_PADDED_POINTS, ClassEvidence, Peers, UserArrays

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

__all__ = ["compare_classes", "has_probes", "has_representations"]


def has_probes(market: MarketArrays) -> bool:
    """Tell whether a market has room for probe proxies."""
    return bool(market.landmarks.shape[0] > 0)


def has_representations(market: MarketArrays) -> bool:
    """Tell whether a market has room for representations."""
    return market.hidden_maps is not None and bool(market.hidden_maps.shape[1] > 0)


def compare_classes(
    market: MarketArrays,
    users: UserArrays,
    length: Int[Array, ""],
    needs: tuple[str, ...],
    peers: Peers | None,
    *,
    by_name: bool | None = None,
) -> ClassEvidence:
    """Compare the class vectors and, where it is needed, the proxies of each row.

    Args:
        market: arrays of the rows.
        users: Q stacked users.
        length: rows from here on are not computed.
        needs: names of the fields of `Evidence` that are needed; class vectors always are.
        peers: of the users, where agreement is needed.
        by_name: whether all users are compared by name, if that is known when compiling: an
            accelerator then need not ask its host which way to go.
    """
    explains = "explained_by_outputs" in needs or "explained_by_hidden" in needs
    answers = has_probes(market) and ("label_probability" in needs or peers is not None)
    run = partial(
        _compare,
        market,
        length=length,
        explains=explains,
        explains_hidden="explained_by_hidden" in needs and has_representations(market),
        answers=answers,
        peers=peers,
        by_name=by_name,
    )
    if not (explains or answers) or users.points.shape[1] != MIN_PADDED_POINTS:
        return run(users)
    # Ten examples of each of five classes fill less than half of the room: at 100,000 learnwares
    # half of the points take 932 ms instead of 1,628 ms for "transfer".
    half = MIN_PADDED_POINTS // 2
    cut = {name: getattr(users, name)[:, :half] for name in ("points", "weights", "labels")}
    few = dataclasses.replace(users, **cut)
    return jax.lax.cond(users.counts.max() <= half, lambda: run(few), lambda: run(users))


def _compare(
    market: MarketArrays,
    users: UserArrays,
    *,
    length: Int[Array, ""],
    explains: bool,
    explains_hidden: bool,
    answers: bool,
    peers: Peers | None,
    by_name: bool | None,
) -> ClassEvidence:
    """Return what `compare_classes` does, for as many points as users have room for."""
    rows, classes, d = market.class_vectors.shape
    batch, k, _ = users.class_vectors.shape
    n = users.points.shape[1]
    behaves = explains or answers
    hidden = market.hidden_maps.shape[1] if explains_hidden else 0
    entries = batch * ((2 * n * max(classes, hidden) if behaves else 0) + classes * k)
    entries += classes * market.landmarks.shape[0]
    chunk = chunk_rows(rows, entries)
    directions = centred(users.class_vectors, users.class_mask[..., None], axis=1)
    user_gram = jnp.matmul(directions, directions.swapaxes(1, 2), precision="highest")
    inputs = users.points.reshape(batch * n, d)
    weights = jnp.where(users.labels >= 0, users.weights, 0.0)
    weights = weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1e-30)
    is_label = users.labels[:, None, :] == jnp.arange(k)[None, :, None]  # (Q, k, n)
    class_weights = (is_label * weights[:, None, :]).sum(axis=2)  # (Q, k)
    lifted = None
    if behaves and has_probes(market):
        lifted = lift(market.kernel, market.landmarks, market.whitening, inputs)

    def one_chunk(start: Array) -> ClassEvidence:
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
        probability = agreed = by_outputs = by_hidden = jnp.zeros((chunk, batch), jnp.float32)
        if behaves:
            logits = _logits(market, start, chunk, inputs, lifted)
            logits = logits.reshape(chunk, classes, batch, n).transpose(0, 2, 1, 3)
        if explains:
            valid = (ids >= 0)[:, None, :, None]
            by_outputs = explained(centred(logits, valid, axis=2), users, OUTPUT_RIDGE)
        if explains_hidden:
            maps = stored_chunk(market.hidden_maps, start, chunk)
            seen = _products(maps, inputs).reshape(chunk, -1, batch, n).transpose(0, 2, 1, 3)
            by_hidden = explained(seen, users, HIDDEN_RIDGE)
        if answers:
            probability = _mean_probability(logits, chosen, is_label, weights)
        if answers and peers is not None:
            own = stored_chunk(market.probe_chances, start, chunk)
            own = own.astype(jnp.float32) * jnp.float32(1.0 / CHANCE_STEPS)
            agreed = agreement(own, ids >= 0, peers.chance, peers.valid, peers.region)
        return ClassEvidence(
            class_similarity=similarity,
            class_map=chosen,
            share=jnp.where(chosen >= 0, class_weights, 0.0).sum(axis=2),
            label_probability=probability,
            agreement=agreed,
            explained_by_outputs=by_outputs,
            explained_by_hidden=by_hidden,
        )

    zeros = [jnp.zeros((chunk, batch), jnp.float32) for _ in range(5)]
    nothing = ClassEvidence(
        jnp.zeros((chunk, batch, k), jnp.float32),
        jnp.full((chunk, batch, k), -1, jnp.int32),
        *zeros,
    )
    looked_at = (market.class_vectors, users.points, users.labels, users.class_vectors)
    return over_chunks(one_chunk, nothing, rows, chunk, length, looked_at)


def _products(vectors: Float[Array, "L C d"], others: Float[Array, "n d"]) -> Float[Array, "L C n"]:
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


def _mean_probability(logits: Array, chosen: Array, is_label: Array, weights: Array) -> Array:
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
