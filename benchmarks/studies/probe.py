"""What should a probe proxy be? Its size, and the size and kind of the probe, by measurement.

    python -m benchmarks.studies.probe --cache DIR [--markets 4] [--first 0] [--models scratch]
        [--foreign]

For every variant: how often the proxy names the class that the model names, on fresh pictures of
the owner's context and of the others; and how often the truly best model comes first for
homogeneous users who use it directly, in the regime `unseen`, ranked by the mean probability of the
user's 50 labels alone and by the whole score of jaxspec. `--foreign` adds probes of quite another
kind of pictures, emoji in 11 drawing styles. Markets with seeds 0 to 9 served to choose the sizes.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxspec as js
from benchmarks.datasets import emoji
from benchmarks.records import print_table, progress, write_record
from benchmarks.studies import scratch
from benchmarks.studies.identification import summarize
from benchmarks.studies.rankings import own_scores, probe_outputs, softmax
from benchmarks.studies.study_data import (
    SPACE,
    StudyData,
    draw,
    load_family,
    market_features,
    space_of,
    users_of,
)
from benchmarks.studies.truth import trained_nets, truth_folder
from jaxspec.applications import heads, scenario
from jaxspec.specify import fit_probe_proxies


@dataclasses.dataclass(frozen=True)
class Variant:
    """How one kind of proxy is made.

    Attributes:
        name: of the variant.
        size: landmarks; zero is the linear proxy on the owner's data.
        probe: pictures of the probe.
        own: whether the owner's data are fitted, too.
        foreign: whether the probe is of emoji.
    """

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
    described, drawings = emoji.read_drawings(emoji.fetch_packages(cache / "emoji_packages"))
    raw, images = emoji.extract_features(described, drawings, cache / "emoji_domains")
    with np.load(cache / "fashion_study.npz") as file:
        features = (raw - file["feature_mean"]) @ file["feature_directions"]
    rows = rng.permutation(len(features))[:count]
    return features[rows].astype(np.float32), images[rows]


class Models:
    """The trained models of one market, of either kind, as one function."""

    def __init__(
        self, data: StudyData, market: scenario.MarketDraw, kind: str, seed: int, nets: Path
    ) -> None:
        """Train the models of a market, or read them from the file `nets`."""
        self.kind, self.data = kind, data
        if kind == "heads":
            self.parameters = heads.train_heads(data.features, market.developers, seed=seed)
        else:
            self.parameters = trained_nets(data, market, seed, nets)

    def __call__(self, model: int, features: Any, images: Any) -> np.ndarray:
        """Return the class probabilities of one model."""
        if self.kind == "heads":
            return heads.predict(self.parameters, model, features)
        return scratch.predict_scratch(self.parameters, model, images)

    def rows(self, model: int, rows: np.ndarray) -> np.ndarray:
        """Return the class probabilities of one model on pictures of the study."""
        images = None if self.data.images is None else self.data.images[rows]
        return self(model, self.data.features[rows], images)


def specify_variant(
    variant: Variant,
    bare_space: js.Space,
    bare: list[js.Specification],
    probe: np.ndarray,
    outputs: list[np.ndarray],
    own: list[tuple[np.ndarray, np.ndarray]],
) -> tuple[js.Space, list[js.Specification]]:
    """Return the space of a variant and the specifications with its probe proxies.

    Args:
        variant: how the proxies are made.
        bare_space: without a probe.
        bare: the specifications in it.
        probe: features (p, d).
        outputs: probabilities (p, C) of every model on the probe.
        own: features and outputs of every developer on its own data.
    """
    if not variant.size:
        return bare_space, bare
    rows, kernel = probe[: variant.probe], bare_space.kernel
    # All rows of a small probe are landmarks, so this space has `size` of them.
    space = js.Space(SPACE, kernel, dimension=rows.shape[1], probe=rows[: variant.size])
    made = []
    for one, shown, (features, answers) in zip(bare, outputs, own, strict=True):
        inputs, targets = rows, shown[: variant.probe]
        if variant.own:
            inputs, targets = np.concatenate([inputs, features]), np.concatenate([targets, answers])
        (proxy,) = fit_probe_proxies(kernel, space.landmarks, space.whitening, inputs, [targets])
        made.append(dataclasses.replace(one, probe_proxy=proxy, space_digest=space.digest))
    return space, made


def label_probability(probabilities: np.ndarray, names: Any, task: scenario.User) -> float:
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
    chance = softmax(2 * logits)[np.arange(len(known)), place[task.labels]]
    return float(np.where(known, chance, 0.0).mean())


def proxy_probabilities(
    space: js.Space, specifications: list[js.Specification], user: js.UserSpecification
) -> np.ndarray:
    """Return class probabilities (models, n, C) of the probe proxies, or of the linear ones."""
    if specifications[0].probe_proxy is not None:
        return probe_outputs(space, specifications, [user])[0]
    points = np.asarray(user.reduced_set.points)
    proxies = [one.proxy for one in specifications]
    return np.stack(
        [softmax(points @ np.asarray(one.weights) + np.asarray(one.bias)) for one in proxies]
    )


def one_market(data: StudyData, seed: int, options: Any) -> dict[str, Any]:
    """Return {variant: {measure: value}} of one market."""
    market, z = draw(data, seed), market_features(data)
    developers, users = market.developers, market.users
    folder = truth_folder(options.cache, "fashion", options.models)
    models = Models(data, market, options.models, seed, folder / f"nets-{seed}.npz")
    count = range(len(developers))
    answers = [models.rows(m, developers[m].rows) for m in count]
    examples = np.stack([[models.rows(m, user.rows) for m in count] for user in users])
    if options.models == "heads":
        tests, brute = heads.direct_truth(models.parameters, market, data.features)
    else:
        tests, brute = scratch.scratch_truth(models.parameters, market, data.images)
    others = ~np.eye(len(users), dtype=bool)
    names = [one.space.names for one in developers]
    bare_space = space_of(data)
    bare = js.specify_many(
        bare_space,
        [z[one.rows] for one in developers],
        [one.labels for one in developers],
        class_names=names,
        teachers=answers,
        key=jax.random.key(seed),
    )
    own = [(z[one.rows], answer) for one, answer in zip(developers, answers, strict=True)]
    probes = {False: (z[market.probe_rows], [models.rows(m, market.probe_rows) for m in count])}
    if options.foreign:
        features, images = foreign_probe(options.cache, np.random.default_rng(seed), LARGEST)
        given = features[:, : z.shape[1]]
        probes[True] = (given, [models(m, features, images) for m in count])
    home = np.array([[u.context == d.context for d in developers] for u in users])

    def by_labels(outputs: np.ndarray) -> np.ndarray:
        return np.array(
            [
                [label_probability(*pair, user) for pair in zip(row, names, strict=True)]
                for row, user in zip(outputs, users, strict=True)
            ]
        )

    def measures(at_home: float, elsewhere: float, **scores: np.ndarray) -> dict[str, Any]:
        table = summarize(scores, np.stack(tests), others, seed)
        return {"agreement at home": at_home, "agreement elsewhere": elsewhere, **table}

    results: dict[str, Any] = {}
    for variant in VARIANTS:
        if variant.foreign and not options.foreign:
            continue
        inputs, outputs = probes[variant.foreign]
        space, made = specify_variant(variant, bare_space, bare, inputs, outputs, own)
        asking = users_of(space, users, data)
        shown = np.stack([proxy_probabilities(space, made, user) for user in asking])
        agree = (shown.argmax(axis=-1) == examples.argmax(axis=-1)).mean(axis=-1)
        whole = js.Market(space, {d.name: s for d, s in zip(developers, made, strict=True)})
        scores = own_scores(whole, whole, asking, asking, "direct", others)["jaxspec"]
        at_home, elsewhere = float(agree[home].mean()), float(agree[~home].mean())
        found = measures(at_home, elsewhere, chance=by_labels(shown), jaxspec=scores)
        results[variant.name] = found
    # In this row the column of jaxspec has the accuracy on the examples, which is brute force.
    found = measures(1.0, 1.0, chance=by_labels(examples), jaxspec=brute)
    results["the real models' outputs"] = found
    results["ceiling"] = found | {"chance": found["ceiling"], "jaxspec": found["ceiling"]}
    return results


def main() -> None:
    """Measure the markets that are asked for, and print means over them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", choices=("heads", "scratch"), default="heads")
    parser.add_argument("--markets", type=int, default=4)
    parser.add_argument("--first", type=int, default=0, help="seed of the first market")
    parser.add_argument("--foreign", action="store_true", help="also probes of emoji pictures")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="write the figures here as JSON")
    options = parser.parse_args()
    data = load_family("fashion", options.cache, images=options.models == "scratch")
    data = dataclasses.replace(data, sizes={"probe_size": LARGEST})
    markets = []
    for seed in range(options.first, options.first + options.markets):
        markets.append(one_market(data, seed, options))
        progress(f"market {len(markets)} of {options.markets}")
    mean = jax.tree.map(lambda *values: float(np.mean(values)), *markets)
    rows = []
    for name in markets[0]:  # the mean has its names sorted
        row = mean[name]
        shares = [f"{100 * row[f'agreement {where}']:.0f} %" for where in ("at home", "elsewhere")]
        ranks = [
            "/".join(f"{100 * row[k][f'pre@{i}']:.0f}" for i in (1, 2, 3))
            + f", {row[k]['tau']:.2f}"
            for k in ("chance", "jaxspec")
        ]
        rows.append((name, *shares, *ranks))
    headers = ["proxy", "names the model's class at home", "elsewhere"]
    headers += ["probability alone: Pre@1/2/3, tau", "jaxspec: Pre@1/2/3, tau"]
    print_table(f"{options.models}, {len(markets)} markets", headers, rows)
    if options.output:
        study = {"models": options.models, "markets": options.markets, "first": options.first}
        write_record(options.output, {"study": study, "mean": mean})


if __name__ == "__main__":
    main()
