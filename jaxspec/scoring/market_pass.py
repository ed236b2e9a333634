"""The pass over a market: pure, jittable, one compilation per shape.

`score_rows` gathers the evidence that a score needs, on one device or, inside `shard_map`, on a
device's share of the market, and applies the score. `score_arrays` is the same for pipelines:
under `jit`, `vmap`, `grad` in the user's features, and `shard_map`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.kernels import Kernel, distances, one_by_one, square_norm
from jaxspec.market import Calibration, MarketArrays, following, in_float32
from jaxspec.scoring.class_pass import compare_classes, has_probes, has_representations
from jaxspec.scoring.embedding_pass import (
    differentiable_products,
    direct_products,
    embedding_products,
    far_out,
    pack_columns,
)
from jaxspec.scoring.methods import Score, as_score, evaluate, needs_peers
from jaxspec.scoring.pallas_pass import fused_for, fused_products
from jaxspec.scoring.peers import best_agreement, find_peers, is_peer
from jaxspec.scoring.types import ClassEvidence, Evidence, Peers, Scores, UserArrays

if TYPE_CHECKING:
    from collections.abc import Hashable

    from jaxtyping import Array, Bool, Float, Int

__all__ = [
    "Embedded",
    "embed",
    "gather",
    "score_arrays",
    "score_devices",
    "score_rows",
    "summarise_classes",
]


class Embedded(NamedTuple):
    """Comparisons of embeddings: squared MMD and cosine of the angle."""

    squared_mmd: Float[Array, "rows Q"]
    closeness: Float[Array, "rows Q"]


def score_arrays(
    market: MarketArrays, users: UserArrays, *, method: str | Score = "likelihood"
) -> Float[Array, "Q rows"]:
    """Return the scores of all rows of a market for one user or a batch of users.

    Pure and traceable: it works under `jit`, `vmap` over users, derivatives in the users' points,
    and `shard_map` over users with the market's arrays on every device. A batch of users in one
    call takes less time than `vmap`.

    Args:
        market: `Market.arrays`.
        users: `jaxspec.user_arrays(market, users)`.
        method: the name of a score, or a score.

    Returns:
        (Q, rows), or (rows,) for a single user without the axis Q. Row `market.rows[i]` belongs to
        `market.ids[i]`; rows without a learnware get minus infinity.

    Raises:
        TypeError, ValueError: not a score, or other arrays than these; the message names which.
    """
    score = as_score("method", method)
    for name, value, wanted in (("market", market, MarketArrays), ("users", users, UserArrays)):
        if not isinstance(value, wanted):
            raise TypeError(
                f"{name}: expected {wanted.__name__} (see `Market.arrays` and `user_arrays`), "
                f"got a {type(value).__name__}"
            )
    if market.alive is None or market.length is None or market.calibration is None:
        raise ValueError(
            "market: expected `Market.arrays`, got arrays without alive, length or calibration"
        )
    single = users.points.ndim == 2
    if single:
        users = jax.tree.map(lambda leaf: leaf[None], users)
    with in_float32():
        found = _score_arrays(market, users, score=score)
    return found[0] if single else found


@partial(jax.jit, static_argnames="score")
def _score_arrays(market: MarketArrays, users: UserArrays, *, score: Score) -> Array:
    assert market.alive is not None
    found = score_devices(market, users, score=score)
    return jnp.where(market.alive, found.scores, -jnp.inf)


def score_devices(
    market: MarketArrays, users: UserArrays, *, score: Score, axis: Hashable | None = None
) -> Scores:
    """Score the slots of a market in use for Q users.

    Args:
        market: `Market.arrays`; inside `shard_map` one device's rows of them.
        users: Q stacked users.
        score: which score.
        axis: name (or names) of the mesh's axes inside `shard_map`, else None.
    """
    assert market.length is not None and market.alive is not None
    if axis is None:
        return score_rows(market, users, market.length, market.alive, score=score)
    device, devices = jax.lax.axis_index(axis), jax.lax.axis_size(axis)
    length = -(-(market.length - device) // devices)  # row r of device k is slot r K + k
    slots = jnp.arange(market.alive.shape[0]) * devices + device
    return score_rows(market, users, length, market.alive, slots, score=score, axis=axis)


def score_rows(
    market: MarketArrays,
    users: UserArrays,
    length: Int[Array, ""],
    alive: Bool[Array, " rows"],
    slots: Int[Array, " rows"] | None = None,
    *,
    score: Score,
    axis: Hashable | None = None,
    by_name: bool | None = None,
) -> Scores:
    """Score the first `length` rows, part of a market's or of one device's, in any order.

    Args:
        market: arrays of these rows, with the calibration of the whole market; every device has
            as many rows.
        users: Q stacked users.
        length: this device's own; rows from here on are not computed.
        alive: which rows hold a learnware.
        slots: of the rows, to tell which of equals came first; with an axis only. The rows of one
            device have to be in this order.
        score: which score.
        axis: as in `score_devices`.
        by_name: see `compare_classes`.
    """
    assert market.calibration is not None
    embedded = embed(market, users, length)
    peers = best = None
    if needs_peers(score) and has_probes(market):
        peers = find_peers(
            market, users, embedded.squared_mmd, alive, market.calibration, slots, axis=axis
        )
    classes = compare_classes(market, users, length, score.needs, peers, by_name=by_name)
    if peers is not None:
        best = best_agreement(classes.agreement, peers, market.has_probe, alive, axis=axis)
    maps = market.hidden_maps
    evidence = gather(
        embedded,
        classes,
        users,
        market.kernel,
        market.calibration,
        has_probe=market.has_probe > 0,
        has_representation=(maps != 0).any(axis=(1, 2)) if has_representations(market) else None,
        peers=peers,
        best=best,
        axis=axis,
    )
    return Scores(
        evaluate(score, evidence).T,
        embedded.squared_mmd.T,
        classes.class_similarity.transpose(1, 0, 2),
        classes.class_map.transpose(1, 0, 2),
    )


def embed(market: MarketArrays, users: UserArrays, length: Int[Array, ""]) -> Embedded:
    """Compare the users' embeddings with those of the first `length` rows."""
    stored = (market.points, market.scales, market.square_norms, market.weights)
    own = (users.points, users.weights, users.counts)
    products = _products(market.kernel, *stored, *own, length)
    user_terms = _user_self_terms(market.kernel, users)
    norms = jnp.sqrt(jnp.maximum(market.self_terms[:, None] * user_terms[None, :], 1e-30))
    squared = market.self_terms[:, None] + user_terms[None, :] - 2.0 * products
    return Embedded(squared, products / norms)


