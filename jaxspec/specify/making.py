"""How specifications are made: `specify` for one model, `specify_many` for a batch, `specify_user`.

A specification is fitted to the submitter's features, labels and model outputs; none of these enter
it. The same data give the same specification: a missing random key means a fixed one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.base import as_class_labels, as_features, as_key, as_probabilities, as_size
from jaxspec.kernels import ReducedSet
from jaxspec.specify.about import About, AboutValue
from jaxspec.specify.limits import warn_beyond_defaults
from jaxspec.specify.probe_proxy import ProbeProxy, fit_probe_proxies
from jaxspec.specify.proxy import Proxy, fit_proxies, fit_proxy
from jaxspec.specify.reduced_set import reduce_sets
from jaxspec.specify.representation import fit_representation
from jaxspec.specify.space import Space, as_space
from jaxspec.specify.types import Specification, UserSpecification, as_class_names

if TYPE_CHECKING:
    from jax.typing import ArrayLike

__all__ = ["specify", "specify_many", "specify_user"]

MAX_USER_POINTS = 512  # a user with more examples is reduced, class by class


def specify(
    space: Space,
    features: ArrayLike,
    labels: ArrayLike | Sequence[str],
    *,
    class_names: Sequence[str] | None = None,
    teacher: ArrayLike | None = None,
    probe_outputs: ArrayLike | None = None,
    hidden: ArrayLike | None = None,
    size: int = 50,
    about: Mapping[str, AboutValue] | None = None,
    key: jax.Array | None = None,
    teacher_weight: float = 1.0,
    ridge: float = 1e-3,
) -> Specification:
    """Make the specification of one learnware.

    Args:
        space: what the market publishes.
        features: (n, d) features Z of the submitter's data.
        labels: (n,) integers into `class_names`, or the names themselves.
        class_names: the model's classes, each with an example. None takes the sorted names that
            occur in `labels`.
        teacher: (n, C) class probabilities f(X) of the model, or None to fit the labels only.
        probe_outputs: (p, C) class probabilities of the model on the space's probe, or None.
        hidden: (n, h) the model's activations before its output layer on the submitter's data, or
            None. Only a linear map from the features to them is kept.
        size: m, points of the reduced set.
        about: metadata such as {"licence": "MIT", "parameters": 4_200_000}.
        key: jax random key for the start of the reduced set; None means `jax.random.key(0)`.
        teacher_weight: weight of KL(f(X) || proxy) beside the cross-entropy.
        ridge: penalty on the proxy's squared weights.

    Raises:
        TypeError, ValueError: an argument that is not as described; the message names it.
    """
    space = as_space("space", space)
    names = _names_of("class_names", class_names, labels)
    rows = as_features("features", features, dimension=space.dimension)
    targets = as_class_labels("labels", labels, rows=len(rows), class_names=names, every_class=True)
    outputs = None if probe_outputs is None else [probe_outputs]
    return _made(
        space,
        [rows],
        [targets],
        [names],
        teachers=None if teacher is None else [_teacher("teacher", teacher, rows, names)],
        behaviour=_behaviour(space, outputs, [names], ["probe_outputs"]),
        maps=[None if hidden is None else fit_representation(rows, hidden)],
        about=[about],
        size=size,
        key=key,
        teacher_weight=teacher_weight,
        ridge=ridge,
    )[0]


def specify_many(
    space: Space,
    features: Sequence[ArrayLike],
    labels: Sequence[ArrayLike | Sequence[str]],
    *,
    class_names: Sequence[Sequence[str]],
    teachers: Sequence[ArrayLike] | None = None,
    probe_outputs: Sequence[ArrayLike] | None = None,
    hidden: Sequence[ArrayLike] | None = None,
    size: int = 50,
    about: Sequence[Mapping[str, AboutValue] | None] | None = None,
    key: jax.Array | None = None,
    teacher_weight: float = 1.0,
    ridge: float = 1e-3,
) -> list[Specification]:
    """Make many specifications in one batched pass; like `specify`, with one entry per model.

    The data sets may differ in their numbers of examples and classes.

    Args:
        space: what the market publishes.
        features: B arrays (n_i, d).
        labels: B sequences (n_i,) of integers or names.
        class_names: B sequences of names.
        teachers: B arrays (n_i, C_i), or None.
        probe_outputs: B arrays (p, C_i), or None.
        hidden: B arrays (n_i, h_i), or None.
        size: m, for all.
        about: B mappings, or None.
        key: jax random key, split into one per model; None means `jax.random.key(0)`.
        teacher_weight: as in `specify`.
        ridge: as in `specify`.

    Raises:
        TypeError, ValueError: as `specify`; the message names the entry, as in `labels[3]`.
    """
    space = as_space("space", space)
    count = _length("features", features)
    if count == 0:
        raise ValueError("features: expected at least one data set, got none")
    optional = {
        "teachers": teachers,
        "probe_outputs": probe_outputs,
        "hidden": hidden,
        "about": about,
    }
    for name, value in {"labels": labels, "class_names": class_names, **optional}.items():
        if value is not None and _length(name, value) != count:
            raise ValueError(f"{name}: expected {count} entries, one per model, got {len(value)}")
    names = [as_class_names(f"class_names[{i}]", value) for i, value in enumerate(class_names)]
    rows = [
        as_features(f"features[{i}]", value, dimension=space.dimension)
        for i, value in enumerate(features)
    ]
    targets = [
        as_class_labels(
            f"labels[{i}]", labels[i], rows=len(rows[i]), class_names=names[i], every_class=True
        )
        for i in range(count)
    ]
    outputs = [f"probe_outputs[{i}]" for i in range(count)]
    return _made(
        space,
        rows,
        targets,
        names,
        teachers=None
        if teachers is None
        else [_teacher(f"teachers[{i}]", teachers[i], rows[i], names[i]) for i in range(count)],
        behaviour=_behaviour(space, probe_outputs, names, outputs),
        maps=[
            None if hidden is None else fit_representation(rows[i], hidden[i], name=f"hidden[{i}]")
            for i in range(count)
        ],
        about=[None] * count if about is None else list(about),
        size=size,
        key=key,
        teacher_weight=teacher_weight,
        ridge=ridge,
    )


def specify_user(
    space: Space,
    features: ArrayLike,
    labels: ArrayLike | Sequence[str],
    *,
    class_names: Sequence[str] | None = None,
    share_labels: bool = True,
    max_points: int | None = None,
    key: jax.Array | None = None,
    ridge: float = 1e-1,
) -> UserSpecification:
    """Make the specification of a user's task from a few labelled examples.

    Args:
        space: what the market publishes.
        features: (n, d) features of the examples.
        labels: (n,) integers into `class_names`, or the names themselves.
        class_names: the user's classes, each with an example. None takes the sorted names that
            occur in `labels`.
        share_labels: keep the labels of the points, so that proxies can be scored on them.
        max_points: with more examples than this, Phi_T is a reduced set, made class by class so
            that its points keep a label; its weights add up to the classes' shares. None means
            512, or two points per class if that is more.
        key: jax random key for that case; None means `jax.random.key(0)`.
        ridge: penalty on the proxy's squared weights; larger than a submitter's, for ten examples
            per class.

    Raises:
        TypeError, ValueError: an argument that is not as described; the message names it.
    """
    space = as_space("space", space)
    names = _names_of("class_names", class_names, labels)
    rows = as_features("features", features, dimension=space.dimension)
    count = len(rows)
    targets = as_class_labels("labels", labels, rows=count, class_names=names, every_class=True)
    if max_points is None:
        limit = max(MAX_USER_POINTS, 2 * len(names))
    else:
        limit = as_size("max_points", max_points, minimum=2 * len(names))
    proxy = fit_proxy(rows, targets, num_classes=len(names), ridge=ridge)
    if count <= limit:
        points, weights = rows, np.full(count, 1.0 / count, rows.dtype)
    else:
        points, weights, targets = _reduced_by_class(
            space, rows, targets, len(names), limit // len(names), key
        )
    # jnp.asarray would compile a copy for every new number of examples.
    points, weights, targets = jax.device_put((points, weights, targets))
    return UserSpecification(
        ReducedSet(points, weights),
        proxy,
        targets if share_labels else None,
        class_names=names,
        space_name=space.name,
        space_digest=space.digest,
        num_examples=count,
    )


def _reduced_by_class(
    space: Space, rows: Any, labels: Any, classes: int, size: int, key: jax.Array | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return points, weights and labels of the classes' reduced sets, one after the other."""
    parts = [rows[labels == k] for k in range(classes)]
    sets = reduce_sets(parts, size=size, kernel=space.kernel, key=key)
    shares = np.array([len(part) / len(rows) for part in parts], rows.dtype)
    points = np.asarray(sets.points).reshape(-1, rows.shape[1])
    weights = (np.asarray(sets.weights) * shares[:, None]).reshape(-1)
    return points, weights, np.repeat(np.arange(classes, dtype=np.int32), size)


