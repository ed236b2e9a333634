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
from jaxspec.probe import ProbeProxy, whitening
from jaxspec.proxy import Proxy
from jaxspec.pytrees import register
from jaxspec.shapes import bucket, pad_to
from jaxspec.specification import Specification, check_comparable

__all__ = ["Market", "MarketArrays"]

Array = Any
SELF_TERM_CHUNK = 256  # learnwares whose m x m Gram matrices are in memory at once


@register
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
        probe_weights: (slots, classes, D) of the probe proxies, D = 0 in a market without.
        probe_bias: (slots, classes).
        has_probe: (slots,) one where there is a probe proxy, else zero.
        landmarks: (D, d) of the probe proxies, relative to `origin`.
        white: (D, D), `probe.whitening` of the landmarks.
        origin: (d,) subtracted from points, zero unless the features lie far from zero.
        kernel: the market's kernel.
    """

    points: Array
    weights: Array
    self_terms: Array
    class_vectors: Array
    class_bias: Array
    class_ids: Array
    probe_weights: Array
    probe_bias: Array
    has_probe: Array
    landmarks: Array
    white: Array
    origin: Array
    kernel: Kernel


ROW_FIELDS = (
    "points",
    "weights",
    "self_terms",
    "class_vectors",
    "class_bias",
    "class_ids",
    "probe_weights",
    "probe_bias",
    "has_probe",
)


@dataclasses.dataclass(frozen=True)
class _Facts:
    """What a slot holds beside numbers."""

    class_names: tuple[str, ...]
    size: int
    num_examples: int
    format_version: int
    fidelity: float | None = None


class _Storage:
    """Arrays and names that the versions of one market share; only ever appended to."""

    arrays: MarketArrays

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.facts: list[_Facts] = []
        self.index: dict[str, tuple[int, ...]] = {}  # id -> slots it was ever given
        self.label_spaces: dict[tuple[str, ...], list[int]] = {}  # class names -> slots
        self.names: dict[str, int] = {}  # class name -> number
        self.probe: str | None = None  # fingerprint of the probe set
        self.lock = threading.Lock()

    def enter(self, learnware: str, spec: Specification) -> None:
        """Note what the next slot holds."""
        slot = len(self.ids)
        self.ids.append(learnware)
        self.index[learnware] = (*self.index.get(learnware, ()), slot)
        self.label_spaces.setdefault(spec.class_names, []).append(slot)
        size = int(spec.reduced_set.points.shape[0])
        fidelity = None if spec.probe is None else float(spec.probe.fidelity)
        self.facts.append(
            _Facts(spec.class_names, size, spec.num_examples, spec.format_version, fidelity)
        )

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
        probe = None
        for learnware, spec in specifications.items():
            _check(learnware, spec)
            check_comparable(f"specification {learnware!r}", spec, f"{first_id!r}", first)
            _check_dimension(learnware, spec, first.reduced_set.points.shape[1])
            if spec.probe is not None:
                _check_probe(learnware, spec, probe)
                probe = spec.probe.fingerprint
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
    def length(self) -> int:
        """How many slots may be in use; the slots beyond are spare capacity."""
        return self._length

    @property
    def probe(self) -> str | None:
        """Fingerprint of the market's probe set, None if no learnware has a probe proxy."""
        return self._storage.probe

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
        probe = None
        if float(arrays.has_probe[slot]):
            probe = ProbeProxy(
                np.asarray(arrays.landmarks) + np.asarray(arrays.origin),
                np.asarray(arrays.probe_weights[slot])[:classes].T,
                np.asarray(arrays.probe_bias[slot])[:classes],
                facts.fidelity,
                str(self.probe),
            )
        return Specification(
            ReducedSet(points, weights),
            proxy,
            self.kernel,
            facts.class_names,
            self.feature_space,
            num_examples=facts.num_examples,
            format_version=facts.format_version,
            probe=probe,
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
        _check_probe(learnware, specification, self.probe)
        if learnware in self:
            raise ValueError(f"id: {learnware!r} is in the market already; remove it first")
        storage = self._storage
        with storage.lock:
            arrays = storage.arrays
            fits = (
                len(storage.ids) == self._length < arrays.points.shape[0]
                and specification.reduced_set.points.shape[0] <= arrays.points.shape[1]
                and len(specification.class_names) <= arrays.class_ids.shape[1]
                and (specification.probe is None or storage.probe is not None)
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
    expected = [
        ("reduced_set.weights", spec.reduced_set.weights, (m,)),
        ("proxy.weights", spec.proxy.weights, (d, classes)),
        ("proxy.bias", spec.proxy.bias, (classes,)),
        ("reduced_set.points", spec.reduced_set.points, (m, d)),
    ]
    if spec.probe is not None:
        landmarks = np.shape(spec.probe.landmarks)[0]
        expected += [
            ("probe.landmarks", spec.probe.landmarks, (landmarks, d)),
            ("probe.weights", spec.probe.weights, (landmarks, classes)),
            ("probe.bias", spec.probe.bias, (classes,)),
        ]
    for name, array, shape in expected:
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


def _check_probe(learnware: str, spec: Specification, fingerprint: str | None) -> None:
    if spec.probe is not None and fingerprint not in (None, spec.probe.fingerprint):
        raise ValueError(
            f"specification {learnware!r}: its probe proxy was learnt on probe set "
            f"{spec.probe.fingerprint}, but the market's probe set is {fingerprint}"
        )


@dataclasses.dataclass(frozen=True)
class _Layout:
    """What every slot of a storage shares: padded sizes, the origin, and the probe's landmarks."""

    size: int
    classes: int
    origin: np.ndarray
    landmarks: np.ndarray

    def row(self, spec: Specification) -> dict[str, np.ndarray]:
        """Return one slot's numbers, padded, without `self_terms` and `class_ids`."""
        points = np.asarray(spec.reduced_set.points, np.float32) - self.origin
        vectors = np.asarray(spec.proxy.weights, np.float32).T
        bias = np.asarray(spec.proxy.bias, np.float32)
        row = {
            "points": pad_to(points, (self.size, points.shape[1])),
            "weights": pad_to(np.asarray(spec.reduced_set.weights, np.float32), (self.size,)),
            "class_vectors": pad_to(
                vectors - vectors.mean(axis=0), (self.classes, vectors.shape[1])
            ),
            "class_bias": pad_to(bias - bias.mean(), (self.classes,)),
            "probe_weights": np.zeros((self.classes, len(self.landmarks)), np.float32),
            "probe_bias": np.zeros(self.classes, np.float32),
            "has_probe": np.float32(spec.probe is not None),
        }
        if spec.probe is not None:
            weights = np.asarray(spec.probe.weights, np.float32).T
            row["probe_weights"] = pad_to(weights, row["probe_weights"].shape)
            row["probe_bias"] = pad_to(np.asarray(spec.probe.bias, np.float32), (self.classes,))
        return row


def _append(storage: _Storage, learnware: str, spec: Specification) -> None:
    arrays, slot = storage.arrays, len(storage.ids)
    layout = _Layout(
        arrays.points.shape[1],
        arrays.class_ids.shape[1],
        np.asarray(arrays.origin),
        np.asarray(arrays.landmarks),
    )
    row = layout.row(spec)
    row["class_ids"] = storage.number(spec.class_names, layout.classes)
    _set_slot(storage, slot, row)
    storage.enter(learnware, spec)


def _set_slot(storage: _Storage, slot: int, row: dict[str, np.ndarray]) -> None:
    arrays = storage.arrays
    terms = _self_terms(arrays.kernel, row["points"][None], row["weights"][None])
    row = {**row, "self_terms": np.asarray(terms)[0]}
    rows = {name: getattr(arrays, name) for name in ROW_FIELDS}
    storage.arrays = dataclasses.replace(arrays, **_write(rows, np.int32(slot), row))


def _build(specifications: dict[str, Specification]) -> _Storage:
    """Stack specifications; the padded sizes hold the largest of them."""
    specs = list(specifications.values())
    slots = _capacity(len(specs))
    kernel = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), specs[0].kernel)
    probes = [spec.probe for spec in specs if spec.probe is not None]
    d = specs[0].reduced_set.points.shape[1]
    origin = _origin(specs, float(kernel.bandwidth))
    landmarks = np.zeros((0, d), np.float32)
    white = np.zeros((0, 0), np.float32)
    storage = _Storage()
    if probes:
        storage.probe = probes[0].fingerprint
        landmarks = np.asarray(probes[0].landmarks, np.float32) - origin
        white = np.asarray(whitening(kernel, landmarks))
    layout = _Layout(
        -(-max(s.reduced_set.points.shape[0] for s in specs) // 2) * 2,
        bucket(max(len(s.class_names) for s in specs)),
        origin,
        landmarks,
    )
    stacked: dict[str, np.ndarray] = {}
    row: dict[str, np.ndarray] = {}
    for slot, (learnware, spec) in enumerate(specifications.items()):
        storage.enter(learnware, spec)
        row = layout.row(spec)
        row["class_ids"] = storage.number(spec.class_names, layout.classes)
        for name, value in row.items():
            if slot == 0:
                shape, fill = (slots, *value.shape), -1 if name == "class_ids" else 0
                stacked[name] = np.full(shape, fill, value.dtype)
            stacked[name][slot] = value
    stacked["self_terms"] = np.zeros(slots, np.float32)
    for start in range(0, slots, SELF_TERM_CHUNK):
        chunk = slice(start, start + SELF_TERM_CHUNK)
        padded = min(SELF_TERM_CHUNK, slots)
        points, weights = stacked["points"][chunk], stacked["weights"][chunk]
        terms = _self_terms(
            kernel,
            pad_to(points, (padded, *points.shape[1:])),
            pad_to(weights, (padded, weights.shape[1])),
        )
        stacked["self_terms"][chunk] = np.asarray(terms)[: len(points)]
    storage.arrays = MarketArrays(
        **{name: jnp.array(stacked[name]) for name in ROW_FIELDS},
        landmarks=jnp.array(landmarks),
        white=jnp.array(white),
        origin=jnp.array(origin),
        kernel=kernel,
    )
    # Write the last slot again: the first `add` finds its function compiled.
    _set_slot(storage, len(specs) - 1, row)
    return storage


def _origin(specs: list[Specification], bandwidth: float) -> np.ndarray:
    """Return the mean point if features lie over ten bandwidths from zero, else zero.

    With zero, points are kept bit by bit; the rounding of a distance formed from a matrix product
    grows with (offset / bandwidth)^2, about 1e-5 of the kernel's value at ten bandwidths.
    """
    mean = np.mean([np.asarray(s.reduced_set.points).mean(axis=0) for s in specs], axis=0)
    far = np.linalg.norm(mean) > 10.0 * bandwidth
    return (mean if far else np.zeros_like(mean)).astype(np.float32)
