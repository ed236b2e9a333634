"""A market: many specifications as flat stacked arrays with spare capacity.

A `Market` is a value: `add` and `remove` return a new one and the old one stays as it was. The
arrays behind the versions are shared, as in an append-only log: a version sees the first `length`
slots without those it removed, and adding writes one slot beyond what any version sees, in place.
So growing by one copies nothing and, until the capacity is used up, compiles nothing.

Only `jaxspec.matching` reads `MarketArrays`; ids, names and sizes are host data.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.kernels import Kernel, ReducedSet, gram
from jaxspec.proxy import Proxy
from jaxspec.shapes import bucket, pad_to
from jaxspec.specification import Specification, check_comparable

__all__ = ["Market", "MarketArrays"]

Array = Any
SELF_TERM_CHUNK = 256  # learnwares whose m x m Gram matrices are in memory at once


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MarketArrays:
    """The numbers of a market, one row a slot; unused slots and paddings are zero.

    Attributes:
        points: (slots, m, d) reduced-set points, relative to `origin`.
        weights: (slots, m) signed weights.
        self_terms: (slots,) squared norms of the embeddings.
        class_vectors: (slots, classes, d) proxy weights, one row a class, centred over classes.
        class_bias: (slots, classes).
        class_ids: (slots, classes) int32 numbers of class names, -1 where there is no class.
        origin: (d,) subtracted from points, zero unless the features lie far from zero.
        kernel: the market's kernel.
    """

    points: Array
    weights: Array
    self_terms: Array
    class_vectors: Array
    class_bias: Array
    class_ids: Array
    origin: Array
    kernel: Kernel


ROW_FIELDS = ("points", "weights", "self_terms", "class_vectors", "class_bias", "class_ids")


@dataclasses.dataclass(frozen=True)
class _Facts:
    """What a slot holds beside numbers."""

    class_names: tuple[str, ...]
    size: int
    num_examples: int
    format_version: int


class _Storage:
    """Arrays and names that the versions of one market share; only ever appended to."""

    arrays: MarketArrays

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.facts: list[_Facts] = []
        self.index: dict[str, tuple[int, ...]] = {}  # id -> slots it was ever given
        self.label_spaces: dict[tuple[str, ...], list[int]] = {}  # class names -> slots
        self.names: dict[str, int] = {}  # class name -> number
        self.lock = threading.Lock()

    def enter(self, learnware: str, spec: Specification) -> None:
        """Note what the next slot holds."""
        slot = len(self.ids)
        self.ids.append(learnware)
        self.index[learnware] = (*self.index.get(learnware, ()), slot)
        self.label_spaces.setdefault(spec.class_names, []).append(slot)
        size = int(spec.reduced_set.points.shape[0])
        self.facts.append(_Facts(spec.class_names, size, spec.num_examples, spec.format_version))

    def number(self, names: tuple[str, ...], classes: int) -> np.ndarray:
        """Return numbers of class names, giving new names the next ones; -1 in the padding."""
        numbers = [self.names.setdefault(name, len(self.names)) for name in names]
        return pad_to(np.array(numbers, np.int32), (classes,), value=-1)


def _capacity(count: int) -> int:
    """Return slots for `count` learnwares and at least a quarter as many more, in eighths."""
    wanted = count + max(count // 4, 8)
    step = max(8, bucket(wanted, minimum=8) // 8)
    return -(-wanted // step) * step


@partial(jax.jit, donate_argnums=0)
def _write(rows: dict[str, Array], slot: Array, new: dict[str, Array]) -> dict[str, Array]:
    """Write one slot in place."""
    return {
        name: jax.lax.dynamic_update_slice_in_dim(rows[name], new[name][None], slot, axis=0)
        for name in rows
    }


@jax.jit
def _self_terms(kernel: Kernel, points: Array, weights: Array) -> Array:
    """Return squared norms of a chunk of embeddings, (b, m, d) and (b, m) -> (b,)."""

    def one(u: Array, w: Array) -> Array:
        return jnp.matmul(w, jnp.matmul(gram(kernel, u, u), w, precision="highest"))

    return jax.vmap(one)(points, weights)


class Market:
    """Learnwares by id; see the module's docstring for how versions share their arrays.

    Like a read-only mapping: `len`, `in`, iteration over ids, `market[id]`, `items`.
    """

    def __init__(
        self,
        storage: _Storage,
        length: int,
        removed: frozenset[int],
        kernel: Kernel,
        feature_space: str,
    ) -> None:
        """Not called by users: `Market.from_specifications` makes markets."""
        self._storage = storage
        self._length = length
        self._removed = removed
        self.kernel = kernel
        self.feature_space = feature_space

    @classmethod
    def from_specifications(cls, specifications: Mapping[str, Specification]) -> Market:
        """Make a market of one or more learnwares, {id: specification}.

        Raises:
            ValueError: no specification, or one of another feature space or kernel, or with
                numbers that are not finite; the message names the id.
        """
        if not isinstance(specifications, Mapping):
            raise TypeError(
                "specifications: expected a mapping from id to Specification, "
                f"got {type(specifications).__name__}"
            )
        if not specifications:
            raise ValueError("specifications: expected at least one, got an empty mapping")
        first_id, first = next(iter(specifications.items()))
        for learnware, spec in specifications.items():
            _check(learnware, spec)
            check_comparable(f"specification {learnware!r}", spec, f"{first_id!r}", first)
            _check_dimension(learnware, spec, first.reduced_set.points.shape[1])
        storage = _build(dict(specifications))
        return cls(storage, len(specifications), frozenset(), first.kernel, first.feature_space)

    # What is in it

    @property
    def slots(self) -> np.ndarray:
        """The row in `arrays` of every learnware, (len,) int64, in the order of `ids`."""
        slots = np.arange(self._length)
        return np.delete(slots, sorted(self._removed)) if self._removed else slots

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids, in the order they were added; the order of every result."""
        ids = self._storage.ids
        if not self._removed:
            return tuple(ids[: self._length])
        return tuple(ids[slot] for slot in self.slots)

    @property
    def arrays(self) -> MarketArrays:
        """The stacked arrays; only the rows named by `slots` belong to this market.

        Read them anew for every use: the next `add` to the market writes its row in place.
        """
        return self._storage.arrays

    @property
    def dimension(self) -> int:
        """Columns of the features."""
        return self._storage.arrays.points.shape[2]

    def __len__(self) -> int:
        return self._length - len(self._removed)

    def __contains__(self, learnware: object) -> bool:
        return self._find(learnware) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def items(self) -> Iterator[tuple[str, Specification]]:
        """Iterate over (id, specification)."""
        return ((learnware, self[learnware]) for learnware in self.ids)

    def __repr__(self) -> str:
        return f"Market({len(self)} learnwares, feature space {self.feature_space!r})"

    def __getitem__(self, learnware: str) -> Specification:
        slot = self._slot(learnware)
        facts, arrays = self._storage.facts[slot], self.arrays
        classes = len(facts.class_names)
        points = np.asarray(arrays.points[slot])[: facts.size] + np.asarray(arrays.origin)
        weights = np.asarray(arrays.weights[slot])[: facts.size]
        proxy = Proxy(
            np.asarray(arrays.class_vectors[slot])[:classes].T,
            np.asarray(arrays.class_bias[slot])[:classes],
        )
        return Specification(
            ReducedSet(points, weights),
            proxy,
            self.kernel,
            facts.class_names,
            self.feature_space,
            num_examples=facts.num_examples,
            format_version=facts.format_version,
        )

    def class_names(self, learnware: str) -> tuple[str, ...]:
        """Return the class names of one learnware, in the order of its class vectors."""
        return self._storage.facts[self._slot(learnware)].class_names

    def class_numbers(self, names: tuple[str, ...]) -> np.ndarray:
        """Return the market's numbers (int32) for class names; -2 for a name it never saw."""
        return np.array([self._storage.names.get(name, -2) for name in names], np.int32)

    def covers(self, names: tuple[str, ...]) -> bool:
        """Tell whether one learnware has a class of every one of these names."""
        wanted = set(names)
        for space, slots in self._storage.label_spaces.items():
            if wanted <= set(space) and any(self._holds(slot) for slot in slots):
                return True
        return False

    def _holds(self, slot: int) -> bool:
        return slot < self._length and slot not in self._removed

    def _find(self, learnware: object) -> int | None:
        """Return the slot of an id in this version, or None. An id may return after a removal."""
        for slot in self._storage.index.get(learnware, ()):  # type: ignore[call-overload]
            if self._holds(slot):
                return slot
        return None

    def _slot(self, learnware: str) -> int:
        slot = self._find(learnware)
        if slot is None:
            raise KeyError(f"no learnware {learnware!r} in this market of {len(self)}")
        return slot

    # How it changes

    def add(self, learnware: str, specification: Specification) -> Market:
        """Return a market that also holds `specification` under the id `learnware`.

        Raises:
            ValueError: the id is taken, or the specification is from another feature space or
                kernel, or holds numbers that are not finite.
        """
        _check(learnware, specification)
        check_comparable(f"specification {learnware!r}", specification, "the market", self)
        _check_dimension(learnware, specification, self.dimension)
        if learnware in self:
            raise ValueError(f"id: {learnware!r} is in the market already; remove it first")
        storage = self._storage
        with storage.lock:
            arrays = storage.arrays
            fits = (
                len(storage.ids) == self._length < arrays.points.shape[0]
                and specification.reduced_set.points.shape[0] <= arrays.points.shape[1]
                and len(specification.class_names) <= arrays.class_ids.shape[1]
            )
            if fits:
                _append(storage, learnware, specification)
        if fits:
            return Market(storage, self._length + 1, self._removed, self.kernel, self.feature_space)
        # Full, too small, or another version has already grown from this one: copy once.
        storage = _build({**dict(self.items()), learnware: specification})
        return Market(storage, len(self) + 1, frozenset(), self.kernel, self.feature_space)

    def remove(self, learnware: str) -> Market:
        """Return a market without the id `learnware`; its slot is reused at the next copy.

        Raises:
            KeyError: there is no such id.
        """
        removed = self._removed | {self._slot(learnware)}
        return Market(self._storage, self._length, removed, self.kernel, self.feature_space)

    # On disk

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a folder; see `jaxspec.store.save_market`."""
        from jaxspec.store import save_market

        save_market(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Market:
        """Read a folder of `save`; see `jaxspec.store.load_market` for what it refuses."""
        from jaxspec.store import load_market

        return load_market(path)


def _check(learnware: Any, spec: Any) -> None:
    if not isinstance(learnware, str) or not learnware:
        raise ValueError(f"id: expected a non-empty string, got {learnware!r}")
    if not isinstance(spec, Specification):
        raise TypeError(
            f"specification {learnware!r}: expected a Specification, got {type(spec).__name__}"
        )
    m, classes = spec.reduced_set.points.shape[0], len(spec.class_names)
    d = spec.reduced_set.points.shape[1]
    for name, array, shape in (
        ("reduced_set.weights", spec.reduced_set.weights, (m,)),
        ("proxy.weights", spec.proxy.weights, (d, classes)),
        ("proxy.bias", spec.proxy.bias, (classes,)),
        ("reduced_set.points", spec.reduced_set.points, (m, d)),
    ):
        value = np.asarray(array)
        if value.shape != shape:
            raise ValueError(
                f"specification {learnware!r}: expected {name} of shape {shape}, got {value.shape}"
            )
        if not np.isfinite(value).all():
            raise ValueError(f"specification {learnware!r}: {name} holds NaN or infinity")


def _check_dimension(learnware: str, spec: Specification, dimension: int) -> None:
    columns = spec.reduced_set.points.shape[1]
    if columns != dimension:
        raise ValueError(
            f"specification {learnware!r}: expected features of {dimension} columns as in the "
            f"market, got {columns}"
        )


def _row(spec: Specification, shape: tuple[int, int], origin: np.ndarray) -> tuple[Any, ...]:
    """Return one slot's points, weights, class vectors and bias, padded to (m, classes)."""
    size, classes = shape
    points = np.asarray(spec.reduced_set.points, np.float32) - origin
    vectors = np.asarray(spec.proxy.weights, np.float32).T
    bias = np.asarray(spec.proxy.bias, np.float32)
    return (
        pad_to(points, (size, points.shape[1])),
        pad_to(np.asarray(spec.reduced_set.weights, np.float32), (size,)),
        pad_to(vectors - vectors.mean(axis=0), (classes, vectors.shape[1])),
        pad_to(bias - bias.mean(), (classes,)),
    )


