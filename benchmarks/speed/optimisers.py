"""Rival optimisers of reduced sets, which `benchmarks.speed.specifications` compares with jaxspec.

All of them minimise the objective of the library: with the best weights for given points U,

    f(U) = min_beta || sum_j beta_j k(U_j, .) - 1/n sum_i k(Z_i, .) ||_H^2 + constant

for a Gaussian kernel, from the points that `js.reduce_set` itself starts from. `RIVALS` maps a name
to a function of (start, rows, bandwidth), and `rival` makes a complete method of it. Everything
here is written for the comparison only: one block of data, no weights of rows, no input checks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxspec as js

__all__ = ["RIVALS", "Point", "evaluate", "rival"]

Array = Any
Objective = Callable[[Array], "Point"]
JITTER = 2.0  # times m eps: the size of the rounding in the Cholesky factor

matmul = partial(jnp.matmul, precision="highest")


class Point(NamedTuple):
    """Points with their best weights, and what an optimiser needs to know there."""

    points: Array  # (m, d)
    weights: Array  # (m,)
    value: Array  # the objective, without the squared norm of the embedding of the data
    residual: Array  # (m, d); the gradient of the value is 2 weights residual
    curvature: Array  # (m, m): Gram matrix of the points over the squared bandwidth
    half: Array  # (m, m): L^-1, where L L^T is the Gram matrix with jitter

    @property
    def gradient(self) -> Array:
        """Gradient of the value in the points, (m, d)."""
        return 2.0 * self.weights[:, None] * self.residual


def evaluate(points: Array, rows: Array, bandwidth: Array) -> Point:
    """Return the objective at points (m, d) for rows (n, d), both centred."""
    own, cross = _gram(points, points, bandwidth), _gram(points, rows, bandwidth)
    target = cross.mean(axis=1)
    jitter = JITTER * len(points) * jnp.finfo(points.dtype).eps
    lower, half = inverse_factor(own + jitter * jnp.eye(len(points), dtype=points.dtype))
    weights = jax.scipy.linalg.cho_solve((lower, True), target)
    weights += jax.scipy.linalg.cho_solve((lower, True), target - matmul(own, weights))
    value = matmul(weights, matmul(own, weights) - 2.0 * target)
    inner = own * weights
    pull = (target - inner.sum(axis=1))[:, None] * points
    pull += matmul(inner, points) - matmul(cross, rows) / len(rows)
    return Point(points, weights, value, pull / bandwidth**2, own / bandwidth**2, half)


def _gram(x: Array, y: Array, bandwidth: Array) -> Array:
    squared = jnp.square(x).sum(axis=1)[:, None] + jnp.square(y).sum(axis=1)
    return jnp.exp(jnp.minimum(matmul(x, y.T) - 0.5 * squared, 0.0) / bandwidth**2)


def inverse_factor(matrix: Array) -> tuple[Array, Array]:
    """Return the Cholesky factor L of a positive definite matrix, and L^-1."""
    lower = jnp.linalg.cholesky(matrix)
    eye = jnp.eye(len(matrix), dtype=matrix.dtype)
    return lower, jax.scipy.linalg.solve_triangular(lower, eye, lower=True)


# The rivals: each goes `steps` steps from a point.


def gradient_descent(at: Point, objective: Objective, *, steps: int, rate: float) -> Point:
    """Take gradient steps of a fixed rate on the points; the best weights follow after each."""
    return jax.lax.fori_loop(0, steps, lambda _, at: objective(at.points - rate * at.gradient), at)


def mean_shift(at: Point, objective: Objective, *, steps: int) -> Point:
    """Take undamped steps of interacting particles (Belhadji et al., arXiv 2502.10600)."""

    def step(_: Any, at: Point) -> Point:
        solved = matmul(at.half.T, matmul(at.half, at.residual)) / at.curvature[0, 0]
        weights = jnp.where(jnp.abs(at.weights) > 1e-6, at.weights, 1e-6)
        return objective(at.points - solved / weights[:, None])

    return jax.lax.fori_loop(0, steps, step, at)


def damped_leading_part(at: Point, objective: Objective, *, steps: int) -> Point:
    """Take Levenberg-Marquardt steps with the m x m leading part of the Gauss-Newton matrix."""
    eye = jnp.eye(len(at.points), dtype=at.points.dtype)

    def step(_: Any, state: tuple[Point, Array]) -> tuple[Point, Array]:
        at, damping = state
        weights = at.weights[:, None]
        scale = jnp.mean(at.weights**2) * at.curvature[0, 0]
        matrix = weights * at.curvature * weights.T + (damping + 1e-5) * scale * eye
        half = inverse_factor(matrix)[1]
        trial = objective(at.points - matmul(half.T, matmul(half, weights * at.residual)))
        success = trial.value < at.value
        damping = jnp.where(success, jnp.maximum(0.3 * damping, 1e-6), 4 * damping)
        return jax.tree.map(partial(jnp.where, success), trial, at), damping

    return jax.lax.fori_loop(0, steps, step, (at, jnp.asarray(0.03, at.points.dtype)))[0]


def optax_lbfgs(at: Point, objective: Objective, *, steps: int) -> Point:
    """Take steps of `optax.lbfgs` with its zoom line search."""

    @jax.custom_vjp
    def value_of(points: Array) -> Array:
        return objective(points).value

    def forward(points: Array) -> tuple[Array, Array]:
        found = objective(points)
        return found.value, found.gradient

    value_of.defvjp(forward, lambda gradient, g: (g * gradient,))
    solver = optax.lbfgs(memory_size=10)
    value_and_grad = optax.value_and_grad_from_state(value_of)

    def step(_: Any, carry: tuple[Array, Any]) -> tuple[Array, Any]:
        points, state = carry
        value, gradient = value_and_grad(points, state=state)
        updates, state = solver.update(
            gradient, state, points, value=value, grad=gradient, value_fn=value_of
        )
        return optax.apply_updates(points, updates), state

    start = (at.points, solver.init(at.points))
    return objective(jax.lax.fori_loop(0, steps, step, start)[0])


def short_lbfgs(
    at: Point, objective: Objective, *, steps: int, memory: int = 10, preconditioned: bool = False
) -> Point:
    """Take L-BFGS steps with one evaluation each; a step without gain is shortened and retried.

    With `preconditioned` the first metric of the two loops is the inverse of the leading part.
    """
    eye = jnp.eye(len(at.points), dtype=at.points.dtype)

    def direction(at: Point, moves: Array, bends: Array, rates: Array) -> Array:
        q, factors = at.gradient, []
        for i in range(memory):
            factors.append(rates[i] * jnp.vdot(moves[i], q))
            q = q - factors[i] * bends[i]
        if preconditioned:
            weights = at.weights[:, None]
            scale = jnp.mean(at.weights**2) * at.curvature[0, 0]
            half = inverse_factor(weights * at.curvature * weights.T + 0.05 * scale * eye)[1]
            q = 0.5 * matmul(half.T, matmul(half, q))
        else:
            length = jnp.vdot(bends[0], bends[0]) * rates[0]
            first = 0.1 / jnp.maximum(jnp.abs(q).max(), 1e-30)
            q = q * jnp.where(length > 0, 1.0 / jnp.where(length > 0, length, 1.0), first)
        for i in reversed(range(memory)):
            q = q + moves[i] * (factors[i] - rates[i] * jnp.vdot(bends[i], q))
        return -q

    def step(_: Any, state: Any) -> Any:
        at, moves, bends, rates, shrink = state
        move = shrink * direction(at, moves, bends, rates)
        trial = objective(at.points + move)
        success = trial.value < at.value
        bend = trial.gradient - at.gradient
        product = jnp.vdot(move, bend)
        keep = success & (product > 1e-12)

        def push(stack: Array, new: Array) -> Array:
            return jnp.where(keep, jnp.roll(stack, 1, axis=0).at[0].set(new), stack)

        rate = 1.0 / jnp.where(product > 0, product, 1.0)
        at = jax.tree.map(partial(jnp.where, success), trial, at)
        shrink = jnp.where(success, 1.0, 0.4 * shrink)
        return at, push(moves, move), push(bends, bend), push(rates, rate), shrink

    zero = jnp.zeros((memory, *at.points.shape), at.points.dtype)
    rates, one = jnp.zeros(memory, zero.dtype), jnp.ones((), zero.dtype)
    return jax.lax.fori_loop(0, steps, step, (at, zero, zero, rates, one))[0]


RIVALS: dict[str, Callable[..., Point]] = {
    "gradient descent, 40 steps": partial(gradient_descent, steps=40, rate=10.0),
    "mean-shift particles, undamped, 10": partial(mean_shift, steps=10),
    "leading part, damped, 10": partial(damped_leading_part, steps=10),
    "L-BFGS (optax), 10": partial(optax_lbfgs, steps=10),
    "L-BFGS (one evaluation per step), 20": partial(short_lbfgs, steps=20),
    "L-BFGS (the same, preconditioned), 10": partial(short_lbfgs, steps=10, preconditioned=True),
}


def rival(
    method: Callable[..., Point], Z: np.ndarray, *, size: int, kernel: js.Gaussian
) -> Callable[[int], list[tuple[Array, Array]]]:
    """Return a function of a seed that gives [(points, weights)] of a rival's reduced set.

    Its time includes that of the start, which is the start of the library for the same seed.
    """

    @jax.jit
    def improve(points: Array, rows: Array, bandwidth: Array) -> tuple[Array, Array]:
        origin = rows.mean(axis=0)
        objective = partial(evaluate, rows=rows - origin, bandwidth=bandwidth)
        found = method(objective(points - origin), objective)
        return found.points + origin, found.weights

    def call(seed: int) -> list[tuple[Array, Array]]:
        key = jax.random.key(seed)
        start = js.reduce_set(Z, size=size, kernel=kernel, key=key, max_iterations=0)
        return [jax.block_until_ready(improve(start.points, Z, kernel.bandwidth))]

    return call
