"""Commits: how a market on disk changes, in one step, by one writer at a time.

A `Writer` holds the folder's lock, which the system takes back when the process ends. Whatever a
commit writes is on disk before `market.json` names it, so that a commit is in force completely or
not at all. What was in force is not changed. Then garbage is removed.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import socket
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxspec.base import (
    FileLock,
    LocksUnsupportedError,
    reading,
    sync_to_disk,
    try_exclusive,
    write_atomically,
)
from jaxspec.files.bounded_json import require
from jaxspec.files.folders.garbage import OWN_NAMES, TEMPORARY, WRITER_LOCK, collect_garbage
from jaxspec.files.folders.learnwares import Learnwares
from jaxspec.files.folders.opened_version import check_folder
from jaxspec.files.folders.segments import write_segment
from jaxspec.files.folders.versions import (
    MAX_NOTE,
    SEGMENTS,
    SPACES,
    VERSIONS,
    Manifest,
    Pointer,
    SegmentEntry,
    VersionInfo,
    manifest_text,
    parse_manifest,
    place_of_version,
    read_pointer,
    write_pointer,
)
from jaxspec.files.regular_files import MARKET_POINTER
from jaxspec.files.specification_files import space_to_bytes
from jaxspec.specify import Limits, Space

__all__ = ["Writer", "checked_note", "writing"]


class Writer:
    """The one who may change a market on disk; `writing` makes it.

    Attributes:
        target: the folder.
        pointer: what was in force when the lock was taken, or None in a new folder.
    """

    def __init__(self, target: Path, pointer: Pointer | None) -> None:
        self.target, self.pointer = target, pointer

    @property
    def next_serial(self) -> int:
        """The serial of the next learnware."""
        return 0 if self.pointer is None else self.pointer.next_serial

    @property
    def next_number(self) -> int:
        """The number of the next version, segment or extension."""
        return 1 if self.pointer is None else self.pointer.next_number

    def commit(
        self,
        space: Space,
        precision: str,
        segments: Sequence[SegmentEntry],
        new: Learnwares | None,
        *,
        limits: Limits,
        change: str,
        note: str = "",
        keep: int | None = None,
        extensions: Mapping[str, tuple[str, int]] | None = None,
    ) -> VersionInfo:
        """Put a new version in force, and return what the history says about it.

        Args:
            space: of the market.
            precision: in which rows are stored.
            segments: that are there already, in order.
            new: learnwares that are written to a further segment, or None.
            limits: of specifications that enter.
            change: what the history says.
            note: likewise.
            keep: versions to keep, this one included; None for all.
            extensions: that are kept; None for those that there are.

        Raises:
            ValueError, TypeError, OSError: it cannot be written; what was in force still is.
        """
        number = self.next_number
        name = f"version-{number:06d}"
        folder = self.target / SEGMENTS / f"segment-{number:06d}"
        place = place_of_version(self.target, name)
        _remove_leftovers(folder, place)
        try:
            entries = list(segments)
            if new is not None:
                checksum = write_segment(folder, new, space)
                sync_to_disk(folder.parent)
                nothing = np.zeros(0, np.int64)
                entries.append(SegmentEntry(folder.name, checksum, len(new.ids), nothing))
            manifest = Manifest(*self._put_space(space), precision, limits, tuple(entries))
            text = manifest_text(manifest)
            write_atomically(place, text)
            now = datetime.datetime.now(datetime.timezone.utc)
            info = VersionInfo(name, now, manifest.count, change, note)
            pointer = self._pointer_after(info, zlib.crc32(text), manifest, new, keep, extensions)
            write_pointer(self.target, pointer)
        except BaseException:
            if not self._is_in_force(name):
                _remove_leftovers(folder, place)
            raise
        self.pointer = pointer
        collect_garbage(self.target, pointer)
        return info

    def replace_extension(self, kind: str, name: str, checksum: int) -> None:
        """Put an extension that was written in force, in place of an earlier one of its kind."""
        assert self.pointer is not None
        before = self.pointer
        self.pointer = Pointer(
            before.versions,
            before.checksums,
            before.segments,
            before.next_number + 1,
            before.next_serial,
            {**before.extensions, kind: (name, checksum)},
        )
        write_pointer(self.target, self.pointer)
        collect_garbage(self.target, self.pointer)

    def _put_space(self, space: Space) -> tuple[str, int]:
        """Write the space unless it is there, and return its file's name and checksum."""
        data = space_to_bytes(space)
        name = f"space-{zlib.crc32(data):08x}.safetensors"
        file = self.target / SPACES / name
        if not file.is_file() or file.read_bytes() != data:
            write_atomically(file, data)
        return name, zlib.crc32(data)

    def _pointer_after(
        self,
        info: VersionInfo,
        checksum: int,
        manifest: Manifest,
        new: Learnwares | None,
        keep: int | None,
        extensions: Mapping[str, tuple[str, int]] | None,
    ) -> Pointer:
        before, own = self.pointer, [one.name for one in manifest.segments]
        number, serial = self.next_number + 1, self.next_serial
        if new is not None:
            serial = max(serial, int(new.serials[-1]) + 1)
        if before is None:
            return Pointer((info,), (checksum,), tuple(own), number, serial, {})
        extensions = before.extensions if extensions is None else extensions
        versions, checksums = (*before.versions, info), (*before.checksums, checksum)
        segments = dict.fromkeys([*before.segments, *own])
        if keep is not None and keep < len(versions):
            versions, checksums = versions[-keep:], checksums[-keep:]
            segments = dict.fromkeys(own)
            for one, known in zip(versions[:-1], checksums[:-1], strict=True):
                earlier = parse_manifest(place_of_version(self.target, one.name), known)
                segments.update(dict.fromkeys(entry.name for entry in earlier.segments))
        return Pointer(versions, checksums, tuple(segments), number, serial, extensions)

    def _is_in_force(self, name: str) -> bool:
        """Tell whether a version is in force by now; if that is not known, nothing is removed."""
        try:
            if not (self.target / MARKET_POINTER).exists():
                return False
            return read_pointer(self.target).current.name == name
        except (OSError, ValueError):
            return True


