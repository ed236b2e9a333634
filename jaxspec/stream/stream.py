"""Scoring a market that is larger than memory, as a stream from disk.

`match` asks a `MarketFolder` through this package. The folder is read in blocks of learnwares:
while one block is scored, the next is being read, and no more than these two are held. A few
numbers are kept per learnware and user, so that scores which need the whole market (nearest peer,
calibration) are those of a market in memory. Peers split the work in two passes: embeddings first,
then class vectors and proxies. A stream runs on the default device, never writes to the market, and
never loads all of it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxspec.base import bucket, pad_to
from jaxspec.files import MarketFolder
from jaxspec.market import (
    SAMPLE,
    SAMPLED_ARRAYS,
    Calibration,
    Rows,
    calibrate_rows,
    in_float32,
    most_publish_probes,
    sample_slots,
)
from jaxspec.matching import Best, Catalogue, Query, catalogue_of, start_best
from jaxspec.scoring import Peers, Score, Scores, UserArrays
from jaxspec.stream.blocks import (
    CLASS_ARRAYS,
    StreamedGroup,
    best_rows,
    class_rows,
    passes_of,
    peers_of,
    score_block,
)
from jaxspec.stream.state import State

if TYPE_CHECKING:
    from jaxtyping import Array, Float

__all__ = ["BLOCK_BYTES"]

BLOCK_BYTES = 1 << 25  # of rows that are read together


@catalogue_of.register
def _(where: MarketFolder) -> Catalogue:
    return where


@start_best.register
def _(where: MarketFolder, query: Query) -> list[Callable[[], Best]]:
    """Return the best k learnwares of a market on disk without loading it.

    Memory: two blocks, the decoded chunks that TensorStore keeps, four bytes per learnware, user
    and kept number, and the names.
    """
    if query.k is None:
        raise ValueError(
            "k: expected a number of learnwares, as a MarketFolder is streamed, got None; "
            "`Market.load` reads the folder into memory"
        )
    groups = [
        StreamedGroup(group, where.probed, where.has_array("hidden_maps"))
        for group in query.groups()
    ]
    passes = passes_of(groups)
    state = State(query.resume, _belongs_to(where, query, groups), len(where), groups, len(passes))
    with state.kept(), in_float32():
        found = _answered(where, query, groups, passes, state)
    state.remove()
    return [functools.partial(lambda best: best, best) for best in found]


def _answered(
    folder: MarketFolder,
    query: Query,
    groups: Sequence[StreamedGroup],
    passes: Sequence[tuple[str, ...]],
    state: State,
) -> list[Best]:
    """Go through the market and return what was found for every group."""
    assert query.k is not None
    count = len(folder)
    size = block_size(folder, passes)
    peers: list[Peers | None] = [None] * len(groups)
    has_probe = folder.whole(("has_probe",))["has_probe"]
    calibration = _calibration(folder)
    alive = np.ones(count, bool) if query.among is None else query.among
    _sweep(folder, groups, passes, peers, state, 0, size, query)
    # Padded, so that a market that grows by a few compiles nothing.
    total = bucket(count)
    has_probe, usable = pad_to(has_probe, (total,)), pad_to(alive, (total,))
    for i, (one, found) in enumerate(zip(groups, state.found, strict=True)):
        if one.has_peers:
            near = _padded(found, total)
            peers[i] = _peers(folder, one.group.users, near, has_probe * usable, calibration)
    if len(passes) > 1:
        _sweep(folder, groups, passes, peers, state, 1, size, query)
    best = [
        best_rows(
            _padded(found, total),
            one.group.users,
            folder.fixed["kernel"],
            has_probe,
            usable,
            calibration,
            peer,
            score=one.group.score,
            k=min(bucket(query.k, minimum=16), total),
        )
        for one, found, peer in zip(groups, state.found, peers, strict=True)
    ]
    return _found(folder, query, groups, best, state, int(alive.sum()))


def _padded(found: dict[str, np.ndarray], total: int) -> dict[str, np.ndarray]:
    """Return numbers per learnware and user with rows of zeros up to a number of rows."""
    return {name: pad_to(value, (total, value.shape[1])) for name, value in found.items()}


def block_size(folder: MarketFolder, passes: Sequence[tuple[str, ...]]) -> int:
    """Return how many learnwares are read together: the folder's own number or some 32 MiB."""
    width = max(folder.row_bytes(names) for names in passes)
    # A power of two above a small market: so one that grows by a few compiles nothing.
    return min(folder.block_size or max(BLOCK_BYTES // width, 1), bucket(len(folder)))


def _sweep(
    folder: MarketFolder,
    groups: Sequence[StreamedGroup],
    passes: Sequence[tuple[str, ...]],
    peers: Sequence[Peers | None],
    state: State,
    which: int,
    size: int,
    query: Query,
) -> None:
    """Go through the market once, from where the state stands, in blocks of `size` learnwares."""
    count = len(folder)
    if state.done[which] == count:
        return
    blocks = folder.blocks(passes[which], size)
    blocks.start(state.done[which])
    while (first := state.done[which]) < count:
        length = min(size, count - first)
        rows = blocks.wait()
        blocks.start(first + length)  # goes on while this block is scored
        parts = [
            score_block(rows, folder.fixed, one, length, peer)
            for one, peer in zip(groups, peers, strict=True)
        ]
        # Checked while the block is scored; nothing is kept of a block with a wrong number.
        folder.check({name: value[:length] for name, value in rows.items()}, first)
        for found, part in zip(state.found, parts, strict=True):
            for name, value in part.items():
                found[name][first : first + length] = np.asarray(value)[:length]
        state.advance(which, first + length)
        if query.progress is not None:
            query.progress(sum(state.done) // len(passes), count)


def _calibration(folder: MarketFolder) -> Calibration:
    """Return the market's calibration, from the rows that a loaded market takes for it."""
    slots = np.arange(len(folder))
    chosen = sample_slots(folder.ledger, slots)
    probed = most_publish_probes(folder.ledger, slots)
    rows = folder.rows(SAMPLED_ARRAYS, pad_to(chosen, (SAMPLE,), value=chosen[0]))
    rows.setdefault("probe_chances", np.zeros((*rows["class_ids"].shape, 0), np.uint8))
    kernel = jax.tree.map(np.asarray, folder.fixed["kernel"])
    return calibrate_rows(
        kernel, np.asarray(folder.fixed["landmarks"]), rows, len(chosen), probed=probed
    )


def _peers(
    folder: MarketFolder,
    users: UserArrays,
    found: Rows,
    has_probe: Float[np.ndarray, " M"],
    calibration: Calibration,
) -> Peers:
    """Return every user's peer; `row` counts over the whole market.

    `has_probe` is zero also for learnwares that are not chosen from: those are nobody's peer.
    """
    squared_mmd = np.where(has_probe[:, None] > 0, found["squared_mmd"], np.float32(np.inf))
    row = squared_mmd.argmin(axis=0)
    rows = folder.rows(SAMPLED_ARRAYS, row)
    peers = peers_of(rows, folder.fixed, users, squared_mmd[row], calibration)
    return dataclasses.replace(peers, row=jax.numpy.asarray(row, jax.numpy.int32))


def _found(
    folder: MarketFolder,
    query: Query,
    groups: Sequence[StreamedGroup],
    best: Sequence[tuple[Array, Array]],
    state: State,
    available: int,
) -> list[Best]:
    """Return the best learnwares, with their classes compared from their rows if that is wanted."""
    assert query.k is not None
    k = min(query.k, available)
    # Beyond the learnwares to choose from there may be rows that only fill up the shape.
    chosen = [np.minimum(np.asarray(rows), len(folder) - 1) for _, rows in best]
    stored: Rows = {}
    kept = np.zeros(0, int)
    if query.with_classes:
        kept = np.unique(np.concatenate([rows[:, :k].ravel() for rows in chosen]))
        stored = folder.rows(CLASS_ARRAYS, kept)
    answers = []
    for one, (scores, _), rows, found in zip(groups, best, chosen, state.found, strict=True):
        users, batch = one.group.users, np.arange(len(rows))
        classes = users.class_mask.shape[1] if query.with_classes else 0
        similarity = np.zeros((*rows.shape, classes), np.float32)
        class_map = np.zeros(similarity.shape, np.int32)
        for q in range(len(one.group.places)) if query.with_classes else ():
            # Those beyond the first k only fill up the shape.
            at = np.searchsorted(kept, rows[q]).clip(0, len(kept) - 1)
            own = jax.tree.map(lambda leaf, q=q: leaf[q : q + 1], users)
            picked = {name: value[at] for name, value in stored.items()}
            similarity[q], class_map[q] = (
                np.asarray(value)[0] for value in class_rows(picked, folder.fixed, own)
            )
        squared_mmd = found["squared_mmd"][rows, batch[:, None]]
        values: Any = (np.asarray(scores), squared_mmd, similarity, class_map)
        answers.append(Best(one.group, rows, Scores(*values), available))
    return answers


def _belongs_to(
    folder: MarketFolder, query: Query, groups: Sequence[StreamedGroup]
) -> dict[str, str]:
    """Return what the state of an interrupted stream belongs to."""
    return {
        "format": "jaxspec stream 4",
        "market": folder.identity,
        "users": _digest([one.group.users for one in groups]),
        "method": " ".join(_name(one.group.score) for one in groups),
        "among": "all" if query.among is None else _digest(query.among),
    }


def _name(score: Score) -> str:
    return f"{score.name} {score!r}"


def _digest(arrays: Any) -> str:
    """Return a digest of the users and of how they are compared."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(arrays):
        value = np.ascontiguousarray(leaf)
        digest.update(f"{value.shape} {value.dtype}".encode() + value.tobytes())
    return digest.hexdigest()
