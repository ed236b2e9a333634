"""The filter of an index: how a method's score follows from codes, and how deep the best lie.

Both are found out from the market itself. Some of its learnwares act as users; the rest is scored
for them exactly, a linear model of the codes' inner products is fitted to the scores, and where the
exact best lie in the order of the model says how many candidates a recall needs. A pseudo-user is
shown a market like its user's: without itself, and where class names are not to count, without
every learnware that has a class of its name, as the market has none for a user of other classes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxspec.index.codes import Codes
from jaxspec.index.search import FEATURES, Filter, features_of
from jaxspec.kernels import ReducedSet
from jaxspec.market import builder as market_storage
from jaxspec.market.arrays import decode_points
from jaxspec.market.market import Market
from jaxspec.matching.match import stack_users
from jaxspec.scoring.sharded import score_spread
from jaxspec.specify.proxy import Proxy
from jaxspec.specify.specification import UserSpecification

__all__ = [
    "CALIBRATED",
    "PSEUDO_USERS",
    "TOP",
    "drawn_depths",
    "fit_filter",
    "fit_weights",
    "pseudo_users",
    "seen_by_pseudo_users",
]

Array = Any
PSEUDO_USERS = 64
CALIBRATED = 16384  # learnwares among which they look for the best
TOGETHER = 16  # pseudo-users that are scored in one pass
TOP = 10  # the exact best whose depth is measured
ALL = 0.9  # share of a market from which on it has been seen
DRAWS = 8  # markets like it that are drawn for each pseudo-user
NEIGHBOURS = (16, 128)  # learnwares of a sample whose scores differ from guesses alike
LEAST_SHOWN = 4 * TOP  # learnwares that a pseudo-user of other names has to see, and
STRANGERS = 1 / 16  # of the sample: few say little of how deep the best of all lie


def fit_filter(
    market: Market, codes: Codes, method: str, *, by_name: bool
) -> tuple[Filter, np.ndarray]:
    """Return the filter of a method and the depths that pseudo-users needed, (P,), ascending.

    Those who are shown the whole market see how deep its best lie. Of a market of more than
    `CALIBRATED` learnwares they are shown an even sample of so many: `drawn_depths` then draws
    markets from it.

    Args:
        market: of the index.
        codes: its codes.
        method: of the score.
        by_name: whether users' class names are known to the market.
    """
    features, exact = seen_by_pseudo_users(market, codes, method, by_name=by_name)
    weights = fit_weights(features, exact)
    rng, needed = np.random.default_rng(0), []
    for x, y in zip(features, exact, strict=True):
        guess, share = x @ weights, len(y) / len(market)
        seen = share > ALL or len(y) <= TOP
        needed.append([_depth(guess, y, TOP)] if seen else drawn_depths(rng, guess, y, share))
    return Filter(weights.astype(np.float32)), np.sort(np.concatenate(needed))


def seen_by_pseudo_users(
    market: Market, codes: Codes, method: str, *, by_name: bool
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return features (n, FEATURES) and exact scores (n,) of what each pseudo-user is shown.

    The arguments are those of `fit_filter`.
    """
    some = _sample_of(market)
    if some is not market:
        codes = Codes(some, codes.encoder)
    acting = market_storage.spaced(some.slots, min(PSEUDO_USERS, max(len(some) // 4, 1)))
    users = pseudo_users(some, acting)
    shown = _shown(some, acting, by_name)
    alive = np.zeros(some._storage.total, bool)
    alive[some.rows] = True
    if len(some) > len(acting):
        alive[some._storage.rows(acting)] = False
    features: list[np.ndarray] = []
    exact: list[np.ndarray] = []
    for start in range(0, len(users), TOGETHER):
        part = users[start : start + TOGETHER]
        padded = part + part[:1] * (TOGETHER - len(part))
        label_spaces = "homogeneous" if by_name else "heterogeneous"
        stacked = stack_users(some, padded, label_spaces=label_spaces)
        scores = score_spread(
            some.arrays,
            stacked,
            np.int32(some.length),
            alive,
            market.calibration,
            method=method,
            mesh=some.mesh,
        ).scores
        scores = np.asarray(scores, np.float64)
        found = features_of(
            some.arrays,
            codes.encoder,
            codes.codes,
            codes.spaces,
            codes.table,
            stacked,
            mesh=some.mesh,
        )
        found = np.asarray(found, np.float64)
        for row in range(len(part)):
            keep = some.rows[shown[start + row]]
            exact.append(scores[row, keep])
            features.append(found[row, keep])
    return features, exact


def fit_weights(features: list[np.ndarray], exact: list[np.ndarray]) -> np.ndarray:
    """Return weights, (FEATURES,), of the regression of exact scores on features.

    The best learnwares of a user count most, and its own offset does not: it does not change the
    order.

    Args:
        features: (n, FEATURES) of every user, float64.
        exact: (n,) scores of every user.
    """
    moments = np.zeros((FEATURES, FEATURES + 1))
    for x, y in zip(features, exact, strict=True):
        weight = np.empty(len(y))
        weight[np.argsort(-y, kind="stable")] = 1.0 / (TOP + np.arange(len(y)))
        weight /= weight.sum()
        x, y = x - weight @ x, y - weight @ y
        moments += (x * weight[:, None]).T @ np.column_stack([x, y])
    scale = np.sqrt(np.maximum(np.diagonal(moments), 1e-12))
    matrix = moments[:, :FEATURES] / scale[:, None] / scale + 1e-6 * np.eye(FEATURES)
    return np.asarray(np.linalg.solve(matrix, moments[:, FEATURES] / scale) / scale)


def drawn_depths(
    rng: np.random.Generator, guess: np.ndarray, exact: np.ndarray, share: float
) -> np.ndarray:
    """Return how deep the best `TOP` lie in markets like the one that a sample is of, (DRAWS,).

    The best `TOP` of all are fewer in a sample, and depths of the best one or two say little. But
    how far scores are from guesses there says enough: a market is drawn with 1 / share learnwares
    for each of the sample, with its guess and, as scores, the guess and what the exact score is
    more in one of its neighbours by guess. Only the best are drawn: pairs of a guess and a
    difference come as a Poisson process, the best first. Few neighbours keep what is particular
    about the best, many give some of the others a chance; the deeper of the two counts.

    Args:
        rng: numpy's random generator.
        guess: (n,) values of the filter, n above `TOP`.
        exact: (n,) scores.
        share: of the market that was shown, below 1.
    """
    order = np.argsort(-guess, kind="stable")
    guess, more = guess[order], (exact - guess)[order]
    arrivals = np.cumsum(rng.exponential(size=(DRAWS, TOP)), axis=1)
    deepest = np.zeros(DRAWS)
    for width in NEIGHBOURS:
        width = min(width, len(guess))
        first = np.clip(np.arange(len(guess)) - width // 2, 0, len(guess) - width)
        scores = (guess[:, None] + more[first[:, None] + np.arange(width)]).ravel()
        rate = 1.0 / (share * width)  # learnwares of the market for a pair
        count = min(len(scores), math.ceil(arrivals.max() / rate) + 1)
        best = np.argpartition(-scores, count - 1)[:count]
        best = best[np.argsort(-scores[best], kind="stable")]
        at = np.minimum((arrivals / rate).astype(int), count - 1)
        lowest = (best[at] // width).max(axis=1)
        deepest = np.maximum(deepest, 1 + lowest / share)
    return deepest


def _depth(guess: np.ndarray, exact: np.ndarray, rank: int) -> int:
    """Return how many of the first in the guessed order hold the exact best `rank`."""
    best = np.argsort(-exact, kind="stable")[:rank]
    return 1 + int((guess > guess[best].min()).sum())


def _sample_of(market: Market) -> Market:
    """Return the market, or one of an even sample of its learnwares, spread likewise."""
    slots = market_storage.spaced(market.slots, CALIBRATED)
    if len(slots) == market.length:
        return market
    sample = market_storage.copy(market._storage, slots, mesh=market.mesh)
    some = Market(sample, len(slots), frozenset(), market.kernel, market.feature_space)
    some._calibration = market.calibration
    return some


def _shown(market: Market, acting: np.ndarray, by_name: bool) -> list[np.ndarray]:
    """Return which learnwares each pseudo-user is shown, as places in `market.slots`."""
    facts = market._storage.facts
    least = max(LEAST_SHOWN, STRANGERS * len(market))
    others = ~np.isin(market.slots, acting)
    if not others.any():
        others[:] = True
    if by_name:
        return [np.flatnonzero(others)] * len(acting)
    spaces = list(dict.fromkeys(facts[slot].class_names for slot in market.slots))
    numbers = {names: i for i, names in enumerate(spaces)}
    space = np.array([numbers[facts[slot].class_names] for slot in market.slots])
    shown = []
    for slot in acting:
        own = set(facts[slot].class_names)
        apart = np.array([own.isdisjoint(names) for names in spaces])
        strangers = others & apart[space]
        # Where nearly everybody shares a class, all others stand for the strangers.
        shown.append(np.flatnonzero(strangers if strangers.sum() >= least else others))
    return shown


def pseudo_users(market: Market, slots: np.ndarray) -> list[UserSpecification]:
    """Return users whose examples are learnwares' reduced sets, labelled by their own proxies."""
    rows = market_storage.take(market._storage, slots, together=True)
    points = decode_points(rows["points"], rows["scales"]) + np.asarray(market.arrays.origin)
    users = []
    for i, slot in enumerate(slots):
        facts = market._storage.facts[slot]
        size, classes = facts.size, len(facts.class_names)
        proxy = Proxy(
            rows["class_vectors"][i, :classes].astype(np.float32).T, rows["class_bias"][i, :classes]
        )
        own = points[i, :size]
        users.append(
            UserSpecification(
                ReducedSet(own, rows["weights"][i, :size]),
                proxy,
                market.kernel,
                (own @ proxy.weights + proxy.bias).argmax(axis=1).astype(np.int32),
                facts.class_names,
                market.feature_space,
                num_examples=size,
            )
        )
    return users
