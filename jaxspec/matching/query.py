"""A question to a market, checked and resolved: which score, which reuse, which label spaces.

What the caller leaves open is decided here, once for all places that can be asked, and every
decision is noted in a sentence that the answer carries.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxspec.base import as_size, bucket, to_numpy
from jaxspec.market import Ledger
from jaxspec.matching.match_result import Match
from jaxspec.matching.users import as_users, stack_users
from jaxspec.scoring import METHODS, Score, UserArrays, as_score, needs_labels, needs_proxies
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
    "prepare_query",
]

LABEL_SPACES = ("auto", "homogeneous", "heterogeneous")
REUSES = ("direct", "fine-tune")
# Above this part of a user's classes in one learnware, `auto` compares classes by name: a few
# unknown names are more likely other words for known classes than another question.
KNOWN_PART = 0.5


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

    def groups(self) -> Iterator[Group]:
        """Yield the groups of users that can be scored together."""
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
    for name, value, allowed in (
        ("reuse", reuse, (None, *REUSES)),
        ("label_spaces", label_spaces, LABEL_SPACES),
    ):
        if not isinstance(value, str | None) or value not in allowed:
            raise ValueError(f"{name}: expected one of {allowed}, got {value!r:.80}")
    score = None if method is None else as_score("method", method)
    size = None if k is None else as_size("k", k)
    mask = None if among is None else _mask("among", among, len(catalogue))
    if not isinstance(verified, bool | np.bool_):
        raise TypeError(f"verified: expected True or False, got {verified!r:.80}")
    if verified:
        mask = catalogue.verified if mask is None else mask & catalogue.verified
    share = _recall(recall)
    users = as_users(catalogue, user)
    if len(catalogue) == 0:
        raise ValueError("where: expected at least one learnware, got an empty market")
    spaces = [_compare_by_name(catalogue, one, label_spaces) for one in users]
    by_name = np.array([known for known, _ in spaces])
    scores, reuses, notes = [], [], []
    lacking = _without_proxy(catalogue)
    bare = len(lacking) == len(catalogue)
    if bare and score is not None and needs_proxies(score):
        raise ValueError(
            f"method: {score.name!r} needs the learnwares' proxies, and of this market's only the "
            "reduced sets are known; 'rkme' does without"
        )
    for one, (known, space_note) in zip(users, spaces, strict=True):
        chosen, own_reuse, reuse_note = _chosen_score(one, known, score, reuse, bare=bare)
        scores.append(chosen)
        reuses.append(own_reuse)
        name_notes = _unknown_names(catalogue.ledger, one, known)
        if needs_proxies(chosen) and lacking:
            name_notes += (
                f"{len(lacking)} of {len(catalogue)} learnwares have no proxy, such as "
                f"{lacking[0]!r:.80}: {chosen.name!r} takes them to answer nothing; 'rkme' "
                "compares them by their distributions.",
            )
        notes.append((reuse_note,) if bare else (space_note, reuse_note, *name_notes))
    return Query(
        tuple(users),
        stack_users(catalogue, users, by_name),
        tuple(scores),
        tuple(reuses),
        tuple(notes),
        size,
        mask,
        catalogue.is_verified,
        share,
        progress,
        resume,
    )


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


def _compare_by_name(
    catalogue: Catalogue, user: UserSpecification, label_spaces: str
) -> tuple[bool, str]:
    """Return whether classes are compared by name, and a sentence that says why."""
    if label_spaces != "auto":
        return label_spaces == "homogeneous", f"Label spaces are {label_spaces}, as asked for."
    shared, count = catalogue.most_shared_names(user.class_names), len(user.class_names)
    if shared > KNOWN_PART * count:
        which = "all" if shared == count else f"{shared}"
        return True, (
            f"Classes are compared by name (homogeneous label spaces), since one learnware has "
            f"{which} of your {count} classes."
        )
    which = "none" if shared == 0 else f"at most {shared}"
    return False, (
        f"Classes are compared by their class vectors (heterogeneous label spaces), since a "
        f"learnware has {which} of your {count} class names."
    )


def _without_proxy(catalogue: Catalogue) -> tuple[str, ...]:
    """Return the ids of learnwares of which only the reduced set is known."""
    find = getattr(catalogue, "without_proxy", None)
    if find is not None:
        return tuple(find())
    ledger = catalogue.ledger  # of a place that holds all that its ledger knows
    return tuple(ledger.ids[slot] for slot in ledger.label_spaces.get((), ()))


def _chosen_score(
    user: UserSpecification,
    by_name: bool,
    score: Score | None,
    reuse: str | None,
    *,
    bare: bool,
) -> tuple[Score, str, str]:
    """Return the score for a user, the reuse, and a sentence that says why."""
    if reuse is not None:
        why = "as asked for"
    elif by_name:
        why = "since a learnware's classes are yours"
    else:
        why = "since your classes are not a learnware's"
    kind = reuse or ("direct" if by_name else "fine-tune")
    meant = "direct use" if kind == "direct" else "fine-tuning"
    if bare:
        chosen = METHODS["rkme"] if score is None else score
        return (
            chosen,
            kind,
            f"The score is {chosen.name!r}, which compares distributions, since of this market's "
            "learnwares only the reduced sets are known: nothing tells which classes they have or "
            "how their models answer.",
        )
    if score is not None:
        if needs_labels(score) and user.labels is None:
            raise ValueError(
                f"method: {score.name!r} needs the labels of the user's points, and this user does "
                "not share them; 'classwise' and 'rkme' do without"
            )
        return score, kind, f"The reuse is {meant}, {why}; the score {score.name!r} was asked for."
    if user.labels is None:
        return (
            METHODS["classwise"],
            kind,
            f"The reuse is {meant}, {why}; the score is 'classwise', since labels are not shared.",
        )
    name = "likelihood" if kind == "direct" else "transfer"
    return METHODS[name], kind, f"The reuse is {meant}, {why}; the score for it is {name!r}."


def _unknown_names(ledger: Ledger, user: UserSpecification, by_name: bool) -> tuple[str, ...]:
    """Return a sentence per class of the user that the market does not know but has a like of.

    Where classes are compared by name, every unknown class is named. Where not, only classes whose
    names differ from a known one in letter case or spaces: these are probably the same class.
    """
    unknown = [name for name in user.class_names if name not in ledger.names]
    if not unknown:
        return ()
    folded: dict[str, list[str]] = {}
    names = list(ledger.names)  # at once: another thread may add to the market meanwhile
    for known in names:
        folded.setdefault(_folded(known), []).append(known)
    sentences = []
    for name in unknown:
        same = folded.get(_folded(name), [])
        if not same and not by_name:
            continue
        if same:
            text = f"No learnware has a class {name!r}, but there is {same[0]!r}, which differs "
            text += "only in letter case, spaces or marks."
        else:
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
            text = f"No learnware has a class {name!r}: "
            text += f"the nearest names are {near}." if near else "no name is near it."
            text += " It counts for no learnware."
        warnings.warn(text, ClassNameWarning, stacklevel=4)
        sentences.append(text)
    return tuple(sentences)


def _folded(name: str) -> str:
    """Return a name without letter case, spaces, hyphens and underscores."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())
