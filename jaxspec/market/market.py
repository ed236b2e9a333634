"""A market: many specifications of one space, as stacked arrays with spare capacity.

A `Market` is a value and a read-only mapping from ids to specifications: `add`, `remove` and
`update` return a new market, and the old one stays as it was. The arrays behind the versions are
shared, as in an append-only log: a version sees the first slots without those that it removed, and
adding writes beyond what any version sees. So growing by one copies nothing and, until the capacity
is used up, compiles nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxspec.base import Persistent
from jaxspec.kernels import Kernel, ReducedSet
from jaxspec.market import devices
from jaxspec.market.about_columns import AboutColumns
from jaxspec.market.admission import checked_mapping, layout_for
from jaxspec.market.calibration import Calibration
from jaxspec.market.growing_arrays import GrowingArrays, blocks_of, build, find_origin
from jaxspec.market.ledger import Entry, Ledger
from jaxspec.market.precision import check_precision, decode_points
from jaxspec.market.sampling import calibrate_market
from jaxspec.market.schema import MarketArrays
from jaxspec.market.stacked import build_stacked
from jaxspec.specify import Limits, ProbeProxy, Proxy, Space, Specification

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

__all__ = ["Market", "as_limits"]


class Market(Mapping[str, Specification], Persistent):
    """Learnwares of one space by id; a value, see the module's docstring."""

    def __init__(
        self,
        space: Space,
        specifications: Mapping[str, Specification] | None = None,
        *,
        precision: str = "float32",
        limits: Limits | None = None,
    ) -> None:
        """Make a market.

        Args:
            space: what all of its specifications live in.
            specifications: {id: specification}; None for an empty market.
            precision: "float32"; or "bfloat16" or "int8", which hold points in half and a quarter
                of the memory (all sums are in float32 still).
            limits: how large a specification may be, now and in all markets that follow from this
                one; None for `Limits()`.

        Raises:
            TypeError: not a space, not a mapping, or an entry that is not a specification.
            ValueError: a specification of another space or with numbers that are not finite; the
                message names the id.
        """
        if not isinstance(space, Space):
            raise TypeError(f"space: expected a Space, got a {type(space).__name__}")
        given = {} if specifications is None else specifications
        limits = as_limits(limits)
        specs = checked_mapping("specifications", given, space, limits)
        points = [spec.reduced_set.points for spec in specs.values()]
        shared = build(
            space,
            blocks_of(specs),
            len(specs),
            layout_for(specs, space),
            find_origin(points, float(space.kernel.bandwidth), space.dimension),
            precision=check_precision(precision),
        )
        self._become(shared, len(specs), frozenset(), frozenset(), limits)

    def _become(
        self,
        shared: GrowingArrays,
        length: int,
        removed: frozenset[int],
        marked: frozenset[int],
        limits: Limits,
    ) -> None:
        self._shared = shared
        self._length = length
        self._removed = removed
        self._limits = limits
        # Slots that this version calls verified where the shared ledger does not, or the reverse.
        self._marked = marked
        self._calibration: Calibration | None = None
        self._alive: Any = None
        self._length_on_device: Any = None

    @classmethod
    def from_parts(
        cls,
        shared: GrowingArrays,
        length: int,
        removed: frozenset[int] = frozenset(),
        marked: frozenset[int] = frozenset(),
        *,
        limits: Limits | None = None,
    ) -> Market:
        """Return the version of shared arrays with this length; for those who build the arrays."""
        market = cls.__new__(cls)
        market._become(shared, length, removed, marked, as_limits(limits))
        return market

    @classmethod
    def from_stacked(
        cls,
        space: Space,
        batches: Iterable[tuple[Sequence[str], Specification]],
        *,
        count: int | None = None,
        precision: str = "float32",
        spare: float = 0.25,
        mesh: Mesh | None = None,
        limits: Limits | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Market:
        """Make a market of stacked specifications, as batched fitting returns them.

        Args:
            space: what all of them live in.
            batches: (ids, specification) where every array of the specification has a leading axis
                with one entry per id. The first batch fixes how many points and classes a learnware
                has room for.
            count: learnwares in all; needed if `batches` has no length.
            precision: as for `Market`.
            spare: share of rows to keep free for `add`.
            mesh: devices to spread the market over, see `shard`.
            limits: as for `Market`.
            progress: called with (learnwares done, learnwares).

        Raises:
            TypeError, ValueError: as `Market`, or a repeated id, or a count that is not met.
        """
        limits = as_limits(limits)
        shared, length = build_stacked(
            space,
            batches,
            limits=limits,
            count=count,
            precision=check_precision(precision),
            spare=spare,
            mesh=None if mesh is None else devices.checked_mesh(mesh),
            progress=progress,
        )
        return cls.from_parts(shared, length, limits=limits)

    @classmethod
    def from_reduced_sets(
        cls,
        space: Space,
        reduced_sets: Mapping[str, ReducedSet],
        *,
        precision: str = "float32",
        limits: Limits | None = None,
    ) -> Market:
        """Make a market of reduced sets alone, such as those of `jaxspec.from_learnware_folder`.

        Without proxies and class names `match` answers by the score "rkme", says so in its notes,
        and refuses the scores that need proxies. Learnwares with proxies can be added.

        Args:
            space: what the points live in; its kernel is that of the reduced sets.
            reduced_sets: {id: reduced set}.
            precision: as for `Market`.
            limits: as for `Market`.

        Raises:
            TypeError, ValueError: as `Market`; the message names the id.
        """
        if not isinstance(space, Space):
            raise TypeError(f"space: expected a Space, got a {type(space).__name__}")
        if not isinstance(reduced_sets, Mapping):
            raise TypeError(
                "reduced_sets: expected a mapping from ids to reduced sets, "
                f"got a {type(reduced_sets).__name__}"
            )
        names: Any = {"space_name": space.name, "space_digest": space.digest}
        specs = {
            learnware: Specification(one, None, class_names=(), **names)
            for learnware, one in reduced_sets.items()
        }
        return cls(space, specs, precision=precision, limits=limits)

    # What is in it

    @property
    def space(self) -> Space:
        """What all of its specifications live in."""
        return self._shared.space

    @property
    def kernel(self) -> Kernel:
        """The kernel of the space."""
        return self.space.kernel

    @property
    def dimension(self) -> int:
        """The number of features."""
        return self.space.dimension

    @property
    def precision(self) -> str:
        """In which precision points are held."""
        return self._shared.precision

    @property
    def mesh(self) -> Mesh | None:
        """The devices that the rows are spread over, None for a market on one device."""
        return self._shared.mesh

    @property
    def limits(self) -> Limits:
        """How large a specification that enters may be; markets that follow have the same."""
        return self._limits

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, spare rows included."""
        return sum(int(leaf.nbytes) for leaf in jax.tree.leaves(self._shared.arrays))

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids in the order in which they were added, which is the order of every result."""
        ids = self._shared.ledger.ids
        if not self._removed:
            return tuple(ids[: self._length])
        return tuple(ids[slot] for slot in self.slots)

    @property
    def about(self) -> AboutColumns:
        """The owners' metadata as columns: `market.about["licence"] == "MIT"` is a mask."""
        return AboutColumns(self._shared.ledger, self.slots)

    @property
    def verified(self) -> Bool[np.ndarray, " M"]:
        """Which learnwares are marked as verified, (M,) in the order of `ids`."""
        return np.array([self.is_verified(slot) for slot in self.slots.tolist()], bool)

    def is_verified(self, slot: int) -> bool:
        """Tell whether the learnware in a slot is marked as verified."""
        return self._shared.ledger.entries[slot].verified != (slot in self._marked)

    @property
    def entries(self) -> list[Entry]:
        """What the ledger says of every learnware in this version, in the order of `ids`."""
        entries, marked = self._shared.ledger.entries, self._marked
        return [
            dataclasses.replace(entries[slot], verified=self.is_verified(slot))
            if slot in marked
            else entries[slot]
            for slot in self.slots.tolist()
        ]

    @property
    def origin(self) -> Float[np.ndarray, " d"]:
        """What is subtracted from all points; zero unless the features lie far from zero."""
        return self._shared.making.origin

    @property
    def slots(self) -> Int[np.ndarray, " M"]:
        """The slot of every learnware, in the order of `ids`."""
        slots = np.arange(self._length)
        return np.delete(slots, sorted(self._removed)) if self._removed else slots

    @property
    def rows(self) -> Int[np.ndarray, " M"]:
        """The row of every learnware in `arrays`: its slot, unless the market is spread."""
        return self._shared.rows_of(self.slots)

    @property
    def ledger(self) -> Ledger:
        """Ids, class names and metadata by slot; it may know more slots than this version."""
        return self._shared.ledger

    @property
    def shared(self) -> GrowingArrays:
        """The arrays behind all versions of this market; for the packages that read rows."""
        return self._shared

    @property
    def length(self) -> int:
        """How many slots may be in use; the slots beyond are spare."""
        return self._length

    @property
    def arrays(self) -> MarketArrays:
        """All numbers of this market as one pytree, as `jaxspec.score_arrays` takes them.

        `alive` says which rows hold a learnware. The arrays stay valid while they are kept, in any
        thread. The next `add` beside them copies all rows, where it would else write in place.
        """
        return self._arrays_of(self.alive)

    def with_alive(self, slots: Int[np.ndarray, " n"]) -> MarketArrays:
        """Return `arrays` in which only these slots hold a learnware."""
        return self._arrays_of(devices.by_row(self._mask_of(slots), self.mesh))

    def _arrays_of(self, alive: Bool[jax.Array, " row"]) -> MarketArrays:
        if self._length_on_device is None:
            self._length_on_device = devices.replicated(np.int32(self._length), self.mesh)
        return dataclasses.replace(
            self._shared.arrays,
            alive=alive,
            length=self._length_on_device,
            calibration=self.calibration,
        )

    @property
    def alive(self) -> Bool[jax.Array, " row"]:
        """Which rows hold a learnware of this market, lying where the rows lie."""
        if self._alive is None:
            self._alive = devices.by_row(self._mask_of(self.slots), self.mesh)
        return self._alive

    def _mask_of(self, slots: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " row"]:
        alive = np.zeros(self._shared.total, bool)
        alive[self._shared.rows_of(slots)] = True
        return alive

    @property
    def calibration(self) -> Calibration:
        """What the market has found out about itself; computed at the first use and kept."""
        if self._calibration is None:
            self._calibration = calibrate_market(self._shared, self.slots)
        return self._calibration

    def __len__(self) -> int:
        return self._length - len(self._removed)

    def __contains__(self, learnware: object) -> bool:
        return self._find(learnware) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __repr__(self) -> str:
        return f"Market({len(self)} learnwares, space {self.space.name!r}, {self.precision})"

    def __eq__(self, other: object) -> bool:
        return self is other  # a comparison of all numbers would read the whole market

    def __hash__(self) -> int:
        return id(self)

    def __copy__(self) -> Market:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Market:
        return self  # a value

    def __getstate__(self) -> dict[str, Any]:
        return {
            "shared": self._shared,
            "length": self._length,
            "removed": self._removed,
            "marked": self._marked,
            "limits": self._limits,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        names = ("shared", "length", "removed", "marked", "limits")
        self._become(*(state[name] for name in names))

    def __getitem__(self, learnware: str) -> Specification:
        slot = self._slot(learnware)
        shared, entry = self._shared, self._shared.ledger.entries[slot]
        found = shared.take(np.array([slot]))
        row = {name: value[0] for name, value in found.items()}
        classes = len(entry.class_names)
        points = decode_points(row["points"], row["scales"])[: entry.size] + self.origin
        proxy = probe_proxy = None
        if classes:
            proxy = Proxy(
                jnp.asarray(row["class_vectors"][:classes].astype(np.float32).T),
                jnp.asarray(row["class_bias"][:classes]),
            )
        if row["has_probe"]:
            probe_proxy = ProbeProxy(
                jnp.asarray(row["probe_weights"][:classes].astype(np.float32).T),
                jnp.asarray(row["probe_bias"][:classes]),
                jnp.asarray(entry.fidelity, jnp.float32),
            )
        maps = row["hidden_maps"].astype(np.float32).T
        return Specification(
            ReducedSet(jnp.asarray(points), jnp.asarray(row["weights"][: entry.size])),
            proxy,
            class_names=entry.class_names,
            space_name=self.space.name,
            space_digest=self.space.digest,
            probe_proxy=probe_proxy,
            representation=jnp.asarray(maps) if maps.any() else None,
            num_examples=entry.num_examples,
            about=entry.about,
            format_version=entry.format_version,
        )

    def class_names(self, learnware: str) -> tuple[str, ...]:
        """Return the class names of one learnware, in the order of its proxy's columns."""
        return self._shared.ledger.entries[self._slot(learnware)].class_names

    def without_proxy(self) -> tuple[str, ...]:
        """Return the ids of learnwares of which only the reduced set is known."""
        ledger = self._shared.ledger
        slots = list(ledger.label_spaces.get((), ()))
        return tuple(ledger.ids[slot] for slot in slots if self._holds(slot))

    def most_shared_names(self, names: Sequence[str]) -> int:
        """Return how many of these class names one learnware has, at most."""
        ledger = self._shared.ledger
        counts = sorted(ledger.shared_counts(names).items(), key=lambda item: -item[1])
        for space, count in counts:
            if any(self._holds(slot) for slot in ledger.label_spaces[space]):
                return count
        return 0

    def _holds(self, slot: int) -> bool:
        return slot < self._length and slot not in self._removed

    def _find(self, learnware: object) -> int | None:
        """Return the slot of an id in this version, or None."""
        if not isinstance(learnware, str):
            return None
        for slot in self._shared.ledger.slots_of(learnware):
            if self._holds(slot):
                return slot
        return None

    def _slot(self, learnware: str) -> int:
        slot = self._find(learnware)
        if slot is None:
            raise KeyError(f"no learnware {learnware!r:.80} in this market of {len(self)}")
        return slot

    # How it changes

    def add(self, specifications: Mapping[str, Specification]) -> Market:
        """Return a market that also holds these specifications.

        Args:
            specifications: {id: specification} with ids that are not in the market yet.

        Raises:
            TypeError, ValueError: as `Market`, or an id that is taken. Nothing is added then.
        """
        specs = checked_mapping("specifications", specifications, self.space, self._limits)
        for learnware in specs:
            if learnware in self:
                raise ValueError(
                    f"id: {learnware!r:.80} is in the market already; `update` replaces it"
                )
        return self._with(specs, self._removed)

    def update(self, specifications: Mapping[str, Specification]) -> Market:
        """Return a market with these specifications in place of those of the same ids.

        The replaced learnwares move to the end of the market's order.

        Raises:
            KeyError: an id that is not in the market. Nothing is changed then.
            TypeError, ValueError: as `Market`.
        """
        specs = checked_mapping("specifications", specifications, self.space, self._limits)
        removed = self._removed | {self._slot(learnware) for learnware in specs}
        return self._with(specs, removed)

    def remove(self, ids: Iterable[str]) -> Market:
        """Return a market without these ids; their rows are given up at the next copy.

        Raises:
            TypeError: a single string instead of a sequence of ids.
            KeyError: an id that is not in the market. Nothing is removed then.
        """
        if isinstance(ids, str) or not isinstance(ids, Iterable):
            raise TypeError(f"ids: expected a sequence of ids such as ['id'], got {ids!r:.80}")
        removed = self._removed | {self._slot(learnware) for learnware in ids}
        return self._version(self._shared, self._length, removed, self._marked)

    def with_limits(self, limits: Limits) -> Market:
        """Return the same market with other limits; they hold for what enters from here on.

        Raises:
            TypeError: not `Limits`.
        """
        return Market.from_parts(
            self._shared, self._length, self._removed, self._marked, limits=as_limits(limits)
        )

    def _version(
        self,
        shared: GrowingArrays,
        length: int,
        removed: frozenset[int],
        marked: frozenset[int],
    ) -> Market:
        """Return a market that follows from this one."""
        return Market.from_parts(shared, length, removed, marked, limits=self._limits)

    def mark_verified(self, ids: Iterable[str], value: bool = True) -> Market:
        """Return a market in which these learnwares are marked as verified.

        A specification cannot say of itself that it is verified, and an updated one has lost the
        mark. `jaxspec.verify` and `jaxspec.audit` find out which deserve it.

        Args:
            ids: of learnwares in the market.
            value: False takes the mark away.

        Raises:
            TypeError: a single string instead of a sequence of ids, or a value that is not a bool.
            KeyError: an id that is not in the market.
        """
        if isinstance(ids, str) or not isinstance(ids, Iterable):
            raise TypeError(f"ids: expected a sequence of ids such as ['id'], got {ids!r:.80}")
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"value: expected True or False, got {value!r:.80}")
        entries, marked = self._shared.ledger.entries, set(self._marked)
        for learnware in ids:
            slot = self._slot(learnware)
            (marked.discard if entries[slot].verified == value else marked.add)(slot)
        market = self._version(self._shared, self._length, self._removed, frozenset(marked))
        market._calibration, market._alive = self._calibration, self._alive
        return market

    def _with(self, specs: dict[str, Specification], removed: frozenset[int]) -> Market:
        """Return a market with more learnwares, in the same arrays if they have room."""
        if not specs:
            return self._version(self._shared, self._length, removed, self._marked)
        shared, wanted = self._shared, layout_for(specs, self.space)
        with shared.lock:
            fits = len(shared.ledger) == self._length and shared.has_room(len(specs))
            fits = fits and shared.layout.covers(wanted)
            if fits:
                shared.append(specs)
        if fits:
            return self._version(shared, self._length + len(specs), removed, self._marked)
        # Full, too small, or another version has already grown from this one: copy once.
        kept = np.array([s for s in self.slots.tolist() if s not in removed], int)
        if len(kept) == 0:
            return Market(self.space, specs, precision=self.precision, limits=self._limits)
        copied = shared.copy(
            kept, layout=shared.layout.joined(wanted), mesh=self.mesh, spare=len(specs)
        )
        copied.append(specs)
        marked = self._marked_of(kept)
        return self._version(copied, len(kept) + len(specs), frozenset(), marked)

    # Where and how it is held

    def shard(self, mesh: Mesh) -> Market:
        """Return the same market with its learnwares spread over all devices of a mesh.

        Every device scores its own learnwares; answers are those of one device. Under
        `jax.distributed` every process calls this with the same market and mesh.

        Raises:
            TypeError: not a mesh.
        """
        return self._copied(mesh=devices.checked_mesh(mesh))

    def astype(self, precision: str) -> Market:
        """Return the same market with its points in another precision, see `Market`.

        Raises:
            ValueError: no precision of this name.
        """
        return self._copied(precision=check_precision(precision), mesh=self.mesh)

    def sample(self, slots: Int[np.ndarray, " n"]) -> Market:
        """Return a market of some of the slots, with the calibration of this one."""
        sampled = self._copied(slots=slots, mesh=self.mesh)
        sampled._calibration = self.calibration
        return sampled

    def _copied(
        self,
        *,
        slots: Int[np.ndarray, " n"] | None = None,
        precision: str | None = None,
        mesh: Mesh | None = None,
    ) -> Market:
        kept = self.slots if slots is None else slots
        shared = self._shared.copy(kept, precision=precision, mesh=mesh)
        return self._version(shared, len(kept), frozenset(), self._marked_of(kept))

    def _marked_of(self, kept: Int[np.ndarray, " n"]) -> frozenset[int]:
        """Return the slots that are marked in a copy of these slots."""
        if not self._marked:
            return frozenset()
        return frozenset(i for i, slot in enumerate(kept.tolist()) if slot in self._marked)


def as_limits(limits: Any) -> Limits:
    """Return limits; the default ones for None.

    Raises:
        TypeError: not `Limits`.
    """
    if not isinstance(limits, Limits | None):
        raise TypeError(f"limits: expected Limits, got a {type(limits).__name__}: {limits!r:.80}")
    return Limits() if limits is None else limits
