"""What a submitter publishes and what a user asks with.

A `Specification` is {Phi = (weights, points), W}: a reduced kernel mean embedding of the
submitter's features and a linear proxy of its model, with the class names and the space that make
the numbers mean something. A `UserSpecification` is the same for a task with a few labelled
examples. Both are frozen pytrees: arrays are leaves, names are structure. Data never enter them,
only what is fitted to data. `jaxspec.specify.making` makes them.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxspec.base import Persistent, as_class_labels, register
from jaxspec.kernels import ReducedSet
from jaxspec.specify.about import About
from jaxspec.specify.limits import MAX_NAME
from jaxspec.specify.probe_proxy import ProbeProxy
from jaxspec.specify.proxy import Proxy
from jaxspec.specify.space import Space, check_same_space

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

__all__ = [
    "FORMAT_VERSION",
    "LARGEST",
    "Specification",
    "UserSpecification",
    "as_class_names",
    "check_part",
    "check_user",
    "check_user_weights",
    "check_weights",
]

FORMAT_VERSION = 2
MAX_CLASSES = 100_000
# Of a number in a specification. A product of two such numbers, summed over 65,536 features (as
# many as a file may declare), is at most 6.6e34, which float32 (at most 3.4e38) holds: so logits,
# squared distances (four times as large) and products of class vectors are finite. What is squared
# once more is either divided by its own size, where infinity gives zero, or is bounded below.
LARGEST = 1e15
# Of the sum of the sizes of a reduced set's weights: its square, the largest that the squared norm
# of an embedding can be, is 1e36.
LARGEST_WEIGHT_SUM = 1e18
# Part of the sum of sizes that the sum of a user's weights is, at least. Scores divide by the sum:
# one that is what rounding left of cancelling weights means nothing.
LEAST_USER_PART = 1e-3
LEAST_USER_SUM = 1e-6  # scores multiply squares of weights: 1e-12 is far above float32's 1e-38
_STATIC = {"static": True}


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Specification(Persistent):
    """What the market knows about one learnware.

    Attributes:
        reduced_set: Phi, points (m, d) and signed weights (m,).
        proxy: W, a linear stand-in for the model: weights (d, C) and bias (C,). None where only the
            reduced set is known; then there are no class names and no probe proxy either, and the
            learnware is found by its distribution alone.
        class_names: C different names, in the order of the proxy's columns.
        space_name: the name of the space that the features live in.
        space_digest: the digest of that space.
        probe_proxy: how the model answers on the space's public probe, or None.
        representation: (d, R) map of the features to the model's hidden directions, or None.
        num_examples: how many examples stand behind the reduced set.
        about: metadata of the owner, such as the licence.
        format_version: of the fields; files of another version are refused.
    """

    reduced_set: ReducedSet
    proxy: Proxy | None
    class_names: tuple[str, ...] = dataclasses.field(metadata=_STATIC)
    space_name: str = dataclasses.field(metadata=_STATIC)
    space_digest: str = dataclasses.field(metadata=_STATIC)
    probe_proxy: ProbeProxy | None = None
    representation: Float[Array, "d R"] | None = None
    num_examples: int = dataclasses.field(metadata=_STATIC, default=0)
    about: About = dataclasses.field(metadata=_STATIC, default_factory=About)
    format_version: int = dataclasses.field(metadata=_STATIC, default=FORMAT_VERSION)

    def __repr__(self) -> str:
        m, d = np.shape(self.reduced_set.points)[-2:]
        classes = f"{len(self.class_names)} classes" if self.proxy is not None else "no proxy"
        parts = [classes, f"{m} points of {d} features"]
        if self.probe_proxy is not None:
            parts.append("a probe proxy")
        if self.representation is not None:
            parts.append("a representation")
        return f"Specification({', '.join(parts)}, space {self.space_name!r})"


@register
@dataclasses.dataclass(frozen=True, eq=False)
class UserSpecification(Persistent):
    """What a user with a few labelled examples asks the market with.

    Attributes:
        reduced_set: Phi_T, points (n, d) with weights; the examples themselves with weights 1/n,
            or fewer points if there were many.
        proxy: W_T, fitted to the labels alone.
        labels: (n,) int32, the class of every point of Phi_T, or None if they are not shared.
        class_names: C_T different names.
        space_name: the name of the space that the features live in.
        space_digest: the digest of that space.
        num_examples: how many examples stand behind Phi_T.
        format_version: of the fields.
    """

    reduced_set: ReducedSet
    proxy: Proxy
    labels: Int[Array, " n"] | None
    class_names: tuple[str, ...] = dataclasses.field(metadata=_STATIC)
    space_name: str = dataclasses.field(metadata=_STATIC)
    space_digest: str = dataclasses.field(metadata=_STATIC)
    num_examples: int = dataclasses.field(metadata=_STATIC, default=0)
    format_version: int = dataclasses.field(metadata=_STATIC, default=FORMAT_VERSION)

    def __repr__(self) -> str:
        n, d = np.shape(self.reduced_set.points)[-2:]
        shared = "labels shared" if self.labels is not None else "labels kept back"
        return (
            f"UserSpecification({len(self.class_names)} classes, {n} points of {d} features, "
            f"{shared}, space {self.space_name!r})"
        )


def as_class_names(name: str, value: Any, count: int | None = None) -> tuple[str, ...]:
    """Return `value` as a tuple of different, non-empty names in Unicode's form NFC.

    Two forms of one name, composed and decomposed, are the same name: folders of macOS give the
    second form, most other systems the first.

    Args:
        name: what the argument is called in errors.
        value: a sequence of strings.
        count: how many are expected, or None.

    Raises:
        TypeError: not a sequence of strings.
        ValueError: fewer than two names, an empty name, equal names, or another count.
    """
    listed = isinstance(value, Sequence) or (hasattr(value, "__iter__") and hasattr(value, "shape"))
    if isinstance(value, str | bytes | Mapping) or not listed:
        raise TypeError(f"{name}: expected a sequence of strings, got {value!r:.200}")
    names = tuple(value)
    if len(names) > MAX_CLASSES:
        raise ValueError(f"{name}: expected at most {MAX_CLASSES} names, got {len(names)}")
    for entry in names:
        if not isinstance(entry, str):
            raise TypeError(f"{name}: expected strings, got {entry!r:.80}")
        if not entry.strip() or len(entry) > MAX_NAME:
            raise ValueError(
                f"{name}: expected non-empty names of at most {MAX_NAME} characters, "
                f"got {entry!r:.80}"
            )
    names = tuple(unicodedata.normalize("NFC", str(entry)) for entry in names)
    if len(set(names)) != len(names):
        equal = next(entry for i, entry in enumerate(names) if entry in names[:i])
        raise ValueError(f"{name}: expected different names, got {equal!r} twice")
    if len(names) < 2:
        raise ValueError(f"{name}: expected at least two classes, got {names!r:.200}")
    if count is not None and len(names) != count:
        raise ValueError(f"{name}: expected {count} names, one per class, got {len(names)}")
    return names


def check_part(owner: str, name: str, value: Any, shape: tuple[int, ...]) -> None:
    """Raise unless an array of a specification has this shape and numbers that can be scored.

    A market is scored in one pass: a number that overflows in one learnware could reach all.
    """
    array = np.asarray(value)
    if array.shape != shape:
        raise ValueError(f"{owner}: expected {name} of shape {shape}, got {array.shape}")
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise TypeError(f"{owner}: expected numbers in {name}, got dtype {array.dtype}")
    largest = max(array.max(), -array.min()) if array.size else 0.0
    if not np.isfinite(largest):
        raise ValueError(f"{owner}: expected finite numbers in {name}, got NaN or infinity")
    if largest > LARGEST:
        raise ValueError(
            f"{owner}: expected numbers of at most {LARGEST:.0e} in {name}, got {largest:.1e}"
        )


def check_weights(owner: str, value: Any, shape: tuple[int, ...]) -> None:
    """Raise unless the weights of a reduced set have this shape and can be scored.

    Raises:
        TypeError, ValueError: as `check_part`, or weights whose sum of sizes is too large.
    """
    check_part(owner, "reduced_set.weights", value, shape)
    total = np.abs(np.asarray(value, np.float64)).sum(axis=-1).max(initial=0.0)
    if total > LARGEST_WEIGHT_SUM:
        raise ValueError(
            f"{owner}: reduced_set.weights: expected sizes that sum to at most "
            f"{LARGEST_WEIGHT_SUM:.0e}, got {total:.1e}"
        )


def check_user_weights(owner: str, value: Any, shape: tuple[int, ...]) -> None:
    """Raise unless these can be the weights of a user's points: their sum is what scores divide by.

    Raises:
        TypeError, ValueError: as `check_weights`, or a sum that is not above zero, or that is
            nothing but what cancelling weights leave.
    """
    check_weights(owner, value, shape)
    weights = np.asarray(value, np.float64)
    total, sizes = float(weights.sum()), float(np.abs(weights).sum())
    if not total > 0:
        raise ValueError(f"{owner}: reduced_set.weights: expected a sum above zero, got {total}")
    if total < LEAST_USER_SUM or total < LEAST_USER_PART * sizes:
        raise ValueError(
            f"{owner}: reduced_set.weights: expected a sum of at least {LEAST_USER_SUM}, and of at "
            f"least {LEAST_USER_PART} of the sum of their sizes, got {total:.3g} and {sizes:.3g}"
        )


def check_user(name: str, user: Any, space: Space) -> None:
    """Raise unless a user's specification is sound and lives in this space.

    Args:
        name: what the argument is called in errors.
        user: what should be a `UserSpecification`.
        space: of the market.

    Raises:
        TypeError, ValueError: it is not; the message names the field.
    """
    if not isinstance(user, UserSpecification):
        raise TypeError(f"{name}: expected a UserSpecification, got a {type(user).__name__}")
    check_same_space(name, user, "the market", space)
    classes = len(as_class_names(f"{name}.class_names", user.class_names))
    phi, proxy = user.reduced_set, user.proxy
    if not isinstance(phi, ReducedSet) or not isinstance(proxy, Proxy):
        raise TypeError(
            f"{name}: expected a ReducedSet and a Proxy, got a {type(phi).__name__} and a "
            f"{type(proxy).__name__}"
        )
    shape = np.shape(phi.points)
    if len(shape) != 2 or shape[0] == 0 or shape[1] != space.dimension:
        raise ValueError(
            f"{name}: expected reduced_set.points of shape (n, {space.dimension}), got {shape}"
        )
    (n, d), owner = shape, f"{name}"
    check_part(owner, "reduced_set.points", phi.points, (n, d))
    check_user_weights(owner, phi.weights, (n,))
    check_part(owner, "proxy.weights", proxy.weights, (d, classes))
    check_part(owner, "proxy.bias", proxy.bias, (classes,))
    if user.labels is not None:
        as_class_labels(f"{name}.labels", user.labels, rows=n, class_names=user.class_names)