def _names_of(name: str, class_names: Any, labels: Any) -> tuple[str, ...]:
    """Return the class names that were given, or those that occur among the labels."""
    if class_names is not None:
        return as_class_names(name, class_names)
    if not isinstance(labels, Iterable) or getattr(labels, "ndim", 1) == 0:
        raise TypeError(
            "labels: expected class names or integers, one per row, "
            f"got a {type(labels).__name__}: {labels!r:.80}"
        )
    found = sorted({entry for entry in labels if isinstance(entry, str)})
    if len(found) < 2:
        raise ValueError(
            f"{name}: expected the names of the classes, got None (it may be left out only where "
            "labels are the names themselves, of at least two classes)"
        )
    return as_class_names(name, found)


def _length(name: str, value: Any) -> int:
    if isinstance(value, str | Mapping) or not hasattr(value, "__len__"):
        raise TypeError(f"{name}: expected one entry per model, got a {type(value).__name__}")
    return len(value)


def _teacher(name: str, value: Any, rows: Any, names: tuple[str, ...]) -> Any:
    return as_probabilities(name, value, rows=len(rows), num_classes=len(names))


def _behaviour(
    space: Space, outputs: Any, names: Sequence[tuple[str, ...]], arguments: Sequence[str]
) -> Sequence[ProbeProxy | None]:
    """Return the probe proxies of the models with these outputs on the space's probe."""
    if outputs is None:
        return [None] * len(names)
    if space.probe is None:
        raise ValueError(
            f"{arguments[0]}: expected None, as the space {space.name!r} has no probe, "
            f"got a {type(outputs[0]).__name__}"
        )
    checked = [
        as_probabilities(argument, value, rows=len(space.probe), num_classes=len(own))
        for argument, value, own in zip(arguments, outputs, names, strict=True)
    ]
    return fit_probe_proxies(space.kernel, space.landmarks, space.whitening, space.probe, checked)


