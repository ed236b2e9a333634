"""Codes of fixed size whose inner products approximate the parts of a score.

The code of a learnware has two parts. The first approximates the embedding: its values at anchors
(points of the market's own reduced sets), whitened and projected on the principal directions of a
sample of learnwares, so that inner products approximate the cosine of the angle between embeddings.
The second is a count sketch of the classes: every class vector of length one (or, in a market with
probe proxies, every class of the probe proxy in the principal directions of the landmarks) is added
at places and with signs that follow from the name of the class. The inner product with the sketch
of a user is the mean similarity over the classes of the same name, plus noise from other names of
about one over the square root of the sketch's size.

Codes are stored in eight bits, each part with a scale of its own, the first part relative to its
mean over the market. Everything here is a function of arrays; only `fit_encoder` reads a market.
Charikar, Chen and Farach-Colton, "Finding frequent items in data streams", 2002, for the sketch.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.base import bucket, device_kind, integer_parts, pad_to, register
from jaxspec.kernels import Kernel, lift, one_by_one, square_norm, whitening
from jaxspec.market import Market, MarketArrays, decode_points, evenly_spaced, witness
from jaxspec.scoring import UserArrays

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Int8

__all__ = [
    "EMBEDDING",
    "SKETCH",
    "Encoder",
    "StoredCodes",
    "code_parts",
    "draw_name",
    "encode_rows",
    "encode_users",
    "fit_encoder",
    "inner_products",
    "sketch_classes",
]

ANCHORS = 512
SAMPLE = 2048  # learnwares that the encoder is fitted to
SAMPLE_BLOCK = 256  # of these, how many are compared with the anchors at a time
EMBEDDING = 96  # numbers of the first part of a code
SKETCH = 128  # numbers of the second part
BEHAVIOUR = 64  # principal directions of the landmarks that are sketched
# Codes that become float32 at a time. On processors a block stays in the cache, which took 14 to 53
# ms for 1 to 16 users and 200,000 learnwares, where products of integers took 28 to 187 ms.
ROWS_PER_PRODUCT = {"processor": 2048, "accelerator": 1 << 18}


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """What turns specifications and users into codes.

    Attributes:
        anchors: relative to the market's origin.
        projection: from values at the anchors to the first part of a code.
        mean: of the first part over the market.
        probe_map: from the weights of probe proxies to what is sketched; no rows without a probe.
        user_map: the same for a user's mean lifted features of a class.
        places: by the number of a class name, where the sketch puts the numbers of that class.
        signs: likewise, with which signs.
    """

    anchors: Float[Array, "A d"]
    projection: Float[Array, "A E"]
    mean: Float[Array, " E"]
    probe_map: Float[Array, "D B"]
    user_map: Float[Array, "D B"]
    places: Int[Array, "names width"]
    signs: Float[Array, "names width"]


@register
@dataclasses.dataclass(frozen=True, eq=False)
class StoredCodes:
    """Codes as they are stored, 236 bytes per learnware.

    Attributes:
        values: both parts of the code.
        scales: what the values of each part are multiplied by.
        label_spaces: the number of the learnware's label space.
    """

    values: Int8[Array, "rows F"]
    scales: Float[Array, "rows 2"]
    label_spaces: Int[Array, " rows"]


def draw_name(name: str, width: int) -> tuple[Int[np.ndarray, " w"], Float[np.ndarray, " w"]]:
    """Return places in the sketch and signs, (width,), that follow from a class name alone."""
    text = name.encode("utf-8", "surrogatepass")  # a stranger's name may be no text
    seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "little")
    rng = np.random.default_rng(seed)
    places = np.concatenate([rng.permutation(SKETCH) for _ in range(-(-width // SKETCH))])[:width]
    return places.astype(np.int32), rng.choice(np.array([-1, 1], np.float32), width)


def draw_names(
    names: Iterable[str],
    width: int,
    known: tuple[np.ndarray, np.ndarray, int] | None = None,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the places and signs of all names by number, with room for more, and their count.

    Args:
        names: in the order of their numbers.
        width: numbers per class.
        known: what an earlier call with the first of these names returned.
    """
    listed = list(names)
    rows = bucket(len(listed) + 1)
    done = 0
    places, signs = np.zeros((rows, width), np.int32), np.zeros((rows, width), np.float32)
    if known is not None:
        done = known[2]
        places[:done], signs[:done] = known[0][:done], known[1][:done]
    for number in range(done, len(listed)):
        places[number], signs[number] = draw_name(listed[number], width)
    return places, signs, len(listed)


