"""The products of `jaxspec.embeddings` as one Pallas kernel, whose kernel values are never stored.

XLA writes the values k(x_i, c_j) of a block to memory between the matrix product and the sums over
them. Here one program takes the points of a few learnwares, goes over the users' points block by
block and keeps everything between in registers (GPU, Triton) or in vector memory (TPU, Mosaic);
only the sums leave it. For kernels of the squared distance: Gaussian and inverse multiquadric.

Never run on an accelerator: it was written where there is none. Interpreted on a CPU it equals
`embedding_products`, and compilers for Hopper and TPU v5e take it, so XLA stays the default until
`benchmarks/accelerator.py` has shown on a device that this is faster. jax 0.11 calls its Triton
backend deprecated; with a jax that has none, `available` is False on a GPU.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jaxspec.kernels import Kernel

__all__ = ["available", "fused_products"]

Array = Any
CHUNK_BYTES = 1 << 25  # of padded points a call; an accelerator's second-level cache holds them
SMALLEST = 16  # Triton's smallest side of a matrix product
# Parts that a float32 user point is the exact sum of, 8 bits each, to be multiplied in bfloat16.
BFLOAT16_PARTS = 3


class Blocks(NamedTuple):
    """Sizes of a program's blocks, powers of two.

    Attributes:
        rows: points of learnwares; half of that for several users.
        columns: users' points at a time.
        depth: features at a time.
        column_bytes: of users' points that one call sees.
    """

    rows: int
    columns: int
    depth: int
    column_bytes: int


# The largest that Triton 3.6 compiles for sm_90 without spilling registers (8 warps: 71 to 212 of
# 255, 8 to 36 KiB of shared memory); 64 columns and a depth of 64 spilled up to 7 kB.
BLOCKS = {
    "gpu": Blocks(rows=256, columns=32, depth=32, column_bytes=1 << 30),
    "tpu": Blocks(rows=1024, columns=128, depth=1 << 16, column_bytes=1 << 22),
}


def available() -> bool:
    """Tell whether Pallas compiles this kernel for the default device: a GPU or a TPU."""
    backend = jax.default_backend()
    if backend == "gpu":
        try:
            _compiler_options("gpu")
        except (ImportError, AttributeError):  # a jax without the Triton backend
            return False
    return backend in BLOCKS


def fused_products(
    kernel: Kernel,
    points: Array,
    scales: Array,
    square_norms: Array,
    weights: Array,
    columns: Array,
    shares: Array,
    length: Array,
    *,
    count: Array | None = None,
    backend: str | None = None,
    interpret: bool = False,
) -> Array:
    """Return <Phi_l, Phi_T> in H for every learnware and user: (slots, Q) float32.

    Equal to `embedding_products` up to float32 rounding. Products are float32, or, for points in
    bfloat16 and int8, three exact bfloat16 products with the parts of the users' points.

    Args:
        kernel: Gaussian or InverseMultiquadric.
        points: (slots, m, d) float32, bfloat16 or int8.
        scales: (slots,) what stored points are multiplied by.
        square_norms: (slots, m) squared norms of the scaled points.
        weights: (slots, m), zero in the padding.
        columns: (T, d) users' points.
        shares: (T, Q) their weights, zero in the padding.
        length: scalar int32; slots from here on need not be computed.
        count: scalar int32, columns from here on are padding; None for T.
        backend: "gpu" or "tpu" for its block sizes; None for the default device's.
        interpret: run without a compiler, slowly, on any device.

    Raises:
        ValueError: a kernel that is no function of the squared distance, or no backend.
    """
    if kernel.metric != "sqeuclidean":
        raise ValueError(
            f"kernel: expected Gaussian or InverseMultiquadric, got {type(kernel).__name__}"
        )
    backend = backend or jax.default_backend()
    if backend not in BLOCKS and not interpret:
        raise ValueError(f"backend: expected one of {tuple(BLOCKS)}, got {backend!r}")
    backend = backend if backend in BLOCKS else "gpu"
    slots, m, d = points.shape
    users = shares.shape[1]
    blocks = BLOCKS[backend]
    rows, held = _rows(m, blocks.rows if users == 1 else blocks.rows // 2)
    depth = _power_of_two(d) if d <= blocks.depth else -(-d // blocks.depth) * blocks.depth
    square = jnp.square(jnp.asarray(kernel.bandwidth, jnp.float32))
    cut = _cut_columns(columns, shares, square, blocks, depth, exact=points.dtype == jnp.float32)
    filled = columns.shape[0] if count is None else count
    filled = -(-jnp.asarray(filled, jnp.int32) // blocks.columns)

    group_bytes = rows * depth * points.dtype.itemsize
    chunk = min(slots, held * max(1, CHUNK_BYTES // group_bytes))
    groups = -(-chunk // held)
    call = partial(_call, kernel, m, users, backend=backend, interpret=interpret)

    def one_chunk(i: Array, out: Array) -> Array:
        start = jnp.minimum(i * chunk, slots - chunk)

        def grouped(array: Array) -> Array:
            """Return chunk x m rows of a chunk as (groups, rows, ...), zeros in the padding."""
            part = jax.lax.dynamic_slice_in_dim(array, start, chunk)
            part = _pad(part, (groups * held,)).reshape(groups, held * m, *array.shape[2:])
            return _pad(part, (groups, rows, depth)[: part.ndim])

        by_row = jnp.broadcast_to(scales[:, None], (slots, m))
        arrays = [grouped(array) for array in (points, square_norms / square, by_row, weights)]
        total = jnp.zeros((groups * held, users), jnp.float32)
        at_once = max(1, blocks.column_bytes // cut[0][:, :1].nbytes)
        for first in range(0, cut[1].shape[0], at_once):
            part = slice(first, first + at_once)
            steps = jnp.clip(filled - first, 0, at_once)
            found = call(steps, *arrays, cut[0][:, part], cut[1][part], cut[2][part])  # type: ignore[call-arg]
            total = total + found[:, :held, :users].reshape(groups * held, users)
        return jax.lax.dynamic_update_slice_in_dim(out, total[:chunk], start, axis=0)

    out = jnp.zeros((slots, users), jnp.float32)
    return jax.lax.fori_loop(0, -(-length // chunk), one_chunk, out)


def _power_of_two(size: int) -> int:
    return max(SMALLEST, 1 << (size - 1).bit_length())


def _pad(array: Array, shape: tuple[int, ...]) -> Array:
    """Return `array` with zeros at the end of its first axes, up to `shape`."""
    widths = [(0, new - old) for old, new in zip(array.shape, shape, strict=False)]
    return jnp.pad(array, widths + [(0, 0)] * (array.ndim - len(widths)))


def _rows(m: int, most: int) -> tuple[int, int]:
    """Return a program's rows and how many learnwares of m points they hold, wasting few."""
    if m > most // 2:
        rows = max(most, _power_of_two(m))
        return rows, rows // m
    rows = max((most, most // 2), key=lambda size: size // m * m / size)
    return rows, rows // m


def _cut_columns(
    columns: Array, shares: Array, square: Array, blocks: Blocks, depth: int, *, exact: bool
) -> tuple[Array, Array, Array]:
    """Cut the users' points into blocks.

    Returns:
        -2 columns / bandwidth^2, (parts, blocks, columns, depth): one float32 part, or bfloat16
        parts that sum to it; squared norms / bandwidth^2, (blocks, 1, columns); the shares,
        (blocks, columns, Q padded), or (blocks, 1, columns) for one user.
    """
    total, users = shares.shape
    width = blocks.columns
    number = -(-total // width)
    points = _pad(columns.astype(jnp.float32), (number * width, depth)) * (-2.0 / square)
    own = jnp.square(columns.astype(jnp.float32)).sum(axis=1) / square
    own = _pad(own, (number * width,)).reshape(number, 1, width)
    parts: list[Array] = []
    rest = points
    while not exact and len(parts) < BFLOAT16_PARTS:
        # Not a cast there and back, which XLA may take for nothing.
        part = jax.lax.reduce_precision(rest, exponent_bits=8, mantissa_bits=7)
        parts.append(part.astype(jnp.bfloat16))
        rest = rest - part
    stacked = jnp.stack(parts or [points]).reshape(-1, number, width, depth)
    if users == 1:
        return stacked, own, _pad(shares, (number * width,)).reshape(number, 1, width)
    padded = _pad(shares, (number * width, _power_of_two(users)))
    return stacked, own, padded.reshape(number, width, -1)


def _compiler_options(backend: str) -> dict[str, Any]:
    """Return what makes `pallas_call` use Triton on a GPU (else it is Mosaic, for Hopper only)."""
    if backend != "gpu":
        return {}
    from jax.experimental.pallas import triton

    return {"compiler_params": triton.CompilerParams(num_warps=8, num_stages=1)}


def _scalar_spec(backend: str) -> Any:
    """Return where the number of steps lies: on a TPU in the memory for scalars."""
    if backend != "tpu":
        return pl.BlockSpec((1, 1), lambda i: (0, 0))
    from jax.experimental.pallas import tpu

    return pl.BlockSpec(memory_space=tpu.SMEM)


def _call(
    kernel: Kernel,
    m: int,
    users: int,
    steps: Array,
    points: Array,
    norms: Array,
    scales: Array,
    weights: Array,
    parts: Array,
    own: Array,
    shares: Array,
    *,
    backend: str,
    interpret: bool,
) -> Array:
    """Return (groups, learnwares padded, Q padded) of grouped points (groups, rows, d)."""
    groups, rows = norms.shape
    held = _power_of_two(rows // m)
    single = users == 1
    shape = (groups, 1, held) if single else (groups, held, shares.shape[2])

    def own_block(array: Array) -> Any:
        return pl.BlockSpec((1, *array.shape[1:]), lambda i: (i, 0, 0))

    def whole(array: Array) -> Any:
        return pl.BlockSpec(array.shape, lambda i: (0,) * array.ndim)

    by_row = [points, norms[:, None], scales[:, None], weights[:, None]]
    by_column = [parts, own, shares]
    out = jax.ShapeDtypeStruct(shape, jnp.float32)
    found = pl.pallas_call(
        partial(_program, type(kernel), m, single, BLOCKS[backend].depth),
        grid=(groups,),
        in_specs=[_scalar_spec(backend), *map(own_block, by_row), *map(whole, by_column)],
        out_specs=own_block(out),
        out_shape=out,
        interpret=interpret,
        **_compiler_options(backend),
    )(steps.reshape(1, 1), *by_row, *by_column)
    return found.swapaxes(1, 2) if single else found


def _dot(a: Array, b: Array, axes: tuple[int, int]) -> Array:
    """Return a product over one axis of each, summed in float32 and, of float32, not rounded."""
    return jax.lax.dot_general(
        a,
        b,
        (((axes[0],), (axes[1],)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


def _program(
    form: type[Kernel],
    m: int,
    single: bool,
    depth: int,
    steps: Any,
    points: Any,
    norms: Any,
    scales: Any,
    weights: Any,
    parts: Any,
    own: Any,
    shares: Any,
    out: Any,
) -> None:
    """Sum over all pairs of one group's points and the users' points."""
    rows, dimension = points.shape[1:]
    number, _, width, _ = parts.shape
    held = out.shape[2] if single else out.shape[1]
    # Distances come divided by the squared bandwidth. An array, as Triton squares no constant.
    kernel = form(bandwidth=jnp.ones((1, 1), jnp.float32))
    scale, norm = scales[0].reshape(rows, 1), norms[0].reshape(rows, 1)

    def values(j: Array) -> Array:
        """Return k between the group's points and block j of the users', (rows, columns)."""

        def deeper(at: Any, product: Array) -> Array:
            x = points[0, :, at].astype(jnp.float32).astype(parts.dtype)
            for part in range(number):
                product += _dot(x, parts[part, j, :, at], (1, 1))
            return product

        product = jnp.zeros((rows, width), jnp.float32)
        if dimension <= depth:
            product = deeper(slice(None), product)
        else:  # a loop: unrolled, Triton keeps all of it in shared memory at once
            product = jax.lax.fori_loop(
                0,
                dimension // depth,
                lambda k, total: deeper(pl.ds(k * depth, depth), total),
                product,
            )
        distance = product * scale + norm + own[j]
        return kernel.profile(jnp.maximum(distance, 0.0))

    def of_learnware(shape: tuple[int, int], axis: int) -> Array:
        """Tell which rows, along `axis`, are points of which learnware."""
        row = jax.lax.broadcasted_iota(jnp.int32, shape, axis)
        first = jax.lax.broadcasted_iota(jnp.int32, shape, 1 - axis) * m
        return (row >= first) & (row < first + m)

    if single:

        def add_one(j: Array, total: Array) -> Array:
            return total + values(j) * shares[j]

        zero = jnp.zeros((rows, width), jnp.float32)
        total = jax.lax.fori_loop(0, steps[0, 0], add_one, zero)
        embedded = total.sum(axis=1, keepdims=True) * weights[0].reshape(rows, 1)
        found = jnp.where(of_learnware((rows, held), 0), embedded, 0.0)
        out[0] = found.sum(axis=0, keepdims=True)
        return

    weigh = jnp.where(of_learnware((held, rows), 1), weights[0], 0.0)

    def add(j: Array, total: Array) -> Array:
        return total + _dot(_dot(weigh, values(j), (1, 0)), shares[j], (1, 0))

    zero = jnp.zeros(out.shape[1:], jnp.float32)
    out[0] = jax.lax.fori_loop(0, steps[0, 0], add, zero)
