"""Metadata of a market's learnwares as columns, to look at and to choose by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from jaxspec.market.about_filter import about_mask
from jaxspec.market.about_table import AboutColumn
from jaxspec.market.ledger import Ledger

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

__all__ = ["AboutColumns"]


class AboutColumns(Mapping[str, np.ndarray]):
    """Metadata by name, each a column (M,) in the market's order of ids."""

    def __init__(self, ledger: Ledger, slots: Int[np.ndarray, " M"]) -> None:
        self._ledger, self._slots = ledger, slots

    def __getitem__(self, name: str) -> np.ndarray:
        """Return a column; see `Ledger.column` for its type and for missing values.

        Raises:
            KeyError: no learnware has metadata of this name.
        """
        if name not in set(self):
            raise KeyError(f"no metadata {name!r:.80}; there is {sorted(self)[:20]}")
        return self._ledger.column(name, self._slots)

    def where(self, text: str, *, name: str = "where") -> Bool[np.ndarray, " M"]:
        """Return which learnwares a filter chooses, such as "licence = MIT and parameters < 1e8".

        Comparisons are = == != < <= > >=, `in (A, B)` and `not in (A, B)`; `has author` chooses by
        presence; `and`, `or`, `not` and parentheses combine. Names and texts are bare words or
        quoted; values are texts, numbers, `true` and `false`. A missing value satisfies no
        comparison, not even != and `not in`; `not author = Ann` chooses it. Neither does a value of
        another kind, such as a text that is compared with a number.

        Args:
            text: the filter, of at most 10,000 characters.
            name: what the argument is called in errors.

        Returns:
            (M,) bool, in the market's order.

        Raises:
            TypeError: not a string.
            ValueError: not such a text (the error says at which character), a name of metadata that
                no learnware has, or values that are all of another kind than what they are
                compared with.
        """
        return about_mask(text, len(self._slots), self._typed, lambda: set(self), name=name)

    def _typed(self, name: str) -> AboutColumn | None:
        column = self._ledger.about_column(name).take(self._slots)
        return column if column.present.any() or not len(column) else None

    def __iter__(self) -> Iterator[str]:
        entries = (self._ledger.entries[slot].about for slot in self._slots)
        return iter(dict.fromkeys(name for about in entries for name in about))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"AboutColumns({sorted(self)})"
