"""The pass over a market: pure, jittable, one compilation a shape. `jaxspec.matching` calls it.

`embed` compares embeddings, `find_peers` and `compare_classes` class vectors and proxies, chunk by
chunk, and `combine` makes scores of the parts; `score` is all of it on one device or, inside
`shard_map`, on a device's share of the market, `score_rows` on some rows. Larger is better:

    "rkme"        - |Phi_T - Phi_l|^2, the baseline.
    "classwise"   the paper's: mean similarity of the class vectors + CLOSENESS cos(Phi_T, Phi_l).
    "likelihood"  for direct use: the mean probability that the learnware's proxy gives the user's
                  labels, and PRIOR times the share of the examples that it has classes for times
                  what else is known of its behaviour there: its mutual information with the
                  user's peer (the learnware nearest in distribution) at the landmarks near it, and
                  the user's closeness, weighed by the market's own calibration.
    "transfer"    for fine-tuning: how well a small model on the learnware's proxy would do on the
                  user's examples, whatever the classes are called, and cos(Phi_T, Phi_l). The
                  small model sees the proxy's outputs, and for a user of other class names the
                  representation: of a model that is tuned to such a user its hidden layers stay.
                  Closeness and representation speak of the public features; they count as far as
                  the market's calibration finds its models to follow these.

What cannot be gamed is left out by construction: embeddings enter by their angle and logits in
units of their own size, so scaling weights gains nothing; with names in common only the shared
classes are looked at, so adding classes gains nothing; probabilities are of logits of one size,
so overconfidence gains nothing. The constants were chosen on drawn markets that no reported figure
uses: `benchmarks/identification.py`.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.calibration import Calibration, agreement, chances, following, region, witness
from jaxspec.embeddings import chunk_rows, embedding_products, pack_columns
from jaxspec.exact import stored_gram, stored_product
from jaxspec.fused import fused_for, fused_products
from jaxspec.kernels import Kernel, distances, one_by_one, square_norm
from jaxspec.market_arrays import CHANCE_STEPS, MarketArrays, decode_points
from jaxspec.probe import lift
from jaxspec.pytrees import register

__all__ = [
    "METHODS",
    "NEED_LABELS",
    "Embedded",
    "Parts",
    "Peers",
    "Scores",
    "UserArrays",
    "assign",
    "combine",
    "compare_classes",
    "embed",
    "find_peers",
    "score",
    "score_market",
    "score_rows",
]

Array = Any
METHODS = ("rkme", "classwise", "likelihood", "transfer")
NEED_LABELS = ("likelihood", "transfer")
MISSING = -1.0  # similarity of a class that a learnware does not have: the worst there is

CLOSENESS = {"classwise": 2.0, "transfer": 2.0}  # weight of cos(Phi_T, Phi_l)
PRIOR = 0.6  # weight of agreement and closeness beside the probability; flat from 0.5 to 0.7
# What a probe would have shown, by regression on six markets. It stands in for learnwares without
# a probe proxy; similarity is the mean over the classes that they share with the user, and the
# first is for the examples of these (correlation 0.88 and 0.63).
IMPUTED_CHANCE = {"similarity": 0.57, "closeness": 1.14, "constant": -0.61}
IMPUTED_AGREEMENT = {"similarity": 0.25, "closeness": 1.36, "constant": -1.04}
# By how much a representation scores above the outputs: mean of six markets, deviation 0.05.
IMPUTED_HIDDEN = 0.12
OUTPUT_RIDGE, HIDDEN_RIDGE = 0.3, 0.1  # of inputs with a total variance of one


@register
@dataclasses.dataclass(frozen=True)
class UserArrays:
    """A batch of Q users, padded to common sizes.

    Attributes:
        points: (Q, n, d), relative to the market's origin.
        weights: (Q, n), zero in the padding.
        labels: (Q, n) int32, the points' classes, -1 in the padding or where not shared.
        counts: (Q,) int32, points that are not padding.
        examples: (Q,) how many examples stand behind the points.
        class_vectors: (Q, k, d) proxy weights, one row a class.
        class_mask: (Q, k) bool.
        class_numbers: (Q, k) int32, the market's number of every class name, -2 if it has none.
        by_name: (Q,) bool, whether class k is compared with the class of that name only.
    """

    points: Array
    weights: Array
    labels: Array
    counts: Array
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
class Embedded:
    """Comparisons of embeddings; axes are (slots, Q).

    Attributes:
        squared_mmd: (slots, Q).
        closeness: (slots, Q), the cosine of the angle between the embeddings.
    """

    squared_mmd: Array
    closeness: Array


@register
@dataclasses.dataclass(frozen=True)
class Peers:
    """For each user the learnware that is nearest in distribution.

    Attributes:
        row: (Q,) int32, where it lies; over all devices where the market is spread.
        squared_mmd: (Q,).
        reliability: (Q,) one where the user's examples cannot be told from its distribution,
            falling to zero.
        chance: (Q, C, D) class probabilities of the peer's probe proxy at the landmarks.
        valid: (Q, C) bool, classes that the peer has.
        region: (Q, D) how much each landmark counts for the peer.
    """

    row: Array
    squared_mmd: Array
    reliability: Array
    chance: Array
    valid: Array
    region: Array


@register
@dataclasses.dataclass(frozen=True)
class Parts:
    """Comparisons of classes and proxies; leading axes are (slots, Q).

    Attributes:
        similarity: (slots, Q, k), cosines of class vectors, zero in the padding.
        class_map: (slots, Q, k) int32.
        share: (slots, Q), of the user's weights, examples whose class the learnware has.
        behaviour: (slots, Q), the method's own part on the users' examples.
        deeper: (slots, Q), the same of representations for "transfer", where there are any.
        agreement: (slots, Q), with the users' peers.
    """

    similarity: Array
    class_map: Array
    share: Array
    behaviour: Array
    deeper: Array
    agreement: Array


def score(
    market: MarketArrays,
    users: UserArrays,
    length: Array,
    alive: Array,
    calibration: Calibration,
    *,
    method: str,
    axis: Any = None,
) -> Scores:
    """Score the first `length` slots of a market for Q users.

    Args:
        market: stacked arrays; inside `shard_map` one device's rows.
        users: Q stacked users.
        length: scalar int32; slots from here on are not computed. Of the whole market.
        alive: (slots,) bool, slots that hold a learnware of this market; one device's rows.
        calibration: of the whole market.
        method: one of `METHODS`.
        axis: name (or names) of the mesh's axes inside `shard_map`, else None.
    """
    if axis is None:
        return score_rows(market, users, length, alive, calibration, method=method)
    device, devices = jax.lax.axis_index(axis), jax.lax.axis_size(axis)
    length = -(-(length - device) // devices)  # row r of device k is slot r K + k
    slots = jnp.arange(alive.shape[0]) * devices + device
    return score_rows(market, users, length, alive, calibration, slots, method=method, axis=axis)


def score_rows(
    market: MarketArrays,
    users: UserArrays,
    length: Array,
    alive: Array,
    calibration: Calibration,
    slots: Array | None = None,
    *,
    method: str,
    axis: Any = None,
) -> Scores:
    """Score the first `length` rows, some of a market's or of one device's, in any order.

    Args:
        market: stacked arrays of these rows; every device has as many.
        users: Q stacked users.
        length: scalar int32, this device's own; rows from here on are not computed.
        alive: (rows,) bool.
        calibration: of the whole market.
        slots: (rows,) of the rows, to tell which of equals came first; with an axis only. Rows of
            one device have to be in this order.
        method: one of `METHODS`.
        axis: as in `score`.
    """
    embedded = embed(market, users, length)
    peers = best = None
    if method == "likelihood" and _has_probes(market):
        peers = find_peers(market, users, embedded, alive, calibration, slots, axis=axis)
    parts = compare_classes(market, users, length, method, peers)
    if peers is not None:
        best = best_agreement(parts, peers, market.has_probe, alive, axis=axis)
    scores = combine(
        embedded,
        parts,
        users,
        market.kernel,
        market.has_probe,
        calibration,
        peers,
        best,
        method=method,
        axis=axis,
    )
    return Scores(
        scores.T,
        embedded.squared_mmd.T,
        parts.similarity.transpose(1, 0, 2),
        parts.class_map.transpose(1, 0, 2),
    )


@partial(jax.jit, static_argnames="method")
def score_market(
    market: MarketArrays,
    users: UserArrays,
    length: Array,
    alive: Array,
    calibration: Calibration,
    *,
    method: str,
) -> Scores:
    """Return `score` on one device, jitted."""
    return score(market, users, length, alive, calibration, method=method)


def _has_probes(market: MarketArrays) -> bool:
    return market.landmarks.shape[0] > 0


def _has_maps(market: MarketArrays) -> bool:
    return market.hidden_maps is not None and market.hidden_maps.shape[1] > 0


def embed(market: MarketArrays, users: UserArrays, length: Array) -> Embedded:
    """Compare the users' embeddings with those of the first `length` slots."""
    stored = (market.points, market.scales, market.square_norms, market.weights)
    if fused_for(market.kernel):
        own = (users.points, users.weights, users.counts)
        products = fused_products(market.kernel, *stored, *own, length)
    else:
        columns, shares = pack_columns(users.points, users.weights, users.counts)
        count = users.counts.sum()
        products = embedding_products(market.kernel, *stored, columns, shares, count, length)
    user_terms = _user_self_terms(market, users)  # (Q,)
    norms = jnp.sqrt(jnp.maximum(market.self_terms[:, None] * user_terms, 1e-30))
    return Embedded(
        market.self_terms[:, None] + user_terms - 2.0 * products,
        products / norms,
    )


