"""Matching: score every learnware of a market for one user or a batch of users in one pass.

`match` is what users call. `score_market` is the pure, jittable pass behind it: chunks of the
flattened market meet all users' points in one matrix product, one kernel evaluation and two
reductions, and the class vectors in another product. No array of size market x m x m_T exists.

Methods:
    "rkme": minus the squared MMD between the embeddings, the baseline.
    "classwise": the paper's. Candidates by the embeddings; for every class of the user the
        learnware's class whose vector points the same way; their mean similarity as the score.

Scores do not change when a learnware scales W; the part of "classwise" that compares embeddings
uses the angle between them, so scaling the weights of a reduced set gains nothing there either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.kernels import distances
from jaxspec.market import Market, MarketArrays
from jaxspec.shapes import bucket, pad_to
from jaxspec.specification import UserSpecification, check_comparable

__all__ = ["METHODS", "Match", "UserArrays", "match", "score_market", "stack_users"]

Array = Any
METHODS = ("rkme", "classwise")
LABEL_SPACES = ("auto", "homogeneous", "heterogeneous")
BLOCK_ENTRIES = 1 << 20  # kernel values in memory at once: 4 MiB of float32
COLUMN_BLOCK = 32  # a user's points are met in blocks of this many; the last one is padded
MISSING = -1.0  # similarity of a class that a learnware does not have: the worst there is


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UserArrays:
    """A batch of Q users, padded to common sizes.

    Attributes:
        points: (Q, n, d), relative to the market's origin.
        weights: (Q, n), zero in the padding.
        count: scalar int32, the largest number of points of a user before padding.
        class_vectors: (Q, k, d) proxy weights, one row a class, centred over classes.
        class_mask: (Q, k) bool.
        class_numbers: (Q, k) int32, the market's number of every class name, -2 if it has none.
        by_name: (Q,) bool, whether class k is compared with the class of that name only.
    """

    points: Array
    weights: Array
    count: Array
    class_vectors: Array
    class_mask: Array
    class_numbers: Array
    by_name: Array


@jax.tree_util.register_dataclass
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


@dataclasses.dataclass(frozen=True)
class Match:
    """The answer of a market. With a batch of users every array has a leading axis Q.

    Attributes:
        ids: M learnwares, in the order of the arrays' learnware axis.
        scores: (M,) larger is better.
        squared_mmd: (M,) between the user's and the learnware's embedding.
        class_similarity: (M, C_T) in [-1, 1], how well a learnware's class stands for user class k.
        class_map: (M, C_T) int32, which of the learnware's classes that is, -1 for none.
        class_names: C_T names of the user (a batch: one tuple a user; its arrays are padded to
            the largest C_T with similarity 0 and class -1).
        method: the score's name.
        market: the market that was asked.
    """

    ids: tuple[str, ...]
    scores: np.ndarray
    squared_mmd: np.ndarray
    class_similarity: np.ndarray
    class_map: np.ndarray
    class_names: tuple[Any, ...]
    method: str
    market: Market = dataclasses.field(repr=False)

    def top_k(self, k: int) -> list[Any]:
        """Return the k best [(id, score), ...], best first; a list of such lists for a batch.

        Equal scores keep the market's order. Fewer than k learnwares: all of them.
        """
        if k < 1:
            raise ValueError(f"k: expected at least 1, got {k}")
        if self.scores.ndim == 2:
            return [self._best(row, k) for row in self.scores]
        return self._best(self.scores, k)

    def _best(self, scores: np.ndarray, k: int) -> list[tuple[str, float]]:
        order = np.argsort(-scores, kind="stable")[:k]
        return [(self.ids[i], float(scores[i])) for i in order]

    def best_for_class(self, user: int = 0) -> dict[str, str]:
        """Return, for every class of the user, the learnware that is most similar there."""
        names, similarity = self._of(user, self.class_similarity)
        return {name: self.ids[int(similarity[:, k].argmax())] for k, name in enumerate(names)}

    def explain(self, learnware: str, user: int = 0) -> list[tuple[str, str | None, float]]:
        """Return (user class, learnware class or None, similarity) for every user class."""
        row = self.ids.index(learnware)
        names, similarity = self._of(user, self.class_similarity)
        _, chosen = self._of(user, self.class_map)
        own = self.market.class_names(learnware)
        return [
            (name, own[chosen[row, k]] if chosen[row, k] >= 0 else None, float(similarity[row, k]))
            for k, name in enumerate(names)
        ]

    def _of(self, user: int, array: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
        if self.scores.ndim == 2:
            return self.class_names[user], array[user]
        if user != 0:
            raise IndexError(f"user: expected 0, this is the match of one user; got {user}")
        return self.class_names, array


def match(
    market: Market,
    user: UserSpecification | Sequence[UserSpecification],
    *,
    method: str = "classwise",
    label_spaces: str = "auto",
) -> Match:
    """Score every learnware of the market for a user, or for each of a batch of users.

    Args:
        market: at least one learnware.
        user: a user's specification, or a sequence of them.
        method: one of `METHODS`.
        label_spaces: 'homogeneous' compares a user class with the learnware's class of the same
            name; 'heterogeneous' with every class, and assigns; 'auto' is homogeneous for a user
            whose classes all are classes of one learnware.

    Raises:
        ValueError: an empty market, no user, an unknown method, or a user from another feature
            space or kernel than the market's.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {METHODS}, got {method!r}")
    batch = not isinstance(user, UserSpecification)
    users = [user] if isinstance(user, UserSpecification) else list(user)
    arrays = stack_users(market, users, label_spaces=label_spaces)
    result = score_market(market.arrays, arrays, np.int32(market._length), method=method)
    slots = market.slots
    result = jax.tree.map(lambda leaf: np.asarray(leaf)[:, slots], result)
    names = tuple(one.class_names for one in users)
    classes = max(len(one) for one in names)
    found = {
        "scores": result.scores,
        "squared_mmd": result.squared_mmd,
        "class_similarity": result.class_similarity[..., :classes],
        "class_map": result.class_map[..., :classes],
    }
    if not batch:
        found = {key: value[0] for key, value in found.items()}
    return Match(
        ids=market.ids,
        class_names=names if batch else names[0],
        method=method,
        market=market,
        **found,
    )


