"""Specification files (safetensors) and markets on disk (Orbax).

A specification file holds the arrays under their field paths ("reduced_set.points") and one JSON
text with everything else, so a field added to the dataclasses needs no change here. A market is a
folder: a pointer `market.json` names the version folder in force, which holds `facts.json` (ids,
names, sizes, checksums) and `arrays` (Orbax, the live learnwares only).

Reading runs no code from a file: arrays are numbers, the rest is JSON, and every field is checked
before it is used. Writing never touches what was saved before: a new file or version folder is
complete on disk before one rename puts it in force. Called through `save` and `load` of
`Specification`, `UserSpecification` and `Market`; Orbax and safetensors are imported on first use.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
import os
import re
import shutil
import time
import types
import typing
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec import market as _market
from jaxspec.kernels import Kernel
from jaxspec.rkme import Diagnostics
from jaxspec.shapes import pad_to
from jaxspec.specification import FORMAT_VERSION, as_class_names

__all__ = ["load_market", "load_specification", "save_market", "save_specification"]

MARKET_VERSION = 1
POINTER = "market.json"
VERSION_NAME = re.compile(r"version-[0-9a-f]{12}")
LITTER_AGE = 24 * 3600.0  # seconds after which a version that no pointer names is of a dead writer
CHUNK_BYTES = 1 << 26  # of a stored array; read and written in parallel
MAX_FILE_BYTES = 1 << 30  # of a specification: 100 times that of 1000 classes in 2048 dimensions

# Kinds of numbers and shape of the fields; the letters are sizes that must agree. A field that is
# not listed may be any finite array, inside diagnostics any finite number.
_FIELDS = {
    "reduced_set.points": ("f", "m d"),
    "reduced_set.weights": ("f", "m"),
    "proxy.weights": ("f", "d C"),
    "proxy.bias": ("f", "C"),
    "kernel.bandwidth": ("fiu", ""),
    "labels": ("i", "m"),
}
_ARRAYS = {
    "points": ("f", "M m d"),
    "weights": ("f", "M m"),
    "self_terms": ("f", "M"),
    "class_vectors": ("f", "M k d"),
    "class_bias": ("f", "M k"),
    "class_ids": ("i", "M k"),
    "origin": ("f", "d"),
}
_UNTYPED = {"reduced_set.diagnostics": (Diagnostics,)}  # kernels.py does not know this class
_KERNELS = {kind.__name__: kind for kind in typing.get_args(Kernel)}


# Specification files


def save_specification(path: str | os.PathLike[str], spec: Any) -> None:
    """Write a `Specification` or `UserSpecification` to one safetensors file.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: a field that `load_specification` would refuse; nothing is written then.
    """
    target = Path(path)
    header: dict[str, Any] = {"kind": type(spec).__name__}
    header.update({"static": {}, "types": {}, "numbers": {}})
    arrays: dict[str, np.ndarray] = {}
    _flatten(spec, "", header, arrays)
    text = _to_json(target, header)
    _unflatten(target, type(spec), _from_json(target, text.encode()), arrays)
    data = _safetensors().numpy.save(arrays, metadata={"jaxspec": text})
    if len(data) > MAX_FILE_BYTES:
        raise _refusal(target, f"expected at most {MAX_FILE_BYTES} bytes, got {len(data)}")
    _write(target, data)


def load_specification(path: str | os.PathLike[str], cls: type) -> Any:
    """Read a file of `save_specification`; arrays come back as numpy arrays, bit by bit.

    Args:
        path: the file.
        cls: `Specification` or `UserSpecification`.

    Raises:
        ImportError: safetensors is not installed.
        FileNotFoundError: there is no such file.
        ValueError: not such a file, of another version, damaged, or with a field that is not as
            it must be; the message names the file and the field.
    """
    target = Path(path)
    safetensors = _safetensors()
    if not target.is_file():
        kind = ValueError if target.exists() else FileNotFoundError
        raise kind(f"{target}: expected a specification file, got no file there")
    if target.stat().st_size > MAX_FILE_BYTES:
        raise _refusal(target, f"expected at most {MAX_FILE_BYTES} bytes, as of a specification")
    try:
        with safetensors.safe_open(target, framework="np") as file:
            text = (file.metadata() or {}).get("jaxspec")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # the library raises several kinds
        raise _refusal(target, f"not a whole safetensors file ({_first_line(error)})") from None
    if text is None:
        raise _refusal(target, "a safetensors file, but not of a specification")
    return _unflatten(target, cls, _from_json(target, text.encode()), arrays)


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            "specification files need the package safetensors: "
            "pip install 'jaxspec-learnware[demo]'"
        ) from None
    return safetensors


def _flatten(node: Any, prefix: str, header: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Sort the fields of a dataclass into JSON values and arrays, by path."""
    for field in dataclasses.fields(node):
        at, value = prefix + field.name, getattr(node, field.name)
        if field.metadata.get("static"):
            header["static"][at] = value
        elif dataclasses.is_dataclass(value):
            header["types"][at] = type(value).__name__
            _flatten(value, at + ".", header, arrays)
        elif isinstance(value, (int, float)) and not isinstance(value, np.generic):
            header["numbers"][at] = value
        elif value is not None:
            arrays[at] = np.asarray(value, order="C")


