"""The demo: a market of 22 really trained models, 22 users, and how often the best comes first.

`run` does the work and returns a `DemoResult` of arrays and names; `jaxspec.applications.command` prints it and
`jaxspec.applications.report` draws it. Data are the embedded pictures of `jaxspec.applications.demo_data`; nothing is
fetched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from jaxspec.applications.demo_data import FashionContexts, load_fashion_contexts
from jaxspec.applications.scenario import (
    MARKET_DIMENSION,
    MarketDraw,
    direct_truth,
    draw_market,
    predict,
    train_heads,
)
from jaxspec.evaluation import metrics as evaluation
from jaxspec.kernels import Gaussian, median_bandwidth
from jaxspec.market.market import Market
from jaxspec.matching.match import Match, match
from jaxspec.specify.specification import (
    Specification,
    UserSpecification,
    specify_many,
    specify_user,
)

METHODS = ("rkme", "classwise", "likelihood")

__all__ = ["FEATURE_SPACE", "DemoResult", "make_users", "run", "specify_developers"]

FEATURE_SPACE = "efficientnet-lite0/96px/fashion-pca64"
Advance = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """What the demo found; users and learnwares have one order, U = M = 22.

    Attributes:
        data: the embedded pictures.
        draw: who has which of them.
        market: all 22 specifications.
        users: 22 user specifications.
        performance: (U, M) measured test accuracy of every model for every user.
        tables: {regime: {method: EvaluationSummary}}.
        unseen: {method: (U, M)} scores without the user's own learnware (-inf there).
        matches: one default `Match` a user, its own learnware not in the market.
    """

    data: FashionContexts
    draw: MarketDraw
    market: Market
    users: tuple[UserSpecification, ...]
    performance: np.ndarray
    tables: dict[str, dict[str, evaluation.EvaluationSummary]]
    unseen: dict[str, np.ndarray]
    matches: tuple[Match, ...]


@contextmanager
def _silent(_: str) -> Iterator[Advance]:
    yield lambda done, total: None


def specify_developers(
    draw: MarketDraw, parameters: Any, features: np.ndarray, kernel: Any, seed: int
) -> dict[str, Specification]:
    """Return every developer's specification, by name.

    Args:
        draw: the developers.
        parameters: their trained heads.
        features: (N, d) of all pictures; the market's features are the first columns.
        kernel: the market's kernel.
        seed: of the reduced sets' starts.
    """
    developers = draw.developers
    specs = specify_many(
        jax.random.key(seed),
        [features[one.rows, :MARKET_DIMENSION] for one in developers],
        [one.labels for one in developers],
        class_names=[one.space.names for one in developers],
        teachers=[predict(parameters, i, features[one.rows]) for i, one in enumerate(developers)],
        probe=(
            features[draw.probe_rows, :MARKET_DIMENSION],
            [predict(parameters, i, features[draw.probe_rows]) for i in range(len(developers))],
        ),
        kernel=kernel,
        feature_space=FEATURE_SPACE,
    )
    return {one.name: spec for one, spec in zip(developers, specs, strict=True)}


def make_users(users: Any, features: np.ndarray, kernel: Any) -> list[UserSpecification]:
    """Return the specifications of users (`scenario.User`), from their labelled examples."""
    return [
        specify_user(
            features[user.rows, :MARKET_DIMENSION],
            user.labels,
            class_names=user.space.names,
            kernel=kernel,
            feature_space=FEATURE_SPACE,
        )
        for user in users
    ]


def run(seed: int = 2023, *, stage: Callable[[str], Any] = _silent) -> DemoResult:
    """Make the market, ask it for every user, and compare with the truth.

    Args:
        seed: of the split, the label spaces, the training and the reduced sets.
        stage: called with a description at every stage; a context manager that yields a function
            of (steps done, steps).
    """
    with stage("Reading 11 contexts of pictures") as advance:
        data = load_fashion_contexts()
        rng = np.random.default_rng(seed)
        draw = draw_market(data.labels, data.contexts, data.class_names, data.context_names, rng)
        advance(1, 1)
    with stage("Training 22 models (flax)") as advance:
        parameters = train_heads(data.features, draw.developers, seed=seed, progress=advance)
    with stage("Specifying 22 models") as advance:
        kernel = Gaussian(bandwidth=median_bandwidth(data.features[:, :MARKET_DIMENSION]))
        specs = specify_developers(draw, parameters, data.features, kernel, seed)
        market = Market.from_specifications(specs)
        advance(1, 1)
    with stage("Measuring the truth: 22 models on 22 users' test pictures") as advance:
        tests, brute = direct_truth(parameters, draw, data.features, progress=advance)
        performance = np.stack([right.mean(axis=1) for right in tests])
    with stage("Asking the market for 22 users") as advance:
        users = make_users(draw.users, data.features, kernel)
        scores = {name: match(market, users, method=name).scores for name in METHODS}
        matches = []
        alone: dict[str, list[np.ndarray]] = {name: [] for name in METHODS}
        for i, (user, learnware) in enumerate(zip(users, market.ids, strict=True)):
            others = market.remove(learnware)
            for name in METHODS:
                found = match(others, user, method=name)
                alone[name].append(np.insert(found.scores, i, -np.inf))
            matches.append(match(others, user))
            advance(i + 1, len(users))
    unseen = {name: np.stack(rows) for name, rows in alone.items()}
    tables = _tables(performance, tests, brute, scores, unseen, seed)
    return DemoResult(data, draw, market, tuple(users), performance, tables, unseen, tuple(matches))


def _tables(
    performance: np.ndarray,
    tests: list[np.ndarray],
    brute: np.ndarray,
    seen: dict[str, np.ndarray],
    unseen: dict[str, np.ndarray],
    seed: int,
) -> dict[str, dict[str, evaluation.EvaluationSummary]]:
    """Return {regime: {method: summary}}; in `unseen` every user's own learnware is left out."""
    count = len(performance)
    shared = {"random": np.zeros_like(performance)}
    keep = {"seen": np.ones((count, count), bool), "unseen": ~np.eye(count, dtype=bool)}
    tables = {}
    for regime, scores in (("seen", seen), ("unseen", unseen)):
        ranked = {**shared, **scores, "brute force": brute}
        chosen = keep[regime]
        truth = performance[chosen].reshape(count, -1)
        table = {
            name: evaluation.summarize(value[chosen].reshape(count, -1), truth)
            for name, value in ranked.items()
        }
        halves = [right[own] for right, own in zip(tests, chosen, strict=True)]
        table["ceiling"] = evaluation.split_half_ceiling(halves, rng=np.random.default_rng(seed))
        tables[regime] = table
    return tables
