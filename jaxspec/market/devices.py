"""On which devices the rows of a market lie, and how work goes there.

Slots are numbered in the order in which learnwares were added. With K devices slot s is row s // K
of device s mod K, so that every device has its share of a market whose spare slots are at the end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxspec.base import bucket, pad_to
from jaxspec.market.derived import Rows
from jaxspec.market.schema import ROW_ARRAYS, MarketArrays

if TYPE_CHECKING:
    from jaxtyping import Array

__all__ = [
    "by_row",
    "checked_mesh",
    "device_count",
    "empty_rows",
    "in_float32",
    "on_mesh",
    "over_devices",
    "partition_specs",
    "replicated",
    "rows_of_slots",
    "take_rows",
    "write_rows",
]

T = TypeVar("T")


def checked_mesh(mesh: Any) -> Mesh:
    """Return the mesh with jax's automatic axes, whatever axes it had.

    Raises:
        TypeError: not a mesh.
    """
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh: expected a jax.sharding.Mesh, got a {type(mesh).__name__}")
    return Mesh(mesh.devices, mesh.axis_names)


def device_count(mesh: Mesh | None) -> int:
    """Return over how many devices rows are spread."""
    return 1 if mesh is None else int(mesh.size)


def rows_of_slots(slots: np.ndarray, total: int, devices: int) -> np.ndarray:
    """Return the rows of slots in arrays of `total` rows over so many devices."""
    return (slots % devices) * (total // devices) + slots // devices


@contextlib.contextmanager
def in_float32() -> Iterator[None]:
    """Return a context in which the pass over a market is compiled, whatever the caller's settings.

    A market's arrays are float32 by design. With jax's x64 on, counts and places would be 64 bits
    wide and would make float64 of numbers that they meet: other programs and other results.
    Projects that forbid implicit promotion of ranks and types need not forbid it here.
    """
    with (
        jax.enable_x64(False),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
    ):
        yield


def on_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Return a context to work on spread rows in, whatever mesh the caller has set in jax."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def partition_specs(mesh: Mesh, arrays: MarketArrays) -> MarketArrays:
    """Return how the arrays are split: rows over all axes of the mesh, the rest on every device."""
    split, everywhere = PartitionSpec(mesh.axis_names), PartitionSpec()

    def spec_of(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
        return split if path[0].name in (*ROW_ARRAYS, "alive") else everywhere

    return jax.tree_util.tree_map_with_path(spec_of, arrays)


def over_devices(
    local: Callable[..., Any], mesh: Mesh, market: MarketArrays, *, by_row: int, everywhere: int
) -> Callable[..., Any]:
    """Return `local` over the devices of a mesh, with its result on all of them.

    Its arguments are the market, then `by_row` arrays that are split as the market's rows are, then
    `everywhere` arguments that are the same on all devices.
    """
    same, split = PartitionSpec(), PartitionSpec(mesh.axis_names)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(partition_specs(mesh, market), *[split] * by_row, *[same] * everywhere),
        out_specs=same,
        check_vma=False,  # results are gathered, hence equal everywhere
    )


def replicated(value: T, mesh: Mesh | None) -> T:
    """Return a pytree of numpy arrays on every device of the mesh (or on the default device)."""
    if mesh is None:
        return jax.tree.map(jnp.array, value)
    return jax.device_put(value, NamedSharding(mesh, PartitionSpec()))


def by_row(values: np.ndarray, mesh: Mesh | None) -> Array:
    """Return an array with one entry per row, lying where the rows lie."""
    if mesh is None:
        return jnp.array(values)
    return jax.device_put(values, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))


def empty_rows(example: Rows, fills: dict[str, int], total: int, mesh: Mesh | None) -> Any:
    """Return `total` unused rows {name: (total, ...)}, otherwise like `example`.

    Args:
        example: {name: (b, ...)}.
        fills: {name: value of an unused row}, zero where a name is absent.
        total: rows in all.
        mesh: the devices.
    """
    made = {}
    for name, value in example.items():
        shape = (total, *value.shape[1:])
        device = None if mesh is None else NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        with on_mesh(mesh):
            made[name] = jnp.full(shape, fills.get(name, 0), value.dtype, device=device)
    return made


@partial(jax.jit, static_argnames="mesh")
def _take(rows: Any, at: Array, *, mesh: Mesh | None) -> Any:
    found = {name: value[at] for name, value in rows.items()}
    if mesh is None:
        return found
    return jax.lax.with_sharding_constraint(found, NamedSharding(mesh, PartitionSpec()))


def take_rows(rows: dict[str, Array], at: np.ndarray, mesh: Mesh | None) -> Rows:
    """Return the rows `at` as numpy arrays {name: (len(at), ...)}."""
    padded = pad_to(at, (bucket(len(at), minimum=1),))
    with on_mesh(mesh):
        found = _take(rows, padded, mesh=mesh)
    return {name: np.asarray(value)[: len(at)] for name, value in found.items()}


def _written(rows: Any, slot: Array, new: Any) -> Any:
    return {
        name: jax.lax.dynamic_update_slice_in_dim(rows[name], new[name], slot, axis=0)
        for name in rows
    }


def _written_split(rows: Any, slot: Array, new: Any, *, mesh: Mesh) -> Any:
    split, everywhere = PartitionSpec(mesh.axis_names), PartitionSpec()

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(split, everywhere, everywhere),
        out_specs=split,
        check_vma=False,
    )
    def local(rows: Any, slot: Array, new: Any) -> Any:
        count = next(iter(new.values())).shape[0]
        slots = slot + jnp.arange(count)
        mine = slots % mesh.size == jax.lax.axis_index(mesh.axis_names)

        def put(array: Array, values: Array) -> Array:
            at = jnp.where(mine, slots // mesh.size, array.shape[0])
            return array.at[at].set(values, mode="drop")

        return {name: put(rows[name], new[name]) for name in rows}

    return local(rows, slot, new)


# By whether the arrays that are handed in stay as they are.
_WRITE = {True: jax.jit(_written), False: jax.jit(_written, donate_argnums=0)}
_WRITE_SPLIT = {
    True: jax.jit(_written_split, static_argnames="mesh"),
    False: jax.jit(_written_split, donate_argnums=0, static_argnames="mesh"),
}


def write_rows(
    rows: dict[str, Array], slot: int, new: Rows, mesh: Mesh | None = None, *, keep: bool = False
) -> dict[str, Array]:
    """Write the slots from `slot` on, in place unless `keep`: the arrays handed in are used up.

    With `keep` they stay as they are, and all rows are copied.

    Arrays of no size stay as they are: jit would give them back on one device's terms.
    """
    empty = {name: value for name, value in rows.items() if not value.size}
    filled = {name: value for name, value in rows.items() if name not in empty}
    values = {name: value for name, value in new.items() if name not in empty}
    if mesh is None:
        return {**_WRITE[keep](filled, np.int32(slot), values), **empty}
    with on_mesh(mesh):
        return {**_WRITE_SPLIT[keep](filled, np.int32(slot), values, mesh=mesh), **empty}
