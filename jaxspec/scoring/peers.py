"""For each user its peer: the learnware that is nearest in distribution.

In a market that is spread over devices, the devices agree on the peers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxspec.market import (
    CHANCE_STEPS,
    Calibration,
    MarketArrays,
    decode_points,
    region,
    witness,
)
from jaxspec.scoring.types import Peers, UserArrays

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

__all__ = ["best_agreement", "find_peers", "is_peer"]


def find_peers(
    market: MarketArrays,
    users: UserArrays,
    squared_mmd: Float[Array, "rows Q"],
    alive: Bool[Array, " rows"],
    calibration: Calibration,
    slots: Int[Array, " rows"] | None = None,
    *,
    axis: Hashable | None = None,
) -> Peers:
    """Return every user's peer: of the learnwares with a probe proxy the nearest in distribution.

    n examples of the peer's own distribution would lie at a squared MMD of (1 - |Phi_l|^2) / n on
    average: up to twice that the peer counts in full, from three times that not at all.

    Args:
        market: arrays of the rows.
        users: Q stacked users.
        squared_mmd: between every row and user.
        alive: which rows hold a learnware.
        calibration: of the whole market.
        slots: of the rows, to tell which of equals came first; with an axis only.
        axis: name (or names) of the mesh's axes inside `shard_map`, else None.
    """
    able = (alive & (market.has_probe > 0))[:, None]
    squared_mmd = jnp.where(able, squared_mmd, jnp.inf)
    row = squared_mmd.argmin(axis=0)
    nearest = jnp.take_along_axis(squared_mmd, row[None], axis=0)[0]
    own = market.self_terms[row]
    noise = jnp.maximum(1.0 - own, 1e-6) / jnp.maximum(users.examples, 1)
    points = decode_points(market.points[row], market.scales[row])
    values = witness(market.kernel, market.landmarks, points, market.weights[row], own)
    peers = Peers(
        row=row.astype(jnp.int32),
        squared_mmd=nearest,
        reliability=jnp.clip(3.0 - nearest / noise, 0.0, 1.0),
        chance=market.probe_chances[row].astype(jnp.float32) * (1.0 / CHANCE_STEPS),
        valid=market.class_ids[row] >= 0,
        region=region(values, calibration.landmark_mean),
    )
    if axis is None:
        return peers
    assert slots is not None
    place = jax.lax.axis_index(axis)
    peers = dataclasses.replace(peers, row=peers.row + place * squared_mmd.shape[0])
    everywhere, slot = jax.lax.all_gather((peers, slots[row]), axis)  # (K, Q, ...)
    # On equal distance the learnware that came first, as on one device.
    least = everywhere.squared_mmd.min(axis=0)
    slot = jnp.where(everywhere.squared_mmd == least, slot, jnp.iinfo(jnp.int32).max)
    return _chosen(everywhere, slot.argmin(axis=0))


def _chosen(peers: Peers, device: Array) -> Peers:
    """Return for each user the candidate of one device, from leaves (K, Q, ...)."""
    users = jnp.arange(device.shape[0])
    return jax.tree.map(lambda leaf: leaf[device, users], peers)


def is_peer(peers: Peers, rows: int, axis: Hashable | None) -> Bool[Array, "rows Q"]:
    """Tell of each of a device's rows whether it is a user's peer."""
    first = 0 if axis is None else jax.lax.axis_index(axis) * rows
    return first + jnp.arange(rows)[:, None] == peers.row[None, :]


def best_agreement(
    agreement: Float[Array, "rows Q"],
    peers: Peers,
    has_probe: Float[Array, " rows"],
    alive: Bool[Array, " rows"],
    *,
    axis: Hashable | None = None,
) -> Float[Array, " Q"]:
    """Return the largest agreement with each user's peer among the other learnwares."""
    others = (has_probe > 0)[:, None] & alive[:, None] & ~is_peer(peers, len(agreement), axis)
    best = jnp.where(others, agreement, 0.0).max(axis=0)
    return best if axis is None else jax.lax.pmax(best, axis)
