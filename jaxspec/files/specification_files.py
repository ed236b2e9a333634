"""Files of specifications and spaces: one safetensors file each.

The tables below declare what a file of each class holds: the arrays under their field paths, such
as "reduced_set.points", and one JSON text with everything else. They are called through `save` and
`load` of `Specification`, `UserSpecification` and `Space`. A loaded object satisfies every check
that does not need a market; whether it belongs to a market is checked where it meets one.
"""

from __future__ import annotations

import operator
import re
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxspec.base import reading, register_format, write_atomically
from jaxspec.files.bounded_json import require
from jaxspec.files.declared_arrays import ArrayField, FileKind, read_file, to_bytes
from jaxspec.kernels import Kernel, ReducedSet, usable_bandwidth
from jaxspec.specify import (
    FORMAT_VERSION,
    RANK,
    About,
    ProbeProxy,
    Proxy,
    Space,
    Specification,
    UserSpecification,
    as_class_names,
    check_user_weights,
    check_weights,
)

__all__ = [
    "load_space",
    "load_specification",
    "load_user_specification",
    "read_user_arrays",
    "save_space",
    "save_specification",
    "save_user_specification",
    "space_from_file",
    "space_to_bytes",
]

SPACE_VERSION = 1
MAX_SPACE_NAME = 1000  # characters, as many as a class name may have
MAX_COUNT = 2**53  # of examples: JSON readers in other languages hold integers up to here
KERNELS = {one.__name__: one for one in typing.get_args(Kernel)}


def _class_names(value: Any) -> tuple[str, ...]:
    require(isinstance(value, list), f"class_names: expected a list of strings, got {value!r:.80}")
    return as_class_names("class_names", value)


def _class_names_or_none(value: Any) -> tuple[str, ...]:
    return () if value == [] else _class_names(value)


def _space_name(value: Any) -> str:
    good = isinstance(value, str) and value.strip() and len(value) <= MAX_SPACE_NAME
    require(good, f"expected a non-empty string, at most {MAX_SPACE_NAME} long, got {value!r:.80}")
    return str(value)


def _digest(value: Any) -> str:
    good = isinstance(value, str) and re.fullmatch(r"[0-9a-f]{32,128}", value)
    require(good, f"expected a digest in hexadecimal, got {value!r:.80}")
    return str(value)


def _count(value: Any) -> int:
    good = type(value) is int and 0 <= value <= MAX_COUNT
    require(good, f"expected an integer in 0..2^53, got {value!r:.80}")
    return int(value)


def _dimension(value: Any) -> int:
    require(type(value) is int and value >= 1, f"expected an integer from 1 on, got {value!r:.80}")
    return int(value)


def _kernel_name(value: Any) -> str:
    good = isinstance(value, str) and value in KERNELS
    require(good, f"expected one of {sorted(KERNELS)}, got {value!r:.80}")
    return str(value)


def _about(value: Any) -> About:
    require(isinstance(value, dict), f"expected an object, got {value!r:.80}")
    return About(value)


