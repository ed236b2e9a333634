"""The versions of a market on disk: which there are, which is in force, and what each consists of.

`market.json`, the pointer, lists all versions that are kept; the last is in force. A version's
manifest, `versions/<name>.json`, lists its segments and which of their rows were removed. Manifests
are never changed, and the pointer is replaced in one step, so what was in force stays complete.
This file knows how both look; what is read is data, and is checked.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxspec.base import write_atomically
from jaxspec.files.bounded_json import json_text, parse_json, require
from jaxspec.files.folders.entry_columns import MAX_COUNT
from jaxspec.files.regular_files import MARKET_POINTER, read_limited
from jaxspec.market import check_precision
from jaxspec.specify import Limits

__all__ = [
    "EXTENSIONS",
    "MAX_NOTE",
    "SEGMENTS",
    "SPACES",
    "VERSIONS",
    "Manifest",
    "Pointer",
    "SegmentEntry",
    "VersionInfo",
    "manifest_text",
    "parse_manifest",
    "place_of_version",
    "read_pointer",
    "write_pointer",
]

MARKET_FORMAT = "jaxspec market"
MARKET_VERSION = 3
VERSIONS, SEGMENTS, SPACES, EXTENSIONS = "versions", "segments", "spaces", "extensions"
MAX_POINTER_BYTES = 1 << 27  # half a million versions
MAX_MANIFEST_BYTES = 1 << 28  # ten million removed learnwares
MAX_NOTE = 1000  # characters
MAX_SECONDS = 253402300799  # the end of the year 9999
_NAMES = {
    VERSIONS: re.compile(r"version-[0-9]{6,12}"),
    SEGMENTS: re.compile(r"segment-[0-9]{6,12}"),
    SPACES: re.compile(r"space-[0-9a-f]{8,64}\.safetensors"),
    EXTENSIONS: re.compile(r"[a-z]{1,32}-[0-9]{6,12}"),
}


@dataclasses.dataclass(frozen=True)
class VersionInfo:
    """What the history says about one version of a market.

    Attributes:
        name: of the version, for `rollback` and `MarketFolder(path, version=name)`.
        time: when it was written, in UTC.
        count: learnwares in it.
        change: what made it, such as "append 3".
        note: of whoever made it.
    """

    name: str
    time: datetime.datetime
    count: int
    change: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Pointer:
    """What `market.json` says.

    Attributes:
        versions: that are kept, oldest first; the last is in force.
        checksums: of the manifests of these versions.
        segments: that these versions need.
        next_number: the number of the next version, segment or extension.
        next_serial: the serial of the next learnware.
        extensions: {kind: (folder, checksum of its facts)} of what is saved beside the market.
    """

    versions: tuple[VersionInfo, ...]
    checksums: tuple[int, ...]
    segments: tuple[str, ...]
    next_number: int
    next_serial: int
    extensions: Mapping[str, tuple[str, int]]

    @property
    def current(self) -> VersionInfo:
        """The version in force."""
        return self.versions[-1]

    def place(self, name: str | None) -> int:
        """Return the place of a version in the list, of the one in force for None.

        Raises:
            ValueError: no version of this name is kept.
        """
        if name is None:
            return len(self.versions) - 1
        names = [one.name for one in self.versions]
        shown = ", ".join(names[-5:])
        require(name in names, f"version: expected one that is kept ({shown}), got {name!r:.80}")
        return names.index(name)


@dataclasses.dataclass(frozen=True)
class SegmentEntry:
    """What a manifest says about one segment.

    Attributes:
        name: of its folder.
        checksum: of its facts.
        count: learnwares in it.
        removed: ascending rows that do not belong to the version.
    """

    name: str
    checksum: int
    count: int
    removed: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """The rows that belong to the version, ascending."""
        return np.delete(np.arange(self.count), self.removed)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a version consists of.

    Attributes:
        space: the file of the space.
        space_checksum: of this file.
        precision: in which rows are stored.
        limits: of specifications that enter.
        segments: in the market's order.
    """

    space: str
    space_checksum: int
    precision: str
    limits: Limits
    segments: tuple[SegmentEntry, ...]

    @property
    def count(self) -> int:
        """Learnwares of the version."""
        return sum(one.count - len(one.removed) for one in self.segments)


def place_of_version(target: Path, name: str) -> Path:
    """Return where the manifest of a version lies."""
    return target / VERSIONS / f"{name}.json"


def read_pointer(target: Path) -> Pointer:
    """Return what `market.json` says.

    Raises:
        ValueError: not that of a market, of another version of the format, or damaged.
        OSError: it cannot be read.
    """
    file = target / MARKET_POINTER
    require(os.path.lexists(file), f"expected a market, got a place without {MARKET_POINTER}")
    require(not file.is_symlink(), f"{MARKET_POINTER}: expected a file, got a link")
    document = parse_json(MARKET_POINTER, read_limited(file, MAX_POINTER_BYTES), depth=5)
    good = isinstance(document, dict) and document.get("format") == MARKET_FORMAT
    require(good, f"{MARKET_POINTER}: expected that of a market, got {document!r:.80}")
    version = document.get("format_version")
    require(
        type(version) is int and version == MARKET_VERSION,
        f"format_version: expected {MARKET_VERSION}, got {version!r:.40}",
    )
    _check_names(MARKET_POINTER, document, ["checksum", "contents", "format", "format_version"])
    contents = document["contents"]
    good = document["checksum"] == zlib.crc32(json_text(contents).encode())
    require(good, f"{MARKET_POINTER}: its checksum is wrong, so it is damaged")
    _check_names(
        "contents",
        contents,
        ["extensions", "next_number", "next_serial", "segments", "versions"],
    )
    rows = contents["versions"]
    require(isinstance(rows, list) and rows, "versions: expected a list of at least one")
    versions, checksums = zip(*(_version_info(row) for row in rows), strict=True)
    require(len({one.name for one in versions}) == len(rows), "versions: expected different names")
    segments = contents["segments"]
    require(isinstance(segments, list), f"segments: expected a list, got {segments!r:.40}")
    extensions = contents["extensions"]
    require(isinstance(extensions, dict), f"extensions: expected an object, got {extensions!r:.40}")
    for kind, one in extensions.items():
        good = isinstance(one, list) and len(one) == 2 and type(one[1]) is int
        good = good and str(one[0]).startswith(f"{kind}-")
        require(good, f"extensions: expected a folder and a checksum, got {one!r:.80}")
    return Pointer(
        versions,
        checksums,
        tuple(_name(SEGMENTS, one) for one in segments),
        _count("next_number", contents["next_number"]),
        _count("next_serial", contents["next_serial"]),
        {kind: (_name(EXTENSIONS, one[0]), one[1]) for kind, one in extensions.items()},
    )


