"""How specifications are made: what they hold, that they repeat, and what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import (
    DIMENSION,
    KERNEL,
    SPACE,
    made_specification,
    made_task,
    made_user,
    names,
    probed_space,
)
from oracles import oracle_gram

import jaxspec as js

FEATURES, LABELS = made_task(0)
ARGUMENTS = {"features": FEATURES, "labels": LABELS, "class_names": names(4)}
EVERY_PART = {
    "teacher": np.full((120, 4), 0.25),
    "probe_outputs": np.full((200, 4), 0.25),
    "hidden": FEATURES[:, :3],
    "about": {"licence": "MIT"},
}


def squared_error(features, reduced_set):
    """The squared MMD between a sample and a reduced set, in float64, relative to the sample's."""
    weights = np.asarray(reduced_set.weights, np.float64)
    own = oracle_gram(KERNEL, features, features).mean()
    cross = (oracle_gram(KERNEL, features, reduced_set.points) @ weights).mean()
    other = weights @ oracle_gram(KERNEL, reduced_set.points, reduced_set.points) @ weights
    return (own + other - 2 * cross) / own


def specified(who="submitter", **changes):
    arguments = {**ARGUMENTS, **changes}
    positional = [arguments.pop(name) for name in ("features", "labels")]
    if who == "user":
        return js.specify_user(SPACE, *positional, **arguments)
    return js.specify(SPACE, *positional, size=10, **arguments)


