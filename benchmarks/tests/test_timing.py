"""The timing helper: what it counts, what it leaves out, and fits of growth."""

import time

import numpy as np
import pytest

from benchmarks.speed import timing
from benchmarks.speed.timing import Timed, fit_exponent, result_of, time_call, time_in_turns


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(timing, "PAUSE", 0.0)
    monkeypatch.setattr(timing, "WARM_UP", 0.0)


def test_first_call_stands_apart_from_the_repeats():
    waits = iter([0.05, 0.0, 0.0, 0.0])
    found = time_call(lambda: time.sleep(next(waits)), repeats=3)
    assert found.first >= 0.05
    assert len(found.seconds) == 3
    assert found.minimum <= found.median < 0.05


def test_calls_take_turns_with_the_same_seeds():
    order = []
    calls = {name: lambda seed, name=name: order.append((name, seed)) for name in "ab"}
    time_in_turns(calls, 2)
    timed = [("a", 2), ("b", 2), ("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert list(dict.fromkeys(order)) == timed


def test_a_call_may_bring_its_own_time():
    rows = time_in_turns({"remote": lambda seed: Timed(seed, 7.0)}, 2)
    assert rows["remote"].seconds == [7.0, 7.0]
    assert rows["remote"].results == [0, 1]
    assert rows["remote"].processor == []
    assert "cores_busy" not in rows["remote"].record()
    assert result_of(Timed("x", 1.0)) == result_of("x") == "x"


def test_time_spent_before_a_call_is_not_counted():
    rows = time_in_turns({"call": lambda _: None}, 2, before=lambda: time.sleep(0.02))
    assert rows["call"].median < 0.02


def test_a_slow_call_without_compilation_counts_its_first_call_only():
    calls = {"slow": lambda _: time.sleep(0.02), "fast": lambda _: None}
    rows = time_in_turns(calls, 3, compiled=lambda name: False, budget=0.01)
    assert len(rows["slow"].seconds) == len(rows["slow"].results) == 1
    assert rows["slow"].seconds == [rows["slow"].first]
    assert len(rows["fast"].seconds) == 3


def test_record_has_minimum_median_and_repeats():
    record = timing.Timings(9.0, [3.0, 1.0, 2.0], [2.0, 1.0, 3.0], [0, 0, 0]).record()
    assert (record["min_s"], record["median_s"], record["repeats"]) == (1.0, 2.0, 3)
    assert record["cores_busy"] == 1.0


def test_exponent_of_a_power_law_is_found():
    sizes = (10, 100, 1000, 10_000)
    found = fit_exponent(sizes, [3e-6 * size**1.5 for size in sizes])
    np.testing.assert_allclose(found, (1.5, 1.0), rtol=1e-9)


def test_a_fit_of_three_sizes_is_refused():
    with pytest.raises(ValueError, match="sizes: expected at least four.*got 3 sizes"):
        fit_exponent((1, 2, 3), (1.0, 2.0, 3.0))
