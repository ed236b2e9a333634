"""The arrays of a market, each declared once.

A declaration says which axes an array has, what kind of numbers it holds, whether it has one row
per learnware, whether it is saved, and where its numbers come from: read from a specification, or
derived from other arrays. Allocation, encoding, saving, loading, checking, spreading over devices
and streaming read these declarations, so a new array is one declaration here and the function that
computes it (in `derived.py` if it follows from others).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxspec.base import bucket, register
from jaxspec.kernels import Kernel
from jaxspec.market import derived
from jaxspec.market.calibration import Calibration
from jaxspec.market.derived import Making, Rows
from jaxspec.market.precision import dtype_of, encode
from jaxspec.specify import RANK, Specification

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Num, UInt8

__all__ = [
    "FIXED_ARRAYS",
    "ROW_ARRAYS",
    "SCHEMA",
    "ArrayDeclaration",
    "Layout",
    "MarketArrays",
    "finish_rows",
    "read_rows",
]


@dataclasses.dataclass(frozen=True)
class ArrayDeclaration:
    """What there is to know about one array of a market.

    Attributes:
        axes: names of the axes. "row" is the axis of learnwares; the sizes of the others are those
            of a `Layout`.
        kind: "points" or "vectors", whose type the market's precision fixes, or the name of a
            numpy type.
        part: the optional part of a specification that the array belongs to: "" for none,
            "probe" or "representation". A market without that part has the array with no entries,
            and does not save it.
        saved: whether it is written to disk; what is not is derived anew.
        fill: the value of unused rows and of padding.
        read: returns one learnware's numbers, or those of a batch with a leading axis, without
            padding, from a specification and what is known of the market.
        derive: returns the rows from the float32 rows as read, the rows that are finished so far,
            and what is known of the market.
    """

    axes: tuple[str, ...]
    kind: str
    part: str = ""
    saved: bool = True
    fill: int = 0
    read: Callable[[Specification, Making], Any] | None = None
    derive: Callable[[Rows, Rows, Making], np.ndarray] | None = None

    @property
    def per_row(self) -> bool:
        """Whether there is one entry per learnware."""
        return self.axes[:1] == ("row",)


def _declared(axes: str, kind: str = "float32", **options: Any) -> Any:
    declaration = ArrayDeclaration(tuple(axes.split()), kind, **options)
    return dataclasses.field(metadata={"declaration": declaration})


def _points(spec: Specification, making: Making) -> np.ndarray:
    return np.asarray(spec.reduced_set.points, np.float32) - making.origin


def _class_vectors(spec: Specification, making: Making) -> np.ndarray | None:
    if spec.proxy is None:
        return None
    vectors = np.swapaxes(np.asarray(spec.proxy.weights, np.float32), -1, -2)
    return vectors - vectors.mean(axis=-2, keepdims=True)


def _class_bias(spec: Specification, making: Making) -> np.ndarray | None:
    if spec.proxy is None:
        return None
    bias = np.asarray(spec.proxy.bias, np.float32)
    return bias - bias.mean(axis=-1, keepdims=True)


def _probe_weights(spec: Specification, making: Making) -> np.ndarray | None:
    if spec.probe_proxy is None:
        return None
    return np.swapaxes(np.asarray(spec.probe_proxy.weights, np.float32), -1, -2)


def _probe_bias(spec: Specification, making: Making) -> np.ndarray | None:
    return None if spec.probe_proxy is None else np.asarray(spec.probe_proxy.bias, np.float32)


def _hidden_maps(spec: Specification, making: Making) -> np.ndarray | None:
    if spec.representation is None:
        return None
    return np.swapaxes(np.asarray(spec.representation, np.float32), -1, -2)


@register
@dataclasses.dataclass(frozen=True, eq=False)
class MarketArrays:
    """The numbers of a market as one pytree; rows without a learnware and paddings are zero.

    Attributes:
        kernel: the kernel of the space.
        scales: what stored points are multiplied by; one unless the precision is "int8".
        points: reduced-set points relative to `origin`, as they are stored.
        square_norms: of the points as stored.
        weights: signed weights of the points.
        self_terms: squared norms of the embeddings.
        class_vectors: proxy weights, one row per class, centred over the classes.
        class_grams: inner products of the class vectors as stored; empty with many classes.
        class_bias: of the proxies.
        class_ids: numbers of the class names, -1 where there is no class.
        probe_weights: of the probe proxies.
        probe_bias: of the probe proxies.
        probe_chances: 255 times the probability of each class at the landmarks.
        has_probe: one where there is a probe proxy, else zero.
        hidden_maps: representations, zero where there is none.
        landmarks: of the space, relative to `origin`.
        whitening: of the landmarks.
        origin: subtracted from all points; zero unless the features lie far from zero.
        alive: which rows hold a learnware of this version of the market.
        length: slots from here on are unused and need not be computed.
        calibration: what the market has found out about itself.
    """

    kernel: Kernel
    scales: Float[Array, "row m"] = _declared("row point", derive=derived.scales)
    points: Num[Array, "row m d"] = _declared("row point feature", "points", read=_points)
    square_norms: Float[Array, "row m"] = _declared("row point", derive=derived.square_norms)
    weights: Float[Array, "row m"] = _declared(
        "row point", read=lambda spec, making: np.asarray(spec.reduced_set.weights, np.float32)
    )
    self_terms: Float[Array, " row"] = _declared("row", derive=derived.self_terms)
    class_vectors: Float[Array, "row C d"] = _declared(
        "row class feature", "vectors", read=_class_vectors
    )
    class_grams: Float[Array, "row C C"] = _declared(
        "row gram_class gram_class", saved=False, derive=derived.class_grams
    )
    class_bias: Float[Array, "row C"] = _declared("row class", read=_class_bias)
    class_ids: Int[Array, "row C"] = _declared(
        "row class", "int32", fill=-1, read=lambda spec, making: making.class_numbers(spec)
    )
    probe_weights: Float[Array, "row C D"] = _declared(
        "row class landmark", "vectors", part="probe", read=_probe_weights
    )
    probe_bias: Float[Array, "row C"] = _declared("row class", read=_probe_bias)
    has_probe: Float[Array, " row"] = _declared(
        "row", read=lambda spec, making: np.float32(spec.probe_proxy is not None)
    )
    probe_chances: UInt8[Array, "row C D"] = _declared(
        "row class landmark", "uint8", part="probe", derive=derived.probe_chances
    )
    hidden_maps: Float[Array, "row R d"] = _declared(
        "row direction feature", "vectors", part="representation", read=_hidden_maps
    )
    landmarks: Float[Array, "D d"] = _declared("landmark feature", part="probe", saved=False)
    whitening: Float[Array, "D D"] = _declared("landmark landmark", part="probe", saved=False)
    origin: Float[Array, " d"] = _declared("feature")
    alive: Bool[Array, " row"] | None = None
    length: Int[Array, ""] | None = None
    calibration: Calibration | None = None


SCHEMA: Mapping[str, ArrayDeclaration] = {
    field.name: field.metadata["declaration"]
    for field in dataclasses.fields(MarketArrays)
    if "declaration" in field.metadata
}
ROW_ARRAYS = tuple(name for name, one in SCHEMA.items() if one.per_row)
FIXED_ARRAYS = tuple(name for name, one in SCHEMA.items() if not one.per_row)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The padded sizes that all rows of a market share.

    Attributes:
        points: points per learnware.
        classes: classes per learnware.
        dimension: features.
        landmarks: landmarks of the space, zero where nobody has a probe proxy.
        directions: directions of a representation, zero where nobody has one.
    """

    points: int
    classes: int
    dimension: int
    landmarks: int = 0
    directions: int = 0

    @classmethod
    def for_sizes(
        cls, points: int, classes: int, dimension: int, landmarks: int, representation: bool
    ) -> Layout:
        """Return the padded layout that holds these sizes."""
        return cls(
            points + points % 2,
            bucket(classes),
            dimension,
            landmarks,
            RANK if representation else 0,
        )

    @classmethod
    def of(cls, arrays: MarketArrays) -> Layout:
        """Return the layout of existing arrays."""
        _, points, dimension = arrays.points.shape
        _, classes, landmarks = arrays.probe_weights.shape
        return cls(points, classes, dimension, landmarks, arrays.hidden_maps.shape[1])

    def shape(self, axes: tuple[str, ...], rows: int) -> tuple[int, ...]:
        """Return the shape of an array with these axes, for so many rows."""
        kept = self.classes <= derived.MAX_GRAM_CLASSES
        sizes = {
            "row": rows,
            "point": self.points,
            "class": self.classes,
            "gram_class": self.classes if kept else 0,
            "feature": self.dimension,
            "landmark": self.landmarks,
            "direction": self.directions,
        }
        return tuple(sizes[axis] for axis in axes)

    def covers(self, other: Layout) -> bool:
        """Tell whether rows of the other layout fit into this one."""
        mine, others = dataclasses.astuple(self), dataclasses.astuple(other)
        return all(own >= wanted for own, wanted in zip(mine, others, strict=True))

    def joined(self, other: Layout) -> Layout:
        """Return the layout that holds rows of both."""
        mine, others = dataclasses.astuple(self), dataclasses.astuple(other)
        return Layout(*(max(pair) for pair in zip(mine, others, strict=True)))

    def empty(self, rows: int, precision: str) -> Rows:
        """Return rows without a learnware, as they are stored: {name: (rows, ...)}."""
        return {
            name: np.full(
                self.shape(SCHEMA[name].axes, rows),
                SCHEMA[name].fill,
                dtype_of(SCHEMA[name].kind, precision),
            )
            for name in ROW_ARRAYS
        }


