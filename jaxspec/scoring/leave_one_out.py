"""How much of a user's labels a small model on a learnware's outputs would explain.

This is the part of the score "transfer" that looks at behaviour: a ridge regression of the labels
on the outputs (or hidden directions) at the user's examples, where each example is left
out in turn.

May be called: `explained`, and `inverse` for small matrices, inside compiled functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxspec.scoring.class_vectors import centred, divided, root
from jaxspec.scoring.types import UserArrays

if TYPE_CHECKING:
    from jaxtyping import Array, Float

__all__ = ["HIDDEN_RIDGE", "OUTPUT_RIDGE", "explained", "inverse"]

OUTPUT_RIDGE, HIDDEN_RIDGE = 0.3, 0.1  # penalties, for inputs with a total variance of one


def explained(
    inputs: Float[Array, "L Q C n"], users: UserArrays, ridge: float
) -> Float[Array, "L Q"]:
    """Return 1 - (squared leave-one-out error) / (variance of the labels), at most one.

    The error without each example is in closed form, from its leverage. Inputs are centred and
    brought to a total variance of one, so that neither their scale nor further random outputs help.

    Args:
        inputs: values of C outputs or hidden directions at n examples.
        users: whose labels are explained.
        ridge: penalty.
    """
    seen = (users.labels >= 0)[None, :, None, :]
    count = jnp.maximum(seen.sum(axis=-1), 1)[..., 0]  # (1, Q)
    x = centred(inputs, seen, axis=3)
    total = jnp.square(x).sum(axis=(2, 3)) / count
    x = divided(x, root(total)[..., None, None])
    y = (users.labels[:, None, :] == jnp.arange(users.class_mask.shape[1])[None, :, None]) * 1.0
    y = centred(y, seen[0], axis=2)[None]  # (1, Q, k, n)
    share = count[..., None, None]
    matrix = jnp.einsum("lqcn,lqdn->lqcd", x, x, precision="highest") / share
    solve = inverse(matrix + ridge * jnp.eye(x.shape[2], dtype=x.dtype))
    through = jnp.einsum("lqcd,lqdn->lqcn", solve, x, precision="highest") / share
    leverage = (through * x).sum(axis=2) + 1.0 / count[..., None]
    labels = jnp.broadcast_to(y, (x.shape[0], *y.shape[1:]))
    moment = jnp.einsum("lqcn,lqkn->lqck", x, labels, precision="highest")
    fitted = jnp.einsum("lqcn,lqck->lqkn", through, moment, precision="highest")
    kept = jnp.maximum(1.0 - leverage, 1e-6)  # zero for a user with a single labelled point
    left_out = jnp.where(seen, (y - fitted) / kept[:, :, None], 0.0)
    spread = jnp.maximum(jnp.square(y).sum(axis=(2, 3)), 1e-30)
    return 1.0 - jnp.square(left_out).sum(axis=(2, 3)) / spread


def inverse(matrix: Float[Array, "*batch c c"]) -> Float[Array, "*batch c c"]:
    """Return inverses of small positive definite matrices by Gauss-Jordan elimination.

    It takes c sweeps of elementwise work over all matrices at once, whereas a batched Cholesky
    decomposition on a processor takes one matrix after another. With the ridge on the diagonal no
    pivots are needed.
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
