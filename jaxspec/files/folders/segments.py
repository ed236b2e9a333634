"""Segments: the learnwares of one commit on disk, which are never changed after it.

A segment is a folder with `facts.json` (ids, class names, metadata, shapes and types of the arrays,
checksums of all files) and `arrays`. Which arrays there are, and of which shapes and types, follows
from `jaxspec.market.schema`. `write_segment` writes one, `read_segment` checks all of one except
its numbers, and `enter_segment` notes what it says in a ledger. What is read is data.
"""

from __future__ import annotations

import dataclasses
import unicodedata
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxspec.base import write_atomically
from jaxspec.files.bounded_json import json_text, parse_json, require
from jaxspec.files.folders.checksums import checksums, make_durable
from jaxspec.files.folders.entry_columns import ENTRY_COLUMNS, MAX_COUNT, check_entries
from jaxspec.files.folders.row_checks import check_numbers, check_rows
from jaxspec.files.folders.stored_arrays import (
    StoredArray,
    check_declared_arrays,
    declare,
    expected_files,
    write_arrays,
)
from jaxspec.files.regular_files import check_tree, read_limited
from jaxspec.market import MAX_ID, Entry, Layout, Ledger, Rows
from jaxspec.specify import MAX_NAME, About, Space

if TYPE_CHECKING:
    from jaxspec.files.folders.learnwares import Learnwares

__all__ = [
    "ARRAYS",
    "FACTS",
    "Segment",
    "check_files",
    "enter_segment",
    "read_segment",
    "runs_of",
    "serials_of",
    "write_segment",
]

FACTS = "facts.json"
ARRAYS = "arrays"
MAX_FACTS_BYTES = 1 << 31  # ten million learnwares with 200 bytes each
FACTS_DEPTH = 4  # metadata in a column, in the columns, in the facts


@dataclasses.dataclass(frozen=True)
class Segment:
    """Everything that a segment says about itself except its numbers, checked.

    Attributes:
        folder: where it lies.
        ids: of its learnwares.
        serials: (n,) of its learnwares, ascending.
        class_names: by number, as in the array `class_ids`.
        entries: {field of `Entry`: n values as JSON}, without class names.
        arrays: {name: shape, type and chunks}; arrays of absent optional parts are left out.
        layout: the padded sizes of its rows.
        files: {file below `folder`: (bytes, CRC-32)} of all files except the facts.
    """

    folder: Path
    ids: list[str]
    serials: np.ndarray
    class_names: list[str]
    entries: dict[str, list[Any]]
    arrays: dict[str, StoredArray]
    layout: Layout
    files: dict[str, tuple[int, int]]


def write_segment(folder: Path, learnwares: Learnwares, space: Space) -> int:
    """Write a segment to a new folder, and return the checksum of its facts.

    All of it is on disk when this returns, but for the folder's own name.

    Args:
        folder: of the segment.
        learnwares: what is written.
        space: of the market.

    Raises:
        ValueError, TypeError: something that `read_segment` would refuse.
        OSError: it cannot be written.
    """
    count = len(learnwares.ids)
    declared, block = declare(learnwares.shapes(), count)
    fixed, whole = declare({"origin": ((), np.dtype(np.float32))}, len(learnwares.origin))
    check_numbers("origin", learnwares.origin)
    arrays = {name: one.as_json() for name, one in {**declared, **fixed}.items()}
    check_declared_arrays(arrays, count, space, learnwares.precision)
    check_entries(learnwares.entries, count, learnwares.layout)
    facts = {
        "ids": learnwares.ids,
        "serials": runs_of(learnwares.serials),
        "class_names": learnwares.class_names,
        "entries": learnwares.entries,
        "arrays": arrays,
        "files": {},
    }
    json_text(facts)  # a value that JSON does not know is refused before anything is written

    def read(first: int, last: int) -> Rows:
        rows = learnwares.read(first, last)
        check_rows(rows, lambda row: learnwares.ids[first + row])
        return rows

    folder.mkdir()
    write_arrays(folder / ARRAYS, declared, block, read)
    write_arrays(folder / ARRAYS, fixed, whole, lambda *_: {"origin": learnwares.origin})
    facts["files"] = make_durable(folder)
    text = json_text(facts).encode()
    write_atomically(folder / FACTS, text)
    return zlib.crc32(text)


def read_segment(folder: Path, checksum: int, count: int, space: Space, precision: str) -> Segment:
    """Read and check what a segment says about itself, without its numbers.

    Args:
        folder: of the segment.
        checksum: of its facts.
        count: learnwares in it.
        space: of the market.
        precision: in which rows are stored.

    Raises:
        ValueError, TypeError, OSError: something is not as it must be.
    """
    name = folder.name
    require(folder.is_dir(), f"segments: expected a folder {name}, got none")
    there = {path.relative_to(folder).as_posix(): path for path in check_tree(folder, folder)}
    require(FACTS in there, f"{FACTS}: expected this file, got the segment {name} without it")
    data = read_limited(there.pop(FACTS), MAX_FACTS_BYTES)
    require(zlib.crc32(data) == checksum, f"{FACTS}: its checksum is wrong, in {name}")
    facts = parse_json(FACTS, data, depth=FACTS_DEPTH)
    names = ["arrays", "class_names", "entries", "files", "ids", "serials"]
    given = sorted(facts) if isinstance(facts, dict) else facts
    require(given == names, f"{FACTS}: expected an object with {names}, got {given!r:.200}")
    ids = _different_strings("ids", facts["ids"], MAX_ID)
    require(len(ids) == count, f"ids: expected {count}, as the version says, got {len(ids)}")
    arrays, layout = check_declared_arrays(facts["arrays"], count, space, precision)
    check_entries(facts["entries"], count, layout)
    return Segment(
        folder=folder,
        ids=ids,
        serials=serials_of(facts["serials"], count),
        class_names=_class_names(facts["class_names"]),
        entries=facts["entries"],
        arrays=arrays,
        layout=layout,
        files=_checked_files(facts["files"], there, arrays),
    )


