"""What does an index find of the exact best ten, how fast, and how does its time grow?

    python -m benchmarks.speed.index --output benchmarks/results/index.json

Cases, each a market that is asked by users of known class names (direct use) and by users of other
class names (fine-tuning), with recall 0.99 asked for; the exact pass over the market judges:

    made      100,000 learnwares whose distributions differ by a shift (`made_market`)
    shapes    5,000 learnwares that differ in shape too, with and without a probe (`made_shapes`),
              where filtering is hard; draw 0 of the world served to choose the constants
    pictures  100,000 specifications of real pictures (`real_market`)
    growth    time of a query against M, with a fitted exponent

`--learnwares` changes the sizes, a million for example. `--keep FOLDER` keeps the market of
pictures, which takes long to make.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import jaxspec as js
from benchmarks.markets import made_market, made_shapes, real_market
from benchmarks.records import merge_results, print_table, progress
from benchmarks.speed import plots
from benchmarks.speed.matching import query, rows_of
from benchmarks.speed.timing import fit_exponent, time_in_turns

BEST, RECALL, TOGETHER = 10, 0.99, 16
Users = list[js.UserSpecification]


def judge(index: js.Index, users: Sequence[js.UserSpecification]) -> dict[str, Any]:
    """Return how much of the exact best ten the answers of an index hold.

    Args:
        index: of a market on one device.
        users: all with known class names, or all with others.
    """
    complete, firsts, shares, differences = [], [], [], []
    method = ""
    for start in range(0, len(users), TOGETHER):
        asked = list(users[start : start + TOGETHER])
        exact = js.match(index.market, asked, k=BEST)
        answers = js.match(index, asked, k=BEST, recall=RECALL)
        for wanted, answer in zip(exact, answers, strict=True):
            method = wanted.method
            scores = dict(zip(wanted.ids, wanted.scores, strict=True))
            held = [one in scores for one in answer.ids]
            complete.append(all(held))
            shares.append(np.mean(held))
            firsts.append(answer.ids[0] == wanted.ids[0])
            pairs = zip(answer.ids, answer.scores, strict=True)
            off = [abs(float(value - scores[one])) for one, value in pairs if one in scores]
            differences.append(max(off, default=0.0))
    return {
        "method": method,
        "users": len(complete),
        "users with all of the best ten": float(np.mean(complete)),
        "share of the best ten": float(np.mean(shares)),
        "users with the first": float(np.mean(firsts)),
        "largest difference of a score": max(differences),
    }


def measure(
    market: js.Market, groups: dict[str, Users], repeats: int
) -> dict[str, dict[str, Any] | float | int]:
    """Build an index of a market, and judge and time it for every group of users."""
    began = time.perf_counter()
    index = js.Index.build(market)
    record: dict[str, Any] = {
        "learnwares": len(market),
        "build_s": time.perf_counter() - began,
        "bytes_per_learnware": index.bytes_per_learnware,
    }
    for name, users in groups.items():
        progress(f"{len(market)} learnwares, {name}")
        calls = {
            "index": by_index(index, users[0]),
            "index, 16 users": by_index(index, users[:16]),
            "exact": query(market, users[0]),
        }
        found = judge(index, users)
        rows = time_in_turns(calls, repeats)
        times = {kind: row.record() for kind, row in rows.items()}
        faster = rows["exact"].minimum / rows["index"].minimum
        record[name] = {**found, **times, "times faster": faster}
    return record


def by_index(index: js.Index, users: Any) -> Callable[[int], Any]:
    """Return a call that asks an index for the best ten."""

    def call(_: int) -> Any:
        found = js.match(index, users, k=BEST, recall=RECALL)
        return [one.scores for one in found] if isinstance(found, list) else found.scores

    return call


def renamed(users: Users) -> Users:
    """Return users with class names that no learnware has."""
    return [
        dataclasses.replace(user, class_names=tuple(f"own {name}" for name in user.class_names))
        for user in users
    ]


# Cases: pairs of a name and a record


def made(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Measure a market whose distributions differ by a shift."""
    world, count = made_market.make_world(), 2000 if options.quick else options.learnwares
    precision = "float32" if count < 500_000 else "int8"
    market = made_market.make_market(world, count, precision=precision, spare=0.0)
    users = made_market.make_users(world, options.users, seed=3)
    groups = {"direct": users, "other names": renamed(users)}
    yield "made", measure(market, groups, options.repeats)


def shapes(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Measure markets whose distributions differ in shape, on draws that chose nothing."""
    count = min(options.learnwares, 1000 if options.quick else 5000)
    for draw in options.draws:
        world = made_shapes.make_world(seed=draw)
        for probe in (True, False):
            progress(f"draw {draw}: making {count} learnwares, probe: {probe}")
            market = made_shapes.make_market(world, count, probe=probe, seed=100 + draw)
            groups = {
                "other names" if other else "direct": made_shapes.make_users(
                    world, options.users, probe=probe, other=other, seed=200 + draw
                )
                for other in (False, True)
            }
            name = f"shapes, draw {draw}, {'with a probe' if probe else 'no probe'}"
            yield name, measure(market, groups, options.repeats)


def pictures(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Measure a market of real specifications."""
    data, count = real_market.Pictures(), 800 if options.quick else options.learnwares
    if options.keep and options.keep.exists():
        market = js.Market.load(options.keep)
    else:
        market = real_market.make_market(
            data, count, progress=lambda done, of: progress(f"{done} of {of} learnwares")
        )
        if options.keep:
            market.save(options.keep)
    groups = {
        "other names" if other else "direct": real_market.make_users(
            data, options.users, learnwares=len(market), other=other
        )
        for other in (False, True)
    }
    yield "pictures", measure(market, groups, options.repeats)


def growth(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Measure the time of a query against the number of learnwares."""
    sizes = (500, 1000, 2000, 4000) if options.quick else (3000, 10000, 30000, 100000)
    world = made_market.make_world()
    user = made_market.make_users(world, 1)[0]
    calls = {
        str(size): by_index(js.Index.build(made_market.make_market(world, size)), user)
        for size in sizes
    }
    rows = time_in_turns(calls, options.repeats)
    seconds = [rows[str(size)].minimum for size in sizes]
    fitted = fit_exponent(sizes, seconds)._asdict()
    yield "growth", {"M": {"jaxspec": {"sizes": sizes, "min_s": seconds, **fitted}}}


CASES = {"made": made, "shapes": shapes, "pictures": pictures, "growth": growth}


def main() -> None:
    """Run the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--learnwares", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--draws", type=int, nargs="+", default=(1, 2), help='of "shapes"')
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="where the market of pictures is, or is put")
    parser.add_argument("--quick", action="store_true", help="small sizes, to check the script")
    parser.add_argument("--output", type=Path, help="JSON; cases not asked for stay as they were")
    options = parser.parse_args()
    if options.quick:
        options.users = min(options.users, 16)
    for case in options.cases:
        for name, found in CASES[case](options):
            print_table(name, ("what", "measured"), rows_of(found))
            if options.output:
                settings = {"recall": RECALL, "quick": options.quick}
                merge_results(options.output, {name: found}, settings=settings)
                if name == "growth":
                    stem = options.output.with_suffix("")
                    plots.plot_growth(stem.with_name(f"{stem.name}-growth.png"), found)


if __name__ == "__main__":
    main()
