"""The filter of an index: how a score follows from codes, and how deep the best learnwares lie.

Both are found out from the market itself. Some of its learnwares act as users (pseudo-users). The
others are scored for them exactly, a linear model of the codes' inner products is fitted to these
scores, and where the exact best lie in the order of the model says how many candidates a recall
needs. A pseudo-user is shown a market like that of a user: without itself, and where classes are
not compared by name, without every learnware that has a class of one of its names, as the market
has none for a user of other classes. `fit_filter` is the entry; nothing here searches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxspec.index.codes import Codes
from jaxspec.index.search import FEATURES, filter_features
from jaxspec.kernels import ReducedSet
from jaxspec.market import Market, decode_points, evenly_spaced
from jaxspec.matching import stack_users
from jaxspec.scoring import Score, score_all
from jaxspec.specify import Proxy, UserSpecification

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = [
    "PSEUDO_USERS",
    "TOP",
    "FittedFilter",
    "depth_of",
    "draw_depths",
    "fit_filter",
    "fit_weights",
    "make_pseudo_users",
    "pseudo_user_evidence",
    "shown_learnwares",
]

PSEUDO_USERS = 64
MAX_SHOWN = 16384  # learnwares among which pseudo-users look for the best
USERS_PER_PASS = 16
TOP = 10  # the exact best whose depth is measured
FULL_COVERAGE = 0.9  # from this fraction on, what was shown counts as the market
DRAWS = 8  # markets that are drawn for each pseudo-user from a smaller sample
NEIGHBOURHOODS = (16, 128)  # learnwares of a sample whose errors of the filter are exchangeable
MIN_DISJOINT = 4 * TOP  # learnwares of other class names that a pseudo-user has to be shown,
MIN_DISJOINT_FRACTION = 1 / 16  # and of the sample: with fewer the depth cannot be estimated


@dataclasses.dataclass(frozen=True)
class FittedFilter:
    """The filter of one score, and what was measured with it.

    Attributes:
        weights: of the numbers that `jaxspec.index.search.feature_terms` returns.
        depths: ascending, how many of the first in the filter's order held the exact best `TOP` of
            each pseudo-user.
        length: slots that the market had: later ones were not looked at.
        count: learnwares that the market had.
    """

    weights: Float[np.ndarray, " FEATURES"]
    depths: Float[np.ndarray, " P"]
    length: int
    count: int


def fit_filter(market: Market, codes: Codes, score: Score, *, by_name: bool) -> FittedFilter:
    """Fit the filter of a score and measure the depths that pseudo-users need.

    Of a market of up to `MAX_SHOWN` learnwares they see all the others, and with that how deep the
    best lie. Of a larger market they see an even sample, from which `draw_depths` draws markets. So
    the cost does not grow with the market.

    Args:
        market: of the index.
        codes: of this market.
        score: which score.
        by_name: whether classes are compared by name.
    """
    features, exact = pseudo_user_evidence(market, codes, score, by_name=by_name)
    weights = fit_weights(features, exact)
    rng, depths = np.random.default_rng(0), []
    for x, y in zip(features, exact, strict=True):
        guess, share = x @ weights, len(y) / len(market)
        if share > FULL_COVERAGE or len(y) <= TOP:
            depths.append(np.array([depth_of(guess, y, TOP)], float))
        else:
            depths.append(draw_depths(rng, guess, y, share))
    return FittedFilter(
        weights.astype(np.float32), np.sort(np.concatenate(depths)), market.length, len(market)
    )


def pseudo_user_evidence(
    market: Market, codes: Codes, score: Score, *, by_name: bool
) -> tuple[list[Float[np.ndarray, "n FEATURES"]], list[Float[np.ndarray, " n"]]]:
    """Return features and exact scores of what each pseudo-user is shown.

    Learnwares whose score is not a finite number are left out. The arguments are those of
    `fit_filter`.
    """
    sampled = evenly_spaced(market.slots, MAX_SHOWN)
    part = market
    if len(sampled) < len(market):
        part = market.sample(sampled)
        codes = Codes(part, like=codes)
    acting = evenly_spaced(part.slots, min(PSEUDO_USERS, max(len(part) // 4, 1)))
    users = make_pseudo_users(part, acting)
    shown = shown_learnwares(part, acting, by_name=by_name)
    others = np.setdiff1d(part.slots, acting)
    arrays = part.with_alive(others if len(others) else part.slots)
    features, exact = [], []
    for start in range(0, len(users), USERS_PER_PASS):
        some = users[start : start + USERS_PER_PASS]
        padded = some + some[:1] * (USERS_PER_PASS - len(some))
        stacked = stack_users(part, padded, np.full(USERS_PER_PASS, by_name))
        found = score_all(arrays, stacked, score=score, mesh=part.mesh)
        scores = np.asarray(found.scores, np.float64)
        values = np.asarray(filter_features(arrays, codes, stacked), np.float64)
        for row in range(len(some)):
            kept = part.rows[shown[start + row]]
            kept = kept[np.isfinite(scores[row, kept])]
            exact.append(scores[row, kept])
            features.append(values[row, kept])
    return features, exact


def fit_weights(
    features: Sequence[Float[np.ndarray, "n FEATURES"]], exact: Sequence[Float[np.ndarray, " n"]]
) -> Float[np.ndarray, " FEATURES"]:
    """Return the weights of the regression of exact scores on features.

    The best learnwares of a user count most. A user's mean does not count, as it does not change
    the order.

    Args:
        features: of every user, float64.
        exact: scores of every user.
    """
    moments = np.zeros((FEATURES, FEATURES + 1))
    for x, y in zip(features, exact, strict=True):
        if not len(y):
            continue
        weight = np.empty(len(y))
        weight[np.argsort(-y, kind="stable")] = 1.0 / (TOP + np.arange(len(y)))
        weight /= weight.sum()
        x, y = x - weight @ x, y - weight @ y
        moments += (x * weight[:, None]).T @ np.column_stack([x, y])
    scale = np.sqrt(np.maximum(np.diagonal(moments), 1e-12))
    matrix = moments[:, :FEATURES] / scale[:, None] / scale + 1e-6 * np.eye(FEATURES)
    return np.asarray(np.linalg.solve(matrix, moments[:, FEATURES] / scale) / scale)


def draw_depths(
    rng: np.random.Generator,
    guess: Float[np.ndarray, " n"],
    exact: Float[np.ndarray, " n"],
    share: float,
) -> Float[np.ndarray, " DRAWS"]:
    """Return how deep the best `TOP` lie in markets like the one that a sample comes from.

    The best of a market are fewer in a sample, and the depths of one or two say little. But the
    errors of the filter are known there. A market is drawn with 1 / share learnwares for each one
    of the sample; they have its guess and, as scores, the guess plus the error of one of its
    neighbours in the order of guesses. Only the best are drawn: pairs of a guess and an error come
    as a Poisson process, the best first. A small neighbourhood keeps what is particular about the
    best, a large one lets others come first; the deeper of the two counts.

    Args:
        rng: numpy's random generator.
        guess: values of the filter, for more than `TOP` learnwares.
        exact: their scores.
        share: of the market that was shown, below 1.
    """
    order = np.argsort(-guess, kind="stable")
    guess, error = guess[order], (exact - guess)[order]
    arrivals = np.cumsum(rng.exponential(size=(DRAWS, TOP)), axis=1)
    deepest = np.zeros(DRAWS)
    for width in NEIGHBOURHOODS:
        width = min(width, len(guess))
        first = np.clip(np.arange(len(guess)) - width // 2, 0, len(guess) - width)
        scores = (guess[:, None] + error[first[:, None] + np.arange(width)]).ravel()
        rate = 1.0 / (share * width)  # learnwares of the market per pair
        count = min(len(scores), math.ceil(arrivals.max() / rate) + 1)
        best = np.argpartition(-scores, count - 1)[:count]
        best = best[np.argsort(-scores[best], kind="stable")]
        at = np.minimum((arrivals / rate).astype(int), count - 1)
        lowest = (best[at] // width).max(axis=1)
        deepest = np.maximum(deepest, 1 + lowest / share)
    return deepest


def depth_of(guess: Float[np.ndarray, " n"], exact: Float[np.ndarray, " n"], count: int) -> int:
    """Return how many of the first in the order of guesses hold the exact best `count`."""
    if not len(exact):
        return 1
    best = np.argsort(-exact, kind="stable")[:count]
    return 1 + int((guess > guess[best].min()).sum())


def shown_learnwares(
    market: Market, acting: Int[np.ndarray, " P"], *, by_name: bool
) -> list[Int[np.ndarray, " n"]]:
    """Return which learnwares each pseudo-user is shown, as places in `market.slots`.

    Args:
        market: all of it is in memory.
        acting: slots of the learnwares that act as users.
        by_name: whether classes are compared by name.
    """
    entries, slots = market.ledger.entries, market.slots
    least = max(MIN_DISJOINT, MIN_DISJOINT_FRACTION * len(market))
    others = ~np.isin(slots, acting)
    if not others.any():
        others[:] = True
    if by_name:
        return [np.flatnonzero(others)] * len(acting)
    spaces = list(dict.fromkeys(entries[slot].class_names for slot in slots))
    numbers = {names: i for i, names in enumerate(spaces)}
    space = np.array([numbers[entries[slot].class_names] for slot in slots])
    shown = []
    for slot in acting:
        own = set(entries[slot].class_names)
        apart = np.array([own.isdisjoint(names) for names in spaces])
        disjoint = others & apart[space]
        # Where nearly all learnwares share a class with it, all of the others are shown.
        shown.append(np.flatnonzero(disjoint if disjoint.sum() >= least else others))
    return shown


def make_pseudo_users(market: Market, slots: Int[np.ndarray, " P"]) -> list[UserSpecification]:
    """Return users whose examples are learnwares' reduced sets, labelled by their own proxies."""
    rows: dict[str, Any] = market.shared.take(slots, all_processes=True)
    points = decode_points(rows["points"], rows["scales"]) + market.origin
    users = []
    for i, slot in enumerate(slots):
        entry = market.ledger.entries[slot]
        size, classes = entry.size, len(entry.class_names)
        weights = rows["class_vectors"][i, :classes].astype(np.float32).T
        bias, own = rows["class_bias"][i, :classes], points[i, :size]
        users.append(
            UserSpecification(
                ReducedSet(own, rows["weights"][i, :size]),
                Proxy(weights, bias),
                (own @ weights + bias).argmax(axis=1).astype(np.int32),
                class_names=entry.class_names,
                space_name=market.space.name,
                space_digest=market.space.digest,
                num_examples=size,
            )
        )
    return users
