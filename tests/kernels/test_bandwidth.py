"""The median heuristic against the pairwise distances of scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_oracles import sample
from scipy.spatial.distance import pdist

from jaxspec.kernels import median_bandwidth


@pytest.mark.parametrize("metric", ["euclidean", "cityblock"])
def test_median_bandwidth_equals_scipy(metric):
    x = sample(0, 101, offset=100.0)
    want = np.median(pdist(x.astype(np.float64), metric))
    np.testing.assert_allclose(median_bandwidth(x, metric=metric), want, rtol=1e-5)


def test_median_bandwidth_in_blocks_equals_scipy():
    x = sample(0, 2500, d=3)
    want = np.median(pdist(x.astype(np.float64)))
    np.testing.assert_allclose(median_bandwidth(x, sample_size=None), want, rtol=1e-5)
    np.testing.assert_allclose(median_bandwidth(x, sample_size=1000), want, rtol=0.05)
    subset = median_bandwidth(x, sample_size=1000, key=jax.random.key(0))
    np.testing.assert_allclose(subset, want, rtol=0.05)


def test_median_bandwidth_leaves_out_equal_rows_when_they_are_most():
    x = np.concatenate([np.zeros((40, 2)), np.ones((10, 2))])
    np.testing.assert_allclose(median_bandwidth(x), np.sqrt(2), rtol=1e-6)
    with pytest.raises(ValueError, match="features: expected rows that differ"):
        median_bandwidth(np.ones((9, 2)))


def test_median_bandwidth_under_jit():
    x = sample(0, 30)
    np.testing.assert_allclose(jax.jit(median_bandwidth)(x), median_bandwidth(x), rtol=1e-6)


def normal(n, d=8, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def one_outlier(n):
    rows = normal(n)
    rows[3, 2] = 1e4
    return rows


def missing_codes(n):
    rows = normal(n)
    rows[[1, 5, 9], [0, 3, 3]] = -9999
    return rows


def heavy_tails(n):
    return np.random.default_rng(1).standard_cauchy(size=(n, 8))


def two_far_groups(n):
    rows = normal(n)
    rows[: n // 3] += 1e5
    return rows


def far_from_the_origin(n):
    return normal(n) + 1e4


@pytest.mark.parametrize("metric", ["euclidean", "cityblock"])
@pytest.mark.parametrize("n", [2, 3, 12, 200, 2200, 5000])
@pytest.mark.parametrize(
    "make",
    [normal, one_outlier, missing_codes, heavy_tails, two_far_groups, far_from_the_origin],
)
def test_median_bandwidth_is_within_one_percent_of_scipy(make, n, metric):
    if n < 12 and make in (one_outlier, missing_codes):
        pytest.skip("fewer rows than outliers")
    x = make(n).astype(np.float32)
    want = np.median(pdist(x.astype(np.float64), metric))
    for size in (2000, 50):
        got = median_bandwidth(x, metric=metric, sample_size=size)
        np.testing.assert_allclose(got, want, rtol=1e-2 if n > 500 else 1e-5)


@pytest.mark.parametrize("metric", ["euclidean", "cityblock"])
@pytest.mark.parametrize("make", [one_outlier, missing_codes, heavy_tails, two_far_groups])
def test_median_bandwidth_under_jit_is_within_one_percent_of_scipy(make, metric):
    x = make(300).astype(np.float32)
    want = np.median(pdist(x.astype(np.float64), metric))
    got = jax.jit(lambda x: median_bandwidth(x, metric=metric))(x)
    np.testing.assert_allclose(got, want, rtol=1e-2)


def test_median_bandwidth_of_rows_sorted_by_class_is_that_of_the_whole():
    x = (normal(6000) + 3.0 * (np.arange(6000) // 600)[:, None]).astype(np.float32)
    want = np.median(pdist(x))
    np.testing.assert_allclose(median_bandwidth(x), want, rtol=1e-2)
    np.testing.assert_allclose(median_bandwidth(x, key=jax.random.key(3)), want, rtol=1e-2)
    subset = jax.jit(lambda x, key: median_bandwidth(x, key=key))(x, jax.random.key(3))
    np.testing.assert_allclose(subset, median_bandwidth(x, key=jax.random.key(3)), rtol=1e-4)


@pytest.mark.parametrize("metric", ["euclidean", "cityblock"])
def test_near_rows_are_not_taken_for_equal_ones(metric):
    """Nine tenths of the pairs lie 1e-9 of the largest distance apart."""
    x = normal(100) * 1e-3
    x[0] += 1e6
    want = np.median(pdist(x.astype(np.float32).astype(np.float64), metric))
    np.testing.assert_allclose(median_bandwidth(x, metric=metric), want, rtol=1e-5)


def test_zeros_of_either_sign_are_equal():
    x = np.zeros((8, 2))
    x[::2] = -0.0
    x[0] = [3.0, 4.0]
    np.testing.assert_allclose(median_bandwidth(x), 5.0, rtol=1e-6)


def test_equal_rows_are_left_out_from_half_of_the_pairs_on():
    x = np.array([[0.0], [0.0], [0.0], [1.0]])  # three of six pairs are equal
    assert median_bandwidth(x) == 1.0
    assert jax.jit(median_bandwidth)(x) == 1.0
    assert median_bandwidth(np.array([[0.0], [0.0], [1.0], [3.0]])) == 1.5


def test_median_bandwidth_in_float64_is_exact():
    with jax.enable_x64(True):
        got = median_bandwidth(normal(50))
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, np.median(pdist(normal(50))), rtol=1e-12)


def test_median_bandwidth_of_another_number_of_rows_compiles_nothing(compile_counter):
    median_bandwidth(normal(30))
    with compile_counter() as counter:
        median_bandwidth(normal(31))
        median_bandwidth(normal(2600, d=3))
    assert counter.count == 0


def test_median_bandwidth_works_where_a_project_forbids_promotion():
    x = normal(30).astype(np.float32)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        for metric in ("euclidean", "cityblock"):
            got = jax.jit(lambda x, metric=metric: median_bandwidth(x, metric=metric))(x)
            np.testing.assert_allclose(got, median_bandwidth(x, metric=metric), rtol=1e-5)
