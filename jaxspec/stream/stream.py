"""Scoring a market that is larger than memory, as a stream from disk.

`stream_top_k` reads the folder of `Market.save` in blocks of learnwares: while one is scored, the
next is being read, and no more than these two are held. What is kept of every learnware are a few
numbers a user, so that scores which need the whole market (nearest peer, calibration) are those of
`jaxspec.match`. Peers split the work in two passes: embeddings first, then class vectors and
proxies. It runs on the default device, never writes to the market, and never loads all of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxspec.base import bucket, pad_to
from jaxspec.files import store
from jaxspec.files.reader import Blocks, Folder
from jaxspec.market import builder as market_storage
from jaxspec.market.arrays import in_float32
from jaxspec.market.calibration import SAMPLE, Calibration
from jaxspec.matching.match import Match, by_method, match_of, prepare_users
from jaxspec.scoring.types import Peers, Scores, UserArrays
from jaxspec.specify.specification import UserSpecification
from jaxspec.stream.blocks import (
    CLASSES,
    SAMPLED,
    Group,
    best_of,
    class_rows,
    passes_of,
    peers_of,
    scored,
)
from jaxspec.stream.state import State

__all__ = ["stream_top_k"]

Array = Any
Rows = dict[str, np.ndarray]
BLOCK_BYTES = 1 << 25  # of rows that are read together


def stream_top_k(
    path: str | os.PathLike[str],
    user: UserSpecification | Sequence[UserSpecification],
    k: int = 10,
    *,
    method: str | None = None,
    reuse: str | None = None,
    label_spaces: str = "auto",
    block_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    resume: str | os.PathLike[str] | None = None,
    verify: bool = False,
) -> Any:
    """Return the best k learnwares of a market on disk without loading it.

    Ids, scores and order are those of `match` on the loaded market. Memory: two blocks, at most
    64 MiB of decoded chunks an array, at most 28 bytes a learnware and user, and the names. The
    answer's `market` knows ids and class names, but has no rows: `Market.load` reads these.

    Args:
        path: a folder of `Market.save`.
        user: a user's specification, or a sequence of them.
        k: how many; fewer if the market has fewer.
        method: see `match`.
        reuse: see `match`.
        label_spaces: see `match`.
        block_size: learnwares that are read together; None for about 32 MiB of them.
        progress: called after every block with (learnwares done, learnwares). Where two passes
            are needed a learnware counts half after the first.
        resume: a file for what is known so far. Whatever interrupts the work leaves it there, the
            next call with the same market, users and method goes on from it, and the end removes
            it. A killed process loses about 10 seconds.
        verify: check the checksums of all files first, as `Market.load` does, by reading
            everything once more. Numbers are checked to be finite in any case.

    Returns:
        a `Match`, best first, or for a sequence of users a list of one a user.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: as `match` and `Market.load`, or a k or block size below one, or a `resume`
            that is damaged or of another market, other users or another method.
    """
    for name, value in (("k", k), ("block_size", 1 if block_size is None else block_size)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
    folder = Folder(store._existing(path), verify)
    market = folder.market
    users, arrays, methods = prepare_users(
        market, user, method=method, reuse=reuse, label_spaces=label_spaces
    )
    probed = market.probe is not None
    groups = [
        Group(name, probed, places, some) for name, places, some in by_method(arrays, methods)
    ]
    passes = passes_of(groups)
    width = max(folder.row_bytes(names) for names in passes)
    size = min(int(block_size or max(BLOCK_BYTES // width, 1)), len(market))
    said = {
        "format": "jaxspec stream 2",
        "market": folder.header.version,
        "users": _fingerprint(arrays),
        "method": " ".join(methods),
    }
    state = State(resume, said, len(market), groups, len(passes))
    peers: list[Peers | None] = [None] * len(groups)
    with state.kept(), in_float32():
        has_probe, calibration = folder.whole(("has_probe",))["has_probe"], None
        if {"likelihood", "transfer"} & set(methods):
            calibration = _calibration(folder)
        _sweep(folder, groups, peers, state, 0, size, progress)
        for i, (group, found) in enumerate(zip(groups, state.found, strict=True)):
            if group.has_peers:
                peers[i] = _peers(folder, group.users, found, has_probe, calibration)
        if len(passes) > 1:
            _sweep(folder, groups, peers, state, 1, size, progress)
        best = [
            best_of(
                found,
                group.users,
                folder.fixed["kernel"],
                has_probe,
                calibration,
                peer,
                method=group.method,
                k=min(bucket(int(k), minimum=16), len(market)),
            )
            for group, found, peer in zip(groups, state.found, peers, strict=True)
        ]
        matches = _matches(folder, groups, best, state, users, min(int(k), len(market)))
    state.remove()
    return matches[0] if isinstance(user, UserSpecification) else matches


# The passes


def _sweep(
    folder: Folder,
    groups: Sequence[Group],
    peers: Sequence[Peers | None],
    state: State,
    which: int,
    size: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Go through the market once, from where the state stands, in blocks of `size` learnwares."""
    count, passes = len(folder.market), passes_of(groups)
    if state.done[which] == count:
        return
    blocks = Blocks(folder, passes[which], size)
    blocks.start(state.done[which])
    while (first := state.done[which]) < count:
        length = min(size, count - first)
        rows = blocks.wait()
        blocks.start(first + length)  # goes on while this block is scored
        whole = folder.whole_rows(dict(rows))
        parts = [
            scored(whole, folder.fixed, group, length, peer)
            for group, peer in zip(groups, peers, strict=True)
        ]
        # While it is scored; nothing is kept of a block with something wrong.
        folder.check({name: value[:length] for name, value in rows.items()})
        for found, part in zip(state.found, parts, strict=True):
            for name, value in part.items():
                found[name][first : first + length] = np.asarray(value)[:length]
        state.advance(which, first + length)
        if progress is not None:
            progress(sum(state.done) // len(passes), count)


def _calibration(folder: Folder) -> Calibration:
    """Return the market's calibration, from the rows that a loaded market takes for it."""
    chosen = market_storage.sample_slots(folder.market._storage, np.arange(len(folder.market)))
    rows = folder.take(SAMPLED, pad_to(chosen, (SAMPLE,), value=chosen[0]))
    rows.setdefault("probe_chances", np.zeros((*rows["class_ids"].shape, 0), np.uint8))
    kernel = jax.tree.map(np.asarray, folder.fixed["kernel"])
    landmarks = np.asarray(folder.fixed["landmarks"])
    return market_storage.calibrate_rows(kernel, landmarks, rows, len(chosen))


def _peers(
    folder: Folder,
    users: UserArrays,
    found: Rows,
    has_probe: np.ndarray,
    calibration: Any,
) -> Peers:
    """Return every user's peer; `row` counts over the whole market."""
    row = np.where(has_probe[:, None] > 0, found["squared_mmd"], np.inf).argmin(axis=0)
    rows = folder.take(SAMPLED, row)
    peers = peers_of(rows, folder.fixed, users, found["squared_mmd"][row], calibration)
    return dataclasses.replace(peers, row=row.astype(np.int32))


def _matches(
    folder: Folder,
    groups: Sequence[Group],
    best: Sequence[tuple[Array, Array]],
    state: State,
    users: Sequence[UserSpecification],
    k: int,
) -> list[Match]:
    """Return the answers, with the classes of the best k learnwares compared from their rows."""
    kept = np.unique(np.concatenate([np.asarray(rows)[:, :k].ravel() for _, rows in best]))
    stored = folder.take(CLASSES, kept)
    matches: dict[int, Match] = {}
    for group, (scores, rows), found in zip(groups, best, state.found, strict=True):
        for q, place in enumerate(group.places):
            slots = np.asarray(rows)[q]  # those beyond the first k only fill up the shape
            at = np.searchsorted(kept, slots).clip(0, len(kept) - 1)
            own = jax.tree.map(lambda leaf, q=q: leaf[q : q + 1], group.users)
            some = {name: value[at] for name, value in stored.items()}
            similarity, class_map = class_rows(some, folder.fixed, own)
            parts = Scores(
                np.asarray(scores)[q : q + 1],
                found["squared_mmd"][slots, q][None],
                np.asarray(similarity),
                np.asarray(class_map),
            )
            matches[place] = match_of(folder.market, users[place], group.method, slots, parts, 0, k)
    return [matches[place] for place in range(len(users))]


def _fingerprint(arrays: UserArrays) -> str:
    """Return a digest of the users and of how they are compared."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(arrays):
        value = np.ascontiguousarray(leaf)
        digest.update(f"{value.shape} {value.dtype}".encode() + value.tobytes())
    return digest.hexdigest()
