"""The application `jaxspec`: all commands, `--version`, shell completion, and how errors end it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from jaxspec.applications.command import batch, demo, inspect_files, market, match, space, specify
from jaxspec.applications.command.errors import INTERRUPTED, report

__all__ = ["app"]

ORDER = ("space", "specify", "inspect", "market", "match", "index", "batch", "demo")


class _Commands(TyperGroup):
    """All commands; an error becomes one line and an exit code, also under typer's test runner."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order in which they are used."""
        return sorted(self.commands, key=ORDER.index)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run one command line and exit with its code."""
        arguments = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(arguments, "jaxspec", complete_var, standalone_mode=False, **extra)
            if code == INTERRUPTED:  # newer versions of typer turn an interrupt into this
                raise KeyboardInterrupt
        except Exception as error:
            code = report(error, arguments)
        except KeyboardInterrupt as error:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one must not cut the message
            code = report(error, arguments)
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(shown: bool) -> None:
    if shown:
        from jaxspec import __version__

        typer.echo(f"jaxspec {__version__}")
        raise typer.Exit


@app.callback()
def _group(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Find, among many trained models, the ones worth reusing.

    \b
    From your own arrays to a ranking:
      jaxspec space create NAME public.npz -o s.safetensors
      jaxspec specify s.safetensors north.npz -o n.safetensors
      jaxspec market create m.jax s.safetensors n.safetensors
      jaxspec match m.jax mine.npz

    \b
    Exit codes:
      0 done, 1 failed, 2 wrong use, 3 a file was refused,
      130 interrupted
    """


app.add_typer(space.app, name="space")
specify.register(app)
inspect_files.register(app)
app.add_typer(market.app, name="market")
match.register(app)
app.add_typer(batch.index_app, name="index")
batch.register(app)
demo.register(app)
