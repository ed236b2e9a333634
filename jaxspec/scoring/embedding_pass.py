"""Inner products of a market's mean embeddings with users': the part of the pass that costs.

A chunk of the flattened market meets a block of all users' points, packed without padding, in one
matrix product; kernel and reductions follow while the block is in cache. No array of size
market x m x m_T exists: a block has at most `block_entries()` values. Points may be stored in
bfloat16 or int8; they become float32 chunk by chunk and everything is summed in float32.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.base import on_processor, stored_chunk
from jaxspec.kernels import Kernel, distances

__all__ = ["block_entries", "chunk_rows", "column_block", "embedding_products", "pack_columns"]

Array = Any
# The last block of one user's columns, and the only one of few columns, is cut to the next of
# these: the preferred numbers R10 (steps of 1.26).
WIDTHS = (16, 32, 40, 50, 64, 80, 100, 128, 160, 200, 256)


def block_entries() -> int:
    """Return how many values an intermediate block may have.

    4 MiB of float32 stay in a processor's cache (the best of 2^17 to 2^20 there); an accelerator
    wants more work a launch.
    """
    return 1 << 20 if on_processor() else 1 << 26


def column_block(batch: int) -> int:
    """Return columns a block: for many users 64 took 7 % less time than 256, for one 17 % more.

    That was on a processor; an accelerator gets the larger one, with less to do a column.
    """
    return 256 if batch == 1 or not on_processor() else 64


def chunk_rows(slots: int, entries: int) -> int:
    """Return learnwares a chunk when one of them needs `entries` values.

    Chunks of equal length, five or a multiple: a new market has a fifth of its slots free, and
    chunks without a learnware are not computed. An accelerator, for which a chunk is long and
    going from one to the next costs, gets as few as there can be.
    """
    chunks = -(-slots // max(1, block_entries() // entries))
    if not on_processor():
        return -(-slots // chunks)
    return max(1, -(-slots // (-(-chunks // 5) * 5)))


def pack_columns(points: Array, weights: Array, counts: Array) -> tuple[Array, Array]:
    """Return all users' points one after the other, without the padding between users.

    Args:
        points: (Q, n, d).
        weights: (Q, n).
        counts: (Q,) points of each user that are not padding; these come first.

    Returns:
        columns (Q n + B, d) and the weight of each for each user, (Q n + B, Q); B is
        `column_block(Q)`.
    """
    batch, n, d = points.shape
    block = column_block(batch)
    padding = jnp.arange(n) >= counts[:, None]
    order = jnp.argsort(padding.reshape(-1), stable=True)
    columns = jnp.pad(points.reshape(batch * n, d)[order], ((0, block), (0, 0)))
    owner = jax.nn.one_hot(order // n, batch, dtype=weights.dtype)
    shares = owner * weights.reshape(-1)[order][:, None]
    return columns, jnp.pad(shares, ((0, block), (0, 0)))


def embedding_products(
    kernel: Kernel,
    points: Array,
    scales: Array,
    square_norms: Array,
    weights: Array,
    columns: Array,
    shares: Array,
    count: Array,
    length: Array,
) -> Array:
    """Return <Phi_l, Phi_T> in H for every learnware and user: (slots, Q) float32.

    Args:
        kernel: the market's kernel.
        points: (slots, m, d) in the type they are stored in.
        scales: (slots,) what stored points are multiplied by.
        square_norms: (slots, m) squared norms of the scaled points.
        weights: (slots, m), zero in the padding.
        columns: (T + B, d) users' points, from `pack_columns`.
        shares: (T + B, Q) their weights.
        count: scalar int32, columns that are not padding.
        length: scalar int32; slots from here on are not computed.
    """
    slots, m, d = points.shape
    batch = shares.shape[1]
    out = jnp.zeros((slots, batch), jnp.float32)

    def over_columns(out: Array, width: int, first: Array, blocks: Array) -> Array:
        """Add the products with `blocks` blocks of `width` columns from `first` on."""
        chunk = chunk_rows(slots, m * width)

        def one_chunk(i: Array, out: Array) -> Array:
            start = jnp.minimum(i * chunk, slots - chunk)

            def rows(array: Array) -> Array:
                return stored_chunk(array, start, chunk)

            scaled = rows(points).astype(jnp.float32)
            if points.dtype == jnp.int8:
                scaled = scaled * rows(scales)[:, None, None]
            x = scaled.reshape(chunk * m, d)
            norms = rows(square_norms).reshape(chunk * m)
            w = rows(weights)

            def one_block(j: Array, total: Array) -> Array:
                at = first + j * width
                block = jax.lax.dynamic_slice_in_dim(columns, at, width)
                share = jax.lax.dynamic_slice_in_dim(shares, at, width)
                return total + _block_products(kernel, x, norms, w, block, share)

            zero = jnp.zeros((chunk, batch), jnp.float32)
            product = jax.lax.fori_loop(0, blocks, one_block, zero)
            # The last chunk overlaps the one before: rows that were done already stay.
            fresh = jnp.arange(chunk) + start >= i * chunk
            old = jax.lax.dynamic_slice_in_dim(out, start, chunk)
            new = old + jnp.where(fresh[:, None], product, 0.0)
            return jax.lax.dynamic_update_slice_in_dim(out, new, start, axis=0)

        steps = jnp.where(blocks > 0, -(-length // chunk), 0)
        return jax.lax.fori_loop(0, steps, one_chunk, out)

    block = column_block(batch)
    full = count // block
    if batch > 1:  # with a padded last block: apart it would cost one more pass over the market
        full = jnp.where(count > block, -(-count // block), 0)
    if columns.shape[0] > 2 * block:  # else there is no full block but by the last width
        out = over_columns(out, block, jnp.zeros((), jnp.int32), full)
    else:
        full = jnp.zeros_like(full)
    done = full * block
    rest = count - done
    widths = [*(width for width in WIDTHS if width < block), block]
    branches = [lambda out: out] + [
        lambda out, width=width: over_columns(out, width, done, jnp.ones((), jnp.int32))
        for width in widths
    ]
    which = jnp.where(rest > 0, 1 + jnp.searchsorted(jnp.array(widths), rest), 0)
    return jax.lax.switch(which, branches, out)


def _block_products(
    kernel: Kernel, x: Array, norms: Array, weights: Array, columns: Array, shares: Array
) -> Array:
    """Return sum_ij weights_i k(x_i, columns_j) shares_jq for every learnware and user.

    Args:
        kernel: the market's kernel.
        x: (L m, d) points of L learnwares.
        norms: (L m,) their squared norms.
        weights: (L, m).
        columns: (T, d).
        shares: (T, Q).
    """
    learnwares, m = weights.shape
    if kernel.metric != "sqeuclidean":
        values = kernel.profile(distances(kernel.metric, x, columns))
        embedded = jnp.matmul(values, shares, precision="highest").reshape(learnwares, m, -1)
        return (embedded * weights[:, :, None]).sum(axis=1)
    own = jnp.square(columns).sum(axis=1)
    if shares.shape[1] == 1:  # long rows; measured 10 % faster for one user, slower for many
        product = jnp.matmul(-2.0 * columns, x.T, precision="highest")
        values = kernel.profile(jnp.maximum(product + norms[None, :] + own[:, None], 0.0))
        embedded = jnp.matmul(shares.T, values, precision="highest")
        return (embedded.reshape(learnwares, m) * weights).sum(axis=1, keepdims=True)
    # Norms as two more dimensions of the product: 4 % less time for 16 users.
    rows = jnp.concatenate([x, norms[:, None], jnp.ones((len(x), 1), x.dtype)], axis=1)
    others = jnp.concatenate(
        [-2.0 * columns, jnp.ones((len(columns), 1), x.dtype), own[:, None]], axis=1
    )
    product = jnp.matmul(rows, others.T, precision="highest")
    values = kernel.profile(jnp.maximum(product, 0.0))
    values = values.reshape(learnwares, m, columns.shape[0])
    by_column = jnp.matmul(weights[:, None, :], values, precision="highest")[:, 0]
    return jnp.matmul(by_column, shares, precision="highest")
