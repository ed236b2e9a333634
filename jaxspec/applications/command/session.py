"""The options that all commands share, and how one command runs from its arguments to its answer.

`command` registers a function with a typer application. It adds `--json`, `--quiet`, `--progress`
and `--debug`, and the examples to the help text. The function gets a `Session` first and returns an
`Answer`, which is printed here, in one place.
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import os
import sys
import typing
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated, Any

import typer

from jaxspec.applications.command.errors import CLOSED_PIPE, one_line
from jaxspec.applications.command.output import Answer, console_for, print_json
from jaxspec.applications.command.progress import Advance, Stages

__all__ = ["Session", "command"]

OF_OTHERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ResourceWarning)


@dataclasses.dataclass
class Session:
    """How one command talks: in JSON or tables, with or without notes and progress."""

    json: bool
    quiet: bool
    stages: Stages

    def stage(self, description: str) -> AbstractContextManager[Advance]:
        """Return a context for one stage of work; it gives a function of (done, total)."""
        return self.stages.stage(description)


_COMMON = {
    "as_json": (
        bool,
        typer.Option("--json", help="Print one JSON document instead of tables."),
        False,
    ),
    "quiet": (
        bool,
        typer.Option("--quiet", "-q", help="Print nothing but errors, and the JSON document."),
        False,
    ),
    "progress": (
        typing.Optional[bool],  # noqa: UP045 (typer 0.12 on Python 3.10)
        typer.Option(
            "--progress/--no-progress",
            help="Show progress also in a pipe, or never.",
            show_default=False,
        ),
        None,
    ),
    "debug": (bool, typer.Option("--debug", help="Print the traceback of an error."), False),
}


def command(
    app: typer.Typer, name: str, *, examples: str
) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """Return a decorator that registers a function as a command.

    Args:
        app: the application, or a group of it.
        name: of the command.
        examples: lines that are shown at the end of its help.
    """

    def register(function: Callable[..., Answer]) -> Callable[..., Answer]:
        hints = typing.get_type_hints(function, include_extras=True)
        parameters = [
            one.replace(annotation=hints[one.name])
            for one in inspect.signature(function).parameters.values()
            if one.name != "session"
        ]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters += [
            inspect.Parameter(key, kind, default=default, annotation=Annotated[hint, option])
            for key, (hint, option, default) in _COMMON.items()
        ]

        def run(**values: Any) -> None:
            _run(function, values)

        setattr(run, "__signature__", inspect.Signature(parameters))  # noqa: B010
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        run.__name__ = function.__name__
        text = inspect.cleandoc(function.__doc__ or "")
        indented = "\n".join("  " + line for line in inspect.cleandoc(examples).splitlines())
        run.__doc__ = f"{text}\n\n\b\nExamples:\n{indented}"
        app.command(name)(run)
        return function

    return register


def _run(function: Callable[..., Answer], values: dict[str, Any]) -> None:
    """Call the function of a command and print its answer."""
    as_json, quiet = values.pop("as_json"), values.pop("quiet")
    progress = values.pop("progress")
    values.pop("debug")  # looked up by `errors.report`
    stages = Stages(False if quiet and progress is None else progress)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            answer = function(Session(as_json, quiet, stages), **values)
        finally:
            stages.close()
    shown = [one for one in caught if not issubclass(one.category, OF_OTHERS)]
    notes = list(dict.fromkeys(one_line(typing.cast(Warning, one.message)) for one in shown))
    try:
        _print(answer, notes, as_json=as_json, quiet=quiet)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head -1` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(CLOSED_PIPE) from None
    raise typer.Exit(answer.code)


def _print(answer: Answer, notes: list[str], *, as_json: bool, quiet: bool) -> None:
    if as_json:
        print_json({**answer.document, "warnings": notes})
        return
    if quiet:
        return
    if sys.stdout.isatty():
        answer.render(console_for(sys.stdout))
    else:  # cells are filled with spaces, which nobody wants at the end of the lines of a file
        text = io.StringIO()
        answer.render(console_for(text))
        print("\n".join(line.rstrip() for line in text.getvalue().splitlines()))
    sys.stdout.flush()
    for note in notes:
        console_for(sys.stderr).print(f"warning: {note}")
