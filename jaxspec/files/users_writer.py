"""Writing one file with many users of one space, as they come.

`save_users` holds one block of users at a time. The file is written completely or not at all; its
layout is that of `users_layout`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxspec.base import PathLike, as_path, opened_atomically
from jaxspec.files import users_layout
from jaxspec.files.bounded_json import json_text, require
from jaxspec.files.users_layout import (
    ARRAYS,
    KIND,
    NUMBERS,
    TABLES,
    TYPES,
    VERSION,
    checksum_of,
    joined_text,
    little,
)
from jaxspec.market import MAX_ID
from jaxspec.specify import UserSpecification, check_numbers_of_users, stack_users_of

__all__ = ["save_users"]


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
    with contextlib.ExitStack() as stack:
        writer = _Writer(stack, target.parent)
        while block := list(itertools.islice(pairs, users_layout.BLOCK_USERS)):
            writer.add(block)
        with opened_atomically(target) as file:
            writer.write(file)
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
            data = np.ascontiguousarray(getattr(made, name), little(name)).tobytes()
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
        id_ends, id_text = joined_text(list(self.ids))
        name_ends, name_text = joined_text(list(names))
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
        written = {name: np.asarray(tables[name], little(name)) for name in TABLES}
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
        document["checksum"] = checksum_of(values, written)
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
