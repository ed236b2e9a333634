"""What the yardsticks share: calls that take turns, the `learnware` package, growth, tables, JSON.

A yardstick measures the library beside its rivals in one run. `take_turns` times calls round by
round, so that another load on the machine falls on all alike; `ensure_environment` and `Side` run
the `learnware` package in an environment of its own; `fit_exponent` says how a time grows;
`print_table`, `write_json` and `progress` are for the results. Nothing here measures a claim.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.speed.machine import describe

REQUIREMENTS = ("learnware==0.4.0.post1", "torch==2.13.0", "fast_pytorch_kmeans==0.2.2")
SIDE = Path(__file__).with_name("learnware_side.py")
PAUSE = 0.3  # seconds
SHORT = 0.5  # seconds: calls below are warmed up
WARM = 0.2  # seconds; after one call in their place, one of 2.7 ms took 4.2 on a virtual machine


class Timed(NamedTuple):
    """The result of a call that took its own time, as calls to another process do."""

    result: Any
    seconds: float


class Row(NamedTuple):
    """What `take_turns` saw of one call."""

    first: float  # seconds of the first call: compilation, where there is any
    seconds: list[float]  # of the calls after it
    results: list[Any]  # one for each of `seconds`

    @property
    def minimum(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def record(self) -> dict[str, Any]:
        """Return the times for JSON."""
        return {
            "first_call_s": self.first,
            "min_s": self.minimum,
            "median_s": self.median,
            "repeats": len(self.seconds),
            "seconds": self.seconds,
        }


def clock(call: Callable[[int], Any], seed: int) -> Timed:
    """Call once and return the result, when it is there, with the seconds it took."""
    began = time.perf_counter()
    result = jax.block_until_ready(call(seed))
    seconds = time.perf_counter() - began
    return result if isinstance(result, Timed) else Timed(result, seconds)


def take_turns(
    calls: Mapping[str, Callable[[int], Any]],
    repeats: int,
    *,
    compiled: Callable[[str], bool] = lambda name: True,
    budget: float = 60.0,
) -> dict[str, Row]:
    """Time every call in turn, `repeats` rounds after a first one, with the seeds 0, 1, ...

    Before each comes a pause, since thread pools spin for a while after their work, and before a
    short one calls that are not timed, until the processor is back at speed and the caches are
    this call's.

    Args:
        calls: name to a function of a seed; one that returns `Timed` has timed itself.
        repeats: rounds after the first.
        compiled: whether a call of that name compiles something. The first of one that does not
            is only a warm-up; if it took `budget` seconds, it counts as its one repeat.
        budget: seconds after which a call is repeated no more; every call is repeated once.
    """
    rows = {}
    for name, call in calls.items():
        progress(f"{name}: first call")
        result, seconds = clock(call, repeats)
        spent = not compiled(name) and seconds >= budget
        rows[name] = Row(seconds, [seconds] * spent, [result] * spent)
    for seed in range(repeats):
        progress(f"round {seed + 1} of {repeats}")
        for name, call in calls.items():
            row = rows[name]
            if row.seconds and sum(row.seconds) >= budget:
                continue
            time.sleep(PAUSE)
            if row.seconds and min(row.seconds) < SHORT:
                _warm_up(call, seed)
            result, seconds = clock(call, seed)
            row.seconds.append(seconds)
            row.results.append(result)
    return rows


def _warm_up(call: Callable[[int], Any], seed: int) -> None:
    began = time.perf_counter()
    while time.perf_counter() - began < WARM:
        clock(call, seed)


# The `learnware` package, in an environment of its own.


def ensure_environment(folder: Path) -> Path:
    """Return the Python of an environment with `REQUIREMENTS`; make it in `folder` if it lacks.

    The CPU build of torch is enough: `PIP_EXTRA_INDEX_URL` or pip's own settings choose it.
    """
    python = folder / "bin" / "python"
    if python.exists() and _has_requirements(python):
        return python
    progress(f"making an environment with {', '.join(REQUIREMENTS)} in {folder}")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-input", *REQUIREMENTS]
    subprocess.run(install, check=True, stdout=sys.stderr)
    return python


def _has_requirements(python: Path) -> bool:
    code = (
        "import importlib.metadata as m, sys\n"
        "for one in sys.argv[1:]:\n"
        "    name, version = one.split('==')\n"
        "    assert m.version(name).split('+')[0] == version\n"
    )
    call = [str(python), "-c", code, *REQUIREMENTS]
    return subprocess.run(call, capture_output=True, check=False).returncode == 0


class Side:
    """A process with the `learnware` package that answers jobs; see `learnware_side`.

    It stays up between jobs, so that its calls can take turns with others. Arrays travel through
    a temporary folder, which is also its home: the package makes a folder there. Its
    threads are as many as torch takes by itself, or `threads`: one is faster for it where other
    work shares the cores.
    """

    def __init__(self, python: Path, threads: int | None = None) -> None:
        self._python, self._threads = python, threads

    def __enter__(self) -> Side:
        self._folder = tempfile.TemporaryDirectory()
        environment = {**os.environ, "HOME": self._folder.name, "CUDA_VISIBLE_DEVICES": ""}
        environment.pop("PYTHONPATH", None)
        if self._threads is not None:
            environment["OMP_NUM_THREADS"] = str(self._threads)
        self._process = subprocess.Popen(
            [str(self._python), str(SIDE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._saved = 0
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()

    def put(self, array: Any) -> str:
        """Keep an array for jobs to come and return the name to call it by."""
        self._saved += 1
        path = str(Path(self._folder.name) / f"{self._saved}.npy")
        np.save(path, np.asarray(array))
        return path

    def ask(self, job: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the reply to a job and the reply's arrays; every call is a job done anew.

        Raises:
            RuntimeError: the job failed, or the process ended.
        """
        path = Path(self._folder.name) / "reply.npz"
        path.unlink(missing_ok=True)
        print(json.dumps({**job, "reply": str(path)}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"learnware: its process ended at the job {job['task']!r}")
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(f"learnware, job {job['task']!r}: {reply['error']}")
        if not path.exists():
            return reply, {}
        with np.load(path) as arrays:
            return reply, dict(arrays)

    def specify(self, rows: str, *, gamma: float, size: int, seed: int, **options: Any) -> Timed:
        """Return the points and weights of one reduced set; `rows` is a name from `put`."""
        job = {"task": "specify", "arrays": {"rows": rows}, "gamma": gamma, "size": size}
        reply, made = self.ask({**job, "seed": seed, "options": options})
        return Timed((made["points"], made["weights"]), reply["seconds"])

    def search(self, arrays: Mapping[str, str], *, gamma: float, path: str) -> Timed:
        """Return the arrays of one search; `arrays` as the job says, by names from `put`."""
        job = {"task": "search", "arrays": dict(arrays), "gamma": gamma, "path": path}
        reply, found = self.ask(job)
        return Timed(found, reply["seconds"])


def run_side(python: Path, job: Mapping[str, Any], **arrays: Any) -> tuple[dict, dict]:
    """Return the reply to a single job and its arrays: start the process, ask, and end it."""
    with Side(python) as side:
        names = {name: side.put(array) for name, array in arrays.items()}
        return side.ask({**job, "arrays": names})


# Growth, and what becomes of the figures.


class Exponent(NamedTuple):
    """A time that grows as size ** exponent."""

    exponent: float
    worst_ratio: float  # largest factor between a time and the fit, at least one


def fit_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> Exponent:
    """Return the least-squares exponent in log-log; four sizes or more.

    Raises:
        ValueError: fewer than four sizes, or numbers that do not pair up.
    """
    if len(sizes) != len(seconds) or len(sizes) < 4:
        raise ValueError(
            f"sizes: expected at least four, one for each time, got {len(sizes)} sizes and "
            f"{len(seconds)} times"
        )
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(seconds, float))
    slope, intercept = np.polyfit(x, y, 1)
    return Exponent(float(slope), float(np.exp(np.abs(y - slope * x - intercept).max())))


def progress(text: str) -> None:
    """Say on standard error what is being done."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def print_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a Markdown table; the first column is text, the others are numbers or text."""
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
    return value if isinstance(value, str) else f"{value:.3g}"


def milliseconds(seconds: float | None) -> str | None:
    """Return seconds as milliseconds with digits enough to read."""
    if seconds is None:
        return None
    return f"{seconds * 1e3:.3f}" if seconds < 1e-2 else f"{seconds * 1e3:,.1f}"


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record with the machine's description beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": describe(), **record}, indent=1, default=float) + "\n")
    progress(f"wrote {path}")
