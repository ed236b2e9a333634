"""Is the pass over a market at the machine's limit, and how far is the index ahead of it?

    python -m benchmarks.speed.matching --output benchmarks/results/yardstick-matching

Cases, each beside its rivals in one run (calls take turns, round by round):

    small      M = 1,000: a query to jaxspec (the ten best; all learnwares with their classes
               compared), the same in plain numpy, and with `--learnware DIR` the package
               `learnware`'s loop over distances and its easy searcher
    exact      M = 100,000, m = m_T = 50, d = 64, 1 and 16 users: the embeddings ("rkme"), and the
               default score, against the bound from this machine's measured rates for that shape
    storage    the same market in bfloat16 and int8: bytes, time, loss in ranking
    index      recall of the exact best ten, candidates, time against the exact pass
    growth     time against M, m, d and Q, and of the index against M, with fitted exponents
    million    10^6 learnwares in int8: bytes held, peak memory, an exact query, an index query

The learnwares are made (`benchmarks.markets.made_market`).
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import jaxspec as js
from benchmarks.markets import made_market
from benchmarks.speed import machine
from benchmarks.speed.yardstick import (
    Side,
    Timed,
    ensure_environment,
    fit_exponent,
    milliseconds,
    print_table,
    progress,
    take_turns,
    write_json,
)

POINTS, DIMENSION = 50, 64


def numpy_query(points: np.ndarray, weights: np.ndarray, user: Any, gamma: float) -> np.ndarray:
    """Return squared MMDs without the user's own term, one numpy call a learnware."""
    x = np.asarray(user.reduced_set.points)
    v = np.asarray(user.reduced_set.weights)
    found = np.empty(len(points), np.float32)
    square = np.square(x).sum(axis=1)
    for i, (u, w) in enumerate(zip(points, weights, strict=True)):
        norms = np.square(u).sum(axis=1)
        cross = np.exp(-gamma * (norms[:, None] + square - 2 * u @ x.T))
        own = np.exp(-gamma * (norms[:, None] + norms - 2 * u @ u.T))
        found[i] = w @ own @ w - 2 * w @ cross @ v
    return found


def small(options: argparse.Namespace, world: Any) -> dict[str, Any]:
    """One query, and sixteen, at M = 1,000."""
    count = 200 if options.quick else 1000
    market = made_market.make_market(world, count)
    users = made_market.make_users(world, 16)
    points = np.concatenate([s.reduced_set.points for _, s in made_market.stacked(world, count)])
    weights = np.concatenate([s.reduced_set.weights for _, s in made_market.stacked(world, count)])
    gamma = 0.5 / float(world.kernel.bandwidth) ** 2
    calls: dict[str, Callable[[int], Any]] = {
        "jaxspec, ten best for one user": lambda _: js.top_k(market, users[0], 10, method="rkme"),
        "jaxspec, ten best, default score": lambda _: js.top_k(market, users[0], 10),
        "jaxspec, ten best for 16 users": lambda _: js.top_k(market, users, 10, method="rkme"),
        "jaxspec, all with classes, one user": lambda _: js.match(market, users[0], method="rkme"),
        "jaxspec, all with classes, 16 users": lambda _: js.match(market, users, method="rkme"),
        "numpy loop": lambda _: numpy_query(points, weights, users[0], gamma),
    }

    def run() -> dict[str, Any]:
        rows = take_turns(calls, repeats=options.repeats)
        bound = machine.bound_seconds(count, 1, DIMENSION, points=POINTS, user_points=POINTS)
        record = {name: row.record() for name, row in rows.items()}
        return {"learnwares": count, "bound_s": bound.seconds, "calls": record}

    if not options.learnware:
        return run()
    with Side(ensure_environment(options.learnware), options.learnware_threads) as side:
        arrays = {
            "points": points,
            "weights": weights,
            "user_points": np.asarray(users[0].reduced_set.points),
            "user_weights": np.asarray(users[0].reduced_set.weights),
        }
        put = {name: side.put(value) for name, value in arrays.items()}

        def ask(path: str) -> Callable[[int], Timed]:
            return lambda _: side.search(put, gamma=gamma, path=path)

        calls["learnware, distances"] = ask("loop")
        calls["learnware, easy searcher, single stage"] = ask("single")
        return run()


