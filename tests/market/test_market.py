"""Markets: mappings and values that share arrays, and grow without copying or compiling."""

import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import KERNEL, SPACE, made_specification, made_task, made_user, names
from oracles import oracle_inner, oracle_squared_mmd

import jaxspec as js


def made_market(count=3, **options):
    return js.Market(SPACE, {f"m{s}": made_specification(s) for s in range(count)}, **options)


def assert_same_numbers(spec, want):
    np.testing.assert_array_equal(spec.reduced_set.points, want.reduced_set.points)
    np.testing.assert_array_equal(spec.reduced_set.weights, want.reduced_set.weights)


def best(market, user, **options):
    return js.match(market, user, **options).top_k(1)[0][0]


# A mapping


def test_a_market_gives_back_what_was_put_in(market):
    assert len(market) == 6
    assert market.ids == tuple(f"m{s}" for s in range(6)) == tuple(market)
    for learnware, spec in market.items():
        want = made_specification(int(learnware[1:]))
        assert_same_numbers(spec, want)
        # The proxy comes back centred over the classes, which changes no probability.
        centred = want.proxy.weights - want.proxy.weights.mean(axis=1, keepdims=True)
        np.testing.assert_allclose(spec.proxy.weights, centred, atol=1e-6)
        assert (spec.class_names, spec.num_examples) == (want.class_names, want.num_examples)
        assert (spec.space_name, spec.space_digest) == (SPACE.name, SPACE.digest)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(spec))


def test_a_market_is_a_mapping(market):
    assert set(dict(market)) == set(market.keys()) == set(market.ids)
    assert [len(spec.class_names) for spec in market.values()] == [4] * 6
    assert market.get("nobody") is None
    assert market.get("nobody", 3) == 3
    assert_same_numbers(market.get("m3"), made_specification(3))
    assert "m3" in market
    assert "nobody" not in market
    with pytest.raises(KeyError, match="no learnware 'nobody' in this market of 6"):
        market["nobody"]
    assert market.class_names("m0") == tuple(names(4))
    again = js.Market(market.space, dict(market))
    assert again.ids == market.ids


@pytest.mark.parametrize("nothing", [["m0"], None, 0, {"m0"}, ("m0",)])
def test_what_cannot_be_an_id_is_in_no_market(market, nothing):
    assert nothing not in market  # although lists and sets have no hash
    with pytest.raises(KeyError, match="no learnware"):
        market[nothing]
    with pytest.raises(KeyError, match="no learnware"):
        market.remove([nothing])


def test_an_empty_market_is_a_market_that_can_be_added_to():
    for empty in (js.Market(SPACE), js.Market(SPACE, {}), made_market(1).remove(["m0"])):
        assert len(empty) == 0
        assert empty.ids == ()
        assert dict(empty) == {}
        assert not empty
        assert "m0" not in empty
        assert list(empty.about) == []
        with pytest.raises(
            ValueError, match="where: expected at least one learnware, got an empty"
        ):
            js.match(empty, made_user(0))
        grown = empty.add({"m1": made_specification(1)})
        assert (grown.ids, empty.ids) == (("m1",), ())
        assert best(grown, made_user(1)) == "m1"


def test_the_repr_is_short():
    assert repr(made_market()) == "Market(3 learnwares, space 'made-features', float32)"
    assert repr(js.Market(SPACE)) == "Market(0 learnwares, space 'made-features', float32)"


def test_markets_can_be_compared_and_hashed(market):
    assert market == market
    assert market != made_market()
    assert market != 3
    assert len({market, market}) == 1


def test_pickles_and_copies_answer_the_same_and_can_grow(market):
    user = made_user(2)
    want = js.match(market, user)
    for again in (pickle.loads(pickle.dumps(market)), copy.deepcopy(market), copy.copy(market)):
        assert again.ids == market.ids
        assert again.space == market.space
        np.testing.assert_array_equal(js.match(again, user).scores, want.scores)
        grown = again.add({"new": made_specification(7)})
        assert_same_numbers(grown["new"], made_specification(7))
        assert (len(grown), len(again), len(market)) == (7, 6, 6)
    shrunk = market.remove(["m2"])
    found = pickle.loads(pickle.dumps(shrunk))
    assert found.ids == shrunk.ids
    np.testing.assert_array_equal(js.match(found, user).scores, js.match(shrunk, user).scores)


# Values


