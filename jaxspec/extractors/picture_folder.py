"""Tables of multi-domain picture folders, and loading of the pictures.

May be called: `scan_domains`, which lists root/domain/class/picture as a `PictureFolder`, and
`load_pictures`, which reads rows of that table as RGB squares. Names are compared in the Unicode
form NFC. Nothing here writes to the folder, and pictures are opened only when they are loaded.
"""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxspec.base import as_path, as_size, to_numpy
from jaxspec.extractors.optional_imports import import_optional

if TYPE_CHECKING:
    from jaxtyping import Int32, UInt8
    from numpy.typing import ArrayLike

__all__ = ["PictureFolder", "load_pictures", "scan_domains"]

PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
LAYOUT = "pictures at root/domain/class/picture"
PILLOW = "Pillow: pip install 'jaxspec-learnware[bench]'"
TRANSPARENT_MODES = ("LA", "PA", "RGBA", "RGBa")  # of Pillow
WHITE = (255, 255, 255)


@dataclass(frozen=True, eq=False)
class PictureFolder:
    """Every picture under a `root/domain/class/` tree, sorted by domain, class and file name.

    Attributes:
        paths: n file names, beginning with the scanned root.
        domains: (n,) int32 indices into `domain_names`, read-only.
        classes: (n,) int32 indices into `class_names`, read-only.
        domain_names: sorted names, in NFC, of the domains that hold a picture.
        class_names: sorted names, in NFC, of the classes that hold a picture in any domain.
    """

    paths: tuple[str, ...]
    domains: Int32[np.ndarray, " n"]
    classes: Int32[np.ndarray, " n"]
    domain_names: tuple[str, ...]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.paths)


def scan_domains(root: str | os.PathLike[str]) -> PictureFolder:
    """List the pictures of a multi-domain data set that is laid out as root/domain/class/picture.

    This is the layout of DomainNet, Office-Home and NICO++ (the first NICO keeps
    class/context/picture and has to be rearranged). Hidden names, files that are not pictures, and
    domains or classes without a picture are left out; the order depends on names only. Names are
    brought to the Unicode form NFC: macOS writes an accented letter as two characters, other
    systems as one, and folders of both forms are one class or one domain.

    Args:
        root: the folder that holds the domains.

    Returns:
        The table of all pictures.

    Raises:
        ValueError: if root is not a folder, holds no picture in this layout, or holds pictures or
            folders at another depth, which would otherwise be left out silently.

    Warns:
        UserWarning: names that differ in letter case or spaces only stay different classes.
    """
    base = os.fspath(as_path(root, name="root"))
    if not os.path.isdir(base):
        raise ValueError(f"root: expected a folder with {LAYOUT}, got {base!r}, no such folder")
    _refuse_pictures(base, base)
    rows: list[tuple[str, str, str, str]] = []  # domain, class, file name, path
    for domain in _visible_folders(base):
        domain_path = os.path.join(base, domain)
        _refuse_pictures(base, domain_path)
        for class_name in _visible_folders(domain_path):
            class_path = os.path.join(domain_path, class_name)
            deeper = _visible_folders(class_path)
            if deeper:
                raise ValueError(
                    f"root: expected {LAYOUT}, got a folder inside a class folder under {base!r}: "
                    f"{os.path.join(class_path, deeper[0])!r}"
                )
            names = _nfc(domain), _nfc(class_name)
            for file_name in _visible_pictures(class_path):
                rows.append((*names, _nfc(file_name), os.path.join(class_path, file_name)))
    if not rows:
        raise ValueError(f"root: expected {LAYOUT}, got no picture under {base!r}")
    rows.sort()
    domain_names = tuple(sorted({domain for domain, _, _, _ in rows}))
    class_names = tuple(sorted({class_name for _, class_name, _, _ in rows}))
    _warn_of_near_names("domain", domain_names)
    _warn_of_near_names("class", class_names)
    return PictureFolder(
        paths=tuple(path for _, _, _, path in rows),
        domains=_indices((domain for domain, _, _, _ in rows), domain_names),
        classes=_indices((class_name for _, class_name, _, _ in rows), class_names),
        domain_names=domain_names,
        class_names=class_names,
    )


