"""A market as a folder on disk: how it is saved, and how all of it is loaded.

The folder's layout is described in `jaxspec.files.market_header`; Orbax writes the arrays of the
live learnwares. What was saved before stays in force until the new version is complete on disk and
one rename of `market.json` names it, so a writer that is killed leaves nothing in force. Reading
runs nothing that a file holds. Called through `Market.save` and `Market.load`; Orbax is imported on
first use. A market that is too large to load is read with `MarketFolder`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
import zlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxspec.base import reading, sync_to_disk, write_atomically
from jaxspec.files.bounded_json import json_text, require
from jaxspec.files.market_header import (
    ARRAYS,
    ENTRY_COLUMNS,
    FACTS,
    MARKET_FORMAT,
    MARKET_VERSION,
    SPACE_FILE,
    Header,
    check_entries,
    check_files,
    checksums,
    ledger_of,
    read_header,
    read_pointer,
)
from jaxspec.files.regular_files import MARKET_POINTER, check_tree, seems_to_be
from jaxspec.files.specification_files import space_to_bytes
from jaxspec.files.stored_arrays import (
    aligned_memory,
    check_declared_arrays,
    check_numbers,
    describe,
    open_arrays,
    read_into,
)
from jaxspec.market import SCHEMA, GrowingArrays, Market, capacity, finish_rows
from jaxspec.specify import About

__all__ = ["load_market", "save_market"]

STALE_SECONDS = 24 * 3600.0  # age of version folders left by an interrupted save
# Chunks are read and written in parallel. One of 4 MiB is decoded within a processor's cache:
# measured half the processor time of one of 64 MiB.
CHUNK_BYTES = 1 << 22
WARM_ROWS = 8  # as many as an `add` of one learnware writes


def save_market(market: Market, target: Path) -> None:
    """Write a market to a folder; what was there stays in force until the new one is complete.

    Raises:
        FileError: an empty market, a folder that holds something else or that cannot be made, or
            numbers that `load_market` would refuse; what was there is not changed.
    """
    import orbax.checkpoint as ocp

    with reading(target):
        _check_target(target)
        require(len(market) > 0, "expected at least one learnware, got an empty market")
        arrays, facts = _pack(market)
        space = space_to_bytes(market.space)
        json_text(facts)  # a value that JSON does not know is refused before anything is written
    version = target / f"version-{uuid.uuid4().hex[:12]}"
    with reading(target):
        version.mkdir(parents=True)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            options = {name: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES) for name in arrays}
            checkpointer.save((version / ARRAYS).absolute(), arrays, save_args=options)
            checkpointer.wait_until_finished()
        write_atomically(version / SPACE_FILE, space)
        with reading(target):
            _describe_files(version, market, facts)
        for one in version.rglob("*"):  # Orbax itself does not wait for the disk everywhere
            sync_to_disk(one)
        text = json_text(facts).encode()
        write_atomically(version / FACTS, text)
        there = (target / MARKET_POINTER).exists()
        previous = read_pointer(target)["current"] if there else None
        pointer = {
            "format": MARKET_FORMAT,
            "format_version": MARKET_VERSION,
            "current": version.name,
            "checksum": zlib.crc32(text),
        }
        write_atomically(target / MARKET_POINTER, json_text(pointer).encode())
    except BaseException:
        shutil.rmtree(version, ignore_errors=True)
        raise
    _remove_others(target, version, previous)


def load_market(target: Path, cls: type[Market] = Market) -> Market:
    """Read a folder of `save_market`: the same numbers, and room for more learnwares.

    Raises:
        FileError: not such a folder, of another version, damaged, or with a field that is not as
            it must be; the message names the folder and the field.
    """
    with reading(target):
        if not target.is_dir():
            raise ValueError(
                f"expected the folder of a market; this seems to be {seems_to_be(target)}"
            )
        header = read_header(target)
        check_files(header)
        return _loaded(header, cls)


def _check_target(target: Path) -> None:
    """Raise unless a market may be saved there."""
    require(target.is_dir() or not os.path.lexists(target), "expected a folder, got a file")
    if (target / MARKET_POINTER).exists():
        read_pointer(target)  # of a market, and of this version
    elif target.exists():
        other = [one.name for one in target.iterdir() if not one.name.startswith("version-")]
        require(not other, f"expected a market or an empty folder, got {sorted(other)[:3]!r:.80}")


def _pack(market: Market) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays of the live learnwares, and the facts without what is on disk."""
    ledger, slots = market.ledger, market.slots
    arrays = _live_arrays(market)
    names = list(ledger.names)
    used = np.unique(arrays["class_ids"])
    used = used[used >= 0]
    numbers = np.full(len(names) + 1, -1, np.int32)  # the last one is for -1, no class
    numbers[used] = np.arange(len(used))
    arrays["class_ids"] = numbers[arrays["class_ids"]]
    for name, array in arrays.items():
        check_numbers(name, array)
    entries = market.entries
    columns = {name: [_as_json(getattr(one, name)) for one in entries] for name in ENTRY_COLUMNS}
    check_entries(columns, len(slots), market.shared.layout)
    facts = {
        "precision": market.precision,
        "class_names": [names[number] for number in used],
        "ids": list(market.ids),
        "entries": columns,
    }
    return arrays, facts


