"""Kernels and blocked sums against float64 numpy and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist
from sklearn.metrics.pairwise import laplacian_kernel, rbf_kernel

import jaxspec as js
from jaxspec.kernels import kernels

KERNELS = [js.Gaussian, js.Laplacian, js.InverseMultiquadric]


def oracle_gram(kernel, x, y):
    """The kernels' formulas in float64, from scipy's distances."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    bandwidth = float(kernel.bandwidth)
    if isinstance(kernel, js.Gaussian):
        return np.exp(-cdist(x, y, "sqeuclidean") / (2 * bandwidth**2))
    if isinstance(kernel, js.Laplacian):
        return np.exp(-cdist(x, y, "cityblock") / bandwidth)
    return 1 / np.sqrt(1 + cdist(x, y, "sqeuclidean") / bandwidth**2)


def sample(seed, n, d=8, offset=0.0):
    """Float32 rows; the oracle sees the same rounded numbers."""
    return (np.random.default_rng(seed).normal(size=(n, d)) + offset).astype(np.float32)


@pytest.mark.parametrize("make", KERNELS)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_gram_equals_float64_oracle(make, offset):
    kernel = make(bandwidth=jnp.float32(3.0))
    x, y = sample(0, 40, offset=offset), sample(1, 30, offset=offset)
    np.testing.assert_allclose(js.gram(kernel, x, y), oracle_gram(kernel, x, y), rtol=1e-5)


def test_gram_equals_scikit_learn():
    x, y = sample(0, 20), sample(1, 10)
    np.testing.assert_allclose(
        js.gram(js.Gaussian(bandwidth=2.0), x, y), rbf_kernel(x, y, gamma=1 / 8), rtol=1e-5
    )
    np.testing.assert_allclose(
        js.gram(js.Laplacian(bandwidth=4.0), x, y), laplacian_kernel(x, y, gamma=0.25), rtol=1e-5
    )


@pytest.mark.parametrize("make", KERNELS)
@pytest.mark.parametrize("block_size", [7, 16, 1000])
def test_blocked_sum_equals_oracle_for_any_block(make, block_size):
    kernel = make(bandwidth=jnp.float32(2.5))
    x, y = sample(0, 33, offset=100.0), sample(1, 50, offset=100.0)
    weights = np.random.default_rng(2).normal(size=(50, 3)).astype(np.float32)
    got = js.weighted_sum(kernel, x, y, weights, block_size=block_size)
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
    got = js.squared_mmd(kernel, a, js.ReducedSet(b, weights), block_size=128)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    want = joined[:300] @ oracle_gram(kernel, a, b) @ weights
    got = js.inner_product(kernel, a, js.ReducedSet(b, weights), block_size=64)
    np.testing.assert_allclose(got, want, rtol=2e-5)


def test_small_squared_mmd_keeps_its_digits():
    """About 2e-5 here: float32 rounds each of the three sums by up to 6e-8 of one."""
    kernel = js.Gaussian(bandwidth=4.0)
    a = sample(0, 1500)
    b = a + sample(1, 1500) * np.float32(0.3)
    rows = np.concatenate([a, b])
    joined = np.concatenate([np.full(1500, 1 / 1500), np.full(1500, -1 / 1500)])
    want = joined @ oracle_gram(kernel, rows, rows) @ joined
    np.testing.assert_allclose(js.squared_mmd(kernel, a, b), want, rtol=2e-3)


def test_weights_are_not_rescaled():
    kernel, points = js.Gaussian(bandwidth=1.0), sample(0, 5)
    half = js.ReducedSet(points, np.full(5, 0.1, np.float32))
    none = js.ReducedSet(points, np.zeros(5, np.float32))
    full = js.ReducedSet(points, np.full(5, 0.2, np.float32))
    norm = float(js.inner_product(kernel, full, full))
    np.testing.assert_allclose(js.squared_mmd(kernel, half, none), norm / 4, rtol=1e-5)


def test_squared_mmd_is_symmetric_and_translation_invariant():
    kernel = js.Gaussian(bandwidth=3.0)
    a, b = sample(0, 50), sample(1, 60)
    value = float(js.squared_mmd(kernel, a, b))
    np.testing.assert_allclose(js.squared_mmd(kernel, b, a), value, rtol=1e-5)
    np.testing.assert_allclose(js.squared_mmd(kernel, a + 7, b + 7), value, rtol=1e-4)


@pytest.mark.parametrize("make", KERNELS)
def test_jit_equals_eager_and_vmap_equals_loop(make):
    kernel = make(bandwidth=jnp.float32(2.0))
    batch, b = np.stack([sample(i, 20) for i in range(4)]), sample(9, 30)
    eager = [float(js.squared_mmd(kernel, a, b)) for a in batch]
    jitted = jax.jit(js.squared_mmd)
    np.testing.assert_allclose([jitted(kernel, a, b) for a in batch], eager, rtol=1e-5)
    mapped = jax.vmap(lambda a: js.squared_mmd(kernel, a, b))(batch)
    np.testing.assert_allclose(mapped, eager, rtol=1e-5)


