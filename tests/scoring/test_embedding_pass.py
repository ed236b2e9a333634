"""Products of embeddings against float64 numpy, whatever the numbers of columns, rows and users."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scoring_oracles as oracles

import jaxspec as js
from jaxspec.scoring import embedding_pass
from jaxspec.scoring.embedding_pass import (
    chunk_rows,
    differentiable_products,
    embedding_products,
    pack_columns,
)

KERNELS = [js.Gaussian(1.7), js.InverseMultiquadric(2.3), js.Laplacian(3.0)]


def made(counts, *, slots=9, m=4, d=3, n=320, seed=0):
    """Return stored rows, and users with these numbers of points, in float64."""
    rng = np.random.default_rng(seed)
    points, weights = rng.normal(size=(slots, m, d)), rng.normal(size=(slots, m))
    own = np.arange(n) < np.array(counts)[:, None]
    users = np.where(own[..., None], rng.normal(size=(len(counts), n, d)), 0.0)
    shares = np.where(own, rng.normal(size=own.shape), 0.0) / np.sqrt(n)
    return points, weights, users, shares


def wanted(kernel, points, weights, users, shares):
    return np.array(
        [
            [
                w @ oracles.kernel_values(kernel, x, u) @ s
                for u, s in zip(users, shares, strict=True)
            ]
            for x, w in zip(points, weights, strict=True)
        ]
    )


@functools.partial(jax.jit, static_argnames="differentiable")
def products(kernel, points, weights, users, shares, counts, length, differentiable=False):
    columns, packed = pack_columns(users, shares, counts)
    scales = jnp.ones(points.shape[:2])
    norms = (points**2).sum(axis=2)
    stored = (points, scales, norms, weights)
    if differentiable:
        return differentiable_products(kernel, *stored, columns, packed, length)
    return embedding_products(kernel, *stored, columns, packed, counts.sum(), length)


def run(kernel, points, weights, users, shares, counts, length, **options):
    parts = map(np.float32, (points, weights, users, shares))
    return np.asarray(products(kernel, *parts, np.int32(counts), np.int32(length), **options))


def test_one_user_of_any_number_of_points_equals_float64():
    """At each width of the last block, beside it, and with full blocks before."""
    for count in (0, 1, 15, 16, 17, 33, 50, 51, 100, 129, 255, 256, 257, 300, 320):
        parts = made([count])
        found = run(KERNELS[0], *parts, [count], 9)
        np.testing.assert_allclose(found, wanted(KERNELS[0], *parts), atol=3e-6, err_msg=str(count))


def test_several_users_of_any_numbers_of_points_equal_float64():
    for counts in ((0, 0, 0), (1, 0, 2), (20, 21, 22), (64, 0, 0), (65, 1, 0), (300, 7, 128)):
        parts = made(counts)
        found = run(KERNELS[0], *parts, counts, 9)
        np.testing.assert_allclose(found, wanted(KERNELS[0], *parts), atol=3e-6)


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_equals_float64_in_many_chunks(monkeypatch, kernel, differentiable):
    """The last chunk overlaps the one before it."""
    monkeypatch.setattr(embedding_pass, "block_entries", lambda: 4 * 50 * 4)
    counts = (7, 30)
    parts = made(counts, slots=11, n=40, seed=1)
    found = run(kernel, *parts, counts, 11, differentiable=differentiable)
    np.testing.assert_allclose(found, wanted(kernel, *parts), atol=3e-6)
    jax.clear_caches()


def test_chunks_beyond_the_length_are_not_computed(monkeypatch):
    monkeypatch.setattr(embedding_pass, "block_entries", lambda: 4 * 16 * 4)
    parts = made([9], slots=20, n=16, seed=2)
    points = parts[0].copy()
    points[12:] = np.nan  # would show
    found = run(KERNELS[0], points, *parts[1:], [9], 9)
    np.testing.assert_allclose(found[:9], wanted(KERNELS[0], *parts)[:9], atol=3e-6)
    np.testing.assert_array_equal(found[12:], 0)
    jax.clear_caches()


def test_chunks_hold_what_fits_and_are_equally_long(monkeypatch):
    monkeypatch.setattr(embedding_pass, "block_entries", lambda: 1000)
    for slots in (1, 7, 99, 100, 101, 12_345):
        for entries in (1, 9, 400, 5000):
            chunk = chunk_rows(slots, entries)
            assert 1 <= chunk <= slots
            assert chunk == 1 or chunk * entries <= 1000
            assert -(-slots // chunk) * chunk - slots < -(-slots // chunk)


def test_derivatives_in_the_users_points_equal_those_of_float64():
    parts = made([5, 3], n=8, seed=3)
    kernel = js.Gaussian(1.7)

    def total(users):
        return products(
            kernel,
            *map(np.float32, parts[:2]),
            users,
            np.float32(parts[3]),
            np.int32([5, 3]),
            9,
            differentiable=True,
        ).sum()

    x, w, u, s = parts
    want = np.zeros_like(u)
    for q in range(2):
        apart = x[:, :, None] - u[q][None, None]
        value = np.exp(-(apart**2).sum(-1) / (2 * 1.7**2))
        want[q] = np.einsum("lm,lmn,lmnd,n->nd", w, value, apart, s[q]) / 1.7**2
    np.testing.assert_allclose(jax.grad(total)(np.float32(u)), want, atol=1e-5)
    tangent = np.random.default_rng(0).normal(size=u.shape)
    found = jax.jvp(total, (np.float32(u),), (np.float32(tangent),))[1]
    np.testing.assert_allclose(found, (want * tangent).sum(), rtol=1e-4)
