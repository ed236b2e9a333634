"""The best learnwares of a group of users, as arrays: what places answer, and what becomes of it.

Every place that can be asked gives `Best` values; `matches_of` makes `Match` objects of them, and
`jaxspec.matching.many` keeps them as arrays. Nothing here scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxspec.market import Ledger
from jaxspec.matching.match_result import Match
from jaxspec.matching.query import Group, Query
from jaxspec.scoring import Scores

if TYPE_CHECKING:
    from jaxtyping import Int

__all__ = ["Best", "matches_of"]


@dataclasses.dataclass(frozen=True)
class Best:
    """The best learnwares for the users of a group.

    Attributes:
        group: the users; Q of them with those that only fill up the shape.
        slots: of the learnwares, best first.
        scores: theirs, (Q, n, ...) as numpy arrays; minus infinity where there is no learnware. The
            arrays about classes have no classes if the query does not want them.
        available: how many learnwares there are to choose from.
    """

    group: Group
    slots: Int[np.ndarray, "Q n"]
    scores: Scores
    available: int

    def counts(self, k: int) -> Int[np.ndarray, " Q"]:
        """Return how many learnwares each user is answered: at most k, all with a finite score.

        A score of somebody's own may be no number: those learnwares come last.
        """
        first = np.asarray(self.scores.scores)[:, : min(k, self.available)]
        counts: Int[np.ndarray, " Q"] = (first > -np.inf).sum(axis=1)
        return counts

    def left_out(self, count: int, k: int) -> tuple[str, ...]:
        """Return a sentence if fewer learnwares are answered than there are, for want of scores."""
        if count == min(k, self.available):
            return ()
        return (
            f"{self.available - count} of {self.available} learnwares have no finite score and "
            "are left out.",
        )


def matches_of(query: Query, ledger: Ledger, found: Iterable[Best]) -> list[Match]:
    """Return one `Match` per user, in the users' order."""
    assert query.k is not None
    matches: dict[int, Match] = {}
    for best in found:
        counts = best.counts(query.k)
        scores: Any = best.scores
        for row, place in enumerate(best.group.places):
            count = int(counts[row])
            matches[place] = query.match_of(
                place,
                ledger,
                best.slots[row, :count],
                scores.scores[row, :count],
                scores.squared_mmd[row, :count],
                scores.class_similarity[row, :count],
                scores.class_map[row, :count],
                best.left_out(count, query.k),
            )
    return [matches[place] for place in range(len(query.users))]