@pytest.mark.parametrize("make", KERNELS)
def test_gradient_over_bandwidth_equals_finite_difference(make):
    a, b = sample(0, 30), sample(1, 30) + 1

    def value(bandwidth):
        return js.squared_mmd(make(bandwidth=bandwidth), a, b)

    slope = jax.grad(value)(jnp.float32(3.0))
    step = 0.05  # the central difference is off by its cube term and by float32 rounding / step
    np.testing.assert_allclose(slope, (value(3 + step) - value(3 - step)) / (2 * step), rtol=5e-3)
    many = jax.vmap(value)(jnp.array([2.0, 3.0], jnp.float32))
    np.testing.assert_allclose(many, [value(2.0), value(3.0)], rtol=1e-5)


def test_mmd_is_the_root_and_has_a_zero_gradient_at_zero():
    kernel, a, b = js.Gaussian(bandwidth=2.0), sample(0, 10), sample(1, 10)
    np.testing.assert_allclose(js.mmd(kernel, a, b), np.sqrt(js.squared_mmd(kernel, a, b)))
    gradient = jax.grad(lambda x: js.mmd(kernel, x, jnp.asarray(a)))(jnp.asarray(a))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("metric", ["euclidean", "cityblock"])
def test_median_bandwidth_equals_scipy(metric):
    x = sample(0, 101, offset=100.0)
    want = np.median(pdist(x.astype(np.float64), metric))
    np.testing.assert_allclose(js.median_bandwidth(x, metric=metric), want, rtol=1e-5)


def test_median_bandwidth_in_blocks_equals_scipy():
    x = sample(0, 2500, d=3)
    want = np.median(pdist(x.astype(np.float64)))
    np.testing.assert_allclose(js.median_bandwidth(x, sample_size=None), want, rtol=1e-5)
    np.testing.assert_allclose(js.median_bandwidth(x, sample_size=1000), want, rtol=0.05)
    subset = js.median_bandwidth(x, sample_size=1000, key=jax.random.key(0))
    np.testing.assert_allclose(subset, want, rtol=0.05)


def test_median_bandwidth_leaves_out_equal_rows_when_they_are_most():
    x = np.concatenate([np.zeros((40, 2)), np.ones((10, 2))])
    np.testing.assert_allclose(js.median_bandwidth(x), np.sqrt(2), rtol=1e-6)
    with pytest.raises(ValueError, match="features: expected rows that differ"):
        js.median_bandwidth(np.ones((9, 2)))


def test_median_bandwidth_under_jit():
    x = sample(0, 30)
    np.testing.assert_allclose(jax.jit(js.median_bandwidth)(x), js.median_bandwidth(x), rtol=1e-6)


def test_large_sets_form_no_dense_gram_matrix():
    """40,000 rows would need 6.4 GB; the compiled sum needs a thousandth of that."""
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in [(40000, 4), (40000, 4), (40000,)]]
    kernel = js.Gaussian(bandwidth=jnp.float32(1.0))
    compiled = kernels._weighted_sum_jit.lower(kernel, *shapes, 2048).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 64 * 2**20


def test_dtype_is_preserved_with_and_without_x64():
    x = sample(0, 10)
    assert js.gram(js.Gaussian(bandwidth=1.0), x, x).dtype == jnp.float32
    with jax.enable_x64(True):
        x64 = x.astype(np.float64)
        assert js.squared_mmd(js.Gaussian(bandwidth=1.0), x64, x64[:5]).dtype == jnp.float64
        want = oracle_gram(js.Gaussian(bandwidth=1.0), x64, x64)
        np.testing.assert_allclose(js.gram(js.Gaussian(bandwidth=1.0), x64, x64), want, rtol=1e-12)


def test_bad_input_is_named():
    kernel, x = js.Gaussian(bandwidth=1.0), sample(0, 5)
    broken = x.copy()
    broken[2, 3] = np.nan
    with pytest.raises(ValueError, match=r"a: expected finite numbers, got nan at \(2, 3\)"):
        js.squared_mmd(kernel, broken, x)
    with pytest.raises(ValueError, match="b: expected 8 columns as in a, got 4"):
        js.squared_mmd(kernel, x, x[:, :4])
    with pytest.raises(ValueError, match=r"x: expected shape \(n, d\)"):
        js.gram(kernel, x[0], x)
    with pytest.raises(TypeError, match="x: expected real numbers"):
        js.gram(kernel, np.array([["a"]]), x)
    with pytest.raises(ValueError, match=r"weights: expected shape \(5,\)"):
        js.weighted_sum(kernel, x, x, np.ones(4))
    for bandwidth in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="bandwidth: expected a positive finite number"):
            js.Gaussian(bandwidth=bandwidth)


SUMS = [js.gram, js.inner_product, js.squared_mmd, js.mmd]


@pytest.mark.parametrize("function", SUMS)
@pytest.mark.parametrize("kernel", [None, 2.0, js.Gaussian, "gaussian"])
def test_what_is_no_kernel_is_refused(function, kernel):
    x = sample(0, 5)
    with pytest.raises(TypeError, match="kernel: expected a kernel such as Gaussian"):
        function(kernel, x, x)


