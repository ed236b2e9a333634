"""Markets of the demo with useless models beside the honest ones, for the study of attacks.

`load_market` draws a market of the demo with a seed, trains its models and two useless ones,
specifies all of them, measures the truth, and keeps everything in a folder. A useless model is a
head that was trained on permuted labels, or one whose answers are drawn at random. Both owners have
honest data of one context.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxspec as js
from jaxspec.applications import demo, heads, scenario
from jaxspec.applications.demo_data import FashionContexts, load_fashion_contexts

__all__ = ["USELESS", "AttackMarket", "load_market"]

USELESS = ("permuted labels", "random answers")
DIMENSION = scenario.MARKET_DIMENSION
Model = Callable[[Any], np.ndarray]


@dataclasses.dataclass(frozen=True)
class AttackMarket:
    """A market, who asks it, and the models behind it.

    Attributes:
        seed: of everything.
        space: of the market, with a probe of 1,000 rows.
        honest: the 22 specifications, with probe proxies and representations.
        useless: {kind: honest specification of a useless model}.
        models: {id: function of raw features (n, 256)}, of all learnwares and useless models.
        users: 22 users with the classes of half of the learnwares.
        strangers: 11 users of other class names.
        accuracy: (22, 22) of every honest model for every user.
        probe_inputs: (1000, 256) raw features of the probe.
        fresh_inputs: raw features of rows that no submitter saw.
    """

    seed: int
    space: js.Space
    honest: dict[str, js.Specification]
    useless: dict[str, js.Specification]
    models: dict[str, Model]
    users: list[js.UserSpecification]
    strangers: list[js.UserSpecification]
    accuracy: np.ndarray
    probe_inputs: np.ndarray
    fresh_inputs: np.ndarray


def load_market(seed: int, cache: Path, data: FashionContexts | None = None) -> AttackMarket:
    """Return the market of a seed, from the cache or made anew."""
    data = load_fashion_contexts() if data is None else data
    features = data.features
    rng = np.random.default_rng(seed)
    drawn = scenario.draw_market(
        data.labels, data.contexts, data.class_names, data.context_names, rng
    )
    # The owners of the useless models have the pictures of one context, another in every market.
    owner = drawn.developers[(2 * seed) % len(drawn.developers)]
    permuted = dataclasses.replace(owner, labels=rng.permutation(owner.labels))
    path, folder = cache / f"models-{seed}.npz", cache / f"specifications-{seed}"
    if not path.exists():
        trained = heads.train_heads(features, [*drawn.developers, permuted], seed=seed)
        first, last = trained["params"]["layers_0"], trained["params"]["layers_3"]
        tests, _ = heads.direct_truth(trained, drawn, features)
        accuracy = np.stack([right.mean(axis=1) for right in tests])
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(
            path,
            accuracy=accuracy,
            **{f"first_{name}": np.asarray(value) for name, value in first.items()},
            **{f"last_{name}": np.asarray(value) for name, value in last.items()},
        )
    with np.load(path) as file:
        kept = dict(file)
    layers = {
        f"layers_{number}": {part: kept[f"{name}_{part}"] for part in ("kernel", "bias")}
        for number, name in ((0, "first"), (3, "last"))
    }
    parameters = {"params": layers}
    count = len(drawn.developers)

    def head(number: int) -> Model:
        return lambda inputs: heads.predict(parameters, number, np.asarray(inputs))

    def at_random(inputs: Any) -> np.ndarray:
        inputs = np.asarray(inputs)
        bits = np.abs(np.round(inputs[:, :8] * 1e4)).astype(np.uint64).sum(axis=1)
        logits = [np.random.default_rng([seed, int(one)]).normal(size=5) for one in bits]
        return np.asarray(jax.nn.softmax(3 * np.stack(logits)), np.float64)

    models = {one.name: head(i) for i, one in enumerate(drawn.developers)}
    models |= dict(zip(USELESS, (head(count), at_random), strict=True))
    space = demo.make_space(features, drawn.probe_rows)
    if not folder.exists():
        owners = [*drawn.developers, permuted, owner]
        names = [one.name for one in drawn.developers] + list(USELESS)
        hidden = [
            heads.hidden_features(parameters, min(i, count), features[one.rows])
            for i, one in enumerate(owners)
        ]
        specs = js.specify_many(
            space,
            [features[one.rows, :DIMENSION] for one in owners],
            [one.labels for one in owners],
            class_names=[one.space.names for one in owners],
            teachers=[models[n](features[o.rows]) for n, o in zip(names, owners, strict=True)],
            probe_outputs=[models[name](features[drawn.probe_rows]) for name in names],
            hidden=hidden,
        )
        folder.mkdir()
        for i, spec in enumerate(specs):
            spec.save(folder / f"{i:02}.safetensors")
    ids = [one.name for one in drawn.developers] + list(USELESS)
    files = [folder / f"{i:02}.safetensors" for i in range(len(ids))]
    specs = {name: js.Specification.load(file) for name, file in zip(ids, files, strict=True)}
    seen = np.zeros(len(features), bool)
    for one in drawn.developers:
        seen[one.rows] = True
    seen[drawn.probe_rows] = True
    fresh = rng.permutation(np.flatnonzero(~seen))[:1000]
    return AttackMarket(
        seed,
        space,
        {name: spec for name, spec in specs.items() if name not in USELESS},
        {name: specs[name] for name in USELESS},
        models,
        demo.make_users(space, drawn.users, features),
        demo.make_users(space, drawn.strangers, features),
        kept["accuracy"],
        features[drawn.probe_rows],
        features[fresh],
    )
