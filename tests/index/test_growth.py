"""An index that grew, in whatever way, answers as its market does, at a bounded cost."""

import dataclasses

import made_index
import numpy as np
import pytest
from conftest import made_specification, made_user
from made_index import (
    assert_close_codes,
    assert_same_answer,
    share_with_all,
    small,
    specifications_of,
    users,
    world,
)

import jaxspec as js
from benchmarks.markets import made_market, made_shapes
from jaxspec.index import encoder as encoders
from jaxspec.scoring import METHODS


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


def test_an_index_that_was_emptied_can_be_filled_again():
    empty = js.Index.build(small()).remove(small().ids)
    assert len(empty) == 0
    filled = empty.add({"new": made_specification(7)})
    assert js.match(filled, made_user(7), k=3).ids == ("new",)


def test_versions_that_grow_apart_do_not_see_each_other():
    first = js.Index.build(small())
    one, other = (first.add({"new": made_specification(seed)}) for seed in (7, 8))
    for index, seed in ((one, 7), (other, 8)):
        found, exact = (js.match(x, made_user(seed), k=7) for x in (index, index.market))
        assert_same_answer(found, exact)
        assert found.ids[0] == "new"


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


@pytest.mark.parametrize("at_once", [True, pytest.param(False, marks=pytest.mark.slow)])
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
        for start, end in ((60, 400), (400, 1000)):  # with a question in between
            grown = grown.add({name: added[name] for name in ids[start:end]})
            js.match(grown, users(32, seed=8), k=10)
    assert len(grown) == 1008
    people = users(32, seed=8)
    exact = js.match(grown.market, people, k=10)
    anew = js.Index.build(grown.market)
    assert share_with_all(js.match(anew, people, k=10), exact) >= 0.99
    assert share_with_all(js.match(grown, people, k=10), exact) >= 0.99
    assert grown.candidates(10) <= 2 * anew.candidates(10) < len(grown)


@pytest.mark.slow
@pytest.mark.parametrize("count", [40, pytest.param(290, marks=pytest.mark.slow)])
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
    for newcomers, options in (
        (100, {}),
        (40, {"label_spaces": "heterogeneous", "method": "classwise"}),
    ):
        exact = js.match(grown.market, people, k=10, **options)
        assert sum(name.startswith("far") for one in exact for name in one.ids) >= newcomers
        assert share_with_all(js.match(grown, people, k=10, **options), exact) >= 0.99


@pytest.mark.slow
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
    for some in (probed[:60], probed[60:]):
        grown = grown.add(dict(some))
        exact = js.match(grown.market, people, k=10)
        assert share_with_all(js.match(grown, people, k=10), exact) >= 0.99
    assert any(name.startswith("probed") for one in exact for name in one.ids)


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_growing_by_one_and_users_of_other_classes_compile_nothing(compile_counter):
    grown = js.Index.build(small(9))
    grown = grown.add({"first": made_specification(6)})
    js.match(grown, made_user(1), k=3)
    with compile_counter() as counter:
        grown = grown.add({"second": made_specification(7)})
        js.match(grown, made_user(1, classes=3), k=3)
        js.match(grown, made_user(1, per_class=7), k=3)
    assert counter.count == 0


@pytest.mark.slow
def test_a_filtered_index_that_grows_by_one_compiles_nothing(compile_counter):
    grown = js.Index.build(made_index.drawn_market(400, probe=False))
    user, other = (made_index.drawn_user(seed, probe=False) for seed in (1, 2))
    options = {"k": 3, "method": "rkme", "label_spaces": "homogeneous"}
    kind = (METHODS["rkme"], True)
    fitted = grown._filter(METHODS["rkme"], by_name=True)
    grown._codes.filters[kind] = dataclasses.replace(fitted, depths=np.full(64, 10.0))
    grown = grown.add({"first": made_index.drawn(1000, probe=False)})
    js.match(grown, user, **options)
    grown = grown.add({"second": made_index.drawn(1001, probe=False)})
    js.match(grown, user, **options)
    assert grown.candidates(3, method="rkme") < len(grown)
    with compile_counter() as counter:
        grown = grown.add({"third": made_index.drawn(1002, probe=False)}).remove(["m3"])
        js.match(grown, other, **options)
    assert counter.count == 0
