"""A market: many specifications as flat stacked arrays with spare capacity.

A `Market` is a value: `add` and `remove` return a new one and the old one stays as it was. The
arrays behind the versions are shared, as in an append-only log: a version sees the first `length`
slots without those it removed, and adding writes one slot beyond what any version sees, in place.
So growing by one copies nothing and, until the capacity is used up, compiles nothing.

Only `jaxspec.matching` and its like read `arrays`; ids, names and sizes are host data.
"""

from __future__ import annotations

import itertools
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxspec.base import bucket
from jaxspec.kernels import Kernel, ReducedSet
from jaxspec.market import builder as market_storage
from jaxspec.market.arrays import (
    ROW_FIELDS,
    STORAGES,
    MarketArrays,
    by_row,
    decode_points,
    replicated,
)
from jaxspec.market.builder import Layout, Storage, check_specification
from jaxspec.market.calibration import Calibration
from jaxspec.specify.probe_proxy import ProbeProxy
from jaxspec.specify.proxy import Proxy
from jaxspec.specify.representation import RANK
from jaxspec.specify.specification import Specification, check_comparable

__all__ = ["ROW_FIELDS", "Market", "MarketArrays"]


class Market:
    """Learnwares by id; see the module's docstring for how versions share their arrays.

    Like a read-only mapping: `len`, `in`, iteration over ids, `market[id]`, `items`.
    """

    def __init__(
        self,
        storage: Storage,
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
        self._calibration: Calibration | None = None
        self._alive: Any = None

    @classmethod
    def from_specifications(
        cls, specifications: Mapping[str, Specification], *, storage: str = "float32"
    ) -> Market:
        """Make a market of one or more learnwares, {id: specification}.

        Args:
            specifications: of one feature space and kernel.
            storage: "float32"; or "bfloat16" or "int8", which hold points in half and a quarter
                of the memory (all sums are in float32 still).

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
        _check_storage(storage)
        first_id, first = next(iter(specifications.items()))
        probe = None
        for learnware, spec in specifications.items():
            check_specification(learnware, spec)
            check_comparable(f"specification {learnware!r}", spec, f"{first_id!r}", first)
            _check_dimension(learnware, spec, np.shape(first.reduced_set.points)[1])
            if spec.probe is not None:
                _check_probe(learnware, spec, _fingerprint(probe))
                probe = spec.probe
        specs = list(specifications.values())
        size = max(int(np.shape(spec.reduced_set.points)[0]) for spec in specs)
        classes = max(len(spec.class_names) for spec in specs)
        points = [spec.reduced_set.points for spec in specs]
        hidden = any(spec.representation is not None for spec in specs)
        built = market_storage.build(
            market_storage.blocks_of(dict(specifications)),
            len(specs),
            _layout(size, classes, points, first.kernel, probe, hidden),
            first.kernel,
            fingerprint=_fingerprint(probe),
            precision=storage,
        )
        return cls(built, len(specs), frozenset(), first.kernel, first.feature_space)

    @classmethod
    def from_stacked(
        cls,
        batches: Iterable[tuple[Sequence[str], Specification]],
        *,
        count: int | None = None,
        storage: str = "float32",
        spare: float = 0.25,
        mesh: Mesh | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Market:
        """Make a market of stacked specifications, as batched fitting returns them.

        Args:
            batches: (ids, specification) where every array of the specification has a leading
                axis of one entry an id (the kernel and the landmarks of a probe, which are shared,
                have none). The first batch fixes how many points and classes a learnware has room
                for.
            count: learnwares in all; needed if `batches` has no length.
            storage: see `from_specifications`.
            spare: share of slots to keep free for `add`.
            mesh: devices to spread the market over, see `shard`.
            progress: called with (learnwares done, learnwares).

        Raises:
            ValueError: as `from_specifications`, or a repeated id, or a count that is not met.
        """
        _check_storage(storage)
        mesh = None if mesh is None else _checked_mesh(mesh)
        if count is None:
            batches = list(batches)
            count = sum(len(ids) for ids, _ in batches)
        iterator = iter(batches)
        start = next(iterator, None)
        if start is None or not count:
            raise ValueError("batches: expected at least one learnware, got none")
        first = start[1]
        check_specification(start[0][0] if start[0] else "", first, (len(start[0]),))
        seen: set[str] = set()

        def checked() -> Iterator[tuple[Sequence[str], Specification]]:
            for ids, spec in itertools.chain([start], iterator):
                name = f"{ids[0]} ..." if ids else ""
                check_specification(name, spec, (len(ids),))
                check_comparable(f"specification {name!r}", spec, "the first batch", first)
                _check_dimension(name, spec, np.shape(first.reduced_set.points)[-1])
                _check_probe(name, spec, _fingerprint(first.probe))
                _check_room(name, spec, layout)
                fresh = set(ids)
                if (
                    len(fresh) != len(ids)
                    or fresh & seen
                    or not all(isinstance(one, str) and one for one in ids)
                ):
                    raise ValueError(f"ids: expected different non-empty strings, in {name!r}")
                seen.update(fresh)
                if len(seen) > count:
                    raise ValueError(f"count: expected {count} learnwares, got more")
                yield ids, spec

        layout = _layout(
            int(np.shape(first.reduced_set.points)[-2]),
            len(first.class_names),
            [first.reduced_set.points],
            first.kernel,
            first.probe,
            first.representation is not None,
        )
        built = market_storage.build(
            checked(),
            count,
            layout,
            first.kernel,
            fingerprint=_fingerprint(first.probe),
            precision=storage,
            mesh=mesh,
            spare=spare,
            progress=progress,
        )
        if len(seen) != count:
            raise ValueError(f"count: expected {count} learnwares, got {len(seen)}")
        return cls(built, count, frozenset(), first.kernel, first.feature_space)

    # What is in it

    @property
    def slots(self) -> np.ndarray:
        """The slot of every learnware, (len,) int64, in the order of `ids`."""
        slots = np.arange(self._length)
        return np.delete(slots, sorted(self._removed)) if self._removed else slots

    @property
    def rows(self) -> np.ndarray:
        """The row in `arrays` of every learnware, (len,) int64: its slot, unless spread."""
        return self._storage.rows(self.slots)

    @property
    def mesh(self) -> Mesh | None:
        """The devices that the rows are spread over, None for a market on one device."""
        return self._storage.mesh

    @property
    def storage(self) -> str:
        """The precision that points are stored in."""
        return self._storage.precision

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, spare slots included."""
        return sum(int(leaf.nbytes) for leaf in jax.tree.leaves(self.arrays))

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids, in the order they were added; the order of every result."""
        ids = self._storage.ids
        if not self._removed:
            return tuple(ids[: self._length])
        return tuple(ids[slot] for slot in self.slots)

    def ids_of(self, slots: np.ndarray) -> tuple[str, ...]:
        """Return the ids of the learnwares in slots (n,)."""
        if len(slots) < 2:
            return tuple(self._storage.ids[slot] for slot in slots)
        return operator.itemgetter(*slots.tolist())(self._storage.ids)

    @property
    def arrays(self) -> MarketArrays:
        """The stacked arrays; only those named by `rows` belong to this market.

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
    def calibration(self) -> Calibration:
        """What the market says of itself; found at the first use and kept."""
        if self._calibration is None:
            with self._storage.lock:
                found = market_storage.sample_calibration(self._storage, self.slots)
            self._calibration = _everywhere(found, self.mesh)
        return self._calibration

    @property
    def alive(self) -> Any:
        """Which rows hold a learnware of this market, (rows,) bool, where they lie."""
        if self._alive is None:
            alive = np.zeros(self._storage.total, bool)
            alive[self.rows] = True
            self._alive = by_row(alive, self.mesh)
        return self._alive

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
        facts = self._storage.facts[slot]
        with self._storage.lock:  # the next `add` may give these arrays' memory away
            found = market_storage.take(self._storage, np.array([slot]))
            origin = np.asarray(self.arrays.origin)
            landmarks = np.asarray(self.arrays.landmarks) + origin
        row = {name: value[0] for name, value in found.items()}
        classes = len(facts.class_names)
        points = decode_points(found["points"], found["scales"])[0, : facts.size] + origin
        weights = row["weights"][: facts.size]
        vectors = row["class_vectors"][:classes].astype(np.float32)
        proxy = Proxy(vectors.T, row["class_bias"][:classes])
        probe = None
        if row["has_probe"]:
            probe = ProbeProxy(
                landmarks,
                row["probe_weights"][:classes].astype(np.float32).T,
                row["probe_bias"][:classes],
                facts.fidelity,
                str(self.probe),
            )
        maps = row["hidden_maps"].astype(np.float32).T
        return Specification(
            ReducedSet(points, weights),
            proxy,
            self.kernel,
            facts.class_names,
            self.feature_space,
            num_examples=facts.num_examples,
            format_version=facts.format_version,
            probe=probe,
            representation=maps if maps.any() else None,
        )

    def class_names(self, learnware: str) -> tuple[str, ...]:
        """Return the class names of one learnware, in the order of its class vectors."""
        return self._storage.facts[self._slot(learnware)].class_names

    def class_numbers(self, names: tuple[str, ...]) -> np.ndarray:
        """Return the market's numbers (int32) for class names; -2 for a name it never saw."""
        return np.array([self._storage.names.get(name, -2) for name in names], np.int32)

    def covers(self, names: tuple[str, ...]) -> bool:
        """Tell whether one learnware has a class of every one of these names."""
        spaces = self._storage.label_spaces
        return any(
            self._holds(slot) for space in self._storage.spaces_of(names) for slot in spaces[space]
        )

    def _holds(self, slot: int) -> bool:
        return slot < self._length and slot not in self._removed

    def _find(self, learnware: object) -> int | None:
        """Return the slot of an id in this version, or None. An id may return after a removal."""
        if not isinstance(learnware, str):
            return None
        for slot in self._storage.index.get(learnware, ()):
            if self._holds(slot):
                return slot
        return None

    def _slot(self, learnware: str) -> int:
        slot = self._find(learnware)
        if slot is None:
            raise KeyError(f"no learnware {learnware!r:.80} in this market of {len(self)}")
        return slot

    # How it changes

    def add(self, learnware: str, specification: Specification) -> Market:
        """Return a market that also holds `specification` under the id `learnware`.

        Raises:
            ValueError: the id is taken, or the specification is from another feature space or
                kernel, or holds numbers that are not finite.
        """
        check_specification(learnware, specification)
        check_comparable(f"specification {learnware!r}", specification, "the market", self)
        _check_dimension(learnware, specification, self.dimension)
        _check_probe(learnware, specification, self.probe)
        if learnware in self:
            raise ValueError(f"id: {learnware!r} is in the market already; remove it first")
        storage, layout = self._storage, market_storage.layout_of(self.arrays)
        size = int(np.shape(specification.reduced_set.points)[0])
        classes, probe = len(specification.class_names), specification.probe
        hidden = 0 if specification.representation is None else RANK
        with storage.lock:
            fits = (
                len(storage.ids) == self._length < storage.total
                and size <= layout.size
                and classes <= layout.classes
                and (probe is None or storage.probe is not None)
                and hidden <= layout.hidden
            )
            if fits:
                market_storage.append(storage, learnware, specification)
        if fits:
            return self._version(storage, self._length + 1, self._removed)
        # Full, too small, or another version has already grown from this one: copy once.
        landmarks, fingerprint = layout.landmarks, None
        if probe is not None and storage.probe is None:
            landmarks = np.asarray(probe.landmarks, np.float32) - layout.origin
            fingerprint = probe.fingerprint
        larger = Layout(
            max(layout.size, size + size % 2),
            max(layout.classes, bucket(classes)),
            layout.origin,
            landmarks,
            max(layout.hidden, hidden),
        )
        copied = self._copy(layout=larger, fingerprint=fingerprint, mesh=self.mesh)
        market_storage.append(copied, learnware, specification)
        return self._version(copied, len(self) + 1, frozenset())

    def _version(self, storage: Storage, length: int, removed: frozenset[int]) -> Market:
        return Market(storage, length, removed, self.kernel, self.feature_space)

    def _copy(self, **options: Any) -> Storage:
        with self._storage.lock:
            return market_storage.copy(self._storage, self.slots, **options)

    def remove(self, learnware: str) -> Market:
        """Return a market without the id `learnware`; its slot is reused at the next copy.

        Raises:
            KeyError: there is no such id.
        """
        removed = self._removed | {self._slot(learnware)}
        return self._version(self._storage, self._length, removed)

    # Where and how it is held

    def shard(self, mesh: Mesh) -> Market:
        """Return the same market with its learnwares spread over all devices of a mesh.

        Every device scores its own learnwares; answers are those of one device. Under
        `jax.distributed` every process calls this with the same market and mesh.
        """
        mesh = _checked_mesh(mesh)
        spread = self._version(self._copy(mesh=mesh), len(self), frozenset())
        if len(self):
            spread.calibration  # noqa: B018 - found now, so that growing compiles nothing
        return spread

    def stored_as(self, storage: str) -> Market:
        """Return the same market with points in another precision; see `from_specifications`."""
        _check_storage(storage)
        copied = self._copy(precision=storage, mesh=self.mesh)
        return self._version(copied, len(self), frozenset())

    # On disk

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a folder; see `jaxspec.files.store.save_market`."""
        from jaxspec.files.store import save_market

        save_market(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Market:
        """Read a folder of `save`; see `jaxspec.files.store.load_market` for what it refuses."""
        from jaxspec.files.store import load_market

        return load_market(path)


def _layout(
    size: int,
    classes: int,
    points: Sequence[Any],
    kernel: Kernel,
    probe: ProbeProxy | None,
    hidden: bool,
) -> Layout:
    origin = market_storage.find_origin(points, float(kernel.bandwidth))
    landmarks = np.zeros((0, len(origin)), np.float32)
    if probe is not None:
        landmarks = np.asarray(probe.landmarks, np.float32) - origin
    return Layout(size + size % 2, bucket(classes), origin, landmarks, RANK if hidden else 0)


def _checked_mesh(mesh: Any) -> Mesh:
    """Return the mesh with jax's automatic axes, whatever it had."""
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh: expected a jax.sharding.Mesh, got {type(mesh).__name__}")
    return Mesh(mesh.devices, mesh.axis_names)


def _everywhere(calibration: Calibration, mesh: Mesh | None) -> Calibration:
    """Return a calibration on every device of the mesh: queries then need not move it."""
    if mesh is None:
        return calibration
    return replicated(jax.tree.map(np.asarray, calibration), mesh)


def _fingerprint(probe: ProbeProxy | None) -> str | None:
    return None if probe is None else probe.fingerprint


def _check_storage(storage: str) -> None:
    if storage not in STORAGES:
        raise ValueError(f"storage: expected one of {tuple(STORAGES)}, got {storage!r}")


def _check_room(learnware: str, spec: Specification, layout: Layout) -> None:
    size, classes = int(np.shape(spec.reduced_set.points)[-2]), len(spec.class_names)
    if spec.representation is not None and not layout.hidden:
        raise ValueError(
            f"specification {learnware!r}: expected no representation, as the first batch has none"
        )
    if size > layout.size or classes > layout.classes:
        raise ValueError(
            f"specification {learnware!r}: expected at most {layout.size} points and "
            f"{layout.classes} classes, as the first batch has room for, got {size} and {classes}"
        )


def _check_dimension(learnware: str, spec: Specification, dimension: int) -> None:
    columns = np.shape(spec.reduced_set.points)[-1]
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
