"""What may be saved beside a market and goes with its learnwares: the base class of an index.

An extension has a few numbers per learnware, some that all learnwares share, and facts. `pack`
gives them, `unpack` takes them back for a market that may have lost and gained learnwares since.
Packages that define extensions know nothing of files, and files know nothing of their meaning.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from jaxspec.base import Persistent
from jaxspec.market.market import Market

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MarketExtension", "PackedExtension"]


@dataclasses.dataclass(frozen=True)
class PackedExtension:
    """The contents of an extension as plain values.

    Attributes:
        rows: {name: (M, ...)} of the M learnwares in the market's order.
        fixed: {name: array} that the learnwares share.
        facts: for JSON, at most four levels deep.
    """

    rows: Mapping[str, np.ndarray]
    fixed: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]


class MarketExtension(Persistent, abc.ABC):
    """Something about a market that can be saved beside it, with `save` and `load`.

    Attributes:
        kind: a lower-case word; a market has one extension of each kind.
        market: what the extension is about.
    """

    kind: ClassVar[str]
    market: Market

    @abc.abstractmethod
    def pack(self) -> PackedExtension:
        """Return the contents as plain values."""

    @classmethod
    @abc.abstractmethod
    def unpack(cls, market: Market, packed: PackedExtension, places: np.ndarray) -> Self:
        """Return the extension of a market from what was packed earlier.

        Args:
            market: which it is about now.
            packed: what was packed, with its own rows.
            places: (M,) the row of every learnware of the market in what was packed, ascending, or
                -1 for a learnware that it did not know.

        Raises:
            ValueError, TypeError, KeyError: contents that are not those of `pack`.
        """
