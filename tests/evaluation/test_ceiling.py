"""The split-half ceiling against enumeration of splits and laws of independent halves."""

import itertools

import numpy as np
import pytest
import scipy.stats

from jaxspec import evaluation


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
        (np.ones((2, 3, 1), dtype=bool), ValueError, r"2 test examples, got shape \(3, 1\)"),
        (np.ones((2, 0, 4), dtype=bool), ValueError, "at least 1 learnware"),
        ([np.ones((3, 4), dtype=bool), np.ones(4, dtype=bool)], ValueError, "for user 1"),
        ([], ValueError, "correct: expected at least one user"),
    ],
)
def test_bad_correctness_tables_are_refused_by_name(correct, error, message):
    with pytest.raises(error, match=message):
        evaluation.split_half_ceiling(correct, rng=np.random.default_rng(0))


def test_a_seed_in_place_of_a_generator_is_refused():
    with pytest.raises(TypeError, match="rng: expected a numpy.random.Generator, got int"):
        evaluation.split_half_ceiling(np.ones((1, 2, 4), dtype=bool), rng=0)


def test_masked_correctness_tables_are_refused_by_name():
    correct = np.ma.array(np.ones((2, 3, 4), dtype=bool), mask=False)
    correct[:, 0, 1] = np.ma.masked
    for masked in (correct, list(correct)):
        with pytest.raises(ValueError, match="correct: .* got a masked array"):
            evaluation.split_half_ceiling(masked, rng=np.random.default_rng(0))
