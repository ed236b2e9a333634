"""Reduced sets: m weighted points whose embedding is close to the mean embedding of n rows.

`reduce_set` minimises |1/n sum_i k(Z_i, .) - sum_j beta_j k(U_j, .)|_H^2 over points U and signed
weights beta; `reduce_sets` does many sets in one compiled call; `best_weights` is the closed form
for given points; `suggest_size` says how many points the data deserve. Nothing here rescales
weights or keeps an n x n array.

The method is variable projection (`jaxspec.specify.variable_projection`) with a Gauss-Newton step
(`jaxspec.specify.levenberg_marquardt`) from k-means++ (`jaxspec.specify.kmeans`) and the mean. A point that starts at the
mean ends with a large negative weight there and the others farther out, as in many rules of
cubature: an error a quarter to a third lower than where all weights end positive, which is where
k-means++ alone leads (`benchmarks/reduced_set.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.base.checks import as_features, as_key, as_number, as_size, is_concrete
from jaxspec.base.padding import bucket, pad_to
from jaxspec.base.platform import device_kind
from jaxspec.base.pytrees import register
from jaxspec.kernels.kernels import Kernel, ReducedSet, as_kernel, inner_product, squared_mmd
from jaxspec.specify.kmeans import kmeans_plus_plus, lloyd, systematic_sample
from jaxspec.specify.levenberg_marquardt import State, each, optimise
from jaxspec.specify.variable_projection import Point, evaluate, in_blocks, matmul

__all__ = ["Diagnostics", "best_weights", "reduce_set", "reduce_sets", "suggest_size"]

Array = Any
BLOCK_SIZE = 8192  # rows a data block: with m = 200 its Gram block is 6.5 MB
EXACT_ERROR_ROWS = 2048  # up to here the error is computed without being asked for: n^2 d work
SAMPLE_ROWS = 10  # rows per point in the start's Lloyd steps
SEED_EVERY = 2  # every second one of them is a candidate of k-means++: its cost is their square
LLOYD_STEPS = 1
CENTRED_FROM = 32  # points, one of which starts at the mean of the rows
# Sets in one call: what a processor's cache holds. An accelerator waits for the launches of a call,
# some 5,000 however many sets are in it: 256 sets by 8 took 0.68 s on an H200.
CHUNK_SETS = {"processor": 8, "accelerator": 256}


@register
@dataclasses.dataclass(frozen=True)
class Diagnostics:
    """How a reduced set was found; every field is a scalar, or (b,) for a batch.

    Attributes:
        squared_mmd: squared MMD to the mean embedding of the data; None where not computed.
        relative_error: the same over the squared norm of the data's embedding; None likewise.
        gradient_norm: norm of the gradient with respect to the points.
        iterations: evaluations of the objective after the first.
    """

    squared_mmd: Array | None
    relative_error: Array | None
    gradient_norm: Array
    iterations: Array


def _start(draws: Array, rows: Array, weights: Array, active: Array, *, nonnegative: bool) -> Array:
    """Return first points (m, d) from centred rows, with m + SAMPLE_ROWS m uniform draws."""
    size, n = active.shape[0], rows.shape[0]
    sample, sample_weights, thin = rows, weights, 1
    if n > SAMPLE_ROWS * size:
        sample = rows[systematic_sample(draws[size:], weights)]
        sample_weights = jnp.full(SAMPLE_ROWS * size, 1.0 / (SAMPLE_ROWS * size), rows.dtype)
        thin = SEED_EVERY
    points = kmeans_plus_plus(draws[:size], sample[::thin], sample_weights[::thin])
    points = lloyd(points, sample, sample_weights, active, LLOYD_STEPS)
    if nonnegative:
        return points
    return points.at[0].multiply(jnp.where(active.sum() < CENTRED_FROM, 1.0, 0.0))


def _fit(
    keys: Array,
    rows: Array,
    weights: Array,
    active: Array,
    kernel: Kernel,
    tolerance: Array,
    max_iterations: Array,
    *,
    nonnegative: bool,
    block_size: int,
) -> State:
    """Start and optimise b sets on centred rows with weights that sum to one.

    Args:
        keys: (b,) random keys.
        rows: (b, n, d).
        weights: (b, n).
        active: (m,) bool.
        kernel: of all sets.
        tolerance: share of the sampling noise.
        max_iterations: scalar.
        nonnegative: whether weights are.
        block_size: rows in a block.
    """
    count = active.shape[0] * (1 + SAMPLE_ROWS)
    draws = jax.vmap(lambda key: jax.random.uniform(key, (count,), rows.dtype))(keys)
    points = each(partial(_start, active=active, nonnegative=nonnegative))(draws, rows, weights)
    # k(x, x) = 1, so the noise of the data's own embedding is about (1 - |mu|^2) / n.
    noise = jnp.square(weights).sum(axis=1)
    return optimise(
        kernel,
        points,
        each(partial(in_blocks, block_size=block_size))(rows, weights),
        active,
        nonnegative,
        max_iterations,
        tolerance * noise,
    )


def _centre(rows: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Return rows around their mean, weights that sum to one, and the mean."""
    weights = weights / weights.sum()
    origin = matmul(weights, rows)
    return jnp.where(weights[:, None] > 0, rows - origin, 0.0), weights, origin


