"""Specifications from files and folders, each under an id of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxspec.applications.command.describe import kind_of
from jaxspec.applications.command.errors import FileRefused, WrongUse
from jaxspec.applications.command.output import require_input
from jaxspec.applications.command.session import Session

__all__ = ["check_id_from", "files_of", "read_specifications"]

SUFFIX = ".safetensors"


def check_id_from(id_from: str) -> None:
    """Raise unless ids can be made in this way.

    Raises:
        WrongUse: it is not one of "stem", "path" and "about:NAME".
    """
    if id_from not in ("stem", "path") and not (id_from.startswith("about:") and id_from[6:]):
        raise WrongUse(f"--id-from: expected stem, path or about:NAME, got {id_from!r:.80}")


def files_of(paths: Sequence[Path], kind: str) -> list[Path]:
    """Return the files of one kind: those named, and those in the folders named, in order.

    Other files in a folder are passed over; a file that is named is always returned.

    Raises:
        FileRefused: a path is missing, or a folder holds no such file.
    """
    found: list[Path] = []
    for path in paths:
        require_input(path)
        if not path.is_dir():
            found.append(path)
            continue
        inside = [one for one in sorted(path.glob(f"*{SUFFIX}")) if kind_of(one) == kind]
        if not inside:
            raise FileRefused(path, f"expected files of the kind {kind} ({SUFFIX}), got none")
        found += inside
    return found


def read_specifications(
    js: Any, session: Session, files: Sequence[Path], *, id_from: str
) -> dict[str, Any]:
    """Return {id: specification}.

    Args:
        js: the library.
        session: shows the progress.
        files: of specifications.
        id_from: "stem" for the file's name without its suffix, "path" for the path without its
            suffix, "about:NAME" for a metadata entry of the specification.

    Raises:
        WrongUse: two files of one id.
        FileError: a file is no such specification.
    """
    found: dict[str, Any] = {}
    origin: dict[str, Path] = {}
    if not id_from.startswith("about:"):  # two files of one id are found before any is read
        for file in files:
            _claim(origin, _id_of(file, id_from), file)
        origin = {}
    with session.stage(f"Reading {len(files)} specifications") as advance:
        for number, file in enumerate(files, start=1):
            spec = js.Specification.load(file)
            if id_from.startswith("about:"):
                key = id_from[6:]
                if key not in spec.about:
                    raise FileRefused(
                        file, f"about: expected an entry {key!r}, which is to be the id"
                    )
                own = str(spec.about[key])
            else:
                own = _id_of(file, id_from)
            _claim(origin, own, file)
            found[own] = spec
            advance(number, len(files))
    return found


def _id_of(file: Path, id_from: str) -> str:
    name = file.name.removesuffix(SUFFIX)
    return name if id_from == "stem" else (file.parent / name).as_posix()


def _claim(origin: dict[str, Path], own: str, file: Path) -> None:
    if own in origin:
        raise WrongUse(
            f"SPECS: {origin[own]} and {file} would both have the id {own!r}; "
            "rename one, or pass --id-from path"
        )
    origin[own] = file
