"""The rows of one version of a market on disk, which lie in several segments, as one table.

Row i is the learnware with the i-th id. Segments may have different padded sizes and different
numbers for class names, and some of their rows may be removed: what is read is padded to the
largest sizes, and has the numbers of the ledger. Arrays are opened when they are first read.
Nothing here writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxspec.base import reading
from jaxspec.files.bounded_json import require
from jaxspec.files.folders.opened_version import OpenedVersion
from jaxspec.files.folders.row_checks import check_numbers
from jaxspec.files.folders.segments import ARRAYS, Segment, enter_segment
from jaxspec.files.folders.stored_arrays import (
    aligned_memory,
    open_array,
    read_into,
    reading_context,
)
from jaxspec.market import SCHEMA, Layout, Ledger, Rows, dtype_of

if TYPE_CHECKING:
    from jaxtyping import Int

__all__ = ["Blocks", "Contents", "Reading", "read_contents"]

SMALLEST = 2  # points and classes that a market without a learnware has room for


@dataclasses.dataclass(frozen=True)
class Part:
    """One segment of a version, and what of it belongs to the version.

    Attributes:
        segment: what it says of itself.
        kept: (k,) its rows that belong to the version, ascending.
        numbering: (names + 1,) the ledger's numbers of its class names, as of `enter_segment`.
    """

    segment: Segment
    kept: Int[np.ndarray, " k"]
    numbering: Int[np.ndarray, " names"]

    @property
    def complete(self) -> bool:
        """Whether all of its rows belong to the version."""
        return len(self.kept) == len(self.segment.ids)


class Reading:
    """Rows that are being read; `wait` returns when they are in memory."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Any, Callable[[], None] | None]] = []

    def add(self, future: Any, finish: Callable[[], None] | None) -> None:
        """Note one more part that is being read, and what is to be done with it then."""
        self._waiting.append((future, finish))

    def wait(self) -> None:
        """Wait for all parts.

        Raises:
            ValueError, OSError: a part cannot be read.
        """
        waiting, self._waiting = self._waiting, []
        for future, finish in waiting:
            future.result()
            if finish is not None:
                finish()