@jax.custom_jvp
def _products(
    kernel: Kernel,
    points: Array,
    scales: Array,
    square_norms: Array,
    weights: Array,
    user_points: Array,
    user_weights: Array,
    counts: Array,
    length: Array,
) -> Float[Array, "rows Q"]:
    """Return <Phi_l, Phi_T> for every row and user, by the fastest form for the device."""
    stored = (points, scales, square_norms, weights)
    far = jnp.bool_(False)
    if kernel.metric == "sqeuclidean":
        far = far_out(kernel, square_norms, user_points)
    near_length = jnp.where(far, 0, length)  # one of the two forms computes nothing
    if fused_for(kernel):
        own = (user_points, user_weights, counts)
        products = fused_products(kernel, *stored, *own, near_length)
        products = jnp.where(far, 0.0, products)
    else:
        columns, shares = pack_columns(user_points, user_weights, counts)
        products = embedding_products(kernel, *stored, columns, shares, counts.sum(), near_length)
    if kernel.metric != "sqeuclidean":
        return products
    far_length = jnp.where(far, length, 0)
    direct = direct_products(kernel, points, scales, weights, user_points, user_weights, far_length)
    return products + direct


@_products.defjvp
def _products_derivative(primals: Any, tangents: Any) -> tuple[Array, Array]:
    def products(kernel: Kernel, *arguments: Array) -> Array:
        points, scales, square_norms, weights, *user, length = arguments
        columns, shares = pack_columns(*user)
        return differentiable_products(
            kernel, points, scales, square_norms, weights, columns, shares, length
        )

    result, tangent = jax.jvp(products, primals, tangents)
    return result, tangent


