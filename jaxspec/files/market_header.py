"""What a market on disk says about itself beside its numbers: pointer, header and space.

A saved market is a folder. `market.json` names the version folder in force, which holds
`facts.json` (ids, class names, metadata, shapes, checksums), `space.safetensors` and `arrays`.
`read_header` checks all of it except the numbers; `ledger_of` makes the ledger. Which arrays there
are, and of which shapes and types, follows from `jaxspec.market.schema`. What is read is data, and
nothing here writes.
"""

from __future__ import annotations

import dataclasses
import re
import typing
import unicodedata
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxspec.files.bounded_json import parse_json, require
from jaxspec.files.regular_files import MARKET_POINTER, check_tree, open_regular, read_limited
from jaxspec.files.specification_files import space_from_file
from jaxspec.files.stored_arrays import StoredArray, check_declared_arrays
from jaxspec.market import MAX_ID, Entry, Layout, Ledger, check_precision
from jaxspec.specify import FORMAT_VERSION, MAX_NAME, About, Space

__all__ = [
    "ARRAYS",
    "ENTRY_COLUMNS",
    "FACTS",
    "MARKET_FORMAT",
    "MARKET_VERSION",
    "SPACE_FILE",
    "Header",
    "check_entries",
    "check_files",
    "checksums",
    "ledger_of",
    "read_header",
    "read_pointer",
]

MARKET_FORMAT = "jaxspec market"
MARKET_VERSION = 2
FACTS = "facts.json"
SPACE_FILE = "space.safetensors"
ARRAYS = "arrays"
MAX_POINTER_BYTES = 1 << 16
MAX_FACTS_BYTES = 1 << 31  # ten million learnwares with 200 bytes each
FACTS_DEPTH = 4  # metadata in a column, in the columns, in the header
MAX_COUNT = 2**53  # JSON readers in other languages hold integers up to here
ENTRY_COLUMNS = {
    name: hint for name, hint in typing.get_type_hints(Entry).items() if name != "class_names"
}


@dataclasses.dataclass(frozen=True)
class Header:
    """Everything that a market on disk says about itself except its numbers, checked.

    Attributes:
        folder: the version folder that is in force.
        version: its name, and the checksum of its facts.
        space: of all learnwares.
        precision: in which rows are stored.
        ids: of the M learnwares.
        class_names: by number, as in the array `class_ids`.
        entries: {field of `Entry`: M values as JSON}, without class names.
        arrays: {name: shape, type and chunks}; arrays of absent optional parts are left out.
        layout: the padded sizes of its rows.
        files: {file below `folder`: (bytes, CRC-32)} of all files except the facts.
    """

    folder: Path
    version: str
    space: Space
    precision: str
    ids: list[str]
    class_names: list[str]
    entries: dict[str, list[Any]]
    arrays: dict[str, StoredArray]
    layout: Layout
    files: dict[str, tuple[int, int]]


def read_pointer(target: Path) -> dict[str, Any]:
    """Return the contents of `market.json`.

    Raises:
        ValueError: not that of a market, or of another version.
    """
    file = target / MARKET_POINTER
    require(file.exists(), f"expected a market, got a place without {MARKET_POINTER}")
    inside = file.resolve().is_relative_to(target.resolve())
    require(inside, f"{MARKET_POINTER}: expected a file, got a link that leads elsewhere")
    pointer = parse_json(MARKET_POINTER, read_limited(file, MAX_POINTER_BYTES), depth=2)
    good = isinstance(pointer, dict) and pointer.get("format") == MARKET_FORMAT
    require(good, f"{MARKET_POINTER}: expected that of a market, got {pointer!r:.80}")
    version = pointer.get("format_version")
    require(
        type(version) is int and version == MARKET_VERSION,
        f"format_version: expected {MARKET_VERSION}, got {version!r:.40}",
    )
    current = pointer.get("current")
    known = isinstance(current, str) and re.fullmatch(r"version-[0-9a-f]{12}", current)
    require(known, f"current: expected the name of a version, got {current!r:.40}")
    checksum = pointer.get("checksum")
    require(type(checksum) is int, f"checksum: expected an integer, got {checksum!r:.40}")
    return pointer