def write_pointer(target: Path, pointer: Pointer) -> None:
    """Replace `market.json` in one step; it is on disk when this returns."""
    contents = {
        "versions": [
            [one.name, checksum, one.time.timestamp(), one.count, one.change, one.note]
            for one, checksum in zip(pointer.versions, pointer.checksums, strict=True)
        ],
        "segments": list(pointer.segments),
        "next_number": pointer.next_number,
        "next_serial": pointer.next_serial,
        "extensions": {kind: list(one) for kind, one in pointer.extensions.items()},
    }
    document = {
        "format": MARKET_FORMAT,
        "format_version": MARKET_VERSION,
        "contents": contents,
        "checksum": zlib.crc32(json_text(contents).encode()),
    }
    write_atomically(target / MARKET_POINTER, json_text(document).encode())


def manifest_text(manifest: Manifest) -> bytes:
    """Return the contents of a manifest's file."""
    document = {
        "space": [manifest.space, manifest.space_checksum],
        "precision": manifest.precision,
        "limits": dataclasses.asdict(manifest.limits),
        "segments": [
            [one.name, one.checksum, one.count, one.removed.tolist()] for one in manifest.segments
        ],
    }
    return json_text(document).encode()


def parse_manifest(file: Path, checksum: int | None) -> Manifest:
    """Return what a version consists of.

    Args:
        file: the manifest.
        checksum: of its contents, as the pointer says; None where it is not known any more.

    Raises:
        ValueError: it is not as it must be.
        OSError: it cannot be read.
    """
    data = read_limited(file, MAX_MANIFEST_BYTES)
    good = checksum is None or zlib.crc32(data) == checksum
    require(good, f"{file.name}: its checksum is wrong, so it is damaged")
    document = parse_json(file.name, data, depth=4)
    _check_names(file.name, document, ["limits", "precision", "segments", "space"])
    space, segments = document["space"], document["segments"]
    good = isinstance(space, list) and len(space) == 2 and type(space[1]) is int
    require(good, f"space: expected a file and a checksum, got {space!r:.80}")
    require(isinstance(segments, list), f"segments: expected a list, got {segments!r:.40}")
    entries = tuple(_segment_entry(one) for one in segments)
    names = {one.name for one in entries}
    require(len(names) == len(entries), "segments: expected different names")
    limits = document["limits"]
    _check_names("limits", limits, sorted(field.name for field in dataclasses.fields(Limits)))
    precision = check_precision(document["precision"])
    return Manifest(_name(SPACES, space[0]), space[1], precision, Limits(**limits), entries)


def _check_names(what: str, document: Any, names: list[str]) -> None:
    given = sorted(document) if isinstance(document, dict) else document
    require(given == names, f"{what}: expected an object with {names}, got {given!r:.200}")


def _name(kind: str, value: Any) -> str:
    good = isinstance(value, str) and _NAMES[kind].fullmatch(value)
    require(good, f"{kind}: expected the name of one, got {value!r:.80}")
    return str(value)


def _count(name: str, value: Any) -> int:
    good = type(value) is int and 0 <= value <= MAX_COUNT
    require(good, f"{name}: expected an integer in 0..2^53, got {value!r:.40}")
    return int(value)


def _version_info(row: Any) -> tuple[VersionInfo, int]:
    require(isinstance(row, list) and len(row) == 6, f"versions: expected six values, got {row!r}")
    name, checksum, seconds, count, change, note = row
    require(type(checksum) is int, f"versions: expected a checksum, got {checksum!r:.40}")
    good = type(seconds) in (int, float) and 0 <= seconds <= MAX_SECONDS
    require(good, f"versions: expected seconds since 1970, got {seconds!r:.40}")
    good = all(isinstance(text, str) and len(text) <= MAX_NOTE for text in (change, note))
    require(good, f"versions: expected texts of at most {MAX_NOTE} characters")
    time = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return VersionInfo(_name(VERSIONS, name), time, _count("count", count), change, note), checksum


def _segment_entry(row: Any) -> SegmentEntry:
    require(isinstance(row, list) and len(row) == 4, f"segments: expected four values, got {row!r}")
    name, checksum, count, removed = row
    require(type(checksum) is int, f"segments: expected a checksum, got {checksum!r:.40}")
    size = _count("count", count)
    good = isinstance(removed, list) and all(type(one) is int for one in removed)
    good = good and all(a < b for a, b in zip(removed, removed[1:], strict=False))
    good = good and (not removed or (removed[0] >= 0 and removed[-1] < size))
    require(good and size > 0, f"removed: expected ascending rows below {size!r:.40}")
    return SegmentEntry(_name(SEGMENTS, name), checksum, size, np.array(removed, np.int64))
