"""Rows of a market in chunks: a loop that skips chunks without a learnware and has derivatives.

`jax.lax.fori_loop` with a bound that is known at run time only cannot be differentiated in reverse.
So the loop goes over all chunks, and a condition skips those that need not be computed. Inside
`shard_map`, jax wants to know of every array whether it differs between devices; `varying_like`
tells it for arrays that a loop starts with.

May be called: both functions, inside compiled functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Int

__all__ = ["over_chunks", "varying_like"]

Tree = TypeVar("Tree")


def over_chunks(
    compute: Callable[[Array], Tree],
    empty: Tree,
    rows: int,
    chunk: int,
    length: Int[Array, ""],
    references: Sequence[Array],
) -> Tree:
    """Return what `compute` gives for all rows, chunk by chunk.

    In reverse mode a chunk is computed again instead of being kept: what it computes may be large.

    Args:
        compute: takes the first row of a chunk and returns a pytree of arrays (chunk, ...).
        empty: the same pytree for a chunk that is not computed.
        rows: in all; the last chunk overlaps the one before where they are no multiple of a chunk.
        chunk: rows of a chunk, at most `rows`.
        length: chunks whose first row is here or later are not computed.
        references: what `compute` looks at, for `varying_like`.
    """
    if chunk == rows:  # an accelerator would wait for its host in a loop
        return compute(jnp.zeros((), jnp.int32))
    again: Callable[[Array], Tree] = jax.checkpoint(
        lambda start: varying_like(compute(start), *references)
    )
    empty = varying_like(empty, *references)

    def body(out: Tree, i: Array) -> tuple[Tree, None]:
        start = jnp.minimum(i * chunk, rows - chunk)
        part = jax.lax.cond(start < length, again, lambda _: empty, start)
        written = jax.tree.map(
            lambda all_rows, some: jax.lax.dynamic_update_slice_in_dim(all_rows, some, start, 0),
            out,
            part,
        )
        return written, None

    out = jax.tree.map(lambda one: jnp.zeros((rows, *one.shape[1:]), one.dtype), empty)
    out = varying_like(out, *references)
    return jax.lax.scan(body, out, jnp.arange(-(-rows // chunk), dtype=jnp.int32))[0]


def varying_like(value: Tree, *references: Array) -> Tree:
    """Return the same values, which inside `shard_map` differ between devices as references do.

    They are selected by a condition that never picks the reference: jax has no name for this that
    is the same in all of its versions, and a product with zero would let NaN through.
    """

    def mark(leaf: Array) -> Array:
        for one in references:
            if one.size:
                entry = jax.lax.slice(one, (0,) * one.ndim, (1,) * one.ndim).reshape(())
                leaf = jnp.where(jnp.zeros((), bool), entry.astype(leaf.dtype), leaf)
        return leaf

    return jax.tree.map(mark, value)
