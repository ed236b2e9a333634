"""JSON from files of strangers: bounded in depth and number of items, without repeated names.

`parse_json` reads and `json_text` writes. The text that `json_text` writes depends on the value
alone, so a checksum of it is a checksum of the value. Nothing here opens a file.
"""

from __future__ import annotations

import json
import operator
import re
from typing import Any, NoReturn

__all__ = ["json_text", "parse_json", "require"]

# A string (or what is left of the text after a quote without its counterpart), a bracket, a comma.
# A string always matches to its end at the first try, so no text takes more than linear time; with
# possessive repetitions (++, *+) nothing is remembered of it, which took 120 bytes per character.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+\\?(?:"|\Z)|[\[\]{},]', re.DOTALL)


def require(condition: object, message: str) -> None:
    """Raise a ValueError with this message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def json_text(value: object) -> str:
    """Return a value as JSON in ASCII; equal values give equal text.

    Raises:
        ValueError: a number that is not finite.
        TypeError: a value that JSON does not know.
    """
    return json.dumps(
        value,
        allow_nan=False,
        sort_keys=True,
        separators=(",", ":"),
        default=operator.index,  # integers of numpy
    )


def parse_json(
    name: str,
    text: str | bytes,
    *,
    depth: int,
    items: int | None = None,
    constants: bool = False,
) -> Any:
    """Return the value of a JSON text.

    Args:
        name: what the text is called in errors.
        text: as a string, or encoded in UTF-8.
        depth: how deep lists and objects may be nested. The parser of Python calls itself once per
            level, so that a deep text could use up the stack.
        items: how many strings, brackets and commas there may be, None for any number. An empty
            list of three characters takes 64 bytes once it is read, so that without this a text
            could take over twenty times its size.
        constants: whether NaN and Infinity are read: they are not JSON, but many programs write
            them.

    Raises:
        ValueError: not JSON, nested too deeply, an object with a name twice, or NaN.
    """
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    level = 0
    for count, token in enumerate(_TOKEN.finditer(data), start=1):
        first = data[token.start()]
        level += 1 if first in b"[{" else -1 if first in b"]}" else 0
        require(level <= depth, f"{name}: expected JSON of at most {depth} levels, got more")
        if items is not None and count > items:
            raise ValueError(f"{name}: expected JSON of at most {items} items, got more")
    try:
        refuse = None if constants else _refuse_constant
        return json.loads(data, object_pairs_hook=_object, parse_constant=refuse)
    except RecursionError:
        raise ValueError(f"{name}: expected JSON of at most {depth} levels, got more") from None
    except ValueError as error:
        raise ValueError(f"{name}: expected JSON, got another text: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has one name twice")
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number of JSON")
