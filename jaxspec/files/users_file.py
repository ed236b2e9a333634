"""One file with many users of one space: written as they come, read in parts.

A safetensors file, laid out for reading ranges of users: the arrays of `StackedUsers` one after the
other, with a checksum for every block of users, and small arrays that say where everything lies.
`save_users` writes it with the memory of one block; `UsersFile` opens it and reads ranges. Sizes
are compared with the file's size before any number is read, and nothing of a file is run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import tempfile
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from jaxspec.base import PathLike, as_path, existing_path, reading, sync_to_disk
from jaxspec.files.bounded_json import json_text, parse_json, require
from jaxspec.files.regular_files import open_regular, seems_to_be
from jaxspec.market import MAX_ID
from jaxspec.specify import (
    StackedUsers,
    UserSpecification,
    as_class_names,
    check_numbers_of_users,
    stack_users_of,
)

if TYPE_CHECKING:
    from jaxtyping import Int

__all__ = ["BLOCK_USERS", "UsersFile", "is_users_file", "save_users"]

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


@dataclasses.dataclass(frozen=True)
class _SpaceName:
    """What users are compared with while they are written: the space of the first of them."""

    space_name: str
    space_digest: str
    dimension: int


def save_users(
    path: PathLike, users: Mapping[str, UserSpecification] | Iterable[tuple[str, UserSpecification]]
) -> int:
    """Write many users to one file, which `match_many` reads in parts, and return their number.

    Args:
        path: the file, which is written completely or not at all.
        users: {id: user}, or pairs of them, of which 1,024 are held at a time. All live in one
            space.

    Raises:
        TypeError, ValueError: no user, an id twice, something that is no user, or a user of another
            space; the message names the id. Nothing is written then.
    """
    target = as_path(path)
    require(not target.is_dir(), f"path: expected the name of a file, got the folder {target}")
    pairs = iter(users.items() if isinstance(users, Mapping) else users)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with contextlib.ExitStack() as stack:
            writer = _Writer(stack, target.parent)
            while block := list(itertools.islice(pairs, BLOCK_USERS)):
                writer.add(block)
            with open(temporary, "xb") as file:
                writer.write(file)
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    sync_to_disk(target.parent)
    return len(writer.counts)


class _Writer:
    """Numbers go to one temporary file per array, since sizes are known at the end only."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        self.parts: dict[str, IO[bytes]] = {
            name: stack.enter_context(tempfile.TemporaryFile(dir=folder))  # noqa: SIM115
            for name in NUMBERS
        }
        self.space: _SpaceName | None = None
        self.spaces: dict[tuple[str, ...], int] = {}
        self.ids: dict[str, None] = {}
        self.counts: list[int] = []
        self.examples: list[int] = []
        self.label_space: list[int] = []
        self.checksums: list[int] = []

    def add(self, block: Sequence[Any]) -> None:
        """Write a block of pairs."""
        for pair in block:
            good = isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)
            if not good:
                raise TypeError(f"users: expected pairs of an id and a user, got {pair!r:.80}")
            require(
                0 < len(pair[0]) <= MAX_ID,
                f"users: expected ids of 1 to {MAX_ID} characters, got {pair[0]!r:.80}",
            )
            require(
                pair[0] not in self.ids, f"users: expected different ids, got {pair[0]!r} twice"
            )
            self.ids[pair[0]] = None
        first = block[0][1]
        if self.space is None:
            if not isinstance(first, UserSpecification):
                raise TypeError(
                    f"users[{block[0][0]!r:.80}]: expected a UserSpecification, got a "
                    f"{type(first).__name__}"
                )
            width = np.shape(first.reduced_set.points)[-1]
            self.space = _SpaceName(first.space_name, first.space_digest, int(width))
        space: Any = self.space
        made = stack_users_of([one for one, _ in block], [one for _, one in block], space)
        made = check_numbers_of_users(made)
        for one, error in zip(made.ids, made.errors, strict=True):
            require(error is None, f"users[{one!r:.80}]: {error}")
        checksum = 0
        for name in NUMBERS:
            data = np.ascontiguousarray(getattr(made, name), _little(name)).tobytes()
            checksum = zlib.crc32(data, checksum)
            self.parts[name].write(data)
        self.checksums.append(checksum)
        numbers = [self.spaces.setdefault(names, len(self.spaces)) for names in made.label_spaces]
        self.label_space += [numbers[one] for one in made.label_space.tolist()]
        self.counts += made.counts.tolist()
        self.examples += made.examples.tolist()

    def write(self, file: IO[bytes]) -> None:
        """Write the whole file."""
        require(self.space is not None, "users: expected at least one user, got none")
        assert self.space is not None
        names: dict[str, int] = {}
        entries = [names.setdefault(name, len(names)) for space in self.spaces for name in space]
        id_ends, id_text = _joined_text(list(self.ids))
        name_ends, name_text = _joined_text(list(names))
        tables: dict[str, Any] = {
            "counts": self.counts,
            "examples": self.examples,
            "label_space": self.label_space,
            "id_ends": id_ends,
            "id_text": id_text,
            "space_ends": np.cumsum([len(space) for space in self.spaces]),
            "space_names": entries,
            "name_ends": name_ends,
            "name_text": name_text,
            "checksums": self.checksums,
        }
        written = {name: np.asarray(tables[name], _little(name)) for name in TABLES}
        sizes = {
            "feature": self.space.dimension,
            "point": sum(self.counts),
            "class": sum(len(space) for space in self._spaces_of_users()),
        }
        header: dict[str, Any] = {}
        at = 0
        for name, (kind, axes) in ARRAYS.items():
            shape = [sizes[axis] for axis in axes] if name in NUMBERS else [len(written[name])]
            size = math.prod(shape) * np.dtype(TYPES[kind]).itemsize
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
            at += size
        values = {**dataclasses.asdict(self.space), "users": len(self.counts)}
        document = {"format": "jaxspec", "kind": KIND, "format_version": VERSION, "values": values}
        document["checksum"] = _checksum(values, written)
        header["__metadata__"] = {"jaxspec": json_text(document)}
        text = json_text(header).encode()
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little") + text)
        for name in NUMBERS:
            self.parts[name].seek(0)
            while data := self.parts[name].read(1 << 24):
                file.write(data)
        for name in TABLES:
            file.write(written[name].tobytes())

    def _spaces_of_users(self) -> Iterator[tuple[str, ...]]:
        spaces = list(self.spaces)
        return (spaces[one] for one in self.label_space)


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
            checksum == _checksum(values, tables),
            "checksum: expected that of the contents, got another, so the file is damaged",
        )
        self._checksums = tables["checksums"]
        self.ids = _split_text("id", tables["id_text"], tables["id_ends"])
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
        sizes["block"] = -(-values["users"] // BLOCK_USERS)
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
        kind = np.dtype(_little(name))
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
        begin = first - first % BLOCK_USERS
        end = min(-(-last // BLOCK_USERS) * BLOCK_USERS, len(self))
        with reading(self.path), open_regular(self.path) as (file, _):
            points = self._range(self._point_ends, begin, end)
            classes = self._range(self._class_ends, begin, end)
            arrays = {
                name: self._read(file, name, *(points if axes[0] == "point" else classes))
                for name, (_, axes) in NUMBERS.items()
            }
        errors: list[str | None] = []
        for start in range(begin, end, BLOCK_USERS):
            stop = min(start + BLOCK_USERS, end)
            checksum = 0
            for name, (_, axes) in NUMBERS.items():
                ends = self._point_ends if axes[0] == "point" else self._class_ends
                rows = np.array(self._range(ends, start, stop)) - self._range(ends, begin, end)[0]
                data = np.ascontiguousarray(arrays[name][rows[0] : rows[1]], _little(name))
                checksum = zlib.crc32(memoryview(data).cast("B"), checksum)
            said = None
            if checksum != int(self._checksums[start // BLOCK_USERS]):
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


def _little(name: str) -> Any:
    return np.dtype(TYPES[ARRAYS[name][0]]).newbyteorder("<")


def _checksum(values: Mapping[str, Any], tables: Mapping[str, np.ndarray]) -> int:
    checksum = zlib.crc32(json_text(dict(values)).encode())
    for name in TABLES:
        data = np.ascontiguousarray(tables[name], _little(name))
        checksum = zlib.crc32(memoryview(data).cast("B") if data.size else b"", checksum)
    return checksum


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


def _joined_text(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    data = [text.encode() for text in texts]
    ends = np.cumsum([len(one) for one in data], dtype=np.int64)
    return ends, np.frombuffer(b"".join(data), np.uint8)


def _split_text(name: str, text: np.ndarray, ends: np.ndarray) -> tuple[str, ...]:
    data, starts = text.tobytes(), np.concatenate([[0], ends[:-1]])
    sizes = ends - starts
    good = len(ends) and ends[-1] == len(data) and (sizes >= 1).all()
    require(good and (sizes <= 4 * MAX_ID).all(), f"{name}_ends: expected ends of short texts")
    pairs = zip(starts.tolist(), ends.tolist(), strict=True)
    return tuple([data[start:end].decode() for start, end in pairs])


def _label_spaces(tables: Mapping[str, np.ndarray]) -> tuple[tuple[str, ...], ...]:
    names = _split_text("name", tables["name_text"], tables["name_ends"])
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
