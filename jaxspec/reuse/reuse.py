"""Reuse of recommended learnwares: after `match`, with the models themselves in the user's hands.

May be called: `try_short_list` runs the k best models on the user's labelled examples and weighs
that evidence against the score; `direct_predictor` turns a model's classes into the user's;
`fine_tune` trains a flax model, or any pure function, on a few examples; `assemble` makes one
predictor of several learnwares where none covers the user's classes.

A model is a function of n inputs that gives class probabilities (n, C) in the order of its
specification's class names. Nothing here sees the submitters' data or stores the user's. Constants
were chosen on development markets (seeds 0 to 9); `benchmarks/reuse.py` measures on others.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.base.checks import as_features, as_labels, as_probabilities, as_size
from jaxspec.base.padding import bucket, pad_to
from jaxspec.matching.match import Match
from jaxspec.specify.proxy import Proxy, centre_classes, fit_proxies

__all__ = [
    "Assembly",
    "FineTuned",
    "Trial",
    "assemble",
    "calibrate",
    "direct_predictor",
    "fine_tune",
    "to_user_classes",
    "try_short_list",
]

Array = Any
Model = Callable[[Any], Any]
Models = Mapping[str, Model] | Callable[[str, Any], Any]

# A standard deviation of the scores weighs as much as this many examples: the score saw the same
# examples through proxies already. Best or equal to the best of 8 values at 10, 25 and 50 examples.
PRIOR_EXAMPLES = 25.0
FLOOR = 0.1  # share of a uniform guess in a likelihood, as in `jaxspec.scoring`
RIDGES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)  # for features of total variance one


@dataclasses.dataclass(frozen=True)
class Trial:
    """What the short list did on the user's examples; learnwares in the order of the score.

    Attributes:
        chosen: the learnware of the largest `posterior`.
        ids: k learnwares, best score first.
        scores: (k,) of the match.
        accuracy: (k,) share of the examples that are named right.
        log_likelihood: (k,) mean over examples, with a floor, in nats; 0 is guessing.
        posterior: (k,) score and evidence together; see `try_short_list`.
    """

    chosen: str
    ids: tuple[str, ...]
    scores: np.ndarray
    accuracy: np.ndarray
    log_likelihood: np.ndarray
    posterior: np.ndarray

    def reasons(self) -> list[str]:
        """Return one line a learnware, the chosen one first."""
        return [
            f"{self.ids[i]}: {self.accuracy[i]:.0%} of your examples right, log-likelihood over "
            f"guessing {self.log_likelihood[i]:+.3f}, score {self.scores[i]:.3f} (rank {i + 1}), "
            f"together {self.posterior[i]:+.3f}"
            for i in np.argsort(-self.posterior, kind="stable")
        ]


def _one_user(result: Any, user: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return scores (M,), class map and similarity (M, C_T), and class names of one user."""
    if not isinstance(result, Match):
        raise TypeError(f"result: expected a Match, got {type(result).__name__}")
    if result.scores.ndim == 1:
        if user != 0:
            raise IndexError(f"user: expected 0, this is the match of one user; got {user}")
        return result.scores, result.class_map, result.class_similarity, result.class_names
    if not 0 <= user < len(result.scores):
        raise IndexError(f"user: expected 0..{len(result.scores) - 1}, got {user}")
    names = result.class_names[user]
    parts = result.class_map, result.class_similarity
    return result.scores[user], *(part[user][:, : len(names)] for part in parts), names


def _run(models: Models, learnware: str, inputs: Any, rows: int, classes: int) -> np.ndarray:
    """Run one model and check its probabilities, (rows, classes)."""
    if isinstance(models, Mapping):
        if learnware not in models:
            raise KeyError(f"models: expected a model for {learnware!r}, got {sorted(models)}")
        found = models[learnware](inputs)
    elif callable(models):
        found = models(learnware, inputs)
    else:
        raise TypeError(f"models: expected a mapping or a function, got {type(models).__name__}")
    return np.asarray(
        as_probabilities(f"models[{learnware!r}]", found, rows=rows, num_classes=classes)
    )


