"""Levenberg-Marquardt on the points of many reduced sets at once.

The Gauss-Newton matrix of `jaxspec.specify.variable_projection` involves the m points only, no data: products with
it cost m^2 d, a data pass n m d. A few conjugate-gradient steps on it, preconditioned by its
leading part diag(beta) kappa(U, U) diag(beta) (x) I, therefore cost a fraction of the pass. With
that part alone the step is the mean-shift interacting particle step of Belhadji, Sharp and
Marzouk (arXiv 2502.10600) damped. Measured by `benchmarks/reduced_set.py`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.kernels.kernels import Kernel
from jaxspec.specify.variable_projection import Data, Point, evaluate, inverse_factor, matmul

__all__ = ["State", "direction", "each", "optimise"]

Array = Any
CG_STEPS = 5
DAMPING = 0.03


class State(NamedTuple):
    """Of b sets: leaves have a leading axis b, but for `step`."""

    best: Point
    damping: Array
    iterations: Array
    done: Array
    step: Array  # scalar: of the sets that are not done; -1 before the start is evaluated


def direction(at: Point, damping: Array, metric: str) -> tuple[Array, Array]:
    """Return the damped Gauss-Newton step (m, d) and the decrease that its model predicts."""
    points, beta = at.points, at.weights[:, None]
    m = points.shape[0]
    scale = jnp.mean(jnp.square(at.weights)) * at.kappa[0, 0]
    scale = jnp.where(scale > 0, scale, 1.0)
    floor = 4.0 * m * float(jnp.finfo(points.dtype).eps)
    leading = beta * at.kappa * beta.T + (damping + floor) * scale * jnp.eye(m, dtype=points.dtype)
    _, factor = inverse_factor(leading)
    gradient = beta * at.residual

    def product(x: Array) -> Array:
        """Apply the Gauss-Newton matrix, projected on what the weights cannot do, plus damping."""
        y = beta * x
        if metric == "cityblock":  # no second derivative: the leading part stands for the whole
            return beta * matmul(at.kappa, y) + damping * scale * x
        along = matmul(points, y.T) - (points * y).sum(1)[None, :]  # (U_j - U_l) . y_l
        fixed = matmul(
            at.half.T, matmul(at.half, (at.kappa * along).sum(1))
        )  # the weights' own answer
        mixed = at.kappa * fixed[None, :] - at.rho * along
        curved = mixed.sum(1)[:, None] * points - matmul(mixed, points)
        return beta * (matmul(at.kappa, y) + curved) + damping * scale * x

    def conjugate(_: int, state: tuple[Array, ...]) -> tuple[Array, ...]:
        step, left, search, rate = state
        image = product(search)
        curvature = jnp.vdot(search, image, precision="highest")
        length = jnp.where(curvature > 0, rate / jnp.where(curvature > 0, curvature, 1.0), 0.0)
        step, left = step + length * search, left - length * image
        better = matmul(factor.T, matmul(factor, left))
        new_rate = jnp.vdot(left, better, precision="highest")
        ratio = jnp.where(rate > 0, new_rate / jnp.where(rate > 0, rate, 1.0), 0.0)
        return step, left, better + ratio * search, new_rate

    start = matmul(factor.T, matmul(factor, -gradient))
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
    points: Array,
    data: Data,
    active: Array,
    nonnegative: bool,
    max_iterations: Array,
    tolerance: Array,
) -> State:
    """Levenberg-Marquardt: one evaluation an iteration, damping up on failure, down on success.

    Stops when a step gains, or is predicted to gain, less than `tolerance`, a squared MMD.

    Args:
        kernel: of all sets.
        points: (b, m, d), the start.
        data: of b sets.
        active: (m,) bool.
        nonnegative: whether weights are.
        max_iterations: scalar.
        tolerance: (b,).
    """
    sets, m, dtype = points.shape[0], points.shape[1], points.dtype
    least = jnp.maximum(tolerance, 0.25 * jnp.finfo(dtype).eps)  # below is rounding
    valued = each(lambda points, data: evaluate(kernel, points, data, active, nonnegative))
    stepped = each(partial(direction, metric=kernel.metric))

    def first(best: Point, damping: Array) -> tuple[Array, Array]:
        return jnp.zeros_like(best.points), jnp.zeros_like(damping)

    def advance(state: State) -> State:
        step, predicted = jax.lax.cond(state.step < 0, first, stepped, state.best, state.damping)
        trial = valued(state.best.points + step, data)
        gain = state.best.value - trial.value
        success = (gain > 0) & ~state.done  # False for NaN
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

    # The start is a trial like any other: any value is better than infinity. One copy of the
    # evaluation halves the compilation.
    square = jnp.zeros((sets, m, m), dtype)
    nothing = Point(
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


def each(function: Any) -> Any:
    """Return the function over a leading axis; an axis of one is taken off, not mapped over.

    XLA has slower products for a batch of one than for no batch: 70 against 86 ms a step.
    """

    def call(*arguments: Any) -> Any:
        if jax.tree.leaves(arguments)[0].shape[0] > 1:
            return jax.vmap(function)(*arguments)
        found = function(*jax.tree.map(lambda leaf: leaf[0], arguments))
        return jax.tree.map(lambda leaf: leaf[None], found)

    return call


def _where(which: Array, new: Array, old: Array) -> Array:
    """Return new (b, ...) where `which` (b,) is true, else old."""
    return jnp.where(which.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