def test_versions_do_not_change_each_other(market):
    grown = market.add({"new": made_specification(7)})
    shrunk = grown.remove(["m2"])
    other = market.add({"other": made_specification(8)})  # the market has grown already: a copy
    back = shrunk.add({"m2": made_specification(9)})
    replaced = grown.update({"m1": made_specification(10)})
    assert market.ids == tuple(f"m{s}" for s in range(6))
    assert grown.ids == (*market.ids, "new")
    assert shrunk.ids == ("m0", "m1", "m3", "m4", "m5", "new")
    assert other.ids == (*market.ids, "other")
    assert back.ids == (*shrunk.ids, "m2")
    assert replaced.ids == ("m0", "m2", "m3", "m4", "m5", "new", "m1")
    for version, learnware, seed in [
        (grown, "new", 7),
        (grown, "m2", 2),
        (grown, "m1", 1),
        (market, "m1", 1),
        (other, "other", 8),
        (back, "m2", 9),
        (back, "new", 7),
        (replaced, "m1", 10),
    ]:
        assert_same_numbers(version[learnware], made_specification(seed))
    user = made_user(2)
    assert best(grown, user) == "m2"
    assert best(shrunk, user) != "m2"
    assert best(replaced, made_user(10)) == "m1"
    assert "m2" not in shrunk
    assert "new" not in market


def test_answers_of_a_version_do_not_depend_on_what_grew_from_it():
    first = made_market()
    users = [made_user(s) for s in range(3)]
    want = [found.scores for found in js.match(first, users)]
    one = first.add({"a": made_specification(7)})
    other = first.add({"b": made_specification(8)}).remove(["m0"])
    grown = [found.scores for found in js.match(one, users)]
    one.add({"c": made_specification(9)}).update({"m1": made_specification(10)})
    for version, scores in ((first, want), (one, grown)):
        for found, own in zip(js.match(version, users), scores, strict=True):
            np.testing.assert_array_equal(found.scores, own)
    assert (first.ids, one.ids) == (("m0", "m1", "m2"), ("m0", "m1", "m2", "a"))
    assert other.ids == ("m1", "m2", "b")


def test_an_update_or_removal_that_cannot_be_done_changes_nothing(market):
    with pytest.raises(KeyError, match="no learnware 'nobody'"):
        market.update({"m0": made_specification(7), "nobody": made_specification(8)})
    with pytest.raises(KeyError, match="no learnware 'nobody'"):
        market.remove(["m0", "nobody"])
    with pytest.raises(TypeError, match=r"ids: expected a sequence of ids such as \['id'\], got"):
        market.remove("m0")
    with pytest.raises(TypeError, match="ids: expected a sequence of ids"):
        market.remove(3)
    assert market.ids == tuple(f"m{s}" for s in range(6))
    assert market.remove([]).ids == market.ids
    assert market.add({}).ids == market.ids


def test_a_market_that_is_emptied_and_filled_answers_as_a_new_one():
    emptied = made_market().remove(["m0", "m1", "m2"])
    filled = emptied.add({"m1": made_specification(1)})
    want = js.match(js.Market(SPACE, {"m1": made_specification(1)}), made_user(1))
    np.testing.assert_allclose(js.match(filled, made_user(1)).scores, want.scores, atol=1e-6)


# Growth


def test_growing_by_one_copies_no_array():
    version = made_market()
    before = version.arrays.points.unsafe_buffer_pointer()
    grown = version.add({"new": made_specification(7)})
    assert grown.arrays.points.unsafe_buffer_pointer() == before


def test_growing_a_new_market_by_one_compiles_nothing(market, compile_counter):
    user = made_user(1)
    new = [made_specification(s) for s in (7, 8)]
    js.match(js.Market(SPACE, dict(market)), user)
    version = js.Market(SPACE, dict(market))  # just built: nobody has added to such a market yet
    with compile_counter() as counter:
        for i in range(2):
            version = version.add({f"new {i}": new[0]})
            js.match(version, user)
        version = version.remove(["new 1"])
        js.match(version, user)
        version = version.update({"new 0": new[1]})
        js.match(version, user)
    assert counter.count == 0
    assert version.ids == (*market.ids, "new 0")


