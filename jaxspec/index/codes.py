"""The codes of a market's learnwares, each where its row lies: on one device or over a mesh.

`Codes` is shared by the versions of an index and only ever written to beyond what they see, as the
market's own arrays are. Encoding runs where the rows lie: no specification leaves its device.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxspec.base import device_kind, pad_to
from jaxspec.index import encoder as index_codes
from jaxspec.index.encoder import Coded, Encoder
from jaxspec.market import builder as market_storage
from jaxspec.market.arrays import (
    ROW_FIELDS,
    MarketArrays,
    allocate,
    by_row,
    decode_points,
    device_count,
    in_float32,
    on_mesh,
    partition_specs,
    replicated,
    write_rows,
)
from jaxspec.market.market import Market

__all__ = ["BLOCK", "SAMPLE", "Codes", "encoder_of"]

Array = Any
SAMPLE = 2048  # learnwares that the encoder is fitted to
BLOCK = {"processor": 256, "accelerator": 4096}  # learnwares a device encodes at a time


class Codes:
    """Codes and label spaces of all rows, in the market's order of rows.

    Attributes:
        codes: of all rows.
        spaces: (rows,) int32 numbers of label spaces, rows of `table`.
        table: (spaces, classes) int32 class numbers of every label space, -1 in the padding.
        encoder: what made them.
        mesh: the market's.
    """

    codes: Coded

    def __init__(
        self,
        market: Market,
        encoder: Encoder,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.mesh = market.mesh
        self.encoder = replicated(encoder, self.mesh)
        self.lock = threading.Lock()
        self._names = -1
        self._draw_names(market)
        self._numbers: dict[tuple[str, ...], int] = {}
        self._table = np.full((8, market.arrays.class_ids.shape[1]), -1, np.int32)
        self._placed: Array | None = None  # the table where the rows lie
        total = market._storage.total
        width = index_codes.EMBEDDING + index_codes.SKETCH
        one: dict[str, np.ndarray] = {
            "values": np.zeros((1, width), np.int8),
            "scales": np.zeros((1, 2), np.float32),
        }
        self.codes = Coded(**allocate(one, total, self.mesh))
        spaces = np.zeros(total, np.int32)
        slots = np.arange(market.length)
        for slot, row in zip(slots, market._storage.rows(slots), strict=True):
            spaces[row] = self._number(market, int(slot))
        self.spaces = by_row(spaces, self.mesh)
        self._encode(market, market.length, progress)
        self._write(market, market.length - 1)  # so that the first `append` finds it compiled

    @property
    def table(self) -> Array:
        """Class numbers of every label space, (spaces, classes) int32, on the devices."""
        placed = self._placed
        if placed is None:
            placed = self._placed = replicated(self._table, self.mesh)
        return placed

    @property
    def rows(self) -> int:
        """How many rows there are room for."""
        return int(self.codes.values.shape[0])

    @property
    def bytes_per_learnware(self) -> int:
        """Bytes of a code with the number of its label space."""
        leaves = [*jax.tree.leaves(self.codes), self.spaces]
        return sum(leaf.nbytes for leaf in leaves) // self.rows

    def append(self, market: Market) -> None:
        """Encode the learnware that the market got last."""
        with self.lock:
            self._draw_names(market)
            self._write(market, market.length - 1)

    def _draw_names(self, market: Market) -> None:
        """Draw places in the sketch for class names that came since."""
        names = market._storage.names
        if len(names) != self._names:
            self._names = len(names)
            places, signs = index_codes.name_tables(names, self.encoder.places.shape[1])
            drawn = replicated({"places": places, "signs": signs}, self.mesh)
            self.encoder = dataclasses.replace(self.encoder, **drawn)

    def _write(self, market: Market, slot: int) -> None:
        number = np.array([self._number(market, slot)], np.int32)
        written = write_rows({"spaces": self.spaces}, slot, {"spaces": number}, self.mesh)
        self.spaces = written["spaces"]
        # Every device encodes the row of this number: others hold what is there already.
        self._put(market, slot // device_count(self.mesh), 1)

    def _encode(
        self, market: Market, count: int, progress: Callable[[int, int], None] | None
    ) -> None:
        devices = device_count(self.mesh)
        share = self.rows // devices
        size = min(BLOCK[device_kind()], share)
        for start in range(0, -(-count // devices), size):
            self._put(market, min(start, share - size), size)
            if progress is not None:
                progress(min((start + size) * devices, count), count)

    def _put(self, market: Market, start: int, size: int) -> None:
        with on_mesh(self.mesh), in_float32():
            self.codes = _encode_block(
                self.codes, self.encoder, market.arrays, np.int32(start), size=size, mesh=self.mesh
            )

    def _number(self, market: Market, slot: int) -> int:
        """Return the number of a slot's label space."""
        names = market._storage.facts[slot].class_names
        if names not in self._numbers:
            number = len(self._numbers)
            if number == len(self._table):
                self._table = pad_to(self._table, (2 * number, self._table.shape[1]), value=-1)
            self._table[number, : len(names)] = market.class_numbers(names)
            self._placed = None
            self._numbers[names] = number
        return self._numbers[names]


@partial(jax.jit, donate_argnums=0, static_argnames=("size", "mesh"))
def _encode_block(
    codes: Coded,
    encoder: Encoder,
    market: MarketArrays,
    start: Array,
    *,
    size: int,
    mesh: Mesh | None,
) -> Coded:
    """Write the codes of `size` rows from `start` on, of every device."""

    def local(codes: Coded, market: MarketArrays, encoder: Encoder, start: Array) -> Coded:
        rows = {
            name: jax.lax.dynamic_slice_in_dim(getattr(market, name), start, size)
            for name in ROW_FIELDS
        }
        new = index_codes.encode_rows(encoder, market.kernel, rows)
        return jax.tree.map(
            lambda old, some: jax.lax.dynamic_update_slice_in_dim(old, some, start, axis=0),
            codes,
            new,
        )

    if mesh is None:
        return local(codes, market, encoder, start)
    whole, split = PartitionSpec(), PartitionSpec(mesh.axis_names)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(split, partition_specs(mesh, market), whole, whole),
        out_specs=split,
        check_vma=False,
    )(codes, market, encoder, start)


def encoder_of(market: Market) -> Encoder:
    """Fit an encoder to an even sample of a market."""
    storage, arrays = market._storage, market.arrays
    chosen = market_storage.spaced(market.slots, SAMPLE)
    rows = market_storage.take(storage, chosen, together=True)
    points = decode_points(rows["points"], rows["scales"])
    used = np.argwhere(rows["weights"] != 0)
    at = used[np.random.default_rng(0).permutation(len(used))[: index_codes.ANCHORS]]
    return index_codes.fit_encoder(
        jax.tree.map(np.asarray, arrays.kernel),
        points,
        rows["weights"],
        np.maximum(rows["self_terms"], 1e-12),
        np.asarray(arrays.landmarks),
        points[at[:, 0], at[:, 1]],
        storage.names,
    )
