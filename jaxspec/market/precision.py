"""In what precision a market holds its numbers, and how points get there and back.

"float32" holds everything in float32. "bfloat16" holds points and class vectors in bfloat16.
"int8" holds points as integers with one scale per point, and class vectors in bfloat16. One scale
per point, rather than per learnware, keeps a single outlying point from taking the others' digits.
All sums are in float32, whatever the precision.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

__all__ = ["PRECISIONS", "check_precision", "decode_points", "dtype_of", "encode", "point_scales"]

# The type of each kind of array that is not the same in every precision.
PRECISIONS = {
    "float32": {"points": np.dtype(np.float32), "vectors": np.dtype(np.float32)},
    "bfloat16": {"points": np.dtype(jnp.bfloat16), "vectors": np.dtype(jnp.bfloat16)},
    "int8": {"points": np.dtype(np.int8), "vectors": np.dtype(jnp.bfloat16)},
}
LARGEST_INT8 = 127.0


def check_precision(precision: Any) -> str:
    """Return `precision` if there is one of this name.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {tuple(PRECISIONS)}, got {precision!r:.80}")
    return precision


def dtype_of(kind: str, precision: str) -> np.dtype[Any]:
    """Return the type of an array of this kind: "points", "vectors", or numpy's name of a type."""
    return PRECISIONS[precision].get(kind) or np.dtype(kind)


def point_scales(points: np.ndarray, precision: str) -> np.ndarray:
    """Return what stored points (..., m, d) are multiplied by, (..., m): ones unless in int8."""
    if precision != "int8":
        return np.ones(points.shape[:-1], np.float32)
    largest = np.abs(points).max(axis=-1)
    return np.where(largest > 0, largest / LARGEST_INT8, 1.0).astype(np.float32)


def encode(
    values: np.ndarray, kind: str, precision: str, scales: np.ndarray | None = None
) -> np.ndarray:
    """Return float32 values in the type of their kind; int8 points are divided by their scales."""
    wanted = dtype_of(kind, precision)
    if wanted == np.int8 and kind == "points":
        assert scales is not None
        values = np.rint(values / scales[..., None])
    return values.astype(wanted, copy=False)


def decode_points(points: Any, scales: Any) -> Any:
    """Return stored points (..., m, d) with scales (..., m) as float32, in numpy or in jax."""
    values = points.astype(np.float32)
    return values * scales[..., None] if points.dtype == np.int8 else values
