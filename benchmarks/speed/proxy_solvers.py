"""Rival solvers of linear proxies, which `benchmarks.speed.specifications` compares with jaxspec.

All of them minimise the objective of `js.fit_proxy` without a teacher,

    1/n sum_i CE(y_i, softmax(z_i W + b)) + ridge/2 |W|_F^2,

in centred features, in units of their root mean square, to a gradient norm of `TOLERANCE`.
`problem_of` makes the problem and `SOLVERS` maps a name to a function of it, which returns the
unknowns, the gradient norm and the steps taken. `logistic` is the model of scikit-learn and
`gradient_norm` judges any solution in float64 numpy.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

__all__ = ["SOLVERS", "TOLERANCE", "Problem", "gradient_norm", "logistic", "problem_of"]

Array = Any
Solution = tuple[Array, Array, Array]  # unknowns (C, d + 1), gradient norm, steps
TOLERANCE = 1e-5
ENOUGH = 0.9  # share of the slope that an accepted step may leave along its direction
TRIALS = 20  # at most, of one line search

matmul = partial(jnp.matmul, precision="highest")


class Problem(NamedTuple):
    """The objective in the unknowns v (C, d + 1): weights in units of the features, and the bias.

    Classes come first, so that a softmax reduces over the slow axis.
    """

    x: Array  # (n, d + 1): centred features in units of s, and a column of ones
    target: Array  # (C, n): one-hot labels over n
    mass: Array  # (n,): column sums of the target
    penalty: Array  # (d + 1,): ridge / s^2, and zero for the bias

    def logits(self, v: Array) -> Array:
        """Return the logits, (C, n)."""
        return matmul(v, self.x.T)

    def probabilities(self, v: Array) -> Array:
        """Return the class probabilities, (C, n)."""
        return jax.nn.softmax(self.logits(v), axis=0)

    def gradient(self, v: Array, p: Array) -> Array:
        """Return the gradient where the probabilities are p."""
        return matmul(self.mass * p - self.target, self.x) + self.penalty * v


def problem_of(features: np.ndarray, labels: np.ndarray, classes: int, ridge: float) -> Problem:
    """Return the problem of features (n, d) and labels (n,)."""
    centred = features - features.mean(axis=0)
    unit = np.sqrt(np.square(centred).mean())
    n, d = features.shape
    x = np.concatenate([centred / unit, np.ones((n, 1), features.dtype)], axis=1)
    target = np.eye(classes, dtype=features.dtype)[labels].T / n
    penalty = np.append(np.full(d, ridge / unit**2), 0.0)
    arrays = (x, target, target.sum(axis=0), penalty)
    return Problem(*(jnp.asarray(one, features.dtype) for one in arrays))


def _start(problem: Problem) -> tuple[Array, Array]:
    v = jnp.zeros((len(problem.target), problem.x.shape[1]), problem.x.dtype)
    return v, problem.gradient(v, problem.probabilities(v))


def _iterate(step: Callable[[Any], Any], state: Any, limit: int) -> Solution:
    """Repeat a step on (number, unknowns, gradient, ...) until the gradient is small."""

    def unconverged(state: Any) -> Array:
        return (state[0] < limit) & (jnp.linalg.norm(state[2]) > TOLERANCE)

    state = jax.lax.while_loop(unconverged, step, state)
    return state[1], jnp.linalg.norm(state[2]), state[0]


def _advance(problem: Problem, v: Array, g: Array, u: Array) -> tuple[Array, Array]:
    """Return the unknowns and the gradient after a line search along u.

    Newton steps on the slope, safeguarded by an interval; the logits are carried along, so that a
    trial costs one softmax and no product with the data.
    """
    logits, image = problem.logits(v), problem.logits(u)
    first = jnp.sum(g * u)

    def slopes(t: Array) -> tuple[Array, Array, Array]:
        p = jax.nn.softmax(logits + t * image, axis=0)
        slope = jnp.sum((problem.mass * p - problem.target) * image)
        slope += jnp.sum(problem.penalty * (v + t * u) * u)
        spread = (p * jnp.square(image)).sum(axis=0) - jnp.square((p * image).sum(axis=0))
        return p, slope, jnp.sum(problem.mass * spread) + jnp.sum(problem.penalty * u * u)

    def wrong(state: Any) -> Array:
        k, _, low, high, _, slope, _ = state
        return (k < TRIALS) & (jnp.abs(slope) > ENOUGH * jnp.abs(first)) & (low < high)

    def trial(state: Any) -> Any:
        k, t, low, high, _, slope, bend = state
        low, high = jnp.where(slope < 0, t, low), jnp.where(slope < 0, high, t)
        newton = t - slope / jnp.maximum(bend, 1e-30)
        middle = jnp.where(jnp.isfinite(high), 0.5 * (low + high), 2.0 * t)
        t = jnp.where((newton > low) & (newton < high), newton, middle)
        return k + 1, t, low, high, *slopes(t)

    one = jnp.ones((), v.dtype)
    state = (0, one, 0.0 * one, jnp.inf * one, *slopes(one))
    _, t, _, _, p, _, _ = jax.lax.while_loop(wrong, trial, state)
    v = v + t * u
    return v, problem.gradient(v, p)


def _bound_inverse(problem: Problem) -> Array:
    """Return the inverse of Boehning's bound of the Hessian, (d + 1, d + 1), for every class."""
    x, mass = problem.x, problem.mass
    return jnp.linalg.inv(0.5 * matmul((x * mass[:, None]).T, x) + jnp.diag(problem.penalty + 1e-6))


