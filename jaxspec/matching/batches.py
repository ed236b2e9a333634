"""Batches of users with fixed shapes, made of ragged users: what a batch job gives to a pass.

`batches_of` decides for every user what a question leaves open, groups users who share a score and
a way to compare classes, and cuts the groups in batches of one size, so that few functions are
compiled. Users with a few more classes or points than others share a batch. Decisions are kept for
class names that come again. Nothing here asks a place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxspec.base import bucket
from jaxspec.matching.decisions import Decision, decide
from jaxspec.matching.query import Group
from jaxspec.scoring import MIN_PADDED_POINTS, Score, UserArrays
from jaxspec.specify import StackedUsers, starts_of

if TYPE_CHECKING:
    from jaxtyping import Int

    from jaxspec.matching.places import Catalogue

__all__ = ["Decision", "Decisions", "groups_of", "pad_users"]

MAX_KEPT = 10_000  # decisions: as many label spaces as many markets have


class Decisions:
    """Decides for users by their class names, as `match` does, and remembers it."""

    def __init__(
        self, catalogue: Catalogue, score: Score | None, reuse: str | None, label_spaces: str
    ) -> None:
        self._catalogue, self._score, self._reuse = catalogue, score, reuse
        self._label_spaces = label_spaces
        self._known: dict[tuple[tuple[str, ...], bool], Decision | str] = {}

    def of(self, names: tuple[str, ...], shares_labels: bool) -> Decision | str:
        """Return the decision for users with these classes, or why they cannot be asked for."""
        key = (names, shares_labels)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= MAX_KEPT:
                self._known.clear()
            found = self._known[key] = self._decided(names, shares_labels)
        return found

    def _decided(self, names: tuple[str, ...], shares_labels: bool) -> Decision | str:
        try:
            return decide(
                self._catalogue,
                names,
                shares_labels,
                score=self._score,
                reuse=self._reuse,
                label_spaces=self._label_spaces,
            )
        except ValueError as error:
            return str(error)


def groups_of(
    catalogue: Catalogue, users: StackedUsers, decisions: list[Decision | str | None], size: int
) -> Iterator[Group]:
    """Yield the users in batches of `size`; `places` of a group are those in `users`.

    Args:
        catalogue: of the place that is asked.
        users: Q of them.
        decisions: for each user; those without one are left out.
        size: users of a batch.
    """
    by_kind: dict[tuple[Score, bool], list[int]] = {}
    for i, one in enumerate(decisions):
        if isinstance(one, Decision):
            by_kind.setdefault((one.score, one.by_name), []).append(i)
    classes = np.array([bucket(count) for count in users.class_counts.tolist()])
    points = np.array([bucket(n, minimum=MIN_PADDED_POINTS) for n in users.counts.tolist()])
    for (score, by_name), members in by_kind.items():
        places = np.array(members)
        # Users of one padded size together, so that few batches are as large as their largest user.
        places = places[np.lexsort((points[places], classes[places]))]
        for first in range(0, len(places), size):
            some = places[first : first + size]
            shape = (size, int(points[some].max()), int(classes[some].max()))
            arrays = pad_users(catalogue, users, some, shape, by_name=by_name)
            yield Group(score, by_name, tuple(some.tolist()), arrays)


def pad_users(
    catalogue: Catalogue,
    users: StackedUsers,
    chosen: Int[np.ndarray, " n"],
    shape: tuple[int, int, int],
    *,
    by_name: bool,
) -> UserArrays:
    """Return some of the users as padded numpy arrays.

    Users that only fill up the shape have no points, which costs a pass next to nothing.

    Args:
        catalogue: of the place that is asked.
        users: Q of them.
        chosen: which ones.
        shape: users, points and classes that there is room for.
        by_name: whether classes are compared by name.
    """
    batch, n, k = shape
    d = users.points.shape[1]
    counts, sizes = users.counts[chosen], users.class_counts[chosen]
    filled, classes = np.zeros(batch, np.int32), np.full(batch, 2)
    filled[: len(chosen)], classes[: len(chosen)] = counts, sizes
    examples = np.ones(batch, np.float32)
    examples[: len(chosen)] = users.examples[chosen]
    arrays: dict[str, Any] = dict(
        points=np.zeros((batch, n, d), np.float32),
        weights=np.zeros((batch, n), np.float32),
        labels=np.full((batch, n), -1, np.int32),
        counts=filled,
        examples=examples,
        class_vectors=np.zeros((batch, k, d), np.float32),
        class_mask=np.arange(k) < classes[:, None],
        class_numbers=np.full((batch, k), -2, np.int32),
        by_name=np.full(batch, by_name, bool),
    )
    origin = np.asarray(catalogue.origin)
    starts, class_starts = starts_of(users.counts)[chosen], starts_of(users.class_counts)[chosen]
    spaces = users.label_space[chosen].tolist()
    numbers = {
        space: catalogue.ledger.numbers_of(users.label_spaces[space]) for space in set(spaces)
    }
    # User by user: contiguous copies are several times as fast as one gather of single rows.
    for i, (start, count, first, size, space) in enumerate(
        zip(starts.tolist(), counts.tolist(), class_starts.tolist(), sizes.tolist(), spaces,
            strict=True)
    ):  # fmt: skip
        rows = slice(start, start + count)
        np.subtract(users.points[rows], origin, out=arrays["points"][i, :count],
                    casting="same_kind")  # fmt: skip
        arrays["weights"][i, :count] = users.weights[rows]
        arrays["labels"][i, :count] = users.labels[rows]
        arrays["class_vectors"][i, :size] = users.class_vectors[first : first + size]
        arrays["class_numbers"][i, :size] = numbers[space]
    found: UserArrays = UserArrays(**arrays)
    return found
