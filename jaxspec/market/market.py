"""A market: many specifications of one space, as stacked arrays with spare capacity.

A `Market` is a value and a read-only mapping from ids to specifications: `add`, `remove` and
`update` return a new market, and the old one stays as it was. The arrays behind the versions are
shared, as in an append-only log: a version sees the first slots without those that it removed, and
adding writes beyond what any version sees. So growing by one copies nothing and, until the capacity
is used up, compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.sharding import Mesh

from jaxspec.base import Persistent
from jaxspec.kernels import ReducedSet
from jaxspec.market import devices
from jaxspec.market.admission import checked_mapping, layout_for
from jaxspec.market.growing_arrays import GrowingArrays, blocks_of, build, find_origin
from jaxspec.market.market_contents import MarketContents
from jaxspec.market.precision import check_precision
from jaxspec.market.stacked import build_stacked
from jaxspec.specify import Limits, Space, Specification

if TYPE_CHECKING:
    from jaxtyping import Int

__all__ = ["Market", "as_limits"]


class Market(MarketContents, Persistent):
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
