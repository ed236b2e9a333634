"""Score a saved market that is larger than memory, block by block from disk.

While one block is scored the next is being read (TensorStore reads what Orbax wrote). A first pass
reads embeddings, a second class vectors and proxies; what is kept of a learnware are four numbers a
user. So the answer is that of `jaxspec.top_k` on the loaded market. A run can be stopped at any
block and goes on where it was, given a `resume` file. Scores are those of `jaxspec.scoring`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec import market_storage, scoring, store
from jaxspec.calibration import SAMPLE, Calibration
from jaxspec.market import Market
from jaxspec.market_arrays import ROW_FIELDS, MarketArrays
from jaxspec.matching import Match, by_method, match_of, prepare_users
from jaxspec.scoring import Embedded, Parts, Peers, Scores, UserArrays
from jaxspec.shapes import bucket, pad_to
from jaxspec.specification import UserSpecification

__all__ = ["stream_top_k"]

Array = Any
BLOCK_BYTES = 1 << 28  # of a block's rows; three of them are in memory at a time
SAVE_EVERY = 5.0  # seconds
EMBEDDING = ("points", "scales", "square_norms", "weights", "self_terms")


class _OnDisk:
    """A saved market: its header checked, its rows read when they are asked for."""

    def __init__(self, path: store.PathLike, *, verify: bool) -> None:
        import tensorstore

        self.path = store._existing(path)
        with store._naming(self.path):
            self.header = store.read_header(self.path)
            if verify:
                store.check_files(self.header)
            base = f"file://{self.header.folder.absolute()}/"
            self.opened = {
                name: tensorstore.open(
                    {
                        "driver": "zarr",
                        "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"},
                    },
                    open=True,
                    read=True,
                ).result()
                for name in self.header.arrays
            }
            for name, (shape, dtype) in self.header.arrays.items():
                found = self.opened[name]
                good = found.shape == tuple(shape) and found.dtype.name == dtype
                store._check_that(good, f"{name}: not the array that the header describes")
            ids = self.finish("class_ids", self.opened["class_ids"].read())
            ledger = store.ledger(self.header, ids)
        self.count = len(self.header.ids)
        slots = market_storage.sample_slots(ledger, np.arange(self.count))
        rows = self.rows(pad_to(slots, (SAMPLE,), value=slots[0]))
        d = rows["points"].shape[2]
        fixed = {"landmarks": (0, d), "white": (0, 0), "origin": (d,)}
        whole = {
            name: self.finish(name, self.opened[name].read())
            if name in self.opened
            else np.zeros(shape, np.float32)
            for name, shape in fixed.items()
        }
        kernel = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), self.header.kernel)
        ledger.arrays = MarketArrays(**rows, **whole, kernel=kernel)
        self.market = Market(
            ledger, self.count, frozenset(), self.header.kernel, self.header.feature_space
        )
        self.market._calibration = market_storage.calibrate_rows(
            kernel, whole["landmarks"], rows, len(slots)
        )

    def finish(self, name: str, future: Any) -> np.ndarray:
        """Return what was read, checked."""
        value = np.asarray(future.result())
        if value.dtype.kind not in "iu":
            with store._naming(self.path):
                store._check_finite(name, value)
        return value

    def ask(self, at: Any, fields: Sequence[str]) -> dict[str, Any]:
        """Begin to read rows: a slice, or places (n,)."""
        return {name: self.opened[name][at].read() for name in fields if name in self.opened}

    def get(self, asked: dict[str, Any], fields: Sequence[str], count: int) -> dict[str, Any]:
        """Return the rows that were asked for, padded to `count`, missing fields filled in."""
        rows = {name: self.finish(name, future) for name, future in asked.items()}
        if "points" in rows:
            store.derive(rows)
        some = len(next(iter(rows.values())))
        classes = self.opened["class_ids"].shape[1]
        for name in fields:
            if name not in rows:  # of a market without a probe
                kind = np.uint8 if name == "probe_chances" else np.float32
                rows[name] = np.zeros((some, classes, 0), kind)
        return {
            name: pad_to(value, (count, *value.shape[1:]), value=-1 if name == "class_ids" else 0)
            for name, value in rows.items()
        }

    def rows(self, places: np.ndarray) -> dict[str, np.ndarray]:
        """Return all fields of the learnwares at places (n,)."""
        return self.get(self.ask(places, ROW_FIELDS), ROW_FIELDS, len(places))

    def arrays(self, rows: dict[str, np.ndarray], count: int) -> MarketArrays:
        """Return a block as a market's arrays; fields that were not read are empty."""
        shapes = {name: getattr(self.market.arrays, name).shape[1:] for name in ROW_FIELDS}
        filled: dict[str, Any] = {
            name: np.zeros((count, *(0 for _ in shape)), np.float32)
            for name, shape in shapes.items()
            if name not in rows
        }
        filled.update(rows)
        return dataclasses.replace(self.market.arrays, **filled)

    def blocks(
        self, fields: Sequence[str], size: int, first: int
    ) -> Iterator[tuple[int, int, MarketArrays]]:
        """Yield (start, learnwares, arrays of `size` rows), reading one block ahead."""
        starts = range(first * size, self.count, size)
        ahead: dict[str, Any] = {}
        if starts:
            ahead = self.ask(slice(starts[0], min(starts[0] + size, self.count)), fields)
        for start in starts:
            asked = ahead
            if start + size < self.count:
                ahead = self.ask(slice(start + size, min(start + 2 * size, self.count)), fields)
            rows = self.get(asked, fields, size)
            yield start, min(size, self.count - start), self.arrays(rows, size)


