"""What a block of a market's rows tells about its learnwares, and what follows from all blocks.

Jitted, one compilation a shape; the parts are those of `jaxspec.scoring`. A few numbers remain of
every learnware: sums over classes instead of the classes. `jaxspec.stream` reads the rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.market.arrays import ROW_FIELDS, MarketArrays
from jaxspec.market.calibration import Calibration
from jaxspec.scoring.class_pass import compare_classes
from jaxspec.scoring.peers import best_agreement, find_peers
from jaxspec.scoring.score_pass import combine, embed
from jaxspec.scoring.types import Embedded, Parts, Peers, UserArrays

__all__ = [
    "CLASSES",
    "SAMPLED",
    "Group",
    "best_of",
    "class_rows",
    "passes_of",
    "peers_of",
    "scored",
]

Array = Any
Rows = dict[str, np.ndarray]
EMBEDDING = ("points", "scales", "square_norms", "weights", "self_terms")
CLASSES = ("class_vectors", "class_ids")
_PROBE = ("probe_weights", "probe_bias", "has_probe")
SAMPLED = ("points", "scales", "weights", "self_terms", "class_ids", "probe_chances", "has_probe")


@dataclasses.dataclass(frozen=True)
class Group:
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
            return (*CLASSES, "class_bias", "hidden_maps", *(_PROBE if self.probed else ()))
        peers = (*_PROBE, "class_bias", "probe_chances") if self.has_peers else ()
        return (*CLASSES, *peers)

    @property
    def kept(self) -> tuple[str, ...]:
        """Numbers that are kept of every learnware, for each user."""
        kinds = {
            "rkme": (),
            "classwise": ("similarity",),
            "likelihood": ("similarity", "matched", "share"),
            "transfer": ("behaviour", "deeper"),
        }
        peers = ("behaviour", "agreement") if self.has_peers else ()
        return ("squared_mmd", "closeness", *kinds[self.method], *peers)


def passes_of(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    """Return the arrays that each pass reads."""
    classes = tuple(dict.fromkeys(name for one in groups for name in one.class_fields))
    if any(group.has_peers for group in groups):
        return [EMBEDDING, classes]
    return [(*EMBEDDING, *classes)]


def scored(
    rows: Rows, fixed: dict[str, Any], group: Group, length: int, peers: Peers | None
) -> dict[str, Array]:
    """Return {name: (size, Q)} of what the arrays of a block tell about its learnwares."""
    found: dict[str, Array] = {}
    if "points" in rows:
        some = {name: rows[name] for name in EMBEDDING}
        found.update(_embed_block(some, fixed, group.users, np.int32(length)))
    if group.class_fields and "class_ids" in rows:
        some = {name: rows[name] for name in group.class_fields if name in rows}
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
    """Return the numbers that `best_of` needs, without the axis of classes."""
    parts = compare_classes(_market(rows, fixed), users, length, method, peers)
    if method == "classwise":
        return {"similarity": parts.similarity.sum(axis=2)}
    if method == "transfer":
        return {"behaviour": parts.behaviour, "deeper": parts.deeper}
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
def class_rows(
    rows: dict[str, Any], fixed: dict[str, Any], users: UserArrays
) -> tuple[Array, Array]:
    """Return class similarity and class map, (1, n, k), of n rows and one user."""
    market = _market(rows, fixed)
    count = jnp.int32(market.class_ids.shape[0])
    parts = compare_classes(market, users, count, "classwise", None)
    return parts.similarity.transpose(1, 0, 2), parts.class_map.transpose(1, 0, 2)


@jax.jit
def peers_of(
    rows: dict[str, Any],
    fixed: dict[str, Any],
    users: UserArrays,
    squared_mmd: Array,
    calibration: Calibration,
) -> Peers:
    """Return `find_peers` of the Q rows that are the users' peers, in the users' order."""
    own = jnp.where(jnp.eye(len(squared_mmd), dtype=bool), squared_mmd, jnp.inf)
    alive = jnp.ones(len(squared_mmd), bool)
    return find_peers(_market(rows, fixed), users, Embedded(own, own), alive, calibration)


@partial(jax.jit, static_argnames=("method", "k"))
def best_of(
    found: dict[str, Array],
    users: UserArrays,
    kernel: Any,
    has_probe: Array,
    calibration: Any,
    peers: Peers | None,
    *,
    method: str,
    k: int,
) -> tuple[Array, Array]:
    """Return the scores of the best k learnwares and their rows, both (Q, k).

    Args:
        found: {name: (M, Q)} of `scored`.
        users: Q stacked users.
        kernel: the market's.
        has_probe: (M,).
        calibration: of the market; None for a method that does not ask for it.
        peers: the users' peers, or None.
        method: of the group.
        k: at most M.
    """
    zero = jnp.zeros_like(found["squared_mmd"])
    absent = ("similarity", "matched", "share", "behaviour", "deeper", "agreement")
    found = {**dict.fromkeys(absent, zero), **found}
    parts = Parts(
        found["similarity"][..., None],
        jnp.where(found["matched"] > 0, 0, -1)[..., None],
        found["share"],
        found["behaviour"],
        found["deeper"],
        found["agreement"],
    )
    embedded = Embedded(found["squared_mmd"], found["closeness"])
    best = None
    if peers is not None:
        best = best_agreement(parts, peers, has_probe, jnp.ones(len(zero), bool))
    scores = combine(
        embedded, parts, users, kernel, has_probe, calibration, peers, best, method=method
    )
    values, rows = jax.lax.top_k(scores.T, k)  # equal ones in the market's order
    return values, rows
