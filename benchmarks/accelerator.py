"""What this library does on the device that jax has here: is it right, and how near to the limit.

On a GPU, a TPU or a CPU, with jax, flax, optax, orbax-checkpoint and numpy (pytest and scipy for
the tests, which are left out without them):

    python -m benchmarks.accelerator [--output benchmarks/results] [--quick]
                                     [--minutes 25] [--skip-tests]

Runs the correctness tests; measures the device's own limits (`benchmarks.machine`), the making of
specifications, the exact pass over markets of 10^4 to 10^6 learnwares, by XLA and by the fused
kernel, and the search of an index. Every figure is the first call (which compiles), the fastest
and the median of later ones; ratios are of the fastest to a bound, 1 being the limit. What fails,
for want of memory say, is recorded as failed and the rest goes on. Writes after every stage to
<output>/<device>.json.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxspec as js
from benchmarks import machine
from jaxspec.embeddings import embedding_products, pack_columns
from jaxspec.matching import stack_users
from jaxspec.spread import score_spread

TESTS = ("kernels", "rkme", "proxy", "scoring", "matching", "market", "embeddings", "fused")
QUICK_TESTS = ("kernels", "fused")
POINTS, USER_POINTS, CLASSES = 50, 50, 5
BATCH_BYTES = 1 << 27  # float32 points of a market that are drawn at a time
SPACE = "drawn"

# Peaks by vendors' data sheets, dense, without sparsity: Tflop/s and GB/s; SXM parts. No vendor
# gives a float32 rate for the matrix units of a TPU. Of a device kind the longest name counts.
PEAKS: dict[str, dict[str, float | None]] = {
    "NVIDIA A100": {"float32": 19.5, "tf32": 156.0, "bfloat16": 312.0, "memory": 1555.0},
    "NVIDIA A100-SXM4-80GB": {"float32": 19.5, "tf32": 156.0, "bfloat16": 312.0, "memory": 2039.0},
    "NVIDIA H100": {"float32": 66.9, "tf32": 494.7, "bfloat16": 989.4, "memory": 3350.0},
    "NVIDIA H100 PCIe": {"float32": 51.2, "tf32": 378.0, "bfloat16": 756.0, "memory": 2000.0},
    "NVIDIA H200": {"float32": 66.9, "tf32": 494.7, "bfloat16": 989.4, "memory": 4800.0},
    "TPU v4": {"float32": None, "tf32": None, "bfloat16": 275.0, "memory": 1228.0},
    "TPU v5 lite": {"float32": None, "tf32": None, "bfloat16": 197.0, "memory": 819.0},
    "TPU v5e": {"float32": None, "tf32": None, "bfloat16": 197.0, "memory": 819.0},
    "TPU v6 lite": {"float32": None, "tf32": None, "bfloat16": 918.0, "memory": 1640.0},
}
PEAKS_SOURCE = "published by the vendors (TPU: their documentation, GPU: as quoted), not measured"


class Case(NamedTuple):
    """A market to score."""

    learnwares: int
    dimension: int
    storage: str

    @property
    def name(self) -> str:
        return f"M={self.learnwares} d={self.dimension} {self.storage}"

    @property
    def item_bytes(self) -> int:
        return {"float32": 4, "bfloat16": 2, "int8": 1}[self.storage]

    @property
    def nbytes(self) -> float:
        """About the bytes of the market's arrays."""
        vectors = CLASSES * self.dimension * (4 if self.storage == "float32" else 2)
        return float(self.learnwares) * (POINTS * (self.dimension * self.item_bytes + 8) + vectors)


CASES = (
    Case(10_000, 64, "float32"),
    Case(100_000, 64, "float32"),
    Case(100_000, 64, "bfloat16"),
    Case(100_000, 64, "int8"),
    Case(1_000_000, 64, "bfloat16"),
    Case(1_000_000, 64, "int8"),
    Case(10_000, 512, "bfloat16"),
    Case(100_000, 512, "bfloat16"),
    Case(100_000, 512, "int8"),
    Case(1_000_000, 512, "bfloat16"),
    Case(1_000_000, 512, "int8"),
)
QUICK_CASES = (Case(300, 64, "int8"),)


