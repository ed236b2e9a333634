"""Codes of fixed size whose inner products approximate the parts of a score.

A learnware's code has two pieces. The first is its unit mean embedding in the top eigenfunctions
of the market: values at anchors (points of the market's own reduced sets), whitened, projected on
the principal directions of a sample of learnwares; inner products approximate the embeddings'
angle. The second is a count sketch of its classes: every class vector of length one (or, in a
market with a probe, every class of the probe proxy in the principal directions of the landmarks)
is added at places and with signs that the class's name draws, so that the inner product with a
user's sketch is the mean similarity over the classes of the same name, plus noise of other names
of about one over the root of the sketch's size. Charikar, Chen and Farach-Colton, "Finding
frequent items in data streams" (2002), for the sketch; `benchmarks/index.py` compares pieces.

Codes are kept in eight bits: a piece of a learnware on its own scale, the first one less its mean
over the market. For a processor what a user asks is split in two such parts, so that it multiplies
integers.
"""

from __future__ import annotations

import dataclasses
import hashlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.base import bucket, integer_parts, integer_sum, on_processor, register
from jaxspec.kernels import Kernel, distances, one_by_one, square_norm
from jaxspec.market.arrays import MarketArrays, decode_points
from jaxspec.market.calibration import witness
from jaxspec.specify.probe_proxy import whitening

__all__ = [
    "ANCHORS",
    "EMBEDDING",
    "SKETCH",
    "Coded",
    "Encoder",
    "encode_rows",
    "encode_users",
    "fit_encoder",
    "inner_products",
    "pieces_of",
]

Array = Any
ANCHORS = 512
EMBEDDING = 96  # numbers of the first piece
SKETCH = 128  # of the second
ASKED_PARTS = 2  # of eight bits, of what a user asks
TOGETHER = 8  # users: a product with more columns than theirs is slower
BEHAVIOUR = 64  # principal directions of the landmarks that the sketch takes


@register
@dataclasses.dataclass(frozen=True)
class Encoder:
    """What turns specifications into codes; fitted to a market, used for its users too.

    Attributes:
        anchors: (A, d), relative to the market's origin.
        projection: (A, EMBEDDING) from values at the anchors to the first piece.
        mean: (EMBEDDING,) the first piece's, over the market.
        own: (D, BEHAVIOUR) from probe weights to what is sketched, D = 0 without a probe.
        asked: (D, BEHAVIOUR) the same for a user's mean lifted features of a class.
        places: (names, width) int32 where the sketch puts the numbers of a class of that name.
        signs: (names, width).
    """

    anchors: Array
    projection: Array
    mean: Array
    own: Array
    asked: Array
    places: Array
    signs: Array


@register
@dataclasses.dataclass(frozen=True)
class Coded:
    """Codes of b learnwares as they are kept: 232 bytes each.

    Attributes:
        values: (b, EMBEDDING + SKETCH) int8.
        scales: (b, 2) what both pieces' values are multiplied by.
    """

    values: Array
    scales: Array


