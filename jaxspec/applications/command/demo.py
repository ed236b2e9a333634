"""The command `demo`: a market of 22 trained models, asked for 22 users, as tables and a picture.

It prints and draws what `jaxspec.applications.demo` finds. The picture needs matplotlib (the extra
`demo`); without it the tables are printed all the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxspec.applications.command.errors import WrongUse
from jaxspec.applications.command.library import library
from jaxspec.applications.command.match_output import match_document
from jaxspec.applications.command.output import Answer, cannot_write, plain_lines, table
from jaxspec.applications.command.progress import Advance
from jaxspec.applications.command.session import Session, command

if TYPE_CHECKING:
    from rich.console import Console

    from jaxspec.applications.demo import DemoResult

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    examples = """
    jaxspec demo
    jaxspec demo --user 5 --output pictures
    """
    command(app, "demo", examples=examples)(demo)


def demo(
    session: Session,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the split, the training and the label spaces.")
    ] = 2023,
    user: Annotated[int, typer.Option(min=0, max=21, help="Which user to show in full.")] = 2,
    output: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("jaxspec-demo"),
) -> Answer:
    """Make a market of 22 models and ask it.

    The models are trained first, on embedded pictures. It takes half a minute.
    """
    problem = cannot_write(output)
    if problem:
        raise WrongUse(f"--output: expected a folder to write to, got {problem}")
    start = time.perf_counter()
    library(session)
    from jaxspec.applications import demo as work
    from jaxspec.applications.report import draw_user

    @contextmanager
    def stage(description: str) -> Iterator[Advance]:
        with session.stage(description) as advance:
            yield advance

    result = work.run(seed, stage=stage)
    picture, problem = None, ""
    try:
        with session.stage("Drawing"):
            picture = draw_user(result, user, output / "demo.png")
    except (ImportError, OSError) as error:
        problem = str(error)
    seconds = time.perf_counter() - start

    def render(console: Console) -> None:
        _print_tables(console, result)
        _print_user(console, result, user)
        drawn = f"Picture: {picture}" if picture else f"No picture was drawn: {problem}"
        console.print(plain_lines(["", drawn, f"Time: {seconds:.0f} s"]))

    return Answer(_document(result, user, picture), render)


def _document(result: DemoResult, user: int, picture: Path | None) -> dict[str, Any]:
    tables = {
        regime: {
            method: {
                "precision": [float(value) for value in row.precision],
                "regret": float(row.regret),
                "tau": float(row.tau),
            }
            for method, row in rows.items()
        }
        for regime, rows in result.tables.items()
    }
    return {
        "tables": tables,
        "user": result.draw.users[user].name,
        "match": match_document(result.matches[user]),
        "picture": None if picture is None else str(picture),
    }


def _print_tables(console: Console, result: DemoResult) -> None:
    console.print(
        "\n22 models were trained on pictures in 11 styles, with two sets of class names. Each of "
        "22 users has 50 labelled pictures and asks the market for a model. The market answers "
        "from specifications alone; the tables say how often its first answers hold the truly best "
        "model.\n"
    )
    titles = {
        "seen": "seen: a model of the user's own style and classes is among the 22",
        "unseen": "unseen: that model is left out, 21 are left",
    }
    headings = [("method", "left")]
    headings += [(name, "right") for name in ("Pre@1", "Pre@2", "Pre@3", "regret", "tau")]
    for regime, rows in result.tables.items():
        entries = [
            (
                method,
                *(f"{100 * value:.0f} %" for value in row.precision),
                f"{100 * row.regret:.1f}",
                f"{row.tau:.2f}",
            )
            for method, row in rows.items()
        ]
        console.print(titles[regime])
        console.print(table(headings, entries, fold=0))
        console.print()
    tests = sum(len(one.test_rows) for one in result.draw.users) / len(result.draw.users)
    console.print(
        "Pre@k: how often the truly best model is among the first k. regret: accuracy points lost "
        "by taking the first. tau: rank correlation with the truth. rkme: nearness of the data "
        "alone. classwise: the paper's score. likelihood: the default. brute force: every model is "
        f"run on the user's 50 examples. ceiling: ranked by one half of the {tests:.0f} test "
        "pictures, judged on the other. With 22 users Pre@1 has a standard error of about nine "
        "points, so methods that lie closer cannot be told apart here. docs/results.md has 20 "
        "markets, where the default is ahead of classwise in the unseen case."
    )


def _print_user(console: Console, result: DemoResult, user: int) -> None:
    task, found = result.draw.users[user], result.matches[user]
    accuracy = dict(zip(result.market.ids, result.performance[user], strict=True))
    best, score = found.top_k(1)[0]
    truly = max(found.ids, key=lambda learnware: accuracy[learnware])
    console.print(f"\nUser {task.name!r} (its own model is not in the market)")
    console.print(f"recommended: {best!r}, score {score:.2f}")
    headings = [
        ("the user's class", "left"),
        ("the model's class", "left"),
        ("similarity", "right"),
    ]
    rows = [(own, other or "none", f"{value:.2f}") for own, other, value in found.explain(best)]
    console.print(table(headings, rows, fold=1))
    nearest = found.ids[int(found.squared_mmd.argmin())]
    picked = 100 * sum(accuracy[i] for i in found.ids) / len(found.ids)
    console.print(
        f"On {len(task.test_rows)} test pictures it is right on {100 * accuracy[best]:.1f} %. "
        f"The truly best of the market, {truly!r}, is right on {100 * accuracy[truly]:.1f} %; "
        f"the one with the most similar pictures, {nearest!r}, on {100 * accuracy[nearest]:.1f} %; "
        f"a model picked at random on {picked:.1f} %."
    )
