"""Many small arrays as one: what goes between a host and its device in a single transfer.

On a GPU every transfer costs some 30 microseconds on its way there and 100 on its way back,
whatever its size (H200, jax 0.11). A batch of users is nine arrays, and what is said of the best
learnwares five.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.scoring.types import Scores

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = ["PackedLayout", "pack", "pack_scores", "unpack", "unpack_scores"]



class PackedLayout(NamedTuple):
    """What is in a packed array: hashable, for a jitted function's static argument.

    Attributes:
        tree: the structure.
        leaves: shape and dtype of each leaf.
    """

    tree: Any
    leaves: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]


def pack(tree: Any) -> tuple[np.ndarray, PackedLayout]:
    """Return the leaves of a tree as one array (n,) int32, bit by bit, and its layout.

    Args:
        tree: of float32, int32 or bool arrays, as numpy has them.

    Raises:
        TypeError: a leaf of another type.
    """
    leaves, structure = jax.tree.flatten(tree)
    leaves = [np.asarray(leaf) for leaf in leaves]
    for leaf in leaves:
        if leaf.dtype not in (np.float32, np.int32, np.bool_):
            raise TypeError(f"tree: expected float32, int32 or bool, got {leaf.dtype}")
    layout = PackedLayout(structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
    wide = [leaf.astype(np.int32) if leaf.dtype == bool else leaf for leaf in leaves]
    return np.concatenate([leaf.reshape(-1).view(np.int32) for leaf in wide]), layout


def unpack(packed: Array, layout: PackedLayout) -> Any:
    """Return the tree of `pack`, in a jitted function."""
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


def pack_scores(slots: Array, scores: Scores) -> Array:
    """Return slots (Q, n) and scores (Q, n, ...) as (Q, n, 3 + 2 k) int32, in a jitted function."""

    def bits(array: Array) -> Array:
        array = array if array.ndim == 3 else array[..., None]
        return jax.lax.bitcast_convert_type(array, jnp.int32)

    parts = (slots, *(getattr(scores, name) for name in _FIELDS))
    return jnp.concatenate([bits(part) for part in parts], axis=2)


def unpack_scores(packed: np.ndarray) -> tuple[np.ndarray, Scores]:
    """Return slots and scores of `pack_scores` as numpy arrays."""
    k = (packed.shape[2] - 3) // 2
    slots, scores, squared_mmd, similarity, class_map = (
        np.ascontiguousarray(part) for part in np.split(packed, [1, 2, 3, 3 + k], axis=2)
    )
    found = Scores(
        scores[..., 0].view(np.float32),
        squared_mmd[..., 0].view(np.float32),
        similarity.view(np.float32),
        class_map,
    )
    return slots[..., 0], found


_FIELDS = ("scores", "squared_mmd", "class_similarity", "class_map")
