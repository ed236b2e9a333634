"""How fast and how good are specifications made, beside the rivals?

    python -m benchmarks.speed.specifications --learnware DIR \
        --output benchmarks/results/specifications

Cases:

    digits, mnist   one reduced set: n=1797, d=64, m=50, and n=5000, d=784, m=100
    batch           256 reduced sets of digits, n=1000, d=64, m=50
    large           one of a mixture, n=60000, d=512, m=200, streamed
    optimisers      the optimiser of reduced sets beside those of `benchmarks.speed.optimisers`
    proxies         256 linear proxies, n=1000, d=64, C=5, beside scikit-learn
    solvers         the solver of proxies beside those of `benchmarks.speed.proxy_solvers`
    growth          times against n, d, m and the size of a batch, with fitted exponents

Rivals of reduced sets are k-means of scikit-learn with the best weights for its centres and, with
`--learnware`, the package `learnware` under the same kernel: without options, with signed weights,
and with the best of `SETTINGS`, which is found in the same run. DIR is where its environment is, or
is made. The error is the squared MMD to the mean embedding of the data over the squared norm of
that embedding, in float64 numpy. Calls take turns; the first call, which compiles, stands apart.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

import jaxspec as js
from benchmarks.records import merge_results, milliseconds, print_table, progress
from benchmarks.speed import plots, proxy_solvers
from benchmarks.speed.learnware_package import LearnwareProcess, ensure_environment
from benchmarks.speed.optimisers import RIVALS, rival
from benchmarks.speed.reduced_set_methods import (
    LOOPED,
    jaxspec_sets,
    k_means,
    learnware_sets,
    stopped_after,
)
from benchmarks.speed.specification_cases import (
    Case,
    Judge,
    make_case,
    mixture,
    overlapping_classes,
)
from benchmarks.speed.timing import Timings, fit_exponent, result_of, time_in_turns

REDUCED_SETS = ("digits", "mnist", "batch", "large")
CASES = (*REDUCED_SETS, "optimisers", "proxies", "solvers", "growth")
# What `learnware` is tried with besides its defaults. Its step on the points takes half of one of
# the two terms of the gradient, so that more or larger steps soon make the result worse.
SETTINGS: dict[str, dict[str, Any]] = {
    "signed": {"nonnegative_beta": False},
    "signed, 0 steps": {"nonnegative_beta": False, "steps": 0},
    "signed, 10 steps": {"nonnegative_beta": False, "steps": 10},
    "signed, steps of 1.0": {"nonnegative_beta": False, "step_size": 1.0},
}
TRIAL_ROWS, TRIAL_SETS, TRIAL_SEEDS = 2000, 4, 3  # at most, on which the settings are compared
PASSES = (0, 1, 2, 3, 5, 8, 12, 20, 40)  # after which jaxspec may be stopped
RIDGE = 1e-3
PROBLEMS = (  # n, d, classes, ridge of the solvers
    (50, 64, 5, 1e-3),
    (50, 256, 5, 1e-3),
    (1000, 64, 5, 1e-3),
    (1000, 64, 5, 1e-5),
    (1000, 64, 10, 1e-3),
    (1000, 64, 50, 1e-3),
    (5000, 64, 10, 1e-3),
    (1000, 256, 10, 1e-3),
    (1000, 256, 10, 1e-5),
    (5000, 256, 50, 1e-3),
)
SLOW_SOLVERS, LARGEST = ("Boehning", "dense Newton"), 700  # seconds per fit above so many d C


class Context(NamedTuple):
    """What every case needs to know."""

    learnware: LearnwareProcess | None
    quick: bool
    repeats: int


# Reduced sets


def best_setting(case: Case, process: LearnwareProcess) -> tuple[str, dict[str, float]]:
    """Return which of `SETTINGS` has the least median error on a small trial, and all errors."""
    stride = math.ceil(len(case.sets[0]) / TRIAL_ROWS)
    small = case._replace(sets=[rows[::stride] for rows in case.sets[:TRIAL_SETS]])
    names = [process.put(rows) for rows in small.sets]
    judge, errors = Judge(small), {}
    for name, options in SETTINGS.items():
        progress(f"{case.label}: learnware, {name}")
        call = learnware_sets(small, process, names, **options)
        errors[name] = median_error(call, judge)
    return min(errors, key=lambda name: errors[name]), errors


def median_error(call: Callable[[int], Any], judge: Judge) -> float:
    """Return the median error of a method over a few seeds."""
    return statistics.median(judge(result_of(call(seed))) for seed in range(TRIAL_SEEDS))


def passes_for(case: Case, target: float, judge: Judge) -> int | None:
    """Return the fewest of `PASSES` after which the error of jaxspec is at most `target`."""
    return next((p for p in PASSES if median_error(stopped_after(case, p), judge) <= target), None)


def reduced_sets(name: str, context: Context) -> dict[str, Any]:
    """Compare the reduced sets of a case with those of the rivals."""
    case = make_case(name, context.quick)
    judge, process = Judge(case), context.learnware
    record: dict[str, Any] = {"bandwidth": case.bandwidth}
    calls: dict[str, Callable[[int], Any]] = {"jaxspec, default": jaxspec_sets(case)}
    if len(case.sets) == 1 and len(case.sets[0]) <= 2048:
        calls["jaxspec, default, error not reported"] = jaxspec_sets(case, exact_error=False)
    rivals: dict[str, Callable[[int], Any]] = {"k-means, best weights": k_means(case)}
    if process is not None:
        best, record["learnware_settings"] = best_setting(case, process)
        names = [process.put(rows) for rows in case.sets[:LOOPED]]
        rivals["learnware, default"] = learnware_sets(case, process, names)
        if best != "signed":  # its own optimisation, where k-means with best weights is ahead
            rivals["learnware, signed"] = learnware_sets(case, process, names, **SETTINGS["signed"])
        rivals[f"learnware, best ({best})"] = learnware_sets(case, process, names, **SETTINGS[best])
    strongest = list(rivals)[-1]  # the best of learnware, or else k-means
    target = median_error(rivals[strongest], judge)
    passes = passes_for(case, target, judge)
    record["stopped"] = {"as_good_as": strongest, "error": target, "passes": passes}
    if passes is not None:
        calls[f"jaxspec, {passes} passes"] = stopped_after(case, passes)
    jax.clear_caches()  # the search for the passes has compiled what the first calls should
    rows = time_in_turns({**calls, **rivals}, context.repeats, compiled=lambda name: name in calls)
    return {**judged(case, rows, judge), **record}


def judged(case: Case, rows: dict[str, Timings], judge: Judge) -> dict[str, Any]:
    """Return the record of the methods of a case, with times and errors."""
    methods = {}
    for name, row in rows.items():
        errors = [judge(made) for made in row.results]
        methods[name] = {**row.record(), "errors": errors, "error": statistics.median(errors)}
    return {"case": case.label, "quality": "relative error", "methods": methods}


def optimisers(context: Context) -> dict[str, Any]:
    """Compare the optimiser of the library with the rival ones, on digits."""
    case = make_case("digits", context.quick)
    calls: dict[str, Callable[[int], Any]] = {
        "jaxspec, default": jaxspec_sets(case, exact_error=False),
        **{f"jaxspec, {steps} passes": stopped_after(case, steps) for steps in (0, 1, 3, 10, 40)},
        **{
            name: rival(method, case.sets[0], size=case.size, kernel=case.kernel)
            for name, method in RIVALS.items()
        },
        "k-means, weights 1/m": k_means(case, best=False),
        "k-means, best weights": k_means(case),
    }
    return judged(case, time_in_turns(calls, context.repeats), Judge(case))


# Proxies


def proxies(context: Context) -> dict[str, Any]:
    """Compare a batch of proxies with loops of scikit-learn."""
    from joblib import Parallel, delayed
    from threadpoolctl import threadpool_limits

    count, n, d, classes = (32, 200, 64, 5) if context.quick else (256, 1000, 64, 5)
    data = [overlapping_classes(n, d, classes, seed) for seed in range(count)]
    features, labels = ([pair[i] for pair in data] for i in (0, 1))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    fit = partial(proxy_solvers.logistic, ridge=RIDGE)

    def batched(_: int) -> list[tuple[Any, Any]]:
        made = js.fit_proxies(features, labels, num_classes=[classes] * count, ridge=RIDGE)
        return list(zip(*jax.device_get((made.weights, made.bias)), strict=True))

    def loop(tolerance: float, threads: int | None = None) -> Callable[[int], Any]:
        def call(_: int) -> list[tuple[Any, Any]]:
            with threadpool_limits(threads):
                return [fit(*pair, tolerance=tolerance) for pair in data]

        return call

    def parallel(_: int) -> list[tuple[Any, Any]]:
        return Parallel(n_jobs=cores)(delayed(fit)(*pair, tolerance=1e-4) for pair in data)

    calls = {
        "jaxspec, fit_proxies": batched,
        "scikit-learn, default": loop(1e-4),
        "scikit-learn, default, one BLAS thread": loop(1e-4, 1),
        f"scikit-learn, default, {cores} processes": parallel,
        "scikit-learn, tol=1e-6, one BLAS thread": loop(1e-6, 1),  # near the gradient of jaxspec
    }
    rows = time_in_turns(calls, context.repeats, compiled=lambda name: name.startswith("jaxspec"))
    methods = {}
    for name, row in rows.items():
        norms = [
            proxy_solvers.gradient_norm(*pair, *proxy, ridge=RIDGE)
            for pair, proxy in zip(data, row.results[-1], strict=True)
        ]
        methods[name] = {**row.record(), "error": max(norms)}
    label = f"proxies: {count} x n={n}, d={d}, C={classes}"
    return {"case": label, "quality": "largest gradient norm", "methods": methods}


def solvers(context: Context) -> list[dict[str, Any]]:
    """Compare the solver of the library with the rival ones, one record per problem."""
    records = []
    for n, d, classes, ridge in PROBLEMS[:1] + PROBLEMS[2:4] if context.quick else PROBLEMS:
        features, labels = overlapping_classes(n, d, classes)
        problem = proxy_solvers.problem_of(features, labels, classes, ridge)
        fit = partial(js.fit_proxy, features, labels, num_classes=classes, ridge=ridge)
        logistic = partial(proxy_solvers.logistic, features, labels, ridge=ridge)
        calls: dict[str, Callable[[int], Any]] = {
            "jaxspec, fit_proxy": lambda _, fit=fit: fit(return_diagnostics=True),
            "scikit-learn": lambda _, logistic=logistic: logistic(),
        }
        for name, solver in proxy_solvers.SOLVERS.items():
            if name not in SLOW_SOLVERS or d * classes <= LARGEST:
                run = jax.jit(solver)
                calls[name] = lambda _, run=run, problem=problem: run(problem)
        methods = {}
        for name, row in time_in_turns(calls, context.repeats, budget=10).items():
            found, steps = row.results[-1], None
            if name.startswith("jaxspec"):
                steps, norm = int(found[1].iterations), float(found[1].gradient_norm)
            elif name == "scikit-learn":
                norm = proxy_solvers.gradient_norm(features, labels, *found, ridge=ridge)
            else:
                norm, steps = float(found[1]), int(found[2])
            methods[name] = {**row.record(), "error": norm, "steps": steps}
        label = f"proxy: n={n}, d={d}, C={classes}, ridge={ridge:g}"
        records.append({"case": label, "quality": "gradient norm", "methods": methods})
    return records


# Growth


def growth(context: Context) -> dict[str, Any]:
    """Return times against n, d, m and the batch, with exponents.

    jaxspec makes ten passes, so that the figure is the cost of the work and not how soon it stops;
    k-means stops by itself; `learnware` takes its default three steps. A batch is left out where it
    is a loop.
    """

    def case(n: int, d: int, m: int, count: int) -> Case:
        sets = [mixture(n, d, seed) for seed in range(count)]
        return Case("growth", sets, m, float(js.median_bandwidth(sets[0])))

    scale = 4 if context.quick else 1
    n, m = 4000 // scale, 48 // scale
    counts = tuple(v // scale for v in (2000, 4000, 8000, 16000, 32000))
    sizes_m = tuple(v // scale for v in (24, 48, 96, 192, 384))
    sweeps: dict[str, tuple[tuple[int, ...], Callable[[int], Case]]] = {
        "n": (counts, lambda v: case(v, 64, m, 1)),
        "d": ((32, 64, 128, 256, 512), lambda v: case(n, v, m, 1)),
        "m": (sizes_m, lambda v: case(n, 64, v, 1)),
        "batch": ((16, 32, 64, 128), lambda v: case(500 // scale, 64, m, v)),
    }
    found: dict[str, Any] = {}
    for axis, (sizes, make) in sweeps.items():
        seconds: dict[str, list[float]] = {}
        for size in sizes:
            one = make(size)
            progress(f"growth with {axis}: {one.label}")
            calls: dict[str, Callable[[int], Any]] = {"jaxspec, 10 passes": stopped_after(one, 10)}
            if axis != "batch":
                calls["k-means, best weights"] = k_means(one)
                if context.learnware is not None:
                    names = [context.learnware.put(one.sets[0])]
                    calls["learnware, default"] = learnware_sets(one, context.learnware, names)
            is_ours = "jaxspec, 10 passes".__eq__
            rows = time_in_turns(calls, context.repeats, compiled=is_ours, budget=20)
            for name, row in rows.items():
                seconds.setdefault(name, []).append(row.minimum)
        found[axis] = {
            name: {"sizes": sizes, "min_s": times, **fit_exponent(sizes, times)._asdict()}
            for name, times in seconds.items()
        }
    return found


# What is shown


def print_methods(record: dict[str, Any], repeats: int) -> None:
    """Print the table of a case; its ratio is the median time over that of the first row."""
    base = next(iter(record["methods"].values()))["median_s"]
    rows = []
    for name, row in record["methods"].items():
        times = [milliseconds(row["min_s"]), milliseconds(row["median_s"])]
        ratio, first = f"{row['median_s'] / base:.3g}", f"{row['first_call_s']:.2f}"
        rows.append([name, f"{row['error']:.2e}", *times, ratio, first, str(row["repeats"])])
    headers = ["method", record["quality"], "min ms", "median ms", "median / first row"]
    title = f"{record['case']}; at most {repeats} repeats in turns"
    print_table(title, [*headers, "first call s", "repeats"], rows)
    if stopped := record.get("stopped"):
        passes = stopped["passes"]
        reached = "not reached" if passes is None else f"reached after {passes} passes"
        print(f"\n{stopped['as_good_as']} has an error of {stopped['error']:.2e}: {reached}.")
    if settings := record.get("learnware_settings"):
        tried = "; ".join(f"{name}: {error:.2e}" for name, error in settings.items())
        print(f"Settings of learnware, error: {tried}.")


def print_growth(found: dict[str, Any], repeats: int) -> None:
    """Print sizes, times and exponents, one table per axis."""
    for axis, methods in found.items():
        sizes = next(iter(methods.values()))["sizes"]
        rows = []
        for name, row in methods.items():
            fit = [f"{row['exponent']:.2f}", f"{row['worst_ratio']:.2f}"]
            rows.append([name, *(milliseconds(seconds) for seconds in row["min_s"]), *fit])
        headers = ["min ms", *(f"{axis}={size}" for size in sizes), "exponent", "worst / fit"]
        print_table(f"growth with {axis}; fastest of {repeats} repeats", headers, rows)


def main() -> None:
    """Run the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--learnware", type=Path, help="folder of its environment, made if absent")
    parser.add_argument("--learnware-threads", type=int, help="of torch; else its own choice")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="small sizes, to check the script")
    parser.add_argument("--output", type=Path, help="JSON and pictures, without suffix")
    options = parser.parse_args()
    environment: Any = nullcontext()
    if options.learnware is not None:
        python = ensure_environment(options.learnware)
        environment = LearnwareProcess(python, options.learnware_threads)
    others = {"optimisers": optimisers, "proxies": proxies, "solvers": solvers, "growth": growth}
    results: dict[str, Any] = {}
    with environment as process:
        context = Context(process, options.quick, options.repeats)
        for name in options.cases:
            run = others.get(name) or partial(reduced_sets, name)
            found = results[name] = run(context)
            records = [] if name == "growth" else found if isinstance(found, list) else [found]
            for record in records:
                print_methods(record, options.repeats)
            if name == "growth":
                print_growth(found, options.repeats)
            if options.output:  # after every case: a run that is stopped keeps what it has
                settings = {"quick": options.quick, "repeats": options.repeats}
                settings["learnware"] = None if process is None else process.versions()
                path = options.output.with_name(options.output.name + ".json")
                merge_results(path, {name: found}, settings=settings)
    if options.output:
        stem = options.output.name
        drawn = [one for name, one in results.items() if name not in ("growth", "solvers")]
        if drawn:
            plots.plot_errors(options.output.with_name(f"{stem}.png"), drawn)
        if "growth" in results:
            plots.plot_growth(options.output.with_name(f"{stem}-growth.png"), results["growth"])


if __name__ == "__main__":
    main()
