"""What should a specification hold of a model's hidden features, and does it help fine-tuning?

    python -m benchmarks.studies.hidden --cache DIR --family fashion --first 2000 --markets 20

asks on the markets of `benchmarks.studies.identification` (heads only, the same cached truth) how
often the truly best model comes first for users who fine-tune it. A score is R^2 of a leave-one-out
ridge regression of the user's labels on inputs of total variance one, plus w times the closeness
cos(Phi_T, Phi_l) of the embeddings. The inputs:

    outputs           of the probe proxy: `js.match` without representations
    hidden, true      the real model's hidden activations on the user's examples
    own data          a linear map of the public features to the leading hidden directions, fitted
                      on the developer's data; at rank 16 it is `jaxspec.specify.representation`
    probe, linear     the same fitted on the probe pictures of the market
    probe, lifted     the same of the lifted features phi(z) of `jaxspec.kernels.lift`

Missing truth is measured and kept, so a run that was stopped can be started again. The models are
trained anew for their hidden features on all these pictures, and are checked against what the truth
keeps of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.linalg import block_diag

import jaxspec as js
from benchmarks.records import progress, write_record
from benchmarks.studies import truth as truths
from benchmarks.studies.identification import summarize
from benchmarks.studies.rankings import REGIMES, kept_learnwares
from benchmarks.studies.study_data import (
    StudyData,
    draw,
    load_family,
    market_features,
    space_of,
    users_of,
)
from benchmarks.studies.study_report import aggregate
from jaxspec.applications import heads, scenario
from jaxspec.kernels import lift
from jaxspec.specify import RANK, fit_representation

SETTINGS = ("hetero-fine-tuning", "homo-fine-tuning")
COLUMNS = tuple((setting, regime) for setting in SETTINGS for regime in REGIMES)
PENALTIES = (0.03, 0.1, 0.3)
WEIGHTS = (1.0, 2.0, 4.0)
DEFAULT = (0.1, 2.0)  # jaxspec's penalty and w
RIDGE = 1e-2  # relative to the mean variance, as of `fit_representation`
LIFTED_RIDGE = 1e-4  # absolute, since phi(z) has about unit norm
BASELINES = ("rkme", "closeness alone", "outputs (probe proxy)")
OUTPUTS = BASELINES[-1]
OWN_RANKS = {f"own data, rank {rank}": rank for rank in (4, 8, RANK)}
OWN, OWN_ALL, TRUE = f"own data, rank {RANK}", "own data, all", "hidden, true"
LINEAR, LIFTED = f"probe, linear, rank {RANK}", f"probe, lifted, rank {RANK}"
INPUTS = (TRUE, *OWN_RANKS, OWN_ALL, LINEAR, LIFTED)


def score_name(name: str, penalty: float, weight: float) -> str:
    """Return what a score is called in the report."""
    return f"{name}, penalty {penalty:g}, w {weight:g}"


def ridge_map(inputs: np.ndarray, targets: np.ndarray, penalty: float) -> np.ndarray:
    """Return the ridge regression (d, r) of targets (n, r) on inputs (n, d), both centred."""
    x, y = inputs - inputs.mean(axis=0), targets - targets.mean(axis=0)
    matrix = x.T @ x / len(x) + penalty * np.eye(x.shape[1])
    return np.linalg.solve(matrix, x.T @ y / len(x))


def fit_maps(own: Any, probe: Any, lifted: np.ndarray) -> dict[str, np.ndarray]:
    """Return all maps of one model, (d, r), or (D, r) of lifted features.

    `own` and `probe` are public features (n, d) and hidden activations (n, h) on the developer's
    data and on the probe's p pictures, `lifted` (p, D) lifted features of the latter.
    """
    found = fit_representation(*own)  # its first columns are the map of that rank
    maps = {name: found[:, :rank] for name, rank in OWN_RANKS.items()}
    z, hidden = (value.astype(np.float64) for value in own)
    maps[OWN_ALL] = ridge_map(z, hidden, RIDGE * z.var(axis=0).mean())
    maps[LINEAR] = fit_representation(*probe)
    centred = probe[1].astype(np.float64) - probe[1].mean(axis=0)
    left, size, _ = np.linalg.svd(centred, full_matrices=False)
    maps[LIFTED] = ridge_map(lifted, (left * size)[:, :RANK], LIFTED_RIDGE)
    return maps


def explained(inputs: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return R^2 of leave-one-out ridge regressions of labels (n,) on inputs (M, n, r).

    The result is (penalties, M). By the Gram matrix of the examples, since r may exceed n.
    """
    count = len(labels)
    x = inputs.astype(np.float64)
    x -= x.mean(axis=1, keepdims=True)
    gram = x @ x.transpose(0, 2, 1)
    gram /= np.maximum(np.trace(gram, axis1=1, axis2=2), 1e-30)[:, None, None]
    y = np.eye(classes)[labels]
    y -= y.mean(axis=0)
    found = []
    for penalty in PENALTIES:
        rest = penalty * np.linalg.inv(gram + penalty * np.eye(count))  # identity less hat matrix
        kept = np.diagonal(rest, axis1=1, axis2=2) - 1.0 / count  # the intercept's leverage
        left_out = rest @ y / kept[:, :, None]
        found.append(1.0 - np.square(left_out).sum(axis=(1, 2)) / np.square(y).sum())
    return np.stack(found)


