"""The models of the demo: one nonlinear head per developer, and the truth about how they do.

`train_heads` trains them on the shared backbone's features; `direct_truth` runs every model on
every user's test pictures; `fine_tuning_truth` tunes every model on every user's labelled examples
first. A market never sees any of these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen

from jaxspec.applications.scenario import GROUPS, Developer, MarketDraw, User

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = [
    "direct_accuracy",
    "direct_truth",
    "fine_tuning_truth",
    "hidden_features",
    "predict",
    "train_heads",
]


def _head() -> Any:
    return linen.Sequential(
        [
            linen.Dense(128),
            linen.relu,
            linen.Dropout(0.2, deterministic=False),
            linen.Dense(GROUPS),
        ]
    )


def train_heads(
    features: np.ndarray,
    developers: Sequence[Developer],
    *,
    seed: int = 0,
    epochs: int = 25,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """Train one head per developer: a hidden layer of 128, dropout, AdamW with a cosine schedule.

    Args:
        features: (N, d) all pictures' features.
        developers: tasks with equally many pictures.
        seed: of initial weights, batches and dropout.
        epochs: passes over a developer's pictures.
        batch_size: pictures per step.
        progress: called with (epochs done, epochs).

    Returns:
        flax parameters with a leading axis of developers.
    """
    head = _head()
    rows = np.stack([developer.rows for developer in developers])
    inputs = jnp.asarray(features[rows], jnp.float32)
    targets = jnp.asarray(np.stack([developer.labels for developer in developers]))
    models, count = rows.shape
    steps = count // batch_size
    optimiser = optax.adamw(optax.cosine_decay_schedule(3e-3, epochs * steps), weight_decay=1e-2)

    def initialise(key: Array) -> tuple[Any, Any]:
        parameters = head.init({"params": key, "dropout": key}, inputs[0, :1])
        return parameters, optimiser.init(parameters)

    def loss(parameters: Any, key: Array, x: Array, y: Array) -> Array:
        logits = head.apply(parameters, x, rngs={"dropout": key})
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def epoch(parameters: Any, state: Any, key: Array, x: Array, y: Array) -> tuple[Any, Any]:
        order_key, dropout_key = jax.random.split(key)
        order = jax.random.permutation(order_key, count)[: steps * batch_size]

        def step(carry: Any, batch: tuple[Array, Array]) -> tuple[Any, None]:
            parameters, state = carry
            chosen, key = batch
            gradient = jax.grad(loss)(parameters, key, x[chosen], y[chosen])
            updates, state = optimiser.update(gradient, state, parameters)
            return (optax.apply_updates(parameters, updates), state), None

        keys = jax.random.split(dropout_key, steps)
        carry, _ = jax.lax.scan(step, (parameters, state), (order.reshape(steps, batch_size), keys))
        return carry

    run_epoch = jax.jit(jax.vmap(epoch))
    key = jax.random.key(seed)
    parameters, state = jax.jit(jax.vmap(initialise))(jax.random.split(key, models))
    for done in range(epochs):
        keys = jax.random.split(jax.random.fold_in(key, done), models)
        parameters, state = run_epoch(parameters, state, keys, inputs, targets)
        if progress is not None:
            jax.block_until_ready(parameters)
            progress(done + 1, epochs)
    return parameters


@jax.jit
def _forward(parameters: Any, inputs: Array) -> Array:
    layers = parameters["params"]
    first, last = layers["layers_0"], layers["layers_3"]
    hidden = jax.nn.relu(inputs @ first["kernel"] + first["bias"])
    return jax.nn.softmax(hidden @ last["kernel"] + last["bias"])


def predict(parameters: Any, model: int, features: np.ndarray) -> np.ndarray:
    """Return one head's class probabilities, (n, C), for features (n, d); without dropout."""
    own = jax.tree.map(lambda leaf: leaf[model], parameters)
    return np.asarray(_forward(own, features))


def hidden_features(parameters: Any, model: int, features: np.ndarray) -> np.ndarray:
    """Return one head's hidden activations, (n, 128), for features (n, d); without dropout."""
    first = parameters["params"]["layers_0"]
    kernel, bias = np.asarray(first["kernel"][model]), np.asarray(first["bias"][model])
    return np.maximum(features @ kernel + bias, 0.0)


