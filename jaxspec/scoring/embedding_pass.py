"""Inner products of a market's mean embeddings with users' embeddings: the costly part of the pass.

A chunk of the flattened market meets a block of all users' points, packed without padding, in one
matrix product; kernel and sums follow while the block is in the cache. No array of size
market x m x m_T exists: a block has at most `block_entries()` values. Points may be stored in
bfloat16 or int8; they become float32 chunk by chunk, and all sums are in float32.

May be called: `embedding_products` with `pack_columns`, inside compiled functions, and for its
derivatives `differentiable_products`. Nothing here checks its arguments. On GPUs
`jaxspec.scoring.pallas_pass` does the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxspec.base import on_processor, stored_chunk
from jaxspec.kernels import Kernel, distances
from jaxspec.scoring.chunk_loop import over_chunks, varying_like

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Num

__all__ = [
    "block_entries",
    "chunk_rows",
    "column_block",
    "differentiable_products",
    "direct_products",
    "embedding_products",
    "far_out",
    "pack_columns",
]

# The last block of columns is cut to the next of these widths: the preferred numbers R10, in steps
# of 1.26. With blocks of 64 columns throughout, one user of 30, 50 or 100 points costs 36, 13 or
# 15 % more time (20,000 learnwares, m = 50, d = 64, on a processor).
WIDTHS = (16, 32, 40, 50, 64, 80, 100, 128, 160, 200, 256)


# Beyond so many bandwidths from the origin, distances from a product are off by over 5e-5
# bandwidths squared.
FAR_BANDWIDTHS = 20.0


def block_entries() -> int:
    """Return how many values an intermediate block may have.

    4 MiB of float32 stay in a processor's cache (2^20 is the best of 2^17 to 2^20 values there); an
    accelerator is faster with more work per launch.
    """
    return 1 << 20 if on_processor() else 1 << 26


def column_block(batch: int) -> int:
    """Return how many columns a full block has, for a batch of users.

    For many users 64 columns took 7 % less time than 256 on a processor, for one user 17 % more. An
    accelerator gets 256.
    """
    return 256 if batch == 1 or not on_processor() else 64


def chunk_rows(slots: int, entries: int) -> int:
    """Return how many learnwares a chunk has, if each of them needs `entries` values.

    On a processor there are five chunks of equal length, or a multiple of five: a new market has a
    fifth of its slots free, and chunks without a learnware are not computed. With as few chunks as
    there can be, a pass over 1,000 learnwares took 27 to 38 % more processor time. An accelerator,
    for which a chunk is long and going from one to the next costs, gets as few as there can be.
    """
    chunks = -(-slots // max(1, block_entries() // entries))
    if not on_processor():
        return -(-slots // chunks)
    return max(1, -(-slots // (-(-chunks // 5) * 5)))


def pack_columns(
    points: Float[Array, "Q n d"], weights: Float[Array, "Q n"], counts: Int[Array, " Q"]
) -> tuple[Float[Array, "T d"], Float[Array, "T Q"]]:
    """Return all users' points one after the other, without the padding between users.

    Args:
        points: of the users.
        weights: of the points.
        counts: points of each user that are not padding; these come first.

    Returns:
        T = Q n + `column_block(Q)` columns, and the weight of each column for each user.
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
    points: Num[Array, "slots m d"],
    scales: Float[Array, "slots m"],
    square_norms: Float[Array, "slots m"],
    weights: Float[Array, "slots m"],
    columns: Float[Array, "T d"],
    shares: Float[Array, "T Q"],
    count: Int[Array, ""],
    length: Int[Array, ""],
) -> Float[Array, "slots Q"]:
    """Return <Phi_l, Phi_T> in H for every learnware and user.

    Args:
        kernel: the market's kernel.
        points: in the type that they are stored in.
        scales: what stored points are multiplied by.
        square_norms: squared norms of the scaled points.
        weights: of the points, zero in the padding.
        columns: users' points, from `pack_columns`.
        shares: their weights.
        count: how many columns are not padding.
        length: slots from here on are not computed.
    """
    slots, m, _ = points.shape
    batch = shares.shape[1]
    out = _zeros((slots, batch), points, columns, shares)

    def over_columns(out: Array, width: int, first: Array, blocks: Array) -> Array:
        """Add the products with `blocks` blocks of `width` columns from `first` on."""
        chunk = chunk_rows(slots, m * width)

        def one_chunk(i: Array, out: Array) -> Array:
            start = jnp.minimum(i * chunk, slots - chunk)
            x, norms, w = _chunk_of(points, scales, square_norms, weights, start, chunk)

            def one_block(j: Array, total: Array) -> Array:
                at = first + j * width
                block = jax.lax.dynamic_slice_in_dim(columns, at, width)
                share = jax.lax.dynamic_slice_in_dim(shares, at, width)
                return total + _block_products(kernel, x, norms, w, block, share)

            zero = _zeros((chunk, batch), points, columns, shares)
            product = jax.lax.fori_loop(0, blocks, one_block, zero)
            # The last chunk overlaps the one before: rows that are done already stay.
            fresh = jnp.arange(chunk) + start >= i * chunk
            old = jax.lax.dynamic_slice_in_dim(out, start, chunk)
            new = old + jnp.where(fresh[:, None], product, 0.0)
            return jax.lax.dynamic_update_slice_in_dim(out, new, start, axis=0)

        steps = jnp.where(blocks > 0, -(-length // chunk), 0)
        return jax.lax.fori_loop(0, steps, one_chunk, out)

    block = column_block(batch)
    full = count // block
    if batch > 1:  # the last block is padded: on its own it would cost another pass over the market
        full = jnp.where(count > block, -(-count // block), 0)
    if columns.shape[0] > 2 * block:
        out = over_columns(out, block, jnp.zeros((), jnp.int32), full)
    else:  # at most one block of columns, which the last of the widths holds
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


def differentiable_products(
    kernel: Kernel,
    points: Num[Array, "slots m d"],
    scales: Float[Array, "slots m"],
    square_norms: Float[Array, "slots m"],
    weights: Float[Array, "slots m"],
    columns: Float[Array, "T d"],
    shares: Float[Array, "T Q"],
    length: Int[Array, ""],
) -> Float[Array, "slots Q"]:
    """Return what `embedding_products` returns, by loops that can be differentiated in reverse.

    All T columns are computed, so it takes more time. The arguments are the same but for `count`.
    """
    slots, m, _ = points.shape
    total, batch = shares.shape
    width = min(column_block(batch), total)
    blocks = -(-total // width)
    short = blocks * width - total
    columns, shares = (jnp.pad(one, ((0, short), (0, 0))) for one in (columns, shares))
    split = (columns.reshape(blocks, width, -1), shares.reshape(blocks, width, -1))
    chunk = chunk_rows(slots, m * width)
    zero = _zeros((chunk, batch), points, columns, shares)

    def one_chunk(start: Array) -> Array:
        x, norms, w = _chunk_of(points, scales, square_norms, weights, start, chunk)

        def one_block(sums: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
            return sums + _block_products(kernel, x, norms, w, *block), None

        return jax.lax.scan(one_block, zero, split)[0]

    return over_chunks(one_chunk, zero, slots, chunk, length, (points, columns, shares))


def _zeros(shape: tuple[int, int], *references: Array) -> Array:
    return varying_like(jnp.zeros(shape, jnp.float32), *references)


def _chunk_of(
    points: Array, scales: Array, square_norms: Array, weights: Array, start: Array, chunk: int
) -> tuple[Array, Array, Array]:
    """Return points (chunk m, d), squared norms (chunk m,) and weights (chunk, m) of a chunk."""
    x = stored_chunk(points, start, chunk).astype(jnp.float32)
    if points.dtype == jnp.int8:
        x = x * stored_chunk(scales, start, chunk)[:, :, None]
    norms = stored_chunk(square_norms, start, chunk).reshape(-1)
    return x.reshape(-1, x.shape[2]), norms, stored_chunk(weights, start, chunk)


def _block_products(
    kernel: Kernel,
    x: Float[Array, "rows d"],
    norms: Float[Array, " rows"],
    weights: Float[Array, "L m"],
    columns: Float[Array, "T d"],
    shares: Float[Array, "T Q"],
) -> Float[Array, "L Q"]:
    """Return sum_ij weights_i k(x_i, columns_j) shares_jq for every learnware and user.

    Args:
        kernel: the market's kernel.
        x: points of L learnwares, L m rows.
        norms: their squared norms.
        weights: of the points.
        columns: users' points.
        shares: their weights.
    """
    learnwares, m = weights.shape
    if kernel.metric != "sqeuclidean":
        values = kernel.profile(distances(kernel.metric, x, columns))
        embedded = jnp.matmul(values, shares, precision="highest").reshape(learnwares, m, -1)
        return (embedded * weights[:, :, None]).sum(axis=1)
    own = jnp.square(columns).sum(axis=1)
    if shares.shape[1] == 1:
        # One user: long rows of all learnwares. The form below takes up to a half more time here.
        product = jnp.matmul(-2.0 * columns, x.T, precision="highest")
        values = kernel.profile(jnp.maximum(product + norms[None, :] + own[:, None], 0.0))
        embedded = jnp.matmul(shares.T, values, precision="highest")
        return (embedded.reshape(learnwares, m) * weights).sum(axis=1, keepdims=True)
    # Several users: the norms are two more dimensions of both sides of the product.
    rows = jnp.concatenate([x, norms[:, None], jnp.ones((len(x), 1), x.dtype)], axis=1)
    others = jnp.concatenate(
        [-2.0 * columns, jnp.ones((len(columns), 1), x.dtype), own[:, None]], axis=1
    )
    product = jnp.matmul(rows, others.T, precision="highest")
    values = kernel.profile(jnp.maximum(product, 0.0))
    values = values.reshape(learnwares, m, columns.shape[0])
    by_column = jnp.matmul(weights[:, None, :], values, precision="highest")[:, 0]
    return jnp.matmul(by_column, shares, precision="highest")


def direct_products(
    kernel: Kernel,
    points: Num[Array, "slots m d"],
    scales: Float[Array, "slots m"],
    weights: Float[Array, "slots m"],
    user_points: Float[Array, "Q n d"],
    user_weights: Float[Array, "Q n"],
    length: Int[Array, ""],
) -> Float[Array, "slots Q"]:
    """Return what `embedding_products` returns, from differences of points instead of a product.

    It takes several times as long, and is exact where points of both sides lie far out, as
    `far_out` tells. The arguments are those of `embedding_products`, with the users' own arrays.
    """
    slots, m, _ = points.shape
    batch, n, _ = user_points.shape
    chunk = chunk_rows(slots, m * n)

    def one_chunk(i: Array, out: Array) -> Array:
        start = jnp.minimum(i * chunk, slots - chunk)
        norms = jnp.zeros((slots, m), jnp.float32)
        x, _, w = _chunk_of(points, scales, norms, weights, start, chunk)

        def one_user(user: tuple[Array, Array]) -> Array:
            own, share = user
            squared = jnp.square(x[:, None, :] - own[None, :, :]).sum(axis=2)  # fused into the sum
            embedded = jnp.matmul(kernel.profile(squared), share, precision="highest")
            return (embedded.reshape(chunk, m) * w).sum(axis=1)

        found = jax.lax.map(one_user, (user_points, user_weights)).T
        return jax.lax.dynamic_update_slice_in_dim(out, found, start, axis=0)

    out = _zeros((slots, batch), points, user_points, user_weights)
    return jax.lax.fori_loop(0, -(-length // chunk), one_chunk, out)


def far_out(
    kernel: Kernel, square_norms: Float[Array, "slots m"], user_points: Float[Array, "Q n d"]
) -> Bool[Array, ""]:
    """Tell whether points of both sides lie so far out that products lose their distances.

    Distances from a product are off by the rounding of the squared norms. That matters only where
    both points are far from the origin: else the distance is small against neither.
    """
    limit = FAR_BANDWIDTHS**2 * jnp.square(kernel.bandwidth)
    largest_user = jnp.square(user_points).sum(axis=2).max()
    return jnp.minimum(square_norms.max(), largest_user) > limit
