"""Progress of long work, on stderr: what is being done, how far it is, and how long it will take.

Nothing is shown during the first second. In a terminal one line is redrawn and removed at the end;
where `--progress` asks for it in a pipe or a log, lines are printed instead.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

__all__ = ["Advance", "Stages"]

Advance = Callable[[int, int | None], None]  # (done, total), where None is not known yet
DELAY_SECONDS = 1.0
LINE_SECONDS = 2.0  # between the lines of one stage in a log
NARROW = 80  # columns, below which the bar and the remaining time are left out


class Stages:
    """The stages of one command. `stage` is a context; `close` removes what is shown."""

    def __init__(self, shown: bool | None) -> None:
        """Show in any case (True), never (False), or only in a terminal (None)."""
        self._terminal = sys.stderr.isatty()
        self._shown = self._terminal if shown is None else shown
        self._display: Progress | None = None
        self._timer: threading.Timer | None = None
        self._start = time.monotonic()

    @contextlib.contextmanager
    def stage(self, description: str) -> Iterator[Advance]:
        """Yield a function of (done, total) for one stage of the work."""
        if not self._shown:
            yield lambda done, total: None
        elif self._terminal:
            with self._drawn(description) as advance:
                yield advance
        else:
            with self._printed(description) as advance:
                yield advance

    @contextlib.contextmanager
    def _drawn(self, description: str) -> Iterator[Advance]:
        if self._display is None:
            self._display = _display()
            self._timer = threading.Timer(DELAY_SECONDS, self._display.start)
            self._timer.daemon = True
            self._timer.start()
        display = self._display
        task: TaskID = display.add_task(description, total=None, count="")

        def advance(done: int, total: int | None) -> None:
            display.update(task, completed=done, total=total, count=_count(done, total))

        try:
            yield advance
        finally:
            display.remove_task(task)

    @contextlib.contextmanager
    def _printed(self, description: str) -> Iterator[Advance]:
        last = time.monotonic()
        print(f"jaxspec: {description}", file=sys.stderr, flush=True)

        def advance(done: int, total: int | None) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last > LINE_SECONDS:
                last = now
                print(f"jaxspec: {description}: {_count(done, total)}", file=sys.stderr, flush=True)

        yield advance

    def close(self) -> None:
        """Remove what is shown; stages may follow."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
        if self._display is not None:
            self._display.stop()
        self._display = self._timer = None


def _count(done: int, total: int | None) -> str:
    return f"{done}" if total is None else f"{done}/{total}"


def _display() -> Progress:
    console = Console(stderr=True)
    text = TextColumn(
        "{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
    )
    count = TextColumn("{task.fields[count]}")  # empty where nobody knows how much there is
    columns = [SpinnerColumn(), text, count, TimeElapsedColumn()]
    if console.width >= NARROW:
        columns = [
            SpinnerColumn(),
            text,
            BarColumn(bar_width=24),
            count,
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        ]
    return Progress(*columns, console=console, transient=True)