def to_user_classes(probabilities: Array, class_map: Sequence[int] | np.ndarray) -> Array:
    """Return a model's probabilities (n, C) as the user's (n, C_T), rows that sum to one.

    What falls on classes that the user does not have is shared out in proportion; a class that
    stands for several of the user's is split evenly between them; a row without any mass on
    shared classes, or a map without any, gives equal parts to the classes mapped, or to all.

    Args:
        probabilities: (n, C).
        class_map: (C_T,) the model's class for every user class, -1 for none.

    Raises:
        TypeError, ValueError: a map that is not of integers from -1 to C-1.
    """
    chosen = np.asarray(class_map)
    if not np.issubdtype(chosen.dtype, np.integer) or chosen.ndim != 1:
        raise TypeError(f"class_map: expected integers (C_T,), got {class_map!r}")
    probabilities = as_features("probabilities", probabilities)
    if chosen.size == 0 or chosen.min() < -1 or chosen.max() >= probabilities.shape[1]:
        raise ValueError(
            f"class_map: expected classes from -1 to {probabilities.shape[1] - 1}, got {class_map}"
        )
    shared = (chosen >= 0).astype(np.float32)
    sharing = np.maximum((chosen[:, None] == chosen[None, :]).sum(axis=1), 1)
    mass = probabilities[:, np.maximum(chosen, 0)] * (shared / sharing)
    total = mass.sum(axis=1, keepdims=True)
    even = (shared if shared.any() else np.ones_like(shared)) / (shared.sum() or len(shared))
    return jnp.where(total > 0, mass / jnp.where(total > 0, total, 1.0), even)


def direct_predictor(result: Match, learnware: str, model: Model, *, user: int = 0) -> Model:
    """Return a function of inputs that gives probabilities (n, C_T) over the user's classes.

    Args:
        result: the match, whose class map says which class stands for which.
        learnware: an id of the match.
        model: the learnware's function of inputs.
        user: which one, if the match was of a batch.

    Raises:
        KeyError: an id that the match does not hold.
    """
    _, class_map, _, _ = _one_user(result, user)
    if learnware not in result.ids:
        raise KeyError(f"learnware: expected an id of the match, got {learnware!r}")
    own = class_map[result.ids.index(learnware)].copy()

    def predict(inputs: Any) -> Array:
        return to_user_classes(model(inputs), own)

    return predict


def try_short_list(
    result: Match,
    models: Models,
    inputs: Any,
    labels: Array,
    *,
    k: int = 3,
    user: int = 0,
    prior_examples: float = PRIOR_EXAMPLES,
) -> Trial:
    """Run the k best learnwares on n labelled examples and choose by score and evidence together:

        posterior = (p z + n (accuracy + log-likelihood / 2) / 2) / (p + n)

    where p is `prior_examples` and z the score in standard deviations of the market's scores.
    With few examples the score decides, with many the evidence.

    Args:
        result: of `match`.
        models: {id: function of inputs}, or one function of (id, inputs); probabilities (n, C).
        inputs: whatever the models take; n examples.
        labels: (n,) the user's classes.
        k: how many to run (fewer if the market holds fewer).
        user: which one, if the match was of a batch.
        prior_examples: how many examples a standard deviation of the scores is worth; 0 for the
            evidence alone.

    Raises:
        KeyError: no model for a recommended learnware.
        TypeError, ValueError: an argument that is not as described; the message names it.
    """
    scores, class_map, _, names = _one_user(result, user)
    count = as_size("k", k)
    if not 0 <= prior_examples < np.inf:
        raise ValueError(f"prior_examples: expected a number >= 0, got {prior_examples}")
    labels = np.asarray(as_labels("labels", labels, rows=np.size(labels), num_classes=len(names)))
    if not len(labels):
        raise ValueError("labels: expected at least one example, got none")
    order = np.argsort(-scores, kind="stable")[:count]
    ids = tuple(result.ids[i] for i in order)
    accuracy, likelihood = np.zeros(len(order)), np.zeros(len(order))
    for place, row in enumerate(order):
        classes = len(result.market.class_names(ids[place]))
        own = _run(models, ids[place], inputs, len(labels), classes)
        chance = np.asarray(to_user_classes(own, class_map[row]))
        accuracy[place] = (chance.argmax(axis=1) == labels).mean()
        of_label = chance[np.arange(len(labels)), labels] * len(names)
        likelihood[place] = np.log((1 - FLOOR) * of_label + FLOOR).mean()
    spread = scores.std()
    z = (scores[order] - scores.mean()) / (spread if spread > 0 else 1.0)
    evidence = (accuracy + likelihood / 2) / 2
    posterior = (prior_examples * z + len(labels) * evidence) / (prior_examples + len(labels))
    return Trial(ids[int(posterior.argmax())], ids, scores[order], accuracy, likelihood, posterior)


