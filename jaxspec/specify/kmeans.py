"""k-means++ seeds and Lloyd steps on weighted rows, for the first points of a reduced set.

`systematic_sample`, `kmeans_plus_plus` and `lloyd` can be traced: their shapes depend on static
sizes only, and a row of weight zero is padding. Random numbers come in as uniform draws and are
never made here, so that the caller makes all of them in one call: every call of jax's generator
takes long to compile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxspec.kernels import distances
from jaxspec.specify.variable_projection import matmul

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

__all__ = ["kmeans_plus_plus", "lloyd", "systematic_sample"]


def systematic_sample(draws: Float[Array, " s"], weights: Float[Array, " n"]) -> Int[Array, " s"]:
    """Return the row index of every draw: systematic sampling with probabilities from `weights`.

    The total weight is cut into s equal slices, and every slice gives one row. With equal weights
    and s <= n no row is drawn twice; a row of weight zero is never drawn. Sampling without
    replacement would need a sort.

    Args:
        draws: uniform numbers in [0, 1).
        weights: nonnegative weights of the rows.
    """
    cumulative = jnp.cumsum(weights)
    slices = (jnp.arange(draws.shape[0], dtype=draws.dtype) + draws) / draws.shape[0]
    return _first_above(cumulative, slices * cumulative[-1])


def _first_above(cumulative: Array, targets: Array) -> Array:
    """Return, for every target, the first index whose cumulative weight exceeds it."""
    # `last` is the last row of positive weight: rounding must not lead into the padding.
    # Both are int32, also where float64 is enabled.
    last = jnp.argmax(cumulative >= cumulative[-1]).astype(jnp.int32)
    found = jnp.searchsorted(cumulative, targets, side="right").astype(jnp.int32)
    return jnp.minimum(found, last)


def kmeans_plus_plus(
    draws: Float[Array, " m"], rows: Float[Array, "n d"], weights: Float[Array, " n"]
) -> Float[Array, "m d"]:
    """Return m of the rows, drawn with probability weight times squared distance to the drawn ones.

    With fewer distinct rows than draws, rows are repeated. Every seed costs one product of the
    rows with a vector; a table of all distances between rows took 1.7 times as long.
    Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding" (SODA 2007).

    Args:
        draws: uniform numbers in [0, 1), one per seed.
        rows: the candidates.
        weights: their nonnegative weights.
    """
    rows = jnp.asarray(rows)
    norms = jnp.square(rows).sum(1)
    # The product leaves rounding between equal rows, which must not look like a distance.
    floor = 4e-6 * jnp.max(norms)

    def from_row(row: Array) -> Array:
        distance = norms + norms[row] - 2.0 * matmul(rows, rows[row])
        return jnp.where(distance > floor, distance, 0.0)

    def seed(step: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        nearest, chosen = state
        mass = jnp.cumsum(weights * nearest)
        # Where no distance is left, every distinct row is a seed already: draw by weight alone.
        mass = jnp.where(mass[-1] > 0, mass, jnp.cumsum(weights))
        row = _first_above(mass, draws[step] * mass[-1])
        return jnp.minimum(nearest, from_row(row)), chosen.at[step].set(row)

    first = _first_above(jnp.cumsum(weights), draws[0] * jnp.sum(weights))
    start = from_row(first), jnp.full(draws.shape, first)
    return rows[jax.lax.fori_loop(1, draws.shape[0], seed, start)[1]]


def lloyd(
    centres: Float[Array, "m d"],
    rows: Float[Array, "n d"],
    weights: Float[Array, " n"],
    active: Bool[Array, " m"],
    steps: int,
) -> Float[Array, "m d"]:
    """Return the centres after `steps` Lloyd steps; the centre of an empty cluster stays.

    A row at one distance from two nearest centres counts for both: an argmin took twice the time
    of everything else here.

    Args:
        centres: the first centres.
        rows: the data.
        weights: their nonnegative weights.
        active: false for a centre that attracts no row.
        steps: number of steps.
    """

    def step(_: int, centres: Array) -> Array:
        to_centres = distances("sqeuclidean", rows, centres)
        to_centres = jnp.where(active[None, :], to_centres, jnp.inf)
        nearest = to_centres <= to_centres.min(axis=1, keepdims=True)
        member = jnp.where(nearest, weights[:, None], 0.0)
        total = member.sum(0)[:, None]
        sums = matmul(member.T, rows)
        return jnp.where(total > 0, sums / jnp.where(total > 0, total, 1.0), centres)

    return jax.lax.fori_loop(0, steps, step, jnp.asarray(centres))
