"""The measured truth of a market: what every model does for every user, kept in a cache.

`measure_truth` trains the models of a market, runs them on the probe and on the pictures of owners
and users, fine-tunes them, and writes it all to one file. `is_measured` says whether a file has all
that a study needs, so that a study can be stopped and started again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies import scratch
from benchmarks.studies.study_data import StudyData, draw
from jaxspec.applications import heads, scenario

__all__ = ["SETTINGS", "hits_of", "is_measured", "measure_truth", "trained_nets", "truth_folder"]

SETTINGS = ("homo-direct", "homo-fine-tuning", "hetero-fine-tuning")
TRUTH_VERSION = 1


def truth_folder(cache: Path, family: str, models: str) -> Path:
    """Return the folder that keeps the truth of a family's markets; it is made if absent."""
    folder = cache / f"truth-{TRUTH_VERSION}-{family}-{models}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def measure_truth(
    data: StudyData, seed: int, models: str, path: Path, settings: Sequence[str] = SETTINGS
) -> None:
    """Train the models of one market, run and fine-tune them for every user, and keep it all.

    Direct use comes first. Fine-tuning, which takes most of the time, is measured where `settings`
    ask for it and is added to the file.

    Args:
        data: the pictures.
        seed: of the market.
        models: "heads" on the features, or "scratch" for small nets on the pictures.
        path: of the file.
        settings: of the study.
    """
    market = draw(data, seed)
    everyone = market.users + market.strangers
    if models == "heads":
        parameters = heads.train_heads(data.features, market.developers, seed=seed)
        predict, hidden, inputs = heads.predict, heads.hidden_features, data.features
        direct_truth, fine_tuning = heads.direct_truth, heads.fine_tuning_truth
    else:
        assert data.images is not None, "images: expected pictures, got None"
        parameters = trained_nets(data, market, seed, path.with_name(f"nets-{seed}.npz"))
        predict, hidden, inputs = scratch.predict_scratch, scratch.hidden_scratch, data.images
        direct_truth, fine_tuning = scratch.scratch_truth, scratch.scratch_fine_tuning

    def run(call: Callable[..., np.ndarray], m: int, rows: np.ndarray) -> np.ndarray:
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
    layers = [f"convolution_{i}" for i in range(len(scratch.CHANNELS))] + ["output"]
    if not path.exists():
        nets = scratch.train_scratch(data.images, market.developers, seed=seed)
        write_arrays(path, {f"{a} {b}": nets[a][b] for a in layers for b in ("kernel", "bias")})
    with np.load(path) as file:
        return {a: {b: file[f"{a} {b}"] for b in ("kernel", "bias")} for a in layers}


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an npz file completely or not at all."""
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


def hits_of(truth: dict[str, np.ndarray], kind: str) -> np.ndarray:
    """Return where a model is right on a test picture, (users, models, tests) bool.

    Args:
        truth: of one market.
        kind: "direct" or "tuned".
    """
    return np.unpackbits(truth[kind], axis=-1)[..., : int(truth["tests"])].astype(bool)
