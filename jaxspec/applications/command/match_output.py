"""How an answer of `match` is printed, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from jaxspec.applications.command.output import number_text, plain, table

__all__ = ["match_document", "print_match"]

Pairs = Sequence[tuple[str, str | None, float]]


def match_document(found: Any) -> dict[str, Any]:
    """Return a `Match` as dictionaries; every learnware has its rank, and is of `Match.to_dict`."""
    document: dict[str, Any] = found.to_dict()
    order = found.order()
    for rank, (entry, place) in enumerate(zip(document["learnwares"], order, strict=True), start=1):
        entry["rank"] = rank
        for name in _extras(found):
            entry.setdefault(name, _value(getattr(found, name)[place]))
    return document


def print_match(
    console: Console, found: Any, explained: str | None = None, pairs: Pairs | None = None
) -> None:
    """Print the learnwares best first, the notes, and the classes of one learnware if asked for."""
    extras = _extras(found)
    columns = [
        ("rank", "right"),
        ("learnware", "left"),
        ("score", "right"),
        ("MMD^2", "right"),
        ("classes", "left"),
        *((name, "right") for name in extras),
    ]
    rows = []
    for rank, i in enumerate(found.order(), start=1):
        stands = int((found.class_map[i] >= 0).sum())
        rows.append(
            (
                rank,
                found.ids[i],
                number_text(float(found.scores[i]), 3),
                number_text(float(found.squared_mmd[i]), 4),
                f"{stands} of {len(found.class_names)}",
                *(_shown(getattr(found, name)[i]) for name in extras),
            )
        )
    if rows:
        console.print(table(columns, rows, fold=1))
    for note in found.notes:
        console.print(plain(f"- {note}"))
    if pairs is not None:
        console.print()
        headings = [("your class", "left"), (f"class of {explained}", "left"), ("similar", "right")]
        console.print(
            table(headings, [(a, b or "none", number_text(c, 2)) for a, b, c in pairs], fold=(0, 1))
        )


def _extras(found: Any) -> list[str]:
    """Return what else an answer says about each learnware, if it does."""
    return [name for name in ("accuracy", "interval", "verified") if _per_learnware(found, name)]


def _per_learnware(found: Any, name: str) -> bool:
    value = getattr(found, name, None)
    return value is not None and hasattr(value, "__len__") and len(value) == len(found.ids)


def _value(entry: Any) -> Any:
    return entry.tolist() if hasattr(entry, "tolist") else entry


def _shown(entry: Any) -> str:
    value = _value(entry)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return " to ".join(number_text(float(one), 2) for one in value)
    return number_text(float(value), 2) if isinstance(value, float) else str(value)
