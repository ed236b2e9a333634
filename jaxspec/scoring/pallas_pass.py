"""The products of `jaxspec.scoring.embedding_pass` by one Pallas kernel, for GPUs.

XLA writes the values k(x_i, c_j) of a block to memory between the matrix product and the sums over
them. The kernel in `pallas_kernel` never stores them. It is for kernels of the squared distance:
Gaussian and inverse multiquadric. `tests/scoring/test_pallas_pass.py` runs it interpreted on a
processor and compares it with float64.

May be called: `fused_for`, which tells whether the pass should use it, and `fused_products`. It has
no derivatives of its own; `market_pass` takes those of the XLA form.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxspec.base import PARTS, integer_parts, parts_of
from jaxspec.kernels import Kernel
from jaxspec.scoring.pallas_kernel import Blocks, Columns, call_kernel, compiler_options

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Num

__all__ = ["Blocks", "fused_for", "fused_products"]

MIN_SIDE = 16  # of a matrix product in Triton
# With fewer int8 features per step than these, jax 0.11 compiled wrong numbers for an H200.
MIN_DEPTHS = {"int8": 32}
# Pallas (jax 0.10 and 0.11) addresses the features of an array of up to 2^32 bytes by signed 32-bit
# integers. An int8 array of that size has twice as many features as these can address, so it is cut
# in two. Larger arrays are addressed by 64 bits.
MAX_ADDRESSED_FEATURES, MAX_BYTES_WITH_32_BITS = 1 << 31, 1 << 32
USERS = 8  # per call, which outputs one number per row of the market for each of them

# By device and type of the stored points. GPU: the fastest of some 30 sizes on an H100 at d = 64
# and 512, or within 3 % of it; larger blocks need more registers than there are.
BLOCKS = {
    ("gpu", "float32"): Blocks(rows=128, columns=64, depth=64, warps=4),
    ("gpu", "bfloat16"): Blocks(rows=128, columns=64, depth=64, warps=4),
    ("gpu", "int8"): Blocks(rows=128, columns=64, depth=128, warps=4),
    ("tpu", "float32"): Blocks(rows=1024, columns=128, depth=0),
    ("tpu", "bfloat16"): Blocks(rows=1024, columns=128, depth=0),
    ("tpu", "int8"): Blocks(rows=1024, columns=128, depth=0),
}
BACKENDS = ("gpu", "tpu")


def fused_for(kernel: Kernel) -> bool:
    """Tell whether the pass uses the Pallas kernel: on a GPU, if this jax has Triton."""
    if jax.default_backend() != "gpu" or kernel.metric != "sqeuclidean":
        return False
    try:
        compiler_options("gpu", BLOCKS["gpu", "int8"])
    except (ImportError, AttributeError):
        return False
    return True


def fused_products(
    kernel: Kernel,
    points: Num[Array, "slots m d"],
    scales: Float[Array, "slots m"],
    square_norms: Float[Array, "slots m"],
    weights: Float[Array, "slots m"],
    user_points: Float[Array, "Q n d"],
    user_weights: Float[Array, "Q n"],
    counts: Int[Array, " Q"],
    length: Int[Array, ""],
    *,
    backend: str | None = None,
    blocks: Blocks | None = None,
    interpret: bool = False,
) -> Float[Array, "slots Q"]:
    """Return <Phi_l, Phi_T> in H for every learnware and user.

    Equal to `embedding_products` up to float32 rounding, on bfloat16 and int8 matrix units: a
    user's numbers are the sum of three bfloat16 or scaled int8 numbers, which meet points stored in
    these types as they are. Float32 points are split likewise; of the nine products the three
    that float32 cannot represent are left out.

    Args:
        kernel: Gaussian or InverseMultiquadric.
        points: float32, bfloat16 or int8.
        scales: what stored points are multiplied by.
        square_norms: squared norms of the scaled points.
        weights: of the points, zero in the padding.
        user_points: relative to the market's origin.
        user_weights: zero in the padding.
        counts: points of each user that are not padding; these come first.
        length: slots from here on need not be computed.
        backend: "gpu" or "tpu" for its block sizes; None for the default device's.
        blocks: other sizes.
        interpret: run without Triton or Mosaic, slowly, on a processor.

    Raises:
        ValueError: a kernel that is no function of the squared distance, or no such backend.
    """
    if kernel.metric != "sqeuclidean":
        raise ValueError(
            f"kernel: expected Gaussian or InverseMultiquadric, got {type(kernel).__name__}"
        )
    backend = backend or jax.default_backend()
    if backend not in BACKENDS and not interpret:
        raise ValueError(f"backend: expected one of {BACKENDS}, got {backend!r}")
    backend = backend if backend in BACKENDS else "gpu"
    blocks = blocks or BLOCKS[backend, points.dtype.name]
    slots, m, d = points.shape
    users, n = user_weights.shape
    few_bytes = points.size * points.dtype.itemsize <= MAX_BYTES_WITH_32_BITS
    if points.size > MAX_ADDRESSED_FEATURES and few_bytes and slots > 1:
        halves = [
            fused_products(
                kernel,
                points[first:last],
                scales[first:last],
                square_norms[first:last],
                weights[first:last],
                user_points,
                user_weights,
                counts,
                length - first,
                backend=backend,
                blocks=blocks,
                interpret=interpret,
            )
            for first, last in ((0, slots // 2), (slots // 2, slots))
        ]
        return jnp.concatenate(halves)
    depth = d
    if backend == "gpu":
        least = MIN_DEPTHS.get(points.dtype.name, MIN_SIDE)
        depth = max(least, min(blocks.depth, _power_of_two(d)))
    blocks = blocks._replace(columns=min(blocks.columns, _power_of_two(n)), depth=depth)
    square = jnp.square(jnp.asarray(kernel.bandwidth, jnp.float32))
    rows = points.reshape(slots * m, d)
    norms = (square_norms / square).reshape(-1)
    by_row = scales.reshape(-1) if points.dtype == jnp.int8 else None
    # Complete blocks are read from the market's own memory; the rows after them are copied and
    # padded to one more block.
    complete = slots * m // blocks.rows
    end = complete * blocks.rows
    last_rows, last_norms = (_pad(array[end:], (blocks.rows,)) for array in (rows, norms))
    last_scales = None if by_row is None else _pad(by_row[end:], (blocks.rows,))
    run = partial(call_kernel, type(kernel), blocks, backend=backend, interpret=interpret)

    def for_users(own: tuple[Array, Array, Array]) -> Array:
        columns = _cut_columns(*own, square, blocks, integer=points.dtype == jnp.int8)
        found = []
        if complete:
            found.append(run(complete, length * m, rows, norms, by_row, columns))
        if end < slots * m:
            rest = run(1, length * m - end, last_rows, last_norms, last_scales, columns)
            found.append(rest[:, : slots * m - end])
        values = jnp.concatenate(found, axis=1) if len(found) > 1 else found[0]
        return (values.reshape(-1, slots, m) * weights).sum(axis=2)

    own = (user_points, user_weights, counts)
    if users <= USERS:
        return for_users(own).T
    short = -users % USERS
    grouped = jax.tree.map(
        lambda array: _pad(array, (users + short,)).reshape(-1, USERS, *array.shape[1:]), own
    )
    return jax.lax.map(for_users, grouped).reshape(-1, slots)[:users].T


def _power_of_two(size: int) -> int:
    return max(MIN_SIDE, 1 << (size - 1).bit_length())


def _pad(array: Array, shape: tuple[int, ...]) -> Array:
    """Return `array` with zeros at the end of its first axes, up to `shape`."""
    widths = [(0, new - old) for old, new in zip(array.shape, shape, strict=False)]
    return jnp.pad(array, widths + [(0, 0)] * (array.ndim - len(widths)))


def _cut_columns(
    points: Float[Array, "Q n d"],
    weights: Float[Array, "Q n"],
    counts: Int[Array, " Q"],
    square: Float[Array, ""],
    blocks: Blocks,
    *,
    integer: bool,
) -> Columns:
    """Cut users' points into blocks; `square` is the squared bandwidth."""
    users, n, d = points.shape
    width = blocks.columns
    number, depth = -(-n // width), -(-d // blocks.depth) * blocks.depth
    points = points.astype(jnp.float32)
    own = _pad(jnp.square(points).sum(axis=2) / square, (users, number * width))
    points = _pad(points * (-2.0 / square), (users, number * width, depth))
    if integer:
        pieces, column_scale = integer_parts(points)
    else:
        pieces, column_scale = parts_of(points), jnp.ones(points.shape[:2], jnp.float32)
    parts = jnp.stack(pieces, axis=1)
    return Columns(
        steps=-(-counts.astype(jnp.int32)[:, None] // width),
        parts=parts.reshape(users, PARTS, number, width, depth),
        scales=column_scale.reshape(users, number, width),
        norms=own.reshape(users, number, width),
        shares=_pad(weights, (users, number * width)).reshape(users, number, width),
    )
