"""Scoring a market that is larger than memory, as a stream from disk.

`stream_top_k` reads the folder of `Market.save` in blocks of learnwares: while one is scored, the
next is being read, and no more than these two are held. What is kept of every learnware are a few
numbers a user, so that scores which need the whole market (nearest peer, calibration) are those of
`jaxspec.match`. Peers split the work in two passes: embeddings first, then class vectors and
proxies. It runs on the default device, never writes to the market, and never loads all of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec import market_storage, store
from jaxspec.calibration import SAMPLE, Calibration
from jaxspec.market import Market
from jaxspec.market_arrays import ROW_FIELDS, MarketArrays
from jaxspec.matching import Match, by_method, match_of, prepare_users
from jaxspec.scoring import (
    Embedded,
    Parts,
    Peers,
    Scores,
    UserArrays,
    best_agreement,
    combine,
    compare_classes,
    embed,
    find_peers,
)
from jaxspec.shapes import bucket, pad_to
from jaxspec.specification import UserSpecification

__all__ = ["stream_top_k"]

Array = Any
Rows = dict[str, np.ndarray]
BLOCK_BYTES = 1 << 28  # of rows that are read together
CHUNKS = 4  # stored chunks that are decoded together where single rows are read
SAVE_SECONDS = 10.0  # between two writings of the state

_EMBEDDING = ("points", "scales", "square_norms", "weights", "self_terms")
_CLASSES = ("class_vectors", "class_ids")
_PROBE = ("probe_weights", "probe_bias", "has_probe")
_SAMPLED = ("points", "scales", "weights", "self_terms", "class_ids", "probe_chances", "has_probe")


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

    Ids, scores and order are those of `match` on the loaded market. Memory: two blocks, a stored
    chunk (64 MiB) an array, at most 28 bytes a learnware and user, and the names. The answer's
    `market` knows ids and class names, but has no rows: `Market.load` reads these.

    Args:
        path: a folder of `Market.save`.
        user: a user's specification, or a sequence of them.
        k: how many; fewer if the market has fewer.
        method: see `match`.
        reuse: see `match`.
        label_spaces: see `match`.
        block_size: learnwares that are read together; None for about 256 MiB of them.
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
        _Group(name, probed, places, jax.tree.map(jnp.asarray, some))
        for name, places, some in by_method(arrays, methods)
    ]
    passes = _passes(groups)
    width = max(folder.row_bytes(names) for names in passes)
    size = min(int(block_size or max(BLOCK_BYTES // width, 1)), len(market))
    said = {
        "format": "jaxspec stream 1",
        "market": folder.header.version,
        "users": _fingerprint(arrays),
        "method": " ".join(methods),
    }
    state = _State(resume, said, len(market), groups, len(passes))
    nobody: list[Peers | None] = [None] * len(groups)
    with state.kept():
        calibration = None
        if any(group.method == "likelihood" for group in groups):
            calibration = _calibration(folder)
        _sweep(folder, groups, nobody, state, 0, size, progress)
        peers = nobody
        if len(passes) == 2:
            has_probe = folder.whole(("has_probe",))["has_probe"]
            peers = [
                _peers(folder, group.users, found, has_probe, calibration)
                if group.has_peers
                else None
                for group, found in zip(groups, state.found, strict=True)
            ]
            _sweep(folder, groups, peers, state, 1, size, progress)
        matches = _answer(folder, groups, state, calibration, peers, users, int(k))
    state.remove()
    return matches[0] if isinstance(user, UserSpecification) else matches


# The passes


@dataclasses.dataclass(frozen=True)
class _Group:
    """Users of one method: their places in the answer, and their arrays (Q padded)."""

    method: str
    probed: bool
    places: list[int]
    users: UserArrays

    @property
    def has_peers(self) -> bool:
        """Whether the whole market must be embedded before classes are compared."""
        return self.probed and self.method == "likelihood"

    @property
    def class_fields(self) -> tuple[str, ...]:
        """Arrays that comparing classes needs."""
        if self.method == "rkme":
            return ()
        if self.method == "transfer":
            return (*_CLASSES, "class_bias", *(_PROBE if self.probed else ()))
        peers = (*_PROBE, "class_bias", "probe_chances") if self.has_peers else ()
        return (*_CLASSES, *peers)

    @property
    def kept(self) -> tuple[str, ...]:
        """Numbers that are kept of every learnware, for each user."""
        kinds = {
            "rkme": (),
            "classwise": ("similarity",),
            "likelihood": ("similarity", "matched", "share"),
            "transfer": ("behaviour",),
        }
        peers = ("behaviour", "agreement") if self.has_peers else ()
        return ("squared_mmd", "closeness", *kinds[self.method], *peers)


def _passes(groups: Sequence[_Group]) -> list[tuple[str, ...]]:
    """Return the arrays that each pass reads."""
    classes = tuple(dict.fromkeys(name for one in groups for name in one.class_fields))
    if any(group.has_peers for group in groups):
        return [_EMBEDDING, classes]
    return [(*_EMBEDDING, *classes)]


def _sweep(
    folder: Folder,
    groups: Sequence[_Group],
    peers: Sequence[Peers | None],
    state: _State,
    which: int,
    size: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Go through the market once, from where the state stands, in blocks of `size` learnwares."""
    count, passes = len(folder.market), _passes(groups)
    if state.done[which] == count:
        return
    stores = folder.open(passes[which])

    def start(first: int) -> dict[str, Any]:
        last = min(first + size, count)
        return {name: one[first:last].read() for name, one in stores.items()} if first < last else {}

    reading = start(state.done[which])
    while (first := state.done[which]) < count:
        length = min(size, count - first)
        rows = folder.finish(reading)
        reading = start(first + length)  # goes on while this block is scored
        rows = {
            name: pad_to(value, (size, *value.shape[1:]), value=-(name == "class_ids"))
            for name, value in rows.items()
        }
        for group, peer, found in zip(groups, peers, state.found, strict=True):
            for name, value in _scored(rows, folder.fixed, group, length, peer).items():
                found[name][first : first + length] = np.asarray(value)[:length]
        state.advance(which, first + length)
        if progress is not None:
            progress(sum(state.done) // len(passes), count)


def _scored(
    rows: Rows, fixed: dict[str, Any], group: _Group, length: int, peers: Peers | None
) -> dict[str, Array]:
    """Return {name: (size, Q)} of what the arrays of a block tell about its learnwares."""
    found: dict[str, Array] = {}
    if "points" in rows:
        some = {name: rows[name] for name in _EMBEDDING}
        found.update(_embed_block(some, fixed, group.users, np.int32(length)))
    if group.class_fields and "class_ids" in rows:
        some = {name: rows[name] for name in group.class_fields}
        users, method = group.users, group.method
        found.update(_class_block(some, fixed, users, np.int32(length), peers, method=method))
    return found


def _market(rows: dict[str, Any], fixed: dict[str, Any]) -> MarketArrays:
    """Return arrays of which only some rows are there."""
    absent = dict.fromkeys(name for name in ROW_FIELDS if name not in rows)
    return MarketArrays(**absent, **rows, **fixed)  # type: ignore[arg-type]


@jax.jit
def _embed_block(
    rows: dict[str, Any], fixed: dict[str, Any], users: UserArrays, length: Array
) -> dict[str, Array]:
    found = embed(_market(rows, fixed), users, length)
    return {"squared_mmd": found.squared_mmd, "closeness": found.closeness}


@partial(jax.jit, static_argnames="method")
def _class_block(
    rows: dict[str, Any],
    fixed: dict[str, Any],
    users: UserArrays,
    length: Array,
    peers: Peers | None,
    *,
    method: str,
) -> dict[str, Array]:
    """Return the numbers that `_combined` needs, without the axis of classes."""
    parts = compare_classes(_market(rows, fixed), users, length, method, peers)
    if method == "classwise":
        return {"similarity": parts.similarity.sum(axis=2)}
    if method == "transfer":
        return {"behaviour": parts.behaviour}
    matched = parts.class_map >= 0
    shared = jnp.where(matched, parts.similarity, 0.0).sum(axis=2)
    found = {
        "similarity": shared / jnp.maximum(matched.sum(axis=2), 1),
        "matched": matched.any(axis=2),
        "share": parts.share,
    }
    if peers is not None:
        found.update(behaviour=parts.behaviour, agreement=parts.agreement)
    return found


@jax.jit
def _class_rows(
    rows: dict[str, Any], fixed: dict[str, Any], users: UserArrays
) -> tuple[Array, Array]:
    """Return class similarity and class map, (1, n, k), of n rows and one user."""
    market = _market(rows, fixed)
    count = jnp.int32(market.class_ids.shape[0])
    parts = compare_classes(market, users, count, "classwise", None)
    return parts.similarity.transpose(1, 0, 2), parts.class_map.transpose(1, 0, 2)


@jax.jit
def _peers_of(
    rows: dict[str, Any],
    fixed: dict[str, Any],
    users: UserArrays,
    squared_mmd: Array,
    calibration: Calibration,
) -> Peers:
    """Return `find_peers` of the Q rows that are the users' peers, in the users' order."""
    own = jnp.where(jnp.eye(squared_mmd.shape[1], dtype=bool), squared_mmd, jnp.inf)
    alive = jnp.ones(squared_mmd.shape[0], bool)
    return find_peers(_market(rows, fixed), users, Embedded(own, own), alive, calibration)


@partial(jax.jit, static_argnames=("method", "k"))
def _combined(
    found: dict[str, Array],
    users: UserArrays,
    kernel: Any,
    has_probe: Array,
    calibration: Calibration | None,
    peers: Peers | None,
    *,
    method: str,
    k: int,
) -> tuple[Array, Array]:
    """Return the scores of the best k learnwares and their rows, both (Q, k)."""
    zero = jnp.zeros_like(found["squared_mmd"])
    found = {**dict.fromkeys(("similarity", "matched", "share", "behaviour", "agreement"), zero),
             **found}  # fmt: skip
    parts = Parts(
        found["similarity"][..., None],
        jnp.where(found["matched"] > 0, 0, -1)[..., None],
        found["share"],
        found["behaviour"],
        found["agreement"],
    )
    embedded = Embedded(found["squared_mmd"], found["closeness"])
    best = None
    if peers is not None:
        best = best_agreement(parts, peers, has_probe, jnp.ones(len(zero), bool))
    scores = combine(
        embedded, parts, users, kernel, has_probe, calibration, peers, best, method=method
    )  # type: ignore[arg-type]  # only the likelihood looks at the calibration
    return jax.lax.top_k(scores.T, k)  # type: ignore[return-value]