@pytest.mark.slow
def test_a_market_grows_past_its_capacity_and_its_padded_sizes():
    version = made_market(1)
    for i in range(20):
        version = version.add({f"copy {i}": made_specification(i % 3)})
    version = version.add({f"more {i}": made_specification(i % 3) for i in range(20)})
    wide = made_specification(4, classes=10, size=30)
    version = version.add({"wide": wide})
    assert len(version) == 42
    assert version["wide"].proxy.bias.shape == (10,)
    assert_same_numbers(version["wide"], wide)
    assert_same_numbers(version["copy 19"], made_specification(1))
    assert_same_numbers(version["more 19"], made_specification(1))
    assert_same_numbers(version["m0"], made_specification(0))


def test_sizes_and_class_counts_live_side_by_side():
    specs = {
        "small": made_specification(0, classes=2, size=4),
        "large": made_specification(1, classes=10, size=25),
    }
    user = made_user(1, classes=3)
    found = js.match(js.Market(SPACE, specs), user)
    for at, (name, spec) in enumerate(specs.items()):
        alone = js.match(js.Market(SPACE, {name: spec}), user)
        np.testing.assert_allclose(found.squared_mmd[at], alone.squared_mmd[0], atol=1e-6)
        want = oracle_squared_mmd(KERNEL, spec, user)
        np.testing.assert_allclose(found.squared_mmd[at], want, atol=1e-6)


# Numbers


def test_self_terms_equal_the_squared_norms(market):
    terms = np.asarray(market.arrays.self_terms)[market.rows]
    want = [oracle_inner(KERNEL, spec, spec) for spec in market.values()]
    np.testing.assert_allclose(terms, want, rtol=1e-5)


def test_market_arrays_are_a_pytree(market):
    total = jax.jit(lambda arrays: jnp.sum(arrays.weights, where=arrays.alive[:, None]))(
        market.arrays
    )
    want = sum(np.asarray(spec.reduced_set.weights).sum() for spec in market.values())
    np.testing.assert_allclose(total, want, rtol=1e-5)


def test_features_far_from_zero_are_moved_to_an_origin():
    def moved(spec):
        points = np.asarray(spec.reduced_set.points) + 100
        phi = js.ReducedSet(points, spec.reduced_set.weights)
        return dataclasses.replace(spec, reduced_set=phi)

    specs = {f"m{s}": made_specification(s) for s in range(3)}
    user = made_user(1)
    near = js.match(js.Market(SPACE, specs), user, method="rkme")
    far_market = js.Market(SPACE, {k: moved(v) for k, v in specs.items()})
    far = js.match(far_market, moved(user), method="rkme")
    assert np.linalg.norm(far_market.origin) > 100
    np.testing.assert_allclose(far.squared_mmd, near.squared_mmd, atol=2e-5)
    for learnware, spec in far_market.items():
        want = moved(specs[learnware]).reduced_set.points
        np.testing.assert_allclose(spec.reduced_set.points, want, rtol=1e-6)


@pytest.mark.parametrize("offset", [1e6, 1e12])
def test_a_learnware_far_out_does_not_move_the_others(offset):
    specs = {f"m{s}": made_specification(s) for s in range(3)}
    phi = specs["m0"].reduced_set
    away = dataclasses.replace(phi, points=np.asarray(phi.points) + np.float32(offset))
    specs["away"] = dataclasses.replace(specs["m0"], reduced_set=away)
    market = js.Market(SPACE, specs)
    found = js.match(market, made_user(1), method="rkme")
    for row, spec in enumerate(list(specs.values())[:3]):
        want = oracle_squared_mmd(KERNEL, spec, made_user(1))
        np.testing.assert_allclose(found.squared_mmd[row], want, atol=1e-6)


# Stacked specifications


def stacked(specs):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *specs)


def test_stacked_specifications_make_the_same_market():
    specs = {f"m{s}": made_specification(s) for s in range(4)}
    ids = list(specs)
    want = js.Market(SPACE, specs)
    batches = [
        (ids[:3], stacked(list(specs.values())[:3])),
        (ids[3:], stacked([specs["m3"]])),
    ]
    market = js.Market.from_stacked(SPACE, batches)
    assert market.ids == want.ids
    np.testing.assert_array_equal(market.origin, want.origin)
    for method in ("rkme", "classwise", "transfer", "likelihood"):
        found = js.match(market, made_user(1), method=method)
        np.testing.assert_allclose(
            found.scores, js.match(want, made_user(1), method=method).scores, atol=1e-6
        )
    grown = market.add({"new": made_specification(7)})
    assert_same_numbers(grown["new"], made_specification(7))
    counted = js.Market.from_stacked(SPACE, iter(batches), count=4, precision="int8")
    assert (len(counted), counted.precision) == (4, "int8")


