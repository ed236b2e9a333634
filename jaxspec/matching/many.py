"""Answering many users: batches of fixed size, made in one thread while a device works on others.

`answer_many` takes users in chunks of any size and gives the answers to each chunk, in order. What
comes before (reading users) and after it (writing answers) is the caller's; both may be slow, since
the next chunks are read and prepared ahead. No `Match` is made per user, only rows of arrays.
Nothing here knows a file.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxspec.base import ahead, as_size
from jaxspec.matching.batch_answers import BatchAnswers
from jaxspec.matching.batches import Decisions, groups_of
from jaxspec.matching.best import Best
from jaxspec.matching.decisions import Decision
from jaxspec.matching.places import Catalogue, catalogue_of, start_best
from jaxspec.matching.query import Group, Query, check_choices, chosen_among
from jaxspec.scoring import Score, as_score
from jaxspec.specify import StackedUsers

if TYPE_CHECKING:
    from jaxtyping import Bool

__all__ = ["Asked", "answer_many", "as_asked"]

IN_FLIGHT = 2  # batches that a device has been given and that are not taken from it yet
EMPTY_NOTE = "No learnware is left to choose from: `among` leaves out all of them."


@dataclasses.dataclass(frozen=True)
class Asked:
    """What many users ask alike, checked.

    Attributes:
        where: a place that can be asked.
        k: how many learnwares are wanted.
        score: the score, or None for the best one for each user.
        reuse: as in `match`.
        label_spaces: as in `match`.
        among: mask over the learnwares, or None for all.
        batch_size: users of a batch.
        together: whether all users of a chunk are asked at once, because the place is streamed.
    """

    where: Any
    k: int
    score: Score | None
    reuse: str | None
    label_spaces: str
    among: Bool[np.ndarray, " M"] | None
    batch_size: int
    together: bool

    @property
    def catalogue(self) -> Catalogue:
        """Of the place."""
        return catalogue_of(self.where)


def as_asked(
    where: Any,
    *,
    k: Any,
    method: Any,
    reuse: Any,
    label_spaces: Any,
    among: Any,
    verified: Any,
    batch_size: Any,
    together: bool,
) -> Asked:
    """Check the options that all users share.

    Raises:
        TypeError, ValueError: as `match`; the message names the argument.
    """
    catalogue = catalogue_of(where)
    check_choices(reuse, label_spaces)
    if len(catalogue) == 0:
        raise ValueError("where: expected at least one learnware, got an empty market")
    score = None if method is None else as_score("method", method)
    size = as_size("batch_size", batch_size)
    mask = chosen_among(catalogue, among, verified)
    return Asked(where, as_size("k", k), score, reuse, label_spaces, mask, size, together)


@dataclasses.dataclass
class _Chunk:
    """A chunk of users on its way: its answers, and how far its groups of users are."""

    users: StackedUsers
    decisions: list[Decision | str | None]
    answers: BatchAnswers
    made: int = 0  # groups, counted in the thread that prepares
    taken: int = 0  # of these, counted where answers are taken
    complete: bool = False  # all groups are made


def answer_many(
    asked: Asked,
    chunks: Iterable[StackedUsers],
    *,
    progress: Callable[[float], None] | None = None,
) -> Generator[BatchAnswers]:
    """Yield the answers to each chunk of users, in order.

    Args:
        asked: what they ask.
        chunks: gone through in another thread, ahead of the device.
        progress: called with the number of users, of those that were not answered before, that are
            done; a fraction of a streamed market counts as that fraction of its users.
    """
    told = 0.0

    def tell(users: float, *, add: bool = True) -> None:
        nonlocal told
        if progress is not None:
            progress(told + users)
        told += users if add else 0.0

    waiting: collections.deque[tuple[_Chunk, Callable[[], Best]]] = collections.deque()
    unfinished: collections.deque[_Chunk] = collections.deque()
    names = _ids_of(asked.catalogue)
    with contextlib.closing(ahead(_prepared(asked, chunks), depth=IN_FLIGHT)) as prepared:
        for chunk, groups in prepared:
            if not unfinished or unfinished[-1] is not chunk:
                unfinished.append(chunk)
            size = sum(len(group.places) for group in groups)

            def tell_share(share: float, size: int = size) -> None:
                tell(size * share, add=False)

            for wait in _started(asked, groups, tell_share):
                waiting.append((chunk, wait))
            while len(waiting) >= IN_FLIGHT:
                tell(_take(asked, names, *waiting.popleft()))
            while unfinished and _is_done(unfinished[0]):
                yield unfinished.popleft().answers
        while waiting:
            tell(_take(asked, names, *waiting.popleft()))
        for chunk in unfinished:
            yield chunk.answers


def _is_done(chunk: _Chunk) -> bool:
    return chunk.complete and chunk.taken == chunk.made


def _ids_of(catalogue: Catalogue) -> np.ndarray:
    """Return the ids by slot, as an array of objects."""
    ids = catalogue.ledger.ids
    names = np.empty(len(ids), object)
    names[:] = ids
    return names


def _prepared(
    asked: Asked, chunks: Iterable[StackedUsers]
) -> Generator[tuple[_Chunk, tuple[Group, ...]]]:
    """Yield groups of users with padded arrays, each with the chunk that it belongs to."""
    catalogue = asked.catalogue
    decided = Decisions(catalogue, asked.score, asked.reuse, asked.label_spaces)
    for users in chunks:
        chunk = _begun(asked, users, decided)
        answerable = chunk.decisions if asked.among is None or asked.among.any() else []
        groups = groups_of(catalogue, users, answerable, asked.batch_size)
        if asked.together:
            made = tuple(groups)
            chunk.made, chunk.complete = len(made), True
            yield chunk, made
            continue
        last: Group | None = None
        for group in groups:
            if last is not None:
                chunk.made += 1
                yield chunk, (last,)
            last = group
        chunk.made += last is not None
        chunk.complete = True
        yield chunk, () if last is None else (last,)


def _begun(asked: Asked, users: StackedUsers, decided: Decisions) -> _Chunk:
    """Return a chunk with everything that is known of its answers before a place is asked."""
    spaces = users.label_spaces
    decisions: list[Decision | str | None] = [
        error if error is not None else decided.of(spaces[space], shares)
        for error, space, shares in zip(
            users.errors, users.label_space.tolist(), users.shares_labels.tolist(), strict=True
        )
    ]
    left = asked.among is None or bool(asked.among.any())
    more = () if left else (EMPTY_NOTE,)
    good = [one if isinstance(one, Decision) else None for one in decisions]
    answers = dataclasses.replace(
        BatchAnswers.empty(users.ids, asked.k),
        methods=tuple([one.score.name if one else "" for one in good]),
        reuses=tuple([one.reuse if one else "" for one in good]),
        label_spaces=tuple(
            [("homogeneous" if one.by_name else "heterogeneous") if one else "" for one in good]
        ),
        notes=tuple([(*one.notes, *more) if one else () for one in good]),
        errors=tuple([one if isinstance(one, str) else None for one in decisions]),
    )
    return _Chunk(users, decisions, answers)


def _started(
    asked: Asked, groups: tuple[Group, ...], tell: Callable[[float], None]
) -> Sequence[Callable[[], Best]]:
    """Start the search for groups of users."""
    if not groups:
        return []
    query = Query(
        users=(),
        arrays=groups[0].users,
        scores=(),
        reuses=(),
        notes=(),
        is_verified=asked.catalogue.is_verified,
        k=asked.k,
        among=asked.among,
        recall=0.99,
        progress=lambda done, total: tell(done / max(total, 1)),
        resume=None,
        with_classes=False,
        prepared=groups,
    )
    return start_best(asked.where, query)


def _take(asked: Asked, names: np.ndarray, chunk: _Chunk, wait: Callable[[], Best]) -> int:
    """Wait for a group, write its answers, and return how many users it had."""
    best = wait()
    places, k = np.array(best.group.places), min(asked.k, best.slots.shape[1])
    counts = best.counts(asked.k)[: len(places)]
    used = np.arange(k) < counts[:, None]
    answers = chunk.answers
    own = slice(0, len(places))
    answers.counts[places] = counts
    slots = np.where(
        used, np.asarray(best.slots)[own, :k], 0
    )  # beyond the learnwares there are spare rows
    found = names[slots]
    found[~used] = None
    answers.ids[places, :k] = found
    for name in ("scores", "squared_mmd"):
        values = getattr(best.scores, name)[own, :k]
        getattr(answers, name)[places, :k] = np.where(used, values, np.nan)
    short = np.flatnonzero(counts < min(asked.k, best.available)).tolist()
    if short:
        notes = list(answers.notes)
        for row in short:
            place = int(places[row])
            notes[place] = (*notes[place], *best.left_out(int(counts[row]), asked.k))
        chunk.answers = dataclasses.replace(answers, notes=tuple(notes))
    chunk.taken += 1
    return len(places)
