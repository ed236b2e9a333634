"""The objective of a reduced set as a function of its points alone: variable projection.

For fixed points U the best weights beta are closed-form, which leaves a smooth function of U. Its
gradient is the one with the weights held fixed (envelope theorem). `evaluate` gives the value and
all that a step needs to know; `jaxspec.specify.levenberg_marquardt` makes steps of it. Nothing here keeps an
n x n array: data come in blocks of rows.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.kernels.kernels import Kernel, distances

__all__ = ["Data", "Point", "evaluate", "in_blocks", "inverse_factor", "matmul"]

Array = Any
JITTER = 2.0  # times m eps k(x, x): the size of the rounding in the Cholesky factor itself


class Data(NamedTuple):
    """Rows in blocks (c, block, d) and their weights (c, block), which sum to one."""

    rows: Array
    weights: Array


class Point(NamedTuple):
    """Points and all that the next step needs to know about them."""

    points: Array  # (m, d)
    weights: Array  # (m,)
    value: Array  # minus the explained part of the squared norm
    residual: Array  # (m, d): the gradient is 2 weights residual
    kappa: Array  # (m, m): -2 k', the Gram matrix of the kernel's slope
    rho: Array  # (m, m): 4 k''
    half: Array  # (m, m): L^-1 of L L^T = K_UU + jitter on the support


def in_blocks(rows: Array, weights: Array, block_size: int) -> Data:
    """Return rows (n, d) and weights (n,) in blocks, padded with rows of weight zero."""
    blocks = -(-rows.shape[0] // block_size)
    length = rows.shape[0] if blocks == 1 else block_size
    extra = blocks * length - rows.shape[0]
    return Data(
        jnp.pad(rows, ((0, extra), (0, 0))).reshape(blocks, length, -1),
        jnp.pad(weights, (0, extra)).reshape(blocks, length),
    )


def matmul(a: Array, b: Array) -> Array:
    """Return a @ b in full float32 precision on every device."""
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
    return 2.0 * (slope.sum(1)[:, None] * points - matmul(slope, rows))


def _data_term(kernel: Kernel, points: Array, data: Data) -> tuple[Array, Array]:
    """Return the data's embedding at the points (m,) and its gradient there (m, d)."""

    def block(rows: Array, weights: Array) -> tuple[Array, Array]:
        values, slopes = _profile(kernel, _distances(kernel.metric, points, rows))
        return matmul(values, weights), _pull(kernel.metric, slopes * weights, points, rows)

    if data.rows.shape[0] == 1:
        return block(data.rows[0], data.weights[0])
    zero = jnp.zeros(points.shape[0], points.dtype), jnp.zeros_like(points)

    def add(total: tuple[Array, Array], part: Data) -> tuple[tuple[Array, Array], None]:
        values, slopes = block(*part)
        return (total[0] + values, total[1] + slopes), None

    return jax.lax.scan(add, zero, data)[0]


def _distances(metric: str, points: Array, rows: Array) -> Array:
    """Return distances (m, n) of features that are centred already."""
    if metric == "cityblock":
        return distances(metric, points, rows)
    norms = jnp.square(points).sum(1)[:, None] + jnp.square(rows).sum(1)[None, :]
    return jnp.maximum(norms - 2.0 * matmul(points, rows.T), 0.0)


def inverse_factor(matrix: Array) -> tuple[Array, Array]:
    """Return the Cholesky factor L of a positive definite matrix, and L^-1: m is small.

    With L^-1 at hand, many solves are matrix products, several times faster than substitution.
    """
    lower = jnp.linalg.cholesky(matrix)
    eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    return lower, jax.scipy.linalg.solve_triangular(lower, eye, lower=True)


def _solve(gram: Array, target: Array, support: Array) -> tuple[Array, Array, Array]:
    """Return the best weights on the support (zero elsewhere), their value, and L^-1 there."""
    pair = support[:, None] & support[None, :]
    jitter = JITTER * gram.shape[0] * jnp.finfo(gram.dtype).eps * gram[0, 0]
    matrix = jnp.where(pair, gram, 0.0) + jnp.diag(jnp.where(support, jitter, 1.0))
    lower, half = inverse_factor(matrix)
    target = jnp.where(support, target, 0.0)
    # By substitution, which is backward stable: with L^-1 a point set that is nearly dependent
    # (1-D data, repeated rows) had errors of 1e-3 where this has 1e-7.
    weights = jax.scipy.linalg.cho_solve((lower, True), target)
    weights = weights + jax.scipy.linalg.cho_solve((lower, True), target - matmul(matrix, weights))
    # The quadratic itself, not the -beta v it equals at the exact best weights: wrong weights
    # can then only look worse than they are.
    value = -matmul(weights, target + (target - matmul(matrix, weights)))
    return weights, value, jnp.where(support[None, :], half, 0.0)


def _solve_nonnegative(gram: Array, target: Array, active: Array) -> tuple[Array, Array, Array]:
    """Return what `_solve` returns, for nonnegative weights, by block principal pivoting.

    Every infeasible index changes sides at once; if that has not reduced their number three
    times, only the last one does, which ends in finitely many steps. Kim and Park, "Fast
    Nonnegative Matrix Factorization", SIAM J. Sci. Comput. 33 (2011).
    """
    m = gram.shape[0]
    index = jnp.arange(m)
    slack = 8.0 * m * jnp.finfo(gram.dtype).eps

    def infeasible(support: Array) -> Array:
        weights = _solve(gram, target, support)[0]
        dual = matmul(gram, weights) - target
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
    weights, _, half = _solve(gram, target, found[0])
    weights = jnp.maximum(weights, 0.0)
    jitter = JITTER * m * jnp.finfo(gram.dtype).eps * gram[0, 0]
    loss = matmul(gram, weights) + jitter * weights - target
    return weights, -matmul(weights, target - loss), half


def evaluate(kernel: Kernel, points: Array, data: Data, active: Array, nonnegative: bool) -> Point:
    """Return the value of points (m, d), and their best weights on the `active` (m,) ones."""
    target, pull = _data_term(kernel, points, data)
    off = 1.0 - jnp.eye(points.shape[0], dtype=points.dtype)  # rounding on the diagonal
    distance = _distances(kernel.metric, points, points) * off
    (gram, slopes), (_, curvature) = jax.jvp(
        partial(_profile, kernel), (distance,), (jnp.ones_like(distance),)
    )
    # The sum norm has no second derivative at zero; k'^2 / k has the scale of one.
    kappa = jnp.square(slopes) / gram if kernel.metric == "cityblock" else -2.0 * slopes
    solve = _solve_nonnegative if nonnegative else _solve
    weights, value, half = solve(gram, target, active)
    own = _pull(kernel.metric, slopes * weights[None, :], points, points)
    return Point(points, weights, value, own - pull, kappa, 4.0 * curvature, half)
