"""JSON of strangers: memory and time in proportion to the text, and what is refused by name.

The texts are those that took too much: 120 bytes for each character of a string with escapes, and
22 bytes for each character of a list of empty lists.
"""

import time
import tracemalloc

import pytest

from jaxspec.files.bounded_json import parse_json

ITEMS = 1 << 18


@pytest.mark.parametrize(
    "text",
    [
        b'"' + rb"\u0041" * 300_000 + b'"',
        b'"' + rb"\"" * 1_000_000 + b'"',
        b'"' + b"\\" * 2_000_001,
        b"[" + b'"ab",' * 1_000_000 + b'"x"]',
        b"[" + b"[]," * 2_000_000 + b"1]",
        b"[" + b"{}," * 2_000_000 + b"1]",
        b"[" + b"1e9," * 1_000_000 + b"1]",
        b'"' * 2_000_000,
        b"," * 2_000_000,
        b"[" * 2_000_000,
    ],
)
def test_hostile_texts_take_little_memory_and_time(text):
    tracemalloc.start()
    started = time.process_time()
    try:
        parse_json("x", text, depth=3, items=ITEMS)
    except ValueError as error:
        assert str(error).startswith("x: expected JSON")
    seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * len(text) + (64 << 20)
    assert seconds < 3.0  # tracing memory takes several times as long as reading


def test_the_number_of_items_is_kept_at_both_sides():
    assert parse_json("x", "[1,2,3]", depth=1, items=4) == [1, 2, 3]
    with pytest.raises(ValueError, match="x: expected JSON of at most 3 items, got more"):
        parse_json("x", "[1,2,3]", depth=1, items=3)
    assert parse_json("x", '"a,b,[{"', depth=0, items=1) == "a,b,[{"
