"""What a block of a market's rows tells about its learnwares, and what follows from all blocks.

The functions are jitted, with one compilation per shape; the parts are those of `jaxspec.scoring`.
A few numbers are kept per learnware and user: sums over classes instead of the classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.market import ROW_ARRAYS, Calibration, MarketArrays, Rows
from jaxspec.matching import Group
from jaxspec.scoring import (
    ClassEvidence,
    Embedded,
    Peers,
    Score,
    UserArrays,
    best_agreement,
    compare_classes,
    embed,
    evaluate,
    find_peers,
    gather,
    needs_peers,
    summarise_classes,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

__all__ = [
    "CLASS_ARRAYS",
    "StreamedGroup",
    "best_rows",
    "class_rows",
    "passes_of",
    "peers_of",
    "score_block",
]

EMBEDDING_ARRAYS = ("points", "scales", "square_norms", "weights", "self_terms")
CLASS_ARRAYS = ("class_vectors", "class_ids")
PROBE_ARRAYS = ("class_bias", "probe_weights", "probe_bias", "has_probe")
EMBEDDING_EVIDENCE = ("squared_mmd", "closeness")
CLASS_EVIDENCE = (
    "similarity",
    "shared_similarity",
    "share",
    "label_probability",
    "agreement",
    "explained_by_outputs",
    "explained_by_hidden",
)


@dataclasses.dataclass(frozen=True)
class StreamedGroup:
    """A group of a query's users, and what a stream reads and keeps for it.

    Attributes:
        group: the users and their score.
        probed: whether learnwares of the market have probe proxies.
        represented: whether learnwares of the market have representations.
    """

    group: Group
    probed: bool
    represented: bool

    @property
    def has_peers(self) -> bool:
        """Whether the whole market must be embedded before classes are compared."""
        return self.probed and needs_peers(self.group.score)

    @property
    def class_evidence(self) -> tuple[str, ...]:
        """Names of the evidence from classes and proxies that is kept."""
        needs = self.group.score.needs
        kept = [name for name in CLASS_EVIDENCE if name in needs]
        if "explained_by_hidden" in kept:
            kept += ["explained_by_outputs", "has_representation"]
        return tuple(dict.fromkeys(kept))

    @property
    def class_arrays(self) -> tuple[str, ...]:
        """Arrays of the market that this evidence comes from."""
        kept = self.class_evidence
        if not kept:
            return ()
        arrays = list(CLASS_ARRAYS)
        explains = any(name.startswith("explained") for name in kept)
        if explains or (self.probed and ("label_probability" in kept or self.has_peers)):
            arrays += ["class_bias", *(PROBE_ARRAYS if self.probed else ())]
        if explains and self.represented:
            arrays.append("hidden_maps")
        if self.has_peers:
            arrays.append("probe_chances")
        return tuple(dict.fromkeys(arrays))

    @property
    def kept(self) -> tuple[str, ...]:
        """Numbers that are kept per learnware and user."""
        return (*EMBEDDING_EVIDENCE, *self.class_evidence)


def passes_of(groups: Sequence[StreamedGroup]) -> list[tuple[str, ...]]:
    """Return the arrays that each pass over the market reads."""
    classes = tuple(dict.fromkeys(name for one in groups for name in one.class_arrays))
    if any(one.has_peers for one in groups):
        return [EMBEDDING_ARRAYS, classes]
    return [(*EMBEDDING_ARRAYS, *classes)]


def score_block(
    rows: Rows, fixed: Mapping[str, Any], streamed: StreamedGroup, length: int, peers: Peers | None
) -> dict[str, Float[Array, "size Q"]]:
    """Return the evidence that the arrays of a block give about its learnwares.

    Args:
        rows: arrays of the block that this pass reads.
        fixed: arrays that all rows share.
        streamed: whose evidence is wanted.
        length: learnwares in the block; rows after these are not computed.
        peers: of the users, once they are known.
    """
    found: dict[str, Any] = {}
    users = streamed.group.users
    if "points" in rows:
        picked = {name: rows[name] for name in EMBEDDING_ARRAYS}
        found.update(_embed_block(picked, fixed, users, np.int32(length)))
    if streamed.class_arrays and "class_ids" in rows:
        picked = {name: rows[name] for name in streamed.class_arrays if name in rows}
        kept = streamed.class_evidence
        found.update(
            _class_block(
                picked,
                fixed,
                users,
                np.int32(length),
                peers,
                needs=streamed.group.score.needs,
                kept=kept,
            )
        )
    return found


def _market(rows: dict[str, Any], fixed: Mapping[str, Any]) -> MarketArrays:
    """Return a market's arrays of which only those of `rows` are there."""
    absent = dict.fromkeys(name for name in ROW_ARRAYS if name not in rows)
    return MarketArrays(**absent, **rows, **fixed)  # type: ignore[arg-type]


