"""Extensions on disk, such as an index: what is saved beside a market and goes with it.

An extension is a folder in `extensions` with its facts and arrays, in force as `market.json` says.
Its rows are known by the serials of the learnwares, so an extension stays right through appends,
removals, compactions and rollbacks: what it does not know yet, its class makes up for when it is
loaded. `Market.save`, which replaces everything, drops extensions. Called through `save` and `load`
of subclasses of `MarketExtension`.
"""

from __future__ import annotations

import os
import shutil
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxspec.base import FileLock, pad_to, reading, register_format, sync_to_disk, write_atomically
from jaxspec.files.bounded_json import json_text, parse_json, require
from jaxspec.files.folders.checksums import checksums, make_durable
from jaxspec.files.folders.commits import writing
from jaxspec.files.folders.opened_version import PAUSE_SECONDS, WAIT_SECONDS, lease
from jaxspec.files.folders.segments import ARRAYS, FACTS, runs_of, serials_of
from jaxspec.files.folders.stored_arrays import (
    StoredArray,
    declare,
    expected_files,
    open_array,
    reading_context,
    stored_array,
    write_arrays,
)
from jaxspec.files.folders.versions import EXTENSIONS, read_pointer
from jaxspec.files.folders.view import View, view_of
from jaxspec.files.folders.whole_market import commit_market, load_rows
from jaxspec.files.regular_files import check_tree, read_limited
from jaxspec.market import SCHEMA, Market, MarketExtension, PackedExtension

__all__ = ["load_extension", "save_extension"]

T = TypeVar("T", bound=MarketExtension)

MAX_FACTS_BYTES = 1 << 28
FACTS_DEPTH = 7
TYPES = {name: np.dtype(name) for name in ("float32", "int8", "uint8", "int32")}
# Two markets of the same ids, names and of these numbers are taken for the same market.
COMPARED = ("weights", "self_terms", "class_bias", "has_probe")


def save_extension(extension: MarketExtension, target: Path) -> None:
    """Write an extension beside its market; the market is written too unless it is there.

    Raises:
        FileError: it cannot be written; what was there is not changed.
    """
    kind, market = extension.kind, extension.market
    packed = extension.pack()
    with reading(target), writing(target, create=True) as writer:
        view = None if writer.pointer is None else view_of(target)
        if view is None or not _is_of(view, market):
            commit_market(writer, market)
            view = view_of(target)
        name = f"{kind}-{writer.next_number:06d}"
        folder = target / EXTENSIONS / name
        folder.parent.mkdir(exist_ok=True)
        if folder.exists():  # a killed writer left it
            shutil.rmtree(folder)
        try:
            checksum = _write(folder, kind, view.serials(), packed)
            sync_to_disk(folder.parent)
            writer.replace_extension(kind, name, checksum)
        except BaseException:
            if writer.pointer is None or name not in dict(writer.pointer.extensions.values()):
                shutil.rmtree(folder, ignore_errors=True)
            raise


def load_extension(target: Path, cls: type[T]) -> T:
    """Return the extension of the market's version in force.

    Raises:
        FileError: there is none, or the market or the extension is damaged.
    """
    with reading(target):
        view = view_of(target, verify=True)
        try:
            serials, packed = _read(target, cls.kind)
            wanted = view.serials()
            market = load_rows(view, only_use=True)
        finally:
            view.close()
        place = np.searchsorted(serials, wanted).clip(0, len(serials) - 1)
        places = np.where(serials[place] == wanted, place, -1)
        return cls.unpack(market, packed, places)


def _is_of(view: View, market: Market) -> bool:
    """Tell whether a version on disk is this market in memory."""
    own = (market.ids, market.space.digest, market.precision)
    if own != (view.ids, view.opened.space.digest, view.contents.precision):
        return False
    if view.ledger.entries != market.entries:
        return False
    stored = view.contents.memory(COMPARED, len(view))
    view.contents.start(stored, 0, len(view)).wait()
    layout = view.contents.layout.joined(market.shared.layout)
    arrays, rows = market.shared.arrays, market.rows
    mine = {name: np.asarray(getattr(arrays, name)) for name in COMPARED}
    for name in COMPARED:
        shape = layout.shape(SCHEMA[name].axes, len(view))
        own_rows = pad_to(mine[name][rows], shape)
        if not np.array_equal(pad_to(stored[name], shape), own_rows):
            return False
    return True


