"""The commands `batch`, for many users at once, and `index build`, for large markets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from jaxspec.applications.command import markets
from jaxspec.applications.command.errors import FILE_REFUSED, WrongUse, blamed
from jaxspec.applications.command.library import library
from jaxspec.applications.command.match import LabelSpaces, Method, Reuse, SpacesKind
from jaxspec.applications.command.options import Force, MarketPath, Verified, Where
from jaxspec.applications.command.output import Answer, check_output, plain, require_input
from jaxspec.applications.command.session import Session, command

__all__ = ["index_app", "register"]

index_app = typer.Typer(
    no_args_is_help=True, help="Indexes of large markets.", rich_markup_mode=None
)
OUTPUTS = (".parquet", ".npz")
OPTIONS = {"k": "-k", "method": "--method", "reuse": "--reuse", "output": "--output"}


def register(app: typer.Typer) -> None:
    """Add the command `batch` to an application."""
    command(
        app,
        "batch",
        examples="""
        jaxspec batch market.jax users/ -o answers.parquet
        jaxspec batch market.jax users.safetensors -k 5 -o answers.npz --stream
        """,
    )(batch)


def batch(
    session: Session,
    market: MarketPath,
    users: Annotated[
        list[Path],
        typer.Argument(metavar="USERS...", help="Users' specifications: files, folders, stacks."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Answers: a .parquet or an .npz file.")
    ],
    k: Annotated[int, typer.Option("-k", min=1, help="How many learnwares per user.")] = 10,
    reuse: Reuse = None,
    method: Method = None,
    label_spaces: LabelSpaces = SpacesKind.auto,
    where: Where = None,
    verified: Verified = False,
    batch_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--batch-size", min=1, help="Users that are answered together."),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Read the market in parts; for markets beyond memory.")
    ] = False,
    force: Force = False,
) -> Answer:
    """Answer many users at once, into one file.

    A job that was interrupted goes on where it was when the same command is given again. A user
    that cannot be answered has an error in its row; the exit code is 3 then.
    """
    if output.suffix not in OUTPUTS:
        raise WrongUse(f"--output: expected a name that ends in .parquet or .npz, got {output}")
    markets.require_market(market)
    require_input(*users)
    check_output(output, force=force)
    js = library(session)
    options: dict[str, Any] = {
        "k": k,
        "batch_size": batch_size,
        "method": method,
        "reuse": None if reuse is None else reuse.value,
        "label_spaces": label_spaces.value,
        "verified": verified,
    }
    if force:
        output.unlink(missing_ok=True)
    with markets.asked(js, session, market, stream=stream) as place:
        mask = markets.selected(place, where)
        with session.stage("Answering") as advance, blamed("USERS", OPTIONS):
            answers = js.match_many(
                place,
                users[0] if len(users) == 1 else list(users),
                among=mask,
                output=output,
                progress=lambda done, total, *_: advance(done, total),
                **options,
            )
    document = {
        "market": str(market),
        "output": str(output),
        "users": int(answers.users),
        "failed": int(answers.failed),
        "resumed": int(answers.resumed),
    }
    said = f"{output}: {answers.users} users"
    if answers.resumed:
        said += f", {answers.resumed} of them answered before"
    if answers.failed:
        said += f"; {answers.failed} with an error in place of an answer"
    code = FILE_REFUSED if answers.failed else 0
    return Answer(document, lambda console: console.print(plain(said)), code)


@command(index_app, "build", examples="jaxspec index build market.jax")
def build(session: Session, market: MarketPath) -> Answer:
    """Build the index of a market and save it with the market, for `match --index`."""
    markets.require_market(market)
    js = library(session)
    with session.stage("Reading the market"):
        loaded = markets.load(js, market)
    with session.stage("Encoding") as advance, blamed(market):
        index = js.Index.build(loaded, progress=advance)
    with session.stage("Writing the index"):
        markets.save_index(index, market)
    document = {
        "market": str(market),
        "learnwares": len(index),
        "bytes_per_learnware": int(index.bytes_per_learnware),
    }
    line = f"{market}: an index of {len(index)} learnwares"
    return Answer(document, lambda console: console.print(plain(line)))
