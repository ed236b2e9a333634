"""Emoji in five drawing styles and six renderings of them: pictures, features and the file of both.

    python -m benchmarks.datasets.emoji --cache DIR [--table]

gets the drawings (`emoji_drawings`), deals every emoji to the developers or to the users, renders
it in eleven domains, extracts features with EfficientNet-lite0 (`features`), and writes the file
that the studies read. A run that was stopped continues where it was; `--table` prints counts and
linear probes. May be called: `build_cache`, `load_cache`, `transfer`, and the steps between.

Unlike the contexts of Fashion-MNIST, the shift between the five styles is not made here: other
people drew the same things. Each emoji appears once in every domain, and its side is the same in
all of them: no user meets a thing that a developer has seen, not even in another style.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.datasets.emoji_drawings import (
    CLASS_NAMES,
    Drawing,
    Emoji,
    fetch_packages,
    read_drawings,
    resize,
)
from benchmarks.datasets.features import (
    SIDE,
    default_cache,
    extract_parts,
    principal_projection,
    write_npz,
)

__all__ = [
    "CONTEXT_NAMES",
    "EmojiStudy",
    "assign_sides",
    "build_cache",
    "count_table",
    "extract_features",
    "load_cache",
    "render",
    "transfer",
]

SEED = 20230712


@dataclass(frozen=True)
class EmojiStudy:
    """The data in memory: 11 domains of the same E emoji, row ``domain * E + emoji``.

    Attributes:
        features: (N, 256) float16, columns by falling variance; a market uses the first 64.
        images: (N, 28, 28, 3) uint8 renderings, or None when they were not asked for.
        labels: (N,) uint8, positions in `class_names`.
        contexts: (N,) uint8, positions in `context_names`.
        emoji: (N,) int32, positions in `emoji_names`.
        side: (N,) uint8, 0 for the developers' emoji and 1 for the users'.
        class_names: the ten classes.
        context_names: the eleven domains.
        emoji_names: E short names.
    """

    features: np.ndarray
    images: np.ndarray | None
    labels: np.ndarray
    contexts: np.ndarray
    emoji: np.ndarray
    side: np.ndarray
    class_names: tuple[str, ...]
    context_names: tuple[str, ...]
    emoji_names: tuple[str, ...]


def assign_sides(labels: np.ndarray, seed: int = SEED) -> np.ndarray:
    """Deal the emoji to developers (0) and users (1) at random, every class in halves.

    Args:
        labels: (E,) class of every emoji.
        seed: of the shuffle.

    Returns:
        sides (E,) uint8. Within a class, and in all, the two counts differ by at most one.
    """
    rng = np.random.default_rng(seed)
    sides = np.empty(len(labels), np.uint8)
    start = 0
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        sides[rows] = (start + np.arange(len(rows))) % 2
        start += len(rows)
    return sides


# Rendering ----------------------------------------------------------------------------------


def _as_drawn(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return picture


def _grey(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Keep the luminance only, in three equal channels."""
    luminance = np.round(picture @ np.array([0.299, 0.587, 0.114]))
    return np.repeat(luminance[..., None], 3, axis=-1).astype(np.uint8)


