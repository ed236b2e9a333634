"""The scores that the studies compare: methods of jaxspec, rivals, brute force.

Scores are (users, models), larger is better; minus infinity marks a learnware that is not in the
market of that user. `kept_learnwares` says which are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from scipy.optimize import linear_sum_assignment

import jaxspec as js
from benchmarks.studies.rivals import h_score, leep, logme, nce
from jaxspec.applications import heads
from jaxspec.kernels import lift

__all__ = [
    "REGIMES",
    "brute_force",
    "kept_learnwares",
    "own_scores",
    "probe_outputs",
    "rival_scores",
    "softmax",
]

REGIMES = ("seen", "unseen")


def own_scores(
    market: js.Market,
    bare: js.Market,
    users: Sequence[js.UserSpecification],
    bare_users: Sequence[js.UserSpecification],
    reuse: str,
    keep: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return the scores of the methods of jaxspec, with and without probe proxies.

    A score may depend on who else is in the market, so every user asks the market that has only the
    learnwares it keeps.

    Args:
        market: with probe proxies.
        bare: the same without.
        users: specifications in the space of `market`.
        bare_users: the same users in the space of `bare`.
        reuse: see `js.match`.
        keep: (users, models) bool.
    """
    names = ("rkme", "class vectors alone", "classwise", "jaxspec without probe", "jaxspec")
    scores = {"random": np.zeros(keep.shape)}
    scores |= {name: np.full(keep.shape, -np.inf) for name in names}
    patterns, group = np.unique(keep, axis=0, return_inverse=True)
    for i, pattern in enumerate(patterns):
        asking = np.flatnonzero(group.ravel() == i)
        absent = [str(name) for name in np.array(market.ids)[~pattern]]
        less, less_bare = market.remove(absent), bare.remove(absent)
        asked = [users[u] for u in asking]
        classwise = js.match(less, asked, method="classwise")
        found = (
            [one.scores for one in js.match(less, asked, method="rkme")],
            [one.class_similarity.mean(axis=-1) for one in classwise],
            [one.scores for one in classwise],
            [
                one.scores
                for one in js.match(less_bare, [bare_users[u] for u in asking], reuse=reuse)
            ],
            [one.scores for one in js.match(less, asked, reuse=reuse)],
        )
        for name, values in zip(names, found, strict=True):
            scores[name][np.ix_(asking, pattern)] = np.stack(values)
    return scores


def probe_outputs(
    space: js.Space,
    specifications: Sequence[js.Specification],
    users: Sequence[js.UserSpecification],
) -> np.ndarray:
    """Return the class probabilities of the probe proxies on the users' examples.

    Returns:
        (users, models, n, C), where all models have C classes and all users n examples.
    """
    points = np.stack([np.asarray(user.reduced_set.points) for user in users])
    flat = points.reshape(-1, points.shape[-1])
    lifted = np.asarray(lift(space.kernel, space.landmarks, space.whitening, flat))
    probes = [one.probe_proxy for one in specifications]
    weights, bias = (np.stack([getattr(p, name) for p in probes]) for name in ("weights", "bias"))
    logits = lifted @ weights + bias[:, None]
    return softmax(logits.reshape(len(probes), *points.shape[:2], -1).swapaxes(0, 1))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities over the last axis."""
    return np.asarray(jax.nn.softmax(np.asarray(logits, np.float32), axis=-1))


def rival_scores(outputs: np.ndarray, tasks: Any, source: str) -> dict[str, np.ndarray]:
    """Return the scores of the rivals from class probabilities (users, models, n, C).

    Args:
        outputs: of the probe proxies or of the real models.
        tasks: of the users.
        source: what to call the outputs in the names of the scores.
    """
    logits = np.log(np.maximum(outputs, 1e-4))
    logits -= logits.mean(axis=-1, keepdims=True)
    rivals = {"LEEP": (leep, outputs), "NCE": (nce, outputs)}
    rivals |= {"H-score": (h_score, logits), "LogME": (logme, logits)}
    return {
        f"{name} ({source})": np.array(
            [
                [rule(one, task.labels, len(task.space.names)) for one in row]
                for row, task in zip(values, tasks, strict=True)
            ]
        )
        for name, (rule, values) in rivals.items()
    }


def brute_force(outputs: np.ndarray, tasks: Any, developers: Any) -> np.ndarray:
    """Return the accuracy of every real model on the user's labelled examples, (users, models).

    A model that has no class name in common with the user is judged under the best assignment of
    its classes to those of the user.
    """

    def one(probabilities: np.ndarray, developer: Any, task: Any) -> float:
        names, own = task.space.names, developer.space.names
        if set(names) & set(own):
            right = heads.direct_accuracy(probabilities, own, task.labels, names)
            return float(right.mean())
        table = np.zeros((len(own), len(names)))
        np.add.at(table, (probabilities.argmax(axis=1), task.labels), 1.0)
        rows, columns = linear_sum_assignment(-table)
        return float(table[rows, columns].sum() / len(task.labels))

    return np.array(
        [
            [one(p, developer, task) for p, developer in zip(row, developers, strict=True)]
            for row, task in zip(outputs, tasks, strict=True)
        ]
    )


def kept_learnwares(tasks: Any, developers: Any, regime: str, hetero: bool) -> np.ndarray:
    """Return (users, models) bool, which learnwares are in the market for which user."""
    if regime == "seen":
        return np.ones((len(tasks), len(developers)), bool)
    return np.array(
        [
            [
                developer.context != task.context
                or (not hetero and developer.space.names != task.space.names)
                for developer in developers
            ]
            for task in tasks
        ]
    )
