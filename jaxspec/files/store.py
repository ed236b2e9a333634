"""Specification files (safetensors) and markets on disk (Orbax).

A specification file holds the arrays under their field paths ("reduced_set.points") and one JSON
text with everything else, so a field added to the dataclasses needs no change here. A market is a
folder: a pointer `market.json` names the version folder in force, which holds `facts.json` (ids,
names, sizes, checksums) and `arrays` (Orbax, the live learnwares only).

Reading runs no code from a file: arrays are numbers, the rest is JSON, and every field is checked
before it is used. Writing never touches what was saved before: a new file or version is complete
on disk before one rename puts it in force. Called through `save` and `load` of `Specification`,
`UserSpecification` and `Market`; Orbax and safetensors are imported on first use.
"""

from __future__ import annotations

import contextlib
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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.base import pad_to
from jaxspec.kernels import Kernel
from jaxspec.market import arrays as market_arrays
from jaxspec.market import builder as market_storage
from jaxspec.market import market as _market
from jaxspec.specify.reduced_set import Diagnostics
from jaxspec.specify.representation import RANK
from jaxspec.specify.specification import FORMAT_VERSION, as_class_names

__all__ = [
    "Header",
    "as_path",
    "check_files",
    "derive",
    "ledger",
    "load_market",
    "load_specification",
    "read_header",
    "save_market",
    "save_specification",
]

PathLike = str | os.PathLike[str]
MARKET_VERSION = 1
POINTER = "market.json"
DEAD_AFTER = 24 * 3600.0  # seconds; an older version that no pointer names is of a killed writer
# Of a stored array; chunks are read and written in parallel. A chunk of 4 MiB is decoded in a
# processor's cache: measured half the processor time of one of 64 MiB.
CHUNK_BYTES = 1 << 22
MAX_FILE_BYTES = 1 << 30  # of a specification: 100 times that of 1000 classes in 2048 dimensions

# Kind of numbers and shape of the fields; sizes of one letter must agree. A field that is not
# listed may be any finite array, within diagnostics any finite number.
_FIELDS = {
    "reduced_set.points": ("f", "md"),
    "reduced_set.weights": ("f", "m"),
    "proxy.weights": ("f", "dC"),
    "proxy.bias": ("f", "C"),
    "kernel.bandwidth": ("fiu", ""),
    "labels": ("i", "m"),
    "probe.landmarks": ("f", "Dd"),
    "probe.weights": ("f", "DC"),
    "probe.bias": ("f", "C"),
    "probe.fidelity": ("f", ""),
    "representation": ("f", "dR"),
}
_ARRAYS = {
    "points": ("f", "Mmd"),
    "scales": ("f", "M"),
    "square_norms": ("f", "Mm"),
    "weights": ("f", "Mm"),
    "self_terms": ("f", "M"),
    "class_vectors": ("f", "Mkd"),
    "class_bias": ("f", "Mk"),
    "class_ids": ("i", "Mk"),
    "origin": ("f", "d"),
    "probe_weights": ("f", "MkD"),
    "probe_bias": ("f", "Mk"),
    "probe_chances": ("u", "MkD"),
    "has_probe": ("f", "M"),
    "hidden_maps": ("f", "MRd"),
    "landmarks": ("f", "Dd"),
    "white": ("f", "DE"),
}
_DERIVED = ("scales", "square_norms")  # absent in the first files of version 1, in float32
_UNSAVED = ("kernel", "class_grams")  # not among the arrays of a folder
_PROBE = ("probe_weights", "probe_chances", "landmarks", "white")  # absent without a probe
_UNTYPED = {"reduced_set.diagnostics": (Diagnostics,)}  # kernels.py does not know this class
_hints = functools.cache(typing.get_type_hints)