def _unflatten(path: Path, cls: type, header: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Check all parts of a file and return the dataclass they make."""
    parts = [_part(path, header, name, dict) for name in ("static", "types", "numbers")]
    static, kinds, leaves = (dict(part) for part in parts)
    version = static.get("format_version")
    if version != FORMAT_VERSION:
        raise _refusal(path, f"format_version: expected {FORMAT_VERSION}, got {version!r}")
    if header.get("kind") != cls.__name__:
        raise _refusal(path, f"expected a {cls.__name__}, got a {header.get('kind')!r:.40}")
    for at, value in leaves.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _refusal(path, f"{at}: expected a number, got {value!r:.40}")
    leaves.update(arrays)
    checked = {at: np.asarray(leaf) for at, leaf in leaves.items()}

    def build(cls: type, prefix: str) -> Any:
        hints, values = _hints(cls), {}
        for field in dataclasses.fields(cls):
            at, hint = prefix + field.name, hints[field.name]
            choices = {kind.__name__: kind for kind in _UNTYPED.get(at, _dataclasses(hint))}
            value: Any = None
            if field.metadata.get("static"):
                value = static.pop(at, field.default)
                value = tuple(value) if isinstance(value, list) else value
                if not _conforms(value, hint):
                    raise _refusal(path, f"{at}: expected {hint}, got {value!r:.80}")
            elif at in kinds:
                if kinds[at] not in choices:
                    want = " or ".join(choices) or "an array"
                    raise _refusal(path, f"{at}: expected {want}, got {kinds[at]!r:.40}")
                value = build(choices[kinds.pop(at)], at + ".")
            elif at in leaves and not (choices and hint is not Any):
                value = leaves.pop(at)
            elif field.default is not None and type(None) not in typing.get_args(hint):
                raise _refusal(path, f"{at}: expected this field, got a file without it")
            values[field.name] = value
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:  # such as a bandwidth that is not positive
            raise _refusal(path, f"{prefix}{error}") from None

    sizes: dict[str, int] = {}
    names = static.get("class_names")
    if isinstance(names, (list, tuple)):
        sizes["C"] = len(names)
    for at, leaf in checked.items():
        number = ("fiu", "") if "diagnostics." in at else None
        _check_shape(path, at, leaf.shape, leaf.dtype, _FIELDS.get(at, number), sizes)
        _check_finite(path, at, leaf)
    spec = build(cls, "")
    unknown = sorted([*static, *kinds, *leaves])
    if unknown:
        raise _refusal(path, f"{unknown[0]:.80}: no field of a {cls.__name__}")
    try:
        as_class_names("class_names", spec.class_names)
    except (TypeError, ValueError) as error:
        raise _refusal(path, str(error)) from None
    if not spec.feature_space or spec.num_examples < 0:
        raise _refusal(path, "expected feature_space to have a name and num_examples to be >= 0")
    labels = checked.get("labels")
    if labels is not None and not (0 <= labels.min() and labels.max() < sizes["C"]):
        raise _refusal(path, f"labels: expected values in 0..{sizes['C'] - 1}")
    return spec


_hints = functools.cache(typing.get_type_hints)


def _dataclasses(hint: Any) -> list[type]:
    return [kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)]  # type: ignore[misc]


def _conforms(value: Any, hint: Any) -> bool:
    """Tell whether a JSON value (lists as tuples) is what a static field's annotation says."""
    if typing.get_origin(hint) is tuple:
        entry = typing.get_args(hint)[0]
        return isinstance(value, tuple) and all(_conforms(one, entry) for one in value)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_conforms(value, one) for one in typing.get_args(hint))
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


