"""What a version of a market on disk says of its learnwares, and the rows that are asked for.

A `StoredMarket` knows ids, class names and metadata as a `Market` does, but holds no rows: it is
what `jaxspec.match` streams. Every row that is read is checked. Nothing here writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxspec.base import reading
from jaxspec.files.bounded_json import require
from jaxspec.files.folders.contents import Blocks
from jaxspec.files.folders.row_checks import check_rows
from jaxspec.files.folders.view import View
from jaxspec.kernels import Kernel
from jaxspec.market import SCHEMA, AboutColumns, Ledger, Rows
from jaxspec.specify import Space

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

__all__ = ["StoredMarket"]


class StoredMarket:
    """One version of a market on disk, for reading.

    Attributes:
        path: of the folder.
        version: the name of the version that is open.
        identity: its name and checksum, which no other version has.
        space: of all learnwares.
        precision: in which rows are stored.
        ledger: ids, class names and metadata; the slot of a learnware is its row.
        ids: in the market's order.
        origin: (d,) what was subtracted from all points.
        fixed: the arrays without an axis of learnwares, as numpy arrays, and the kernel.
        block_size: learnwares that `match` reads together, or None.
    """

    path: Path

    def _become(self, view: View, block_size: int | None) -> None:
        self._view, self.block_size = view, block_size
        opened = view.opened
        self.version: str = opened.info.name
        self.identity: str = opened.identity
        self.space: Space = opened.space
        self.precision: str = opened.manifest.precision
        self.ledger: Ledger = view.ledger
        self.ids: tuple[str, ...] = view.ids
        self.origin: Float[np.ndarray, " d"] = view.contents.origin
        self.fixed: Mapping[str, Any] = self._fixed()

    # What is in it

    def _fixed(self) -> dict[str, Any]:
        d = self.space.dimension
        landmarks, whitening = np.zeros((0, d), np.float32), np.zeros((0, 0), np.float32)
        if self.probed:
            landmarks = np.asarray(self.space.landmarks) - self.origin
            whitening = np.asarray(self.space.whitening)
        kernel = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), self.space.kernel)
        return {
            "landmarks": landmarks,
            "whitening": whitening,
            "origin": self.origin,
            "kernel": kernel,
        }

    @property
    def kernel(self) -> Kernel:
        """The kernel of the space."""
        return self.space.kernel

    @property
    def dimension(self) -> int:
        """The number of features."""
        return self.space.dimension

    @property
    def about(self) -> AboutColumns:
        """The owners' metadata as columns: `folder.about["licence"] == "MIT"` is a mask."""
        return AboutColumns(self.ledger, np.arange(len(self)))

    @property
    def verified(self) -> Bool[np.ndarray, " M"]:
        """Which learnwares are marked as verified, (M,)."""
        return np.array([entry.verified for entry in self.ledger.entries], bool)

    def is_verified(self, slot: int) -> bool:
        """Tell whether the learnware in a slot is marked as verified."""
        return self.ledger.entries[slot].verified

    def without_proxy(self) -> tuple[str, ...]:
        """Return the ids of learnwares of which only the reduced set is known."""
        return tuple(self.ledger.ids[slot] for slot in self.ledger.label_spaces.get((), ()))

    @property
    def probed(self) -> bool:
        """Whether learnwares have probe proxies."""
        return self._view.contents.layout.landmarks > 0

    @property
    def segments(self) -> tuple[int, ...]:
        """How many learnwares each of the segments holds, in the market's order."""
        return tuple(len(part.kept) for part in self._view.contents.parts)

    def __len__(self) -> int:
        return len(self._view)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __contains__(self, learnware: object) -> bool:
        return self._view.row_of(learnware) is not None

    def __repr__(self) -> str:
        return (
            f"MarketFolder({str(self.path)!r}, {self.version}, {len(self)} learnwares, space "
            f"{self.space.name!r}, {self.precision})"
        )

    def class_names(self, learnware: str) -> tuple[str, ...]:
        """Return the class names of one learnware, in the order of its proxy's columns.

        Raises:
            KeyError: no learnware has this id.
        """
        row = self._view.row_of(learnware)
        if row is None:
            raise KeyError(f"no learnware {learnware!r:.80} in this market of {len(self)}")
        return self.ledger.entries[row].class_names

    def most_shared_names(self, names: Sequence[str]) -> int:
        """Return how many of these class names one learnware has, at most."""
        counts = sorted(self.ledger.shared_counts(names).items(), key=lambda item: -item[1])
        for space, count in counts:
            if self.ledger.label_spaces[space][0] < len(self):
                return count
        return 0

    # Rows

    def has_array(self, name: str) -> bool:
        """Tell whether an array is on disk: it is saved, and the market has its optional part."""
        return self._view.contents.has_array(name)

    def row_bytes(self, names: Sequence[str]) -> int:
        """Return how many bytes a learnware takes in these arrays; absent ones count nothing."""
        memory = self._view.contents.memory([name for name in names if name in SCHEMA], 1)
        return sum(value.nbytes for value in memory.values())

    def whole(self, names: Sequence[str]) -> Rows:
        """Return complete arrays {name: numbers}; names that are not on disk are left out.

        Raises:
            FileError: an array is damaged.
        """
        contents = self._view.contents
        with reading(self.path):
            _check_names(names)
            found = contents.memory(names, len(self))
            contents.start(found, 0, len(self)).wait()
        self.check(found)
        return {**found, "origin": self.origin} if "origin" in names else found

    def rows(self, names: Sequence[str], at: Int[np.ndarray, " n"]) -> Rows:
        """Return single rows {name: (n, ...)}; names that are not on disk are left out.

        Args:
            names: of arrays with an axis of learnwares.
            at: (n,) rows in any order, also repeated.

        Raises:
            FileError: an array is damaged.
        """
        with reading(self.path):
            _check_names(names)
            found = self._view.contents.rows(names, at)
            check_rows(found, lambda row: self.ids[at[row]])
        return found

    def blocks(self, names: Sequence[str], size: int) -> Blocks:
        """Return a reader of `size` rows at a time; names that are not on disk are left out.

        Raises:
            FileError: an array is not as it is declared.
        """
        with reading(self.path):
            _check_names(names)
            return Blocks(self._view.contents, names, size, self.path)

    def check(self, rows: Mapping[str, np.ndarray], first: int = 0) -> None:
        """Raise unless numbers that were read in blocks can be scored.

        Args:
            rows: {name: (n, ...)}, the numbers.
            first: the row of the first of them.

        Raises:
            FileError: they cannot; the message names the array and the learnware.
        """
        with reading(self.path):
            check_rows(rows, lambda row: self.ids[first + row])


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        require(isinstance(name, str), f"names: expected strings, got {name!r:.80}")