def combine(
    embedded: Embedded,
    parts: Parts,
    users: UserArrays,
    kernel: Kernel,
    has_probe: Array,
    calibration: Calibration,
    peers: Peers | None,
    best: Array | None,
    *,
    method: str,
    axis: Any = None,
) -> Array:
    """Return the scores (slots, Q); `best` is `best_agreement` where there are peers."""
    closeness = embedded.closeness
    mean_similarity = parts.similarity.sum(axis=2) / users.class_mask.sum(axis=1)
    if method == "rkme":
        return -embedded.squared_mmd
    if method == "classwise":
        scores = mean_similarity
    elif method == "likelihood":
        matched = parts.class_map >= 0
        shared = jnp.where(matched, parts.similarity, 0.0).sum(axis=2)
        shared = shared / jnp.maximum(matched.sum(axis=2), 1)

        def impute(model: dict[str, float]) -> Array:
            part = model["similarity"] * shared + model["closeness"] * closeness
            return part + model["constant"]

        chance = parts.share * impute(IMPUTED_CHANCE)
        agreed = impute(IMPUTED_AGREEMENT)
        reliability: Array | float = 0.0
        if peers is not None and best is not None:
            known = has_probe[:, None] > 0
            chance = jnp.where(known, parts.behaviour, chance)
            agreed = jnp.where(known, parts.agreement, agreed)
            # A peer agrees with itself whatever it is worth: it gets the best of the others.
            agreed = jnp.where(_is_peer(peers, parts, axis) & known, best, agreed)
            reliability = peers.reliability
        centred = closeness - _mean_closeness(kernel, users, calibration)
        return chance + PRIOR * parts.share * (reliability * agreed + calibration.slope * centred)
    else:
        share = following(calibration)
        scores = parts.behaviour + share * (parts.deeper - parts.behaviour)
        return scores + share * CLOSENESS[method] * closeness
    return scores + CLOSENESS[method] * closeness


