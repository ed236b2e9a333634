"""What the command prints: tables for people, one JSON document for programs, paths to write to.

An `Answer` holds both forms. Texts from files never reach the terminal as they are: control
characters are escaped, and nothing in them is read as markup.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxspec.applications.command.errors import FileRefused, WrongUse

__all__ = [
    "Answer",
    "bytes_text",
    "cannot_write",
    "check_output",
    "console_for",
    "facts_table",
    "number_text",
    "plain",
    "plain_lines",
    "print_json",
    "require_input",
    "table",
]

PIPE_WIDTH = 100_000  # columns where nothing says how wide: no line is cut


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a command found.

    Attributes:
        document: for `--json`: dictionaries, lists, strings, numbers, booleans and None.
        render: prints it for people.
        code: the exit code.
    """

    document: dict[str, Any]
    render: Callable[[Console], None]
    code: int = 0


def console_for(stream: Any) -> Console:
    """Return a console for a stream: as wide as the terminal, and unlimited in a pipe."""
    known = stream.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return Console(
        file=stream,
        width=None if known else PIPE_WIDTH,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        highlight=False,
        markup=False,
        emoji=False,
    )


def plain(text: object) -> Text:
    """Return a text whose control characters are escaped, so that no file steers the terminal."""
    return Text("".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text)))


def plain_lines(lines: Iterable[object]) -> Text:
    """Return several texts, each on lines of its own."""
    return Text("\n").join(map(plain, lines))


def table(
    columns: Sequence[tuple[str, str]],
    rows: Iterable[Sequence[object]],
    *,
    fold: int | tuple[int, ...] = (),
) -> Table:
    """Return a table.

    Args:
        columns: (heading, "left" or "right") of each column.
        rows: one entry per column.
        fold: the columns that give way where the terminal is narrow; they are folded, not cut, so
            that ids stay complete. Other columns keep their width.
    """
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    folded = (fold,) if isinstance(fold, int) else fold
    for i, (heading, side) in enumerate(columns):
        gives_way = i in folded
        made.add_column(
            heading,
            justify="right" if side == "right" else "left",
            no_wrap=not gives_way,
            overflow="fold",
            min_width=len(heading),
        )
    for row in rows:
        made.add_row(*(plain(entry) for entry in row))
    return made


def facts_table(facts: Mapping[str, object]) -> Table:
    """Return names and values in two columns without a heading; None is left out."""
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in facts.items():
        if value is not None and value != "":
            made.add_row(plain(name), plain(value))
    return made


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document; numbers that JSON lacks become null."""
    print(json.dumps(_finite(document), indent=2), file=sys.stdout)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def number_text(value: float | None, digits: int) -> str:
    """Return a number with so many digits after the point, or "-" where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def bytes_text(count: int) -> str:
    """Return a size in words, such as "12.3 kB"."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def cannot_write(folder: Path) -> str:
    """Return why no file can be made in a folder, or an empty string. The folder is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        return f"{os.fspath(folder)!r}: {error.strerror or error}"
    return ""


def check_output(path: Path, *, force: bool, option: str = "--output") -> None:
    """Raise unless something can be written at a path, before any work is done.

    Raises:
        WrongUse: it exists and `force` is not set, or its folder cannot be written.
    """
    if os.path.lexists(path) and not force:
        raise WrongUse(f"{option}: {path} exists already; --force replaces it")
    problem = cannot_write(path.absolute().parent)
    if problem:
        raise WrongUse(f"{option}: expected a folder to write to, got {problem}")


def require_input(*paths: Path | None) -> None:
    """Raise unless all of these files or folders exist; None is passed over.

    Raises:
        FileRefused: one does not.
    """
    for path in paths:
        if path is not None and not path.exists():
            raise FileRefused(path, "there is nothing at this path")