def _made(
    space: Space,
    rows: Sequence[Any],
    labels: Sequence[Any],
    names: Sequence[tuple[str, ...]],
    *,
    teachers: Sequence[Any] | None,
    behaviour: Sequence[ProbeProxy | None],
    maps: Sequence[Any],
    about: Sequence[Mapping[str, AboutValue] | None],
    size: int,
    key: jax.Array | None,
    teacher_weight: float,
    ridge: float,
) -> list[Specification]:
    """Fit everything to checked data."""
    if key is not None:
        as_key("key", key)
    notes = [About(entries) for entries in about]
    points = as_size("size", size)
    for own, entries in zip(names, notes, strict=True):
        warn_beyond_defaults(points, own, entries)
    sets = reduce_sets(rows, size=points, kernel=space.kernel, key=key)
    proxies = fit_proxies(
        rows,
        labels,
        num_classes=[len(own) for own in names],
        teachers=teachers,
        teacher_weight=teacher_weight,
        ridge=ridge,
    )
    sets, proxies = jax.tree.map(np.asarray, (sets, proxies))  # slicing there compiles nothing

    def one(i: int) -> Specification:
        classes = len(names[i])
        return Specification(
            ReducedSet(jnp.asarray(sets.points[i]), jnp.asarray(sets.weights[i])),
            Proxy(
                jnp.asarray(proxies.weights[i][:, :classes]),
                jnp.asarray(proxies.bias[i][:classes]),
            ),
            class_names=names[i],
            space_name=space.name,
            space_digest=space.digest,
            probe_proxy=behaviour[i],
            representation=None if maps[i] is None else jnp.asarray(maps[i]),
            num_examples=len(rows[i]),
            about=notes[i],
        )

    return [one(i) for i in range(len(rows))]
