"""Markets on disk: the only file of the command that opens, makes or changes one.

Each function opens the folder, does one thing through the library, and closes it. A new market is
made beside its place and renamed into it, so that an interrupt leaves the old one or the new one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from jaxspec.applications.command.describe import kind_of
from jaxspec.applications.command.errors import FileRefused, WrongUse, one_line
from jaxspec.applications.command.output import require_input
from jaxspec.applications.command.session import Session

__all__ = [
    "add",
    "asked",
    "compact",
    "create",
    "history",
    "load",
    "load_index",
    "opened",
    "remove",
    "require_market",
    "rollback",
    "save_index",
    "selected",
    "update",
    "verify",
]


def require_market(path: Path) -> None:
    """Raise unless a folder seems to be a market; nothing of it is read.

    Raises:
        FileRefused: it is missing or something else.
    """
    require_input(path)
    if kind_of(path) != "Market":
        raise FileRefused(path, "expected the folder of a market, got something else")


def opened(js: Any, path: Path) -> AbstractContextManager[Any]:
    """Open a market for reading; the version that is opened stays readable until the end."""
    folder: AbstractContextManager[Any] = js.MarketFolder(path)
    return folder


def load(js: Any, path: Path) -> Any:
    """Return all of a market, in memory."""
    return js.Market.load(path)


@contextlib.contextmanager
def asked(
    js: Any, session: Session, path: Path, *, stream: bool = False, index: bool = False
) -> Iterator[Any]:
    """Yield what a question goes to: the market in memory, its index, or its folder."""
    if stream:
        with opened(js, path) as folder:
            yield folder
        return
    with session.stage("Reading the market"):
        place = load_index(js, path) if index else load(js, path)
    yield place


def create(js: Any, path: Path, space: Any, specs: Mapping[str, Any], *, precision: str) -> None:
    """Make a market at a path. What is there is replaced: the caller has asked whether it may be.

    Raises:
        ValueError: specifications of another space.
    """
    beside = path.absolute().parent / f".{path.name}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        js.MarketFolder.create(beside, space, specs, precision=precision).close()
        if os.path.lexists(path):
            old = beside.with_suffix(".old")
            os.replace(path, old)
            os.replace(beside, path)
            _discard(old)
        else:
            os.replace(beside, path)
    finally:
        _discard(beside)


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def add(js: Any, path: Path, specs: Mapping[str, Any], *, note: str) -> dict[str, Any]:
    """Append learnwares and return the new version's facts."""
    return _changed(js, path, "append", specs, note)


def update(js: Any, path: Path, specs: Mapping[str, Any], *, note: str) -> dict[str, Any]:
    """Replace learnwares and return the new version's facts."""
    return _changed(js, path, "update", specs, note)


def remove(js: Any, path: Path, ids: Sequence[str], *, note: str) -> dict[str, Any]:
    """Remove learnwares and return the new version's facts."""
    return _changed(js, path, "remove", list(ids), note)


def _changed(js: Any, path: Path, how: str, what: Any, note: str) -> dict[str, Any]:
    with opened(js, path) as folder:
        return _kept(getattr(folder, how)(what, note=note))


def _kept(folder: Any) -> dict[str, Any]:
    """Return the facts of a folder at a new version, and close it."""
    try:
        return _facts(folder)
    finally:
        folder.close()


def _facts(folder: Any) -> dict[str, Any]:
    return {"learnwares": len(folder), "version": str(folder.version)}


def history(js: Any, path: Path) -> list[dict[str, Any]]:
    """Return the versions of a market, oldest first."""
    with opened(js, path) as folder:
        return [
            {
                "name": str(one.name),
                "time": one.time.isoformat(timespec="seconds"),
                "learnwares": int(one.count),
                "change": str(one.change),
                "note": str(one.note),
            }
            for one in folder.history()
        ]


def rollback(js: Any, path: Path, name: str) -> dict[str, Any]:
    """Make a new version with the content of an old one, and return its facts."""
    with opened(js, path) as folder:
        names = [one.name for one in folder.history()]
        if name not in names:
            shown = ", ".join(names[-5:])
            raise WrongUse(f"VERSION: expected one that is kept ({shown}), got {name!r:.80}")
        return _kept(folder.rollback(name))


def compact(js: Any, path: Path, *, keep: int, note: str) -> dict[str, Any]:
    """Rewrite a market into one piece and forget old versions; return its facts."""
    with opened(js, path) as folder:
        return _kept(folder.compact(keep=keep, note=note))


def verify(js: Any, path: Path) -> dict[str, Any]:
    """Read everything, check all checksums and numbers, and return the market's facts.

    Raises:
        FileError: something is damaged; the message names it.
    """
    with opened(js, path) as folder:
        folder.verify()
        return _facts(folder)


def selected(place: Any, where: str | None) -> Any:
    """Return the mask (M,) of the learnwares that fit a condition, or None without one.

    Raises:
        WrongUse: the condition cannot be understood.
    """
    if where is None:
        return None
    try:
        return np.asarray(place.about.where(where))
    except (ValueError, TypeError, KeyError) as error:
        raise WrongUse(f"--where: {one_line(error).removeprefix('where: ')}") from error


def save_index(index: Any, path: Path) -> None:
    """Save an index beside its market."""
    index.save(path)


def load_index(js: Any, path: Path) -> Any:
    """Return the saved index of a market."""
    return js.Index.load(path)
