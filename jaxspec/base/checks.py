"""Checks of arguments at the public edge.

Every public function calls these once, before any work. An error names the argument, what was
expected and what was given. Under `jit`, `vmap` or `grad` the values are unknown: shapes and
dtypes are still checked there, values are not, and NaN propagates to the result.

Arrays of other libraries (pandas, torch) are taken as `jaxspec.base.foreign_arrays` says. Complex
numbers, dates, time differences, strings and objects are refused wherever numbers are expected.
"""

from __future__ import annotations

import operator
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.base.foreign_arrays import to_numpy

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = [
    "as_class_labels",
    "as_features",
    "as_key",
    "as_labels",
    "as_number",
    "as_probabilities",
    "as_size",
    "as_weights",
    "is_concrete",
]

Values = np.ndarray | jax.Array  # what the checks return: a numpy array, or a tracer as it is
T = TypeVar("T")
SUM_TOLERANCE = 1e-3  # of the rows of probabilities in float32
ROUNDINGS = 4  # of the type given, by which the sum of a row of probabilities may be off


def is_concrete(*arrays: object) -> bool:
    """Tell whether every leaf holds values, and none is a tracer of a transformation."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arrays))


def _describe(value: Any) -> str:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None and dtype is None:
        return f"a {type(value).__name__}: {value!r:.80}"
    return f"{type(value).__name__} of shape {shape} and dtype {dtype}"


def _as_array(name: str, value: Any) -> Any:
    """Return `value` as a numpy array, or as the tracer that it is."""
    if not is_concrete(value):
        return value if hasattr(value, "dtype") else jnp.asarray(value)
    return to_numpy(name, value)


def _is_number(dtype: Any, *kinds: Any) -> bool:
    # numpy counts time differences ("m") as integers
    return getattr(dtype, "kind", "") != "m" and any(jnp.issubdtype(dtype, kind) for kind in kinds)


def _working_float(dtype: Any) -> Any:
    """Return the float type that numbers are kept in: float64 stays if x64 is on."""
    wide = jnp.issubdtype(dtype, jnp.floating) and np.dtype(dtype).itemsize >= 8
    return jax.dtypes.canonicalize_dtype(jnp.float64) if wide else np.dtype(np.float32)


def as_features(
    name: str, value: Any, *, dimension: int | None = None, rank: int = 2, copy: bool = True
) -> Float[Values, "... n d"]:
    """Return `value` as a floating array of shape (..., n, d), or say what is wrong with it.

    Concrete values come back as numpy arrays, so that padding them compiles nothing; tracers
    come back as they are. Integers, truth values (as 0 and 1) and float16 become float32.

    Args:
        name: of the argument, for messages.
        value: an array, a nested sequence, a pandas frame or a torch tensor.
        dimension: the number of columns that is expected, if it is known.
        rank: the number of axes that is expected.
        copy: if false, the result may share the caller's memory: for callers who only read it.

    Raises:
        TypeError: the entries are not real numbers.
        ValueError: wrong rank or dimension, no rows, an entry that is missing or not finite, or
            one so large that squared distances overflow.
    """
    traced = not is_concrete(value)
    array = _as_array(name, value)
    if not _is_number(array.dtype, jnp.floating, jnp.integer, jnp.bool_):
        raise TypeError(f"{name}: expected real numbers, got {_describe(array)}")
    if array.ndim != rank:
        axes = "(n, d): rows are examples" if rank == 2 else f"{rank} axes"
        raise ValueError(f"{name}: expected shape {axes}, got {_describe(array)}")
    if 0 in array.shape:
        raise ValueError(f"{name}: expected at least one row and one column, got {array.shape}")
    if dimension is not None and array.shape[-1] != dimension:
        raise ValueError(f"{name}: expected {dimension} columns, got shape {array.shape}")
    kept = _working_float(array.dtype)
    if traced:
        return array.astype(kept)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused
        array = array.astype(kept, copy=copy)
    # A squared distance is at most four times the larger squared norm. One pass for NaN too.
    limit = float(np.finfo(array.dtype).max) / 16
    if not (np.einsum("...d,...d->...", array, array) < limit).all():
        bad, wanted = ~np.isfinite(array), "finite numbers"
        if not bad.any():
            sizes = np.abs(array)
            bad, wanted = sizes == sizes.max(), f"numbers whose squares {array.dtype} holds"
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name}: expected {wanted}, got {array[first]} at {first} ({int(bad.sum())} in all)"
        )
    return array


def as_weights(
    name: str, value: Any, *, rows: int, columns: bool = False
) -> Float[Values, "rows ..."]:
    """Return `value` as finite signed weights of shape (rows,), with `columns` also (rows, p).

    Raises:
        TypeError: the entries are not real numbers.
        ValueError: another shape, or an entry that is not finite.
    """
    traced = not is_concrete(value)
    array = _as_array(name, value)
    if not _is_number(array.dtype, jnp.floating, jnp.integer, jnp.bool_):
        raise TypeError(f"{name}: expected real numbers, got {_describe(array)}")
    if array.ndim not in ((1, 2) if columns else (1,)) or array.shape[0] != rows:
        wanted = f"({rows},) or ({rows}, p)" if columns else f"({rows},)"
        raise ValueError(f"{name}: expected shape {wanted}, got {array.shape}")
    with np.errstate(over="ignore"):
        array = array.astype(_working_float(array.dtype))
    if not traced and not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
    return array


def as_labels(
    name: str,
    value: Any,
    *,
    rows: int | None = None,
    num_classes: int,
    every_class: bool = False,
) -> Int[Values, " rows"]:
    """Return `value` as int32 labels of shape (rows,) within 0..num_classes-1.

    Args:
        name: of the argument, for messages.
        value: integers.
        rows: how many are expected; None takes any number.
        num_classes: the number of classes.
        every_class: whether each of the classes must occur.

    Raises:
        TypeError: the entries are not integers.
        ValueError: another shape, a label out of range, or a class that does not occur.
    """
    traced = not is_concrete(value)
    array = _as_array(name, value)
    if not _is_number(array.dtype, jnp.integer):
        raise TypeError(f"{name}: expected integer class indices, got {_describe(array)}")
    if array.ndim != 1 or (rows is not None and array.shape[0] != rows):
        wanted = "(n,)" if rows is None else f"({rows},)"
        raise ValueError(f"{name}: expected shape {wanted}, one per row, got {array.shape}")
    if not traced and array.size and (array.min() < 0 or array.max() >= num_classes):
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


def as_class_labels(
    name: str,
    value: Any,
    *,
    rows: int | None = None,
    class_names: Sequence[str],
    every_class: bool = False,
) -> Int[Values, " rows"]:
    """Return labels as int32 indices into `class_names`, of shape (rows,).

    Args:
        name: of the argument, for messages.
        value: integers, or the names themselves: a sequence or array of strings, or a pandas
            series or categorical. Both Unicode forms of a name are the same name.
        rows: how many are expected; None takes any number.
        class_names: the names that the indices count.
        every_class: whether each of the classes must occur.

    Raises:
        TypeError: the entries are neither integers nor strings.
        ValueError: a name that is not in `class_names`, and as `as_labels`.
    """
    array = _as_array(name, value)
    if is_concrete(array) and getattr(array.dtype, "kind", "") in "OUT" and array.size:
        flat = array.reshape(-1).tolist()
        others = sorted({type(one).__name__ for one in flat if not isinstance(one, str)})
        if (
            others == ["int"]
            and array.dtype == object
            and not any(isinstance(one, str) for one in flat)
        ):
            array = array.astype(np.int64)
        elif others:
            raise TypeError(
                f"{name}: expected integers or class names, got entries of type {others}"
            )
        else:
            indices = {unicodedata.normalize("NFC", one): i for i, one in enumerate(class_names)}
            found = [indices.get(unicodedata.normalize("NFC", one), -1) for one in flat]
            unknown = sorted({one for one, i in zip(flat, found, strict=True) if i < 0})
            if unknown:
                raise ValueError(
                    f"{name}: expected names out of {list(class_names)[:20]}, got unknown "
                    f"{unknown[:10]} ({len(unknown)} in all)"
                )
            array = np.asarray(found, np.int32).reshape(array.shape)
    return as_labels(name, array, rows=rows, num_classes=len(class_names), every_class=every_class)


def as_probabilities(
    name: str, value: Any, *, rows: int, num_classes: int
) -> Float[Values, "rows classes"]:
    """Return `value` as class probabilities, whose rows sum to one.

    Sums may be off by 1e-3, or by four roundings of the type that the numbers were rounded to
    (3 % in bfloat16, 0.4 % in float16), also where they have become float32 since. Rows of these
    types are divided by their sums.

    Raises:
        TypeError: the entries are not real numbers.
        ValueError: another shape, a negative entry, or rows that do not sum to one.
    """
    given = getattr(value, "dtype", None)
    array = as_features(name, value)
    if array.shape != (rows, num_classes):
        raise ValueError(
            f"{name}: expected class probabilities of shape ({rows}, {num_classes}), "
            f"got {array.shape}"
        )
    normalise = str(given).endswith("float16")  # also bfloat16, and both of torch
    if is_concrete(array):
        if array.min() < 0:
            raise ValueError(f"{name}: expected probabilities, got a value of {array.min()}")
        errors = np.abs(array.sum(axis=1) - 1.0)
        if errors.max() > SUM_TOLERANCE:
            if errors.max() > ROUNDINGS * _rounding_of(np.asarray(array)):
                row = int(errors.argmax())
                raise ValueError(
                    f"{name}: expected rows that sum to one, got a sum of {array[row].sum()} "
                    f"in row {row} (are these logits?)"
                )
            normalise = True
    return array / array.sum(axis=1, keepdims=True) if normalise else array


def _rounding_of(array: np.ndarray) -> float:
    """Return the relative spacing of the coarsest usual float type that holds all numbers."""
    for dtype in (jnp.bfloat16, jnp.float16):
        if (array.astype(dtype).astype(array.dtype) == array).all():
            return float(jnp.finfo(dtype).eps)
    return float(jnp.finfo(array.dtype).eps)


def as_size(name: str, value: Any, *, minimum: int = 1, maximum: int | None = None) -> int:
    """Return `value` as an int of at least `minimum` and, if given, at most `maximum`.

    Raises:
        TypeError: it is not an integer (truth values are not).
        ValueError: it is out of range.
    """
    try:
        if isinstance(value, (bool, np.bool_)) or np.ma.is_masked(value):
            raise TypeError
        size = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r:.80}") from None
    if size < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, got {size}")
    if maximum is not None and size > maximum:
        raise ValueError(f"{name}: expected at most {maximum}, got {size}")
    return size


def as_number(name: str, value: T, wanted: str, *, least: float, strict: bool = False) -> T:
    """Return `value`, a finite number of at least (if `strict`, above) `least`, or a tracer.

    Args:
        name: of the argument, for messages.
        value: a Python number, or an array without axes.
        wanted: what is expected, in words.
        least: the smallest number that is accepted.
        strict: whether `least` itself is refused.

    Raises:
        TypeError: it is not one real number.
        ValueError: it is out of range or not finite.
    """
    if not is_concrete(value):
        return value
    array = to_numpy(name, value)
    if array.shape != () or not _is_number(array.dtype, jnp.floating, jnp.integer):
        raise TypeError(f"{name}: expected a number, got {value!r:.80}")
    number = float(array)
    if not least <= number < np.inf or (strict and number == least):
        raise ValueError(f"{name}: expected {wanted}, got {value}")
    return value


def as_key(name: str, value: T) -> T:
    """Return `value` if it is one jax random key, of `jax.random.key` or `jax.random.PRNGKey`.

    Raises:
        TypeError: anything else.
    """
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    typed = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    if not (typed and shape == ()) and not (dtype == np.uint32 and shape in ((2,), (4,))):
        raise TypeError(
            f"{name}: expected one jax random key such as jax.random.key(0), got {_describe(value)}"
        )
    return value
