"""Fashion-MNIST seen in eleven visual contexts: pictures, features and the file of both.

    python -m benchmarks.datasets.fashion --cache DIR

reads the 70,000 pictures, gives each to exactly one of eleven contexts, renders it there
(`fashion_contexts`), extracts features with EfficientNet-lite0 (`features`), and writes the file
that the studies read. A run that was stopped continues where it was. May be called: `build_cache`,
`load_cache`, and the steps between. Nothing here uses the network.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.datasets.fashion_contexts import CONTEXT_NAMES, SEED, render
from benchmarks.datasets.features import (
    default_cache,
    extract_parts,
    principal_projection,
    write_npz,
)

__all__ = [
    "CLASS_NAMES",
    "SOURCE",
    "FashionStudy",
    "assign_contexts",
    "build_cache",
    "extract_features",
    "load_cache",
    "read_pictures",
]

CLASS_NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
SOURCE = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts it
CHUNK = 2_000  # pictures in one file of unfinished work


@dataclass(frozen=True)
class FashionStudy:
    """The data in memory; row i belongs to picture i (60,000 training, then 10,000 test).

    Attributes:
        features: (70000, 256) float16, columns by falling variance; a market uses the first 64.
        images: (70000, 28, 28, 3) uint8 renderings, or None when they were not asked for.
        labels: (70000,) uint8, positions in `class_names`.
        contexts: (70000,) uint8, positions in `context_names`.
        class_names: the ten classes.
        context_names: the eleven contexts.
    """

    features: np.ndarray
    images: np.ndarray | None
    labels: np.ndarray
    contexts: np.ndarray
    class_names: tuple[str, ...]
    context_names: tuple[str, ...]


# Pictures -----------------------------------------------------------------------------------


def _read_idx(path: Path) -> np.ndarray:
    """Read one gzipped IDX file of unsigned bytes."""
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path.name}: expected an IDX file of unsigned bytes, got {data[:4]!r}")
    rank = data[3]
    shape = np.frombuffer(data, ">u4", count=rank, offset=4).astype(int)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_pictures(source: Path = SOURCE) -> tuple[np.ndarray, np.ndarray]:
    """Return all pictures, those for training first.

    Args:
        source: folder with the four ``*-ubyte.gz`` files.

    Returns:
        pictures (70000, 28, 28) uint8 and labels (70000,) uint8.

    Raises:
        FileNotFoundError: when the folder lacks the files.
    """
    source = Path(source)
    parts = ("train", "t10k")
    if not all((source / f"{part}-images-idx3-ubyte.gz").is_file() for part in parts):
        raise FileNotFoundError(
            f"no Fashion-MNIST files in {source}; install the Debian package "
            "dataset-fashion-mnist or name their folder"
        )
    pictures = [_read_idx(source / f"{part}-images-idx3-ubyte.gz") for part in parts]
    labels = [_read_idx(source / f"{part}-labels-idx1-ubyte.gz") for part in parts]
    return np.concatenate(pictures), np.concatenate(labels)


def assign_contexts(labels: np.ndarray, seed: int = SEED) -> np.ndarray:
    """Give every picture to one context at random, every class spread evenly.

    Args:
        labels: (N,) integers.
        seed: of the shuffle.

    Returns:
        contexts (N,) uint8. Within a class the sizes of any two contexts differ by at most one.
    """
    rng = np.random.default_rng(seed)
    contexts = np.empty(len(labels), np.uint8)
    start = 0
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        # Continuing where the last class stopped keeps the totals of the contexts within one, too.
        contexts[rows] = (start + np.arange(len(rows))) % len(CONTEXT_NAMES)
        start += len(rows)
    return contexts


# Features -----------------------------------------------------------------------------------


def extract_features(
    pictures: np.ndarray, contexts: np.ndarray, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Render every picture in its context and extract its features, resuming where it stopped.

    Args:
        pictures: (N, 28, 28) uint8.
        contexts: (N,) integers.
        folder: keeps one file for every 2,000 pictures. Files of another rendering or seed lie in
            another subfolder, so that they are never mixed.

    Returns:
        features (N, 1280) float32, rows of unit length, and images (N, 28, 28, 3) uint8.
    """

    def rendered(start: int) -> np.ndarray:
        rows = range(start, min(start + CHUNK, len(pictures)))
        return np.stack([render(pictures[i], CONTEXT_NAMES[contexts[i]], i) for i in rows])

    def parts() -> Iterator[tuple[str, partial[np.ndarray]]]:
        for start in range(0, len(pictures), CHUNK):
            yield f"{start:06d}", partial(rendered, start)

    return extract_parts(parts(), Path(folder) / _rendering_fingerprint(pictures))


def _rendering_fingerprint(pictures: np.ndarray) -> str:
    """Return sixteen hexadecimal digits that change when a rendering or the contexts do."""
    digest = hashlib.sha256(repr((SEED, CONTEXT_NAMES, len(pictures))).encode())
    for index, picture in enumerate(pictures[:3]):
        for context in CONTEXT_NAMES:
            digest.update(render(picture, context, index).tobytes())
    return digest.hexdigest()[:16]


# The cache ----------------------------------------------------------------------------------


def build_cache(cache: Path | None = None, *, source: Path = SOURCE) -> Path:
    """Make ``fashion_study.npz`` in the cache folder; an existing file is kept.

    It holds the arrays of `FashionStudy` and the projection, `feature_mean` (1280,) and
    `feature_directions` (1280, 256), which takes new pictures to the same features.

    Args:
        cache: folder; `default_cache` when None.
        source: folder with the pictures.

    Returns:
        the path of the file.
    """
    folder = default_cache() if cache is None else Path(cache)
    path = folder / "fashion_study.npz"
    if path.exists():
        return path
    pictures, labels = read_pictures(source)
    contexts = assign_contexts(labels)
    raw, images = extract_features(pictures, contexts, folder / "fashion_chunks")
    mean, directions = principal_projection(raw)
    blocks = [raw[start : start + CHUNK] for start in range(0, len(raw), CHUNK)]
    features = np.concatenate([((b - mean) @ directions).astype(np.float16) for b in blocks])
    write_npz(
        path,
        features=features,
        images=images,
        labels=labels,
        contexts=contexts,
        class_names=np.array(CLASS_NAMES),
        context_names=np.array(CONTEXT_NAMES),
        feature_mean=mean,
        feature_directions=directions,
    )
    return path


def load_cache(cache: Path | None = None, *, images: bool = True) -> FashionStudy:
    """Read the cache that `build_cache` made.

    Args:
        cache: folder; `default_cache` when None.
        images: whether to read the 165 MB of renderings.

    Raises:
        FileNotFoundError: when it has not been built.
    """
    path = (default_cache() if cache is None else Path(cache)) / "fashion_study.npz"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing; python -m benchmarks.datasets.fashion builds it"
        )
    with np.load(path, allow_pickle=False) as file:
        return FashionStudy(
            features=file["features"],
            images=file["images"] if images else None,
            labels=file["labels"],
            contexts=file["contexts"],
            class_names=tuple(file["class_names"].tolist()),
            context_names=tuple(file["context_names"].tolist()),
        )


def main() -> None:
    """Make the file, unless it is there."""
    parser = argparse.ArgumentParser(description="Build the Fashion-MNIST study cache.")
    parser.add_argument("--cache", type=Path, default=None, help="folder of the cache")
    parser.add_argument("--source", type=Path, default=SOURCE, help="folder of the pictures")
    arguments = parser.parse_args()
    path = build_cache(arguments.cache, source=arguments.source)
    print(f"{path}: {path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
