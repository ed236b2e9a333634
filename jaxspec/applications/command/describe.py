"""What the command says about a file or folder of ours: its kind, and its facts.

`kind_of` looks at the first bytes only and needs neither jax nor the library. The `*_facts`
functions take loaded objects and return dictionaries for `--json`; `rows_of` makes them readable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxspec.applications.command.output import bytes_text

__all__ = [
    "kind_of",
    "market_facts",
    "rows_of",
    "size_of",
    "space_facts",
    "specification_facts",
]

MARKET_POINTER = "market.json"
MAX_HEADER_BYTES = 1 << 25  # as the library's own limit
SHOWN_NAMES = 12  # class names in a table; JSON has all


def kind_of(path: Path) -> str | None:
    """Return "Space", "Specification", "UserSpecification" or "Market", or None for others."""
    if path.is_dir():
        return "Market" if (path / MARKET_POINTER).is_file() else None
    if not path.is_file():  # a pipe or a device is not opened
        return None
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= MAX_HEADER_BYTES:
                return None
            header = json.loads(file.read(length))
        kind = json.loads(header["__metadata__"]["jaxspec"])["kind"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return kind if isinstance(kind, str) else None


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if path.is_dir():
        return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
    return path.stat().st_size


def _file_facts(kind: str, path: Path | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"kind": kind}
    if path is not None:
        facts |= {"path": str(path), "bytes": size_of(path)}
        if path.is_file():
            facts["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return facts


def space_facts(space: Any, path: Path | None = None) -> dict[str, Any]:
    """Return what there is to say about a space, and about its file."""
    return _file_facts("Space", path) | {
        "name": space.name,
        "digest": space.digest,
        "kernel": type(space.kernel).__name__,
        "bandwidth": float(space.kernel.bandwidth),
        "dimension": space.dimension,
        "probe_rows": 0 if space.probe is None else len(space.probe),
    }


def specification_facts(spec: Any, path: Path | None = None) -> dict[str, Any]:
    """Return what there is to say about a specification of a learnware or of a user."""
    points, dimension = np.shape(spec.reduced_set.points)
    facts = _file_facts(type(spec).__name__, path) | {
        "space": spec.space_name,
        "space_digest": spec.space_digest,
        "class_names": list(spec.class_names),
        "points": int(points),
        "dimension": int(dimension),
        "examples": spec.num_examples,
    }
    if hasattr(spec, "about"):
        facts["probe_proxy"] = spec.probe_proxy is not None
        if spec.probe_proxy is not None:
            facts["probe_fidelity"] = float(spec.probe_proxy.fidelity)
        facts["representation"] = spec.representation is not None
        facts["about"] = dict(spec.about)
    else:
        facts["labels_shared"] = spec.labels is not None
    return facts


def market_facts(folder: Any, path: Path) -> dict[str, Any]:
    """Return what there is to say about an opened market."""
    names: dict[str, int] = {}
    sizes: set[int] = set()
    for learnware in folder.ids:
        own = folder.class_names(learnware)
        sizes.add(len(own))
        for name in own:
            names[name] = names.get(name, 0) + 1
    return _file_facts("Market", path) | {
        "learnwares": len(folder),
        "version": str(folder.version),
        "precision": folder.precision,
        "space": folder.space.name,
        "space_digest": folder.space.digest,
        "dimension": folder.space.dimension,
        "probed": bool(folder.probed),
        "class_names": len(names),
        "classes_per_learnware": [min(sizes, default=0), max(sizes, default=0)],
        "about": sorted(folder.about),
    }


def rows_of(facts: Mapping[str, Any]) -> dict[str, object]:
    """Return facts as rows of a table: short words in place of numbers and lists."""
    rows: dict[str, object] = {}
    for name, value in facts.items():
        label = name.replace("_", " ")
        if name == "bytes":
            rows["size"] = bytes_text(value)
        elif name == "classes_per_learnware":
            low, high = value
            rows[label] = str(low) if low == high else f"{low} to {high}"
        elif name == "about" and isinstance(value, Mapping):
            rows |= {f"about {key}": entry for key, entry in value.items()}
        elif isinstance(value, bool):
            rows[label] = "yes" if value else "no"
        elif isinstance(value, float):
            rows[label] = f"{value:.4g}"
        elif isinstance(value, list):
            more = f" and {len(value) - SHOWN_NAMES} more" if len(value) > SHOWN_NAMES else ""
            rows[label] = ", ".join(map(str, value[:SHOWN_NAMES])) + more
        else:
            rows[label] = value
    return rows
