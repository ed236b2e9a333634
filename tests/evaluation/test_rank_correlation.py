"""Kendall's tau against scipy, closed forms and an explicit count of pairs."""

import subprocess
import sys

import numpy as np
import pytest
import scipy.stats

from jaxspec import evaluation


@pytest.mark.parametrize("learnwares", [2, 3, 7, 8, 9, 21, 64, 300])
@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_tau_agrees_with_scipy(learnwares, levels):
    rng = np.random.default_rng(learnwares * levels)
    scores = rng.integers(0, levels, (12, learnwares)) / 7
    truth = rng.integers(0, levels, (12, learnwares)) / 3
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = [
            scipy.stats.kendalltau(s, t).statistic for s, t in zip(scores, truth, strict=True)
        ]
    expected = np.nan_to_num(expected)  # scipy says NaN where we define 0.0: constant inputs
    np.testing.assert_allclose(evaluation.kendall_taus(scores, truth), expected, atol=1e-14)
    assert evaluation.kendall_tau(scores, truth) == pytest.approx(np.mean(expected), abs=1e-14)


def test_tau_agrees_with_scipy_on_a_large_market():
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 5_000, 100_000) / 5_000
    scores = np.round(truth + rng.normal(size=100_000), 3)
    expected = scipy.stats.kendalltau(scores, truth).statistic
    assert evaluation.kendall_tau(scores, truth) == pytest.approx(expected, abs=1e-13)


def test_tau_of_constant_scores_or_one_learnware_is_zero():
    assert evaluation.kendall_tau([2.0, 2.0, 2.0], [0.1, 0.2, 0.3]) == 0.0
    assert evaluation.kendall_tau([1.0, 2.0, 3.0], [0.5, 0.5, 0.5]) == 0.0
    assert evaluation.kendall_tau([1.0], [0.5]) == 0.0


@pytest.mark.parametrize("learnwares", [*range(2, 60), 1000])
def test_tau_of_a_perfect_order_is_one_to_the_last_bit(learnwares):
    order = np.random.default_rng(0).permutation(learnwares) / 7
    assert evaluation.kendall_tau(order, order**3) == 1.0
    assert evaluation.kendall_tau(order, -order) == -1.0


def test_tau_of_scores_with_infinities_is_that_of_their_ranks():
    scores = np.array([-np.inf, 0.3, -np.inf, np.inf, 0.1, 0.3])
    truth = np.array([0.2, 0.5, 0.1, 0.9, 0.4, 0.7])
    ranks = scipy.stats.rankdata(scores)
    expected = scipy.stats.kendalltau(ranks, truth).statistic
    assert evaluation.kendall_tau(scores, truth) == pytest.approx(expected, abs=1e-14)


def test_importing_evaluation_does_not_load_scipy_stats():
    script = "import sys, jaxspec.evaluation; print('scipy.stats' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
