"""Whether somebody else holds arrays, so that they may be overwritten in place or not.

An array that is donated to a compiled function is used up: whoever holds it finds it deleted. A
`Holder` keeps one pytree of arrays, hands it out, and replaces it; it says whether anybody who was
handed the arrays still has them. It counts references, as Python does for itself, so nobody has to
give anything back. A computation that was started with the arrays needs no reference: the runtime
waits for it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Generic, TypeVar

__all__ = ["Holder"]

T = TypeVar("T")


class Holder(Generic[T]):
    """One dataclass of arrays that any thread may read and that one at a time may replace."""

    def __init__(self, arrays: T) -> None:
        self._lock = threading.Lock()
        self._held = {"arrays": arrays}

    def get(self) -> T:
        """Return the arrays as they are now; they stay valid for as long as they are kept."""
        with self._lock:
            return self._held["arrays"]

    def replace(self, change: Callable[[T, bool], T], *, uses_up: Sequence[str]) -> None:
        """Put changed arrays in place.

        Args:
            change: called with the arrays and whether nobody else has them, so that they may be
                used up; returns the new ones. Nobody is handed the arrays meanwhile.
            uses_up: names of the arrays that `change` then uses up.
        """
        with self._lock:
            alone = _held_once(self._held, uses_up)
            self._held["arrays"] = change(self._held["arrays"], alone)


def _held_once(place: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Tell whether only `place` holds its arrays, and only these their fields with these names."""
    arrays = place["arrays"]
    if sys.getrefcount(arrays) > _ONCE[0]:
        return False
    fields = vars(arrays)
    return all(sys.getrefcount(fields[name]) <= _ONCE[1] for name in names)


def _counted_once() -> tuple[int, int]:
    """Return what the counts above are if nobody else holds anything; it differs by version."""
    place = {"arrays": SimpleNamespace(leaf=object())}
    arrays = place["arrays"]
    fields = vars(arrays)
    return sys.getrefcount(arrays), max(sys.getrefcount(fields[name]) for name in ("leaf",))


_ONCE = _counted_once()
