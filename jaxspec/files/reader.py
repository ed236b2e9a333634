"""A saved market that is read in parts: its header whole, and of its arrays the rows asked for.

TensorStore reads the arrays where `jaxspec.files.store.save_market` had Orbax put them: zarr arrays by
field name in an OCDBT database. `jaxspec.stream` calls this; TensorStore, which comes with Orbax,
is imported on first use. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.files import store
from jaxspec.market.arrays import ROW_FIELDS, MarketArrays
from jaxspec.market.market import Market

__all__ = ["Blocks", "Folder", "OnDisk"]

CHUNKS = 16  # stored chunks that are decoded together where single rows are read
CACHE_BYTES = 1 << 26  # of decoded chunks an array: one of the first files, which had such chunks
Rows = dict[str, np.ndarray]


class OnDisk(Market):
    """What a market on disk says of itself, without its rows."""

    def __init__(self, header: store.Header, class_ids: np.ndarray, fixed: dict[str, Any]) -> None:
        storage = store.ledger(header, class_ids)
        shapes = {name: header.arrays.get(name, ((0, 0, 0), "float32")) for name in ROW_FIELDS}
        empty: dict[str, Any] = {
            n: np.zeros((0, *s[1:]), jnp.dtype(dtype)) for n, (s, dtype) in shapes.items()
        }
        storage.arrays = MarketArrays(**empty, **fixed)
        super().__init__(storage, len(header.ids), frozenset(), header.kernel, header.feature_space)

    @property
    def slots(self) -> np.ndarray:
        """Refuse: whoever asks wants rows."""
        raise ValueError("market: its rows are on disk; Market.load reads them")

    @property
    def rows(self) -> np.ndarray:
        """Refuse, as `slots`."""
        return self.slots

    def __getitem__(self, learnware: str) -> Any:
        return self.slots

    def _version(self, *_: Any) -> Any:
        return self.slots


class Folder:
    """A saved market: its header, checked, and its arrays to be read in parts with TensorStore."""

    def __init__(self, target: Path, verify: bool) -> None:
        self.target = target
        with store._naming(target):
            self.header = store.read_header(target)
            if verify:
                store.check_files(self.header)
        d = self.header.arrays["points"][0][2]
        self.fixed: dict[str, Any] = {
            "landmarks": np.zeros((0, d), np.float32),
            "white": np.zeros((0, 0), np.float32),
            **self.whole(("origin", "landmarks", "white")),
            "kernel": jax.tree.map(lambda x: np.asarray(x, np.float32), self.header.kernel),
        }
        class_ids = self.whole(("class_ids",))["class_ids"]
        with store._naming(target):
            self.market = OnDisk(self.header, class_ids, self.fixed)

    def row_bytes(self, names: Sequence[str]) -> int:
        """Return how many bytes a learnware takes in some of the arrays."""
        said = [self.header.arrays[name] for name in names if name in self.header.arrays]
        return sum(int(np.prod(s[1:])) * jnp.dtype(dtype).itemsize for s, dtype in said)

    def open(self, names: Sequence[str]) -> dict[str, Any]:
        """Return TensorStores of those of the arrays that there are.

        Each keeps the chunks that it decoded last: blocks need not end where chunks end.
        """
        import tensorstore

        opened = {}
        with store._naming(self.target):
            for name in names:
                if name not in self.header.arrays:
                    continue
                shape, dtype = self.header.arrays[name]
                base = {"driver": "file", "path": f"{self.header.folder.absolute()}/"}
                found = tensorstore.open(
                    {
                        "driver": "zarr",
                        "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"},
                        "context": {"cache_pool": {"total_bytes_limit": CACHE_BYTES}},
                    },
                    open=True,
                    read=True,
                ).result()
                same = found.shape == shape and found.dtype.numpy_dtype == jnp.dtype(dtype)
                store._check_that(same, f"{name}: expected {dtype} of shape {shape}, got {found!r}")
                opened[name] = found
        return opened

    def check(self, rows: Rows) -> None:
        """Check that numbers which were read are finite."""
        with store._naming(self.target):
            for name, value in rows.items():
                if value.dtype.kind not in "iub":
                    store._check_finite(name, value)

    def finish(self, reading: dict[str, Any]) -> Rows:
        """Wait for arrays that are being read and check them."""
        with store._naming(self.target):
            rows = {name: np.asarray(one.result()) for name, one in reading.items()}
        self.check(rows)
        return self.whole_rows(rows)

    def whole_rows(self, rows: Rows) -> Rows:
        """Return rows with what the first files do not hold of their points."""
        first = not {"scales", "square_norms"} <= set(self.header.arrays)
        if first and "points" in rows:
            store.derive(rows)
        return rows

    def whole(self, names: Sequence[str]) -> Rows:
        """Return whole arrays."""
        return self.finish({name: one.read() for name, one in self.open(names).items()})

    def take(self, names: Sequence[str], at: np.ndarray) -> Rows:
        """Return the rows `at`, (n,) in any order: {field: (n, ...)}."""
        wanted, places = np.unique(at, return_inverse=True)
        found: Rows = {}
        for name, one in self.open(names).items():
            rows = one.chunk_layout.read_chunk.shape[0]
            _, chunk = np.unique(wanted // rows, return_inverse=True)
            cuts = np.flatnonzero(np.diff(chunk // CHUNKS)) + 1  # chunks are decoded whole
            parts = [self.finish({name: one[some].read()}) for some in np.split(wanted, cuts)]
            found[name] = np.concatenate([part[name] for part in parts])[places]
        return self.whole_rows(found)


class Blocks:
    """Blocks of rows of a saved market in turn: one is read while the one before is in use.

    Both keep their memory. New memory for every block would cost as much as the reading itself:
    the system clears it page by page.
    """

    def __init__(self, folder: Folder, names: Sequence[str], size: int) -> None:
        self.folder, self.size = folder, size
        self.reading: list[Any] = []
        self.stores = folder.open(names)
        self.memory = [
            {name: _memory(size, name, one) for name, one in self.stores.items()} for _ in range(2)
        ]

    def start(self, first: int) -> None:
        """Start to read the rows from `first` on, over the block before the one in use."""
        import tensorstore

        last = min(first + self.size, len(self.folder.market))
        self.memory.reverse()
        if first < last:
            self.reading = [
                tensorstore.array(memory[: last - first], copy=False, write=True).write(
                    self.stores[name][first:last]
                )
                for name, memory in self.memory[0].items()
            ]

    def wait(self) -> Rows:
        """Return what was started last, unchecked: {field: (size, ...)}.

        Where the market ends before the block, rows of earlier blocks or of no learnware follow.
        """
        with store._naming(self.folder.target):
            for one in self.reading:
                one.result()
        return self.memory[0]


def _memory(size: int, name: str, stored: Any) -> np.ndarray:
    """Return rows of no learnware, at an address (64 bytes) from which jax needs no copy."""
    shape, dtype = (size, *stored.shape[1:]), stored.dtype.numpy_dtype
    count = int(np.prod(shape)) * dtype.itemsize
    whole = np.empty(count + 64, np.uint8)
    first = -whole.ctypes.data % 64
    memory = whole[first : first + count].view(dtype).reshape(shape)
    memory[:] = -1 if name == "class_ids" else 0
    return memory
