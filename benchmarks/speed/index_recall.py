"""What `Index.search` finds of the exact best ten, where filtering is hard: `benchmarks.speed.index`.

Markets of `made_shapes` with and without a probe, asked by users of known class names, for direct
use, and by users of other class names, for fine-tuning. Everything is the library's: `search` says
how many candidates it wants for a recall, and the exact pass over the whole market is the judge.
The depth is how many of the filter's first would have been enough, in hindsight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

import jaxspec as js
from benchmarks.markets import made_shapes
from benchmarks.speed.yardstick import progress
from jaxspec.index.filter import TOP
from jaxspec.index.search import features_of
from jaxspec.matching.match import stack_users

__all__ = ["judge", "measure"]

TOGETHER = 16  # users that are asked for at once


def measure(count: int, people: int, draw: int, *, recall: float = 0.99) -> dict[str, Any]:
    """Return what `judge` says of all four settings, on one draw of the world."""
    world = made_shapes.make_world(seed=draw)
    found = {}
    for probe in (True, False):
        progress(f"draw {draw}: making {count} learnwares, {'with' if probe else 'without'} probe")
        market = made_shapes.make_market(world, count, probe=probe, seed=100 + draw)
        index = js.Index.build(market)
        for other in (False, True):
            users = made_shapes.make_users(world, people, other=other, seed=200 + draw)
            name = f"{'probe' if probe else 'no probe'}, {'other names' if other else 'direct'}"
            found[name] = judge(index, users, recall=recall)
            progress(f"{name}: {found[name]}")
    return found


def judge(
    index: js.Index, users: Sequence[js.UserSpecification], *, recall: float
) -> dict[str, Any]:
    """Return what an index's answers hold of the exact ones.

    Args:
        index: of a market on one device.
        users: all of one kind: with known class names, or all without.
        recall: that is asked for.
    """
    market = index.market
    depths, shares, firsts, differences, candidates = [], [], [], [], 0
    for some in _parts(users):
        exact = js.match(market, some)
        answers = index.search(some, TOP, recall=recall)
        guesses = _guesses(index, some, exact.method[0])
        for scores, guess, answer in zip(exact.scores, guesses, answers, strict=True):
            best = np.argsort(-scores, kind="stable")[:TOP]
            depths.append(1 + int((guess > guess[best].min()).sum()))
            held = [market.ids[i] in set(answer.ids) for i in best]
            shares.append(np.mean(held))
            firsts.append(answer.ids[0] == market.ids[best[0]])
            place = {learnware: i for i, learnware in enumerate(market.ids)}
            own = scores[[place[learnware] for learnware in answer.ids]]
            differences.append(float(np.abs(answer.scores - own).max()))
            candidates = max(candidates, len(answer.ids))
    return {
        "method": exact.method[0],
        "candidates": candidates,
        "users": len(shares),
        "users with all ten": float(np.mean(np.array(shares) == 1)),
        "share of the ten": float(np.mean(shares)),
        "users with the first": float(np.mean(firsts)),
        "depth, median": int(np.quantile(depths, 0.5, method="higher")),
        "depth, 99 %": int(np.quantile(depths, 0.99, method="higher")),
        "depth, largest": int(max(depths)),
        "scores off by over 1e-4, users": float(np.mean(np.array(differences) > 1e-4)),
        "largest difference of a score": float(max(differences)),
    }


def _parts(users: Sequence[Any]) -> Iterator[list[Any]]:
    return (list(users[i : i + TOGETHER]) for i in range(0, len(users), TOGETHER))


def _guesses(index: js.Index, users: list[Any], method: str) -> np.ndarray:
    """Return what the index's filter makes of all learnwares, (Q, M)."""
    market, codes = index.market, index._codes
    arrays = stack_users(market, users)
    model, _ = index._filter(method, by_name=bool(arrays.by_name[0]))
    found = features_of(
        market.arrays, codes.encoder, codes.codes, codes.spaces, codes.table, arrays
    )
    return np.asarray(jax.numpy.asarray(found) @ model.weights)[:, market.rows]
