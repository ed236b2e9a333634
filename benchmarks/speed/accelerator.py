"""What this library does on the device that jax has here: is it right, and how near to the limit.

On a GPU, a TPU or a CPU, with jax, flax, optax, orbax-checkpoint and numpy (pytest and scipy for
the tests, which are left out without them):

    python -m benchmarks.speed.accelerator [--output benchmarks/results] [--quick]
                                     [--minutes 25] [--only tests markets ...]

Runs the correctness tests; measures the device's own limits (`benchmarks.speed.machine`), the making of
specifications, the exact pass over markets of 10^5 and 10^6 learnwares, by XLA and by the fused
kernel, and the search of an index. Every figure is the first call (which compiles), the fastest
and the median of later ones; ratios are of the fastest to a bound, 1 being the limit. What fails,
for want of memory say, is recorded as failed and the rest goes on. Writes after every stage to
<output>/<device>.json; with --only some, the others stay there as an earlier run left them.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")  # before jax takes its share

import jax
import jax.numpy as jnp
import numpy as np

import jaxspec as js
from benchmarks.markets import made_market
from benchmarks.markets.device_market import make_on_device
from benchmarks.speed import machine
from benchmarks.speed.fused_blocks import by_xla, fused
from jaxspec.base.low_precision import PARTS
from jaxspec.kernels.kernels import distances
from jaxspec.market.arrays import ROW_FIELDS, decode_points
from jaxspec.matching.match import stack_users
from jaxspec.scoring.pallas_pass import fused_for
from jaxspec.scoring.sharded import score_spread

TESTS = ("fused", "kernels", "scoring", "matching", "market", "index", "probe", "rkme", "proxy")
QUICK_TESTS = ("kernels", "fused")
# Tests make hundreds of small programs: without a search for the best product they compile faster.
TEST_FLAGS = "--xla_gpu_autotune_level=0"
POINTS, USER_POINTS = 50, 50
SECTIONS = ("tests", "limits", "specifications", "markets")
RECALL_USERS, TOP = 32, 10
COMPARED = 4_096  # learnwares whose products are computed otherwise too


class Peaks(NamedTuple):
    """Tflop/s (of int8: Tops/s) and GB/s."""

    float32: float | None
    tf32: float | None
    bfloat16: float
    int8: float | None
    memory: float


# By vendors' data sheets, dense, without sparsity; GPUs: SXM parts. No vendor gives a float32 rate
# for the matrix units of a TPU. Of a device kind the longest name counts.
PEAKS = {
    "NVIDIA A100": Peaks(19.5, 156.0, 312.0, 624.0, 1555.0),
    "NVIDIA A100-SXM4-80GB": Peaks(19.5, 156.0, 312.0, 624.0, 2039.0),
    "NVIDIA H100": Peaks(66.9, 494.7, 989.4, 1978.9, 3350.0),
    "NVIDIA H100 PCIe": Peaks(51.2, 378.0, 756.0, 1513.0, 2000.0),
    "NVIDIA H200": Peaks(66.9, 494.7, 989.4, 1978.9, 4800.0),
    "TPU v4": Peaks(None, None, 275.0, None, 1228.0),
    "TPU v5 lite": Peaks(None, None, 197.0, 394.0, 819.0),
    "TPU v5e": Peaks(None, None, 197.0, 394.0, 819.0),
    "TPU v6 lite": Peaks(None, None, 918.0, 1836.0, 1640.0),
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
        vectors = made_market.PER_TASK * self.dimension * (4 if self.storage == "float32" else 2)
        return float(self.learnwares) * (POINTS * (self.dimension * self.item_bytes + 8) + vectors)


CASES = (
    Case(1_000_000, 512, "int8"),
    Case(1_000_000, 512, "bfloat16"),
    Case(100_000, 64, "float32"),
    Case(1_000_000, 64, "int8"),
    Case(100_000, 512, "bfloat16"),
)
QUICK_CASES = (Case(320, 64, "int8"),)
MOST_BY_XLA = 100_000  # learnwares in a market that is scored without the fused kernel too


class Report:
    """The record, written after every stage; a stage that fails or comes too late is noted."""

    def __init__(self, folder: Path, minutes: float, began: float) -> None:
        self.record: dict[str, Any] = {}
        self._folder, self._end = folder, began + 60 * minutes
        self.path: Path | None = None

    def named_after(self, device: str, *, keep: bool) -> None:
        """Fix where the record is written; `keep` what an earlier run wrote there."""
        slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
        self.path = self._folder / f"{slug or 'device'}.json"
        if keep and self.path.exists():
            self.record = {**json.loads(self.path.read_text()), **self.record}

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


def run_tests(names: tuple[str, ...], seconds: float) -> dict[str, Any]:
    """Run the tests, so many seconds, in a process before this one takes the device."""
    if importlib.util.find_spec("pytest") is None:
        return {"left out": "no pytest"}
    root = Path(__file__).parents[2]
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
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-vv", "-rfE", *files]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(12, os.cpu_count() or 1)), "--dist", "worksteal"]
    flags = f"{os.environ.get('XLA_FLAGS', '')} {TEST_FLAGS}".strip()
    shared = {**os.environ, "XLA_FLAGS": flags, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        running = subprocess.Popen(
            command, cwd=root, env=shared, stdout=output, stderr=subprocess.DEVNULL
        )
        try:
            code: int | None = running.wait(seconds)
        except subprocess.TimeoutExpired:
            running.kill()
            code = None
        output.seek(0)
        lines = output.read().splitlines()
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]  # the summary's
    tests = [line for line in lines if line not in failures]  # a line each
    counts = {
        word.lower(): sum(f" {word} " in f"{line} " for line in tests)
        for word in ("PASSED", "FAILED", "ERROR", "SKIPPED")
    }
    return {
        "exit": code if code is not None else f"stopped after {seconds:.0f} s",
        **counts,
        "seconds": time.perf_counter() - began,
        "failures": [line[:300] for line in failures],
        "left out": missing,
    }


# How near to the limit


def peaks_of(device: str) -> Peaks | None:
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


def compared(found: machine.Timing, **bounds: float | None) -> dict[str, Any]:
    """Return a timing with the ratios of its fastest to the bounds, {name: seconds}."""
    ratios = {
        name: {"seconds": seconds, "ratio": found.minimum / seconds}
        for name, seconds in bounds.items()
        if seconds
    }
    return {**found._asdict(), "bounds": ratios}


def timing(
    call: Callable[[], Any], quick: bool, repeats: int = 5, **bounds: float | None
) -> dict[str, Any]:
    """Time a call and compare it with the bounds."""
    return compared(machine.timed(call, 2 if quick else repeats), **bounds)


def pass_bounds(case: Case, users: int, rates: Any, peaks: Any) -> dict[str, float | None]:
    """Return the least seconds of the products of a market with users, by what limits them.

    Products in float32 and exponentials by measured rates, one after the other; the stored points
    read once; and, by the vendor's peak, the exact products in parts that the fused kernel takes.
    """
    pairs = float(case.learnwares) * POINTS * USER_POINTS * users
    stored = float(case.learnwares) * POINTS * (case.dimension * case.item_bytes + 8)
    flops = 2.0 * pairs * case.dimension
    found: dict[str, float | None] = {}
    if rates:
        product = max(rate["best"] for name, rate in rates.items() if "highest" in name)
        exponentials = pairs / rates["exponentials"]["best"]
        found["float32 and exponentials, measured"] = flops / product + exponentials
        # Of reading and writing back; reading alone may be a little faster.
        found["points read once, measured"] = stored / rates["memory"]["best"]
    kind = "int8" if case.storage == "int8" else "bfloat16"
    peak = getattr(peaks, kind, None)
    if peak:
        parts = PARTS * (PARTS + 1) // 2 if case.storage == "float32" else PARTS
        found[f"products in {parts} parts, vendor's {kind}"] = parts * flops / (peak * 1e12)
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


def memory_left() -> float:
    """Return the bytes that the device says it may use, else those of the host."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))