def _folds(labels: np.ndarray, folds: int) -> np.ndarray | None:
    """Return the fold (n,) of every example, stratified, or None if a class has one example."""
    smallest = int(np.bincount(labels).min(initial=len(labels), where=np.bincount(labels) > 0))
    count = min(folds, smallest)
    if count < 2:
        return None
    fold = np.zeros(len(labels), np.int32)
    for k in np.unique(labels):
        at = np.flatnonzero(labels == k)
        fold[at] = np.arange(len(at)) % count
    return fold


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """A fine-tuned model; call it with inputs for probabilities (n, num_classes).

    Attributes:
        apply: the function that was given.
        parameters: its tuned parameters.
        head: (weights (h, C), bias (C,)) of the new head, or None if the model's own was kept.
        steps: optimiser steps, as chosen by cross-validation.
        losses: (max_steps + 1,) cross-validated loss after every step, in nats; empty without.
    """

    apply: Callable[[Any, Any], Array]
    parameters: Any
    head: tuple[Array, Array] | None
    steps: int
    losses: np.ndarray

    def __call__(self, inputs: Any) -> Array:
        """Return probabilities (n, num_classes)."""
        return jax.nn.softmax(_head_logits(self.apply, (self.parameters, self.head), inputs))


def _head_logits(apply: Callable[[Any, Any], Array], state: tuple[Any, Any], inputs: Any) -> Array:
    parameters, head = state
    values = apply(parameters, inputs)
    return values if head is None else values @ head[0] + head[1]


def fine_tune(
    apply: Callable[[Any, Any], Array],
    parameters: Any,
    inputs: Array,
    labels: Array,
    *,
    num_classes: int,
    new_head: bool = True,
    optimiser: Any = None,
    max_steps: int = 120,
    folds: int = 5,
) -> FineTuned:
    """Train a model on from where it is, all layers, full batches; stop where validation says.

    K-fold cross-validation gives the loss on left-out examples after every step; the number of
    steps with the least mean is then taken on all examples. A class with a single example leaves
    nothing to validate on: half of `max_steps` are taken.

    Args:
        apply: pure function (parameters, inputs) -> (n, h), features or logits; for a flax module
            `module.apply`, with dropout off.
        parameters: any tree, such as flax's.
        inputs: (n, ...) array.
        labels: (n,) in 0..num_classes-1.
        num_classes: of the user.
        new_head: put a new linear layer, from zero, on what `apply` gives; False if that already
            is logits over the user's classes.
        optimiser: of optax; Adam at 1e-3 if None.
        max_steps: most steps.
        folds: K; fewer if a class has fewer examples.

    Raises:
        TypeError, ValueError: an argument that is not as described; the message names it.
    """
    classes, limit = as_size("num_classes", num_classes, minimum=2), as_size("max_steps", max_steps)
    as_size("folds", folds, minimum=2)
    if not callable(apply):
        raise TypeError(f"apply: expected a function, got a {type(apply).__name__}")
    try:
        inputs = jnp.asarray(inputs)
    except (TypeError, ValueError) as error:
        raise type(error)(f"inputs: expected an array, got {inputs!r:.80}: {error}") from None
    rows = inputs.shape[0] if inputs.ndim else 0
    if rows == 0:
        raise ValueError(f"inputs: expected at least one example, got shape {inputs.shape}")
    labels = np.asarray(as_labels("labels", labels, rows=rows, num_classes=classes))
    shape = jax.eval_shape(apply, parameters, inputs).shape
    if len(shape) != 2 or shape[0] != rows or (not new_head and shape[1] != classes):
        wanted = "h" if new_head else classes
        raise ValueError(f"apply: expected an output of shape ({rows}, {wanted}), got {shape}")
    head = (jnp.zeros((shape[1], classes)), jnp.zeros(classes)) if new_head else None
    rule = _default_optimiser() if optimiser is None else optimiser
    start = (jax.tree.map(jnp.asarray, parameters), head)
    fold, losses, chosen = _folds(labels, folds), np.zeros(0), limit // 2
    if fold is not None:
        kept = [np.asarray(fold != i, np.float32) for i in range(fold.max() + 1)]
        parts = [_validate(apply, rule, limit, start, inputs, labels, part) for part in kept]
        losses = np.sum(parts, axis=0) / rows
        if not np.isfinite(losses[0]):
            raise ValueError("apply: expected finite outputs on the inputs, got NaN or infinity")
        chosen = int(np.nanargmin(losses))
    tuned, new = _train(apply, rule, np.int32(chosen), start, inputs, labels)
    return FineTuned(apply, tuned, new, chosen, losses)


