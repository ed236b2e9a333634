"""Who has which pictures: the developers and users of a market, for the demo and the study.

`draw_market` splits the pictures of every context among developers and users and draws label
spaces over them. `jaxspec.applications.heads` trains the developers' models. What a market ever
sees of this are the first `MARKET_DIMENSION` columns of the features and the models' outputs.

A label space is a partition of the ten garments into five named groups. All label spaces of a
market are drawn over the same pictures, so that P(X) alone does not tell their models apart; two
groups are common to both developers' spaces, so that they overlap.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

__all__ = [
    "MARKET_DIMENSION",
    "Developer",
    "LabelSpace",
    "MarketDraw",
    "User",
    "draw_label_spaces",
    "draw_market",
]

MARKET_DIMENSION = 64
GROUPS = 5
SHARED_GROUPS = 2


@dataclasses.dataclass(frozen=True)
class LabelSpace:
    """Groups of garments under names.

    Attributes:
        names: one name a class.
        of_garment: (garments,) the class that each garment belongs to.
    """

    names: tuple[str, ...]
    of_garment: np.ndarray


@dataclasses.dataclass(frozen=True)
class Developer:
    """One developer's task: the rows of its pictures and their classes."""

    name: str
    context: int
    space: LabelSpace
    rows: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class User:
    """One user's task: a few labelled examples, and test pictures that only the truth uses."""

    name: str
    context: int
    space: LabelSpace
    rows: np.ndarray
    labels: np.ndarray
    test_rows: np.ndarray
    test_labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class MarketDraw:
    """Developers and homogeneous users in one order, and users of a label space nobody has.

    `probe_rows` are the market's public probe set: unlabelled pictures that are nobody's.
    """

    developers: tuple[Developer, ...]
    users: tuple[User, ...]
    strangers: tuple[User, ...]
    probe_rows: np.ndarray


def _space(groups: Sequence[Sequence[int]], garments: Sequence[str]) -> LabelSpace:
    of_garment = np.zeros(len(garments), np.int32)
    for k, group in enumerate(groups):
        of_garment[list(group)] = k
    return LabelSpace(tuple(" / ".join(garments[g] for g in group) for group in groups), of_garment)


def _pairs(garments: Sequence[int], rng: np.random.Generator) -> list[tuple[int, ...]]:
    order = rng.permutation(garments)
    return [tuple(sorted(int(g) for g in order[i : i + 2])) for i in range(0, len(order), 2)]


def draw_label_spaces(
    garments: Sequence[str], rng: np.random.Generator
) -> tuple[LabelSpace, LabelSpace, LabelSpace]:
    """Return two developers' spaces with two groups in common, and one that shares no group."""
    first = _pairs(range(len(garments)), rng)
    kept = first[:SHARED_GROUPS]
    rest = [g for group in first[SHARED_GROUPS:] for g in group]

    def draw(pool: Sequence[int], taken: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        while True:
            groups = _pairs(pool, rng)
            if not set(groups) & set(taken):
                return groups

    second = kept + draw(rest, first)
    third = draw(range(len(garments)), first + second)
    a, b, c = (_space(groups, garments) for groups in (first, second, third))
    return a, b, c


def draw_market(
    labels: np.ndarray,
    contexts: np.ndarray,
    class_names: Sequence[str],
    context_names: Sequence[str],
    rng: np.random.Generator,
    *,
    developer_size: int = 800,
    examples_per_class: int = 10,
    test_size: int = 1200,
    probe_size: int = 1000,
    pool_size: int = 300,
    sides: np.ndarray | None = None,
) -> MarketDraw:
    """Draw 2 developers, 2 users and 1 stranger for every context.

    The developers of a context have the same pictures; users have others, their labelled examples
    are no test pictures of anybody.

    Args:
        labels: (N,) garment of every picture.
        contexts: (N,) context of every picture.
        class_names: garments.
        context_names: contexts.
        rng: source of all choices.
        developer_size: pictures of a developer.
        examples_per_class: labelled examples of a user.
        test_size: test pictures of a user (fewer if a context has fewer).
        probe_size: pictures of the probe set, of all contexts (fewer if fewer are left).
        pool_size: pictures of a context that all its users' examples are drawn from.
        sides: (N,) 0 where only developers and the probe may have a picture, 1 where only users
            may; None lets anybody have any.
    """
    first, second, third = draw_label_spaces(class_names, rng)
    developers, users, strangers, left = [], [], [], []
    for context, name in enumerate(context_names):
        rows = rng.permutation(np.flatnonzero(contexts == context))
        if sides is None:
            own, fresh = rows[:developer_size], rows[developer_size:]
            left.append(fresh[pool_size + test_size :])
        else:
            given, fresh = rows[sides[rows] == 0], rows[sides[rows] == 1]
            own = given[:developer_size]
            left.append(given[developer_size:])
        support, test = fresh[:pool_size], fresh[pool_size : pool_size + test_size]
        for tag, space in (("A", first), ("B", second), ("C", third)):
            classes = space.of_garment[labels[support]]
            chosen = np.concatenate(
                [rng.permutation(support[classes == k])[:examples_per_class] for k in range(GROUPS)]
            )
            user = User(
                f"{name} {tag}",
                context,
                space,
                chosen,
                space.of_garment[labels[chosen]],
                test,
                space.of_garment[labels[test]],
            )
            if tag == "C":
                strangers.append(user)
                continue
            users.append(user)
            developers.append(
                Developer(f"{name} {tag}", context, space, own, space.of_garment[labels[own]])
            )
    probe = rng.permutation(np.concatenate(left))[:probe_size]
    return MarketDraw(tuple(developers), tuple(users), tuple(strangers), probe)
