"""The command `jaxspec`. It prints and draws; every number comes from the library.

It needs the extra `demo` (typer, rich, matplotlib), and says so if a package of it is missing.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from jaxspec.applications import demo as demo_module
from jaxspec.applications.demo import DemoResult
from jaxspec.applications.report import draw_user
from jaxspec.base import cache_compilations

if TYPE_CHECKING:
    from rich.console import Console
    from typer import Typer

__all__ = ["main"]

EXTRA = "the command needs its extra packages: pip install typer rich matplotlib"


def main() -> None:
    """Run the command line; exit status 1 for a failure, 2 for wrong arguments, 130 on Ctrl-C."""
    try:
        app = _app()
    except ImportError as error:
        sys.exit(f"jaxspec: {error.name} is not installed; {EXTRA}")
    app()


def _app() -> Typer:
    import rich  # noqa: F401
    import typer

    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        help="Find, among many trained models, the ones worth reusing.",
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def _group() -> None:
        """Keep `demo` a subcommand while it is the only one."""

    @app.command()
    def demo(
        seed: int = typer.Option(
            2023, min=0, help="Of the split, the training and the label spaces."
        ),
        user: int = typer.Option(2, min=0, max=21, help="Which user to show in full."),
        output: Path = typer.Option(Path("jaxspec-demo"), help="Folder for the picture."),  # noqa: B008
    ) -> None:
        """Make a market of 22 trained models and ask it for 22 users."""
        problem = _cannot_write(output)
        if problem:
            typer.echo(f"jaxspec: --output: expected a folder to write to, got {problem}", err=True)
            raise typer.Exit(2)
        _demo(seed, user, output)

    return app


def _cannot_write(folder: Path) -> str:
    """Return why no file can be made in a folder, or an empty string. The folder is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        return f"{os.fspath(folder)!r}: {error.strerror or error}"
    return ""


@contextmanager
def _stages() -> Iterator[Callable[[str], AbstractContextManager[Callable[[int, int], None]]]]:
    """Yield `stage` for `demo.run`: a progress line per stage, with its time when it is done."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description:<60}"),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
    ) as progress:

        @contextmanager
        def stage(description: str) -> Iterator[Callable[[int, int], None]]:
            task = progress.add_task(description, total=None)

            def advance(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            yield advance
            progress.update(task, completed=1, total=1)

        yield stage


def _demo(seed: int, user: int, output: Path) -> None:
    from rich.console import Console

    cache_compilations()
    console = Console()
    start = time.perf_counter()
    with _stages() as stage:
        result = demo_module.run(seed, stage=stage)
    _print_tables(console, result)
    _print_user(console, result, user)
    try:
        picture = draw_user(result, user, output / "demo.png")
    except (ImportError, OSError) as error:
        console.print(f"\nNo picture was drawn: {error}")
    else:
        console.print(f"\nPicture: {picture}")
    console.print(f"Time: {time.perf_counter() - start:.0f} s")


def _print_tables(console: Console, result: DemoResult) -> None:
    from rich.table import Table

    console.print(
        "\n22 models were trained on pictures in 11 styles, with two sets of class names. Each of "
        "22 users has\n50 labelled pictures and asks the market for a model. The market answers "
        "from specifications alone;\nthe tables say how often its first answers hold the truly "
        "best model."
    )
    titles = {
        "seen": "seen: a model of the user's own style and classes is among the 22",
        "unseen": "unseen: that model is left out, 21 are left",
    }
    for regime, rows in result.tables.items():
        table = Table(title=titles[regime], title_justify="left")
        table.add_column("method")
        for name in ("Pre@1", "Pre@2", "Pre@3", "regret", "tau"):
            table.add_column(name, justify="right")
        for method, row in rows.items():
            shares = [f"{100 * value:.0f} %" for value in row.precision]
            table.add_row(method, *shares, f"{100 * row.regret:.1f}", f"{row.tau:.2f}")
        console.print(table)
    tests = sum(len(one.test_rows) for one in result.draw.users) / len(result.draw.users)
    console.print(
        "Pre@k: how often the truly best model is among the first k. regret: accuracy points lost "
        "by taking\nthe first. tau: rank correlation with the truth. rkme: nearness of the data "
        "alone. classwise: the\npaper's score. likelihood: the default. brute force: every model "
        "is run on the user's 50 examples.\nceiling: ranked by one half of the "
        f"{tests:.0f} test pictures, judged on the other.\n"
        "With 22 users Pre@1 has a standard error of about nine points, so methods that lie closer "
        "cannot be\ntold apart here. docs/results.md has 20 markets, where the default is ahead of "
        "classwise in the unseen case."
    )


def _print_user(console: Console, result: DemoResult, user: int) -> None:
    from rich.table import Table

    task, found = result.draw.users[user], result.matches[user]
    accuracy = dict(zip(result.market.ids, result.performance[user], strict=True))
    best, score = found.top_k(1)[0]
    truly = max(found.ids, key=lambda learnware: accuracy[learnware])
    console.print(f"\n[bold]User {task.name!r}[/bold] (its own model is not in the market)")
    table = Table(title=f"recommended: {best!r}, score {score:.2f}", title_justify="left")
    for name in ("the user's class", "the model's class", "similarity"):
        table.add_column(name)
    for own, other, value in found.explain(best):
        table.add_row(own, other or "none", f"{value:.2f}")
    console.print(table)
    nearest = found.ids[int(found.squared_mmd.argmin())]
    picked = 100 * sum(accuracy[i] for i in found.ids) / len(found.ids)
    console.print(
        f"On {len(task.test_rows)} test pictures it is right on {100 * accuracy[best]:.1f} %. "
        f"The truly best of the market, {truly!r}, is right on {100 * accuracy[truly]:.1f} %; "
        f"the one with the most similar pictures, {nearest!r}, on {100 * accuracy[nearest]:.1f} %; "
        f"a model picked at random on {picked:.1f} %."
    )