# Markets


def save_market(path: str | os.PathLike[str], market: _market.Market) -> None:
    """Write a market to a folder; the one that was there stays readable until the new one is whole.

    Raises:
        ValueError: an empty market, or a folder that holds something else; nothing is changed.
    """
    target = Path(path)
    if len(market) == 0:
        raise _refusal(target, "expected at least one learnware to save, got an empty market")
    if target.exists():
        _check_own(target)
    arrays, facts = _pack(target, market)
    target.mkdir(parents=True, exist_ok=True)
    version = target / f"version-{uuid.uuid4().hex[:12]}"
    try:
        version.mkdir()
        _save_arrays(version / "arrays", arrays)
        _write(version / "facts.json", facts)
        previous = _pointer(target)["current"] if (target / POINTER).exists() else None
        pointer = {
            "format": "jaxspec market",
            "format_version": MARKET_VERSION,
            "current": version.name,
            "crc32": zlib.crc32(facts),
        }
        _write(target / POINTER, _to_json(target, pointer).encode())
    except BaseException:
        shutil.rmtree(version, ignore_errors=True)
        raise
    _tidy(target, keep=version.name, previous=previous)


def load_market(path: str | os.PathLike[str]) -> _market.Market:
    """Read a folder of `save_market`: the same numbers, and room for more learnwares.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: not such a folder, of another version, damaged, or with a field that is not as
            it must be; the message names the folder and the field.
    """
    target = Path(path)
    pointer = _pointer(target)
    while True:
        try:
            return _load_version(target, pointer)
        except (OSError, ValueError):  # somebody may have saved a new version meanwhile
            latest = _pointer(target)
            if latest == pointer:
                raise
            pointer = latest


def _check_own(target: Path) -> None:
    if not target.is_dir():
        raise _refusal(target, "expected a folder for a market, got a file")
    if (target / POINTER).exists():
        _pointer(target)
    elif any(not VERSION_NAME.fullmatch(p.name) and not _is_litter(p) for p in target.iterdir()):
        raise _refusal(target, "holds other files and no market; not written into")


def _pointer(target: Path) -> Any:
    if not target.exists():
        raise FileNotFoundError(f"{target}: expected the folder of a market, got nothing there")
    pointer = _from_json(target, _read(target, POINTER))
    if not isinstance(pointer, dict) or pointer.get("format") != "jaxspec market":
        raise _refusal(target, f"{POINTER} is not that of a market")
    if pointer.get("format_version") != MARKET_VERSION:
        got = pointer.get("format_version")
        raise _refusal(target, f"format_version: expected {MARKET_VERSION}, got {got!r:.40}")
    if not VERSION_NAME.fullmatch(_part(target, pointer, "current", str)):
        raise _refusal(target, f"{POINTER}: expected a version, got {pointer['current']!r:.40}")
    return pointer