def _user_self_terms(kernel: Kernel, users: UserArrays) -> Float[Array, " Q"]:
    """Return |Phi_T|^2."""
    return one_by_one(lambda user: square_norm(kernel, *user), (users.points, users.weights))


def summarise_classes(
    classes: ClassEvidence, users: UserArrays
) -> tuple[Float[Array, "rows Q"], Float[Array, "rows Q"]]:
    """Return the mean similarity over the user's classes, and over those that both have."""
    sizes = users.class_mask.sum(axis=1)[None, :]
    similarity = classes.class_similarity.sum(axis=2) / sizes
    matched = classes.class_map >= 0
    shared = jnp.where(matched, classes.class_similarity, 0.0).sum(axis=2)
    return similarity, shared / jnp.maximum(matched.sum(axis=2), 1)


def gather(
    embedded: Embedded,
    classes: ClassEvidence,
    users: UserArrays,
    kernel: Kernel,
    calibration: Calibration,
    *,
    has_probe: Bool[Array, " rows"],
    has_representation: Bool[Array, " rows"] | None,
    peers: Peers | None,
    best: Float[Array, " Q"] | None,
    axis: Hashable | None = None,
    similarity: tuple[Float[Array, "rows Q"], Float[Array, "rows Q"]] | None = None,
) -> Evidence:
    """Return the evidence about rows, from the parts of a pass.

    Args:
        embedded: of `embed`.
        classes: of `compare_classes`.
        users: Q stacked users.
        kernel: of the space.
        calibration: of the whole market.
        has_probe: of the rows.
        has_representation: of the rows, or None where the market has no representation at all.
        peers: of the users, or None where nothing needs them or no learnware has a probe proxy.
        best: of `best_agreement`, where there are peers.
        axis: as in `score_devices`.
        similarity: what `summarise_classes` gives, where that is known already.
    """
    batch = users.counts.shape[0]
    similar, shared = summarise_classes(classes, users) if similarity is None else similarity
    agreement, reliability = classes.agreement, jnp.zeros(batch, jnp.float32)
    known = has_probe[:, None]
    if peers is not None and best is not None:
        # A peer agrees with itself whatever it is worth: it gets the best of the others.
        own = is_peer(peers, agreement.shape[0], axis) & known
        agreement = jnp.where(own, best[None, :], agreement)
        reliability = peers.reliability
    if has_representation is None:  # nobody is at a disadvantage for publishing none
        hidden = classes.explained_by_outputs
        represented = jnp.ones_like(has_probe[:, None])
    else:
        hidden, represented = classes.explained_by_hidden, has_representation[:, None]
    return Evidence(
        squared_mmd=embedded.squared_mmd,
        closeness=embedded.closeness,
        similarity=similar,
        shared_similarity=shared,
        share=classes.share,
        label_probability=classes.label_probability,
        agreement=agreement,
        explained_by_outputs=classes.explained_by_outputs,
        explained_by_hidden=hidden,
        has_probe=known,
        has_representation=represented,
        reliability=reliability[None, :],
        mean_closeness=_mean_closeness(kernel, users, calibration)[None, :],
        by_name=users.by_name[None, :],
        classes=users.class_mask.sum(axis=1)[None, :],
        slope=calibration.slope,
        following=following(calibration),
        probed=calibration.probed,
    )


def _mean_closeness(
    kernel: Kernel, users: UserArrays, calibration: Calibration
) -> Float[Array, " Q"]:
    """Return the mean closeness of each user with the market's sample."""
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
