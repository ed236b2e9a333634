"""The Pallas kernel against float64 numpy and against the pass that XLA compiles.

It is compiled where the pass uses it, on a GPU, and interpreted on a processor.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scoring_oracles as oracles
from conftest import alike

import jaxspec as js
from jaxspec.market.precision import decode_points, encode, point_scales
from jaxspec.scoring import pallas_pass
from jaxspec.scoring.embedding_pass import embedding_products, pack_columns
from jaxspec.scoring.pallas_pass import Blocks, fused_for, fused_products

COMPILED = fused_for(js.Gaussian(bandwidth=1.0))
OPTIONS = {} if COMPILED else {"interpret": True, "backend": "gpu"}


def made(storage="float32", slots=7, m=11, d=6, users=1, n=21, seed=0):
    """Return the arguments of `fused_products` between kernel and length.

    Every learnware has two points of weight zero and user q has n - 3 q points, of n, or none.
    """
    rng = np.random.default_rng(seed)
    draw = rng.normal(size=(slots, m, d)).astype(np.float32)
    scales = point_scales(draw, storage)
    stored = encode(draw, "points", storage, scales)
    norms = np.square(decode_points(stored, scales)).sum(axis=2)
    weights = rng.normal(size=(slots, m)).astype(np.float32)
    weights[:, -2:] = 0.0
    counts = np.maximum(n - 3 * np.arange(users), 0)
    own = np.arange(n) < counts[:, None]
    shares = np.where(own, rng.normal(size=(users, n)) / n, 0.0).astype(np.float32)
    points = np.where(own[..., None], rng.normal(size=(users, n, d)), 0.0).astype(np.float32)
    return [jnp.asarray(one) for one in (stored, scales, norms, weights, points, shares, counts)]


def oracle(kernel, points, scales, _, weights, columns, shares, counts):
    """Return sum_ij w_i k(x_i, c_qj) s_qj in float64."""
    x = np.asarray(points, np.float64)
    if points.dtype == np.int8:
        x = x * np.asarray(scales, np.float64)[..., None]
    w, c, s = (np.asarray(value, np.float64) for value in (weights, columns, shares))
    values = oracles.kernel_values(kernel, x.reshape(-1, x.shape[2]), c.reshape(-1, x.shape[2]))
    return np.einsum("lm,lmqt,qt->lq", w, values.reshape(*w.shape, *s.shape), s)


def by_xla(kernel, points, scales, norms, weights, columns, shares, counts):
    """Return what the pass that XLA compiles gives."""
    packed = pack_columns(columns, shares, counts)
    length = len(weights)
    stored = (points, scales, norms, weights)
    return jax.jit(embedding_products)(kernel, *stored, *packed, counts.sum(), length)


@pytest.mark.parametrize("storage", alike("float32", "bfloat16", "int8"))
@pytest.mark.parametrize("users", alike(3, 1, 11))
def test_products_are_those_of_float64_and_of_the_default_pass(storage, users):
    arguments = made(storage, slots=30, users=users)
    kernel = js.Gaussian(bandwidth=1.7)
    found = fused_products(kernel, *arguments, 30, **OPTIONS)
    assert found.shape == (30, users) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, oracle(kernel, *arguments), atol=2e-6)
    np.testing.assert_allclose(found, by_xla(kernel, *arguments), atol=2e-6)


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_inverse_multiquadric_equals_float64_with_the_blocks_of_either_device(backend):
    if jax.default_backend() != "cpu":
        pytest.skip("interpreted on a processor only")
    arguments = made("bfloat16", users=3)
    kernel = js.InverseMultiquadric(bandwidth=2.3)
    found = fused_products(kernel, *arguments, 7, interpret=True, backend=backend)
    np.testing.assert_allclose(found, oracle(kernel, *arguments), atol=2e-6)


def test_inverse_multiquadric_equals_float64_where_compiled():
    arguments = made("bfloat16", users=3)
    kernel = js.InverseMultiquadric(bandwidth=2.3)
    found = fused_products(kernel, *arguments, 7, **OPTIONS)
    np.testing.assert_allclose(found, oracle(kernel, *arguments), atol=2e-6)


@pytest.mark.parametrize("storage", alike("int8", "float32"))
@pytest.mark.parametrize("sizes", alike((50, 150), (130, 5), (300, 17)))
def test_sizes_that_fit_no_block_equal_float64(storage, sizes):
    """Features and a user's points in several blocks, the rows in no whole number of them."""
    m, d = sizes
    arguments = made(storage, slots=3, m=m, d=d, users=1, n=67)
    kernel = js.Gaussian(bandwidth=float(np.sqrt(d)))
    found = fused_products(kernel, *arguments, 3, **OPTIONS)
    np.testing.assert_allclose(found, oracle(kernel, *arguments), atol=5e-6)