def save_specification(path: PathLike, spec: Any) -> None:
    """Write a `Specification` or `UserSpecification` to one safetensors file.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: a field that `load_specification` would refuse; nothing is written then.
    """
    target, safetensors = as_path(path), _safetensors()
    with _naming(target):
        _check_that(not target.is_dir(), "expected a file's name, got a folder")
        arrays: dict[str, np.ndarray] = {}
        header = {"kind": type(spec).__name__, "static": {}, "types": {}, "numbers": {}}
        _flatten(spec, "", header, arrays)
        text = _to_json(header)
        _unflatten(type(spec), json.loads(text), arrays)
        said = {"jaxspec": text, "crc32": str(_checksum_of(text, arrays))}
        data = safetensors.numpy.save(arrays, metadata=said)
        _check_that(len(data) <= MAX_FILE_BYTES, f"expected at most {MAX_FILE_BYTES} bytes")
    _write(target, data)


def load_specification(path: PathLike, cls: type) -> Any:
    """Read a file of `save_specification`; arrays come back as numpy arrays, bit by bit.

    Args:
        path: the file.
        cls: `Specification` or `UserSpecification`.

    Raises:
        ImportError: safetensors is not installed.
        FileNotFoundError: there is nothing at `path`.
        ValueError: not such a file, of another version, damaged, or with a field that is not as
            it must be; the message names the file and the field.
    """
    target, safetensors = _existing(path), _safetensors()
    with _naming(target):
        _check_that(target.is_file(), "expected a specification file, got a folder")
        size = target.stat().st_size
        _check_that(size <= MAX_FILE_BYTES, f"expected at most {MAX_FILE_BYTES} bytes, got {size}")
        with safetensors.safe_open(target, framework="np") as file:
            said = file.metadata() or {}
            text = said.get("jaxspec", "")
            _check_that(text, "a safetensors file, but not of a specification")
            unknown = sorted(said.keys() - {"jaxspec", "crc32"})  # perhaps a damaged "crc32"
            _check_that(not unknown, f"metadata: expected jaxspec and crc32, got also {unknown}")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        spec = _unflatten(cls, json.loads(text), arrays)
        checksum = said.get("crc32")  # the first files of version 1 have none
        damaged = checksum is not None and checksum != str(_checksum_of(text, arrays))
        _check_that(not damaged, "its checksum is wrong, so a number or a name is damaged")
        return spec


def _checksum_of(text: str, arrays: Mapping[str, np.ndarray]) -> int:
    """Return the CRC-32 of the JSON text and of every array with its name, type and shape."""
    checksum = zlib.crc32(text.encode("utf-8", "surrogatepass"))
    for name, array in sorted(arrays.items()):
        said = f"{name} {array.dtype.name} {array.shape}".encode()
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), zlib.crc32(said, checksum))
    return checksum


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            "specification files need safetensors: pip install 'jaxspec-learnware[demo]'"
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


