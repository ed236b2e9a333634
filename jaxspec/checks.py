"""Checks of arguments at the public edge.

Every public function calls these once, before any work. An error names the argument, what was
expected and what came. Under `jit`, `vmap` or `grad` the values are unknown: shapes and dtypes
are still checked there, values are not, and NaN propagates to the result.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "as_features",
    "as_labels",
    "as_probabilities",
    "as_size",
    "is_concrete",
]


def is_concrete(*arrays: Any) -> bool:
    """Tell whether every leaf holds values, not tracers of a transformation."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arrays))


def _describe(value: Any) -> str:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return f"{type(value).__name__} of shape {shape} and dtype {dtype}"


def as_features(
    name: str, value: Any, *, dimension: int | None = None, rank: int = 2, copy: bool = True
) -> Any:
    """Return `value` as a floating array of shape (..., n, d), or say what is wrong with it.

    Concrete values come back as numpy arrays, so that padding them compiles nothing; tracers
    come back as they are. Integers become the default float type, float16 becomes float32.
    With `copy` false the array may be the caller's own: for those who copy it at once.

    Raises:
        TypeError: the entries are not numbers.
        ValueError: wrong rank or dimension, no rows, or an entry that is not finite.
    """
    traced = not is_concrete(value)
    array = value if traced else np.asarray(value)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"{name}: expected real numbers, got {_describe(value)}")
    if array.ndim != rank:
        axes = "(n, d): rows are examples" if rank == 2 else f"{rank} axes"
        raise ValueError(f"{name}: expected shape {axes}, got {_describe(value)}")
    if 0 in array.shape:
        raise ValueError(f"{name}: expected at least one row and one column, got {array.shape}")
    if dimension is not None and array.shape[-1] != dimension:
        raise ValueError(f"{name}: expected {dimension} columns, got shape {array.shape}")
    kept = jax.dtypes.canonicalize_dtype(jnp.float64) if array.dtype == jnp.float64 else jnp.float32
    array = array.astype(kept) if traced else array.astype(kept, copy=copy)
    if not traced:
        bad = ~np.isfinite(array)
        if bad.any():
            first = tuple(int(i) for i in np.argwhere(bad)[0])
            raise ValueError(
                f"{name}: expected finite numbers, got {array[first]} at {first} "
                f"({int(bad.sum())} in all)"
            )
    return array


def as_labels(name: str, value: Any, *, rows: int, num_classes: int) -> Any:
    """Return `value` as int32 labels of shape (rows,) within 0..num_classes-1."""
    traced = not is_concrete(value)
    array = value if traced else np.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name}: expected integer class indices, got {_describe(value)}")
    if array.shape != (rows,):
        raise ValueError(f"{name}: expected shape ({rows},), one a row, got {array.shape}")
    if not traced and rows and (array.min() < 0 or array.max() >= num_classes):
        raise ValueError(
            f"{name}: expected values in 0..{num_classes - 1}, "
            f"got {int(array.min())}..{int(array.max())}"
        )
    return array.astype(np.int32)


def as_probabilities(name: str, value: Any, *, rows: int, num_classes: int) -> Any:
    """Return `value` as probabilities (rows, num_classes) whose rows sum to one (to 1e-3)."""
    array = as_features(name, value)
    if array.shape != (rows, num_classes):
        raise ValueError(
            f"{name}: expected class probabilities of shape ({rows}, {num_classes}), "
            f"got {array.shape}"
        )
    if is_concrete(array):
        if array.min() < 0:
            raise ValueError(f"{name}: expected probabilities, got a value of {array.min()}")
        error = np.abs(array.sum(axis=1) - 1.0)
        if error.max() > 1e-3:
            row = int(error.argmax())
            raise ValueError(
                f"{name}: expected rows that sum to one, got a sum of {array[row].sum()} "
                f"in row {row} (are these logits?)"
            )
    return array


def as_size(name: str, value: Any, *, minimum: int = 1) -> int:
    """Return `value` as an int of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, got {value}")
    return int(value)