@jax.jit
def _embed(block: MarketArrays, users: UserArrays, length: Array) -> Embedded:
    return scoring.embed(block, users, length)


@jax.jit
def _peers(rows: MarketArrays, users: UserArrays, alive: Array, calibration: Calibration) -> Peers:
    embedded = scoring.embed(rows, users, jnp.int32(alive.shape[0]))
    return scoring.find_peers(rows, users, embedded, alive, calibration)


@partial(jax.jit, static_argnames="method")
def _compare(
    block: MarketArrays,
    users: UserArrays,
    embedded: Embedded,
    length: Array,
    calibration: Calibration,
    peers: Peers | None,
    best: Array | None,
    *,
    method: str,
) -> tuple[Array, Parts, Array]:
    """Return scores (rows, Q), parts, and the best agreement of others in the block, (Q,)."""
    parts = scoring.compare_classes(block, users, length, method, peers)
    alive = jnp.arange(block.has_probe.shape[0]) < length
    found = jnp.zeros(users.counts.shape[0])
    if peers is not None:
        found = scoring.best_agreement(parts, peers, block.has_probe, alive)
    scores = scoring.combine(
        embedded,
        parts,
        users,
        block.kernel,
        block.has_probe,
        calibration,
        peers,
        found * 0.0 if best is None else best,
        method=method,
    )
    return scores, parts, found


@dataclasses.dataclass
class _State:
    """How far a run has come.

    Attributes:
        done: blocks of the first and of the second pass.
        squared_mmd: (M, Q).
        closeness: (M, Q).
        scores: (M, Q), in which a user's peer agrees with nobody.
        best: (Q,) the largest agreement with the peer so far.
    """

    done: np.ndarray
    squared_mmd: np.ndarray
    closeness: np.ndarray
    scores: np.ndarray
    best: np.ndarray


