"""One safetensors file with declared arrays and one JSON text: how it is written and read.

A `FileKind` declares which arrays a file has, with their axes and types. `to_bytes` writes them;
everything else and a checksum are one JSON text in the file's metadata. The same values give the
same bytes. `read_parts` compares sizes, names, types and shapes with the declaration and with the
file's size before any number is read, and never runs anything that a file holds.
"""

from __future__ import annotations

import dataclasses
import io
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxspec.files.bounded_json import json_text, parse_json, require
from jaxspec.files.regular_files import open_regular, seems_to_be
from jaxspec.specify import check_part

__all__ = ["ArrayField", "Arrays", "FileKind", "read_file", "read_parts", "to_bytes"]

Arrays = dict[str, np.ndarray]

MAX_FILE_BYTES = 1 << 30  # 100 times a specification of 1,000 classes and 2,048 features
MAX_HEADER_BYTES = 1 << 25  # 100,000 class names of 100 characters take a third of it
# 100,000 class names with their commas are 200,000; read, so many items take at most some 40 MB.
MAX_ITEMS = 1 << 18
HEADER_DEPTH = 3  # the list of a shape, in the object of an array, in the object of the header
TEXT_DEPTH = 3  # a list or an object, in the values, in the object of the text
# Sizes beyond these are mistakes or attacks; they bound what is computed from a file.
LARGEST_SIZES = {
    "feature": 1 << 16,  # the widest public extractors give some 10,000 features
    "point": 1 << 20,  # two points per class of a user with 100,000 classes, and room
    "class": 100_000,  # as many names as `as_class_names` takes
    "landmark": 1 << 16,  # a hundred times those of a space
    "direction": 1 << 10,  # a hundred times those of a representation
    "probe_row": 1 << 24,  # one for each picture of the largest public sets
}
_TYPES: Mapping[str, Mapping[str, Any]] = {
    "float": {"F32": np.float32, "F64": np.float64, "F16": np.float16},
    "float32": {"F32": np.float32},
    "integer": {"I32": np.int32, "I64": np.int64, "I16": np.int16, "I8": np.int8},
}
_METADATA = "jaxspec"  # one name only: safetensors writes several in no fixed order


@dataclasses.dataclass(frozen=True)
class ArrayField:
    """What there is to know about one array of a file.

    Attributes:
        kind: "float", "float32" or "integer".
        axes: names of the axes; axes of one name have one size.
        part: the optional part that the array belongs to, "" for none. The arrays of one part are
            all there or all absent.
    """

    kind: str
    axes: tuple[str, ...]
    part: str = ""


@dataclasses.dataclass(frozen=True)
class FileKind:
    """What there is to know about one kind of file.

    Attributes:
        name: of the class that is saved.
        version: of the fields, which is written; files of a newer version are refused.
        oldest: version that is still read.
        arrays: {name: declaration}.
        values: {name: function}, everything except arrays. A function returns the checked value,
            or raises a TypeError or ValueError.
        fixed_sizes: returns {axis: size} from the checked values, where they fix sizes.
        check: raises if checked values and arrays do not fit to each other.
    """

    name: str
    version: int
    arrays: Mapping[str, ArrayField]
    values: Mapping[str, Callable[[Any], Any]]
    fixed_sizes: Callable[[Mapping[str, Any]], dict[str, int]]
    check: Callable[[Mapping[str, Any], Mapping[str, np.ndarray]], None]
    oldest: int = 1


def to_bytes(kind: FileKind, values: Mapping[str, Any], arrays: Mapping[str, Any]) -> bytes:
    """Return the contents of a file, which `read_parts` accepts.

    Args:
        kind: of the file.
        values: {name: value for JSON}, all names that the kind declares.
        arrays: {name: array}, of any memory order and byte order.

    Raises:
        TypeError, ValueError: something that `read_parts` would refuse.
    """
    import safetensors.numpy

    native = {name: _native(value) for name, value in arrays.items()}
    for name, array in native.items():
        known = array.dtype in [np.dtype(one) for one in _TYPES[kind.arrays[name].kind].values()]
        require(known, f"{name}: expected {_wanted(kind.arrays[name])}, got dtype {array.dtype}")
    document = {
        "format": "jaxspec",
        "kind": kind.name,
        "format_version": kind.version,
        "values": dict(values),
    }
    document["checksum"] = _checksum(document, native)
    data = safetensors.numpy.save(native, metadata={_METADATA: json_text(document)})
    require(
        len(data) <= MAX_FILE_BYTES, f"expected at most {MAX_FILE_BYTES} bytes, got {len(data)}"
    )
    read_parts(kind, io.BytesIO(data), len(data), lambda: "a safetensors file")
    return data


