"""The markets of `made_market`, drawn on the device that scores them: a million in seconds.

A compiled function fills the arrays of the market block by block, so that nothing of their size is
drawn, encoded or copied on the host. The distribution is that of `made_market`, the numbers are
not: they come from the generator of jax. May be called: `make_on_device`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxspec as js
from benchmarks.markets.made_market import CONTEXTS, NOISE, PER_TASK, SPACES, World, class_names
from jaxspec.base import rounded, stored_gram
from jaxspec.kernels import square_norm
from jaxspec.market import (
    SCHEMA,
    Entry,
    GrowingArrays,
    Layout,
    decode_points,
    dtype_of,
    empty_rows,
    write_rows,
)
from jaxspec.specify import FORMAT_VERSION

__all__ = ["make_on_device"]

BLOCK_BYTES = 1 << 28  # float32 points that are drawn at a time
EXAMPLES = 1000  # that a learnware is said to be trained on


def _as_stored(values: Any, kind: str, precision: str) -> Any:
    """Return values in the type in which a market of this precision holds their kind."""
    dtype = dtype_of(kind, precision)
    return (rounded(values) if dtype == jnp.bfloat16 else values).astype(dtype)


@partial(jax.jit, static_argnames=("count", "size", "layout", "precision"))
def _rows(
    key: Any,
    world: tuple[Any, Any],
    kernel: Any,
    *,
    count: int,
    size: int,
    layout: Layout,
    precision: str,
) -> tuple[dict[str, Any], Any]:
    """Return stored rows {name: (count, ...)}, as a market would encode them, and label spaces."""
    prototypes, spaces = world
    d = prototypes.shape[2]
    keys = jax.random.split(key, 5)
    space = jax.random.randint(keys[0], (count,), 0, SPACES)
    pair = jax.random.randint(keys[1], (2, count, 1), 0, CONTEXTS)
    mix = jax.random.uniform(keys[2], (count, 1, 1), maxval=0.5)
    classes = spaces[space]
    means = (1 - mix) * prototypes[pair[0], classes] + mix * prototypes[pair[1], classes]
    noise = jax.random.normal(keys[3], (count, size, d))
    points = means[:, jnp.arange(size) % PER_TASK] + noise * (NOISE / np.sqrt(d))
    vectors = means + jax.random.normal(keys[4], means.shape) * 0.3
    drawn = {
        "points": points,
        "weights": jnp.full((count, size), 1 / size, jnp.float32),
        "class_vectors": vectors - vectors.mean(axis=1, keepdims=True),
        "class_ids": classes,
    }
    rows = {}
    for name, one in SCHEMA.items():
        if one.per_row:
            value = drawn.get(name, jnp.zeros([0] * len(one.axes)))
            shape = layout.shape(one.axes, count)
            widths = [(0, new - old) for old, new in zip(value.shape, shape, strict=True)]
            rows[name] = jnp.pad(value, widths, constant_values=one.fill)
    rows["scales"] = jnp.ones(rows["scales"].shape)
    if precision == "int8":
        largest = jnp.abs(rows["points"]).max(axis=2)
        rows["scales"] = jnp.where(largest > 0, largest / 127.0, 1.0)
        rows["points"] = jnp.rint(rows["points"] / rows["scales"][..., None])
    rows = {name: _as_stored(value, SCHEMA[name].kind, precision) for name, value in rows.items()}
    values = decode_points(rows["points"], rows["scales"])
    rows["square_norms"] = jnp.square(values).sum(axis=2)
    rows["self_terms"] = jax.lax.map(
        lambda one: square_norm(kernel, *one),
        (values, rows["weights"]),
        batch_size=min(count, 256),
    )
    rows["class_grams"] = stored_gram(rows["class_vectors"])
    return rows, space


def make_on_device(
    world: World,
    count: int,
    *,
    precision: str = "float32",
    size: int = 50,
    progress: Callable[[int, int], None] | None = None,
) -> js.Market:
    """Return a market of `count` made learnwares without spare rows, on the default device.

    Args:
        world: what they are drawn from.
        count: learnwares.
        precision: "float32", "bfloat16" or "int8".
        size: points per learnware.
        progress: called with (learnwares done, learnwares).
    """
    layout = Layout.for_sizes(size, PER_TASK, world.dimension, 0, representation=False)
    origin = np.zeros(world.dimension, np.float32)
    grown = GrowingArrays(world.space, precision, None, origin, with_landmarks=False)
    # The numbers of the class names are then those of the world's classes.
    grown.ledger.number_names([f"class {c}" for c in range(int(world.spaces.max()) + 1)])
    drawn_from = (jnp.asarray(world.prototypes), jnp.asarray(world.spaces, jnp.int32))
    entries = [
        Entry(class_names(world, space), size, EXAMPLES, FORMAT_VERSION) for space in range(SPACES)
    ]
    block = max(1, min(count, BLOCK_BYTES // (4 * size * world.dimension)))
    blocks = next(n for n in range(-(-count // block), count + 1) if count % n == 0)
    block = count // blocks  # one length for all blocks, so that one compilation serves them
    fills = {name: one.fill for name, one in SCHEMA.items()}
    rows = empty_rows(layout.empty(1, precision), fills, count, None)
    for i in range(blocks):
        new, spaces = _rows(
            jax.random.fold_in(jax.random.key(1), i),
            drawn_from,
            grown.making.kernel,
            count=block,
            size=size,
            layout=layout,
            precision=precision,
        )
        rows = write_rows(rows, i * block, new)
        for place, space in enumerate(np.asarray(spaces)):
            grown.ledger.enter(f"learnware {i * block + place}", entries[space])
        if progress is not None:
            progress((i + 1) * block, count)
    grown.place(rows)
    return js.Market.from_parts(grown, count)