def closeness(
    kernel: js.Gaussian,
    specifications: list[js.Specification],
    users: list[js.UserSpecification],
) -> np.ndarray:
    """Return cos(Phi_T, Phi_l), (users, models)."""
    sets = [one.reduced_set for one in (*users, *specifications)]
    points = np.concatenate([np.asarray(one.points) for one in sets])
    weights = block_diag(*(np.asarray(one.weights)[:, None] for one in sets))
    products = weights.T @ np.asarray(js.gram(kernel, points, points)) @ weights
    norms = np.sqrt(np.diagonal(products))
    return (products / norms / norms[:, None])[: len(users), len(users) :]


def score_market(data: StudyData, seed: int, truth: Any) -> dict[str, Any]:
    """Return {setting: {regime: {score: metrics}}} of one market."""
    market = draw(data, seed)
    developers, probe_rows, z = market.developers, market.probe_rows, market_features(data)
    trained = heads.train_heads(data.features, developers, seed=seed)
    parameters = jax.tree.map(np.asarray, trained)

    def hidden(model: int, rows: np.ndarray) -> np.ndarray:
        return heads.hidden_features(parameters, model, data.features[rows])

    own = [(z[one.rows], hidden(m, one.rows)) for m, one in enumerate(developers)]
    if not np.allclose([values for _, values in own], truth["hidden"], rtol=1e-2, atol=1e-2):
        sys.exit(f"market {seed}: trained to other models than its cached truth; delete that file")
    space = space_of(data, probe_rows)
    specs = js.specify_many(
        space,
        [features for features, _ in own],
        [one.labels for one in developers],
        class_names=[one.space.names for one in developers],
        teachers=list(truth["own"]),
        probe_outputs=list(truth["probe"]),
        key=jax.random.key(seed),
    )
    without = js.Market(space, {d.name: one for d, one in zip(developers, specs, strict=True)})

    def lifted(rows: np.ndarray) -> np.ndarray:
        found = lift(space.kernel, space.landmarks, space.whitening, z[rows])
        return np.asarray(found, np.float64)

    high = lifted(probe_rows)
    fitted = [fit_maps(o, (z[probe_rows], hidden(m, probe_rows)), high) for m, o in enumerate(own)]
    maps = {name: np.stack([one[name] for one in fitted]) for name in fitted[0]}

    def parts(task: scenario.User) -> np.ndarray:
        """Return R^2 of all inputs for one user, (inputs, penalties, models)."""
        seen = {TRUE: np.stack([hidden(m, task.rows) for m in range(len(developers))])}
        for name, value in maps.items():
            seen[name] = (lifted(task.rows) if name == LIFTED else z[task.rows]) @ value
        return np.stack([explained(seen[n], task.labels, len(task.space.names)) for n in INPUTS])

    tuned = truths.hits_of(truth, "tuned")
    homogeneous = len(market.users)
    asked = ((market.strangers, tuned[homogeneous:]), (market.users, tuned[:homogeneous]))
    results: dict[str, Any] = {}
    for setting, (tasks, hits) in zip(SETTINGS, asked, strict=True):
        users = users_of(space, tasks, data)
        rkme, outputs = (
            np.stack([one.scores for one in js.match(without, users, method=method)])
            for method in ("rkme", "transfer")
        )
        near = closeness(space.kernel, specs, users)
        scores = dict(zip(BASELINES, (rkme, near, outputs), strict=True))
        values = np.stack([parts(task) for task in tasks], axis=2)  # (inputs, penalties, Q, M)
        for i, name in enumerate(INPUTS):
            for j, penalty in enumerate(PENALTIES):
                for weight in WEIGHTS:
                    scores[score_name(name, penalty, weight)] = values[i, j] + weight * near
        results[setting], hetero = {}, setting == SETTINGS[0]
        for regime in REGIMES:
            keep = kept_learnwares(tasks, developers, regime, hetero)
            found = summarize(scores, hits, keep, seed)
            ours, base = found[score_name(OWN, *DEFAULT)], found[OUTPUTS]
            gain = {metric: ours[metric] - base[metric] for metric in ours}
            results[setting][regime] = found | {"gain": gain}
    return results


