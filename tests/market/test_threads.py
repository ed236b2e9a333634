"""A market is a value in every thread: readers beside writers, and arrays that stay valid."""

import threading

import jax
import numpy as np
import pytest
from conftest import SPACE, made_specification, made_user

import jaxspec as js

METHODS = ("rkme", "classwise", "likelihood", "transfer")


@pytest.fixture(scope="module")
def specs():
    return {f"m{s}": made_specification(s % 6) for s in range(12)}


def run_together(jobs, seconds):
    """Run each job again and again in a thread of its own, and return what they raised."""
    raised, stop = [], threading.Event()

    def repeat(job):
        count = 0
        while not stop.is_set():
            try:
                job(count)
            except Exception as error:
                raised.append(error)
                stop.set()
            count += 1

    threads = [threading.Thread(target=repeat, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    stop.wait(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    return raised


def branch_jobs(market, specs, check):
    """Return four jobs that grow branches of one market and check what they made."""
    heads = [market] * 4

    def grow(which, count):
        name = f"branch {which} {count}"
        grown = heads[which].add({name: specs["m1"]})
        if count % 3 == 0:
            grown = grown.update({name: specs["m2"]})
        assert len(grown) == len(heads[which]) + 1
        check(grown)
        # Every few steps a branch starts anew from the common market, so that rows are fought for.
        heads[which] = market if count % 7 == 6 else grown

    return [lambda count, which=which: grow(which, count) for which in range(4)]


def test_eight_threads_read_and_grow_one_market(specs, tmp_path):
    market, user = js.Market(SPACE, specs), made_user(1)
    wanted = {method: js.match(market, user, method=method).scores for method in METHODS}
    best = js.match(market, user, k=3).ids
    row = np.asarray(market["m3"].reduced_set.points)
    placed = js.user_arrays(market, user)

    def match(count):
        method = METHODS[count % 4]
        found = js.match(market, user, method=method)
        assert found.ids == market.ids
        np.testing.assert_array_equal(found.scores, wanted[method])
        assert js.match(market, user, k=3).ids == best

    def read(count):
        np.testing.assert_array_equal(market["m3"].reduced_set.points, row)
        scores = js.score_arrays(market.arrays, placed, method="rkme")
        np.testing.assert_array_equal(np.asarray(scores)[market.rows], wanted["rkme"])

    def save(count):
        market.save(tmp_path / "market")

    def check(grown):
        np.testing.assert_array_equal(
            js.match(grown, user, method="rkme").scores[: len(market)], wanted["rkme"]
        )

    raised = run_together([match, match, read, save, *branch_jobs(market, specs, check)], 3.0)
    assert not raised, raised[0]
    assert js.Market.load(tmp_path / "market").ids == market.ids


@pytest.mark.slow
def test_an_index_is_searched_while_it_grows(specs):
    index, user = js.Index.build(js.Market(SPACE, specs)), made_user(1)
    best = js.match(index, user, k=3).ids
    heads = [index, index]

    def search(count):
        assert js.match(index, user, k=3).ids == best

    def grow(which, count):
        heads[which] = heads[which].add({f"{which} {count}": specs["m0"]})
        assert len(js.match(heads[which], user, k=3)) == 3

    jobs = [search, search, lambda count: grow(0, count), lambda count: grow(1, count)]
    raised = run_together(jobs, 1.5)
    assert not raised, raised[0]


def test_arrays_that_somebody_keeps_stay_valid_and_others_grow_in_place(specs):
    market = js.Market(SPACE, specs)
    kept = market.arrays
    before = np.array(kept.points)
    place = market.arrays.points.unsafe_buffer_pointer()
    grown = market.add({"a": specs["m0"]})
    np.testing.assert_array_equal(kept.points, before)  # not deleted, and not written to
    assert grown.arrays.points.unsafe_buffer_pointer() != place
    leaf = grown.arrays.weights  # one array is enough
    again = grown.add({"b": specs["m0"]})
    assert not leaf.is_deleted()
    del kept, leaf
    place = again.arrays.points.unsafe_buffer_pointer()
    last = again.add({"c": specs["m0"]})
    assert last.arrays.points.unsafe_buffer_pointer() == place
    assert market.shared is last.shared
    jax.block_until_ready(last.arrays)