def score_case(
    report: Report, case: Case, counts: tuple[int, ...], rates: Any, peaks: Any, quick: bool
) -> None:
    """Measure one market: the pass by XLA and fused, all scores, `top_k`, `match` and an index."""
    group = f"market {case.name}"
    world = made_market.make_world(case.dimension)
    everybody = made_market.make_users(world, RECALL_USERS, size=USER_POINTS, seed=3)
    held: dict[str, Any] = {}  # so that the market can be let go of

    def make() -> dict[str, Any]:
        needed, there = 1.15 * case.nbytes, memory_left()
        if needed > there:
            raise MemoryError(f"needs about {needed / 1e9:.1f} GB, {there / 1e9:.1f} GB are free")
        began = time.perf_counter()
        held["market"] = make_on_device(world, case.learnwares, case.storage, size=POINTS)
        jax.block_until_ready(held["market"].arrays)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "bytes": held["market"].nbytes, "case": case._asdict()}

    if not report.stage(group, "make", make):
        return
    market = held["market"]
    for count in counts:
        asked = everybody[:count]
        stacked = jax.tree.map(jnp.asarray, stack_users(market, asked))
        bounds = pass_bounds(case, count, rates, peaks)
        measure = partial(timing, quick=quick, **bounds)
        length = jnp.int32(market.length)
        for name, run in passes(case).items():
            arguments = (market.arrays, stacked, length)
            report.stage(
                group,
                f"Q={count} products, {name}",
                lambda run=run, measure=measure, arguments=arguments: measure(
                    partial(run, *arguments)
                ),
            )
        if fused_for(market.arrays.kernel):
            report.stage(
                group,
                f"Q={count} largest difference, fused to Gram matrices, {COMPARED} learnwares",
                partial(difference, market.arrays, stacked),
            )
        report.stage(
            group,
            f"Q={count} scores, likelihood",
            lambda stacked=stacked, measure=measure, length=length: measure(
                lambda: score_spread(
                    market.arrays,
                    stacked,
                    length,
                    market.alive,
                    market.calibration,
                    method="likelihood",
                )
            ),
        )
        report.stage(
            group,
            f"Q={count} top_k, the whole call",
            lambda asked=asked, measure=measure: measure(partial(best, market, asked)),
        )
    if case.learnwares <= MOST_BY_XLA:
        report.stage(
            group,
            "Q=1 match, the whole call with all scores on the host",
            lambda: timing(lambda: js.match(market, everybody[0]).scores, quick),
        )

    def build() -> dict[str, Any]:
        began = time.perf_counter()
        held["index"] = js.Index.build(market)
        return {"seconds": time.perf_counter() - began}

    if report.stage(group, "index, build", build):
        index = held["index"]
        for count in counts:
            asked = everybody[:count]
            report.stage(
                group,
                f"Q={count} index, the whole call",
                lambda asked=asked: {
                    **timing(lambda: [x.scores for x in index.search(asked, k=TOP)], quick, 20),
                    "candidates": index.candidates(TOP),
                    "bytes a learnware": index.bytes_per_learnware,
                },
            )

        def recall() -> dict[str, Any]:
            exact = [set(js.top_k(market, one, TOP).ids) for one in everybody]
            found = [set(index.search(one, k=TOP).ids) for one in everybody]
            complete = sum(a <= b for a, b in zip(exact, found, strict=True))
            return {"users": len(exact), "with all of the exact best": complete, "k": TOP}

        report.stage(group, "index, recall", recall)


