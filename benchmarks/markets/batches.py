"""What the makers of markets share: stacked specifications, and a market of many of them.

A batch is a list of ids and one `Specification` whose arrays have a leading axis of learnwares, all
of one label space, as the batched fitting of the library returns them. `specification_of` makes a
batch and `market_of` a market, without a second copy of all arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

import jaxspec as js

__all__ = ["Batch", "market_of", "specification_of"]

Batch = tuple[list[str], js.Specification]


def specification_of(
    space: js.Space,
    ids: Sequence[str],
    points: np.ndarray,
    *,
    weights: np.ndarray,
    bias: np.ndarray,
    class_names: Sequence[str],
    point_weights: np.ndarray | None = None,
    probe_proxy: Any = None,
) -> Batch:
    """Return a batch of b learnwares of one label space.

    Args:
        space: of all of them.
        ids: b names.
        points: (b, m, d) of the reduced sets.
        weights: (b, d, C) of the proxies.
        bias: (b, C).
        class_names: C names.
        point_weights: (b, m); None for 1/m.
        probe_proxy: a stacked `ProbeProxy`, or None.
    """
    if point_weights is None:
        point_weights = np.full(points.shape[:2], 1 / points.shape[1], np.float32)
    made = js.Specification(
        reduced_set=js.ReducedSet(points, point_weights),
        proxy=js.Proxy(np.ascontiguousarray(weights), bias),
        class_names=tuple(class_names),
        space_name=space.name,
        space_digest=space.digest,
        probe_proxy=probe_proxy,
    )
    return list(ids), made


def market_of(
    space: js.Space,
    batches: Iterable[Batch],
    *,
    count: int,
    precision: str = "float32",
    spare: float = 0.25,
    progress: Callable[[int, int], None] | None = None,
) -> js.Market:
    """Return a market of batches.

    Args:
        space: of all learnwares.
        batches: as of `specification_of`.
        count: learnwares in all batches.
        precision: "float32", "bfloat16" or "int8".
        spare: share of rows to keep free for learnwares that are added later.
        progress: called with (learnwares done, learnwares).
    """
    return js.Market.from_stacked(
        space, batches, count=count, precision=precision, spare=spare, progress=progress
    )
