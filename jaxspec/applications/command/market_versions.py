"""The commands about a market's state: `info`, `verify`, `history`, `rollback`, `compact`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jaxspec.applications.command import markets
from jaxspec.applications.command.describe import market_facts, rows_of
from jaxspec.applications.command.library import library
from jaxspec.applications.command.options import MarketPath, Note
from jaxspec.applications.command.output import Answer, facts_table, plain, table
from jaxspec.applications.command.session import Session, command

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands to the group `market`."""
    command(app, "info", examples="jaxspec market info market.jax --json")(info)
    command(app, "verify", examples="jaxspec market verify market.jax")(verify)
    command(app, "history", examples="jaxspec market history market.jax")(history)
    command(
        app,
        "rollback",
        examples="""
        jaxspec market history market.jax
        jaxspec market rollback market.jax VERSION
        """,
    )(rollback)
    command(app, "compact", examples="jaxspec market compact market.jax --keep 3")(compact)


def info(session: Session, market: MarketPath) -> Answer:
    """Show the size, version, space and metadata names of a market."""
    markets.require_market(market)
    js = library(session)
    with markets.opened(js, market) as folder:
        facts = market_facts(folder, market)
    return Answer(facts, lambda console: console.print(facts_table(rows_of(facts))))


def verify(session: Session, market: MarketPath) -> Answer:
    """Read all of a market and check it.

    Every checksum and every number is checked; the exit code is 3 if one is wrong.
    """
    markets.require_market(market)
    js = library(session)
    with session.stage("Reading everything"):
        facts = markets.verify(js, market)
    document = {"market": str(market), "sound": True, **facts}
    line = f"{market}: sound, {facts['learnwares']} learnwares, version {facts['version']}"
    return Answer(document, lambda console: console.print(plain(line)))


def history(session: Session, market: MarketPath) -> Answer:
    """List the versions of a market, oldest first."""
    markets.require_market(market)
    js = library(session)
    versions = markets.history(js, market)

    def render(console: Any) -> None:
        columns = [("version", "left"), ("time", "left"), ("count", "right"), ("change", "left")]
        rows = [
            (
                one["name"],
                one["time"][:16].replace("T", " "),  # to the minute
                one["learnwares"],
                ": ".join(text for text in (one["change"], one["note"]) if text),
            )
            for one in versions
        ]
        console.print(table(columns, rows, fold=3))

    return Answer({"market": str(market), "versions": versions}, render)


def rollback(
    session: Session,
    market: MarketPath,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="A name of the history.")],
) -> Answer:
    """Bring back the content of an old version, as a new version."""
    markets.require_market(market)
    js = library(session)
    facts = markets.rollback(js, market, version)
    document = {"market": str(market), "rolled_back_to": version, **facts}
    line = f"{market}: as in {version} again, {facts['learnwares']} learnwares"
    return Answer(document, lambda console: console.print(plain(line)))


def compact(
    session: Session,
    market: MarketPath,
    keep: Annotated[int, typer.Option("--keep", min=1, help="Versions to keep.")] = 1,
    note: Note = "",
) -> Answer:
    """Rewrite a market and forget old versions."""
    markets.require_market(market)
    js = library(session)
    with session.stage("Rewriting the market"):
        facts = markets.compact(js, market, keep=keep, note=note)
    document = {"market": str(market), "kept": keep, **facts}
    line = f"{market}: rewritten, {facts['learnwares']} learnwares, version {facts['version']}"
    return Answer(document, lambda console: console.print(plain(line)))
