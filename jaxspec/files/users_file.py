"""One file with many users of one space, read in parts.

A safetensors file, laid out for reading ranges of users: the arrays of `StackedUsers` one after the
other, with a checksum for every block of users, and small arrays that say where everything lies.
Sizes are compared with the file's size before any number is read, and nothing of a file is run.
`users_writer` writes such files.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from jaxspec.base import PathLike, existing_path, reading
from jaxspec.files import users_layout
from jaxspec.files.bounded_json import parse_json, require
from jaxspec.files.regular_files import open_regular, seems_to_be
from jaxspec.files.users_layout import (
    ARRAYS,
    KIND,
    MAX_HEADER_BYTES,
    MAX_POINTS,
    NUMBERS,
    TABLES,
    TYPES,
    VALUES,
    VERSION,
    checksum_of,
    little,
    split_text,
)
from jaxspec.specify import StackedUsers, as_class_names, check_numbers_of_users

if TYPE_CHECKING:
    from jaxtyping import Int

__all__ = ["UsersFile", "is_users_file"]


class UsersFile:
    """A file of `save_users` that is read in parts.

    Attributes:
        path: of the file.
        space_name: the name of the users' space.
        space_digest: its digest.
        dimension: features of a point.
        ids: of the users, in the order of the file.
        checksum: of everything but the numbers of single users, which have checksums of their own.
    """

    def __init__(self, path: PathLike) -> None:
        """Read everything but the numbers of the users.

        Raises:
            FileNotFoundError: there is nothing at `path`.
            FileError: not such a file, damaged, or with a field that is not as it must be.
        """
        self.path = existing_path(path)
        with reading(self.path), open_regular(self.path) as (file, size):
            self._open(file, size)

    def __len__(self) -> int:
        return len(self.ids)

    def _open(self, file: IO[bytes], size: int) -> None:
        start = file.read(9)
        length = int.from_bytes(start[:8], "little")
        if len(start) < 9 or start[8:] != b"{" or length > size - 8:
            raise ValueError(_foreign(seems_to_be(self.path)))
        require(length <= MAX_HEADER_BYTES, f"header: expected at most {MAX_HEADER_BYTES} bytes, "
                f"got {length}; this is no file of many users")  # fmt: skip
        header = parse_json("header", (start[8:] + file.read(length - 1)).rstrip(b" "), depth=3)
        values, checksum = _values_of(header.pop("__metadata__", None))
        self.space_name, self.space_digest = values["space_name"], values["space_digest"]
        self.dimension, self.checksum = values["dimension"], checksum
        self._places = self._checked_places(header, values, size - 8 - length)
        self._first = 8 + length
        tables = {name: self._read(file, name) for name in TABLES}
        require(
            checksum == checksum_of(values, tables),
            "checksum: expected that of the contents, got another, so the file is damaged",
        )
        self._checksums = tables["checksums"]
        self.ids = split_text("id", tables["id_text"], tables["id_ends"])
        require(len(set(self.ids)) == len(self.ids), "ids: expected different ids, got one twice")
        self._label_spaces = _label_spaces(tables)
        self._counts, self._examples = tables["counts"], tables["examples"]
        self._label_space = tables["label_space"]
        self._check_tables()

    def _checked_places(
        self, header: Mapping[str, Any], values: Mapping[str, Any], size: int
    ) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Return {name: (where it begins, shape)} of arrays that fill the file without gaps."""
        require(list(header) == sorted(header), "header: expected names in order, got others")
        given = sorted(header)
        require(
            given == sorted(ARRAYS), f"header: expected the arrays {sorted(ARRAYS)}, got {given}"
        )
        sizes = {"feature": values["dimension"], "user": values["users"]}
        sizes["block"] = -(-values["users"] // users_layout.BLOCK_USERS)
        places, at = {}, 0
        for name, (kind, axes) in ARRAYS.items():
            entry = header[name]
            good = isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"}
            require(good and entry["dtype"] == kind, f"{name}: expected an array of type {kind}")
            shape = entry["shape"]
            fits = isinstance(shape, list) and len(shape) == len(axes)
            fits = fits and all(type(one) is int and one >= 0 for one in shape)
            fits = fits and all(
                sizes.setdefault(axis, one) == one for axis, one in zip(axes, shape, strict=True)
            )
            expected = ", ".join(f"{axis}={sizes.get(axis, '?')}" for axis in axes)
            require(fits, f"{name}: expected shape ({expected}), got {shape!r:.80}")
            end = at + math.prod(shape) * np.dtype(TYPES[kind]).itemsize
            require(
                entry["data_offsets"] == [at, end],
                f"{name}: expected the bytes from {at} to {end}, got {entry['data_offsets']!r:.80}",
            )
            places[name], at = (at, tuple(shape)), end
        require(at == size, f"expected {at} bytes of numbers, got {size}")
        return places

    def _check_tables(self) -> None:
        spaces = len(self._label_spaces)
        good = (self._label_space >= 0) & (self._label_space < spaces)
        require(good.all(), f"label_space: expected numbers in 0..{spaces - 1}, got others")
        good = (self._counts >= 1) & (self._counts <= MAX_POINTS)
        require(good.all(), f"counts: expected 1..{MAX_POINTS} points per user, got others")
        require((self._examples >= 0).all(), "examples: expected counts, got negative numbers")
        sizes = np.array([len(names) for names in self._label_spaces])
        self._point_ends = np.cumsum(self._counts)
        self._class_ends = np.cumsum(sizes[self._label_space])
        for name, ends in (("points", self._point_ends), ("class_vectors", self._class_ends)):
            rows = self._places[name][1][0]
            require(ends[-1] == rows, f"{name}: expected {ends[-1]} rows, got {rows}")

    def _read(
        self, file: IO[bytes], name: str, first: int = 0, last: int | None = None
    ) -> np.ndarray:
        """Return rows of an array."""
        at, shape = self._places[name]
        last = shape[0] if last is None else last
        kind = np.dtype(little(name))
        width = math.prod(shape[1:]) * kind.itemsize
        file.seek(self._first + at + first * width)
        found = np.empty((last - first, *shape[1:]), kind)
        count = file.readinto(found.reshape(-1).view(np.uint8))  # type: ignore[attr-defined]
        require(count == found.nbytes, f"{name}: expected {found.nbytes} bytes, got {count}")
        return found.astype(kind.newbyteorder("="), copy=False)

    def read(self, first: int, last: int) -> StackedUsers:
        """Return the users first, ..., last - 1; those that cannot be asked with have an error.

        Blocks of users are read as a whole, as far as they are wanted, and their checksums are
        compared: all users of a damaged block have an error.

        Raises:
            FileError: the file was changed or cut while it was open.
        """
        last = min(last, len(self))
        begin = first - first % users_layout.BLOCK_USERS
        end = min(-(-last // users_layout.BLOCK_USERS) * users_layout.BLOCK_USERS, len(self))
        with reading(self.path), open_regular(self.path) as (file, _):
            points = self._range(self._point_ends, begin, end)
            classes = self._range(self._class_ends, begin, end)
            arrays = {
                name: self._read(file, name, *(points if axes[0] == "point" else classes))
                for name, (_, axes) in NUMBERS.items()
            }
        errors: list[str | None] = []
        for start in range(begin, end, users_layout.BLOCK_USERS):
            stop = min(start + users_layout.BLOCK_USERS, end)
            checksum = 0
            for name, (_, axes) in NUMBERS.items():
                ends = self._point_ends if axes[0] == "point" else self._class_ends
                rows = np.array(self._range(ends, start, stop)) - self._range(ends, begin, end)[0]
                data = np.ascontiguousarray(arrays[name][rows[0] : rows[1]], little(name))
                checksum = zlib.crc32(data.tobytes(), checksum)
            said = None
            if checksum != int(self._checksums[start // users_layout.BLOCK_USERS]):
                said = f"{self.path.name}: the checksum of a block of users is wrong: damaged"
            errors += [said] * (stop - start)
        spaces, label_space = np.unique(self._label_space[first:last], return_inverse=True)
        own = [
            np.array(self._range(ends, first, last)) - self._range(ends, begin, end)[0]
            for ends in (self._point_ends, self._class_ends)
        ]
        cut = {
            name: arrays[name][slice(*(own[0] if axes[0] == "point" else own[1]))]
            for name, (_, axes) in NUMBERS.items()
        }
        users = StackedUsers(
            ids=self.ids[first:last],
            errors=tuple(errors[first - begin : last - begin]),
            label_spaces=tuple(self._label_spaces[space] for space in spaces.tolist()),
            label_space=label_space.astype(np.int32),
            counts=self._counts[first:last],
            examples=np.where(self._examples > 0, self._examples, self._counts)[first:last],
            **cut,
        )
        return check_numbers_of_users(users)

    def _range(self, ends: Int[np.ndarray, " Q"], first: int, last: int) -> tuple[int, int]:
        """Return which rows belong to the users first, ..., last - 1."""
        return int(ends[first - 1]) if first else 0, int(ends[last - 1]) if last else 0


def is_users_file(path: Path) -> bool:
    """Tell whether a file says that it is one of many users; nothing else of it is checked."""
    try:
        with open_regular(path) as (file, _):
            length = int.from_bytes(file.read(8), "little")
            return length <= MAX_HEADER_BYTES and f'\\"{KIND}\\"'.encode() in file.read(length)
    except (OSError, ValueError):
        return False


def _values_of(metadata: Any) -> tuple[dict[str, Any], int]:
    """Return the checked values and the checksum of a file's JSON text."""
    if not isinstance(metadata, dict) or not isinstance(metadata.get("jaxspec"), str):
        raise ValueError(_foreign("a safetensors file of something else"))
    document = parse_json("metadata", metadata["jaxspec"], depth=3)
    names = {"checksum", "format", "format_version", "kind", "values"}
    require(isinstance(document, dict) and set(document) == names, "metadata: expected an object "
            f"with {sorted(names)}, got another")  # fmt: skip
    require(document["kind"] == KIND, _foreign(f"a file of a {document['kind']!r:.80}"))
    version, values = document["format_version"], document["values"]
    require(type(version) is int and version == VERSION,
            f"format_version: expected {VERSION}, got {version!r:.80}")  # fmt: skip
    good = isinstance(values, dict) and sorted(values) == sorted(VALUES)
    require(good, f"values: expected an object with {VALUES}, got another")
    for name in ("dimension", "users"):
        value = values[name]
        require(type(value) is int and value >= 1, f"{name}: expected a count, got {value!r:.80}")
    for name in ("space_name", "space_digest"):
        value = values[name]
        good = isinstance(value, str) and 0 < len(value) <= 1000
        require(good, f"{name}: expected a text, got {value!r:.80}")
    return values, document["checksum"]


def _foreign(seems: str) -> str:
    return f"expected a safetensors file of many users (`save_users`); this seems to be {seems}"


def _label_spaces(tables: Mapping[str, np.ndarray]) -> tuple[tuple[str, ...], ...]:
    names = split_text("name", tables["name_text"], tables["name_ends"])
    ends, entries = tables["space_ends"], tables["space_names"]
    starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    good = len(ends) and ends[-1] == len(entries) and (ends > starts).all()
    require(good, "space_ends: expected ends of lists of names, got others")
    good = (entries >= 0) & (entries < len(names))
    require(good.all(), f"space_names: expected numbers in 0..{len(names) - 1}, got others")
    chosen = entries.tolist()
    return tuple(
        as_class_names("label_space", [names[one] for one in chosen[start:end]])
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    )
