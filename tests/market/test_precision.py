"""Precisions: what rounding may change, that outliers do no harm, and kept Gram matrices."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import KERNEL, SPACE, made_specification, made_task, made_user, names
from oracles import oracle_squared_mmd

import jaxspec as js
from jaxspec.market import derived
from jaxspec.market.precision import decode_points, encode, point_scales

PRECISIONS = ("float32", "bfloat16", "int8")
METHODS = ("rkme", "classwise", "likelihood", "transfer")


def made_market(count=4, **options):
    return js.Market(SPACE, {f"m{s}": made_specification(s) for s in range(count)}, **options)


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 1e-3), ("int8", 2e-3)])
def test_rounded_points_keep_the_ranking_and_the_squared_mmd(precision, tolerance):
    exact = made_market(6)
    for rounded in (made_market(6, precision=precision), exact.astype(precision)):
        assert rounded.precision == precision
        assert rounded.arrays.points.dtype == jnp.dtype(precision)
        for seed in range(6):
            found = js.match(rounded, made_user(seed), method="rkme")
            want = [oracle_squared_mmd(KERNEL, spec, made_user(seed)) for spec in exact.values()]
            np.testing.assert_allclose(found.squared_mmd, want, atol=tolerance)
            assert found.top_k(1)[0][0] == f"m{seed}"


def test_a_market_of_less_precision_needs_less_memory_for_points():
    sizes = [made_market(precision=precision).arrays.points.nbytes for precision in PRECISIONS]
    assert sizes == [sizes[0], sizes[0] // 2, sizes[0] // 4]


def test_changing_precision_there_and_back_keeps_rounded_points():
    rounded = made_market(precision="int8")
    back = rounded.astype("float32")
    assert back.precision == "float32"
    for learnware, spec in rounded.items():
        np.testing.assert_allclose(
            back[learnware].reduced_set.points, spec.reduced_set.points, atol=1e-6
        )


def test_int8_points_are_rounded_by_half_a_step_of_their_own_largest_number():
    points = np.random.default_rng(0).normal(size=(3, 5, 6)).astype(np.float32)
    points[0, 0] *= 1e6  # a far point keeps its own scale, and the others theirs
    points[2, 4] = 0
    scales = point_scales(points, "int8")
    decoded = decode_points(encode(points, "points", "int8", scales), scales)
    steps = np.abs(points).max(axis=2, keepdims=True) / 127
    assert (np.abs(decoded - points) <= 0.5001 * steps).all()


@pytest.mark.parametrize("shared", [True, False])
def test_a_far_row_in_every_owners_data_does_not_turn_the_int8_ranking_round(shared):
    rng = np.random.default_rng(0)
    specs = {}
    for seed in range(6):
        features, labels = (np.array(part) for part in made_task(seed, n=300))
        features[17] = 1000 if shared else rng.choice([-1000, 1000], size=features.shape[1])
        specs[f"m{seed}"] = js.specify(SPACE, features, labels, class_names=names(4), size=20)
    exact = js.Market(SPACE, specs)
    users = [made_user(seed) for seed in range(6)]
    for precision in ("int8", "bfloat16"):
        rounded = exact.astype(precision)
        pairs = zip(js.match(rounded, users), js.match(exact, users), users, strict=True)
        for seed, (found, want, user) in enumerate(pairs):
            oracle = [oracle_squared_mmd(KERNEL, spec, user) for spec in specs.values()]
            np.testing.assert_allclose(found.squared_mmd, oracle, atol=1e-2)
            assert [one for one, _ in found.top_k(2)] == [one for one, _ in want.top_k(2)]
            assert found.top_k(1)[0][0] == f"m{seed}"


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_products_of_class_vectors_are_right_however_rows_came(tmp_path, precision):
    """Built, added, copied for more classes, and loaded: a file does not hold them."""
    market = made_market(3, precision=precision)
    grown = market.add({"late": made_specification(4)})
    wider = grown.add({"wide": made_specification(5, classes=9)})
    wider.save(tmp_path / "market")
    for one in (market, grown, wider, js.Market.load(tmp_path / "market")):
        vectors = np.asarray(one.arrays.class_vectors, np.float64)[one.rows]
        kept = np.asarray(one.arrays.class_grams)[one.rows]
        np.testing.assert_allclose(kept, vectors @ vectors.swapaxes(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_with_many_classes_products_are_not_kept_and_scores_are_the_same(tmp_path, monkeypatch):
    few, wide = made_market(3), {"wide": made_specification(5, classes=12)}
    kept = few.add(wide)
    assert kept.arrays.class_grams.shape[1:] == (16, 16)
    monkeypatch.setattr(derived, "MAX_GRAM_CLASSES", 8)
    many = few.add(wide)
    many.save(tmp_path / "market")
    for method in METHODS[1:]:
        want = js.match(kept, made_user(1), method=method).scores
        for one in (many, js.Market.load(tmp_path / "market")):
            assert one.arrays.class_grams.shape[1:] == (0, 0)
            found = js.match(one, made_user(1), method=method).scores
            np.testing.assert_allclose(found, want, atol=2e-6)


@pytest.mark.parametrize(
    "precision",
    ["int8", *(pytest.param(p, marks=pytest.mark.slow) for p in ("float32", "bfloat16"))],
)
def test_a_market_grows_in_its_precision(precision):
    grown = made_market(2, precision=precision).add({"new": made_specification(2)})
    assert grown.precision == precision
    whole = made_market(2, precision=precision)
    built = js.Market(SPACE, {**dict(whole), "new": made_specification(2)}, precision=precision)
    for method in METHODS:
        np.testing.assert_allclose(
            js.match(grown, made_user(1), method=method).scores,
            js.match(built, made_user(1), method=method).scores,
            atol=2e-3 if precision != "float32" else 1e-6,
        )


def test_a_spread_of_sizes_does_not_change_a_learnwares_rounding():
    small, large = made_specification(0), made_specification(1)
    phi = large.reduced_set
    far = dataclasses.replace(large, reduced_set=js.ReducedSet(phi.points * 1e3, phi.weights))
    near = {"small": small, "large": large}
    alone = js.Market(SPACE, near, precision="int8")
    together = js.Market(SPACE, {**near, "far": far}, precision="int8")
    np.testing.assert_array_equal(
        together["small"].reduced_set.points, alone["small"].reduced_set.points
    )