def load_pictures(
    folder: PictureFolder,
    indices: ArrayLike,
    size: int,
    *,
    background: tuple[int, int, int] = WHITE,
) -> UInt8[np.ndarray, "n size size 3"]:
    """Read pictures as RGB squares; each picture is resized as a whole, without its proportions.

    The orientation that a camera stores beside the pixels (EXIF) is applied, so that pictures
    stand upright. Transparent pixels are composed on `background`.

    Args:
        folder: the table of `scan_domains`.
        indices: (n,) rows of the table; repeats are allowed.
        size: side of the squares in pixels.
        background: RGB colour behind transparent pixels, each in 0..255; white by default.

    Returns:
        (n, size, size, 3) uint8, in the order of indices.

    Raises:
        ImportError: if Pillow is not installed (extra `bench`).
        TypeError: if indices, size or background are not integers.
        ValueError: if an index or a colour is out of range, indices are masked, size < 1, or a
            picture cannot be read (the message names the file).
    """
    pillow = import_optional("PIL.Image", PILLOW), import_optional("PIL.ImageOps", PILLOW)
    side = as_size("size", size)
    colour = _checked_colour(background)
    rows = _checked_indices(indices, len(folder))
    pictures = np.empty((rows.size, side, side, 3), dtype=np.uint8)
    for place, row in enumerate(rows.tolist()):
        pictures[place] = _read_square(*pillow, folder.paths[row], side, colour)
    return pictures


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


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
    return [name for name in names if name.lower().endswith(PICTURE_SUFFIXES)]


def _refuse_pictures(root: str, path: str) -> None:
    """Raise if `path`, which is above the class folders, holds pictures: it is another layout."""
    misplaced = _visible_pictures(path)
    if misplaced:
        raise ValueError(
            f"root: expected {LAYOUT}, got a picture at another depth under {root!r}: "
            f"{os.path.join(path, misplaced[0])!r}"
        )


def _warn_of_near_names(kind: str, names: Iterable[str]) -> None:
    """Warn of names that differ in letter case or spaces only, and are probably one name."""
    seen: dict[str, str] = {}
    for name in names:
        first = seen.setdefault("".join(name.casefold().split()), name)
        if first != name:
            warnings.warn(
                f"root: the {kind} names {first!r} and {name!r} differ in letter case or spaces "
                "only and are kept as two; rename the folders if they are one",
                stacklevel=3,
            )


def _indices(names: Iterable[str], vocabulary: tuple[str, ...]) -> Int32[np.ndarray, " n"]:
    places = {name: place for place, name in enumerate(vocabulary)}
    indices = np.array([places[name] for name in names], dtype=np.int32)
    indices.flags.writeable = False
    return indices


def _checked_indices(indices: ArrayLike, count: int) -> Int32[np.ndarray, " n"]:
    rows = to_numpy("indices", indices)
    if rows.size and not np.issubdtype(rows.dtype, np.integer):
        raise TypeError(f"indices: expected integers, got dtype {rows.dtype}")
    if rows.ndim != 1:
        raise ValueError(f"indices: expected shape (n,), got {rows.shape}")
    outside = (rows < 0) | (rows >= count)
    if outside.any():
        raise ValueError(f"indices: expected rows of 0..{count - 1}, got {rows[outside][0]}")
    return rows


def _checked_colour(background: tuple[int, int, int]) -> tuple[int, int, int]:
    channels = np.asarray(background)
    if channels.shape != (3,) or not np.issubdtype(channels.dtype, np.integer):
        raise TypeError(f"background: expected three integers, got {background!r}")
    if channels.min() < 0 or channels.max() > 255:
        raise ValueError(f"background: expected values in 0..255, got {background!r}")
    red, green, blue = channels.tolist()
    return red, green, blue


def _read_square(
    image_module: Any, operations: Any, path: str, side: int, background: tuple[int, int, int]
) -> UInt8[np.ndarray, "side side 3"]:
    """Return one picture as (side, side, 3) uint8, with the modules PIL.Image and PIL.ImageOps."""
    with open(path, "rb") as file:  # a missing file raises its own error, with its name
        try:
            with image_module.open(file) as image:
                if image.mode in ("I", "F") or image.mode.startswith("I;"):
                    raise ValueError(f"expected 8 bits per channel, got mode {image.mode}")
                # JPEG decodes at a fraction of the full resolution, at least twice the target.
                image.draft("RGB", (2 * side, 2 * side))
                upright = operations.exif_transpose(image)
                # Alpha channels, and the single transparent colour of palettes and PNG files.
                if upright.mode in TRANSPARENT_MODES or "transparency" in upright.info:
                    upright = upright.convert("RGBA")
                    backdrop = image_module.new("RGBA", upright.size, (*background, 255))
                    upright = image_module.alpha_composite(backdrop, upright)
                resampling = image_module.Resampling.BILINEAR
                return np.asarray(upright.convert("RGB").resize((side, side), resampling))
        except Exception as error:  # Pillow's decoders raise almost any type on corrupt bytes
            raise ValueError(f"picture {path!r} cannot be read: {error}") from error