def _pack(target: Path, market: _market.Market) -> tuple[dict[str, np.ndarray], bytes]:
    """Return the rows of the live learnwares, and everything else as JSON."""
    storage, slots = market._storage, market.slots
    live: Any = slots if market._removed else slice(0, len(slots))
    with storage.lock:
        stacked, names = market.arrays, list(storage.names)
        every = {f.name: getattr(stacked, f.name) for f in dataclasses.fields(stacked)}
        every = {k: np.asarray(v) for k, v in every.items() if k != "kernel" and v is not None}
    arrays = {k: v[live] if k in _market.ROW_FIELDS else v for k, v in every.items()}
    used = np.unique(arrays["class_ids"])
    used = used[used >= 0]
    numbers = np.full(len(names) + 1, -1, np.int32)  # the last one is for -1, no class
    numbers[used] = np.arange(len(used))
    arrays["class_ids"] = numbers[arrays["class_ids"]]
    for name, array in arrays.items():
        _check_finite(target, name, array)
    bandwidth = market.kernel.bandwidth
    plain = isinstance(bandwidth, (int, float)) and not isinstance(bandwidth, np.generic)
    columns = [f.name for f in dataclasses.fields(_market._Facts) if f.name != "class_names"]
    facts = [storage.facts[slot] for slot in slots]
    text = _to_json(
        target,
        {
            "feature_space": market.feature_space,
            "kernel": type(market.kernel).__name__,
            "bandwidth": bandwidth if plain else np.asarray(bandwidth).item(),
            "bandwidth_dtype": None if plain else np.asarray(bandwidth).dtype.name,
            "class_names": [names[number] for number in used],
            "arrays": {name: _summary(array) for name, array in arrays.items()},
            "ids": market.ids,
            "facts": {name: [getattr(one, name) for one in facts] for name in columns},
        },
    )
    return arrays, text.encode()


def _summary(array: np.ndarray) -> dict[str, Any]:
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return {"shape": array.shape, "dtype": array.dtype.name, "crc32": zlib.crc32(flat)}


def _load_version(target: Path, pointer: dict[str, Any]) -> _market.Market:
    version = target / pointer["current"]
    data = _read(version, "facts.json")
    if zlib.crc32(data) != pointer.get("crc32"):
        raise _refusal(target, "facts.json is damaged: its checksum is not the saved one")
    header = _from_json(target, data)
    part = functools.partial(_part, target, header)
    ids, names = part("ids", list), part("class_names", list)
    for field, values in (("ids", ids), ("class_names", names)):
        strings = all(isinstance(one, str) and one for one in values)
        if not values or not strings or len(set(values)) != len(values):
            raise _refusal(target, f"{field}: expected different, non-empty strings")
    space, kernel = part("feature_space", str), _load_kernel(target, header)
    facts = _load_facts(target, part("facts", dict), len(ids))
    arrays = _load_arrays(target, version / "arrays", part("arrays", dict), len(ids))
    if max(facts["size"]) > arrays["points"].shape[1] or min(facts["size"]) < 1:
        raise _refusal(target, f"size: expected values in 1..{arrays['points'].shape[1]}")
    spaces, space_of = _label_spaces(target, arrays["class_ids"], names)

    storage = _market._Storage()
    storage.ids = ids
    storage.index = {learnware: (slot,) for slot, learnware in enumerate(ids)}
    storage.names = {name: number for number, name in enumerate(names)}
    storage.facts = [
        _market._Facts(class_names=spaces[label_space], **dict(zip(facts, row, strict=True)))
        for label_space, *row in zip(space_of, *facts.values(), strict=True)
    ]
    for slot, label_space in enumerate(space_of):
        storage.label_spaces.setdefault(spaces[label_space], []).append(slot)
    slots = _market._capacity(len(ids))
    stacked = {}
    for name in list(arrays):
        array = arrays.pop(name)  # so that no two copies of all arrays exist
        if name in _market.ROW_FIELDS:
            padding = -1 if name == "class_ids" else 0
            array = pad_to(array, (slots, *array.shape[1:]), value=padding)
        stacked[name] = jnp.array(array)
    own = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), kernel)
    storage.arrays = _market.MarketArrays(**stacked, kernel=own)
    market = _market.Market(storage, len(ids), frozenset(), kernel, space)
    # Write zeros to the first free slot: the first `add` finds its functions compiled.
    sizes = (storage.arrays.points.shape[1], storage.arrays.class_ids.shape[1])
    row = _market._row(market[ids[-1]], sizes, np.asarray(storage.arrays.origin))
    zeros = tuple(np.zeros_like(one) for one in row)
    _market._set_slot(storage, len(ids), zeros, np.full(sizes[1], -1, np.int32))
    return market