def read_file(kind: FileKind, path: Path) -> tuple[dict[str, Any], Arrays]:
    """Return the values and the arrays of a file, all of them checked.

    Raises:
        ValueError, TypeError: the file is of another kind, another version, or damaged.
        OSError: it cannot be read.
    """
    if path.is_dir():
        raise ValueError(_foreign(kind, seems_to_be(path)))
    with open_regular(path) as (file, size):
        return read_parts(kind, file, size, lambda: seems_to_be(path))


def read_parts(
    kind: FileKind, file: BinaryIO, size: int, seems: Callable[[], str]
) -> tuple[dict[str, Any], Arrays]:
    """Return the values and the arrays of an open file of `size` bytes, all of them checked.

    Args:
        kind: of the file.
        file: at its start.
        size: in bytes.
        seems: says what the file seems to be, for the error if it is of another kind.

    Raises:
        ValueError, TypeError: the file is of another kind, another version, or damaged.
    """
    import safetensors.numpy

    require(size <= MAX_FILE_BYTES, f"expected at most {MAX_FILE_BYTES} bytes, got {size}")
    start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    if len(start) < 9 or start[8:] != b"{" or length > size - 8:
        raise ValueError(_foreign(kind, seems()))
    require(
        length <= MAX_HEADER_BYTES,
        f"header: expected at most {MAX_HEADER_BYTES} bytes, got {length}",
    )
    head = start[8:] + file.read(length - 1)
    header = parse_json("header", head.rstrip(b" "), depth=HEADER_DEPTH, items=MAX_ITEMS)
    document = _document(kind, header.pop("__metadata__", None))
    values = {
        name: _checked_value(name, check, document["values"][name])
        for name, check in kind.values.items()
    }
    shapes = _declared_shapes(kind, header, size - 8 - length)
    check_shapes(kind, shapes, kind.fixed_sizes(values))
    rest = size - 8 - length
    data = file.read(rest)
    require(len(data) == rest, f"expected {rest} bytes of numbers, got {len(data)}")
    arrays = safetensors.numpy.load(start[:8] + head + data)
    checksum = document.pop("checksum")
    require(
        checksum == _checksum(document, arrays),
        "checksum: expected that of the contents, got another, so a number or a name is damaged",
    )
    for name, array in arrays.items():
        check_part(kind.name, name, array, shapes[name])
    kind.check(values, arrays)
    return values, arrays


def check_shapes(
    kind: FileKind, shapes: Mapping[str, tuple[int, ...]], fixed: Mapping[str, int]
) -> None:
    """Raise unless the arrays that there are have the declared axes, of sizes that agree.

    Raises:
        ValueError: they have not; the message names the array.
    """
    parts = {kind.arrays[name].part for name in shapes}
    for name, one in kind.arrays.items():
        wanted = one.part == "" or one.part in parts
        require(not wanted or name in shapes, f"{name}: expected this array, got a file without it")
    sizes = dict(fixed)
    for name in [name for name in kind.arrays if name in shapes]:
        axes, shape = kind.arrays[name].axes, shapes[name]
        expected = ", ".join(f"{axis}={sizes[axis]}" if axis in sizes else axis for axis in axes)
        fits = len(shape) == len(axes) and all(
            sizes.setdefault(axis, size) == size for axis, size in zip(axes, shape, strict=True)
        )
        require(fits, f"{name}: expected shape ({expected}), got {shape}")
        for axis, size in zip(axes, shape, strict=True):
            largest = LARGEST_SIZES[axis]
            require(1 <= size <= largest, f"{name}: expected 1..{largest} for {axis}, got {size}")


