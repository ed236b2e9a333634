"""Kernels and dense kernel matrices against float64 numpy and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_oracles import KERNELS, oracle_gram, sample
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import laplacian_kernel, rbf_kernel

from jaxspec import Proxy
from jaxspec.kernels import (
    Gaussian,
    Laplacian,
    ReducedSet,
    distances,
    gram,
    inner_product,
    kernel_label,
    kernel_values,
    mmd,
    squared_mmd,
)

SUMS = [gram, inner_product, squared_mmd, mmd]


@pytest.mark.parametrize("make", KERNELS)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_gram_equals_float64_oracle(make, offset):
    kernel = make(bandwidth=jnp.float32(3.0))
    x, y = sample(0, 40, offset=offset), sample(1, 30, offset=offset)
    np.testing.assert_allclose(gram(kernel, x, y), oracle_gram(kernel, x, y), rtol=1e-5)


def test_gram_equals_scikit_learn():
    x, y = sample(0, 20), sample(1, 10)
    np.testing.assert_allclose(
        gram(Gaussian(bandwidth=2.0), x, y), rbf_kernel(x, y, gamma=1 / 8), rtol=1e-5
    )
    np.testing.assert_allclose(
        gram(Laplacian(bandwidth=4.0), x, y), laplacian_kernel(x, y, gamma=0.25), rtol=1e-5
    )


def test_kernels_of_one_bandwidth_are_different_structures():
    """Equal structures would let one kernel's compiled function serve another."""
    structures = [jax.tree.structure(make(bandwidth=1.0)) for make in KERNELS]
    for i, one in enumerate(structures):
        for j, other in enumerate(structures):
            assert (one == other) == (i == j)
    assert jax.tree.structure(ReducedSet(1, 2)) != jax.tree.structure(Proxy(1, 2))
    doubled = jax.tree.map(lambda leaf: 2 * leaf, Laplacian(bandwidth=3.0))
    assert isinstance(doubled, Laplacian)
    assert doubled.bandwidth == 6.0


def test_one_jitted_function_serves_every_kernel_rightly():
    x, y = sample(0, 12), sample(1, 9)
    values = jax.jit(lambda kernel, x, y: gram(kernel, x, y))
    for _ in range(20):
        for make in KERNELS:
            kernel = make(bandwidth=jnp.float32(2.0))
            np.testing.assert_allclose(values(kernel, x, y), oracle_gram(kernel, x, y), rtol=1e-5)


@pytest.mark.parametrize("bandwidth", ["1.0", None, [1.0, 2.0], 1j])
@pytest.mark.parametrize("make", KERNELS)
def test_a_bandwidth_that_is_no_number_is_refused(make, bandwidth):
    with pytest.raises(TypeError, match="bandwidth: expected a number or an array"):
        make(bandwidth=bandwidth)


@pytest.mark.parametrize("make", KERNELS)
def test_the_gradient_over_a_kernel_is_that_over_its_bandwidth(make):
    """A gradient may be negative: the tree of gradients is no kernel that a user made."""
    x, y = sample(0, 12), sample(1, 9) + 1.0

    def over_bandwidth(bandwidth):
        return squared_mmd(make(bandwidth=bandwidth), x, y)

    want = jax.grad(over_bandwidth)(50.0)
    got = jax.grad(squared_mmd)(make(bandwidth=50.0), x, y)
    assert isinstance(got, make)
    np.testing.assert_allclose(got.bandwidth, want, rtol=1e-4)
    assert want < 0
    both = jax.vmap(squared_mmd, in_axes=(0, None, None))(make(bandwidth=jnp.ones(3)), x, y)
    np.testing.assert_allclose(both, squared_mmd(make(bandwidth=1.0), x, y), rtol=1e-5)
    assert jax.tree.map(lambda leaf: None, make(bandwidth=1.0)).bandwidth is None


@pytest.mark.parametrize("function", SUMS)
@pytest.mark.parametrize("kernel", [None, 2.0, Gaussian, "gaussian"])
def test_what_is_no_kernel_is_refused(function, kernel):
    x = sample(0, 5)
    with pytest.raises(TypeError, match="kernel: expected a kernel such as Gaussian"):
        function(kernel, x, x)


