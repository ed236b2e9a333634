"""Threads that make items ahead or use them behind: order, bounds, errors, and always an end."""

import threading
import time

import pytest

from jaxspec.base import Behind, Pace, ahead


def ours():
    return [one for one in threading.enumerate() if one.name.startswith("jaxspec")]


def test_items_come_in_order_and_at_most_so_many_are_made_ahead():
    made = []

    def items():
        for i in range(20):
            made.append(i)
            yield i

    for i, item in enumerate(ahead(items(), depth=2)):
        assert item == i
        time.sleep(0.002)
        assert len(made) <= i + 4  # two wait, one is being put, one is in use
    assert made == list(range(20)) and not ours()


def test_an_error_comes_after_the_items_before_it():
    def items():
        yield 1
        raise KeyError("two")

    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(KeyError, match="two"):
        next(found)
    assert not ours()


def test_closing_early_ends_the_thread_and_closes_the_iterable():
    closed = []

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.append(True)

    found = ahead(items())
    next(found)
    found.close()
    assert closed == [True] and not ours()


def test_what_is_put_is_done_in_order_before_the_block_ends():
    done = []
    with Behind(lambda item: (time.sleep(0.001), done.append(item))) as behind:
        for i in range(20):
            behind.put(i)
    assert done == list(range(20)) and not ours()


def test_an_error_behind_is_raised_and_drops_what_follows():
    done = []

    def use(item):
        if item == 2:
            raise OSError("disk full")
        done.append(item)

    with pytest.raises(OSError, match="disk full"), Behind(use) as behind:
        for i in range(100):
            behind.put(i)
    assert done == [0, 1] and not ours()


def test_leaving_by_an_exception_does_what_was_handed_over():
    done = []
    with pytest.raises(KeyboardInterrupt), Behind(lambda item: done.append(item)) as behind:
        behind.put(0)
        behind.put(1)
        raise KeyboardInterrupt
    assert done == [0, 1] and not ours()


def test_a_pace_counts_from_its_first_update():
    clock = iter([10.0, 12.0, 14.0, 20.0])
    pace = Pace(clock=lambda: next(clock))
    pace.update(1000, 2000)
    assert pace.rate is None and pace.remaining is None and str(pace) == "1,000 of 2,000"
    pace.update(1000, 2000)
    assert pace.rate is None  # nothing was done yet
    pace.update(1400, 2000)
    assert pace.rate == 100 and pace.remaining == 6
    pace.update(1500, None)
    assert pace.rate == 50 and pace.remaining is None
    assert str(pace) == "1,500, 50 per second"
