"""A market with codes, so that a search need not score every learnware.

`Index.build(market)` encodes every learnware in 236 bytes (`jaxspec.index.encoder`). For a score,
a filter is fitted at the first question that needs it: a regression of the score on the codes'
inner products, and how deep the exact best lie in the filtered order, measured on learnwares of the
market that act as users (`jaxspec.index.filter`). `jaxspec.match(index, user, k=10, recall=0.99)`
then scores as many candidates exactly as the recall needs (`jaxspec.index.search`), and the whole
market where that is not much more.

The recall holds after any growth, at a bounded cost:

- Learnwares that were added after a filter was fitted are candidates for everybody. When they are
  more than a tenth of the market (but at least 64, and at most 1,024), the next question that needs
  the filter fits it anew. Fitting scores at most 64 pseudo-users and 16,384 learnwares.
- The encoder and all codes are made anew when the market copies its arrays to larger ones, or when
  more than half as many learnwares (and at least 64) were added as it was fitted to. Markets grow
  by a quarter at least when they are copied, so a learnware is encoded five times on average.
- Learnwares that were removed, or that `among` leaves out, leave a share of the market. The number
  of candidates is divided by this share, until all that are left are candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxspec.base import bucket
from jaxspec.index.codes import Codes
from jaxspec.index.filter import TOP, FittedFilter, fit_filter
from jaxspec.index.packing import pack_index, unpack_codes, unpack_filters
from jaxspec.index.search import NEIGHBOURS, start_search
from jaxspec.market import Market, MarketExtension, PackedExtension
from jaxspec.matching import (
    Best,
    Catalogue,
    Group,
    Match,
    Query,
    answer,
    catalogue_of,
    matches_of,
    start_best,
)
from jaxspec.scoring import METHODS, Score, as_score, needs_peers, start_best_scores
from jaxspec.specify import Specification

if TYPE_CHECKING:
    from jaxtyping import Int

__all__ = ["Index"]

SAFETY = 2.0  # candidates per candidate that pseudo-users needed
MIN_CANDIDATES = 128
SMALL_MARKET = 2 * MIN_CANDIDATES  # up to so many learnwares all are scored
EXACT_FRACTION = 0.5  # if so many of the market were candidates, all are scored in one pass
NEW_FRACTION, MIN_NEW, MAX_NEW = 0.1, 64, 1024  # learnwares that a filter need not have seen
REFIT_GROWTH = 0.5  # of the market, after which the encoder is fitted anew


class Index(MarketExtension):
    """A market with codes; a value like the market: changes return a new index.

    Attributes:
        market: what is searched.
    """

    kind = "index"
    market: Market

    def __init__(self, market: Market, codes: Codes) -> None:
        """Not called by users: `Index.build` makes indexes."""
        self.market = market
        self._codes = codes

    @classmethod
    def build(cls, market: Market, *, progress: Callable[[int, int], None] | None = None) -> Index:
        """Encode a market.

        Args:
            market: on one device or spread over a mesh, in any precision.
            progress: called with (learnwares done, learnwares).

        Raises:
            TypeError: not a market.
            ValueError: an empty market.
        """
        if not isinstance(market, Market):
            raise TypeError(f"market: expected a Market, got a {type(market).__name__}")
        if len(market) == 0:
            raise ValueError("market: expected at least one learnware, got an empty market")
        index = cls(market, Codes(market, progress=progress))
        if len(market) > SMALL_MARKET:
            index._filter(METHODS["likelihood"], by_name=True)
        return index

    # How it is kept on disk, beside its market: `save` and `load` are those of `Persistent`

    def pack(self) -> PackedExtension:
        """Return the contents as plain values."""
        return pack_index(self.market, self._codes)

    @classmethod
    def unpack(cls, market: Market, packed: PackedExtension, places: np.ndarray) -> Index:
        """Return the index of a market from what was packed earlier: the rest is encoded.

        It is built anew where so many learnwares came since that `add` would have done so.

        Raises:
            TypeError, ValueError, KeyError: contents that are not those of `pack`.
        """
        if len(market) == 0:
            raise ValueError("market: expected at least one learnware, got an empty market")
        kept = unpack_codes(market, packed, places)
        filters = unpack_filters(packed, places)
        if kept is None:
            return cls.build(market)
        new = len(market) - kept.fitted_length
        if new > max(REFIT_GROWTH * kept.fitted_count, MIN_NEW):
            return cls.build(market)
        codes = Codes(market, kept=kept)
        codes.filters.update(filters)
        return cls(market, codes)

    def __len__(self) -> int:
        return len(self.market)

    def __repr__(self) -> str:
        return f"Index({len(self)} learnwares, {self.bytes_per_learnware} bytes each)"

    def __copy__(self) -> Index:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Index:
        return self  # a value

    @property
    def bytes_per_learnware(self) -> int:
        """Bytes of a code with the number of its label space."""
        return self._codes.bytes_per_learnware

    # How it changes

    def add(self, specifications: Mapping[str, Specification]) -> Index:
        """Return an index of the market that also holds these specifications.

        Args:
            specifications: {id: specification} with ids that are not in the market yet.

        Raises:
            TypeError, ValueError: as `Market.add`. Nothing is added then.
        """
        return self._grown(self.market.add(specifications))

    def update(self, specifications: Mapping[str, Specification]) -> Index:
        """Return an index with these specifications in place of those of the same ids.

        Raises:
            KeyError, TypeError, ValueError: as `Market.update`. Nothing is changed then.
        """
        return self._grown(self.market.update(specifications))

    def remove(self, ids: Iterable[str]) -> Index:
        """Return an index without these ids.

        Raises:
            KeyError, TypeError: as `Market.remove`. Nothing is removed then.
        """
        return Index(self.market.remove(ids), self._codes)

    def _grown(self, market: Market) -> Index:
        """Return the index of a later version of the market."""
        codes, start = self._codes, self.market.length
        new = market.length - codes.fitted_length
        few = new <= max(REFIT_GROWTH * codes.fitted_count, MIN_NEW)
        if market.shared is self.market.shared and few:
            if market.length > start:
                codes.append(market, start)
            return Index(market, codes)
        return Index(market, Codes(market))

    # How it is asked

    def candidates(
        self,
        k: int = 10,
        *,
        recall: float = 0.99,
        method: str | Score = "likelihood",
        by_name: bool = True,
    ) -> int:
        """Return how many learnwares are scored exactly for each user of `match`.

        Args:
            k: as in `match`.
            recall: as in `match`.
            method: the name of a score, or a score.
            by_name: whether classes are compared by name.
        """
        score = as_score("method", method)
        depth, _ = self._depth(score, by_name, k, recall, self.market.slots)
        return len(self) if depth is None else min(depth, len(self))

    def _depth(
        self, score: Score, by_name: bool, k: int, recall: float, slots: Int[np.ndarray, " n"]
    ) -> tuple[int | None, FittedFilter | None]:
        """Return how many candidates a recall needs and the filter; None to score the market.

        Args:
            score: which score.
            by_name: whether classes are compared by name.
            k: of the best that are wanted.
            recall: share of users for whom all of them are to be found.
            slots: of the learnwares to choose from.
        """
        if len(self) <= SMALL_MARKET:
            return None, None
        fitted = self._filter(score, by_name=by_name)
        known = int((slots < fitted.length).sum())
        # The depths are sorted: this share of the pseudo-users needed no more.
        needed = fitted.depths[math.ceil(recall * (len(fitted.depths) - 1))]
        wanted = max(SAFETY * float(needed) * max(1.0, k / TOP), MIN_CANDIDATES, 4.0 * k)
        if needs_peers(score):
            wanted += NEIGHBOURS
        wanted = min(wanted * fitted.count / max(known, 1), known)
        new = len(slots) - known
        wanted += bucket(new, minimum=16) if new else 0
        step = bucket(math.ceil(wanted), minimum=MIN_CANDIDATES) // 8  # few sizes to compile
        depth = -(-math.ceil(wanted) // step) * step
        if depth >= EXACT_FRACTION * len(self):
            return None, None
        return min(depth, self._codes.rows), fitted

    def _filter(self, score: Score, *, by_name: bool) -> FittedFilter:
        """Return the filter of a score; it is fitted anew if the market has grown by much."""
        filters, key = self._codes.filters, (score, by_name)
        fitted = filters.get(key)
        if fitted is not None:
            new = int((self.market.slots >= fitted.length).sum())
            if new > max(MIN_NEW, min(NEW_FRACTION * fitted.count, MAX_NEW)):
                fitted = None
        if fitted is None:
            fitted = filters[key] = fit_filter(self.market, self._codes, score, by_name=by_name)
        return fitted

    def _start(self, query: Query) -> list[Callable[[], Best]]:
        """Start the searches of a query; see `start_best`."""
        assert query.k is not None
        market, codes = self.market, self._codes
        slots, arrays = market.slots, market.arrays
        if query.among is not None:
            slots = slots[query.among]
            arrays = market.with_alive(slots)
        k, available = query.k, len(slots)
        padded = min(bucket(k, minimum=16), codes.rows)

        def started(group: Group) -> Callable[[], Best]:
            depth, fitted = self._depth(group.score, group.by_name, k, query.recall, slots)
            if depth is None or fitted is None:
                wait = start_best_scores(
                    arrays,
                    group.users,
                    score=group.score,
                    k=padded,
                    mesh=market.mesh,
                    with_classes=query.with_classes,
                )
            else:
                wait = start_search(
                    arrays,
                    codes,
                    fitted.weights,
                    group.users,
                    score=group.score,
                    by_name=group.by_name,
                    depth=depth,
                    always_from=fitted.length,
                    k=min(padded, depth),
                )
            return lambda: Best(group, *wait(), available)

        return [started(group) for group in query.groups()]


@catalogue_of.register
def _(where: Index) -> Catalogue:
    return where.market


@answer.register
def _(where: Index, query: Query) -> list[Match]:
    if query.k is None:  # all learnwares are wanted, so all are scored
        return answer(where.market, query)
    return matches_of(query, where.market.ledger, [one() for one in start_best(where, query)])


@start_best.register
def _(where: Index, query: Query) -> list[Callable[[], Best]]:
    query.refuse_resume()
    return where._start(query)