class Report:
    """The record, written after every stage; a stage that fails or comes too late is noted."""

    def __init__(self, folder: Path, minutes: float, began: float) -> None:
        self.record: dict[str, Any] = {}
        self._folder, self._end = folder, began + 60 * minutes
        self.path: Path | None = None

    def named_after(self, device: str) -> None:
        slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
        self.path = self._folder / f"{slug or 'device'}.json"

    def stage(self, group: str, name: str, work: Callable[[], Any]) -> Any:
        """Run `work`, record what it returns under group and name, and return that (or None)."""
        where = self.record.setdefault(group, {})
        say(f"{group}: {name}")
        began, found = time.perf_counter(), None
        if time.perf_counter() > self._end:
            where[name] = {"left out": "the minutes were used up"}
        else:
            try:
                found = where[name] = work()
            except Exception as error:  # out of memory, or what a new device may not support
                first = (str(error).strip() or "no message").splitlines()[0]
                where[name] = {"failed": f"{type(error).__name__}: {first[:300]}"}
                del error
            gc.collect()
        say(f"  {json.dumps(where[name])[:400]}  ({time.perf_counter() - began:.1f} s)")
        self.write()
        return found

    def write(self) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.record, indent=1) + "\n")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# Is it right


def run_tests(names: tuple[str, ...]) -> dict[str, Any]:
    """Run the tests in a process of their own, before this one takes the device."""
    if importlib.util.find_spec("pytest") is None:
        return {"left out": "no pytest"}
    root = Path(__file__).parent.parent
    files, missing = [], []
    for name in names:
        path = root / "tests" / f"test_{name}.py"
        needs = [
            package
            for package in ("scipy", "sklearn", "safetensors")
            if path.exists()
            and re.search(rf"^\s*(import|from) {package}", path.read_text(), re.MULTILINE)
            and importlib.util.find_spec(package) is None
        ]
        if not path.exists() or needs:
            missing.append(f"{path.name} ({'no ' + ', '.join(needs) if needs else 'not there'})")
        else:
            files.append(str(path))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rf", *files]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=1800)
    lines = found.stdout.splitlines()
    last = next((line for line in reversed(lines) if re.search(r"\d+ \w+", line)), "")
    counts = {
        kind: int(count)
        for count, kind in re.findall(r"(\d+) (passed|failed|skipped|errors?)", last)
    }
    failures = [line[:300] for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"exit": found.returncode, **counts, "failures": failures, "left out": missing}


# How near to the limit


def peaks_of(device: str) -> dict[str, float | None] | None:
    names = [name for name in PEAKS if device.startswith(name)]
    return PEAKS[max(names, key=len)] if names else None


def limits(quick: bool) -> dict[str, Any]:
    """Return rates in a second: flop of float32 products, exponentials, bytes."""
    repeats = 2 if quick else 5
    shapes = ((512, 512, 512),) if quick else ((4096, 64, 4096), (4096, 512, 4096), (4096,) * 3)
    rates = {
        f"product {m}x{k} @ {k}x{n}, {name}": machine.gemm_rate(
            m, k, n, repeats=repeats, precision=precision
        )
        for m, k, n in shapes
        for name, precision in (("highest", "highest"), ("default", "default"))
    }
    rates["exponentials"] = machine.exp_rate(repeats=repeats)
    rates["memory"] = machine.memory_rate(repeats=repeats)
    return {name: rate._asdict() for name, rate in rates.items()}


def bound_of_pairs(rates: dict[str, Any], users: int, dimension: int, quick: bool) -> Any:
    """Return `machine.bound_seconds` of 10^6 learnwares; products and exponentials scale with M."""
    return machine.bound_seconds(
        10**6,
        users,
        dimension,
        points=POINTS,
        user_points=USER_POINTS,
        repeats=2 if quick else 3,
        exponentials=machine.Rate(**rates["exponentials"]),
        memory=machine.Rate(**rates["memory"]),
    )._asdict()