# The solvers


def newton_cg(problem: Problem, *, preconditioned: bool, limit: int = 60) -> Solution:
    """Newton's method; each system is solved by conjugate gradients to a part of its residual."""
    x, mass, penalty = problem.x, problem.mass, problem.penalty
    moment = matmul((x * mass[:, None]).T, x)

    def step(state: Any) -> Any:
        k, v, g = state
        p = problem.probabilities(v)
        curvature = jnp.sum(mass * p * (1 - p)) / (len(p) - 1) + 1e-6
        inverse = jnp.eye(len(moment), dtype=moment.dtype)
        if preconditioned:
            inverse = jnp.linalg.inv(curvature * moment + jnp.diag(penalty + 1e-6 * curvature))
        norm = jnp.linalg.norm(g)
        enough = jnp.maximum(jnp.minimum(0.1, jnp.sqrt(norm)) * norm, 0.3 * TOLERANCE)

        def inner(state: Any) -> Any:
            j, u, residual, direction, energy = state
            q = p * problem.logits(direction)
            image = matmul(mass * (q - p * q.sum(axis=0)), x) + penalty * direction
            length = energy / jnp.sum(direction * image)
            residual = residual - length * image
            z = matmul(residual, inverse)
            new = jnp.sum(residual * z)
            return j + 1, u + length * direction, residual, z + new / energy * direction, new

        z = matmul(-g, inverse)
        found = jax.lax.while_loop(
            lambda s: (s[0] < 200) & (jnp.linalg.norm(s[2]) > enough),
            inner,
            (0, jnp.zeros_like(g), -g, z, -jnp.sum(g * z)),
        )[1]
        return k + 1, *_advance(problem, v, g, found - found.mean(axis=0))

    return _iterate(step, (0, *_start(problem)), limit)


def bounded_lbfgs(problem: Problem, *, memory: int = 8, limit: int = 1000) -> Solution:
    """L-BFGS with Boehning's bound as its inner matrix."""
    inverse = _bound_inverse(problem)

    def step(state: Any) -> Any:
        k, v, g, moves, bends, rates = state
        q, factors = g, []
        for i in range(memory):
            factors.append(rates[i] * jnp.sum(moves[i] * q))
            q = q - factors[i] * bends[i]
        inner = matmul(bends[0], inverse)
        scale = jnp.where(k == 0, 1.0, 1 / (rates[0] * jnp.sum(bends[0] * inner) + 1e-30))
        z = scale * matmul(q, inverse)
        for i in reversed(range(memory)):
            z = z + (factors[i] - rates[i] * jnp.sum(bends[i] * z)) * moves[i]
        after, new = _advance(problem, v, g, -z)
        move, bend = after - v, new - g
        product = jnp.sum(move * bend)
        rate = jnp.where(product > 0, 1 / jnp.where(product > 0, product, 1.0), 0.0)
        return (
            k + 1,
            after,
            new,
            jnp.concatenate([move[None], moves[:-1]]),
            jnp.concatenate([bend[None], bends[:-1]]),
            jnp.append(rate, rates[:-1]),
        )

    v, g = _start(problem)
    history = jnp.zeros((memory, *v.shape), v.dtype)
    return _iterate(step, (0, v, g, history, history, jnp.zeros(memory, v.dtype)), limit)


def conjugate_gradients(problem: Problem, *, limit: int = 1000) -> Solution:
    """Nonlinear conjugate gradients (Polak-Ribiere+), preconditioned with Boehning's bound."""
    inverse = _bound_inverse(problem)

    def step(state: Any) -> Any:
        k, v, g, direction, z, energy = state
        new_z = matmul(g, inverse)
        new_energy = jnp.sum(g * new_z)
        beta = jnp.where(k == 0, 0.0, jnp.maximum(0, (new_energy - jnp.sum(g * z)) / energy))
        direction = beta * direction - new_z
        v, new = _advance(problem, v, g, direction)
        return k + 1, v, new, direction, new_z, new_energy

    v, g = _start(problem)
    start = (0, v, g, jnp.zeros_like(g), g, jnp.ones((), g.dtype))
    return _iterate(step, start, limit)


