"""Matching: score every learnware of a market for one user or a batch of users in one pass.

`match` is what users call; it checks, pads and explains. The pass itself, and what the methods
are, is in `jaxspec.scoring`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np

from jaxspec.base import as_size, bucket
from jaxspec.market.market import Market
from jaxspec.scoring.score_pass import METHODS, NEED_LABELS
from jaxspec.scoring.sharded import best_spread, score_spread
from jaxspec.scoring.types import LEAST_POINTS, Scores, UserArrays
from jaxspec.specify.specification import UserSpecification, check_comparable, check_user

__all__ = [
    "LABEL_SPACES",
    "METHODS",
    "REUSES",
    "Match",
    "by_method",
    "match",
    "match_of",
    "prepare_users",
    "stack_users",
    "top_k",
]

LABEL_SPACES = ("auto", "homogeneous", "heterogeneous")
REUSES = ("direct", "fine-tune")


@dataclasses.dataclass(frozen=True)
class Match:
    """The answer of a market. With a batch of users every array has a leading axis Q.

    Attributes:
        ids: M learnwares, in the order of the arrays' learnware axis.
        scores: (M,) larger is better.
        squared_mmd: (M,) between the user's and the learnware's embedding.
        class_similarity: (M, C_T) in [-1, 1], how well a learnware's class stands for user class k.
        class_map: (M, C_T) int32, which of the learnware's classes that is, -1 for none.
        class_names: C_T names of the user (a batch: one tuple a user; its arrays are padded to
            the largest C_T with similarity 0 and class -1).
        method: the score's name (a batch: one a user).
        market: the market that was asked.
    """

    ids: tuple[str, ...]
    scores: np.ndarray
    squared_mmd: np.ndarray
    class_similarity: np.ndarray
    class_map: np.ndarray
    class_names: tuple[Any, ...]
    method: str | tuple[str, ...]
    market: Market = dataclasses.field(repr=False)

    def top_k(self, k: int) -> list[Any]:
        """Return the k best [(id, score), ...], best first; a list of such lists for a batch.

        Equal scores keep the market's order. Fewer than k learnwares: all of them.
        """
        k = as_size("k", k)
        if self.scores.ndim == 2:
            return [self._best(row, k) for row in self.scores]
        return self._best(self.scores, k)

    def _best(self, scores: np.ndarray, k: int) -> list[tuple[str, float]]:
        order = np.argsort(-scores, kind="stable")[:k]
        return [(self.ids[i], float(scores[i])) for i in order]

    def best_for_class(self, user: int = 0) -> dict[str, str]:
        """Return, for every class of the user, the learnware that is most similar there."""
        names, similarity = self._of(user, self.class_similarity)
        return {name: self.ids[int(similarity[:, k].argmax())] for k, name in enumerate(names)}

    def explain(self, learnware: str, user: int = 0) -> list[tuple[str, str | None, float]]:
        """Return (user class, learnware class or None, similarity) for every user class.

        Raises:
            KeyError: an id that the match does not hold.
            IndexError: a user that it is not of.
        """
        if learnware not in self.ids:
            raise KeyError(f"learnware: expected an id of the match, got {learnware!r:.80}")
        row = self.ids.index(learnware)
        names, similarity = self._of(user, self.class_similarity)
        _, chosen = self._of(user, self.class_map)
        own = self.market.class_names(learnware)
        return [
            (name, own[chosen[row, k]] if chosen[row, k] >= 0 else None, float(similarity[row, k]))
            for k, name in enumerate(names)
        ]

    def _of(self, user: int, array: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
        if self.scores.ndim == 2:
            if not 0 <= user < len(self.scores):
                raise IndexError(f"user: expected 0..{len(self.scores) - 1}, got {user}")
            return self.class_names[user], array[user]
        if user != 0:
            raise IndexError(f"user: expected 0, this is the match of one user; got {user}")
        return self.class_names, array


def match(
    market: Market,
    user: UserSpecification | Sequence[UserSpecification],
    *,
    method: str | None = None,
    reuse: str | None = None,
    label_spaces: str = "auto",
) -> Match:
    """Score every learnware of the market for a user, or for each of a batch of users.

    Args:
        market: at least one learnware.
        user: a user's specification, or a sequence of them.
        method: one of `METHODS`; None for the best one for the kind of reuse: "likelihood" for
            direct use, "transfer" for fine-tuning, "classwise" for a user who shares no labels.
        reuse: 'direct' if the model is to be used as it is, 'fine-tune' if it is to be trained on;
            None for 'direct' where label spaces are homogeneous and 'fine-tune' where not.
        label_spaces: 'homogeneous' compares a user class with the learnware's class of the same
            name; 'heterogeneous' with every class, and assigns; 'auto' is homogeneous for a user
            whose classes all are classes of one learnware.

    Raises:
        ValueError: an empty market, no user, an unknown option, a method that needs labels that
            the user does not share, or a user from another feature space or kernel.
    """
    users, arrays, methods = prepare_users(
        market, user, method=method, reuse=reuse, label_spaces=label_spaces
    )
    batch = not isinstance(user, UserSpecification)
    found = _score(market, arrays, methods)
    names = tuple(one.class_names for one in users)
    classes = max(len(one) for one in names)
    found["class_similarity"] = found["class_similarity"][..., :classes]
    found["class_map"] = found["class_map"][..., :classes]
    if not batch:
        found = {key: value[0] for key, value in found.items()}
    return Match(
        ids=market.ids,
        class_names=names if batch else names[0],
        method=tuple(methods) if batch else methods[0],
        market=market,
        **found,
    )


def top_k(
    market: Market,
    user: UserSpecification | Sequence[UserSpecification],
    k: int = 10,
    *,
    method: str | None = None,
    reuse: str | None = None,
    label_spaces: str = "auto",
) -> Any:
    """Return the best k learnwares only: a `Match` over them, best first.

    For large markets and markets spread over devices: every device finds its own best k, and what
    leaves the devices does not grow with the market. Scores are those of `match`.

    Args:
        market: at least one learnware.
        user: a user's specification, or a sequence of them.
        k: how many; fewer if the market has fewer.
        method: see `match`.
        reuse: see `match`.
        label_spaces: see `match`.

    Returns:
        a `Match`, or for a sequence of users a list of one a user.

    Raises:
        ValueError: as `match`, or k below one.
    """
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise ValueError(f"k: expected an integer of at least 1, got {k!r}")
    users, arrays, methods = prepare_users(
        market, user, method=method, reuse=reuse, label_spaces=label_spaces
    )
    alive, matches = market.alive, {}
    padded_k = min(bucket(k, minimum=16), len(alive))
    for name, chosen, some in by_method(arrays, methods):
        best = best_spread(
            market.arrays,
            some,
            np.int32(market.length),
            alive,
            market.calibration,
            method=name,
            k=padded_k,
            mesh=market.mesh,
        )
        for row, place in enumerate(chosen):
            matches[place] = match_of(
                market, users[place], name, best.slots[row], best.scores, row, min(k, len(market))
            )
    if isinstance(user, UserSpecification):
        return matches[0]
    return [matches[place] for place in range(len(users))]


def match_of(
    market: Market,
    user: UserSpecification,
    method: str,
    slots: np.ndarray,
    scores: Scores,
    row: int,
    k: int,
) -> Match:
    """Return the `Match` over the first k candidates of a user, best first.

    Args:
        market: that was asked.
        user: who asked.
        method: the score's name.
        slots: (n,) of candidates, best first.
        scores: arrays (Q, n, ...) of candidates.
        row: which of the Q users it is.
        k: how many candidates to keep.
    """
    classes = len(user.class_names)
    return Match(
        ids=market.ids_of(slots[:k]),
        scores=scores.scores[row, :k],
        squared_mmd=scores.squared_mmd[row, :k],
        class_similarity=scores.class_similarity[row, :k, :classes],
        class_map=scores.class_map[row, :k, :classes],
        class_names=user.class_names,
        method=method,
        market=market,
    )


def prepare_users(
    market: Market,
    user: UserSpecification | Sequence[UserSpecification],
    *,
    method: str | None,
    reuse: str | None,
    label_spaces: str,
) -> tuple[list[UserSpecification], UserArrays, list[str]]:
    """Check the arguments of `match` and return the users, stacked too, and a method for each."""
    for name, value, allowed in (
        ("method", method, (None, *METHODS)),
        ("reuse", reuse, (None, *REUSES)),
        ("label_spaces", label_spaces, LABEL_SPACES),
    ):
        if not isinstance(value, str | None) or value not in allowed:
            raise ValueError(f"{name}: expected one of {allowed}, got {value!r:.80}")
    if isinstance(user, UserSpecification):
        user = [user]
    elif isinstance(user, Mapping) or not isinstance(user, Iterable):
        raise TypeError(
            f"user: expected a UserSpecification or a sequence of them, got a {type(user).__name__}"
        )
    users = list(user)
    arrays = stack_users(market, users, label_spaces=label_spaces)
    methods = [
        _method(one, bool(by_name), method, reuse)
        for one, by_name in zip(users, arrays.by_name, strict=True)
    ]
    return users, arrays, methods


def by_method(
    arrays: UserArrays, methods: Sequence[str]
) -> Iterator[tuple[str, list[int], UserArrays]]:
    """Yield (method, places of its users, these users padded to a power of two)."""
    for method in dict.fromkeys(methods):
        chosen = [i for i, one in enumerate(methods) if one == method]
        padded = chosen + chosen[:1] * (bucket(len(chosen), minimum=1) - len(chosen))
        yield method, chosen, jax.tree.map(lambda leaf, at=padded: leaf[at], arrays)


def _method(user: UserSpecification, by_name: bool, method: str | None, reuse: str | None) -> str:
    if method is None:
        if user.labels is None:
            return "classwise"
        reuse = reuse or ("direct" if by_name else "fine-tune")
        return "likelihood" if reuse == "direct" else "transfer"
    if method in NEED_LABELS and user.labels is None:
        raise ValueError(
            f"method: {method!r} needs the labels of the user's points, and this user does not "
            "share them; 'classwise' and 'rkme' do without"
        )
    return method


def _score(market: Market, arrays: UserArrays, methods: list[str]) -> dict[str, np.ndarray]:
    """Run the pass once a method and return arrays (Q, len(market), ...) in the users' order."""
    parts, places = [], []
    alive, rows = market.alive, cast(Any, market.rows)
    for method, chosen, users in by_method(arrays, methods):
        result = score_spread(
            market.arrays,
            users,
            np.int32(market.length),
            alive,
            market.calibration,
            method=method,
            mesh=market.mesh,
        )
        parts.append(jax.tree.map(lambda leaf, at=chosen: np.asarray(leaf)[: len(at)], result))
        places += chosen
    order = np.argsort(places)
    if len(rows) and (np.diff(rows) == 1).all():
        rows = slice(rows[0], rows[-1] + 1)  # a view; picking rows one by one copies everything
    joined = jax.tree.map(lambda *part: part[0] if len(part) == 1 else np.concatenate(part), *parts)
    found = {field.name: getattr(joined, field.name) for field in dataclasses.fields(joined)}
    if (np.diff(order) == 1).all():
        return {name: value[:, rows] for name, value in found.items()}
    return {name: value[order][:, rows] for name, value in found.items()}