def _unflatten(cls: type, header: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Check all parts of a file and return the dataclass that they make."""
    kind, (static, kinds, numbers) = header["kind"], map(header.get, ("static", "types", "numbers"))
    _check_that(kind == cls.__name__, f"expected a {cls.__name__}, got a {kind!r:.40}")
    version = static["format_version"]
    _check_that(
        version == FORMAT_VERSION, f"format_version: expected {FORMAT_VERSION}, got {version!r:.40}"
    )
    names = as_class_names("class_names", static["class_names"])
    for at, number in numbers.items():
        _check_that(_conforms(number, int | float | bool), f"{at}: got {number!r:.40} as a number")
    leaves, sizes = {**numbers, **arrays}, {"C": len(names), "R": RANK}
    for at, leaf in leaves.items():
        rule = _FIELDS.get(at, ("fiu", "") if "diagnostics." in at else ("fiub", None))
        _check_array(at, np.shape(leaf), np.asarray(leaf).dtype, rule, sizes)
        _check_finite(at, leaf)

    def build(cls: type, prefix: str) -> Any:
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            at, hint, value = prefix + field.name, _hints(cls)[field.name], None
            union = (hint, *typing.get_args(hint))
            choices = _UNTYPED.get(at) or [one for one in union if dataclasses.is_dataclass(one)]
            if field.metadata.get("static"):
                value = static.pop(at, field.default)
                value = tuple(value) if isinstance(value, list) else value
                _check_that(_conforms(value, hint), f"{at}: expected {hint}, got {value!r:.80}")
            elif at in kinds:
                name = kinds.pop(at)
                found = [one for one in choices if one.__name__ == name]  # type: ignore[union-attr]
                _check_that(len(found) == 1, f"{at}: got an unknown kind {name!r:.40}")
                value = build(found[0], at + ".")  # type: ignore[arg-type]
            elif at in leaves and not choices:
                value = leaves.pop(at)
            else:
                optional = field.default is None or type(None) in union
                _check_that(optional, f"{at}: expected this field, got a file without it")
            values[field.name] = value
        return cls(**values)

    spec = build(cls, "")
    unknown = sorted([*static, *kinds, *leaves])
    _check_that(not unknown, f"{unknown[:1]!r:.80}: no such field in a {cls.__name__}")
    _check_that(spec.feature_space != "", "feature_space: expected a non-empty string")
    _check_that(spec.num_examples >= 0, f"num_examples: got {spec.num_examples}")
    labels = np.asarray(arrays.get("labels", 0))
    good = labels.min() >= 0 and labels.max() < len(names)
    _check_that(good, f"labels: expected values in 0..{len(names) - 1}")
    return spec


def save_market(path: PathLike, market: _market.Market) -> None:
    """Write a market to a folder; what was there stays in force until the new one is whole.

    Raises:
        ValueError: an empty market, or a folder that holds something else; nothing is changed.
    """
    import orbax.checkpoint as ocp

    target = as_path(path)
    with _naming(target):
        _check_that(target.is_dir() or not target.exists(), "expected a folder, got a file")
        _check_that(len(market) > 0, "expected at least one learnware, got an empty market")
        if (target / POINTER).exists():
            _pointer(target)  # of a market, and of this version
        elif target.exists():
            other = [one.name for one in target.iterdir() if not one.name.startswith("version-")]
            _check_that(not other, f"expected a market or an empty folder, got {other[:3]!r:.80}")
        arrays, header = _pack(market)
        _to_json(header)  # refused here, if at all
    version = target / f"version-{uuid.uuid4().hex[:12]}"
    try:
        version.mkdir(parents=True)
        with ocp.StandardCheckpointer() as checkpointer:
            options = {name: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES) for name in arrays}
            checkpointer.save((version / "arrays").absolute(), arrays, save_args=options)
            checkpointer.wait_until_finished()
        for one in version.rglob("*"):  # Orbax itself does not wait for the disk everywhere
            _sync(one)
        header["files"] = _checksums(version / "arrays")
        facts = _to_json(header).encode()
        _write(version / "facts.json", facts)
        previous = _pointer(target)["current"] if (target / POINTER).exists() else None
        pointer = {"current": version.name, "crc32": zlib.crc32(facts)}
        pointer.update({"format": "jaxspec market", "format_version": MARKET_VERSION})
        _write(target / POINTER, _to_json(pointer).encode())
    except BaseException:
        shutil.rmtree(version, ignore_errors=True)
        raise
    for one in target.glob("version-*"):
        with contextlib.suppress(OSError):  # somebody else was faster
            dead = time.time() - one.stat().st_mtime > DEAD_AFTER
            if one != version and (one.name == previous or dead):
                shutil.rmtree(one)


def load_market(path: PathLike) -> _market.Market:
    """Read a folder of `save_market`: the same numbers, and room for more learnwares.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: not such a folder, of another version, damaged, or with a field that is not as
            it must be; the message names the folder and the field.
    """
    target = _existing(path)
    with _naming(target):
        header = read_header(target)
        check_files(header)  # before Orbax sees them: its threads go on complaining after an error
        arrays = _load_arrays(header)
        return _unpack(header, ledger(header, arrays["class_ids"]), arrays)


@dataclasses.dataclass(frozen=True)
class Header:
    """What a market on disk says of itself, checked: everything but its numbers.

    Attributes:
        folder: of the arrays.
        version: the name of the version folder, and the checksum of its facts.
        ids: of the M learnwares.
        class_names: of the numbers in the array `class_ids`.
        facts: {field of `market_storage.Facts`: M values}, without class names.
        feature_space: of all.
        kernel: of all.
        probe: fingerprint of the probe set, or None.
        precision: a key of `market_arrays.STORAGES`.
        arrays: {field of `MarketArrays`: (shape, dtype)}; what a market without a probe set or
            without representations lacks is absent, and in the first files also `scales` and
            `square_norms`.
        files: {file below `folder`: CRC-32}.
    """

    folder: Path
    version: str
    ids: list[str]
    class_names: list[str]
    facts: dict[str, list[Any]]
    feature_space: str
    kernel: Kernel
    probe: str | None
    precision: str
    arrays: dict[str, tuple[Any, str]]
    files: dict[str, int]


def read_header(target: Path) -> Header:
    """Read and check what a folder of `save_market` holds, without its arrays.

    Raises:
        ValueError, KeyError, TypeError, OSError: something is not as it must be.
    """
    pointer = _pointer(target)
    version = target / pointer["current"]
    data = (version / "facts.json").read_bytes()
    _check_that(zlib.crc32(data) == pointer["crc32"], "facts.json: its checksum is wrong")
    header = json.loads(data)
    ids, names, facts = header["ids"], header["class_names"], header["facts"]
    for field, values in (("ids", ids), ("class_names", names)):
        good = _conforms(tuple(values), tuple[str, ...]) and "" not in values
        good = good and 0 < len(values) == len(set(values))
        _check_that(good, f"{field}: expected different, non-empty strings")
    space, kinds = header["feature_space"], {k.__name__: k for k in typing.get_args(Kernel)}
    _check_that(_conforms(space, str) and space, "feature_space: expected a non-empty string")
    _check_that(header["kernel"] in kinds, f"kernel: expected one of {sorted(kinds)}")
    kernel = kinds[header["kernel"]](header["bandwidth"])
    precision = header.get("storage", "float32")  # of version 1 before there was a choice
    _check_that(precision in market_arrays.STORAGES, f"storage: got {precision!r:.40}")
    arrays = _checked_header(header["arrays"], len(ids), precision)
    _check_facts(facts, len(ids), arrays["points"][0][1])
    probe = header["probe"]
    _check_that(_conforms(probe, str | None), "probe: expected a fingerprint or null")
    fits = (probe is None) == ("landmarks" not in arrays)
    _check_that(fits, "probe: does not fit to the arrays")
    return Header(
        folder=version / "arrays",
        version=f"{version.name} {pointer['crc32']}",
        ids=ids,
        class_names=names,
        facts=facts,
        feature_space=space,
        kernel=kernel,
        probe=probe,
        precision=precision,
        arrays=arrays,
        files=header["files"],
    )


def check_files(header: Header) -> None:
    """Read all files of the arrays and check that they are those that were written."""
    damaged = _checksums(header.folder) != header.files
    _check_that(not damaged, "arrays: a file is missing or damaged, or does not belong there")


def ledger(header: Header, class_ids: np.ndarray) -> market_storage.Storage:
    """Return ids, names and facts as a market keeps them, without arrays.

    Args:
        header: of the market.
        class_ids: (M, classes) int32 of all learnwares; they are checked.
    """
    spaces, space_of = _label_spaces(class_ids, header.class_names)
    storage = market_storage.Storage(header.precision)
    storage.ids, storage.probe = header.ids, header.probe
    storage.index = {learnware: (slot,) for slot, learnware in enumerate(header.ids)}
    storage.names = {name: number for number, name in enumerate(header.class_names)}
    columns = [name for name in _hints(market_storage.Facts) if name != "class_names"]
    rows = zip(*(header.facts[name] for name in columns), strict=True)
    for slot, (label_space, row) in enumerate(zip(space_of, rows, strict=True)):
        own = spaces[label_space]
        storage.note_space(own, slot)
        storage.facts.append(market_storage.Facts(own, *row))
    return storage


def _pointer(target: Path) -> Any:
    _check_that((target / POINTER).is_file(), f"expected a market, got a place without {POINTER}")
    pointer = json.loads((target / POINTER).read_bytes())
    _check_that(pointer["format"] == "jaxspec market", f"{POINTER}: not that of a market")
    version = pointer["format_version"]
    _check_that(
        version == MARKET_VERSION, f"format_version: expected {MARKET_VERSION}, got {version!r:.40}"
    )
    known = re.fullmatch(r"version-[0-9a-f]{12}", pointer["current"])  # never another folder
    _check_that(known, f"{POINTER}: expected a version's name, got {pointer['current']!r:.40}")
    return pointer


def _checksums(folder: Path) -> dict[str, int]:
    """Return the CRC-32 of every file below a folder."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            checksum = 0
            with open(path, "rb") as file:
                while block := file.read(1 << 24):
                    checksum = zlib.crc32(block, checksum)
            found[path.relative_to(folder).as_posix()] = checksum
    return found


def _pack(market: _market.Market) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the rows of the live learnwares, and everything else for JSON."""
    storage, slots, arrays = market._storage, market.slots, {}
    with storage.lock:  # the next `add` may give these arrays' memory away
        names = list(storage.names)
        whole = market.mesh is None and not market._removed
        rows = {} if whole else market_storage.take(storage, slots)
        for field in dataclasses.fields(market.arrays):
            value = getattr(market.arrays, field.name)
            if field.name not in _UNSAVED and value.size:  # none of a probe where there is no probe
                arrays[field.name] = rows[field.name] if field.name in rows else np.asarray(value)
    if whole:
        live = {name: arrays[name] for name in market_arrays.ROW_FIELDS if name in arrays}
        arrays.update({name: value[: len(slots)] for name, value in live.items()})
    used = np.unique(arrays["class_ids"])
    used = used[used >= 0]
    numbers = np.full(len(names) + 1, -1, np.int32)  # the last one is for -1, no class
    numbers[used] = np.arange(len(used))
    arrays["class_ids"] = numbers[arrays["class_ids"]]
    for name, array in arrays.items():
        _check_finite(name, array)
    facts = [storage.facts[slot] for slot in slots]
    columns = [name for name in _hints(market_storage.Facts) if name != "class_names"]
    header = {
        "feature_space": market.feature_space,
        "kernel": type(market.kernel).__name__,
        "bandwidth": float(market.kernel.bandwidth),
        "probe": market.probe,
        "storage": market.storage,
        "class_names": [names[number] for number in used],
        "arrays": {k: [v.shape, v.dtype.name] for k, v in arrays.items()},
        "ids": market.ids,
        "facts": {name: [getattr(one, name) for one in facts] for name in columns},
    }
    return arrays, header


def _checked_header(said: Any, count: int, precision: str) -> dict[str, tuple[Any, str]]:
    """Check what the arrays are said to be and return {field: (shape, dtype)}."""
    names = (one.name for one in dataclasses.fields(market_arrays.MarketArrays))
    fields = [name for name in names if name not in _UNSAVED]
    needed = set(fields) - set(_PROBE) - set(_DERIVED) - {"hidden_maps"}
    _check_that(needed <= set(said) <= set(fields), f"arrays: expected {sorted(fields)}")
    point_type, vector_type = (one.name for one in market_arrays.STORAGES[precision])
    stored = {"points": point_type, **dict.fromkeys(market_arrays.VECTORS, vector_type)}
    sizes, checked = {"M": count, "R": RANK}, {}
    for name, (shape, dtype) in said.items():
        wanted = (stored[name],) if name in stored else ("float32", "int32", "bool", "uint8")
        _check_that(dtype in wanted, f"{name}: expected dtype {wanted}, got {dtype!r:.40}")
        _check_that(_conforms(tuple(shape), tuple[int, ...]), f"{name}: got shape {shape!r:.80}")
        rows = name not in market_arrays.ROW_FIELDS or shape[:1] == [count]
        _check_that(rows, f"{name}: expected {count} rows, got shape {shape!r:.80}")
        rule = _ARRAYS.get(name, ("fib", None))
        # The types of `stored` are checked already, and numpy has no kind for bfloat16.
        kind = np.dtype(np.float32 if name in stored else dtype)
        _check_array(name, tuple(shape), kind, rule, sizes)
        checked[name] = (tuple(shape), dtype)
    return checked


def _load_arrays(header: Header) -> dict[str, np.ndarray]:
    """Read the arrays and check that they are what the header says."""
    import orbax.checkpoint as ocp

    expected = {
        name: np.broadcast_to(np.zeros((), jnp.dtype(dtype)), shape)  # takes no memory
        for name, (shape, dtype) in header.arrays.items()
    }
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore(header.folder.absolute(), expected)
    for name, array in arrays.items():
        _check_finite(name, array)
    if "landmarks" not in arrays:
        count, classes, d = arrays["class_vectors"].shape
        empty = {"probe_weights": (count, classes, 0), "landmarks": (0, d), "white": (0, 0)}
        arrays.update({name: np.zeros(shape, np.float32) for name, shape in empty.items()})
        arrays["probe_weights"] = arrays["probe_weights"].astype(arrays["class_vectors"].dtype)
        arrays["probe_chances"] = np.zeros(empty["probe_weights"], np.uint8)
    if "hidden_maps" not in arrays:
        count, _, d = arrays["class_vectors"].shape
        arrays["hidden_maps"] = np.zeros((count, 0, d), arrays["class_vectors"].dtype)
    derive(arrays)
    arrays["class_grams"] = market_arrays.class_grams(arrays["class_vectors"])
    return arrays


def derive(rows: dict[str, np.ndarray]) -> None:
    """Add what the first files do not hold to rows with points, which then are float32."""
    if "scales" not in rows:
        rows["scales"] = np.ones(len(rows["points"]), np.float32)
    if "square_norms" not in rows:
        rows["square_norms"] = np.square(rows["points"]).sum(axis=2)


def _check_facts(facts: Any, count: int, size: int) -> None:
    hints = dict(_hints(market_storage.Facts))
    del hints["class_names"]
    _check_that(set(facts) == set(hints), f"facts: expected {sorted(hints)}")
    for name, column in facts.items():
        good = isinstance(column, list) and len(column) == count
        one_a_type = {type(value): value for value in column} if good else {}
        good = good and all(_conforms(value, hints[name]) for value in one_a_type.values())
        _check_that(good, f"{name}: expected {count} values of type {hints[name]}")
    sizes, versions = facts["size"], set(facts["format_version"])
    _check_that(1 <= min(sizes) <= max(sizes) <= size, f"size: expected values in 1..{size}")
    _check_that(versions == {FORMAT_VERSION}, f"format_version: expected {FORMAT_VERSION}")
    _check_that(min(facts["num_examples"]) >= 0, "num_examples: expected no negative values")


def _label_spaces(ids: np.ndarray, names: list[str]) -> tuple[list[tuple[str, ...]], list[int]]:
    """Return the different tuples of class names, and which of them each learnware has."""
    ids = np.ascontiguousarray(ids)  # rows as bytes: np.unique of an axis takes nine times as long
    keys = ids.view(np.dtype((np.void, ids.itemsize * ids.shape[1])))
    _, first, space_of = np.unique(keys, return_index=True, return_inverse=True)
    rows = ids[first]
    sizes = (rows >= 0).sum(axis=1)
    spaces = [row[:size].tolist() for row, size in zip(rows, sizes, strict=True)]
    good = -1 <= rows.min() <= rows.max() < len(names)
    good &= bool(((rows >= 0) == (np.arange(rows.shape[1]) < sizes[:, None])).all())
    good &= all(len(set(one)) == len(one) >= 2 for one in spaces)
    _check_that(good, f"class_ids: expected rows of different numbers 0..{len(names) - 1}")
    return [tuple(names[number] for number in one) for one in spaces], space_of.ravel().tolist()


def _unpack(
    header: Header, storage: market_storage.Storage, arrays: dict[str, np.ndarray]
) -> _market.Market:
    """Return the market of checked parts, with spare slots."""
    count, kernel = len(header.ids), header.kernel
    slots = market_arrays.capacity(count)
    stacked = {}
    for name in list(arrays):
        array = arrays.pop(name)  # so that no two copies of everything exist
        if name in market_arrays.ROW_FIELDS:
            padding = -1 if name == "class_ids" else 0
            array = pad_to(array, (slots, *array.shape[1:]), value=padding)
        stacked[name] = jnp.array(array)
    own_kernel = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), kernel)
    storage.arrays = market_arrays.MarketArrays(**stacked, kernel=own_kernel)
    market_storage.prepare(storage, own_kernel, np.asarray(stacked["landmarks"]))
    market = _market.Market(storage, count, frozenset(), kernel, header.feature_space)
    # Write zeros to the first free slot: the first `add` finds its functions compiled.
    whole = {name: getattr(storage.arrays, name) for name in market_arrays.ROW_FIELDS}
    zeros = {name: np.zeros((1, *value.shape[1:]), value.dtype) for name, value in whole.items()}
    zeros["class_ids"] -= 1
    market_storage.write(storage, count, zeros)
    return market


def as_path(path: Any) -> Path:
    """Return `path` as a path.

    Raises:
        TypeError: it is neither a string nor a path.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path: expected a string or a path, got a {type(path).__name__}")
    return Path(path)


def _existing(path: PathLike) -> Path:
    if not as_path(path).exists():
        raise FileNotFoundError(f"{path}: there is nothing at this path")
    return Path(path)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn whatever a damaged or foreign file brings about into an error that names the file."""
    try:
        yield
    except Exception as error:
        line = (str(error).splitlines() or [""])[0][:300]
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{path}: {kind}{line}") from error


def _check_that(condition: Any, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_array(name: str, shape: Any, dtype: Any, rule: Any, sizes: dict[str, int]) -> None:
    """Check a field against `rule` (kinds, letters); letters not seen yet are put in `sizes`."""
    kinds, axes = rule
    _check_that(dtype.kind in kinds, f"{name}: expected numbers of kind {kinds}, got dtype {dtype}")
    _check_that(all(n > 0 for n in shape), f"{name}: expected no empty axis, got shape {shape}")
    if axes is not None:
        fits = len(shape) == len(axes)
        fits = fits and all(sizes.setdefault(a, n) == n for a, n in zip(axes, shape, strict=True))
        want = ", ".join(f"{a}={sizes[a]}" if a in sizes else a for a in axes)
        _check_that(fits, f"{name}: expected shape ({want}), got {shape}")


def _check_finite(name: str, array: Any) -> None:
    _check_that(np.isfinite(array).all(), f"{name}: expected finite numbers, got NaN or infinity")


def _conforms(value: Any, hint: Any) -> bool:
    """Tell whether a JSON value (lists as tuples) is what a field's annotation says."""
    if typing.get_origin(hint) is tuple:
        entry = typing.get_args(hint)[0]
        return isinstance(value, tuple) and all(_conforms(one, entry) for one in value)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_conforms(value, one) for one in typing.get_args(hint))
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _to_json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, default=operator.index)  # numpy integers are fine


def _write(path: Path, data: bytes) -> None:
    """Put a file in place in one step: the old one or the new one is there, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)  # the rename itself is on disk only with its folder


def _sync(path: Path) -> None:
    if os.name == "posix":  # elsewhere folders cannot be opened
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