def compared(found: machine.Timing, **bounds: float | None) -> dict[str, Any]:
    """Return a timing with the ratios of its fastest to the bounds, {name: seconds}."""
    ratios = {
        name: {"seconds": seconds, "ratio": found.minimum / seconds}
        for name, seconds in bounds.items()
        if seconds
    }
    return {**found._asdict(), "bounds": ratios}


def timing(call: Callable[[], Any], quick: bool, **bounds: float | None) -> dict[str, Any]:
    """Time a call and compare it with the bounds."""
    return compared(machine.timed(call, 2 if quick else 5), **bounds)


def pass_bounds(
    case: Case, users: int, per_million: dict[str, Any] | None, rates: Any, peaks: Any
) -> dict[str, float | None]:
    """Return the least seconds of the products of a market with users.

    By measured rates: float32 products and exponentials after one another, or overlapping, or the
    stored points read once. By vendors' peaks: products in a precision, or the points read.
    """
    pairs = float(case.learnwares) * POINTS * USER_POINTS * users
    stored = float(case.learnwares) * POINTS * (case.dimension * case.item_bytes + 8)
    found: dict[str, float | None] = {}
    if per_million and rates and "products" in per_million:
        share, moved = case.learnwares / 1e6, stored / rates["memory"]["best"]
        products, exponentials = (share * per_million[k] for k in ("products", "exponentials"))
        found["measured"] = max(products + exponentials, moved)
        found["measured, overlapped"] = max(products, exponentials, moved)
    for kind in ("float32", "tf32", "bfloat16"):
        if peaks and peaks[kind]:
            products = 2.0 * pairs * case.dimension / (peaks[kind] * 1e12)
            found[f"vendor, {kind}"] = max(products, stored / (peaks["memory"] * 1e9))
    return found


# What is measured


def drawn_tasks(count: int, n: int, d: int, classes: int) -> tuple[list[Any], list[Any]]:
    """Return features (n, d) around centres that every task draws, and labels, of `count` tasks."""
    rng = np.random.default_rng(7)
    labels = np.arange(n) % classes
    features = []
    for _ in range(count):
        centres = 2.0 * rng.standard_normal((classes, d), np.float32)
        features.append(centres[labels] + rng.standard_normal((n, d), np.float32))
    return features, [labels] * count


def specifications(report: Report, rates: Any, quick: bool) -> None:
    """Measure reduced sets and proxies of a batch of tasks.

    The bound is that of the products (and exponentials) of as many steps as were taken by the
    mean task: it says what the arithmetic costs, not what a better method would need.
    """
    count, n, d, m, classes = (8, 200, 64, 10, 5) if quick else (256, 1000, 64, 50, 10)
    features, labels = drawn_tasks(count, n, d, classes)
    kernel = js.Gaussian(bandwidth=2.0 * math.sqrt(d))
    sizes = {"batch": count, "n": n, "d": d, "m": m, "classes": classes}
    repeats = 2 if quick else 5
    product = max(rate["best"] for name, rate in rates.items() if "highest" in name) if rates else 0

    def sets() -> dict[str, Any]:
        call = partial(js.reduce_sets, jax.random.key(0), features, size=m, kernel=kernel)
        found = machine.timed(call, repeats)
        steps = 1.0 + float(np.mean(call().diagnostics.iterations))
        pairs, bound = steps * count * n * m, None
        if product:  # distances and the gradient's pull on the points
            bound = 4.0 * pairs * d / product + pairs / rates["exponentials"]["best"]
        found = compared(found, measured=bound)
        return {**sizes, "steps": steps, **found, "sets a second": count / found["minimum"]}

    def proxies() -> dict[str, Any]:
        call = partial(js.fit_proxies, features, labels, num_classes=[classes] * count)
        found = machine.timed(call, repeats)
        steps = 1.0 + float(np.mean(call().diagnostics.iterations))
        bound = 4.0 * steps * count * n * d * classes / product if product else None
        found = compared(found, measured=bound)
        return {**sizes, "steps": steps, **found, "proxies a second": count / found["minimum"]}

    report.stage("specifications", "reduce_sets", sets)
    report.stage("specifications", "fit_proxies", proxies)


