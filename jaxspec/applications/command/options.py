"""Options that several commands share, and how values such as `licence=MIT` are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from jaxspec.applications.command.errors import WrongUse
from jaxspec.applications.command.inputs import Data, read_data
from jaxspec.applications.command.pictures import read_pictures
from jaxspec.applications.command.session import Session

__all__ = [
    "ClassNames",
    "Extractor",
    "Force",
    "Ignore",
    "Labels",
    "MarketPath",
    "Note",
    "PictureSize",
    "ProjectionFile",
    "Verified",
    "Where",
    "entries_of",
    "read_any",
]

# `Optional` and not `| None`: typer 0.12 reads these at run time.
MarketPath = Annotated[Path, typer.Argument(metavar="MARKET", help="Folder of a market.")]
Labels = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--labels", help="Column of the table, array of the .npz, or a file with the labels."
    ),
]
ClassNames = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--class-names", help="Names between commas, or a .txt file with one a line."),
]
Ignore = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--ignore", help="Column of the table that is no feature; may be repeated."),
]
Extractor = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--extractor", help="For a folder of pictures: efficientnet, pixels, or module:function."
    ),
]
PictureSize = Annotated[
    int, typer.Option("--picture-size", min=1, help="Side in pixels that pictures are brought to.")
]
ProjectionFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--projection", help="An .npz with origin, directions and scale, applied to the features."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is at the output path.")]
Verified = Annotated[bool, typer.Option("--verified", help="Only learnwares that were verified.")]
Where = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--where",
        help='Only these learnwares, such as "licence in (MIT, Apache-2.0) and parameters < 1e8".',
    ),
]
Note = Annotated[str, typer.Option("--note", help="A line for the market's history.")]


def entries_of(option: str, given: Sequence[str] | None) -> dict[str, Any]:
    """Return {name: value} of options such as `--about licence=MIT --about parameters=4200000`.

    true and false are booleans, what reads as a number is one, and everything else is a text;
    double quotes keep a number a text.

    Raises:
        WrongUse: an entry without "=", or a name that comes twice.
    """
    found: dict[str, Any] = {}
    for entry in given or ():
        name, sign, text = entry.partition("=")
        name, text = name.strip(), text.strip()
        if not sign or not name:
            raise WrongUse(f"{option}: expected name=value, got {entry!r:.80}")
        if name in found:
            raise WrongUse(f"{option}: {name} is given twice")
        found[name] = _value(text)
    return found


def _value(text: str) -> str | int | float | bool:
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return text[1:-1]
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def read_any(
    session: Session,
    path: Path,
    *,
    labels: str | None,
    ignore: Sequence[str] | None,
    extractor: str | None,
    picture_size: int,
    projection: Path | None,
) -> Data:
    """Return the data of a file, or of a folder of pictures.

    Raises:
        FileRefused, WrongUse: as `read_data` and `read_pictures`.
    """
    if path.is_dir():
        return read_pictures(
            session, path, extractor=extractor, side=picture_size, projection=projection
        )
    if extractor is not None:
        raise WrongUse(f"--extractor: it is for a folder of pictures, and {path} is none")
    return read_data(path, labels=labels, ignore=ignore or ())
