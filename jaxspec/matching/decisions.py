"""What a question leaves open, decided for one user: label spaces, reuse, score, and why.

`decide` returns the decision with sentences about it. It depends on the user's class
names and on whether labels are shared, so it can be kept for all users who are alike in these.
Nothing here looks at numbers, and nothing warns.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxspec.market import Ledger
from jaxspec.scoring import METHODS, Score, needs_labels, needs_proxies

if TYPE_CHECKING:
    from jaxspec.matching.places import Catalogue

__all__ = ["Decision", "decide"]

# Above this part of a user's classes in one learnware, `auto` compares classes by name: a few
# unknown names are more likely other words for known classes than another question.
KNOWN_PART = 0.5
BARE = (
    "which compares distributions, since of this market's learnwares only the reduced sets are "
    "known: nothing tells which classes they have or how their models answer."
)


@dataclasses.dataclass(frozen=True)
class Decision:
    """What is decided for users of one label space.

    Attributes:
        score: which score.
        by_name: whether classes are compared by name.
        reuse: "direct" or "fine-tune".
        notes: what the user should know, in sentences.
        warnings: those of the notes that are about a class name.
    """

    score: Score
    by_name: bool
    reuse: str
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def decide(
    catalogue: Catalogue,
    names: Sequence[str],
    shares_labels: bool,
    *,
    score: Score | None,
    reuse: str | None,
    label_spaces: str,
) -> Decision:
    """Decide for a user what a question leaves open.

    Args:
        catalogue: of the place that is asked.
        names: the user's class names.
        shares_labels: whether the user shares the labels of its points.
        score: which was asked for, or None.
        reuse: likewise.
        label_spaces: one of `LABEL_SPACES`.

    Raises:
        ValueError: the score needs what the user or the market does not have.
    """
    lacking = catalogue.without_proxy()
    by_name, space_note = _compare_by_name(catalogue, names, label_spaces)
    if len(lacking) == len(catalogue):
        chosen, kind, why = _score_of_reduced_sets(score), _kind(reuse, by_name), BARE
        return Decision(chosen, by_name, kind, (f"The score is {chosen.name!r}, {why}",), ())
    chosen, kind, score_note = _chosen_score(shares_labels, by_name, score, reuse)
    name_notes = _unknown_names(catalogue.ledger, names, by_name)
    notes = (space_note, score_note, *name_notes)
    if lacking and needs_proxies(chosen):
        notes += (
            f"{len(lacking)} of {len(catalogue)} learnwares have no proxy, such as "
            f"{lacking[0]!r:.80}: {chosen.name!r} takes them to answer nothing; 'rkme' compares "
            "them by their distributions.",
        )
    return Decision(chosen, by_name, kind, notes, name_notes)


def _score_of_reduced_sets(score: Score | None) -> Score:
    """Return the score for a market of which only reduced sets are known."""
    if score is not None and needs_proxies(score):
        raise ValueError(
            f"method: {score.name!r} needs the learnwares' proxies, and of this market's only the "
            "reduced sets are known; 'rkme' does without"
        )
    return METHODS["rkme"] if score is None else score


def _kind(reuse: str | None, by_name: bool) -> str:
    return reuse or ("direct" if by_name else "fine-tune")


def _compare_by_name(
    catalogue: Catalogue, names: Sequence[str], label_spaces: str
) -> tuple[bool, str]:
    """Return whether classes are compared by name, and a sentence that says why."""
    if label_spaces != "auto":
        return label_spaces == "homogeneous", f"Label spaces are {label_spaces}, as asked for."
    shared, count = catalogue.most_shared_names(names), len(names)
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


def _chosen_score(
    shares_labels: bool, by_name: bool, score: Score | None, reuse: str | None
) -> tuple[Score, str, str]:
    """Return the score for a user, the reuse, and a sentence that says why."""
    if reuse is not None:
        why = "as asked for"
    elif by_name:
        why = "since a learnware's classes are yours"
    else:
        why = "since your classes are not a learnware's"
    kind = _kind(reuse, by_name)
    meant = "direct use" if kind == "direct" else "fine-tuning"
    if score is not None:
        if needs_labels(score) and not shares_labels:
            raise ValueError(
                f"method: {score.name!r} needs the labels of the user's points, and this user does "
                "not share them; 'classwise' and 'rkme' do without"
            )
        return score, kind, f"The reuse is {meant}, {why}; the score {score.name!r} was asked for."
    if not shares_labels:
        return (
            METHODS["classwise"],
            kind,
            f"The reuse is {meant}, {why}; the score is 'classwise', since labels are not shared.",
        )
    name = "likelihood" if kind == "direct" else "transfer"
    return METHODS[name], kind, f"The reuse is {meant}, {why}; the score for it is {name!r}."


def _unknown_names(ledger: Ledger, names: Sequence[str], by_name: bool) -> tuple[str, ...]:
    """Return a sentence per class of the user that the market does not know but has a like of.

    Where classes are compared by name, every unknown class is named. Where not, only classes whose
    names differ from a known one in letter case or spaces: these are probably the same class.
    """
    unknown = [name for name in names if name not in ledger.names]
    if not unknown:
        return ()
    folded: dict[str, list[str]] = {}
    known_names = list(ledger.names)  # at once: another thread may add to the market meanwhile
    for known in known_names:
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
            near = difflib.get_close_matches(name, known_names, n=3, cutoff=0.5)
            text = f"No learnware has a class {name!r}: "
            text += f"the nearest names are {near}." if near else "no name is near it."
            text += " It counts for no learnware."
        sentences.append(text)
    return tuple(sentences)


def _folded(name: str) -> str:
    """Return a name without letter case, spaces, hyphens and underscores."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())
