"""What does a user gain by trying a short list, and what if no model covers the user's classes?

    python -m benchmarks.studies.reuse --cache DIR --markets 20 --output reuse.json

draws markets of trained heads on Fashion-MNIST in 11 contexts (`jaxspec.applications.heads`) and
measures, on fresh test pictures:

    direct use     22 users per market, without their own learnware: the model with the best score
                   (k = 1), the choice of `try_short_list` among 3, 5 and all, brute force (the
                   most accurate of all models on the 50 examples), and the best model there is;
    hetero         11 users per market whose label space no developer has: `assemble` beside the
                   recommended learnware fine-tuned (`fine_tune`), the best single fine-tuned one
                   in hindsight, a head from scratch, and linear probes on the 64 public features
                   and on all 256. `seen`: all 22 learnwares; `unseen`: none of the user's context.

Each finished market is kept beside the cache, so that the run can be stopped and started again. The
constants of `jaxspec.reuse` were chosen on seeds 0 to 9; reported markets start at 5000. Intervals
are 95 % bootstrap intervals of the mean over markets.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxspec as js
from benchmarks.records import progress, write_record
from benchmarks.studies.study_data import (
    StudyData,
    draw,
    load_family,
    market_features,
    space_of,
    users_of,
)
from jaxspec import evaluation, reuse
from jaxspec.applications import heads, scenario

SHORT_LISTS = (1, 3, 5)
WIDTH = scenario.MARKET_DIMENSION
SCRATCH_STEPS = 300
VERSION = 1  # of the file of a market
Array = Any


def hidden(layer: Any, inputs: Array) -> Array:
    """Return the hidden activations of a head; `fine_tune` takes this as `apply`."""
    return jax.nn.relu(inputs @ layer["kernel"] + layer["bias"])


def accuracy(probabilities: Array, labels: np.ndarray) -> float:
    """Return how often the most probable class is the label."""
    return float((np.asarray(probabilities).argmax(axis=1) == labels).mean())


def short_lists(
    market: js.Market, drawn: scenario.MarketDraw, specs: list[Any], parameters: Any, data: Array
) -> dict[str, float]:
    """Return the mean test accuracy of every way to choose one model for direct use."""
    tests, brute = heads.direct_truth(parameters, drawn, data)
    number = {developer.name: i for i, developer in enumerate(drawn.developers)}
    found: dict[str, list[float]] = {}

    def model(learnware: str, rows: np.ndarray) -> np.ndarray:
        return heads.predict(parameters, number[learnware], data[rows])

    for q, (user, spec) in enumerate(zip(drawn.users, specs, strict=True)):
        others = market.remove([user.name])
        result = js.match(others, spec)
        truth = {i: float(tests[q][number[i]].mean()) for i in others.ids}
        on_examples = {i: brute[q][number[i]] for i in others.ids}
        top = max(on_examples.values())
        row = {
            "brute force": np.mean([truth[i] for i, own in on_examples.items() if own == top]),
            "best model": max(truth.values()),
        }
        for k in (*SHORT_LISTS, len(others)):
            name = "all" if k == len(others) else str(k)
            trial = reuse.try_short_list(result, model, user.rows, user.labels, k=k)
            row[f"k = {name}"] = truth[trial.chosen]
            alone = reuse.try_short_list(
                result, model, user.rows, user.labels, k=k, prior_examples=0.0
            )
            row[f"k = {name}, evidence alone"] = truth[alone.chosen]
        for name, value in row.items():
            found.setdefault(name, []).append(float(value))
    return {name: float(np.mean(values)) for name, values in found.items()}


def strangers(
    market: js.Market, drawn: scenario.MarketDraw, specs: list[Any], parameters: Any, data: Array
) -> dict[str, dict[str, float]]:
    """Return {regime: {method: mean test accuracy}} of users with classes of their own."""
    tuned = heads.fine_tuning_truth(parameters, drawn.developers, drawn.strangers, data)
    layer = jax.tree.map(np.asarray, parameters["params"]["layers_0"])
    number = {developer.name: i for i, developer in enumerate(drawn.developers)}
    found: dict[str, dict[str, list[float]]] = {"seen": {}, "unseen": {}}

    def model(learnware: str, rows: np.ndarray) -> np.ndarray:
        return heads.predict(parameters, number[learnware], data[rows])

    for q, (user, spec) in enumerate(zip(drawn.strangers, specs, strict=True)):
        examples, tests = data[user.rows], data[user.test_rows]
        classes = len(user.space.names)
        shared = {}
        for name, width in (("linear probe, public features", WIDTH), ("linear probe, all", None)):
            fitted = reuse.fit_validated_proxy(
                examples[:, :width], user.labels, num_classes=classes
            ).proxy
            logits = tests[:, :width] @ np.asarray(fitted.weights) + np.asarray(fitted.bias)
            shared[name] = accuracy(logits, user.test_labels)
        shape = layer["kernel"].shape[1:]
        start = jax.random.normal(jax.random.key(q), shape) / np.sqrt(shape[0])
        scratch = reuse.fine_tune(
            hidden, {"kernel": start, "bias": np.zeros(shape[1], np.float32)}, examples,
            user.labels, num_classes=classes, max_steps=SCRATCH_STEPS,
        )  # fmt: skip
        shared["head from scratch"] = accuracy(scratch(tests), user.test_labels)
        truth = tuned[q].mean(axis=1)
        absent = [i.name for i in drawn.developers if i.context == user.context]
        for regime in found:
            asked = market.remove(absent) if regime == "unseen" else market
            result = js.match(asked, spec)
            first = number[js.match(asked, spec, k=1).ids[0]]
            own = {name: value[first] for name, value in layer.items()}
            single = reuse.fine_tune(hidden, own, examples, user.labels, num_classes=classes)
            public = examples[:, :WIDTH]
            assembly = reuse.assemble(result, model, user.rows, public, user.labels)
            chance = assembly(model, user.test_rows, tests[:, :WIDTH])
            wide = reuse.assemble(result, model, user.rows, examples, user.labels)
            row = {
                "assembly": accuracy(chance, user.test_labels),
                "assembly, all features": accuracy(
                    wide(model, user.test_rows, tests), user.test_labels
                ),
                "recommended, fine-tuned": accuracy(single(tests), user.test_labels),
                "recommended, 60 steps": truth[first],
                "best single in hindsight": max(truth[number[i]] for i in asked.ids),
                **shared,
                "learnwares in the assembly": len(assembly.ids),
            }
            for name, value in row.items():
                found[regime].setdefault(name, []).append(float(value))
    return {
        regime: {name: float(np.mean(values)) for name, values in rows.items()}
        for regime, rows in found.items()
    }


def measure(data: StudyData, seed: int) -> dict[str, Any]:
    """Return everything measured on the market of one seed."""
    drawn, z = draw(data, seed), market_features(data)
    developers, probe_rows = drawn.developers, drawn.probe_rows
    parameters = heads.train_heads(data.features, developers, seed=seed)

    def outputs(rows_of: Any) -> list[np.ndarray]:
        return [
            heads.predict(parameters, m, data.features[rows_of(one)])
            for m, one in enumerate(developers)
        ]

    space = space_of(data, probe_rows)
    made = js.specify_many(
        space,
        [z[one.rows] for one in developers],
        [one.labels for one in developers],
        class_names=[one.space.names for one in developers],
        teachers=outputs(lambda one: one.rows),
        probe_outputs=outputs(lambda one: probe_rows),
        key=jax.random.key(seed),
    )
    market = js.Market(space, {d.name: one for d, one in zip(developers, made, strict=True)})
    users, others = (users_of(space, tasks, data) for tasks in (drawn.users, drawn.strangers))
    return {
        "version": VERSION,
        "seed": seed,
        "direct": short_lists(market, drawn, users, parameters, data.features),
        "hetero": strangers(market, drawn, others, parameters, data.features),
    }


def table(markets: list[dict[str, float]], against: str) -> dict[str, dict[str, Any]]:
    """Return {method: mean, interval, and how often `against` is better} over markets."""
    rows = {}
    for name in markets[0]:
        values = np.array([one[name] for one in markets])
        gain = np.array([one[against] for one in markets]) - values
        row: dict[str, Any] = {"mean": float(values.mean()), "wins": int((gain > 0).sum())}
        if len(markets) > 1:
            for key, numbers in (("interval", values), ("gain_interval", gain)):
                rng = np.random.default_rng(0)
                row[key] = list(evaluation.bootstrap_interval(numbers, rng=rng))
        row["gain"] = float(gain.mean())
        rows[name] = row
    return rows


def show(title: str, rows: dict[str, dict[str, Any]], against: str, markets: int) -> None:
    """Print a table of `table`."""
    print(f"\n{title}, {markets} markets; accuracy in per cent [95 % interval]")
    print(f"{'':32s} {'mean':>6s} {'interval':>15s}   {against} minus this [interval], better in")
    for name, row in rows.items():
        if name == "learnwares in the assembly":
            print(f"{name:32s} {row['mean']:6.1f}")
            continue
        low, high = row.get("interval", (np.nan, np.nan))
        worse, better = row.get("gain_interval", (np.nan, np.nan))
        print(
            f"{name:32s} {100 * row['mean']:6.2f} [{100 * low:6.2f},{100 * high:6.2f}]   "
            f"{100 * row['gain']:+6.2f} [{100 * worse:+.2f}, {100 * better:+.2f}], "
            f"{row['wins']} of {markets}"
        )


def main() -> None:
    """Measure the markets that are asked for, and report means over them."""
    parser = argparse.ArgumentParser(description="Measure the reuse of recommended learnwares.")
    parser.add_argument("--cache", type=Path, required=True, help="folder of fashion_study.npz")
    parser.add_argument("--markets", type=int, default=20)
    parser.add_argument("--first", type=int, default=5000, help="seed of the first market")
    parser.add_argument("--keep", type=Path, default=None, help="folder of the finished markets")
    parser.add_argument("--minutes", type=float, default=None, help="start no market after this")
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    arguments = parser.parse_args()
    if arguments.markets < 1:
        parser.error(f"--markets: expected at least 1, got {arguments.markets}")
    data = load_family("fashion", arguments.cache, images=False)
    keep = arguments.keep or arguments.cache / "reuse"
    keep.mkdir(parents=True, exist_ok=True)
    begin, done = time.perf_counter(), []
    for seed in range(arguments.first, arguments.first + arguments.markets):
        path = keep / f"reuse_{seed}.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        if known.get("version") != VERSION:
            spent = time.perf_counter() - begin
            if arguments.minutes is not None and spent > 60 * arguments.minutes:
                continue
            known = measure(data, seed)
            path.write_text(json.dumps(known))
            took = time.perf_counter() - begin - spent
            progress(f"market {seed}: {took:.0f} s")
        done.append(known)
    if not done:
        parser.error("--minutes: no market was finished")
    tables = {"direct": table([one["direct"] for one in done], "k = 3")}
    show("Direct use, own learnware absent", tables["direct"], "k = 3", len(done))
    for regime in ("seen", "unseen"):
        rows = table([one["hetero"][regime] for one in done], "assembly")
        tables[f"hetero {regime}"] = rows
        show(f"Classes that nobody has, {regime}", rows, "assembly", len(done))
    if arguments.output is not None:
        report = {"seeds": [one["seed"] for one in done], "tables": tables, "markets": done}
        write_record(arguments.output, report)


if __name__ == "__main__":
    main()
