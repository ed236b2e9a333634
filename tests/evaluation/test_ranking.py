"""Pre@k and regret against closed forms and enumeration of every tie-breaking."""

import itertools

import numpy as np
import pytest
import scipy.stats

from jaxspec import evaluation


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
        ([[1.0], [1.0, 2.0]], [0.1, 0.2], ValueError, "scores: expected an array, got a list"),
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


def test_masked_scores_and_performance_are_refused_by_name():
    plain = np.array([[0.5, 0.6, 0.7]])
    masked = np.ma.masked_values([[0.5, -999.0, 0.7]], -999.0)
    for scores, performance, name in (
        (masked, plain, "scores"),
        (plain, masked, "performance"),
        (plain, list(masked), "performance"),
    ):
        for call in (evaluation.summarize, evaluation.kendall_taus, evaluation.regrets):
            with pytest.raises(ValueError, match=f"{name}: .* got a masked array"):
                call(scores, performance)
        with pytest.raises(ValueError, match=f"{name}: .* got a masked array"):
            evaluation.hit_at_k(scores, performance, 1)


class TensorThatNeedsAGradient:
    """Has of a torch tensor what matters here."""

    requires_grad = True

    def detach(self):
        raise AssertionError("the gradient would be lost")


def test_tensors_that_need_a_gradient_are_refused_by_name():
    with pytest.raises(TypeError, match="performance: .* requires a gradient"):
        evaluation.regret([1.0, 2.0], TensorThatNeedsAGradient())