def _load_kernel(target: Path, header: Any) -> Any:
    kind, dtype = header.get("kernel"), header.get("bandwidth_dtype")
    value = header.get("bandwidth")
    if not isinstance(kind, str) or kind not in _KERNELS:
        raise _refusal(target, f"kernel: expected one of {sorted(_KERNELS)}, got {kind!r:.40}")
    if dtype not in (None, "float32", "float64", "int32", "int64"):
        raise _refusal(target, f"bandwidth_dtype: got {dtype!r:.40}")
    try:
        return _KERNELS[kind](value if dtype is None else np.asarray(value, dtype))
    except (TypeError, ValueError, OverflowError) as error:
        raise _refusal(target, str(error)) from None


def _load_facts(target: Path, facts: Any, count: int) -> dict[str, list[Any]]:
    hints = {k: v for k, v in _hints(_market._Facts).items() if k != "class_names"}
    if set(facts) != set(hints):
        raise _refusal(target, f"facts: expected {sorted(hints)}, got {sorted(facts)!r:.80}")
    for name, column in facts.items():
        if not isinstance(column, list) or len(column) != count:
            raise _refusal(target, f"{name}: expected {count} values, one a learnware")
        if not all(_conforms(value, hints[name]) for value in column):
            raise _refusal(target, f"{name}: expected values of type {hints[name]}")
    if set(facts["format_version"]) != {FORMAT_VERSION} or min(facts["num_examples"]) < 0:
        raise _refusal(target, f"expected format_version {FORMAT_VERSION} and num_examples >= 0")
    return facts


def _load_arrays(target: Path, folder: Path, summaries: Any, count: int) -> dict[str, np.ndarray]:
    """Check what the arrays are said to be, read them, and check that they are that."""
    fields = {field.name: field for field in dataclasses.fields(_market.MarketArrays)}
    del fields["kernel"]
    for name in [*summaries, *fields]:
        optional = name in fields and fields[name].default is None
        if name not in fields or not (name in summaries or optional):
            raise _refusal(target, f"arrays: expected {sorted(fields)}, got {sorted(summaries)}")
    sizes, expected = {"M": count}, {}
    for name, summary in summaries.items():
        shape = _part(target, summary, "shape", list)
        dtype = _part(target, summary, "dtype", str)
        good = dtype in ("float32", "int32", "bool")
        if not good or not all(isinstance(n, int) and 0 < n < 1 << 31 for n in shape):
            raise _refusal(target, f"{name}: got shape {shape!r:.60} and dtype {dtype!r:.40}")
        if name in _market.ROW_FIELDS and shape[:1] != [count]:
            raise _refusal(target, f"{name}: expected {count} rows, got shape {shape!r:.60}")
        _check_shape(target, name, tuple(shape), np.dtype(dtype), _ARRAYS.get(name), sizes)
        expected[name] = np.broadcast_to(np.zeros((), dtype), shape)  # takes no memory
    import orbax.checkpoint as ocp

    try:
        with ocp.StandardCheckpointer() as checkpointer:
            arrays = checkpointer.restore(folder.absolute(), expected)
    except Exception as error:  # the libraries raise many kinds
        raise _refusal(target, f"its arrays cannot be read ({_first_line(error)})") from None
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        if _summary(array)["crc32"] != summaries[name].get("crc32"):
            raise _refusal(target, f"{name} is damaged: its checksum is not the saved one")
        _check_finite(target, name, array)
    return arrays


