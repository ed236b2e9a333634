"""Kendall's rank correlation between the scores of a method and the true performance.

May be called: `kendall_taus` (one value per user) and `kendall_tau` (their mean). The statistic is
`scipy.stats.kendalltau`, variant b;
its p-value is not used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy  # its subpackage `stats` (0.7 s) is loaded on first use

from jaxspec.evaluation.inputs import as_score_pair

if TYPE_CHECKING:
    from jaxtyping import Float64
    from numpy.typing import ArrayLike

__all__ = ["kendall_tau", "kendall_taus"]


def kendall_taus(scores: ArrayLike, performance: ArrayLike) -> Float64[np.ndarray, " Q"]:
    """Return Kendall's tau-b between scores and performance, per user.

    With C concordant and D discordant pairs, and n_s and n_p pairs tied in the scores and in the
    performance among all n = M (M - 1) / 2 pairs,

        tau_b = (C - D) / sqrt((n - n_s) (n - n_p)).

    Where the denominator is zero (constant scores, constant performance, a single learnware) the
    scores order nothing, and tau is defined as 0.0.

    Args:
        scores: (M,) or (Q, M), larger is better.
        performance: the true values, same shape, finite.

    Returns:
        (Q,) values in [-1, 1]; Q = 1 for one user.

    Raises:
        TypeError: if an input is not numeric.
        ValueError: if shapes disagree or are empty, or values are NaN or masked.
    """
    given, truth = as_score_pair(scores, performance)
    taus = np.zeros(len(given))
    constant = (given == given[:, :1]).all(axis=1) | (truth == truth[:, :1]).all(axis=1)
    for user in np.flatnonzero(~constant):
        taus[user] = scipy.stats.kendalltau(given[user], truth[user]).statistic
    # scipy divides by two square roots in turn, which leaves 0.9999999999999999 for a perfect
    # order of ten. Other values of tau differ from 1 by more than 1e-14 up to M = 10 million.
    return np.round(taus, 14)


def kendall_tau(scores: ArrayLike, performance: ArrayLike) -> float:
    """Return the mean over users of `kendall_taus` (see there for ties, shapes and errors).

    >>> kendall_tau([1.0, 2.0, 3.0], [0.1, 0.2, 0.3])
    1.0
    """
    return float(kendall_taus(scores, performance).mean())