@functools.cache
def _default_optimiser() -> Any:
    import optax

    return optax.adam(1e-3)


def _errors(apply: Any, state: Any, inputs: Array, labels: Array) -> Array:
    """Return the cross-entropy of every example, (n,)."""
    log_p = jax.nn.log_softmax(_head_logits(apply, state, inputs))
    return -jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]


def _step(apply: Any, rule: Any, carry: Any, inputs: Array, labels: Array, weights: Array) -> Any:
    state, memory = carry

    def loss(state: Any) -> Array:
        return weights @ _errors(apply, state, inputs, labels) / weights.sum()

    updates, memory = rule.update(jax.grad(loss)(state), memory, state)
    # As `optax.apply_updates`, without importing it here.
    return jax.tree.map(
        lambda old, change: (old + change).astype(old.dtype), state, updates
    ), memory


@partial(jax.jit, static_argnums=(0, 1, 2))
def _validate(
    apply: Any, rule: Any, limit: int, start: Any, inputs: Array, labels: Array, kept: Array
) -> Array:
    """Return the loss summed over the examples that are not kept, before every step and after."""

    def left_out(state: Any) -> Array:
        return (1 - kept) @ _errors(apply, state, inputs, labels)

    def one(carry: Any, _: None) -> tuple[Any, Array]:
        return _step(apply, rule, carry, inputs, labels, kept), left_out(carry[0])

    carry, losses = jax.lax.scan(one, (start, rule.init(start)), length=limit)
    return jnp.append(losses, left_out(carry[0]))


@partial(jax.jit, static_argnums=(0, 1))
def _train(apply: Any, rule: Any, steps: Array, start: Any, inputs: Array, labels: Array) -> Any:
    every = jnp.ones(len(labels))

    def one(_: Array, carry: Any) -> Any:
        return _step(apply, rule, carry, inputs, labels, every)

    return jax.lax.fori_loop(0, steps, one, (start, rule.init(start)))[0]


