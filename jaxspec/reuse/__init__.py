"""Reuse of the learnwares that a match recommends, with the models themselves at hand.

May be called: `try_short_list` runs the best models on the user's labelled examples and weighs that
evidence against the score; `direct_predictor` and `to_user_classes` translate a model's classes
into the user's; `fine_tune` trains a model further on a few examples; `assemble` combines several
learnwares into one predictor where none covers the user's classes.

A model is a function of n inputs that returns class probabilities (n, C) in the order of its
specification's class names. Nothing here sees the submitters' data or stores the user's. Constants
were chosen on development markets (seeds 0 to 9) that no reported figure uses.
"""

from jaxspec.reuse.assembly import Assembly, assemble
from jaxspec.reuse.fine_tuning import FineTuned, fine_tune
from jaxspec.reuse.models import Model, Models
from jaxspec.reuse.short_list import Trial, direct_predictor, to_user_classes, try_short_list
from jaxspec.reuse.validated_proxy import ValidatedProxy, fit_validated_proxy

__all__ = [
    "Assembly",
    "FineTuned",
    "Model",
    "Models",
    "Trial",
    "ValidatedProxy",
    "assemble",
    "direct_predictor",
    "fine_tune",
    "fit_validated_proxy",
    "to_user_classes",
    "try_short_list",
]