def _append(storage: _Storage, learnware: str, spec: Specification) -> None:
    arrays, slot = storage.arrays, len(storage.ids)
    classes = arrays.class_ids.shape[1]
    row = _row(spec, (arrays.points.shape[1], classes), np.asarray(arrays.origin))
    numbers = storage.number(spec.class_names, classes)
    _set_slot(storage, slot, row, numbers)
    storage.enter(learnware, spec)


def _set_slot(storage: _Storage, slot: int, row: tuple[Any, ...], numbers: np.ndarray) -> None:
    points, weights, vectors, bias = row
    arrays = storage.arrays
    self_term = np.asarray(_self_terms(arrays.kernel, points[None], weights[None]))[0]
    values = (points, weights, self_term, vectors, bias, numbers)
    rows = {name: getattr(arrays, name) for name in ROW_FIELDS}
    rows = _write(rows, np.int32(slot), dict(zip(ROW_FIELDS, values, strict=True)))
    storage.arrays = dataclasses.replace(arrays, **rows)


def _build(specifications: dict[str, Specification]) -> _Storage:
    """Stack specifications; the padded sizes hold the largest of them."""
    specs = list(specifications.values())
    slots = _capacity(len(specs))
    size = -(-max(s.reduced_set.points.shape[0] for s in specs) // 2) * 2
    classes = bucket(max(len(s.class_names) for s in specs))
    d = specs[0].reduced_set.points.shape[1]
    kernel = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), specs[0].kernel)
    origin = _origin(specs, float(kernel.bandwidth))

    points = np.zeros((slots, size, d), np.float32)
    weights = np.zeros((slots, size), np.float32)
    vectors = np.zeros((slots, classes, d), np.float32)
    bias = np.zeros((slots, classes), np.float32)
    class_ids = np.full((slots, classes), -1, np.int32)
    self_terms = np.zeros(slots, np.float32)
    storage = _Storage()
    for slot, (learnware, spec) in enumerate(specifications.items()):
        storage.enter(learnware, spec)
        row = _row(spec, (size, classes), origin)
        points[slot], weights[slot], vectors[slot], bias[slot] = row
        class_ids[slot] = storage.number(spec.class_names, classes)
    for start in range(0, slots, SELF_TERM_CHUNK):
        chunk = slice(start, start + SELF_TERM_CHUNK)
        padded = min(SELF_TERM_CHUNK, slots)
        chunk_points = pad_to(points[chunk], (padded, size, d))
        chunk_weights = pad_to(weights[chunk], (padded, size))
        terms = np.asarray(_self_terms(kernel, chunk_points, chunk_weights))
        self_terms[chunk] = terms[: len(points[chunk])]
    storage.arrays = MarketArrays(
        points=jnp.array(points),
        weights=jnp.array(weights),
        self_terms=jnp.array(self_terms),
        class_vectors=jnp.array(vectors),
        class_bias=jnp.array(bias),
        class_ids=jnp.array(class_ids),
        origin=jnp.array(origin),
        kernel=kernel,
    )
    # Write the last slot again: the first `add` finds its function compiled.
    last = len(specs) - 1
    _set_slot(storage, last, _row(specs[last], (size, classes), origin), class_ids[last])
    return storage


def _origin(specs: list[Specification], bandwidth: float) -> np.ndarray:
    """Return the mean point if features lie over ten bandwidths from zero, else zero.

    With zero, points are kept bit by bit; the rounding of a distance formed from a matrix product
    grows with (offset / bandwidth)^2, about 1e-5 of the kernel's value at ten bandwidths.
    """
    mean = np.mean([np.asarray(s.reduced_set.points).mean(axis=0) for s in specs], axis=0)
    far = np.linalg.norm(mean) > 10.0 * bandwidth
    return (mean if far else np.zeros_like(mean)).astype(np.float32)
