"""Arrays of a market on disk, as Orbax stores them: zarr arrays by name in an OCDBT database.

TensorStore, which comes with Orbax, reads them. Before it opens an array, the array's own
description on disk is compared with what the market's header says, because a changed description
(of a chunk of some terabytes, say) could end the process. Nothing is written here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxspec.files.bounded_json import parse_json, require
from jaxspec.files.declared_arrays import LARGEST_SIZES
from jaxspec.market import PRECISIONS, SCHEMA, Layout, dtype_of
from jaxspec.specify import LARGEST, RANK, Space

__all__ = [
    "MAX_CHUNK_BYTES",
    "StoredArray",
    "aligned_memory",
    "check_declared_arrays",
    "check_numbers",
    "describe",
    "open_arrays",
    "read_into",
]

CACHE_BYTES = 1 << 26  # of decoded chunks per array: blocks need not end where chunks end
MAX_CHUNK_BYTES = 1 << 26  # sixteen times the size that is asked for when a market is saved
ALIGNMENT = 64  # bytes; jax takes memory at such addresses without a copy


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """What the header says about one array on disk.

    Attributes:
        shape: of the array.
        dtype: of its numbers.
        chunks: the shape of the pieces that are read at once.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry of the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def check_declared_arrays(
    declared: Any, count: int, space: Space, precision: str
) -> tuple[dict[str, StoredArray], Layout]:
    """Check the header's declaration of the arrays, and return it with the layout it implies.

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
    arrays = {name: _stored_array(name, declared[name]) for name in SCHEMA if name in declared}
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


def describe(folder: Path, name: str) -> dict[str, Any]:
    """Return how an array describes itself on disk: the object in its `.zarray`.

    Raises:
        ValueError: there is no such array.
    """
    import tensorstore

    found = tensorstore.KvStore.open(_location(folder, name)).result().read(".zarray").result()
    require(found.state == "value", f"{name}: expected this array, got a folder without it")
    described = parse_json(f"{name}/.zarray", bytes(found.value), depth=3)
    require(isinstance(described, dict), f"{name}/.zarray: expected an object")
    return described


def open_arrays(folder: Path, arrays: Mapping[str, StoredArray], names: Sequence[str]) -> Any:
    """Return {name: TensorStore}; names that are not among the arrays are left out.

    Raises:
        ValueError: an array that is not as the header says.
    """
    import tensorstore

    opened = {}
    for name in names:
        if name not in arrays:
            continue
        _check_description(name, describe(folder, name), arrays[name])
        opened[name] = tensorstore.open(
            {
                "driver": "zarr",
                "kvstore": _location(folder, name),
                "context": {"cache_pool": {"total_bytes_limit": CACHE_BYTES}},
                "fill_missing_data_reads": False,  # a missing chunk is an error, not zeros
            },
            open=True,
            read=True,
        ).result()
    return opened


def read_into(memory: np.ndarray, stored: Any) -> Any:
    """Start to read a TensorStore, or a part of one, into memory of its shape; return a future."""
    import tensorstore

    return tensorstore.array(memory, copy=False, write=True).write(stored)


def aligned_memory(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Return unused rows of an array, at an address from which jax needs no copy."""
    count = math.prod(shape) * dtype.itemsize
    buffer = np.empty(count + ALIGNMENT, np.uint8)
    first = -buffer.ctypes.data % ALIGNMENT
    memory = buffer[first : first + count].view(dtype).reshape(shape)
    memory[...] = SCHEMA[name].fill
    return memory


def check_numbers(name: str, array: np.ndarray) -> None:
    """Raise unless numbers of a market are finite, and of a size that can be scored.

    What was read from specifications is at most twice the largest number in these: points are
    relative to an origin, and proxies are centred.

    Raises:
        ValueError: they are not.
    """
    if array.dtype.kind in "iub" or not array.size:
        return
    if array.dtype.name == "bfloat16":  # as bits, where numpy's maximum takes 17 times as long
        bits = (array.view(np.uint16) & 0x7FFF).max()
        largest = float(bits.view(array.dtype))
    else:
        largest = float(max(array.max(), -array.min()))
    require(np.isfinite(largest), f"{name}: expected finite numbers, got NaN or infinity")
    limit = 2 * LARGEST if SCHEMA[name].read is not None else math.inf
    require(largest <= limit, f"{name}: expected at most {limit:.0e}, got {largest:.1e}")


def _location(folder: Path, name: str) -> dict[str, Any]:
    base = {"driver": "file", "path": f"{folder.absolute()}/"}
    return {"driver": "ocdbt", "base": base, "path": f"{name}/"}


def _check_description(name: str, described: Mapping[str, Any], stored: StoredArray) -> None:
    little = stored.dtype.newbyteorder("<").str
    expected = {
        "zarr_format": 2,
        "shape": list(stored.shape),
        "chunks": list(stored.chunks),
        "dtype": "bfloat16" if stored.dtype.name == "bfloat16" else little,
        "order": "C",
        "filters": None,
        "fill_value": None,
    }
    for key, value in expected.items():
        given = described.get(key)
        require(
            given == value,
            f"{name}/.zarray: expected {key} {value}, as the header says, got {given!r:.80}",
        )


def _whole_numbers(name: str, values: Any) -> tuple[int, ...]:
    good = isinstance(values, list) and all(type(one) is int and one >= 1 for one in values)
    require(good, f"{name}: expected a list of integers above zero, got {values!r:.80}")
    return tuple(values)


def _stored_array(name: str, entry: Any) -> StoredArray:
    names = ["chunks", "dtype", "shape"]
    good = isinstance(entry, dict) and sorted(entry) == names
    require(good, f"{name}: expected an object with {names}, got {entry!r:.80}")
    known = {dtype_of(SCHEMA[name].kind, one) for one in PRECISIONS}
    dtype = next((one for one in known if one.name == entry["dtype"]), None)
    if dtype is None:
        wanted = sorted(one.name for one in known)
        raise ValueError(f"{name}: expected dtype {wanted}, got {entry['dtype']!r:.40}")
    shape = _whole_numbers(f"{name}: shape", entry["shape"])
    chunks = _whole_numbers(f"{name}: chunks", entry["chunks"])
    good = len(shape) == len(chunks) == len(SCHEMA[name].axes)
    good = good and all(chunk <= size for chunk, size in zip(chunks, shape, strict=True))
    good = good and math.prod(chunks) * dtype.itemsize <= MAX_CHUNK_BYTES
    require(good, f"{name}: expected chunks within the shape {shape}, got {chunks!r:.80}")
    return StoredArray(shape, dtype, chunks)


def _size_of(name: str, shape: tuple[int, ...], axis: int, largest: int) -> int:
    require(shape[axis] <= largest, f"{name}: expected at most {largest}, got shape {shape}")
    return shape[axis]