def read_header(target: Path) -> Header:
    """Read and check what a saved market says about itself, without its numbers.

    Raises:
        ValueError, TypeError, OSError: something is not as it must be.
    """
    pointer = read_pointer(target)
    folder = target / pointer["current"]
    require(folder.is_dir(), f"current: expected a folder {folder.name}, got none")
    there = {path.relative_to(folder).as_posix(): path for path in check_tree(folder, target)}
    require(FACTS in there, f"{FACTS}: expected this file, got a version without it")
    data = read_limited(there.pop(FACTS), MAX_FACTS_BYTES)
    require(zlib.crc32(data) == pointer["checksum"], f"{FACTS}: its checksum is wrong")
    facts = parse_json(FACTS, data, depth=FACTS_DEPTH)
    names = ["arrays", "class_names", "entries", "files", "ids", "precision"]
    given = sorted(facts) if isinstance(facts, dict) else facts
    require(given == names, f"{FACTS}: expected an object with {names}, got {given!r:.200}")
    files = _checked_files(facts["files"], there)
    space = space_from_file(folder / SPACE_FILE)
    ids = _different_strings("ids", facts["ids"], MAX_ID)
    arrays, layout = check_declared_arrays(
        facts["arrays"], len(ids), space, check_precision(facts["precision"])
    )
    check_entries(facts["entries"], len(ids), layout)
    return Header(
        folder=folder,
        version=f"{folder.name} {pointer['checksum']}",
        space=space,
        precision=facts["precision"],
        ids=ids,
        class_names=_class_names(facts["class_names"]),
        entries=facts["entries"],
        arrays=arrays,
        layout=layout,
        files=files,
    )


def check_entries(entries: Any, count: int, layout: Layout) -> None:
    """Check the columns of the ledger, as they are in JSON.

    Raises:
        ValueError: they are not those of `count` entries; the message names the column.
    """
    good = isinstance(entries, dict) and set(entries) == set(ENTRY_COLUMNS)
    require(good, f"entries: expected the columns {sorted(ENTRY_COLUMNS)}")
    for name, hint in ENTRY_COLUMNS.items():
        column = entries[name]
        good = isinstance(column, list) and len(column) == count
        require(good, f"{name}: expected a list of {count} values")
        wanted, check = _COLUMN_CHECKS[hint]
        require(check(column), f"{name}: expected {wanted}")
    low, high = min(entries["size"]), max(entries["size"])
    good = low >= 1 and high <= layout.points
    require(good, f"size: expected values in 1..{layout.points}, got {low}..{high}")
    others = set(entries["format_version"]) - {FORMAT_VERSION}
    require(not others, f"format_version: expected {FORMAT_VERSION}, got {sorted(others)[:3]}")


def check_files(header: Header) -> None:
    """Read all files and check that they are those that were written.

    Raises:
        ValueError: one is not.
    """
    for name, found in checksums(header.folder, list(header.files)).items():
        require(found == header.files[name], f"{name}: its checksum is wrong, so it is damaged")


