"""The command `jaxspec`. Prints and draws; every number comes from the library.

Needs the extra `demo` (typer, rich, matplotlib), and says so if it is missing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["main"]

EXTRA = "the command needs its extra: pip install 'jaxspec-learnware[demo]'"


def main() -> None:
    """Run the command line; exit status 2 for wrong arguments, 130 after Ctrl-C."""
    try:
        app = _app()
    except ImportError as error:
        sys.exit(f"jaxspec: {error.name} is not installed; {EXTRA}")
    app()


def _app() -> Any:
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
        _demo(seed, user, output)

    return app


@contextmanager
def _stages() -> Iterator[Callable[[str], Any]]:
    """Yield `stage` for `demo.run`: a progress line a stage, with its time when it is done."""
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


def _cache_compilations() -> None:
    """Keep compiled functions on disk, so that the next run of the command starts at once."""
    import jax

    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxspec" / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _demo(seed: int, user: int, output: Path) -> None:
    from rich.console import Console

    _cache_compilations()

    console = Console()
    start = time.perf_counter()
    with _stages() as stage:
        from jaxspec.applications import demo

        result = demo.run(seed, stage=stage)
        with stage("Drawing"):
            from jaxspec.applications.report import draw_user

            picture = draw_user(result, user, output / "demo.png")
    _print_tables(console, result)
    _print_user(console, result, user)
    console.print(f"\nPicture: {picture}   Time: {time.perf_counter() - start:.0f} s")


def _print_tables(console: Any, result: Any) -> None:
    from rich.table import Table

    titles = {
        "seen": "seen: the user's own context and label space is among the 22 learnwares",
        "unseen": "unseen: it is not, 21 learnwares are left",
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
        "by taking the first.\nbrute force: every model is run on the user's 50 labelled examples. "
        f"ceiling: ranked by one half of the {tests:.0f} test pictures, judged on the other."
    )


def _print_user(console: Any, result: Any, user: int) -> None:
    from rich.table import Table

    task, found = result.draw.users[user], result.matches[user]
    accuracy = dict(zip(result.market.ids, result.performance[user], strict=True))
    best, score = found.top_k(1)[0]
    truly = max(found.ids, key=lambda learnware: accuracy[learnware])
    console.print(f"\n[bold]User {task.name!r}[/bold] (its own learnware is not in the market)")
    table = Table(title=f"recommended: {best!r}, score {score:.2f}", title_justify="left")
    for name in ("the user's class", "the model's class", "similarity", "most similar for it"):
        table.add_column(name)
    chosen = found.best_for_class()
    for own, other, value in found.explain(best):
        table.add_row(own, other or "none", f"{value:.2f}", chosen[own])
    console.print(table)
    nearest = found.ids[int(found.squared_mmd.argmin())]
    console.print(
        f"On {len(task.test_rows)} test pictures it is right on {100 * accuracy[best]:.1f} %. "
        f"The truly best of the market, {truly!r}, is right on {100 * accuracy[truly]:.1f} %; "
        f"the one with the most similar pictures, {nearest!r}, on {100 * accuracy[nearest]:.1f} %; "
        f"a model picked at random on "
        f"{100 * sum(accuracy[i] for i in found.ids) / len(found.ids):.1f} %."
    )
