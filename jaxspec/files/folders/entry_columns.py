"""What a segment says about its learnwares beside ids, class names and numbers: one column a field.

The fields are those of `jaxspec.market.Entry`. `entry_columns` makes columns for JSON, and
`check_entries` checks columns that come from JSON. Nothing here opens a file.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxspec.files.bounded_json import require
from jaxspec.market import Entry, Layout
from jaxspec.specify import FORMAT_VERSION, About

__all__ = ["ENTRY_COLUMNS", "MAX_COUNT", "check_entries", "entry_columns"]

MAX_COUNT = 2**53  # JSON readers in other languages hold integers up to here
ENTRY_COLUMNS = {
    name: hint for name, hint in typing.get_type_hints(Entry).items() if name != "class_names"
}


def entry_columns(entries: Sequence[Entry]) -> dict[str, list[Any]]:
    """Return entries of a ledger as columns for JSON."""
    return {name: [_as_json(getattr(one, name)) for one in entries] for name in ENTRY_COLUMNS}


def check_entries(entries: Any, count: int, layout: Layout) -> None:
    """Check the columns of the ledger, as they are in JSON.

    Raises:
        ValueError: they are not those of `count` entries; the message names the column.
    """
    good = isinstance(entries, dict) and set(entries) == set(ENTRY_COLUMNS)
    require(good, f"entries: expected the columns {sorted(ENTRY_COLUMNS)}")
    for name, hint in ENTRY_COLUMNS.items():
        column = entries[name]
        good = isinstance(column, list) and len(column) == count
        require(good, f"{name}: expected a list of {count} values")
        wanted, check = _COLUMN_CHECKS[hint]
        require(check(column), f"{name}: expected {wanted}")
    low, high = min(entries["size"]), max(entries["size"])
    good = low >= 1 and high <= layout.points
    require(good, f"size: expected values in 1..{layout.points}, got {low}..{high}")
    others = set(entries["format_version"]) - {FORMAT_VERSION}
    require(not others, f"format_version: expected {FORMAT_VERSION}, got {sorted(others)[:3]}")


def _as_json(value: Any) -> Any:
    if isinstance(value, About):
        return dict(value) or None
    return value


def _are_counts(column: list[Any]) -> bool:
    return {type(value) for value in column} == {int} and 0 <= min(column) <= max(
        column
    ) <= MAX_COUNT


def _are_shares(column: list[Any]) -> bool:
    values = [value for value in column if value is not None]
    kinds = {type(value) for value in values}
    return kinds <= {float, int} and all(0 <= value <= 1 for value in values)


def _are_flags(column: list[Any]) -> bool:
    return {type(value) for value in column} == {bool}


def _are_objects(column: list[Any]) -> bool:
    return all(value is None or isinstance(value, dict) for value in column)


# How the columns of the ledger look in JSON, by the type of the field of `Entry`.
_COLUMN_CHECKS: Mapping[Any, tuple[str, Callable[[list[Any]], bool]]] = {
    int: ("integers in 0..2^53", _are_counts),
    bool: ("true or false", _are_flags),
    float | None: ("numbers in 0..1 or null", _are_shares),
    About: ("objects or null", _are_objects),
}
