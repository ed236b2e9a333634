"""The fused kernel, interpreted: against float64 numpy and against the pass that XLA compiles."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec as js
from jaxspec.embeddings import embedding_products, pack_columns
from jaxspec.fused import available, fused_products
from jaxspec.market_arrays import decode_points, encode_rows

OPTIONS = {"interpret": True, "backend": "gpu"}


def made(storage="float32", slots=7, m=11, d=6, users=1, n=21, seed=0):
    """Return the arguments of `embedding_products` but kernel, count and length, and the count.

    Every learnware has two points of weight zero and user q has n - 3 q points: the columns of
    the packed batch end in padding.
    """
    rng = np.random.default_rng(seed)
    draw = rng.normal(size=(slots, m, d)).astype(np.float32)
    fields = ("points", "class_vectors", "probe_weights", "hidden_maps")
    rows = encode_rows(dict.fromkeys(fields, draw), storage)
    weights = rng.normal(size=(slots, m)).astype(np.float32)
    weights[:, -2:] = 0.0
    counts = n - 3 * np.arange(users)
    own = np.arange(n) < counts[:, None]
    shares = np.where(own, rng.normal(size=(users, n)) / n, 0.0).astype(np.float32)
    points = np.where(own[..., None], rng.normal(size=(users, n, d)), 0.0).astype(np.float32)
    columns, shares = pack_columns(jnp.asarray(points), jnp.asarray(shares), jnp.asarray(counts))
    stored = [jnp.asarray(rows[name]) for name in ("points", "scales", "square_norms")]
    return (*stored, jnp.asarray(weights), columns, shares), int(counts.sum())


def oracle(kernel, points, scales, _, weights, columns, shares):
    """Return sum_ij w_i k(x_i, c_j) s_jq in float64, learnware by learnware."""
    x, w, c, s = (
        np.asarray(value, np.float64)
        for value in (decode_points(points, scales), weights, columns, shares)
    )
    distance = np.square(x[:, :, None, :] - c[None, None]).sum(axis=-1)
    h2 = float(kernel.bandwidth) ** 2
    values = (
        np.exp(-0.5 * distance / h2)
        if isinstance(kernel, js.Gaussian)
        else 1.0 / np.sqrt(1.0 + distance / h2)
    )
    return np.einsum("lm,lmt,tq->lq", w, values, s)


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("users", [1, 3])
def test_products_are_those_of_float64_and_of_the_default_pass(storage, users):
    arguments, count = made(storage, users=users)
    kernel = js.Gaussian(bandwidth=1.7)
    found = fused_products(kernel, *arguments, 7, **OPTIONS)
    assert found.shape == (7, users) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, oracle(kernel, *arguments), atol=2e-6)
    default = jax.jit(embedding_products)(kernel, *arguments, count, 7)
    np.testing.assert_allclose(found, default, atol=2e-6)


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_inverse_multiquadric_equals_float64_with_the_blocks_of_either_device(backend):
    arguments, _ = made("bfloat16", users=3)
    kernel = js.InverseMultiquadric(bandwidth=2.3)
    found = fused_products(kernel, *arguments, 7, interpret=True, backend=backend)
    np.testing.assert_allclose(found, oracle(kernel, *arguments), atol=2e-6)


@pytest.mark.parametrize("m, d", [(50, 70), (130, 5), (300, 17)])
def test_sizes_that_fit_no_block_equal_float64(m, d):
    """Features in several blocks, few learnwares a program, one that is larger than a program."""
    arguments, _ = made(slots=3, m=m, d=d, users=1, n=67)
    kernel = js.Gaussian(bandwidth=float(np.sqrt(d)))
    found = fused_products(kernel, *arguments, 3, **OPTIONS)
    np.testing.assert_allclose(found, oracle(kernel, *arguments), atol=5e-6)


def test_columns_from_count_on_and_slots_from_length_on_may_be_left_out(monkeypatch):
    monkeypatch.setattr("jaxspec.fused.CHUNK_BYTES", 1)  # a chunk is one program's learnwares
    arguments, count = made(slots=50, users=3)
    kernel = js.Gaussian(bandwidth=1.7)
    run = jax.jit(lambda length, count: fused_products(
        kernel, *arguments, length, count=count, **OPTIONS
    ))  # fmt: skip
    expected = oracle(kernel, *arguments)
    found = np.asarray(run(31, count))
    np.testing.assert_allclose(found[:31], expected[:31], atol=2e-6)
    assert not found[-1].any()
    np.testing.assert_allclose(run(50, count), expected, atol=2e-6)


def test_rounding_stays_that_of_float32_for_points_stored_in_half():
    """The three bfloat16 parts of a user's points lose nothing: one part alone is off by 1e-3."""
    arguments, _ = made("bfloat16", slots=5, m=16, d=64, users=1, n=33)
    kernel = js.Gaussian(bandwidth=8.0)
    found = fused_products(kernel, *arguments, 5, **OPTIONS)
    np.testing.assert_allclose(found, oracle(kernel, *arguments), rtol=1e-4, atol=5e-7)


def test_bandwidth_may_be_traced():
    arguments, _ = made()
    run = jax.jit(lambda h: fused_products(js.Gaussian(bandwidth=h), *arguments, 7, **OPTIONS))
    for bandwidth in (0.9, 3.0):
        kernel = js.Gaussian(bandwidth=bandwidth)
        np.testing.assert_allclose(run(bandwidth), oracle(kernel, *arguments), atol=2e-6)


@pytest.mark.parametrize("platform, backend", [("cuda", "gpu"), ("tpu", "tpu")])
@pytest.mark.parametrize("storage", ["float32", "int8"])
@pytest.mark.parametrize("users", [1, 3])
def test_lowers_for_accelerators(platform, backend, storage, users):
    """Triton and Mosaic take it, as far as that shows without a device."""
    arguments, count = made(storage, slots=9, m=50, d=96, users=users)
    run = partial(fused_products, js.Gaussian(bandwidth=9.0), backend=backend)
    try:
        lowered = jax.jit(run).trace(*arguments, 9, count=count).lower(
            lowering_platforms=(platform,)
        )  # fmt: skip
    except ImportError as error:  # a jaxlib without that compiler
        pytest.skip(str(error))
    assert "custom_call" in lowered.as_text()


def test_is_not_available_on_a_processor_and_says_so():
    if jax.default_backend() != "cpu":
        pytest.skip("the default device is an accelerator")
    assert not available()
    arguments, _ = made()
    with pytest.raises(ValueError, match="backend: expected one of"):
        fused_products(js.Gaussian(bandwidth=1.0), *arguments, 7)


def test_refuses_a_kernel_of_another_distance():
    arguments, _ = made()
    with pytest.raises(ValueError, match="Laplacian"):
        fused_products(js.Laplacian(bandwidth=1.0), *arguments, 7, **OPTIONS)
