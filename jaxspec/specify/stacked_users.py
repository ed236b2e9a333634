"""Many users as ragged arrays: one after the other, without padding.

A batch job and a file of many users hold users so. `stack_users_of` makes one of specifications,
`user_of` gives one specification back. A user that cannot be asked with is kept as an error, in
words, and has no points. Nothing here knows a market.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxspec.kernels import ReducedSet
from jaxspec.specify.proxy import Proxy
from jaxspec.specify.space import Space
from jaxspec.specify.types import LARGEST, UserSpecification, check_user

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["StackedUsers", "check_numbers_of_users", "stack_users_of", "starts_of", "user_of"]


@dataclasses.dataclass(frozen=True, eq=False)
class StackedUsers:
    """Q users of one space, with P points and K classes in all.

    Attributes:
        ids: of the users.
        errors: for each user None, or what is wrong with it.
        label_spaces: different tuples of class names.
        label_space: which of these a user has; -1 for a user with an error.
        counts: points of each user.
        examples: how many examples stand behind these.
        points: of all users.
        weights: of the points.
        labels: classes of the points, -1 where a user does not share them.
        class_vectors: proxy weights, a row per class.
        class_bias: of the proxies.
    """

    ids: tuple[str, ...]
    errors: tuple[str | None, ...]
    label_spaces: tuple[tuple[str, ...], ...]
    label_space: Int[np.ndarray, " Q"]
    counts: Int[np.ndarray, " Q"]
    examples: Int[np.ndarray, " Q"]
    points: Float[np.ndarray, "P d"]
    weights: Float[np.ndarray, " P"]
    labels: Int[np.ndarray, " P"]
    class_vectors: Float[np.ndarray, "K d"]
    class_bias: Float[np.ndarray, " K"]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def class_counts(self) -> Int[np.ndarray, " Q"]:
        """How many classes each user has."""
        sizes = np.array([*(len(names) for names in self.label_spaces), 0], np.int64)
        counts: Int[np.ndarray, " Q"] = sizes[self.label_space]
        return counts

    @property
    def shares_labels(self) -> np.ndarray:
        """Which users share the labels of their points, (Q,) bool."""
        known = np.zeros(len(self), bool)
        there = np.flatnonzero(self.counts)
        known[there] = self.labels[starts_of(self.counts)[there]] >= 0
        return known


def starts_of(counts: Int[np.ndarray, " Q"]) -> Int[np.ndarray, " Q"]:
    """Return where the rows of each user begin, given how many each has."""
    starts: Int[np.ndarray, " Q"] = np.cumsum(counts) - counts
    return starts


def stack_users_of(
    ids: Sequence[str], users: Sequence[Any], space: Space, *, errors: Sequence[str | None] = ()
) -> StackedUsers:
    """Return users as ragged arrays; each is checked on its own.

    Args:
        ids: Q of them.
        users: what should be specifications of users.
        space: that all have to live in.
        errors: for each user None, or what is known to be wrong; empty for nothing.
    """
    said: list[str | None] = list(errors) or [None] * len(users)
    spaces: dict[tuple[str, ...], int] = {}
    label_space = np.full(len(users), -1, np.int32)
    good = []
    for i, user in enumerate(users):
        if said[i] is None:
            try:
                check_user("user", user, space)
            except (TypeError, ValueError) as error:
                said[i] = str(error)
                continue
            label_space[i] = spaces.setdefault(tuple(user.class_names), len(spaces))
            good.append(i)
    own = [
        (user.reduced_set.points, user.reduced_set.weights, user.proxy.weights, user.proxy.bias,
         user.labels)
        for user in (users[i] for i in good)
    ]  # fmt: skip
    parts: Any = jax.device_get(own)  # all copies from a device are started before one is awaited
    counts, examples = np.zeros(len(users), np.int64), np.zeros(len(users), np.int64)
    labels = []
    for i, (points, _, _, _, known) in zip(good, parts, strict=True):
        counts[i] = len(points)
        examples[i] = users[i].num_examples or len(points)
        labels.append(np.full(len(points), -1, np.int32) if known is None else known)
    d = space.dimension
    # Points of float64 keep their digits until a market's origin is subtracted from them.
    wide = np.float64 if any(one[0].dtype == np.float64 for one in parts) else np.float32
    return StackedUsers(
        tuple(ids),
        tuple(said),
        tuple(spaces),
        label_space,
        counts,
        examples,
        _joined([one[0] for one in parts], (0, d), wide),
        _joined([one[1] for one in parts], (0,), np.float32),
        _joined(labels, (0,), np.int32),
        _joined([one[2].T for one in parts], (0, d), np.float32),
        _joined([one[3] for one in parts], (0,), np.float32),
    )


def _joined(parts: Sequence[np.ndarray], empty: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.concatenate([np.zeros(empty, dtype), *parts], dtype=dtype, casting="same_kind")


def user_of(users: StackedUsers, which: int, space_name: str, space_digest: str) -> Any:
    """Return one user as a `UserSpecification`.

    Raises:
        ValueError: the user has an error.
    """
    said = users.errors[which]
    if said is not None:
        raise ValueError(said)
    first = int(starts_of(users.counts)[which])
    rows = slice(first, first + int(users.counts[which]))
    first = int(starts_of(users.class_counts)[which])
    classes = slice(first, first + int(users.class_counts[which]))
    labels = users.labels[rows]
    parts: Any = (users.points[rows], users.weights[rows])
    proxy: Any = (users.class_vectors[classes].T, users.class_bias[classes])
    shared: Any = labels if labels[0] >= 0 else None
    user = UserSpecification(
        ReducedSet(*parts),
        Proxy(*proxy),
        shared,
        class_names=users.label_spaces[users.label_space[which]],
        space_name=space_name,
        space_digest=space_digest,
        num_examples=int(users.examples[which]),
    )
    return jax.tree.map(jax.numpy.asarray, user)


def check_numbers_of_users(users: StackedUsers) -> StackedUsers:
    """Return the same users, with an error for each whose numbers cannot be scored.

    For users that come from a file, where shapes are known to be right.
    """
    rows = np.repeat(np.arange(len(users)), users.counts)
    classes = np.repeat(np.arange(len(users)), users.class_counts)
    errors = list(users.errors)

    def note(which: np.ndarray, text: str) -> None:
        for i in np.unique(which).tolist():
            errors[i] = errors[i] or text

    for name, values, owners in (
        ("points", users.points, rows),
        ("weights", users.weights, rows),
        ("class_vectors", users.class_vectors, classes),
        ("class_bias", users.class_bias, classes),
    ):
        wrong = ~(np.abs(values) <= LARGEST)  # also NaN
        wrong = wrong.any(axis=1) if wrong.ndim == 2 else wrong
        note(owners[wrong], f"{name}: expected finite numbers of at most {LARGEST:.0e}, got others")
    total = np.bincount(rows, users.weights.astype(np.float64), len(users))
    used = np.array([error is None for error in errors], bool)
    note(np.flatnonzero(used & ~(total > 0)), "weights: expected a sum above zero, got another")
    shared = users.shares_labels[rows]
    low, high = np.where(shared, 0, -1), np.where(shared, users.class_counts[rows], 0)
    wrong = (users.labels < low) | (users.labels >= high)
    note(rows[wrong], "labels: expected the user's classes for all points, or -1 for all")
    return dataclasses.replace(users, errors=tuple(errors))
