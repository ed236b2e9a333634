"""Fine-tuning of a model on a few labelled examples, stopped by cross-validation.

May be called: `fine_tune`, which returns a `FineTuned`. The model is any pure function of
parameters and inputs. Nothing here draws random numbers or changes the parameters that it is
given.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxspec.base import as_labels, as_size, to_numpy
from jaxspec.reuse.folds import stratified_folds

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PyTree
    from numpy.typing import ArrayLike

    Apply = Callable[[PyTree, Array], Array]
    Head = tuple[Float[Array, "h C"], Float[Array, " C"]] | None
    State = tuple[PyTree, Head]  # the model's parameters and its new head

__all__ = ["FineTuned", "fine_tune"]

# One object for all calls: the optimiser is a static argument, and another would compile again.
DEFAULT_OPTIMISER = optax.adam(1e-3)


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """A fine-tuned model; call it with inputs for probabilities (n, num_classes).

    Attributes:
        apply: the function that was given.
        parameters: its tuned parameters.
        head: (weights (h, C), bias (C,)) of the new head, or None if the model's own was kept.
        steps: number of optimiser steps, as chosen by cross-validation.
        losses: (max_steps + 1,) cross-validated loss before the first step and after every step,
            mean over examples in nats; empty if there was nothing to validate on.
    """

    apply: Apply
    parameters: PyTree
    head: Head
    steps: int
    losses: Float[np.ndarray, " steps"]

    def __call__(self, inputs: ArrayLike | Array) -> Float[Array, "n C"]:
        """Return probabilities (n, num_classes)."""
        return jax.nn.softmax(_logits(self.apply, (self.parameters, self.head), _on_jax(inputs)))


def fine_tune(
    apply: Apply,
    parameters: PyTree,
    inputs: ArrayLike | Array,
    labels: ArrayLike | Array,
    *,
    num_classes: int,
    new_head: bool = True,
    optimiser: optax.GradientTransformation | None = None,
    max_steps: int = 120,
    folds: int = 5,
) -> FineTuned:
    """Continue to train all parameters of a model, with full batches and early stopping.

    K-fold cross-validation gives the loss on left-out examples after every step; the number of
    steps with the smallest loss is then taken on all examples. Where a class has one example only
    there is nothing to validate on, and half of `max_steps` are taken.

    Args:
        apply: pure function (parameters, inputs) -> (n, h), features or logits; for a flax module
            `module.apply`, with dropout off.
        parameters: any tree of arrays, such as flax's.
        inputs: (n, ...) array.
        labels: (n,) integers in 0..num_classes-1.
        num_classes: of the user.
        new_head: add a linear layer, initially zero, after `apply`; False if its outputs already
            are logits over the user's classes.
        optimiser: of optax; Adam at 1e-3 if None.
        max_steps: the largest number of steps.
        folds: K; fewer if a class has fewer examples.

    Raises:
        TypeError, ValueError: an argument that is not as described; the message names it.
    """
    classes = as_size("num_classes", num_classes, minimum=2)
    limit = as_size("max_steps", max_steps)
    as_size("folds", folds, minimum=2)
    if not callable(apply):
        raise TypeError(f"apply: expected a function, got a {type(apply).__name__}")
    inputs = _on_jax(inputs)
    rows = inputs.shape[0] if inputs.ndim else 0
    if rows == 0:
        raise ValueError(f"inputs: expected at least one example, got shape {inputs.shape}")
    labels = np.asarray(as_labels("labels", labels, rows=rows, num_classes=classes))
    outputs = jax.eval_shape(apply, parameters, inputs)
    shape = outputs.shape
    if len(shape) != 2 or shape[0] != rows or (not new_head and shape[1] != classes):
        width = "h" if new_head else classes
        raise ValueError(f"apply: expected an output of shape ({rows}, {width}), got {shape}")
    head = None
    if new_head:
        dtype = jnp.promote_types(outputs.dtype, jnp.float32)  # float32 for bfloat16 models too
        head = (jnp.zeros((shape[1], classes), dtype), jnp.zeros(classes, dtype))
    optimiser = DEFAULT_OPTIMISER if optimiser is None else optimiser
    start = (jax.tree.map(jnp.asarray, parameters), head)
    fold, losses, steps = stratified_folds(labels, folds), np.zeros(0), limit // 2
    if fold is not None:
        trained_on = [(fold != i).astype(np.float32) for i in range(fold.max() + 1)]
        totals = [
            _validation_losses(apply, optimiser, limit, start, inputs, labels, mask)
            for mask in trained_on
        ]
        losses = np.sum([np.asarray(total) for total in totals], axis=0) / rows
        if not np.isfinite(losses[0]):
            raise ValueError("apply: expected finite outputs on the inputs, got NaN or infinity")
        steps = int(np.nanargmin(losses))
    tuned, head = _train(apply, optimiser, np.int32(steps), start, inputs, labels)
    return FineTuned(apply, tuned, head, steps, losses)


def _on_jax(inputs: ArrayLike | Array) -> Array:
    if isinstance(inputs, jax.Array):  # also a tracer, when a tuned model is called under jit
        return inputs
    array = to_numpy("inputs", inputs)
    if array.dtype == object:
        raise ValueError(f"inputs: expected an array, got {inputs!r:.80}")
    return jnp.asarray(array)


def _logits(apply: Apply, state: State, inputs: Array) -> Float[Array, "n C"]:
    parameters, head = state
    outputs = apply(parameters, inputs)
    if head is None:
        return outputs
    weights, bias = head
    return outputs.astype(weights.dtype) @ weights + bias[None, :]


def _cross_entropies(apply: Apply, state: State, inputs: Array, labels: Array) -> Array:
    """Return the cross-entropy of every example, (n,), in nats."""
    logits = _logits(apply, state, inputs)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def _step(
    apply: Apply,
    optimiser: optax.GradientTransformation,
    state: State,
    memory: PyTree,
    inputs: Array,
    labels: Array,
    weights: Float[Array, " n"],
) -> tuple[State, PyTree]:
    """Return the parameters and the optimiser's memory after one step on weighted examples."""

    def loss(state: State) -> Array:
        losses = _cross_entropies(apply, state, inputs, labels)
        return weights.astype(losses.dtype) @ losses / weights.sum().astype(losses.dtype)

    gradient = jax.grad(loss)(state)
    # Adam of optax multiplies floats with integer counters, which the strict setting refuses.
    with jax.numpy_dtype_promotion("standard"):
        updates, memory = optimiser.update(gradient, memory, state)
        return optax.apply_updates(state, updates), memory


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _validation_losses(
    apply: Apply,
    optimiser: optax.GradientTransformation,
    limit: int,
    start: State,
    inputs: Array,
    labels: Int[Array, " n"],
    trained_on: Float[Array, " n"],
) -> Float[Array, " steps"]:
    """Return the summed loss of the left-out examples before the first and after every step."""

    def left_out(state: State) -> Array:
        losses = _cross_entropies(apply, state, inputs, labels)
        return (1 - trained_on).astype(losses.dtype) @ losses

    def one(carry: tuple[State, PyTree], _: None) -> tuple[tuple[State, PyTree], Array]:
        loss = left_out(carry[0])
        return _step(apply, optimiser, *carry, inputs, labels, trained_on), loss

    (state, _), losses = jax.lax.scan(one, (start, optimiser.init(start)), length=limit)
    return jnp.append(losses, left_out(state))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _train(
    apply: Apply,
    optimiser: optax.GradientTransformation,
    steps: Int[Array, ""],
    start: State,
    inputs: Array,
    labels: Int[Array, " n"],
) -> State:
    """Return the parameters after this many steps on all examples."""
    everything = jnp.ones(len(labels))

    def one(_: Array, carry: tuple[State, PyTree]) -> tuple[State, PyTree]:
        return _step(apply, optimiser, *carry, inputs, labels, everything)

    return jax.lax.fori_loop(0, steps, one, (start, optimiser.init(start)))[0]