def direct_accuracy(
    probabilities: np.ndarray, model_names: Sequence[str], labels: np.ndarray, names: Sequence[str]
) -> np.ndarray:
    """Return whether the model names the right class, (n,) bool.

    Args:
        probabilities: (n, C) of the model.
        model_names: its C classes.
        labels: (n,) of the user.
        names: the user's classes; the model is asked for the likeliest of those it shares.
    """
    to_user = {name: k for k, name in enumerate(names)}
    of_user = np.array([to_user.get(name, -1) for name in model_names])
    if not (of_user >= 0).any():
        return np.zeros(len(labels), bool)
    shared = np.where(of_user >= 0, probabilities, -1.0)
    return of_user[shared.argmax(axis=1)] == labels


def direct_truth(
    parameters: Any,
    draw: MarketDraw,
    features: np.ndarray,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Run every model on every user's pictures.

    Args:
        parameters: of the developers' heads, from `train_heads`.
        draw: developers and users.
        features: (N, d) all pictures' features.
        progress: called with (users done, users).

    Returns:
        for each user (models, tests) bool, whether the model is right on the test picture; and
        (users, models) the accuracy on the user's labelled examples, which is brute force's score.
    """
    tests, brute = [], []
    for user in draw.users:
        right, score = [], []
        for model, developer in enumerate(draw.developers):
            rows = np.concatenate([user.rows, user.test_rows])
            labels = np.concatenate([user.labels, user.test_labels])
            probabilities = predict(parameters, model, features[rows])
            hit = direct_accuracy(probabilities, developer.space.names, labels, user.space.names)
            score.append(hit[: len(user.rows)].mean())
            right.append(hit[len(user.rows) :])
        tests.append(np.stack(right))
        brute.append(score)
        if progress is not None:
            progress(len(tests), len(draw.users))
    return tests, np.array(brute)


FINE_TUNING_STEPS = 60
FINE_TUNING_RATE = 1e-3


@jax.jit
def _fine_tuned(
    hidden: Any, last: Any, inputs: Array, labels: Array, tests: Array, test_labels: Array
) -> Array:
    """Return test hits (models, tests) of every model after Adam on all layers, full batch."""
    optimiser = optax.adam(FINE_TUNING_RATE)

    def logits(parameters: Any, x: Array) -> Array:
        first, last = parameters
        inner = jax.nn.relu(x @ first["kernel"] + first["bias"])
        return inner @ last["kernel"] + last["bias"]

    def loss(parameters: Any) -> Array:
        values = logits(parameters, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(values, labels).mean()

    def one(parameters: Any) -> Array:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            parameters, state = carry
            updates, state = optimiser.update(jax.grad(loss)(parameters), state)
            return (optax.apply_updates(parameters, updates), state), None

        start = (parameters, optimiser.init(parameters))
        (tuned, _), _ = jax.lax.scan(step, start, length=FINE_TUNING_STEPS)
        return logits(tuned, tests).argmax(axis=1) == test_labels

    return jax.lax.map(one, (hidden, last))


def fine_tuning_truth(
    parameters: Any,
    developers: Sequence[Developer],
    users: Sequence[User],
    features: np.ndarray,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[np.ndarray]:
    """Fine-tune every model on every user's labelled examples and test it.

    All layers are tuned. The output layer keeps the columns of classes that the user has by name;
    other classes start from zero, so that what is reused there is the hidden layer.

    Returns:
        for each user (models, tests) bool, whether the tuned model is right on the test picture.
    """
    layers = parameters["params"]
    hidden, last = layers["layers_0"], jax.tree.map(np.asarray, layers["layers_3"])
    results = []
    for user in users:
        kernel = np.zeros((*last["kernel"].shape[:2], len(user.space.names)), np.float32)
        bias = np.zeros((len(developers), len(user.space.names)), np.float32)
        for model, developer in enumerate(developers):
            for k, name in enumerate(user.space.names):
                if name in developer.space.names:
                    column = developer.space.names.index(name)
                    kernel[model, :, k] = last["kernel"][model, :, column]
                    bias[model, k] = last["bias"][model, column]
        output = {"kernel": kernel, "bias": bias}
        hits = _fine_tuned(
            hidden,
            output,
            features[user.rows],
            user.labels,
            features[user.test_rows],
            user.test_labels,
        )
        results.append(np.asarray(hits))
        if progress is not None:
            progress(len(results), len(users))
    return results
