"""Direct use of a recommended model, and the choice among the best few by a trial.

May be called: `try_short_list` runs the k best models on labelled examples and returns a `Trial`;
`direct_predictor` and `to_user_classes` give probabilities over the user's classes. Nothing here
trains a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from jaxspec.base import as_class_labels, as_features, as_size
from jaxspec.matching import Match
from jaxspec.reuse.models import Model, Models, check_match, run_model

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int
    from numpy.typing import ArrayLike

__all__ = ["Trial", "direct_predictor", "to_user_classes", "try_short_list"]

# One standard deviation of the scores weighs as much as this many examples, because the score has
# seen the same examples through the proxies. Best of 8 values, or equal to the best, at 10, 25 and
# 50 examples.
PRIOR_EXAMPLES = 25.0
GUESS_SHARE = 0.1  # share of a uniform guess in a likelihood, as in `jaxspec.scoring`


@dataclasses.dataclass(frozen=True)
class Trial:
    """What the models of the short list did on the user's examples, in the order of the score.

    Attributes:
        chosen: the learnware of the largest `posterior`.
        ids: k learnwares, best score first.
        scores: (k,) of the match.
        accuracy: (k,) fraction of the examples that are classified correctly.
        log_likelihood: (k,) mean over examples of log((1 - s) C_T p + s) in nats, where p is the
            probability of the label and s the share of a uniform guess, 0.1; guessing gives 0.
        posterior: (k,) score and evidence together; see `try_short_list`.
    """

    chosen: str
    ids: tuple[str, ...]
    scores: Float[np.ndarray, " k"]
    accuracy: Float[np.ndarray, " k"]
    log_likelihood: Float[np.ndarray, " k"]
    posterior: Float[np.ndarray, " k"]

    def reasons(self) -> list[str]:
        """Return one line per learnware, the largest posterior first."""
        return [
            f"{self.ids[i]}: {self.accuracy[i]:.0%} of your examples correct, log-likelihood "
            f"relative to guessing {self.log_likelihood[i]:+.3f}, score {self.scores[i]:.3f} "
            f"(rank {i + 1}), posterior {self.posterior[i]:+.3f}"
            for i in np.argsort(-self.posterior, kind="stable")
        ]


def to_user_classes(
    probabilities: ArrayLike | Array, class_map: Sequence[int] | Int[np.ndarray, " K"]
) -> Float[Array, "n K"]:
    """Return a model's probabilities (n, C) as the user's (n, C_T), rows that sum to one.

    The probability of classes that the user does not have is redistributed in proportion; a class
    that stands for several of the user's is split evenly among them. A row without probability on
    any mapped class is uniform over the mapped classes; a map without classes gives uniform rows.
    Works under `jit`, `vmap` and `grad` in the probabilities.

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
    classes, dtype = probabilities.shape[1], probabilities.dtype
    if chosen.size == 0 or chosen.min() < -1 or chosen.max() >= classes:
        raise ValueError(f"class_map: expected classes from -1 to {classes - 1}, got {class_map}")
    mapped = chosen >= 0
    users_of_class = (chosen[:, None] == chosen[None, :]).sum(axis=1)
    share = np.where(mapped, 1.0 / users_of_class, 0.0)[None, :].astype(dtype)
    covered = mapped if mapped.any() else np.ones_like(mapped)
    uniform = (covered / covered.sum())[None, :].astype(dtype)
    mass = probabilities[:, np.maximum(chosen, 0)] * share
    total = mass.sum(axis=1, keepdims=True)
    return jnp.where(total > 0, mass / jnp.where(total > 0, total, 1.0), uniform)


def direct_predictor(
    result: Match, learnware: str, model: Model
) -> Callable[[Any], Float[Array, "n K"]]:
    """Return a function of inputs that gives probabilities (n, C_T) over the user's classes.

    Args:
        result: the match, whose class map says which class stands for which.
        learnware: an id of the match.
        model: the learnware's function of inputs.

    Raises:
        KeyError: an id that the match does not hold.
        TypeError: a result that is not a Match.
    """
    check_match(result)
    if learnware not in result.ids:
        raise KeyError(f"learnware: expected an id of the match, got {learnware!r}")
    class_map = np.array(result.class_map[result.ids.index(learnware)])

    def predict(inputs: Any) -> Float[Array, "n K"]:
        return to_user_classes(model(inputs), class_map)

    return predict


def try_short_list(
    result: Match,
    models: Models,
    inputs: Any,
    labels: ArrayLike | Array,
    *,
    k: int = 3,
    prior_examples: float = PRIOR_EXAMPLES,
) -> Trial:
    """Run the k best learnwares on n labelled examples and choose by score and evidence together:

        posterior = (p z + n (accuracy + log-likelihood / 2) / 2) / (p + n)

    where p is `prior_examples` and z the score in standard deviations of the match's scores.
    With few examples the score decides, with many the evidence.

    Args:
        result: of `match`, over all learnwares: z is relative to the scores that it holds.
        models: {id: function of inputs}, or one function of (id, inputs); probabilities (n, C).
        inputs: whatever the models take; n examples.
        labels: (n,) the user's classes: integers in 0..C_T-1, or the names.
        k: how many to run (fewer if the match holds fewer).
        prior_examples: how many examples a standard deviation of the scores is worth; 0 for the
            evidence alone.

    Raises:
        KeyError: no model for a recommended learnware.
        TypeError, ValueError: an argument that is not as described; the message names it.
    """
    check_match(result)
    count = as_size("k", k)
    if not 0 <= prior_examples < np.inf:
        raise ValueError(f"prior_examples: expected a number >= 0, got {prior_examples}")
    user_classes = len(result.class_names)
    labels = np.asarray(as_class_labels("labels", labels, class_names=result.class_names))
    if not len(labels):
        raise ValueError("labels: expected at least one example, got none")
    scores = np.asarray(result.scores)
    order = np.argsort(-scores, kind="stable")[:count]
    ids = tuple(result.ids[i] for i in order)
    accuracy, likelihood = np.zeros(len(order)), np.zeros(len(order))
    for place, row in enumerate(order):
        classes = len(result.class_names_of(ids[place]))
        outputs = run_model(models, ids[place], inputs, rows=len(labels), classes=classes)
        of_user = np.asarray(to_user_classes(outputs, result.class_map[row]))
        accuracy[place] = (of_user.argmax(axis=1) == labels).mean()
        of_label = of_user[np.arange(len(labels)), labels] * user_classes
        likelihood[place] = np.log((1 - GUESS_SHARE) * of_label + GUESS_SHARE).mean()
    spread = scores.std()
    z = (scores[order] - scores.mean()) / (spread if spread > 0 else 1.0)
    evidence = (accuracy + likelihood / 2) / 2
    posterior = (prior_examples * z + len(labels) * evidence) / (prior_examples + len(labels))
    return Trial(ids[int(posterior.argmax())], ids, scores[order], accuracy, likelihood, posterior)