@dataclasses.dataclass(frozen=True)
class Assembly:
    """Several learnwares as one predictor; see `assemble`.

    Attributes:
        ids: the learnwares that are run.
        class_names: of the user.
        num_classes: of every learnware.
        parts: (centre, factor) of the features, of every learnware, of every pair of them.
        proxy: over these blocks side by side.
        ridge: as chosen by cross-validation, for inputs of total variance one.
        log_likelihood: cross-validated, mean over examples in nats; NaN without validation.
        tried: {learnwares: cross-validated log-likelihood} of all teams.
    """

    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    num_classes: tuple[int, ...]
    parts: tuple[tuple[np.ndarray, float], ...]
    proxy: Proxy
    ridge: float
    log_likelihood: float
    tried: Mapping[tuple[str, ...], float]

    def __call__(self, models: Models, inputs: Any, features: Array) -> np.ndarray:
        """Return probabilities (n, C_T) for inputs of the models and their public features."""
        features = as_features("features", features, dimension=len(self.parts[0][0]))
        counts = zip(self.ids, self.num_classes, strict=True)
        outputs = [_run(models, i, inputs, len(features), count) for i, count in counts]
        stacked = _side_by_side(_blocks(features, outputs), self.parts)
        return _softmax(stacked @ self.proxy.weights + self.proxy.bias)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _side_by_side(blocks: Sequence[np.ndarray], parts: Sequence[Any]) -> np.ndarray:
    scaled = [(block - mean) * by for block, (mean, by) in zip(blocks, parts, strict=True)]
    return np.concatenate(scaled, axis=1)