@jax.jit
def _embed_block(
    rows: dict[str, Any], fixed: Mapping[str, Any], users: UserArrays, length: Array
) -> dict[str, Array]:
    found = embed(_market(rows, fixed), users, length)
    return {"squared_mmd": found.squared_mmd, "closeness": found.closeness}


@partial(jax.jit, static_argnames=("needs", "kept"))
def _class_block(
    rows: dict[str, Any],
    fixed: Mapping[str, Any],
    users: UserArrays,
    length: Array,
    peers: Peers | None,
    *,
    needs: tuple[str, ...],
    kept: tuple[str, ...],
) -> dict[str, Array]:
    """Return the evidence named by `kept`, without the axis of classes."""
    market = _market(rows, fixed)
    classes = compare_classes(market, users, length, needs, peers)
    similarity, shared = summarise_classes(classes, users)
    found = {"similarity": similarity, "shared_similarity": shared}
    maps = market.hidden_maps
    if maps is not None:
        represented = (maps != 0).any(axis=(1, 2))[:, None]
        found["has_representation"] = jnp.broadcast_to(represented, similarity.shape) * 1.0
    values: dict[str, Any] = {name: getattr(classes, name, None) for name in CLASS_EVIDENCE}
    values.update(found)
    return {name: values[name] for name in kept if values.get(name) is not None}


@jax.jit
def class_rows(
    rows: dict[str, Any], fixed: Mapping[str, Any], users: UserArrays
) -> tuple[Float[Array, "1 n k"], Int[Array, "1 n k"]]:
    """Return class similarity and class map of n rows and one user."""
    market = _market(rows, fixed)
    count = jnp.int32(market.class_ids.shape[0])
    found = compare_classes(market, users, count, (), None)
    return found.class_similarity.transpose(1, 0, 2), found.class_map.transpose(1, 0, 2)


@jax.jit
def peers_of(
    rows: dict[str, Any],
    fixed: Mapping[str, Any],
    users: UserArrays,
    squared_mmd: Float[Array, "Q Q"],
    calibration: Calibration,
) -> Peers:
    """Return `find_peers` of the Q rows that are the users' peers, in the users' order."""
    own = jnp.where(jnp.eye(len(squared_mmd), dtype=bool), squared_mmd, jnp.inf)
    alive = jnp.ones(len(squared_mmd), bool)
    return find_peers(_market(rows, fixed), users, own, alive, calibration)


@partial(jax.jit, static_argnames=("score", "k"))
def best_rows(
    found: dict[str, Float[Array, "M Q"]],
    users: UserArrays,
    kernel: Any,
    has_probe: Float[Array, " M"],
    alive: Array,
    calibration: Calibration,
    peers: Peers | None,
    *,
    score: Score,
    k: int,
) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    """Return the scores of the best k learnwares and their rows.

    Args:
        found: of `score_block`, for all learnwares.
        users: Q stacked users.
        kernel: of the space.
        has_probe: whether learnwares have a probe proxy.
        alive: (M,) bool, the learnwares to choose from.
        calibration: of the market.
        peers: of the users, or None.
        score: of the group.
        k: at most M.
    """
    zero = jnp.zeros_like(found["squared_mmd"])
    values = {**dict.fromkeys((*CLASS_EVIDENCE, "has_representation"), zero), **found}
    classes = ClassEvidence(
        class_similarity=zero[..., None],
        class_map=jnp.zeros((*zero.shape, 1), jnp.int32),
        **{
            name: values[name]
            for name in CLASS_EVIDENCE
            if name not in ("similarity", "shared_similarity")
        },
    )
    best = None
    if peers is not None:
        best = best_agreement(classes.agreement, peers, has_probe, alive)
    represented = None
    if "has_representation" in found:
        represented = values["has_representation"][:, 0] > 0
    evidence = gather(
        Embedded(found["squared_mmd"], found["closeness"]),
        classes,
        users,
        kernel,
        calibration,
        has_probe=has_probe > 0,
        has_representation=represented,
        peers=peers,
        best=best,
        similarity=(values["similarity"], values["shared_similarity"]),
    )
    scores = evaluate(score, evidence).T
    usable = alive[None, :] & ~jnp.isnan(scores)
    return jax.lax.top_k(jnp.where(usable, scores, -jnp.inf), k)  # equal ones in the market's order
