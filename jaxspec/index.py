"""A sub-linear search: codes filter the market in one matrix product, exact scores rank the rest.

`Index.build(market)` encodes every learnware in 896 bytes (`jaxspec.index_codes`), fits by
regression how a method's score follows from the codes' inner products, and measures on pseudo-users
(learnwares of the market itself) how deep the exact best lie in the filtered order. `search` asks
for as many candidates as the recall needs and scores them exactly: encoding, filter and re-ranking
are one compiled call. `add` and `remove` keep it current.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec import index_codes, market_storage
from jaxspec.calibration import Calibration
from jaxspec.index_codes import EMBEDDING, Encoder
from jaxspec.kernels import ReducedSet
from jaxspec.market import Market
from jaxspec.market_arrays import ROW_FIELDS, MarketArrays, decode_points
from jaxspec.matching import Match, by_method, match_of, prepare_users, stack_users
from jaxspec.pytrees import register
from jaxspec.scoring import Scores, UserArrays, score
from jaxspec.shapes import bucket, pad_to
from jaxspec.specification import Specification, UserSpecification
from jaxspec.spread import score_spread

__all__ = ["Index"]

Array = Any
SAMPLE = 2048  # learnwares that fit the encoder and the filter
PSEUDO_USERS = 64
CALIBRATED = 16384  # learnwares among which they look for the best
BLOCK = 256  # learnwares that are encoded at a time
GROUP = 64  # learnwares of a group in the selection
NEIGHBOURS = 16  # candidates by closeness alone, so that a user's peer is among them
TOP = 10  # the exact best whose depth is measured
SAFETY = 2.0  # candidates asked for over those that pseudo-users needed
LEAST = 128  # candidates


@register
@dataclasses.dataclass(frozen=True)
class Filter:
    """A linear model of one method's score.

    Attributes:
        weights: (6,) of share, share x similarity, share x closeness, closeness, norm and one.
    """

    weights: Array


def _features(first: Array, second: Array, share: Array, norms: Array) -> Array:
    """Return the filter's features, (..., 6), of inner products, shares and |Phi_l|^2."""
    one = jnp.ones_like(first)
    norms = jnp.broadcast_to(norms, first.shape)
    return jnp.stack([share, share * second, share * first, first, norms, one], axis=-1)


def _filtered(
    codes: Array, spaces: Array, table: Array, asked: tuple[Array, Array], users: UserArrays
) -> tuple[Array, Array, Array]:
    """Return closeness and similarity by the codes, and shares, each (Q, slots)."""
    first, second = asked
    split = jnp.zeros((codes.shape[1], 2, first.shape[0]), codes.dtype)
    split = split.at[:EMBEDDING, 0].set(first.T).at[EMBEDDING:, 1].set(second.T)
    both = jnp.matmul(codes, split.reshape(codes.shape[1], -1), precision="highest")
    near, alike = both.reshape(len(codes), 2, -1).transpose(1, 2, 0)
    # Which of the user's classes a label space has: by label space, not by learnware.
    weights = jnp.where(users.labels >= 0, users.weights, 0.0)
    is_label = users.labels[:, None, :] == jnp.arange(users.class_mask.shape[1])[None, :, None]
    counts = (is_label * weights[:, None, :]).sum(axis=2)
    shared = users.class_mask / jnp.maximum(users.class_mask.sum(axis=1, keepdims=True), 1)
    total = counts.sum(axis=1, keepdims=True)
    counts = jnp.where(total > 0, counts / jnp.where(total > 0, total, 1.0), shared)
    has = (table[None, :, :, None] == users.class_numbers[:, None, None, :]).any(axis=2)
    share = jnp.where(has & users.class_mask[:, None, :], counts[:, None, :], 0.0).sum(axis=2)
    share = jnp.where(users.by_name[:, None], share, 1.0)
    return near, alike, share[:, spaces]


