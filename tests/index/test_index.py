"""The index: what its codes approximate, and that it answers as its market does."""

import copy
import dataclasses
import functools
import pickle

import jax
import made_index
import numpy as np
import pytest
from conftest import SPACE, made_probe, made_specification, made_task, made_user, probed_space
from made_index import assert_close_codes

import jaxspec as js
from benchmarks.markets import made_market, made_shapes
from jaxspec.index import encoder as encoders
from jaxspec.index import filter as filters
from jaxspec.index import index as indexes
from jaxspec.market import evenly_spaced, following
from jaxspec.matching import stack_users
from jaxspec.scoring import METHODS


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


def stacked(market, people, by_name=True):
    return stack_users(market, people, np.full(len(people), by_name))


def share_with_all(found, exact):
    """Return the share of users for whom all of the exact best were found."""
    return np.mean([set(b.ids) == set(a.ids) for a, b in zip(found, exact, strict=True)])


def assert_same_answer(found, exact, atol=2e-5):
    assert found.ids == exact.ids
    for name in ("scores", "squared_mmd", "class_similarity"):
        np.testing.assert_allclose(getattr(found, name), getattr(exact, name), atol=atol)
    np.testing.assert_array_equal(found.class_map, exact.class_map)
    for name in ("method", "reuse", "label_spaces", "notes", "class_names"):
        assert getattr(found, name) == getattr(exact, name)


def test_the_exact_best_ten_are_found_from_few_candidates():
    for found, exact in zip(
        js.match(index(), users(), k=10), js.match(large(), users(), k=10), strict=True
    ):
        assert_same_answer(found, exact)
    assert index().candidates(10) < len(large()) / 4


@pytest.mark.parametrize("method", ["likelihood", "classwise", "rkme", "transfer"])
def test_answers_are_those_of_the_exact_pass(method):
    user = users(1)[0]
    assert_same_answer(
        js.match(index(), user, k=5, method=method), js.match(large(), user, k=5, method=method)
    )


@dataclasses.dataclass(frozen=True)
class OwnScore:
    """A user's own score, which no filter was made for."""

    factor: float = 1.0
    name: str = "own"
    needs: tuple[str, ...] = ("closeness", "share", "similarity")

    def __call__(self, evidence):
        return self.factor * evidence.share * evidence.closeness**3 + evidence.similarity**2


def test_the_recall_holds_for_a_users_own_score():
    for score in (OwnScore(), OwnScore(factor=-1.0)):
        found, exact = (js.match(one, users(), k=10, method=score) for one in (index(), large()))
        assert share_with_all(found, exact) >= 0.99
        assert found[0].method == "own"


def test_without_a_number_all_learnwares_are_answered_in_the_markets_order():
    found = js.match(index(), users(1)[0])
    assert found.ids == large().ids
    assert_same_answer(found, js.match(large(), users(1)[0]), atol=0)


def test_a_code_has_at_most_a_quarter_of_a_kibibyte():
    assert index().bytes_per_learnware <= 256
    assert repr(index()) == f"Index(1500 learnwares, {index().bytes_per_learnware} bytes each)"


# Codes


def products(people):
    market, codes = large(), index()._codes
    asked = encoders.encode_users(codes.encoder, market.arrays, stacked(market, people))
    found = encoders.inner_products(codes.encoder, codes.stored, asked)
    return asked, np.asarray(found)[..., : len(market)]


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


# Growth


def small(count=6):
    specs = {f"m{seed}": made_specification(seed) for seed in range(count)}
    return js.Market(SPACE, specs)


def test_add_update_and_remove_keep_it_current():
    first, user = js.Index.build(small()), made_user(7)
    grown = first.add({"new": made_specification(7)})
    assert js.match(grown, user, k=3).ids[0] == "new"
    assert "new" not in js.match(first, user, k=3).ids
    gone = grown.remove(["new"])
    assert "new" not in js.match(gone, user, k=3).ids
    other = grown.update({"new": made_specification(3)})
    assert js.match(other, made_user(3), k=2, method="rkme").ids == ("m3", "new")
    many = grown
    for i in range(40):  # beyond the rows that there were
        many = many.add({f"more {i}": made_specification(i % 6)})
    assert js.match(many, user, k=3).ids[0] == "new"
    assert len(many) == 47 and len(first) == 6
    for one in (grown, gone, other, many):
        shared = one.market.shared
        slots = np.arange(one.market.length)
        again = encoders.encode_rows(one._codes.encoder, one.market.kernel, shared.take(slots))
        assert_close_codes(one._codes.stored, *again, slots)


