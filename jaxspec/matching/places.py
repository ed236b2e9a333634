"""What can be asked: a market in memory, and whatever other packages register (index, folder).

`catalogue_of` gives what matching has to know about a place before it asks, and `start_best` asks
it for the best k. Other packages register their classes with both. `answer` makes answers of what
`start_best` gives; a place that can also give all learnwares in its own order registers with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from jaxspec.market import AboutColumns, Ledger
from jaxspec.matching.best import Best, matches_of
from jaxspec.matching.match_result import Match
from jaxspec.matching.query import Query
from jaxspec.specify import Space

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

__all__ = ["Catalogue", "answer", "catalogue_of", "start_best"]


class Catalogue(Protocol):
    """What matching has to know about a place: its space, its names, and where its origin lies."""

    @property
    def space(self) -> Space:
        """What its specifications live in."""
        ...

    @property
    def ledger(self) -> Ledger:
        """Ids and class names by slot."""
        ...

    @property
    def origin(self) -> Float[np.ndarray, " d"]:
        """What is subtracted from all points."""
        ...

    @property
    def verified(self) -> Bool[np.ndarray, " M"]:
        """Which learnwares are marked as verified, in the order of `among`."""
        ...

    def is_verified(self, slot: int) -> bool:
        """Tell whether the learnware in a slot is marked as verified."""
        ...

    def without_proxy(self) -> tuple[str, ...]:
        """Return the ids of learnwares of which only the reduced set is known."""
        ...

    @property
    def about(self) -> AboutColumns:
        """Metadata of its learnwares, to choose by."""
        ...

    def most_shared_names(self, names: Sequence[str]) -> int:
        """Return how many of these class names one learnware has, at most."""
        ...

    def __len__(self) -> int:
        """Return how many learnwares there are."""
        ...


@functools.singledispatch
def catalogue_of(where: Any) -> Catalogue:
    """Return the catalogue of a place.

    Raises:
        TypeError: it is nothing that can be asked.
    """
    raise _cannot_be_asked(where)


@functools.singledispatch
def answer(where: Any, query: Query) -> list[Match]:
    """Return one `Match` per user of a query: of the best k where a place knows nothing else.

    Raises:
        TypeError: it is nothing that can be asked.
    """
    return matches_of(
        query, catalogue_of(where).ledger, [one() for one in start_best(where, query)]
    )


@functools.singledispatch
def start_best(where: Any, query: Query) -> Sequence[Callable[[], Best]]:
    """Start to look for the best k learnwares, and return a function per group that waits for it.

    All of these functions have to be called, in their order.

    Raises:
        TypeError: it is nothing that can be asked.
    """
    raise _cannot_be_asked(where)


def _cannot_be_asked(where: object) -> TypeError:
    return TypeError(
        f"where: expected a Market, an Index or a MarketFolder, got a {type(where).__name__}"
    )
