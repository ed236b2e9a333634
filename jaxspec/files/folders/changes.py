"""Changes of a market on disk: each puts a new version in force and returns it, open.

A change is made to the version in force, also where the one who asks has an older one open. It
writes what is new: an append or an update one segment, a removal a list of rows. Small segments are
merged now and then, `FAN_OUT` of about one size at a time, so that a market has few of them and a
learnware is written again only as often as the logarithm of the market's size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxspec.base import reading
from jaxspec.files.bounded_json import require
from jaxspec.files.folders.commits import Writer, writing
from jaxspec.files.folders.contents import Part
from jaxspec.files.folders.learnwares import Learnwares, joined, of_contents, of_specifications
from jaxspec.files.folders.opened_version import OpenedVersion, lease
from jaxspec.files.folders.segments import enter_segment, read_segment
from jaxspec.files.folders.versions import (
    SEGMENTS,
    SegmentEntry,
    VersionInfo,
    parse_manifest,
    place_of_version,
)
from jaxspec.files.folders.view import View, view_of
from jaxspec.specify import Limits, Space, Specification

__all__ = ["append", "compact", "create", "remove", "roll_back", "update"]

FAN_OUT = 16  # segments of about one size that are merged into one


def create(
    target: Path,
    space: Space,
    specifications: Mapping[str, Specification],
    precision: str,
    limits: Limits,
) -> View:
    """Put the first version of a market in force, in a folder that has none.

    Raises:
        FileError: there is a market, or something else, or it cannot be written.
    """
    with reading(target), writing(target, create=True) as writer:
        require(writer.pointer is None, "expected a new folder, got one with a market")
        new = None
        if specifications:
            new = of_specifications(
                specifications, space, precision, contents=None, first_serial=writer.next_serial
            )
        change = f"create with {len(specifications)}"
        info = writer.commit(space, precision, [], new, limits=limits, change=change)
        return view_of(target, info.name)


def append(
    target: Path, known: View, specifications: Mapping[str, Specification], note: str
) -> View:
    """Add checked specifications.

    Args:
        target: the folder.
        known: the version that the caller has open.
        specifications: {id: specification}, at least one.
        note: for the history.

    Raises:
        ValueError: an id that is in the market already. Nothing is changed then.
        FileError: it cannot be written.
    """
    with _changing(target, known) as (writer, view):
        for learnware in specifications:
            if view.row_of(learnware) is not None:
                raise ValueError(
                    f"id: {learnware!r:.80} is in the market already; `update` replaces it"
                )
        with reading(target):
            return _with(target, writer, view, specifications, [], "append", note)


def update(
    target: Path, known: View, specifications: Mapping[str, Specification], note: str
) -> View:
    """Replace learnwares by checked specifications; arguments and errors as of `append`.

    Raises:
        KeyError: an id that is not in the market. Nothing is changed then.
    """
    with _changing(target, known) as (writer, view):
        rows = _rows(view, list(specifications))
        with reading(target):
            return _with(target, writer, view, specifications, rows, "update", note)


def remove(target: Path, known: View, ids: Sequence[str], note: str) -> View:
    """Remove learnwares; arguments and errors as of `update`."""
    with _changing(target, known) as (writer, view):
        rows = _rows(view, ids)
        with reading(target):
            opened = view.opened
            info = writer.commit(
                opened.space,
                opened.manifest.precision,
                _without(view, rows),
                None,
                limits=opened.manifest.limits,
                change=f"remove {len(rows)}",
                note=note,
            )
            return view_of(target, info.name)


def compact(target: Path, known: View, keep: int, note: str) -> View:
    """Write all learnwares to one segment, and forget all but the last `keep` versions."""
    with _changing(target, known) as (writer, view), reading(target):
        opened = view.opened
        info = writer.commit(
            opened.space,
            opened.manifest.precision,
            [],
            _everything(view) if len(view) else None,
            limits=opened.manifest.limits,
            change="compact",
            note=note,
            keep=keep,
        )
        return view_of(target, info.name)


def roll_back(target: Path, known: View, name: str, note: str) -> View:
    """Put the contents of an earlier version in force again, as a new version."""
    with reading(target), _changing(target, known) as (writer, view):
        assert writer.pointer is not None
        at = writer.pointer.place(name)
        checksum = writer.pointer.checksums[at]
        manifest = parse_manifest(place_of_version(target, name), checksum)
        info = writer.commit(
            view.opened.space,
            manifest.precision,
            manifest.segments,
            None,
            limits=manifest.limits,
            change=f"rollback to {name}",
            note=note,
        )
        return view_of(target, info.name)


@contextlib.contextmanager
def _changing(target: Path, known: View) -> Iterator[tuple[Writer, View]]:
    """Yield the writer, and a view of the version in force."""
    with writing(target) as writer:
        assert writer.pointer is not None
        mine = known.opened.identity
        current = f"{writer.pointer.current.name} {writer.pointer.checksums[-1]}"
        if mine == current:
            yield writer, known
            return
        with reading(target):
            view = view_of(target)
            same = known.opened.space.digest == view.opened.space.digest
            require(same, "space: expected that of the version that was opened, got another")
        try:
            yield writer, view
        finally:
            view.close()


def _with(
    target: Path,
    writer: Writer,
    view: View,
    specifications: Mapping[str, Specification],
    removed: Sequence[int],
    change: str,
    note: str,
) -> View:
    """Put a version with more learnwares and without some rows in force."""
    opened, contents = view.opened, view.contents
    space, precision = opened.space, opened.manifest.precision
    new = of_specifications(
        specifications, space, precision, contents=contents, first_serial=writer.next_serial
    )
    entries = _without(view, removed)
    merged = _merged_from([one.count - len(one.removed) for one in entries], len(new.ids))
    simple = not removed and merged == len(entries) == len(contents.parts)
    if merged < len(entries):
        names = {one.name for one in entries[merged:]}
        rows = [
            np.arange(contents.starts[i], contents.starts[i + 1])
            for i, part in enumerate(contents.parts)
            if part.segment.folder.name in names
        ]
        left = np.setdiff1d(np.concatenate(rows), np.asarray(removed, np.int64))
        new = joined(of_contents(contents, view.ledger, left), new)
    info = writer.commit(
        space,
        precision,
        entries[:merged],
        new,
        limits=opened.manifest.limits,
        change=f"{change} {len(specifications)}",
        note=note,
    )
    return _appended(target, view, info) if simple else view_of(target, info.name)


def _everything(view: View) -> Learnwares:
    return of_contents(view.contents, view.ledger, np.arange(len(view)))


def _appended(target: Path, view: View, info: VersionInfo) -> View:
    """Return the version that an append put in force, without reading the rest anew."""
    opened, place = view.opened, place_of_version(target, info.name)
    lock = lease(place)
    checksum = zlib.crc32(place.read_bytes())
    manifest = parse_manifest(place, checksum)
    entry = manifest.segments[-1]
    segment = read_segment(
        target / SEGMENTS / entry.name,
        entry.checksum,
        entry.count,
        opened.space,
        manifest.precision,
    )
    part = Part(segment, entry.kept, np.full(len(segment.class_names) + 1, -1, np.int32))
    added = view.contents.extended(part, view.contents.origin)
    at = np.arange(len(view), len(added))
    names = ("class_ids", "has_probe", "origin")
    found = {
        name: np.asarray(added.open(len(added.parts) - 1, name).read().result()) for name in names
    }
    ledger = view.ledger
    if len(ledger) != len(view):  # another version has already grown from this one
        ledger = ledger.part(range(len(view)))
    numbering = enter_segment(ledger, segment, found["class_ids"], found["has_probe"], entry.kept)
    assert len(ledger) == len(view) + len(at)
    part = dataclasses.replace(part, numbering=numbering)
    identity = f"{info.name} {checksum}"
    segments = (*opened.segments, segment)
    return View(
        OpenedVersion(info, identity, manifest, opened.space, segments, lock),
        view.contents.extended(part, found["origin"]),
        ledger,
    )


def _rows(view: View, ids: Sequence[str]) -> list[int]:
    """Return the rows of ids, ascending.

    Raises:
        KeyError: an id that is not in the market.
    """
    rows = []
    for learnware in ids:
        row = view.row_of(learnware)
        if row is None:
            raise KeyError(f"no learnware {learnware!r:.80} in this market of {len(view)}")
        rows.append(row)
    return sorted(set(rows))


def _without(view: View, rows: Sequence[int]) -> list[SegmentEntry]:
    """Return the segments without some rows of the version, and without those left empty."""
    entries, starts = [], view.contents.starts
    gone = np.asarray(rows, np.int64)
    for which, (part, entry) in enumerate(
        zip(view.contents.parts, view.opened.manifest.segments, strict=True)
    ):
        mine = gone[(gone >= starts[which]) & (gone < starts[which + 1])] - starts[which]
        removed = np.union1d(entry.removed, part.kept[mine]).astype(np.int64)
        if len(removed) < entry.count:
            entries.append(dataclasses.replace(entry, removed=removed))
    return entries


def _merged_from(counts: Sequence[int], new: int) -> int:
    """Return the first of the segments that are merged with new learnwares; their number for none.

    Args:
        counts: learnwares of every segment, in order.
        new: learnwares that come after them.
    """
    start, size = len(counts), new
    while True:
        low = start
        while low > 0 and _tier(counts[low - 1]) <= _tier(size):
            low -= 1
        if start - low + 1 < FAN_OUT:
            return start
        size += sum(counts[low:start])
        start = low


def _tier(count: int) -> int:
    """Return how often `FAN_OUT` divides a number of learnwares."""
    tier = 0
    while count >= FAN_OUT:
        count, tier = count // FAN_OUT, tier + 1
    return tier
