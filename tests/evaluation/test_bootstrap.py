"""Bootstrap intervals against closed forms, the normal approximation and coverage."""

import numpy as np
import pytest

from jaxspec import evaluation
from jaxspec.evaluation import bootstrap


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


def test_a_seed_in_place_of_a_generator_is_refused():
    with pytest.raises(TypeError, match="rng: expected a numpy.random.Generator, got int"):
        evaluation.bootstrap_interval([1.0, 2.0], rng=0)


def test_masked_values_are_refused_by_name():
    values = np.ma.masked_values([0.5, -999.0, 0.7], -999.0)
    with pytest.raises(ValueError, match="values: .* got a masked array"):
        evaluation.bootstrap_interval(values, rng=np.random.default_rng(0))


def test_an_interval_of_resamples_in_many_batches_agrees_with_one_batch(monkeypatch):
    values = np.random.default_rng(0).normal(size=(30, 2))
    together = evaluation.bootstrap_interval(values, rng=np.random.default_rng(1), repeats=20_000)
    monkeypatch.setattr(bootstrap, "RESAMPLED_NUMBERS", 600)
    apart = evaluation.bootstrap_interval(values, rng=np.random.default_rng(1), repeats=20_000)
    np.testing.assert_allclose(apart, together, atol=0.02)