def checksums(folder: Path, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return {name: (bytes, CRC-32)} of files below a folder."""
    found = {}
    for name in names:
        checksum = 0
        with open_regular(folder / name) as (file, size):
            while block := file.read(1 << 24):
                checksum = zlib.crc32(block, checksum)
        found[name] = (size, checksum)
    return found


def ledger_of(header: Header, class_ids: np.ndarray, has_probe: np.ndarray) -> Ledger:
    """Return ids, class names and metadata as a market keeps them.

    Args:
        header: of the market.
        class_ids: (M, C) int32 of all learnwares; they are checked.
        has_probe: (M,) of all learnwares; it must say what the entries say.

    Raises:
        ValueError: arrays that the header contradicts.
    """
    spaces, space_of = _label_spaces(class_ids, header.class_names)
    fidelity = header.entries["fidelity"]
    said = np.array([value is not None for value in fidelity])
    good = np.array_equal(has_probe, said.astype(has_probe.dtype))
    require(good, "has_probe: expected one where there is a fidelity, and else zero")
    ledger = Ledger()
    ledger.names = {name: number for number, name in enumerate(header.class_names)}
    empty = About()
    columns = [
        [empty if value is None else About(value) for value in column]
        if ENTRY_COLUMNS[name] is About
        else column
        for name, column in header.entries.items()
    ]
    names = list(header.entries)
    for learnware, space, *values in zip(header.ids, space_of, *columns, strict=True):
        ledger.enter(learnware, Entry(spaces[space], **dict(zip(names, values, strict=True))))
    return ledger


def _are_counts(column: list[Any]) -> bool:
    return {type(value) for value in column} == {int} and 0 <= min(column) <= max(
        column
    ) <= MAX_COUNT


def _are_shares(column: list[Any]) -> bool:
    values = [value for value in column if value is not None]
    kinds = {type(value) for value in values}
    return kinds <= {float, int} and all(0 <= value <= 1 for value in values)


def _are_objects(column: list[Any]) -> bool:
    return all(value is None or isinstance(value, dict) for value in column)


# How the columns of the ledger look in JSON, by the type of the field of `Entry`.
_COLUMN_CHECKS: Mapping[Any, tuple[str, Callable[[list[Any]], bool]]] = {
    int: ("integers in 0..2^53", _are_counts),
    bool: ("booleans", lambda column: {type(value) for value in column} == {bool}),
    float | None: ("numbers in 0..1 or null", _are_shares),
    About: ("objects or null", _are_objects),
}


def _different_strings(name: str, values: Any, longest: int) -> list[str]:
    good = isinstance(values, list) and all(
        isinstance(one, str) and 0 < len(one) <= longest for one in values
    )
    good = good and 0 < len(values) == len(set(values))
    require(good, f"{name}: expected different, non-empty strings of at most {longest} characters")
    return list(values)


def _class_names(values: Any) -> list[str]:
    names = _different_strings("class_names", values, MAX_NAME)
    good = all(name.strip() and unicodedata.is_normalized("NFC", name) for name in names)
    require(good, "class_names: expected names in Unicode's form NFC that are not only spaces")
    return names


def _checked_files(files: Any, there: Mapping[str, Path]) -> dict[str, tuple[int, int]]:
    """Check the list of files against those that there are, by name and size."""
    good = isinstance(files, dict) and all(
        isinstance(one, list) and [type(value) for value in one] == [int, int]
        for one in files.values()
    )
    require(good, "files: expected {name: [bytes, checksum]}")
    require(SPACE_FILE in files, f"files: expected {SPACE_FILE}, got a list without it")
    missing, other = sorted(files.keys() - there.keys()), sorted(there.keys() - files.keys())
    require(not missing, f"{missing[:1]!r:.200}: expected this file, got a version without it")
    require(not other, f"{other[:1]!r:.200}: expected no such file in a market")
    for name, (size, _) in files.items():
        found = there[name].stat().st_size
        require(found == size, f"{name}: expected {size} bytes, got {found}, so it is damaged")
    return {name: (size, checksum) for name, (size, checksum) in files.items()}


def _label_spaces(
    class_ids: np.ndarray, names: Sequence[str]
) -> tuple[list[tuple[str, ...]], list[int]]:
    """Return the different tuples of class names, and which of them each learnware has."""
    # Rows are compared as bytes: np.unique along an axis takes nine times as long.
    ids = np.ascontiguousarray(class_ids)
    keys = ids.view(np.dtype((np.void, ids.itemsize * ids.shape[1])))
    _, first, space_of = np.unique(keys, return_index=True, return_inverse=True)
    rows = ids[first]
    sizes = (rows >= 0).sum(axis=1)
    spaces = [row[:size].tolist() for row, size in zip(rows, sizes, strict=True)]
    good = -1 <= rows.min() <= rows.max() < len(names)
    good &= bool(((rows >= 0) == (np.arange(rows.shape[1]) < sizes[:, None])).all())
    good &= all(len(set(one)) == len(one) >= 2 for one in spaces)
    require(good, f"class_ids: expected rows of different numbers in 0..{len(names) - 1}")
    return [tuple(names[number] for number in one) for one in spaces], space_of.ravel().tolist()
