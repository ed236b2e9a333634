"""The inputs that the models of a team give to one regression, in three kinds of equal variance.

`team_blocks` makes the blocks, `block_scalings` standardises them on the user's examples, and
`stack_blocks` puts them side by side. Nothing here runs a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Scaling", "block_scalings", "stack_blocks", "team_blocks"]


class Scaling(NamedTuple):
    """The map block -> (block - centre) factor."""

    centre: Float[np.ndarray, " c"]
    factor: float


def team_blocks(
    features: Float[np.ndarray, "n d"], outputs: Sequence[Float[np.ndarray, "n C"]]
) -> list[Float[np.ndarray, "n c"]]:
    """Return the features, the square roots (n, C_l) of all outputs, and their products in pairs.

    The products (n, C_l C_k) of two models let the regression use that one model names this class
    and the other that class, which neither says alone.
    """
    roots = [np.sqrt(output) for output in outputs]
    pairs = [
        (second[:, :, None] * first[:, None, :]).reshape(len(first), -1)
        for place, second in enumerate(roots)
        for first in roots[:place]
    ]
    return [np.asarray(features), *roots, *pairs]


def block_scalings(blocks: Sequence[Float[np.ndarray, "n c"]], models: int) -> tuple[Scaling, ...]:
    """Return how to scale the blocks of a team of this many models.

    Features, roots and products each have the same total variance, and all of them together have
    total variance one. A constant block is scaled by zero.
    """
    pairs = len(blocks) - 1 - models
    kinds = 3.0 if pairs else 2.0
    blocks_of_kind = [1] + [models] * models + [pairs] * pairs
    scalings = []
    for block, alike in zip(blocks, blocks_of_kind, strict=True):
        centre = block.mean(axis=0)
        variance = float(np.square(block - centre).mean(axis=0).sum())
        factor = 1.0 / float(np.sqrt(kinds * alike * variance)) if variance > 1e-12 else 0.0
        scalings.append(Scaling(centre, factor))
    return tuple(scalings)


def stack_blocks(
    blocks: Sequence[Float[np.ndarray, "n c"]], scalings: Sequence[Scaling]
) -> Float[np.ndarray, "n columns"]:
    """Return the scaled blocks side by side."""
    scaled = [
        (block - scaling.centre) * scaling.factor
        for block, scaling in zip(blocks, scalings, strict=True)
    ]
    return np.concatenate(scaled, axis=1)
