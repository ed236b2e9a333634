"""How many candidates an index asks for, by two estimates, and how many users needed.

    python -m benchmarks.speed.index_depth [--keep FOLDER] [--samples 16384 4096] [--users 64] [--quick]

Estimates from a sample of a market: drawn (`index_filter.drawn_depths`), and the depth of the
sample's best three in proportion. Made learnwares, or with --keep the market of real specifications
that `benchmarks.markets.real_market --keep FOLDER` put there; users of known class names and of others. The
exact pass judges.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import jaxspec as js
from benchmarks.markets import made_market, real_market
from benchmarks.markets.device_market import make_on_device
from benchmarks.speed.index_recall import _guesses, _parts
from benchmarks.speed.yardstick import print_table, progress
from jaxspec.index import filter as index_filter
from jaxspec.index.index import SAFETY

RECALL, DIMENSION, BEST_OF_SAMPLE = 0.99, 64, 3


def needed_by(index: js.Index, users: Sequence[Any], method: str) -> np.ndarray:
    """Return how deep each user's exact best ten lie in the filter's order."""
    depths = []
    for some in _parts(users):
        exact = js.match(index.market, some).scores
        for scores, guess in zip(exact, _guesses(index, some, method), strict=True):
            depths.append(index_filter._depth(guess, scores, index_filter.TOP))
    return np.array(depths)


def in_proportion(index: js.Index, method: str, *, by_name: bool) -> np.ndarray:
    """Return the depths that pseudo-users need if those of a sample are taken in proportion."""
    seen = index_filter.seen_by_pseudo_users(index.market, index._codes, method, by_name=by_name)
    weights = index_filter.fit_weights(*seen)
    found = []
    for features, exact in zip(*seen, strict=True):
        share = min(1.0, len(exact) / len(index))
        rank = max(BEST_OF_SAMPLE, math.ceil(index_filter.TOP * share))
        rank = min(index_filter.TOP, rank)
        found.append(index_filter._depth(features @ weights, exact, rank) / share)
    return np.array(found)


def measure(index: js.Index, users: Sequence[Any], sample: int) -> dict[str, Any]:
    """Return both estimates from a sample, and what the users needed."""
    index_filter.CALIBRATED = sample
    method = js.match(index.market, users[0]).method
    by_name = index.market.covers(users[0].class_names)
    index._filters.pop((method, by_name), None)
    _, drawn = index._filter(method, by_name=by_name)
    needed = needed_by(index, users, method)
    asked = index._depth(drawn, index_filter.TOP, RECALL)
    before = SAFETY * _quantile(in_proportion(index, method, by_name=by_name))
    return {
        "users": f"{len(users)}, {'known' if by_name else 'other'} names",
        "sample": sample,
        "asked, drawn": asked,
        "asked, in proportion": int(min(before, len(index))),
        "needed by 99 %": _quantile(needed),
        "largest": int(needed.max()),
        "users with all ten, drawn": float(np.mean(needed <= asked)),
    }


def _quantile(depths: np.ndarray) -> int:
    return int(np.quantile(depths, RECALL, method="higher"))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="market of real specifications")
    parser.add_argument("--learnwares", type=int, default=100_000, help="made ones")
    parser.add_argument("--samples", type=int, nargs="+", default=[16_384, 4_096])
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="small sizes, to check the script")
    options = parser.parse_args()
    count, people, samples = options.learnwares, options.users, options.samples
    if options.quick:
        count, people, samples = 600, 16, [300]
    if options.keep:
        market, pictures = js.Market.load(options.keep), real_market.Pictures()
        spaces = min(real_market.SPACES, -(-len(market) // real_market.BATCH))
        known, other = (
            real_market.users(pictures, people, market.kernel, spaces=spaces, other=renamed)
            for renamed in (False, True)
        )
    else:
        world = made_market.make_world(DIMENSION)
        market = make_on_device(world, count, "float32")
        known = made_market.make_users(world, people, size=50, seed=5)
        other = [
            dataclasses.replace(one, class_names=tuple(f"own {k}" for k in one.class_names))
            for one in known
        ]
    index = js.Index.build(market)
    rows = []
    for users in (known, other):
        for sample in samples:
            rows.append(measure(index, users, sample))
            progress(str(rows[-1]))
    cells = [[f"{x:,}" if isinstance(x, int) else x for x in row.values()] for row in rows]
    print_table(f"{len(market):,} learnwares", list(rows[0]), cells)


if __name__ == "__main__":
    main()
