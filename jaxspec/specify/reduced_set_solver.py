"""Reduced sets of centred, padded data under `jit`: the start, the optimisation and its report.

`reduce_batch` reduces b data sets; `fit` does the same and returns the optimiser's state instead.
The method is variable projection (`variable_projection.py`) with Levenberg-Marquardt steps
(`levenberg_marquardt.py`) from k-means++ and one Lloyd step (`kmeans.py`). From 32 points on, one
of them starts at the mean of the rows: it ends with a large negative weight there and the others
farther out, as in many cubature rules, with an error a quarter to a third below that of points
with positive weights only. Arguments are checked in `reduced_set.py`, never here.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxspec.base import register
from jaxspec.kernels import Kernel, ReducedSet, squared_mmd
from jaxspec.specify.compiled_inputs import padded_rows
from jaxspec.specify.kmeans import kmeans_plus_plus, lloyd, systematic_sample
from jaxspec.specify.levenberg_marquardt import State, each, optimise
from jaxspec.specify.variable_projection import Evaluation, in_blocks, matmul

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Key

__all__ = ["ReducedSetDiagnostics", "centre", "fit", "nan_unless_sound", "reduce_batch"]

SAMPLE_ROWS = 10  # rows per point in the sample for the start's Lloyd steps
SEED_EVERY = 2  # k-means++, whose cost is quadratic, takes every second row of the sample
LLOYD_STEPS = 1
MIN_CENTRED_SIZE = 32  # from this number of points on, one of them starts at the mean


@register
@dataclasses.dataclass(frozen=True)
class ReducedSetDiagnostics:
    """How a reduced set was found; every field is a scalar, or (b,) for a batch.

    Attributes:
        squared_mmd: squared MMD to the mean embedding of the data; None where not computed.
        relative_error: the same over the squared norm of the data's embedding; None likewise.
        gradient_norm: norm of the objective's gradient with respect to the points.
        iterations: evaluations of the objective after the first.
    """

    squared_mmd: Float[Array, "*b"] | None
    relative_error: Float[Array, "*b"] | None
    gradient_norm: Float[Array, "*b"]
    iterations: Int[Array, "*b"]


def _first_points(
    draws: Array, rows: Array, weights: Array, active: Array, *, nonnegative: bool
) -> Array:
    """Return first points (m, d) from centred rows, with m + SAMPLE_ROWS m uniform draws."""
    size = active.shape[0]
    sample, sample_weights, every = rows, weights, 1
    # By the padded number of rows, so that padding changes nothing.
    if padded_rows(rows.shape[0]) > SAMPLE_ROWS * size:
        sample = rows[systematic_sample(draws[size:], weights)]
        sample_weights = jnp.full(SAMPLE_ROWS * size, 1.0 / (SAMPLE_ROWS * size), rows.dtype)
        every = SEED_EVERY
    points = kmeans_plus_plus(draws[:size], sample[::every], sample_weights[::every])
    points = lloyd(points, sample, sample_weights, active, LLOYD_STEPS)
    if nonnegative:
        return points
    at_mean = active.sum() >= MIN_CENTRED_SIZE
    return points.at[0].set(jnp.where(at_mean, 0.0, points[0]))


def fit(
    keys: Key[Array, " b"],
    rows: Float[Array, "b n d"],
    weights: Float[Array, "b n"],
    active: Bool[Array, " m"],
    kernel: Kernel,
    tolerance: Float[Array, ""],
    max_iterations: Int[Array, ""],
    *,
    nonnegative: bool,
    block_size: int,
) -> State:
    """Return the state of the optimiser at its end.

    Args:
        keys: typed random keys, one per data set.
        rows: data sets around their means; rows of weight zero are padding.
        weights: of the rows, with sum one.
        active: false for a point that is padding.
        kernel: the kernel of all sets.
        tolerance: a fraction of the sampling noise of the data.
        max_iterations: largest number of evaluations after the first.
        nonnegative: whether the weights are held nonnegative.
        block_size: largest number of rows in a block.
    """
    count = active.shape[0] * (1 + SAMPLE_ROWS)
    draws = jax.vmap(lambda key: jax.random.uniform(key, (count,), rows.dtype))(keys)
    first = each(partial(_first_points, active=active, nonnegative=nonnegative))
    # k(x, x) = 1, so the noise of the data's own embedding is about (1 - |mu|^2) / n.
    noise = jnp.square(weights).sum(axis=1)
    return optimise(
        kernel,
        first(draws, rows, weights),
        each(partial(in_blocks, block_size=block_size))(rows, weights),
        active,
        nonnegative,
        max_iterations,
        tolerance * noise,
    )


def centre(
    rows: Float[Array, "n d"], weights: Float[Array, " n"]
) -> tuple[Float[Array, "n d"], Float[Array, " n"], Float[Array, " d"]]:
    """Return rows around their mean (padding at zero), weights with sum one, and the mean."""
    weights = weights / weights.sum()
    origin = matmul(weights, rows)
    return jnp.where(weights[:, None] > 0, rows - origin[None, :], 0.0), weights, origin


def nan_unless_sound(value: Array, origin: Array, kernel: Kernel) -> Array:
    """Return the value, or NaN where a row (and so the origin) or the bandwidth is not finite.

    The optimiser takes a value of NaN for a step without success, and would end at weights of zero.
    """
    sound = jnp.isfinite(origin).all() & (kernel.bandwidth > 0) & (kernel.bandwidth < jnp.inf)
    return jnp.where(sound, value, jnp.nan)


def reduce_batch(
    keys: Key[Array, " b"],
    rows: Float[Array, "b n d"],
    weights: Float[Array, "b n"],
    active: Bool[Array, " m"],
    kernel: Kernel,
    tolerance: Float[Array, ""],
    max_iterations: Int[Array, ""],
    *,
    nonnegative: bool,
    block_size: int,
    exact_error: bool,
) -> tuple[ReducedSet, ReducedSetDiagnostics]:
    """Return the reduced sets of b data sets, which need not be centred; see `fit`."""
    rows, weights, origins = each(centre)(rows, weights)
    state = fit(
        keys,
        rows,
        weights,
        active,
        kernel,
        tolerance,
        max_iterations,
        nonnegative=nonnegative,
        block_size=block_size,
    )

    def report(
        best: Evaluation, iterations: Array, rows: Array, weights: Array, origin: Array
    ) -> tuple[ReducedSet, ReducedSetDiagnostics]:
        gradient = 2.0 * jnp.linalg.norm(best.weights[:, None] * best.residual)
        squared = relative = None
        if exact_error:
            found, given = ReducedSet(best.points, best.weights), ReducedSet(rows, weights)
            squared = squared_mmd(kernel, given, found)
            # |mu|^2 = |mu - phi|^2 + 2 <mu, phi> - |phi|^2, of which all but the first is known.
            relative = squared / (squared - best.value)
        sound = partial(nan_unless_sound, origin=origin, kernel=kernel)
        points = best.points + origin[None, :]
        return (
            ReducedSet(sound(points), sound(best.weights)),
            ReducedSetDiagnostics(squared, relative, sound(gradient), iterations),
        )

    return each(report)(state.best, state.iterations, rows, weights, origins)