def _mean_closeness(kernel: Kernel, users: UserArrays, calibration: Calibration) -> Array:
    """Return the mean closeness of each user with the market's sample, (Q,)."""
    sample, m, d = calibration.points.shape

    def one(user: tuple[Array, Array]) -> Array:
        points, weights = user
        values = kernel.profile(distances(kernel.metric, calibration.points.reshape(-1, d), points))
        product = jnp.matmul(values, weights, precision="highest").reshape(sample, m)
        product = (product * calibration.weights).sum(axis=1)
        own = square_norm(kernel, points, weights)
        near = product / jnp.sqrt(jnp.maximum(calibration.self_terms * own, 1e-30))
        return jnp.where(calibration.used, near, 0.0).sum() / jnp.maximum(calibration.used.sum(), 1)

    return one_by_one(one, (users.points, users.weights))


def _is_peer(peers: Peers, parts: Parts, axis: Any) -> Array:
    rows = parts.agreement.shape[0]
    first = 0 if axis is None else jax.lax.axis_index(axis) * rows
    return first + jnp.arange(rows)[:, None] == peers.row


def best_agreement(
    parts: Parts, peers: Peers, has_probe: Array, alive: Array, *, axis: Any = None
) -> Array:
    """Return the largest agreement with each user's peer among the other learnwares, (Q,)."""
    others = (has_probe > 0)[:, None] & alive[:, None] & ~_is_peer(peers, parts, axis)
    best = jnp.where(others, parts.agreement, 0.0).max(axis=0)
    return best if axis is None else jax.lax.pmax(best, axis)