def test_versions_that_grow_apart_do_not_see_each_other():
    first = js.Index.build(small())
    one, other = (first.add({"new": made_specification(seed)}) for seed in (7, 8))
    for index, seed in ((one, 7), (other, 8)):
        found, exact = (js.match(x, made_user(seed), k=7) for x in (index, index.market))
        assert_same_answer(found, exact)
        assert found.ids[0] == "new"


def specifications_of(market, prefix, change=lambda spec: spec):
    return {f"{prefix} {name}": change(market[name]) for name in market.ids}


def elsewhere(spec):
    """Return a specification moved to another region, with other class names."""
    phi = spec.reduced_set
    names = tuple(f"another {name}" for name in spec.class_names)
    return dataclasses.replace(
        spec, reduced_set=js.ReducedSet(phi.points + 6.0, phi.weights), class_names=names
    )


def user_elsewhere(user):
    moved = elsewhere(user)
    proxy = user.proxy
    bias = proxy.bias - np.full(16, 6.0, np.float32) @ np.asarray(proxy.weights)
    return dataclasses.replace(moved, proxy=js.Proxy(proxy.weights, bias))


@pytest.mark.parametrize("at_once", [True, False])
def test_an_index_of_eight_that_grew_by_a_thousand_finds_what_one_built_anew_does(at_once):
    many = made_market.make_market(world(), 1000, size=20, seed=3)
    added = specifications_of(many, "added")
    grown = js.Index.build(made_market.make_market(world(), 8, size=20))
    if at_once:
        grown = grown.add(added)
    else:
        ids = list(added)
        for name in ids[:60]:
            grown = grown.add({name: added[name]})
        for start in range(60, 1000, 94):
            grown = grown.add({name: added[name] for name in ids[start : start + 94]})
            js.match(grown, users(1), k=10)
    assert len(grown) == 1008
    people = users(32, seed=8)
    exact = js.match(grown.market, people, k=10)
    anew = js.Index.build(grown.market)
    assert share_with_all(js.match(anew, people, k=10), exact) >= 0.99
    assert share_with_all(js.match(grown, people, k=10), exact) >= 0.99
    assert grown.candidates(10) <= 2 * anew.candidates(10) < len(grown)


@pytest.mark.parametrize("count", [40, 290])
def test_the_recall_holds_after_growth_in_another_region_with_other_classes(count):
    """Few newcomers, which the filter has not seen, and as many as there were learnwares."""
    market = made_market.make_market(world(), 600, size=20, spare=0.7)
    grown = js.Index.build(market)
    js.match(grown, users(1), k=10)  # the filter is fitted before the market grows
    many = made_market.make_market(world(), count, size=20, seed=4)
    added = list(specifications_of(many, "far", elsewhere).items())
    for start in range(0, count, 58):
        grown = grown.add(dict(added[start : start + 58]))
    people = users(12, seed=9)
    people += [user_elsewhere(one) for one in users(12, seed=10)]
    for options in ({}, {"label_spaces": "heterogeneous", "method": "classwise"}):
        exact = js.match(grown.market, people, k=10, **options)
        assert sum(name.startswith("far") for one in exact for name in one.ids) >= 100
        assert share_with_all(js.match(grown, people, k=10, **options), exact) >= 0.99


def test_the_recall_holds_where_probe_proxies_come_later():
    shapes = made_shapes.make_world(dimension=16)
    market = made_shapes.make_market(shapes, 300, size=20)
    probed = list(specifications_of(market, "probed").items())
    bare = [
        (f"bare {name}", dataclasses.replace(market[name], probe_proxy=None)) for name in market.ids
    ]
    grown = js.Index.build(js.Market(market.space, dict(bare)))
    people = made_shapes.make_users(shapes, 16, seed=6)
    js.match(grown, people[0], k=10)
    for start in range(0, 300, 75):
        grown = grown.add(dict(probed[start : start + 75]))
        exact = js.match(grown.market, people, k=10)
        assert share_with_all(js.match(grown, people, k=10), exact) >= 0.99
    assert any(name.startswith("probed") for one in exact for name in one.ids)


def test_newcomers_are_candidates_until_the_filter_has_seen_them():
    market = made_market.make_market(world(), 600, size=20)
    first = js.Index.build(market)
    fitted = first._filter(METHODS["likelihood"], by_name=True)
    many = made_market.make_market(world(), 100, size=20, seed=4)
    added = specifications_of(many, "added")
    few = first.add(dict(list(added.items())[:30]))
    assert few._filter(METHODS["likelihood"], by_name=True) is fitted
    assert first.candidates() < few.candidates() <= first.candidates() + 80
    more = first.add(added)  # from the same version: a copy, whose filters are its own
    assert more._filter(METHODS["likelihood"], by_name=True).count == 700
    grown = few.add({f"x{name}": spec for name, spec in list(added.items())[30:]})
    assert grown._filter(METHODS["likelihood"], by_name=True).count == 700


