"""A saved market that is read in parts: its header at once, and of its arrays the rows asked for.

`MarketFolder` is for markets that are larger than memory: `jaxspec.match` streams it. It knows ids,
class names and metadata as a `Market` does, but holds no rows. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxspec.base import PathLike, as_size, existing_path, reading
from jaxspec.files.bounded_json import require
from jaxspec.files.market_header import ARRAYS, check_files, ledger_of, read_header
from jaxspec.files.regular_files import seems_to_be
from jaxspec.files.stored_arrays import aligned_memory, check_numbers, open_arrays, read_into
from jaxspec.kernels import Kernel
from jaxspec.market import AboutColumns, Ledger, Rows
from jaxspec.specify import Space

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

__all__ = ["Blocks", "MarketFolder"]

CHUNKS = 16  # stored chunks that are decoded together where single rows are read


class MarketFolder:
    """A market on disk that is read in parts.

    Attributes:
        path: of the folder.
        version: identifies the version that is read; a later save is not seen.
        space: of all learnwares.
        precision: in which rows are stored.
        ledger: ids, class names and metadata; the slot of a learnware is its row.
        ids: in the market's order.
        origin: (d,) what was subtracted from all points.
        fixed: the arrays without an axis of learnwares, as numpy arrays, and the kernel.
        block_size: learnwares that `match` reads together, or None.
    """

    def __init__(
        self, path: PathLike, *, verify: bool = False, block_size: int | None = None
    ) -> None:
        """Open a folder of `Market.save`.

        Args:
            path: the folder.
            verify: read all files once and check their checksums, as `Market.load` does. What is
                read later is checked to be finite in any case.
            block_size: learnwares that `match` reads together; None for some 32 MiB of them.

        Raises:
            TypeError: `path` is neither a string nor a path, or a block size that is not an
                integer.
            ValueError: a block size below one.
            FileNotFoundError: there is nothing at `path`.
            FileError: not such a folder, of another version, or with a field that is not as it
                must be; the message names the folder and the field.
        """
        self.block_size = None if block_size is None else as_size("block_size", block_size)
        self.path = existing_path(path)
        with reading(self.path):
            if not self.path.is_dir():
                raise ValueError(
                    f"expected the folder of a market; this seems to be {seems_to_be(self.path)}"
                )
            self._header = read_header(self.path)
            if verify:
                check_files(self._header)
        self.space: Space = self._header.space
        self.precision: str = self._header.precision
        self.version: str = self._header.version
        found = self.whole(("class_ids", "has_probe", "origin"))
        self.origin: Float[np.ndarray, " d"] = found["origin"]
        with reading(self.path):
            self.ledger: Ledger = ledger_of(self._header, found["class_ids"], found["has_probe"])
        self.ids: tuple[str, ...] = tuple(self._header.ids)
        self.fixed: Mapping[str, Any] = self._fixed()

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

    @property
    def probed(self) -> bool:
        """Whether learnwares have probe proxies."""
        return self._header.layout.landmarks > 0

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __contains__(self, learnware: object) -> bool:
        return isinstance(learnware, str) and bool(self.ledger.slots_of(learnware))

    def __repr__(self) -> str:
        return (
            f"MarketFolder({str(self.path)!r}, {len(self)} learnwares, space {self.space.name!r}, "
            f"{self.precision})"
        )

    def class_names(self, learnware: str) -> tuple[str, ...]:
        """Return the class names of one learnware, in the order of its proxy's columns.

        Raises:
            KeyError: no learnware has this id.
        """
        slots = self.ledger.slots_of(learnware)
        if not slots:
            raise KeyError(f"no learnware {learnware!r:.80} in this market of {len(self)}")
        return self.ledger.entries[slots[0]].class_names

    def most_shared_names(self, names: Sequence[str]) -> int:
        """Return how many of these class names one learnware has, at most."""
        return max(self.ledger.shared_counts(names).values(), default=0)

    # Rows

    def has_array(self, name: str) -> bool:
        """Tell whether an array is on disk: it is saved, and the market has its optional part."""
        return name in self._header.arrays

    def row_bytes(self, names: Sequence[str]) -> int:
        """Return how many bytes a learnware takes in these arrays; absent ones count nothing."""
        arrays = self._header.arrays
        return sum(arrays[name].row_bytes for name in names if name in arrays)

    def whole(self, names: Sequence[str]) -> Rows:
        """Return complete arrays {name: numbers}; names that are not on disk are left out.

        Raises:
            FileError: an array is damaged.
        """
        with reading(self.path):
            futures = {name: one.read() for name, one in self._open(names).items()}
            found = {name: np.asarray(one.result()) for name, one in futures.items()}
        self.check(found)
        return found

    def rows(self, names: Sequence[str], at: Int[np.ndarray, " n"]) -> Rows:
        """Return single rows {name: (n, ...)}; names that are not on disk are left out.

        Args:
            names: of arrays with an axis of learnwares.
            at: (n,) rows in any order, also repeated.

        Raises:
            FileError: an array is damaged.
        """
        wanted, places = np.unique(np.asarray(at), return_inverse=True)
        found: Rows = {}
        with reading(self.path):
            for name, one in self._open(names).items():
                length = self._header.arrays[name].chunks[0]
                _, chunk = np.unique(wanted // length, return_inverse=True)
                cuts = np.flatnonzero(np.diff(chunk // CHUNKS)) + 1  # chunks are decoded whole
                parts = [np.asarray(one[part].read().result()) for part in np.split(wanted, cuts)]
                found[name] = np.concatenate(parts)[places]
        self.check(found)
        return found

    def blocks(self, names: Sequence[str], size: int) -> Blocks:
        """Return a reader of `size` rows at a time; names that are not on disk are left out.

        Raises:
            FileError: an array is damaged.
        """
        with reading(self.path):
            stores = self._open(names)
        return Blocks(self, stores, size)

    def check(self, rows: Mapping[str, np.ndarray]) -> None:
        """Raise unless numbers that were read in blocks are finite and can be scored.

        Raises:
            FileError: they are not; the message names the array.
        """
        with reading(self.path):
            for name, value in rows.items():
                check_numbers(name, value)

    def _open(self, names: Sequence[str]) -> dict[str, Any]:
        for name in names:
            require(isinstance(name, str), f"names: expected strings, got {name!r:.80}")
        return open_arrays(self._header.folder / ARRAYS, self._header.arrays, names)


class Blocks:
    """Blocks of rows of a saved market in turn: one is read while the one before is in use.

    There is memory for two blocks, used in turn. New memory for every block would cost as much as
    the reading itself, because the system clears it page by page.
    """

    def __init__(self, folder: MarketFolder, stores: Mapping[str, Any], size: int) -> None:
        self.folder, self.stores, self.size = folder, stores, size
        self._reading: list[Any] = []
        self._memory = [
            {
                name: aligned_memory(name, (size, *one.shape[1:]), one.dtype.numpy_dtype)
                for name, one in stores.items()
            }
            for _ in range(2)
        ]

    def start(self, first: int) -> None:
        """Start to read the rows from `first` on, into the memory of the block before the last."""
        last = min(first + self.size, len(self.folder))
        self._memory.reverse()
        if first < last:
            self._reading = [
                read_into(memory[: last - first], self.stores[name][first:last])
                for name, memory in self._memory[0].items()
            ]

    def wait(self) -> Rows:
        """Return what was started last: {name: (size, ...)}, not checked; see `MarketFolder.check`.

        Where the market ends before the block, rows of earlier blocks or unused rows follow.
        """
        with reading(self.folder.path):
            for one in self._reading:
                one.result()
        return self._memory[0]
