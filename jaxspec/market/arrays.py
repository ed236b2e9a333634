"""The numbers of a market: one row a slot, in some precision, on one or more devices.

Slots are numbered in the order learnwares were added. With K devices slot s is row s // K of
device s mod K, so that every device has its share of a market whose spare slots are at the end.
Pure array work; `jaxspec.market` keeps ids and names, `jaxspec.scoring` reads the arrays.
"""

from __future__ import annotations

import contextlib
import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxspec.base import bucket, register
from jaxspec.kernels import Kernel, square_norm
from jaxspec.market.calibration import chances

__all__ = [
    "CHANCE_STEPS",
    "ROW_FIELDS",
    "STORAGES",
    "VECTORS",
    "MarketArrays",
    "allocate",
    "by_row",
    "capacity",
    "class_grams",
    "decode_points",
    "encode_rows",
    "in_float32",
    "on_mesh",
    "over_devices",
    "partition_specs",
    "probe_chances",
    "replicated",
    "rows_of_slots",
    "self_terms",
    "write_rows",
]

Array = Any
CHANCE_STEPS = 255
MOST_GRAM_CLASSES = 16  # 1 KiB a learnware; with more classes the pass multiplies anew
GRAM_CHUNK = 4096  # learnwares whose class vectors become float32 at once
SELF_TERM_CHUNK = 256  # learnwares whose m x m Gram matrices are in memory at once
# Type of the points, and of `VECTORS`.
STORAGES = {
    "float32": (np.dtype(np.float32), np.dtype(np.float32)),
    "bfloat16": (np.dtype(jnp.bfloat16), np.dtype(jnp.bfloat16)),
    "int8": (np.dtype(np.int8), np.dtype(jnp.bfloat16)),
}
VECTORS = ("class_vectors", "probe_weights", "hidden_maps")


@register
@dataclasses.dataclass(frozen=True)
class MarketArrays:
    """The numbers of a market, one row a slot; unused slots and paddings are zero.

    Attributes:
        points: (slots, m, d) reduced-set points, relative to `origin`, float32, bfloat16 or int8.
        scales: (slots,) what int8 points are multiplied by; one in the other types.
        square_norms: (slots, m) of the points as stored.
        weights: (slots, m) signed weights.
        self_terms: (slots,) squared norms of the embeddings.
        class_vectors: (slots, classes, d) proxy weights, one row a class, centred over classes.
        class_grams: (slots, classes, classes) inner products of the class vectors as stored, or
            (slots, 0, 0) with more classes than `MOST_GRAM_CLASSES`; not saved.
        class_bias: (slots, classes).
        class_ids: (slots, classes) int32 numbers of class names, -1 where there is no class.
        probe_weights: (slots, classes, D) of the probe proxies, D = 0 in a market without.
        probe_bias: (slots, classes).
        probe_chances: (slots, classes, D) uint8, `CHANCE_STEPS` times the probability of each class
            at the landmarks under the probe proxy.
        has_probe: (slots,) one where there is a probe proxy, else zero.
        hidden_maps: (slots, R, d) representations, zero where there is none; R = 0 in a market
            without.
        landmarks: (D, d) of the probe proxies, relative to `origin`.
        white: (D, D), `probe.whitening` of the landmarks.
        origin: (d,) subtracted from points, zero unless the features lie far from zero.
        kernel: the market's kernel.
    """

    points: Array
    scales: Array
    square_norms: Array
    weights: Array
    self_terms: Array
    class_vectors: Array
    class_grams: Array
    class_bias: Array
    class_ids: Array
    probe_weights: Array
    probe_bias: Array
    probe_chances: Array
    has_probe: Array
    hidden_maps: Array
    landmarks: Array
    white: Array
    origin: Array
    kernel: Kernel


ROW_FIELDS = (
    "points",
    "scales",
    "square_norms",
    "weights",
    "self_terms",
    "class_vectors",
    "class_grams",
    "class_bias",
    "class_ids",
    "probe_weights",
    "probe_bias",
    "probe_chances",
    "has_probe",
    "hidden_maps",
)


