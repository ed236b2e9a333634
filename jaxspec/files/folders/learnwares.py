"""Learnwares that are to be written to disk: what is known of them, and how their rows are read.

They come from specifications, from a market in memory, or from a market on disk, whole or in part;
rows are read block by block, so that none of these need be in memory twice. Nothing here writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxspec.base import pad_to
from jaxspec.files.folders.contents import Contents
from jaxspec.files.folders.entry_columns import entry_columns
from jaxspec.market import ROW_ARRAYS, SCHEMA, Layout, Ledger, Market, Rows, dtype_of, make_rows
from jaxspec.specify import Space, Specification

__all__ = ["Learnwares", "joined", "of_contents", "of_market", "of_specifications"]


@dataclasses.dataclass(frozen=True)
class Learnwares:
    """Learnwares as they are written to a segment.

    Attributes:
        ids: of n learnwares.
        serials: (n,) ascending numbers that no other learnware of the folder has or had.
        class_names: by number, as in the array `class_ids`.
        entries: {field of `Entry`: n values as JSON}, without class names.
        layout: the padded sizes of the rows.
        precision: in which rows are stored.
        origin: (d,) what was subtracted from all points.
        read: returns the rows from a first to a last as they are stored, {name: (last - first,
            ...)}, with numbers of `class_names`.
    """

    ids: list[str]
    serials: np.ndarray
    class_names: list[str]
    entries: dict[str, list[Any]]
    layout: Layout
    precision: str
    origin: np.ndarray
    read: Callable[[int, int], Rows]

    def shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Return {name: (shape of a row, type)} of the arrays that are written."""
        found = {}
        for name, one in SCHEMA.items():
            shape = self.layout.shape(one.axes, 1)[1:]
            if one.saved and one.per_row and all(shape):
                found[name] = (shape, dtype_of(one.kind, self.precision))
        return found


def of_specifications(
    specifications: Mapping[str, Specification],
    space: Space,
    precision: str,
    *,
    contents: Contents | None,
    first_serial: int,
) -> Learnwares:
    """Return checked specifications as learnwares.

    Args:
        specifications: {id: specification}, at least one.
        space: of the market.
        precision: in which rows are stored.
        contents: of the market that they are for, whose origin and sizes are taken; None for a new
            one.
        first_serial: of the first of them.
    """
    known = contents is not None and contents.has_origin
    made = make_rows(
        space,
        specifications,
        precision=precision,
        origin=contents.origin if known and contents is not None else None,
        layout=contents.layout if known and contents is not None else None,
    )
    return Learnwares(
        ids=list(made.ledger.ids),
        serials=np.arange(first_serial, first_serial + len(specifications)),
        class_names=list(made.ledger.names),
        entries=entry_columns(made.ledger.entries),
        layout=made.layout,
        precision=precision,
        origin=made.origin,
        read=lambda first, last: {name: value[first:last] for name, value in made.rows.items()},
    )


def of_market(market: Market, first_serial: int) -> Learnwares:
    """Return the learnwares of a market in memory, at least one."""
    ledger, slots, shared = market.ledger, market.slots, market.shared
    in_order = market.mesh is None and len(slots) == market.length
    arrays = shared.arrays  # kept, so they stay valid whatever is added meanwhile
    if in_order:
        views = {name: np.asarray(getattr(arrays, name)) for name in ROW_ARRAYS}
        class_ids = views["class_ids"][: len(slots)]
    else:
        class_ids = shared.take(slots)["class_ids"]
    layout, origin = shared.layout, np.asarray(arrays.origin)
    names, numbers = _used_names(ledger, class_ids)

    def read(first: int, last: int) -> Rows:
        if in_order:
            rows = {name: value[first:last] for name, value in views.items()}
        else:
            rows = shared.take(slots[first:last])
        return {**rows, "class_ids": numbers[rows["class_ids"]]}

    return Learnwares(
        ids=list(market.ids),
        serials=np.arange(first_serial, first_serial + len(slots)),
        class_names=names,
        entries=entry_columns(market.entries),
        layout=layout,
        precision=market.precision,
        origin=origin,
        read=read,
    )


def of_contents(contents: Contents, ledger: Ledger, rows: np.ndarray) -> Learnwares:
    """Return learnwares of a market on disk.

    Args:
        contents: of one version.
        ledger: of its rows.
        rows: (n,) ascending, which of them.
    """
    chosen = contents.part_of(rows)
    class_ids = chosen.rows(("class_ids",), np.arange(len(rows)))["class_ids"]
    names, numbers = _used_names(ledger, class_ids)
    serials = [part.segment.serials[part.kept] for part in chosen.parts]
    saved = [name for name, one in SCHEMA.items() if one.saved and one.per_row]

    def read(first: int, last: int) -> Rows:
        memory = chosen.memory(saved, last - first)
        chosen.start(memory, first, last).wait()
        return {**memory, "class_ids": numbers[memory["class_ids"]]}

    return Learnwares(
        ids=[ledger.ids[row] for row in rows],
        serials=np.concatenate(serials),
        class_names=names,
        entries=entry_columns([ledger.entries[row] for row in rows]),
        layout=chosen.layout,
        precision=contents.precision,
        origin=contents.origin,
        read=read,
    )


def joined(one: Learnwares, two: Learnwares) -> Learnwares:
    """Return the learnwares of both, which are of one folder."""
    layout, count = one.layout.joined(two.layout), len(one.ids)
    number_of = {name: number for number, name in enumerate(one.class_names)}
    of_two = [number_of.setdefault(name, len(number_of)) for name in two.class_names]
    numbers = np.array([*of_two, -1], np.int32)
    entries = {name: [*column, *two.entries[name]] for name, column in one.entries.items()}

    def read(first: int, last: int) -> Rows:
        parts = []
        if first < count:
            parts.append(one.read(first, min(last, count)))
        if last > count:
            rows = two.read(max(first - count, 0), last - count)
            parts.append({**rows, "class_ids": numbers[rows["class_ids"]]})
        return {
            name: np.concatenate([_padded(part, name, layout, one.precision) for part in parts])
            for name in whole.shapes()
        }

    whole = Learnwares(
        ids=[*one.ids, *two.ids],
        serials=np.concatenate([one.serials, two.serials]),
        class_names=list(number_of),
        entries=entries,
        layout=layout,
        precision=one.precision,
        origin=one.origin,
        read=read,
    )
    return whole


def _padded(rows: Rows, name: str, layout: Layout, precision: str) -> np.ndarray:
    one, count = SCHEMA[name], len(rows["weights"])
    shape = layout.shape(one.axes, count)
    if name not in rows or not rows[name].size:
        return np.full(shape, one.fill, dtype_of(one.kind, precision))
    return pad_to(rows[name], shape, value=one.fill)


def _used_names(ledger: Ledger, class_ids: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Return the names of the classes that there are, and new numbers for the ledger's numbers."""
    names = list(ledger.names)
    used = np.unique(class_ids)
    used = used[used >= 0]
    numbers = np.full(len(names) + 1, -1, np.int32)  # the last one is for -1, no class
    numbers[used] = np.arange(len(used))
    return [names[number] for number in used], numbers
