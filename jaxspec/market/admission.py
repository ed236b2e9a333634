"""Which specifications a market takes in: those of its space that are sound in themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxspec.kernels import ReducedSet
from jaxspec.market.schema import Layout
from jaxspec.specify import (
    MAX_ID,
    RANK,
    Limits,
    Proxy,
    Space,
    Specification,
    as_class_names,
    check_part,
    check_same_space,
    check_weights,
)

__all__ = ["MAX_ID", "check_specification", "checked_mapping", "layout_for"]


def checked_mapping(
    name: str, specifications: Any, space: Space, limits: Limits | None = None
) -> dict[str, Specification]:
    """Return {id: specification} if all of it can enter a market of this space and these limits.

    Raises:
        TypeError, ValueError: it cannot; the message names the id and the field.
    """
    if not isinstance(specifications, Mapping):
        raise TypeError(
            f"{name}: expected a mapping from ids to specifications such as {{'id': spec}}, "
            f"got a {type(specifications).__name__}"
        )
    for learnware, spec in specifications.items():
        check_specification(learnware, spec, space, limits=limits)
    return dict(specifications)


def check_specification(
    learnware: Any,
    spec: Any,
    space: Space,
    batch: tuple[int, ...] = (),
    *,
    limits: Limits | None = None,
) -> None:
    """Raise unless a specification (or a stacked one, with leading axis `batch`) is sound.

    Sizes are compared with the limits (by default `Limits()`) before any number is looked at.

    Raises:
        TypeError, ValueError: it is not; the message names the id and the field.
    """
    limits = limits or Limits()
    limits.check_id(learnware)
    owner = f"specification {learnware!r:.80}"
    if not isinstance(spec, Specification):
        raise TypeError(f"{owner}: expected a Specification, got a {type(spec).__name__}")
    check_same_space(owner, spec, "the market", space)
    if not isinstance(spec.class_names, tuple):  # label spaces are looked up by the tuple
        raise TypeError(
            f"{owner}.class_names: expected a tuple, got a {type(spec.class_names).__name__}"
        )
    named = spec.proxy is not None or spec.class_names or spec.probe_proxy is not None
    if named and as_class_names(f"{owner}.class_names", spec.class_names) != spec.class_names:
        raise ValueError(f"{owner}.class_names: expected names in Unicode's form NFC")
    if not isinstance(spec.reduced_set, ReducedSet) or (
        named and not isinstance(spec.proxy, Proxy)
    ):
        raise TypeError(
            f"{owner}: expected a ReducedSet and a Proxy in it, got a "
            f"{type(spec.reduced_set).__name__} and a {type(spec.proxy).__name__}"
        )
    shape = np.shape(spec.reduced_set.points)
    if len(shape) != 2 + len(batch) or 0 in shape[-2:] or shape[-1] != space.dimension:
        wanted = ", ".join([*map(str, batch), "m", str(space.dimension)])
        raise ValueError(
            f"{owner}: expected reduced_set.points of shape ({wanted}) with m above zero, "
            f"got {shape}"
        )
    (m, d), classes = shape[-2:], len(spec.class_names)
    limits.check(owner, points=m, class_names=spec.class_names, about=spec.about)
    expected = [
        ("reduced_set.points", spec.reduced_set.points, (*batch, m, d)),
        ("reduced_set.weights", spec.reduced_set.weights, (*batch, m)),
    ]
    if spec.proxy is not None:
        expected += [
            ("proxy.weights", spec.proxy.weights, (*batch, d, classes)),
            ("proxy.bias", spec.proxy.bias, (*batch, classes)),
        ]
    if spec.representation is not None:
        expected.append(("representation", spec.representation, (*batch, d, RANK)))
    if spec.probe_proxy is not None:
        if space.probe is None:
            raise ValueError(
                f"{owner}: expected no probe proxy, as the space {space.name!r} has no probe"
            )
        landmarks = len(space.landmarks)
        expected += [
            ("probe_proxy.weights", spec.probe_proxy.weights, (*batch, landmarks, classes)),
            ("probe_proxy.bias", spec.probe_proxy.bias, (*batch, classes)),
        ]
        _check_fidelity(owner, spec.probe_proxy.fidelity)
    for name, array, wanted_shape in expected:
        check_part(owner, name, array, wanted_shape)
    check_weights(owner, spec.reduced_set.weights, (*batch, m))


def _check_fidelity(owner: str, fidelity: Any) -> None:
    values = np.asarray(fidelity)
    if values.dtype.kind not in "fiu" or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f"{owner}: expected probe_proxy.fidelity within 0..1, got {fidelity!r:.80}"
        )


def layout_for(specifications: Mapping[str, Specification], space: Space) -> Layout:
    """Return the padded sizes that hold these specifications (smallest sizes for none)."""
    specs = specifications.values()
    probed = any(spec.probe_proxy is not None for spec in specs)
    return Layout.for_sizes(
        max((int(np.shape(spec.reduced_set.points)[-2]) for spec in specs), default=2),
        max((len(spec.class_names) for spec in specs), default=2),
        space.dimension,
        len(space.landmarks) if probed else 0,
        any(spec.representation is not None for spec in specs),
    )