def test_growth_refits_a_bounded_number_of_times(monkeypatch):
    fits = []
    fit_encoder = encoders.fit_encoder
    monkeypatch.setattr(
        "jaxspec.index.codes.fit_encoder",
        lambda market: fits.append(len(market)) or fit_encoder(market),
    )
    grown = js.Index.build(made_index.drawn_market(8, probe=False))
    specs = {f"n{seed}": made_index.drawn(100 + seed, probe=False) for seed in range(240)}
    for name, spec in specs.items():
        grown = grown.add({name: spec})
    # Each time the market copies its arrays, which makes room for a quarter more at least.
    assert len(fits) <= 14
    assert sum(fits) <= 5 * len(grown)


# A part of the market


@pytest.mark.parametrize("share", [0.5, 0.1, 0.004])
def test_the_recall_holds_among_some_of_the_learnwares(share):
    """Also where the choice has to do with what the user wants: the worst by closeness are left."""
    people = users(8, seed=11)
    rng = np.random.default_rng(0)
    near = js.match(large(), people[0], method="rkme").scores
    masks = [
        rng.random(1500) < share,
        near <= np.quantile(near, share),
        near >= np.quantile(near, 1 - share),
    ]
    for among in masks:
        found, exact = (js.match(x, people, k=10, among=among) for x in (index(), large()))
        assert share_with_all(found, exact) >= 0.99
        assert all(len(one) == min(10, among.sum()) for one in found)
        np.testing.assert_allclose(found[0].scores, exact[0].scores, atol=2e-5)


def test_the_recall_holds_after_most_of_the_market_was_removed():
    kept = index().remove(large().ids[100:1200])
    people = users(8, seed=12)
    found, exact = (js.match(x, people, k=10) for x in (kept, kept.market))
    assert len(kept) == 400
    assert share_with_all(found, exact) >= 0.99


def test_no_learnware_is_left():
    found = js.match(index(), users(1)[0], k=3, among=np.zeros(1500, bool))
    assert found.ids == ()


def test_more_learnwares_than_there_are_can_be_asked_for():
    small_index = js.Index.build(small())
    assert len(js.match(small_index, made_user(1), k=100)) == 6
    found, exact = (js.match(x, users(1)[0], k=2000) for x in (index(), large()))
    assert_same_answer(found, exact)


# Recall


@functools.cache
def probed_specification(seed):
    features, labels = made_task(seed)
    outputs = js.fit_proxy(features, labels, num_classes=4)
    logits = made_probe() @ np.asarray(outputs.weights) + np.asarray(outputs.bias)
    chance = np.exp(logits - logits.max(axis=1, keepdims=True))
    return js.specify(
        probed_space(),
        features,
        labels,
        class_names=[f"class {letter}" for letter in "abcd"],
        size=10,
        probe_outputs=chance / chance.sum(axis=1, keepdims=True),
    )


def test_it_serves_markets_with_probes_and_users_of_other_names():
    market = js.Market(probed_space(), {f"m{s}": probed_specification(s) for s in range(6)})
    own = made_user(2, space=probed_space())
    stranger = made_user(2, space=probed_space(), class_names=["w", "x", "y", "z"])
    found, other = js.match(js.Index.build(market), [own, stranger], k=6)
    assert (found.method, other.method) == ("likelihood", "transfer")
    for one, exact in zip((found, other), js.match(market, [own, stranger], k=6), strict=True):
        assert_same_answer(one, exact)


def test_a_higher_recall_asks_for_more_candidates(monkeypatch):
    one = index()
    fitted = one._filter(METHODS["likelihood"], by_name=True)
    depths = dataclasses.replace(fitted, depths=np.arange(1, 65) * 5.0)
    monkeypatch.setitem(one._codes.filters, (METHODS["classwise"], True), depths)
    few, many = (one.candidates(10, recall=r, method="classwise") for r in (0.5, 0.99))
    assert few < many < one.candidates(100, recall=0.99, method="classwise")


