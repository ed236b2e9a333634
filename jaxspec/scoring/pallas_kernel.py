"""The program that the Pallas kernel of `pallas_pass` runs, and the call that starts it.

One program takes a group of rows of the flattened market and one user's points, block by block, and
keeps everything in between in registers (GPU, Triton) or in vector memory (TPU, Mosaic). It outputs
one number per row and user.

May be called: `call_kernel`, by `jaxspec.scoring.pallas_pass`, which prepares its arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jaxspec.base import PARTS, integer_sum, parts_of
from jaxspec.kernels import Kernel

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Num

__all__ = ["Blocks", "Columns", "call_kernel", "compiler_options"]


class Blocks(NamedTuple):
    """Sizes of a program's blocks, powers of two, and settings for the GPU's compiler.

    Attributes:
        rows: points of learnwares per program.
        columns: points of a user per step.
        depth: features per step; on a TPU all of them.
        warps: warps of a program (GPU).
        stages: steps of the loop over features that are under way at the same time (GPU).
    """

    rows: int
    columns: int
    depth: int
    warps: int = 8
    stages: int = 2


class Columns(NamedTuple):
    """Points of Q users, cut into B blocks of n points with d padded features.

    Attributes:
        steps: blocks of each user that are not padding.
        parts: -2 points / bandwidth^2, as the sum of several numbers of few bits.
        scales: what the parts are multiplied by.
        norms: squared norms / bandwidth^2.
        shares: weights of the points.
    """

    steps: Int[Array, "Q 1"]
    parts: Num[Array, "Q parts B n d"]
    scales: Float[Array, "Q B n"]
    norms: Float[Array, "Q B n"]
    shares: Float[Array, "Q B n"]


def compiler_options(backend: str, blocks: Blocks) -> dict[str, Any]:
    """Return the options that make `pallas_call` use Triton on a GPU.

    Without them it uses Mosaic, which works on Hopper GPUs only.

    Raises:
        ImportError, AttributeError: this jax has no Triton backend.
    """
    if backend != "gpu":
        return {}
    from jax.experimental.pallas import triton

    return {
        "compiler_params": triton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages)
    }


def call_kernel(
    form: type[Kernel],
    blocks: Blocks,
    groups: int,
    limit: Int[Array, ""],
    rows: Num[Array, "rows d"],
    norms: Float[Array, " rows"],
    scales: Float[Array, " rows"] | None,
    columns: Columns,
    *,
    backend: str,
    interpret: bool,
) -> Float[Array, "Q groups_rows"]:
    """Return sum_j k(row, c_j) share_j for the rows of `groups` groups of `blocks.rows` rows.

    Args:
        form: of the kernel; distances come divided by the squared bandwidth.
        blocks: sizes.
        groups: of rows.
        limit: groups that begin at this row or later are not computed.
        rows: points as they are stored.
        norms: squared norms / bandwidth^2.
        scales: what stored points are multiplied by, or None.
        columns: the users' points.
        backend: "gpu" or "tpu".
        interpret: run on a processor, slowly.
    """
    users, size = columns.steps.shape[0], blocks.rows
    filled = jnp.arange(groups) * size < limit
    steps = jnp.where(filled, columns.steps, 0)  # (Q, groups)
    column = (size, 1) if backend == "gpu" else (1, size)

    def spec(shape: tuple[int, ...], at: Callable[..., Any], **options: Any) -> Any:
        """Return where the block of a group and a user lies; users of a group come in turn."""
        in_order = (lambda q, i: at(i, q)) if backend == "gpu" else at
        return pl.BlockSpec(shape, in_order, **options)

    def by_group(array: Array) -> tuple[Array, Any]:
        """Return one number per row, in the orientation of the kernel's values."""
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
        *map(by_user, (columns.parts, columns.scales, columns.norms, columns.shares)),
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
        **compiler_options(backend, blocks),
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
    """Sum over all pairs of one group's rows and one user's points; the arguments are Pallas's."""
    norms, *rest = refs
    scale = rest.pop(0)[0] if scaled else None
    parts, column_scales, own, shares, out = rest
    norm = norms[0]
    along = 1 if backend == "gpu" else 0  # the axis of the user's points
    shape = (blocks.rows, blocks.columns) if along else (blocks.columns, blocks.rows)
    d, depth, integer = parts.shape[4], blocks.depth, parts.dtype == jnp.int8
    split = parts_of if interpret else _split  # XLA may remove a cast to bfloat16 and back
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
    """Return the sum over features of exact products, by row first on a GPU, else by column."""
    a, b = (x, c) if backend == "gpu" else (c, x)
    exact = jnp.int32 if x.dtype == jnp.int8 else jnp.float32
    return jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=exact)


def _split(x: Array) -> list[Array]:
    """Return what `parts_of` returns, by operations that a kernel has."""
    found = []
    for _ in range(PARTS):
        found.append(x.astype(jnp.bfloat16))
        x = x - found[-1].astype(jnp.float32)
    return found
