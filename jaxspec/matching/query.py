"""A question to a market, checked and resolved: which score, which reuse, which label spaces.

What the caller leaves open is decided here, once for all places that can be asked, and every
decision is noted in a sentence that the answer carries.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxspec.base import as_size, bucket, to_numpy
from jaxspec.market import Ledger
from jaxspec.matching.decisions import decide
from jaxspec.matching.match_result import Match
from jaxspec.matching.users import as_users, stack_users
from jaxspec.scoring import Score, UserArrays, as_score
from jaxspec.specify import UserSpecification

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from jaxspec.matching.places import Catalogue

__all__ = [
    "LABEL_SPACES",
    "REUSES",
    "ClassNameWarning",
    "Group",
    "Query",
    "check_choices",
    "chosen_among",
    "prepare_query",
]

LABEL_SPACES = ("auto", "homogeneous", "heterogeneous")
REUSES = ("direct", "fine-tune")


class ClassNameWarning(UserWarning):
    """A class of the user that no learnware has, although others of its classes are known."""


@dataclasses.dataclass(frozen=True)
class Group:
    """The users of a query that share a score and a way to compare classes.

    Attributes:
        score: which score.
        by_name: whether classes are compared by name.
        places: of these users in the query.
        users: their arrays, padded to a power of two with repetitions of the first.
    """

    score: Score
    by_name: bool
    places: tuple[int, ...]
    users: UserArrays


@dataclasses.dataclass(frozen=True)
class Query:
    """A checked question.

    Attributes:
        users: who asks.
        arrays: the same as padded arrays.
        scores: the score for each user.
        reuses: "direct" or "fine-tune" for each user.
        notes: what each user should know.
        k: how many learnwares are wanted, best first; None for all in the market's order.
        among: mask over the market's learnwares, or None for all.
        is_verified: tells of a slot whether its learnware is marked as verified.
        recall: share of users for whom an index has to find all of the best k.
        progress: called with (learnwares done, learnwares), or None.
        resume: file for the state of an interrupted stream, or None.
        with_classes: whether the answer is to say how classes stand for the users'.
        prepared: the groups, if they are made already.
    """

    users: tuple[UserSpecification, ...]
    arrays: UserArrays
    scores: tuple[Score, ...]
    reuses: tuple[str, ...]
    notes: tuple[tuple[str, ...], ...]
    k: int | None
    among: Bool[np.ndarray, " M"] | None
    is_verified: Callable[[int], bool]
    recall: float
    progress: Callable[[int, int], None] | None
    resume: str | os.PathLike[str] | None
    with_classes: bool = True
    prepared: tuple[Group, ...] | None = None

    def groups(self) -> Iterator[Group]:
        """Yield the groups of users that can be scored together."""
        if self.prepared is not None:
            yield from self.prepared
            return
        keys = list(zip(self.scores, map(bool, self.arrays.by_name), strict=True))
        for score, by_name in dict.fromkeys(keys):
            places = tuple(i for i, key in enumerate(keys) if key == (score, by_name))
            padded = [*places, *places[:1] * (bucket(len(places), minimum=1) - len(places))]
            users = jax.tree.map(lambda leaf, at=padded: leaf[at], self.arrays)
            yield Group(score, by_name, places, users)

    def refuse_resume(self) -> None:
        """Raise if a state is to be kept; for places that are not streamed.

        Raises:
            ValueError: `resume` was given.
        """
        if self.resume is not None:
            raise ValueError(
                "resume: expected None, as only a MarketFolder is streamed, "
                f"got {self.resume!r:.80}"
            )

    def match_of(
        self,
        place: int,
        ledger: Ledger,
        slots: Int[np.ndarray, " M"],
        scores: Float[np.ndarray, " M"],
        squared_mmd: Float[np.ndarray, " M"],
        class_similarity: Float[np.ndarray, "M k"],
        class_map: Int[np.ndarray, "M k"],
        notes: tuple[str, ...] = (),
    ) -> Match:
        """Return the answer to one user, over the learnwares in some slots.

        Args:
            place: of the user in the query.
            ledger: of the market.
            slots: of the learnwares, in the order of the arrays.
            scores: of these learnwares.
            squared_mmd: likewise.
            class_similarity: likewise; padded classes are cut off.
            class_map: likewise.
            notes: further sentences for this user.
        """
        user = self.users[place]
        classes = len(user.class_names)
        chosen = slots.tolist()
        by_name = bool(self.arrays.by_name[place])
        return Match(
            ids=tuple([ledger.ids[slot] for slot in chosen]),
            scores=scores,
            squared_mmd=squared_mmd,
            class_similarity=class_similarity[:, :classes],
            class_map=class_map[:, :classes],
            class_names=user.class_names,
            learnware_class_names=tuple([ledger.entries[slot].class_names for slot in chosen]),
            verified=np.array([self.is_verified(slot) for slot in chosen], bool),
            method=self.scores[place].name,
            reuse=self.reuses[place],
            label_spaces="homogeneous" if by_name else "heterogeneous",
            notes=(*self.notes[place], *notes),
        )

    def empty_match(self, place: int, ledger: Ledger, note: str) -> Match:
        """Return an answer without a learnware, and why there is none."""
        classes = len(self.users[place].class_names)
        nothing = np.zeros(0, np.float32)
        similarity = np.zeros((0, classes), np.float32)
        return self.match_of(
            place,
            ledger,
            np.zeros(0, int),
            nothing,
            nothing,
            similarity,
            similarity.astype(np.int32),
            (note,),
        )


def prepare_query(
    catalogue: Catalogue,
    user: Any,
    *,
    k: int | None = None,
    method: str | Score | None = None,
    reuse: str | None = None,
    label_spaces: str = "auto",
    among: Any = None,
    verified: bool = False,
    recall: float = 0.99,
    progress: Callable[[int, int], None] | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> Query:
    """Check the arguments of `match` and decide what they leave open.

    Raises:
        TypeError, ValueError: as `match`; the message names the argument.
    """
    check_choices(reuse, label_spaces)
    score = None if method is None else as_score("method", method)
    size = None if k is None else as_size("k", k)
    mask = chosen_among(catalogue, among, verified)
    share = _recall(recall)
    users = as_users(catalogue, user)
    if len(catalogue) == 0:
        raise ValueError("where: expected at least one learnware, got an empty market")
    decisions = []
    for one in users:
        decision = decide(
            catalogue,
            one.class_names,
            one.labels is not None,
            score=score,
            reuse=reuse,
            label_spaces=label_spaces,
        )
        for note in decision.warnings:
            warnings.warn(note, ClassNameWarning, stacklevel=3)
        decisions.append(decision)
    by_name = np.array([one.by_name for one in decisions])
    return Query(
        tuple(users),
        stack_users(catalogue, users, by_name),
        tuple(one.score for one in decisions),
        tuple(one.reuse for one in decisions),
        tuple(one.notes for one in decisions),
        size,
        mask,
        catalogue.is_verified,
        share,
        progress,
        resume,
    )


def check_choices(reuse: Any, label_spaces: Any) -> None:
    """Raise unless reuse and label spaces are among those that there are.

    Raises:
        ValueError: they are not; the message names the argument.
    """
    for name, value, allowed in (
        ("reuse", reuse, (None, *REUSES)),
        ("label_spaces", label_spaces, LABEL_SPACES),
    ):
        if not isinstance(value, str | None) or value not in allowed:
            raise ValueError(f"{name}: expected one of {allowed}, got {value!r:.80}")


def chosen_among(
    catalogue: Catalogue, among: Any, verified: Any = False
) -> Bool[np.ndarray, " M"] | None:
    """Return the learnwares to choose from as a mask, or None for all.

    Args:
        catalogue: of the place.
        among: a mask already, a filter by metadata, or None.
        verified: whether only verified ones are to be left.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.
    """
    if not isinstance(verified, bool | np.bool_):
        raise TypeError(f"verified: expected True or False, got {verified!r:.80}")
    if among is None:
        mask = None
    elif isinstance(among, str):
        mask = catalogue.about.where(among, name="among")
    else:
        mask = _mask("among", among, len(catalogue))
    if verified:
        return catalogue.verified if mask is None else mask & catalogue.verified
    return mask


def _mask(name: str, value: Any, count: int) -> Bool[np.ndarray, " M"]:
    mask = to_numpy(name, value)
    if mask.dtype != bool:
        raise TypeError(
            f"{name}: expected a boolean mask with one entry per learnware, got dtype {mask.dtype}"
        )
    if mask.shape != (count,):
        raise ValueError(f"{name}: expected shape ({count},), one per learnware, got {mask.shape}")
    return mask


def _recall(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"recall: expected a number, got a {type(value).__name__}: {value!r:.80}")
    if not 0 < value <= 1:
        raise ValueError(f"recall: expected a share above 0 and at most 1, got {value!r}")
    return float(value)