class Contents:
    """The rows of a version; see the module's docstring.

    Attributes:
        parts: the segments in the market's order.
        starts: (parts + 1,) the first row of every part, and the number of rows.
        layout: the padded sizes of what is read.
        precision: in which rows are stored.
        origin: (d,) what was subtracted from all points.
    """

    def __init__(
        self, parts: Sequence[Part], dimension: int, precision: str, origin: np.ndarray | None
    ) -> None:
        """Not called by users: `read_contents` makes contents."""
        self.parts, self.precision = tuple(parts), precision
        self.starts = np.cumsum([0, *(len(part.kept) for part in self.parts)])
        layouts = [part.segment.layout for part in self.parts]
        smallest = Layout(SMALLEST, SMALLEST, dimension)
        self.layout = reduce(Layout.joined, layouts) if layouts else smallest
        self.origin = np.zeros(dimension, np.float32) if origin is None else origin
        self._known_origin = origin
        self._opened: dict[tuple[int, str], Any] = {}
        self._context: Any = None

    def __len__(self) -> int:
        return int(self.starts[-1])

    def extended(self, part: Part, origin: np.ndarray) -> Contents:
        """Return contents with one more part."""
        return Contents([*self.parts, part], self.layout.dimension, self.precision, origin)

    def part_of(self, rows: Int[np.ndarray, " n"]) -> Contents:
        """Return contents of some rows, which are ascending."""
        parts = []
        for which, part in enumerate(self.parts):
            low, high = np.searchsorted(rows, self.starts[which : which + 2])
            if low < high:
                kept = part.kept[rows[low:high] - self.starts[which]]
                parts.append(dataclasses.replace(part, kept=kept))
        return Contents(parts, self.layout.dimension, self.precision, self.origin)

    @property
    def has_origin(self) -> bool:
        """Whether the origin is fixed, which it is from the first learnware on."""
        return self._known_origin is not None

    def has_array(self, name: str) -> bool:
        """Tell whether an array is on disk, in any of the segments."""
        return any(name in part.segment.arrays for part in self.parts)

    def row_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a learnware's row of an array."""
        return self.layout.shape(SCHEMA[name].axes, 1)[1:]

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the type of an array."""
        return dtype_of(SCHEMA[name].kind, self.precision)

    def memory(self, names: Sequence[str], count: int, *, first_unused: int = 0) -> Rows:
        """Return rows {name: (count, ...)} to read into; absent arrays are left out.

        Args:
            names: of the arrays.
            count: how many rows.
            first_unused: the rows from here on are unused rows; those before are about to be read.
        """
        return {
            name: aligned_memory(
                (count, *self.row_shape(name)),
                self.dtype(name),
                SCHEMA[name].fill,
                first=first_unused,
            )
            for name in names
            if self.has_array(name) and SCHEMA[name].per_row
        }

    def start(self, memory: Mapping[str, np.ndarray], first: int, last: int) -> Reading:
        """Start to read the rows `first` to `last` into the beginning of memory.

        Args:
            memory: {name: (n, ...)} of `memory`, with n at least `last - first`.
            first: the first row.
            last: the row after the last one.
        """
        started = Reading()
        for which, part in enumerate(self.parts):
            low = max(first, int(self.starts[which]))
            high = min(last, int(self.starts[which + 1]))
            if low >= high:
                continue
            at = part.kept[low - self.starts[which] : high - self.starts[which]]
            for name, whole in memory.items():
                self._start_part(started, which, name, whole[low - first : high - first], at)
        return started

    def rows(self, names: Sequence[str], at: Int[np.ndarray, " n"]) -> Rows:
        """Return single rows {name: (n, ...)} in any order, also repeated."""
        wanted, places = np.unique(np.asarray(at, np.int64), return_inverse=True)
        memory, started = self.memory(names, len(wanted)), Reading()
        which = np.searchsorted(self.starts, wanted, side="right") - 1
        for one in np.unique(which):
            mine = np.flatnonzero(which == one)
            at = self.parts[one].kept[wanted[mine] - self.starts[one]]
            for name, whole in memory.items():
                self._start_part(started, int(one), name, whole[mine[0] : mine[-1] + 1], at)
        started.wait()
        return {name: value[places] for name, value in memory.items()}

    def _start_part(
        self, started: Reading, which: int, name: str, target: np.ndarray, at: np.ndarray
    ) -> None:
        """Start to read rows of one segment into `target`, whose padding may hold other numbers."""
        part = self.parts[which]
        declared = part.segment.arrays.get(name)
        if declared is None:  # an optional part that no learnware of the segment has
            target[...] = SCHEMA[name].fill
            return
        corner = (slice(None), *(slice(0, size) for size in declared.shape[1:]))
        inner = target[corner]
        if inner.shape != target.shape:
            target[...] = SCHEMA[name].fill
        store = self.open(which, name)
        numbering = part.numbering if name == "class_ids" else None
        low, high = int(at[0]), int(at[-1]) + 1
        picked: Any
        if high - low == len(at) and numbering is None and inner.flags.c_contiguous:
            started.add(read_into(inner, store[low:high]), None)
            return
        if high - low <= 2 * len(at) + 64:
            read, picked = np.empty((high - low, *declared.shape[1:]), declared.dtype), at - low
            future = read_into(read, store[low:high])
        else:  # a few rows far apart
            read, picked = np.empty((len(at), *declared.shape[1:]), declared.dtype), slice(None)
            future = read_into(read, store[at])

        def finish() -> None:
            found = read[picked]
            if numbering is not None:
                inside = found.min() >= -1 and found.max() < len(numbering) - 1
                require(inside, "class_ids: expected numbers of class names, got others")
                found = numbering[found]
            inner[...] = found

        started.add(future, finish)

    def open(self, which: int, name: str) -> Any:
        """Return the TensorStore of an array of one of the segments."""
        key = (which, name)
        if key not in self._opened:
            segment = self.parts[which].segment
            self._context = self._context or reading_context()
            self._opened[key] = open_array(
                segment.folder / ARRAYS, name, segment.arrays[name], self._context
            )
        return self._opened[key]


class Blocks:
    """Blocks of rows of a version in turn: one is read while the one before is in use.

    There is memory for two blocks, used in turn. New memory for every block would cost as much as
    the reading itself, because the system clears it page by page.
    """

    def __init__(self, contents: Contents, names: Sequence[str], size: int, path: Path) -> None:
        self._contents, self._size, self._path = contents, size, path
        self._reading = Reading()
        self._memory = [contents.memory(names, size) for _ in range(2)]

    @property
    def count(self) -> int:
        """Learnwares there are."""
        return len(self._contents)

    def start(self, first: int) -> None:
        """Start to read the rows from `first` on, into the memory of the block before the last."""
        last = min(first + self._size, len(self._contents))
        self._memory.reverse()
        with reading(self._path):
            self._reading = self._contents.start(self._memory[0], first, max(first, last))

    def wait(self) -> Rows:
        """Return what was started last: {name: (size, ...)}, not checked.

        Where the market ends before the block, rows of earlier blocks or unused rows follow.

        Raises:
            FileError: it cannot be read.
        """
        with reading(self._path):
            self._reading.wait()
        return self._memory[0]


def read_contents(opened: OpenedVersion) -> tuple[Contents, Ledger]:
    """Return the rows of an opened version, and the ledger of its learnwares.

    Raises:
        ValueError, TypeError, OSError: something is not as it must be.
    """
    ledger, parts, origin = Ledger(), [], None
    for entry, segment in zip(opened.manifest.segments, opened.segments, strict=True):
        context, found = reading_context(), {}
        for name in ("class_ids", "has_probe", "origin"):
            store = open_array(segment.folder / ARRAYS, name, segment.arrays[name], context)
            found[name] = np.asarray(store.read().result())
        check_numbers("origin", found["origin"])
        same = origin is None or np.array_equal(origin, found["origin"])
        require(same, f"origin: expected one for all segments, got another in {entry.name}")
        origin, kept = found["origin"], entry.kept
        numbering = enter_segment(ledger, segment, found["class_ids"], found["has_probe"], kept)
        parts.append(Part(segment, kept, numbering))
    different = len(set(ledger.ids)) == len(ledger.ids)
    require(different, "ids: expected different ones in all segments")
    dimension = opened.space.dimension
    return Contents(parts, dimension, opened.manifest.precision, origin), ledger
