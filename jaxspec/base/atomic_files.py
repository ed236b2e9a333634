"""Paths, and files that are written completely or not at all.

`as_path` and `existing_path` check what a caller gives as a path. `write_atomically` puts a file
in place in one step. `reading` turns whatever a damaged or foreign file brings about into one
error, `FileError`, that names the file. Nothing here knows a file format.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "FileError",
    "PathLike",
    "as_path",
    "existing_path",
    "opened_atomically",
    "reading",
    "sync_to_disk",
    "write_atomically",
]

PathLike = str | os.PathLike[str]
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # two letters at least: "C:/" is a drive
MESSAGE_LENGTH = 300  # of the errors of other libraries, some of which list a whole file


class FileError(ValueError):
    """A file is damaged, foreign, or has a field that is not as it must be.

    Args:
        path: the file, or None where `reading` adds it.
        message: what is wrong, if not said by `expected` and `got`.
        field: the field of the file.
        expected: what the field must be.
        got: what it is.
    """

    def __init__(
        self,
        path: PathLike | None = None,
        message: str = "",
        *,
        field: str = "",
        expected: str = "",
        got: object = None,
    ) -> None:
        self.path, self.field = path, field
        if expected:
            message = f"expected {expected}, got {got if isinstance(got, str) else repr(got)[:80]}"
        self.reason = ": ".join(part for part in (field, message) if part)
        super().__init__(self.reason if path is None else f"{os.fspath(path)}: {self.reason}")

    def __reduce__(self) -> tuple[type, tuple[PathLike | None, str]]:
        return type(self), (self.path, self.reason)


def as_path(path: object, *, name: str = "path") -> Path:
    """Return `path` as a path, with "~" at its start replaced by the home folder.

    Raises:
        TypeError: it is neither a string nor a path.
        ValueError: it is empty, or an address such as "gs://bucket/file", which would make a
            folder of that name here.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{name}: expected a string or a path, got a {type(path).__name__}")
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"{name}: expected a string or a path, got a path in bytes: {text!r:.80}")
    if not text or "\0" in text:
        raise ValueError(f"{name}: expected the name of a file or folder, got {text!r:.80}")
    if _ADDRESS.match(text):
        raise ValueError(
            f"{name}: expected a file or folder of this machine, got the address {text!r:.80}; "
            "mount the storage as a folder, or copy between it and a local path"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # "~name" of a user that does not exist
        raise ValueError(
            f"{name}: expected a path with a known home folder, got {text!r:.80}: {error}"
        ) from None


def existing_path(path: object, *, name: str = "path") -> Path:
    """Return `path` as `as_path` does, if there is a file or folder.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        TypeError, ValueError: as `as_path`.
    """
    found = as_path(path, name=name)
    if not found.exists():
        raise FileNotFoundError(f"{found}: there is nothing at this path")
    return found


@contextlib.contextmanager
def reading(path: PathLike) -> Iterator[None]:
    """Turn any error in the block into a `FileError` that names the file.

    Only the first line of a foreign error is kept. Interrupts pass through, and so does an
    `ImportError`, which is not about the file.
    """
    try:
        yield
    except ImportError:
        raise
    except FileError as error:
        if error.path is not None:
            raise
        named = FileError(path, error.reason)
        named.field = error.field
        raise named from error
    except Exception as error:
        line = (str(error).splitlines() or [""])[0][:MESSAGE_LENGTH]
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise FileError(path, f"{kind}{line}") from error


def write_atomically(path: PathLike, data: bytes) -> None:
    """Write `data` to a file in one step, as `opened_atomically` does."""
    with opened_atomically(path) as file:
        file.write(data)


@contextlib.contextmanager
def opened_atomically(path: PathLike) -> Iterator[BinaryIO]:
    """Open a file to write: the old file or the new one is there, never a part.

    Folders on the way are made. At the end of the block the new file is in place and on disk; if
    the block raises, the old one stays.
    """
    target = as_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    sync_to_disk(target.parent)  # the rename itself is on disk only with its folder


def sync_to_disk(path: PathLike) -> None:
    """Wait until a file, or the list of names in a folder, is on disk."""
    if os.name == "posix":  # elsewhere folders cannot be opened
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