def _or_nan(value: Array, origin: Array, kernel: Kernel) -> Array:
    """Return the value, or NaN if a row was not finite (its mean, the origin, tells) or the kernel.

    A step towards NaN is no success to the optimiser, which would end at weights of zero.
    """
    sound = jnp.isfinite(origin).all() & (kernel.bandwidth > 0) & (kernel.bandwidth < jnp.inf)
    return jnp.where(sound, value, jnp.nan)


def _reduce(
    keys: Array,
    rows: Array,
    weights: Array,
    active: Array,
    kernel: Kernel,
    tolerance: Array,
    max_iterations: Array,
    *,
    exact_error: bool,
    **static: Any,
) -> ReducedSet:
    """Return the reduced sets of b data sets (b, n, d); see `_fit`."""
    rows, weights, origin = each(_centre)(rows, weights)
    state = _fit(keys, rows, weights, active, kernel, tolerance, max_iterations, **static)

    def finish(
        best: Point, iterations: Array, rows: Array, weights: Array, origin: Array
    ) -> ReducedSet:
        gradient = 2.0 * jnp.linalg.norm(best.weights[:, None] * best.residual)
        squared = relative = None
        if exact_error:
            found, given = ReducedSet(best.points, best.weights), ReducedSet(rows, weights)
            squared = squared_mmd(kernel, given, found)
            # |mu|^2 = |mu - phi|^2 + 2 <mu, phi> - |phi|^2, all but the first known here.
            relative = squared / (squared - best.value)
        sound = partial(_or_nan, origin=origin, kernel=kernel)
        diagnostics = Diagnostics(squared, relative, sound(gradient), iterations)
        return ReducedSet(sound(best.points + origin), sound(best.weights), diagnostics)

    return each(finish)(state.best, state.iterations, rows, weights, origin)


_STATIC = ("nonnegative", "exact_error", "block_size")


@partial(jax.jit, static_argnames=_STATIC)
def _reduce_one(key: Array, rows: Array, weights: Array, *others: Any, **static: Any) -> ReducedSet:
    found = _reduce(key[None], rows[None], weights[None], *others, **static)
    return jax.tree.map(lambda leaf: leaf[0], found)


def reduce_set(
    key: Array,
    Z: Array,
    *,
    size: int,
    kernel: Kernel,
    weights: Array | None = None,
    nonnegative: bool = False,
    max_iterations: int = 40,
    tolerance: float = 5e-4,
    exact_error: bool | None = None,
    block_size: int = BLOCK_SIZE,
) -> ReducedSet:
    """Return `size` weighted points whose embedding is close to the mean embedding of Z.

    Args:
        key: a jax random key; it draws the start.
        Z: (n, d) features.
        size: m, static. With fewer distinct rows than m the points repeat and share weight.
        kernel: a kernel; `kernels.median_bandwidth` gives its bandwidth.
        weights: (n,) nonnegative weights of the rows, scaled to sum to one; None for 1/n. Rows
            of weight zero count for nothing, so they may be padding.
        nonnegative: whether to hold the weights of the points nonnegative. They still need not
            sum to one.
        max_iterations: at most this many passes over the data after the first.
        tolerance: stop when a step gains less than this share of the data's sampling noise
            (about (1 - |mu|^2) / n). Zero goes on to `max_iterations` or to rounding.
        exact_error: whether to compute the error, n^2 d work; None does so up to 2048 rows.
        block_size: rows of Z in a block of the data pass.

    Returns:
        points (m, d), weights (m,) and `Diagnostics`.

    Raises:
        TypeError: no random key, no kernel, Z of other things than numbers.
        ValueError: Z is empty, not (n, d), or not finite; sizes below one; a negative tolerance;
            a kernel of several bandwidths.
    """
    rows = as_features("Z", Z)
    as_size("size", size)
    n = rows.shape[0]
    return _reduce_one(
        as_key("key", key),
        jnp.asarray(rows),
        _row_weights(weights, rows),
        np.ones(size, bool),
        as_kernel("kernel", kernel),
        _as_tolerance(tolerance),
        as_size("max_iterations", max_iterations, minimum=0),
        nonnegative=nonnegative,
        exact_error=n <= EXACT_ERROR_ROWS if exact_error is None else exact_error,
        block_size=as_size("block_size", block_size),
    )