def majorise(problem: Problem, *, limit: int = 5000) -> Solution:
    """Boehning's own algorithm: fixed steps with the bound, which is factorised once."""
    inverse = _bound_inverse(problem)

    def step(state: Any) -> Any:
        k, v, g = state
        v = v - matmul(g, inverse)
        return k + 1, v, problem.gradient(v, problem.probabilities(v))

    return _iterate(step, (0, *_start(problem)), limit)


def dense_newton(problem: Problem, *, limit: int = 50) -> Solution:
    """Newton's method with the whole ((d + 1) C)^2 Hessian and one Cholesky factor per step."""
    x, classes, width = problem.x, len(problem.target), problem.x.shape[1]

    def step(state: Any) -> Any:
        k, v, g = state
        p = problem.probabilities(v)
        scaled = (p * jnp.sqrt(problem.mass)).T[:, :, None] * x[:, None, :]
        rows = scaled.reshape(len(x), -1)
        hessian = -matmul(rows.T, rows).reshape(classes, width, classes, width)
        blocks = jnp.einsum("ni,kn,nj->kij", x, problem.mass * p, x) + jnp.diag(problem.penalty)
        index = jnp.arange(classes)
        hessian = hessian.at[index, :, index, :].add(blocks)
        # A vector added to all classes changes no probability: without this term it is singular.
        hessian = hessian + jnp.eye(width)[None, :, None, :] / classes
        hessian = hessian.reshape(classes * width, -1) + 1e-7 * jnp.eye(classes * width)
        factor = jax.scipy.linalg.cho_factor(hessian, lower=True)
        u = -jax.scipy.linalg.cho_solve(factor, g.reshape(-1)).reshape(g.shape)
        return k + 1, *_advance(problem, v, g, u)

    return _iterate(step, (0, *_start(problem)), limit)


def optax_lbfgs(problem: Problem, *, limit: int = 1000) -> Solution:
    """`optax.lbfgs` with its zoom line search."""

    def objective(v: Array) -> Array:
        log_p = jax.nn.log_softmax(problem.logits(v), axis=0)
        return -jnp.sum(problem.target * log_p) + 0.5 * jnp.sum(problem.penalty * v * v)

    solver = optax.lbfgs(memory_size=8)
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(state: Any) -> Any:
        k, v, _, inner = state
        value, g = value_and_grad(v, state=inner)
        move, inner = solver.update(g, inner, v, value=value, grad=g, value_fn=objective)
        return k + 1, optax.apply_updates(v, move), optax.tree.get(inner, "grad"), inner

    v, g = _start(problem)
    return _iterate(step, (0, v, g, solver.init(v)), limit)


SOLVERS: dict[str, Callable[[Problem], Solution]] = {
    "optax.lbfgs": optax_lbfgs,
    "L-BFGS, Boehning's bound": bounded_lbfgs,
    "Newton-CG": partial(newton_cg, preconditioned=False),
    "Newton-CG, mean curvature": partial(newton_cg, preconditioned=True),
    "conjugate gradients, Boehning's bound": conjugate_gradients,
    "Boehning": majorise,
    "dense Newton": dense_newton,
}


# scikit-learn, and the judge


def logistic(
    features: np.ndarray, labels: np.ndarray, *, ridge: float, tolerance: float = 1e-6
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (d, C) and bias (C,) of scikit-learn for the objective of the library.

    Its tolerance is on the largest entry of the mean gradient: 1e-6 gives a norm near 1e-5.
    """
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(C=1 / (len(labels) * ridge), tol=tolerance, max_iter=2000)
        model.fit(features, labels)
    return model.coef_.T, model.intercept_


def gradient_norm(
    features: np.ndarray, labels: np.ndarray, weights: Any, bias: Any, *, ridge: float
) -> float:
    """Return the norm of the gradient over (s W, b) in float64, s the unit of the features."""
    x, weights = features.astype(np.float64), np.asarray(weights, np.float64)
    centred = x - x.mean(axis=0)
    logits = x @ weights + np.asarray(bias, np.float64)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    residual = p / p.sum(axis=1, keepdims=True) - np.eye(weights.shape[1])[labels]
    slope = centred.T @ residual / len(x) + ridge * weights
    unit = np.sqrt(np.square(centred).mean())
    return float(np.hypot(np.linalg.norm(slope) / unit, np.linalg.norm(residual.mean(axis=0))))