def _slice(array: Array, start: Array, count: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(array, start, count)


def _products(vectors: Array, others: Array) -> Array:
    """Return products of stored vectors (L, C, d) with others (n, d): (L, C, n) float32."""
    length, classes, d = vectors.shape
    return stored_product(vectors.reshape(-1, d), others).reshape(length, classes, -1)


def _user_self_terms(market: MarketArrays, users: UserArrays) -> Array:
    """Return |Phi_T|^2, (Q,)."""
    return one_by_one(lambda user: square_norm(market.kernel, *user), (users.points, users.weights))


def compare_classes(
    market: MarketArrays, users: UserArrays, length: Array, method: str, peers: Peers | None
) -> Parts:
    """Compare the class vectors and, where the method asks for it, the proxies of each slot."""
    slots, classes, d = market.class_vectors.shape
    batch, k, _ = users.class_vectors.shape
    n = users.points.shape[1]
    behaves = method == "transfer" or peers is not None
    hidden = market.hidden_maps.shape[1] if method == "transfer" and _has_maps(market) else 0
    entries = batch * ((2 * n * max(classes, hidden) if behaves else 0) + classes * k)
    entries += classes * market.landmarks.shape[0]
    chunk = chunk_rows(slots, entries)
    directions = _centred(users.class_vectors, users.class_mask[..., None], axis=1)
    user_gram = jnp.matmul(directions, directions.swapaxes(1, 2), precision="highest")
    inputs = users.points.reshape(batch * n, d)
    weights = jnp.where(users.labels >= 0, users.weights, 0.0)
    weights = weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1e-30)
    is_label = users.labels[:, None, :] == jnp.arange(k)[None, :, None]  # (Q, k, n)
    class_weights = (is_label * weights[:, None, :]).sum(axis=2)  # (Q, k)
    lifted = (
        lift(market.kernel, market.landmarks, market.white, inputs)
        if behaves and _has_probes(market)
        else None
    )

    def one_chunk(i: Array, out: Parts) -> Parts:
        start = jnp.minimum(i * chunk, slots - chunk)
        vectors = _slice(market.class_vectors, start, chunk)
        ids = _slice(market.class_ids, start, chunk)
        cross = _products(vectors, directions.reshape(batch * k, d))
        cross = cross.reshape(chunk, classes, batch, k).transpose(0, 2, 1, 3)  # (L, Q, C, k)
        own_gram = stored_gram(vectors)
        named = ids[:, None, :, None] == users.class_numbers[None, :, None, :]
        allowed = jnp.where(users.by_name[None, :, None, None], named, True)
        allowed &= (ids >= 0)[:, None, :, None] & users.class_mask[None, :, None, :]
        chosen = jax.lax.cond(
            users.by_name.all(),
            lambda: _same_names(allowed),
            lambda: assign(_cosines(cross, own_gram, user_gram), allowed),
        )
        similarity = _shared_similarity(cross, own_gram, user_gram, chosen)
        similarity = jnp.where(users.class_mask[None], similarity, 0.0)
        behaviour = deeper = agreed = jnp.zeros((chunk, batch), jnp.float32)
        if behaves:
            logits = _logits(market, start, chunk, inputs, lifted)
            logits = logits.reshape(chunk, classes, batch, n).transpose(0, 2, 1, 3)
            if peers is None:
                valid = (ids >= 0)[:, None, :, None]
                behaviour = _transfer(_centred(logits, valid, axis=2), users, OUTPUT_RIDGE)
                deeper = behaviour
                if hidden:
                    deeper = _deeper(market, start, chunk, inputs, users, behaviour)
            else:
                behaviour = _mean_chance(logits, chosen, is_label, weights)
                own = _slice(market.probe_chances, start, chunk) * jnp.float32(1.0 / CHANCE_STEPS)
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