@pytest.mark.parametrize("function", SUMS)
@pytest.mark.parametrize("shape", [(1,), (5,), (5, 1)])
def test_a_bandwidth_with_axes_does_not_broadcast_against_distances(function, shape):
    x = sample(0, 5)
    with pytest.raises(ValueError, match="kernel.bandwidth: expected a scalar, got shape"):
        function(Gaussian(bandwidth=np.ones(shape)), x, x)


def two_groups(apart, n=40, d=8):
    x = sample(3, n, d=d)
    x[n // 2 :] += np.float32(apart / np.sqrt(d))
    return x


@pytest.mark.parametrize("make", KERNELS)
@pytest.mark.parametrize("apart", [1e1, 1e2, 1e3, 1e4, 1e5])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_gram_of_far_groups_equals_float64_oracle(make, apart, offset):
    kernel, x = make(bandwidth=1.0), two_groups(apart) + np.float32(offset)
    y = np.concatenate([x[5:35], x[:3] + np.float32(0.125)])
    got = gram(kernel, x, y)
    np.testing.assert_allclose(got, oracle_gram(kernel, x, y), atol=1e-4)
    np.testing.assert_allclose(np.diag(gram(kernel, x, x)), 1.0, atol=1e-5)
    np.testing.assert_allclose(jax.jit(kernel_values)(kernel, x, y), got, atol=1e-6)


def test_a_few_outliers_do_not_blur_the_other_rows():
    kernel, x = Gaussian(bandwidth=1.0), sample(3, 300)
    x[[7, 90]] += np.float32(1e4)
    np.testing.assert_allclose(gram(kernel, x, x), oracle_gram(kernel, x, x), atol=1e-4)


@pytest.mark.parametrize("apart", [1.0, 1e3, 1e5])
def test_resolved_distances_equal_float64_ones_to_the_resolution(apart):
    x = two_groups(apart)
    want = cdist(x.astype(np.float64), x.astype(np.float64), "sqeuclidean")
    got = distances("sqeuclidean", x, x, resolution=1.0)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
    exact = distances("sqeuclidean", x, x, resolution=0.0)
    np.testing.assert_allclose(exact, want, rtol=2e-6)


def test_derivatives_of_resolved_distances_are_those_of_the_formula():
    x, y = sample(0, 6, d=3), sample(1, 5, d=3)

    def resolved(x, y):
        return distances("sqeuclidean", x, y, resolution=1.0)

    def formula(x, y):
        return jnp.square(x[:, None, :] - y[None, :, :]).sum(axis=2)

    for argument in (0, 1):
        for derivative in (jax.jacrev, jax.jacfwd, jax.hessian):
            got = derivative(resolved, argument)(x, y)
            want = derivative(formula, argument)(x, y)
            np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("make", KERNELS)
def test_a_bandwidth_is_stored_as_an_array_of_the_default_float_type(make):
    for value in (2, 2.0, np.float64(2), np.float16(2), np.int32(2), jnp.bfloat16(2), np.array(2)):
        kernel = make(bandwidth=value)
        assert isinstance(kernel.bandwidth, jax.Array)
        assert kernel.bandwidth.dtype == jnp.float32
        assert not kernel.bandwidth.weak_type
        assert kernel.bandwidth == 2
    with jax.enable_x64(True):
        assert make(bandwidth=np.float32(2)).bandwidth.dtype == jnp.float64

    def inside(x):
        kernel = make(bandwidth=2.0)
        assert float(kernel.bandwidth) == 2.0  # values are known while jax traces
        return gram(kernel, x, x)

    x = sample(0, 4)
    np.testing.assert_allclose(jax.jit(inside)(x), gram(make(bandwidth=2.0), x, x), rtol=1e-6)


def test_masked_bandwidths_are_refused():
    with pytest.raises(TypeError, match="bandwidth: expected a number or an array"):
        Gaussian(bandwidth=np.ma.masked)


def test_a_label_shows_the_bandwidth_as_it_was_written():
    assert kernel_label(Gaussian(bandwidth=3.01)) == "Gaussian(bandwidth=3.01)"
    assert kernel_label(Laplacian(bandwidth=np.float32(3))) == "Laplacian(bandwidth=3)"
    near = np.nextafter(np.float32(3.01), np.float32(4))
    assert kernel_label(Gaussian(bandwidth=near)) != kernel_label(Gaussian(bandwidth=3.01))