@contextlib.contextmanager
def writing(target: Path, *, create: bool = False) -> Iterator[Writer]:
    """Yield the writer of a folder, and keep everybody else from writing for as long.

    Args:
        target: the folder.
        create: make the folder if there is none. If nothing is put in force, it is removed again.

    Raises:
        FileError: somebody else is writing, the file system has no locks, or it is no market.
    """
    made = False
    with reading(target):
        require(target.is_dir() or not os.path.lexists(target), "expected a folder, got a file")
        if not target.exists() and create:
            target.mkdir(parents=True)
            made = True
            sync_to_disk(target.parent)
        check_folder(target)
        _check_target(target, create)
        lock = _lock(target)
    try:
        with reading(target):
            there = (target / MARKET_POINTER).exists()
            pointer = read_pointer(target) if there else None
            for part in (VERSIONS, SEGMENTS, SPACES):
                (target / part).mkdir(exist_ok=True)
        yield Writer(target, pointer)
    finally:
        if made and not (target / MARKET_POINTER).exists():
            shutil.rmtree(target, ignore_errors=True)
        lock.close()


def checked_note(note: object) -> str:
    """Return a note for the history.

    Raises:
        TypeError, ValueError: not a text, or too long a one.
    """
    if not isinstance(note, str):
        raise TypeError(f"note: expected a string, got a {type(note).__name__}")
    if len(note) > MAX_NOTE:
        raise ValueError(f"note: expected at most {MAX_NOTE} characters, got {len(note)}")
    return note


def _lock(target: Path) -> FileLock:
    file = target / WRITER_LOCK
    require(not file.is_symlink(), f"{WRITER_LOCK}: expected a file, got a link")
    require(file.is_file() or not file.exists(), f"{WRITER_LOCK}: expected a regular file")
    try:
        lock = try_exclusive(file, create=True)
    except LocksUnsupportedError as error:
        raise ValueError(
            "expected a file system with locks on files (flock), as a market there can be read but "
            f"not changed otherwise: {error}"
        ) from None
    if lock is None:
        with contextlib.suppress(OSError):
            who = file.read_bytes()[:200].decode("utf-8", "replace").strip()
            raise ValueError(f"expected that nobody else writes to it, but {who} does")
        raise ValueError("expected that nobody else writes to it, but another process does")
    with contextlib.suppress(OSError):
        os.ftruncate(lock.descriptor, 0)
        os.write(lock.descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return lock


def _check_target(target: Path, create: bool) -> None:
    """Raise unless there is a market, or a place for one."""
    if (target / MARKET_POINTER).exists():
        read_pointer(target)  # of a market, and of this version of the format
        return
    require(create, f"expected a market, got a place without {MARKET_POINTER}")
    names = [one.name for one in target.iterdir()]
    other = sorted(one for one in names if one not in OWN_NAMES and not TEMPORARY.fullmatch(one))
    require(not other, f"expected a market or an empty folder, got {other[:3]!r:.80}")


def _remove_leftovers(folder: Path, file: Path) -> None:
    """Remove what a killed writer left under the names of the next version."""
    if folder.exists():
        shutil.rmtree(folder)
    file.unlink(missing_ok=True)
