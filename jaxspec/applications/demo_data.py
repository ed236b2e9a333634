"""The embedded demo data: features of Fashion-MNIST pictures seen in eleven visual contexts.

What lives here: one loader, `load_fashion_contexts`. It reads a file of the package with numpy
alone. It never reads the network, never unpickles and never touches the pictures' source; how
the file was made, and under which licences, is in ``jaxspec/data/README.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import numpy as np

__all__ = ["FashionContexts", "load_fashion_contexts"]


@dataclass(frozen=True)
class FashionContexts:
    """Features, labels and contexts of N pictures, and small images of T of them.

    Attributes:
        features: (N, 256) float32, centred, columns by falling variance. The first 64 are a good
            feature space for a market: their mean squared norm is about 64.
        labels: (N,) uint8, positions in `class_names`.
        contexts: (N,) uint8, positions in `context_names`; rows of a context lie together.
        class_names: the ten classes.
        context_names: the eleven contexts; no picture is in two.
        thumbnails: (T, 28, 28, 3) uint8, as the picture looks in its context.
        thumbnail_index: (T,) int32, rising: the row that each thumbnail shows.
    """

    features: np.ndarray
    labels: np.ndarray
    contexts: np.ndarray
    class_names: tuple[str, ...]
    context_names: tuple[str, ...]
    thumbnails: np.ndarray
    thumbnail_index: np.ndarray


def load_fashion_contexts() -> FashionContexts:
    """Read the embedded demo data; every call gives fresh arrays.

    Features are stored in eight bits with one scale for each dimension and returned as float32.

    Returns:
        27,500 pictures: 250 for each of 10 classes in each of 11 contexts.

    Example:
        >>> data = load_fashion_contexts()
        >>> upright = data.contexts == data.context_names.index("upright")
        >>> data.features[upright, :64].shape
        (2500, 64)
    """
    path = resources.files("jaxspec.data") / "fashion_contexts.npz"
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        return FashionContexts(
            features=file["feature_codes"] * file["feature_scales"],
            labels=file["labels"],
            contexts=file["contexts"],
            class_names=tuple(file["class_names"].tolist()),
            context_names=tuple(file["context_names"].tolist()),
            thumbnails=file["thumbnails"],
            thumbnail_index=file["thumbnail_index"],
        )
