"""Specifications as frozen pytrees, their equality, and class names."""

import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import KERNEL, SPACE, made_specification, made_user, names
from oracles import oracle_inner

import jaxspec as js
from jaxspec.kernels import inner_product
from jaxspec.specify import as_class_names


def test_specifications_are_pytrees_of_arrays():
    spec, user = made_specification(0), made_user(0)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, spec)
    assert doubled.class_names == spec.class_names
    np.testing.assert_allclose(doubled.proxy.weights, 2 * np.asarray(spec.proxy.weights))
    kept = jax.jit(lambda one: one)(spec)
    assert (kept.space_name, kept.space_digest) == (SPACE.name, SPACE.digest)
    np.testing.assert_array_equal(kept.reduced_set.points, spec.reduced_set.points)
    np.testing.assert_array_equal(jax.jit(lambda one: one.labels)(user), user.labels)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), spec, made_specification(1))
    norms = jax.vmap(lambda one: inner_product(KERNEL, one.reduced_set, one.reduced_set))(stacked)
    for norm, one in zip(norms, (spec, made_specification(1)), strict=True):
        np.testing.assert_allclose(norm, oracle_inner(KERNEL, one, one), rtol=1e-5)


def test_specifications_are_frozen():
    for one in (made_specification(0), made_user(0)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            one.space_name = "other"


@pytest.mark.parametrize("make", [made_specification, made_user])
def test_comparing_specifications_never_raises(make):
    one, again = make(0), copy.deepcopy(make(0))
    others = [again, make(1), None, 3, "text", np.zeros(3), jax.tree.map(np.asarray, one)]
    for other in others:
        assert isinstance(one == other, bool | np.ndarray)
        assert isinstance(one != other, bool | np.ndarray)
    assert one == one
    assert (one == make(1)) is False
    assert one in [make(1), one]
    hash(one)


@pytest.mark.parametrize("make", [made_specification, made_user])
@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_copies_and_pickles_hold_the_same_numbers(make, again):
    one, found = make(0), again(make(0))
    assert jax.tree.structure(found) == jax.tree.structure(one)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(one), strict=True):
        np.testing.assert_array_equal(a, b)


def test_reprs_are_one_short_line():
    spec, user = repr(made_specification(0)), repr(made_user(0))
    assert "4 classes" in spec
    assert "10 points of 6 features" in spec
    assert "labels shared" in user
    assert "labels kept back" in repr(made_user(0, share_labels=False))
    assert max(len(spec), len(user)) < 120
    assert "\n" not in spec + user


def test_class_names_become_a_tuple_of_plain_strings():
    for given in (names(3), tuple(names(3)), np.array(names(3))):
        found = as_class_names("class_names", given)
        assert found == tuple(names(3))
        assert {type(name) for name in found} == {str}


def test_both_unicode_forms_of_a_name_are_one_name():
    assert as_class_names("n", ["cafe\u0301", "a"]) == as_class_names("n", ["caf\u00e9", "a"])
    with pytest.raises(ValueError, match="n: expected different names, got 'caf\u00e9' twice"):
        as_class_names("n", ["cafe\u0301", "caf\u00e9"])


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("abcd", TypeError, "n: expected a sequence of strings, got 'abcd'"),
        ({"a": 1, "b": 2}, TypeError, "n: expected a sequence of strings"),
        (3, TypeError, "n: expected a sequence of strings, got 3"),
        (["a", 4], TypeError, "n: expected strings, got 4"),
        (["a", ""], ValueError, "n: expected non-empty names"),
        (["a", "x" * 1001], ValueError, "n: expected non-empty names of at most 1000"),
        (["a", "b", "a"], ValueError, "n: expected different names, got 'a' twice"),
        (["a"], ValueError, "n: expected at least two"),
        ([], ValueError, "n: expected at least two"),
    ],
)
def test_bad_class_names_are_refused(value, error, message):
    with pytest.raises(error, match=message):
        as_class_names("n", value)
    with pytest.raises(ValueError, match="n: expected 3 names, one per class, got 2"):
        as_class_names("n", ["a", "b"], 3)


def test_a_user_specification_is_saved_and_loaded(tmp_path):
    user = made_user(1)
    user.save(tmp_path / "user.safetensors")
    loaded = js.UserSpecification.load(tmp_path / "user.safetensors")
    assert jax.tree.structure(loaded) == jax.tree.structure(user)
    np.testing.assert_array_equal(loaded.labels, user.labels)
