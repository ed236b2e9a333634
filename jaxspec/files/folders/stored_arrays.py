"""Arrays of a market on disk: zarr arrays without compression, each in a folder of its own.

TensorStore, on which Orbax stands, writes and reads them, and so does any program that knows zarr.
Without compression the size of every file follows from the declaration of its array, so that all
of them can be compared before anything is opened or allocated: a changed description (of a chunk of
some terabytes, say) could end the process, and a missing file could be read as zeros.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxspec.base import bucket
from jaxspec.files.bounded_json import parse_json, require
from jaxspec.files.declared_arrays import LARGEST_SIZES
from jaxspec.files.regular_files import read_limited
from jaxspec.market import PRECISIONS, SCHEMA, Layout, dtype_of
from jaxspec.specify import RANK, Space

__all__ = [
    "MAX_CHUNK_BYTES",
    "StoredArray",
    "aligned_memory",
    "check_declared_arrays",
    "declare",
    "expected_files",
    "open_array",
    "read_into",
    "reading_context",
    "stored_array",
    "write_arrays",
]

# Measured with 500 MB on two cores: chunks of 16 MiB were written and read fastest of 4, 16 and 64.
CHUNK_BYTES = 1 << 24
BLOCK_BYTES = 1 << 26  # of rows that are written together
MAX_CHUNK_BYTES = 1 << 26
CACHE_BYTES = 1 << 26  # of chunks per opened version: blocks need not end where chunks end
ALIGNMENT = 64  # bytes; jax takes memory at such addresses without a copy
DESCRIPTION = ".zarray"
MAX_DESCRIPTION_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """What is declared about one array on disk.

    Attributes:
        shape: of the array.
        dtype: of its numbers.
        chunks: the shape of the pieces that are read at once, each a file.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry of the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def as_json(self) -> dict[str, Any]:
        """Return the declaration as it stands in the facts of a segment."""
        return {
            "shape": list(self.shape),
            "dtype": self.dtype.name,
            "chunks": list(self.chunks),
        }

    def description(self) -> dict[str, Any]:
        """Return what the array says of itself on disk, in its `.zarray`."""
        little = self.dtype.newbyteorder("<").str
        return {
            "zarr_format": 2,
            "shape": list(self.shape),
            "chunks": list(self.chunks),
            "dtype": "bfloat16" if self.dtype.name == "bfloat16" else little,
            "order": "C",
            "filters": None,
            "fill_value": None,
            "compressor": None,
            "dimension_separator": ".",
        }