@pytest.mark.parametrize(
    ("ids", "count", "message"),
    [
        (["a", "a"], None, "ids: expected different non-empty strings"),
        (["a", ""], None, "ids: expected different non-empty strings"),
        (["a", "b"], 3, "count: expected 3 learnwares, got 2"),
        (["a", "b"], 1, "count: expected 1 learnwares, got more"),
        (["a"], None, r"reduced_set.points of shape \(1, 10, 6\), got \(2, 10, 6\)"),
    ],
)
def test_stacked_specifications_that_do_not_fit_are_refused(ids, count, message):
    batch = stacked([made_specification(0), made_specification(1)])
    with pytest.raises(ValueError, match=message):
        js.Market.from_stacked(SPACE, [(ids, batch)], count=count)
    with pytest.raises(ValueError, match="batches: expected at least one learnware, got none"):
        js.Market.from_stacked(SPACE, [])


def test_a_learnware_of_more_classes_than_the_first_batch_is_refused_by_name():
    few, many = stacked([made_specification(0)]), stacked([made_specification(1, classes=10)])
    with pytest.raises(ValueError, match="'b ...': expected at most 10 points, 8 classes"):
        js.Market.from_stacked(SPACE, [(["a"], few), (["b"], many)])


# Sharding over the one device of a test process


def test_a_market_on_a_mesh_of_one_device_answers_the_same(market):
    mesh = jax.make_mesh((1,), ("market",))
    spread = market.shard(mesh)
    assert spread.ids == market.ids
    assert spread.mesh is not None
    for method in ("rkme", "likelihood"):
        found = js.match(spread, made_user(1), method=method)
        want = js.match(market, made_user(1), method=method)
        np.testing.assert_allclose(found.scores, want.scores, atol=1e-6)
    grown = spread.add({"new": made_specification(7)})
    assert grown.mesh is not None
    assert_same_numbers(grown["new"], made_specification(7))
    with pytest.raises(TypeError, match="mesh: expected a jax.sharding.Mesh, got a str"):
        market.shard("all")
    with pytest.raises(TypeError, match="spread over devices cannot be pickled; use Market.save"):
        pickle.dumps(spread)


def test_a_file_market_is_the_same_market(market, tmp_path):
    market.save(tmp_path / "market")
    loaded = js.Market.load(tmp_path / "market")
    assert loaded.ids == market.ids
    assert loaded.space == market.space
    np.testing.assert_array_equal(
        js.match(loaded, made_user(1)).scores, js.match(market, made_user(1)).scores
    )


@pytest.mark.slow
def test_all_of_a_market_works_with_x64_on(tmp_path):
    with jax.enable_x64(True):
        probe = np.random.default_rng(0).normal(size=(40, SPACE.dimension)) * 2
        kernel = js.Gaussian(bandwidth=jnp.float64(3.0))
        space = js.Space("wide", kernel, dimension=SPACE.dimension, probe=probe)
        specs = {}
        for seed in range(3):
            features, labels = made_task(seed)
            outputs = np.full((len(features), 4), 0.25)
            specs[f"m{seed}"] = js.specify(
                space,
                features.astype(np.float64),
                labels,
                class_names=names(4),
                teacher=outputs,
                probe_outputs=outputs[:40],
                hidden=features,
                size=10,
            )
        assert specs["m0"].reduced_set.points.dtype == np.float64
        specs["m0"].save(tmp_path / "m0.safetensors")
        specs["m0"] = js.Specification.load(tmp_path / "m0.safetensors")
        market = js.Market(space, specs).add({"m3": specs["m1"]}).remove(["m1"])
        market.save(tmp_path / "market")
        loaded = js.Market.load(tmp_path / "market")
        features, labels = made_task(1, n=40)
        user = js.specify_user(space, features.astype(np.float64), labels, class_names=names(4))
        for reuse in ("direct", "fine-tune"):
            found = js.match(loaded, user, reuse=reuse)
            assert found.top_k(1)[0][0] == "m3"
            np.testing.assert_array_equal(found.scores, js.match(market, user, reuse=reuse).scores)
        compact = js.match(market.astype("int8"), user, method="rkme")
        np.testing.assert_allclose(compact.squared_mmd, found.squared_mmd, atol=1e-2)
    outside = js.Space("wide", js.Gaussian(bandwidth=3.0), dimension=SPACE.dimension, probe=probe)
    assert outside == space  # the digest does not depend on x64
