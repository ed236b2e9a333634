"""Levenberg-Marquardt on the points of many reduced sets at once.

The Gauss-Newton matrix of `variable_projection.py` depends on the m points only, not on the data:
a product with it costs m^2 d, a pass over the data n m d. A few steps of conjugate gradients on it
therefore cost a fraction of the pass. Their preconditioner is the matrix's leading part,
diag(beta) kappa(U, U) diag(beta) (x) I; with that part alone the step would be the damped
mean-shift interacting particle step of Belhadji, Sharp and Marzouk (arXiv 2502.10600). `optimise`
may be called, and `direction` by benchmarks; only `evaluate` reads the data.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxspec.kernels import Kernel
from jaxspec.specify.variable_projection import (
    Data,
    Evaluation,
    evaluate,
    inverse_factor,
    matmul,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, Bool, Float, Int

__all__ = ["State", "direction", "each", "optimise"]

T = TypeVar("T")
CG_STEPS = 5
DAMPING = 0.03


class State(NamedTuple):
    """The state of the optimisation of b sets; every leaf but `step` has a leading axis b.

    Attributes:
        best: the best points so far.
        damping: (b,), in units of the matrix's mean diagonal.
        iterations: (b,), evaluations after that of the first points.
        done: (b,), whether the set has stopped.
        step: scalar, steps that have been taken; -1 until the first points are evaluated.
    """

    best: Evaluation
    damping: Array
    iterations: Array
    done: Array
    step: Array


def direction(
    at: Evaluation, damping: Float[Array, ""], metric: str
) -> tuple[Float[Array, "m d"], Float[Array, ""]]:
    """Return the damped Gauss-Newton step and the decrease that its quadratic model predicts.

    Args:
        at: the objective at the points.
        damping: added to the diagonal, in units of the matrix's mean diagonal.
        metric: the kernel's, 'sqeuclidean' or 'cityblock'.
    """
    points, beta = at.points, at.weights[:, None]
    m = points.shape[0]
    scale = jnp.mean(jnp.square(at.weights)) * at.kappa[0, 0]
    scale = jnp.where(scale > 0, scale, 1.0)
    floor = 4.0 * m * float(jnp.finfo(points.dtype).eps)
    leading = beta * at.kappa * beta.T + (damping + floor) * scale * jnp.eye(m, dtype=points.dtype)
    _, leading_factor = inverse_factor(leading)
    gradient = beta * at.residual

    def product(x: Array) -> Array:
        """Apply the damped Gauss-Newton matrix; what new weights would correct is projected out."""
        y = beta * x
        if metric == "cityblock":  # without a second derivative there is only the leading part
            return beta * matmul(at.kappa, y) + damping * scale * x
        along = matmul(points, y.T) - (points * y).sum(1)[None, :]  # (U_j - U_l) . y_l
        factor = at.inverse_cholesky
        fixed = matmul(factor.T, matmul(factor, (at.kappa * along).sum(1)))  # the weights' response
        mixed = at.kappa * fixed[None, :] - at.rho * along
        curved = mixed.sum(1)[:, None] * points - matmul(mixed, points)
        return beta * (matmul(at.kappa, y) + curved) + damping * scale * x

    # `jax.scipy.sparse.linalg.cg` takes the same steps 18 to 22 % slower (8 sets with m = 50 and
    # d = 64 in float32 on one core: 1.8 to 2.2 ms instead of 1.5 to 1.8).
    def conjugate(_: int, state: tuple[Array, ...]) -> tuple[Array, ...]:
        step, left, search, rate = state
        image = product(search)
        curvature = jnp.vdot(search, image, precision="highest")
        length = jnp.where(curvature > 0, rate / jnp.where(curvature > 0, curvature, 1.0), 0.0)
        step, left = step + length * search, left - length * image
        better = matmul(leading_factor.T, matmul(leading_factor, left))
        new_rate = jnp.vdot(left, better, precision="highest")
        ratio = jnp.where(rate > 0, new_rate / jnp.where(rate > 0, rate, 1.0), 0.0)
        return step, left, better + ratio * search, new_rate

    start = matmul(leading_factor.T, matmul(leading_factor, -gradient))
    state = (
        jnp.zeros_like(points),
        -gradient,
        start,
        jnp.vdot(-gradient, start, precision="highest"),
    )
    step, left, _, _ = jax.lax.fori_loop(0, CG_STEPS, conjugate, state)
    # The objective's model is 2 g.s + s.H s; with H s = -g - left that is g.s - left.s.
    return step, jnp.vdot(left - gradient, step, precision="highest")


def optimise(
    kernel: Kernel,
    points: Float[Array, "b m d"],
    data: Data,
    active: Bool[Array, " m"],
    nonnegative: bool,
    max_iterations: Int[Array, ""],
    tolerance: Float[Array, " b"],
) -> State:
    """Return the optimised points of b reduced sets.

    Every iteration evaluates the objective once. The damping falls after a step that lowered the
    objective and rises after one that did not. A set stops when a step gains, or is predicted to
    gain, less than its tolerance.

    Args:
        kernel: the kernel of all sets.
        points: the first points.
        data: the data of the b sets, with a leading axis b.
        active: false for a point that is padding.
        nonnegative: whether the weights are held nonnegative.
        max_iterations: largest number of evaluations after that of the first points.
        tolerance: a squared MMD per set.
    """
    sets, m, dtype = points.shape[0], points.shape[1], points.dtype
    least = jnp.maximum(tolerance, 0.25 * float(jnp.finfo(dtype).eps))  # less would be rounding
    valued = each(lambda points, data: evaluate(kernel, points, data, active, nonnegative))
    stepped = each(partial(direction, metric=kernel.metric))

    def first(best: Evaluation, damping: Array) -> tuple[Array, Array]:
        return jnp.zeros_like(best.points), jnp.zeros_like(damping)

    def advance(state: State) -> State:
        step, predicted = jax.lax.cond(state.step < 0, first, stepped, state.best, state.damping)
        trial = valued(state.best.points + step, data)
        gain = state.best.value - trial.value
        success = (gain > 0) & ~state.done  # false for NaN
        best = jax.tree.map(partial(_where, success), trial, state.best)
        damping = jnp.where(success, jnp.maximum(0.3 * state.damping, 1e-6), 4.0 * state.damping)
        done = (jnp.where(success, gain, predicted) < least) & (state.step >= 0)
        return State(
            best,
            damping,
            jnp.where(state.done, state.iterations, state.iterations + 1),
            state.done | done | (damping > 1e6),
            state.step + 1,
        )

    # The first points are tried like all others, against a value of infinity: the program then has
    # one copy of the evaluation, which halves the time to compile.
    square = jnp.zeros((sets, m, m), dtype)
    nothing = Evaluation(
        points,
        jnp.zeros((sets, m), dtype),
        jnp.full(sets, jnp.inf, dtype),
        jnp.zeros_like(points),
        square,
        square,
        square,
    )
    start = State(
        nothing,
        jnp.full(sets, DAMPING / 0.3, dtype),
        jnp.full(sets, -1),
        jnp.zeros(sets, bool),
        jnp.asarray(-1),
    )
    return jax.lax.while_loop(lambda s: ~s.done.all() & (s.step < max_iterations), advance, start)


def each(function: Callable[..., T]) -> Callable[..., T]:
    """Return the function mapped over a leading axis; an axis of length one is dropped instead.

    XLA's products for a batch of one are slower than without a batch: a step took 86 ms with it,
    70 ms without.
    """

    def call(*arguments: object) -> T:
        if jax.tree.leaves(arguments)[0].shape[0] > 1:
            return jax.vmap(function)(*arguments)
        found = function(*jax.tree.map(lambda leaf: leaf[0], arguments))
        return jax.tree.map(lambda leaf: leaf[None], found)

    return call


def _where(which: Array, new: Array, old: Array) -> Array:
    """Return `new` (b, ...) where `which` (b,) is true, and `old` elsewhere."""
    return jnp.where(which.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
