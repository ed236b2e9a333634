"""The arrays behind the versions of a market: rows with spare capacity that are only appended to.

`build` stacks specifications block by block, so that no second copy of everything exists, `append`
writes a few more into spare rows, and `copy` makes larger or otherwise stored arrays. `Market` is
the value that users see; it decides which of these is called.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxspec.base import Holder, bucket, pad_to
from jaxspec.kernels import lift
from jaxspec.market import derived, devices
from jaxspec.market.derived import Making, Rows
from jaxspec.market.ledger import Entry, Ledger
from jaxspec.market.precision import decode_points
from jaxspec.market.schema import (
    ROW_ARRAYS,
    SCHEMA,
    Layout,
    MarketArrays,
    finish_rows,
    read_rows,
)
from jaxspec.specify import Space, Specification

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = ["BLOCK", "GrowingArrays", "blocks_of", "build", "capacity", "find_origin", "pieces"]

BLOCK = 1024  # learnwares that are stacked on the host at a time
PIECES = (BLOCK, 64, 8)  # learnwares that are written at a time
_FILLS = {name: one.fill for name, one in SCHEMA.items() if one.per_row}


class GrowingArrays:
    """Rows and a ledger that the versions of one market share; they are only ever appended to.

    Attributes:
        space: of the market.
        precision: in which rows are stored.
        mesh: the devices that rows are spread over, or None.
        ledger: what the used slots hold.
        lock: held by whoever appends, from the look at how many slots are used to the last entry.
    """

    _holder: Holder[MarketArrays]

    def __init__(
        self,
        space: Space,
        precision: str,
        mesh: Mesh | None,
        origin: np.ndarray,
        *,
        with_landmarks: bool,
        ledger: Ledger | None = None,
    ) -> None:
        self.space, self.precision, self.mesh = space, precision, mesh
        self.ledger = Ledger() if ledger is None else ledger
        self.lock = threading.Lock()
        kernel = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), space.kernel)
        d = space.dimension
        landmarks, whitening = np.zeros((0, d), np.float32), np.zeros((0, 0), np.float32)
        lifted = np.zeros((0, 0), np.float32)
        if with_landmarks:
            landmarks = np.asarray(space.landmarks) - origin
            whitening = np.asarray(space.whitening)
            with devices.in_float32():
                lifted = np.asarray(jax.jit(lift)(kernel, landmarks, whitening, landmarks))
        self._fixed = {"landmarks": landmarks, "whitening": whitening, "origin": origin}
        self.making = Making(kernel, origin, precision, lifted, self.ledger.number_names)

    @property
    def arrays(self) -> MarketArrays:
        """The rows, used and spare, and what all rows share; they stay valid while they are kept.

        Whoever keeps them across an append makes that append copy all rows, once.
        """
        return self._holder.get()

    @arrays.setter
    def arrays(self, arrays: MarketArrays) -> None:
        self._holder = Holder(arrays)

    @property
    def total(self) -> int:
        """Rows there are, used or spare."""
        return int(self.arrays.weights.shape[0])

    @property
    def layout(self) -> Layout:
        """The padded sizes that all rows share."""
        return Layout.of(self.arrays)

    def has_room(self, count: int) -> bool:
        """Tell whether so many learnwares can be appended."""
        smallest = PIECES[-1]
        return len(self.ledger) + -(-count // smallest) * smallest <= self.total

    def rows_of(self, slots: np.ndarray) -> np.ndarray:
        """Return where slots lie in the arrays."""
        return devices.rows_of_slots(slots, self.total, devices.device_count(self.mesh))

    def place(self, rows: dict[str, Array]) -> None:
        """Put rows {name: (total, ...)} in place, with what all rows share."""
        fixed: dict[str, Any] = devices.replicated({**self._fixed}, self.mesh)
        kernel = devices.replicated(self.making.kernel, self.mesh)
        every: dict[str, Any] = {**rows, **fixed}
        self.arrays = MarketArrays(**every, kernel=kernel)

    def write(self, slot: int, rows: Rows) -> None:
        """Write finished rows from a slot on: in place, unless somebody else has the arrays."""

        def written(arrays: MarketArrays, alone: bool) -> MarketArrays:
            found: Any = devices.write_rows(_rows_of(arrays), slot, rows, self.mesh, keep=not alone)
            return dataclasses.replace(arrays, **found)

        self._holder.replace(written, uses_up=ROW_ARRAYS)

    @devices.in_float32()
    def append(self, specifications: Mapping[str, Specification]) -> None:
        """Write specifications to the next slots, which must be free and large enough."""
        specs = list(specifications.values())
        read = read_rows(self.layout, specs, len(specs), self.making)
        for start, rows in pieces(read):
            self.write(len(self.ledger) + start, finish_rows(rows, self.making))
        for learnware, spec in specifications.items():
            self.ledger.enter(learnware, Entry.of(spec))

    def take(self, slots: np.ndarray, *, all_processes: bool = False) -> Rows:
        """Return the stored rows of slots as numpy arrays {name: (len(slots), ...)}.

        Args:
            slots: (n,).
            all_processes: whether all processes that the rows are spread over call this, with the
                same slots.

        Raises:
            ValueError: the rows lie in several processes and only one asks.
        """
        rows = _rows_of(self.arrays)
        if not all_processes and not rows["weights"].is_fully_addressable:
            raise ValueError(
                "market: its rows are spread over several processes and cannot be read from one of "
                "them; read, save and grow it where all rows are"
            )
        return devices.take_rows(rows, self.rows_of(slots), self.mesh)

    def copy(
        self,
        slots: np.ndarray,
        *,
        layout: Layout | None = None,
        precision: str | None = None,
        mesh: Mesh | None = None,
        spare: int = 0,
    ) -> GrowingArrays:
        """Return new arrays with some of the slots and room to grow; these stay as they are.

        Args:
            slots: (n,) slots to keep, in order.
            layout: larger padded sizes, or None for the same.
            precision: another precision, or None for the same.
            mesh: devices to spread the rows over, None for the default device.
            spare: rows that are needed beyond those of the slots.
        """
        layout = layout or self.layout
        other = GrowingArrays(
            self.space,
            precision or self.precision,
            mesh,
            np.asarray(self.arrays.origin),
            with_landmarks=layout.landmarks > 0,
            ledger=self.ledger.part(slots),
        )
        rows_of_block = _Rows(other, capacity(len(slots) + spare), layout)
        for start in range(0, len(slots), BLOCK):
            rows = self.take(slots[start : start + BLOCK])
            if other.precision != self.precision:
                floats = {
                    name: value.astype(np.float32)
                    for name, value in rows.items()
                    if SCHEMA[name].kind == "vectors"
                }
                floats["points"] = decode_points(rows["points"], rows["scales"])
                rows = finish_rows({**rows, **floats}, other.making)
            for name in rows:
                shape = layout.shape(SCHEMA[name].axes, len(rows[name]))
                if SCHEMA[name].axes != ("row", "gram_class", "gram_class"):
                    rows[name] = pad_to(rows[name], shape, value=_FILLS[name])
            rows["class_grams"] = derived.class_grams(rows, rows)
            rows_of_block.add(rows, finished=True)
        rows_of_block.finish()
        return other

    def __getstate__(self) -> dict[str, Any]:
        if self.mesh is not None:
            raise TypeError(
                "a market that is spread over devices cannot be pickled; use Market.save"
            )
        state = {**self.__dict__, "_holder": jax.tree.map(np.asarray, self.arrays)}
        del state["lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.lock = threading.Lock()
        self.arrays = jax.tree.map(jnp.array, state["_holder"])


def _rows_of(arrays: MarketArrays) -> dict[str, Array]:
    """Return the arrays that have one entry per learnware."""
    return {name: getattr(arrays, name) for name in ROW_ARRAYS}


class _Rows:
    """Rows that are written block by block into arrays of a fixed size."""

    def __init__(self, target: GrowingArrays, total: int, layout: Layout) -> None:
        count = devices.device_count(target.mesh)
        self.target, self.done = target, 0
        example = layout.empty(1, target.precision)
        self.rows = devices.empty_rows(example, _FILLS, -(-total // count) * count, target.mesh)

    @devices.in_float32()
    def add(self, rows: Rows, *, finished: bool) -> None:
        """Write rows after those before; rows as they were read are finished first."""
        total = len(self.rows["weights"])
        for start, part in pieces(rows):
            part = part if finished else finish_rows(part, self.target.making)
            # Without spare rows the filling of the last piece may not fit, the learnwares do.
            part = {name: value[: total - self.done - start] for name, value in part.items()}
            self.rows = devices.write_rows(self.rows, self.done + start, part, self.target.mesh)
        self.done += len(rows["weights"])

    def finish(self) -> None:
        """Hand the rows over."""
        self.target.place(self.rows)


def pieces(rows: Rows) -> Iterator[tuple[int, Rows]]:
    """Cut rows into pieces of a few lengths, and yield (start, rows of the piece).

    Few lengths are few shapes to compile. The last piece always has the smallest length and is
    filled up with unused rows, so adding a learnware to a market compiles nothing.
    """
    count, start = len(rows["weights"]), 0
    while start < count:
        size = next((size for size in PIECES if size < count - start), PIECES[-1])
        piece = {name: value[start : start + size] for name, value in rows.items()}
        if start + size > count:
            piece = {
                name: pad_to(value, (size, *value.shape[1:]), value=_FILLS[name])
                for name, value in piece.items()
            }
        yield start, piece
        start += size


def capacity(count: int, spare: float = 0.25) -> int:
    """Return rows for `count` learnwares and at least a share `spare` more, in eighths."""
    # Learnwares are written in pieces of at least eight rows, so the last seven cannot be used.
    wanted = count + (max(int(count * spare), 8) + PIECES[-1] - 1 if spare else 0)
    step = max(8, bucket(wanted, minimum=8) // 8) if spare else 8
    return max(-(-wanted // step) * step, 8)


def build(
    space: Space,
    blocks: Iterable[tuple[Sequence[str], Specification | Sequence[Specification]]],
    count: int,
    layout: Layout,
    origin: np.ndarray,
    *,
    precision: str = "float32",
    mesh: Mesh | None = None,
    spare: float = 0.25,
    progress: Callable[[int, int], None] | None = None,
) -> GrowingArrays:
    """Stack blocks of (ids, specifications) that were checked before.

    Args:
        space: of the market.
        blocks: each a list of specifications or one stacked specification, of at most `BLOCK`.
        count: learnwares in all.
        layout: padded sizes that hold the largest of them.
        origin: (d,) from `find_origin`.
        precision: in which rows are stored.
        mesh: devices to spread the rows over.
        spare: share of rows to keep free.
        progress: called with (learnwares done, learnwares).
    """
    grown = GrowingArrays(space, precision, mesh, origin, with_landmarks=layout.landmarks > 0)
    rows_of_block = _Rows(grown, capacity(count, spare), layout)
    waiting: list[Rows] = []  # short blocks are finished and written together

    def flush() -> None:
        joined = {name: np.concatenate([one[name] for one in waiting]) for name in waiting[0]}
        waiting.clear()
        rows_of_block.add(joined, finished=False)
        if progress is not None:
            progress(rows_of_block.done, count)

    for ids, specs in blocks:
        stacked = isinstance(specs, Specification)
        given = specs if isinstance(specs, Specification) else list(specs)
        waiting.append(read_rows(layout, given, len(ids), grown.making))
        for i, learnware in enumerate(ids):
            entry = Entry.of(given, i) if stacked else Entry.of(given[i])  # type: ignore[arg-type, index]
            grown.ledger.enter(learnware, entry)
        if sum(len(one["weights"]) for one in waiting) >= BLOCK:
            flush()
    if waiting:
        flush()
    rows_of_block.finish()
    return grown


def blocks_of(
    specifications: Mapping[str, Specification],
) -> Iterator[tuple[list[str], list[Specification]]]:
    """Yield {id: specification} in blocks."""
    ids, specs = list(specifications), list(specifications.values())
    for start in range(0, len(ids), BLOCK):
        yield ids[start : start + BLOCK], specs[start : start + BLOCK]


def find_origin(points: Sequence[Any], bandwidth: float, dimension: int) -> np.ndarray:
    """Return where features lie if that is over ten bandwidths from zero, else zero, (d,).

    It is the median of the learnwares' mean points: one that lies far out must not move all others
    to where float32 cannot tell their points apart. For the same reason it is zero unless more than
    half of the learnwares lie nearer to the median than to zero: of two, one may be a stranger's.
    With zero, points are kept bit by bit; the rounding of a distance formed from a matrix product
    grows with (offset / bandwidth)^2, about 1e-5 of the kernel's value at ten bandwidths.

    Args:
        points: arrays (m, d) of single learnwares, or (b, m, d) of b learnwares.
        bandwidth: of the space's kernel.
        dimension: d.
    """
    if not points:
        return np.zeros(dimension, np.float32)
    means = [np.atleast_2d(np.asarray(one).mean(axis=-2, dtype=np.float64)) for one in points]
    centre = np.median(np.concatenate(means), axis=0)
    far = bool(np.linalg.norm(centre) > 10.0 * bandwidth)
    if far:
        every = np.concatenate(means)
        nearer = np.linalg.norm(every - centre, axis=1) < np.linalg.norm(every, axis=1)
        far = 2 * int(nearer.sum()) > len(every)
    return (centre if far else np.zeros_like(centre)).astype(np.float32)
