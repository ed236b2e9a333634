"""Filters by metadata choose what a plain Python program over dictionaries chooses."""

import operator

import numpy as np
import pytest

from jaxspec.market import AboutColumns, Entry, Ledger
from jaxspec.specify import About

COMPARISONS = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
VALUES = {
    "licence": ["MIT", "Apache-2.0", "GPL", 'it\'s "mine"', "3-clause"],
    "parameters": [1, 7, 1e8, 4_200_000, -2.5],
    "open": [True, False],
    "mixed": ["text", 3, True, "7", 7],
    "two words": ["a b", "or", "true", "1"],
}


def columns_of(notes, slots=None):
    ledger = Ledger()
    for i, about in enumerate(notes):
        ledger.enter(f"m{i}", Entry(("a", "b"), 3, 5, 2, None, About(about)))
    return AboutColumns(ledger, np.arange(len(notes)) if slots is None else slots)


def random_notes(rng, count):
    return [
        {
            name: values[rng.integers(len(values))]
            for name, values in VALUES.items()
            if rng.random() < 0.7
        }
        for _ in range(count)
    ]


def kind(value):
    return "text" if isinstance(value, str) else bool if isinstance(value, bool) else "number"


def written(value, rng):
    """Return a value as a text of a filter, bare or quoted where both are right."""
    if isinstance(value, bool):
        return str(value).lower() if rng.random() < 0.5 else str(value).upper()
    if not isinstance(value, str):
        return repr(value)
    if value in ("MIT", "Apache-2.0", "GPL", "3-clause", "text") and rng.random() < 0.5:
        return value
    quote = "'\""[rng.integers(2)]
    return quote + value.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote


def random_filter(rng, depth=0):
    """Return a filter as a text, and as a function of a dictionary."""
    shape = rng.integers(7) if depth < 4 else rng.integers(3)
    name = list(VALUES)[rng.integers(len(VALUES))]
    shown = name if " " not in name else f"'{name}'"
    own = VALUES[name]
    if shape == 0:
        return f"has {shown}", lambda about: name in about
    if shape == 1:
        value = own[rng.integers(len(own))]
        signs = ["=", "==", "!="] if isinstance(value, bool) else list(COMPARISONS)
        sign = signs[rng.integers(len(signs))]

        def compared(about):
            there = name in about and kind(about[name]) == kind(value)
            return there and COMPARISONS[sign](about[name], value)

        space = " " * int(rng.integers(2))
        return f"{shown} {sign}{space}{written(value, rng)}", compared
    if shape == 2:
        listed = [own[i] for i in rng.integers(len(own), size=rng.integers(1, 4))]
        negative = rng.random() < 0.5

        def among(about):
            if name not in about or kind(about[name]) not in {kind(one) for one in listed}:
                return False
            equal = any(kind(about[name]) == kind(one) and about[name] == one for one in listed)
            return equal != negative

        values = ", ".join(written(one, rng) for one in listed)
        return f"{shown} {'not in' if negative else 'IN'} ({values})", among
    if shape == 3:
        text, holds = random_filter(rng, depth + 1)
        return f"not ({text})", lambda about: not holds(about)
    (left, first), (right, second) = random_filter(rng, depth + 1), random_filter(rng, depth + 1)
    if shape == 4:  # "and" binds more tightly than "or": no parentheses around a comparison
        return f"({left}) and ({right})", lambda about: first(about) and second(about)
    if shape == 5:
        return f"({left} or {right})", lambda about: first(about) or second(about)
    (more, third) = random_filter(rng, 4)
    both = f"{more} and {more} or ({right})"
    return both, lambda about: third(about) or second(about)


def test_a_filter_chooses_what_a_program_over_dictionaries_chooses():
    rng = np.random.default_rng(0)
    notes = random_notes(rng, 200)
    about, chosen = columns_of(notes), 0
    for _ in range(300):
        text, holds = random_filter(rng)
        found = about.where(text)
        assert found.dtype == bool and found.shape == (200,)
        np.testing.assert_array_equal(found, [holds(one) for one in notes], err_msg=text)
        chosen += 0 < found.sum() < 200
    assert chosen > 200  # most filters tell learnwares apart