def difference(arrays: Any, users: Any) -> float:
    """Return by how much the kernel's products differ from those of whole Gram matrices.

    For the first learnwares. (The pass by XLA would do too; compiling its widths took 30 s.)
    """
    first = {name: getattr(arrays, name)[:COMPARED] for name in ROW_FIELDS}
    few = dataclasses.replace(arrays, **first)
    found = jax.jit(partial(fused, None, False))(few, users, jnp.int32(len(few.weights)))
    return float(jnp.abs(found - jax.jit(by_gram)(few, users)).max())


def by_gram(arrays: Any, users: Any) -> Any:
    """Return the products (slots, Q) of a small market."""
    slots, m, d = arrays.points.shape
    points = decode_points(arrays.points, arrays.scales).reshape(-1, d)
    kernel = arrays.kernel

    def one(user: tuple[Any, Any]) -> Any:
        values = kernel.profile(distances(kernel.metric, points, user[0]))
        at = jnp.matmul(values, user[1], precision="highest").reshape(slots, m)
        return (at * arrays.weights).sum(axis=1)

    return jax.lax.map(one, (users.points, users.weights)).T


def best(market: js.Market, users: list[js.UserSpecification]) -> Any:
    """Return the scores of the best for each user, on the host."""
    return [one.scores for one in js.top_k(market, users, TOP)]


def passes(case: Case) -> dict[str, Callable[..., Any]]:
    """Return the ways to the products, {name: compiled function}; fused where a device has it."""
    found: dict[str, Callable[..., Any]] = {}
    if fused_for(js.Gaussian(bandwidth=1.0)):
        found["fused"] = jax.jit(partial(fused, None, False))
    if case.learnwares <= MOST_BY_XLA or not found:
        found["xla"] = jax.jit(by_xla)
    return found


def main() -> None:
    """Run every stage and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--quick", action="store_true", help="small sizes, to check the script")
    parser.add_argument("--minutes", type=float, default=25.0, help="begin no stage after these")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    options = parser.parse_args()
    began = time.perf_counter()
    report, quick = Report(options.output, options.minutes, began), options.quick
    # First, in a process of its own: a TPU serves one process, and a GPU's memory goes to one.
    if "tests" in options.only:
        names = QUICK_TESTS if quick else TESTS
        report.stage("tests", "pytest", partial(run_tests, names, 60 * options.minutes))
    described = machine.describe()
    report.named_after(described["device"], keep=len(options.only) < len(SECTIONS))
    peaks = peaks_of(described["device"])
    report.record["machine"] = {**described, "memory": memory_left(), "quick": quick}
    report.record["sizes"] = {"m": POINTS, "m_T": USER_POINTS, "classes": made_market.PER_TASK}
    report.record["peaks"] = {
        "Tflop/s and GB/s": peaks._asdict() if peaks else None,
        "source": PEAKS_SOURCE,
    }
    say(json.dumps(report.record["machine"]))
    if "limits" in options.only:
        report.stage("limits", "rates", partial(limits, quick))
    rates = report.record.get("limits", {}).get("rates")
    if "specifications" in options.only:
        specifications(report, rates, quick)
    for case in (QUICK_CASES if quick else CASES) if "markets" in options.only else ():
        score_case(report, case, (1, 3) if quick else (1, 16), rates, peaks, quick)
        gc.collect()
    report.record["seconds"] = time.perf_counter() - began
    report.write()
    say(f"{report.path}")


if __name__ == "__main__":
    main()