@pytest.mark.parametrize("function", SUMS)
@pytest.mark.parametrize("shape", [(1,), (5,), (5, 1)])
def test_a_bandwidth_with_axes_does_not_broadcast_against_distances(function, shape):
    x = sample(0, 5)
    with pytest.raises(ValueError, match="kernel.bandwidth: expected a scalar, got shape"):
        function(js.Gaussian(bandwidth=np.ones(shape)), x, x)


@pytest.mark.parametrize("bandwidth", ["1.0", None, [1.0, 2.0], 1j])
@pytest.mark.parametrize("make", KERNELS)
def test_a_bandwidth_that_is_no_number_is_refused(make, bandwidth):
    with pytest.raises(TypeError, match="bandwidth: expected a number or an array"):
        make(bandwidth=bandwidth)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_what_float32_cannot_square_is_refused_and_not_a_silent_nan(size):
    x = sample(0, 5)
    with pytest.raises(ValueError, match="bandwidth: expected one whose square float32 holds"):
        js.Gaussian(bandwidth=size)
    if size > 1:
        with pytest.raises(ValueError, match="a: expected numbers whose squares float32 holds"):
            js.squared_mmd(js.Gaussian(bandwidth=1.0), size * x, x)
        with pytest.raises(ValueError, match="a: expected finite numbers, got -?inf"):
            js.squared_mmd(js.Gaussian(bandwidth=1.0), x.astype(np.float64) * 1e300, x)
    with pytest.raises(ValueError, match="features: .*squares"):
        js.median_bandwidth(size * x)


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_features_of_any_usual_unit_keep_their_squared_mmd(size):
    x, y = sample(0, 20), sample(1, 15) + 0.5
    want = js.squared_mmd(js.Gaussian(bandwidth=2.0), x, y)
    got = js.squared_mmd(js.Gaussian(bandwidth=2.0 * size), x * np.float32(size), y * size)
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_sums_name_weights_and_blocks_that_are_off():
    kernel, x = js.Gaussian(bandwidth=1.0), sample(0, 5)
    with pytest.raises(ValueError, match="weights: expected finite numbers"):
        js.weighted_sum(kernel, x, x, np.full(5, np.nan))
    for function in (js.inner_product, js.squared_mmd, js.mmd):
        with pytest.raises(ValueError, match="block_size: expected at least 1, got 0"):
            function(kernel, x, x, block_size=0)
        with pytest.raises(TypeError, match="block_size: expected an integer"):
            function(kernel, x, x, block_size=2.5)
    with pytest.raises(TypeError, match="key: expected one jax random key"):
        js.median_bandwidth(x, sample_size=3, key=0)


def test_nan_propagates_under_jit():
    x = sample(0, 5)
    broken = jnp.asarray(x).at[0, 0].set(jnp.nan)
    for function in (js.squared_mmd, js.mmd, js.inner_product):
        assert np.isnan(jax.jit(function)(js.Gaussian(bandwidth=1.0), broken, x))


@pytest.mark.parametrize("make", KERNELS)
def test_the_gradient_over_a_kernel_is_that_over_its_bandwidth(make):
    """A gradient may be negative: the tree of gradients is no kernel that a user made."""
    x, y = sample(0, 12), sample(1, 9) + 1.0

    def over_bandwidth(bandwidth):
        return js.squared_mmd(make(bandwidth=bandwidth), x, y)

    want = jax.grad(over_bandwidth)(50.0)
    got = jax.grad(js.squared_mmd)(make(bandwidth=50.0), x, y)
    assert isinstance(got, make)
    np.testing.assert_allclose(got.bandwidth, want, rtol=1e-4)
    assert want < 0
    both = jax.vmap(js.squared_mmd, in_axes=(0, None, None))(make(bandwidth=jnp.ones(3)), x, y)
    np.testing.assert_allclose(both, js.squared_mmd(make(bandwidth=1.0), x, y), rtol=1e-5)
    assert jax.tree.map(lambda leaf: None, make(bandwidth=1.0)).bandwidth is None


def test_kernels_of_one_bandwidth_are_different_structures():
    """Equal structures would let one kernel's compiled function serve another."""
    structures = [jax.tree.structure(make(bandwidth=1.0)) for make in KERNELS]
    for i, one in enumerate(structures):
        for j, other in enumerate(structures):
            assert (one == other) == (i == j)
    assert jax.tree.structure(js.ReducedSet(1, 2)) != jax.tree.structure(js.Proxy(1, 2))
    doubled = jax.tree.map(lambda leaf: 2 * leaf, js.Laplacian(bandwidth=3.0))
    assert isinstance(doubled, js.Laplacian)
    assert doubled.bandwidth == 6.0


def test_one_jitted_function_serves_every_kernel_rightly():
    x, y = sample(0, 12), sample(1, 9)
    values = jax.jit(lambda kernel, x, y: js.gram(kernel, x, y))
    for _ in range(20):
        for make in KERNELS:
            kernel = make(bandwidth=jnp.float32(2.0))
            np.testing.assert_allclose(values(kernel, x, y), oracle_gram(kernel, x, y), rtol=1e-5)
