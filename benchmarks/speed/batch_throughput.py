"""How many users per second does a batch job answer, beside the pass alone?

    python -m benchmarks.speed.batch_throughput --output benchmarks/results/batch-throughput.json

For markets of 10^3, 10^4 and 10^5 made learnwares (`made_market`, m = 50, d = 64, float32) these
take turns on the same users, in batches of the same size and with the default score:

    pass       `best_scores` on batches that are padded already: the bound
    memory     `match_many` on specifications in memory, answers in memory
    stacked    `match_many` on one file of `save_users`, answers written to an .npz file
    match      `match` on lists of users, batch by batch, which makes a `Match` for everyone

A share is the pass's seconds over the job's, of the fastest repeats, and the same of the
processor's seconds. A share above one means less work than the pass: a job does not compare the
classes of the best learnwares. With `--streamed` the market is also asked from disk.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import jaxspec as js
from benchmarks.markets import made_market
from benchmarks.records import merge_results, print_table, progress
from benchmarks.speed.timing import time_in_turns
from jaxspec.matching import prepare_query
from jaxspec.scoring import best_scores

BAR, BEST, DIMENSION = 0.8, 10, 64
DIFFERENT = 64  # users that are made; they come again under other ids


def pass_alone(market: js.Market, users: list[Any], size: int) -> Callable[[int], Any]:
    """Return a call that scores all users in batches that are prepared before."""
    batches = []
    for first in range(0, len(users), size):
        query = prepare_query(market, users[first : first + size], k=BEST)
        batches += list(query.groups())
    arrays = market.arrays

    def call(_: int) -> Any:
        return [best_scores(arrays, one.users, score=one.score, k=16)[1].scores for one in batches]

    return call


def measure(learnwares: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return users per second of every way for one size of market."""
    progress(f"{learnwares} learnwares")
    world = made_market.make_world(DIMENSION)
    market = made_market.make_market(world, learnwares)
    made = made_market.make_users(world, min(DIFFERENT, options.users))
    count, size = options.users, options.batch_size
    users = [made[i % len(made)] for i in range(count)]
    named = {f"user {i}": user for i, user in enumerate(users)}
    path = folder / "users.safetensors"
    js.save_users(path, named)

    def in_lists(_: int) -> Any:
        found = []
        for first in range(0, count, size):
            found += [one.scores for one in js.match(market, users[first : first + size], k=BEST)]
        return found

    def stacked(_: int) -> Any:
        output = folder / "answers.npz"
        return js.match_many(market, path, k=BEST, batch_size=size, output=output, resume=False)

    calls: dict[str, Callable[[int], Any]] = {
        "pass": pass_alone(market, users, size),
        "memory": lambda _: js.match_many(market, named, k=BEST, batch_size=size),
        "stacked": stacked,
        "match": in_lists,
    }
    if options.streamed:
        market.save(folder / "market")
        on_disk = js.MarketFolder(folder / "market")
        calls["streamed"] = lambda _: js.match_many(on_disk, path, k=BEST)
    rows = time_in_turns(calls, options.repeats)
    answers = rows["memory"].results[-1]
    assert answers.failed == 0
    truth = np.concatenate(rows["pass"].results[-1])[:, :BEST]
    difference = float(np.abs(np.sort(answers.scores[:, 0]) - np.sort(truth[:count, 0])).max())
    record: dict[str, Any] = {
        "users": count,
        "batch_size": size,
        "largest difference of a best score": difference,
    }
    least = rows["pass"]
    for name, row in rows.items():
        record[name] = {
            **row.record(),
            "users_per_second": count / row.minimum,
            "share": least.minimum / row.minimum,
            "share_of_medians": least.median / row.median,
            "share_of_processor_seconds": min(least.processor) / min(row.processor),
        }
    return record


def main() -> None:
    """Measure every size that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--learnwares", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--users", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--streamed", action="store_true")
    parser.add_argument("--output", type=Path, help="JSON; sizes not asked for stay as they were")
    options = parser.parse_args()
    for learnwares in options.learnwares:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(learnwares, options, Path(folder))
        rows = [
            [name, one["users_per_second"], one["share"], one["share_of_medians"],
             one["share_of_processor_seconds"]]
            for name, one in found.items()
            if isinstance(one, dict)
        ]  # fmt: skip
        headers = ["way", "users per second", "share of the pass", "of medians", "of processor"]
        print_table(f"{learnwares} learnwares, {options.users} users", headers, rows)
        print(f"bar: a share of {BAR} for memory and stacked")
        if options.output:
            merge_results(options.output, {str(learnwares): found})


if __name__ == "__main__":
    main()
