"""The convex problem behind a linear proxy, and the solver that minimises it.

`Problem` is the objective in preconditioned unknowns, `prepare` makes it from padded arrays, and
`minimise` solves it by the L-BFGS of optax. Everything can be traced; arguments are checked and
padded in `proxy_inputs.py`, never here.

The columns are preconditioned: in units s_j = sqrt(var_j + ridge / h), where h is the curvature of
the softmax at equal probabilities, the Hessian at the start has one number on its whole diagonal,
whatever the scales of the columns. The objective stays the documented one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxspec.specify.variable_projection import matmul

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

__all__ = ["Problem", "minimise", "prepare"]

MEMORY = 8  # pairs of steps and gradient differences that L-BFGS keeps


class Problem(NamedTuple):
    """The objective as a function of the unknowns v = (s W, b), an array (C, d + 1).

    Classes come first, so that logits are v @ x.T and a softmax reduces over the slow axis: on two
    cores with n = 1024, d = 64 and C = 5 a softmax took 6.5 us instead of 17, and the two products
    of a step 36 us instead of 176.

    Attributes:
        x: (n, d + 1), centred features in units of s, and a column of ones.
        target: (C, n), the weighted sum of labels and teacher.
        penalty: (d + 1,), ridge / s_j^2, and zero for the bias.
        valid: (C, 1), one for a class, zero for padding.
        tolerance: on the Frobenius norm of the gradient.
    """

    x: Array
    target: Array
    penalty: Array
    valid: Array
    tolerance: Array

    def logits(self, v: Array) -> Array:
        """Return the logits (C, n) at v."""
        return matmul(v, self.x.T)

    def log_softmax(self, logits: Array) -> Array:
        """Return the log-probabilities (C, n) of logits; padding has probability zero."""
        lowest = jnp.finfo(logits.dtype).min
        return jax.nn.log_softmax(jnp.where(self.valid > 0, logits, lowest), axis=0)

    def value(self, v: Array) -> Array:
        """Return the objective at v, without its constant part."""
        log_p = self.log_softmax(self.logits(v)) * self.valid
        ridge = 0.5 * jnp.sum(self.penalty[None, :] * jnp.square(v))
        return ridge - jnp.sum(self.target * log_p)

    def centre(self, v: Array) -> Array:
        """Return v with mean zero over the classes, and zeros in the padding."""
        mean = v.sum(axis=0, keepdims=True) / jnp.maximum(self.valid.sum(), 1)
        return (v - mean) * self.valid


class Prepared(NamedTuple):
    """A problem and what leads back from its unknowns to the proxy.

    Attributes:
        problem: the objective.
        origin: (d,), the mean of the features.
        units: (d,), s_j.
        constant: the part of the documented objective that no unknown changes.
    """

    problem: Problem
    origin: Array
    units: Array
    constant: Array


def prepare(
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    teacher: Float[Array, "n C"],
    row_mask: Float[Array, " n"],
    class_mask: Float[Array, " C"],
    teacher_weight: Float[Array, ""],
    ridge: Float[Array, ""],
    tolerance: Float[Array, ""],
) -> Prepared:
    """Return the problem of padded arrays.

    Args:
        features: rows of zeros are padding.
        labels: -1 for no label.
        teacher: rows of zeros for no teacher.
        row_mask: one for a row, zero for padding.
        class_mask: one for a class, zero for padding.
        teacher_weight: weight of the divergence from the teacher.
        ridge: of the documented objective, in the features' own units.
        tolerance: on the norm of the gradient over the unknowns.
    """
    dtype, classes = features.dtype, class_mask.shape[0]
    weight = row_mask / jnp.maximum(row_mask.sum(), 1)
    # Uncentred features at an offset of 100 leave a gradient above 1e-3 in float32. The second
    # mean takes off the rounding of the first.
    origin = matmul(weight, features)
    origin = origin + matmul(weight, features - origin[None, :])
    x = (features - origin[None, :]) * row_mask[:, None]
    one_hot = labels[None, :] == jnp.arange(classes, dtype=labels.dtype)[:, None]
    target = (one_hot.astype(dtype) + teacher_weight * teacher.T) * weight[None, :]
    share = 1 / jnp.maximum(class_mask.sum(), 2)
    curvature = jnp.maximum(target.sum(), float(jnp.finfo(dtype).tiny)) * share * (1 - share)
    units = jnp.sqrt(matmul(weight, jnp.square(x)) + ridge / curvature)
    units = jnp.where(units > 0, units, 1)
    x = jnp.concatenate([x / units[None, :], jnp.ones_like(x[:, :1])], axis=1)
    penalty = jnp.append(ridge / jnp.square(units), jnp.zeros((), dtype))
    entropy = jnp.sum(weight * jax.scipy.special.xlogy(teacher, teacher).sum(axis=1))
    problem = Problem(x, target, penalty, class_mask[:, None], tolerance)
    return Prepared(problem, origin, units, teacher_weight * entropy)


def minimise(
    problem: Problem, max_iterations: Int[Array, ""]
) -> tuple[Float[Array, "C D"], Float[Array, ""], Int[Array, ""]]:
    """Return the minimiser, the norm of its gradient and the number of L-BFGS steps."""
    solver = optax.lbfgs(memory_size=MEMORY)
    value_and_gradient = optax.value_and_grad_from_state(problem.value)

    def unconverged(state: tuple[Array, Array, Array, optax.OptState]) -> Array:
        steps, _, gradient, _ = state
        return (steps < max_iterations) & (jnp.linalg.norm(gradient) > problem.tolerance)

    def step(
        state: tuple[Array, Array, Array, optax.OptState],
    ) -> tuple[Array, Array, Array, optax.OptState]:
        steps, v, _, inner = state
        value, gradient = value_and_gradient(v, state=inner)
        move, inner = solver.update(
            gradient, inner, v, value=value, grad=gradient, value_fn=problem.value
        )
        return steps + 1, optax.apply_updates(v, move), optax.tree.get(inner, "grad"), inner

    v = jnp.zeros((problem.target.shape[0], problem.x.shape[1]), problem.x.dtype)
    gradient = jax.grad(problem.value)
    start = (jnp.zeros((), jnp.int32), v, gradient(v), solver.init(v))
    # Where float64 is enabled, optax keeps numbers of its own in it also for float32 features.
    with jax.numpy_dtype_promotion("standard"):
        steps, v, _, _ = jax.lax.while_loop(unconverged, step, start)
    v = problem.centre(v)
    norm = jnp.linalg.norm(gradient(v))
    return jnp.where(jnp.isnan(norm), jnp.nan, v), norm, steps
