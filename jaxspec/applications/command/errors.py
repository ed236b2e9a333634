"""Errors of the command: exit codes, and one line each that says what to do.

`report` turns any exception into an exit code and one line on stderr (with `--json`, one JSON
document there). `blamed` turns what the library says about an argument into an error about the
user's file or option. A traceback is printed only with `--debug`.
"""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import typer

__all__ = [
    "CLOSED_PIPE",
    "FAILURE",
    "FILE_REFUSED",
    "INTERRUPTED",
    "USAGE",
    "CommandError",
    "FileRefused",
    "WrongUse",
    "blamed",
    "one_line",
    "report",
]

FAILURE, USAGE, FILE_REFUSED, INTERRUPTED = 1, 2, 3, 130
CLOSED_PIPE = 141  # what a shell reports of programs that a closed pipe ends
KINDS = {FAILURE: "failure", USAGE: "usage", FILE_REFUSED: "file", INTERRUPTED: "interrupted"}
# `ClickException` has no public name that all versions of typer share.
_ParserError: type[Exception] = next(
    one for one in typer.BadParameter.__mro__ if one.__name__ == "ClickException"
)


class CommandError(Exception):
    """The command cannot go on; the text says why and what to do."""

    code = FAILURE


class WrongUse(CommandError):
    """An option or argument is not as it must be."""

    code = USAGE


class FileRefused(CommandError):
    """A file or folder is missing, damaged, of another kind, or holds what cannot be used."""

    code = FILE_REFUSED

    def __init__(self, path: object, message: str) -> None:
        super().__init__(f"{path}: {message}")


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line; the quotes of a KeyError are left out."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split())


@contextlib.contextmanager
def blamed(path: Path | str, options: Mapping[str, str] | None = None) -> Iterator[None]:
    """Turn errors of the library about an argument into errors about a file or an option.

    Args:
        path: the file that the arguments in the block come from.
        options: {argument: option}, for arguments that options give, such as {"size": "--size"}.
    """
    try:
        yield
    except (ValueError, TypeError, KeyError) as error:
        if _is_file_error(error):
            raise
        text = one_line(error)
        name, colon, rest = text.partition(":")
        option = (options or {}).get(name)
        if option and colon:
            raise WrongUse(f"{option}:{rest}") from error
        raise FileRefused(path, text) from error


def report(error: BaseException, arguments: Sequence[str]) -> int:
    """Print an error to stderr and return the exit code.

    Args:
        error: what ended the command.
        arguments: of the command line: `--json` and `--debug` are looked up there, since an error
            may come before they are read.
    """
    if "--debug" in arguments and not isinstance(error, _ParserError):
        traceback.print_exception(error, file=sys.stderr)
    code, message = _explained(error)
    if "--json" in arguments:
        document = {"error": {"kind": KINDS[code], "message": message, "exit_code": code}}
        print(json.dumps(document), file=sys.stderr)
    elif type(error).__name__ == "NoArgsIsHelpError":  # a command without arguments shows its help
        print(getattr(error, "format_message", str)(), file=sys.stderr)
    else:
        print(f"jaxspec: {message}", file=sys.stderr)
    return code


def _explained(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the line of an error."""
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return INTERRUPTED, "interrupted"
    if isinstance(error, CommandError):
        return error.code, one_line(error)
    if isinstance(error, _ParserError):
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "jaxspec"
        message = " ".join(getattr(error, "format_message", str)().split()).rstrip(".")
        return USAGE, f"{message}; `{where} --help` has examples"
    if _is_file_error(error):
        return FILE_REFUSED, one_line(error)
    if isinstance(error, OSError):
        named = f"{error.filename}: " if error.filename is not None else ""
        lacking = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
        code = FILE_REFUSED if isinstance(error, lacking) else FAILURE
        return code, f"{named}{error.strerror or one_line(error)}"
    if isinstance(error, (ImportError, MemoryError, ValueError, TypeError, KeyError)):
        return FAILURE, one_line(error) or type(error).__name__
    return FAILURE, f"{type(error).__name__}: {one_line(error)} (--debug shows where)"


def _is_file_error(error: BaseException) -> bool:
    """Tell whether it is the library's FileError, without importing the library."""
    base = sys.modules.get("jaxspec.base")
    return base is not None and isinstance(error, base.FileError)
