"""The answers to many users as arrays: one row per user."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxspec.base import as_size

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["BatchAnswers"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class BatchAnswers:
    """What a market answers Q users: at most k learnwares each, best first.

    Attributes:
        users: ids of the users, in the order in which they came.
        counts: learnwares that each user is answered; further places of a row are not used.
        ids: of the learnwares; None where a place is not used.
        scores: larger is better, comparable within one row; NaN where a place is not used.
        squared_mmd: between the user's and the learnware's embedding; NaN likewise.
        methods: the names of the scores; "" for a user with an error, here and below.
        reuses: "direct" or "fine-tune".
        label_spaces: "homogeneous" if classes were compared by name, else "heterogeneous".
        notes: for each user, what was decided and what the user should know, in sentences.
        errors: for each user None, or why there is no answer.
    """

    users: tuple[str, ...]
    counts: Int[np.ndarray, " Q"]
    ids: np.ndarray  # (Q, k), objects
    scores: Float[np.ndarray, "Q k"]
    squared_mmd: Float[np.ndarray, "Q k"]
    methods: tuple[str, ...]
    reuses: tuple[str, ...]
    label_spaces: tuple[str, ...]
    notes: tuple[tuple[str, ...], ...]
    errors: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.users)

    @property
    def failed(self) -> int:
        """How many users have an error instead of an answer."""
        return sum(error is not None for error in self.errors)

    def __repr__(self) -> str:
        return (
            f"BatchAnswers({len(self)} users, {self.failed} with an error, k={self.ids.shape[1]})"
        )

    def top_k(self, which: int, k: int) -> list[tuple[str, float]]:
        """Return the k best for one user as [(id, score), ...], as `Match.top_k` does.

        Raises:
            TypeError, ValueError: k is not an integer of at least one.
        """
        count = min(as_size("k", k), int(self.counts[which]))
        row = zip(self.ids[which, :count], self.scores[which, :count], strict=True)
        return [(str(learnware), float(score)) for learnware, score in row]

    @classmethod
    def joined(cls, parts: Sequence[BatchAnswers], k: int) -> BatchAnswers:
        """Return the answers of all parts as one; without a part, answers to nobody."""
        if not parts:
            return cls.empty((), k)
        columns: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            values = [getattr(part, field.name) for part in parts]
            if isinstance(values[0], tuple):
                columns[field.name] = tuple(one for part in values for one in part)
            else:
                columns[field.name] = np.concatenate(values)
        return cls(**columns)

    @classmethod
    def empty(cls, users: tuple[str, ...], k: int) -> BatchAnswers:
        """Return answers in which no user has a learnware yet, with arrays to write to."""
        count = len(users)
        nothing = ("",) * count
        return cls(
            users,
            np.zeros(count, np.int64),
            np.full((count, k), None, object),
            np.full((count, k), np.nan, np.float32),
            np.full((count, k), np.nan, np.float32),
            nothing,
            nothing,
            nothing,
            ((),) * count,
            (None,) * count,
        )
