"""Markets: values that share arrays, grow without copying or compiling, and refuse what is off."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import KERNEL, SPACE, made_specification, made_task, made_user, names

import jaxspec as js
from jaxspec.market import arrays as market_arrays


def test_a_market_gives_back_what_was_put_in(market):
    assert len(market) == 6
    assert market.ids == tuple(f"m{s}" for s in range(6)) == tuple(market)
    for learnware, spec in market.items():
        want = made_specification(int(learnware[1:]))
        np.testing.assert_array_equal(spec.reduced_set.points, want.reduced_set.points)
        np.testing.assert_array_equal(spec.reduced_set.weights, want.reduced_set.weights)
        np.testing.assert_allclose(spec.proxy.weights, want.proxy.weights, atol=1e-6)
        assert spec.class_names == want.class_names
        assert spec.num_examples == want.num_examples
    assert "m3" in market
    assert "nobody" not in market
    with pytest.raises(KeyError, match="no learnware 'nobody'"):
        market["nobody"]


def test_self_terms_equal_the_squared_norms(market):
    terms = np.asarray(market.arrays.self_terms)[market.slots]
    sets = [spec.reduced_set for _, spec in market.items()]
    want = [js.inner_product(KERNEL, one, one) for one in sets]
    np.testing.assert_allclose(terms, want, rtol=1e-5)


def test_versions_do_not_change_each_other(market):
    grown = market.add("new", made_specification(7))
    shrunk = grown.remove("m2")
    other = market.add("other", made_specification(8))  # the market has grown already: a copy
    back = shrunk.add("m2", made_specification(9))
    assert market.ids == tuple(f"m{s}" for s in range(6))
    assert grown.ids == (*market.ids, "new")
    assert shrunk.ids == ("m0", "m1", "m3", "m4", "m5", "new")
    assert other.ids == (*market.ids, "other")
    assert back.ids == (*shrunk.ids, "m2")
    for version, learnware, seed in [
        (grown, "new", 7),
        (grown, "m2", 2),
        (other, "other", 8),
        (back, "m2", 9),
        (back, "new", 7),
    ]:
        want = made_specification(seed).reduced_set.points
        np.testing.assert_array_equal(version[learnware].reduced_set.points, want)
    user = made_user(2)
    assert js.match(grown, user).top_k(1)[0][0] == "m2"
    assert js.match(shrunk, user).top_k(1)[0][0] != "m2"


def test_growing_by_one_copies_no_array(market):
    spec = made_specification(7)
    version = js.Market.from_specifications(dict(market.items()))
    before = version.arrays.points.unsafe_buffer_pointer()
    grown = version.add("new", spec)
    assert grown.arrays.points.unsafe_buffer_pointer() == before


def test_growing_by_one_compiles_nothing(market, compile_counter):
    user, spec = made_user(1), made_specification(7)
    version = js.Market.from_specifications(dict(market.items()))
    js.match(version, user)
    with compile_counter() as counter:
        for i in range(3):
            version = version.add(f"new {i}", spec)
            js.match(version, user)
        version = version.remove("new 1")
        js.match(version, user)
    assert counter.count == 0


def test_a_market_grows_past_its_capacity_and_its_padded_sizes():
    version = js.Market.from_specifications({"m0": made_specification(0)})
    for i in range(40):
        version = version.add(f"copy {i}", made_specification(i % 3))
    version = version.add("wide", made_specification(4, classes=10, size=30))
    assert len(version) == 42
    np.testing.assert_array_equal(
        version["wide"].proxy.bias.shape,
        made_specification(4, classes=10, size=30).proxy.bias.shape,
    )
    np.testing.assert_array_equal(
        version["copy 39"].reduced_set.points, made_specification(0).reduced_set.points
    )


def test_sizes_and_class_counts_live_side_by_side():
    specs = {
        "small": made_specification(0, classes=2, size=4),
        "large": made_specification(1, classes=10, size=25),
    }
    together = js.Market.from_specifications(specs)
    user = made_user(1, classes=3)
    result = js.match(together, user)
    for name, spec in specs.items():
        alone = js.match(js.Market.from_specifications({name: spec}), user)
        at = together.ids.index(name)
        np.testing.assert_allclose(result.squared_mmd[at], alone.squared_mmd[0], atol=1e-6)
        want = float(js.squared_mmd(KERNEL, spec.reduced_set, user.reduced_set))
        np.testing.assert_allclose(result.squared_mmd[at], want, atol=1e-6)


def test_features_far_from_zero_are_moved_to_an_origin():
    def moved(spec):
        points = np.asarray(spec.reduced_set.points) + 100
        return dataclasses.replace(
            spec, reduced_set=js.ReducedSet(points, spec.reduced_set.weights)
        )

    specs = {f"m{s}": made_specification(s) for s in range(3)}
    user = made_user(1)
    near = js.match(js.Market.from_specifications(specs), user, method="rkme")
    far_market = js.Market.from_specifications({k: moved(v) for k, v in specs.items()})
    far = js.match(far_market, moved(user), method="rkme")
    assert np.linalg.norm(far_market.arrays.origin) > 100
    np.testing.assert_allclose(far.squared_mmd, near.squared_mmd, atol=2e-5)


@pytest.mark.parametrize("offset", [1e6, 1e12])
def test_a_learnware_far_out_does_not_move_the_others(offset):
    specs = {f"m{s}": made_specification(s) for s in range(3)}
    phi = specs["m0"].reduced_set
    away = dataclasses.replace(phi, points=np.asarray(phi.points) + np.float32(offset))
    specs["away"] = dataclasses.replace(specs["m0"], reduced_set=away)
    market = js.Market.from_specifications(specs)
    result = js.match(market, made_user(1), method="rkme")
    for row, spec in enumerate(list(specs.values())[:3]):
        want = js.squared_mmd(KERNEL, spec.reduced_set, made_user(1).reduced_set)
        np.testing.assert_allclose(result.squared_mmd[row], want, atol=1e-6)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *specs.values())
    stacked = dataclasses.replace(stacked, kernel=KERNEL)
    same = js.Market.from_stacked([(list(specs), stacked)])
    np.testing.assert_array_equal(same.arrays.origin, market.arrays.origin)


@pytest.mark.parametrize("part", ["points", "weights", "proxy", "bias", "probe", "map"])
def test_a_number_that_would_overflow_the_pass_is_refused(market, part):
    """One such learnware turned the scores of all others into NaN."""
    features, labels = made_task(0)
    outputs = np.full((len(features), 4), 0.25)
    spec = js.specify(
        jax.random.key(0),
        features,
        labels,
        class_names=names(4),
        kernel=KERNEL,
        feature_space=SPACE,
        size=10,
        probe=(features, outputs),
        hidden=features,
    )

    def with_number(value):
        phi, proxy = spec.reduced_set, spec.proxy
        changes = {
            "points": {"reduced_set": js.ReducedSet(phi.points + value, phi.weights)},
            "weights": {"reduced_set": js.ReducedSet(phi.points, phi.weights + value)},
            "proxy": {"proxy": js.Proxy(proxy.weights * value, proxy.bias)},
            "bias": {"proxy": js.Proxy(proxy.weights, proxy.bias + value)},
            "probe": {"probe": dataclasses.replace(spec.probe, bias=spec.probe.bias + value)},
            "map": {"representation": spec.representation + np.float32(value)},
        }
        return dataclasses.replace(spec, **changes[part])

    with pytest.raises(ValueError, match="'new' holds a number of .*, over 1e.15, in "):
        market.add("new", with_number(1e30))
    grown = market.add("new", with_number(1e14))  # large, and no harm to the others
    for method in ("rkme", "classwise", "likelihood", "transfer"):
        scores = js.match(grown, made_user(1), method=method).scores
        assert np.isfinite(scores).all()
        if method != "likelihood":  # that one is relative to the market
            alone = js.match(market, made_user(1), method=method).scores
            np.testing.assert_allclose(scores[:-1], alone, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"class_names": ("a", "b", "c", "a")}, ValueError, "class_names: expected different"),
        ({"class_names": list("abcd")}, TypeError, "expected a tuple of class_names"),
        ({"class_names": ("a", "b", "c", 4)}, TypeError, "class_names: expected non-empty strings"),
        ({"kernel": None}, TypeError, "kernel: expected a kernel"),
        ({"reduced_set": None}, TypeError, "expected a ReducedSet and a Proxy in it"),
        ({"proxy": None}, TypeError, "expected a ReducedSet and a Proxy in it"),
    ],
)
def test_a_specification_that_is_off_is_refused_by_field(market, change, error, message):
    broken = dataclasses.replace(made_specification(0), **change)
    with pytest.raises(error, match="'new'.*" + message):
        market.add("new", broken)
    with pytest.raises(error, match="'new'.*" + message):
        js.Market.from_specifications({"new": broken})


def test_what_can_be_no_id_is_in_no_market(market):
    for nothing in (["m0"], None, 0, {"m0"}):  # of which some have no hash
        assert nothing not in market
        with pytest.raises(KeyError, match="no learnware"):
            market.remove(nothing)
        with pytest.raises(KeyError, match="no learnware"):
            market[nothing]


def replace_points(spec, value):
    points = np.array(spec.reduced_set.points)
    points[0, 0] = value
    return dataclasses.replace(spec, reduced_set=js.ReducedSet(points, spec.reduced_set.weights))


def test_what_does_not_belong_is_refused(market):
    spec = made_specification(0)
    with pytest.raises(ValueError, match="id: 'm0' is in the market already"):
        market.add("m0", spec)
    with pytest.raises(ValueError, match="id: expected a non-empty string"):
        market.add("", spec)
    with pytest.raises(ValueError, match="'new'.*NaN"):
        market.add("new", replace_points(spec, np.nan))
    with pytest.raises(ValueError, match="'new'.*'elsewhere'.*'made-features'"):
        market.add("new", dataclasses.replace(spec, feature_space="elsewhere"))
    with pytest.raises(ValueError, match="'new'.*Laplacian.*Gaussian"):
        market.add("new", dataclasses.replace(spec, kernel=js.Laplacian(bandwidth=3.0)))
    with pytest.raises(ValueError, match="'new'.*6 columns.*got 4"):
        short = js.ReducedSet(np.zeros((10, 4), np.float32), spec.reduced_set.weights)
        proxy = js.Proxy(np.zeros((4, 4), np.float32), spec.proxy.bias)
        market.add("new", dataclasses.replace(spec, reduced_set=short, proxy=proxy))
    with pytest.raises(ValueError, match="proxy.weights of shape"):
        market.add("new", dataclasses.replace(spec, class_names=("a", "b")))
    with pytest.raises(TypeError, match="'new': expected a Specification"):
        market.add("new", {"points": 1})
    with pytest.raises(ValueError, match="specifications: expected at least one"):
        js.Market.from_specifications({})
    with pytest.raises(TypeError, match="specifications: expected a mapping"):
        js.Market.from_specifications([spec])
    with pytest.raises(ValueError, match="'b'.*'elsewhere'"):
        other = dataclasses.replace(spec, feature_space="elsewhere")
        js.Market.from_specifications({"a": spec, "b": other})
    with pytest.raises(KeyError, match="no learnware 'nobody'"):
        market.remove("nobody")


def test_market_arrays_are_a_pytree(market):
    total = jax.jit(lambda arrays: jnp.sum(arrays.weights[: len(market)]))(market.arrays)
    want = sum(np.asarray(spec.reduced_set.weights).sum() for _, spec in market.items())
    np.testing.assert_allclose(total, want, rtol=1e-5)


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
def test_products_of_class_vectors_are_kept_and_right_however_rows_came(tmp_path, storage):
    """Built, added, copied for more classes, and loaded: a file does not hold them."""
    market = js.Market.from_specifications(
        {f"m{s}": made_specification(s) for s in range(3)}, storage=storage
    )
    grown = market.add("late", made_specification(4))
    wider = grown.add("wide", made_specification(5, classes=9))
    wider.save(tmp_path / "market")
    for one in (market, grown, wider, js.Market.load(tmp_path / "market")):
        vectors = np.asarray(one.arrays.class_vectors, np.float64)[one.slots]
        kept = np.asarray(one.arrays.class_grams)[one.slots]
        np.testing.assert_allclose(kept, vectors @ vectors.swapaxes(1, 2), rtol=1e-5, atol=1e-5)


def test_with_many_classes_products_are_not_kept_and_scores_are_the_same(tmp_path, monkeypatch):
    few = js.Market.from_specifications({f"m{s}": made_specification(s) for s in range(3)})
    kept = few.add("wide", made_specification(5, classes=12))
    assert kept.arrays.class_grams.shape[1:] == (16, 16)
    monkeypatch.setattr(market_arrays, "MOST_GRAM_CLASSES", 8)
    many = few.add("wide", made_specification(5, classes=12))
    many.save(tmp_path / "market")
    for method in ("classwise", "likelihood", "transfer"):
        want = js.match(kept, made_user(1), method=method).scores
        for one in (many, js.Market.load(tmp_path / "market")):
            assert one.arrays.class_grams.shape[1:] == (0, 0)
            found = js.match(one, made_user(1), method=method).scores
            np.testing.assert_allclose(found, want, atol=2e-6)