def _as_tolerance(value: Any) -> Any:
    return as_number("tolerance", value, "a finite nonnegative number", least=0)


def _row_weights(weights: Array | None, rows: Array) -> Array:
    n = rows.shape[0]
    if weights is None:
        return np.full(n, 1.0 / n, rows.dtype)
    if np.shape(weights) != (n,):
        raise ValueError(f"weights: expected shape ({n},), one a row, got {np.shape(weights)}")
    if is_concrete(weights):
        weights = np.asarray(weights, rows.dtype)
        if not (np.isfinite(weights).all() and weights.min() >= 0 and weights.sum() > 0):
            raise ValueError("weights: expected finite nonnegative numbers, not all zero")
    return weights


def reduce_sets(
    key: Array,
    features: Sequence[Array],
    *,
    size: int,
    kernel: Kernel,
    nonnegative: bool = False,
    max_iterations: int = 40,
    tolerance: float = 5e-4,
    exact_error: bool = False,
    block_size: int = BLOCK_SIZE,
) -> ReducedSet:
    """Return the reduced sets of many data sets: points (b, m, d), weights (b, m).

    Sets are padded to one bucketed number of rows and go through one compiled function, a chunk
    of sets at a time; another batch of the same bucket compiles nothing.

    Args:
        key: a jax random key, split into one a set.
        features: b arrays (n_i, d) with one d.
        size: m.
        kernel: one kernel for all sets.
        nonnegative: see `reduce_set`, as all that follow.
        max_iterations: passes over the data.
        tolerance: share of the sampling noise.
        exact_error: the error costs as much as many steps here: off unless asked for.
        block_size: rows in a block.

    Raises:
        ValueError: no set, or one that `reduce_set` would refuse.
    """
    if len(features) == 0:
        raise ValueError("features: expected at least one data set, got none")
    kernel = as_kernel("kernel", kernel)
    as_size("size", size)
    sets = [as_features("features[0]", features[0], copy=False)]
    for i, one in enumerate(features[1:], start=1):
        sets.append(as_features(f"features[{i}]", one, dimension=sets[0].shape[1], copy=False))
    rows = bucket(max(one.shape[0] for one in sets))
    keys = np.asarray(_split_keys(as_key("key", key), bucket(len(sets))))
    most = CHUNK_SETS[device_kind()]
    chunk = min(most, bucket(len(sets), minimum=1))
    found = []
    for first in range(0, len(sets), chunk):
        part = sets[first : first + chunk]
        part = part + part[:1] * (chunk - len(part))  # a short last chunk does not compile anew
        index = np.minimum(np.arange(first, first + chunk), len(sets) - 1)
        found.append(
            _reduce_batch(
                keys[index],
                *_stacked(part, rows),
                np.ones(size, bool),
                kernel,
                _as_tolerance(tolerance),
                as_size("max_iterations", max_iterations, minimum=0),
                nonnegative=nonnegative,
                exact_error=exact_error,
                block_size=as_size("block_size", block_size),
            )
        )
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(sets)], *found)


def _stacked(sets: Sequence[Array], rows: int) -> tuple[Array, Array]:
    """Return sets padded to (b, rows, d), and the weights of their rows (b, rows)."""
    if not is_concrete(sets):
        padded = [pad_to(one, (rows, one.shape[1])) for one in sets]
        return jnp.stack(padded), np.stack([pad_to(_row_weights(None, s), (rows,)) for s in sets])
    stacked = np.zeros((len(sets), rows, sets[0].shape[1]), np.result_type(*sets))
    weights = np.zeros((len(sets), rows), stacked.dtype)
    for i, one in enumerate(sets):
        stacked[i, : len(one)] = one
        weights[i, : len(one)] = 1.0 / len(one)
    return stacked, weights