def assert_same_numbers(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


# What they hold


def test_a_specification_holds_what_its_parts_give():
    spec = made_specification(0)
    sets = js.reduce_sets([FEATURES], size=10, kernel=KERNEL, key=jax.random.key(0))
    phi = jax.tree.map(lambda leaf: leaf[0], sets)
    proxy = js.fit_proxy(FEATURES, LABELS, num_classes=4)
    np.testing.assert_allclose(spec.reduced_set.points, phi.points, rtol=1e-6)
    np.testing.assert_allclose(spec.reduced_set.weights, phi.weights, rtol=1e-6)
    np.testing.assert_allclose(spec.proxy.weights, proxy.weights, atol=1e-6)
    assert spec.class_names == tuple(names(4))
    assert (spec.space_name, spec.space_digest) == (SPACE.name, SPACE.digest)
    assert (spec.num_examples, spec.format_version) == (120, 2)
    assert spec.probe_proxy is None
    assert spec.representation is None
    assert dict(spec.about) == {}


def test_the_submitters_rows_are_not_in_the_specification():
    points = np.asarray(made_specification(0).reduced_set.points)
    nearest = np.linalg.norm(points[:, None] - FEATURES[None], axis=2).min()
    assert nearest > 1e-3


def test_every_leaf_is_a_jax_array():
    full = js.specify(probed_space(), FEATURES, LABELS, class_names=names(4), size=10, **EVERY_PART)
    assert full.probe_proxy is not None
    assert full.representation is not None
    assert full.about == {"licence": "MIT"}
    many = js.specify_many(SPACE, [FEATURES], [LABELS], class_names=[names(4)], size=10)
    for one in (full, *many, made_specification(0), made_user(0)):
        leaves = jax.tree.leaves(one)
        assert leaves
        assert all(isinstance(leaf, jax.Array) for leaf in leaves)


@pytest.mark.parametrize("who", ["submitter", "user"])
def test_the_same_data_give_the_same_specification(who):
    assert_same_numbers(specified(who), specified(who))
    assert_same_numbers(specified(who), specified(who, key=jax.random.key(0)))
    many = partial(
        js.specify_many, SPACE, [FEATURES] * 2, [LABELS] * 2, class_names=[names(4)] * 2, size=10
    )
    for one, other in zip(many(), many(), strict=True):
        assert_same_numbers(one, other)


def test_another_key_gives_another_reduced_set_of_the_same_quality():
    one, other = specified(), specified(key=jax.random.key(1))
    assert np.abs(one.reduced_set.points - other.reduced_set.points).max() > 1e-3
    for spec in (one, other):
        assert squared_error(FEATURES, spec.reduced_set) < 0.02


@pytest.mark.parametrize("who", ["submitter", "user"])
@pytest.mark.parametrize("kind", [list, np.array, lambda x: np.array(x, object), tuple])
def test_names_as_labels_are_the_integers_into_the_class_names(who, kind):
    given = kind([names(4)[label] for label in LABELS])
    want = specified(who)
    assert_same_numbers(specified(who, labels=given), want)
    found = specified(who, labels=given, class_names=None)  # the sorted names that occur
    assert_same_numbers(found, want)


def test_the_order_of_class_names_orders_the_columns_of_the_proxy():
    order = [2, 0, 3, 1]
    words = [names(4)[label] for label in LABELS]
    turned = specified(labels=words, class_names=[names(4)[k] for k in order])
    np.testing.assert_allclose(
        turned.proxy.weights, np.asarray(specified().proxy.weights)[:, order], atol=1e-3
    )


def test_both_unicode_forms_of_a_name_are_the_same_class():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    words = np.where(LABELS == 0, composed, "other").tolist()
    mixed = [decomposed if i % 8 == 0 else word for i, word in enumerate(words)]
    one = specified(labels=words, class_names=[composed, "other"])
    other = specified(labels=mixed, class_names=[decomposed, "other"])
    assert other.class_names == (composed, "other")
    assert_same_numbers(one, other)


def test_class_names_may_be_an_array_and_become_plain_strings():
    for given in (np.array(names(4)), list(np.array(names(4)))):
        user = specified("user", class_names=given)
        assert user.class_names == tuple(names(4))
        assert {type(name) for name in user.class_names} == {str}


def test_many_equals_one_by_one():
    tasks = [made_task(0), made_task(1, n=90, classes=3)]
    class_names = [names(4), names(3)]
    teachers = [np.full((120, 4), 0.25), np.eye(3)[tasks[1][1]]]
    about = [{"licence": "MIT"}, None]
    many = js.specify_many(
        SPACE,
        [features for features, _ in tasks],
        [[own[label] for label in y] for (_, y), own in zip(tasks, class_names, strict=True)],
        class_names=class_names,
        teachers=teachers,
        about=about,
        size=10,
    )
    for spec, (features, labels), own, teacher, notes in zip(
        many, tasks, class_names, teachers, about, strict=True
    ):
        proxy = js.fit_proxy(features, labels, num_classes=len(own), teacher=teacher)
        np.testing.assert_allclose(spec.proxy.weights, proxy.weights, atol=1e-3)
        assert spec.reduced_set.points.shape == (10, DIMENSION)
        assert spec.class_names == tuple(own)
        assert spec.num_examples == len(features)
        assert spec.about == (notes or {})
        assert squared_error(features, spec.reduced_set) < 0.02


# Users


def test_a_users_embedding_is_the_plain_mean():
    features, labels = made_task(3, n=40)
    user = made_user(3)
    np.testing.assert_array_equal(user.reduced_set.points, features)
    np.testing.assert_allclose(user.reduced_set.weights, np.full(40, 1 / 40), rtol=1e-6)
    np.testing.assert_array_equal(user.labels, labels)
    assert user.num_examples == 40
    assert made_user(3, share_labels=False).labels is None


def test_a_user_with_many_examples_is_reduced_and_keeps_labels():
    features, labels = made_task(3, n=400)
    user = made_user(3, per_class=100, max_points=40)
    assert user.reduced_set.points.shape == (40, DIMENSION)
    assert user.num_examples == 400
    assert squared_error(features, user.reduced_set) < 1e-3
    centres = np.stack([features[labels == k].mean(axis=0) for k in range(4)])
    points, own = np.asarray(user.reduced_set.points), np.asarray(user.labels)
    nearest = np.linalg.norm(points[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == own).mean() > 0.9


def test_many_classes_with_one_example_each_need_no_further_argument():
    classes = 257
    rows = np.random.default_rng(0).normal(size=(classes, DIMENSION))
    labels, many = np.arange(classes), [f"c{i}" for i in range(classes)]
    user = js.specify_user(SPACE, rows, labels, class_names=many)
    assert user.reduced_set.points.shape == rows.shape
    spec = js.specify(SPACE, rows, labels, class_names=many, size=20)
    assert spec.proxy.weights.shape == (DIMENSION, classes)
    found = js.match(js.Market(SPACE, {"m": spec}), user)
    np.testing.assert_array_equal(found.class_map[0], labels)


def test_too_few_points_for_the_classes_are_refused_and_the_argument_is_named():
    with pytest.raises(ValueError, match="max_points: expected at least 8, got 7"):
        made_user(3, max_points=7)


# Compilation and strict settings


def test_a_row_more_or_another_type_of_number_compiles_nothing(compile_counter):
    rows, labels = made_task(5, n=104)
    cases = [
        (100, rows[:100], 1e-3),
        (101, jnp.asarray(rows[:101]), np.float64(1e-3)),
        (102, rows[:102].astype(np.float64), jnp.float32(1e-3)),
        (103, rows[:103].tolist(), 1e-3),
    ]

    def make(n, features, ridge):
        teacher = np.full((n, 4), 0.25)
        options = {"class_names": names(4), "ridge": ridge}
        js.specify(SPACE, features, labels[:n], size=10, teacher=teacher, **options)
        js.specify_user(SPACE, features, labels[:n], **options)

    make(*cases[0])
    with compile_counter() as counter:
        for case in cases[1:]:
            make(*case)
    assert counter.count == 0


def test_it_works_where_promotion_of_ranks_and_types_is_forbidden():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        js.specify(probed_space(), FEATURES, LABELS, class_names=names(4), size=10, **EVERY_PART)
        strict = specified()
        user = specified("user")
        reduced = made_user(3, per_class=100, max_points=40)
    assert_same_numbers(strict, specified())
    assert_same_numbers(user, specified("user"))
    assert_same_numbers(reduced, made_user(3, per_class=100, max_points=40))


# Refusals


MASKED_LABELS = np.ma.array(LABELS, mask=np.arange(120) == 3)
MASKED_FEATURES = np.ma.masked_greater(FEATURES, 2.0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"class_names": ["a", "b"]}, ValueError, r"labels: expected values in 0\.\.1"),
        ({"class_names": ["a", "b", "c", "a"]}, ValueError, "class_names: expected different"),
        ({"class_names": "abcd"}, TypeError, "class_names: expected a sequence of strings"),
        ({"class_names": ["a", "b", "c", 4]}, TypeError, "class_names: expected strings, got 4"),
        ({"class_names": ["a"]}, ValueError, "class_names: expected at least two"),
        ({"class_names": [*names(4), "extra"]}, ValueError, r"labels: .*got none of \[4\]"),
        ({"class_names": None}, ValueError, "class_names: expected the names of the classes"),
        ({"features": np.zeros(5)}, ValueError, r"features: expected shape \(n, d\)"),
        ({"features": np.zeros((0, 6))}, ValueError, "features: expected at least one row"),
        ({"features": np.zeros((120, 5))}, ValueError, "features: expected 6 columns"),
        ({"features": np.full((120, 6), np.nan)}, ValueError, "features: expected finite"),
        ({"features": np.full((120, 6), 1e19)}, ValueError, "features: expected numbers whose"),
        (
            {"features": MASKED_FEATURES},
            ValueError,
            "features: expected a value in every entry.*mask",
        ),
        ({"features": [[0.0], [1.0, 2.0]]}, ValueError, "features: expected an array, got a list"),
        ({"features": FEATURES.astype("m8[s]")}, TypeError, "features: expected real numbers"),
        ({"labels": MASKED_LABELS}, ValueError, "labels: expected a value in every entry.*mask"),
        ({"labels": np.zeros(7, int)}, ValueError, "labels: expected shape"),
        ({"labels": np.zeros(120)}, TypeError, "labels: expected integer"),
        ({"labels": [[0], [1, 2]]}, ValueError, "labels: expected an array, got a list"),
        ({"labels": ["class a", "nobody"] * 60}, ValueError, "labels: expected names.*'nobody'"),
        ({"key": 0}, TypeError, "key: expected one jax random key"),
        ({"key": jax.random.split(jax.random.key(0))}, TypeError, "key: expected one jax random"),
        ({"ridge": None}, TypeError, "ridge: expected a number, got None"),
        ({"ridge": "small"}, TypeError, "ridge: expected a number, got 'small'"),
    ],
)
@pytest.mark.parametrize("who", ["submitter", "user"])
def test_bad_input_is_named(who, change, error, message):
    if who == "user" and "key" in change:
        change = {**change, "max_points": 40}
    with pytest.raises(error, match=message):
        specified(who, **change)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"size": 0}, ValueError, "size: expected at least 1"),
        ({"size": 2.0}, TypeError, "size: expected an integer"),
        ({"teacher": np.full((120, 3), 1 / 3)}, ValueError, "teacher: expected class prob"),
        ({"teacher": np.zeros((120, 4))}, ValueError, "teacher: expected rows that sum to one"),
        ({"hidden": np.zeros((7, 3))}, ValueError, "hidden: expected 120 rows"),
        ({"about": {"a": [1]}}, TypeError, "about: expected a string, a number or a boolean"),
        ({"about": "MIT"}, TypeError, "about: expected a mapping"),
        ({"probe_outputs": np.ones((200, 4))}, ValueError, "probe_outputs: expected rows that sum"),
        ({"probe_outputs": np.ones((3, 4))}, ValueError, "probe_outputs: expected class prob"),
    ],
)
def test_bad_input_of_a_submitter_is_named(change, error, message):
    arguments = {"size": 10, "class_names": names(4), **change}
    with pytest.raises(error, match=message):
        js.specify(probed_space(), FEATURES, LABELS, **arguments)


