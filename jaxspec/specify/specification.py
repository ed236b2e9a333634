"""What a submitter publishes and what a user asks with.

A `Specification` is {Phi = (weights, points), W}: a reduced kernel mean embedding of the
submitter's features and a linear proxy of its model, with the class names, the feature space and
the kernel that make the numbers mean something. A `UserSpecification` is the same for a task with
a few labelled examples. Both are frozen pytrees: arrays are leaves, names are structure.

`specify`, `specify_many` and `specify_user` make them; `check_comparable` refuses to compare what
cannot be compared. The submitter's data never enter a specification, only what is fitted to them.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxspec.base import as_features, as_key, as_labels, as_probabilities, as_size, register
from jaxspec.kernels import Kernel, ReducedSet, as_kernel, kernel_label
from jaxspec.specify.probe_proxy import ProbeProxy, fit_probe_proxies
from jaxspec.specify.proxy import Proxy, fit_proxies, fit_proxy
from jaxspec.specify.reduced_set import reduce_set, reduce_sets
from jaxspec.specify.representation import fit_representation

__all__ = [
    "FORMAT_VERSION",
    "Specification",
    "UserSpecification",
    "check_comparable",
    "check_part",
    "check_user",
    "same_kernel",
    "specify",
    "specify_many",
    "specify_user",
]

Array = Any
FORMAT_VERSION = 1
LARGEST = 1e15  # of a number in a specification: float32 holds squares of sums of such
_STATIC = {"static": True}


@register
@dataclasses.dataclass(frozen=True)
class Specification:
    """What the market knows of one learnware.

    Attributes:
        reduced_set: Phi, points (m, d) and signed weights (m,).
        proxy: W, a linear stand-in for the model: weights (d, C), bias (C,).
        kernel: the kernel of Phi.
        class_names: C different names, in the order of the proxy's columns.
        feature_space: names the public extractor that the features come from.
        num_examples: how many examples stand behind Phi.
        format_version: of the fields; files of another version are refused.
        probe: how the model behaves on the market's public probe set, or None.
        representation: (d, RANK) map of the features to the model's hidden ones, or None.
    """

    reduced_set: ReducedSet
    proxy: Proxy
    kernel: Kernel
    class_names: tuple[str, ...] = dataclasses.field(metadata=_STATIC)
    feature_space: str = dataclasses.field(metadata=_STATIC)
    num_examples: int = dataclasses.field(metadata=_STATIC, default=0)
    format_version: int = dataclasses.field(metadata=_STATIC, default=FORMAT_VERSION)
    probe: ProbeProxy | None = None
    representation: Array | None = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a safetensors file; see `jaxspec.files.store.save_specification`."""
        from jaxspec.files.store import save_specification

        save_specification(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Specification:
        """Read a file of `save`; see `jaxspec.files.store.load_specification` for what it refuses."""
        from jaxspec.files.store import load_specification

        return load_specification(path, cls)


@register
@dataclasses.dataclass(frozen=True)
class UserSpecification:
    """What a user with a few labelled examples asks the market with.

    Attributes:
        reduced_set: Phi_T, points (n, d) with weights; the examples themselves with weights 1/n,
            or fewer points if there were many.
        proxy: W_T, fitted to the labels alone.
        kernel: the kernel of Phi_T.
        labels: (n,) int32, the class of every point of Phi_T, or None if they are not shared.
        class_names: C_T different names.
        feature_space: names the public extractor that the features come from.
        num_examples: how many examples stand behind Phi_T.
        format_version: of the fields.
    """

    reduced_set: ReducedSet
    proxy: Proxy
    kernel: Kernel
    labels: Array | None
    class_names: tuple[str, ...] = dataclasses.field(metadata=_STATIC)
    feature_space: str = dataclasses.field(metadata=_STATIC)
    num_examples: int = dataclasses.field(metadata=_STATIC, default=0)
    format_version: int = dataclasses.field(metadata=_STATIC, default=FORMAT_VERSION)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a safetensors file; see `jaxspec.files.store.save_specification`."""
        from jaxspec.files.store import save_specification

        save_specification(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> UserSpecification:
        """Read a file of `save`; see `jaxspec.files.store.load_specification` for what it refuses."""
        from jaxspec.files.store import load_specification

        return load_specification(path, cls)


def same_kernel(a: Kernel, b: Kernel) -> bool:
    """Tell whether two kernels have one form and one bandwidth (to float32 rounding)."""
    return type(a) is type(b) and math.isclose(
        float(a.bandwidth), float(b.bandwidth), rel_tol=1e-6, abs_tol=0.0
    )


def check_comparable(name: str, one: Any, other_name: str, other: Any) -> None:
    """Raise unless two specifications share feature space, kernel and dimension.

    Raises:
        ValueError: they do not; the message names both sides.
    """
    if one.feature_space != other.feature_space:
        raise ValueError(
            f"{name}: its feature space is {one.feature_space!r}, but {other_name} is in "
            f"{other.feature_space!r}; specifications compare only within one feature space"
        )
    if not same_kernel(one.kernel, other.kernel):
        raise ValueError(
            f"{name}: its kernel is {kernel_label(one.kernel)}, but {other_name} has "
            f"{kernel_label(other.kernel)}; specifications compare only under one kernel"
        )


def check_part(owner: str, name: str, value: Any, shape: tuple[int, ...]) -> None:
    """Raise unless an array of a specification has this shape and numbers that can be scored.

    A market is scored in one pass: what overflows in one learnware could reach all of them.
    """
    array = np.asarray(value)
    if array.shape != shape:
        raise ValueError(f"{owner}: expected {name} of shape {shape}, got {array.shape}")
    largest = max(array.max(), -array.min()) if array.size else 0.0
    if not np.isfinite(largest):
        raise ValueError(f"{owner} holds NaN or infinity, in {name}")
    if largest > LARGEST:
        raise ValueError(f"{owner} holds a number of {largest:.1e}, over {LARGEST:.0e}, in {name}")


def check_user(name: str, user: Any) -> None:
    """Raise unless a user's specification is sound in itself; the message names the field."""
    if not isinstance(user, UserSpecification):
        raise TypeError(f"{name}: expected a UserSpecification, got {type(user).__name__}")
    as_kernel(f"{name}: kernel", user.kernel)
    classes = len(as_class_names(f"{name}: class_names", user.class_names))
    phi, proxy = user.reduced_set, user.proxy
    if not isinstance(phi, ReducedSet) or not isinstance(proxy, Proxy):
        raise TypeError(
            f"{name}: expected a ReducedSet and a Proxy in it, got {type(phi).__name__} and "
            f"{type(proxy).__name__}"
        )
    shape = np.shape(phi.points)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name}: expected reduced_set.points of shape (n, d), got {shape}")
    (n, d), owner = shape, f"{name}: its specification"
    check_part(owner, "reduced_set.points", phi.points, (n, d))
    check_part(owner, "reduced_set.weights", phi.weights, (n,))
    check_part(owner, "proxy.weights", proxy.weights, (d, classes))
    check_part(owner, "proxy.bias", proxy.bias, (classes,))
    if user.labels is not None:
        as_labels(f"{name}: labels", user.labels, rows=n, num_classes=classes)