def _edges(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a pencil sketch: the gradient of the strongest channel, dark on white."""
    from scipy import ndimage

    channels = np.moveaxis(picture / 255, -1, 0)
    size = np.max([ndimage.gaussian_gradient_magnitude(c, sigma=1.0) for c in channels], axis=0)
    dark = np.clip(size / max(np.quantile(size, 0.98), 1e-3), 0, 1)
    return np.repeat(np.round(255 * (1 - dark))[..., None], 3, axis=-1).astype(np.uint8)


def _inverted(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 255 - picture


def _pixelated(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return resize(resize(picture, 16, "BOX"), SIDE, "NEAREST")


def _rotated(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn left by an eighth, at a smaller size so that no corner is lost."""
    from PIL import Image

    turned = Image.fromarray(picture).rotate(
        45, Image.Resampling.BICUBIC, expand=True, fillcolor=(255, 255, 255)
    )
    return np.asarray(turned.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _small(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Show half the size, anywhere on the paper."""
    side = SIDE // 2
    top, left = rng.integers(0, SIDE - side + 1, 2)
    paper = np.full_like(picture, 255)
    paper[top : top + side, left : left + side] = resize(picture, side, "BOX")
    return paper


_Renderer = Callable[[np.ndarray, np.random.Generator], np.ndarray]
_CONTEXTS: dict[str, tuple[str, _Renderer]] = {
    "noto": ("noto", _as_drawn),
    "twemoji": ("twemoji", _as_drawn),
    "fluent flat": ("fluent flat", _as_drawn),
    "fluent modern": ("fluent modern", _as_drawn),
    "fluent high contrast": ("fluent high contrast", _as_drawn),
    "noto edges": ("noto", _edges),
    "noto rotated": ("noto", _rotated),
    "twemoji inverted": ("twemoji", _inverted),
    "twemoji small": ("twemoji", _small),
    "fluent flat grey": ("fluent flat", _grey),
    "fluent modern pixelated": ("fluent modern", _pixelated),
}
CONTEXT_NAMES = tuple(_CONTEXTS)


def render(picture: np.ndarray, context: str, index: int, *, seed: int = SEED) -> np.ndarray:
    """Return one drawing as one domain shows it.

    Args:
        picture: (64, 64, 3) uint8 in the domain's style, on white.
        context: one of `CONTEXT_NAMES`.
        index: the emoji's position; with `seed` it fixes every random choice.
        seed: of the study.

    Returns:
        (96, 96, 3) uint8, the same bytes on every call.
    """
    rng = np.random.default_rng([seed, index])
    return _CONTEXTS[context][1](resize(picture, SIDE, "BICUBIC"), rng)


# Features -----------------------------------------------------------------------------------


def extract_features(
    emoji: Sequence[Emoji], drawings: Mapping[str, Drawing], folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Render every emoji in every domain and extract its features, resuming where it stopped.

    Args:
        emoji: E emoji.
        drawings: for each style, a function from an emoji to its picture.
        folder: keeps one file per domain. Files of other emoji or renderings lie in another
            subfolder, so that they are never mixed.

    Returns:
        features (11 E, 1280) float32, rows of unit length, and images (11 E, 28, 28, 3) uint8.
    """

    def rendered(context: str, style: str) -> np.ndarray:
        return np.stack([render(drawings[style](one), context, i) for i, one in enumerate(emoji)])

    def parts() -> Iterator[tuple[str, partial[np.ndarray]]]:
        for context, (style, _) in _CONTEXTS.items():
            yield context.replace(" ", "_"), partial(rendered, context, style)

    return extract_parts(parts(), Path(folder) / _fingerprint(emoji, drawings))


def _fingerprint(emoji: Sequence[Emoji], drawings: Mapping[str, Drawing]) -> str:
    """Return sixteen hexadecimal digits that change when the emoji or a rendering do."""
    digest = hashlib.sha256(repr((SEED, CONTEXT_NAMES, tuple(emoji))).encode())
    for index, one in enumerate(emoji[:3]):
        for context, (style, _) in _CONTEXTS.items():
            digest.update(render(drawings[style](one), context, index).tobytes())
    return digest.hexdigest()[:16]


# The cache ----------------------------------------------------------------------------------


def build_cache(cache: Path | None = None) -> Path:
    """Make ``emoji_study.npz`` in the cache folder; an existing file is kept.

    It holds the arrays of `EmojiStudy` and the projection, `feature_mean` (1280,) and
    `feature_directions` (1280, 256), which takes new pictures to the same features.

    Args:
        cache: folder; `features.default_cache` when None.

    Returns:
        the path of the file.
    """
    folder = default_cache() if cache is None else Path(cache)
    path = folder / "emoji_study.npz"
    if path.exists():
        return path
    emoji, drawings = read_drawings(fetch_packages(folder / "emoji_packages"))
    raw, images = extract_features(emoji, drawings, folder / "emoji_domains")
    mean, directions = principal_projection(raw)
    domains, labels = len(CONTEXT_NAMES), np.array([one.label for one in emoji], np.uint8)
    write_npz(
        path,
        features=((raw - mean) @ directions).astype(np.float16),
        images=images,
        labels=np.tile(labels, domains),
        contexts=np.repeat(np.arange(domains, dtype=np.uint8), len(emoji)),
        emoji=np.tile(np.arange(len(emoji), dtype=np.int32), domains),
        side=np.tile(assign_sides(labels), domains),
        class_names=np.array(CLASS_NAMES),
        context_names=np.array(CONTEXT_NAMES),
        emoji_names=np.array([one.name for one in emoji]),
        feature_mean=mean,
        feature_directions=directions,
    )
    return path


def load_cache(cache: Path | None = None, *, images: bool = True) -> EmojiStudy:
    """Read the cache that `build_cache` made.

    Args:
        cache: folder; `features.default_cache` when None.
        images: whether to read the renderings.

    Raises:
        FileNotFoundError: when it has not been built.
    """
    path = (default_cache() if cache is None else Path(cache)) / "emoji_study.npz"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; python -m benchmarks.datasets.emoji builds it")
    with np.load(path, allow_pickle=False) as file:
        arrays = ("features", "labels", "contexts", "emoji", "side")
        names = ("class_names", "context_names", "emoji_names")
        return EmojiStudy(
            images=file["images"] if images else None,
            **{name: file[name] for name in arrays},
            **{name: tuple(file[name].tolist()) for name in names},
        )


# What is in it ------------------------------------------------------------------------------


def count_table(study: EmojiStudy) -> np.ndarray:
    """Return the number of pictures per domain, class and side, (11, 10, 2)."""
    shape = len(study.context_names), len(study.class_names), 2
    cells = np.ravel_multi_index((study.contexts, study.labels, study.side), shape)
    return np.bincount(cells, minlength=np.prod(shape)).reshape(shape)


def transfer(study: EmojiStudy, dimensions: int = 64) -> np.ndarray:
    """Return the accuracy of linear probes, (11, 11): row fitted on, column tested on.

    Fitted on the developers' emoji, tested on the users': logistic regression on the first
    `dimensions` columns of the features, L2 with C = 0.1.
    """
    from sklearn.linear_model import LogisticRegression

    features = study.features[:, :dimensions].astype(np.float32)
    domains = range(len(study.context_names))
    accuracy = np.empty((len(domains),) * 2)
    for source in domains:
        fit = (study.contexts == source) & (study.side == 0)
        probe = LogisticRegression(C=0.1, max_iter=2000).fit(features[fit], study.labels[fit])
        for target in domains:
            test = (study.contexts == target) & (study.side == 1)
            accuracy[source, target] = probe.score(features[test], study.labels[test])
    return accuracy


def _print_tables(study: EmojiStudy) -> None:
    counts = count_table(study)[0]
    print("\nemoji of every domain   developers users")
    for name, (developers, users) in zip(study.class_names, counts, strict=True):
        print(f"{name:24}{developers:10d}{users:6d}")
    print(f"{'all':24}{counts[:, 0].sum():10d}{counts[:, 1].sum():6d}")
    print("\nlinear probes, % right: row fitted on developers, column tested on users")
    print(" " * 24 + "".join(f"{k:4d}" for k in range(len(study.context_names))))
    for k, (name, row) in enumerate(zip(study.context_names, transfer(study), strict=True)):
        print(f"{k:2d} {name:21}" + "".join(f"{100 * value:4.0f}" for value in row))


def main() -> None:
    """Make the file, unless it is there, and print tables on request."""
    parser = argparse.ArgumentParser(description="Build the emoji study cache.")
    parser.add_argument("--cache", type=Path, default=None, help="folder of the cache")
    parser.add_argument("--table", action="store_true", help="print counts and linear probes")
    arguments = parser.parse_args()
    path = build_cache(arguments.cache)
    print(f"{path}: {path.stat().st_size / 1e6:.0f} MB")
    if arguments.table:
        _print_tables(load_cache(arguments.cache, images=False))


if __name__ == "__main__":
    main()
