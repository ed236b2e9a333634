"""Ranking metrics against scipy, closed forms and enumeration of every tie-breaking."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from jaxspec.evaluation import metrics as evaluation


def tie_breakings(scores):
    """Every order of the learnwares, best first, that agrees with the scores."""
    return [
        order
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]


def tied_problems(count, learnwares, seed):
    """Scores and performance on few levels, so that most problems have ties in both."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        levels = rng.integers(1, 5, size=2)
        yield rng.integers(0, levels[0], learnwares), rng.integers(0, levels[1], learnwares) / 8


@pytest.mark.parametrize("learnwares", [1, 2, 5, 6])
def test_hit_is_the_mean_over_every_tie_breaking(learnwares):
    for scores, truth in tied_problems(40, learnwares, seed=learnwares):
        orders = tie_breakings(scores)
        for k in range(1, learnwares + 2):
            expected = np.mean(
                [max(truth[m] for m in order[:k]) == truth.max() for order in orders]
            )
            assert evaluation.hit_at_k(scores, truth, k) == pytest.approx([expected])


@pytest.mark.parametrize("learnwares", [1, 2, 5, 6])
def test_regret_is_the_mean_over_every_tie_breaking(learnwares):
    for scores, truth in tied_problems(40, learnwares, seed=10 + learnwares):
        expected = np.mean([truth.max() - truth[order[0]] for order in tie_breakings(scores)])
        assert evaluation.regrets(scores, truth) == pytest.approx([expected], abs=1e-15)


def test_hit_with_all_scores_tied_is_k_over_m():
    truth = np.arange(1000.0)
    for k in (1, 2, 499, 999, 1000):
        assert evaluation.precision_at_k(np.zeros(1000), truth, k) == pytest.approx(k / 1000)


def test_hit_with_all_scores_tied_follows_the_hypergeometric_law():
    truth = np.where(np.arange(300) % 6 == 0, 1.0, 0.5)  # 50 of 300 are truly best
    for k in (1, 7, 80, 260):
        expected = scipy.stats.hypergeom(300, 50, k).sf(0)
        assert evaluation.precision_at_k(np.ones(300), truth, k) == pytest.approx(expected)


def test_hit_grows_with_k_and_reaches_one_at_the_market_size():
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 5, (30, 9)), rng.random((30, 9))
    hits = np.array([evaluation.hit_at_k(scores, truth, k) for k in range(1, 11)])
    assert (np.diff(hits, axis=0) >= 0).all()
    assert (hits[8:] == 1).all()


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


def test_perfect_and_reversed_rankings_have_closed_forms():
    truth = np.random.default_rng(1).permutation(50) / 50
    perfect = evaluation.summarize(100 * truth - 7, truth)
    assert perfect.as_dict() == {"pre@1": 1, "pre@2": 1, "pre@3": 1, "regret": 0, "tau": 1}
    reversed_ = evaluation.summarize(-truth, truth, ks=(1, 49, 50))
    assert reversed_.as_dict() == pytest.approx(
        {"pre@1": 0, "pre@49": 0, "pre@50": 1, "regret": 0.98, "tau": -1}
    )


def all_metrics(scores, truth):
    hits = [evaluation.hit_at_k(scores, truth, k) for k in (1, 2, 3)]
    return np.array(
        [*hits, evaluation.kendall_taus(scores, truth), evaluation.regrets(scores, truth)]
    )


def tied_batch():
    rng = np.random.default_rng(5)
    return rng.integers(0, 4, (20, 11)) / 4, rng.integers(0, 6, (20, 11)) / 6


def test_every_metric_ignores_the_order_of_learnwares():
    scores, truth = tied_batch()
    order = np.random.default_rng(6).permutation(11)
    permuted = all_metrics(scores[:, order], truth[:, order])
    np.testing.assert_allclose(permuted, all_metrics(scores, truth), atol=1e-15)


