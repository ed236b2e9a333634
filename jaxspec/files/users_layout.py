"""How a file of many users is laid out: its arrays in order, their types, texts and checksum.

`users_writer` writes such files and `users_file` reads them. Nothing here opens a file.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxspec.files.bounded_json import json_text, require
from jaxspec.market import MAX_ID

__all__ = [
    "ARRAYS",
    "BLOCK_USERS",
    "KIND",
    "MAX_HEADER_BYTES",
    "MAX_POINTS",
    "NUMBERS",
    "TABLES",
    "TYPES",
    "VALUES",
    "VERSION",
    "checksum_of",
    "joined_text",
    "little",
    "split_text",
]

KIND, VERSION = "StackedUsers", 1
BLOCK_USERS = 1024  # users with one checksum
MAX_HEADER_BYTES = 1 << 16  # two dozen arrays and one short text
MAX_POINTS = 1 << 20  # of one user, as in a file of one
NUMBERS = {  # in the order of the file: name -> (type, axes)
    "points": ("F32", ("point", "feature")),
    "weights": ("F32", ("point",)),
    "labels": ("I32", ("point",)),
    "class_vectors": ("F32", ("class", "feature")),
    "class_bias": ("F32", ("class",)),
}
TABLES = {
    "counts": ("I64", ("user",)),
    "examples": ("I64", ("user",)),
    "label_space": ("I32", ("user",)),
    "id_ends": ("I64", ("user",)),
    "id_text": ("U8", ("id_byte",)),
    "space_ends": ("I64", ("label_space",)),
    "space_names": ("I32", ("entry",)),
    "name_ends": ("I64", ("name",)),
    "name_text": ("U8", ("name_byte",)),
    "checksums": ("U32", ("block",)),
}
ARRAYS = {**NUMBERS, **TABLES}
TYPES = {"F32": np.float32, "I32": np.int32, "I64": np.int64, "U8": np.uint8, "U32": np.uint32}
VALUES = ("dimension", "space_digest", "space_name", "users")


def little(name: str) -> Any:
    """Return the type of an array in the file: little-endian whatever the machine."""
    return np.dtype(TYPES[ARRAYS[name][0]]).newbyteorder("<")


def checksum_of(values: Mapping[str, Any], tables: Mapping[str, np.ndarray]) -> int:
    """Return the checksum of everything but the numbers of users."""
    checksum = zlib.crc32(json_text(dict(values)).encode())
    for name in TABLES:
        data = np.ascontiguousarray(tables[name], little(name))
        checksum = zlib.crc32(data.tobytes(), checksum)
    return checksum


def joined_text(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return where each text ends, and all of them in UTF-8 as one array."""
    data = [text.encode() for text in texts]
    ends = np.cumsum([len(one) for one in data], dtype=np.int64)
    return ends, np.frombuffer(b"".join(data), np.uint8)


def split_text(name: str, text: np.ndarray, ends: np.ndarray) -> tuple[str, ...]:
    """Return the texts that `joined_text` was given.

    Raises:
        ValueError: ends that are none, or a text that is empty or too long.
    """
    data, starts = text.tobytes(), np.concatenate([[0], ends[:-1]])
    sizes = ends - starts
    good = len(ends) and ends[-1] == len(data) and (sizes >= 1).all()
    require(good and (sizes <= 4 * MAX_ID).all(), f"{name}_ends: expected ends of short texts")
    pairs = zip(starts.tolist(), ends.tolist(), strict=True)
    return tuple([data[start:end].decode() for start, end in pairs])
