"""Markets from stacked specifications, as batched fitting returns them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from jax.sharding import Mesh

from jaxspec.market.admission import check_specification, layout_for
from jaxspec.market.growing_arrays import GrowingArrays, build, find_origin
from jaxspec.market.schema import Layout
from jaxspec.specify import Limits, Space, Specification

__all__ = ["build_stacked"]


def build_stacked(
    space: Space,
    batches: Iterable[tuple[Sequence[str], Specification]],
    *,
    count: int | None,
    precision: str,
    spare: float,
    mesh: Mesh | None,
    limits: Limits,
    progress: Callable[[int, int], None] | None,
) -> tuple[GrowingArrays, int]:
    """Return the arrays of stacked specifications, and how many learnwares there are.

    The arguments are those of `Market.from_stacked`, checked but for the batches.

    Raises:
        TypeError, ValueError: a batch that cannot enter, a repeated id, or a count that is not met.
    """
    if count is None:
        batches = list(batches)
        count = sum(len(ids) for ids, _ in batches)
    wanted = count
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None or not wanted:
        raise ValueError("batches: expected at least one learnware, got none")
    ids, spec = first
    check_specification(ids[0] if ids else "", spec, space, (len(ids),), limits=limits)
    layout = layout_for({"": spec}, space)
    seen: set[str] = set()

    def checked() -> Iterator[tuple[Sequence[str], Specification]]:
        for ids, spec in itertools.chain([first], iterator):
            name = f"{ids[0]} ..." if ids else ""
            check_specification(name, spec, space, (len(ids),), limits=limits)
            _check_room(name, spec, space, layout)
            _note_ids(name, ids, seen)
            if len(seen) > wanted:
                raise ValueError(f"count: expected {wanted} learnwares, got more")
            yield ids, spec

    bandwidth = float(space.kernel.bandwidth)
    shared = build(
        space,
        checked(),
        wanted,
        layout,
        find_origin([spec.reduced_set.points], bandwidth, space.dimension),
        precision=precision,
        mesh=mesh,
        spare=spare,
        progress=progress,
    )
    if len(seen) != wanted:
        raise ValueError(f"count: expected {wanted} learnwares, got {len(seen)}")
    return shared, wanted


def _check_room(name: str, spec: Specification, space: Space, layout: Layout) -> None:
    if not layout.covers(layout_for({name: spec}, space)):
        raise ValueError(
            f"specification {name!r}: expected at most {layout.points} points, {layout.classes} "
            "classes and the optional parts that the first batch has, got more"
        )


def _note_ids(name: str, ids: Sequence[str], seen: set[str]) -> None:
    fresh = set(ids)
    strings = all(isinstance(one, str) and one for one in ids)
    if not strings or len(fresh) != len(ids) or fresh & seen:
        raise ValueError(f"ids: expected different non-empty strings, in the batch of {name!r}")
    seen.update(fresh)