def check_files(segment: Segment, progress: Callable[[int], None] | None = None) -> None:
    """Read all files and check that they are those that were written.

    Raises:
        ValueError: one is not.
    """
    found = checksums(segment.folder, list(segment.files), progress)
    for name, one in found.items():
        good = one == segment.files[name]
        require(good, f"{segment.folder.name}/{name}: its checksum is wrong, so it is damaged")


def enter_segment(
    ledger: Ledger, segment: Segment, class_ids: np.ndarray, has_probe: np.ndarray, kept: np.ndarray
) -> np.ndarray:
    """Note the learnwares of a segment in a ledger, and return the ledger's numbers of its names.

    Args:
        ledger: what is noted in.
        segment: which one.
        class_ids: (n, C) int32 of all learnwares in it; they are checked.
        has_probe: (n,) of all learnwares in it; it must say what the entries say.
        kept: (k,) rows of the learnwares to note.

    Returns:
        (names + 1,) int32, the ledger's number of each of its class names, and -1 at the end, so
        that numbers are exchanged by indexing. Names of which no row is kept have -2.

    Raises:
        ValueError: arrays that the facts contradict.
    """
    spaces, space_of = _label_spaces(class_ids, segment.class_names)
    said = np.array([value is not None for value in segment.entries["fidelity"]])
    good = np.array_equal(has_probe, said.astype(has_probe.dtype))
    require(good, "has_probe: expected one where there is a fidelity, and else zero")
    empty = About()
    columns = [
        [empty if column[row] is None else About(column[row]) for row in kept]
        if ENTRY_COLUMNS[name] is About
        else [column[row] for row in kept]
        for name, column in segment.entries.items()
    ]
    names = list(segment.entries)
    for row, *values in zip(kept.tolist(), *columns, strict=True):
        entry = Entry(spaces[space_of[row]], **dict(zip(names, values, strict=True)))
        ledger.enter(segment.ids[row], entry)
    used = np.unique(class_ids[kept])
    numbering = np.full(len(segment.class_names) + 1, -2, np.int32)
    numbering[-1] = -1
    at = used[used >= 0]
    numbering[at] = ledger.number_names([segment.class_names[number] for number in at])
    return numbering


def serials_of(runs: Any, count: int) -> np.ndarray:
    """Return the serials of learnwares from their runs in JSON: first, length, first, length.

    Raises:
        ValueError: they are not ascending, or not those of `count` learnwares.
    """
    good = isinstance(runs, list) and len(runs) % 2 == 0
    good = good and all(type(one) is int and 0 <= one <= MAX_COUNT for one in runs)
    good = good and sum(runs[1::2]) == count
    require(good, f"serials: expected the first and length of every run, {count} in all")
    parts = [
        np.arange(first, first + size) for first, size in zip(runs[::2], runs[1::2], strict=True)
    ]
    serials = np.concatenate([np.zeros(0, np.int64), *parts])
    require((np.diff(serials) > 0).all(), "serials: expected ascending numbers")
    return serials


def runs_of(serials: np.ndarray) -> list[int]:
    """Return ascending numbers as the first and the length of every run."""
    first = np.flatnonzero(np.diff(serials, prepend=serials[:1] - 2) != 1)
    length = np.diff(first, append=len(serials))
    return np.stack([serials[first], length], axis=1).ravel().tolist()


def _different_strings(name: str, values: Any, longest: int) -> list[str]:
    good = isinstance(values, list) and all(
        isinstance(one, str) and 0 < len(one) <= longest for one in values
    )
    good = good and len(values) == len(set(values))
    require(good, f"{name}: expected different, non-empty strings of at most {longest} characters")
    return list(values)


def _class_names(values: Any) -> list[str]:
    names = _different_strings("class_names", values, MAX_NAME)
    good = all(name.strip() and unicodedata.is_normalized("NFC", name) for name in names)
    require(good, "class_names: expected names in Unicode's form NFC that are not only spaces")
    return names


def _checked_files(
    files: Any, there: Mapping[str, Path], arrays: Mapping[str, StoredArray]
) -> dict[str, tuple[int, int]]:
    """Check the list of files against those that there are and against the declared arrays."""
    good = isinstance(files, dict) and all(
        isinstance(one, list) and [type(value) for value in one] == [int, int]
        for one in files.values()
    )
    require(good, "files: expected {name: [bytes, checksum]}")
    expected: dict[str, int | None] = {}
    for name, stored in arrays.items():
        expected.update(
            {f"{ARRAYS}/{file}": size for file, size in expected_files(name, stored).items()}
        )
    for names, got in ((there, "segment"), (files, "list")):
        missing = sorted(expected.keys() - names.keys())
        other = sorted(names.keys() - expected.keys())
        require(not missing, f"{missing[:1]!r:.200}: expected this file, got a {got} without it")
        require(not other, f"{other[:1]!r:.200}: expected no such file, got a {got} with it")
    for name, (size, _) in files.items():
        wanted, found = expected[name], there[name].stat().st_size
        require(
            wanted is None or size == wanted,
            f"{name}: expected {wanted} bytes, as its array is declared, got {size}",
        )
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
    good &= all(len(set(one)) == len(one) != 1 for one in spaces)
    require(good, f"class_ids: expected rows of different numbers in 0..{len(names) - 1}")
    return [tuple(names[number] for number in one) for one in spaces], space_of.ravel().tolist()
