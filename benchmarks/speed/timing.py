"""The one way in which these benchmarks take times.

`time_in_turns` times several calls round by round, so that another load on the machine falls on all
of them alike. `time_call` times one call. Both give `Timings`: the first call, which compiles, then
the minimum and the median of the repeats. A call that runs in another process, or that should be
timed in part only, returns `Timed` and so brings its own time. `fit_exponent` says how a time
grows with a size. Nothing here is about jaxspec.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.records import progress

__all__ = [
    "Exponent",
    "Timed",
    "Timings",
    "fit_exponent",
    "result_of",
    "time_call",
    "time_in_turns",
]

PAUSE = 0.3  # seconds before a call: thread pools spin for a while after their work
SHORT = 0.5  # seconds: calls that take less are warmed up first
WARM_UP = 0.2  # seconds; without, a call of 2.7 ms took 4.2 ms on a virtual machine


class Timed(NamedTuple):
    """The result of a call that took its own time."""

    result: Any
    seconds: float


class Timings(NamedTuple):
    """The times of one call, in seconds."""

    first: float  # of the first call, which includes compilation
    seconds: list[float]  # of every repeat
    processor: list[float]  # processor seconds of this process; empty if the call timed itself
    results: list[Any]  # one per repeat

    @property
    def minimum(self) -> float:
        """Seconds of the fastest repeat."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """Seconds of the median repeat."""
        return statistics.median(self.seconds)

    def record(self) -> dict[str, Any]:
        """Return the times for a JSON record; `cores_busy` is processor seconds per second."""
        record = {
            "first_call_s": self.first,
            "min_s": self.minimum,
            "median_s": self.median,
            "repeats": len(self.seconds),
            "seconds": self.seconds,
        }
        if self.processor:
            record["min_processor_s"] = min(self.processor)
            record["cores_busy"] = sum(self.processor) / sum(self.seconds)
        return record


def time_call(call: Callable[[], Any], repeats: int = 5) -> Timings:
    """Time one call: once for compilation, then `repeats` times; wait for what it returns."""
    timings = Timings(_clock(call)[0].seconds, [], [], [])
    for _ in range(repeats):
        _append(timings, call)
    return timings


def time_in_turns(
    calls: Mapping[str, Callable[[int], Any]],
    repeats: int,
    *,
    compiled: Callable[[str], bool] = lambda name: True,
    budget: float = 60.0,
    before: Callable[[], Any] = lambda: None,
) -> dict[str, Timings]:
    """Time every call in turn, `repeats` rounds after a first one, with the seeds 0, 1, ...

    Each call comes after a pause. A short one also comes after calls that are not timed, so that
    the processor is back at its speed and the caches hold the data of this call.

    Args:
        calls: name to a function of a seed.
        repeats: rounds after the first.
        compiled: whether the call of that name compiles something. If not, its first call is only
            a warm-up, and counts as its one repeat if it took `budget` seconds or more.
        budget: seconds after which a call is not repeated any more; every call is repeated once.
        before: called before every call, not timed.
    """
    rows = {}
    for name, call in calls.items():
        progress(f"{name}: first call")
        before()
        found, processor = _clock(lambda call=call: call(repeats))
        spent = not compiled(name) and found.seconds >= budget
        rows[name] = Timings(
            found.seconds, [found.seconds] * spent, processor * spent, [found.result] * spent
        )
    for seed in range(repeats):
        progress(f"round {seed + 1} of {repeats}")
        for name, call in calls.items():
            row = rows[name]
            if row.seconds and sum(row.seconds) >= budget:
                continue
            time.sleep(PAUSE)
            if row.seconds and min(row.seconds) < SHORT:
                began = time.perf_counter()
                while time.perf_counter() - began < WARM_UP:
                    before()
                    jax.block_until_ready(call(seed))
            before()
            _append(row, lambda call=call, seed=seed: call(seed))
    return rows


def _clock(call: Callable[[], Any]) -> tuple[Timed, list[float]]:
    """Return the result of a call with its seconds, and its processor seconds if known."""
    processor, began = time.process_time(), time.perf_counter()
    result = jax.block_until_ready(call())
    seconds, used = time.perf_counter() - began, time.process_time() - processor
    return (result, []) if isinstance(result, Timed) else (Timed(result, seconds), [used])


def _append(timings: Timings, call: Callable[[], Any]) -> None:
    found, processor = _clock(call)
    timings.seconds.append(found.seconds)
    timings.processor.extend(processor)
    timings.results.append(found.result)


def result_of(made: Any) -> Any:
    """Return what a call returned, without the time that it may bring."""
    return made.result if isinstance(made, Timed) else made


class Exponent(NamedTuple):
    """A time that grows as size ** exponent."""

    exponent: float
    worst_ratio: float  # largest factor between a time and the fit, at least one


def fit_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> Exponent:
    """Return the least-squares exponent of times against sizes, both in logarithms.

    Raises:
        ValueError: fewer than four sizes, or not one time per size.
    """
    if len(sizes) != len(seconds) or len(sizes) < 4:
        raise ValueError(
            f"sizes: expected at least four, with one time for each, got {len(sizes)} sizes and "
            f"{len(seconds)} times"
        )
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(seconds, float))
    slope, intercept = np.polyfit(x, y, 1)
    return Exponent(float(slope), float(np.exp(np.abs(y - slope * x - intercept).max())))
