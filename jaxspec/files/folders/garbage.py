"""What is left in a market's folder that nothing needs any more, and how it is removed.

That is what a killed writer left behind, and versions that are no longer kept and that nobody
reads. Only whoever holds the writer's lock calls this. Files of other names are left alone.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path

from jaxspec.base import LocksUnsupportedError, try_exclusive
from jaxspec.files.folders.segments import FACTS
from jaxspec.files.folders.versions import (
    EXTENSIONS,
    SEGMENTS,
    SPACES,
    VERSIONS,
    Pointer,
    parse_manifest,
    place_of_version,
)

__all__ = ["OWN_NAMES", "TEMPORARY", "WRITER_LOCK", "collect_garbage"]

WRITER_LOCK = "writer.lock"
OWN_NAMES = (WRITER_LOCK, VERSIONS, SEGMENTS, SPACES, EXTENSIONS)
TEMPORARY = re.compile(r"\..+\.tmp")


def collect_garbage(target: Path, pointer: Pointer) -> None:
    """Remove what neither the versions of a pointer nor any reader needs.

    What cannot be removed now is removed after a later commit.
    """
    kept = {place_of_version(target, one.name).name for one in pointer.versions}
    segments, spaces = set(pointer.segments), set[str]()
    with contextlib.suppress(OSError, ValueError):
        spaces.add(parse_manifest(place_of_version(target, pointer.current.name), None).space)
    if not spaces:
        return  # damaged: nothing is removed
    for file in _inside(target / VERSIONS):
        if file.name in kept or _remove_unless_read(file, file):
            continue
        with contextlib.suppress(OSError, ValueError):  # in use: a reader holds its lease
            manifest = parse_manifest(file, None)
            segments.update(one.name for one in manifest.segments)
            spaces.add(manifest.space)
    for folder in _inside(target / SEGMENTS):
        if folder.name not in segments:
            _remove(folder)
    for file in _inside(target / SPACES):
        if file.name not in spaces:
            _remove(file)
    extensions = {name for name, _ in pointer.extensions.values()}
    for folder in _inside(target / EXTENSIONS):
        if folder.name not in extensions:
            _remove_unless_read(folder, folder / FACTS)
    for file in _inside(target):
        if TEMPORARY.fullmatch(file.name):
            _remove(file)


def _inside(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(folder.iterdir())
    return []


def _remove_unless_read(path: Path, leased: Path) -> bool:
    """Remove a file or folder unless somebody holds a lock on `leased`; tell whether it is gone."""
    try:
        lock = try_exclusive(leased)
    except FileNotFoundError:
        _remove(path)
        return True
    except (OSError, LocksUnsupportedError):
        return False
    if lock is None:
        return False
    with lock:
        _remove(path)
    return True


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