@pytest.mark.parametrize("length", alike(7, 2, 9))
def test_a_market_of_more_features_than_can_be_addressed_is_halved(monkeypatch, length):
    """As one of 2^31 to 2^32 bytes of int8, which Pallas addresses by signed 32-bit integers."""
    arguments = made("int8", slots=9, m=11, d=16, users=3)
    kernel = js.Gaussian(bandwidth=4.0)
    at_once = fused_products(kernel, *arguments, length, **OPTIONS)
    calls, call = [], pallas_pass.call_kernel

    def counted(*arguments, **options):
        calls.append(1)
        return call(*arguments, **options)

    monkeypatch.setattr(pallas_pass, "MAX_ADDRESSED_FEATURES", 9 * 11 * 16 // 2 + 100)
    monkeypatch.setattr(pallas_pass, "call_kernel", counted)
    halved = fused_products(kernel, *arguments, length, **OPTIONS)
    assert halved.shape == (9, 3)
    np.testing.assert_allclose(halved[:length], at_once[:length], atol=1e-6)
    np.testing.assert_allclose(halved[:length], oracle(kernel, *arguments)[:length], atol=2e-6)
    assert len(calls) == 2


def test_slots_from_length_on_may_be_left_out():
    arguments = made(slots=100, users=3)
    kernel = js.Gaussian(bandwidth=1.7)
    run = jax.jit(lambda length: fused_products(kernel, *arguments, length, **OPTIONS))
    expected = oracle(kernel, *arguments)
    found = np.asarray(run(31))
    np.testing.assert_allclose(found[:31], expected[:31], atol=2e-6)
    np.testing.assert_array_equal(found[-1], 0)
    np.testing.assert_allclose(run(100), expected, atol=2e-6)


@pytest.mark.parametrize("storage", alike("bfloat16", "float32", "int8"))
def test_blocks_of_any_size_give_the_same_products(storage):
    arguments = made(storage, slots=20, d=40, users=2, n=70)
    kernel = js.Gaussian(bandwidth=6.0)
    found = [
        fused_products(kernel, *arguments, 20, blocks=blocks, **OPTIONS)
        for blocks in (Blocks(32, 16, 16), Blocks(64, 128, 64))
    ]
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
def test_rounding_stays_that_of_float32(storage):
    """The three parts of a number lose nothing: one part alone is off by 1e-3."""
    arguments = made(storage, slots=5, m=16, d=64, users=1, n=33)
    kernel = js.Gaussian(bandwidth=8.0)
    found = fused_products(kernel, *arguments, 5, **OPTIONS)
    np.testing.assert_allclose(found, oracle(kernel, *arguments), rtol=1e-4, atol=5e-7)


def test_bandwidth_may_be_traced():
    arguments = made()
    run = jax.jit(lambda h: fused_products(js.Gaussian(bandwidth=h), *arguments, 7, **OPTIONS))
    for bandwidth in (0.9, 3.0):
        kernel = js.Gaussian(bandwidth=bandwidth)
        np.testing.assert_allclose(run(bandwidth), oracle(kernel, *arguments), atol=2e-6)


@pytest.mark.parametrize("platform, backend", [("cuda", "gpu"), ("tpu", "tpu")])
@pytest.mark.parametrize("storage", ["float32", "int8"])
@pytest.mark.parametrize("users", [1, 3])
def test_lowers_for_accelerators(platform, backend, storage, users):
    """Triton and Mosaic take it, as far as that shows without a device."""
    arguments = made(storage, slots=90, m=50, d=96, users=users)
    run = partial(fused_products, js.Gaussian(bandwidth=9.0), backend=backend)
    try:
        lowered = jax.jit(run).trace(*arguments, 90).lower(lowering_platforms=(platform,))
    except (ImportError, RuntimeError) as error:  # no such compiler, or from 0.11 on no such GPU
        if isinstance(error, RuntimeError) and "No supported GPU" not in str(error):
            raise
        pytest.skip(str(error))
    assert "custom_call" in lowered.as_text()


def test_is_not_used_on_a_processor_and_says_so():
    if jax.default_backend() != "cpu":
        pytest.skip("the default device is an accelerator")
    assert not fused_for(js.Gaussian(bandwidth=1.0))
    arguments = made()
    with pytest.raises(ValueError, match="backend: expected one of"):
        fused_products(js.Gaussian(bandwidth=1.0), *arguments, 7)


def test_refuses_a_kernel_of_another_distance():
    arguments = made()
    with pytest.raises(ValueError, match="Laplacian"):
        fused_products(js.Laplacian(bandwidth=1.0), *arguments, 7, **OPTIONS)


def test_compiled_for_the_device_it_equals_float64():
    """On an accelerator that the pass uses it on: at sizes of whole blocks and of parts."""
    kernel = js.Gaussian(bandwidth=9.0)
    if not COMPILED:
        pytest.skip("the kernel is not compiled for this device")
    for storage in ("float32", "bfloat16", "int8"):
        for users, d, n in ((1, 96, 50), (1, 512, 128), (11, 70, 67)):
            arguments = made(storage, slots=70, m=50, d=d, users=users, n=n)
            found = fused_products(kernel, *arguments, 70)
            np.testing.assert_allclose(found, oracle(kernel, *arguments), atol=5e-6)
