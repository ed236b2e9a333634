"""The pictures of the studies, the markets drawn from them, and the space of a market.

`load_family` reads the cache of a family of pictures, or makes one from a folder of pictures;
`draw` draws developers and users with a seed; `space_of` gives the space in which both specify.

    fashion   Fashion-MNIST in 11 visual contexts (`benchmarks.datasets.fashion`)
    emoji     emoji in 11 drawing styles, split by emoji (`benchmarks.datasets.emoji`)
    a path    a folder root/domain/class/*.jpg (DomainNet, NICO, Office-Home): features are
              extracted once; ten classes are drawn for each market
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import jaxspec as js
from jaxspec import extractors
from jaxspec.applications import scenario

__all__ = ["SPACE", "StudyData", "draw", "load_family", "market_features", "space_of", "users_of"]

SPACE = "study"
CLASSES = 10  # of a market


@dataclasses.dataclass(frozen=True)
class StudyData:
    """The pictures of one family.

    Attributes:
        features: (N, 256) float32, columns by falling variance.
        labels: (N,) positions in `class_names`.
        contexts: (N,) positions in `context_names`.
        class_names: all classes.
        context_names: all contexts.
        images: (N, 28, 28, 3) uint8 for models that do not use the extractor, or None.
        sides: (N,) whether a picture is of a developer (0) or of a user (1), or None.
        sizes: options of `scenario.draw_market`.
    """

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
    """Extract the features of root/domain/class/*.jpg once and keep them."""
    path = cache / f"{root.name}_study.npz"
    if path.exists():
        return path
    folder = extractors.scan_domains(root)
    pictures, small, found = len(folder.paths), [], []
    for start in range(0, pictures, 512):
        rows = np.arange(start, min(start + 512, pictures))
        batch = extractors.load_pictures(folder, rows, 96)
        found.append(extractors.efficientnet_features(batch))
        small.append(batch[:, 2::4, 2::4][:, :24, :24])
        print(f"\rextracting {rows[-1] + 1} of {pictures}", end="", file=sys.stderr)
    raw = np.concatenate(found)
    projection = extractors.center_and_project(raw, components=256)
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
    if len(names) > CLASSES:
        chosen = rng.permutation(len(names))[:CLASSES]
        number = np.full(len(names), -1)
        number[chosen] = np.arange(CLASSES)
        labels, names = number[labels], tuple(names[k] for k in chosen)
        contexts = np.where(labels >= 0, contexts, -1)
    return scenario.draw_market(
        labels, contexts, names, data.context_names, rng, sides=data.sides, **data.sizes
    )


def market_features(data: StudyData) -> np.ndarray:
    """Return the features that specifications are made of, (N, 64)."""
    return data.features[:, : scenario.MARKET_DIMENSION]


def space_of(data: StudyData, probe_rows: np.ndarray | None = None) -> js.Space:
    """Return the space of a market, with the pictures `probe_rows` as its probe."""
    features = market_features(data)
    kernel = js.Gaussian(bandwidth=js.median_bandwidth(features))
    probe = None if probe_rows is None else features[probe_rows]
    return js.Space(SPACE, kernel, dimension=features.shape[1], probe=probe)


def users_of(
    space: js.Space, tasks: Sequence[scenario.User], data: StudyData
) -> list[js.UserSpecification]:
    """Return the specifications of users."""
    features = market_features(data)
    return [
        js.specify_user(space, features[task.rows], task.labels, class_names=task.space.names)
        for task in tasks
    ]
