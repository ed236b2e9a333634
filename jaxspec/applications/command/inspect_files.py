"""The command `inspect`: what a file or folder of ours is, and what it says about itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jaxspec.applications.command import markets
from jaxspec.applications.command.describe import (
    kind_of,
    market_facts,
    rows_of,
    space_facts,
    specification_facts,
)
from jaxspec.applications.command.errors import FileRefused
from jaxspec.applications.command.library import library
from jaxspec.applications.command.output import Answer, facts_table, require_input
from jaxspec.applications.command.session import Session, command

__all__ = ["register"]

OURS = ("Market", "Space", "Specification", "UserSpecification")


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    examples = """
    jaxspec inspect mine.safetensors
    jaxspec inspect market.jax --json
    """
    command(app, "inspect", examples=examples)(inspect)


def inspect(
    session: Session,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A file or folder of ours.")],
) -> Answer:
    """Say what a file or folder of ours is.

    Kind, sizes, class names, metadata and digests are shown. It is read completely and checked, as
    loading it does.
    """
    require_input(path)
    kind = kind_of(path)
    if kind not in OURS:
        raise FileRefused(
            path, "expected a space, a specification or a market of jaxspec, got something else"
        )
    js = library(session)
    facts: dict[str, Any]
    if kind == "Market":
        with markets.opened(js, path) as folder:
            facts = market_facts(folder, path)
    elif kind == "Space":
        facts = space_facts(js.Space.load(path), path)
    else:
        facts = specification_facts(getattr(js, kind).load(path), path)
    return Answer(facts, lambda console: console.print(facts_table(rows_of(facts))))
