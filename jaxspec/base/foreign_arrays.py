"""Arrays of other libraries as numpy arrays: pandas, torch, masked and big-endian arrays.

`to_numpy` is called by `jaxspec.base.checks` on whatever a caller passes. It recognises the
objects of other libraries by what they can do and never imports these libraries. It refuses what
has entries without a value (masked entries, missing values) and what carries a gradient, because
both would be lost without a word. It does not check ranks, sizes or types of numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["to_numpy"]


def to_numpy(name: str, value: Any) -> np.ndarray:
    """Return `value` as a numpy array in native byte order.

    Args:
        name: of the argument, for messages.
        value: an array or a nested sequence; a numpy array or view may be the caller's own memory.

    Raises:
        TypeError: it cannot be converted to an array, or is a tensor that requires a gradient.
        ValueError: masked entries, missing values, or rows of different lengths.
    """
    _refuse_masked(name, value)
    if hasattr(value, "requires_grad") and hasattr(value, "detach"):
        value = _detached(name, value)
    elif hasattr(value, "isna") and hasattr(value, "to_numpy"):
        value = _without_holes(name, value)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:  # rows of different lengths, random keys
        raise type(error)(
            f"{name}: expected an array, got a {type(value).__name__} that cannot be converted "
            f"to one: {error}"
        ) from None
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array


def _refuse_masked(name: str, value: Any) -> None:
    """Refuse masked entries, also in a sequence; without any, a masked array is its data."""
    parts = value if isinstance(value, (list, tuple)) else (value,)
    masked = [part for part in parts if np.ma.is_masked(part)]
    if masked:
        count = sum(int(np.ma.count_masked(part)) for part in masked)
        raise ValueError(
            f"{name}: expected a value in every entry, got a masked array with {count} masked; "
            "drop these rows or fill them in"
        )


def _detached(name: str, tensor: Any) -> Any:
    if tensor.requires_grad:
        raise TypeError(
            f"{name}: expected an array, got a tensor that requires a gradient, which would be "
            "lost: pass tensor.detach()"
        )
    tensor = tensor.detach()
    if hasattr(tensor, "cpu"):
        tensor = tensor.cpu()
    try:
        return np.asarray(tensor)
    except TypeError:
        if "float" not in str(tensor.dtype):
            raise
        return np.asarray(tensor.float())  # numpy itself does not know bfloat16


def _without_holes(name: str, table: Any) -> np.ndarray:
    """Return a pandas frame, series, index or array as one numpy array."""
    missing = np.asarray(table.isna())
    if missing.any():
        at = np.argwhere(missing)[0]
        where = f"row {at[0]}" + (f", column {table.columns[at[1]]!r}" if len(at) > 1 else "")
        raise ValueError(
            f"{name}: expected a value in every entry, got a missing value in {where} "
            f"({int(missing.sum())} in all)"
        )
    if not hasattr(table, "columns"):
        return table.to_numpy(_common_dtype(name, [(None, table.dtype)]))
    dtype = _common_dtype(name, list(zip(table.columns, table.dtypes, strict=True)))
    return table.to_numpy(dtype)


def _common_dtype(name: str, columns: list[tuple[Any, Any]]) -> Any:
    """Return the numpy type that holds all columns, which pandas alone may call `object`."""
    kinds = [getattr(dtype, "kind", "O") for _, dtype in columns]
    if len(columns) == 1 and kinds[0] not in "fiub":
        return None  # names of classes, or what the caller's own check refuses
    for (column, dtype), kind in zip(columns, kinds, strict=True):
        if kind not in "fiub":
            raise TypeError(f"{name}: expected real numbers, got column {column!r} of type {dtype}")
    return np.result_type(*(_numpy_dtype(dtype) for _, dtype in columns)) if columns else None


def _numpy_dtype(dtype: Any) -> np.dtype:
    """Return the numpy type behind a pandas type (nullable, Arrow or sparse)."""
    return np.dtype(getattr(dtype, "numpy_dtype", None) or getattr(dtype, "subtype", dtype))