def test_every_metric_depends_on_scores_only_through_their_order():
    scores, truth = tied_batch()
    np.testing.assert_array_equal(
        all_metrics(np.exp(5 * scores), truth), all_metrics(scores, truth)
    )
    ruled_out = np.where(scores == scores.min(), -np.inf, scores)
    np.testing.assert_array_equal(all_metrics(ruled_out, truth), all_metrics(scores, truth))


def test_a_batch_of_users_is_the_users_one_by_one():
    scores, truth = tied_batch()
    alone = [all_metrics(s, t)[:, 0] for s, t in zip(scores, truth, strict=True)]
    np.testing.assert_allclose(all_metrics(scores, truth), np.transpose(alone), atol=1e-15)


def test_the_summary_is_the_mean_over_users_of_every_metric():
    scores, truth = tied_batch()
    summary = evaluation.summarize(scores, truth)
    means = all_metrics(scores, truth).mean(axis=1)
    np.testing.assert_allclose([*summary.precision, summary.tau, summary.regret], means)
    assert summary.regret == evaluation.regret(scores, truth)


def test_regret_is_never_negative_for_tied_inexact_numbers():
    assert evaluation.regret(np.zeros(3), np.full(3, 0.1)) == 0.0


def test_inputs_are_left_as_they_came():
    scores, truth = tied_batch()
    before = scores.copy(), truth.copy()
    evaluation.summarize(scores, truth)
    np.testing.assert_array_equal(scores, before[0])
    np.testing.assert_array_equal(truth, before[1])


@pytest.mark.parametrize(
    "metric",
    [
        lambda s, p: evaluation.precision_at_k(s, p, 1),
        evaluation.kendall_tau,
        evaluation.regret,
        evaluation.summarize,
    ],
)
@pytest.mark.parametrize(
    ("scores", "performance", "error", "message"),
    [
        ([1.0, np.nan], [0.1, 0.2], ValueError, "scores: expected no NaN, got 1"),
        ([1.0, 2.0], [np.nan, np.nan], ValueError, "performance: expected no NaN, got 2"),
        ([1.0, 2.0], [0.1, np.inf], ValueError, "performance: expected finite"),
        ([1.0, 2.0], [0.1, 0.2, 0.3], ValueError, r"performance: .* \(2,\), got \(3,\)"),
        ([[1.0, 2.0]], [0.1, 0.2], ValueError, r"performance: .* \(1, 2\), got \(2,\)"),
        ([], [], ValueError, r"scores: .* got shape \(0,\)"),
        (np.zeros((0, 3)), np.zeros((0, 3)), ValueError, "scores: .* not empty"),
        (np.zeros((1, 2, 3)), np.zeros((1, 2, 3)), ValueError, "scores: .* got shape"),
        (1.0, 1.0, ValueError, r"scores: .* got shape \(\)"),
        (["a", "b"], [0.1, 0.2], TypeError, "scores: expected an array of real numbers"),
        ([1.0, 2.0], [0.1j, 0.2], TypeError, "performance: .* complex128"),
        ([[1.0], [1.0, 2.0]], [0.1, 0.2], TypeError, "scores: .* real numbers"),
        (None, [0.1], TypeError, "scores: .* object"),
    ],
)
def test_bad_arrays_are_refused_by_name(metric, scores, performance, error, message):
    with pytest.raises(error, match=message):
        metric(scores, performance)


