"""Filters by metadata: a text such as "licence = MIT and parameters < 1e8" as a mask.

    expression  := conjunction ("or" conjunction)*
    conjunction := condition ("and" condition)*
    condition   := "not" condition | "(" expression ")" | "has" name | name comparison
    comparison  := ("=" | "==" | "!=" | "<" | "<=" | ">" | ">=") value
                 | ["not"] "in" "(" value ("," value)* ")"

A value is a number, `true`, `false`, or a text. Names and texts are bare words, such as Apache-2.0,
or quoted. `about_mask` may be called; `AboutColumns.where` calls it. The text comes from strangers:
it is bounded in length and depth, and nothing of it is ever evaluated as a program.
"""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np

from jaxspec.market.about_table import KIND_NAMES, AboutColumn, kind_of

if TYPE_CHECKING:
    from jaxtyping import Bool

    from jaxspec.specify import AboutValue

__all__ = ["MAX_DEPTH", "MAX_LENGTH", "about_mask"]

MAX_LENGTH = 10_000  # characters; a list of 500 licences has as many
MAX_DEPTH = 50  # parentheses and "not" inside each other: far below the limit of Python's stack
KEYWORDS = {"and", "or", "not", "in", "has", "true", "false"}
COMPARISONS: dict[str, Callable[..., np.ndarray]] = {
    "=": np.equal,
    "==": np.equal,
    "!=": np.not_equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<operator> == | != | <= | >= | [=<>] )
      | (?P<mark> [(),] )
      | (?P<quoted> "(?:[^"\\]|\\["'\\])*" | '(?:[^'\\]|\\["'\\])*' )
      | (?P<word> [^\s=!<>(),"'\\]+ )
    )""",
    re.VERBOSE,
)
_NUMBER = re.compile(r"[+-]?(?:\d+(?:_\d+)*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?\Z", re.ASCII)


class Token(NamedTuple):
    """A part of the text: its kind, what it says, and where it begins."""

    kind: str
    text: str
    at: int


def about_mask(
    text: object,
    count: int,
    column: Callable[[str], AboutColumn | None],
    names: Callable[[], Collection[str]],
    *,
    name: str = "where",
) -> Bool[np.ndarray, " M"]:
    """Return which of M learnwares a filter chooses.

    A comparison holds only for a value of the same kind (text, number, or boolean): neither for a
    missing value, also not with `!=` and `not in`, nor for one of another kind. `not` before a
    condition chooses all that the condition does not. Texts are ordered by code points.

    Args:
        text: the filter.
        count: M.
        column: gives metadata by name, or None where no learnware has it.
        names: gives all names of metadata, for errors.
        name: what the argument is called in errors.

    Raises:
        TypeError: not a string.
        ValueError: not such a text, a name that no learnware has, or a comparison that can hold
            for no learnware because all values are of another kind.
    """
    if not isinstance(text, str):
        raise TypeError(f"{name}: expected a string, got a {type(text).__name__}")
    if len(text) > MAX_LENGTH:
        raise ValueError(
            f"{name}: expected at most {MAX_LENGTH} characters, got {len(text)} of them"
        )
    return _Parser(text, count, column, names, name).parsed()


class _Parser:
    """One pass over the tokens, by recursive descent."""

    def __init__(
        self,
        text: str,
        count: int,
        column: Callable[[str], AboutColumn | None],
        names: Callable[[], Collection[str]],
        name: str,
    ) -> None:
        self.text, self.count, self.column, self.names, self.name = text, count, column, names, name
        self.tokens = list(self._split())
        self.next, self.depth = 0, 0

    def _split(self) -> Iterator[Token]:
        at, end = 0, len(self.text.rstrip())
        while at < end:
            found = _TOKEN.match(self.text, at)
            if found is None:
                start = len(self.text) - len(self.text[at:].lstrip())
                quote = self.text[start] in "\"'"
                self._fail(start, "a closing quote" if quote else "a name, a value or a comparison")
            kind = str(found.lastgroup)
            yield Token(kind, found[kind], found.start(kind))
            at = found.end()
        yield Token("end", "", len(self.text))

    def _fail(self, at: int, expected: str) -> NoReturn:
        rest = self.text[at : at + 20]
        got = f"{rest!r}" if rest.strip() else "the end"
        raise ValueError(f"{self.name}: expected {expected} at character {at + 1}, got {got}")

    def parsed(self) -> Bool[np.ndarray, " M"]:
        """Return the mask of the whole text."""
        mask = self._alternatives()
        if self.token.kind != "end":
            self._fail(self.token.at, "'and', 'or' or the end")
        return mask

    @property
    def token(self) -> Token:
        """The token that is read next."""
        return self.tokens[self.next]

    def _is(self, *keywords: str) -> bool:
        return self.token.kind == "word" and self.token.text.lower() in keywords

    def _take(self) -> Token:
        taken = self.token
        self.next += 1
        return taken

    def _take_mark(self, mark: str) -> None:
        if (self.token.kind, self.token.text) != ("mark", mark):
            self._fail(self.token.at, f"{mark!r}")
        self._take()

    def _alternatives(self) -> Bool[np.ndarray, " M"]:
        mask = self._conjunction()
        while self._is("or"):
            self._take()
            mask = mask | self._conjunction()
        return mask

    def _conjunction(self) -> Bool[np.ndarray, " M"]:
        mask = self._condition()
        while self._is("and"):
            self._take()
            mask = mask & self._condition()
        return mask

    def _condition(self) -> Bool[np.ndarray, " M"]:
        start = self.token
        opens = (start.kind, start.text) == ("mark", "(")
        if not opens and not self._is("not"):
            return self._test()
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self._fail(start.at, f"at most {MAX_DEPTH} parentheses and 'not' inside each other")
        self._take()
        if opens:
            mask = self._alternatives()
            self._take_mark(")")
        else:
            mask = ~self._condition()
        self.depth -= 1
        return mask

    def _test(self) -> Bool[np.ndarray, " M"]:
        if self._is("has"):
            self._take()
            column = self.column(self._named("the name of metadata after 'has'"))
            return np.zeros(self.count, bool) if column is None else column.present
        at = self.token.at
        known = self._named("the name of metadata")
        if self.token.kind == "operator":
            operator = self._take()
            value = self._value()
            if isinstance(value, bool) and operator.text not in ("=", "==", "!="):
                self._fail(operator.at, "=, == or != before a boolean")
            return self._compared(known, at, operator.text, [value])
        negative = self._is("not")
        if negative:
            self._take()
        if not self._is("in"):
            self._fail(self.token.at, "'in'" if negative else "a comparison, 'in' or 'not in'")
        self._take()
        self._take_mark("(")
        values = [self._value()]
        while (self.token.kind, self.token.text) == ("mark", ","):
            self._take()
            values.append(self._value())
        self._take_mark(")")
        return self._compared(known, at, "!=" if negative else "=", values)

    def _compared(
        self, known: str, at: int, operator: str, values: list[AboutValue]
    ) -> Bool[np.ndarray, " M"]:
        """Return where a column has a value that compares so: with any value, or != with all."""
        column = self.column(known)
        if column is None:
            raise ValueError(
                f"{self.name}: expected a name of metadata that a learnware has at character "
                f"{at + 1}, got {known!r:.80}{self.hint(known)}"
            )
        kinds = {kind_of(value) for value in values}
        if not kinds & column.kinds_present and column.kinds_present:
            there = " or ".join(KIND_NAMES[kind] for kind in sorted(column.kinds_present))
            asked = " or ".join(KIND_NAMES[kind] for kind in sorted(kinds))
            raise ValueError(
                f"{self.name}: expected {there} to compare {known!r:.80} with, since that is what "
                f"learnwares have there, got {asked}: {values[0]!r:.80} (character {at + 1})"
            )
        compare = COMPARISONS[operator]
        mask = np.zeros(self.count, bool)
        for kind in kinds:
            own = [value for value in values if kind_of(value) == kind]
            mask |= column.compared(kind, compare, own, every=operator == "!=")
        return mask

    def hint(self, known: str) -> str:
        """Return which names of metadata there are, the nearest first."""
        names = sorted(self.names())
        near = difflib.get_close_matches(known, names, n=3, cutoff=0.6)
        return f"; there is {(near or names)[:10]}" if names else "; there is none at all"

    def _named(self, expected: str) -> str:
        token = self.token
        word = token.kind == "word" and token.text.lower() not in KEYWORDS
        if not word and token.kind != "quoted":
            self._fail(token.at, expected)
        return _unquoted(self._take())

    def _value(self) -> AboutValue:
        token = self.token
        if self._is("true", "false"):
            return self._take().text.lower() == "true"
        if token.kind == "quoted":
            return _unquoted(self._take())
        if token.kind != "word" or token.text.lower() in KEYWORDS:
            self._fail(token.at, "a number, a text, true or false (other words in quotes)")
        if _NUMBER.match(token.text):
            number = float(token.text)
            if not math.isfinite(number):
                self._fail(token.at, "a number within float64")
            self._take()
            return number
        return _unquoted(self._take())


def _unquoted(token: Token) -> str:
    text = token.text
    if token.kind == "quoted":
        text = re.sub(r"\\(.)", r"\1", text[1:-1])
    return unicodedata.normalize("NFC", text)
