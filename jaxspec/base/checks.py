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
    "as_key",
    "as_labels",
    "as_number",
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


def _as_array(name: str, value: Any) -> Any:
    """Return `value` as a numpy array, or as the tracer that it is."""
    if not is_concrete(value):
        return value if hasattr(value, "dtype") else jnp.asarray(value)
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:  # rows of unlike lengths, random keys
        message = f"{name}: expected an array, got a {type(value).__name__} that is none: {error}"
        raise type(error)(message) from None


def as_features(
    name: str, value: Any, *, dimension: int | None = None, rank: int = 2, copy: bool = True
) -> Any:
    """Return `value` as a floating array of shape (..., n, d), or say what is wrong with it.

    Concrete values come back as numpy arrays, so that padding them compiles nothing; tracers
    come back as they are. Integers become the default float type, float16 becomes float32.
    With `copy` false the array may be the caller's own: for those who copy it at once.

    Raises:
        TypeError: the entries are not numbers.
        ValueError: wrong rank or dimension, no rows, an entry that is not finite, or one so large
            that squared distances overflow.
    """
    traced = not is_concrete(value)
    array = _as_array(name, value)
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
    if traced:
        return array.astype(kept)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused
        array = array.astype(kept, copy=copy)
    # A squared distance is at most four times the larger squared norm. One pass for NaN too.
    room = float(np.finfo(array.dtype).max) / 16
    if not (np.einsum("...d,...d->...", array, array) < room).all():
        bad, wanted = ~np.isfinite(array), "finite numbers"
        if not bad.any():
            sizes = np.abs(array)
            bad, wanted = sizes == sizes.max(), f"numbers whose squares {array.dtype} holds"
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name}: expected {wanted}, got {array[first]} at {first} ({int(bad.sum())} in all)"
        )
    return array


def as_labels(
    name: str, value: Any, *, rows: int, num_classes: int, every_class: bool = False
) -> Any:
    """Return `value` as int32 labels of shape (rows,) within 0..num_classes-1.

    With `every_class` each of the classes must occur.
    """
    traced = not is_concrete(value)
    array = _as_array(name, value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name}: expected integer class indices, got {_describe(value)}")
    if array.shape != (rows,):
        raise ValueError(f"{name}: expected shape ({rows},), one a row, got {array.shape}")
    if not traced and rows and (array.min() < 0 or array.max() >= num_classes):
        raise ValueError(
            f"{name}: expected values in 0..{num_classes - 1}, "
            f"got {int(array.min())}..{int(array.max())}"
        )
    array = array.astype(np.int32)
    if every_class and not traced:
        absent = np.flatnonzero(np.bincount(array, minlength=num_classes) == 0)
        if absent.size:
            raise ValueError(
                f"{name}: expected every class of 0..{num_classes - 1} at least once, "
                f"got none of {absent.tolist()}"
            )
    return array


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


def as_number(name: str, value: Any, wanted: str, *, least: float, strict: bool = False) -> Any:
    """Return `value`, a finite number of at least (if `strict`, above) `least`, or a tracer."""
    if not is_concrete(value):
        return value
    if np.shape(value) != () or np.asarray(value).dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected a number, got {value!r:.80}")
    if not least <= float(value) < np.inf or (strict and float(value) == least):
        raise ValueError(f"{name}: expected {wanted}, got {value}")
    return value


def as_key(name: str, value: Any) -> Any:
    """Return `value` if it is one jax random key, of `jax.random.key` or `jax.random.PRNGKey`."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    typed = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    if not (typed and shape == ()) and not (dtype == np.uint32 and shape in ((2,), (4,))):
        raise TypeError(
            f"{name}: expected one jax random key such as jax.random.key(0), got {_describe(value)}"
        )
    return value
