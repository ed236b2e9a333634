"""Folders of pictures as data: one folder per class, features by a public extractor.

An extractor is "efficientnet" (torch and two packages), "pixels" (the pixels themselves, for
trials), or a function of one's own, "module:function", from pictures (n, s, s, 3) uint8 to features
(n, d).
"""

from __future__ import annotations

import importlib
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxspec.applications.command.errors import FileRefused, WrongUse, blamed
from jaxspec.applications.command.inputs import Data
from jaxspec.applications.command.output import require_input
from jaxspec.applications.command.progress import Advance
from jaxspec.applications.command.session import Session

__all__ = ["read_pictures"]

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def read_pictures(
    session: Session, path: Path, *, extractor: str | None, side: int, projection: Path | None
) -> Data:
    """Return the features and class names of the pictures in a folder of class folders.

    Args:
        session: shows the progress.
        path: a folder with one folder of pictures per class.
        extractor: see above.
        side: pictures are resized to squares of so many pixels.
        projection: an .npz with `origin`, `directions` and `scale` of a fitted `Projection`.

    Raises:
        WrongUse: no extractor was named, or an unknown one.
        FileRefused: the folder has no class folders, or a picture cannot be read.
    """
    if extractor is None:
        raise WrongUse(
            "--extractor: a folder of pictures needs one: efficientnet, pixels, or module:function"
        )
    extract = _extractor(extractor)
    names, paths, labels = _classes_of(path)
    from jaxspec.extractors import PictureFolder, load_pictures

    domains = np.zeros(len(paths), np.int32)  # all of them are of one owner
    listed = PictureFolder(tuple(paths), domains, labels, (path.name,), names)
    with session.stage(f"Reading {len(paths)} pictures"):
        try:
            pictures = load_pictures(listed, np.arange(len(paths)), side)
        except ValueError as error:
            raise FileRefused(path, str(error)) from error
    with session.stage("Extracting features") as advance:
        features = extract(pictures, advance)
    if projection is not None:
        features = _projected(features, projection)
    return Data(path, features, labels, names)


def _classes_of(path: Path) -> tuple[tuple[str, ...], list[str], np.ndarray]:
    """Return the names of the classes, the paths of all pictures, and the class of each."""
    found: dict[str, list[str]] = {}
    for folder in sorted(one for one in path.iterdir() if one.is_dir()):
        pictures = sorted(
            str(one)
            for one in folder.iterdir()
            if one.suffix.lower() in SUFFIXES and not one.name.startswith(".")
        )
        if pictures and not folder.name.startswith("."):
            found.setdefault(unicodedata.normalize("NFC", folder.name), []).extend(pictures)
    if len(found) < 2:
        raise FileRefused(
            path, f"expected a folder of pictures for each of two classes or more, got {len(found)}"
        )
    labels = np.repeat(np.arange(len(found), dtype=np.int32), [len(one) for one in found.values()])
    return tuple(found), [one for listed in found.values() for one in listed], labels


def _extractor(name: str) -> Callable[[np.ndarray, Advance], Any]:
    """Return a function of (pictures, progress)."""
    if name == "pixels":
        return lambda pictures, _: pictures.reshape(len(pictures), -1).astype(np.float32) / 255
    if name == "efficientnet":
        from jaxspec.extractors import efficientnet_features

        return lambda pictures, advance: efficientnet_features(pictures, progress=advance)
    module, colon, function = name.partition(":")
    if not colon:
        raise WrongUse(
            f"--extractor: expected efficientnet, pixels, or module:function, got {name}"
        )
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise WrongUse(f"--extractor: {name} cannot be imported: {error}") from error
    finally:
        sys.path.pop(0)
    return lambda pictures, _: np.asarray(found(pictures))


def _projected(features: Any, path: Path) -> Any:
    from jaxspec.extractors import Projection

    require_input(path)
    with blamed(path), np.load(path, allow_pickle=False) as file:
        fitted = Projection(file["origin"], file["directions"], float(file["scale"]))
        return fitted.apply(features)
