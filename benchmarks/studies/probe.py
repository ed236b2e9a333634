"""What should a probe proxy be? Its size, and the probe's size and kind, by measurement.

    python -m benchmarks.studies.probe --markets 4 --first 0 --cache DIR [--models scratch] [--foreign]

For every variant: how often the proxy names the class that the model names, on fresh pictures of
the owner's context and of the others; and how often the truly best model comes first for
homogeneous users who use it directly, `unseen`: ranked by the mean probability of the user's 50
labels alone, and by jaxspec's whole score. `--foreign` adds probes of quite another kind of
pictures, emoji in 11 drawing styles. Markets with seeds 0 to 9 are those that served to choose.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxspec as js
from benchmarks.studies.identification import (
    TRUTH_VERSION,
    StudyData,
    demo_users,
    draw,
    load_family,
    own_scores,
    proxy_outputs,
    softmax,
    trained_nets,
)
from jaxspec.applications import demo, scenario
from jaxspec.evaluation import metrics as evaluation
from jaxspec.specify.probe_proxy import ProbeProxy, fit_probe_proxies


@dataclasses.dataclass(frozen=True)
class Variant:
    """How one kind of proxy is made; `size` zero is the linear proxy on the owner's data."""

    name: str
    size: int = 800
    probe: int = 1000
    own: bool = False
    foreign: bool = False


VARIANTS = (
    Variant("linear, own data (the paper's)", size=0),
    Variant("300 landmarks, 300 probe pictures", size=300, probe=300),
    Variant("200 landmarks, 1000 probe pictures", size=200),
    Variant("400 landmarks, 1000", size=400),
    Variant("800 landmarks (default), 1000"),
    Variant("800 landmarks, 1000 and the owner's data", own=True),
    Variant("800 landmarks, 2000", probe=2000),
    Variant("800 landmarks, 4000", probe=4000),
    Variant("1600 landmarks, 4000", size=1600, probe=4000),
    Variant("800 landmarks, 1000 emoji", foreign=True),
    Variant("800 landmarks, 4000 emoji", probe=4000, foreign=True),
    Variant("800 landmarks, 1000 emoji and the owner's data", own=True, foreign=True),
)
LARGEST = max(variant.probe for variant in VARIANTS)


def foreign_probe(cache: Path, rng: np.random.Generator, count: int) -> tuple[Any, Any]:
    """Return features (count, 256) in the fashion projection and images of emoji pictures."""
    from benchmarks.datasets import emoji

    described, drawings = emoji.read_drawings(emoji.fetch_packages(cache / "emoji_packages"))
    raw, images = emoji.extract_features(described, drawings, cache / "emoji_domains")
    with np.load(cache / "fashion_study.npz") as file:
        features = (raw - file["feature_mean"]) @ file["feature_directions"]
    rows = rng.permutation(len(features))[:count]
    return features[rows].astype(np.float32), images[rows]


class Models:
    """The trained models of one market behind one function."""

    def __init__(
        self, data: StudyData, market: scenario.MarketDraw, kind: str, seed: int, nets: Path
    ) -> None:
        self.kind, self.data = kind, data
        if kind == "heads":
            self.parameters = scenario.train_heads(data.features, market.developers, seed=seed)
        else:
            self.parameters = trained_nets(data, market, seed, nets)

    def __call__(self, model: int, features: Any, images: Any) -> np.ndarray:
        if self.kind == "heads":
            return scenario.predict(self.parameters, model, features)
        from benchmarks.studies import scratch

        return scratch.predict_scratch(self.parameters, model, images)

    def rows(self, model: int, rows: np.ndarray) -> np.ndarray:
        images = None if self.data.images is None else self.data.images[rows]
        return self(model, self.data.features[rows], images)


def fit_variant(
    variant: Variant, kernel: Any, probe: Any, outputs: Any, own: Any
) -> list[ProbeProxy]:
    """Return the proxies of all models under a variant."""
    rows = probe[: variant.probe]
    said = [one[: variant.probe] for one in outputs]
    if not variant.own:
        return fit_probe_proxies(kernel, rows, said, size=variant.size)
    return [
        fit_probe_proxies(kernel, rows, [one], own=mine, size=variant.size)[0]
        for one, mine in zip(said, own, strict=True)
    ]


def chance(probabilities: np.ndarray, names: Any, task: scenario.User) -> float:
    """Return the mean probability of the user's labels, by name, as the default score takes it."""
    number = {name: c for c, name in enumerate(names)}
    columns = np.array([number.get(name, -1) for name in task.space.names])
    if (columns < 0).all():
        return 0.0
    logits = np.log(np.maximum(probabilities, 1e-2))[:, columns[columns >= 0]]
    logits -= logits.mean(axis=1, keepdims=True)
    logits /= np.sqrt(np.square(logits).mean()) + 1e-12
    place = np.cumsum(columns >= 0) - 1
    known = columns[task.labels] >= 0
    said = softmax(2 * logits)[np.arange(len(known)), place[task.labels]]
    return float(np.where(known, said, 0.0).mean())


