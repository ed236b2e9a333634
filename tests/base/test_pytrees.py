"""Registered dataclasses: pytrees that compare without an exception."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import jaxspec as js
from jaxspec.base import register


@register
@dataclasses.dataclass(frozen=True)
class Pair:
    left: jax.Array
    right: jax.Array | None
    name: str = dataclasses.field(metadata={"static": True}, default="")


@register
@dataclasses.dataclass(frozen=True)
class Twin:
    left: jax.Array
    right: jax.Array | None
    name: str = dataclasses.field(metadata={"static": True}, default="")


def test_equal_numbers_and_structure_are_equal():
    assert Pair(jnp.arange(3), None) == Pair(jnp.arange(3), None)
    assert js.Gaussian(bandwidth=2.0) == js.Gaussian(bandwidth=jnp.float32(2))


def test_equal_pytrees_have_equal_hashes():
    assert hash(Pair(jnp.arange(3), None)) == hash(Pair(jnp.arange(3), None))
    assert len({js.Gaussian(bandwidth=2.0), js.Gaussian(bandwidth=2.0)}) == 1


def test_other_numbers_names_shapes_or_classes_are_not_equal():
    one = Pair(jnp.arange(3), None)
    others = [
        Pair(jnp.arange(3) + 1, None),
        Pair(jnp.arange(4), None),
        Pair(jnp.arange(3), None, "name"),
        Pair(jnp.arange(3), jnp.arange(3)),
        Twin(jnp.arange(3), None),
        "text",
        np.arange(3),
    ]
    assert all(one != other for other in others)


def test_under_a_transformation_a_pytree_equals_itself_only():
    seen = []

    @jax.jit
    def compare(pair):
        seen.append((pair == pair, pair == Pair(jnp.arange(3), None)))
        return pair.left

    compare(Pair(jnp.arange(3), None))
    assert seen == [(True, False)]


def test_fields_marked_static_are_structure():
    leaves, structure = jax.tree.flatten(Pair(jnp.arange(3), None, "name"))
    assert len(leaves) == 1
    assert structure != jax.tree.structure(Pair(jnp.arange(3), None, "other"))
    assert structure != jax.tree.structure(Twin(jnp.arange(3), None, "name"))
