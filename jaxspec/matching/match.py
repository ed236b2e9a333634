"""`match`, the one verb: which learnwares of a market are worth reusing for a user."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, overload

import jax
import numpy as np

from jaxspec.base import bucket
from jaxspec.market import Market
from jaxspec.matching.best import Best, matches_of
from jaxspec.matching.match_result import Match
from jaxspec.matching.places import Catalogue, answer, catalogue_of, start_best
from jaxspec.matching.query import Group, Query, prepare_query
from jaxspec.scoring import Score, UserArrays, score_all, start_best_scores
from jaxspec.specify import UserSpecification

if TYPE_CHECKING:
    from jax.typing import ArrayLike

__all__ = ["match", "user_arrays"]


@overload
def match(
    where: Any,
    user: UserSpecification,
    *,
    k: int | None = ...,
    method: str | Score | None = ...,
    reuse: str | None = ...,
    label_spaces: str = ...,
    among: ArrayLike | str | None = ...,
    verified: bool = ...,
    recall: float = ...,
    progress: Callable[[int, int], None] | None = ...,
    resume: str | os.PathLike[str] | None = ...,
) -> Match: ...


@overload
def match(
    where: Any,
    user: Sequence[UserSpecification],
    *,
    k: int | None = ...,
    method: str | Score | None = ...,
    reuse: str | None = ...,
    label_spaces: str = ...,
    among: ArrayLike | str | None = ...,
    verified: bool = ...,
    recall: float = ...,
    progress: Callable[[int, int], None] | None = ...,
    resume: str | os.PathLike[str] | None = ...,
) -> list[Match]: ...


def match(
    where: Any,
    user: UserSpecification | Sequence[UserSpecification],
    *,
    k: int | None = None,
    method: str | Score | None = None,
    reuse: str | None = None,
    label_spaces: str = "auto",
    among: ArrayLike | str | None = None,
    verified: bool = False,
    recall: float = 0.99,
    progress: Callable[[int, int], None] | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> Match | list[Match]:
    """Ask which learnwares are worth reusing, for one user or for several in one pass.

    Args:
        where: a `Market`, an `Index`, or a `MarketFolder`, which is streamed from disk.
        user: a user's specification, or a sequence of them.
        k: how many learnwares are wanted, best first; fewer if there are fewer. None for all of
            them in the market's order. A folder needs a number.
        method: the name of a score, or a score (`jaxspec.scoring.methods`). None for the best one
            for the kind of reuse: "likelihood" for direct use, "transfer" for fine-tuning,
            "classwise" for a user who shares no labels.
        reuse: "direct" if the model is to be used as it is, "fine-tune" if it is to be trained on;
            None for "direct" where classes are compared by name and "fine-tune" where not.
        label_spaces: "homogeneous" compares a user's class with the learnware's class of the same
            name, "heterogeneous" with every class; "auto" is homogeneous if one learnware has more
            than half of the user's class names.
        among: (M,) bool, the learnwares to choose from, in the market's order, or a filter by
            metadata such as "licence = MIT" (see `AboutColumns.where`); None for all. Others take
            no part, also not as a user's peer; the market's calibration stays.
        verified: choose only from learnwares whose models were run and gave the answers that they
            publish, see `Market.mark_verified`.
        recall: for an index, the share of users for whom all of the exact best k are to be found.
        progress: called with (learnwares done, learnwares) while a folder is streamed.
        resume: for a folder, a file that keeps the state of an interrupted stream.

    Returns:
        a `Match`; for a sequence of users always a list with one `Match` per user.

    Raises:
        TypeError, ValueError: an empty market, a user of another space, a method that needs labels
            that the user does not share, or an option that is not as described.
    """
    catalogue = catalogue_of(where)
    query = prepare_query(
        catalogue,
        user,
        k=k,
        method=method,
        reuse=reuse,
        label_spaces=label_spaces,
        among=among,
        verified=verified,
        recall=recall,
        progress=progress,
        resume=resume,
    )
    if query.among is not None and not query.among.any():
        which = "`verified=True` and `among` leave" if verified else "`among` leaves"
        if verified and among is None:
            which = "none is verified, and `verified=True` leaves"
        note = f"No learnware is left to choose from: {which} out all of them."
        found = [query.empty_match(i, catalogue.ledger, note) for i in range(len(query.users))]
    else:
        found = answer(where, query)
    return found[0] if isinstance(user, UserSpecification) else found


def user_arrays(
    where: Any,
    user: UserSpecification | Sequence[UserSpecification],
    *,
    label_spaces: str = "auto",
) -> UserArrays:
    """Return users as the padded arrays that `score_arrays` takes, as jax arrays.

    Args:
        where: the market that will be asked: class names become its numbers.
        user: a user's specification, whose arrays then have no axis Q, or a sequence of them.
        label_spaces: as in `match`.

    Raises:
        TypeError, ValueError: as `match`.
    """
    catalogue = catalogue_of(where)
    query = prepare_query(catalogue, user, method="rkme", label_spaces=label_spaces)
    arrays = jax.tree.map(jax.numpy.asarray, query.arrays)
    if isinstance(user, UserSpecification):
        arrays = jax.tree.map(lambda leaf: leaf[0], arrays)
    return arrays


@catalogue_of.register
def _(where: Market) -> Catalogue:
    return where


@answer.register
def _(where: Market, query: Query) -> list[Match]:
    if query.k is None:
        query.refuse_resume()
        return _all_of_market(where, query)
    return matches_of(query, where.ledger, [one() for one in start_best(where, query)])


@start_best.register
def _(where: Market, query: Query) -> list[Callable[[], Best]]:
    query.refuse_resume()
    return best_of_market(where, query)


def best_of_market(market: Market, query: Query) -> list[Callable[[], Best]]:
    """Start the pass over a market for every group of users; see `start_best`."""
    assert query.k is not None
    arrays, available = market.arrays, len(market)
    if query.among is not None:
        available = int(query.among.sum())
        arrays = market.with_alive(market.slots[query.among])
    padded = min(bucket(query.k, minimum=16), len(arrays.weights))

    def started(group: Group) -> Callable[[], Best]:
        wait = start_best_scores(
            arrays,
            group.users,
            score=group.score,
            k=padded,
            mesh=market.mesh,
            with_classes=query.with_classes,
        )
        return lambda: Best(group, *wait(), available)

    return [started(group) for group in query.groups()]


def _all_of_market(market: Market, query: Query) -> list[Match]:
    slots, arrays, matches = market.slots, market.arrays, {}
    if query.among is not None:  # as for the best k: a user's peer is one of those chosen from
        slots = slots[query.among]
        arrays = market.with_alive(slots)
    rows: Any = market.shared.rows_of(slots)
    if (np.diff(rows) == 1).all():
        rows = slice(rows[0], rows[-1] + 1)  # a view; picking rows one by one copies everything
    for group in query.groups():
        scores = score_all(arrays, group.users, score=group.score, mesh=market.mesh)
        found = jax.tree.map(np.asarray, scores)
        for row, place in enumerate(group.places):
            own = {
                field.name: getattr(found, field.name)[row][rows]
                for field in dataclasses.fields(found)
            }
            matches[place] = query.match_of(place, market.ledger, slots, **own)
    return [matches[place] for place in range(len(query.users))]
