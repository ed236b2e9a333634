"""One piece of metadata of many learnwares, as arrays by kind: text, number, boolean or missing.

An `AboutColumn` is what filters look at. It grows with a ledger: `extended` returns a longer one.
Texts are numbered, so that a comparison looks at every different text once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, UInt8

    from jaxspec.specify import About, AboutValue

__all__ = ["KIND_NAMES", "AboutColumn", "kind_of"]

MISSING, TEXT, NUMBER, BOOLEAN = range(4)
KIND_NAMES = {TEXT: "a text", NUMBER: "a number", BOOLEAN: "a boolean"}


def kind_of(value: AboutValue | None) -> int:
    """Return the kind of a value of metadata."""
    if value is None:
        return MISSING
    if isinstance(value, str):
        return TEXT
    return BOOLEAN if isinstance(value, bool) else NUMBER


@dataclasses.dataclass(frozen=True, eq=False)
class AboutColumn:
    """Values of one name for n learnwares.

    Attributes:
        kinds: of the values.
        numbers: the numbers, and one or zero for booleans; zero elsewhere.
        codes: numbers of the texts; zero elsewhere.
        texts: {text: number}.
    """

    kinds: UInt8[np.ndarray, " n"]
    numbers: Float[np.ndarray, " n"]
    codes: Int[np.ndarray, " n"]
    texts: dict[str, int]

    @classmethod
    def empty(cls) -> AboutColumn:
        """Return a column of no learnware."""
        return cls(np.zeros(0, np.uint8), np.zeros(0), np.zeros(0, np.int32), {})

    def __len__(self) -> int:
        return len(self.kinds)

    def extended(self, name: str, abouts: Iterable[About]) -> AboutColumn:
        """Return a column that goes on with the values of this name of further learnwares."""
        values = [about.value(name) for about in abouts]
        kinds = np.array([kind_of(value) for value in values], np.uint8)
        numbers, codes = np.zeros(len(values)), np.zeros(len(values), np.int32)
        texts = dict(self.texts)  # a copy: threads may extend one column at the same time
        for i in np.flatnonzero(kinds == TEXT).tolist():
            codes[i] = texts.setdefault(str(values[i]), len(texts))
        numeric = np.flatnonzero(kinds >= NUMBER)
        numbers[numeric] = [float(values[i] or 0.0) for i in numeric.tolist()]
        return AboutColumn(
            np.concatenate([self.kinds, kinds]),
            np.concatenate([self.numbers, numbers]),
            np.concatenate([self.codes, codes]),
            texts,
        )

    def take(self, slots: Int[np.ndarray, " m"]) -> AboutColumn:
        """Return the values of some learnwares."""
        return AboutColumn(self.kinds[slots], self.numbers[slots], self.codes[slots], self.texts)

    @property
    def present(self) -> Bool[np.ndarray, " n"]:
        """Which learnwares have a value."""
        return self.kinds != MISSING

    @property
    def kinds_present(self) -> set[int]:
        """The kinds of values that there are."""
        return set(np.flatnonzero(np.bincount(self.kinds, minlength=4)).tolist()) - {MISSING}

    def compared(
        self,
        kind: int,
        compare: Callable[..., np.ndarray],
        values: Sequence[AboutValue],
        *,
        every: bool,
    ) -> Bool[np.ndarray, " n"]:
        """Return where values of one kind compare so with any of the given ones, or with every one.

        Args:
            kind: of the given values.
            compare: a comparison of numpy.
            values: one at least.
            every: whether it has to hold with all of them.
        """
        if kind == TEXT:
            known = np.empty(len(self.texts), object)
            known[:] = list(self.texts)
        else:
            known = self.numbers
        parts = [np.asarray(compare(known, value), bool) for value in values]
        holds = np.all(parts, axis=0) if every else np.any(parts, axis=0)
        if kind == TEXT:
            holds = holds[self.codes] if len(holds) else np.zeros(len(self), bool)
        found: Bool[np.ndarray, " n"] = holds & (self.kinds == kind)
        return found