def as_class_names(name: str, value: Any, count: int | None = None) -> tuple[str, ...]:
    """Return `value` as a tuple of different, non-empty strings (`count` of them)."""
    listed = isinstance(value, Sequence) or (isinstance(value, np.ndarray) and value.ndim == 1)
    if isinstance(value, str) or not listed:
        raise TypeError(f"{name}: expected a sequence of strings, got {value!r:.200}")
    names = tuple(value)
    for entry in names:
        if not isinstance(entry, str) or not entry:
            raise TypeError(f"{name}: expected non-empty strings, got {entry!r}")
    names = tuple(map(str, names))  # of numpy's strings too
    if len(set(names)) != len(names):
        raise ValueError(f"{name}: expected different names, got {names!r}")
    if len(names) < 2:
        raise ValueError(f"{name}: expected at least two classes, got {names!r}")
    if count is not None and len(names) != count:
        raise ValueError(f"{name}: expected {count} names, one a class, got {len(names)}")
    return names


def _as_feature_space(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"feature_space: expected a non-empty string, got {value!r}")
    return value


def specify(
    key: Array,
    features: Array,
    labels: Array,
    *,
    class_names: Sequence[str],
    kernel: Kernel,
    feature_space: str,
    teacher: Array | None = None,
    probe: tuple[Array, Array] | None = None,
    hidden: Array | None = None,
    size: int = 50,
    teacher_weight: float = 1.0,
    ridge: float = 1e-3,
) -> Specification:
    """Make the specification of one learnware.

    Args:
        key: jax random key, for the start of the reduced set.
        features: (n, d) features Z of the submitter's data.
        labels: (n,) integers into `class_names`.
        class_names: the model's classes; every one needs an example.
        kernel: the market's kernel.
        feature_space: the market's feature space.
        teacher: (n, C) class probabilities f(X) of the model, or None to fit the labels only.
        probe: the market's probe features (p, d) and the model's probabilities there (p, C);
            with it the specification also says what the model does beyond its owner's data.
        hidden: (n, h) the model's activations before its output layer on the submitter's data; of
            them the specification keeps a linear map (`jaxspec.specify.representation`), which says what
            fine-tuning would reuse.
        size: m, points of the reduced set.
        teacher_weight: weight of KL(f(X) || proxy) beside the cross-entropy.
        ridge: penalty on the proxy's squared weights.

    Raises:
        ValueError, TypeError: an argument that is not as described; the message names it.
    """
    as_key("key", key)
    names = as_class_names("class_names", class_names)
    features = as_features("features", features)
    kernel, space = as_kernel("kernel", kernel), _as_feature_space(feature_space)
    proxy = fit_proxy(
        features,
        labels,
        num_classes=len(names),
        teacher=teacher,
        teacher_weight=teacher_weight,
        ridge=ridge,
    )
    reduced_set = reduce_set(key, features, size=size, kernel=kernel)
    if probe is not None:
        inputs, outputs = _as_probe(probe)
        probe = (inputs, [outputs])
    behaviour = _behaviour(kernel, probe, features.shape[1], [len(names)])
    return Specification(
        reduced_set,
        proxy,
        kernel,
        names,
        space,
        num_examples=int(features.shape[0]),
        probe=behaviour[0],
        representation=None if hidden is None else fit_representation(features, hidden),
    )


