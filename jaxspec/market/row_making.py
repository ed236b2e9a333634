"""Rows of specifications as a market stores them, for those who keep them elsewhere, as on disk.

`make_rows` does what adding to a market in memory does, number for number, without one. Nothing
here opens a file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from jaxspec.market import devices
from jaxspec.market.admission import layout_for
from jaxspec.market.derived import Making, Rows
from jaxspec.market.growing_arrays import GrowingArrays, find_origin, pieces
from jaxspec.market.ledger import Entry, Ledger
from jaxspec.market.schema import Layout, finish_rows, read_rows
from jaxspec.specify import Space, Specification

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["MadeRows", "make_rows", "making_of"]

LARGEST_RATIO = 4  # of a market's row to the row that a batch needs, to take the market's sizes


@dataclasses.dataclass(frozen=True)
class MadeRows:
    """Specifications as rows.

    Attributes:
        ledger: their ids, class names and metadata, with numbers of class names of its own.
        rows: {name: (n, ...)} as they are stored.
        layout: the padded sizes of the rows.
        origin: (d,) what was subtracted from all points.
    """

    ledger: Ledger
    rows: Rows
    layout: Layout
    origin: Float[np.ndarray, " d"]


@devices.in_float32()
def make_rows(
    space: Space,
    specifications: Mapping[str, Specification],
    *,
    precision: str,
    origin: Float[np.ndarray, " d"] | None = None,
    layout: Layout | None = None,
) -> MadeRows:
    """Return checked specifications of one space as rows.

    Args:
        space: of the specifications.
        specifications: {id: specification}, at least one.
        precision: in which rows are stored.
        origin: (d,) of the market that the rows are for, or None to find one for them.
        layout: of this market. Its sizes are taken, so that the same functions are compiled, unless
            its rows are much larger than these specifications need.
    """
    specs = list(specifications.values())
    own = layout_for(specifications, space)
    if layout is not None and layout.covers(own) and _size(layout) <= LARGEST_RATIO * _size(own):
        own = dataclasses.replace(
            own, points=layout.points, classes=layout.classes, dimension=layout.dimension
        )
    if origin is None:
        points = [spec.reduced_set.points for spec in specs]
        origin = find_origin(points, float(space.kernel.bandwidth), space.dimension)
    ledger = Ledger()
    making = making_of(space, precision, origin, own, ledger)
    done = []
    for start, piece in pieces(read_rows(own, specs, len(specs), making)):
        count = min(len(specs) - start, len(piece["weights"]))
        done.append({name: v[:count] for name, v in finish_rows(piece, making).items()})
    rows = {name: np.concatenate([one[name] for one in done]) for name in done[0]}
    for learnware, spec in specifications.items():
        ledger.enter(learnware, Entry.of(spec))
    return MadeRows(ledger, rows, own, origin)


def making_of(
    space: Space,
    precision: str,
    origin: Float[np.ndarray, " d"],
    layout: Layout,
    ledger: Ledger,
) -> Making:
    """Return what has to be known of a market to make rows for it."""
    with_landmarks = layout.landmarks > 0
    grown = GrowingArrays(
        space, precision, None, origin, with_landmarks=with_landmarks, ledger=ledger
    )
    return grown.making


def _size(layout: Layout) -> int:
    """Return about how many numbers a row of a layout has."""
    classes = layout.dimension + layout.landmarks
    return (layout.points + layout.directions) * layout.dimension + layout.classes * classes
