"""A sub-linear search: codes filter the market in one matrix product, exact scores rank the rest.

`Index.build(market)` encodes every learnware in 232 bytes (`jaxspec.index.encoder`), fits by
regression how a method's score follows from the codes' inner products, and measures on pseudo-users
(learnwares of the market itself) how deep the exact best lie in the filtered order
(`jaxspec.index.filter`). `search` asks for as many candidates as the recall needs and scores them
exactly: encoding, filter and re-ranking are one compiled call (`jaxspec.index.search`). `add` and
`remove` keep it current. The index of a market that is spread over devices is spread likewise
(`jaxspec.index.codes`) and gives the same answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxspec.base import bucket
from jaxspec.index.codes import Codes, encoder_of
from jaxspec.index.filter import TOP, fit_filter
from jaxspec.index.search import Filter, search
from jaxspec.market.market import Market
from jaxspec.matching.match import Match, by_method, match_of, prepare_users
from jaxspec.specify.specification import Specification, UserSpecification

__all__ = ["Index"]

Array = Any
SAFETY = 2.0  # candidates asked for over those that pseudo-users needed
LEAST = 128  # candidates


class Index:
    """A market with codes; a value like the market: `add` and `remove` return a new one."""

    def __init__(self, market: Market, codes: Codes, filters: dict[Any, tuple[Filter, np.ndarray]]):
        """Not called by users: `Index.build` makes indices."""
        self.market = market
        self._codes = codes
        self._filters = filters

    @classmethod
    def build(cls, market: Market, *, progress: Callable[[int, int], None] | None = None) -> Index:
        """Encode a market.

        Args:
            market: on one device or spread over a mesh; any storage.
            progress: called with (learnwares done, learnwares).

        Raises:
            TypeError: not a market.
            ValueError: an empty market.
        """
        if not isinstance(market, Market):
            raise TypeError(f"market: expected a Market, got {type(market).__name__}")
        if len(market) == 0:
            raise ValueError("market: expected at least one learnware, got an empty market")
        index = cls(market, Codes(market, encoder_of(market), progress), {})
        index._filter("likelihood", by_name=True)
        return index

    def __len__(self) -> int:
        return len(self.market)

    def __repr__(self) -> str:
        return f"Index({len(self)} learnwares, {self.bytes_per_learnware} bytes each)"

    @property
    def bytes_per_learnware(self) -> int:
        """Bytes of a code with the number of its label space."""
        return self._codes.bytes_per_learnware

    def add(self, learnware: str, specification: Specification) -> Index:
        """Return an index of the market with one more learnware; see `Market.add`."""
        grown = self.market.add(learnware, specification)
        codes = self._codes
        if grown._storage is not self.market._storage:  # it was copied to a larger one
            return Index(grown, Codes(grown, codes.encoder), self._filters)
        codes.append(grown)
        return Index(grown, codes, self._filters)

    def remove(self, learnware: str) -> Index:
        """Return an index without a learnware; see `Market.remove`."""
        return Index(self.market.remove(learnware), self._codes, self._filters)

    def search(
        self,
        user: UserSpecification | Sequence[UserSpecification],
        k: int = 10,
        *,
        recall: float = 0.99,
        method: str | None = None,
        reuse: str | None = None,
        label_spaces: str = "auto",
    ) -> Any:
        """Return a `Match` over the candidates, best first, with the scores of `match`.

        Args:
            user: a user's specification, or a sequence of them.
            k: how many of the best are wanted among the candidates.
            recall: share of users for whom all of the exact best k are to be among them; estimated
                on pseudo-users of the market at the first search with a method, and kept.
            method: see `match`.
            reuse: see `match`.
            label_spaces: see `match`.

        Returns:
            a `Match`, or for a sequence of users a list of one a user. In a market with a probe
            the peer is looked for among the candidates.

        Raises:
            TypeError: as `match`; recall is no number.
            ValueError: as `match`; k below one; recall not between zero and one.
        """
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise ValueError(f"k: expected an integer of at least 1, got {k!r}")
        if not isinstance(recall, (int, float, np.number)):
            raise TypeError(f"recall: expected a number, got a {type(recall).__name__}: {recall!r}")
        if not 0 < recall <= 1:
            raise ValueError(f"recall: expected a share above 0 and at most 1, got {recall!r}")
        market = self.market
        users, arrays, methods = prepare_users(
            market, user, method=method, reuse=reuse, label_spaces=label_spaces
        )
        matches: dict[int, Match] = {}
        kinds = [f"{one}/{bool(by)}" for one, by in zip(methods, arrays.by_name, strict=True)]
        for kind, chosen, some in by_method(arrays, kinds):
            name = kind.split("/")[0]
            model, needed = self._filter(name, by_name=kind.endswith("True"))
            depth = self._depth(needed, k, recall)
            slots, scores = search(
                market.arrays,
                self._codes.encoder,
                self._codes.codes,
                self._codes.spaces,
                self._codes.table,
                model,
                some,
                market.alive,
                market.calibration,
                method=name,
                depth=depth,
                mesh=market.mesh,
            )
            for row, place in enumerate(chosen):
                count = int(np.isfinite(scores.scores[row]).sum())
                matches[place] = match_of(
                    market, users[place], name, slots[row], scores, row, count
                )
        if isinstance(user, UserSpecification):
            return matches[0]
        return [matches[place] for place in range(len(users))]

    def candidates(self, k: int = 10, *, recall: float = 0.99, method: str = "likelihood") -> int:
        """Return how many candidates `search` would score for a user of known class names."""
        return self._depth(self._filter(method, by_name=True)[1], k, recall)

    def _depth(self, needed: np.ndarray, k: int, recall: float) -> int:
        """Return candidates for a recall: what that share of pseudo-users needed, with a margin."""
        at = math.ceil(recall * (len(needed) - 1))  # they are sorted
        wanted = SAFETY * float(needed[at]) * max(1.0, k / TOP)
        wanted = int(max(wanted, LEAST, 4 * k))
        step = bucket(wanted, minimum=LEAST) // 8  # few sizes to compile, an eighth too many
        return min(-(-wanted // step) * step, self._codes.rows)

    def _filter(self, method: str, *, by_name: bool) -> tuple[Filter, np.ndarray]:
        """Return the filter of a method and the depths that pseudo-users needed."""
        key = (method, by_name)
        if key not in self._filters:
            self._filters[key] = fit_filter(self.market, self._codes, method, by_name=by_name)
        return self._filters[key]
