"""Is the exact pass over a market at the limit of the machine, and how does its time grow?

    python -m benchmarks.speed.matching --output benchmarks/results/matching.json

Cases; the learnwares are made (`benchmarks.markets.made_market`), m = m_T = 50:

    small      M = 1,000, d = 64: a query to jaxspec, the same in plain numpy and, with `--learnware
               DIR`, the loop over distances and the "easy" searcher of the package `learnware`
    exact      large markets, 1 and 16 users: the embeddings ("rkme") and the default score, beside
               the bound of this machine. On processors M = 100,000, d = 64 in float32; on
               accelerators the markets of `ON_ACCELERATORS`, up to M = 10^6, d = 512, drawn there
    precision  the market of 100,000 in bfloat16 and int8: bytes, time, change of the ranking
    growth     time against M, m, d and Q, with fitted exponents
    million    10^6 learnwares in int8 on this machine: bytes held, peak memory, time of a query

Calls take turns within a case. A ratio is that of the fastest repeat to the bound, 1 being the
limit. A market that does not fit the memory is recorded as failed, and the rest goes on.
"""

from __future__ import annotations

import argparse
import gc
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxspec as js
from benchmarks.markets import made_market
from benchmarks.markets.device_market import make_on_device
from benchmarks.records import merge_results, milliseconds, print_table, progress
from benchmarks.speed import machine, plots
from benchmarks.speed.learnware_package import LearnwareProcess, ensure_environment
from benchmarks.speed.timing import Timed, fit_exponent, time_in_turns

POINTS, DIMENSION, BEST = 50, 64, 10
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


class Case(NamedTuple):
    """A market to score."""

    learnwares: int
    dimension: int
    precision: str

    @property
    def name(self) -> str:
        """The sizes as text."""
        return f"M={self.learnwares} d={self.dimension} {self.precision}"


ON_PROCESSORS = (Case(100_000, DIMENSION, "float32"),)
ON_ACCELERATORS = (
    Case(1_000_000, 512, "int8"),
    Case(1_000_000, 512, "bfloat16"),
    Case(100_000, 64, "float32"),
    Case(1_000_000, 64, "int8"),
    Case(100_000, 512, "bfloat16"),
)


def on_processor() -> bool:
    """Return whether jax computes on processors here."""
    return jax.default_backend() == "cpu"


def query(
    market: js.Market, users: Any, method: str | None = None, k: int | None = BEST
) -> Callable[[int], Any]:
    """Return a call that asks a market for the best learnwares, and waits for the scores."""
    many = list(users) if isinstance(users, Sequence) else [users]
    asked = many if len(many) > 1 else many[0]

    def call(_: int) -> Any:
        found = js.match(market, asked, k=k, method=method)
        return [one.scores for one in found] if isinstance(found, list) else found.scores

    return call


# Cases


def small(options: argparse.Namespace) -> dict[str, Any]:
    """Compare one query, and sixteen at once, with numpy and with `learnware`."""
    world, count = made_market.make_world(DIMENSION), 200 if options.quick else 1000
    market, users = made_market.make_market(world, count), made_market.make_users(world, 16)
    points, weights = made_market.reduced_sets(world, count)
    gamma = 0.5 / float(world.space.kernel.bandwidth) ** 2
    user = users[0].reduced_set
    calls: dict[str, Callable[[int], Any]] = {
        "jaxspec, ten best for one user": query(market, users[0], "rkme"),
        "jaxspec, ten best, default score": query(market, users[0]),
        "jaxspec, ten best for 16 users": query(market, users, "rkme"),
        "jaxspec, all with classes, one user": query(market, users[0], "rkme", None),
        "jaxspec, all with classes, 16 users": query(market, users, "rkme", None),
        "numpy loop": lambda _: numpy_query(points, weights, user, gamma),
    }

    def run() -> dict[str, Any]:
        rows = time_in_turns(calls, options.repeats)
        bound = machine.bound_seconds(count, 1, DIMENSION, points=POINTS, user_points=POINTS)
        record = {name: row.record() for name, row in rows.items()}
        return {"learnwares": count, "bound_s": bound.seconds, "calls": record}

    if not options.learnware:
        return run()
    python = ensure_environment(options.learnware)
    with LearnwareProcess(python, options.learnware_threads) as process:
        arrays = {"points": points, "weights": weights}
        arrays |= {"user_points": user.points, "user_weights": user.weights}
        put = {name: process.put(value) for name, value in arrays.items()}

        def ask(path: str) -> Callable[[int], Timed]:
            return lambda _: process.search(put, gamma=gamma, path=path)

        calls["learnware, distances"] = ask("loop")
        calls["learnware, easy searcher, single stage"] = ask("single")
        return run()


