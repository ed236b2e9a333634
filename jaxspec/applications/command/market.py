"""The commands that make, change and list a market: `create`, `add`, `update`, `remove`, `list`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import numpy as np
import typer

from jaxspec.applications.command import market_audit, market_versions, markets
from jaxspec.applications.command.admission import Verdict, admitted
from jaxspec.applications.command.errors import FILE_REFUSED, blamed
from jaxspec.applications.command.library import library
from jaxspec.applications.command.options import Force, MarketPath, Note, Where, entries_of
from jaxspec.applications.command.output import (
    Answer,
    check_output,
    plain,
    plain_lines,
    require_input,
    table,
)
from jaxspec.applications.command.session import Session, command
from jaxspec.applications.command.specification_inputs import (
    check_id_from,
    files_of,
    read_specifications,
)

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Make and change markets.", rich_markup_mode=None)
SHOWN_CLASSES = 4  # names of a row of `market list`

Specs = Annotated[
    list[Path],
    typer.Argument(metavar="SPECS...", help="Files of specifications, or folders of such files."),
]
IdFrom = Annotated[
    str,
    typer.Option("--id-from", help="Where ids come from: stem (of the file), path, or about:NAME."),
]


@command(
    app,
    "create",
    examples="""
    jaxspec market create market.jax fashion.space.safetensors a.safetensors b.safetensors
    jaxspec market create market.jax fashion.space.safetensors specs/ --id-from about:name
    """,
)
def create(
    session: Session,
    market: MarketPath,
    space: Annotated[Path, typer.Argument(metavar="SPACE", help="File of the market's space.")],
    specs: Specs,
    id_from: IdFrom = "stem",
    precision: Annotated[
        str, typer.Option("--precision", help="float32, bfloat16 or int8.")
    ] = "float32",
    force: Force = False,
) -> Answer:
    """Make a market of a space and of specifications."""
    check_id_from(id_from)
    require_input(space)
    files = files_of(specs, "Specification")
    check_output(market, force=force, option="MARKET")
    js = library(session)
    published = js.Space.load(space)
    found = read_specifications(js, session, files, id_from=id_from)
    with session.stage("Writing the market"), blamed("SPECS", {"precision": "--precision"}):
        markets.create(js, market, published, found, precision=precision)
    document = {"market": str(market), "learnwares": len(found), "ids": list(found)}
    return _said(document, f"{market}: a market of {_count(len(found))}")


@command(
    app,
    "add",
    examples="""
    jaxspec market add market.jax new.safetensors --note "from the north"
    jaxspec market add market.jax incoming/ --dry-run
    """,
)
def add(
    session: Session,
    market: MarketPath,
    specs: Specs,
    id_from: IdFrom = "stem",
    note: Note = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what admission decides, and change nothing.")
    ] = False,
    policy: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--policy", help="name=value of an admission policy, or `default`; may be repeated."
        ),
    ] = None,
) -> Answer:
    """Add specifications to a market.

    With --policy or --dry-run the market's admission looks at them first: copies, implausible
    answers and the like are refused with reasons, the others are added. The exit code is 3 if
    anything was refused.
    """
    check_id_from(id_from)
    wanted = entries_of("--policy", [entry for entry in policy or () if entry != "default"])
    markets.require_market(market)
    files = files_of(specs, "Specification")
    js = library(session)
    found = read_specifications(js, session, files, id_from=id_from)
    verdict = Verdict(found, {}, [])
    if dry_run or policy:
        with session.stage("Admission"):
            verdict = admitted(js, markets.load(js, market), found, wanted)
    facts: dict[str, Any] = {}
    if verdict.accepted and not dry_run:
        with session.stage("Writing the market"), blamed(market):
            facts = markets.add(js, market, verdict.accepted, note=note)
    document = {
        "market": str(market),
        "dry_run": dry_run,
        "added": [] if dry_run else list(verdict.accepted),
        "accepted": list(verdict.accepted),
        "refused": verdict.refused,
        "admission_warnings": verdict.warnings,
        **facts,
    }
    lines = [f"refused {name}: {reason}" for name, why in verdict.refused.items() for reason in why]
    lines += [f"note: {text}" for text in verdict.warnings]
    if dry_run:
        lines.append(f"{market}: {_count(len(verdict.accepted))} would be added")
    elif verdict.accepted:
        lines.append(f"{market}: added {len(verdict.accepted)}, now {_count(facts['learnwares'])}")
    else:
        lines.append(f"{market}: nothing was added")
    return _said(document, *lines, code=FILE_REFUSED if verdict.refused else 0)


@command(app, "update", examples="jaxspec market update market.jax mine.safetensors")
def update(
    session: Session, market: MarketPath, specs: Specs, id_from: IdFrom = "stem", note: Note = ""
) -> Answer:
    """Replace specifications by newer ones."""
    check_id_from(id_from)
    markets.require_market(market)
    files = files_of(specs, "Specification")
    js = library(session)
    found = read_specifications(js, session, files, id_from=id_from)
    with session.stage("Writing the market"), blamed(market):
        facts = markets.update(js, market, found, note=note)
    document = {"market": str(market), "updated": list(found), **facts}
    return _said(document, f"{market}: updated {len(found)} of {_count(facts['learnwares'])}")


@command(app, "remove", examples="jaxspec market remove market.jax north east")
def remove(
    session: Session,
    market: MarketPath,
    ids: Annotated[list[str], typer.Argument(metavar="IDS...", help="Ids of learnwares.")],
    note: Note = "",
) -> Answer:
    """Remove learnwares from a market."""
    markets.require_market(market)
    js = library(session)
    with session.stage("Writing the market"), blamed(market):
        facts = markets.remove(js, market, ids, note=note)
    document = {"market": str(market), "removed": list(ids), **facts}
    return _said(document, f"{market}: removed {len(ids)}, now {_count(facts['learnwares'])}")


@command(
    app,
    "list",
    examples="""
    jaxspec market list market.jax
    jaxspec market list market.jax --where "licence in (MIT, Apache-2.0)" --json
    """,
)
def list_learnwares(
    session: Session,
    market: MarketPath,
    where: Where = None,
    limit: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--limit", min=1, help="So many at most; all if left out."),
    ] = None,
) -> Answer:
    """List the learnwares of a market with their classes and metadata."""
    markets.require_market(market)
    js = library(session)
    with markets.opened(js, market) as folder:
        mask = markets.selected(folder, where)
        places = np.arange(len(folder)) if mask is None else np.flatnonzero(mask)
        about = {name: folder.about[name] for name in sorted(folder.about)}
        verified = folder.verified
        rows = [
            {
                "id": folder.ids[place],
                "class_names": list(folder.class_names(folder.ids[place])),
                "about": {
                    name: _value(column[place])
                    for name, column in about.items()
                    if _is_there(column[place])
                },
                "verified": bool(verified[place]),
            }
            for place in places[:limit]
        ]
        count = len(folder)
    document = {
        "market": str(market),
        "count": count,
        "selected": len(places),
        "learnwares": rows,
    }

    def render(console: Any) -> None:
        headings = ["learnware", "classes", "verified", *about]
        columns = [(name, "left") for name in headings]
        entries = [
            (
                row["id"],
                _short(row["class_names"]),
                "yes" if row["verified"] else "no",
                *(row["about"].get(name, "-") for name in about),
            )
            for row in rows
        ]
        console.print(table(columns, entries, fold=(0, 1)))
        hidden = f"; {len(rows)} are shown" if len(rows) < len(places) else ""
        chosen = f" of {count}" if where is not None else ""
        console.print(plain(f"{len(places)}{chosen} learnwares{hidden}"))

    return Answer(document, render)


def _is_there(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and np.isnan(value))


def _value(entry: Any) -> Any:
    """Return an entry of a column as JSON has it; whole numbers come without a point."""
    value = entry.item() if hasattr(entry, "item") else entry
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _short(names: list[str]) -> str:
    if len(names) <= SHOWN_CLASSES:
        return ", ".join(names)
    return f"{', '.join(names[: SHOWN_CLASSES - 1])} ... ({len(names)})"


def _count(number: int) -> str:
    return f"{number} learnware{'' if number == 1 else 's'}"


def _said(document: dict[str, Any], *lines: str, code: int = 0) -> Answer:
    text = plain_lines(lines)
    return Answer(document, lambda console: console.print(text), code)


market_versions.register(app)
market_audit.register(app)