def stack_users(
    market: Market, users: Sequence[UserSpecification], *, label_spaces: str = "auto"
) -> UserArrays:
    """Check users against a market and pad them to a batch; see `match` for the arguments."""
    if label_spaces not in LABEL_SPACES:
        raise ValueError(f"label_spaces: expected one of {LABEL_SPACES}, got {label_spaces!r}")
    if not isinstance(market, Market):
        raise TypeError(f"market: expected a Market, got {type(market).__name__}")
    if len(market) == 0:
        raise ValueError("market: expected at least one learnware, got an empty market")
    if not users:
        raise ValueError("user: expected at least one user, got an empty sequence")
    for i, user in enumerate(users):
        name = "user" if len(users) == 1 else f"user[{i}]"
        if not isinstance(user, UserSpecification):
            raise TypeError(f"{name}: expected a UserSpecification, got {type(user).__name__}")
        check_comparable(name, user, "the market", market)
        columns = user.reduced_set.points.shape[1]
        if columns != market.dimension:
            raise ValueError(
                f"{name}: expected features of {market.dimension} columns as in the market, "
                f"got {columns}"
            )
        finite = all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(user))
        if not finite:
            raise ValueError(f"{name}: its specification holds NaN or infinity")
    count = max(user.reduced_set.points.shape[0] for user in users)
    n = bucket(count, minimum=128)
    k = bucket(max(len(user.class_names) for user in users))
    d, origin = market.dimension, np.asarray(market.arrays.origin)

    def vectors(user: UserSpecification) -> np.ndarray:
        weights = np.asarray(user.proxy.weights, np.float32).T
        return pad_to(weights - weights.mean(axis=0), (k, d))

    def points(user: UserSpecification) -> np.ndarray:
        return pad_to(np.asarray(user.reduced_set.points, np.float32) - origin, (n, d))

    def weights(user: UserSpecification) -> np.ndarray:
        return pad_to(np.asarray(user.reduced_set.weights, np.float32), (n,))

    sizes = np.array([len(user.class_names) for user in users])
    numbers = [pad_to(market.class_numbers(u.class_names), (k,), value=-2) for u in users]
    if label_spaces == "auto":
        by_name = np.array([market.covers(user.class_names) for user in users])
    else:
        by_name = np.full(len(users), label_spaces == "homogeneous")
    return UserArrays(
        points=np.stack([points(user) for user in users]),
        weights=np.stack([weights(user) for user in users]),
        count=np.int32(count),
        class_vectors=np.stack([vectors(user) for user in users]),
        class_mask=np.arange(k) < sizes[:, None],
        class_numbers=np.stack(numbers),
        by_name=by_name,
    )


