"""Files of strangers: opening regular files only, and saying what another file seems to be.

`open_regular` never waits for a pipe and never opens a device. `check_tree` refuses folders with
links that lead out of them. `seems_to_be` only looks at the first bytes, for error messages.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from jaxspec.files.bounded_json import require

__all__ = ["MARKET_POINTER", "check_tree", "open_regular", "read_limited", "seems_to_be"]

MARKET_POINTER = "market.json"  # the file that makes a folder a market
_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}
# How files of other kinds begin.
_BEGINNINGS = (
    (b"\x93NUMPY", "a numpy array (.npy)"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstandard archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"%PDF", "a PDF document"),
    (b"PAR1", "a Parquet table"),
    (b"SQLite format 3", "an SQLite database"),
    (b"GGUF", "a GGUF model"),
    (b"version https://git-lfs", "a Git LFS pointer, whose file was not fetched"),
)


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file for reading, and yield it with its size in bytes.

    Raises:
        ValueError: a folder, a named pipe, a socket or a device.
        OSError: it cannot be opened.
    """
    _check_mode(os.stat(path).st_mode)
    # The file may have been exchanged in between: the opened one counts, and opening never waits.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        _check_mode(found.st_mode)
        yield file, found.st_size


def read_limited(path: Path, limit: int) -> bytes:
    """Return the contents of a regular file of at most `limit` bytes.

    Raises:
        ValueError: not a regular file, or a larger one.
        OSError: it cannot be read.
    """
    with open_regular(path) as (file, size):
        require(size <= limit, f"{path.name}: expected at most {limit} bytes, got {size}")
        return file.read(size)


def check_tree(folder: Path, root: Path) -> list[Path]:
    """Return all files below a folder, sorted.

    Args:
        folder: the folder.
        root: where symbolic links may lead: to regular files in this folder or below.

    Raises:
        ValueError: a link that leads elsewhere, or what is neither a regular file nor a folder.
    """
    files, waiting, inside = [], [folder], root.resolve()
    while waiting:
        current = waiting.pop()
        linked = current.is_symlink()
        require(not linked, f"{current.name}: expected a folder, got a symbolic link")
        for entry in os.scandir(current):
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                waiting.append(path)
                continue
            if entry.is_symlink():
                within = path.resolve().is_relative_to(inside)
                require(within, f"{entry.name}: expected a file, got a link that leads elsewhere")
            mode = entry.stat().st_mode
            regular = stat.S_ISREG(mode)
            require(regular, f"{entry.name}: expected a regular file, got {_kind(mode)}")
            files.append(path)
    return sorted(files)


def seems_to_be(path: Path) -> str:
    """Return what a file or folder seems to be, in words such as "JSON" or "a PNG picture"."""
    if path.is_dir():
        is_market = (path / MARKET_POINTER).is_file()
        return "the folder of a market, which Market.load reads" if is_market else "a folder"
    with open_regular(path) as (file, size):
        head = file.read(4096)
    if not head:
        return "an empty file"
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return kind
    if head.startswith(b"PK"):
        return _zip(head)
    if head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5:
        return "a pickle, which is never opened because it could run code"
    if head[8:9] == b"{":
        cut = int.from_bytes(head[:8], "little") > size - 8
        return "a safetensors file that is cut short" if cut else "a safetensors file"
    return _text(head)


def _zip(head: bytes) -> str:
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    if name.endswith(b".npy"):
        return "numpy arrays (.npz)"
    if name.endswith(b"data.pkl"):
        return "a PyTorch checkpoint, which is never opened because it could run code"
    return "a zip archive"


def _text(head: bytes) -> str:
    try:
        text = head.decode("utf-8").lstrip()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # the last character may be cut
            return "something unknown"
        text = head[: error.start].decode("utf-8").lstrip()
    if any(ord(letter) < 32 and letter not in "\t\n\r\f" for letter in text):
        return "something unknown"
    if text.startswith(("{", "[")):
        return "JSON"
    return "HTML or XML" if text.startswith("<") else "text"


def _check_mode(mode: int) -> None:
    require(stat.S_ISREG(mode), f"expected a regular file, got {_kind(mode)}")


def _kind(mode: int) -> str:
    return next((kind for test, kind in _KINDS.items() if test(mode)), "something else")