@pytest.mark.parametrize(
    ("k", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_bad_k_is_refused_by_name(k, error):
    with pytest.raises(error, match=r"k: expected .* got"):
        evaluation.precision_at_k([1.0, 2.0], [0.1, 0.2], k)
    with pytest.raises(error, match=r"ks: expected .* got"):
        evaluation.summarize([1.0, 2.0], [0.1, 0.2], ks=(1, k))


def coin_flips(rates, users, pictures, seed):
    """Draw (users, M, T) booleans: learnware m is right with probability rates[m]."""
    rng = np.random.default_rng(seed)
    return rng.random((users, len(rates), pictures)) < np.asarray(rates)[None, :, None]


def test_ceiling_is_perfect_when_the_learnwares_are_far_apart():
    ceiling = evaluation.split_half_ceiling(
        coin_flips([0.1, 0.5, 0.9], 4, 400, seed=0), rng=np.random.default_rng(0), repeats=10
    )
    assert ceiling == evaluation.EvaluationSummary((1, 2, 3), (1.0, 1.0, 1.0), regret=0.0, tau=1.0)


def test_ceiling_with_two_pictures_has_a_closed_form():
    # Learnware 0 is right on picture 0, learnware 1 on picture 1: the halves always disagree.
    correct = np.array([[[True, False], [False, True]]])
    ceiling = evaluation.split_half_ceiling(correct, rng=np.random.default_rng(0), ks=(1, 2))
    assert ceiling == evaluation.EvaluationSummary((1, 2), (0.0, 1.0), regret=1.0, tau=-1.0)


def test_ceiling_matches_an_explicit_enumeration_of_splits():
    correct = coin_flips([0.3, 0.5, 0.6, 0.7], 1, 5, seed=2)[0]
    rows = []
    for first in itertools.combinations(range(5), 2):
        second = [t for t in range(5) if t not in first]
        halves = correct[:, first].mean(axis=1), correct[:, second].mean(axis=1)
        rows.append(list(evaluation.summarize(*halves).as_dict().values()))
    ceiling = evaluation.split_half_ceiling(
        correct[None], rng=np.random.default_rng(0), repeats=20_000
    )
    np.testing.assert_allclose(list(ceiling.as_dict().values()), np.mean(rows, axis=0), atol=0.02)


def test_ceiling_of_alike_learnwares_follows_the_law_of_independent_halves():
    # Both halves are independent Binomial(30, 1/2) counts for each of 10 learnwares.
    counts = scipy.stats.binom(30, 0.5)
    right = np.arange(31)
    best_alone = np.sum(counts.pmf(right) * counts.cdf(right) ** 9)  # truly best, with ties
    highest = np.sum(right * (counts.cdf(right) ** 10 - counts.cdf(right - 1) ** 10))
    ceiling = evaluation.split_half_ceiling(
        coin_flips([0.5] * 10, 2000, 60, seed=3), rng=np.random.default_rng(1), repeats=4
    )
    assert ceiling.precision[0] == pytest.approx(best_alone, abs=0.03)
    assert ceiling.regret == pytest.approx((highest - 15) / 30, abs=0.01)
    assert ceiling.tau == pytest.approx(0.0, abs=0.03)


def test_ceiling_takes_a_list_of_users_of_unlike_sizes_and_weighs_them_alike():
    far, alike = coin_flips([0.05, 0.95], 1, 300, seed=4)[0], np.ones((4, 50), dtype=bool)
    ceiling = evaluation.split_half_ceiling([far, alike], rng=np.random.default_rng(0), ks=(1,))
    assert ceiling == evaluation.EvaluationSummary((1,), (1.0,), regret=0.0, tau=0.5)


def test_ceiling_is_a_function_of_its_generator():
    correct = coin_flips([0.4, 0.5, 0.6], 3, 31, seed=5)
    first, again, other = (
        evaluation.split_half_ceiling(correct, rng=np.random.default_rng(seed), repeats=7)
        for seed in (0, 0, 1)
    )
    listed = evaluation.split_half_ceiling(list(correct), rng=np.random.default_rng(0), repeats=7)
    assert first == again == listed
    assert first != other


@pytest.mark.parametrize(
    ("correct", "error", "message"),
    [
        (np.ones((2, 3, 4)), TypeError, "correct: expected bool, got float64 for user 0"),
        (np.ones((3, 4), dtype=bool), ValueError, r"correct: .* got shape \(3, 4\)"),
        (np.ones((2, 3, 1), dtype=bool), ValueError, r"2 test pictures, got shape \(3, 1\)"),
        (np.ones((2, 0, 4), dtype=bool), ValueError, "at least 1 learnware"),
        ([np.ones((3, 4), dtype=bool), np.ones(4, dtype=bool)], ValueError, "for user 1"),
        ([], ValueError, "correct: expected at least one user"),
    ],
)
def test_bad_correctness_tables_are_refused_by_name(correct, error, message):
    with pytest.raises(error, match=message):
        evaluation.split_half_ceiling(correct, rng=np.random.default_rng(0))


def test_seeds_in_place_of_generators_are_refused():
    with pytest.raises(TypeError, match="rng: expected a numpy.random.Generator, got int"):
        evaluation.split_half_ceiling(np.ones((1, 2, 4), dtype=bool), rng=0)
    with pytest.raises(TypeError, match="rng: expected a numpy.random.Generator, got int"):
        evaluation.bootstrap_interval([1.0, 2.0], rng=0)


def test_bootstrap_interval_agrees_with_the_normal_approximation():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    half_width = 1.96 * values.std() / np.sqrt(400)
    lower, upper = evaluation.bootstrap_interval(
        values, rng=np.random.default_rng(1), repeats=20_000
    )
    assert lower == pytest.approx(values.mean() - half_width, abs=0.01)
    assert upper == pytest.approx(values.mean() + half_width, abs=0.01)


def test_bootstrap_interval_of_two_markets_has_a_closed_form():
    # Resampled means are 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4.
    wide = evaluation.bootstrap_interval([0.0, 1.0], rng=np.random.default_rng(0), level=0.95)
    narrow = evaluation.bootstrap_interval([0.0, 1.0], rng=np.random.default_rng(0), level=0.3)
    assert wide == (0.0, 1.0)
    assert narrow == (0.5, 0.5)


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(300):
        lower, upper = evaluation.bootstrap_interval(rng.normal(size=40), rng=rng, repeats=400)
        covered += lower <= 0.0 <= upper
    assert 0.89 <= covered / 300 <= 0.98


def test_bootstrap_interval_keeps_trailing_axes_paired():
    values = np.random.default_rng(2).normal(size=(20, 2, 3))
    values[:, 1] = values[:, 0] + 0.5
    lower, upper = evaluation.bootstrap_interval(values, rng=np.random.default_rng(0))
    assert lower.shape == upper.shape == (2, 3)
    np.testing.assert_allclose(lower[1] - lower[0], 0.5)
    alone = evaluation.bootstrap_interval(values[:, 0, 1], rng=np.random.default_rng(0))
    assert alone == pytest.approx((lower[0, 1], upper[0, 1]))


def test_bootstrap_interval_is_a_function_of_its_generator():
    values = np.random.default_rng(3).random(20)
    first, again, other = (
        evaluation.bootstrap_interval(values, rng=np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("values", "level", "message"),
    [
        ([1.0], 0.95, r"values: .* at least 2 markets .* got shape \(1,\)"),
        (1.0, 0.95, r"values: .* got shape \(\)"),
        (np.zeros((3, 0)), 0.95, "values: .* no empty axis"),
        ([1.0, np.nan], 0.95, "values: expected no NaN"),
        ([1.0, np.inf], 0.95, "values: expected finite"),
        ([1.0, 2.0], 95, "level: .* got 95"),
        ([1.0, 2.0], np.nan, "level: .* got nan"),
        ([1.0, 2.0], "0.95", "level: .* got '0.95'"),
    ],
)
def test_bad_bootstrap_inputs_are_refused_by_name(values, level, message):
    with pytest.raises(ValueError, match=message):
        evaluation.bootstrap_interval(values, rng=np.random.default_rng(0), level=level)


def test_the_module_loads_nothing_heavier_than_numpy():
    source = Path(evaluation.__file__)
    script = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('alone', {str(source)!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "sys.modules['alone'] = module\n"
        "spec.loader.exec_module(module)\n"
        "print(sorted({'jax', 'scipy', 'sklearn', 'pandas'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
