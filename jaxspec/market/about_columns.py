"""Metadata of a market's learnwares as columns, to look at and to choose by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from jaxspec.market.ledger import Ledger

if TYPE_CHECKING:
    from jaxtyping import Int

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

    def __iter__(self) -> Iterator[str]:
        entries = (self._ledger.entries[slot].about for slot in self._slots)
        return iter(dict.fromkeys(name for about in entries for name in about))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"AboutColumns({sorted(self)})"
