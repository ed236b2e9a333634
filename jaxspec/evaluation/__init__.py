"""How well the scores of a method rank the learnwares of a market.

Four modules live here: `ranking` (Pre@k, regret and their summary), `rank_correlation` (Kendall's
tau-b), `ceiling` (what the noise of the test examples leaves to be won) and `bootstrap` (intervals
over markets). `scores` are what a method says; `performance` is the truth, the measured test
accuracy of every learnware for every user. Both have shape (M,) for one user or (Q, M) for Q
users. Functions in the plural and `hit_at_k` return one value per user, the others the mean.

Only the order of the scores matters, so scores may be infinite (-inf for a learnware that a method
excludes). Ties are never broken by position: a metric is its expectation over random tie-breaking.
NaN and masked arrays are refused. Inputs are never changed, and all work is done in float64.
"""

from jaxspec.evaluation.bootstrap import Interval, bootstrap_interval
from jaxspec.evaluation.ceiling import split_half_ceiling
from jaxspec.evaluation.rank_correlation import kendall_tau, kendall_taus
from jaxspec.evaluation.ranking import (
    EvaluationSummary,
    hit_at_k,
    precision_at_k,
    regret,
    regrets,
    summarize,
)

__all__ = [
    "EvaluationSummary",
    "Interval",
    "bootstrap_interval",
    "hit_at_k",
    "kendall_tau",
    "kendall_taus",
    "precision_at_k",
    "regret",
    "regrets",
    "split_half_ceiling",
    "summarize",
]
