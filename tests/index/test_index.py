"""The index: what its codes approximate, that it finds the best, and that it stays current."""

import dataclasses
import functools

import numpy as np
import pytest
from conftest import made_specification, made_user
from test_probe import specification_with_probe

import jaxspec as js
from benchmarks import made_market, made_shapes
from jaxspec.index import encoder as index_codes
from jaxspec.index import filter as index_filter
from jaxspec.market import builder as market_storage
from jaxspec.market import calibration
from jaxspec.matching import match as matching


@functools.cache
def world():
    return made_market.make_world(dimension=16)


@functools.cache
def large():
    return made_market.make_market(world(), 1500, size=20)


@functools.cache
def index():
    return js.Index.build(large())


def users(count=8, seed=5):
    return made_market.make_users(world(), count, size=30, seed=seed)


def assert_like_codes(codes, again, rows):
    """Codes of these rows are those computed again, but for rounding to a step."""
    values = np.asarray(codes.values, np.int32)[rows]
    assert np.abs(values - np.asarray(again.values, np.int32)).max() <= 1
    assert (values == again.values).mean() > 0.99
    np.testing.assert_allclose(np.asarray(codes.scales)[rows], again.scales, rtol=1e-4)


def test_the_exact_best_ten_are_among_the_candidates():
    found, exact = index().search(users(), 10), js.top_k(large(), users(), 10)
    for one, best in zip(found, exact, strict=True):
        assert set(best.ids) <= set(one.ids)
        assert one.ids[0] == best.ids[0]
        assert len(one.ids) < len(large()) / 4


@pytest.mark.parametrize("method", ["likelihood", "classwise", "rkme", "transfer"])
def test_scores_of_candidates_are_exact(method):
    user = users(1)[0]
    found = index().search(user, 5, method=method)
    exact = js.match(large(), user, method=method)
    place = {learnware: i for i, learnware in enumerate(exact.ids)}
    rows = [place[learnware] for learnware in found.ids]
    np.testing.assert_allclose(found.scores, exact.scores[rows], atol=2e-5)
    np.testing.assert_allclose(found.squared_mmd, exact.squared_mmd[rows], atol=2e-5)
    np.testing.assert_array_equal(found.class_map, exact.class_map[rows])
    assert (np.diff(found.scores) <= 0).all()
    assert found.explain(found.ids[0])[0][0] == user.class_names[0]


def test_a_code_has_at_most_a_kibibyte():
    assert index().bytes_per_learnware <= 1024


def test_inner_products_of_first_pieces_are_the_embeddings_angles():
    market, people = large(), users()
    arrays = matching.stack_users(market, people)
    codes = index()._codes
    asked = index_codes.encode_users(codes.encoder, market.arrays, arrays)
    found = index_codes.inner_products(codes.encoder, codes.codes, asked)[0, :, : len(market)]
    exact = js.match(market, people, method="classwise")
    close = (exact.scores - exact.class_similarity.mean(axis=2)) / 2
    np.testing.assert_allclose(found, close, atol=0.05)


@pytest.mark.parametrize("count", [1, 8, 11])
def test_eight_bits_change_inner_products_by_less_than_a_hundredth(count):
    """Of both pieces, for any number of users, in the users' order."""
    market = large()
    codes, rows = index()._codes, market_storage.take(market._storage, market.slots)
    arrays = matching.stack_users(market, users(count))
    asked = index_codes.encode_users(codes.encoder, market.arrays, arrays)
    found = index_codes.inner_products(codes.encoder, codes.codes, asked)[..., : len(market)]
    assert found.shape == (2, count, len(market))
    pieces = index_codes.pieces_of(codes.encoder, market.kernel, rows)
    for one, (piece, user) in zip(found, zip(pieces, asked, strict=True), strict=True):
        exact = np.asarray(user, np.float64) @ np.asarray(piece, np.float64).T
        sizes = np.linalg.norm(user, axis=1)[:, None] * np.linalg.norm(piece, axis=1)
        assert np.abs(one - exact).max() < 0.01 * sizes.max()


def test_sketches_of_like_names_add_up_and_others_cancel():
    rng = np.random.default_rng(0)
    names = {f"class {i}": i for i in range(40)}
    places, signs = index_codes.name_tables(names, 64)
    encoder = dataclasses.replace(index()._codes.encoder, places=places, signs=signs)
    vectors = rng.normal(size=(200, 5, 64)).astype(np.float32) / 8
    numbers = np.stack([rng.permutation(40)[:5] for _ in range(200)]).astype(np.int32)
    sketch = np.asarray(index_codes._sketched(encoder, vectors, numbers))
    same = (sketch**2).sum(axis=1)
    np.testing.assert_allclose(same.mean(), (vectors**2).sum(axis=(1, 2)).mean(), rtol=0.1)
    other = np.asarray(index_codes._sketched(encoder, vectors, (numbers + 7) % 40))
    assert abs((sketch * other).sum(axis=1)).mean() < 0.4 * same.mean()


def test_add_and_remove_keep_it_current():
    specs = {f"m{s}": made_specification(s) for s in range(6)}
    first = js.Index.build(js.Market.from_specifications(specs))
    user = made_user(7)
    grown = first.add("new", made_specification(7))
    assert grown.search(user, 3).ids[0] == "new"
    assert "new" not in first.search(user, 3).ids
    gone = grown.remove("new")
    assert "new" not in gone.search(user, 3).ids
    many = grown
    for i in range(40):  # past the capacity
        many = many.add(f"more {i}", made_specification(i % 6))
    assert many.search(user, 3).ids[0] == "new"
    assert len(many) == 47
    rebuilt = market_storage.take(many.market._storage, many.market.slots)
    again = index_codes.encode_rows(many._codes.encoder, many.market.kernel, rebuilt)
    assert_like_codes(many._codes.codes, again, np.arange(47))