def capacity(count: int, spare: float = 0.25) -> int:
    """Return slots for `count` learnwares and at least a share `spare` more, in eighths."""
    wanted = count + (max(int(count * spare), 8) if spare else 0)
    step = max(8, bucket(wanted, minimum=8) // 8) if spare else 8
    return -(-wanted // step) * step


# In what precision


def encode_rows(rows: dict[str, np.ndarray], storage: str) -> dict[str, np.ndarray]:
    """Return rows of float32 in the types of `storage`, with what follows from the points.

    Args:
        rows: {field: (b, ...)}, those that follow from others absent or not yet right.
        storage: a key of `STORAGES`. int8 has one scale a learnware: its largest coordinate.
    """
    point_type, vector_type = STORAGES[storage]
    points = rows["points"]
    scales = np.ones(len(points), np.float32)
    if storage == "int8":
        largest = np.abs(points).max(axis=(1, 2))
        scales = np.where(largest > 0, largest / 127.0, 1.0).astype(np.float32)
        points = np.rint(points / scales[:, None, None])
    stored = points.astype(point_type)
    values = decode_points(stored, scales)
    vectors = {name: rows[name].astype(vector_type) for name in VECTORS}
    return {
        **rows,
        "points": stored,
        "scales": scales,
        "square_norms": np.square(values).sum(axis=2),
        **vectors,
        "class_grams": class_grams(vectors["class_vectors"]),
    }


def class_grams(vectors: np.ndarray) -> np.ndarray:
    """Return the field of this name for stored class vectors (b, classes, d)."""
    if vectors.shape[1] > MOST_GRAM_CLASSES:
        return np.zeros((len(vectors), 0, 0), np.float32)
    found = np.empty((len(vectors), vectors.shape[1], vectors.shape[1]), np.float32)
    for start in range(0, len(vectors), GRAM_CHUNK):
        part = vectors[start : start + GRAM_CHUNK].astype(np.float32)
        np.matmul(part, part.swapaxes(1, 2), out=found[start : start + GRAM_CHUNK])
    return found


def decode_points(points: Array, scales: Array) -> Array:
    """Return stored points (b, m, d) with scales (b,) as float32."""
    values = points.astype(np.float32)
    return values * scales[:, None, None] if points.dtype == np.int8 else values


@jax.jit
def _self_terms(kernel: Kernel, points: Array, scales: Array, weights: Array) -> Array:
    return jax.vmap(partial(square_norm, kernel))(decode_points(points, scales), weights)


def self_terms(kernel: Kernel, rows: dict[str, np.ndarray]) -> np.ndarray:
    """Return the squared norms of b embeddings, (b,), at most `SELF_TERM_CHUNK` at a time."""
    count = len(rows["points"])
    size = min(SELF_TERM_CHUNK, bucket(count, minimum=1))
    found = np.zeros(-(-count // size) * size, np.float32)
    for start in range(0, count, size):
        part = [rows[name][start : start + size] for name in ("points", "scales", "weights")]
        short = size - len(part[0])
        padded = [np.pad(one, [(0, short)] + [(0, 0)] * (one.ndim - 1)) for one in part]
        found[start : start + size] = _self_terms(kernel, *padded)
    return found[:count]


@jax.jit
def _chances(anchors: Array, weights: Array, bias: Array, ids: Array, has_probe: Array) -> Array:
    logits = jnp.matmul(weights, anchors.T, precision="highest") + bias[..., None]
    valid = (ids >= 0) & (has_probe > 0)[:, None]
    found = chances(logits, valid[..., None])
    return jnp.rint(found * CHANCE_STEPS).astype(jnp.uint8)


def probe_chances(rows: dict[str, np.ndarray], anchors: np.ndarray) -> np.ndarray:
    """Return what probe proxies say at the landmarks, (b, classes, D) uint8.

    Args:
        rows: float32 rows of b learnwares.
        anchors: (D, D), the landmarks lifted.
    """
    if not rows["has_probe"].any():
        return np.zeros(rows["probe_weights"].shape, np.uint8)
    names = ("probe_weights", "probe_bias", "class_ids", "has_probe")
    return np.asarray(_chances(anchors, *(rows[name] for name in names)))


# On which devices


def device_count(mesh: Mesh | None) -> int:
    """Return over how many devices rows are spread."""
    return 1 if mesh is None else int(mesh.size)


def in_float32() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which the pass over a market is compiled, whatever the caller's x64.

    A market's arrays are float32 by design. With jax's x64 on, counts and places would be 64 bits
    wide and, here and there, make float64 of what they meet: other programs and other numbers.
    """
    return jax.enable_x64(False)


def over_devices(local: Any, mesh: Mesh, market: MarketArrays, *, by_row: int, whole: int) -> Any:
    """Return `local` over the devices of a mesh, with its result on all of them.

    Its arguments are the market, so many arrays by row, and so many that are the same everywhere.
    """
    everywhere, split = PartitionSpec(), PartitionSpec(mesh.axis_names)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(partition_specs(mesh, market), *[split] * by_row, *[everywhere] * whole),
        out_specs=everywhere,
        check_vma=False,  # results are gathered, hence equal everywhere
    )


def on_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Return a context to work on spread rows in, whatever mesh the caller has set in jax."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def rows_of_slots(slots: np.ndarray, total: int, devices: int) -> np.ndarray:
    """Return the rows of slots in arrays of `total` rows over `devices`."""
    return (slots % devices) * (total // devices) + slots // devices


def partition_specs(mesh: Mesh, arrays: MarketArrays) -> MarketArrays:
    """Return how the arrays are split: rows over all axes of the mesh, the rest everywhere."""
    split, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    specs: dict[str, Any] = {name: split if name in ROW_FIELDS else whole for name in _names()}
    specs["kernel"] = jax.tree.map(lambda _: whole, arrays.kernel)
    return MarketArrays(**specs)


def _names() -> list[str]:
    return [field.name for field in dataclasses.fields(MarketArrays)]


def allocate(
    example: dict[str, np.ndarray], total: int, mesh: Mesh | None = None
) -> dict[str, Array]:
    """Return empty rows {field: (total, ...)}, otherwise like `example`, {field: (b, ...)}."""
    made = {}
    for name, value in example.items():
        fill = -1 if name == "class_ids" else 0
        shape = (total, *value.shape[1:])
        device = None if mesh is None else NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        with on_mesh(mesh):
            made[name] = jnp.full(shape, fill, value.dtype, device=device)
    return made


def replicated(value: Any, mesh: Mesh | None) -> Any:
    """Return a pytree of numpy arrays on every device of the mesh (or on the default device)."""
    if mesh is None:
        return jax.tree.map(jnp.array, value)
    return jax.device_put(value, NamedSharding(mesh, PartitionSpec()))


def by_row(values: np.ndarray, mesh: Mesh | None) -> Array:
    """Return an array with one entry a row where the rows lie."""
    if mesh is None:
        return jnp.array(values)
    return jax.device_put(values, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))


@partial(jax.jit, donate_argnums=0)
def _write(rows: dict[str, Array], slot: Array, new: dict[str, Array]) -> dict[str, Array]:
    return {
        name: jax.lax.dynamic_update_slice_in_dim(rows[name], new[name], slot, axis=0)
        for name in rows
    }


@partial(jax.jit, donate_argnums=0, static_argnames="mesh")
def _write_split(
    rows: dict[str, Array], slot: Array, new: dict[str, Array], *, mesh: Mesh
) -> dict[str, Array]:
    split, whole = PartitionSpec(mesh.axis_names), PartitionSpec()

    @partial(
        jax.shard_map, mesh=mesh, in_specs=(split, whole, whole), out_specs=split, check_vma=False
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


def write_rows(
    rows: dict[str, Array], slot: int, new: dict[str, np.ndarray], mesh: Mesh | None = None
) -> dict[str, Array]:
    """Write the b slots from `slot` on, in place: the arrays that were handed in are used up.

    Fields of no size stay as they are: jit would give them back on one device's terms.
    """
    empty = {name: value for name, value in rows.items() if not value.size}
    rows, new = ({n: v for n, v in one.items() if n not in empty} for one in (rows, new))
    if mesh is None:
        return {**_write(rows, np.int32(slot), new), **empty}
    with on_mesh(mesh):
        return {**_write_split(rows, np.int32(slot), new, mesh=mesh), **empty}
