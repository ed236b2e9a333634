"""Specifications: what they hold, that they are pytrees, and what is refused."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import DIMENSION, KERNEL, SPACE, made_specification, made_task, made_user, names

import jaxspec as js
from jaxspec.specify.specification import check_comparable


def test_a_specification_holds_what_its_parts_give():
    features, labels = made_task(0)
    spec = made_specification(0)
    phi = js.reduce_set(jax.random.key(0), features, size=10, kernel=KERNEL)
    proxy = js.fit_proxy(features, labels, num_classes=4)
    np.testing.assert_allclose(spec.reduced_set.points, phi.points, rtol=1e-6)
    np.testing.assert_allclose(spec.reduced_set.weights, phi.weights, rtol=1e-6)
    np.testing.assert_allclose(spec.proxy.weights, proxy.weights, atol=1e-6)
    assert spec.class_names == tuple(names(4))
    assert (spec.feature_space, spec.num_examples, spec.format_version) == (SPACE, 120, 1)


def test_the_submitters_rows_are_not_in_the_specification():
    features, _ = made_task(0)
    points = np.asarray(made_specification(0).reduced_set.points)
    nearest = np.linalg.norm(points[:, None] - features[None], axis=2).min()
    assert nearest > 1e-3


def test_specifications_are_pytrees_of_arrays():
    spec, user = made_specification(0), made_user(0)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, spec)
    assert doubled.class_names == spec.class_names
    np.testing.assert_allclose(doubled.proxy.weights, 2 * np.asarray(spec.proxy.weights))
    kept = jax.jit(lambda one: one)(spec)
    assert kept.feature_space == SPACE
    np.testing.assert_array_equal(kept.reduced_set.points, spec.reduced_set.points)
    np.testing.assert_array_equal(jax.jit(lambda one: one.labels)(user), user.labels)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), spec, made_specification(1))
    norms = jax.vmap(lambda one: js.inner_product(KERNEL, one.reduced_set, one.reduced_set))
    want = js.inner_product(KERNEL, spec.reduced_set, spec.reduced_set)
    np.testing.assert_allclose(norms(stacked)[0], want, rtol=1e-5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.feature_space = "other"


def test_many_equals_one_by_one():
    tasks = [made_task(0), made_task(1, n=90, classes=3)]
    class_names = [names(4), names(3)]
    teachers = [np.full((120, 4), 0.25), np.eye(3)[tasks[1][1]]]
    many = js.specify_many(
        jax.random.key(0),
        [features for features, _ in tasks],
        [labels for _, labels in tasks],
        class_names=class_names,
        teachers=teachers,
        kernel=KERNEL,
        size=10,
        feature_space=SPACE,
    )
    for spec, (features, labels), own, teacher in zip(
        many, tasks, class_names, teachers, strict=True
    ):
        proxy = js.fit_proxy(features, labels, num_classes=len(own), teacher=teacher)
        np.testing.assert_allclose(spec.proxy.weights, proxy.weights, atol=1e-3)
        assert spec.reduced_set.points.shape == (10, DIMENSION)
        assert spec.class_names == tuple(own)
        assert spec.num_examples == len(features)
        error = float(js.squared_mmd(KERNEL, features, spec.reduced_set))
        norm = float(js.inner_product(KERNEL, features, features))
        assert error < 0.02 * norm


def test_a_users_embedding_is_the_plain_mean():
    features, labels = made_task(3, n=40)
    user = made_user(3)
    np.testing.assert_array_equal(user.reduced_set.points, features)
    np.testing.assert_allclose(user.reduced_set.weights, np.full(40, 1 / 40), rtol=1e-6)
    np.testing.assert_array_equal(user.labels, labels)
    assert made_user(3, share_labels=False).labels is None


def test_a_user_with_many_examples_is_reduced_and_keeps_labels():
    features, labels = made_task(3, n=400)
    user = made_user(3, per_class=100, max_points=40, key=jax.random.key(0))
    assert user.reduced_set.points.shape == (40, DIMENSION)
    assert user.num_examples == 400
    norm = float(js.inner_product(KERNEL, features, features))
    assert float(js.squared_mmd(KERNEL, features, user.reduced_set)) < 1e-3 * norm
    centres = np.stack([features[labels == k].mean(axis=0) for k in range(4)])
    points, own = np.asarray(user.reduced_set.points), np.asarray(user.labels)
    nearest = np.linalg.norm(points[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == own).mean() > 0.9
    with pytest.raises(ValueError, match="key: expected a jax random key"):
        made_user(3, per_class=100, max_points=40)


def good_arguments():
    features, labels = made_task(0)
    return {
        "features": features,
        "labels": labels,
        "class_names": names(4),
        "kernel": KERNEL,
        "feature_space": SPACE,
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"class_names": ["a", "b"]}, ValueError, "labels"),
        ({"class_names": ["a", "b", "c", "a"]}, ValueError, "class_names: expected different"),
        ({"class_names": "abcd"}, TypeError, "class_names: expected a sequence of strings"),
        ({"class_names": ["a", "b", "c", 4]}, TypeError, "class_names: expected non-empty strings"),
        ({"class_names": ["a"]}, ValueError, "class_names: expected at least two"),
        ({"class_names": [*names(4), "extra"]}, ValueError, "class"),
        ({"kernel": "gaussian"}, TypeError, "kernel: expected a kernel"),
        ({"feature_space": ""}, ValueError, "feature_space: expected a non-empty string"),
        ({"features": np.zeros(5)}, ValueError, r"features: expected shape \(n, d\)"),
        ({"features": np.zeros((0, 3))}, ValueError, "features: expected at least one row"),
        ({"features": np.full((120, 6), np.nan)}, ValueError, "features: expected finite"),
        ({"labels": np.zeros(7, int)}, ValueError, "labels: expected shape"),
        ({"labels": np.zeros(120)}, TypeError, "labels: expected integer"),
    ],
)
@pytest.mark.parametrize("who", ["submitter", "user"])
def test_bad_input_is_named(who, change, error, message):
    arguments = {**good_arguments(), **change}
    features, labels = arguments.pop("features"), arguments.pop("labels")
    with pytest.raises(error, match=message):
        if who == "user":
            js.specify_user(features, labels, **arguments)
        else:
            js.specify(jax.random.key(0), features, labels, size=10, **arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"key": 0}, TypeError, "key: expected one jax random key"),
        ({"key": None}, TypeError, "key: expected one jax random key"),
        ({"key": jax.random.split(jax.random.key(0))}, TypeError, "key: expected one jax random"),
        ({"kernel": js.Gaussian(bandwidth=np.ones(1))}, ValueError, "kernel.bandwidth: expected a"),
        ({"probe": 5}, TypeError, "probe: expected a pair"),
        ({"probe": (np.zeros((3, 6)),)}, TypeError, "probe: expected a pair"),
        ({"labels": [[0], [1, 2]]}, ValueError, "labels: expected an array, got a list"),
        ({"features": [[0.0], [1.0, 2.0]]}, ValueError, "features: expected an array, got a list"),
        ({"features": np.full((120, 6), 1e19)}, ValueError, "features: expected numbers whose"),
        ({"ridge": None}, TypeError, "ridge: expected a number, got None"),
        ({"ridge": "small"}, TypeError, "ridge: expected a number, got 'small'"),
    ],
)
def test_bad_input_of_a_submitter_is_named(change, error, message):
    arguments = {"key": jax.random.key(0), "size": 10, **good_arguments(), **change}
    positional = [arguments.pop(name) for name in ("key", "features", "labels")]
    with pytest.raises(error, match=message):
        js.specify(*positional, **arguments)


def test_bad_input_of_many_submitters_is_named():
    arguments = good_arguments()
    features, labels = arguments.pop("features"), arguments.pop("labels")
    arguments["class_names"] = [arguments["class_names"]] * 2
    many = partial(js.specify_many, features=[features] * 2, labels=[labels] * 2, **arguments)
    with pytest.raises(TypeError, match="key: expected one jax random key"):
        many(0)
    with pytest.raises(TypeError, match="probe: expected a pair"):
        many(jax.random.key(0), probe=5)
    with pytest.raises(TypeError, match=r"probe\[1\]: expected 2 arrays, got NoneType"):
        many(jax.random.key(0), probe=(features, None))
    with pytest.raises(TypeError, match="num_classes: expected one entry a problem, got 4"):
        js.fit_proxies([features], [labels], num_classes=4)
    with pytest.raises(TypeError, match="key: expected one jax random key"):
        js.specify_user(features, labels, max_points=20, key=3, **good_arguments_of_a_user())


def good_arguments_of_a_user():
    arguments = good_arguments()
    del arguments["features"], arguments["labels"]
    return arguments


def test_class_names_may_be_an_array_and_become_plain_strings():
    arguments = good_arguments_of_a_user()
    features, labels = good_arguments()["features"], good_arguments()["labels"]
    want = tuple(arguments.pop("class_names"))
    for given in (np.array(want), list(np.array(want))):
        user = js.specify_user(features, labels, class_names=given, **arguments)
        assert user.class_names == want
        assert {type(name) for name in user.class_names} == {str}


def test_incomparable_specifications_are_refused_and_both_are_named():
    spec = made_specification(0)
    other = dataclasses.replace(spec, feature_space="elsewhere")
    with pytest.raises(ValueError, match="'elsewhere'.*'made-features'"):
        check_comparable("a", other, "b", spec)
    other = dataclasses.replace(spec, kernel=js.Gaussian(bandwidth=3.01))
    with pytest.raises(ValueError, match=r"bandwidth=3.01.*bandwidth=3\)"):
        check_comparable("a", other, "b", spec)
    other = dataclasses.replace(spec, kernel=js.Laplacian(bandwidth=3.0))
    with pytest.raises(ValueError, match="Laplacian.*Gaussian"):
        check_comparable("a", other, "b", spec)
