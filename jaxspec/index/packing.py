"""The contents of an index as plain values, as they are saved beside a market, and back.

Codes, the encoder and the filters of the scores of this package are kept, so that a loaded index
searches as the saved one did. What comes from a file is checked here. Nothing here opens a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxspec.index.codes import Codes, KeptCodes
from jaxspec.index.encoder import BEHAVIOUR, EMBEDDING, SKETCH, Encoder
from jaxspec.index.filter import FittedFilter
from jaxspec.index.search import FEATURES
from jaxspec.market import Market, PackedExtension
from jaxspec.scoring import METHODS, Score

__all__ = ["Filters", "pack_index", "unpack_codes", "unpack_filters"]

Filters = dict[tuple[Score, bool], FittedFilter]
MAX_DEPTHS = 1 << 16
FIXED = ("anchors", "projection", "mean", "probe_map", "user_map")


def pack_index(market: Market, codes: Codes) -> PackedExtension:
    """Return the contents of an index of a market."""
    rows, slots = market.rows, market.slots
    stored = {name: np.asarray(getattr(codes.stored, name))[rows] for name in ("values", "scales")}
    fixed = {name: np.asarray(getattr(codes.encoder, name)) for name in FIXED}
    filters = [
        {
            "score": score.name,
            "by_name": by_name,
            "weights": fitted.weights.astype(float).tolist(),
            "depths": fitted.depths.astype(float).tolist(),
            "length": int((slots < fitted.length).sum()),
            "count": fitted.count,
        }
        for (score, by_name), fitted in codes.filters.items()
        if METHODS.get(score.name) == score
    ]
    facts = {
        "fitted_length": int((slots < codes.fitted_length).sum()),
        "fitted_count": codes.fitted_count,
        "filters": filters,
    }
    return PackedExtension(
        stored, {name: value for name, value in fixed.items() if value.size}, facts
    )


def unpack_codes(market: Market, packed: PackedExtension, places: np.ndarray) -> KeptCodes | None:
    """Return the codes for a market from what `pack_index` returned earlier.

    Args:
        market: as it is now.
        packed: what was packed.
        places: (M,) the row of every learnware in what was packed, or -1.

    Returns:
        The codes, or None where they are of no use: learnwares have probe proxies by now.

    Raises:
        ValueError: contents that are not those of `pack_index`.
    """
    d, known = market.dimension, places >= 0
    count = len(packed.rows.get("values", ()))
    landmarks = market.shared.layout.landmarks
    fixed = {
        "probe_map": np.zeros((0, BEHAVIOUR), np.float32),
        "user_map": np.zeros((0, BEHAVIOUR), np.float32),
        **packed.fixed,
    }
    anchors = len(fixed["anchors"]) if "anchors" in fixed else 0
    maps = len(fixed["probe_map"])
    shapes = {
        "anchors": (anchors, d),
        "projection": (anchors, EMBEDDING),
        "mean": (EMBEDDING,),
        "probe_map": (maps, BEHAVIOUR),
        "user_map": (maps, BEHAVIOUR),
    }
    _check(set(fixed) == set(shapes), f"fixed: expected {sorted(shapes)}, got {sorted(fixed)}")
    for name, shape in shapes.items():
        _check_array(name, fixed[name], shape, np.float32)
    _check(set(packed.rows) == {"values", "scales"}, "rows: expected values and scales")
    _check_array("values", packed.rows["values"], (count, EMBEDDING + SKETCH), np.int8)
    _check_array("scales", packed.rows["scales"], (count, 2), np.float32)
    length = _count("fitted_length", packed.facts.get("fitted_length"))
    fitted_count = _count("fitted_count", packed.facts.get("fitted_count"))
    if maps != landmarks:
        return None
    width = BEHAVIOUR if landmarks else d
    parts: dict[str, Any] = {name: jnp.asarray(fixed[name]) for name in FIXED}
    encoder = Encoder(
        places=jnp.zeros((1, width), jnp.int32), signs=jnp.zeros((1, width), jnp.float32), **parts
    )
    return KeptCodes(
        encoder=encoder,
        values=packed.rows["values"][places],
        scales=packed.rows["scales"][places],
        known=known,
        fitted_length=_slots_of_first(length, places),
        fitted_count=fitted_count,
    )


def unpack_filters(packed: PackedExtension, places: np.ndarray) -> Filters:
    """Return the filters from what `pack_index` returned earlier; arguments as there.

    Raises:
        ValueError: contents that are not those of `pack_index`.
    """
    filters: Filters = {}
    listed = packed.facts.get("filters")
    _check(isinstance(listed, list), f"filters: expected a list, got {listed!r:.40}")
    for one in listed or ():
        names = {"score", "by_name", "weights", "depths", "length", "count"}
        _check(isinstance(one, Mapping) and set(one) == names, f"filters: expected {sorted(names)}")
        score = METHODS.get(one["score"]) if isinstance(one["score"], str) else None
        _check(score is not None, f"score: expected one of {sorted(METHODS)}")
        _check(isinstance(one["by_name"], bool), "by_name: expected true or false")
        weights = _numbers("weights", one["weights"])
        depths = _numbers("depths", one["depths"])
        _check(len(weights) == FEATURES, f"weights: expected {FEATURES} numbers")
        good = len(depths) > 0 and bool((np.diff(depths) >= 0).all() and depths[0] >= 0)
        _check(good, "depths: expected ascending numbers from zero on")
        assert score is not None
        filters[score, one["by_name"]] = FittedFilter(
            weights.astype(np.float32),
            depths,
            _slots_of_first(_count("length", one["length"]), places),
            max(_count("count", one["count"]), 1),
        )
    return filters


def _slots_of_first(length: int, places: np.ndarray) -> int:
    """Return how many of a market's first slots are of the first `length` that were packed."""
    others = (places < 0) | (places >= length)
    return int(np.argmax(others)) if others.any() else len(places)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_array(name: str, value: Any, shape: tuple[int, ...], dtype: Any) -> None:
    good = value.shape == shape and value.dtype == dtype
    _check(good, f"{name}: expected {np.dtype(dtype)} of shape {shape}, got {value.shape}")


def _count(name: str, value: Any) -> int:
    _check(
        type(value) is int and 0 <= value < 2**53, f"{name}: expected a count, got {value!r:.40}"
    )
    return int(value)


def _numbers(name: str, values: Any) -> np.ndarray:
    good = isinstance(values, list) and len(values) <= MAX_DEPTHS
    good = good and all(type(one) in (int, float) for one in values)
    _check(good, f"{name}: expected a list of numbers")
    found = np.array(values, np.float64)
    _check(bool(np.isfinite(found).all()), f"{name}: expected finite numbers")
    return found
