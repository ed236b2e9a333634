"""How often is the first recommendation the right one? The study behind the README's table.

    python -m benchmarks.studies.identification --family fashion --models heads --markets 20 --cache DIR

draws random markets (11 contexts x 2 overlapping label spaces = 22 trained models), measures the
accuracy of every model for every user on fresh test pictures, and ranks them by every method in
the paper's settings: homogeneous users who use a model as it is or fine-tune it, heterogeneous
users who fine-tune. `seen`: all 22 learnwares; `unseen`: without the user's own context and label
space (for heterogeneous users: without its context). A score may depend on who else is in the
market, so every user of `unseen` asks a market from which those learnwares were removed.

Each market's truth is kept in the cache: the run can be stopped and started again, and `--settings
homo-direct` does without fine-tuning, which takes most of the time. Markets with
seeds 0 to 19 served to choose the scores; reported ones start at `--first 1000`. Families:

    fashion   Fashion-MNIST in 11 visual contexts (`benchmarks.datasets.fashion`)
    emoji     emoji in 11 drawing styles, split by emoji (`benchmarks.datasets.emoji`)
    a path    a folder root/domain/class/*.jpg (DomainNet, NICO, Office-Home): features are
              extracted once; ten classes are drawn for each market
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxspec as js
from benchmarks.studies.rivals import h_score, leep, logme, nce
from jaxspec.applications import demo, scenario
from jaxspec.evaluation import metrics as evaluation

SETTINGS = ("homo-direct", "homo-fine-tuning", "hetero-fine-tuning")
REGIMES = ("seen", "unseen")
PAPER = {  # Pre@1, 2, 3 of the paper and of its RKME baseline, in per cent
    "homo-direct": ((95.15, 100, 100), (54.54, 81.82, 95.45)),
    "homo-fine-tuning": ((81.82, 90.91, 90.91), (40.90, 68.18, 81.82)),
    "hetero-fine-tuning": ((59.09, 63.63, 68.18), (36.36, 45.45, 50.00)),
}
TRUTH_VERSION = 1


@dataclasses.dataclass(frozen=True)
class StudyData:
    """Pictures of one family; `images` are raw ones for models that share no extractor."""

    features: np.ndarray
    labels: np.ndarray
    contexts: np.ndarray
    class_names: tuple[str, ...]
    context_names: tuple[str, ...]
    images: np.ndarray | None
    sides: np.ndarray | None
    sizes: dict[str, int]


def load_family(family: str, cache: Path, *, images: bool) -> StudyData:
    """Return the pictures of a family, from its cache file (or made from a folder of pictures)."""
    if family == "fashion":
        path, sizes = cache / "fashion_study.npz", {}
    elif family == "emoji":
        path = cache / "emoji_study.npz"
        sizes = {"developer_size": 500, "pool_size": 150, "test_size": 484}
    else:
        path, sizes = _folder_cache(Path(family), cache), {"developer_size": 400, "pool_size": 150}
    if not path.exists():
        sys.exit(
            f"{path} is missing: run `python -m benchmarks.datasets.{family} --cache {cache}` first"
        )
    with np.load(path) as data:
        return StudyData(
            data["features"].astype(np.float32),
            data["labels"].astype(int),
            data["contexts"].astype(int),
            tuple(map(str, data["class_names"])),
            tuple(map(str, data["context_names"])),
            data["images"] if images else None,
            data["side"].astype(int) if "side" in data else None,
            sizes,
        )


def _folder_cache(root: Path, cache: Path) -> Path:
    """Extract features of root/domain/class/*.jpg once and keep them."""
    from jaxspec.extractors import features as extractor

    path = cache / f"{root.name}_study.npz"
    if path.exists():
        return path
    folder = extractor.scan_domains(root)
    pictures, small, found = len(folder.paths), [], []
    for start in range(0, pictures, 512):
        rows = np.arange(start, min(start + 512, pictures))
        batch = extractor.load_pictures(folder, rows, 96)
        found.append(extractor.efficientnet_features(batch))
        small.append(batch[:, 2::4, 2::4][:, :24, :24])
        print(f"\rextracting {rows[-1] + 1} of {pictures}", end="", file=sys.stderr)
    raw = np.concatenate(found)
    projection = extractor.center_and_project(raw, components=256)
    projected = np.asarray(projection.apply(raw))
    projected *= np.sqrt(64.0 / np.square(projected[:, :64]).sum(axis=1).mean())
    np.savez(
        path,
        features=projected.astype(np.float16),
        labels=folder.classes,
        contexts=folder.domains,
        class_names=np.array(folder.class_names),
        context_names=np.array(folder.domain_names),
        images=np.concatenate(small),
    )
    return path


def draw(data: StudyData, seed: int) -> scenario.MarketDraw:
    """Draw one market; with more than ten classes, over ten that the seed chooses."""
    rng = np.random.default_rng(seed)
    labels, names, contexts = data.labels, data.class_names, data.contexts
    if len(names) > 10:
        chosen = rng.permutation(len(names))[:10]
        number = np.full(len(names), -1)
        number[chosen] = np.arange(10)
        labels, names = number[labels], tuple(names[k] for k in chosen)
        contexts = np.where(labels >= 0, contexts, -1)
    return scenario.draw_market(
        labels, contexts, names, data.context_names, rng, sides=data.sides, **data.sizes
    )


def measure_truth(
    data: StudyData, seed: int, models: str, path: Path, settings: Sequence[str] = SETTINGS
) -> None:
    """Train the models of one market, run and fine-tune them for every user, and keep it all.

    Direct use first, in a file of its own right: fine-tuning, which takes most of the time, is
    measured where `settings` ask for it, and added to what is there.
    """
    market = draw(data, seed)
    everyone = market.users + market.strangers
    if models == "heads":
        parameters = scenario.train_heads(data.features, market.developers, seed=seed)
        predict, hidden, inputs = scenario.predict, scenario.hidden_features, data.features
        direct_truth, fine_tuning = scenario.direct_truth, scenario.fine_tuning_truth
    else:
        from benchmarks.studies import scratch

        assert data.images is not None
        parameters = trained_nets(data, market, seed, path.with_name(f"nets-{seed}.npz"))
        predict, hidden, inputs = scratch.predict_scratch, scratch.hidden_scratch, data.images
        direct_truth, fine_tuning = scratch.scratch_truth, scratch.scratch_fine_tuning

    def run(call: Any, m: int, rows: np.ndarray) -> np.ndarray:
        return call(parameters, m, inputs[rows])

    if not is_measured(path, len(market.probe_rows), SETTINGS[:1]):
        count, own = range(len(market.developers)), [one.rows for one in market.developers]
        direct, _ = direct_truth(parameters, market, inputs)
        kept = {
            "direct": np.packbits(np.stack(direct), axis=-1),
            "tests": np.array(direct[0].shape[-1]),
            "own": np.stack([run(predict, m, own[m]) for m in count]),
            "probe": np.stack([run(predict, m, market.probe_rows) for m in count]),
            "examples": np.stack(
                [[run(predict, m, user.rows) for m in count] for user in everyone]
            ),
            "hidden": np.stack([run(hidden, m, own[m]).astype(np.float16) for m in count]),
        }
        write_arrays(path, kept)
    if not is_measured(path, len(market.probe_rows), settings):
        with np.load(path) as file:
            kept = dict(file)
        tuned = fine_tuning(parameters, market.developers, everyone, inputs)
        write_arrays(path, kept | {"tuned": np.packbits(np.stack(tuned), axis=-1)})


def trained_nets(data: StudyData, market: scenario.MarketDraw, seed: int, path: Path) -> Any:
    """Return the parameters of a market's small nets, from their file where there is one."""
    from benchmarks.studies import scratch

    layers = [f"convolution_{i}" for i in range(len(scratch.CHANNELS))] + ["output"]
    if not path.exists():
        nets = scratch.train_scratch(data.images, market.developers, seed=seed)
        write_arrays(path, {f"{a} {b}": nets[a][b] for a in layers for b in ("kernel", "bias")})
    with np.load(path) as file:
        return {a: {b: file[f"{a} {b}"] for b in ("kernel", "bias")} for a in layers}


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an npz file whole or not at all."""
    temporary = path.with_suffix(".part.npz")
    np.savez(temporary, **arrays)
    temporary.replace(path)


def is_measured(path: Path, probe_size: int, settings: Sequence[str] = SETTINGS) -> bool:
    """Return whether a market's truth is there for these settings and for enough of the probe."""
    if not path.exists():
        return False
    with np.load(path) as truth:
        tuned = "tuned" in truth or set(settings) == {SETTINGS[0]}
        return tuned and truth["probe"].shape[1] >= probe_size


def score_market(
    data: StudyData,
    seed: int,
    truth: Any,
    kernel: Any,
    probe_size: int = 1000,
    settings: Sequence[str] = SETTINGS,
) -> dict[str, Any]:
    """Return {setting: {regime: {method: EvaluationSummary}}} of one market."""
    market = draw(data, seed)
    z = data.features[:, : scenario.MARKET_DIMENSION]
    developers = market.developers
    specs = js.specify_many(
        jax.random.key(seed),
        [z[one.rows] for one in developers],
        [one.labels for one in developers],
        class_names=[one.space.names for one in developers],
        teachers=list(truth["own"]),
        probe=(z[market.probe_rows[:probe_size]], list(truth["probe"][:, :probe_size])),
        hidden=list(truth["hidden"].astype(np.float32)),
        kernel=kernel,
        feature_space="study",
    )
    named = {one.name: spec for one, spec in zip(developers, specs, strict=True)}
    bare = {
        name: dataclasses.replace(spec, probe=None, representation=None)
        for name, spec in named.items()
    }
    full_market = js.Market.from_specifications(named)
    bare_market = js.Market.from_specifications(bare)
    tests = int(truth["tests"])
    hits = {
        name: np.unpackbits(truth[name], axis=-1)[..., :tests].astype(bool)
        for name in ("direct", "tuned")
        if name in truth
    }
    results: dict[str, Any] = {}
    for setting in settings:
        hetero = setting.startswith("hetero")
        tasks = market.strangers if hetero else market.users
        first = len(market.users) if hetero else 0
        asked = slice(first, first + len(tasks))
        right = hits["direct" if setting == SETTINGS[0] else "tuned"][asked]
        outputs = truth["examples"][asked]
        users = demo_users(tasks, z, kernel)
        reuse = "direct" if setting.endswith("direct") else "fine-tune"
        proxies = proxy_outputs(specs, users)
        fixed: dict[str, np.ndarray] = {}
        for source, values in (("proxy", proxies), ("real model", outputs)):
            fixed |= rival_scores(values, tasks, source)
        fixed["brute force"] = brute_force(outputs, tasks, developers)
        truth_values = right.mean(axis=-1)
        results[setting] = {}
        for regime in REGIMES:
            keep = kept_learnwares(tasks, developers, regime, hetero)
            rows = [np.flatnonzero(row) for row in keep]
            scores = own_scores(full_market, bare_market, users, reuse, keep) | fixed
            wanted = np.stack([v[r] for v, r in zip(truth_values, rows, strict=True)])
            table = {
                name: evaluation.summarize(
                    np.stack([v[r] for v, r in zip(value, rows, strict=True)]), wanted
                )
                for name, value in scores.items()
            }
            halves = [hit[r] for hit, r in zip(right, rows, strict=True)]
            rng = np.random.default_rng(seed)
            table["ceiling"] = evaluation.split_half_ceiling(halves, rng=rng, repeats=30)
            results[setting][regime] = {name: one.as_dict() for name, one in table.items()}
            if regime == "seen":
                shown = scores["jaxspec"].tolist()
        results[setting]["points"] = {"score": shown, "performance": truth_values.tolist()}
    return results


def demo_users(tasks: Any, z: np.ndarray, kernel: Any) -> list[js.UserSpecification]:
    """Return the users' specifications in the study's feature space."""
    made = demo.make_users(tasks, z, kernel)
    return [dataclasses.replace(user, feature_space="study") for user in made]


def own_scores(
    full: Any, bare: Any, users: Any, reuse: str, keep: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the scores (users, models) of jaxspec's methods, with and without probe proxies.

    Args:
        full: the market with probe proxies.
        bare: the same without.
        users: specifications.
        reuse: see `jaxspec.match`.
        keep: (users, models) bool, which learnwares are in the market for which user; the others
            get minus infinity.
    """
    names = ("rkme", "class vectors alone", "classwise", "jaxspec without probe", "jaxspec")
    scores = {"random": np.zeros(keep.shape)}
    scores |= {name: np.full(keep.shape, -np.inf) for name in names}
    patterns, group = np.unique(keep, axis=0, return_inverse=True)
    for i, pattern in enumerate(patterns):
        asking = np.flatnonzero(group.ravel() == i)
        some, less = [users[u] for u in asking], [full, bare]
        for name in np.array(full.ids)[~pattern]:
            less = [market.remove(str(name)) for market in less]
        classwise = js.match(less[0], some, method="classwise")
        classes = np.array([len(user.class_names) for user in some])[:, None]
        found = (
            js.match(less[0], some, method="rkme").scores,
            classwise.class_similarity.sum(axis=-1) / classes,
            classwise.scores,
            js.match(less[1], some, reuse=reuse).scores,
            js.match(less[0], some, reuse=reuse).scores,
        )
        for name, values in zip(names, found, strict=True):
            scores[name][np.ix_(asking, pattern)] = values
    return scores


def proxy_outputs(specs: Any, users: Any) -> np.ndarray:
    """Return the probe proxies' class probabilities on the users' examples, (users, models, n, C).

    All proxies share one probe set, hence landmarks, and all models have equally many classes.
    """
    from jaxspec.specify.probe_proxy import lift, whitening

    kernel, landmarks = specs[0].kernel, specs[0].probe.landmarks
    points = np.stack([np.asarray(user.reduced_set.points) for user in users])
    flat = points.reshape(-1, points.shape[-1])
    lifted = np.asarray(lift(kernel, landmarks, whitening(kernel, landmarks), flat))
    weights = np.stack([spec.probe.weights for spec in specs])
    logits = lifted @ weights + np.stack([spec.probe.bias for spec in specs])[:, None]
    return softmax(logits.reshape(len(specs), *points.shape[:2], -1).swapaxes(0, 1))


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def rival_scores(outputs: np.ndarray, tasks: Any, source: str) -> dict[str, np.ndarray]:
    """Return the rivals' scores (users, models) from outputs (users, models, n, C)."""
    logits = np.log(np.maximum(outputs, 1e-4))
    logits -= logits.mean(axis=-1, keepdims=True)
    rivals = {"LEEP": (leep, outputs), "NCE": (nce, outputs)}
    rivals |= {"H-score": (h_score, logits), "LogME": (logme, logits)}
    return {
        f"{name} ({source})": np.array(
            [
                [rule(one, task.labels, len(task.space.names)) for one in row]
                for row, task in zip(values, tasks, strict=True)
            ]
        )
        for name, (rule, values) in rivals.items()
    }


def brute_force(outputs: np.ndarray, tasks: Any, developers: Any) -> np.ndarray:
    """Return every real model's accuracy on the user's labelled examples, (users, models).

    With no class name in common, under the best assignment of its classes to the user's.
    """
    from scipy.optimize import linear_sum_assignment

    def one(probabilities: np.ndarray, developer: Any, task: Any) -> float:
        names, own = task.space.names, developer.space.names
        if set(names) & set(own):
            right = scenario.direct_accuracy(probabilities, own, task.labels, names)
            return float(right.mean())
        table = np.zeros((len(own), len(names)))
        np.add.at(table, (probabilities.argmax(axis=1), task.labels), 1.0)
        rows, columns = linear_sum_assignment(-table)
        return float(table[rows, columns].sum() / len(task.labels))

    return np.array(
        [
            [one(p, developer, task) for p, developer in zip(row, developers, strict=True)]
            for row, task in zip(outputs, tasks, strict=True)
        ]
    )


def kept_learnwares(tasks: Any, developers: Any, regime: str, hetero: bool) -> np.ndarray:
    """Return (users, models) bool, which learnwares are in the market for which user."""
    if regime == "seen":
        return np.ones((len(tasks), len(developers)), bool)
    return np.array(
        [
            [
                developer.context != task.context
                or (not hetero and developer.space.names != task.space.names)
                for developer in developers
            ]
            for task in tasks
        ]
    )


def aggregate(markets: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means and 95 % bootstrap intervals over markets."""
    rng = np.random.default_rng(0)
    report: dict[str, Any] = {}
    for setting in markets[0]:
        report[setting] = {}
        for regime in REGIMES:
            report[setting][regime] = {}
            for method in markets[0][setting][regime]:
                rows = [market[setting][regime][method] for market in markets]
                entry = {}
                for metric in rows[0]:
                    values = np.array([row[metric] for row in rows])
                    entry[metric] = float(values.mean())
                    if len(values) > 1:
                        low, high = evaluation.bootstrap_interval(values, rng=rng)
                        entry[f"{metric} interval"] = [float(low), float(high)]
                report[setting][regime][method] = entry
    return report


def markdown(report: dict[str, Any], title: str) -> str:
    """Return the report as Markdown tables."""
    lines = [f"# {title}", ""]
    for setting, regimes in report.items():
        for regime, table in regimes.items():
            lines += [f"## {setting}, {regime}", ""]
            lines += ["| method | Pre@1 | Pre@2 | Pre@3 | tau | regret, points |"]
            lines += ["|---|---|---|---|---|---|"]
            for method, row in table.items():
                low, high = row.get("pre@1 interval", (row["pre@1"], row["pre@1"]))
                lines.append(
                    f"| {method} | {100 * row['pre@1']:.1f} ({100 * low:.0f} to {100 * high:.0f}) "
                    f"| {100 * row['pre@2']:.1f} | {100 * row['pre@3']:.1f} | {row['tau']:.2f} "
                    f"| {100 * row['regret']:.2f} |"
                )
            lines.append("")
    lines += ["## Margins over the RKME baseline at Pre@1, in points", ""]
    lines += ["| setting | the paper | here, seen | here, unseen |", "|---|---|---|---|"]
    for setting, regimes in report.items():
        paper = PAPER[setting][0][0] - PAPER[setting][1][0]
        margins = [
            100 * (regimes[regime]["jaxspec"]["pre@1"] - regimes[regime]["rkme"]["pre@1"])
            for regime in REGIMES
        ]
        lines.append(f"| {setting} | {paper:+.1f} | {margins[0]:+.1f} | {margins[1]:+.1f} |")
    return "\n".join(lines) + "\n"


def draw_points(markets: list[dict[str, Any]], path: Path) -> None:
    """Draw performance against score, one panel a setting, as in the paper's figure."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    settings = list(markets[0])
    figure, panels = plt.subplots(
        1, len(settings), figsize=(4.2 * len(settings), 3.6), squeeze=False, layout="constrained"
    )
    for axes, setting in zip(panels[0], settings, strict=True):
        scores = np.concatenate([np.array(m[setting]["points"]["score"]) for m in markets])
        truth = np.concatenate([np.array(m[setting]["points"]["performance"]) for m in markets])
        tau = evaluation.kendall_tau(scores, truth)
        axes.plot(scores.ravel(), truth.ravel(), ".", ms=2, alpha=0.25, color="#2b6cb0")
        axes.set_title(f"{setting}: mean tau {tau:.2f}", fontsize=10)
        axes.set_xlabel("score, from specifications alone")
        axes.set_ylabel("measured test accuracy")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--family", default="fashion", help="fashion, emoji, or a folder's path")
    parser.add_argument("--models", choices=("heads", "scratch"), default="heads")
    parser.add_argument("--markets", type=int, default=20)
    parser.add_argument("--first", type=int, default=1000, help="seed of the first market")
    parser.add_argument("--probe-size", type=int, default=1000, help="pictures of the probe set")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="JSON, Markdown and picture, without suffix")
    options = parser.parse_args()
    data = load_family(options.family, options.cache, images=options.models == "scratch")
    data = dataclasses.replace(data, sizes=data.sizes | {"probe_size": options.probe_size})
    z = data.features[:, : scenario.MARKET_DIMENSION]
    kernel = js.Gaussian(bandwidth=js.median_bandwidth(z))
    folder = options.cache / f"truth-{TRUTH_VERSION}-{Path(options.family).name}-{options.models}"
    folder.mkdir(parents=True, exist_ok=True)
    markets = []
    start = time.perf_counter()
    for seed in range(options.first, options.first + options.markets):
        path = folder / f"market-{seed}.npz"
        if not is_measured(path, options.probe_size, options.settings):
            measure_truth(data, seed, options.models, path, options.settings)
        with np.load(path) as file:
            truth = dict(file)
        markets.append(
            score_market(data, seed, truth, kernel, options.probe_size, options.settings)
        )
        table = markets[-1][options.settings[0]]["unseen"]
        shown = ", ".join(
            f"{name} {100 * table[name]['pre@1']:.0f}"
            for name in ("rkme", "classwise", "jaxspec", "brute force", "ceiling")
        )
        print(
            f"market {len(markets)} of {options.markets} ({time.perf_counter() - start:.0f} s): "
            f"{options.settings[0]} unseen Pre@1 {shown}",
            file=sys.stderr,
            flush=True,
        )
    report = aggregate(markets)
    title = f"{Path(options.family).name}, {options.models}, {len(markets)} markets"
    text = markdown(report, title)
    print(text)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        settings = {"family": Path(options.family).name, "models": options.models}
        settings |= {"markets": len(markets), "first seed": options.first}
        settings |= {"probe pictures": options.probe_size}
        options.output.with_suffix(".json").write_text(
            json.dumps({"study": settings, "results": report}, indent=1) + "\n"
        )
        options.output.with_suffix(".md").write_text(text)
        draw_points(markets, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
