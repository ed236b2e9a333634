"""The pass over a market: pure, jittable, one compilation a shape. `jaxspec.matching` calls it.

Chunks of the flattened market meet all users' points in one matrix product, one kernel evaluation
and two reductions; class vectors and proxies meet them in further products. No array of size
market x m x m_T exists. Scores, larger is better:

    "rkme"        - |Phi_T - Phi_l|^2, the baseline.
    "classwise"   the paper's: mean similarity of the class vectors + CLOSENESS cos(Phi_T, Phi_l).
    "likelihood"  for direct use: how likely the learnware's proxy makes the user's labels, beside
                  the two parts of "classwise" and, where the market holds a learnware whose
                  distribution is the user's (the peer), how much its proxy has in common with the
                  peer's on the peer's reduced set: many more points of the user's kind than the
                  user's few examples, at no cost in privacy.
    "transfer"    for fine-tuning: how well a small model on the proxy's outputs would do on the
                  user's examples, whatever the classes are called, and cos(Phi_T, Phi_l).

What cannot be gamed is left out by construction: embeddings enter by their angle and logits in
units of their own size, so scaling weights gains nothing; with names in common only the shared
classes are looked at, so adding classes gains nothing; a likelihood has a floor and picks its own
temperature, so overconfidence gains nothing. The constants were chosen on ten drawn markets that
no reported figure uses (seeds 0 to 9; looked at again on 10 to 19): `benchmarks/identification.py`.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.kernels import distances
from jaxspec.market import MarketArrays
from jaxspec.probe import lift
from jaxspec.pytrees import register

__all__ = ["METHODS", "NEED_LABELS", "Scores", "UserArrays", "assign", "score_market"]

Array = Any
METHODS = ("rkme", "classwise", "likelihood", "transfer")
NEED_LABELS = ("likelihood", "transfer")
BLOCK_ENTRIES = 1 << 20  # values of an intermediate block: 4 MiB of float32
COLUMN_BLOCK = 32  # a user's points are met in blocks of this many; the last one is padded
MISSING = -1.0  # similarity of a class that a learnware does not have: the worst there is

CLOSENESS = {"classwise": 2.0, "likelihood": 4.0, "transfer": 2.0}  # weight of cos(Phi_T, Phi_l)
SIMILARITY = 0.5  # weight of the class vectors in "likelihood"
LIKELIHOOD_FLOOR = 0.1  # share of a uniform guess mixed into every proxy
TEMPERATURES = (0.5, 1.0, 2.0, 4.0)  # of logits with root mean square one
# What a probe would have shown, from similarity and closeness by regression on ten markets
# (correlation 0.99 and 0.97). It stands in for learnwares without a probe proxy.
IMPUTED_LIKELIHOOD = {"similarity": 1.92, "closeness": 0.99, "constant": -0.83}
IMPUTED_AGREEMENT = {"similarity": -0.06, "closeness": 1.43, "constant": -0.93}
PEER_TEMPERATURE = 2.0
PEER_SMOOTHING = 1e-4  # added to every cell of the joint distribution
TRANSFER_RIDGE = 0.3


@register
@dataclasses.dataclass(frozen=True)
class UserArrays:
    """A batch of Q users, padded to common sizes.

    Attributes:
        points: (Q, n, d), relative to the market's origin.
        weights: (Q, n), zero in the padding.
        labels: (Q, n) int32, the points' classes, -1 in the padding or where not shared.
        count: scalar int32, the largest number of points of a user before padding.
        examples: (Q,) how many examples stand behind the points.
        class_vectors: (Q, k, d) proxy weights, one row a class.
        class_mask: (Q, k) bool.
        class_numbers: (Q, k) int32, the market's number of every class name, -2 if it has none.
        by_name: (Q,) bool, whether class k is compared with the class of that name only.
    """

    points: Array
    weights: Array
    labels: Array
    count: Array
    examples: Array
    class_vectors: Array
    class_mask: Array
    class_numbers: Array
    by_name: Array


@register
@dataclasses.dataclass(frozen=True)
class Scores:
    """What `score_market` returns; leading axes are (Q, slots).

    Attributes:
        scores: (Q, slots), larger is better.
        squared_mmd: (Q, slots).
        class_similarity: (Q, slots, k), cosines; -1 for a class the learnware does not have.
        class_map: (Q, slots, k) int32, which learnware class stands for user class k, or -1.
    """

    scores: Array
    squared_mmd: Array
    class_similarity: Array
    class_map: Array


@register
@dataclasses.dataclass(frozen=True)
class _Peers:
    """For each user the learnware that is nearest in distribution.

    Attributes:
        slot: (Q,) int32.
        reliability: (Q,) one where the user's examples cannot be told from its distribution,
            falling to zero.
        points: (Q, m, d).
        used: (Q, m) bool, points that are not padding.
        answers: (Q, m, C) one-hot, the class that the peer's own proxy names.
    """

    slot: Array
    reliability: Array
    points: Array
    used: Array
    answers: Array


@partial(jax.jit, static_argnames="method")
def score_market(
    market: MarketArrays, users: UserArrays, length: Array, alive: Array, *, method: str
) -> Scores:
    """Score the first `length` slots of a market for Q users.

    Args:
        market: stacked arrays.
        users: Q stacked users.
        length: scalar int32; slots from here on are not computed.
        alive: (slots,) bool, slots that hold a learnware of this market.
        method: one of `METHODS`.
    """
    products = _embedding_products(market, users, length)  # (slots, Q)
    user_terms = _user_self_terms(market, users)  # (Q,)
    squared_mmd = market.self_terms[:, None] + user_terms - 2.0 * products
    peers = None
    if method == "likelihood":
        peers = _find_peers(market, users, squared_mmd, alive)
    similarity, class_map, behaviour, agreement = _class_pass(market, users, length, method, peers)
    norms = jnp.sqrt(jnp.maximum(market.self_terms[:, None] * user_terms, 1e-30))
    closeness = products / norms
    mean_similarity = similarity.sum(axis=2) / users.class_mask.sum(axis=1)
    if method == "rkme":
        scores = -squared_mmd
    elif method == "classwise":
        scores = mean_similarity
    elif peers is not None:

        def impute(model: dict[str, float]) -> Array:
            part = model["similarity"] * mean_similarity + model["closeness"] * closeness
            return part + model["constant"]

        known = market.has_probe[:, None] > 0
        likelihood = jnp.where(known, behaviour, impute(IMPUTED_LIKELIHOOD))
        # A peer agrees with itself whatever it is worth: it gets the best of the others.
        is_peer = jnp.arange(alive.shape[0])[:, None] == peers.slot
        others = known & alive[:, None] & ~is_peer
        best = jnp.where(others, agreement, 0.0).max(axis=0)
        agreement = jnp.where(known, agreement, impute(IMPUTED_AGREEMENT))
        agreement = jnp.where(is_peer & known, best, agreement)
        scores = likelihood + SIMILARITY * mean_similarity + peers.reliability * agreement
    else:
        scores = behaviour
    scores = scores + CLOSENESS.get(method, 0.0) * closeness
    return Scores(
        scores.T, squared_mmd.T, similarity.transpose(1, 0, 2), class_map.transpose(1, 0, 2)
    )


def _chunks(slots: int, entries: int, length: Array) -> tuple[int, Array]:
    """Return learnwares a chunk when one needs `entries` values, and how many chunks to do."""
    chunk = max(1, min(slots, BLOCK_ENTRIES // entries))
    return chunk, -(-length // chunk)


def _rows(array: Array, start: Array, count: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(array, start, count)


def _embedding_products(market: MarketArrays, users: UserArrays, length: Array) -> Array:
    """Return <Phi_l, Phi_T> in H, (slots, Q)."""
    slots, m, d = market.points.shape
    batch, _ = users.weights.shape
    chunk, steps = _chunks(slots, m * batch * COLUMN_BLOCK, length)
    column_steps = -(-users.count // COLUMN_BLOCK)

    def one_chunk(i: Array, out: Array) -> Array:
        start = jnp.minimum(i * chunk, slots - chunk)
        points = _rows(market.points, start, chunk).reshape(chunk * m, d)
        weights = _rows(market.weights, start, chunk)

        def one_block(j: Array, total: Array) -> Array:
            at = j * COLUMN_BLOCK
            columns = jax.lax.dynamic_slice_in_dim(users.points, at, COLUMN_BLOCK, axis=1)
            column_weights = jax.lax.dynamic_slice_in_dim(users.weights, at, COLUMN_BLOCK, axis=1)
            distance = distances(market.kernel.metric, points, columns.reshape(-1, d))
            values = market.kernel.profile(distance).reshape(-1, batch, COLUMN_BLOCK)
            return total + (values * column_weights).sum(axis=2)

        zero = jnp.zeros((chunk * m, batch), market.points.dtype)
        embedded = jax.lax.fori_loop(0, column_steps, one_block, zero)
        product = (embedded.reshape(chunk, m, batch) * weights[:, :, None]).sum(axis=1)
        return jax.lax.dynamic_update_slice_in_dim(out, product, start, axis=0)

    out = jnp.zeros((slots, batch), market.points.dtype)
    return jax.lax.fori_loop(0, steps, one_chunk, out)


def _user_self_terms(market: MarketArrays, users: UserArrays) -> Array:
    """Return |Phi_T|^2, (Q,)."""

    def one(user: tuple[Array, Array]) -> Array:
        points, weights = user
        values = market.kernel.profile(distances(market.kernel.metric, points, points))
        return weights @ (values @ weights)

    return jax.lax.map(one, (users.points, users.weights))


def _class_pass(
    market: MarketArrays, users: UserArrays, length: Array, method: str, peers: _Peers | None
) -> tuple[Array, Array, Array, Array]:
    """Return similarity and class map, (slots, Q, k), behaviour and agreement, (slots, Q)."""
    slots, classes, d = market.class_vectors.shape
    batch, k, _ = users.class_vectors.shape
    n = users.points.shape[1]
    behaves = method in NEED_LABELS
    entries = classes * batch * ((2 * (n + market.points.shape[1]) if behaves else 0) + k)
    chunk, steps = _chunks(slots, entries, length)
    directions = _centred(users.class_vectors, users.class_mask[..., None], axis=1)
    user_gram = jnp.matmul(directions, directions.swapaxes(1, 2), precision="highest")
    inputs = users.points
    if peers is not None:
        inputs = jnp.concatenate([inputs, peers.points], axis=1)
    total = inputs.shape[1]
    inputs = inputs.reshape(batch * total, d)
    lifted = (
        lift(market.kernel, market.landmarks, market.white, inputs)
        if behaves and market.landmarks.shape[0]
        else None
    )

    def one_chunk(i: Array, out: tuple[Array, ...]) -> tuple[Array, ...]:
        start = jnp.minimum(i * chunk, slots - chunk)
        vectors = _rows(market.class_vectors, start, chunk)
        ids = _rows(market.class_ids, start, chunk)
        flat = vectors.reshape(chunk * classes, d)
        cross = jnp.matmul(flat, directions.reshape(batch * k, d).T, precision="highest")
        cross = cross.reshape(chunk, classes, batch, k).transpose(0, 2, 1, 3)  # (L, Q, C, k)
        own_gram = jnp.einsum("lcd,led->lce", vectors, vectors, precision="highest")
        named = ids[:, None, :, None] == users.class_numbers[None, :, None, :]
        allowed = jnp.where(users.by_name[None, :, None, None], named, True)
        allowed &= (ids >= 0)[:, None, :, None] & users.class_mask[None, :, None, :]
        chosen = assign(_cosines(cross, own_gram, user_gram), allowed)
        similarity = _shared_similarity(cross, own_gram, user_gram, chosen)
        similarity = jnp.where(users.class_mask[None], similarity, 0.0)
        behaviour = agreement = jnp.zeros((chunk, batch), vectors.dtype)
        if behaves:
            logits = _logits(market, start, chunk, inputs, lifted)
            logits = logits.reshape(chunk, classes, batch, total).transpose(0, 2, 1, 3)
            if peers is None:
                behaviour = _transfer(logits, ids >= 0, users)
            else:
                behaviour = _likelihood(logits[..., :n], chosen, users)
                agreement = _agreement(logits[..., n:], ids >= 0, peers)
        found = similarity, chosen, behaviour, agreement
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(whole, part, start, axis=0)
            for whole, part in zip(out, found, strict=True)
        )

    dtype = market.points.dtype
    out = (
        jnp.zeros((slots, batch, k), dtype),
        jnp.full((slots, batch, k), -1, jnp.int32),
        jnp.zeros((slots, batch), dtype),
        jnp.zeros((slots, batch), dtype),
    )
    return jax.lax.fori_loop(0, steps, one_chunk, out)


def _find_peers(
    market: MarketArrays, users: UserArrays, squared_mmd: Array, alive: Array
) -> _Peers:
    """Return every user's peer.

    n examples of the peer's own distribution would lie at a squared MMD of (1 - |Phi_l|^2) / n on
    average: up to twice that the peer counts in full, from three times that not at all.
    """
    slot = jnp.where(alive[:, None], squared_mmd, jnp.inf).argmin(axis=0)
    nearest = jnp.take_along_axis(squared_mmd, slot[None], axis=0)[0]
    noise = jnp.maximum(1.0 - market.self_terms[slot], 1e-6) / jnp.maximum(users.examples, 1)
    points, vectors = market.points[slot], market.class_vectors[slot]
    bias = market.class_bias[slot] + vectors @ market.origin
    logits = jnp.einsum("qmd,qcd->qmc", points, vectors, precision="highest") + bias[:, None]
    logits = jnp.where((market.class_ids[slot] >= 0)[:, None], logits, -jnp.inf)
    return _Peers(
        slot=slot,
        reliability=jnp.clip(3.0 - nearest / noise, 0.0, 1.0),
        points=points,
        used=market.weights[slot] != 0,
        answers=jax.nn.one_hot(logits.argmax(axis=-1), logits.shape[-1], dtype=points.dtype),
    )


def _agreement(logits: Array, valid: Array, peers: _Peers) -> Array:
    """Return the mutual information, in nats, of proxies' classes with the peers': (L, Q).

    It asks for no class names, so a learnware of another label space can be somebody's peer.

    Args:
        logits: (L, Q, C, m) on the peers' points.
        valid: (L, C) bool, outputs that exist.
        peers: (Q) of them.
    """
    exists = valid[:, None, :, None]
    used = exists & peers.used[None, :, None, :]
    values = _centred(logits, used, axis=2)
    total = jnp.square(values).sum(axis=(2, 3)) / jnp.maximum(used.sum(axis=(2, 3)), 1)
    values = PEER_TEMPERATURE * _divided(values, jnp.sqrt(total)[..., None, None])
    powers = jnp.where(exists, jnp.exp(values - values.max(axis=2, keepdims=True)), 0.0)
    chance = powers / jnp.maximum(powers.sum(axis=2, keepdims=True), 1e-30)
    answers = peers.answers * peers.used[..., None]
    joint = jnp.einsum("lqcm,qmb->lqcb", chance, answers, precision="highest")
    joint = joint / jnp.maximum(peers.used.sum(axis=1), 1)[None, :, None, None] + PEER_SMOOTHING
    joint = joint / joint.sum(axis=(2, 3), keepdims=True)
    apart = joint.sum(axis=3, keepdims=True) * joint.sum(axis=2, keepdims=True)
    return (joint * jnp.log(joint / apart)).sum(axis=(2, 3))


def _centred(values: Array, mask: Array, axis: int) -> Array:
    """Return values minus their mean over the masked entries of an axis, zero elsewhere."""
    mask = jnp.broadcast_to(mask, values.shape)
    count = jnp.maximum(mask.sum(axis=axis, keepdims=True), 1)
    values = jnp.where(mask, values, 0.0)
    return jnp.where(mask, values - values.sum(axis=axis, keepdims=True) / count, 0.0)


def _divided(values: Array, norms: Array) -> Array:
    return jnp.where(norms > 0, values / jnp.where(norms > 0, norms, 1.0), 0.0)


def _cosines(cross: Array, own_gram: Array, user_gram: Array) -> Array:
    """Return cosines between class vectors, each centred over its own classes: (L, Q, C, k)."""
    own = jnp.diagonal(own_gram, axis1=-2, axis2=-1)[:, None, :, None]
    user = jnp.diagonal(user_gram, axis1=-2, axis2=-1)[None, :, None, :]
    return _divided(cross, jnp.sqrt(jnp.maximum(own * user, 0.0)))


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


def _shared_similarity(cross: Array, own_gram: Array, user_gram: Array, chosen: Array) -> Array:
    """Return cosines of the chosen pairs, both sides centred over the matched classes: (L, Q, k).

    So a learnware's further classes do not count. Everything follows from the inner products.
    """
    matched = chosen >= 0
    at = jnp.maximum(chosen, 0)
    own = jax.vmap(lambda gram, rows: gram[rows[:, :, None], rows[:, None, :]])(own_gram, at)
    pairs = jnp.take_along_axis(cross, at[..., None], axis=-2)  # (L, Q, k, k): own row, user column
    both = matched[..., :, None] & matched[..., None, :]

    def twice(gram: Array) -> Array:
        return _centred(_centred(gram, both, axis=-1), both, axis=-2)

    own = jnp.diagonal(twice(own), axis1=-2, axis2=-1)
    user = jnp.diagonal(twice(jnp.broadcast_to(user_gram, pairs.shape)), axis1=-2, axis2=-1)
    top = jnp.diagonal(twice(pairs), axis1=-2, axis2=-1)
    # Rounding of a centred square that should be zero must not become a direction.
    norms = jnp.sqrt(jnp.maximum(own, 0.0)) * jnp.sqrt(jnp.maximum(user, 0.0))
    return jnp.where(matched, jnp.clip(_divided(top, norms), -1.0, 1.0), MISSING)


def _logits(
    market: MarketArrays, start: Array, chunk: int, inputs: Array, lifted: Array | None
) -> Array:
    """Return the proxies' logits (L, C, Q n): of the probe proxy where there is one."""
    vectors = _rows(market.class_vectors, start, chunk)
    classes, d = vectors.shape[1:]
    bias = _rows(market.class_bias, start, chunk) + vectors @ market.origin
    own = jnp.matmul(vectors.reshape(-1, d), inputs.T, precision="highest")
    own = own.reshape(chunk, classes, -1) + bias[..., None]
    if lifted is None:
        return own
    weights = _rows(market.probe_weights, start, chunk)
    probed = jnp.matmul(weights.reshape(-1, weights.shape[2]), lifted.T, precision="highest")
    probed = probed.reshape(own.shape) + _rows(market.probe_bias, start, chunk)[..., None]
    return jnp.where(_rows(market.has_probe, start, chunk)[:, None, None] > 0, probed, own)