def read_rows(
    layout: Layout, specs: list[Specification] | Specification, count: int, making: Making
) -> Rows:
    """Return what `count` specifications say, padded, in float32: {name: (count, ...)}.

    Args:
        layout: sizes that hold all of them.
        specs: a list of specifications, or one stacked specification with a leading axis.
        count: how many there are.
        making: what is known of the market.
    """
    rows: Rows = {}
    for name in ROW_ARRAYS:
        one = SCHEMA[name]
        if one.read is None:
            continue
        kind = one.kind if one.kind not in ("points", "vectors") else "float32"
        rows[name] = np.full(layout.shape(one.axes, count), one.fill, kind)
        blocks = [(slice(None), specs)] if isinstance(specs, Specification) else enumerate(specs)
        for at, spec in blocks:
            values = one.read(spec, making)
            if values is not None:
                place = (at, ..., *(slice(0, size) for size in _padded_sizes(one, values)))
                rows[name][place] = values
    return rows


def _padded_sizes(declaration: ArrayDeclaration, values: Any) -> tuple[int, ...]:
    """Return the sizes of a learnware's own axes: those after the axis of learnwares."""
    own = len(declaration.axes) - 1
    return np.shape(values)[np.ndim(values) - own :] if own else ()


def finish_rows(read: Rows, making: Making) -> Rows:
    """Return rows as they are stored, with everything that follows from what was read."""
    done: Rows = {}
    for name in ROW_ARRAYS:
        one = SCHEMA[name]
        if one.derive is not None:
            done[name] = one.derive(read, done, making)
        else:
            done[name] = encode(read[name], one.kind, making.precision, done.get("scales"))
    return done
