"""The sizes that arrays are padded to before they enter a compiled function.

A compiled function serves one shape. Arrays are therefore padded to a few sizes, with masks or
zero weights, so that a market that grows by one learnware, or users with 3 and with 7 classes,
compile nothing. Concrete arrays are padded by numpy, because every jax operation outside of `jit`
on a new shape is itself a compilation.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.base.checks import is_concrete

__all__ = ["bucket", "pad_to"]

T = TypeVar("T", bound=np.ndarray | jax.Array)


def bucket(size: int, *, minimum: int = 8) -> int:
    """Return the smallest padded size that holds `size`: `minimum` times a power of two.

    >>> bucket(3), bucket(7), bucket(9), bucket(50, minimum=64)
    (8, 8, 16, 64)
    """
    padded = minimum
    while padded < size:
        padded *= 2
    return padded


def pad_to(array: T, shape: tuple[int, ...], *, value: float = 0) -> T:
    """Return `array` with entries `value` added at the end of each axis, up to `shape`.

    Concrete arrays come back as numpy arrays, or as they are if nothing is to be added.

    Raises:
        ValueError: the array has another number of axes, or is longer than `shape` in one.
    """
    if array.shape == shape:
        return array
    widths = [(0, new - old) for old, new in zip(array.shape, shape, strict=True)]
    pad: Any = np.pad if is_concrete(array) else jnp.pad
    return pad(array, widths, constant_values=value)