@partial(jax.jit, static_argnames="method")
def score_market(
    market: MarketArrays, users: UserArrays, length: Array, *, method: str = "classwise"
) -> Scores:
    """Score the first `length` slots of a market for Q users; pure, one compilation a shape.

    Args:
        market: stacked arrays.
        users: Q stacked users.
        length: scalar int32; slots from here on are not computed (zeros).
        method: one of `METHODS`.
    """
    products = _embedding_products(market, users, length)  # (slots, Q)
    user_terms = _user_self_terms(market, users)  # (Q,)
    squared_mmd = market.self_terms[:, None] + user_terms - 2.0 * products
    similarity, class_map = _class_similarity(market, users, length)  # (slots, Q, k)
    if method == "rkme":
        scores = -squared_mmd
    else:
        norms = jnp.sqrt(jnp.maximum(market.self_terms[:, None] * user_terms, 1e-30))
        classes = users.class_mask.sum(axis=1)
        mean = jnp.where(users.class_mask, similarity, 0.0).sum(axis=2) / classes
        scores = mean + CLOSENESS * products / norms
    return Scores(
        scores.T,
        squared_mmd.T,
        jnp.where(users.class_mask, similarity, 0.0).transpose(1, 0, 2),
        class_map.transpose(1, 0, 2),
    )


CLOSENESS = 2.0


def _chunks(slots: int, entries: int, length: Array) -> tuple[int, Array]:
    """Return learnwares a chunk when one needs `entries` values, and how many chunks to do."""
    chunk = max(1, min(slots, BLOCK_ENTRIES // entries))
    return chunk, -(-length // chunk)


def _embedding_products(market: MarketArrays, users: UserArrays, length: Array) -> Array:
    """Return <Phi_l, Phi_T> in H, (slots, Q)."""
    slots, m, d = market.points.shape
    batch, n = users.weights.shape
    chunk, steps = _chunks(slots, m * batch * COLUMN_BLOCK, length)
    column_steps = -(-users.count // COLUMN_BLOCK)

    def one_chunk(i: Array, out: Array) -> Array:
        start = jnp.minimum(i * chunk, slots - chunk)
        points = jax.lax.dynamic_slice_in_dim(market.points, start, chunk).reshape(chunk * m, d)
        weights = jax.lax.dynamic_slice_in_dim(market.weights, start, chunk)

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


def _class_similarity(
    market: MarketArrays, users: UserArrays, length: Array
) -> tuple[Array, Array]:
    """Return similarity and class map, both (slots, Q, k)."""
    slots, classes, d = market.class_vectors.shape
    batch, k, _ = users.class_vectors.shape
    chunk, steps = _chunks(slots, classes * batch * k, length)
    columns = _unit(users.class_vectors).reshape(batch * k, d)

    def one_chunk(i: Array, out: tuple[Array, Array]) -> tuple[Array, Array]:
        start = jnp.minimum(i * chunk, slots - chunk)
        vectors = jax.lax.dynamic_slice_in_dim(market.class_vectors, start, chunk)
        ids = jax.lax.dynamic_slice_in_dim(market.class_ids, start, chunk)
        rows = _unit(vectors).reshape(chunk * classes, d)
        cosines = jnp.matmul(rows, columns.T, precision="highest")
        cosines = cosines.reshape(chunk, classes, batch, k).transpose(0, 2, 1, 3)
        named = ids[:, None, :, None] == users.class_numbers[None, :, None, :]
        allowed = jnp.where(users.by_name[None, :, None, None], named, True)
        allowed &= (ids >= 0)[:, None, :, None] & users.class_mask[None, :, None, :]
        similarity, chosen = assign(cosines, allowed)
        return (
            jax.lax.dynamic_update_slice_in_dim(out[0], similarity, start, axis=0),
            jax.lax.dynamic_update_slice_in_dim(out[1], chosen, start, axis=0),
        )

    shape = (slots, batch, k)
    out = (jnp.zeros(shape, market.points.dtype), jnp.full(shape, -1, jnp.int32))
    return jax.lax.fori_loop(0, steps, one_chunk, out)


def _unit(vectors: Array) -> Array:
    """Return vectors of length one, or zero where they are zero; the last axis is the vector."""
    norms = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.where(norms > 0, norms, 1.0)


def assign(similarity: Array, allowed: Array) -> tuple[Array, Array]:
    """Give every user class a learnware class: one to one greedily, best pair first.

    User classes that are left over when the learnware's classes run out share the best of them.

    Args:
        similarity: (..., classes, k).
        allowed: bool, the same shape; pairs that may be matched.

    Returns:
        the similarity of the chosen pair, (..., k), -1 where nothing is allowed, and the chosen
        learnware class, (..., k) int32, -1 there.
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
    steps = min(classes, k)
    _, chosen = jax.lax.fori_loop(0, steps, pick, (value, start))
    shared = jnp.where(allowed.any(axis=-2), value.argmax(axis=-2), -1).astype(jnp.int32)
    chosen = jnp.where(chosen >= 0, chosen, shared)
    picked = jnp.take_along_axis(similarity, jnp.maximum(chosen, 0)[..., None, :], axis=-2)
    return jnp.where(chosen >= 0, picked[..., 0, :], MISSING), chosen