def exact(options: argparse.Namespace, world: Any, market: js.Market) -> dict[str, Any]:
    """The pass over a large market against the machine's bound."""
    users = made_market.make_users(world, 16)
    record: dict[str, Any] = {"learnwares": len(market), "bytes": market.nbytes}
    for people in (1, 16):
        asked = users[:people]
        before = machine.bound_seconds(
            len(market), people, DIMENSION, points=POINTS, user_points=POINTS
        )
        rows = take_turns(
            {
                "rkme": lambda _, asked=asked: js.top_k(market, asked, 10, method="rkme"),
                "default": lambda _, asked=asked: js.top_k(market, asked, 10),
            },
            repeats=options.repeats,
        )
        after = machine.bound_seconds(
            len(market), people, DIMENSION, points=POINTS, user_points=POINTS
        )
        bound = min(before.seconds, after.seconds)  # this machine's rates move: the better ones
        record[f"{people} users"] = {
            "bound_s": bound,
            **{name: row.record() for name, row in rows.items()},
            "ratio of the minimum to the bound": {
                name: row.minimum / bound for name, row in rows.items()
            },
        }
    return record


def storage(options: argparse.Namespace, world: Any, market: js.Market) -> dict[str, Any]:
    """Bytes, times and ranking of the low precisions."""
    users = made_market.make_users(world, 16)
    markets = {"float32": market}
    markets |= {name: market.stored_as(name) for name in ("bfloat16", "int8")}
    rows = take_turns(
        {
            name: lambda _, one=one: js.top_k(one, users[0], 10, method="rkme")
            for name, one in markets.items()
        },
        repeats=options.repeats,
    )
    truth = js.match(market, users)
    order = np.argsort(-truth.scores, axis=1)[:, :10]
    record: dict[str, Any] = {}
    for name, one in markets.items():
        scores = js.match(one, users).scores
        mine = np.argsort(-scores, axis=1)[:, :10]
        same = [len(set(a) & set(b)) / 10 for a, b in zip(order, mine, strict=True)]
        record[name] = {
            "bytes": one.nbytes,
            **rows[name].record(),
            "largest change of a score": float(np.abs(scores - truth.scores).max()),
            "share of the best ten kept": float(np.mean(same)),
            "first kept": float((order[:, 0] == mine[:, 0]).mean()),
        }
    return record


def index(options: argparse.Namespace, world: Any, market: js.Market) -> dict[str, Any]:
    """Recall and time of the index."""
    start = time.perf_counter()
    found = js.Index.build(market)
    seconds = time.perf_counter() - start
    users = made_market.make_users(world, 32 if options.quick else 200, seed=3)
    best = [
        one for i in range(0, len(users), 16) for one in js.top_k(market, users[i : i + 16], 10)
    ]
    answers = [found.search(user, 10) for user in users]
    pairs = list(zip(best, answers, strict=True))
    rows = take_turns(
        {
            "index": lambda _: found.search(users[0], 10),
            "index, 16 users": lambda _: found.search(users[:16], 10),
            "exact": lambda _: js.top_k(market, users[0], 10),
        },
        repeats=options.repeats,
    )
    return {
        "learnwares": len(market),
        "users": len(users),
        "build_s": seconds,
        "bytes_per_learnware": found.bytes_per_learnware,
        "candidates": found.candidates(10),
        "users with all of the best ten": float(
            np.mean([set(b.ids) <= set(a.ids) for b, a in pairs])
        ),
        "users with the best": float(np.mean([b.ids[0] == a.ids[0] for b, a in pairs])),
        **{name: row.record() for name, row in rows.items()},
        "times faster": rows["exact"].minimum / rows["index"].minimum,
    }


