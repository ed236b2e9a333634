"""Reduced sets in files of the package `learnware`: how they are written and read.

`to_learnware` and `from_learnware` (for a folder of them `from_learnware_folder`) exchange the JSON
files of `RKMETableSpecification` in the PyPI
package `learnware` (0.4), which hold the object

    {"z": (m, d) points, "beta": (m,) weights, "gamma": number, "num_points": examples behind it,
     "type": "RKMETableSpecification"}

with the kernel exp(-gamma |x - y|^2): a `Gaussian` of bandwidth (2 gamma)^(-1/2). Points and
weights pass bit by bit, and weights are not rescaled. Such a file has no class names, no space and
no proxy, so it gives a reduced set and a kernel; `Market.from_reduced_sets` makes a market of such
sets.

A file is data: it is read as JSON, nothing in it is run, and `learnware` is not imported.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from jaxspec.base import (
    PathLike,
    as_features,
    as_path,
    as_size,
    existing_path,
    reading,
    write_atomically,
)
from jaxspec.files.bounded_json import parse_json, require
from jaxspec.files.regular_files import check_tree, read_limited, seems_to_be
from jaxspec.kernels import Gaussian, Kernel, ReducedSet, as_kernel

__all__ = ["LEARNWARE_TYPE", "from_learnware", "from_learnware_folder", "to_learnware"]

LEARNWARE_TYPE = "RKMETableSpecification"
MAX_BYTES = 1 << 28  # some ten million numbers
MAX_ITEMS = 1 << 25  # numbers and rows
MAX_DEPTH = 16  # points may have the axes of pictures or of stacks of pictures


def to_learnware(
    path: PathLike, reduced_set: ReducedSet, kernel: Kernel, *, num_examples: int = 0
) -> None:
    """Write a reduced set as an `RKMETableSpecification` file of the package `learnware`.

    Its herding drops negative weights; `reduce_set(..., nonnegative=True)` makes sets without any.

    Args:
        path: the file; what was there is replaced in one step.
        reduced_set: points (m, d) and weights (m,).
        kernel: a `Gaussian`: the package has no other kernel.
        num_examples: how many examples stand behind the set, for the field "num_points".

    Raises:
        TypeError: not a reduced set, or not a kernel.
        ValueError: another kernel, or numbers or shapes that are not as described.
    """
    target = as_path(path)
    if not isinstance(reduced_set, ReducedSet):
        raise TypeError(f"reduced_set: expected a ReducedSet, got a {type(reduced_set).__name__}")
    if not isinstance(as_kernel("kernel", kernel), Gaussian):
        raise ValueError(f"kernel: expected a Gaussian, got a {type(kernel).__name__}")
    points, weights = _checked("reduced_set.", reduced_set.points, reduced_set.weights)
    content = {
        "num_points": as_size("num_examples", num_examples, minimum=0),
        "z": points.tolist(),
        "beta": weights.tolist(),
        "gamma": 0.5 / float(kernel.bandwidth) ** 2,
        "type": LEARNWARE_TYPE,
    }
    write_atomically(target, json.dumps(content, separators=(",", ":"), allow_nan=False).encode())


def from_learnware(path: PathLike) -> tuple[ReducedSet, Gaussian]:
    """Read an `RKMETableSpecification` file of the package `learnware`.

    Points with more than two axes are flattened to rows, as that package does where it compares.

    Returns:
        a `ReducedSet` of float64 numpy arrays, points (m, d) and weights (m,), and its kernel.

    Raises:
        TypeError: `path` is neither a string nor a path.
        FileNotFoundError: there is nothing at `path`.
        FileError: not such a file, or a field that is not as it must be; the message names the
            file and the field.
    """
    source = existing_path(path)
    with reading(source):
        if source.is_dir():
            raise ValueError(
                f"expected a file, got {seems_to_be(source)}; from_learnware_folder reads all "
                "files of a folder"
            )
        data = read_limited(source, MAX_BYTES)
        try:
            content = parse_json("contents", data, depth=MAX_DEPTH, items=MAX_ITEMS, constants=True)
        except ValueError as error:
            raise ValueError(f"{error}; this seems to be {seems_to_be(source)}") from None
        return _parsed(content)


def from_learnware_folder(path: PathLike) -> tuple[dict[str, ReducedSet], Gaussian]:
    """Read all files of a folder and its sub-folders whose names end in .json.

    Returns:
        {id: reduced set}, where an id is the file's path in the folder without ".json", and the
        kernel that all of them have.

    Raises:
        TypeError: `path` is neither a string nor a path.
        FileNotFoundError: there is nothing at `path`.
        FileError: not a folder, one without such a file, a file that `from_learnware` refuses, or
            one whose "gamma" or number of features differs from the first file's.
    """
    folder = existing_path(path)
    with reading(folder):
        require(folder.is_dir(), "expected a folder, got a file; from_learnware reads it")
        files = [one for one in check_tree(folder, folder) if one.suffix == ".json"]
        require(files, "expected files whose names end in .json, got a folder without any")
    found: dict[str, ReducedSet] = {}
    kernel = None
    for file in files:
        one, own = from_learnware(file)
        kernel = kernel or own
        with reading(file):
            bandwidth, wanted = float(own.bandwidth), float(kernel.bandwidth)
            require(
                bandwidth == wanted,
                f"gamma: expected {0.5 / wanted**2:.6g} as in {files[0].name!r}, "
                f"got {0.5 / bandwidth**2:.6g}; reduced sets compare under one kernel only",
            )
            columns = next(iter(found.values()), one).points.shape[1]
            require(
                one.points.shape[1] == columns,
                f"z: expected {columns} features as in {files[0].name!r}, "
                f"got {one.points.shape[1]}",
            )
        found[file.relative_to(folder).with_suffix("").as_posix()] = one
    assert kernel is not None
    return found, kernel


def _parsed(content: Any) -> tuple[ReducedSet, Gaussian]:
    require(
        isinstance(content, dict),
        f"contents: expected a JSON object, got a {type(content).__name__}",
    )
    for name in ("type", "gamma", "z", "beta"):
        require(name in content, f"{name}: expected this field, got a file without it")
    kind, gamma = content["type"], content["gamma"]
    require(kind == LEARNWARE_TYPE, f"type: expected {LEARNWARE_TYPE!r}, got {kind!r:.80}")
    good = type(gamma) in (int, float) and 0 < gamma < np.inf
    require(good, f"gamma: expected a positive finite number, got {gamma!r:.80}")
    arrays = {}
    for name in ("z", "beta"):
        try:
            arrays[name] = np.asarray(content[name])
        except ValueError:
            raise ValueError(f"{name}: expected rows of equal length") from None
        known = arrays[name].dtype.kind in "fi"
        require(known, f"{name}: expected numbers, got dtype {arrays[name].dtype}")
        arrays[name] = arrays[name].astype(np.float64)
    points = arrays["z"]
    if points.ndim > 2 and points.size:
        points = points.reshape(len(points), -1)
    points, weights = _checked("", points, arrays["beta"], names=("z", "beta"))
    bandwidth: Any = float(np.sqrt(0.5 / gamma))
    return ReducedSet(points, weights), Gaussian(bandwidth=bandwidth)


def _checked(
    prefix: str, points: Any, weights: Any, names: tuple[str, str] = ("points", "weights")
) -> tuple[Any, Any]:
    """Return points (m, d) and weights (m,) as numpy arrays of the types they came in."""
    points, weights = np.asarray(points), np.asarray(weights)
    as_features(prefix + names[0], points)
    require(
        weights.shape == points.shape[:1],
        f"{prefix}{names[1]}: expected shape {points.shape[:1]}, one weight per point, "
        f"got {weights.shape}",
    )
    good = weights.dtype.kind in "fi" and np.isfinite(weights).all()
    require(good, f"{prefix}{names[1]}: expected finite numbers")
    return points, weights