@pytest.mark.parametrize(
    ("other", "probe", "recall"), [(False, True, 0.99), (True, True, 0.8), (True, False, 0.8)]
)
def test_the_recall_holds_where_learnwares_differ_in_shape(other, probe, recall):
    shapes = made_shapes.make_world(dimension=16)
    market = made_shapes.make_market(shapes, 1200, size=20, probe=probe)
    people = made_shapes.make_users(shapes, 16, probe=probe, other=other, seed=6)
    shaped = js.Index.build(market)
    found = js.match(shaped, people, k=10, recall=recall)
    exact = js.match(market, people, k=10)
    method = "transfer" if other else "likelihood"
    assert {one.method for one in exact} == {method}
    assert share_with_all(found, exact) >= recall
    # With a probe these models are seen not to follow the public features: codes say nothing of
    # their use to users of other class names, so all learnwares are scored.
    follows = float(following(market.calibration))
    assert follows < 0.1 if probe else follows == 1
    candidates = shaped.candidates(10, recall=recall, method=method, by_name=not other)
    assert (candidates < len(market)) == (not (other and probe))


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


def test_a_sample_stands_for_a_large_market(monkeypatch):
    monkeypatch.setattr(filters, "MAX_SHOWN", 700)
    sampled, people = js.Index.build(large()), users(16, seed=13)
    found, exact = (js.match(x, people, k=10) for x in (sampled, large()))
    assert share_with_all(found, exact) >= 0.99
    assert sampled.candidates(10) < len(large())


# Values, compilations, errors


def test_a_copy_of_an_index_answers_as_it_does():
    user = users(1)[0]
    want = js.match(index(), user, k=10)
    assert copy.copy(index()) is index() and copy.deepcopy(index()) is index()
    again = pickle.loads(pickle.dumps(index()))
    assert_same_answer(js.match(again, user, k=10), want)
    grown = again.add({"new": large()["learnware 3"]})
    assert len(grown) == 1501 and len(again) == 1500
    assert_same_answer(js.match(grown, user, k=10), js.match(grown.market, user, k=10))


def test_growing_by_one_and_users_of_other_classes_compile_nothing(compile_counter):
    grown = js.Index.build(small(9))
    grown = grown.add({"first": made_specification(6)})
    js.match(grown, made_user(1), k=3)
    with compile_counter() as counter:
        grown = grown.add({"second": made_specification(7)})
        js.match(grown, made_user(1, classes=3), k=3)
        js.match(grown, made_user(1, per_class=7), k=3)
    assert counter.count == 0


def test_a_filtered_index_that_grows_by_one_compiles_nothing(compile_counter):
    grown = js.Index.build(made_index.drawn_market(300, probe=False))
    user, other = (made_index.drawn_user(seed, probe=False) for seed in (1, 2))
    options = {"k": 3, "method": "rkme"}
    grown = grown.add({"first": made_index.drawn(1000, probe=False)})
    js.match(grown, user, **options)
    grown = grown.add({"second": made_index.drawn(1001, probe=False)})
    js.match(grown, user, **options)
    assert grown.candidates(3, method="rkme") < len(grown)
    with compile_counter() as counter:
        grown = grown.add({"third": made_index.drawn(1002, probe=False)}).remove(["m3"])
        js.match(grown, other, **options)
    assert counter.count == 0


def test_bad_input_is_named():
    with pytest.raises(TypeError, match="market: expected a Market"):
        js.Index.build("market")
    with pytest.raises(ValueError, match="market: expected at least one learnware"):
        js.Index.build(large().remove(large().ids))
    user = users(1)[0]
    with pytest.raises(ValueError, match="k: expected at least 1"):
        js.match(index(), user, k=0)
    with pytest.raises(ValueError, match="recall: expected a share"):
        js.match(index(), user, recall=1.5)
    with pytest.raises(TypeError, match="recall: expected a number"):
        js.match(index(), user, recall="most")
    with pytest.raises(ValueError, match="resume: expected None"):
        js.match(index(), user, k=3, resume="state")
    with pytest.raises(ValueError, match="made-features"):
        js.match(index(), made_user(1))
    with pytest.raises(ValueError, match="ids: expected to keep at least one learnware"):
        index().remove(large().ids)
    with pytest.raises(KeyError, match="nobody"):
        index().update({"nobody": large()["learnware 3"]})
    with pytest.raises(ValueError, match="in the market already"):
        index().add({"learnware 3": large()["learnware 3"]})


def test_the_limits_of_the_module_docstring_are_those_of_the_code():
    assert indexes.SMALL_MARKET == 256 and indexes.MAX_NEW == 1024 and indexes.MIN_NEW == 64
    assert (filters.PSEUDO_USERS, filters.MAX_SHOWN) == (64, 16384)
    assert len(jax.tree.leaves(index()._codes.stored)) == 3
