"""Reduced sets: m weighted points whose embedding is close to the mean embedding of n rows.

`reduce_set` minimises |1/n sum_i k(Z_i, .) - sum_j beta_j k(U_j, .)|_H^2 over points U and signed
weights beta; `reduce_sets` does many sets in one compiled call; `best_weights` is the closed form
for given points; `suggest_size` says how many points the data deserve. Nothing here rescales
weights or keeps an n x n array.

The method is variable projection with a Gauss-Newton step. The best weights for given points are
closed-form, so the objective is one of U alone, and its gradient is the one with the weights held
fixed (envelope theorem). Its Gauss-Newton matrix involves the m points only, no data: products
with it cost m^2 d, a data pass n m d. A few conjugate-gradient steps on it, preconditioned by its
leading part diag(beta) kappa(U, U) diag(beta) (x) I, therefore cost a fraction of the pass. With
that part alone the step is the mean-shift interacting particle step of Belhadji, Sharp and
Marzouk (arXiv 2502.10600) damped. Measured by `benchmarks/reduced_set.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checks import as_features, as_size, is_concrete
from jaxspec.kernels import Kernel, ReducedSet, distances, squared_mmd
from jaxspec.kmeans import kmeans_plus_plus, lloyd, systematic_sample
from jaxspec.shapes import bucket, pad_to

__all__ = ["Diagnostics", "best_weights", "reduce_set", "reduce_sets", "suggest_size"]

Array = Any
BLOCK_SIZE = 8192  # rows a data block: with m = 200 its Gram block is 6.5 MB
EXACT_ERROR_ROWS = 2048  # up to here the error is computed without being asked for: n^2 d work
SAMPLE_ROWS = 10  # rows of the start's sample per point
CG_STEPS = 4


@jax.tree_util.register_dataclass
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


class _Data(NamedTuple):
    """Rows in blocks (c, block, d) and their weights (c, block), which sum to one."""

    rows: Array
    weights: Array


class _Point(NamedTuple):
    """Points and all that the next step needs to know about them."""

    points: Array  # (m, d)
    weights: Array  # (m,)
    value: Array  # minus the explained part of the squared norm
    residual: Array  # (m, d): the gradient is 2 weights residual
    kappa: Array  # (m, m): -2 k', the Gram matrix of the kernel's slope
    rho: Array  # (m, m): 4 k''
    inverse: Array  # (m, m): (K_UU + jitter)^-1 on the support


class _State(NamedTuple):
    best: _Point
    damping: Array
    iterations: Array
    done: Array


def _jitter(size: int, dtype: Any) -> float:
    return 2.0 * size * float(jnp.finfo(dtype).eps)


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _profile(kernel: Kernel, distance: Array) -> tuple[Array, Array]:
    """Return the kernel's values and their derivatives in the distance."""
    return jax.jvp(kernel.profile, (distance,), (jnp.ones_like(distance),))


def _pull(metric: str, slope: Array, points: Array, rows: Array) -> Array:
    """Return sum_i slope_ji d/dU_j distance(U_j, rows_i) for slope (m, n): (m, d)."""
    if metric == "cityblock":

        def column(_: None, pair: tuple[Array, Array]) -> tuple[None, Array]:
            return None, (slope * jnp.sign(pair[0][:, None] - pair[1][None, :])).sum(1)

        return jax.lax.scan(column, None, (points.T, rows.T))[1].T
    return 2.0 * (slope.sum(1)[:, None] * points - _matmul(slope, rows))


def _data_term(kernel: Kernel, points: Array, data: _Data) -> tuple[Array, Array]:
    """Return the data's embedding at the points (m,) and its gradient there (m, d)."""

    def block(rows: Array, weights: Array) -> tuple[Array, Array]:
        values, slopes = _profile(kernel, _distances(kernel.metric, points, rows))
        return _matmul(values, weights), _pull(kernel.metric, slopes * weights, points, rows)

    if data.rows.shape[0] == 1:
        return block(data.rows[0], data.weights[0])
    zero = jnp.zeros(points.shape[0], points.dtype), jnp.zeros_like(points)

    def add(total: tuple[Array, Array], part: _Data) -> tuple[tuple[Array, Array], None]:
        values, slopes = block(*part)
        return (total[0] + values, total[1] + slopes), None

    return jax.lax.scan(add, zero, data)[0]


def _distances(metric: str, points: Array, rows: Array) -> Array:
    """Return distances (m, n) of features that are centred already."""
    if metric == "cityblock":
        return distances(metric, points, rows)
    norms = jnp.square(points).sum(1)[:, None] + jnp.square(rows).sum(1)[None, :]
    return jnp.maximum(norms - 2.0 * _matmul(points, rows.T), 0.0)


def _inverse(matrix: Array) -> Array:
    """Return the inverse of a positive definite matrix: m is small, and products are fast."""
    lower = jnp.linalg.cholesky(matrix)
    half = jax.scipy.linalg.solve_triangular(
        lower, jnp.eye(matrix.shape[0], dtype=matrix.dtype), lower=True
    )
    return _matmul(half.T, half)


def _solve(gram: Array, target: Array, support: Array) -> tuple[Array, Array]:
    """Return weights on the support and the inverse there (zero elsewhere)."""
    pair = support[:, None] & support[None, :]
    eye = jnp.eye(gram.shape[0], dtype=gram.dtype)
    jitter = _jitter(gram.shape[0], gram.dtype) * gram[0, 0]
    matrix = jnp.where(pair, gram, 0.0) + eye * jnp.where(support, jitter, 1.0)
    lower = jnp.linalg.cholesky(matrix)
    half = jax.scipy.linalg.solve_triangular(lower, eye, lower=True)
    inverse = jnp.where(pair, _matmul(half.T, half), 0.0)
    weights = _matmul(inverse, target)
    # One refinement step: the product with an explicit inverse alone loses digits.
    residual = jnp.where(support, target - _matmul(matrix, weights), 0.0)
    return weights + _matmul(inverse, residual), inverse