def _check_specification(values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    weights = arrays["reduced_set.weights"]
    check_weights("Specification", weights, weights.shape)
    names, proxied = values["class_names"], "proxy.weights" in arrays
    require(proxied or not names, "proxy.weights: expected this array, got a file without it")
    require(
        names or not proxied, "class_names: expected the names of the proxy's classes, got none"
    )
    lone = "probe_proxy.weights" in arrays and not proxied
    require(not lone, "probe_proxy.weights: expected none in a file without a proxy")
    if "probe_proxy.fidelity" in arrays:
        fidelity = float(arrays["probe_proxy.fidelity"])
        good = 0.0 <= fidelity <= 1.0
        require(good, f"probe_proxy.fidelity: expected a number in 0..1, got {fidelity}")


def _check_user(values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    weights = arrays["reduced_set.weights"]
    check_user_weights("UserSpecification", weights, weights.shape)
    if "labels" in arrays:
        labels, last = arrays["labels"], len(values["class_names"]) - 1
        low, high = int(labels.min()), int(labels.max())
        good = low >= 0 and high <= last
        require(good, f"labels: expected values in 0..{last}, got {low}..{high}")


def _check_space(values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    bandwidth = arrays["kernel.bandwidth"]
    require(
        usable_bandwidth(bandwidth),
        f"kernel.bandwidth: expected a positive number whose square float32 holds, got {bandwidth}",
    )


def _specification_sizes(values: Mapping[str, Any]) -> dict[str, int]:
    return {"class": len(values["class_names"]), "direction": RANK}


_REDUCED_SET = {
    "reduced_set.points": ArrayField("float", ("point", "feature")),
    "reduced_set.weights": ArrayField("float", ("point",)),
}
_COMMON_VALUES = {
    "class_names": _class_names,
    "space_name": _space_name,
    "space_digest": _digest,
    "num_examples": _count,
}
SPECIFICATION = FileKind(
    "Specification",
    FORMAT_VERSION,
    arrays={
        **_REDUCED_SET,
        "proxy.weights": ArrayField("float", ("feature", "class"), part="proxy"),
        "proxy.bias": ArrayField("float", ("class",), part="proxy"),
        "probe_proxy.weights": ArrayField("float", ("landmark", "class"), part="probe_proxy"),
        "probe_proxy.bias": ArrayField("float", ("class",), part="probe_proxy"),
        "probe_proxy.fidelity": ArrayField("float", (), part="probe_proxy"),
        "representation": ArrayField("float", ("feature", "direction"), part="representation"),
    },
    values={**_COMMON_VALUES, "class_names": _class_names_or_none, "about": _about},
    fixed_sizes=_specification_sizes,
    check=_check_specification,
    oldest=FORMAT_VERSION,
)
USER_SPECIFICATION = FileKind(
    "UserSpecification",
    FORMAT_VERSION,
    arrays={
        **_REDUCED_SET,
        "proxy.weights": ArrayField("float", ("feature", "class")),
        "proxy.bias": ArrayField("float", ("class",)),
        "labels": ArrayField("integer", ("point",), part="labels"),
    },
    values=_COMMON_VALUES,
    fixed_sizes=_specification_sizes,
    check=_check_user,
    oldest=FORMAT_VERSION,
)
SPACE = FileKind(
    "Space",
    SPACE_VERSION,
    arrays={
        "kernel.bandwidth": ArrayField("float32", ()),
        "probe": ArrayField("float32", ("probe_row", "feature"), part="probe"),
    },
    values={
        "name": _space_name,
        "kernel": _kernel_name,
        "dimension": _dimension,
        "digest": _digest,
    },
    fixed_sizes=lambda values: {"feature": values["dimension"]},
    check=_check_space,
)


def save_specification(spec: Specification, path: Path) -> None:
    """Write a specification to one safetensors file, in one step.

    Raises:
        FileError: a field that `load_specification` would refuse; nothing is written then.
    """
    _write(path, lambda: _specification_bytes(spec))


def load_specification(path: Path, cls: type[Specification] = Specification) -> Specification:
    """Read a file of `save_specification`; the numbers come back bit by bit, as `jax.Array`.

    Without jax's x64, float64 numbers become float32.

    Raises:
        FileError: not such a file, of another version, damaged, or with a field that is not as it
            must be; the message names the file and the field.
    """
    with reading(path):
        values, arrays = read_file(SPECIFICATION, path)
        probe_proxy = None
        if "probe_proxy.weights" in arrays:
            probe_proxy = ProbeProxy(
                jnp.asarray(arrays["probe_proxy.weights"]),
                jnp.asarray(arrays["probe_proxy.bias"]),
                jnp.asarray(arrays["probe_proxy.fidelity"]),
            )
        maps = arrays.get("representation")
        return cls(
            _reduced_set(arrays),
            _proxy(arrays) if "proxy.weights" in arrays else None,
            probe_proxy=probe_proxy,
            representation=None if maps is None else jnp.asarray(maps),
            **values,
        )


def save_user_specification(user: UserSpecification, path: Path) -> None:
    """Write a user's specification to one safetensors file, in one step.

    Raises:
        FileError: a field that `load_user_specification` would refuse; nothing is written then.
    """
    _write(path, lambda: _user_bytes(user))


def load_user_specification(
    path: Path, cls: type[UserSpecification] = UserSpecification
) -> UserSpecification:
    """Read a file of `save_user_specification`, as `load_specification` does.

    Raises:
        FileError: as `load_specification`.
    """
    with reading(path):
        values, arrays = read_file(USER_SPECIFICATION, path)
        labels = arrays.get("labels")
        return cls(
            _reduced_set(arrays),
            _proxy(arrays),
            labels=None if labels is None else jnp.asarray(labels.astype(np.int32)),
            **values,
        )


def read_user_arrays(path: Path) -> UserSpecification:
    """Read a file as `load_user_specification` does, with numpy arrays in place of `jax.Array`.

    For many users that are put together on the host.

    Raises:
        FileError: as `load_specification`.
    """
    with reading(path):
        values, arrays = read_file(USER_SPECIFICATION, path)
        user: Any = UserSpecification(
            ReducedSet(arrays["reduced_set.points"], arrays["reduced_set.weights"]),  # type: ignore[arg-type]
            Proxy(arrays["proxy.weights"], arrays["proxy.bias"]),  # type: ignore[arg-type]
            labels=arrays.get("labels"),  # type: ignore[arg-type]
            **values,
        )
        found: UserSpecification = user
        return found


def save_space(space: Space, path: Path) -> None:
    """Write a space to one safetensors file, in one step.

    Raises:
        FileError: a field that `load_space` would refuse; nothing is written then.
    """
    _write(path, lambda: space_to_bytes(space))


def load_space(path: Path, cls: type[Space] = Space) -> Space:
    """Read a file of `save_space`; its digest is that of the saved space.

    Raises:
        FileError: as `load_specification`.
    """
    with reading(path):
        return space_from_file(path, cls)


def space_to_bytes(space: Space) -> bytes:
    """Return the contents of a space's file.

    Raises:
        TypeError, ValueError: a field that `space_from_file` would refuse.
    """
    values = {
        "name": space.name,
        "kernel": type(space.kernel).__name__,
        "dimension": space.dimension,
        "digest": space.digest,
    }
    arrays: dict[str, Any] = {"kernel.bandwidth": np.asarray(space.kernel.bandwidth, np.float32)}
    if space.probe is not None:
        arrays["probe"] = space.probe
    return to_bytes(SPACE, values, arrays)


def space_from_file(path: Path, cls: type[Space] = Space) -> Space:
    """Return the space in a file.

    Raises:
        TypeError, ValueError, OSError: not such a file, or damaged.
    """
    values, arrays = read_file(SPACE, path)
    kernel = KERNELS[values["kernel"]](bandwidth=jnp.asarray(arrays["kernel.bandwidth"]))
    space = cls(values["name"], kernel, dimension=values["dimension"], probe=arrays.get("probe"))
    require(
        space.digest == values["digest"],
        f"digest: expected {space.digest!r}, that of the contents, got {values['digest']!r}",
    )
    return space


def _write(path: Path, contents: Callable[[], bytes]) -> None:
    with reading(path):
        require(not path.is_dir(), "expected the name of a file, got a folder")
        data = contents()
    write_atomically(path, data)


def _specification_bytes(spec: Specification) -> bytes:
    values = {**_common_values(spec), "about": dict(spec.about)}
    arrays = _common_arrays(spec)
    if spec.probe_proxy is not None:
        arrays["probe_proxy.weights"] = spec.probe_proxy.weights
        arrays["probe_proxy.bias"] = spec.probe_proxy.bias
        arrays["probe_proxy.fidelity"] = spec.probe_proxy.fidelity
    if spec.representation is not None:
        arrays["representation"] = spec.representation
    return to_bytes(SPECIFICATION, values, arrays)


def _user_bytes(user: UserSpecification) -> bytes:
    arrays = _common_arrays(user)
    if user.labels is not None:
        arrays["labels"] = user.labels
    return to_bytes(USER_SPECIFICATION, _common_values(user), arrays)


def _common_values(spec: Specification | UserSpecification) -> dict[str, Any]:
    require(
        spec.format_version == FORMAT_VERSION,
        f"format_version: expected {FORMAT_VERSION}, got {spec.format_version!r:.80}",
    )
    names = spec.class_names
    require(isinstance(names, tuple), f"class_names: expected a tuple, got {names!r:.80}")
    return {
        "class_names": list(names),
        "space_name": spec.space_name,
        "space_digest": spec.space_digest,
        "num_examples": operator.index(spec.num_examples),
    }


def _common_arrays(spec: Specification | UserSpecification) -> dict[str, Any]:
    arrays = {
        "reduced_set.points": spec.reduced_set.points,
        "reduced_set.weights": spec.reduced_set.weights,
    }
    if spec.proxy is not None:
        arrays["proxy.weights"], arrays["proxy.bias"] = spec.proxy.weights, spec.proxy.bias
    return arrays


def _reduced_set(arrays: Mapping[str, np.ndarray]) -> ReducedSet:
    return ReducedSet(
        jnp.asarray(arrays["reduced_set.points"]), jnp.asarray(arrays["reduced_set.weights"])
    )


def _proxy(arrays: Mapping[str, np.ndarray]) -> Proxy:
    return Proxy(jnp.asarray(arrays["proxy.weights"]), jnp.asarray(arrays["proxy.bias"]))


register_format(Specification, save=save_specification, load=load_specification)
register_format(UserSpecification, save=save_user_specification, load=load_user_specification)
register_format(Space, save=save_space, load=load_space)
