"""The codes of a market's learnwares, each where its row lies: on one device or over a mesh.

The versions of an index share a `Codes` as long as those of its market share arrays. It is only
ever written beyond what earlier versions see. Encoding happens where the rows lie: no specification
leaves its device. `Codes` also holds the filters that were fitted to these codes.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxspec.base import Holder, device_kind, pad_to
from jaxspec.index.encoder import (
    EMBEDDING,
    SKETCH,
    Encoder,
    StoredCodes,
    draw_names,
    encode_rows,
    fit_encoder,
)
from jaxspec.market import (
    ROW_ARRAYS,
    Market,
    MarketArrays,
    by_row,
    device_count,
    empty_rows,
    in_float32,
    on_mesh,
    partition_specs,
    replicated,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Int8

__all__ = ["BLOCK", "Codes", "KeptCodes"]

BLOCK = {"processor": 256, "accelerator": 4096}  # learnwares that a device encodes at a time
SMALL_BLOCK = 8  # the same for a few that were added


@dataclasses.dataclass(frozen=True)
class KeptCodes:
    """Codes of an earlier time, for the learnwares of a market that was loaded since.

    Attributes:
        encoder: which made them; places and signs are drawn anew.
        values: (M, F) int8 of all learnwares of the market.
        scales: (M, 2) likewise.
        known: (M,) bool, whose codes these are; the others have none yet.
        fitted_length: as of `Codes`, in slots of this market.
        fitted_count: as of `Codes`.
    """

    encoder: Encoder
    values: Int8[np.ndarray, "M F"]
    scales: Float[np.ndarray, "M 2"]
    known: Bool[np.ndarray, " M"]
    fitted_length: int
    fitted_count: int


class Codes:
    """Codes of all rows of a market, in the market's order of rows.

    Attributes:
        encoder: what made them.
        mesh: of the market.
        filters: fitted filters by what they were fitted for; kept by `jaxspec.index.index`.
        fitted_length: slots that the market had when the encoder was fitted.
        fitted_count: learnwares that it had then.
    """

    _holder: Holder[StoredCodes]

    def __init__(
        self,
        market: Market,
        *,
        like: Codes | None = None,
        kept: KeptCodes | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Encode all learnwares of a market, or those whose codes were not kept.

        Args:
            market: with at least one learnware.
            like: codes whose encoder is taken, of a market of which this one is a part; None to fit
                an encoder to this market.
            kept: codes of an earlier time with their encoder, of a market on one device.
            progress: called with (learnwares done, learnwares).
        """
        self.mesh = market.mesh
        self.filters: dict[Any, Any] = {}
        self.fitted_length, self.fitted_count = market.length, len(market)
        self.lock = threading.Lock()
        if kept is not None:
            encoder, names = kept.encoder, market.ledger.names
            width = encoder.places.shape[1]
            self._names = draw_names(names, width)
            places, signs = jnp.asarray(self._names[0]), jnp.asarray(self._names[1])
            encoder = dataclasses.replace(encoder, places=places, signs=signs)
            self.fitted_length, self.fitted_count = kept.fitted_length, kept.fitted_count
        elif like is None:
            count, encoder = len(market.ledger.names), fit_encoder(market)
            self._names = (np.asarray(encoder.places), np.asarray(encoder.signs), count)
        else:
            self._names, encoder = like._names, like.encoder
        self.encoder: Encoder = replicated(encoder, self.mesh)
        self._space_numbers: dict[tuple[str, ...], int] = {}
        self._table = np.full((8, market.shared.layout.classes), -1, np.int32)
        self._placed_table: Any = None
        total = market.shared.total
        example: dict[str, Any] = {
            "values": np.zeros((1, EMBEDDING + SKETCH), np.int8),
            "scales": np.zeros((1, 2), np.float32),
            "label_spaces": np.zeros(1, np.int32),
        }
        self._holder = Holder(StoredCodes(**empty_rows(example, {}, total, self.mesh)))
        self._label_spaces = np.zeros(total, np.int32)
        self._draw_names(market)
        self._number_spaces(market, 0)
        start = 0 if kept is None else self._take(kept)
        self._encode(market, start, progress)
        # So that the first learnware added compiles nothing; kept codes stay as they are.
        self._put(market, 0 if kept is None else self.rows, SMALL_BLOCK)

    @property
    def stored(self) -> StoredCodes:
        """The codes; they stay valid for as long as they are kept."""
        return self._holder.get()

    @property
    def table(self) -> Int[Array, "spaces C"]:
        """The class numbers of every label space, -1 in the padding, on the devices."""
        if self._placed_table is None:
            self._placed_table = replicated(self._table, self.mesh)
        return self._placed_table

    @property
    def rows(self) -> int:
        """How many rows there are room for."""
        return int(self.stored.values.shape[0])

    @property
    def bytes_per_learnware(self) -> int:
        """Bytes of a code with the number of its label space."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.stored)) // self.rows

    def _take(self, kept: KeptCodes) -> int:
        """Put codes that were kept in place, and return the first slot that has none."""
        at = np.flatnonzero(kept.known)
        values, scales = (
            np.zeros(leaf.shape, leaf.dtype) for leaf in (self.stored.values, self.stored.scales)
        )
        values[at], scales[at] = kept.values[at], kept.scales[at]
        self._holder = Holder(StoredCodes(*map(jnp.array, (values, scales, self._label_spaces))))
        return int(np.argmin(kept.known)) if not kept.known.all() else len(kept.known)

    def append(self, market: Market, start: int) -> None:
        """Encode the learnwares of a market from a slot on, which no version has seen yet."""
        with self.lock:
            self._draw_names(market)
            self._number_spaces(market, start)
            self._encode(market, start, None)

    def _draw_names(self, market: Market) -> None:
        """Draw places in the sketch for class names that are new."""
        names = market.ledger.names
        if self._names[2] != len(names):
            self._names = draw_names(names, self.encoder.places.shape[1], self._names)
            drawn: Any = replicated({"places": self._names[0], "signs": self._names[1]}, self.mesh)
            self.encoder = dataclasses.replace(self.encoder, **drawn)

    def _number_spaces(self, market: Market, start: int) -> None:
        """Note the label spaces of the slots from `start` on."""
        entries = market.ledger.entries
        slots = np.arange(start, market.length)
        numbers = [self._number_of(market, entries[slot].class_names) for slot in slots]
        self._label_spaces[market.shared.rows_of(slots)] = numbers

    def _number_of(self, market: Market, names: tuple[str, ...]) -> int:
        if names not in self._space_numbers:
            number = len(self._space_numbers)
            if number == len(self._table):
                self._table = pad_to(self._table, (2 * number, self._table.shape[1]), value=-1)
            self._table[number, : len(names)] = market.ledger.numbers_of(names)
            self._placed_table = None
            self._space_numbers[names] = number
        return self._space_numbers[names]

    def _encode(
        self, market: Market, start: int, progress: Callable[[int, int], None] | None
    ) -> None:
        """Encode all slots from `start` on; a block holds the same rows of every device."""
        devices, end = device_count(self.mesh), market.length
        row, last = start // devices, -(-end // devices)
        block = BLOCK[device_kind()]
        while row < last:
            few = start > 0 and last - row <= block // 8
            size = SMALL_BLOCK if few else block
            self._put(market, row, size)
            row += size
            if progress is not None:
                progress(min(row * devices, end), end)

    def _put(self, market: Market, row: int, size: int) -> None:
        """Encode up to `size` rows of every device from `row` on; the last rows may come twice."""
        devices = device_count(self.mesh)
        share = self.rows // devices
        size = min(size, share)
        row = min(row, share - size)
        spaces = self._label_spaces.reshape(devices, share)[:, row : row + size]
        placed = by_row(spaces.reshape(-1), self.mesh)
        arrays = market.shared.arrays

        def encoded(stored: StoredCodes, alone: bool) -> StoredCodes:
            kept = stored if alone else jax.tree.map(jnp.copy, stored)
            found: StoredCodes = _encode_block(
                kept, placed, arrays, self.encoder, np.int32(row), size=size, mesh=self.mesh
            )
            return found

        with on_mesh(self.mesh), in_float32():
            self._holder.replace(encoded, uses_up=("values", "scales", "label_spaces"))

    def __getstate__(self) -> dict[str, Any]:
        if self.mesh is not None:
            raise TypeError(
                "an index that is spread over devices cannot be pickled; use Market.save and "
                "build the index anew"
            )
        kept = {name: value for name, value in self.__dict__.items() if name != "lock"}
        kept["_holder"], kept["encoder"] = jax.tree.map(np.asarray, (self.stored, self.encoder))
        return {**kept, "_placed_table": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.lock = threading.Lock()
        stored, self.encoder = jax.tree.map(jnp.array, (state["_holder"], self.encoder))
        self._holder = Holder(stored)


@partial(jax.jit, donate_argnums=0, static_argnames=("size", "mesh"))
def _encode_block(
    stored: StoredCodes,
    label_spaces: Array,
    market: MarketArrays,
    encoder: Encoder,
    start: Array,
    *,
    size: int,
    mesh: Mesh | None,
) -> StoredCodes:
    """Write the codes of `size` rows of every device from `start` on."""

    def local(
        stored: StoredCodes,
        label_spaces: Array,
        market: MarketArrays,
        encoder: Encoder,
        start: Array,
    ) -> StoredCodes:
        rows = {
            name: jax.lax.dynamic_slice_in_dim(getattr(market, name), start, size)
            for name in ROW_ARRAYS
        }
        values, scales = encode_rows(encoder, market.kernel, rows)
        new = StoredCodes(values, scales, label_spaces)
        return jax.tree.map(
            lambda old, part: jax.lax.dynamic_update_slice_in_dim(old, part, start, axis=0),
            stored,
            new,
        )

    if mesh is None:
        return local(stored, label_spaces, market, encoder, start)
    everywhere, split = PartitionSpec(), PartitionSpec(mesh.axis_names)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(split, split, partition_specs(mesh, market), everywhere, everywhere),
        out_specs=split,
        check_vma=False,
    )(stored, label_spaces, market, encoder, start)