def test_and_binds_more_tightly_than_or_and_not_more_tightly_than_and():
    about = columns_of([{"a": a, "b": b, "c": c} for a in (0, 1) for b in (0, 1) for c in (0, 1)])
    a, b, c = (np.array([about[name][i] == 1 for i in range(8)]) for name in "abc")
    np.testing.assert_array_equal(about.where("a=1 or b=1 and c=1"), a | (b & c))
    np.testing.assert_array_equal(about.where("(a=1 or b=1) and c=1"), (a | b) & c)
    np.testing.assert_array_equal(about.where("not a=1 and b=1"), ~a & b)
    np.testing.assert_array_equal(about.where("not not a=1"), a)


def test_a_missing_value_satisfies_no_comparison_but_the_negation_of_one():
    about = columns_of([{"licence": "MIT"}, {"licence": "GPL"}, {}])
    assert about.where("licence != MIT").tolist() == [False, True, False]
    assert about.where("licence not in (MIT, BSD)").tolist() == [False, True, False]
    assert about.where("not licence = MIT").tolist() == [False, True, True]
    assert about.where("has licence").tolist() == [True, True, False]
    assert about.where("has author").tolist() == [False, False, False]


def test_learnwares_that_come_later_and_other_orders_are_seen():
    notes = [{"size": i, "name": f"n{i}"} for i in range(10)]
    about = columns_of(notes, np.array([7, 2, 9]))
    assert about.where("size > 5").tolist() == [True, False, True]
    ledger = about._ledger
    ledger.enter("later", Entry(("a", "b"), 3, 5, 2, None, About({"size": 100, "name": "n2"})))
    later = AboutColumns(ledger, np.array([10, 2, 0]))
    assert later.where("size > 5").tolist() == [True, False, False]
    assert later.where("name = n2").tolist() == [True, True, False]
    assert about.where("name = n2").tolist() == [False, True, False]


def test_unicode_forms_of_a_name_are_the_same():
    about = columns_of([{"café": "crème"}])
    assert about.where("café = crème").tolist() == [True]


def test_an_empty_market_has_no_names_to_refuse():
    assert columns_of([]).where("licence = MIT and size < 3").shape == (0,)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (3, TypeError, "where: expected a string, got a int"),
        ("", ValueError, "where: expected the name of metadata at character 1, got the end"),
        ("licence", ValueError, "where: expected a comparison, 'in' or 'not in' at character 8"),
        ("licence =", ValueError, "where: expected a number, a text, .* at character 10"),
        ("licence = and", ValueError, "where: expected a number, .* at character 11, got 'and'"),
        ("(size < 3", ValueError, r"where: expected '\)' at character 10, got the end"),
        ("size < 3)", ValueError, r"where: expected 'and', 'or' or the end at character 9"),
        ("licence = MIT GPL", ValueError, "where: expected 'and', 'or' or the end at character 15"),
        ("licence in MIT", ValueError, r"where: expected '\(' at character 12, got 'MIT'"),
        ("licence in ()", ValueError, "where: expected a number, .* at character 13"),
        ("licence not = MIT", ValueError, "where: expected 'in' at character 13"),
        ("licence = 'MIT", ValueError, "where: expected a closing quote at character 11"),
        ("licence = a\\b", ValueError, "where: expected a name, a value or a comparison"),
        ("size < 1e999", ValueError, "where: expected a number within float64 at character 8"),
        ("open < true", ValueError, "where: expected =, == or != before a boolean"),
        ("licens = MIT", ValueError, r"got 'licens'; there is \['licence'\]"),
        ("licence < 3", ValueError, "where: expected a text to compare 'licence' with, .* number"),
        ("size in (a, b)", ValueError, "where: expected a number to compare 'size' with"),
        ("size = true", ValueError, "where: expected a number to compare 'size' .* a boolean"),
        ("(" * 60 + "size < 3" + ")" * 60, ValueError, "where: expected at most 50 parentheses"),
        ("not " * 2000 + "size < 3", ValueError, "where: expected at most 50 parentheses"),
        ("size < 3 or " * 900 + "size < 3", ValueError, "where: expected at most 10000 characters"),
    ],
)
def test_errors_name_the_argument_the_place_and_what_was_expected(text, error, message):
    about = columns_of([{"licence": "MIT", "size": 4, "open": True}, {"size": 2}])
    with pytest.raises(error, match=message):
        about.where(text)


def test_long_lists_and_chains_within_the_limit_are_read():
    about = columns_of([{"size": i} for i in range(1000)])
    listed = ", ".join(str(i) for i in range(0, 1000, 2))
    assert about.where(f"size in ({listed})").sum() == 500
    assert about.where(" or ".join(["size < 3"] * 700)).sum() == 3