def one_market(data: StudyData, seed: int, options: Any, kernel: Any) -> dict[str, Any]:
    """Return {variant: {measure: value}} of one market."""
    market = draw(data, seed)
    z = data.features[:, : scenario.MARKET_DIMENSION]
    developers, users = market.developers, market.users
    folder = options.cache / f"truth-{TRUTH_VERSION}-fashion-{options.models}"
    folder.mkdir(parents=True, exist_ok=True)
    models = Models(data, market, options.models, seed, folder / f"nets-{seed}.npz")
    count = range(len(developers))
    own = [models.rows(m, developers[m].rows) for m in count]
    examples = np.stack([[models.rows(m, user.rows) for m in count] for user in users])
    if options.models == "heads":
        tests, brute = scenario.direct_truth(models.parameters, market, data.features)
    else:
        from benchmarks.studies import scratch

        tests, brute = scratch.scratch_truth(models.parameters, market, data.images)
    truth = np.stack([hit.mean(axis=1) for hit in tests])
    others = ~np.eye(len(users), dtype=bool)
    specs = js.specify_many(
        jax.random.key(seed),
        [z[one.rows] for one in developers],
        [one.labels for one in developers],
        class_names=[one.space.names for one in developers],
        teachers=own,
        kernel=kernel,
        feature_space="study",
    )
    asking = demo_users(users, z, kernel)
    probes = {False: (z[market.probe_rows], [models.rows(m, market.probe_rows) for m in count])}
    if options.foreign:
        features, images = foreign_probe(options.cache, np.random.default_rng(seed), LARGEST)
        given = features[:, : scenario.MARKET_DIMENSION]
        probes[True] = (given, [models(m, features, images) for m in count])

    def summary(scores: np.ndarray) -> dict[str, float]:
        rows = [value[others].reshape(len(users), -1) for value in (scores, truth)]
        return evaluation.summarize(*rows).as_dict()

    results: dict[str, Any] = {}
    named = [one.space.names for one in developers]
    for variant in VARIANTS:
        if variant.foreign and not options.foreign:
            continue
        made = specs
        if variant.size:
            inputs, outputs = probes[variant.foreign]
            mine = [(z[one.rows], said) for one, said in zip(developers, own, strict=True)]
            proxies = fit_variant(variant, kernel, inputs, outputs, mine)
            made = [
                dataclasses.replace(spec, probe=proxy)
                for spec, proxy in zip(specs, proxies, strict=True)
            ]
        said = np.stack([proxies_say(made, user) for user in asking])
        agree = (said.argmax(axis=-1) == examples.argmax(axis=-1)).mean(axis=-1)
        home = np.array([[u.context == d.context for d in developers] for u in users])
        alone = np.array(
            [
                [chance(p, names, user) for p, names in zip(row, named, strict=True)]
                for row, user in zip(said, users, strict=True)
            ]
        )
        market_of_all = js.Market.from_specifications(
            {d.name: s for d, s in zip(developers, made, strict=True)}
        )
        whole = own_scores(market_of_all, market_of_all, asking, "direct", others)["jaxspec"]
        results[variant.name] = {
            "agreement at home": float(agree[home].mean()),
            "agreement elsewhere": float(agree[~home].mean()),
            "chance": summary(alone),
            "jaxspec": summary(whole),
        }
    real = np.array(
        [
            [chance(p, names, user) for p, names in zip(row, named, strict=True)]
            for row, user in zip(examples, users, strict=True)
        ]
    )
    results["the real models' outputs"] = {
        "agreement at home": 1.0,
        "agreement elsewhere": 1.0,
        "chance": summary(real),
        "jaxspec": summary(brute),  # in this row: brute force by accuracy
    }
    halves = [hit[keep] for hit, keep in zip(tests, others, strict=True)]
    rng = np.random.default_rng(seed)
    ceiling = evaluation.split_half_ceiling(halves, rng=rng, repeats=30).as_dict()
    results["ceiling"] = {
        "agreement at home": 1.0,
        "agreement elsewhere": 1.0,
        "chance": ceiling,
        "jaxspec": ceiling,
    }
    return results


def proxies_say(specs: Any, user: js.UserSpecification) -> np.ndarray:
    """Return the class probabilities (models, n, C) of the best proxies that they have."""
    if specs[0].probe is not None:
        return proxy_outputs(specs, [user])[0]
    points = np.asarray(user.reduced_set.points)
    return np.stack(
        [softmax(points @ np.asarray(s.proxy.weights) + np.asarray(s.proxy.bias)) for s in specs]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", choices=("heads", "scratch"), default="heads")
    parser.add_argument("--markets", type=int, default=4)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--foreign", action="store_true", help="also probes of emoji pictures")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    images = options.models == "scratch"
    data = load_family("fashion", options.cache, images=images)
    data = dataclasses.replace(data, sizes={"probe_size": LARGEST})
    bandwidth = js.median_bandwidth(data.features[:, : scenario.MARKET_DIMENSION])
    kernel = js.Gaussian(bandwidth=bandwidth)
    markets = []
    for seed in range(options.first, options.first + options.markets):
        markets.append(one_market(data, seed, options, kernel))
        print(f"market {len(markets)} of {options.markets}", file=sys.stderr, flush=True)
    mean = jax.tree.map(lambda *values: float(np.mean(values)), *markets)
    print(
        "| proxy | names the model's class: at home | elsewhere "
        "| probability alone: Pre@1/2/3, tau | jaxspec: Pre@1/2/3, tau |\n|---|---|---|---|---|"
    )
    for name in markets[0]:  # `tree.map` sorts names
        row = mean[name]
        shown = [
            "/".join(f"{100 * row[k][f'pre@{i}']:.0f}" for i in (1, 2, 3))
            + f", {row[k]['tau']:.2f}"
            for k in ("chance", "jaxspec")
        ]
        print(
            f"| {name} | {100 * row['agreement at home']:.0f} % "
            f"| {100 * row['agreement elsewhere']:.0f} % | {shown[0]} | {shown[1]} |"
        )
    if options.output:
        study = {"models": options.models, "markets": options.markets, "first": options.first}
        text = json.dumps(
            {"study": study, "feature space": demo.FEATURE_SPACE, "mean": mean}, indent=1
        )
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
