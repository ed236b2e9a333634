"""The second kind of models of the studies: small convolutional nets, trained on the pictures.

Unlike the heads of `jaxspec.applications.heads` they share nothing with the feature extractor.
Their training, prediction, and truth about direct use and fine-tuning live here, in the forms that
`scenario` gives for heads. May be called: all of `__all__`. From the shell, ``python -m
benchmarks.studies.scratch --cache DIR`` trains the nets of one market and prints accuracies and
times.

Every net takes its own jitted steps in a Python loop, which took the least processor time on two
cores: shifted slices with one matrix product took 1.2 to 1.5 times as much, in a scan or not, and a
convolution batched over models by vmap 2.8 times as much. XLA has no fast convolution in a scan.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.datasets.fashion import load_cache
from benchmarks.records import write_record
from jaxspec.applications.heads import direct_accuracy
from jaxspec.applications.scenario import Developer, MarketDraw, User, draw_market

__all__ = [
    "hidden_scratch",
    "predict_scratch",
    "scratch_fine_tuning",
    "scratch_truth",
    "train_scratch",
]

Array = Any
CHANNELS = (16, 32, 32)
STRIDES = (2, 2, 1)  # 28 -> 14 -> 7 -> 7 pixels a side
SIDE = 7
RATE = 3e-3
WEIGHT_DECAY = 1e-2
SHIFT = 2  # pixels by which the augmentation moves a picture at most
CHUNK = 256  # pictures that are predicted at once; a last chunk is padded to it
FINE_TUNING_STEPS = 30
FINE_TUNING_RATE = 1e-3


# The net ------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames="classes")
def _initialise(key: Array, classes: int) -> dict[str, dict[str, Array]]:
    """Return kernels of variance 2 / fan-in and zero biases; the output layer starts small."""
    widths = (3, *CHANNELS)
    shapes = [(3, 3, a, b) for a, b in zip(widths, widths[1:], strict=False)]
    shapes.append((SIDE * SIDE * CHANNELS[-1], classes))
    gains = [2.0] * len(CHANNELS) + [0.1]
    layers = {}
    for i, (shape, gain) in enumerate(zip(shapes, gains, strict=True)):
        scale = np.sqrt(gain / np.prod(shape[:-1]))
        kernel = scale * jax.random.normal(jax.random.fold_in(key, i), shape)
        name = "output" if i == len(CHANNELS) else f"convolution_{i}"
        layers[name] = {"kernel": kernel, "bias": jnp.zeros(shape[-1])}
    return layers


def _activations(params: Any, images: Array) -> Array:
    """Return (n, SIDE SIDE CHANNELS[-1]) inputs of the output layer for (n, 28, 28, 3) bytes."""
    x = images.astype(jnp.float32) / 127.5 - 1
    for i, stride in enumerate(STRIDES):
        layer = params[f"convolution_{i}"]
        x = jax.lax.conv_general_dilated(
            x,
            layer["kernel"],
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x + layer["bias"])
    return x.reshape(len(x), -1)


def _logits(params: Any, images: Array) -> Array:
    """Return (n, C) logits of (n, 28, 28, 3) pictures of bytes."""
    output = params["output"]
    return _activations(params, images) @ output["kernel"] + output["bias"]


def _loss(params: Any, images: Array, labels: Array) -> Array:
    logits = _logits(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


# Training -----------------------------------------------------------------------------------


@cache  # one object per schedule, since a new one would compile the step anew
def _training_optimiser(steps: int) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(RATE, steps)
    return optax.adamw(schedule, weight_decay=WEIGHT_DECAY)


@cache
def _tuning_optimiser(rate: float) -> optax.GradientTransformation:
    return optax.adam(rate)


@jax.jit
def _augmented(key: Array, images: Array, labels: Array) -> tuple[Array, Array]:
    """Return the pictures and labels in a new order, shifted, and half of the pictures mirrored.

    A picture moves by up to `SHIFT` pixels; its border is repeated where the shift uncovers it.
    """
    order_key, shift_key, flip_key = jax.random.split(key, 3)
    order = jax.random.permutation(order_key, len(images))
    moves = jax.random.randint(shift_key, (len(images), 2), -SHIFT, SHIFT + 1)
    flips = jax.random.bernoulli(flip_key, shape=(len(images),))
    grid = jnp.arange(images.shape[1])
    rows = jnp.clip(grid + moves[:, :1], 0, images.shape[1] - 1)
    columns = jnp.clip(grid + moves[:, 1:], 0, images.shape[2] - 1)
    columns = jnp.where(flips[:, None], columns[:, ::-1], columns)
    moved = images[order[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved, labels[order]


@partial(jax.jit, static_argnames=("optimiser", "batch_size"), donate_argnums=(0, 1))
def _step(
    params: Any,
    state: Any,
    images: Array,
    labels: Array,
    start: int,
    *,
    optimiser: optax.GradientTransformation,
    batch_size: int,
) -> tuple[Any, Any]:
    """Take one step on the pictures from `start` to `start + batch_size`."""
    x = jax.lax.dynamic_slice_in_dim(images, start, batch_size)
    y = jax.lax.dynamic_slice_in_dim(labels, start, batch_size)
    updates, state = optimiser.update(jax.grad(_loss)(params, x, y), state, params)
    return optax.apply_updates(params, updates), state


def train_scratch(
    images: np.ndarray,
    developers: Sequence[Developer],
    *,
    seed: int = 0,
    epochs: int = 25,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """Train one net per developer: AdamW with a cosine schedule, pictures shifted and mirrored.

    Args:
        images: (N, 28, 28, 3) uint8, all pictures.
        developers: tasks with equally many classes; each number of pictures among them compiles the
            step once.
        seed: of initial weights, batches and augmentation.
        epochs: passes over a developer's pictures.
        batch_size: pictures per step (all of them where a developer has fewer).
        progress: called with (models done, models).

    Returns:
        parameters as numpy arrays with a leading axis of developers.

    Raises:
        ValueError: when developers differ in their number of classes.
    """
    classes = {len(developer.space.names) for developer in developers}
    if len(classes) != 1:
        raise ValueError(f"developers: expected one number of classes, got {sorted(classes)}")
    (count,) = classes
    trained = []
    for model, developer in enumerate(developers):
        size = min(batch_size, len(developer.rows))
        steps = len(developer.rows) // size
        optimiser = _training_optimiser(epochs * steps)
        step = partial(_step, optimiser=optimiser, batch_size=size)
        key = jax.random.fold_in(jax.random.key(seed), model)
        own = jnp.asarray(images[developer.rows])
        labels = jnp.asarray(developer.labels, jnp.int32)
        params = _initialise(key, classes=count)
        state = optimiser.init(params)
        for epoch in range(epochs):
            shown, named = _augmented(jax.random.fold_in(key, epoch), own, labels)
            for start in range(0, steps * size, size):
                params, state = step(params, state, shown, named, start)
        trained.append(jax.tree.map(np.asarray, params))
        if progress is not None:
            progress(model + 1, len(developers))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trained)


# Prediction and truth -----------------------------------------------------------------------


@jax.jit
def _probabilities(params: Any, images: Array) -> Array:
    return jax.nn.softmax(_logits(params, images))


def _predict_one(params: Any, images: np.ndarray) -> np.ndarray:
    """Return (n, C) probabilities of one net, chunk by chunk."""
    params = jax.tree.map(jnp.asarray, params)
    parts = []
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK]
        padding = [(0, CHUNK - len(chunk)), (0, 0), (0, 0), (0, 0)]
        parts.append(_probabilities(params, np.pad(chunk, padding)))
    classes = params["output"]["bias"].shape[-1]
    return np.concatenate([np.zeros((0, classes), np.float32), *parts])[: len(images)]


def predict_scratch(params: Any, model: int, images: np.ndarray) -> np.ndarray:
    """Return one net's class probabilities, (n, C), for pictures (n, 28, 28, 3) uint8.

    All numbers of pictures share one compilation.
    """
    return _predict_one(jax.tree.map(lambda leaf: leaf[model], params), images)


def hidden_scratch(params: Any, model: int, images: np.ndarray, *, rank: int = 64) -> np.ndarray:
    """Return the `rank` leading principal components of one net's hidden activations.

    Args:
        params: of the nets, from `train_scratch`.
        model: which of them.
        images: (n, 28, 28, 3) uint8.
        rank: how many; fewer where n is smaller.

    Returns:
        (n, rank) float32, centred.
    """
    own = jax.tree.map(lambda leaf: jnp.asarray(leaf[model]), params)
    starts = range(0, len(images), CHUNK)
    parts = [np.asarray(_activations(own, images[start : start + CHUNK])) for start in starts]
    hidden = np.concatenate(parts)
    left, size, _ = np.linalg.svd(hidden - hidden.mean(axis=0), full_matrices=False)
    return (left * size)[:, :rank]


def scratch_truth(
    params: Any,
    draw: MarketDraw,
    images: np.ndarray,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Run every net on the pictures of every user, each picture once per net.

    Args:
        params: of the developers' nets, from `train_scratch`.
        draw: developers and users.
        images: (N, 28, 28, 3) uint8, all pictures.
        progress: called with (models done, models).

    Returns:
        what `heads.direct_truth` returns: for each user (models, tests) bool, whether the net is
        right on the test picture; and (users, models) the accuracy on the user's labelled examples.
    """
    asked = [np.concatenate([user.rows, user.test_rows]) for user in draw.users]
    rows, place = np.unique(np.concatenate(asked), return_inverse=True)
    places = np.split(place, np.cumsum([len(part) for part in asked])[:-1])
    pictures = images[rows]
    tests: list[list[np.ndarray]] = [[] for _ in draw.users]
    brute = np.zeros((len(draw.users), len(draw.developers)))
    for model, developer in enumerate(draw.developers):
        probabilities = predict_scratch(params, model, pictures)
        for i, user in enumerate(draw.users):
            labels = np.concatenate([user.labels, user.test_labels])
            hit = direct_accuracy(
                probabilities[places[i]], developer.space.names, labels, user.space.names
            )
            brute[i, model] = hit[: len(user.rows)].mean()
            tests[i].append(hit[len(user.rows) :])
        if progress is not None:
            progress(model + 1, len(draw.developers))
    return [np.stack(hits) for hits in tests], brute