def drawn_batches(case: Case, kernel: Any) -> Iterator[tuple[list[str], js.Specification]]:
    """Yield stacked specifications of random points around a centre each."""
    batch = max(1, min(8192, BATCH_BYTES // (4 * POINTS * case.dimension)))
    names = tuple(f"class {k}" for k in range(CLASSES))
    for start in range(0, case.learnwares, batch):
        count = min(batch, case.learnwares - start)
        rng = np.random.default_rng([case.dimension, start])
        points = rng.standard_normal((count, POINTS, case.dimension), np.float32)
        points += rng.standard_normal((count, 1, case.dimension), np.float32)
        weights = (rng.random((count, POINTS), np.float32) + 0.5) / POINTS
        vectors = rng.standard_normal((count, case.dimension, CLASSES), np.float32)
        proxy = js.Proxy(vectors, np.zeros((count, CLASSES), np.float32))
        spec = js.Specification(js.ReducedSet(points, weights), proxy, kernel, names, SPACE)
        yield [f"l{start + i}" for i in range(count)], spec


def drawn_users(count: int, dimension: int, kernel: Any) -> list[js.UserSpecification]:
    features, labels = drawn_tasks(count, USER_POINTS, dimension, CLASSES)
    return [
        js.specify_user(
            x,
            y,
            class_names=[f"class {k}" for k in range(CLASSES)],
            kernel=kernel,
            feature_space=SPACE,
        )
        for x, y in zip(features, labels, strict=True)
    ]


def memory_left() -> float:
    """Return the bytes that the device says it may use, else those of the host."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))


def score_case(
    report: Report, case: Case, users: tuple[int, ...], rates: Any, peaks: Any, quick: bool
) -> None:
    """Measure one market: the pass by XLA and fused, all scores, `match` and an index."""
    group = f"market {case.name}"
    kernel = js.Gaussian(bandwidth=2.0 * math.sqrt(case.dimension))
    held: dict[str, Any] = {}  # so that the market can be let go of

    def make() -> dict[str, Any]:
        needed, there = 1.15 * case.nbytes, memory_left()
        if needed > there:
            raise MemoryError(f"needs about {needed / 1e9:.1f} GB, {there / 1e9:.1f} GB are free")
        began = time.perf_counter()
        held["market"] = js.Market.from_stacked(
            drawn_batches(case, kernel), count=case.learnwares, storage=case.storage, spare=0.0
        )
        jax.block_until_ready(held["market"].arrays)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "bytes": held["market"].nbytes, "case": case._asdict()}

    if not report.stage(group, "make", make):
        return
    market = held["market"]
    for count in users:
        asked = drawn_users(count, case.dimension, kernel)
        stacked = jax.tree.map(jnp.asarray, stack_users(market, asked))
        key = f"Q={count} d={case.dimension}"
        known = report.record.get("bounds", {}).get(key)
        if known is None:
            known = report.stage(
                "bounds", key, partial(bound_of_pairs, rates, count, case.dimension, quick)
            )
        bounds = pass_bounds(case, count, known, rates, peaks)
        measure = partial(timing, quick=quick, **bounds)
        length = jnp.int32(market.length)
        results: dict[str, Any] = {}
        for name, run in passes().items():
            call = partial(run, market.arrays, stacked, length)

            def products(
                call: Callable[[], Any] = call,
                name: str = name,
                measure: Callable[..., Any] = measure,
                results: dict[str, Any] = results,
            ) -> dict[str, Any]:
                found = measure(call)
                results[name] = np.asarray(call())
                return found

            report.stage(group, f"Q={count} products, {name}", products)
        if len(results) == 2:
            one, other = results.values()
            report.stage(
                group,
                f"Q={count} largest difference, fused to xla",
                lambda one=one, other=other: float(np.abs(one - other)[: len(market)].max()),
            )
        alive = np.zeros(market.arrays.weights.shape[0], bool)
        alive[market.rows] = True
        for method in ("rkme", "likelihood"):
            report.stage(
                group,
                f"Q={count} scores, {method}",
                lambda method=method, stacked=stacked, alive=alive, measure=measure: measure(
                    lambda: score_spread(
                        market.arrays,
                        stacked,
                        np.int32(market.length),
                        alive,
                        market.calibration,
                        method=method,
                    )
                ),
            )
        report.stage(
            group,
            f"Q={count} match, with all on the host",
            lambda asked=asked, measure=measure: measure(lambda: js.match(market, asked).scores),
        )
    if not hasattr(js, "Index"):
        return

    def build() -> dict[str, Any]:
        began = time.perf_counter()
        held["index"] = js.Index.build(market)
        return {"seconds": time.perf_counter() - began}

    if report.stage(group, "index, build", build):
        for count in users:
            asked = drawn_users(count, case.dimension, kernel)
            report.stage(
                group,
                f"Q={count} index, search k=10",
                lambda asked=asked: timing(
                    lambda: _scores(held["index"].search(asked, k=10)), quick
                ),
            )


def _scores(matches: Any) -> Any:
    return [one.scores for one in matches]


def passes() -> dict[str, Callable[..., Any]]:
    """Return the ways to the products, {name: compiled function}; fused where a device has it."""

    def products(fused: bool, arrays: Any, users: Any, length: Any) -> Any:
        columns, shares = pack_columns(users.points, users.weights, users.counts)
        stored = (arrays.points, arrays.scales, arrays.square_norms, arrays.weights)
        count = users.counts.sum()
        if fused:
            from jaxspec.fused import fused_products

            return fused_products(arrays.kernel, *stored, columns, shares, length, count=count)
        return embedding_products(arrays.kernel, *stored, columns, shares, count, length)

    from jaxspec.fused import available

    found: dict[str, Callable[..., Any]] = {"xla": jax.jit(partial(products, False))}
    if available():
        found["fused"] = jax.jit(partial(products, True))
    return found


def main() -> None:
    """Run every stage and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--quick", action="store_true", help="small sizes, to check the script")
    parser.add_argument("--minutes", type=float, default=25.0, help="begin no stage after these")
    parser.add_argument("--skip-tests", action="store_true", help="measure only")
    options = parser.parse_args()
    began = time.perf_counter()
    report, quick = Report(options.output, options.minutes, began), options.quick
    # First, in a process of its own: a TPU serves one process, and a GPU's memory goes to one.
    if not options.skip_tests:
        names = QUICK_TESTS if quick else TESTS
        report.stage("tests", "pytest", partial(run_tests, names))
    described = machine.describe()
    report.named_after(described["device"])
    peaks = peaks_of(described["device"])
    report.record["machine"] = {**described, "memory": memory_left(), "quick": quick}
    report.record["sizes"] = {"m": POINTS, "m_T": USER_POINTS, "classes": CLASSES}
    report.record["peaks"] = {"Tflop/s and GB/s": peaks, "source": PEAKS_SOURCE}
    say(json.dumps(report.record["machine"]))
    rates = report.stage("limits", "rates", partial(limits, quick))
    specifications(report, rates, quick)
    for case in QUICK_CASES if quick else CASES:
        score_case(report, case, (1, 3) if quick else (1, 16), rates, peaks, quick)
        gc.collect()
    report.record["seconds"] = time.perf_counter() - began
    report.write()
    say(f"{report.path}")


if __name__ == "__main__":
    main()
