"""Metadata: an immutable mapping of bounded strings, numbers and booleans."""

import copy
import pickle

import numpy as np
import pytest

from jaxspec.specify import About
from jaxspec.specify.about import MAX_ENTRIES, MAX_TEXT

ENTRIES = {"licence": "MIT", "parameters": 4_200_000, "accuracy": 0.93, "quantised": False}


def test_it_is_a_mapping_in_the_order_of_the_names():
    about = About(ENTRIES)
    assert dict(about) == ENTRIES
    assert list(about) == sorted(ENTRIES)
    assert about == ENTRIES
    assert "licence" in about
    assert about.get("author") is None
    with pytest.raises(KeyError, match="author"):
        about["author"]
    assert len(About()) == len(About(None)) == 0


def test_equal_entries_are_equal_and_hash_alike_in_any_order():
    turned = About(dict(reversed(list(ENTRIES.items()))))
    assert turned == About(ENTRIES)
    assert hash(turned) == hash(About(ENTRIES))
    assert About({"a": 1}) != About({"a": 2})
    assert About({"a": 1}) != 5


def test_it_cannot_be_changed_and_does_not_follow_the_mapping_it_was_made_of():
    entries = dict(ENTRIES)
    about = About(entries)
    entries["licence"] = "other"
    assert about["licence"] == "MIT"
    with pytest.raises(TypeError):
        about["licence"] = "other"
    with pytest.raises(AttributeError):
        about.more = 1


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_copies_and_pickles_are_equal(again):
    assert again(About(ENTRIES)) == About(ENTRIES)


def test_numbers_of_numpy_become_plain_ones():
    about = About({"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(True), "d": np.str_("x")})
    assert dict(about) == {"a": 0.5, "b": 3, "c": True, "d": "x"}
    assert [type(about[name]) for name in "abcd"] == [float, int, bool, str]


def test_names_and_texts_are_of_one_unicode_form():
    assert About({"cafe\u0301": "e\u0301"}) == {"caf\u00e9": "\u00e9"}


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ("MIT", TypeError, "about: expected a mapping, got a str"),
        ({1: "a"}, TypeError, "about: expected names that are non-empty strings, got 1"),
        ({"": "a"}, TypeError, "about: expected names that are non-empty strings"),
        ({"a": [1]}, TypeError, "about: expected a string, a number or a boolean for 'a'.*list"),
        ({"a": None}, TypeError, "about: .*'a', got a NoneType"),
        ({"a": np.ones(2)}, TypeError, "about: .*'a', got a ndarray"),
        ({"a": float("nan")}, ValueError, "about: expected a finite number for 'a'"),
        ({"a": float("inf")}, ValueError, "about: expected a finite number for 'a'"),
        ({"a": 2**60}, ValueError, "about: expected 'a' within 2.53"),
        ({"a": "x" * (MAX_TEXT + 1)}, ValueError, "about: expected a text for 'a' of at most"),
        ({"x" * (MAX_TEXT + 1): 1}, ValueError, "about: expected a name of at most"),
        ({str(i): i for i in range(MAX_ENTRIES + 1)}, ValueError, "about: expected at most 64"),
    ],
)
def test_what_is_no_metadata_is_refused_by_name(entries, error, message):
    with pytest.raises(error, match=message):
        About(entries)