def fit_encoder(market: Market) -> Encoder:
    """Return an encoder that is fitted to an even sample of a market.

    In a market that is spread over several processes, all of them call this.
    """
    shared, arrays = market.shared, market.shared.arrays
    kernel = jax.tree.map(np.asarray, arrays.kernel)
    chosen = evenly_spaced(market.slots, SAMPLE)
    count = len(chosen)
    size = min(SAMPLE_BLOCK, bucket(count))
    padded = pad_to(chosen, (-(-count // size) * size,), value=chosen[0])
    rows: dict[str, Any] = shared.take(padded, all_processes=True)
    points: Any = decode_points(rows["points"], rows["scales"])
    anchors = _draw_anchors(points[:count], rows["weights"][:count])
    white = np.asarray(whitening(kernel, anchors))
    blocks = []
    for start in range(0, len(padded), size):
        block = slice(start, start + size)
        sampled = (points[block], rows["weights"][block], rows["self_terms"][block])
        blocks.append(np.asarray(_whitened_values(kernel, anchors, white, *sampled)))
    values = np.concatenate(blocks)[:count]
    # Inner products are to be kept, not distances from a mean, so the values are not centred.
    _, vectors = np.linalg.eigh(values.T @ values)
    directions = vectors[:, ::-1][:, :EMBEDDING]
    projection = np.zeros((len(anchors), EMBEDDING), np.float32)
    projection[:, : directions.shape[1]] = white @ directions
    mean = np.zeros(EMBEDDING, np.float32)
    mean[: directions.shape[1]] = (values @ directions).mean(axis=0)
    landmarks, width = np.asarray(arrays.landmarks), points.shape[2]
    probe_map = user_map = np.zeros((0, BEHAVIOUR), np.float32)
    if len(landmarks):
        probe_map, user_map = _behaviour_maps(kernel, landmarks, np.asarray(arrays.whitening))
        width = BEHAVIOUR
    places, signs, _ = draw_names(market.ledger.names, width)
    parts = (anchors, projection, mean, probe_map, user_map, places, signs)
    return Encoder(*(jnp.asarray(one) for one in parts))


def _draw_anchors(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return some of the points that have a weight: a power of two, so that few sizes compile."""
    used = np.argwhere(weights != 0)
    count = ANCHORS
    while count > max(len(used), 1):
        count //= 2
    at = used[np.random.default_rng(0).permutation(len(used))[:count]]
    return points[at[:, 0], at[:, 1]] if len(at) else points[:1, 0]


@jax.jit
def _whitened_values(
    kernel: Kernel, anchors: Array, white: Array, points: Array, weights: Array, self_terms: Array
) -> Array:
    values = witness(kernel, anchors, points, weights, jnp.maximum(self_terms, 1e-12))
    return jnp.matmul(values, white, precision="highest")


def _behaviour_maps(
    kernel: Kernel, landmarks: np.ndarray, white: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the maps (D, BEHAVIOUR) of probe proxies and of users, which keep inner products.

    Lifted landmarks have the covariance E diag(l) E'. The weights of a proxy times E l^(1/2) are
    the components of its logits by size; what a user's mean lifted features are multiplied by is
    divided by the same sizes.
    """
    lifted = np.asarray(jax.jit(lift)(kernel, landmarks, white, landmarks), np.float64)
    values, vectors = np.linalg.eigh(lifted.T @ lifted / len(lifted))
    order = np.argsort(-values)[:BEHAVIOUR]
    size = np.sqrt(np.maximum(values[order], 1e-12))
    probe_map, user_map = np.zeros((2, len(landmarks), BEHAVIOUR), np.float32)
    probe_map[:, : len(order)] = vectors[:, order] * size
    user_map[:, : len(order)] = vectors[:, order] / size
    return probe_map, user_map


def sketch_classes(
    encoder: Encoder, vectors: Float[Array, "L C width"], numbers: Int[Array, "L C"]
) -> Float[Array, "L SKETCH"]:
    """Return the sketches of classes with these numbers of names; a number below zero is none."""
    known = (numbers >= 0) & (numbers < encoder.places.shape[0])
    at = jnp.where(known, numbers, 0)
    values = vectors * encoder.signs[at] * known[..., None]
    places = encoder.places[at]

    def one(values: Array, places: Array) -> Array:
        return jnp.zeros(SKETCH, values.dtype).at[places.reshape(-1)].add(values.reshape(-1))

    return jax.vmap(one)(values, places)


def _unit(vectors: Array, axes: int | tuple[int, ...] = -1) -> Array:
    norms = jnp.sqrt(jnp.square(vectors).sum(axis=axes, keepdims=True))
    return jnp.where(norms > 0, vectors / jnp.where(norms > 0, norms, 1.0), 0.0)


@jax.jit
def encode_rows(
    encoder: Encoder, kernel: Kernel, rows: Mapping[str, Array]
) -> tuple[Int8[Array, "b F"], Float[Array, "b 2"]]:
    """Return the values and scales of the codes of b learnwares; arguments as of `code_parts`."""
    first, second = code_parts(encoder, kernel, rows)
    stored = [integer_parts(part, 1) for part in (first - encoder.mean, second)]
    values = jnp.concatenate([values for (values,), _ in stored], axis=1)
    return values, jnp.stack([scales for _, scales in stored], axis=1)


def code_parts(
    encoder: Encoder, kernel: Kernel, rows: Mapping[str, Array]
) -> tuple[Float[Array, "b E"], Float[Array, "b SKETCH"]]:
    """Return both parts of the codes of b learnwares, in float32.

    Args:
        encoder: of the market.
        kernel: of the market.
        rows: stored rows {name: (b, ...)} of `MarketArrays`.
    """
    points = decode_points(rows["points"], rows["scales"])
    values = witness(kernel, encoder.anchors, points, rows["weights"], rows["self_terms"])
    first = jnp.matmul(values, encoder.projection, precision="highest")
    vectors = _unit(rows["class_vectors"].astype(jnp.float32))
    if encoder.probe_map.shape[0]:
        # Without a probe proxy there is nothing to sketch; the score imputes what is missing.
        weights = rows["probe_weights"].astype(jnp.float32)
        vectors = _unit(jnp.matmul(weights, encoder.probe_map, precision="highest"), (1, 2))
    return first, sketch_classes(encoder, vectors, rows["class_ids"])


def encode_users(
    encoder: Encoder, market: MarketArrays, users: UserArrays
) -> tuple[Float[Array, "Q E"], Float[Array, "Q SKETCH"]]:
    """Return what the two parts of codes are multiplied by for each user.

    Args:
        encoder: of the market.
        market: its arrays, for the kernel and the landmarks.
        users: Q stacked users.
    """
    kernel = market.kernel
    batch, n, d = users.points.shape
    own = one_by_one(lambda user: square_norm(kernel, *user), (users.points, users.weights))
    values = witness(kernel, encoder.anchors, users.points, users.weights, own)
    first = jnp.matmul(values, encoder.projection, precision="highest")
    classes = users.class_mask.shape[1]
    if encoder.probe_map.shape[0]:
        is_label = users.labels[:, None, :] == jnp.arange(classes)[None, :, None]
        shares = is_label * users.weights[:, None, :]
        flat = users.points.reshape(batch * n, d)
        lifted = lift(kernel, market.landmarks, market.whitening, flat).reshape(batch, n, -1)
        mean = (lifted * users.weights[:, :, None]).sum(axis=1)
        sums = jnp.einsum("qkn,qnd->qkd", shares, lifted, precision="highest")
        sums = sums - shares.sum(axis=2)[..., None] * mean[:, None, :]
        vectors = jnp.matmul(sums, encoder.user_map, precision="highest")
    else:
        count = jnp.maximum(users.class_mask.sum(axis=1), 1)[:, None, None]
        vectors = _unit(jnp.where(users.class_mask[..., None], users.class_vectors, 0.0)) / count
    numbers = jnp.where(users.class_mask, users.class_numbers, -2)
    return first, sketch_classes(encoder, vectors, numbers)


def inner_products(
    encoder: Encoder,
    codes: StoredCodes,
    asked: tuple[Float[Array, "Q E"], Float[Array, "Q SKETCH"]],
) -> Float[Array, "2 Q rows"]:
    """Return the products of both parts of the codes with those of the users, in float32.

    Block by block, so that no copy of all codes in float32 is made.

    Args:
        encoder: which made the codes.
        codes: of the rows.
        asked: from `encode_users`.
    """
    batch, (rows, width) = len(asked[0]), codes.values.shape
    block = min(ROWS_PER_PRODUCT[device_kind()], rows)
    users = jnp.zeros((2, batch, width), jnp.float32)
    users = users.at[0, :, :EMBEDDING].set(asked[0]).at[1, :, EMBEDDING:].set(asked[1])
    users = users.reshape(2 * batch, width)

    def one_block(i: Array, found: Array) -> Array:
        start = jnp.minimum(i * block, rows - block)
        values = jax.lax.dynamic_slice_in_dim(codes.values, start, block).astype(jnp.float32)
        products = jnp.matmul(users, values.T, precision="highest")
        return jax.lax.dynamic_update_slice_in_dim(found, products, start, axis=1)

    found = jnp.zeros((2 * batch, rows), jnp.float32)
    if block == rows:  # no loop, which an accelerator would wait for
        found = one_block(jnp.int32(0), found)
    else:
        found = jax.lax.fori_loop(0, -(-rows // block), one_block, found)
    first, second = found.reshape(2, batch, rows) * codes.scales.T[:, None]
    constant = jnp.matmul(asked[0], encoder.mean, precision="highest")
    return jnp.stack([first + constant[:, None], second])
