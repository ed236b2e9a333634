"""One predictor of several learnwares, for a user whose classes no single learnware covers.

May be called: `assemble`, which returns an `Assembly`. The models are run and never changed; what
is trained is a logistic regression on their outputs and the public features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy

from jaxspec.base import as_class_labels, as_features, as_size
from jaxspec.matching import Match
from jaxspec.reuse.models import Models, check_match, run_model
from jaxspec.reuse.team_inputs import Scaling, block_scalings, stack_blocks, team_blocks
from jaxspec.reuse.validated_proxy import fit_validated_proxy
from jaxspec.specify import Proxy

if TYPE_CHECKING:
    from jaxtyping import Array, Float
    from numpy.typing import ArrayLike

__all__ = ["Assembly", "assemble"]


@dataclasses.dataclass(frozen=True)
class Assembly:
    """Several learnwares as one predictor; see `assemble`.

    Attributes:
        ids: the learnwares that are run.
        class_names: of the user.
        num_classes: of every learnware.
        parts: `Scaling` of the features, of every learnware, and of every pair of them.
        proxy: the regression on these blocks side by side.
        ridge: as chosen by cross-validation, for inputs of total variance one.
        log_likelihood: cross-validated, mean over examples in nats; NaN without validation.
        tried: {learnwares: cross-validated log-likelihood} of all teams.
    """

    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    num_classes: tuple[int, ...]
    parts: tuple[Scaling, ...]
    proxy: Proxy
    ridge: float
    log_likelihood: float
    tried: Mapping[tuple[str, ...], float]

    def __call__(
        self, models: Models, inputs: Any, features: ArrayLike | Array
    ) -> Float[np.ndarray, "n K"]:
        """Return probabilities (n, C_T) over the user's classes.

        Args:
            models: as in `assemble`.
            inputs: whatever the models take; n examples.
            features: (n, d) public features of the same examples.
        """
        dimension = len(self.parts[0].centre)
        features = np.asarray(as_features("features", features, dimension=dimension))
        outputs = [
            run_model(models, learnware, inputs, rows=len(features), classes=classes)
            for learnware, classes in zip(self.ids, self.num_classes, strict=True)
        ]
        stacked = stack_blocks(team_blocks(features, outputs), self.parts)
        logits = stacked @ np.asarray(self.proxy.weights) + np.asarray(self.proxy.bias)
        return scipy.special.softmax(logits, axis=1)


def assemble(
    result: Match,
    models: Models,
    inputs: Any,
    features: ArrayLike | Array,
    labels: ArrayLike | Array,
    *,
    size: int = 5,
    folds: int = 5,
) -> Assembly:
    """Combine several learnwares into one predictor of the user's classes.

    The `size` learnwares of the best scores are run on the user's examples. The teams tried are
    the best 1, 2, 3 and all of them, and the class-wise team: for every user class the learnware
    that is most similar there. A logistic regression on the public features, the square roots of
    the team's probabilities and their products in pairs (see `team_blocks`) gives the user's
    classes; the team and the ridge with the best cross-validated likelihood are taken. Choosing
    class by class is the idea of Liu, Tan and Zhou, "Identifying and Reusing Learnwares Across
    Different Label Spaces" (IJCAI 2025).

    Args:
        result: of `match`.
        models: {id: function of inputs}, or one function of (id, inputs); probabilities (n, C).
        inputs: whatever the models take; n examples.
        features: (n, d) public features of the same examples.
        labels: (n,) the user's classes: integers in 0..C_T-1, or the names; each at least once.
        size: how many learnwares are run.
        folds: of the cross-validation; fewer if a class has fewer examples. Where a class has one
            example only, the class-wise team is taken.

    Raises:
        KeyError: no model for a learnware of the short list.
        TypeError, ValueError: an argument that is not as described; the message names it.
    """
    check_match(result)
    names = result.class_names
    features = np.asarray(as_features("features", features))
    labels = as_class_labels(
        "labels", labels, rows=len(features), class_names=names, every_class=True
    )
    top = np.argsort(-np.asarray(result.scores), kind="stable")[: as_size("size", size)]
    ids = [result.ids[i] for i in top]
    counts = [len(result.class_names_of(learnware)) for learnware in ids]
    outputs = [
        run_model(models, learnware, inputs, rows=len(features), classes=classes)
        for learnware, classes in zip(ids, counts, strict=True)
    ]
    assemblies = []
    for team in _teams(np.asarray(result.class_similarity)[top]):
        blocks = team_blocks(features, [outputs[i] for i in team])
        parts = block_scalings(blocks, len(team))
        fitted = fit_validated_proxy(
            stack_blocks(blocks, parts), labels, num_classes=len(names), folds=folds
        )
        members = tuple(ids[i] for i in team)
        classes = tuple(counts[i] for i in team)
        assemblies.append(Assembly(members, names, classes, parts, *fitted, tried={}))
    likelihoods = [assembly.log_likelihood for assembly in assemblies]
    # Without validation all likelihoods are NaN, and argmax gives the first, class-wise team.
    best = assemblies[int(np.argmax(likelihoods))]
    tried = {assembly.ids: assembly.log_likelihood for assembly in assemblies}
    return dataclasses.replace(best, tried=tried)


def _teams(similarity: Float[np.ndarray, "size K"]) -> list[tuple[int, ...]]:
    """Return the teams to try, as rows of the short list: the class-wise one, then the best few.

    Args:
        similarity: of the short list's learnwares, best first, to the user's classes.
    """
    size = len(similarity)
    class_wise = tuple(sorted(set(similarity.argmax(axis=0).tolist())))
    best = [tuple(range(count)) for count in (1, 2, 3, size) if count <= size]
    return list(dict.fromkeys([class_wise, *best]))
