"""What a market knows about its learnwares beside numbers: ids, class names, sizes, metadata.

A `Ledger` is only ever appended to, and is shared by the versions of a market: a version sees the
first slots, without those that it removed. It is host data and holds no arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxspec.market.about_table import AboutColumn
from jaxspec.specify import About, Specification

__all__ = ["Entry", "Ledger"]


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """What the ledger says about one slot.

    Attributes:
        class_names: of the learnware.
        size: points of its reduced set.
        num_examples: how many examples stand behind it.
        format_version: of its specification.
        fidelity: of its probe proxy, or None without one.
        about: metadata of its owner.
        verified: whether its model was run and gave the published answers, when it was entered.
            Only a market says so, never a specification. `Market.verified` is what holds now.
    """

    class_names: tuple[str, ...]
    size: int
    num_examples: int
    format_version: int
    fidelity: float | None = None
    about: About = About()
    verified: bool = False

    @classmethod
    def of(cls, spec: Specification, which: int | None = None) -> Entry:
        """Return the entry of a specification, or of one in a stacked specification."""
        fidelity = None
        if spec.probe_proxy is not None:
            values = np.asarray(spec.probe_proxy.fidelity)
            fidelity = float(values if which is None or values.ndim == 0 else values[which])
        return cls(
            spec.class_names,
            int(np.shape(spec.reduced_set.points)[-2]),
            spec.num_examples,
            spec.format_version,
            fidelity,
            spec.about,
        )


class Ledger:
    """Ids and entries by slot, and class names by number.

    One thread at a time enters; others read meanwhile. Whoever goes through a dictionary or a set
    therefore copies it first: the copy is made in one step.
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.entries: list[Entry] = []
        self.names: dict[str, int] = {}  # class name -> number
        self.label_spaces: dict[tuple[str, ...], list[int]] = {}  # class names -> slots
        self._slots_of: dict[str, tuple[int, ...]] = {}  # id -> slots that it was ever given
        self._about_columns: dict[str, AboutColumn] = {}  # name -> values of the first slots
        self._spaces_with: dict[str, set[tuple[str, ...]]] = {}  # class name -> its label spaces

    def __len__(self) -> int:
        return len(self.ids)

    def enter(self, learnware: str, entry: Entry) -> None:
        """Note what the next slot holds."""
        slot = len(self.ids)
        self.ids.append(learnware)
        self.entries.append(entry)
        self._slots_of[learnware] = (*self._slots_of.get(learnware, ()), slot)
        names = entry.class_names
        if names not in self.label_spaces:
            self.label_spaces[names] = []
            for name in names:
                self._spaces_with.setdefault(name, set()).add(names)
        self.label_spaces[names].append(slot)

    def slots_of(self, learnware: str) -> tuple[int, ...]:
        """Return the slots that an id was ever given: it may come back after a removal."""
        return self._slots_of.get(learnware, ())

    def number_names(self, names: Sequence[str]) -> np.ndarray:
        """Return the numbers of class names, (C,) int32; new names get the next numbers."""
        return np.array([self.names.setdefault(name, len(self.names)) for name in names], np.int32)

    def numbers_of(self, names: Sequence[str]) -> np.ndarray:
        """Return the numbers of class names, (C,) int32; -2 for a name that is not known."""
        return np.array([self.names.get(name, -2) for name in names], np.int32)

    def shared_counts(self, names: Sequence[str]) -> dict[tuple[str, ...], int]:
        """Return, for each label space, how many of these names it has (if it has any)."""
        found: dict[tuple[str, ...], int] = {}
        for name in names:
            for space in tuple(self._spaces_with.get(name, ())):  # at once: see the class
                found[space] = found.get(space, 0) + 1
        return found

    def part(self, slots: Iterable[int]) -> Ledger:
        """Return a ledger of some slots, in this order, with the same numbers of names."""
        other = Ledger()
        other.names = dict(self.names)
        for slot in slots:
            other.enter(self.ids[slot], self.entries[slot])
        return other

    def column(self, name: str, slots: np.ndarray) -> np.ndarray:
        """Return one column of metadata for some slots, (n,).

        Numbers come as float64 with NaN where the name is missing, booleans as bool where nothing
        is missing, anything else as objects with None where the name is missing.
        """
        values: list[Any] = [self.entries[slot].about.value(name) for slot in slots]
        present = [value for value in values if value is not None]
        if present and all(isinstance(value, bool) for value in present):
            if len(present) == len(values):
                return np.array(values, bool)
        elif present and all(type(value) in (int, float) for value in present):
            return np.array([np.nan if value is None else value for value in values], np.float64)
        column = np.empty(len(values), object)
        column[:] = values
        return column

    def about_column(self, name: str) -> AboutColumn:
        """Return one column of metadata for all slots; it is kept, and extended when asked."""
        column, length = self._about_columns.get(name, AboutColumn.empty()), len(self.entries)
        if len(column) < length:
            new = [entry.about for entry in self.entries[len(column) : length]]
            column = self._about_columns[name] = column.extended(name, new)
        return column
