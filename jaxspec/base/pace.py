"""How fast a long job goes, and how long it still takes: from the calls of `progress` alone."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Pace"]


class Pace:
    """Keeps the rate of a job.

    >>> times = iter([0.0, 2.0])
    >>> pace = Pace(clock=lambda: next(times))
    >>> pace.update(100, 500)  # what an earlier run had done does not count
    >>> pace.update(300, 500)
    >>> pace.rate, pace.remaining
    (100.0, 2.0)
    >>> print(pace)
    300 of 500, 100 per second, 2 s left

    Attributes:
        done: items that are done.
        total: items in all, or None where that is not known.
        rate: items per second since the first update, or None before the second one.
        remaining: seconds until the end at this rate, or None where that cannot be said.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with nothing known.

        Args:
            clock: gives the seconds.
        """
        self._clock = clock
        self._first: tuple[float, int] | None = None
        self.done = 0
        self.total: int | None = None
        self.rate: float | None = None
        self.remaining: float | None = None

    def update(self, done: int, total: int | None) -> None:
        """Take note of how far the job is: what `progress` is called with."""
        now = self._clock()
        self.done, self.total = done, total
        if self._first is None:
            self._first = (now, done)
            return
        began, before = self._first
        if now > began and done > before:
            self.rate = (done - before) / (now - began)
            self.remaining = None if total is None else max(total - done, 0) / self.rate

    def __str__(self) -> str:
        """Return a line such as "300 of 500, 100 per second, 2 s left"."""
        parts = [f"{self.done:,}" if self.total is None else f"{self.done:,} of {self.total:,}"]
        if self.rate is not None:
            parts.append(f"{self.rate:.3g} per second")
        if self.remaining is not None:
            parts.append(f"{_duration(self.remaining)} left")
        return ", ".join(parts)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