def test_outputs_on_a_probe_that_the_space_does_not_have_are_refused():
    with pytest.raises(ValueError, match="probe_outputs: .*'made-features' has no probe"):
        specified(probe_outputs=np.full((200, 4), 0.25))


@pytest.mark.parametrize("call", [js.specify, js.specify_user])
def test_what_is_no_space_is_refused_by_name(call):
    with pytest.raises(TypeError, match="space: expected a Space, got a str"):
        call("made-features", FEATURES, LABELS, class_names=names(4))


def test_bad_input_of_many_submitters_is_named():
    many = partial(
        js.specify_many,
        probed_space(),
        features=[FEATURES] * 2,
        labels=[LABELS] * 2,
        class_names=[names(4)] * 2,
    )
    uniform = np.full((200, 4), 0.25)
    with pytest.raises(TypeError, match="key: expected one jax random key"):
        many(key=0)
    with pytest.raises(TypeError, match="probe_outputs: expected one entry per model, got a int"):
        many(probe_outputs=5)
    with pytest.raises((TypeError, ValueError), match=r"probe_outputs\[1\]: expected"):
        many(probe_outputs=[uniform, None])
    with pytest.raises(ValueError, match="labels: expected 2 entries, one per model, got 1"):
        many(labels=[LABELS])
    with pytest.raises(ValueError, match=r"labels\[1\]: expected values in"):
        many(labels=[LABELS, LABELS + 1])
    with pytest.raises(ValueError, match=r"features\[1\]: expected 6 columns"):
        many(features=[FEATURES, FEATURES[:, :3]])
    with pytest.raises(ValueError, match=r"teachers\[0\]: expected class prob"):
        many(teachers=[uniform, uniform])
    with pytest.raises(ValueError, match="features: expected at least one data set"):
        many(features=[], labels=[], class_names=[])
    with pytest.raises(TypeError, match="num_classes: expected one entry per problem, got 4"):
        js.fit_proxies([FEATURES], [LABELS], num_classes=4)