def _blocks(features: np.ndarray, outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the features, the roots of all outputs (n, C_l), and of all pairs (n, C_l C_k)."""
    roots = [np.sqrt(output) for output in outputs]
    pairs = [
        (a[:, :, None] * b[:, None, :]).reshape(len(a), -1)
        for i, a in enumerate(roots)
        for b in roots[:i]
    ]
    return [np.asarray(features), *roots, *pairs]


def _scales(blocks: Sequence[np.ndarray], count: int) -> tuple[tuple[np.ndarray, float], ...]:
    """Return (centre, factor) of blocks: total variance one, as much for each of the kinds."""
    pairs = len(blocks) - 1 - count
    kinds = 3.0 if pairs else 2.0
    parts = []
    for i, block in enumerate(blocks):
        mean = block.mean(axis=0)
        variance = float(np.square(block - mean).mean(axis=0).sum())
        share = kinds * (1 if i == 0 else count if i <= count else pairs)
        parts.append((mean, 1.0 / float(np.sqrt(share * variance)) if variance > 1e-12 else 0.0))
    return tuple(parts)


def assemble(
    result: Match,
    models: Models,
    inputs: Any,
    features: Array,
    labels: Array,
    *,
    size: int = 5,
    user: int = 0,
    folds: int = 5,
) -> Assembly:
    """Combine several learnwares into one predictor of the user's classes.

    The `size` learnwares of the best scores are run on the user's examples. Teams of them are
    the best 1, 2, 3 and all, and the class-wise one: for every user class the learnware among
    them that is most similar there. A team's inputs are the public features, the square roots of
    its models' probabilities, and the products of these for every two models: a class of one and
    a class of another say together what neither says alone. Each of the three has the same total
    variance. A logistic regression maps them to the user's classes, and the team and the ridge
    with the best cross-validated likelihood are taken. Choosing class by class is the idea of
    Liu, Tan and Zhou, "Identifying and Reusing Learnwares Across Different Label Spaces"
    (IJCAI 2025).

    Args:
        result: of `match`.
        models: {id: function of inputs}, or one function of (id, inputs); probabilities (n, C).
        inputs: whatever the models take; n examples.
        features: (n, d) public features of the same examples.
        labels: (n,) the user's classes, every one at least once.
        size: how many learnwares are run.
        user: which one, if the match was of a batch.
        folds: of the cross-validation; fewer if a class has fewer examples. With a single
            example of a class the class-wise team is taken.

    Raises:
        KeyError: no model for a learnware of the short list.
        TypeError, ValueError: an argument that is not as described; the message names it.
    """
    scores, _, similarity, names = _one_user(result, user)
    features = np.asarray(as_features("features", features))
    labels = as_labels(
        "labels", labels, rows=len(features), num_classes=len(names), every_class=True
    )
    top = np.argsort(-scores, kind="stable")[: as_size("size", size)]
    ids = [result.ids[i] for i in top]
    counts = [len(result.market.class_names(learnware)) for learnware in ids]
    outputs = [
        _run(models, learnware, inputs, len(features), count)
        for learnware, count in zip(ids, counts, strict=True)
    ]
    by_class = tuple(dict.fromkeys(similarity[top].argmax(axis=0).tolist()))
    teams = [by_class, *(tuple(range(count)) for count in (1, 2, 3, len(ids)) if count <= len(ids))]
    tried: dict[tuple[str, ...], float] = {}
    best = None
    for team in dict.fromkeys(tuple(sorted(team)) for team in teams):
        blocks = _blocks(features, [outputs[i] for i in team])
        parts = _scales(blocks, len(team))
        proxy, ridge, likelihood = calibrate(
            _side_by_side(blocks, parts), labels, num_classes=len(names), folds=folds
        )
        members = tuple(ids[i] for i in team)
        tried[members] = likelihood
        if best is None or likelihood > best.log_likelihood:
            sizes = tuple(counts[i] for i in team)
            best = Assembly(members, names, sizes, parts, proxy, ridge, likelihood, tried)
    assert best is not None
    return best


def calibrate(
    features: Array, labels: Array, *, num_classes: int, folds: int = 5
) -> tuple[Proxy, float, float]:
    """Return a linear proxy (d, C) of few examples, its ridge and its validated log-likelihood.

    The ridge, for features of total variance one, is that of `RIDGES` with the best
    cross-validated log-likelihood (mean over examples in nats). A class with a single example
    leaves nothing to validate on: then it is the middle one and the likelihood is NaN.

    The best weights lie in the span of the n examples, so the problem is solved in n coordinates
    (padded, so that few shapes compile); and features divided by the root of a ridge make it a
    problem of ridge one, so that all ridges and folds are one batch of one shape.

    Args:
        features: (n, d).
        labels: (n,) in 0..num_classes-1, every class at least once.
        num_classes: C.
        folds: of the cross-validation; fewer if a class has fewer examples.

    Raises:
        TypeError, ValueError: an argument that is not as described; the message names it.
    """
    features = np.asarray(as_features("features", features))
    rows, columns = features.shape
    classes = as_size("num_classes", num_classes, minimum=2)
    folds = as_size("folds", folds, minimum=2)
    labels = as_labels("labels", labels, rows=rows, num_classes=classes, every_class=True)
    origin = features.mean(axis=0)
    scale = float(np.sqrt(np.square(features - origin).mean(axis=0).sum())) or 1.0
    inputs = (features - origin) / scale
    basis = np.linalg.qr(inputs.T)[0] if columns > rows else np.eye(columns, dtype=inputs.dtype)
    size = bucket(basis.shape[1], minimum=64)
    small = pad_to((inputs @ basis).astype(np.float32), (rows, size))
    fold = _folds(labels, folds)
    ridges = RIDGES if fold is not None else (RIDGES[len(RIDGES) // 2],)
    splits = [] if fold is None else [fold == i for i in range(fold.max() + 1)]
    left_out = [*splits, np.zeros(rows, bool)]
    problems = [(small / np.sqrt(ridge), out) for ridge in ridges for out in left_out]
    fitted = fit_proxies(
        [values[~out] for values, out in problems],
        [labels[~out] for _, out in problems],
        num_classes=[classes] * len(problems),
        ridge=1.0,
        tolerance=1e-4,
    )
    totals = np.zeros(len(ridges))
    for j, (values, out) in enumerate(problems):
        chance = _softmax(values[out] @ fitted.weights[j] + fitted.bias[j])
        of_label = chance[np.arange(len(chance)), labels[out]]
        totals[j // len(left_out)] += np.log(np.maximum(of_label, 1e-30)).sum()
    best = int(totals.argmax())
    at = best * len(left_out) + len(splits)
    weights = basis @ fitted.weights[at][: basis.shape[1]] / (np.sqrt(ridges[best]) * scale)
    bias = fitted.bias[at] - origin @ weights
    proxy = centre_classes(Proxy(weights.astype(np.float32), bias.astype(np.float32)))
    return proxy, float(ridges[best]), float(totals[best] / rows) if splits else float("nan")
