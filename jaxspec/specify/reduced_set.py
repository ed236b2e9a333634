"""Reduced sets: m weighted points whose embedding is close to the mean embedding of n rows.

`reduce_set` minimises |1/n sum_i k(Z_i, .) - sum_j beta_j k(U_j, .)|_H^2 over points U and signed
weights beta; `reduce_sets` reduces many data sets in few compiled calls. Arguments are checked and
padded here; the computation is in `reduced_set_solver.py`. Nothing here rescales weights or keeps
an n x n array.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.base import (
    as_features,
    as_key,
    as_number,
    as_size,
    bucket,
    device_kind,
    is_concrete,
    pad_to,
)
from jaxspec.kernels import Kernel, ReducedSet, as_kernel
from jaxspec.specify.best_weights import best_weights
from jaxspec.specify.compiled_inputs import (
    BLOCK_SIZE,
    as_bandwidth_of,
    as_row_weights,
    as_scalar,
    as_typed_key,
    padded_rows,
)
from jaxspec.specify.reduced_set_solver import ReducedSetDiagnostics, reduce_batch
from jaxspec.specify.suggest_size import suggest_size

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from jaxtyping import Array, Float, Key

__all__ = [
    "ReducedSetDiagnostics",
    "best_weights",
    "reduce_set",
    "reduce_sets",
    "suggest_size",
]

MAX_EXACT_ERROR_ROWS = 2048  # up to here `exact_error=None` computes the error: n^2 d work
# Sets per compiled call. On a processor, what its cache holds. An accelerator waits for some 5,000
# launches per call, however many sets are in it: 256 sets by 8 took 0.68 s on an H200.
CHUNK_SETS = {"processor": 8, "accelerator": 256}
_STATIC = ("nonnegative", "exact_error", "block_size")


@overload
def reduce_set(
    Z: Float[ArrayLike, "n d"],
    *,
    size: int,
    kernel: Kernel,
    key: Key[Array, ""] | None = ...,
    weights: Float[ArrayLike, " n"] | None = ...,
    nonnegative: bool = ...,
    max_iterations: int = ...,
    tolerance: float = ...,
    exact_error: bool | None = ...,
    block_size: int = ...,
    return_diagnostics: Literal[False] = ...,
) -> ReducedSet: ...


@overload
def reduce_set(
    Z: Float[ArrayLike, "n d"],
    *,
    size: int,
    kernel: Kernel,
    key: Key[Array, ""] | None = ...,
    weights: Float[ArrayLike, " n"] | None = ...,
    nonnegative: bool = ...,
    max_iterations: int = ...,
    tolerance: float = ...,
    exact_error: bool | None = ...,
    block_size: int = ...,
    return_diagnostics: Literal[True],
) -> tuple[ReducedSet, ReducedSetDiagnostics]: ...


def reduce_set(
    Z: Float[ArrayLike, "n d"],
    *,
    size: int,
    kernel: Kernel,
    key: Key[Array, ""] | None = None,
    weights: Float[ArrayLike, " n"] | None = None,
    nonnegative: bool = False,
    max_iterations: int = 40,
    tolerance: float = 5e-4,
    exact_error: bool | None = None,
    block_size: int = BLOCK_SIZE,
    return_diagnostics: bool = False,
) -> ReducedSet | tuple[ReducedSet, ReducedSetDiagnostics]:
    """Return `size` weighted points whose embedding is close to the mean embedding of Z.

    Args:
        Z: (n, d) features.
        size: m, static. With fewer distinct rows than m, points repeat and share their weight.
        kernel: a kernel; `median_bandwidth` gives its bandwidth.
        key: a jax random key for the start; None means jax.random.key(0).
        weights: (n,) nonnegative weights of the rows, scaled to sum one; None for 1/n. A row of
            weight zero counts for nothing.
        nonnegative: whether to hold the points' weights nonnegative; they need not sum to one.
        max_iterations: largest number of passes over the data after the first.
        tolerance: stop when a step gains less than this fraction of the data's sampling noise,
            which is about (1 - |mu|^2) / n. With zero, rounding or `max_iterations` ends it.
        exact_error: whether the diagnostics hold the error, n^2 d work; None means for at most
            2048 rows.
        block_size: largest number of rows of Z per block.
        return_diagnostics: whether to return (reduced set, diagnostics).

    Raises:
        TypeError: Z is not numeric, `kernel` is not a kernel, `key` is not a random key.
        ValueError: Z is empty, not (n, d) or not finite; a size below one; a negative tolerance;
            a kernel with several bandwidths.
    """
    rows = as_features("Z", Z)
    as_size("size", size)
    row_weights = as_row_weights(weights, rows)
    n, concrete = rows.shape[0], is_concrete(rows, row_weights)
    if exact_error is None:
        exact_error = n <= MAX_EXACT_ERROR_ROWS
    padded = padded_rows(n) if concrete else n
    found, diagnostics = _reduce_one(
        as_typed_key(jax.random.key(0) if key is None else as_key("key", key)),
        pad_to(rows, (padded, rows.shape[1])),
        pad_to(row_weights, (padded,)),
        *_options(kernel, tolerance, max_iterations, size, rows.dtype),
        nonnegative=bool(nonnegative),
        exact_error=bool(return_diagnostics and exact_error),
        block_size=as_size("block_size", block_size),
    )
    return (found, diagnostics) if return_diagnostics else found


@overload
def reduce_sets(
    features: Sequence[Float[ArrayLike, "n d"]],
    *,
    size: int,
    kernel: Kernel,
    key: Key[Array, ""] | None = ...,
    nonnegative: bool = ...,
    max_iterations: int = ...,
    tolerance: float = ...,
    exact_error: bool = ...,
    block_size: int = ...,
    return_diagnostics: Literal[False] = ...,
) -> ReducedSet: ...


@overload
def reduce_sets(
    features: Sequence[Float[ArrayLike, "n d"]],
    *,
    size: int,
    kernel: Kernel,
    key: Key[Array, ""] | None = ...,
    nonnegative: bool = ...,
    max_iterations: int = ...,
    tolerance: float = ...,
    exact_error: bool = ...,
    block_size: int = ...,
    return_diagnostics: Literal[True],
) -> tuple[ReducedSet, ReducedSetDiagnostics]: ...


def reduce_sets(
    features: Sequence[Float[ArrayLike, "n d"]],
    *,
    size: int,
    kernel: Kernel,
    key: Key[Array, ""] | None = None,
    nonnegative: bool = False,
    max_iterations: int = 40,
    tolerance: float = 5e-4,
    exact_error: bool = False,
    block_size: int = BLOCK_SIZE,
    return_diagnostics: bool = False,
) -> ReducedSet | tuple[ReducedSet, ReducedSetDiagnostics]:
    """Return the reduced sets of b data sets: points (b, m, d), weights (b, m).

    All sets are padded to one number of rows, and one compiled function takes a chunk of them at a
    time. Another batch of the same padded size compiles nothing.

    Args:
        features: b arrays (n_i, d) with one d.
        size: m.
        kernel: one kernel for all sets.
        key: a jax random key, split into one per set; None means jax.random.key(0).
        nonnegative: as in `reduce_set`; so are all that follow.
        max_iterations: as in `reduce_set`.
        tolerance: as in `reduce_set`.
        exact_error: as in `reduce_set`, but off by default: it costs as much as many steps.
        block_size: as in `reduce_set`.
        return_diagnostics: whether to return (reduced sets, diagnostics).

    Raises:
        TypeError, ValueError: as `reduce_set`, naming the set, or for an empty sequence.
    """
    if len(features) == 0:
        raise ValueError("features: expected at least one data set, got none")
    sets = [as_features("features[0]", features[0], copy=False)]
    for i, one in enumerate(features[1:], start=1):
        sets.append(as_features(f"features[{i}]", one, dimension=sets[0].shape[1], copy=False))
    as_size("size", size)
    dtype = np.result_type(*(one.dtype for one in sets))
    options = _options(kernel, tolerance, max_iterations, size, dtype)
    key = as_typed_key(jax.random.key(0) if key is None else as_key("key", key))
    key_data = _split_keys(key, bucket(len(sets)))
    if is_concrete(key_data):
        key_data = np.asarray(key_data)
    rows = padded_rows(max(one.shape[0] for one in sets))
    chunk = min(CHUNK_SETS[device_kind()], bucket(len(sets), minimum=1))
    parts = []
    for first in range(0, len(sets), chunk):
        part = sets[first : first + chunk]
        part = part + part[:1] * (chunk - len(part))  # a shorter last chunk would compile again
        index = np.minimum(np.arange(first, first + chunk), len(sets) - 1)
        parts.append(
            _reduce_chunk(
                key_data[index],
                *_stacked(part, rows, dtype),
                *options,
                key_impl=jax.random.key_impl(key),
                nonnegative=bool(nonnegative),
                exact_error=bool(return_diagnostics and exact_error),
                block_size=as_size("block_size", block_size),
            )
        )
    # By numpy where possible: an eager jax operation would compile for every number of sets.
    join = np.concatenate if is_concrete(parts) else jnp.concatenate
    found, diagnostics = jax.tree.map(
        lambda *leaves: jax.device_put(join(leaves)[: len(sets)]), *parts
    )
    return (found, diagnostics) if return_diagnostics else found


def _options(
    kernel: Any, tolerance: Any, max_iterations: Any, size: int, dtype: Any
) -> tuple[Any, ...]:
    """Return the points in use, and the checked options as arrays of one type each."""
    as_number("tolerance", tolerance, "a finite nonnegative number", least=0)
    return (
        np.ones(size, bool),
        as_bandwidth_of(as_kernel("kernel", kernel), dtype),
        as_scalar(tolerance, dtype),
        np.int32(as_size("max_iterations", max_iterations, minimum=0)),
    )


def _stacked(sets: Sequence[Any], rows: int, dtype: Any) -> tuple[Any, Any]:
    """Return sets padded to (b, rows, d), and the weights of their rows (b, rows)."""
    weights = np.zeros((len(sets), rows), dtype)
    for i, one in enumerate(sets):
        weights[i, : one.shape[0]] = 1.0 / one.shape[0]
    if not is_concrete(sets):
        padded = [pad_to(one.astype(dtype), (rows, one.shape[1])) for one in sets]
        return jnp.stack(padded), weights
    stacked = np.zeros((len(sets), rows, sets[0].shape[1]), dtype)
    for i, one in enumerate(sets):
        stacked[i, : one.shape[0]] = one
    return stacked, weights


@partial(jax.jit, static_argnames=_STATIC)
def _reduce_one(
    key: Array, rows: Array, weights: Array, *options: Any, **static: Any
) -> tuple[ReducedSet, ReducedSetDiagnostics]:
    found = reduce_batch(key[None], rows[None], weights[None], *options, **static)
    return jax.tree.map(lambda leaf: leaf[0], found)


@partial(jax.jit, static_argnums=1)
def _split_keys(key: Array, count: int) -> Array:
    return jax.random.key_data(jax.random.split(key, count))


@partial(jax.jit, static_argnames=(*_STATIC, "key_impl"))
def _reduce_chunk(
    key_data: Array, rows: Array, weights: Array, *options: Any, key_impl: Any, **static: Any
) -> tuple[ReducedSet, ReducedSetDiagnostics]:
    keys = jax.random.wrap_key_data(key_data, impl=key_impl)
    return reduce_batch(keys, rows, weights, *options, **static)
