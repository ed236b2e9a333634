"""Checks of a market's numbers on disk: those that specifications pass, and what follows from them.

`check_rows` is quick, and is done with everything that is read: numbers are finite and within the
limits of specifications, and those that follow from others are within what any such numbers could
give, so that no learnware makes another's score undefined. `check_derived` computes everything
that follows from other arrays anew and compares. Nothing here opens a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxspec.base import pad_to
from jaxspec.files.bounded_json import require
from jaxspec.market import SCHEMA, Making, Rows, in_float32
from jaxspec.specify import LARGEST

if TYPE_CHECKING:
    from jaxtyping import Bool

__all__ = ["check_derived", "check_numbers", "check_rows"]

CHECKED_TOGETHER = 256  # learnwares whose numbers are derived anew at a time
LIMITS = {"origin": LARGEST, "scales": 2 * LARGEST, "square_norms": 1e36}
# Relative to the largest value that the weights allow. Sums of float32 in another order differ by
# some 1e-6 of it.
SELF_TERM_TOLERANCE = 1e-4
SQUARE_NORM_TOLERANCE = 1e-4
CHANCE_TOLERANCE = {"float32": 2}  # in steps of 1/255
COARSE_CHANCE_TOLERANCE = 16  # in other precisions the stored weights are rounded

Owner = Callable[[int], str]


def check_rows(rows: Mapping[str, np.ndarray], owner: Owner | None = None) -> None:
    """Raise unless stored rows {name: (n, ...)} can be scored.

    Args:
        rows: some of the arrays of n learnwares.
        owner: returns the id of the learnware in one of the rows, for the error.

    Raises:
        ValueError: they cannot; the message names the array and the learnware.
    """
    for name, value in rows.items():
        check_numbers(name, value, owner)
    for name in ("scales", "square_norms"):
        if name in rows:
            _check_each(name, rows[name] >= 0, "numbers from zero on", owner)
    if "has_probe" in rows:
        known = (rows["has_probe"] == 0) | (rows["has_probe"] == 1)
        _check_each("has_probe", known, "zero or one", owner)
    if "self_terms" in rows and "weights" in rows:
        largest = _largest_self_terms(rows)
        good = np.abs(rows["self_terms"]) <= largest * (1 + SELF_TERM_TOLERANCE)
        good &= rows["self_terms"] >= -SELF_TERM_TOLERANCE * largest
        _check_each("self_terms", good, "the squared norm that the weights allow", owner)


def check_numbers(name: str, array: np.ndarray, owner: Owner | None = None) -> None:
    """Raise unless the numbers of one array are finite, and of a size that can be scored.

    What was read from specifications is at most twice the largest number in these: points are
    relative to an origin, and proxies are centred.

    Raises:
        ValueError: they are not; the message names the array and the learnware.
    """
    if array.dtype.kind in "iub" or not array.size:
        return
    if array.dtype.name == "bfloat16":  # as bits, where numpy's maximum takes 17 times as long
        bits = (array.view(np.uint16) & 0x7FFF).max()
        largest = float(bits.view(array.dtype))
    else:
        largest = float(max(array.max(), -array.min()))
    limit = 2 * LARGEST if SCHEMA[name].read is not None else LIMITS.get(name, math.inf)
    if np.isfinite(largest) and largest <= limit:
        return
    finite = np.isfinite(array.astype(np.float32))
    _check_each(name, finite, "finite numbers", owner, "NaN or infinity")
    good = np.abs(array.astype(np.float32)) <= limit
    _check_each(name, good, f"at most {limit:.0e}", owner, f"{largest:.1e}")


@in_float32()
def check_derived(rows: Rows, making: Making, owner: Owner | None = None) -> None:
    """Raise unless the arrays that follow from others do.

    Args:
        rows: all saved arrays of n learnwares, {name: (n, ...)}.
        making: what is known of the market.
        owner: returns the id of the learnware in one of the rows, for the error.

    Raises:
        ValueError: they do not; the message names the array and the learnware.
    """
    names = [name for name, one in SCHEMA.items() if one.derive is not None and name in rows]
    for start in range(0, len(rows["weights"]), CHECKED_TOGETHER):
        part = {name: value[start : start + CHECKED_TOGETHER] for name, value in rows.items()}
        count = len(part["weights"])
        part = {  # one shape, so one compilation
            name: pad_to(value, (CHECKED_TOGETHER, *value.shape[1:]), value=SCHEMA[name].fill)
            for name, value in part.items()
        }
        read = {
            name: value.astype(np.float32) if SCHEMA[name].kind == "vectors" else value
            for name, value in part.items()
        }
        for name in names:
            good = _follows(name, part, read, making)[:count]
            whose = None if owner is None else (lambda row, start=start: owner(start + row))
            _check_each(name, good, "what follows from the other arrays", whose)


def _follows(name: str, part: Rows, read: Rows, making: Making) -> Bool[np.ndarray, " n ..."]:
    """Tell where the values of a derived array follow from those of other arrays."""
    derive, stored = SCHEMA[name].derive, part[name].astype(np.float64)
    assert derive is not None
    if name == "scales":  # in int8, what was divided by them is no longer known
        known = stored >= 0 if making.precision == "int8" else stored == 1
        return known | ((stored == 0) & (part["weights"] == 0))  # a padding point
    found = derive(read, part, making).astype(np.float64)
    tolerance: Any
    if name == "self_terms":
        tolerance = SELF_TERM_TOLERANCE * _largest_self_terms(part)
    elif name == "square_norms":
        tolerance = SQUARE_NORM_TOLERANCE * np.abs(found)
    else:
        tolerance = CHANCE_TOLERANCE.get(making.precision, COARSE_CHANCE_TOLERANCE)
    return np.abs(found - stored) <= tolerance


def _largest_self_terms(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the largest squared norms of embeddings with these weights: kernels are at most 1."""
    return np.square(np.abs(rows["weights"]).sum(axis=1, dtype=np.float64))


def _check_each(
    name: str, good: np.ndarray, expected: str, owner: Owner | None, got: str = "another value"
) -> None:
    if good.all():
        return
    row = int(np.flatnonzero(~good.reshape(len(good), -1).all(axis=1))[0])
    of = f" in learnware {owner(row)!r:.80}" if owner is not None and SCHEMA[name].per_row else ""
    require(False, f"{name}: expected {expected}, got {got}{of}")