def markdown(report: dict[str, Any], title: str) -> str:
    """Return the report as two Markdown tables: of the inputs, of penalties and weights."""

    def table(head: str, rows: dict[str, str]) -> list[str]:
        lines = [f"| {head} | " + " | ".join(map(", ".join, COLUMNS)) + " |", "|---" * 5 + "|"]
        for shown, name in rows.items():
            cells = [report[setting][regime][name] for setting, regime in COLUMNS]
            text = (
                f"{100 * c['pre@1']:.1f}, {c['tau']:.2f}, {100 * c['regret']:.2f}" for c in cells
            )
            lines.append(f"| {shown} | " + " | ".join(text) + " |")
        return [*lines, ""]

    inputs = {name: name for name in BASELINES}
    inputs |= {name: score_name(name, *DEFAULT) for name in INPUTS} | {"ceiling": "ceiling"}
    grid = {f"{p:g}, {w:g}": score_name(OWN, p, w) for p in PENALTIES for w in WEIGHTS}
    lines = [f"# {title}", "", "Pre@1 in per cent, Kendall's tau, regret in points.", ""]
    lines += [f"## Inputs, penalty {DEFAULT[0]:g} and w {DEFAULT[1]:g}", ""]
    lines += table("input", inputs)
    lines += [f"Pre@1 of {OWN} above {OUTPUTS}, points, 95 % interval over markets:", ""]
    for setting, regime in COLUMNS:
        gain = report[setting][regime]["gain"]
        low, high = gain.get("pre@1 interval", (gain["pre@1"], gain["pre@1"]))
        span = f"{100 * gain['pre@1']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        lines.append(f"- {setting}, {regime}: {span}")
    return "\n".join([*lines, "", f"## {OWN}", "", *table("penalty, w", grid)])


def main() -> None:
    """Score the markets that are asked for, and report means over them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--family", choices=("fashion", "emoji"), default="fashion")
    parser.add_argument("--markets", type=int, default=20)
    parser.add_argument("--first", type=int, default=2000, help="seed of the first market")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")
    options = parser.parse_args()
    data = load_family(options.family, options.cache, images=False)
    folder = truths.truth_folder(options.cache, options.family, "heads")
    markets = []
    began = time.perf_counter()
    for seed in range(options.first, options.first + options.markets):
        path = folder / f"market-{seed}.npz"
        if not path.exists():
            truths.measure_truth(data, seed, "heads", path)
        with np.load(path) as truth:
            markets.append(score_market(data, seed, dict(truth)))
        seconds = time.perf_counter() - began
        progress(f"market {len(markets)} of {options.markets}: {seconds:.0f} s")
    report = aggregate(markets)
    print(markdown(report, f"{options.family}, {len(markets)} markets from {options.first}"))
    if options.output:
        study = {"family": options.family, "markets": len(markets), "first seed": options.first}
        study |= {"penalties": PENALTIES, "weights": WEIGHTS, "default": DEFAULT}
        write_record(options.output, {"study": study, "results": report})


if __name__ == "__main__":
    main()