def _likelihood(logits: Array, chosen: Array, users: UserArrays) -> Array:
    """Return the mean log-likelihood of the users' labels over that of guessing, (L, Q).

    The learnware says which of the classes it shares with the user it is; a label that it does
    not share has the floor's probability. The best of `TEMPERATURES` counts, after the logits are
    brought to root mean square one.

    Args:
        logits: (L, Q, C, n).
        chosen: (L, Q, k) learnware classes for user classes, or -1.
        users: their labels and weights.
    """
    matched = (chosen >= 0)[..., None]
    values = jnp.take_along_axis(logits, jnp.maximum(chosen, 0)[..., None], axis=2)  # (L, Q, k, n)
    used = matched & (users.labels >= 0)[None, :, None, :]
    values = _centred(values, used, axis=2)
    total = jnp.square(values).sum(axis=(2, 3)) / jnp.maximum(used.sum(axis=(2, 3)), 1)
    values = _divided(values, jnp.sqrt(total)[..., None, None])
    is_label = users.labels[:, None, :] == jnp.arange(chosen.shape[2])[None, :, None]  # (Q, k, n)
    weights = jnp.where(users.labels >= 0, users.weights, 0.0)
    classes = users.class_mask.sum(axis=1)[None, :, None]

    def at(temperature: float) -> Array:
        scaled = jnp.where(matched, temperature * values, -jnp.inf)
        top = jnp.where(matched.any(axis=2), scaled.max(axis=2), 0.0)
        powers = jnp.exp(scaled - top[:, :, None])
        chance = (powers * is_label[None]).sum(axis=2) / jnp.maximum(powers.sum(axis=2), 1e-30)
        likelihood = jnp.log((1 - LIKELIHOOD_FLOOR) * chance * classes + LIKELIHOOD_FLOOR)
        return (likelihood * weights).sum(axis=2) / weights.sum(axis=1)

    return jnp.stack([at(temperature) for temperature in TEMPERATURES]).max(axis=0)


