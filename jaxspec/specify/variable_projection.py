"""The objective of a reduced set as a function of its points alone: variable projection.

For fixed points U the best weights beta have a closed form. Inserting them leaves a smooth function
of U, whose gradient is the one with the weights held fixed (the envelope theorem). `evaluate`
returns its value and what a Gauss-Newton step needs; `levenberg_marquardt.py` takes the steps.
Nothing here keeps an n x n array: the data come in blocks of rows.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.kernels import Kernel, distances

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = [
    "JITTER",
    "Data",
    "Evaluation",
    "evaluate",
    "in_blocks",
    "inverse_factor",
    "matmul",
]

JITTER = 2.0  # times m eps k(x, x): about the rounding in the Cholesky factor itself


class Data(NamedTuple):
    """A data set in blocks of rows.

    Attributes:
        rows: (c, block, d).
        weights: (c, block), nonnegative, with sum one.
    """

    rows: Array
    weights: Array


class Evaluation(NamedTuple):
    """The objective at some points, and what the next step needs.

    Attributes:
        points: (m, d), U.
        weights: (m,), the best weights beta for these points.
        value: squared norm of the error less that of the data's embedding, which no point changes.
        residual: (m, d), R; the gradient is 2 beta R.
        kappa: (m, m), -2 k' at the squared distances between the points.
        rho: (m, m), 4 k'' at them.
        inverse_cholesky: (m, m), L^-1 of L L^T = K_UU + jitter on the points in use.
    """

    points: Array
    weights: Array
    value: Array
    residual: Array
    kappa: Array
    rho: Array
    inverse_cholesky: Array


def in_blocks(rows: Float[Array, "n d"], weights: Float[Array, " n"], block_size: int) -> Data:
    """Return rows and weights in equal blocks of at most `block_size` rows.

    The last block is padded with rows of weight zero.
    """
    blocks = -(-rows.shape[0] // block_size)
    length = -(-rows.shape[0] // blocks)
    extra = blocks * length - rows.shape[0]
    return Data(
        jnp.pad(rows, ((0, extra), (0, 0))).reshape(blocks, length, -1),
        jnp.pad(weights, (0, extra)).reshape(blocks, length),
    )


def matmul(a: Array, b: Array) -> Array:
    """Return a @ b in full float32 precision, which accelerators leave out by default."""
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
        return matmul(values, weights), _pull(
            kernel.metric, slopes * weights[None, :], points, rows
        )

    if data.rows.shape[0] == 1:
        return block(data.rows[0], data.weights[0])
    zero = jnp.zeros(points.shape[0], points.dtype), jnp.zeros_like(points)

    def add(total: tuple[Array, Array], part: Data) -> tuple[tuple[Array, Array], None]:
        values, slopes = block(*part)
        return (total[0] + values, total[1] + slopes), None

    return jax.lax.scan(add, zero, data)[0]


def _distances(metric: str, points: Array, rows: Array) -> Array:
    """Return distances (m, n) between points and rows that were moved to a common origin before."""
    if metric == "cityblock":
        return distances(metric, points, rows)
    norms = jnp.square(points).sum(1)[:, None] + jnp.square(rows).sum(1)[None, :]
    return jnp.maximum(norms - 2.0 * matmul(points, rows.T), 0.0)


def inverse_factor(matrix: Array) -> tuple[Array, Array]:
    """Return the Cholesky factor L of a positive definite matrix, and L^-1.

    The matrix is small, and many systems are solved with it: by L^-1 they are matrix products,
    several times faster than substitution.
    """
    lower = jnp.linalg.cholesky(matrix)
    eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    return lower, jax.scipy.linalg.solve_triangular(lower, eye, lower=True)


def _solve(gram: Array, target: Array, support: Array) -> tuple[Array, Array, Array]:
    """Return the best weights on the support (zero elsewhere), the value they reach, and L^-1."""
    pair = support[:, None] & support[None, :]
    jitter = JITTER * gram.shape[0] * float(jnp.finfo(gram.dtype).eps) * gram[0, 0]
    matrix = jnp.where(pair, gram, 0.0) + jnp.diag(jnp.where(support, jitter, 1.0))
    lower, half = inverse_factor(matrix)
    target = jnp.where(support, target, 0.0)
    # Substitution is backward stable. For nearly dependent points (one-dimensional data, repeated
    # rows) products with L^-1 left errors of 1e-3, substitution 1e-7.
    weights = jax.scipy.linalg.cho_solve((lower, True), target)
    weights = weights + jax.scipy.linalg.cho_solve((lower, True), target - matmul(matrix, weights))
    # The quadratic itself, not -beta v, which equals it for the exact best weights only: weights
    # with errors then never look better than they are.
    value = -matmul(weights, target + (target - matmul(matrix, weights)))
    return weights, value, jnp.where(support[None, :], half, 0.0)


def _solve_nonnegative(gram: Array, target: Array, active: Array) -> tuple[Array, Array, Array]:
    """Return what `_solve` returns, for nonnegative weights, by block principal pivoting.

    All infeasible indices change sides at once. When their number has not fallen for three steps,
    only the last of them changes sides, which ends after finitely many steps. Kim and Park, "Fast
    nonnegative matrix factorization", SIAM J. Sci. Comput. 33 (2011).
    """
    m = gram.shape[0]
    index = jnp.arange(m)
    slack = 8.0 * m * float(jnp.finfo(gram.dtype).eps)

    def infeasible(support: Array) -> Array:
        weights = _solve(gram, target, support)[0]
        dual = matmul(gram, weights) - target
        return active & jnp.where(support, weights < 0, dual < -slack)

    def pivot(
        state: tuple[Array, Array, Array, Array, Array],
    ) -> tuple[Array, Array, Array, Array, Array]:
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
    jitter = JITTER * m * float(jnp.finfo(gram.dtype).eps) * gram[0, 0]
    loss = matmul(gram, weights) + jitter * weights - target
    return weights, -matmul(weights, target - loss), half


def evaluate(
    kernel: Kernel,
    points: Float[Array, "m d"],
    data: Data,
    active: Bool[Array, " m"],
    nonnegative: bool,
) -> Evaluation:
    """Return the objective at these points, with their best weights.

    Args:
        kernel: the kernel.
        points: U, moved by the origin that the rows of `data` were moved by.
        data: the data set.
        active: false for a point that is padding and has weight zero.
        nonnegative: whether the weights are held nonnegative.
    """
    target, pull = _data_term(kernel, points, data)
    off = 1.0 - jnp.eye(points.shape[0], dtype=points.dtype)  # the diagonal is zero, not rounding
    distance = _distances(kernel.metric, points, points) * off
    (gram, slopes), (_, curvature) = jax.jvp(
        partial(_profile, kernel), (distance,), (jnp.ones_like(distance),)
    )
    # The sum norm has no second derivative at zero; k'^2 / k takes its place, at the same scale.
    kappa = jnp.square(slopes) / gram if kernel.metric == "cityblock" else -2.0 * slopes
    solve = _solve_nonnegative if nonnegative else _solve
    weights, value, half = solve(gram, target, active)
    own = _pull(kernel.metric, slopes * weights[None, :], points, points)
    return Evaluation(points, weights, value, own - pull, kappa, 4.0 * curvature, half)