def growth(options: argparse.Namespace, world: Any) -> dict[str, Any]:
    """How time grows with each size."""
    large = (500, 1000) if options.quick else (3000, 10000, 30000, 100000)
    base = large[-2]
    few = 2 if options.quick else 4
    record: dict[str, Any] = {}

    def add(name: str, sizes: tuple[int, ...], calls: list[Callable[[], Any]]) -> None:
        rows = take_turns(
            {
                str(size): lambda _, call=call: call()
                for size, call in zip(sizes, calls, strict=True)
            },
            repeats=options.repeats,
        )
        seconds = [rows[str(size)].minimum for size in sizes]
        fitted = fit_exponent(sizes, seconds)
        record[name] = {"sizes": sizes, "seconds": seconds, "exponent": fitted.exponent}
        progress(f"growth with {name}: exponent {fitted.exponent:.2f}")

    user = made_market.make_users(world, 1)[0]
    markets = [made_market.make_market(world, count) for count in large]
    add(
        "M",
        large,
        [lambda one=one: js.top_k(one, user, 10, method="rkme") for one in markets],
    )
    built = [js.Index.build(one) for one in markets]
    add("M, index", large, [lambda one=one: one.search(user, 10) for one in built])
    record["M, index"]["candidates"] = [one.candidates(10) for one in built]
    del markets, built
    sizes = (12, 25, 50, 100)[:few]
    markets = [made_market.make_market(world, base, size=size) for size in sizes]
    add("m", sizes, [lambda one=one: js.top_k(one, user, 10, method="rkme") for one in markets])
    del markets
    market = made_market.make_market(world, base)
    people = made_market.make_users(world, 64)
    counts = (4, 8, 16, 32)[:few]
    add(
        "Q",
        counts,
        [lambda q=q, one=market: js.top_k(one, people[:q], 10, method="rkme") for q in counts],
    )
    del market
    dimensions, calls = (32, 64, 128, 256)[:few], []
    for d in dimensions:
        other = made_market.make_world(dimension=d)
        one = made_market.make_market(other, base // 2)
        who = made_market.make_users(other, 1)[0]
        calls.append(lambda one=one, who=who: js.top_k(one, who, 10, method="rkme"))
    add("d", dimensions, calls)
    return record


def million(options: argparse.Namespace, world: Any) -> dict[str, Any]:
    """A million learnwares on this machine."""
    count = 2_000 if options.quick else 1_000_000
    start = time.perf_counter()

    def told(done: int, total: int) -> None:
        if done % 65536 < 1024 or done == total:
            progress(f"making {done} of {total} learnwares")

    market = made_market.make_market(world, count, storage="int8", spare=0.0, progress=told)
    made = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    progress(f"{market.nbytes / 2**30:.2f} GiB held, peak of the process {peak / 2**30:.2f} GiB")
    users = made_market.make_users(world, 8)
    exact_row = take_turns(
        {
            "exact, embeddings": lambda _: js.top_k(market, users[0], 10, method="rkme"),
            "exact, default": lambda _: js.top_k(market, users[0], 10),
        },
        repeats=2,
    )
    start = time.perf_counter()
    found = js.Index.build(market, progress=told)
    built = time.perf_counter() - start
    index_row = take_turns({"index": lambda _: found.search(users[0], 10)}, repeats=options.repeats)
    best = js.top_k(market, users, 10)
    answers = found.search(users, 10)
    pairs = list(zip(best, answers, strict=True))
    return {
        "learnwares": count,
        "storage": market.storage,
        "bytes": market.nbytes,
        "peak_bytes_of_the_process_when_made": peak,
        "make_s": made,
        "index_build_s": built,
        "candidates": found.candidates(10),
        "users with all of the best ten": float(
            np.mean([set(b.ids) <= set(a.ids) for b, a in pairs])
        ),
        "users": len(users),
        **{name: row.record() for name, row in (exact_row | index_row).items()},
    }


def show(report: dict[str, Any]) -> None:
    """Print what was measured."""
    for case, record in report.items():
        rows: list[tuple[str, Any]] = []

        def walk(prefix: str, node: Any, rows: list[tuple[str, Any]] = rows) -> None:
            if isinstance(node, dict) and "min_s" in node:
                shown = f"{milliseconds(node['min_s'])} / {milliseconds(node['median_s'])}"
                rows.append((f"{prefix}: ms, minimum / median of {node['repeats']}", shown))
            elif isinstance(node, dict):
                for key, value in node.items():
                    walk(f"{prefix} {key}".strip(), value)
            else:
                rows.append((prefix, f"{node:.4g}" if isinstance(node, float) else str(node)))

        walk("", record)
        print_table(case, ("what", "measured"), rows)


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw time against the number of learnwares."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    for name, label in (("M", "exact pass"), ("M, index", "index")):
        one = report["growth"][name]
        axes.loglog(one["sizes"], np.array(one["seconds"]) * 1e3, "o-",
                    label=f"{label}: exponent {one['exponent']:.2f}")  # fmt: skip
    axes.set_xlabel("learnwares")
    axes.set_ylabel("ms a query")
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    cases = ("small", "exact", "storage", "index", "growth", "million")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=cases, default=list(cases))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small sizes, to check the script")
    parser.add_argument("--learnware", type=Path, help="folder of an environment, made if needed")
    parser.add_argument("--learnware-threads", type=int)
    parser.add_argument("--output", type=Path, help="JSON and picture, without suffix")
    options = parser.parse_args()
    world = made_market.make_world(DIMENSION)
    path = options.output and options.output.with_suffix(".json")
    report: dict[str, Any] = {}
    if path and path.exists():  # cases that are not asked for stay as they were
        report = json.loads(path.read_text())["results"]
    market = None
    for case in options.cases:
        progress(f"case {case}")
        if case in ("exact", "storage", "index"):
            if market is None:
                market = made_market.make_market(world, 2000 if options.quick else 100_000)
            report[case] = globals()[case](options, world, market)
        else:
            market = None
            report[case] = globals()[case](options, world)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"machine": machine.describe(), "results": report})
    show({case: report[case] for case in options.cases})
    if path and "growth" in report:
        draw(report, path.with_suffix(".png"))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