def numpy_query(
    points: np.ndarray, weights: np.ndarray, user: js.ReducedSet, gamma: float
) -> np.ndarray:
    """Return squared MMDs without the term of the user alone, by one numpy call per learnware."""
    x, v = np.asarray(user.points), np.asarray(user.weights)
    found = np.empty(len(points), np.float32)
    square = np.square(x).sum(axis=1)
    for i, (u, w) in enumerate(zip(points, weights, strict=True)):
        norms = np.square(u).sum(axis=1)
        cross = np.exp(-gamma * (norms[:, None] + square - 2 * u @ x.T))
        own = np.exp(-gamma * (norms[:, None] + norms - 2 * u @ u.T))
        found[i] = w @ own @ w - 2 * w @ cross @ v
    return found


def exact(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the pass over large markets against the bound of the machine."""
    cases = ON_PROCESSORS if on_processor() else ON_ACCELERATORS
    record: dict[str, Any] = {}
    for case in (Case(2000, DIMENSION, "float32"),) if options.quick else cases:
        progress(f"exact: {case.name}")
        try:
            record[case.name] = measure(case, options)
        except Exception as error:  # out of memory, or what a new device does not support
            first = (str(error).strip() or "no message").splitlines()[0]
            record[case.name] = {"failed": f"{type(error).__name__}: {first[:300]}"}
        gc.collect()
    return record


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Return the times of one market for 1 and 16 users, and their ratios to the bounds."""
    world = made_market.make_world(case.dimension)
    make = made_market.make_market if on_processor() else make_on_device
    began = time.perf_counter()
    market = make(world, case.learnwares, precision=case.precision)
    jax.block_until_ready(market.arrays)
    record: dict[str, Any] = {"make_s": time.perf_counter() - began, "bytes": market.nbytes}
    users = made_market.make_users(world, 16)
    for count in (1, 16):
        before = bounds(case, count)
        calls = {"rkme": query(market, users[:count], "rkme")}
        calls["default"] = query(market, users[:count])
        rows = time_in_turns(calls, options.repeats)
        # The rates of a shared machine change during the run: the better ones are the bound.
        least = {name: min(value, before[name]) for name, value in bounds(case, count).items()}
        ratios = {
            name: {kind: row.minimum / seconds for kind, seconds in least.items()}
            for name, row in rows.items()
        }
        record[f"{count} users"] = {
            "bounds_s": least,
            **{name: row.record() for name, row in rows.items()},
            "ratio of the minimum to the bound": ratios,
        }
    return record


def bounds(case: Case, users: int) -> dict[str, float]:
    """Return the least seconds of the pass, by what limits it.

    By the measured rates of this machine for products in float32 and exponentials, one after the
    other; by one reading of the stored points; and, where the vendor publishes it, by the peak rate
    of products in the precision of the market.
    """
    sizes = {"points": POINTS, "user_points": POINTS}
    found = machine.bound_seconds(case.learnwares, users, case.dimension, repeats=3, **sizes)
    record = {"measured, float32": found.seconds}
    if on_processor():
        return record
    stored = case.learnwares * POINTS * (case.dimension * ITEM_BYTES[case.precision] + 8.0)
    record["measured, points read once"] = stored / machine.memory_rate(repeats=3).best
    peaks = machine.peaks_of(jax.devices()[0].device_kind)
    peak = getattr(peaks, "int8" if case.precision == "int8" else "bfloat16", None)
    if peak:
        flops = 2.0 * case.learnwares * POINTS * POINTS * users * case.dimension
        record["published, one product per pair of points"] = flops / (peak * 1e12)
    return record


def precision(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the low precisions with float32: bytes, times and rankings."""
    world = made_market.make_world(DIMENSION)
    market = made_market.make_market(world, 2000 if options.quick else 100_000)
    users = made_market.make_users(world, 16)
    markets = {"float32": market, **{name: market.astype(name) for name in ("bfloat16", "int8")}}
    calls = {name: query(one, users[0], "rkme") for name, one in markets.items()}
    rows = time_in_turns(calls, options.repeats)
    truth = np.stack([one.scores for one in js.match(market, users)])
    order = np.argsort(-truth, axis=1)[:, :BEST]
    record: dict[str, Any] = {}
    for name, one in markets.items():
        scores = np.stack([found.scores for found in js.match(one, users)])
        mine = np.argsort(-scores, axis=1)[:, :BEST]
        same = [len(set(a) & set(b)) / BEST for a, b in zip(order, mine, strict=True)]
        record[name] = {
            "bytes": one.nbytes,
            **rows[name].record(),
            "largest change of a score": float(np.abs(scores - truth).max()),
            "share of the best ten kept": float(np.mean(same)),
            "first kept": float((order[:, 0] == mine[:, 0]).mean()),
        }
    return record


def growth(options: argparse.Namespace) -> dict[str, Any]:
    """Measure how time grows with each size."""
    large = (500, 1000, 2000, 4000) if options.quick else (3000, 10000, 30000, 100000)
    base, make = large[-2], made_market.make_market
    world = made_market.make_world(DIMENSION)
    users = made_market.make_users(world, 32)

    def by_learnwares(count: int) -> Callable[[int], Any]:
        return query(make(world, count), users[0], "rkme")

    def by_points(size: int) -> Callable[[int], Any]:
        return query(make(world, base, size=size), users[0], "rkme")

    def by_dimension(dimension: int) -> Callable[[int], Any]:
        other = made_market.make_world(dimension=dimension)
        return query(make(other, base // 2), made_market.make_users(other, 1)[0], "rkme")

    market = make(world, base)
    sweeps: dict[str, tuple[tuple[int, ...], Callable[[int], Callable[[int], Any]]]] = {
        "M": (large, by_learnwares),
        "m": ((12, 25, 50, 100), by_points),
        "Q": ((4, 8, 16, 32), lambda count: query(market, users[:count], "rkme")),
        "d": ((32, 64, 128, 256), by_dimension),
    }
    record: dict[str, Any] = {}
    for axis, (sizes, call_of) in sweeps.items():
        rows = time_in_turns({str(size): call_of(size) for size in sizes}, options.repeats)
        seconds = [rows[str(size)].minimum for size in sizes]
        fitted = fit_exponent(sizes, seconds)._asdict()
        record[axis] = {"jaxspec": {"sizes": sizes, "min_s": seconds, **fitted}}
        progress(f"growth with {axis}: exponent {fitted['exponent']:.2f}")
    return record


def million(options: argparse.Namespace) -> dict[str, Any]:
    """Hold a million learnwares on this machine and ask them."""
    world, count = made_market.make_world(DIMENSION), 2_000 if options.quick else 1_000_000
    began = time.perf_counter()

    def told(done: int, total: int) -> None:
        if done % 65536 < 1024 or done == total:
            progress(f"making {done} of {total} learnwares")

    market = made_market.make_market(world, count, precision="int8", spare=0.0, progress=told)
    made = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    user = made_market.make_users(world, 1)[0]
    calls = {
        "exact, embeddings": query(market, user, "rkme"),
        "exact, default": query(market, user),
    }
    rows = time_in_turns(calls, min(2, options.repeats))
    return {
        "learnwares": count,
        "precision": "int8",
        "bytes": market.nbytes,
        "peak_bytes_of_the_process_when_made": peak,
        "make_s": made,
        **{name: row.record() for name, row in rows.items()},
    }


CASES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "small": small,
    "exact": exact,
    "precision": precision,
    "growth": growth,
    "million": million,
}


def rows_of(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the entries of a nested record as rows of a table."""
    rows: list[tuple[str, Any]] = []
    for key, value in record.items():
        name = f"{prefix} {key}".strip()
        if isinstance(value, Mapping) and "repeats" in value and "first_call_s" in value:
            shown = f"{milliseconds(value['min_s'])} / {milliseconds(value['median_s'])}"
            rows.append((f"{name}: ms, minimum / median of {value['repeats']}", shown))
            value = {k: v for k, v in value.items() if not k.endswith("_s") and k != "seconds"}
            value = {k: v for k, v in value.items() if k not in ("repeats", "cores_busy")}
        if isinstance(value, Mapping):
            rows += rows_of(value, name)
        else:
            rows.append((name, value if isinstance(value, int | float) else str(value)))
    return rows


def main() -> None:
    """Run the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small sizes, to check the script")
    parser.add_argument("--learnware", type=Path, help="folder of its environment, made if absent")
    parser.add_argument("--learnware-threads", type=int, help="of torch; else its own choice")
    parser.add_argument("--output", type=Path, help="JSON; cases not asked for stay as they were")
    options = parser.parse_args()
    for case in options.cases:
        progress(f"case {case}")
        found = CASES[case](options)
        print_table(case, ("what", "measured"), rows_of(found))
        if options.output:
            settings = {"m": POINTS, "m_T": POINTS, "quick": options.quick}
            merge_results(options.output, {case: found}, settings=settings)
            if case == "growth":
                stem = options.output.with_suffix("")
                plots.plot_growth(stem.with_name(f"{stem.name}-growth.png"), found)


if __name__ == "__main__":
    main()