def test_it_serves_markets_with_probes_and_users_of_other_names():
    market = js.Market.from_specifications({f"m{s}": specification_with_probe(s) for s in range(6)})
    own, stranger = made_user(2), made_user(2, class_names=["w", "x", "y", "z"])
    found, other = js.Index.build(market).search([own, stranger], 3)
    assert found.method == "likelihood"
    assert other.method == "transfer"
    exact = js.match(market, own)
    assert dict(exact.top_k(6)).keys() == set(found.ids)
    np.testing.assert_allclose(found.scores, [s for _, s in exact.top_k(6)], atol=1e-4)


def test_a_higher_recall_asks_for_more_candidates(monkeypatch):
    one = index()
    depths = np.arange(1, 65) * 10.0
    monkeypatch.setitem(
        one._filters, ("classwise", True), (one._filter("likelihood", by_name=True)[0], depths)
    )
    few, many = (one.candidates(10, recall=r, method="classwise") for r in (0.5, 0.99))
    assert few < many


def test_pseudo_users_see_a_market_like_their_users():
    market = large()
    acting = market_storage.spaced(market.slots, 64)
    own = [set(market.class_names(market.ids[slot])) for slot in acting]
    known, other = (index_filter._shown(market, acting, by_name) for by_name in (True, False))
    for slot, names, one, two in zip(acting, own, known, other, strict=True):
        assert slot not in one and slot not in two
        assert len(one) == len(market) - 64
        assert len(two) >= 40
        assert all(names.isdisjoint(market.class_names(market.ids[i])) for i in two)
    users = index_filter.pseudo_users(market, acting[:3])
    for slot, user in zip(acting, users, strict=False):
        spec = market[market.ids[slot]]
        np.testing.assert_array_equal(user.reduced_set.points, spec.reduced_set.points)
        logits = user.reduced_set.points @ spec.proxy.weights + spec.proxy.bias
        np.testing.assert_array_equal(user.labels, logits.argmax(axis=1))
        assert user.class_names == spec.class_names


@pytest.mark.parametrize(
    ("other", "probe", "recall"), [(False, True, 0.99), (True, True, 0.8), (True, False, 0.8)]
)
def test_the_recall_holds_where_learnwares_differ_in_shape(other, probe, recall):
    shapes = made_shapes.make_world(dimension=16)
    market = made_shapes.make_market(shapes, 1200, size=20, probe=probe)
    people = made_shapes.make_users(shapes, 16, other=other, seed=6)
    found = js.Index.build(market).search(people, 10, recall=recall)
    exact = js.match(market, people)
    assert set(exact.method) == {"transfer" if other else "likelihood"}
    best = [{name for name, _ in one} for one in exact.top_k(10)]
    held = [some <= set(one.ids) for some, one in zip(best, found, strict=True)]
    assert np.mean(held) >= recall
    # These models do not follow the public features: codes say nothing of their use to strangers.
    follows = float(calibration.following(market.calibration))
    assert follows < 0.1 if probe else follows == 1
    assert (len(found[0].ids) < len(market)) == (not (other and probe))


def test_growing_by_one_and_users_of_other_classes_compile_nothing(compile_counter):
    market = js.Market.from_specifications({f"m{s}": made_specification(s) for s in range(9)})
    one = js.Index.build(market)
    one = one.add("first", made_specification(6))
    one.search(made_user(1), 3)
    with compile_counter() as counter:
        one = one.add("second", made_specification(7))
        one.search(made_user(1, classes=3), 3)
        one.search(made_user(1, per_class=7), 3)
    assert counter.count == 0


def test_bad_input_is_named():
    with pytest.raises(TypeError, match="market: expected a Market"):
        js.Index.build("market")
    with pytest.raises(ValueError, match="k: expected an integer of at least 1"):
        index().search(users(1)[0], 0)
    with pytest.raises(ValueError, match="recall: expected a share"):
        index().search(users(1)[0], recall=1.5)
    with pytest.raises(TypeError, match="recall: expected a number"):
        index().search(users(1)[0], recall="most")
    with pytest.raises(ValueError, match="feature space"):
        index().search(made_user(1))


@pytest.mark.parametrize("noise", [0.1, 0.5])
def test_depths_drawn_from_a_sample_are_those_of_the_market(noise):
    """Of 20,000 learnwares a tenth is shown: how deep the best ten of all lie is known here."""
    rng = np.random.default_rng(3)
    true, drawn = [], []
    for _ in range(30):
        guess = rng.normal(size=20_000)
        exact = guess + noise * rng.normal(size=20_000)
        best = np.argsort(-exact)[:10]
        true.append(1 + (guess > guess[best].min()).sum())
        shown = slice(0, 2_000)
        drawn.append(index_filter.drawn_depths(rng, guess[shown], exact[shown], 0.1))
    assert drawn[0].shape == (index_filter.DRAWS,)
    assert 0.6 < np.median(drawn) / np.median(true) < 1.8
    assert 0.6 < np.quantile(drawn, 0.9) / np.quantile(true, 0.9) < 1.8