def name_draws(name: str, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return places in the sketch and signs, (width,), that follow from a class's name alone."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    rng = np.random.default_rng(seed)
    places = np.concatenate([rng.permutation(SKETCH) for _ in range(-(-width // SKETCH))])[:width]
    return places.astype(np.int32), rng.choice(np.array([-1, 1], np.float32), width)


def name_tables(names: dict[str, int], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `name_draws` of all names by number, and room for more."""
    rows = bucket(len(names) + 1)
    places, signs = np.zeros((rows, width), np.int32), np.zeros((rows, width), np.float32)
    for name, number in names.items():
        places[number], signs[number] = name_draws(name, width)
    return places, signs


def fit_encoder(
    kernel: Kernel,
    points: np.ndarray,
    weights: np.ndarray,
    self_terms: np.ndarray,
    landmarks: np.ndarray,
    anchors: np.ndarray,
    names: dict[str, int],
) -> Encoder:
    """Fit an encoder to a sample of a market.

    Args:
        kernel: the market's.
        points: (S, m, d) of the sample, float32, relative to the origin.
        weights: (S, m).
        self_terms: (S,).
        landmarks: (D, d) of the probe.
        anchors: (A, d) some of the market's points, relative to the origin.
        names: numbers of class names.
    """
    white = np.asarray(whitening(kernel, anchors))
    values = np.asarray(witness(kernel, anchors, points, weights, self_terms)) @ white
    # Not centred: inner products are to be kept, not distances from a mean.
    _, vectors = np.linalg.eigh(values.T @ values)
    directions = vectors[:, ::-1][:, :EMBEDDING]
    projection = np.zeros((len(anchors), EMBEDDING), np.float32)
    projection[:, : directions.shape[1]] = white @ directions
    mean = np.zeros(EMBEDDING, np.float32)
    mean[: directions.shape[1]] = (values @ directions).mean(axis=0)
    own = asked = np.zeros((0, BEHAVIOUR), np.float32)
    width = points.shape[2]
    if len(landmarks):
        own, asked = _behaviour_maps(kernel, landmarks)
        width = BEHAVIOUR
    places, signs = name_tables(names, width)
    return Encoder(anchors, projection, mean, own, asked, places, signs)


def _behaviour_maps(kernel: Kernel, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return maps (D, BEHAVIOUR) of proxies and of users, with inner products kept.

    Lifted landmarks have covariance E diag(l) E^T; E l^(1/2) of a proxy's weights are its logits'
    components by size, and the user's mean lifted features are divided by what they are times.
    """
    gram = kernel.profile(distances(kernel.metric, landmarks, landmarks))
    white = whitening(kernel, landmarks)
    lifted = np.asarray(jnp.matmul(gram, white, precision="highest"), np.float64)
    values, vectors = np.linalg.eigh(lifted.T @ lifted / len(lifted))
    order = np.argsort(-values)[:BEHAVIOUR]
    size = np.sqrt(np.maximum(values[order], 1e-12))
    own, asked = np.zeros((2, len(landmarks), BEHAVIOUR), np.float32)
    own[:, : len(order)] = vectors[:, order] * size
    asked[:, : len(order)] = vectors[:, order] / size
    return own, asked


def _sketched(encoder: Encoder, vectors: Array, numbers: Array) -> Array:
    """Return the sketch (L, SKETCH) of classes (L, C, width) with name numbers (L, C), or < 0."""
    known = (numbers >= 0) & (numbers < encoder.places.shape[0])
    at = jnp.where(known, numbers, 0)
    values = vectors * encoder.signs[at] * known[..., None]
    places = encoder.places[at]

    def one(values: Array, places: Array) -> Array:
        return jnp.zeros(SKETCH, values.dtype).at[places.reshape(-1)].add(values.reshape(-1))

    return jax.vmap(one)(values, places)


def _unit(vectors: Array) -> Array:
    norms = jnp.sqrt(jnp.square(vectors).sum(axis=-1, keepdims=True))
    return jnp.where(norms > 0, vectors / jnp.where(norms > 0, norms, 1.0), 0.0)


@jax.jit
def encode_rows(encoder: Encoder, kernel: Kernel, rows: dict[str, Array]) -> Coded:
    """Return the codes of b learnwares; the arguments are those of `pieces_of`."""
    first, second = pieces_of(encoder, kernel, rows)
    kept = [integer_parts(piece, 1) for piece in (first - encoder.mean, second)]
    return Coded(
        jnp.concatenate([values for (values,), _ in kept], axis=1),
        jnp.stack([scales for _, scales in kept], axis=1),
    )


def pieces_of(encoder: Encoder, kernel: Kernel, rows: dict[str, Array]) -> tuple[Array, Array]:
    """Return both pieces of b learnwares' codes, (b, EMBEDDING) and (b, SKETCH), in float32.

    Args:
        encoder: of the market.
        kernel: the market's.
        rows: stored rows {field: (b, ...)} of `MarketArrays`.
    """
    points = decode_points(rows["points"], rows["scales"])
    values = witness(kernel, encoder.anchors, points, rows["weights"], rows["self_terms"])
    first = jnp.matmul(values, encoder.projection, precision="highest")
    vectors = _unit(rows["class_vectors"].astype(jnp.float32))
    if encoder.own.shape[0]:
        # Without a probe proxy there is nothing to sketch; the score imputes what is missing.
        weights = rows["probe_weights"].astype(jnp.float32)
        vectors = jnp.matmul(weights, encoder.own, precision="highest")
        size = jnp.sqrt(jnp.square(vectors).sum(axis=(1, 2), keepdims=True))
        vectors = jnp.where(size > 0, vectors / jnp.where(size > 0, size, 1.0), 0.0)
    return first, _sketched(encoder, vectors, rows["class_ids"])


def encode_users(encoder: Encoder, market: MarketArrays, users: Any) -> tuple[Array, Array]:
    """Return what users ask the two pieces: (Q, EMBEDDING) and (Q, SKETCH).

    Args:
        encoder: of the market.
        market: its arrays, for kernel and landmarks.
        users: `score_parts.UserArrays`.
    """
    kernel = market.kernel
    batch, n, d = users.points.shape

    own = one_by_one(lambda user: square_norm(kernel, *user), (users.points, users.weights))
    values = witness(kernel, encoder.anchors, users.points, users.weights, own)
    first = jnp.matmul(values, encoder.projection, precision="highest")
    classes = users.class_mask.shape[1]
    if encoder.own.shape[0]:
        is_label = users.labels[:, None, :] == jnp.arange(classes)[None, :, None]
        shares = is_label * users.weights[:, None, :]
        flat = users.points.reshape(batch * n, d)
        values = kernel.profile(distances(kernel.metric, flat, market.landmarks))
        lifted = jnp.matmul(values, market.white, precision="highest").reshape(batch, n, -1)
        mean = (lifted * users.weights[:, :, None]).sum(axis=1)
        sums = jnp.einsum("qkn,qnd->qkd", shares, lifted, precision="highest")
        sums = sums - shares.sum(axis=2)[..., None] * mean[:, None, :]
        vectors = jnp.matmul(sums, encoder.asked, precision="highest")
    else:
        count = jnp.maximum(users.class_mask.sum(axis=1), 1)[:, None, None]
        vectors = _unit(jnp.where(users.class_mask[..., None], users.class_vectors, 0.0)) / count
    numbers = jnp.where(users.class_mask, users.class_numbers, -2)
    return first, _sketched(encoder, vectors, numbers)


def inner_products(encoder: Encoder, codes: Coded, asked: tuple[Array, Array]) -> Array:
    """Return what codes say of users: products of both pieces, (2, Q, b) float32.

    A processor multiplies integers. An accelerator, which waits for memory here, sums in float32:
    as fast, and XLA's products of integers were wrong in tests on an H200 (jax 0.11).

    Args:
        encoder: that made the codes.
        codes: of b learnwares.
        asked: from `encode_users`.
    """
    if on_processor():
        multiply = jax.vmap(partial(_integer_products, codes.values))
        starts = range(0, len(asked[0]), TOGETHER)  # no loop: in one a product has no threads
        some = [tuple(one[start : start + TOGETHER] for one in asked) for start in starts]
        found = jnp.concatenate([multiply(one) for one in some])
    else:
        found = one_by_one(partial(_summed, codes.values), asked)
    constant = jnp.matmul(asked[0], encoder.mean, precision="highest")
    first, second = (found * codes.scales.T).swapaxes(0, 1)
    return jnp.stack([first + constant[:, None], second])


def _summed(values: Array, asked: tuple[Array, Array]) -> Array:
    """Return both pieces' products of values (b, F) with what one user asks, (2, b)."""
    pieces = (values[:, :EMBEDDING], values[:, EMBEDDING:])
    return jnp.stack([(piece * one).sum(axis=1) for piece, one in zip(pieces, asked, strict=True)])


def _integer_products(values: Array, asked: tuple[Array, Array]) -> Array:
    """Return the same of integers."""
    (first, first_scale), (second, second_scale) = (integer_parts(x, ASKED_PARTS) for x in asked)
    columns = jnp.zeros((ASKED_PARTS, 2, values.shape[1]), jnp.int8)
    columns = columns.at[:, 0, :EMBEDDING].set(jnp.stack(first))
    columns = columns.at[:, 1, EMBEDDING:].set(jnp.stack(second))
    sums = jax.lax.dot_general(
        columns.reshape(-1, values.shape[1]),
        values,
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.int32,
    )
    found = integer_sum(list(sums.reshape(ASKED_PARTS, 2, -1)))
    return found * jnp.stack([first_scale, second_scale])[:, None]
