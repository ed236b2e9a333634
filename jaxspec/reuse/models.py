"""What a model is, how one is run, and the check of the match that the reuse functions share.

`run_model` runs one model and checks its probabilities; `check_match` checks the answer of a
market. Nothing here keeps a model or its outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxspec.base import as_probabilities
from jaxspec.matching import Match

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Model", "Models", "check_match", "run_model"]

Model = Callable[[Any], Any]
Models = Mapping[str, Model] | Callable[[str, Any], Any]


def check_match(result: Match) -> None:
    """Raise a TypeError unless `result` is the match of one user."""
    if not isinstance(result, Match):
        raise TypeError(
            f"result: expected the Match of one user, got {type(result).__name__}; "
            "match returns a list of them for a sequence of users"
        )


def run_model(
    models: Models, learnware: str, inputs: Any, *, rows: int, classes: int
) -> Float[np.ndarray, "rows classes"]:
    """Run the model of one learnware and return its checked probabilities.

    Args:
        models: {id: function of inputs}, or one function of (id, inputs).
        learnware: whose model to run.
        inputs: whatever the model takes.
        rows: expected number of examples.
        classes: expected number of the model's classes.

    Raises:
        KeyError: no model for this learnware.
        TypeError: models that are neither a mapping nor a function.
        ValueError: outputs that are not probabilities of shape (rows, classes).
    """
    if isinstance(models, Mapping):
        if learnware not in models:
            raise KeyError(f"models: expected a model for {learnware!r}, got {sorted(models)}")
        outputs = models[learnware](inputs)
    elif callable(models):
        outputs = models(learnware, inputs)
    else:
        raise TypeError(f"models: expected a mapping or a function, got {type(models).__name__}")
    name = f"models[{learnware!r}]"
    return np.asarray(as_probabilities(name, outputs, rows=rows, num_classes=classes))