def stack_users(
    market: Market, users: Sequence[UserSpecification], *, label_spaces: str = "auto"
) -> UserArrays:
    """Check users against a market and pad them to a batch; see `match` for the arguments."""
    if not isinstance(market, Market):
        raise TypeError(f"market: expected a Market, got {type(market).__name__}")
    if len(market) == 0:
        raise ValueError("market: expected at least one learnware, got an empty market")
    if not users:
        raise ValueError("user: expected at least one user, got an empty sequence")
    for i, user in enumerate(users):
        name = "user" if len(users) == 1 else f"user[{i}]"
        check_user(name, user)
        check_comparable(name, user, "the market", market)
        columns = user.reduced_set.points.shape[1]
        if columns != market.dimension:
            raise ValueError(
                f"{name}: expected features of {market.dimension} columns as in the market, "
                f"got {columns}"
            )
    if label_spaces == "auto":
        by_name = np.array([market.covers(user.class_names) for user in users])
    else:
        by_name = np.full(len(users), label_spaces == "homogeneous")
    return _stacked(market, users, by_name)


def _stacked(market: Market, users: Sequence[UserSpecification], by_name: np.ndarray) -> UserArrays:
    """Copy users into padded arrays; all in numpy, so that no new size compiles anything."""
    counts = [user.reduced_set.points.shape[0] for user in users]
    batch, d = len(users), market.dimension
    n = bucket(max(counts), minimum=LEAST_POINTS)
    k = bucket(max(len(user.class_names) for user in users))
    origin = np.asarray(market.arrays.origin)
    sizes = np.array([len(user.class_names) for user in users])
    stacked = UserArrays(
        points=np.zeros((batch, n, d), np.float32),
        weights=np.zeros((batch, n), np.float32),
        labels=np.full((batch, n), -1, np.int32),
        counts=np.array(counts, np.int32),
        examples=np.array(
            [one.num_examples or count for one, count in zip(users, counts, strict=True)],
            np.float32,
        ),
        class_vectors=np.zeros((batch, k, d), np.float32),
        class_mask=np.arange(k) < sizes[:, None],
        class_numbers=np.full((batch, k), -2, np.int32),
        by_name=by_name,
    )
    for i, (user, count, size) in enumerate(zip(users, counts, sizes, strict=True)):
        np.subtract(user.reduced_set.points, origin, out=stacked.points[i, :count])
        stacked.weights[i, :count] = user.reduced_set.weights
        if user.labels is not None:
            stacked.labels[i, :count] = user.labels
        stacked.class_vectors[i, :size] = np.asarray(user.proxy.weights).T
        stacked.class_numbers[i, :size] = market.class_numbers(user.class_names)
    return stacked
