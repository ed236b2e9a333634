"""Other packages' specifications, in and out.

`to_learnware` and `from_learnware` write and read the JSON files of `RKMETableSpecification` in
the PyPI package `learnware` (0.4), which hold the object

    {"z": (m, d) points, "beta": (m,) weights, "gamma": number, "num_points": examples behind it,
     "type": "RKMETableSpecification"}

with the kernel exp(-gamma |x - y|^2): a `Gaussian` of bandwidth (2 gamma)^(-1/2). Points and
weights pass bit by bit, and weights are not rescaled. Such a file has no class names, no feature
space and no proxy, so it makes a reduced set and a kernel and not a `Specification`.

Files are data: they are read with json, nothing of theirs is run, and `learnware` is not imported.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from jaxspec.base import as_features, as_size
from jaxspec.files import store
from jaxspec.kernels import Gaussian, Kernel, ReducedSet, as_kernel

__all__ = ["LEARNWARE_TYPE", "from_learnware", "to_learnware"]

PathLike = str | os.PathLike[str]
LEARNWARE_TYPE = "RKMETableSpecification"
MAX_BYTES = 1 << 28  # of a file: some ten million numbers


def to_learnware(
    path: PathLike, reduced_set: ReducedSet, kernel: Kernel, *, num_examples: int = 0
) -> None:
    """Write a reduced set as an `RKMETableSpecification` file of the package `learnware`.

    Its herding drops negative weights; `reduce_set(..., nonnegative=True)` makes sets without any.

    Args:
        path: the file; what was there is replaced in one step.
        reduced_set: points (m, d) and weights (m,).
        kernel: a `Gaussian`: the package has no other.
        num_examples: how many examples stand behind the set, for the field "num_points".

    Raises:
        TypeError: no reduced set, or no kernel.
        ValueError: a kernel of another form, or numbers or shapes that are off.
    """
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
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    store._write(store.as_path(path), text.encode())


def from_learnware(path: PathLike) -> tuple[ReducedSet, Gaussian]:
    """Read an `RKMETableSpecification` file of the package `learnware`.

    Points of more axes than two are flattened to rows, as that package does where it compares.

    Returns:
        a `ReducedSet` of numpy arrays, points (m, d) and weights (m,), and its kernel.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: not such a file, or a field that is not as it must be; the message names the
            file and the field.
    """
    source = store._existing(path)
    with store._naming(source):
        if not source.is_file():
            raise ValueError("expected a file, got a folder")
        size = source.stat().st_size
        if size > MAX_BYTES:
            raise ValueError(f"expected at most {MAX_BYTES} bytes, got {size}")
        return _parsed(json.loads(source.read_text(encoding="utf-8")))


def _parsed(content: Any) -> tuple[ReducedSet, Gaussian]:
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, got a {type(content).__name__}")
    for name in ("type", "gamma", "z", "beta"):
        if name not in content:
            raise ValueError(f"{name}: expected this field, got a file without it")
    if content["type"] != LEARNWARE_TYPE:
        raise ValueError(f"type: expected {LEARNWARE_TYPE!r}, got {content['type']!r:.80}")
    gamma = content["gamma"]
    if isinstance(gamma, bool) or not isinstance(gamma, (int, float)) or not 0 < gamma < np.inf:
        raise ValueError(f"gamma: expected a positive finite number, got {gamma!r:.80}")
    arrays = {}
    for name in ("z", "beta"):
        try:
            arrays[name] = np.asarray(content[name])
        except ValueError:
            raise ValueError(f"{name}: expected rows of equal length") from None
        if arrays[name].dtype.kind not in "fi":
            raise ValueError(f"{name}: expected numbers, got dtype {arrays[name].dtype}")
        arrays[name] = arrays[name].astype(np.float64)
    points = arrays["z"]
    if points.ndim > 2 and points.size:
        points = points.reshape(len(points), -1)
    points, weights = _checked("", points, arrays["beta"], names=("z", "beta"))
    return ReducedSet(points, weights), Gaussian(bandwidth=float(np.sqrt(0.5 / gamma)))


def _checked(
    prefix: str, points: Any, weights: Any, names: tuple[str, str] = ("points", "weights")
) -> tuple[np.ndarray, np.ndarray]:
    """Return points (m, d) and weights (m,) in the types they came in, or say what is off."""
    points, weights = np.asarray(points), np.asarray(weights)
    as_features(prefix + names[0], points)
    if weights.shape != points.shape[:1]:
        raise ValueError(
            f"{prefix}{names[1]}: expected shape {points.shape[:1]}, one a point, "
            f"got {weights.shape}"
        )
    if weights.dtype.kind not in "fi" or not np.isfinite(weights).all():
        raise ValueError(f"{prefix}{names[1]}: expected finite numbers")
    return points, weights
