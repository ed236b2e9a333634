"""Registration of frozen dataclasses as pytrees.

`register` is like `jax.tree_util.register_dataclass`, but puts the class in the tree structure:
jax 0.10.2 treats the structures of two registered dataclasses with the same fields as equal,
whatever their classes, and sometimes runs what it compiled for one of them on the other.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import jax
import numpy as np

__all__ = ["register"]

T = TypeVar("T")


def register(cls: type[T]) -> type[T]:
    """Make a dataclass a pytree; fields with metadata {"static": True} are structure, not leaves.

    Use as a decorator above `@dataclasses.dataclass(frozen=True)`.
    """
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    static = tuple(f.name for f in fields if f.metadata.get("static"))
    data = tuple(f.name for f in fields if not f.metadata.get("static"))
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in data)

    def structure(node: Any) -> tuple[Any, ...]:
        return (cls.__qualname__, *(getattr(node, name) for name in static))

    def flatten(node: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(node, name) for name in data), structure(node)

    def flatten_with_keys(node: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        children = tuple(getattr(node, name) for name in data)
        return tuple(zip(keys, children, strict=True)), structure(node)

    def unflatten(auxiliary: tuple[Any, ...], children: Any) -> Any:
        # Not by the constructor, whose checks are for users: jax also puts gradients (that of a
        # bandwidth may be negative), None and placeholders in the places of the leaves.
        node = object.__new__(cls)
        for name, value in zip((*data, *static), (*children, *auxiliary[1:]), strict=True):
            object.__setattr__(node, name, value)
        return node

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    cls.__eq__ = _equal  # type: ignore[assignment, method-assign]
    cls.__hash__ = _hash  # type: ignore[assignment, method-assign]
    return cls


def _equal(one: Any, other: object) -> bool:
    """Tell whether two pytrees have one structure and equal numbers; tracers equal themselves.

    The comparison that a dataclass has of its own asks arrays for a truth value, which they refuse.
    """
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
    structure: Any = jax.tree.structure(one)
    if structure != jax.tree.structure(other):
        return False
    if any(isinstance(leaf, jax.core.Tracer) for leaf in (*leaves, *others)):
        return all(mine is its for mine, its in zip(leaves, others, strict=True))
    return all(
        np.array_equal(np.asarray(mine), np.asarray(its))
        for mine, its in zip(leaves, others, strict=True)
    )


def _hash(node: Any) -> int:
    """Return a hash of the structure and of the shapes, which equal pytrees share."""
    leaves, structure = jax.tree.flatten(node)
    return hash((structure, tuple(np.shape(leaf) for leaf in leaves)))
