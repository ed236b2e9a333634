"""The products of `jaxspec.scoring.embedding_pass` as one Pallas kernel, whose kernel values are never stored.

XLA writes the values k(x_i, c_j) of a block to memory between the matrix product and the sums over
them. Here one program takes rows of the flattened market as they lie, goes over one user's points
block by block and keeps everything between in registers (GPU, Triton) or in vector memory (TPU,
Mosaic); one number a row and user leaves it. For kernels of the squared distance: Gaussian and
inverse multiquadric. `tests/test_fused.py` compares it, interpreted on a processor, with float64.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jaxspec.base import PARTS, integer_parts, integer_sum, parts_of
from jaxspec.kernels import Kernel

__all__ = ["Blocks", "fused_for", "fused_products"]

Array = Any
SMALLEST = 16  # side of a matrix product in Triton
# Pallas counts to the features of an array of up to 2^32 bytes in 32 bits with a sign: in int8 such
# an array has twice as many features as these can count. (jax 0.10 to 0.11; larger ones get 64.)
MOST_COUNTED, MOST_IN_32_BITS = 1 << 31, 1 << 32
SMALLEST_DEPTH = {"int8": 32}  # of the sum; with 16 it compiles to wrong numbers (jax 0.11, H200)
USERS = 8  # at a time: a call writes so many numbers a row of the market


class Blocks(NamedTuple):
    """Sizes of a program's blocks, powers of two, and what the GPU's compiler is told.

    Attributes:
        rows: points of learnwares.
        columns: a user's points at a time.
        depth: features at a time; on a TPU all of them.
        warps: of a program (GPU).
        stages: of the loop over features that are under way at once (GPU).
    """

    rows: int
    columns: int
    depth: int
    warps: int = 8
    stages: int = 2


# By device and type of the stored points. GPU: the fastest of some 30 on an H100 at d = 64 and 512,
# or within 3 % of it; larger blocks spill registers.
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
    """Tell whether the pass uses this kernel: where Pallas compiles it, a GPU with Triton."""
    if jax.default_backend() != "gpu" or kernel.metric != "sqeuclidean":
        return False
    try:
        _compiler_options("gpu", BLOCKS["gpu", "int8"])
    except (ImportError, AttributeError):  # a jax without the Triton backend
        return False
    return True


def fused_products(
    kernel: Kernel,
    points: Array,
    scales: Array,
    square_norms: Array,
    weights: Array,
    user_points: Array,
    user_weights: Array,
    counts: Array,
    length: Array,
    *,
    backend: str | None = None,
    blocks: Blocks | None = None,
    interpret: bool = False,
) -> Array:
    """Return <Phi_l, Phi_T> in H for every learnware and user: (slots, Q) float32.

    Equal to `embedding_products` up to float32 rounding, on matrix units that know no float32: a
    user's number is the sum of three bfloat16 ones, or of three int8 ones on a scale. All three
    meet points stored in these types as they are; of the nine products with float32 points, split
    likewise, the six that float32 can see are taken.

    Args:
        kernel: Gaussian or InverseMultiquadric.
        points: (slots, m, d) float32, bfloat16 or int8.
        scales: (slots,) what stored points are multiplied by.
        square_norms: (slots, m) squared norms of the scaled points.
        weights: (slots, m), zero in the padding.
        user_points: (Q, n, d).
        user_weights: (Q, n), zero in the padding.
        counts: (Q,) points of each user that are not padding; these come first.
        length: scalar int32; slots from here on need not be computed.
        backend: "gpu" or "tpu" for its block sizes; None for the default device's.
        blocks: other sizes.
        interpret: run without Triton or Mosaic, slowly, on a processor.

    Raises:
        ValueError: a kernel that is no function of the squared distance, or no backend.
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
    if MOST_COUNTED < points.size <= MOST_IN_32_BITS // points.dtype.itemsize and slots > 1:
        run_half: Any = partial(
            fused_products, kernel, backend=backend, blocks=blocks, interpret=interpret
        )
        halves = [
            run_half(
                *(one[first:last] for one in (points, scales, square_norms, weights)),
                user_points,
                user_weights,
                counts,
                length - first,
            )
            for first, last in ((0, slots // 2), (slots // 2, slots))
        ]
        return jnp.concatenate(halves)
    depth = d
    if backend == "gpu":
        least = SMALLEST_DEPTH.get(points.dtype.name, SMALLEST)
        depth = max(least, min(blocks.depth, _power_of_two(d)))
    blocks = blocks._replace(columns=min(blocks.columns, _power_of_two(n)), depth=depth)
    square = jnp.square(jnp.asarray(kernel.bandwidth, jnp.float32))
    rows = points.reshape(slots * m, d)
    norms = (square_norms / square).reshape(-1)
    by_row = jnp.repeat(scales, m) if points.dtype == jnp.int8 else None
    # Whole blocks of the market as it lies; what is left is copied and padded.
    whole = slots * m // blocks.rows
    end = whole * blocks.rows
    last = [_pad(one[end:], (blocks.rows,)) for one in (rows, norms)]
    last_scales = None if by_row is None else _pad(by_row[end:], (blocks.rows,))
    run: Any = partial(_call, type(kernel), blocks, backend=backend, interpret=interpret)

    def some_users(own: tuple[Array, Array, Array]) -> Array:
        columns = _cut_columns(*own, square, blocks, integer=points.dtype == jnp.int8)
        found = []
        if whole:
            found.append(run(whole, length * m, rows, norms, by_row, *columns))
        if end < slots * m:
            found.append(
                run(1, length * m - end, *last, last_scales, *columns)[:, : slots * m - end]
            )
        values = jnp.concatenate(found, axis=1) if len(found) > 1 else found[0]
        return (values.reshape(-1, slots, m) * weights).sum(axis=2)

    own = (user_points, user_weights, counts)
    if users <= USERS:
        return some_users(own).T
    short = -users % USERS
    grouped = jax.tree.map(
        lambda one: _pad(one, (users + short,)).reshape(-1, USERS, *one.shape[1:]), own
    )
    return jax.lax.map(some_users, grouped).reshape(-1, slots)[:users].T


def _power_of_two(size: int) -> int:
    return max(SMALLEST, 1 << (size - 1).bit_length())


def _pad(array: Array, shape: tuple[int, ...]) -> Array:
    """Return `array` with zeros at the end of its first axes, up to `shape`."""
    widths = [(0, new - old) for old, new in zip(array.shape, shape, strict=False)]
    return jnp.pad(array, widths + [(0, 0)] * (array.ndim - len(widths)))


def _cut_columns(
    points: Array, weights: Array, counts: Array, square: Array, blocks: Blocks, *, integer: bool
) -> tuple[Array, ...]:
    """Cut users' points into blocks.

    Returns:
        blocks of each user that are not padding, (Q, 1); -2 points / bandwidth^2 in parts,
        (Q, parts, blocks, columns, d padded); what these are multiplied by, squared norms /
        bandwidth^2 and weights, all (Q, blocks, columns).
    """
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
    return (
        -(-counts.astype(jnp.int32)[:, None] // width),
        parts.reshape(users, PARTS, number, width, depth),
        column_scale.reshape(users, number, width),
        own.reshape(users, number, width),
        _pad(weights, (users, number * width)).reshape(users, number, width),
    )


def _compiler_options(backend: str, blocks: Blocks) -> dict[str, Any]:
    """Return what makes `pallas_call` use Triton on a GPU (else it is Mosaic, for Hopper only)."""
    if backend != "gpu":
        return {}
    from jax.experimental.pallas import triton

    return {
        "compiler_params": triton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages)
    }


def _call(
    form: type[Kernel],
    blocks: Blocks,
    groups: int,
    limit: Array,
    rows: Array,
    norms: Array,
    scales: Array | None,
    steps: Array,
    parts: Array,
    column_scales: Array,
    own: Array,
    shares: Array,
    *,
    backend: str,
    interpret: bool,
) -> Array:
    """Return sum_j k(row, c_j) share_j, (Q, groups x blocks.rows), of rows (.., d) below limit."""
    users, size = steps.shape[0], blocks.rows
    filled = jnp.arange(groups) * size < limit
    steps = jnp.where(filled, steps, 0)  # (Q, groups)
    column = (size, 1) if backend == "gpu" else (1, size)

    def spec(shape: tuple[int, ...], at: Any, **options: Any) -> Any:
        """Return a block's place by group and user; the users of a group come one after another."""
        in_order = (lambda q, i: at(i, q)) if backend == "gpu" else at
        return pl.BlockSpec(shape, in_order, **options)

    def by_group(array: Array) -> tuple[Array, Any]:
        """Return a number a row, in the orientation of the kernel's values."""
        array = array[: groups * size].reshape(groups, *column)
        return array, spec((1, *column), lambda i, q: (i, 0, 0))

    def by_user(array: Array) -> tuple[Array, Any]:
        shape = array.shape[1:]
        return array, spec((1, *shape), lambda i, q: (q,) + (0,) * len(shape))

    scalars: dict[str, Any] = {}
    if backend == "tpu":
        from jax.experimental.pallas import tpu

        scalars = {"memory_space": tpu.SMEM}
    operands = [
        (steps[..., None, None], spec((1, 1, 1, 1), lambda i, q: (q, i, 0, 0), **scalars)),
        (rows, spec((size, rows.shape[1]), lambda i, q: (i, 0))),
        by_group(norms),
        *([] if scales is None else [by_group(scales)]),
        *map(by_user, (parts, column_scales, own, shares)),
    ]
    arrays, specs = zip(*operands, strict=True)
    out = jax.ShapeDtypeStruct((users, groups, *column), jnp.float32)
    found = pl.pallas_call(
        partial(_program, form, blocks, backend, scales is not None, interpret),
        grid=(users, groups) if backend == "gpu" else (groups, users),
        in_specs=list(specs),
        out_specs=spec((1, 1, *column), lambda i, q: (q, i, 0, 0)),
        out_shape=out,
        interpret=interpret,
        **_compiler_options(backend, blocks),
    )(*arrays)
    return found.reshape(users, groups * size)


def _read(rows: Any, first: Any, depth: int, backend: str) -> Array:
    """Return `depth` features of a program's rows from `first` on, zeros beyond the last."""
    d = rows.shape[1]
    if backend != "gpu":
        return rows[...]
    from jax.experimental.pallas import triton

    part = rows.at[:, pl.ds(first, depth)]
    if d % depth == 0:
        return triton.load(part)
    there = first + jax.lax.broadcasted_iota(jnp.int32, (rows.shape[0], depth), 1) < d
    return triton.load(part, mask=there, other=0)


def _program(
    form: type[Kernel],
    blocks: Blocks,
    backend: str,
    scaled: bool,
    interpret: bool,
    steps: Any,
    rows: Any,
    *refs: Any,
) -> None:
    """Sum over all pairs of one group's rows and one user's points."""
    norms, *rest = refs
    scale = rest.pop(0)[0] if scaled else None
    parts, column_scales, own, shares, out = rest
    norm = norms[0]
    along = 1 if backend == "gpu" else 0  # the axis of the user's points
    shape = (blocks.rows, blocks.columns) if along else (blocks.columns, blocks.rows)
    d, depth, integer = parts.shape[4], blocks.depth, parts.dtype == jnp.int8
    split = parts_of if interpret else _split  # XLA may take a cast there and back for nothing
    # Distances come divided by the squared bandwidth. An array, as Triton squares no constant.
    kernel = form(bandwidth=jnp.ones((1, 1), jnp.float32))

    def add_block(j: Array, total: Array) -> Array:
        def column(array: Any) -> Array:
            return jnp.expand_dims(array[0, j], 1 - along)

        def deeper(k: Any, sums: tuple[Array, ...]) -> tuple[Array, ...]:
            x = _read(rows, k * depth, depth, backend)
            cuts = [parts[0, part, j, :, pl.ds(k * depth, depth)] for part in range(PARTS)]
            if integer:
                return tuple(s + _dot(x, c, backend) for s, c in zip(sums, cuts, strict=True))
            (total,) = sums
            for i, piece in enumerate(split(x) if x.dtype == jnp.float32 else [x]):
                for c in cuts[: PARTS - i]:
                    total += _dot(piece, c, backend)
            return (total,)

        sums = (jnp.zeros(shape, jnp.int32),) * PARTS if integer else (jnp.zeros(shape),)
        turns = d // depth
        sums = deeper(0, sums) if turns == 1 else jax.lax.fori_loop(0, turns, deeper, sums)
        product = integer_sum(sums)
        if scale is not None:
            product = product * column(column_scales) * scale
        values = kernel.profile(jnp.maximum(product + norm + column(own), 0.0))
        return total + (values * column(shares)).sum(axis=along, keepdims=True)

    zero = jnp.zeros(norm.shape, jnp.float32)
    out[0, 0] = jax.lax.fori_loop(0, steps[0, 0, 0, 0], add_block, zero)


def _dot(x: Array, c: Array, backend: str) -> Array:
    """Return the exact products' sum over features: rows first on a GPU, columns on a TPU."""
    a, b = (x, c) if backend == "gpu" else (c, x)
    exact = jnp.int32 if x.dtype == jnp.int8 else jnp.float32
    return jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=exact)


def _split(x: Array) -> list[Array]:
    """Return what `parts_of` does, in a kernel."""
    found = []
    for _ in range(PARTS):
        found.append(x.astype(jnp.bfloat16))
        x = x - found[-1].astype(jnp.float32)
    return found