def _as_probe(value: Any) -> tuple[Any, Any]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(
            f"probe: expected a pair (features, probabilities), got {type(value).__name__}"
        )
    return value[0], value[1]


def _behaviour(
    kernel: Kernel, probe: Any, dimension: int, classes: Sequence[int]
) -> Sequence[ProbeProxy | None]:
    """Return the probe proxies of models with so many classes, from (features, outputs of each)."""
    if probe is None:
        return [None] * len(classes)
    inputs = as_features("probe[0]", probe[0], dimension=dimension)
    for i, (value, count) in enumerate(zip(probe[1], classes, strict=True)):
        name = "probe[1]" if len(classes) == 1 else f"probe[1][{i}]"
        as_probabilities(name, value, rows=inputs.shape[0], num_classes=count)
    return fit_probe_proxies(kernel, inputs, list(probe[1]))


def specify_many(
    key: Array,
    features: Sequence[Array],
    labels: Sequence[Array],
    *,
    class_names: Sequence[Sequence[str]],
    kernel: Kernel,
    feature_space: str,
    teachers: Sequence[Array] | None = None,
    probe: tuple[Array, Sequence[Array]] | None = None,
    hidden: Sequence[Array] | None = None,
    size: int = 50,
    teacher_weight: float = 1.0,
    ridge: float = 1e-3,
) -> list[Specification]:
    """Make many specifications in one batched pass; like `specify`, but with sequences.

    The data sets may differ in their numbers of examples and classes.

    Args:
        key: jax random key.
        features: B arrays (n_i, d).
        labels: B arrays (n_i,).
        class_names: B sequences of names.
        kernel: the market's kernel.
        feature_space: the market's feature space.
        teachers: B arrays (n_i, C_i) of probabilities, or None.
        probe: the market's probe features (p, d) and B arrays (p, C_i), or None.
        hidden: B arrays (n_i, h_i) of activations, or None.
        size: see `specify`.
        teacher_weight: see `specify`.
        ridge: see `specify`.

    Returns:
        B specifications whose leaves are numpy arrays.
    """
    as_key("key", key)
    probe = None if probe is None else _as_probe(probe)
    count, outputs = len(features), None if probe is None else probe[1]
    if probe is not None and not hasattr(outputs, "__len__"):
        raise TypeError(f"probe[1]: expected {count} arrays, got {type(outputs).__name__}")
    for name, value in (
        ("labels", labels),
        ("class_names", class_names),
        ("teachers", teachers),
        ("probe[1]", outputs),
        ("hidden", hidden),
    ):
        if value is not None and len(value) != count:
            raise ValueError(f"{name}: expected {count} entries as in features, got {len(value)}")
    if not count:
        return []
    names = [as_class_names(f"class_names[{i}]", value) for i, value in enumerate(class_names)]
    rows = [as_features(f"features[{i}]", value) for i, value in enumerate(features)]
    kernel, space = as_kernel("kernel", kernel), _as_feature_space(feature_space)
    proxies = fit_proxies(
        rows,
        labels,
        num_classes=[len(n) for n in names],
        teachers=teachers,
        teacher_weight=teacher_weight,
        ridge=ridge,
    )
    behaviour = _behaviour(kernel, probe, rows[0].shape[1], [len(n) for n in names])
    maps: list[Array | None] = [None] * count
    if hidden is not None:
        pairs = zip(rows, hidden, strict=True)
        maps = [fit_representation(z, h, name=f"hidden[{i}]") for i, (z, h) in enumerate(pairs)]
    sets = reduce_sets(key, rows, size=size, kernel=kernel)
    proxies, sets = jax.tree.map(np.asarray, (proxies, sets))

    def one(i: int) -> Specification:
        own_set, own_proxy = jax.tree.map(lambda leaf: leaf[i], (sets, proxies))
        classes = len(names[i])
        own_proxy = dataclasses.replace(
            own_proxy, weights=own_proxy.weights[:, :classes], bias=own_proxy.bias[:classes]
        )
        return Specification(
            own_set,
            own_proxy,
            kernel,
            names[i],
            space,
            num_examples=int(rows[i].shape[0]),
            probe=behaviour[i],
            representation=maps[i],
        )

    return [one(i) for i in range(count)]


