"""What the owner of a model says about it in words and numbers: licence, size, language.

`About` is a read-only mapping from names to strings, numbers or booleans. It travels in a
specification, and a market shows it as columns (`Market.about`). It is bounded, because it comes
from strangers, and it never takes part in a score.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Mapping

__all__ = ["MAX_ENTRIES", "MAX_TEXT", "About", "AboutValue"]

AboutValue = str | int | float | bool
MAX_ENTRIES = 64
MAX_TEXT = 1000  # characters of a name or of a text
MAX_INTEGER = 2**53  # float64 holds every integer up to here


class About(Mapping[str, AboutValue]):
    """An immutable, hashable mapping of metadata, in the order of the names.

    >>> about = About({"licence": "MIT", "parameters": 4_200_000})
    >>> about["licence"], len(about)
    ('MIT', 2)
    """

    __slots__ = ("_entries",)

    def __init__(self, entries: Mapping[str, AboutValue] | None = None) -> None:
        """Check the entries and keep them.

        Raises:
            TypeError: a name that is not a string, or a value that is not a string, a number or a
                boolean.
            ValueError: too many entries, too long a text, or a number that is not finite.
        """
        entries = {} if entries is None else entries
        if not isinstance(entries, Mapping):
            raise TypeError(f"about: expected a mapping, got a {type(entries).__name__}")
        if len(entries) > MAX_ENTRIES:
            raise ValueError(f"about: expected at most {MAX_ENTRIES} entries, got {len(entries)}")
        checked = {_checked_name(name): _checked_value(name, entries[name]) for name in entries}
        self._entries = tuple(sorted(checked.items()))

    def __getitem__(self, name: str) -> AboutValue:
        value = self.value(name)
        if value is None:
            raise KeyError(name)
        return value

    def value(self, name: str) -> AboutValue | None:
        """Return a value, or None if it is missing: `get` without an exception on the way."""
        for own, value in self._entries:
            if own == name:
                return value
        return None

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __hash__(self) -> int:
        return hash(self._entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self) == dict(other)

    def __repr__(self) -> str:
        return f"About({dict(self._entries)!r})"


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise TypeError(f"about: expected names that are non-empty strings, got {name!r:.80}")
    return _checked_text("a name", name)


def _checked_text(what: str, text: str) -> str:
    if len(text) > MAX_TEXT:
        raise ValueError(
            f"about: expected {what} of at most {MAX_TEXT} characters, got {len(text)}"
        )
    return unicodedata.normalize("NFC", str(text))


def _checked_value(name: object, value: object) -> AboutValue:
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # a numpy scalar
        value = value.item()
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _checked_text(f"a text for {name!r}", value)
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise ValueError(f"about: expected {name!r} within 2^53, got {value}")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"about: expected a finite number for {name!r}, got {value}")
        return value
    raise TypeError(
        f"about: expected a string, a number or a boolean for {name!r}, "
        f"got a {type(value).__name__}"
    )