def _write(folder: Path, kind: str, serials: np.ndarray, packed: PackedExtension) -> int:
    """Write an extension to a new folder, and return the checksum of its facts."""
    rows = {name: np.asarray(value) for name, value in packed.rows.items()}
    fixed = {name: np.asarray(value) for name, value in packed.fixed.items()}
    for name, value in {**rows, **fixed}.items():
        known = value.dtype.name in TYPES and value.ndim and value.size
        require(known, f"{name}: expected numbers of {sorted(TYPES)}, got {value.dtype}")
    folder.mkdir()
    shapes = {name: (value.shape[1:], value.dtype) for name, value in rows.items()}
    declared, block = declare(shapes, len(serials))
    place = folder / ARRAYS
    write_arrays(place, declared, block, lambda a, b: {n: v[a:b] for n, v in rows.items()})
    for name, value in fixed.items():
        one, size = declare({name: (value.shape[1:], value.dtype)}, len(value))
        declared.update(one)
        write_arrays(place, one, size, _reader(name, value))
    facts = {
        "kind": kind,
        "serials": runs_of(serials),
        "rows": {name: declared[name].as_json() for name in rows},
        "fixed": {name: declared[name].as_json() for name in fixed},
        "facts": dict(packed.facts),
        "files": make_durable(folder),
    }
    text = json_text(facts).encode()
    write_atomically(folder / FACTS, text)
    return zlib.crc32(text)


def _reader(name: str, value: np.ndarray) -> Callable[[int, int], dict[str, np.ndarray]]:
    return lambda first, last: {name: value[first:last]}


def _read(target: Path, kind: str) -> tuple[np.ndarray, PackedExtension]:
    """Return the serials and the contents of the extension in force."""
    until = time.monotonic() + WAIT_SECONDS
    while True:
        pointer = read_pointer(target)
        there = ", ".join(sorted(pointer.extensions)) or "none"
        known = kind in pointer.extensions
        require(known, f"extensions: expected one of the kind {kind!r}, got {there}")
        name, checksum = pointer.extensions[kind]
        folder, lock = target / EXTENSIONS / name, None
        try:
            require(not os.path.islink(folder), f"{name}: expected a folder, got a link")
            lock = lease(folder / FACTS)
            return _read_folder(folder, kind, checksum)
        except (OSError, ValueError):  # it was replaced before the lease was held
            if read_pointer(target) == pointer or time.monotonic() > until:
                raise
        finally:
            if isinstance(lock, FileLock):
                lock.close()
        time.sleep(PAUSE_SECONDS)


def _read_folder(folder: Path, kind: str, checksum: int) -> tuple[np.ndarray, PackedExtension]:
    there = {path.relative_to(folder).as_posix(): path for path in check_tree(folder, folder)}
    require(FACTS in there, f"{FACTS}: expected this file, got an extension without it")
    data = read_limited(there.pop(FACTS), MAX_FACTS_BYTES)
    require(zlib.crc32(data) == checksum, f"{folder.name}/{FACTS}: its checksum is wrong")
    facts = parse_json(FACTS, data, depth=FACTS_DEPTH)
    names = ["facts", "files", "fixed", "kind", "rows", "serials"]
    given = sorted(facts) if isinstance(facts, dict) else facts
    require(given == names, f"{FACTS}: expected an object with {names}, got {given!r:.200}")
    require(facts["kind"] == kind, f"kind: expected {kind!r}, got {facts['kind']!r:.40}")
    for part in ("rows", "fixed", "facts", "files"):
        require(isinstance(facts[part], dict), f"{part}: expected an object")
    declared = {
        name: stored_array(name, one, TYPES)
        for name, one in {**facts["rows"], **facts["fixed"]}.items()
    }
    counts = {declared[name].shape[0] for name in facts["rows"]}
    require(len(counts) == 1, "rows: expected arrays of one length")
    (count,) = counts
    _check_files(folder, facts["files"], there, declared)
    context = reading_context()
    found = {}
    for name, stored in declared.items():
        store = open_array(folder / ARRAYS, name, stored, context)
        found[name] = np.array(store.read().result())
        finite = found[name].dtype.kind != "f" or np.isfinite(found[name]).all()
        require(finite, f"{name}: expected finite numbers, got NaN or infinity")
    return serials_of(facts["serials"], count), PackedExtension(
        {name: found[name] for name in facts["rows"]},
        {name: found[name] for name in facts["fixed"]},
        facts["facts"],
    )


def _check_files(
    folder: Path,
    files: Mapping[str, Any],
    there: Mapping[str, Path],
    declared: Mapping[str, StoredArray],
) -> None:
    """Compare the files with the declared arrays, and their checksums with the facts."""
    expected: dict[str, int | None] = {}
    for name, stored in declared.items():
        plain = name.isidentifier()
        require(plain, f"{name!r:.80}: expected the name of an array")
        sizes = expected_files(name, stored)
        expected.update({f"{ARRAYS}/{file}": size for file, size in sizes.items()})
    same = expected.keys() == there.keys() == files.keys()
    require(same, "files: expected those of the declared arrays, got others")
    for name, size in expected.items():
        found = there[name].stat().st_size
        require(size in (None, found), f"{name}: expected {size} bytes, got {found}")
    for name, one in checksums(folder, list(files)).items():
        require(list(one) == files[name], f"{name}: its checksum is wrong, so it is damaged")


register_format(MarketExtension, save=save_extension, load=load_extension)  # type: ignore[type-abstract]