def _solve_nonnegative(gram: Array, target: Array, active: Array) -> tuple[Array, Array]:
    """Return the best nonnegative weights by block principal pivoting.

    Every infeasible index changes sides at once; if that has not reduced their number three
    times, only the last one does, which ends in finitely many steps. Kim and Park, "Fast
    Nonnegative Matrix Factorization", SIAM J. Sci. Comput. 33 (2011).
    """
    m = gram.shape[0]
    index = jnp.arange(m)
    slack = 8.0 * m * jnp.finfo(gram.dtype).eps

    def infeasible(support: Array) -> Array:
        weights, _ = _solve(gram, target, support)
        dual = _matmul(gram, weights) - target
        return active & jnp.where(support, weights < 0, dual < -slack)

    def pivot(state: tuple[Array, Array, Array, Array, Array]) -> Any:
        support, wrong, fewest, chances, step = state
        count = wrong.sum()
        better = count < fewest
        chances = jnp.where(better, 3, chances - 1)
        only_last = wrong & (index == jnp.max(jnp.where(wrong, index, -1)))
        support = support ^ jnp.where(chances >= 0, wrong, only_last)
        return support, infeasible(support), jnp.minimum(count, fewest), chances, step + 1

    start = active, infeasible(active), jnp.array(m + 1), jnp.array(3), jnp.array(0)
    found = jax.lax.while_loop(lambda s: s[1].any() & (s[4] < 5 * m), pivot, start)
    weights, inverse = _solve(gram, target, found[0])
    return jnp.maximum(weights, 0.0), inverse


def _weights(nonnegative: bool, gram: Array, target: Array, active: Array) -> tuple[Array, Array]:
    return (_solve_nonnegative if nonnegative else _solve)(gram, target, active)


def _gram_of(kernel: Kernel, points: Array) -> tuple[Array, Array, Array]:
    """Return K_UU, kappa = -2 k' and rho = 4 k'' of the points, with exact diagonals."""
    off = 1.0 - jnp.eye(points.shape[0], dtype=points.dtype)
    distance = _distances(kernel.metric, points, points) * off
    (values, slopes), (_, curvature) = jax.jvp(
        partial(_profile, kernel), (distance,), (jnp.ones_like(distance),)
    )
    return values, -2.0 * slopes, 4.0 * curvature


def _evaluate(
    kernel: Kernel, points: Array, data: _Data, active: Array, nonnegative: bool
) -> _Point:
    target, pull = _data_term(kernel, points, data)
    gram, kappa, rho = _gram_of(kernel, points)
    weights, inverse = _weights(nonnegative, gram, target, active)
    own = _pull(kernel.metric, -0.5 * kappa * weights[None, :], points, points)
    # With jitter the explained part is beta (2 v - (K + jitter) beta); at the best weights, beta v.
    return _Point(points, weights, -_matmul(weights, target), own - pull, kappa, rho, inverse)


def _direction(at: _Point, damping: Array, metric: str) -> tuple[Array, Array]:
    """Return the damped Gauss-Newton step (m, d) and the decrease that its model predicts."""
    points, beta = at.points, at.weights[:, None]
    m = points.shape[0]
    scale = jnp.mean(jnp.square(at.weights)) * at.kappa[0, 0] + jnp.finfo(points.dtype).tiny
    floor = 4.0 * m * float(jnp.finfo(points.dtype).eps)
    leading = beta * at.kappa * beta.T + (damping + floor) * scale * jnp.eye(m, dtype=points.dtype)
    precondition = _inverse(leading)
    gradient = beta * at.residual

    def product(x: Array) -> Array:
        """Apply the Gauss-Newton matrix, projected on what the weights cannot do, plus damping."""
        y = beta * x
        if metric == "cityblock":  # no second derivative: the leading part stands for the whole
            return beta * _matmul(at.kappa, y) + damping * scale * x
        own = (points * y).sum(1)
        cross = _matmul(points, y.T)
        inner = at.rho * (cross - own[None, :])  # rho_jl (U_j - U_l) . Y_l
        change = -(at.kappa * (cross.T - own[:, None])).sum(0) * -1.0
        fix = at.kappa * _matmul(at.inverse, -(at.kappa * (own[:, None] - cross.T)).sum(0))[None, :]
        del change
        mixed = fix - inner
        curved = mixed.sum(1)[:, None] * points - _matmul(mixed, points)
        return beta * (_matmul(at.kappa, y) + curved) + damping * scale * x

    def conjugate(_: int, state: tuple[Array, ...]) -> tuple[Array, ...]:
        step, left, search, rate = state
        image = product(search)
        curvature = jnp.vdot(search, image)
        length = jnp.where(curvature > 0, rate / jnp.where(curvature > 0, curvature, 1.0), 0.0)
        step, left = step + length * search, left - length * image
        better = _matmul(precondition, left)
        new_rate = jnp.vdot(left, better)
        ratio = jnp.where(rate > 0, new_rate / jnp.where(rate > 0, rate, 1.0), 0.0)
        return step, left, better + ratio * search, new_rate

    start = _matmul(precondition, -gradient)
    state = (jnp.zeros_like(points), -gradient, start, jnp.vdot(-gradient, start))
    step, left, _, _ = jax.lax.fori_loop(0, CG_STEPS, conjugate, state)
    # The objective's model is 2 g.s + s.H s; with H s = -g - left that is g.s - left.s.
    return step, jnp.vdot(left - gradient, step)
