"""Codes approximate closeness and similarity; filters and depths are those of the market."""

import dataclasses

import numpy as np
import pytest
from made_index import index, large, share_with_all, users

import jaxspec as js
from jaxspec.index import encoder as encoders
from jaxspec.index import filter as filters
from jaxspec.market import evenly_spaced
from jaxspec.matching import stack_users
from jaxspec.scoring import METHODS


def stacked(market, people, by_name=True):
    return stack_users(market, people, np.full(len(people), by_name))


def products(people):
    market, codes = large(), index()._codes
    asked = encoders.encode_users(codes.encoder, market.arrays, stacked(market, people))
    found = encoders.inner_products(codes.encoder, codes.stored, asked)
    return asked, np.asarray(found)[..., : len(market)]


def test_a_code_has_at_most_a_quarter_of_a_kibibyte():
    assert index().bytes_per_learnware <= 256
    assert repr(index()) == f"Index(1500 learnwares, {index().bytes_per_learnware} bytes each)"


def test_inner_products_of_first_parts_are_the_cosines_of_embeddings():
    (_, found), exact = products(users()), js.match(large(), users(), method="classwise")
    for near, one in zip(found[0], exact, strict=True):
        cosine = (one.scores - one.class_similarity.mean(axis=1)) / 2
        np.testing.assert_allclose(near, cosine, atol=0.05)


@pytest.mark.parametrize("count", [1, 8, 11])
@pytest.mark.parametrize("block", [128, 1 << 20])
def test_eight_bits_change_inner_products_by_less_than_a_hundredth(monkeypatch, count, block):
    """Against products in float64 of both parts, for any number of users and block of rows."""
    monkeypatch.setattr(encoders, "ROWS_PER_PRODUCT", {"processor": block, "accelerator": block})
    market = large()
    asked, found = products(users(count))
    assert found.shape == (2, count, len(market))
    rows = market.shared.take(market.slots)
    parts = encoders.code_parts(index()._codes.encoder, market.kernel, rows)
    for one, part, user in zip(found, parts, asked, strict=True):
        exact = np.asarray(user, np.float64) @ np.asarray(part, np.float64).T
        sizes = np.linalg.norm(user, axis=1)[:, None] * np.linalg.norm(part, axis=1)
        assert np.abs(one - exact).max() < 0.01 * sizes.max()


def test_sketches_of_equal_names_add_up_and_others_cancel():
    rng = np.random.default_rng(0)
    places, signs, count = encoders.draw_names([f"class {i}" for i in range(40)], 64)
    assert count == 40
    encoder = dataclasses.replace(index()._codes.encoder, places=places, signs=signs)
    vectors = rng.normal(size=(200, 5, 64)).astype(np.float32) / 8
    numbers = np.stack([rng.permutation(40)[:5] for _ in range(200)]).astype(np.int32)
    sketch = np.asarray(encoders.sketch_classes(encoder, vectors, numbers))
    same = (sketch**2).sum(axis=1)
    np.testing.assert_allclose(same.mean(), (vectors**2).sum(axis=(1, 2)).mean(), rtol=0.1)
    other = np.asarray(encoders.sketch_classes(encoder, vectors, (numbers + 7) % 40))
    assert abs((sketch * other).sum(axis=1)).mean() < 0.4 * same.mean()


def test_names_that_come_later_do_not_change_the_draws_of_earlier_ones():
    names = [f"class {i}" for i in range(40)]
    at_once = encoders.draw_names(names, 10)
    in_steps = encoders.draw_names(names, 10, encoders.draw_names(names[:3], 10))
    for one, other in zip(at_once, in_steps, strict=True):
        np.testing.assert_array_equal(one, other)


def test_pseudo_users_see_a_market_like_their_users():
    market = large()
    acting = evenly_spaced(market.slots, 64)
    own = [set(market.class_names(market.ids[slot])) for slot in acting]
    known, other = (
        filters.shown_learnwares(market, acting, by_name=by_name) for by_name in (True, False)
    )
    for slot, names, one, two in zip(acting, own, known, other, strict=True):
        assert slot not in one and slot not in two
        assert len(one) == len(market) - 64
        assert len(two) >= 40
        assert all(names.isdisjoint(market.class_names(market.ids[i])) for i in two)
    for slot, user in zip(acting, filters.make_pseudo_users(market, acting[:3]), strict=False):
        spec = market[market.ids[slot]]
        np.testing.assert_array_equal(user.reduced_set.points, spec.reduced_set.points)
        logits = user.reduced_set.points @ np.asarray(spec.proxy.weights) + spec.proxy.bias
        np.testing.assert_array_equal(user.labels, logits.argmax(axis=1))
        assert user.class_names == spec.class_names


@pytest.mark.parametrize("noise", [0.1, 0.5])
def test_depths_that_are_drawn_from_a_sample_are_those_of_the_market(noise):
    """Of 20,000 learnwares a tenth is shown: how deep the best ten of all lie is known here."""
    rng = np.random.default_rng(3)
    true, drawn = [], []
    for _ in range(30):
        guess = rng.normal(size=20_000)
        exact = guess + noise * rng.normal(size=20_000)
        best = np.argsort(-exact)[:10]
        true.append(1 + (guess > guess[best].min()).sum())
        shown = slice(0, 2_000)
        drawn.append(filters.draw_depths(rng, guess[shown], exact[shown], 0.1))
    assert drawn[0].shape == (filters.DRAWS,)
    assert 0.6 < np.median(drawn) / np.median(true) < 1.8
    assert 0.6 < np.quantile(drawn, 0.9) / np.quantile(true, 0.9) < 1.8


@pytest.mark.slow
def test_a_sample_stands_for_a_large_market(monkeypatch):
    monkeypatch.setattr(filters, "MAX_SHOWN", 700)
    sampled, people = js.Index.build(large()), users(16, seed=13)
    found, exact = (js.match(x, people, k=10) for x in (sampled, large()))
    assert share_with_all(found, exact) >= 0.99
    assert sampled.candidates(10) < len(large())


def test_a_higher_recall_asks_for_more_candidates(monkeypatch):
    one = index()
    fitted = one._filter(METHODS["likelihood"], by_name=True)
    depths = dataclasses.replace(fitted, depths=np.arange(1, 65) * 5.0)
    monkeypatch.setitem(one._codes.filters, (METHODS["classwise"], True), depths)
    few, many = (one.candidates(10, recall=r, method="classwise") for r in (0.5, 0.99))
    assert few < many < one.candidates(100, recall=0.99, method="classwise")