def _save_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    import orbax.checkpoint as ocp

    options = {name: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES) for name in arrays}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), arrays, save_args=options)
        checkpointer.wait_until_finished()


def _label_spaces(
    target: Path, class_ids: np.ndarray, names: list[str]
) -> tuple[list[tuple[str, ...]], list[int]]:
    """Return the different tuples of class names, and which of them each learnware has."""
    rows, space_of = np.unique(class_ids, axis=0, return_inverse=True)
    sizes = (rows >= 0).sum(axis=1)
    spaces = [tuple(row[:size].tolist()) for row, size in zip(rows, sizes, strict=True)]
    trailing = (rows >= 0) == (np.arange(rows.shape[1]) < sizes[:, None])
    distinct = all(len(set(one)) == len(one) >= 2 for one in spaces)
    if rows.min() < -1 or rows.max() >= len(names) or not trailing.all() or not distinct:
        raise _refusal(target, f"class_ids: expected rows of different 0..{len(names) - 1}")
    return [tuple(names[number] for number in one) for one in spaces], space_of.ravel().tolist()


def _is_litter(path: Path) -> bool:
    return path.name.startswith(f".{POINTER}.") and path.name.endswith(".tmp")


def _tidy(target: Path, *, keep: str, previous: str | None) -> None:
    """Remove the version before this one, and what writers left that were killed long ago."""
    for path in target.iterdir():
        if path.name == keep or not (VERSION_NAME.fullmatch(path.name) or _is_litter(path)):
            continue
        try:
            if path.name == previous or time.time() - path.stat().st_mtime > LITTER_AGE:
                path.unlink() if _is_litter(path) else shutil.rmtree(path)
        except OSError:  # somebody else was faster, or reads it on a system that forbids this
            continue


# Checks and files


def _refusal(path: Path, what: str) -> ValueError:
    return ValueError(f"{path}: {what}")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]:.160}"


def _part(path: Path, header: Any, name: str, kind: type) -> Any:
    value = header.get(name) if isinstance(header, dict) else None
    if not isinstance(value, kind):
        raise _refusal(path, f"{name}: expected a {kind.__name__}, got {value!r:.40}")
    return value


def _check_shape(
    path: Path, name: str, shape: Any, dtype: Any, expected: Any, sizes: dict[str, int]
) -> None:
    """Check one field against `expected` (kinds, letters); unseen letters are put in `sizes`."""
    kinds, letters = expected or ("fiub", None)
    if dtype.kind not in kinds:
        raise _refusal(path, f"{name}: expected numbers of kind {kinds!r}, got dtype {dtype}")
    if 0 in shape:
        raise _refusal(path, f"{name}: expected no empty axis, got shape {shape}")
    if letters is None:
        return
    axes = letters.split()
    if len(shape) == len(axes):
        want = tuple(sizes.setdefault(a, n) for a, n in zip(axes, shape, strict=True))
    if len(shape) != len(axes) or want != shape:
        known = ", ".join(f"{a}={sizes[a]}" if a in sizes else a for a in axes)
        raise _refusal(path, f"{name}: expected shape ({known}), got {shape}")


def _check_finite(path: Path, name: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        raise _refusal(path, f"{name}: expected finite numbers, got NaN or infinity")


def _to_json(path: Path, value: Any) -> str:
    try:  # numpy integers become plain ones; NaN is no JSON
        return json.dumps(value, allow_nan=False, default=operator.index)
    except (TypeError, ValueError) as error:
        raise _refusal(path, f"a field that cannot be written ({error})") from None


def _from_json(path: Path, data: bytes) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise _refusal(path, f"its JSON cannot be read ({_first_line(error)})") from None


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise _refusal(folder, f"not a whole market, no {name} ({error.strerror})") from None


def _write(path: Path, data: bytes) -> None:
    """Put a file in place in one step: the old one or the new one is there, never a part."""
    if path.is_dir():
        raise _refusal(path, "expected the name of a file, got a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself is on disk only with its folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
