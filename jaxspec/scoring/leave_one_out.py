"""How much of a user's labels a small model on a learnware's outputs would explain.

The part of "transfer" that looks at behaviour: a ridge regression on what the outputs (or hidden
directions) say of the user's examples, each left out in turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxspec.scoring.class_vectors import centred, divided
from jaxspec.scoring.types import UserArrays

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = ["HIDDEN_RIDGE", "OUTPUT_RIDGE", "explained", "inverse"]

OUTPUT_RIDGE, HIDDEN_RIDGE = 0.3, 0.1  # of inputs with a total variance of one


def explained(inputs: Array, users: UserArrays, ridge: float) -> Array:
    """Return how much of the labels a ridge regression on the inputs explains, (L, Q) up to 1.

    Every example is left out in turn, in closed form. Inputs are centred and brought to a total
    of one an example, so that neither scale nor further random outputs help.

    Args:
        inputs: (L, Q, C, n), what C outputs or hidden directions say of n examples.
        users: their labels.
        ridge: penalty.
    """
    seen = (users.labels >= 0)[None, :, None, :]
    count = jnp.maximum(seen.sum(axis=-1), 1)[..., 0]  # (1, Q)
    x = centred(inputs, seen, axis=3)
    total = jnp.square(x).sum(axis=(2, 3)) / count
    x = divided(x, jnp.sqrt(total)[..., None, None])
    y = (users.labels[:, None, :] == jnp.arange(users.class_mask.shape[1])[None, :, None]) * 1.0
    y = centred(y, seen[0], axis=2)[None]  # (1, Q, k, n)
    share = count[..., None, None]
    matrix = jnp.einsum("lqcn,lqdn->lqcd", x, x, precision="highest") / share
    solve = inverse(matrix + ridge * jnp.eye(x.shape[2], dtype=x.dtype))
    through = jnp.einsum("lqcd,lqdn->lqcn", solve, x, precision="highest") / share
    leverage = (through * x).sum(axis=2) + 1.0 / count[..., None]
    moment = jnp.einsum("lqcn,lqkn->lqck", x, jnp.broadcast_to(y, (x.shape[0], *y.shape[1:])),
                        precision="highest")  # fmt: skip
    fitted = jnp.einsum("lqcn,lqck->lqkn", through, moment, precision="highest")
    left_out = jnp.where(seen, (y - fitted) / (1.0 - leverage)[:, :, None], 0.0)
    spread = jnp.maximum(jnp.square(y).sum(axis=(2, 3)), 1e-30)
    return 1.0 - jnp.square(left_out).sum(axis=(2, 3)) / spread


def inverse(matrix: Array) -> Array:
    """Return inverses of small positive definite matrices (..., c, c) by Gauss-Jordan.

    c sweeps of elementwise work over all of them at once; a batched Cholesky goes one by one on
    CPU. The ridge on the diagonal makes pivoting needless.
    """

    def sweep(i: Array, a: Array) -> Array:
        row = jax.lax.dynamic_index_in_dim(a, i, axis=-2, keepdims=True)
        column = jax.lax.dynamic_index_in_dim(a, i, axis=-1, keepdims=True)
        pivot = jax.lax.dynamic_index_in_dim(row, i, axis=-1, keepdims=True)
        at = jnp.arange(a.shape[-1]) == i
        is_row, is_column = at[:, None], at[None, :]
        swept = a - column * row / pivot
        swept = jnp.where(is_row, row / pivot, swept)
        swept = jnp.where(is_column, -column / pivot, swept)
        return jnp.where(is_row & is_column, 1.0 / pivot, swept)

    return jax.lax.fori_loop(0, matrix.shape[-1], sweep, matrix)
