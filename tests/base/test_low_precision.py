"""Products of stored numbers in parts, and the k largest by groups, against float64 and numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import alike, made_user

import jaxspec as js
from jaxspec.base import low_precision
from jaxspec.base.largest import largest
from jaxspec.base.low_precision import parts_of, stored_gram, stored_product
from jaxspec.base.platform import on_processor
from jaxspec.scoring import market_pass


@pytest.fixture
def as_on_an_accelerator(monkeypatch):
    """Multiply numbers stored in bfloat16 as they are, without the kernel that needs a GPU."""
    monkeypatch.setattr(low_precision, "_as_stored", lambda stored: stored.dtype == jnp.bfloat16)


def drawn(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_parts_sum_to_the_number_and_have_eight_bits_each():
    values = drawn(0, 40, 7) * np.float32(10.0) ** np.arange(-3, 4, dtype=np.float32)
    parts = jax.jit(parts_of)(values)
    assert all(part.dtype == jnp.bfloat16 for part in parts)
    total = sum(np.asarray(part, np.float64) for part in parts)
    np.testing.assert_allclose(total, values, rtol=2.0**-23)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.usefixtures("as_on_an_accelerator")
def test_products_with_stored_numbers_round_like_float32(dtype):
    stored, others = jnp.asarray(drawn(1, 50, 96), dtype), drawn(2, 9, 96)
    expected = np.asarray(stored, np.float64) @ others.astype(np.float64).T
    np.testing.assert_allclose(jax.jit(stored_product)(stored, others), expected, atol=2e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.usefixtures("as_on_an_accelerator")
def test_grams_of_stored_numbers_round_like_float32(dtype):
    stored = jnp.asarray(drawn(3, 8, 5, 96), dtype)
    wide = np.asarray(stored, np.float64)
    np.testing.assert_allclose(
        jax.jit(stored_gram)(stored), np.einsum("lcd,led->lce", wide, wide), atol=2e-5
    )


@pytest.mark.parametrize("method", alike("likelihood", "transfer", "classwise"))
def test_scores_are_those_of_a_processor(market, monkeypatch, method):
    """The other side of each branch that asks for the device: longer chunks, no loops, parts."""
    half = market.astype("bfloat16")
    user = made_user(1)
    expected = js.match(half, user, method=method).scores
    jax.clear_caches()
    monkeypatch.setattr(low_precision, "_as_stored", lambda stored: stored.dtype == jnp.bfloat16)
    monkeypatch.setattr(market_pass, "fused_for", lambda kernel: False)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    found = js.match(half, user, method=method).scores
    monkeypatch.undo()
    jax.clear_caches()
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_of_equal_values_the_first_are_the_largest():
    values = np.repeat(np.float32([1.0, 3.0, 2.0, 3.0]), 500)
    want = np.argsort(-values, kind="stable")[:7]
    np.testing.assert_array_equal(largest(jnp.asarray(values), 7), want)
    values = np.where(np.arange(2000) == 1999, 0.0, -np.inf).astype(np.float32)
    assert largest(jnp.asarray(values), 3).tolist() == [1999, 0, 1]


def test_the_largest_are_found_by_groups():
    values = jax.random.normal(jax.random.key(0), (64 * 50,))
    want = np.argsort(-np.asarray(values), kind="stable")[:20]
    np.testing.assert_array_equal(largest(values, 20), want)


@pytest.mark.skipif(not on_processor(), reason="an accelerator multiplies what is stored")
def test_a_loop_over_chunks_makes_no_float32_copy_of_what_is_stored():
    stored = jax.random.normal(jax.random.key(0), (4096, 64)).astype(jnp.bfloat16)

    def sums(stored):
        def add(i, total):
            return total + low_precision.stored_chunk(stored, i * 64, 64).astype(jnp.float32).sum(
                axis=0
            )

        return jax.lax.fori_loop(0, 64, add, jnp.zeros(64))

    compiled = jax.jit(sums).lower(stored).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < stored.nbytes / 4
    expected = np.asarray(stored, np.float32).sum(axis=0)
    np.testing.assert_allclose(compiled(stored), expected, rtol=1e-4, atol=1e-3)