class _Keeper:
    """Keeps the state of a run in a file, replaced in one step."""

    def __init__(self, path: Path | None, fingerprint: str) -> None:
        self.path, self.fingerprint, self.saved = path, fingerprint, time.monotonic()

    def load(self, count: int, users: int) -> _State:
        tables = [np.zeros((count, users), np.float32) for _ in range(3)]
        state = _State(np.zeros(2, np.int64), *tables, np.zeros(users, np.float32))  # type: ignore[call-arg]
        if self.path is None or not self.path.exists():
            return state
        with np.load(self.path, allow_pickle=False) as file:
            if str(file["fingerprint"]) != self.fingerprint:
                raise ValueError(
                    f"resume: {self.path} is of another market, other users or other options"
                )
            for field in dataclasses.fields(_State):
                setattr(state, field.name, file[field.name])
            return state

    def keep(self, state: _State, *, now: bool = False) -> None:
        if self.path is None or not (now or time.monotonic() - self.saved > SAVE_EVERY):
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        with open(temporary, "wb") as file:
            np.savez(file, fingerprint=np.array(self.fingerprint), **vars(state))
        os.replace(temporary, self.path)
        self.saved = time.monotonic()


def stream_top_k(
    path: store.PathLike,
    user: UserSpecification | Sequence[UserSpecification],
    k: int = 10,
    *,
    method: str | None = None,
    reuse: str | None = None,
    label_spaces: str = "auto",
    block_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    resume: store.PathLike | None = None,
    verify: bool = False,
) -> Any:
    """Return the best k learnwares of a market on disk, like `jaxspec.top_k`.

    Args:
        path: a folder of `Market.save`.
        user: a user's specification, or a sequence of them.
        k: how many.
        method: see `match`.
        reuse: see `match`.
        label_spaces: see `match`.
        block_size: learnwares a block; None for about 256 MiB.
        progress: called with (learnwares done, learnwares) of each pass.
        resume: a file that keeps how far the run came, written every few seconds and on an
            interrupt, and removed at the end. The same call goes on from it.
        verify: read all files once more and compare their checksums before anything else. Numbers
            are checked for NaN and infinity as they come in any case.

    Returns:
        a `Match`, or for a sequence of users a list of one a user.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: as `match` and `Market.load`; k or block_size below one; a `resume` file of
            another run.
    """
    for name, value in (("k", k), ("block_size", block_size)):
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if (name, value) != ("block_size", None) and (not whole or int(value or 0) < 1):
            raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
    disk = _OnDisk(path, verify=verify)
    market = disk.market
    users, arrays, methods = prepare_users(
        market, user, method=method, reuse=reuse, label_spaces=label_spaces
    )
    if block_size is None:
        row = sum(getattr(market.arrays, name)[:1].nbytes for name in ROW_FIELDS)
        block_size = max(1, BLOCK_BYTES // row)
    size = bucket(min(block_size, disk.count), minimum=1)
    matches: dict[int, Match] = {}
    used = []
    for name, chosen, some in by_method(arrays, methods):
        file = None if resume is None else Path(f"{os.fspath(resume)}.{name}")
        keeper = _Keeper(file, _fingerprint(disk, some, name, size))
        state = keeper.load(disk.count, len(some.counts))
        peers = None
        try:
            peers = _run(disk, some, state, keeper, name, size, progress)
        finally:
            keeper.keep(state, now=True)
        used.append(file)
        for row, place in enumerate(chosen):
            slots, scores = _best_of(disk, some, state, peers, name, row, min(k, disk.count))
            matches[place] = match_of(market, users[place], name, slots, scores, 0, k)
    for file in used:
        if file is not None:
            file.unlink(missing_ok=True)
    if isinstance(user, UserSpecification):
        return matches[0]
    return [matches[place] for place in range(len(users))]


def _fingerprint(disk: _OnDisk, users: UserArrays, method: str, size: int) -> str:
    digest = hashlib.sha256(f"{disk.header.version} {method} {size}".encode())
    for leaf in jax.tree.leaves(users):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _run(
    disk: _OnDisk,
    users: UserArrays,
    state: _State,
    keeper: _Keeper,
    method: str,
    size: int,
    progress: Callable[[int, int], None] | None,
) -> Peers | None:
    """Take both passes from where the state is; return the users' peers, if the method has any."""
    calibration = disk.market.calibration

    def told(done: int) -> None:
        keeper.keep(state)
        if progress is not None:
            progress(done, disk.count)

    for start, count, block in disk.blocks(EMBEDDING, size, int(state.done[0])):
        found = jax.tree.map(np.asarray, _embed(block, users, np.int32(count)))
        state.squared_mmd[start : start + count] = found.squared_mmd[:count]
        state.closeness[start : start + count] = found.closeness[:count]
        state.done[0] += 1
        told(start + count)
    if method == "rkme":
        state.scores[:] = -state.squared_mmd
        return None
    peers = None
    if method == "likelihood" and disk.market.arrays.landmarks.shape[0]:
        peers = _find_peers(disk, users, state)
    fields = [name for name in ROW_FIELDS if name not in EMBEDDING]
    for start, count, block in disk.blocks(fields, size, int(state.done[1])):
        rows = slice(start, start + count)
        embedded = Embedded(
            pad_to(state.squared_mmd[rows], (size, state.best.shape[0])),
            pad_to(state.closeness[rows], (size, state.best.shape[0])),
        )
        here = peers and dataclasses.replace(peers, row=np.asarray(peers.row) - np.int32(start))
        scores, _, best = _compare(
            block, users, embedded, np.int32(count), calibration, here, None, method=method
        )
        state.scores[rows] = np.asarray(scores)[:count]
        state.best[:] = np.maximum(state.best, np.asarray(best))
        state.done[1] += 1
        told(start + count)
    return peers


def _find_peers(disk: _OnDisk, users: UserArrays, state: _State) -> Peers:
    """Return the peers, with rows that count from the market's first learnware."""
    probed = np.array([one.fidelity is not None for one in disk.market._storage.facts])
    nearest = np.where(probed[:, None], state.squared_mmd, np.inf).argmin(axis=0)
    alive = np.ones(len(nearest), bool)
    block = disk.arrays(disk.rows(nearest), len(nearest))
    found = _peers(block, users, alive, disk.market.calibration)
    return dataclasses.replace(found, row=nearest[np.asarray(found.row)].astype(np.int32))


def _best_of(
    disk: _OnDisk,
    users: UserArrays,
    state: _State,
    peers: Peers | None,
    method: str,
    row: int,
    k: int,
) -> tuple[np.ndarray, Scores]:
    """Return slots (k,) of one user's best and their scores with a leading axis of one."""
    scores = state.scores[:, row]
    order = np.argsort(-scores, kind="stable")[:k]
    own: Peers | None = None
    places = order
    if peers is not None:  # it was scored without the others' best agreement
        own = jax.tree.map(lambda leaf: np.asarray(leaf)[row : row + 1], peers)
        places = np.append(order, own.row[0]) if own.row[0] not in order else order
    places = np.sort(places)
    size = bucket(k + 1, minimum=16)
    padded = pad_to(places, (size,), value=places[0])
    block = disk.arrays(disk.rows(padded), size)
    user = jax.tree.map(lambda leaf: leaf[row : row + 1], users)
    embedded = Embedded(
        state.squared_mmd[padded, row : row + 1], state.closeness[padded, row : row + 1]
    )
    best = None
    if own is not None:
        here = np.searchsorted(places, own.row).astype(np.int32)
        own, best = dataclasses.replace(own, row=here), state.best[row : row + 1]
    found, parts, _ = _compare(
        block, user, embedded, np.int32(len(places)), disk.market.calibration, own, best,
        method=method,
    )  # fmt: skip
    exact = np.asarray(found)[: len(places), 0]
    last = np.argsort(-exact, kind="stable")[:k]
    parts = jax.tree.map(np.asarray, parts)
    return places[last], Scores(
        exact[None, last],
        embedded.squared_mmd[None, last, 0],
        parts.similarity[None, last, 0],
        parts.class_map[None, last, 0],
    )
