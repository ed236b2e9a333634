"""The command `jaxspec`. It reads files, calls the library and prints; it computes nothing itself.

`main` is the entry point. It needs the extra `command` (typer, rich), and says so if a package of
it is missing. Nothing that is imported here, or by `app`, imports jax: `library` does, on first
use, so that `--help` and wrong arguments are answered at once.

`app` collects the commands, which live one group a file (`space`, `specify`, `inspect_files`,
`market`, `market_versions`, `market_audit`, `match`, `batch`, `demo`). What they share: `session`
(options of all commands), `errors` (exit codes), `output` and `progress`, `inputs` and `pictures`
(data of users), `describe` (what is printed about an object), and `markets`, the only file that
touches a market on disk.
"""

from __future__ import annotations

import sys

__all__ = ["main"]

EXTRA = "pip install 'jaxspec-learnware[command]'"


def main() -> None:
    """Run the command line and exit; `jaxspec.applications.command.errors` has the exit codes."""
    try:
        from jaxspec.applications.command.app import app
    except ImportError as error:
        needed = (error.name or "").partition(".")[0]
        if needed == "jaxspec":
            raise
        sys.exit(f"jaxspec: {needed} is not installed; the command needs it: {EXTRA}")
    except KeyboardInterrupt:
        sys.exit(130)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal cannot show is escaped
            stream.reconfigure(errors="backslashreplace")
    app()
