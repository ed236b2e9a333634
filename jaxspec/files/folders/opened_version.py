"""A version of a market that is open for reading, and stays on disk for as long.

`open_version` holds a shared lock on the version's manifest: a lease. A writer removes a version
only if nobody holds one, so a reader reads its version to the end, whatever the writer does. Where
the file system has no locks there is no lease, and a version may vanish while it is read; then
reading ends with an error. Nothing here reads numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path

from jaxspec.base import FileLock, LocksUnsupportedError, try_shared
from jaxspec.files.bounded_json import require
from jaxspec.files.folders.checksums import checksums
from jaxspec.files.folders.segments import Segment, read_segment
from jaxspec.files.folders.versions import (
    SEGMENTS,
    SPACES,
    Manifest,
    Pointer,
    VersionInfo,
    parse_manifest,
    place_of_version,
    read_pointer,
)
from jaxspec.files.regular_files import seems_to_be
from jaxspec.files.specification_files import space_from_file
from jaxspec.specify import Space

__all__ = ["OpenedVersion", "check_folder", "lease", "open_version", "read_space"]

WAIT_SECONDS = 10.0  # for a writer that commits again and again
PAUSE_SECONDS = 0.002


@dataclasses.dataclass(frozen=True)
class OpenedVersion:
    """A version that is open, with all that it says of itself except numbers.

    Attributes:
        info: what the history says about it.
        identity: its name and checksum, which no other version has.
        manifest: what it consists of.
        space: of its learnwares.
        segments: in the order of the manifest.
        lock: the lease, or None where the file system has no locks.
    """

    info: VersionInfo
    identity: str
    manifest: Manifest
    space: Space
    segments: tuple[Segment, ...]
    lock: FileLock | None


def open_version(target: Path, name: str | None = None) -> OpenedVersion:
    """Open a version, the one in force unless it is named.

    Raises:
        ValueError, TypeError, OSError: not a market, no such version, or something in it is not as
            it must be.
    """
    check_folder(target)
    until = time.monotonic() + WAIT_SECONDS
    while True:
        pointer = read_pointer(target)
        at = pointer.place(name)
        info, checksum = pointer.versions[at], pointer.checksums[at]
        lock: FileLock | None = None
        try:
            lock = lease(place_of_version(target, info.name))
            return _read(target, info, checksum, lock)
        except BaseException as error:
            if lock is not None:
                lock.close()
            # A version that was removed before the lease was held: take the next one.
            moved = isinstance(error, OSError | ValueError) and _moved(target, pointer)
            if not moved or time.monotonic() > until:
                raise
        time.sleep(PAUSE_SECONDS)


def lease(path: Path) -> FileLock | None:
    """Return a shared lock on a file that is still at its path, or None without locks.

    Raises:
        FileNotFoundError: it is not there, or is being removed.
    """
    require(not path.is_symlink(), f"{path.name}: expected a file, got a link")
    require(path.is_file() or not path.exists(), f"{path.name}: expected a regular file")
    try:
        lock = try_shared(path)
    except LocksUnsupportedError:
        return None
    if lock is not None and lock.is_of_path():
        return lock
    if lock is not None:
        lock.close()
    raise FileNotFoundError(f"{path.name}: it was removed while it was opened")


def read_space(target: Path, manifest: Manifest) -> Space:
    """Return the space of a version.

    Raises:
        ValueError, TypeError, OSError: it is not as it must be.
    """
    file = target / SPACES / manifest.space
    require(not file.is_symlink(), f"{manifest.space}: expected a file, got a link")
    require(file.is_file(), f"{manifest.space}: expected this file, got a market without it")
    found = checksums(file.parent, [file.name])[file.name]
    good = found[1] == manifest.space_checksum
    require(good, f"{manifest.space}: its checksum is wrong, so it is damaged")
    return space_from_file(file)


def check_folder(target: Path) -> None:
    """Raise unless a path is a folder whose parts do not lead elsewhere.

    Raises:
        ValueError: it is something else; the message says what.
    """
    if not target.is_dir():
        raise ValueError(f"expected the folder of a market; this seems to be {seems_to_be(target)}")
    for part in target.iterdir():
        require(not part.is_symlink(), f"{part.name}: expected no link in a market")


def _read(target: Path, info: VersionInfo, checksum: int, lock: FileLock | None) -> OpenedVersion:
    manifest = parse_manifest(place_of_version(target, info.name), checksum)
    space = read_space(target, manifest)
    require(
        manifest.count == info.count,
        f"count: expected {manifest.count}, that of the segments, got {info.count}",
    )
    segments = tuple(
        read_segment(
            target / SEGMENTS / one.name, one.checksum, one.count, space, manifest.precision
        )
        for one in manifest.segments
    )
    return OpenedVersion(info, f"{info.name} {checksum}", manifest, space, segments, lock)


def _moved(target: Path, pointer: Pointer) -> bool:
    """Tell whether the market has another version in force by now."""
    with contextlib.suppress(Exception):
        return read_pointer(target) != pointer
    return False
