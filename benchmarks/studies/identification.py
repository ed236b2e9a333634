"""How often is the first recommendation the right one? The study behind the table of the README.

    python -m benchmarks.studies.identification --cache DIR [--family fashion] [--models heads]

draws random markets (11 contexts x 2 overlapping label spaces = 22 trained models), measures the
accuracy of every model for every user on fresh test pictures, and ranks the models by every method
in the settings of the paper: homogeneous users who use a model as it is or fine-tune it, and
heterogeneous users who fine-tune. In the regime `seen` a market has all 22 learnwares; in `unseen`
it has none of the user's own context and label space (for heterogeneous users: none of its
context). A score may depend on who else is in the market, so every user of `unseen` asks a market
from which those learnwares were removed.

The truth of each market is kept in the cache: the run can be stopped and started again, and
`--settings homo-direct` does without fine-tuning, which takes most of the time. Markets with seeds
0 to 19 served to choose the scores; reported ones start at `--first 1000`. Families of pictures are
those of `benchmarks.studies.study_data`. Models are heads on the features, or small nets that share
nothing with the extractor (`benchmarks.studies.scratch`).
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxspec as js
from benchmarks.records import progress, write_record
from benchmarks.studies.rankings import (
    REGIMES,
    brute_force,
    kept_learnwares,
    own_scores,
    probe_outputs,
    rival_scores,
)
from benchmarks.studies.study_data import (
    StudyData,
    draw,
    load_family,
    market_features,
    space_of,
    users_of,
)
from benchmarks.studies.study_report import aggregate, draw_points, markdown
from benchmarks.studies.truth import SETTINGS, hits_of, is_measured, measure_truth, truth_folder
from jaxspec import evaluation
from jaxspec.applications import scenario


def specified(
    data: StudyData, market: scenario.MarketDraw, truth: Any, space: js.Space, seed: int
) -> list[js.Specification]:
    """Return the specifications of all developers, with the landmarks of the space if it has any.

    Args:
        data: the pictures.
        market: the developers.
        truth: outputs and hidden activations of their models.
        space: with the first pictures of the probe as its probe, or without one.
        seed: of the market.
    """
    features, developers = market_features(data), market.developers
    options: dict[str, Any] = {}
    if space.probe is not None:
        options["probe_outputs"] = list(truth["probe"][:, : len(space.probe)])
        options["hidden"] = list(truth["hidden"].astype(np.float32))
    return js.specify_many(
        space,
        [features[one.rows] for one in developers],
        [one.labels for one in developers],
        class_names=[one.space.names for one in developers],
        teachers=list(truth["own"]),
        key=jax.random.key(seed),
        **options,
    )


def score_market(
    data: StudyData,
    seed: int,
    truth: Any,
    probe_size: int = 1000,
    settings: Sequence[str] = SETTINGS,
) -> dict[str, Any]:
    """Return {setting: {regime: {method: metrics}}} of one market."""
    market = draw(data, seed)
    developers = market.developers
    names = [one.name for one in developers]
    space, bare_space = space_of(data, market.probe_rows[:probe_size]), space_of(data)
    specifications = specified(data, market, truth, space, seed)
    full = js.Market(space, dict(zip(names, specifications, strict=True)))
    plain = specified(data, market, truth, bare_space, seed)
    bare = js.Market(bare_space, dict(zip(names, plain, strict=True)))
    results: dict[str, Any] = {}
    for setting in settings:
        hetero = setting.startswith("hetero")
        tasks = market.strangers if hetero else market.users
        first = len(market.users) if hetero else 0
        asked = slice(first, first + len(tasks))
        right = hits_of(truth, "direct" if setting == SETTINGS[0] else "tuned")[asked]
        outputs = truth["examples"][asked]
        users, bare_users = users_of(space, tasks, data), users_of(bare_space, tasks, data)
        reuse = "direct" if setting.endswith("direct") else "fine-tune"
        fixed = rival_scores(probe_outputs(space, specifications, users), tasks, "proxy")
        fixed |= rival_scores(outputs, tasks, "real model")
        fixed["brute force"] = brute_force(outputs, tasks, developers)
        performance = right.mean(axis=-1)
        results[setting] = {}
        for regime in REGIMES:
            keep = kept_learnwares(tasks, developers, regime, hetero)
            scores = own_scores(full, bare, users, bare_users, reuse, keep) | fixed
            results[setting][regime] = summarize(scores, right, keep, seed)
            if regime == "seen":
                shown = scores["jaxspec"].tolist()
        results[setting]["points"] = {"score": shown, "performance": performance.tolist()}
    return results


def summarize(
    scores: dict[str, np.ndarray], hits: np.ndarray, keep: np.ndarray, seed: int
) -> dict[str, Any]:
    """Return the metrics of every score and of the ceiling.

    Args:
        scores: method to (users, models).
        hits: (users, models, tests) bool, where a model is right on a test picture.
        keep: (users, models) bool, which learnwares are in the market of which user.
        seed: of the halves that give the ceiling.
    """

    def kept(values: np.ndarray) -> list[np.ndarray]:
        return [value[row] for value, row in zip(values, keep, strict=True)]

    truth = np.stack(kept(hits.mean(axis=-1)))
    table = {name: evaluation.summarize(np.stack(kept(s)), truth) for name, s in scores.items()}
    rng = np.random.default_rng(seed)
    table["ceiling"] = evaluation.split_half_ceiling(kept(hits), rng=rng, repeats=30)
    return {name: one.as_dict() for name, one in table.items()}


def main() -> None:
    """Measure the markets that are asked for, and report means over them."""
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
    family = Path(options.family).name
    data = load_family(options.family, options.cache, images=options.models == "scratch")
    data = dataclasses.replace(data, sizes=data.sizes | {"probe_size": options.probe_size})
    folder = truth_folder(options.cache, family, options.models)
    markets = []
    began = time.perf_counter()
    for seed in range(options.first, options.first + options.markets):
        path = folder / f"market-{seed}.npz"
        if not is_measured(path, options.probe_size, options.settings):
            measure_truth(data, seed, options.models, path, options.settings)
        with np.load(path) as file:
            truth = dict(file)
        markets.append(score_market(data, seed, truth, options.probe_size, options.settings))
        table = markets[-1][options.settings[0]]["unseen"]
        shown = ", ".join(
            f"{name} {100 * table[name]['pre@1']:.0f}"
            for name in ("rkme", "classwise", "jaxspec", "brute force", "ceiling")
        )
        progress(
            f"market {len(markets)} of {options.markets} ({time.perf_counter() - began:.0f} s): "
            f"{options.settings[0]} unseen Pre@1 {shown}"
        )
    report = aggregate(markets)
    text = markdown(report, f"{family}, {options.models}, {len(markets)} markets")
    print(text)
    if options.output:
        study = {"family": family, "models": options.models, "markets": len(markets)}
        study |= {"first seed": options.first, "probe pictures": options.probe_size}
        write_record(options.output.with_suffix(".json"), {"study": study, "results": report})
        options.output.with_suffix(".md").write_text(text)
        draw_points(markets, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
