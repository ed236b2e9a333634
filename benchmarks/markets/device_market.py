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

from benchmarks.markets.made_market import CONTEXTS, PER_TASK, SPACES, World
from jaxspec.base import rounded, stored_gram
from jaxspec.kernels import square_norm
from jaxspec.market.arrays import STORAGES, MarketArrays, allocate, decode_points, write_rows
from jaxspec.market.builder import Facts, Storage
from jaxspec.market.market import Market
from jaxspec.specify.specification import FORMAT_VERSION

__all__ = ["make_on_device"]

BLOCK_BYTES = 1 << 28  # float32 points that are drawn at a time


def _as_stored(values: Any, dtype: Any) -> Any:
    """Return values in the type that a market stores."""
    return (rounded(values) if dtype == jnp.bfloat16 else values).astype(dtype)


@partial(jax.jit, static_argnames=("count", "size", "storage"))
def _rows(
    key: Any, world: tuple[Any, Any], kernel: Any, *, count: int, size: int, storage: str
) -> tuple[dict[str, Any], Any]:
    """Return stored rows {field: (count, ...)}, as a market would encode them, and label spaces."""
    prototypes, spaces = world
    d = prototypes.shape[2]
    keys = jax.random.split(key, 5)
    point_type, vector_type = STORAGES[storage]
    space = jax.random.randint(keys[0], (count,), 0, SPACES)
    pair = jax.random.randint(keys[1], (2, count, 1), 0, CONTEXTS)
    mix = jax.random.uniform(keys[2], (count, 1, 1), maxval=0.5)
    classes = spaces[space]
    means = (1 - mix) * prototypes[pair[0], classes] + mix * prototypes[pair[1], classes]
    noise = jax.random.normal(keys[3], (count, size, d))
    points = means[:, jnp.arange(size) % PER_TASK] + noise * (6.0 / np.sqrt(d))
    vectors = means + jax.random.normal(keys[4], means.shape) * 0.3
    vectors = _as_stored(vectors - vectors.mean(axis=1, keepdims=True), vector_type)
    weights = jnp.full((count, size), 1 / size, jnp.float32)
    scales = jnp.ones(count)
    if storage == "int8":
        scales = jnp.abs(points).max(axis=(1, 2)) / 127.0
        points = jnp.rint(points / scales[:, None, None])
    points = _as_stored(points, point_type)
    values = decode_points(points, scales)
    terms = jax.lax.map(
        lambda one: square_norm(kernel, *one), (values, weights), batch_size=min(count, 256)
    )
    empty = jnp.zeros((count, PER_TASK, 0))
    rows = {
        "points": points,
        "scales": scales,
        "square_norms": jnp.square(values).sum(axis=2),
        "weights": weights,
        "self_terms": terms,
        "class_vectors": vectors,
        "class_grams": stored_gram(vectors),
        "class_bias": jnp.zeros((count, PER_TASK)),
        "class_ids": classes,
        "probe_weights": empty.astype(vector_type),
        "probe_bias": jnp.zeros((count, PER_TASK)),
        "probe_chances": empty.astype(jnp.uint8),
        "has_probe": jnp.zeros(count),
        "hidden_maps": jnp.zeros((count, 0, d), vector_type),
    }
    return rows, space


def make_on_device(
    world: World,
    count: int,
    *,
    storage: str = "float32",
    size: int = 50,
    progress: Callable[[int, int], None] | None = None,
) -> Market:
    """Return a market of `count` made learnwares without spare rows, on the default device.

    Args:
        world: what they are drawn from.
        count: learnwares.
        storage: a key of `STORAGES`.
        size: points per learnware.
        progress: called with (learnwares done, learnwares).
    """
    held = Storage(storage)
    held.names = {f"class {c}": c for c in range(int(world.spaces.max()) + 1)}
    drawn_from = (jnp.asarray(world.prototypes), jnp.asarray(world.spaces, jnp.int32))
    kernel = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), world.kernel)
    facts = [
        Facts(tuple(f"class {c}" for c in classes), size, 1000, FORMAT_VERSION)
        for classes in world.spaces
    ]
    block = max(1, min(count, BLOCK_BYTES // (4 * size * world.dimension)))
    blocks = next(n for n in range(-(-count // block), count + 1) if count % n == 0)
    block = count // blocks  # one length for all blocks, so that one compilation serves them
    rows: dict[str, Any] | None = None
    for i in range(blocks):
        key = jax.random.fold_in(jax.random.key(1), i)
        new, spaces = _rows(key, drawn_from, kernel, count=block, size=size, storage=storage)
        if rows is None:
            rows = allocate({name: value[:1] for name, value in new.items()}, count)
        rows = write_rows(rows, i * block, new)
        for place, space in enumerate(np.asarray(spaces)):
            held.enter(f"learnware {i * block + place}", facts[space])
        if progress is not None:
            progress((i + 1) * block, count)
    d = world.dimension
    nothing = {"landmarks": jnp.zeros((0, d)), "white": jnp.zeros((0, 0)), "origin": jnp.zeros(d)}
    on_device = jax.tree.map(jnp.asarray, kernel)
    held.arrays = MarketArrays(**(rows or {}), **nothing, kernel=on_device)
    return Market(held, count, frozenset(), kernel, "made")
