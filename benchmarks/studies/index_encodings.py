"""Encodings of learnwares and users as vectors, which `index_codes` compares for an index.

An encoding is made from a market, its rows (numpy arrays by the names of the fields of the market)
and a seed. The inner product of the vectors of a user and a learnware stands for their closeness,
the cosine of their mean embeddings, or for the similarity of their classes:

    eigenfunctions  the first part of the codes of the library (`jaxspec.index.encoder`)
    random Fourier  of the Gaussian kernel, as unit vectors (Rahimi and Recht, NIPS 2007)
    Nystrom         whitened values at as many anchors as there are floats, as unit vectors
    mean point      by distance, with which closeness falls where distributions are only shifted
    MUVERA          fixed dimensional encodings of point sets (Dhulipala et al., arXiv 2405.19504),
                    without the final projection; settings chosen on another draw of the market
    name sketch     the second part of the codes of the library
    mean class      the mean of the class vectors, each brought to length one since their own mean
                    is zero

The inner products that MUVERA approximates are largest for the nearest points: a point x, from the
mean of the market and in units of the root mean square of its points, becomes (x, 1/2) for a user
and (x, 1 - |x|^2) for a learnware. Unit vectors x / |x|, its usual case, lose the size of a shift
and did worse. All points count alike, as all weights of the made market do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import jaxspec as js
from jaxspec.index.codes import Codes
from jaxspec.index.encoder import EMBEDDING, code_parts, encode_users
from jaxspec.kernels import whitening
from jaxspec.market import witness
from jaxspec.scoring import UserArrays

__all__ = ["BY_CLASSES", "BY_CLOSENESS", "Encoding", "Rows", "lift_of"]

Array = Any
Rows = dict[str, Array]  # {field: (b, ...)} of the arrays of a market
DRAWS = 3  # of random encodings


class Encoding(NamedTuple):
    """How learnwares and users become vectors."""

    own: Callable[[Rows], Array]  # b learnwares: (b, F)
    asked: Callable[[UserArrays], Array]  # Q users: (Q, F)


def ours(market: js.Market, rows: Rows, seed: int, *, piece: slice) -> Encoding:
    """Return a part of the codes of the library: eigenfunctions, or the sketch of class names."""
    encoder = Codes(market).encoder
    return Encoding(
        lambda block: jnp.concatenate(code_parts(encoder, market.kernel, block), 1)[:, piece],
        lambda users: jnp.concatenate(encode_users(encoder, market.arrays, users), 1)[:, piece],
    )


def fourier(market: js.Market, rows: Rows, seed: int) -> Encoding:
    """Return random Fourier features of the Gaussian kernel."""
    shape = (market.dimension, EMBEDDING // 2)
    draw = np.random.default_rng(seed).normal(size=shape) / float(market.kernel.bandwidth)
    frequencies = draw.astype(np.float32)

    def embed(points: Array, weights: Array) -> Array:
        phases = points @ frequencies
        waves = jnp.concatenate([jnp.cos(phases), jnp.sin(phases)], axis=-1)
        return unit(jnp.einsum("bm,bmf->bf", weights, waves))

    return of_points(embed)


def nystrom(market: js.Market, rows: Rows, seed: int) -> Encoding:
    """Return whitened values of the embeddings at points of the market that the seed chooses."""
    used = np.argwhere(rows["weights"] != 0)
    at = used[np.random.default_rng(seed).choice(len(used), EMBEDDING, replace=False)]
    anchors = rows["points"][at[:, 0], at[:, 1]]
    kernel, white = market.kernel, np.asarray(whitening(market.kernel, anchors))

    def embed(points: Array, weights: Array) -> Array:
        return unit(witness(kernel, anchors, points, weights, jnp.ones(len(points))) @ white)

    return of_points(embed)


def mean_point(market: js.Market, rows: Rows, seed: int) -> Encoding:
    """Return mean points, with inner products that fall with the squared distance."""
    lift = lift_of(rows)

    def mean(points: Array, weights: Array) -> Array:
        return jnp.einsum("bm,bmd->bd", weights, points) / weights.sum(axis=1, keepdims=True)

    return Encoding(
        lambda block: lift(mean(block["points"], block["weights"]))[1],
        lambda users: lift(mean(users.points, users.weights))[0],
    )


def muvera(
    market: js.Market, rows: Rows, seed: int, *, bits: int, width: int, repetitions: int
) -> Encoding:
    """Return fixed dimensional encodings: repetitions x 2^bits x width numbers.

    `bits` random planes divide the points into partitions; the vector of a partition is projected
    to `width` numbers by random signs; every repetition is drawn anew. For a user, the vector is
    the sum of its points in the partition; for a learnware, their mean, or the point that the
    fewest planes separate from the partition if it has none there.
    """
    rng, lift, d = np.random.default_rng(seed), lift_of(rows), market.dimension
    planes = rng.normal(size=(repetitions, d, bits)).astype(np.float32)
    signs = rng.choice(np.array([-1, 1], np.float32), (repetitions, d + 1, width))
    signs /= np.sqrt(width * repetitions)
    partitions = np.arange(2**bits)
    differ = (partitions[:, None] ^ partitions)[..., None] >> np.arange(bits) & 1
    hamming = jnp.asarray(differ.sum(axis=2))

    def places(vectors: Array) -> Array:
        sides = jnp.einsum("bmd,rdk->rbmk", vectors[..., :d], planes) > 0
        return (sides * 2 ** np.arange(bits)).sum(axis=3)

    def projected(held: Array) -> Array:
        return jnp.einsum("rbpd,rdw->brpw", held, signs).reshape(held.shape[1], -1)

    def own(block: Rows) -> Array:
        vectors, used = lift(block["points"])[1], block["weights"] != 0
        at = places(vectors)
        inside = (at[..., None] == partitions) & used[..., None]  # (r, b, m, p)
        count = inside.sum(axis=2)[..., None]
        means = jnp.einsum("rbmp,bmd->rbpd", inside, vectors) / jnp.maximum(count, 1)
        nearest = jnp.where(used[..., None], hamming[at], bits + 1).argmin(axis=2)
        fill = jnp.take_along_axis(vectors[None], nearest[..., None], axis=2)
        return projected(jnp.where(count > 0, means, fill))

    def asked(users: UserArrays) -> Array:
        vectors = lift(users.points)[0]
        inside = (places(vectors)[..., None] == partitions) * users.weights[..., None]
        return projected(jnp.einsum("rbmp,bmd->rbpd", inside, vectors))

    return Encoding(own, asked)


def mean_class(market: js.Market, rows: Rows, seed: int) -> Encoding:
    """Return the mean of the class vectors, each of length one."""

    def mean(vectors: Array, used: Array) -> Array:
        total = jnp.where(used[..., None], unit(vectors), 0.0).sum(axis=1)
        return total / used.sum(axis=1, keepdims=True)

    return Encoding(
        lambda block: mean(block["class_vectors"], block["class_ids"] >= 0),
        lambda users: mean(users.class_vectors, users.class_mask),
    )


def of_points(embed: Callable[[Array, Array], Array]) -> Encoding:
    """Return an encoding that treats the points of learnwares and users alike."""
    return Encoding(
        lambda block: embed(block["points"], block["weights"]),
        lambda users: embed(users.points, users.weights),
    )


def unit(vectors: Array) -> Array:
    """Return vectors of length one; zero stays zero."""
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def lift_of(rows: Rows) -> Callable[[Array], tuple[Array, Array]]:
    """Return a function of points that gives their vectors for users and for learnwares."""
    points = rows["points"][rows["weights"] != 0]
    centre = points.mean(axis=0)
    size = np.sqrt(np.square(points - centre).sum(axis=1).mean())

    def lift(points: Array) -> tuple[Array, Array]:
        x = (points - centre) / size
        square = jnp.square(x).sum(axis=-1, keepdims=True)
        return (
            jnp.concatenate([x, jnp.full_like(square, 0.5)], axis=-1),
            jnp.concatenate([x, 1.0 - square], axis=-1),
        )

    return lift


BY_CLOSENESS: dict[str, list[Callable[..., Encoding]]] = {
    "eigenfunctions": [partial(ours, piece=slice(EMBEDDING))],
    "random Fourier": [fourier] * DRAWS,
    "Nystrom": [nystrom] * DRAWS,
    "mean point": [mean_point],
    "MUVERA 224": [partial(muvera, bits=1, width=16, repetitions=7)] * DRAWS,
    "MUVERA 2,048": [partial(muvera, bits=1, width=32, repetitions=32)] * DRAWS,
}
BY_CLASSES: dict[str, Callable[..., Encoding]] = {
    "name sketch": partial(ours, piece=slice(EMBEDDING, None)),
    "mean class": mean_class,
}