# Fine-tuning --------------------------------------------------------------------------------


def _output_for(
    output: dict[str, np.ndarray], model_names: Sequence[str], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return an output layer for the user's classes `names`.

    It has the columns of the classes that the net has by that name, and zeros for the others.
    """
    kernel = np.zeros((output["kernel"].shape[0], len(names)), np.float32)
    bias = np.zeros(len(names), np.float32)
    for k, name in enumerate(names):
        if name in model_names:
            column = list(model_names).index(name)
            kernel[:, k] = output["kernel"][:, column]
            bias[k] = output["bias"][column]
    return {"kernel": kernel, "bias": bias}


def scratch_fine_tuning(
    params: Any,
    developers: Sequence[Developer],
    users: Sequence[User],
    images: np.ndarray,
    *,
    steps: int = FINE_TUNING_STEPS,
    rate: float = FINE_TUNING_RATE,
    progress: Callable[[int, int], None] | None = None,
) -> list[np.ndarray]:
    """Fine-tune every net on every user's labelled examples and test it.

    All layers are tuned by Adam on all examples at once. The output layer keeps the columns of
    classes that the user has by name; for other classes it starts from zero, so that only the
    convolutions are reused.

    Args:
        params: of the developers' nets, from `train_scratch`.
        developers: owners of the nets, in their order.
        users: tasks.
        images: (N, 28, 28, 3) uint8, all pictures.
        steps: of Adam; with zero steps, the net is tested as its output layer starts.
        rate: of Adam.
        progress: called with (users done, users).

    Returns:
        for each user (models, tests) bool, whether the tuned net is right on the test picture.
    """
    optimiser = _tuning_optimiser(rate)
    results = []
    for user in users:
        step = partial(_step, optimiser=optimiser, batch_size=len(user.rows))
        examples = jnp.asarray(images[user.rows])
        labels = jnp.asarray(user.labels, jnp.int32)
        tests = images[user.test_rows]
        hits = []
        for model, developer in enumerate(developers):
            own = jax.tree.map(lambda leaf, model=model: leaf[model], params)
            output = _output_for(own["output"], developer.space.names, user.space.names)
            tuned = jax.tree.map(jnp.array, {**own, "output": output})
            state = optimiser.init(tuned)
            for _ in range(steps):
                tuned, state = step(tuned, state, examples, labels, 0)
            hits.append(_predict_one(tuned, tests).argmax(axis=1) == user.test_labels)
        results.append(np.stack(hits))
        if progress is not None:
            progress(len(results), len(users))
    return results


# From the shell -----------------------------------------------------------------------------


def _timed(record: dict[str, Any], name: str, call: Callable[[], Any]) -> Any:
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    record[f"{name}_wall_seconds"] = time.perf_counter() - wall
    record[f"{name}_cpu_seconds"] = time.process_time() - cpu
    return result


def main() -> None:
    """Train the nets of one market, and print accuracies and times."""
    parser = argparse.ArgumentParser(description="Train one market's nets from scratch.")
    parser.add_argument("--cache", type=Path, default=None, help="folder of the pictures' cache")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--fine-tune", type=int, default=0, help="users (and strangers) to tune on")
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    arguments = parser.parse_args()
    study = load_cache(arguments.cache)
    draw = draw_market(
        study.labels,
        study.contexts,
        study.class_names,
        study.context_names,
        np.random.default_rng(arguments.seed),
    )
    record: dict[str, Any] = {"seed": arguments.seed, "epochs": arguments.epochs}
    params = _timed(
        record,
        "training",
        lambda: train_scratch(
            study.images, draw.developers, seed=arguments.seed, epochs=arguments.epochs
        ),
    )
    tests, _ = _timed(record, "truth", lambda: scratch_truth(params, draw, study.images))
    accuracy = np.array([hits.mean(axis=1) for hits in tests])  # (users, models)
    context = np.array([developer.context for developer in draw.developers])
    space = np.array([developer.name[-1] for developer in draw.developers])
    same_space = space[:, None] == space
    own = np.diag(accuracy)
    record["own_context"] = float(own.mean())
    record["own_context_least"] = float(own.min())
    other = same_space & (context[:, None] != context)
    record["other_contexts"] = float(accuracy[other].mean())
    record["other_space"] = float(accuracy[~same_space].mean())
    record["own_is_best"] = float((accuracy.argmax(axis=1) == np.arange(len(own))).mean())
    if arguments.fine_tune:
        for kind, users in (("users", draw.users), ("strangers", draw.strangers)):
            users = users[: arguments.fine_tune]
            hits = _timed(
                record,
                f"fine_tuning_{kind}",
                partial(scratch_fine_tuning, params, draw.developers, users, study.images),
            )
            tuned = np.array([hit.mean(axis=1) for hit in hits])
            record[f"fine_tuning_{kind}_mean"] = float(tuned.mean())
            record[f"fine_tuning_{kind}_best"] = float(tuned.max(axis=1).mean())
    for name in sorted({developer.context for developer in draw.developers}):
        print(f"{study.context_names[name]:>12}  own {own[context == name].round(3)}")
    for name, value in record.items():
        print(f"{name:>32}  {value:.3f}" if isinstance(value, float) else f"{name:>32}  {value}")
    if arguments.output is not None:
        write_record(arguments.output, {"results": record})


if __name__ == "__main__":
    main()