def _live_arrays(market: Market) -> dict[str, np.ndarray]:
    """Return the saved arrays {name: numbers}, with rows of the live learnwares only."""
    shared, slots = market.shared, market.slots
    with shared.lock:  # the next `add` may use these arrays up
        kept = {
            name: getattr(shared.arrays, name)
            for name, one in SCHEMA.items()
            if one.saved and not (one.part and not getattr(shared.arrays, name).size)
        }
        if market.mesh is None and len(slots) == market.length:
            rows = {name: np.asarray(value)[: len(slots)] for name, value in kept.items()}
        else:
            rows = shared.take(slots)
        return {
            name: rows[name] if SCHEMA[name].per_row else np.asarray(value)
            for name, value in kept.items()
        }


def _as_json(value: Any) -> Any:
    if isinstance(value, About):
        return dict(value) or None
    return value


def _describe_files(version: Path, market: Market, facts: dict[str, Any]) -> None:
    """Add to the facts what is on disk: the arrays as they were written, and all files."""
    folder, declared = version / ARRAYS, {}
    for name, one in SCHEMA.items():
        value = getattr(market.shared.arrays, name)
        if one.saved and not (one.part and not value.size):
            described = describe(folder, name)
            declared[name] = {
                "shape": described["shape"],
                "dtype": np.dtype(value.dtype).name,
                "chunks": described["chunks"],
            }
    check_declared_arrays(declared, len(market), market.space, market.precision)
    names = [path.relative_to(version).as_posix() for path in check_tree(version, version)]
    facts["arrays"], facts["files"] = declared, checksums(version, names)


def _remove_others(target: Path, version: Path, previous: str | None) -> None:
    """Remove the version that was in force, and those that interrupted saves left long ago."""
    for one in target.glob("version-*"):
        with contextlib.suppress(OSError):  # another writer was faster
            stale = time.time() - one.stat().st_mtime > STALE_SECONDS
            if one != version and (one.name == previous or stale):
                shutil.rmtree(one)


def _loaded(header: Header, cls: type[Market]) -> Market:
    """Return the market of a checked header, with spare rows."""
    count, layout = len(header.ids), header.layout
    stores = open_arrays(header.folder / ARRAYS, header.arrays, list(header.arrays))
    origin = np.asarray(stores.pop("origin").read().result())
    check_numbers("origin", origin)
    total = capacity(count)
    empty = layout.empty(1, header.precision)
    host, rows = {}, {}
    for name, example in empty.items():
        if name not in stores and SCHEMA[name].saved:  # the market lacks this optional part
            rows[name] = jnp.zeros((total, *example.shape[1:]), example.dtype)
        elif name in stores:
            memory = aligned_memory(name, (total, *example.shape[1:]), example.dtype)
            read_into(memory[:count], stores[name]).result()
            check_numbers(name, memory[:count])
            host[name] = memory
    ledger = ledger_of(header, host["class_ids"][:count], host["has_probe"][:count])
    shared = GrowingArrays(
        header.space,
        header.precision,
        None,
        origin,
        with_landmarks=layout.landmarks > 0,
        ledger=ledger,
    )
    for name in empty:
        one = SCHEMA[name]
        if not one.saved and one.derive is not None:
            rows[name] = jnp.array(one.derive(host, host, shared.making))
    for name in list(host):
        rows[name] = jnp.array(host.pop(name))  # so that no two copies of everything exist
    shared.place(rows)
    _compile_growth(shared, count)
    return cls.from_parts(shared, count)


def _compile_growth(shared: GrowingArrays, count: int) -> None:
    """Write unused rows to the first spare ones: the first `add` finds its functions compiled."""
    layout, precision = shared.layout, shared.precision
    size = min(WARM_ROWS, shared.total - count)
    read = {
        name: value
        for name, value in layout.empty(size, "float32").items()
        if SCHEMA[name].read is not None
    }
    read["has_probe"] = np.full(size, float(layout.landmarks > 0), np.float32)
    finish_rows(read, shared.making)
    shared.write(count, layout.empty(size, precision))