def find_peers(
    market: MarketArrays,
    users: UserArrays,
    embedded: Embedded,
    alive: Array,
    calibration: Calibration,
    slots: Array | None = None,
    *,
    axis: Any = None,
) -> Peers:
    """Return every user's peer: of the learnwares with a probe proxy the nearest in distribution.

    n examples of the peer's own distribution would lie at a squared MMD of (1 - |Phi_l|^2) / n on
    average: up to twice that the peer counts in full, from three times that not at all.
    """
    able = (alive & (market.has_probe > 0))[:, None]
    squared_mmd = jnp.where(able, embedded.squared_mmd, jnp.inf)
    row = squared_mmd.argmin(axis=0)
    nearest = jnp.take_along_axis(squared_mmd, row[None], axis=0)[0]
    own = market.self_terms[row]
    noise = jnp.maximum(1.0 - own, 1e-6) / jnp.maximum(users.examples, 1)
    points = decode_points(market.points[row], market.scales[row])
    values = witness(market.kernel, market.landmarks, points, market.weights[row], own)
    peers = Peers(
        row=row.astype(jnp.int32),
        squared_mmd=nearest,
        reliability=jnp.clip(3.0 - nearest / noise, 0.0, 1.0),
        chance=market.probe_chances[row].astype(jnp.float32) * (1.0 / CHANCE_STEPS),
        valid=market.class_ids[row] >= 0,
        region=region(values, calibration.landmark_mean),
    )
    if axis is None:
        return peers
    assert slots is not None
    place = jax.lax.axis_index(axis)
    peers = dataclasses.replace(peers, row=peers.row + place * squared_mmd.shape[0])
    everywhere, slot = jax.lax.all_gather((peers, slots[row]), axis)  # (K, Q, ...)
    # On equal distance the learnware that came first, as on one device.
    least = everywhere.squared_mmd.min(axis=0)
    slot = jnp.where(everywhere.squared_mmd == least, slot, jnp.iinfo(jnp.int32).max)
    return _chosen(everywhere, slot.argmin(axis=0))


def _chosen(peers: Peers, device: Array) -> Peers:
    """Return for each user the candidate of one device, from leaves (K, Q, ...)."""
    users = jnp.arange(device.shape[0])
    return jax.tree.map(lambda leaf: leaf[device, users], peers)


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


def _same_names(allowed: Array) -> Array:
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


def _shared_similarity(cross: Array, own_gram: Array, user_gram: Array, chosen: Array) -> Array:
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
    vectors = _slice(market.class_vectors, start, chunk)
    at_origin = _products(vectors, market.origin[None])
    own = _products(vectors, inputs) + at_origin
    own += _slice(market.class_bias, start, chunk)[..., None]
    if lifted is None:
        return own
    probed = _products(_slice(market.probe_weights, start, chunk), lifted)
    probed += _slice(market.probe_bias, start, chunk)[..., None]
    return jnp.where(_slice(market.has_probe, start, chunk)[:, None, None] > 0, probed, own)


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
    """Return `_transfer` (L, Q) of representations, for users of other class names where known.

    Args:
        market: with representations.
        start: first row of the chunk.
        chunk: L.
        inputs: (Q n, d) users' points.
        users: Q of them.
        outputs: (L, Q), `_transfer` of the outputs: it stays for users whose names are known, and
            stands in, raised by `IMPUTED_HIDDEN`, where there is no representation.
    """
    batch, n, _ = users.points.shape
    maps = _slice(market.hidden_maps, start, chunk)
    hidden = _products(maps, inputs).reshape(chunk, -1, batch, n).transpose(0, 2, 1, 3)
    known = (maps != 0).any(axis=(1, 2))[:, None]
    deeper = jnp.where(known, _transfer(hidden, users, HIDDEN_RIDGE), outputs + IMPUTED_HIDDEN)
    return jnp.where(users.by_name, outputs, deeper)


def _transfer(inputs: Array, users: UserArrays, ridge: float) -> Array:
    """Return how much of the labels a ridge regression on the inputs explains, (L, Q) up to 1.

    Every example is left out in turn, in closed form. Inputs are centred and brought to a total
    of one an example, so that neither scale nor further random outputs help.

    Args:
        inputs: (L, Q, C, n), what C outputs or hidden directions say of n examples.
        users: their labels.
        ridge: penalty.
    """
    seen = (users.labels >= 0)[None, :, None, :]
    count = jnp.maximum(seen.sum(axis=-1), 1)[..., 0]  # (1, Q)
    x = _centred(inputs, seen, axis=3)
    total = jnp.square(x).sum(axis=(2, 3)) / count
    x = _divided(x, jnp.sqrt(total)[..., None, None])
    y = (users.labels[:, None, :] == jnp.arange(users.class_mask.shape[1])[None, :, None]) * 1.0
    y = _centred(y, seen[0], axis=2)[None]  # (1, Q, k, n)
    share = count[..., None, None]
    matrix = jnp.einsum("lqcn,lqdn->lqcd", x, x, precision="highest") / share
    inverse = _inverse(matrix + ridge * jnp.eye(x.shape[2], dtype=x.dtype))
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
