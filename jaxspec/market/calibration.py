"""The calibration of a market: how much the closeness of two distributions tells about models.

Nearness of embeddings is a good guide among models that work on the public features, and a poor
one among models that share nothing with these features. A market can find out which kind it holds:
a sample of its learnwares act as pseudo-users, and the agreement of the others' behaviour with
theirs, in their region of the landmarks, is regressed on closeness. The scores use the slope of
this regression. It needs no data and runs no model.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxspec.base import register
from jaxspec.kernels import Kernel, kernel_values

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = ["SAMPLE", "Calibration", "agreement", "calibrate", "chances", "following", "region"]

SAMPLE = 64  # learnwares that serve as pseudo-users
PRIOR_SLOPE, PRIOR_WEIGHT = 0.7, 0.1  # for small markets; 22 learnwares have a weight of about 1
# Measured slopes are at most 1.7. A slope beyond twice that would be the doing of a few learnwares.
MAX_SLOPE = 3.5
TEMPERATURE = 2.0  # of logits with root mean square one
SMOOTHING = 1e-4  # added to every cell of a joint distribution


@register
@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a market has found out about itself, from S sampled learnwares.

    Attributes:
        slope: scalar, nats of agreement per unit of closeness.
        landmark_mean: (D,) the sample's mean witness at the landmarks.
        points: (S, m, d) of the sample, relative to the market's origin.
        weights: (S, m).
        self_terms: (S,).
        used: (S,) bool, false in the padding.
        probed: scalar bool, whether most learnwares of the market publish a probe proxy, so that
            one without has withheld it. A few that publish one must not lower all others.
    """

    slope: Array
    landmark_mean: Array
    points: Array
    weights: Array
    self_terms: Array
    used: Array
    probed: Array


def following(calibration: Calibration) -> Array:
    """Return how far the market's models follow the public features, from zero to one.

    It is one where nothing is known, at the prior slope and above. Slopes were 0.3 to 0.6 for small
    nets and 0.9 to 1.7 for heads.
    """
    return jnp.minimum(jnp.square(calibration.slope / PRIOR_SLOPE), 1.0)


def chances(logits: Array, valid: Array) -> Array:
    """Return class probabilities of logits brought to root mean square one, (..., C, n).

    Args:
        logits: (..., C, n).
        valid: (..., C, n) bool, or what broadcasts to it; zero where false.
    """
    valid = jnp.broadcast_to(valid, logits.shape)
    classes = jnp.maximum(valid.sum(axis=-2, keepdims=True), 1)
    values = jnp.where(valid, logits, 0.0)
    values = jnp.where(valid, values - values.sum(axis=-2, keepdims=True) / classes, 0.0)
    total = jnp.square(values).sum(axis=(-2, -1), keepdims=True)
    total = total / jnp.maximum(valid.sum(axis=(-2, -1), keepdims=True), 1)
    scale = jnp.where(total > 0, jax.lax.rsqrt(jnp.where(total > 0, total, 1.0)), 0.0)
    values = jnp.where(valid, TEMPERATURE * scale * values, -jnp.inf)
    top = values.max(axis=-2, keepdims=True)
    powers = jnp.exp(values - jnp.where(jnp.isfinite(top), top, 0.0))
    return powers / jnp.maximum(powers.sum(axis=-2, keepdims=True), 1e-30)


def witness(
    kernel: Kernel, landmarks: Array, points: Array, weights: Array, self_terms: Array
) -> Array:
    """Return the unit embedding's values at the landmarks: (..., m, d), (..., m) -> (..., D)."""
    flat = points.reshape(-1, points.shape[-1])
    values = kernel_values(kernel, flat, landmarks)
    values = values.reshape(*weights.shape, -1)
    raw = jnp.einsum("...md,...m->...d", values, weights, precision="highest")
    return raw / jnp.sqrt(jnp.maximum(self_terms, 1e-12))[..., None]