def _native(value: Any) -> np.ndarray:
    """Return an array in C order and in the byte order of this machine."""
    array = np.asarray(value, order="C")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _checksum(document: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> int:
    """Return the CRC-32 of the JSON text, and of every array with its name, type and shape."""
    checksum = zlib.crc32(json_text(document).encode())
    for name, array in sorted(arrays.items()):
        described = f"{name} {array.dtype.name} {array.shape}".encode()
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        checksum = zlib.crc32(little.tobytes(), zlib.crc32(described, checksum))
    return checksum


def _document(kind: FileKind, metadata: Any) -> dict[str, Any]:
    """Return the JSON text of a file, with checked names; its values are not checked yet."""
    if not isinstance(metadata, dict) or not isinstance(metadata.get(_METADATA), str):
        raise ValueError(_foreign(kind, "a safetensors file of something else"))
    others = sorted(metadata.keys() - {_METADATA})
    require(not others, f"metadata: expected only {_METADATA!r}, got also {others!r:.80}")
    document = parse_json("metadata", metadata[_METADATA], depth=TEXT_DEPTH, items=MAX_ITEMS)
    names = ["checksum", "format", "format_version", "kind", "values"]
    given = sorted(document) if isinstance(document, dict) else document
    require(given == names, f"metadata: expected an object with {names}, got {given!r:.200}")
    made = document["format"]
    require(made == "jaxspec", f"format: expected 'jaxspec', got {made!r:.80}")
    require(
        document["kind"] == kind.name,
        f"kind: expected a {kind.name}, got {document['kind']!r:.80}",
    )
    version = document["format_version"]
    newer = type(version) is int and version > kind.version
    require(
        type(version) is int and kind.oldest <= version <= kind.version,
        f"format_version: expected {kind.version}, got {version!r:.80}"
        + ("; a newer version of jaxspec wrote this file" if newer else ""),
    )
    values = document["values"]
    require(isinstance(values, dict), f"values: expected an object, got {values!r:.80}")
    for name in kind.values:
        require(name in values, f"{name}: expected this field, got a file without it")
    unknown = sorted(values.keys() - kind.values.keys())
    require(not unknown, f"{unknown[:1]!r:.80}: expected no such field in a {kind.name}")
    return document


def _checked_value(name: str, check: Callable[[Any], Any], value: Any) -> Any:
    try:
        return check(value)
    except (TypeError, ValueError) as error:
        line = str(error)
        raise ValueError(line if line.startswith(name) else f"{name}: {line}") from None


def _declared_shapes(
    kind: FileKind, header: Mapping[str, Any], size: int
) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of arrays that together take `size` bytes."""
    shapes, places = {}, []
    for name, entry in header.items():
        require(name in kind.arrays, f"{name!r:.80}: expected no such array in a {kind.name}")
        names = {"dtype", "shape", "data_offsets"}
        complete = isinstance(entry, dict) and set(entry) == names
        require(complete, f"{name}: expected an object with {sorted(names)}, got {entry!r:.80}")
        types, shape, offsets = (
            _TYPES[kind.arrays[name].kind],
            entry["shape"],
            entry["data_offsets"],
        )
        dtype = entry["dtype"]
        known = isinstance(dtype, str) and dtype in types
        require(known, f"{name}: expected {_wanted(kind.arrays[name])}, got {dtype!r:.80}")
        for what, value in (("shape", shape), ("data_offsets", offsets)):
            good = isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
            require(good, f"{name}: expected {what} of whole numbers, got {value!r:.80}")
        rank = len(kind.arrays[name].axes)
        require(len(shape) == rank, f"{name}: expected {rank} axes, got {len(shape)}")
        taken = math.prod(shape) * np.dtype(types[dtype]).itemsize
        good = len(offsets) == 2 and offsets[1] - offsets[0] == taken
        require(
            good, f"{name}: expected {taken} bytes for shape {shape!r:.80}, got {offsets!r:.80}"
        )
        shapes[name] = tuple(shape)
        places.append(offsets)
    ends = [0, *(end for _, end in sorted(places))]
    starts = [*(start for start, _ in sorted(places)), size]
    require(ends == starts, f"data_offsets: expected arrays that fill {size} bytes without gaps")
    return shapes


def _wanted(field: ArrayField) -> str:
    return f"numbers of type {' or '.join(_TYPES[field.kind])}"


def _foreign(kind: FileKind, seems: str) -> str:
    return f"expected a safetensors file of a {kind.name}; this seems to be {seems}"