def declare(
    shapes: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]], rows: int
) -> tuple[dict[str, StoredArray], int]:
    """Return how arrays of so many rows are stored, and how many rows are written together.

    Rows are written in blocks, so that a market that is larger than memory can be written. Chunks
    have whole rows, end where blocks end, and are of nearly one size.

    Args:
        shapes: {name: (shape of one row, type)}.
        rows: how many.
    """
    sizes = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in shapes.items()}
    blocks = max(-(-rows * sum(sizes.values()) // BLOCK_BYTES), 1)
    block = -(-rows // blocks)
    pieces = {
        name: bucket(-(-block * size // CHUNK_BYTES), minimum=1) for name, size in sizes.items()
    }
    if blocks > 1:
        largest = max(pieces.values())
        block = -(-block // largest) * largest
    declared = {
        name: StoredArray((rows, *shape), dtype, (-(-block // min(pieces[name], block)), *shape))
        for name, (shape, dtype) in shapes.items()
    }
    return declared, block


def write_arrays(
    folder: Path,
    declared: Mapping[str, StoredArray],
    block: int,
    read: Callable[[int, int], Mapping[str, np.ndarray]],
) -> None:
    """Write arrays to a new folder; the files need not be on disk at the return.

    Args:
        folder: which one.
        declared: as of `declare`, which also says how many rows are written together.
        block: rows that are written together.
        read: returns the rows from a first to a last, {name: (last - first, ...)}; they are not
            changed until two more blocks were read.

    Raises:
        ValueError, OSError: they cannot be written.
    """
    import tensorstore

    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})
    opening: dict[str, Any] = {}
    for name, stored in declared.items():
        spec = {
            "driver": "zarr",
            "kvstore": _location(folder / name),
            "metadata": stored.description(),
        }
        opening[name] = tensorstore.open(spec, create=True, context=context)
    stores = {name: one.result() for name, one in opening.items()}
    waiting: list[Any] = []
    rows = max((one.shape[0] for one in declared.values()), default=0)
    for first in range(0, rows, block):
        last = min(first + block, rows)
        values = read(first, last)  # while the block before is being written
        for one in waiting:
            one.result()
        waiting = [
            store[first:last].write(np.ascontiguousarray(values[name]))
            for name, store in stores.items()
        ]
    for one in waiting:
        one.result()


def expected_files(name: str, stored: StoredArray) -> dict[str, int | None]:
    """Return {file: bytes} of an array, with None for its description."""
    counts = [-(-size // chunk) for size, chunk in zip(stored.shape, stored.chunks, strict=True)]
    size = math.prod(stored.chunks) * stored.dtype.itemsize
    files: dict[str, int | None] = {f"{name}/{DESCRIPTION}": None}
    for place in itertools.product(*map(range, counts)):
        files[f"{name}/{'.'.join(map(str, place))}"] = size
    return files


def check_declared_arrays(
    declared: Any, count: int, space: Space, precision: str
) -> tuple[dict[str, StoredArray], Layout]:
    """Check the declaration of the arrays of a market, and return it with the layout it implies.

    Args:
        declared: {name: {"shape", "dtype", "chunks"}}.
        count: learnwares.
        space: of the market.
        precision: in which rows are stored.

    Raises:
        ValueError: not the arrays of a market of these learnwares; the message names the array.
    """
    require(isinstance(declared, dict), f"arrays: expected an object, got {declared!r:.80}")
    unknown = sorted(name for name in declared if name not in SCHEMA or not SCHEMA[name].saved)
    require(not unknown, f"arrays: expected no array {unknown[:1]!r:.80}")
    parts = {SCHEMA[name].part for name in declared} | {""}
    for name, one in SCHEMA.items():
        wanted = one.saved and one.part in parts
        require(not wanted or name in declared, f"arrays: expected {name}, got none of this name")
    arrays = {name: _declared_array(name, declared[name]) for name in SCHEMA if name in declared}
    require("probe" not in parts or space.probe is not None, "arrays: the space has no probe")
    points = _size_of("points", arrays["points"].shape, 1, LARGEST_SIZES["point"])
    layout = Layout(
        points=points,
        classes=_size_of("class_ids", arrays["class_ids"].shape, 1, LARGEST_SIZES["class"]),
        dimension=space.dimension,
        landmarks=len(space.landmarks) if "probe" in parts else 0,
        directions=RANK if "representation" in parts else 0,
    )
    for name, stored in arrays.items():
        shape = layout.shape(SCHEMA[name].axes, count)
        require(stored.shape == shape, f"{name}: expected shape {shape}, got {stored.shape}")
        dtype = dtype_of(SCHEMA[name].kind, precision)
        require(stored.dtype == dtype, f"{name}: expected dtype {dtype}, got {stored.dtype}")
    return arrays, layout


def open_array(folder: Path, name: str, stored: StoredArray, context: Any) -> Any:
    """Return the TensorStore of one array.

    Args:
        folder: of the arrays.
        name: of the array.
        stored: its declaration; the sizes of its files were compared with it before.
        context: of `reading_context`.

    Raises:
        ValueError: the array is described otherwise than it is declared.
        OSError: it cannot be read.
    """
    import tensorstore

    place = f"{name}/{DESCRIPTION}"
    text = read_limited(folder / name / DESCRIPTION, MAX_DESCRIPTION_BYTES)
    described, expected = parse_json(place, text, depth=3), stored.description()
    require(isinstance(described, dict), f"{place}: expected an object")
    for key, wanted in expected.items():
        given = described.get(key)
        require(
            key in described and given == wanted,
            f"{place}: expected {key} {wanted}, as the facts say, got {given!r:.80}",
        )
    more = sorted(described.keys() - expected.keys())
    require(not more, f"{place}: expected no {more[:1]!r:.80}")
    return tensorstore.open(
        {
            "driver": "zarr",
            "kvstore": _location(folder / name),
            "metadata": expected,
            "recheck_cached_data": "open",
            "recheck_cached_metadata": "open",
            "fill_missing_data_reads": False,  # a missing chunk is an error, not zeros
        },
        open=True,
        read=True,
        context=context,
    ).result()


def reading_context() -> Any:
    """Return the TensorStore context that the arrays of one version share."""
    import tensorstore

    return tensorstore.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})


def read_into(memory: np.ndarray, stored: Any) -> Any:
    """Start to read a TensorStore, or a part of one, into memory of its shape; return a future."""
    import tensorstore

    return tensorstore.array(memory, copy=False, write=True).write(stored)


def aligned_memory(
    shape: tuple[int, ...], dtype: np.dtype[Any], fill: int = 0, *, first: int = 0
) -> np.ndarray:
    """Return memory at an address from which jax needs no copy.

    Args:
        shape: of the array.
        dtype: of its numbers.
        fill: the value of the rows from `first` on.
        first: the rows before are about to be read, and hold anything.
    """
    count = math.prod(shape) * dtype.itemsize
    buffer = np.empty(count + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    memory = buffer[start : start + count].view(dtype).reshape(shape)
    memory[first:] = fill
    return memory


def stored_array(name: str, entry: Any, known: Mapping[str, np.dtype[Any]]) -> StoredArray:
    """Return the checked declaration of one array.

    Args:
        name: of the array, for errors.
        entry: {"shape", "dtype", "chunks"} as in JSON.
        known: the types that the array may have, by name.

    Raises:
        ValueError: it is none.
    """
    names = ["chunks", "dtype", "shape"]
    good = isinstance(entry, dict) and sorted(entry) == names
    require(good, f"{name}: expected an object with {names}, got {entry!r:.80}")
    dtype = known.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise ValueError(f"{name}: expected dtype {sorted(known)}, got {entry['dtype']!r:.40}")
    shape = _whole_numbers(f"{name}: shape", entry["shape"])
    chunks = _whole_numbers(f"{name}: chunks", entry["chunks"])
    good = len(shape) == len(chunks)
    good = good and all(chunk <= size for chunk, size in zip(chunks, shape, strict=True))
    good = good and chunks[1:] == shape[1:]
    # One row may be larger than a chunk should be: a learnware of very many points.
    good = good and (chunks[0] == 1 or math.prod(chunks) * dtype.itemsize <= MAX_CHUNK_BYTES)
    require(good, f"{name}: expected chunks of whole rows of {shape}, got {chunks!r:.80}")
    return StoredArray(shape, dtype, chunks)


def _location(folder: Path) -> dict[str, Any]:
    # Files are synchronised together once all of them are written, which takes a tenth of the time.
    return {"driver": "file", "path": f"{folder.absolute()}/", "file_io_sync": False}


def _whole_numbers(name: str, values: Any) -> tuple[int, ...]:
    good = isinstance(values, list) and all(type(one) is int and one >= 1 for one in values)
    require(good, f"{name}: expected a list of integers above zero, got {values!r:.80}")
    return tuple(values)


def _declared_array(name: str, entry: Any) -> StoredArray:
    known = {one.name: one for one in (dtype_of(SCHEMA[name].kind, p) for p in PRECISIONS)}
    stored, axes = stored_array(name, entry, known), SCHEMA[name].axes
    require(len(stored.shape) == len(axes), f"{name}: expected axes {axes}, got {stored.shape}")
    return stored


def _size_of(name: str, shape: tuple[int, ...], axis: int, largest: int) -> int:
    require(shape[axis] <= largest, f"{name}: expected at most {largest}, got shape {shape}")
    return shape[axis]