def specify_user(
    features: Array,
    labels: Array,
    *,
    class_names: Sequence[str],
    kernel: Kernel,
    feature_space: str,
    share_labels: bool = True,
    max_points: int = 512,
    key: Array | None = None,
    ridge: float = 1e-1,
) -> UserSpecification:
    """Make the specification of a user's task from a few labelled examples.

    Args:
        features: (n, d) features of the examples.
        labels: (n,) integers into `class_names`.
        class_names: the user's classes; every one needs an example.
        kernel: the market's kernel.
        feature_space: the market's feature space.
        share_labels: keep the labels of the points, so that proxies can be scored on them.
        max_points: with more examples than this, Phi_T is a reduced set, made class by class so
            that its points keep a label; its weights add up to the classes' shares.
        key: jax random key, needed only then.
        ridge: penalty on the proxy's squared weights; larger than a submitter's, for ten examples
            a class.

    Raises:
        ValueError, TypeError: an argument that is not as described; the message names it.
    """
    names = as_class_names("class_names", class_names)
    features = as_features("features", features)
    kernel, space = as_kernel("kernel", kernel), _as_feature_space(feature_space)
    count = features.shape[0]
    labels = as_labels("labels", labels, rows=count, num_classes=len(names))
    proxy = fit_proxy(features, labels, num_classes=len(names), ridge=ridge)
    if count <= as_size("max_points", max_points, minimum=2 * len(names)):
        weights = np.full(count, 1.0 / count, features.dtype)
        reduced_set, point_labels = ReducedSet(features, weights), labels
    else:
        if key is None:
            raise ValueError(
                f"key: expected a jax random key to reduce {count} examples to {max_points} "
                "points, got None"
            )
        as_key("key", key)
        reduced_set, point_labels = _reduce_by_class(
            key, features, labels, len(names), kernel, max_points // len(names)
        )
    return UserSpecification(
        reduced_set,
        proxy,
        kernel,
        point_labels if share_labels else None,
        names,
        space,
        num_examples=int(count),
    )


def _reduce_by_class(
    key: Array, features: Array, labels: Array, classes: int, kernel: Kernel, size: int
) -> tuple[ReducedSet, Array]:
    """Return a reduced set of every class, joined, and its points' labels."""
    parts = [features[labels == k] for k in range(classes)]
    sets = jax.tree.map(np.asarray, reduce_sets(key, parts, size=size, kernel=kernel))
    shares = np.array([len(part) / len(features) for part in parts], features.dtype)
    points = sets.points.reshape(-1, features.shape[1])
    weights = (sets.weights * shares[:, None]).reshape(-1)
    return ReducedSet(points, weights), np.repeat(np.arange(classes, dtype=np.int32), size)