def region(values: Array, mean: Array) -> Array:
    """Return how much each landmark counts for an embedding: (..., D), sum one.

    Args:
        values: (..., D) from `witness`.
        mean: (D,) the market's mean of these; landmarks at which an embedding is not above it
            do not count.
    """
    above = jnp.maximum(values - mean, 0.0)
    return above / jnp.maximum(above.sum(axis=-1, keepdims=True), 1e-30)


def agreement(own: Array, valid: Array, peers: Array, peers_valid: Array, regions: Array) -> Array:
    """Return the mutual information, in nats, of models' classes with peers': (L, Q).

    It asks for no class names, so a model of another label space can agree.

    Args:
        own: (L, C, D) class probabilities at the landmarks.
        valid: (L, C) bool.
        peers: (Q, B, D) likewise.
        peers_valid: (Q, B) bool.
        regions: (Q, D) from `region`.
    """
    models, classes, size = own.shape
    users, others, _ = peers.shape
    weighted = (peers * regions[:, None, :]).reshape(users * others, size)
    joint = jnp.matmul(own.reshape(models * classes, size), weighted.T, precision="highest")
    joint = joint.reshape(models, classes, users, others).transpose(0, 2, 1, 3)
    cells = valid[:, None, :, None] & peers_valid[None, :, None, :]
    joint = jnp.where(cells, joint + SMOOTHING, 0.0)
    joint = joint / jnp.maximum(joint.sum(axis=(2, 3), keepdims=True), 1e-30)
    apart = joint.sum(axis=3, keepdims=True) * joint.sum(axis=2, keepdims=True)
    ratio = jnp.where(cells, joint, 1.0) / jnp.where(cells, jnp.maximum(apart, 1e-30), 1.0)
    return (joint * jnp.log(ratio)).sum(axis=(2, 3))


@jax.jit
def calibrate(
    kernel: Kernel,
    landmarks: Array,
    points: Array,
    weights: Array,
    self_terms: Array,
    chance: Array,
    valid: Array,
    used: Array,
    probed: Array,
) -> Calibration:
    """Calibrate a market from a padded sample of S of its learnwares.

    Args:
        kernel: the market's.
        landmarks: (D, d); with D = 0 the slope is the prior's.
        points: (S, m, d) float32, relative to the origin.
        weights: (S, m).
        self_terms: (S,).
        chance: (S, C, D) class probabilities at the landmarks.
        valid: (S, C) bool.
        used: (S,) bool.
        probed: scalar bool, whether most learnwares of the market publish a probe proxy.
    """
    sample, m, d = points.shape
    if not landmarks.shape[0]:
        slope, mean = jnp.float32(PRIOR_SLOPE), jnp.zeros(0, jnp.float32)
        return Calibration(slope, mean, points, weights, self_terms, used, probed)
    values = witness(kernel, landmarks, points, weights, self_terms)
    share = used.astype(points.dtype) / jnp.maximum(used.sum(), 1)
    mean = jnp.matmul(share, values, precision="highest")
    regions = region(values, mean)
    behaviour = agreement(chance, valid, chance, valid, regions).T  # (pseudo-user, learnware)

    def products(one: tuple[Array, Array]) -> Array:
        gram = kernel_values(kernel, points.reshape(-1, d), one[0])
        product = jnp.matmul(gram, one[1], precision="highest").reshape(sample, m)
        return (product * weights).sum(axis=1)

    near = jax.lax.map(products, (points, weights))
    near = near / jnp.sqrt(jnp.maximum(self_terms[:, None] * self_terms, 1e-30))
    pairs = used[:, None] & used & ~jnp.eye(sample, dtype=bool)

    def centred(table: Array) -> Array:
        mean = jnp.where(pairs, table, 0.0).sum(axis=1) / jnp.maximum(pairs.sum(axis=1), 1)
        return jnp.where(pairs, table - mean[:, None], 0.0)

    near, behaviour = centred(near), centred(behaviour)
    top = (near * behaviour).sum() + PRIOR_WEIGHT * PRIOR_SLOPE
    slope = jnp.clip(top / (jnp.square(near).sum() + PRIOR_WEIGHT), 0.0, MAX_SLOPE)
    return Calibration(slope, mean, points, weights, self_terms, used, probed)
