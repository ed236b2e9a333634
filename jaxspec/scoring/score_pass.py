"""The pass over a market: pure, jittable, one compilation a shape. `jaxspec.matching` calls it.

`embed` compares embeddings, `comparison.compare_classes` class vectors and proxies, and `combine`
makes scores of the parts; `score` is all of it on one device or, inside `shard_map`, on a device's
share of the market, `score_rows` on some rows. Larger is better:

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

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.kernels import Kernel, distances, one_by_one, square_norm
from jaxspec.market.arrays import MarketArrays
from jaxspec.market.calibration import Calibration, following
from jaxspec.scoring.class_pass import compare_classes, has_probes
from jaxspec.scoring.embedding_pass import embedding_products, pack_columns
from jaxspec.scoring.pallas_pass import fused_for, fused_products
from jaxspec.scoring.peers import best_agreement, find_peers, is_peer
from jaxspec.scoring.types import Embedded, Parts, Peers, Scores, UserArrays

__all__ = [
    "METHODS",
    "NEED_LABELS",
    "combine",
    "embed",
    "score",
    "score_market",
    "score_rows",
]

Array = Any
METHODS = ("rkme", "classwise", "likelihood", "transfer")
NEED_LABELS = ("likelihood", "transfer")

CLOSENESS = {"classwise": 2.0, "transfer": 2.0}  # weight of cos(Phi_T, Phi_l)
PRIOR = 0.6  # weight of agreement and closeness beside the probability; flat from 0.5 to 0.7
# What a probe would have shown, by regression on six markets. It stands in for learnwares without
# a probe proxy; similarity is the mean over the classes that they share with the user, and the
# first is for the examples of these (correlation 0.88 and 0.63).
IMPUTED_CHANCE = {"similarity": 0.57, "closeness": 1.14, "constant": -0.61}
IMPUTED_AGREEMENT = {"similarity": 0.25, "closeness": 1.36, "constant": -1.04}


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
    by_name: bool | None = None,
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
        by_name: see `compare_classes`.
    """
    embedded = embed(market, users, length)
    peers = best = None
    if method == "likelihood" and has_probes(market):
        peers = find_peers(market, users, embedded, alive, calibration, slots, axis=axis)
    parts = compare_classes(market, users, length, method, peers, by_name=by_name)
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


def _user_self_terms(market: MarketArrays, users: UserArrays) -> Array:
    """Return |Phi_T|^2, (Q,)."""
    return one_by_one(lambda user: square_norm(market.kernel, *user), (users.points, users.weights))


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
            agreed = jnp.where(is_peer(peers, parts, axis) & known, best, agreed)
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