def _transfer(logits: Array, valid: Array, users: UserArrays) -> Array:
    """Return how much of the labels a ridge regression on the logits explains, (L, Q) up to 1.

    Every example is left out in turn, in closed form. Logits are centred and brought to a total
    of one an example, so that neither scale nor further random outputs help.

    Args:
        logits: (L, Q, C, n).
        valid: (L, C) bool, outputs that exist.
        users: their labels.
    """
    seen = (users.labels >= 0)[None, :, None, :]
    count = jnp.maximum(seen.sum(axis=-1), 1)[..., 0]  # (1, Q)
    x = _centred(logits, valid[:, None, :, None] & seen, axis=2)
    x = _centred(x, seen, axis=3)
    total = jnp.square(x).sum(axis=(2, 3)) / count
    x = _divided(x, jnp.sqrt(total)[..., None, None])
    y = (users.labels[:, None, :] == jnp.arange(users.class_mask.shape[1])[None, :, None]) * 1.0
    y = _centred(y, seen[0], axis=2)[None]  # (1, Q, k, n)
    share = count[..., None, None]
    matrix = jnp.einsum("lqcn,lqdn->lqcd", x, x, precision="highest") / share
    inverse = _inverse(matrix + TRANSFER_RIDGE * jnp.eye(x.shape[2], dtype=x.dtype))
    through = jnp.einsum("lqcd,lqdn->lqcn", inverse, x, precision="highest") / share
    leverage = (through * x).sum(axis=2) + 1.0 / count[..., None]
    moment = jnp.einsum("lqcn,lqkn->lqck", x, jnp.broadcast_to(y, (x.shape[0], *y.shape[1:])),
                        precision="highest")  # fmt: skip
    fitted = jnp.einsum("lqcn,lqck->lqkn", through, moment, precision="highest")
    left_out = jnp.where(seen, (y - fitted) / (1.0 - leverage)[:, :, None], 0.0)
    spread = jnp.maximum(jnp.square(y).sum(axis=(2, 3)), 1e-30)
    return 1.0 - jnp.square(left_out).sum(axis=(2, 3)) / spread


def _inverse(matrix: Array) -> Array:
    """Return inverses of small positive definite matrices (..., c, c) by Gauss-Jordan.

    c sweeps of elementwise work over all of them at once; a batched Cholesky goes one by one on
    CPU. The ridge on the diagonal makes pivoting needless.
    """

    def sweep(i: Array, a: Array) -> Array:
        row = jax.lax.dynamic_index_in_dim(a, i, axis=-2, keepdims=True)
        column = jax.lax.dynamic_index_in_dim(a, i, axis=-1, keepdims=True)
        pivot = jax.lax.dynamic_index_in_dim(row, i, axis=-1, keepdims=True)
        at = jnp.arange(a.shape[-1]) == i
        is_row, is_column = at[:, None], at[None, :]
        swept = a - column * row / pivot
        swept = jnp.where(is_row, row / pivot, swept)
        swept = jnp.where(is_column, -column / pivot, swept)
        return jnp.where(is_row & is_column, 1.0 / pivot, swept)

    return jax.lax.fori_loop(0, matrix.shape[-1], sweep, matrix)
