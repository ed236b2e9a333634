"""Representations against an oracle, and what a market makes of them for users of other names."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import (
    DIMENSION,
    KERNEL,
    SPACE,
    alike,
    made_specification,
    made_task,
    made_user,
    names,
)
from oracles import oracle_closeness, oracle_transfer, proxy_logits
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

import jaxspec as js
from jaxspec.scoring import METHODS, UserArrays
from jaxspec.scoring.leave_one_out import HIDDEN_RIDGE, explained
from jaxspec.specify import RANK
from jaxspec.specify.representation import fit_representation

OTHERS = list("wxyz")
CLOSENESS = js.Transfer().closeness


def activations(features, seed=0, width=40):
    weights = np.random.default_rng(seed).normal(size=(DIMENSION, width))
    return np.maximum(np.asarray(features, np.float64) @ weights, 0)


def specification_with_map(seed, **changes):
    spec = made_specification(seed)
    features, _ = made_task(seed)
    found = fit_representation(features, activations(features, seed))
    return dataclasses.replace(spec, representation=found, **changes)


def mapped_market(count=4):
    return js.Market(SPACE, {f"m{s}": specification_with_map(s) for s in range(count)})


def transfer(market, user, **options):
    return js.match(market, user, method="transfer", **options)


# How they are made


def test_it_is_the_ridge_regression_of_the_principal_hidden_directions():
    features, _ = made_task(3)
    hidden = activations(features)
    z = features - features.mean(axis=0)
    alpha = 1e-2 * np.trace(z.T.astype(np.float64) @ z) / DIMENSION
    leading = PCA(RANK, svd_solver="full").fit_transform(hidden)
    want = Ridge(alpha, fit_intercept=False).fit(z, leading).coef_.T
    want /= np.linalg.norm(want)
    got = fit_representation(features, hidden)
    assert got.shape == (DIMENSION, RANK)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got @ got.T, want @ want.T, atol=1e-6)  # directions have no sign


def test_few_hidden_directions_leave_zero_columns_and_none_leave_zeros():
    features, _ = made_task(3)
    found = fit_representation(features, features[:, :2])
    np.testing.assert_allclose(np.linalg.norm(found), 1.0, rtol=1e-6)
    assert not found[:, 2:].any()
    assert not fit_representation(features, np.ones((len(features), 3))).any()


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        (np.zeros((7, 3)), "hidden: expected 120 rows"),
        (np.full((120, 3), np.nan), "hidden: expected finite"),
        (np.zeros(120), r"hidden: expected shape \(n, d\)"),
        ("text", "hidden: expected real numbers"),
        (np.ma.masked_equal(np.eye(120), 1), "hidden: .*mask"),
    ],
)
def test_errors_name_the_argument(hidden, message):
    features, labels = made_task(1)
    with pytest.raises((TypeError, ValueError), match=message):
        js.specify(SPACE, features, labels, class_names=names(4), size=5, hidden=hidden)


def test_specify_and_specify_many_keep_it():
    tasks = [made_task(s) for s in range(2)]
    features, labels = [z for z, _ in tasks], [y for _, y in tasks]
    options = {"class_names": [names(4)] * 2, "size": 5}
    hidden = [activations(z) for z in features]
    many = js.specify_many(SPACE, features, labels, hidden=hidden, **options)
    for (z, y), spec in zip(tasks, many, strict=True):
        one = js.specify(SPACE, z, y, class_names=names(4), size=5, hidden=activations(z))
        np.testing.assert_array_equal(one.representation, spec.representation)
    with pytest.raises(ValueError, match=r"hidden\[1\]: expected 120 rows"):
        js.specify_many(SPACE, features, labels, hidden=[hidden[0], np.zeros((3, 2))], **options)


def test_a_specification_file_keeps_it(tmp_path):
    spec = specification_with_map(1)
    spec.save(tmp_path / "one.safetensors")
    loaded = js.Specification.load(tmp_path / "one.safetensors")
    np.testing.assert_array_equal(loaded.representation, spec.representation)


# What they count for


def test_a_user_of_other_names_is_scored_by_hidden_directions_where_they_are_known():
    with_map, without = specification_with_map(1), made_specification(2)
    market = js.Market(SPACE, {"with": with_map, "without": without})
    user = made_user(1, class_names=OTHERS)
    labels, points = np.asarray(user.labels), np.asarray(user.reduced_set.points, np.float64)
    found = transfer(market, user)
    near = [CLOSENESS * oracle_closeness(KERNEL, spec, user) for spec in (with_map, without)]
    hidden = points @ np.asarray(with_map.representation, np.float64)
    hidden = np.c_[hidden, -hidden]  # whose row means are zero: the oracle takes them off
    want = oracle_transfer(hidden, labels, 4, ridge=HIDDEN_RIDGE)
    np.testing.assert_allclose(found.scores[0], want + near[0], atol=2e-3)
    outputs = oracle_transfer(proxy_logits(without, user), labels, 4)
    want = outputs + js.Transfer().hidden_gain
    np.testing.assert_allclose(found.scores[1], want + near[1], atol=2e-3)


def test_users_of_known_names_are_scored_as_without():
    bare = js.Market(SPACE, {f"m{s}": made_specification(s) for s in range(4)})
    for method in METHODS:
        got = js.match(mapped_market(), made_user(1), method=method)
        np.testing.assert_array_equal(
            got.scores, js.match(bare, made_user(1), method=method).scores
        )


def test_several_users_of_both_kinds_are_answered_as_one_by_one():
    market = mapped_market()
    users = [made_user(1, class_names=OTHERS), made_user(2), made_user(3, class_names=OTHERS)]
    for found, user in zip(transfer(market, users), users, strict=True):
        np.testing.assert_allclose(found.scores, transfer(market, user).scores, atol=1e-5)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_scaling_a_representation_changes_nothing(factor):
    spec, user = specification_with_map(1), made_user(2, class_names=OTHERS)
    scaled = dataclasses.replace(spec, representation=spec.representation * np.float32(factor))
    found = transfer(js.Market(SPACE, {"as it is": spec, "scaled": scaled}), user)
    np.testing.assert_allclose(found.scores[0], found.scores[1], atol=1e-5)


def test_no_hidden_direction_is_no_representation():
    spec = made_specification(1)
    empty = dataclasses.replace(spec, representation=np.zeros((DIMENSION, RANK), np.float32))
    some = specification_with_map(2)
    market = js.Market(SPACE, {"empty": empty, "none": spec, "some": some})
    found = transfer(market, made_user(1, class_names=OTHERS))
    assert found.scores[0] == found.scores[1]
    assert market["empty"].representation is None


def test_random_directions_do_not_pass_those_that_separate_the_classes():
    """In 64 dimensions; the honest map keeps the directions between class centres."""
    rng = np.random.default_rng(0)
    gains = []
    score = jax.jit(explained, static_argnums=2)
    for _ in range(20):
        centres = rng.normal(size=(5, 64))
        labels = np.arange(50) % 5
        points = (centres[labels] + 2 * rng.normal(size=(50, 64))).astype(np.float32)
        users = UserArrays(
            points=points[None],
            weights=np.full((1, 50), 0.02, np.float32),
            labels=labels[None],
            counts=np.array([50]),
            examples=np.array([50.0], np.float32),
            class_vectors=np.zeros((1, 5, 64), np.float32),
            class_mask=np.ones((1, 5), bool),
            class_numbers=np.zeros((1, 5), int),
            by_name=np.zeros(1, bool),
        )
        honest = centres[rng.permutation(5)[:4]] + 0.5 * rng.normal(size=(4, 64))
        scores = [
            float(
                score((points @ one.T).T[None, None].astype(np.float32), users, HIDDEN_RIDGE)[0, 0]
            )
            for one in (honest, rng.normal(size=(RANK, 64)))
        ]
        gains.append(scores[0] - scores[1])
    assert np.mean(gains) > 0.1
    assert np.mean(np.array(gains) > 0) >= 0.9


# What markets do with them


@pytest.mark.parametrize("precision", alike("float32", "bfloat16", "int8"))
def test_markets_hold_save_stream_and_grow_with_it(tmp_path, precision):
    specs = {f"m{s}": specification_with_map(s) for s in range(3)}
    market = js.Market(SPACE, specs, precision=precision)
    market = market.add({"late": specification_with_map(4)}).add({"bare": made_specification(5)})
    wanted = specification_with_map(4).representation
    np.testing.assert_allclose(market["late"].representation, wanted, atol=2e-3)
    assert market["bare"].representation is None
    market.save(tmp_path / "market")
    loaded = js.Market.load(tmp_path / "market")
    user = made_user(1, class_names=OTHERS)
    scores = transfer(market, user).scores
    np.testing.assert_array_equal(transfer(loaded, user).scores, scores)
    streamed = transfer(js.MarketFolder(tmp_path / "market"), user, k=5)
    best = transfer(market, user, k=5)
    assert streamed.ids == best.ids
    np.testing.assert_allclose(streamed.scores, best.scores, atol=1e-5)
    assert "new" in loaded.add({"new": specification_with_map(6)})


def test_the_index_scores_its_candidates_by_it():
    market = mapped_market().add({"bare": made_specification(5)})
    user = made_user(1, class_names=OTHERS)
    want = dict(transfer(market, user).top_k(5))
    found = transfer(js.Index.build(market), user, k=5)
    assert set(found.ids) == set(want)
    np.testing.assert_allclose(found.scores, [want[one] for one in found.ids], atol=1e-5)


def test_a_market_without_takes_the_first_one_with():
    specs = {f"m{s}": made_specification(s) for s in range(3)}
    first = {"first": specification_with_map(4)}
    grown = js.Market(SPACE, specs).add(first)
    np.testing.assert_array_equal(grown["first"].representation, first["first"].representation)
    user = made_user(4, class_names=OTHERS)
    want = transfer(js.Market(SPACE, specs | first), user).scores
    np.testing.assert_allclose(transfer(grown, user).scores, want, atol=1e-6)


def test_a_wrong_shape_is_refused():
    spec = dataclasses.replace(made_specification(1), representation=np.zeros((DIMENSION, 3)))
    with pytest.raises(ValueError, match=r"'m': expected representation of shape \(6, 16\)"):
        js.Market(SPACE, {"m": spec})
