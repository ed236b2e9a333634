"""Records of measurements: what a JSON file says beside its figures, and tables on the terminal.

`write_record` writes figures with the commit, the machine and the jax version that gave them.
`merge_results` does the same for a script with several cases, and keeps the cases of earlier runs
together with the commit of each. `print_table` prints a Markdown table, and `progress` reports on
standard error what is being done. Nothing here measures anything.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

__all__ = [
    "commit",
    "describe_machine",
    "merge_results",
    "milliseconds",
    "print_table",
    "progress",
    "write_record",
]

ROOT = Path(__file__).resolve().parents[1]


def commit() -> str:
    """Return the commit of the code, with "-dirty" where files differ from it, or "unknown"."""
    call = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def describe_machine() -> dict[str, Any]:
    """Return the processor, the device of jax, the load and the versions of this machine."""
    device = jax.devices()[0]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return {
        "processor": _processor(),
        "cores": len(affinity) or os.cpu_count(),
        "load_average": load,
        "backend": jax.default_backend(),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, with the commit and the machine before it.

    Args:
        path: of the file; its folder is made if it does not exist.
        record: names to anything that JSON holds, or numpy numbers.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"commit": commit(), "machine": describe_machine(), **record}
    path.write_text(json.dumps(whole, indent=1, default=float) + "\n")
    progress(f"wrote {path}")


def merge_results(path: Path, results: Mapping[str, Any], **others: Any) -> None:
    """Write the results of some cases, and keep those that an earlier run wrote for other cases.

    Args:
        path: of the JSON file.
        results: case to figures.
        others: further entries of the record.
    """
    earlier = json.loads(path.read_text()) if path.exists() else {}
    commits = {**earlier.get("commits", {}), **dict.fromkeys(results, commit())}
    kept = {**earlier.get("results", {}), **results}
    write_record(path, {**others, "commits": commits, "results": kept})


def progress(text: str) -> None:
    """Report on standard error what is being done."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def print_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a Markdown table.

    Args:
        title: the line above the table.
        headers: of the columns.
        rows: one sequence per row: text first, then numbers, text or None for an empty cell.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    columns = zip(headers, *cells, strict=True)
    widths = [max(3, *(len(cell) for cell in column)) for column in columns]

    def line(row: Sequence[str]) -> str:
        parts = [row[0].ljust(widths[0])]
        parts += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "| " + " | ".join(parts) + " |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    print(f"\n{title}\n")
    print("\n".join(line(row) for row in [list(headers), rule, *cells]), flush=True)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def milliseconds(seconds: float | None) -> str | None:
    """Return seconds as text in milliseconds, with at least three significant digits."""
    if seconds is None:
        return None
    return f"{seconds * 1e3:.3f}" if seconds < 1e-2 else f"{seconds * 1e3:,.1f}"
