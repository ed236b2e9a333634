"""Blocked kernel sums and squared MMD against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_oracles import KERNELS, oracle_gram, sample

from jaxspec.kernels import (
    Gaussian,
    ReducedSet,
    gram,
    inner_product,
    median_bandwidth,
    mmd,
    square_norm,
    squared_mmd,
    weighted_sum,
)


@pytest.mark.parametrize("make", KERNELS)
@pytest.mark.parametrize("block_size", [7, 16, 1000])
def test_blocked_sum_equals_oracle_for_any_block(make, block_size):
    kernel = make(bandwidth=jnp.float32(2.5))
    x, y = sample(0, 33, offset=100.0), sample(1, 50, offset=100.0)
    weights = np.random.default_rng(2).normal(size=(50, 3)).astype(np.float32)
    got = weighted_sum(kernel, x, y, weights, block_size=block_size)
    want = oracle_gram(kernel, x, y) @ weights.astype(np.float64)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", KERNELS)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_squared_mmd_equals_float64_oracle(make, offset):
    kernel = make(bandwidth=jnp.float32(3.0))
    a, b = sample(0, 300, offset=offset), sample(1, 200, offset=offset)
    weights = np.random.default_rng(2).normal(size=200).astype(np.float32)  # signed, any sum
    joined = np.concatenate([np.full(300, 1 / 300), -weights.astype(np.float64)])
    rows = np.concatenate([a, b])
    want = joined @ oracle_gram(kernel, rows, rows) @ joined
    got = squared_mmd(kernel, a, ReducedSet(b, weights), block_size=128)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    want = joined[:300] @ oracle_gram(kernel, a, b) @ weights
    got = inner_product(kernel, a, ReducedSet(b, weights), block_size=64)
    np.testing.assert_allclose(got, want, rtol=2e-5)


def test_small_squared_mmd_keeps_its_digits():
    """About 2e-5 here: float32 rounds each of the three sums by up to 6e-8 of one."""
    kernel = Gaussian(bandwidth=4.0)
    a = sample(0, 1500)
    b = a + sample(1, 1500) * np.float32(0.3)
    rows = np.concatenate([a, b])
    joined = np.concatenate([np.full(1500, 1 / 1500), np.full(1500, -1 / 1500)])
    want = joined @ oracle_gram(kernel, rows, rows) @ joined
    np.testing.assert_allclose(squared_mmd(kernel, a, b), want, rtol=2e-3)


def test_weights_are_not_rescaled():
    kernel, points = Gaussian(bandwidth=1.0), sample(0, 5)
    half = ReducedSet(points, np.full(5, 0.1, np.float32))
    none = ReducedSet(points, np.zeros(5, np.float32))
    full = ReducedSet(points, np.full(5, 0.2, np.float32))
    norm = float(inner_product(kernel, full, full))
    np.testing.assert_allclose(squared_mmd(kernel, half, none), norm / 4, rtol=1e-5)


def test_squared_mmd_is_symmetric_and_translation_invariant():
    kernel = Gaussian(bandwidth=3.0)
    a, b = sample(0, 50), sample(1, 60)
    value = float(squared_mmd(kernel, a, b))
    np.testing.assert_allclose(squared_mmd(kernel, b, a), value, rtol=1e-5)
    np.testing.assert_allclose(squared_mmd(kernel, a + 7, b + 7), value, rtol=1e-4)


@pytest.mark.parametrize("make", KERNELS)
def test_jit_equals_eager_and_vmap_equals_loop(make):
    kernel = make(bandwidth=jnp.float32(2.0))
    batch, b = np.stack([sample(i, 20) for i in range(4)]), sample(9, 30)
    eager = [float(squared_mmd(kernel, a, b)) for a in batch]
    jitted = jax.jit(squared_mmd)
    np.testing.assert_allclose([jitted(kernel, a, b) for a in batch], eager, rtol=1e-5)
    mapped = jax.vmap(lambda a: squared_mmd(kernel, a, b))(batch)
    np.testing.assert_allclose(mapped, eager, rtol=1e-5)


@pytest.mark.parametrize("make", KERNELS)
def test_gradient_over_bandwidth_equals_finite_difference(make):
    a, b = sample(0, 30), sample(1, 30) + 1

    def value(bandwidth):
        return squared_mmd(make(bandwidth=bandwidth), a, b)

    slope = jax.grad(value)(jnp.float32(3.0))
    step = 0.05  # the central difference is off by its cube term and by float32 rounding / step
    np.testing.assert_allclose(slope, (value(3 + step) - value(3 - step)) / (2 * step), rtol=5e-3)
    many = jax.vmap(value)(jnp.array([2.0, 3.0], jnp.float32))
    np.testing.assert_allclose(many, [value(2.0), value(3.0)], rtol=1e-5)


def test_mmd_is_the_root_and_has_a_zero_gradient_at_zero():
    kernel, a, b = Gaussian(bandwidth=2.0), sample(0, 10), sample(1, 10)
    np.testing.assert_allclose(mmd(kernel, a, b), np.sqrt(squared_mmd(kernel, a, b)))
    gradient = jax.grad(lambda x: mmd(kernel, x, jnp.asarray(a)))(jnp.asarray(a))
    assert np.isfinite(gradient).all()


def test_large_sets_form_no_dense_gram_matrix():
    """40,000 rows would need 6.4 GB; the compiled sum needs a thousandth of that."""
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in [(40000, 4), (40000, 4), (40000,)]]
    kernel = Gaussian(bandwidth=jnp.float32(1.0))
    compiled = jax.jit(weighted_sum).lower(kernel, *shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 64 * 2**20


def test_dtype_is_preserved_with_and_without_x64():
    x = sample(0, 10)
    assert gram(Gaussian(bandwidth=1.0), x, x).dtype == jnp.float32
    with jax.enable_x64(True):
        x64 = x.astype(np.float64)
        assert squared_mmd(Gaussian(bandwidth=1.0), x64, x64[:5]).dtype == jnp.float64
        want = oracle_gram(Gaussian(bandwidth=1.0), x64, x64)
        np.testing.assert_allclose(gram(Gaussian(bandwidth=1.0), x64, x64), want, rtol=1e-12)


def test_bad_input_is_named():
    kernel, x = Gaussian(bandwidth=1.0), sample(0, 5)
    broken = x.copy()
    broken[2, 3] = np.nan
    with pytest.raises(ValueError, match=r"a: expected finite numbers, got nan at \(2, 3\)"):
        squared_mmd(kernel, broken, x)
    with pytest.raises(ValueError, match="b: expected 8 columns as in a, got 4"):
        squared_mmd(kernel, x, x[:, :4])
    with pytest.raises(ValueError, match=r"x: expected shape \(n, d\)"):
        gram(kernel, x[0], x)
    with pytest.raises(TypeError, match="x: expected real numbers"):
        gram(kernel, np.array([["a"]]), x)
    with pytest.raises(ValueError, match=r"weights: expected shape \(5,\)"):
        weighted_sum(kernel, x, x, np.ones(4))
    for bandwidth in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="bandwidth: expected a positive finite number"):
            Gaussian(bandwidth=bandwidth)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_what_float32_cannot_square_is_refused_and_not_a_silent_nan(size):
    x = sample(0, 5)
    with pytest.raises(ValueError, match="bandwidth: expected one whose square float32 holds"):
        Gaussian(bandwidth=size)
    if size > 1:
        with pytest.raises(ValueError, match="a: expected numbers whose squares float32 holds"):
            squared_mmd(Gaussian(bandwidth=1.0), size * x, x)
        with pytest.raises(ValueError, match="a: expected finite numbers, got -?inf"):
            squared_mmd(Gaussian(bandwidth=1.0), x.astype(np.float64) * 1e300, x)
    with pytest.raises(ValueError, match="features: .*squares"):
        median_bandwidth(size * x)


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_features_of_any_usual_unit_keep_their_squared_mmd(size):
    x, y = sample(0, 20), sample(1, 15) + 0.5
    want = squared_mmd(Gaussian(bandwidth=2.0), x, y)
    got = squared_mmd(Gaussian(bandwidth=2.0 * size), x * np.float32(size), y * size)
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_sums_name_weights_and_blocks_that_are_off():
    kernel, x = Gaussian(bandwidth=1.0), sample(0, 5)
    with pytest.raises(ValueError, match="weights: expected finite numbers"):
        weighted_sum(kernel, x, x, np.full(5, np.nan))
    for function in (inner_product, squared_mmd, mmd):
        with pytest.raises(ValueError, match="block_size: expected at least 1, got 0"):
            function(kernel, x, x, block_size=0)
        with pytest.raises(TypeError, match="block_size: expected an integer"):
            function(kernel, x, x, block_size=2.5)
    with pytest.raises(TypeError, match="key: expected one jax random key"):
        median_bandwidth(x, sample_size=3, key=0)


def test_nan_propagates_under_jit():
    x = sample(0, 5)
    broken = jnp.asarray(x).at[0, 0].set(jnp.nan)
    for function in (squared_mmd, mmd, inner_product):
        assert np.isnan(jax.jit(function)(Gaussian(bandwidth=1.0), broken, x))


def far_groups(apart, n=60, d=8):
    """Two groups of spread one whose centres lie `apart` from each other."""
    x = sample(5, n, d=d)
    x[n // 2 :] += np.float32(apart / np.sqrt(d))
    return x


@pytest.mark.parametrize("make", KERNELS)
@pytest.mark.parametrize("apart", [1e1, 1e3, 1e4, 1e5])
@pytest.mark.parametrize("block_size", [16, 2048])
def test_sums_over_far_groups_equal_float64_oracle(make, apart, block_size):
    kernel, x = make(bandwidth=1.5), far_groups(apart)
    y = x + np.float32(0.25) * sample(6, 60)
    weights = np.random.default_rng(2).normal(size=60).astype(np.float32)
    want = oracle_gram(kernel, x, y) @ weights.astype(np.float64)
    got = weighted_sum(kernel, x, y, weights, block_size=block_size)
    np.testing.assert_allclose(got, want, atol=1e-4)
    rows = np.concatenate([x, y])
    joined = np.concatenate([np.full(60, 1 / 60), np.full(60, -1 / 60)])
    want = joined @ oracle_gram(kernel, rows, rows) @ joined
    got = squared_mmd(kernel, x, y, block_size=block_size)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-7)
    uniform = np.full(60, 1 / 60, np.float32)
    want = uniform @ oracle_gram(kernel, x, x) @ uniform
    np.testing.assert_allclose(square_norm(kernel, x, uniform), want, rtol=1e-4)


@pytest.mark.parametrize("make", KERNELS)
@pytest.mark.parametrize("apart", [1e1, 1e3])
def test_gradients_over_far_groups_equal_float64_differences(make, apart):
    kernel, x, y = make(bandwidth=1.5), far_groups(apart, n=20), far_groups(apart, n=20) + 0.5
    y = y.astype(np.float32)
    slopes = jax.grad(lambda x: squared_mmd(kernel, x, y))(jnp.asarray(x))
    step = 1e-5
    for i, j in [(0, 0), (15, 3)]:
        values = []
        for sign in (1, -1):
            moved = x.astype(np.float64)
            moved[i, j] += sign * step
            rows = np.concatenate([moved, y])
            joined = np.concatenate([np.full(20, 1 / 20), np.full(20, -1 / 20)])
            values.append(joined @ oracle_gram(kernel, rows, rows) @ joined)
        want = (values[0] - values[1]) / (2 * step)
        np.testing.assert_allclose(slopes[i, j], want, rtol=2e-3, atol=2e-6)


def test_far_groups_in_a_batch_equal_those_alone():
    kernel = Gaussian(bandwidth=1.5)
    batch = np.stack([far_groups(apart) for apart in (1.0, 1e4, 1e2)])
    other = far_groups(1e4) + np.float32(0.3)
    alone = [squared_mmd(kernel, x, other) for x in batch]
    mapped = jax.vmap(lambda x: squared_mmd(kernel, x, other))(batch)
    np.testing.assert_allclose(mapped, alone, rtol=1e-5, atol=1e-7)
    slopes = jax.vmap(jax.grad(lambda x: squared_mmd(kernel, x, other)))(batch)
    assert np.isfinite(slopes).all()


def test_sums_work_where_a_project_forbids_promotion():
    kernel, x = Gaussian(bandwidth=2), sample(0, 12)
    y = sample(1, 9).astype(np.float64)
    plain = [squared_mmd(kernel, x, y), mmd(kernel, x, y), inner_product(kernel, x, y)]
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        for make in KERNELS:
            gram(make(bandwidth=2), x, y)
            weighted_sum(make(bandwidth=2.0), x, y, np.ones((9, 2), int), block_size=4)
            jax.grad(lambda x, make=make: mmd(make(bandwidth=2.0), x, y))(jnp.asarray(x))
        strict = [squared_mmd(kernel, x, y), mmd(kernel, x, y), inner_product(kernel, x, y)]
        with jax.enable_x64(True):
            half = ReducedSet(x, np.full(12, 0.1, np.float32))
            assert squared_mmd(Gaussian(bandwidth=2.0), half, y).dtype == jnp.float64
            assert squared_mmd(Gaussian(bandwidth=2.0), half, x).dtype == jnp.float32
    np.testing.assert_array_equal(strict, plain)


def test_a_bandwidth_of_another_type_of_number_compiles_nothing(compile_counter):
    x, y = sample(0, 13), sample(1, 7)
    squared_mmd(Gaussian(bandwidth=jnp.float32(2.0)), x, y)
    with compile_counter() as counter:
        for bandwidth in (3.0, 2, np.float64(2.5), np.float32(1.5), np.int64(4), np.array(2.0)):
            squared_mmd(Gaussian(bandwidth=bandwidth), x, y)
    assert counter.count == 0
