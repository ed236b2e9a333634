"""Many small arrays as one, so that a single transfer takes them between a host and its device.

On a GPU every transfer takes some 30 microseconds to the device and 100 back, whatever its size
(H200, jax 0.11). A batch of users has nine arrays, and the answer about the best learnwares five.

May be called: `pack` and `unpack` for trees of arrays, `pack_scores` and `unpack_scores` for the
answer. Values are never converted: all arrays come back bit by bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.scoring.types import Scores

if TYPE_CHECKING:
    from jaxtyping import Array, Int

__all__ = ["PackedLayout", "pack", "pack_scores", "unpack", "unpack_scores"]

FIELDS = ("scores", "squared_mmd", "class_similarity", "class_map")  # of `Scores`, as packed


class PackedLayout(NamedTuple):
    """What a packed array holds; hashable, as a jitted function's static argument has to be.

    Attributes:
        tree: the structure.
        leaves: shape and dtype of each leaf.
    """

    tree: jax.tree_util.PyTreeDef
    leaves: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]


def pack(tree: object) -> tuple[Int[np.ndarray, " n"], PackedLayout]:
    """Return the leaves of a tree as one int32 array, bit by bit, and its layout.

    Args:
        tree: of float32, int32 or bool arrays.

    Raises:
        TypeError: a leaf of another type.
    """
    leaves, structure = jax.tree.flatten(tree)
    leaves = [np.asarray(leaf) for leaf in leaves]
    for leaf in leaves:
        if leaf.dtype not in (np.float32, np.int32, np.bool_):
            raise TypeError(f"tree: expected leaves of float32, int32 or bool, got {leaf.dtype}")
    layout = PackedLayout(structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
    wide = [leaf.astype(np.int32) if leaf.dtype == bool else leaf for leaf in leaves]
    return np.concatenate([leaf.reshape(-1).view(np.int32) for leaf in wide]), layout


def unpack(packed: Int[Array, " n"], layout: PackedLayout) -> Any:
    """Return the tree that `pack` was given, inside a jitted function."""
    leaves, at = [], 0
    for shape, dtype in layout.leaves:
        size = int(np.prod(shape))
        part = packed[at : at + size].reshape(shape)
        if dtype == np.bool_:
            leaves.append(part != 0)
        else:
            leaves.append(jax.lax.bitcast_convert_type(part, dtype))
        at += size
    return jax.tree.unflatten(layout.tree, leaves)


def pack_scores(slots: Int[Array, "Q n"], scores: Scores) -> Int[Array, "Q n width"]:
    """Return slots and scores as one int32 array of width 3 + 2 k, inside a jitted function."""

    def bits(array: Array) -> Array:
        array = array if array.ndim == 3 else array[..., None]
        return jax.lax.bitcast_convert_type(array, jnp.int32)

    parts = (slots, *(getattr(scores, name) for name in FIELDS))
    return jnp.concatenate([bits(part) for part in parts], axis=2)


def unpack_scores(packed: Int[np.ndarray, "Q n width"]) -> tuple[Int[np.ndarray, "Q n"], Scores]:
    """Return the slots and scores that `pack_scores` was given, as numpy arrays."""
    k = (packed.shape[2] - 3) // 2
    slots, scores, squared_mmd, similarity, class_map = (
        np.ascontiguousarray(part) for part in np.split(packed, [1, 2, 3, 3 + k], axis=2)
    )

    parts: Any = (
        scores[..., 0].view(np.float32),
        squared_mmd[..., 0].view(np.float32),
        similarity.view(np.float32),
        class_map,
    )
    return slots[..., 0], Scores(*parts)