def _largest(values: Array, k: int) -> Array:
    """Return the places of the k largest of (n,), n a multiple of GROUP: by groups first.

    The k largest lie in the k groups with the largest maxima, which is far less to sort.
    """
    groups = values.reshape(-1, GROUP)
    if groups.shape[0] <= k:
        return jax.lax.top_k(values, k)[1]
    _, chosen = jax.lax.top_k(groups.max(axis=1), k)
    _, at = jax.lax.top_k(groups[chosen].reshape(-1), k)
    return chosen[at // GROUP] * GROUP + at % GROUP


@partial(jax.jit, static_argnames=("method", "depth"))
def _search(
    market: MarketArrays,
    encoder: Encoder,
    codes: Array,
    spaces: Array,
    table: Array,
    model: Filter,
    users: UserArrays,
    alive: Array,
    calibration: Calibration,
    *,
    method: str,
    depth: int,
) -> tuple[Array, Scores]:
    """Return candidate slots (Q, depth), best first, and their exact scores (Q, depth, ...)."""
    asked = index_codes.encode_users(encoder, market, users)
    near, alike, share = _filtered(codes, spaces, table, asked, users)
    norms = _padded(market.self_terms, len(codes))
    guess = _features(near, alike, share, norms) @ model.weights
    peers = method == "likelihood" and market.landmarks.shape[0] > 0

    def one(parts: tuple[Array, Array, UserArrays]) -> tuple[Array, Scores]:
        guess, near, user = parts
        guess = jnp.where(alive, guess, -jnp.inf)
        rows = _largest(guess, depth - NEIGHBOURS if peers else depth)
        real = alive[rows]
        if peers:  # the nearest of those that are not among them yet
            rest = jnp.where(alive, near, -jnp.inf).at[rows].set(-jnp.inf)
            nearest = _largest(rest, NEIGHBOURS)
            rows = jnp.concatenate([rows, nearest])
            real = jnp.concatenate([real, jnp.isfinite(rest[nearest])])
        some = {name: getattr(market, name)[rows] for name in ROW_FIELDS}
        candidates = dataclasses.replace(market, **some)
        user = jax.tree.map(lambda leaf: leaf[None], user)
        count = jnp.int32(depth)
        found = score(candidates, user, count, real, calibration, method=method)
        scores = jnp.where(real, found.scores[0], -jnp.inf)
        places = jnp.arange(depth)
        order = jax.lax.sort((-scores, rows.astype(jnp.int32), places), num_keys=2)[2]
        found = dataclasses.replace(found, scores=scores[None])
        return rows[order], jax.tree.map(lambda leaf: leaf[0][order], found)

    return jax.lax.map(one, (guess, near, users))


class _Codes:
    """Codes and label spaces by slot, shared by the versions of an index; only appended to."""

    def __init__(self, encoder: Encoder, market: Market) -> None:
        total = -(-market.arrays.weights.shape[0] // GROUP) * GROUP
        size = index_codes.EMBEDDING + index_codes.SKETCH
        self.encoder = encoder
        self.codes = jnp.zeros((total, size), jnp.float32)
        self.spaces = np.zeros(total, np.int32)
        self.table = np.full((8, market.arrays.class_ids.shape[1]), -1, np.int32)
        self.numbers: dict[bytes, int] = {}
        self.lock = threading.Lock()

    def number(self, ids: np.ndarray) -> int:
        """Return the number of a label space, given as a row of class ids."""
        key = ids.tobytes()
        if key not in self.numbers:
            number = len(self.numbers)
            if number == len(self.table):
                self.table = pad_to(self.table, (2 * number, self.table.shape[1]), value=-1)
            self.table[number] = ids
            self.numbers[key] = number
        return self.numbers[key]


@partial(jax.jit, donate_argnums=0)
def _put(codes: Array, slot: Array, new: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(codes, new, slot, axis=0)


class Index:
    """A market with codes; a value like the market: `add` and `remove` return a new one."""

    def __init__(
        self, market: Market, codes: _Codes, filters: dict[Any, tuple[Filter, np.ndarray]]
    ):
        """Not called by users: `Index.build` makes indices."""
        self.market = market
        self._codes = codes
        self._filters = filters
        self._alive: np.ndarray | None = None

    @classmethod
    def build(cls, market: Market, *, progress: Callable[[int, int], None] | None = None) -> Index:
        """Encode a market.

        Args:
            market: on one device; any storage.
            progress: called with (learnwares done, learnwares).

        Raises:
            TypeError: not a market.
            ValueError: an empty market, or one that is spread over devices.
        """
        if not isinstance(market, Market):
            raise TypeError(f"market: expected a Market, got {type(market).__name__}")
        if len(market) == 0:
            raise ValueError("market: expected at least one learnware, got an empty market")
        if market.mesh is not None:
            raise ValueError("market: expected one on a single device, got one that is spread")
        index = cls(market, _codes_of(market, _encoder(market), progress), {})
        index._filter("likelihood", by_name=True)
        return index

    def __len__(self) -> int:
        return len(self.market)

    def __repr__(self) -> str:
        return f"Index({len(self)} learnwares, {self.bytes_per_learnware} bytes each)"

    @property
    def bytes_per_learnware(self) -> int:
        """Bytes of a code with the number of its label space."""
        return 4 * self._codes.codes.shape[1] + 4

    def add(self, learnware: str, specification: Specification) -> Index:
        """Return an index of the market with one more learnware; see `Market.add`."""
        grown = self.market.add(learnware, specification)
        codes = self._codes
        if grown._storage is not self.market._storage:  # it was copied to a larger one
            encoder = _with_names(codes.encoder, grown)
            return Index(grown, _codes_of(grown, encoder), self._filters)
        with codes.lock:
            codes.encoder = _with_names(codes.encoder, grown)
            _encode(grown, codes, np.array([grown.length - 1]), None)
        return Index(grown, codes, self._filters)

    def remove(self, learnware: str) -> Index:
        """Return an index without a learnware; see `Market.remove`."""
        return Index(self.market.remove(learnware), self._codes, self._filters)

    def search(
        self,
        user: UserSpecification | Sequence[UserSpecification],
        k: int = 10,
        *,
        recall: float = 0.99,
        method: str | None = None,
        reuse: str | None = None,
        label_spaces: str = "auto",
    ) -> Any:
        """Return a `Match` over the candidates, best first, with the scores of `match`.

        Args:
            user: a user's specification, or a sequence of them.
            k: how many of the best are wanted among the candidates.
            recall: share of users for whom all of the exact best k are to be among them; estimated
                on pseudo-users of the market at the first search with a method, and kept.
            method: see `match`.
            reuse: see `match`.
            label_spaces: see `match`.

        Returns:
            a `Match`, or for a sequence of users a list of one a user. In a market with a probe
            the peer is looked for among the candidates.

        Raises:
            ValueError: as `match`; k below one; recall not between zero and one.
        """
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise ValueError(f"k: expected an integer of at least 1, got {k!r}")
        if not 0 < recall <= 1:
            raise ValueError(f"recall: expected a share above 0 and at most 1, got {recall!r}")
        market = self.market
        users, arrays, methods = prepare_users(
            market, user, method=method, reuse=reuse, label_spaces=label_spaces
        )
        if self._alive is None:
            self._alive = np.zeros(self._codes.codes.shape[0], bool)
            self._alive[market.slots] = True
        matches: dict[int, Match] = {}
        kinds = [f"{one}/{bool(by)}" for one, by in zip(methods, arrays.by_name, strict=True)]
        for kind, chosen, some in by_method(arrays, kinds):
            name = kind.split("/")[0]
            model, needed = self._filter(name, by_name=kind.endswith("True"))
            depth = self._depth(needed, k, recall)
            slots, scores = _search(
                market.arrays,
                self._codes.encoder,
                self._codes.codes,
                self._codes.spaces,
                self._codes.table,
                model,
                some,
                self._alive,
                market.calibration,
                method=name,
                depth=depth,
            )
            slots, scores = jax.tree.map(np.asarray, (slots, scores))
            for row, place in enumerate(chosen):
                count = int(np.isfinite(scores.scores[row]).sum())
                matches[place] = match_of(
                    market, users[place], name, slots[row], scores, row, count
                )
        if isinstance(user, UserSpecification):
            return matches[0]
        return [matches[place] for place in range(len(users))]

    def candidates(self, k: int = 10, *, recall: float = 0.99, method: str = "likelihood") -> int:
        """Return how many candidates `search` would score for a user of known class names."""
        return self._depth(self._filter(method, by_name=True)[1], k, recall)

    def _depth(self, needed: np.ndarray, k: int, recall: float) -> int:
        """Return candidates for a recall: what that share of pseudo-users needed, with a margin."""
        wanted = SAFETY * float(np.quantile(needed, recall, method="higher")) * max(1.0, k / TOP)
        depth = bucket(int(max(wanted, LEAST, 4 * k)), minimum=LEAST)
        return min(depth, self._codes.codes.shape[0])

    def _filter(self, method: str, *, by_name: bool) -> tuple[Filter, np.ndarray]:
        """Return the filter of a method and the depths that pseudo-users needed."""
        key = (method, by_name)
        if key not in self._filters:
            self._filters[key] = _fit_filter(self.market, self._codes, method, by_name)
        return self._filters[key]


def _fit_filter(
    market: Market, codes: _Codes, method: str, by_name: bool
) -> tuple[Filter, np.ndarray]:
    """Fit a filter to exact scores of pseudo-users and measure how deep their exact best lie.

    In a market of more than `CALIBRATED` learnwares on an even sample of so many, with depths in
    proportion.
    """
    slots = market_storage.spaced(market.slots, CALIBRATED)
    some = market
    if len(slots) < market.length:
        sample = market_storage.copy(market._storage, slots)
        some = Market(sample, len(slots), frozenset(), market.kernel, market.feature_space)
        some._calibration = market.calibration
    pseudo = [
        _as_user(some, name) for name in market_storage.spaced(np.array(some.ids), PSEUDO_USERS)
    ]
    alive = np.zeros(some.arrays.weights.shape[0], bool)
    alive[some.slots] = True
    total = -(-len(alive) // GROUP) * GROUP
    own = pad_to(np.asarray(codes.codes[slots]), (total, codes.codes.shape[1]))
    spaces = pad_to(codes.spaces[slots], (total,))
    tops: list[tuple[np.ndarray, np.ndarray]] = []
    moments = np.zeros((6, 7))
    for start in range(0, len(pseudo), 16):
        part = pseudo[start : start + 16]
        padded = part + part[:1] * (16 - len(part))
        users = stack_users(some, padded, label_spaces=_spaces_of(by_name))
        scores = score_spread(
            some.arrays, users, np.int32(some.length), alive, market.calibration, method=method
        ).scores
        exact = np.asarray(scores)[: len(part), : len(slots)]
        found = _features_of(codes.encoder, some.arrays, own, spaces, codes.table, users)
        features = np.asarray(found)[: len(part), : len(slots)]
        for x, y in zip(features.astype(np.float64), exact.astype(np.float64), strict=True):
            order = np.argsort(-y, kind="stable")
            weight = np.empty(len(y))
            weight[order] = 1.0 / (TOP + np.arange(len(y)))  # the best matter
            weight /= weight.sum()
            x, y = x - weight @ x, y - weight @ y  # a user's own offset does not change its order
            moments[:, :6] += (x * weight[:, None]).T @ x
            moments[:, 6] += (x * weight[:, None]).T @ y
            tops.append((features[len(tops) - start], order[:TOP]))
    scale = np.sqrt(np.maximum(np.diagonal(moments), 1e-12))
    matrix = moments[:, :6] / scale[:, None] / scale + 1e-6 * np.eye(6)
    weights = np.linalg.solve(matrix, moments[:, 6] / scale) / scale
    needed = []
    for x, best in tops:
        guess = x @ weights
        needed.append(1 + int((guess > guess[best].min()).sum()))
    ratio = max(1.0, len(market) / len(slots))
    return Filter(weights.astype(np.float32)), np.array(needed) * ratio


def _spaces_of(by_name: bool) -> str:
    return "homogeneous" if by_name else "heterogeneous"


@jax.jit
def _features_of(
    encoder: Encoder,
    market: MarketArrays,
    codes: Array,
    spaces: Array,
    table: Array,
    users: UserArrays,
) -> Array:
    """Return the filter's features of all slots, (Q, slots, 6)."""
    asked = index_codes.encode_users(encoder, market, users)
    near, alike, share = _filtered(codes, spaces, table, asked, users)
    return _features(near, alike, share, _padded(market.self_terms, len(codes)))


def _padded(values: Array, total: int) -> Array:
    return jnp.pad(values, (0, total - values.shape[0]))


def _as_user(market: Market, learnware: str) -> UserSpecification:
    """Return the user whose examples are a learnware's reduced set, labelled by its own proxy."""
    spec = market[learnware]
    points = np.asarray(spec.reduced_set.points)
    logits = points @ np.asarray(spec.proxy.weights) + np.asarray(spec.proxy.bias)
    return UserSpecification(
        ReducedSet(points, np.asarray(spec.reduced_set.weights)),
        spec.proxy,
        market.kernel,
        logits.argmax(axis=1).astype(np.int32),
        spec.class_names,
        market.feature_space,
        num_examples=len(points),
    )


def _encoder(market: Market) -> Encoder:
    storage, arrays = market._storage, market.arrays
    chosen = market_storage.spaced(market.slots, SAMPLE)
    rows = market_storage.take(storage, chosen)
    points = decode_points(rows["points"], rows["scales"])
    used = np.argwhere(rows["weights"] != 0)
    at = used[np.random.default_rng(0).permutation(len(used))[: index_codes.ANCHORS]]
    return index_codes.fit_encoder(
        jax.tree.map(np.asarray, arrays.kernel),
        points,
        rows["weights"],
        np.maximum(rows["self_terms"], 1e-12),
        np.asarray(arrays.landmarks),
        points[at[:, 0], at[:, 1]],
        storage.names,
    )


def _codes_of(market: Market, encoder: Encoder, progress: Any = None) -> _Codes:
    """Return the codes of all slots of a market."""
    codes = _Codes(encoder, market)
    _encode(market, codes, np.arange(market.length), progress)
    return codes


def _with_names(encoder: Encoder, market: Market) -> Encoder:
    """Return the encoder with draws for class names that came since."""
    names = market._storage.names
    known = int((np.asarray(encoder.signs) != 0).any(axis=1).sum())
    if known == len(names):
        return encoder
    places, signs = index_codes.name_tables(names, encoder.places.shape[1])
    return dataclasses.replace(encoder, places=places, signs=signs)


def _encode(
    market: Market,
    codes: _Codes,
    slots: np.ndarray,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write the codes of consecutive slots."""
    kernel = jax.tree.map(np.asarray, market.arrays.kernel)
    for start in range(0, len(slots), BLOCK):
        part = slots[start : start + BLOCK]
        rows = market_storage.take(market._storage, part)
        size = bucket(len(part), minimum=1)
        padded = {name: pad_to(rows[name], (size, *rows[name].shape[1:])) for name in ROW_FIELDS}
        new = np.asarray(index_codes.encode_rows(codes.encoder, kernel, padded))[: len(part)]
        step = 1 << (len(part).bit_length() - 1)
        for at in range(0, len(part), step):  # blocks of one size, the last one moved back
            first = min(at, len(part) - step)
            codes.codes = _put(codes.codes, np.int32(part[first]), new[first : first + step])
        for slot, ids in zip(part, rows["class_ids"], strict=True):
            codes.spaces[slot] = codes.number(ids)
        if progress is not None:
            progress(min(start + BLOCK, len(slots)), len(slots))