@partial(jax.jit, static_argnums=1)
def _split_keys(key: Array, count: int) -> Array:
    return jax.random.key_data(jax.random.split(key, count))


@partial(jax.jit, static_argnames=_STATIC)
def _reduce_batch(
    key_data: Array,
    rows: Array,
    weights: Array,
    active: Array,
    kernel: Kernel,
    tolerance: Array,
    max_iterations: Array,
    **static: Any,
) -> ReducedSet:
    keys = jax.random.wrap_key_data(key_data)
    return _reduce(keys, rows, weights, active, kernel, tolerance, max_iterations, **static)


def best_weights(
    kernel: Kernel,
    points: Array,
    Z: Array,
    *,
    weights: Array | None = None,
    nonnegative: bool = False,
    block_size: int = BLOCK_SIZE,
) -> Array:
    """Return the weights (m,) that bring the points' embedding closest to that of Z.

    (K_UU + jitter I)^-1 K_UZ 1/n by Cholesky, with jitter = 2 m eps: of the size of the rounding
    in the factor itself. Equal points share their weight.

    Args:
        kernel: a kernel.
        points: (m, d).
        Z: (n, d) features.
        weights: (n,) weights of the rows, as in `reduce_set`.
        nonnegative: the best among nonnegative weights, by an active set.
        block_size: rows of Z in a block.

    Raises:
        TypeError: no kernel.
        ValueError: shapes that do not agree, or entries that are not finite.
    """
    kernel, points = as_kernel("kernel", kernel), as_features("points", points)
    rows = as_features("Z", Z, dimension=points.shape[1])
    as_size("block_size", block_size)
    row_weights = _row_weights(weights, rows)
    return _best_weights(kernel, points, rows, row_weights, nonnegative, block_size)


@partial(jax.jit, static_argnums=(4, 5))
def _best_weights(
    kernel: Kernel, points: Array, rows: Array, weights: Array, nonnegative: bool, block_size: int
) -> Array:
    rows, weights, origin = _centre(rows, weights)
    data = in_blocks(rows, weights, block_size)
    active = jnp.ones(points.shape[0], bool)
    weights = evaluate(kernel, points - origin, data, active, nonnegative).weights
    return _or_nan(weights, origin, kernel)


def suggest_size(
    Z: Array,
    kernel: Kernel,
    *,
    key: Array | None = None,
    max_size: int | None = None,
    max_iterations: int = 10,
) -> int:
    """Return the smallest size at which a reduced set's error is below the data's noise.

    The noise is the expected squared MMD between the embedding of n rows and that of their
    distribution, (mean k(z, z) - |mu|^2) / (n - 1), unbiased. Sizes double until the optimiser's
    error is below it, then bisection between the last two; the error falls with the size up to
    the optimiser's luck, so the answer may be a point or two off. |mu|^2 costs n^2 d once.

    Args:
        Z: (n, d) features.
        kernel: a kernel.
        key: a jax random key for the starts; None for a fixed one.
        max_size: the largest answer; None for n.
        max_iterations: of each trial, as in `reduce_set`.

    Raises:
        ValueError: as `reduce_set`.
    """
    kernel, rows = as_kernel("kernel", kernel), as_features("Z", Z)
    limit = rows.shape[0] if max_size is None else as_size("max_size", max_size)
    key = jax.random.key(0) if key is None else as_key("key", key)
    weights = _row_weights(None, rows)
    norm = float(inner_product(kernel, rows - rows.mean(0), rows - rows.mean(0)))
    noise = (1.0 - norm) / max(rows.shape[0] - 1, 1)

    def enough(size: int) -> bool:
        active = np.arange(bucket(size)) < size  # one compilation for all sizes of a bucket
        return norm - float(_explained(key, rows, weights, active, kernel, max_iterations)) < noise

    low, high = 0, 1  # `low` is too small, `high` is the next to try
    while high < limit and not enough(high):
        low, high = high, 2 * high
    high = min(high, limit)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


@jax.jit
def _explained(
    key: Array, rows: Array, weights: Array, active: Array, kernel: Kernel, max_iterations: Array
) -> Array:
    rows, weights, _ = _centre(rows, weights)
    return -_fit(
        key[None],
        rows[None],
        weights[None],
        active,
        kernel,
        0.0,
        max_iterations,
        nonnegative=False,
        block_size=BLOCK_SIZE,
    ).best.value[0]
