"""The sizes that arrays are padded to before they enter a compiled function.

A compiled function serves one shape. Padding to a few sizes, with masks or zero weights, lets a
market grow by one and users bring 3 or 7 classes without compiling again. Padding of concrete
arrays is done by numpy, since every eager jax operation on a new shape is itself a compilation.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxspec.base.checks import is_concrete

__all__ = ["bucket", "pad_to"]


def bucket(size: int, *, minimum: int = 8) -> int:
    """Return the smallest padded size that holds `size`: `minimum` times a power of two.

    >>> bucket(3), bucket(7), bucket(9), bucket(50, minimum=64)
    (8, 8, 16, 64)
    """
    padded = minimum
    while padded < size:
        padded *= 2
    return padded


def pad_to(array: Any, shape: tuple[int, ...], *, value: float = 0) -> Any:
    """Return `array` with trailing entries `value` added to each axis up to `shape`."""
    if array.shape == shape:
        return array
    widths = [(0, new - old) for old, new in zip(array.shape, shape, strict=True)]
    pad = np.pad if is_concrete(array) else jnp.pad
    return pad(array, widths, constant_values=value)
