"""The start of a reduced set: k-means++ seeds on a sample of the rows, then Lloyd steps.

Everything here is traceable: row weights of zero mark padding, and shapes depend on static sizes
only. Random numbers come in as uniform draws, so that the caller makes all of them in one call:
each call of the generator is a large piece to compile. The sample bounds the cost: its distances
are formed once, by one matrix product, and each seed then reads one row of them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.kernels.kernels import distances

__all__ = ["kmeans_plus_plus", "lloyd", "systematic_sample"]

Array = Any


def systematic_sample(draws: Array, weights: Array) -> Array:
    """Return a row index for each draw (s,), uniform in [0, 1): one from each of s equal slices.

    The slices are of the weights (n,): with equal weights and s <= n no row comes twice; a row of
    weight zero never comes. Unlike a draw without replacement it needs no sort.
    """
    cumulative = jnp.cumsum(weights)
    slices = (jnp.arange(draws.shape[0]) + draws) / draws.shape[0]
    return _invert(cumulative, slices * cumulative[-1])


def _invert(cumulative: Array, targets: Array) -> Array:
    """Return the first index whose cumulative weight exceeds each target."""
    # `last` is the last index of positive weight: rounding must not lead into the padding.
    last = jnp.argmax(cumulative >= cumulative[-1])
    found = jnp.minimum(jnp.searchsorted(cumulative, targets, side="right"), last)
    return found.astype(jnp.int32)  # with x64, `last` is of 64 bits


def kmeans_plus_plus(draws: Array, rows: Array, weights: Array) -> Array:
    """Return a row of (s, d) for each draw (m,), by weight times squared distance: (m, d).

    Arthur and Vassilvitskii, "k-means++" (SODA 2007). With fewer distinct rows than draws the
    further seeds repeat rows. One product with (s, d) a seed: a table of all s x s distances took
    1.7 times as long.
    """
    rows = jnp.asarray(rows)
    norms = jnp.square(rows).sum(1)
    # The product leaves rounding between equal rows; it must not look like a distance.
    floor = 4e-6 * jnp.max(norms)

    def from_row(row: Array) -> Array:
        product = jnp.matmul(rows, rows[row], precision=jax.lax.Precision.HIGHEST)
        distance = norms + norms[row] - 2.0 * product
        return jnp.where(distance > floor, distance, 0.0)

    def seed(step: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        nearest, chosen = state
        mass = jnp.cumsum(weights * nearest)
        # No distance left: every row is a seed already, draw by weight alone.
        mass = jnp.where(mass[-1] > 0, mass, jnp.cumsum(weights))
        row = _invert(mass, draws[step] * mass[-1])
        return jnp.minimum(nearest, from_row(row)), chosen.at[step].set(row)

    first = _invert(jnp.cumsum(weights), draws[0] * jnp.sum(weights))
    start = from_row(first), jnp.full(draws.shape, first)
    return rows[jax.lax.fori_loop(1, draws.shape[0], seed, start)[1]]


def lloyd(centres: Array, rows: Array, weights: Array, active: Array, steps: int) -> Array:
    """Return the centres (m, d) after `steps` Lloyd steps; an empty cluster keeps its centre.

    Centres that are not `active` (m,) attract no row; a row between two nearest ones counts for
    both (an argmin costs twice the time of all the rest).
    """

    def step(_: int, centres: Array) -> Array:
        distance = jnp.where(active, distances("sqeuclidean", rows, centres), jnp.inf)
        member = (distance <= distance.min(axis=1, keepdims=True)) * weights[:, None]
        total = member.sum(0)[:, None]
        sums = jnp.matmul(member.T, rows, precision=jax.lax.Precision.HIGHEST)
        return jnp.where(total > 0, sums / jnp.where(total > 0, total, 1.0), centres)

    return jax.lax.fori_loop(0, steps, step, centres)
