"""What a version of a market holds: its learnwares by id, and the arrays behind them.

`MarketContents` is the reading half of `jaxspec.market.Market`: a version sees the first slots of
shared arrays without those that it removed. Nothing here changes a market.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxspec.kernels import Kernel, ReducedSet
from jaxspec.market import devices
from jaxspec.market.about_columns import AboutColumns
from jaxspec.market.calibration import Calibration
from jaxspec.market.growing_arrays import GrowingArrays
from jaxspec.market.ledger import Entry, Ledger
from jaxspec.market.precision import decode_points
from jaxspec.market.sampling import calibrate_market
from jaxspec.market.schema import MarketArrays
from jaxspec.specify import Limits, ProbeProxy, Proxy, Space, Specification

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from typing_extensions import Self

__all__ = ["MarketContents"]


class MarketContents(Mapping[str, Specification]):
    """The learnwares of one version of a market, by id."""

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

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
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
