"""A market spread over devices and processes answers as it does on one device.

How many devices there are is settled when jax starts, so everything here runs in processes of its
own: as a program this file runs all `check_...` functions on eight devices of one processor and
prints what became of each. Several processes call `run_process`.
"""

import dataclasses
import socket
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import CompileCounter
from drawn_markets import (
    COUNT,
    SPACE,
    USERS,
    NearAndAlike,
    assert_best_of,
    assert_same_match,
    assert_same_matches,
    drawn,
    drawn_batches,
    drawn_market,
    drawn_user,
    one_width,
)
from eight_devices import DEVICES, TIMEOUT, outcome_of, run_checks, start_process

import jaxspec as js
from jaxspec.market import ROW_ARRAYS
from jaxspec.scoring import METHODS

PROCESSES = 4
NAMES = tuple(METHODS)


def assert_answers_alike(spread, plain, methods=("likelihood",), k=5):
    for method in methods:
        want = js.match(plain, USERS, method=method)
        assert_same_matches(js.match(spread, USERS, method=method), want)
        for best, whole in zip(js.match(spread, USERS, k=k, method=method), want, strict=True):
            assert_best_of(best, whole, k)


def assert_same_specification(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(one, other)


# What is checked on eight devices


def line():
    return jax.make_mesh((DEVICES,), ("market",))


def check_all_methods_on_a_line_of_devices():
    plain = drawn_market()
    assert_answers_alike(plain.shard(line()), plain, (*NAMES, NearAndAlike()))


def check_all_methods_on_a_grid_of_devices():
    plain = drawn_market()
    spread = plain.shard(jax.make_mesh((4, 2), ("a", "b")))
    for method in NAMES:
        want = js.match(plain, USERS, method=method)
        for best, whole in zip(js.match(spread, USERS, k=5, method=method), want, strict=True):
            assert_best_of(best, whole, 5)
    assert_same_matches(js.match(spread, USERS), js.match(plain, USERS))


def check_without_probes():
    plain = drawn_market(probe=False)
    assert_answers_alike(plain.shard(line()), plain, ("likelihood", "transfer"))


def check_users_without_labels():
    user = dataclasses.replace(USERS[0], labels=None)
    plain = drawn_market()
    assert_same_match(js.match(plain.shard(line()), user), js.match(plain, user))


def check_some_of_the_learnwares():
    plain = drawn_market()
    spread, among = plain.shard(line()), np.arange(COUNT) % 3 != 1
    want = js.match(plain, USERS, among=among)
    assert len(want[0]) == among.sum()
    assert_same_matches(js.match(spread, USERS, among=among), want)
    for best, whole in zip(js.match(spread, USERS, k=6, among=among), want, strict=True):
        assert_best_of(best, whole, 6)


def check_a_hundredth_half_one_and_none_of_the_learnwares():
    plain = drawn_market()
    spread = plain.shard(line())
    for among in (np.arange(COUNT) % 100 == 7, np.arange(COUNT) % 2 == 0, np.arange(COUNT) == 20):
        want = js.match(plain, USERS, among=among, k=6)
        assert len(want[0]) == min(6, among.sum())
        assert_same_matches(js.match(spread, USERS, among=among, k=6), want)
    for one in js.match(spread, USERS, among=np.zeros(COUNT, bool), k=6):
        assert len(one) == 0
        assert "leaves out all" in one.notes[-1]


def check_many_users_in_batches():
    plain = drawn_market()
    users = {str(i): user for i, user in enumerate(USERS)}
    want = js.match_many(plain, users, k=6, batch_size=8)
    found = js.match_many(plain.shard(line()), users, k=6, batch_size=8)
    assert found.failed == 0
    np.testing.assert_array_equal(found.ids, want.ids)
    np.testing.assert_allclose(found.scores, want.scores, atol=1e-5)


def check_kinds_of_meshes_and_a_mesh_that_the_caller_has_set():
    plain = drawn_market()
    want = js.match(plain, USERS, method="likelihood")
    for kind in jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit:
        mesh = jax.make_mesh((DEVICES,), ("market",), axis_types=(kind,))
        assert_answers_alike(plain.shard(mesh), plain)
        with jax.set_mesh(mesh):
            assert_same_matches(js.match(plain, USERS, method="likelihood"), want)
            spread = plain.shard(mesh)
            assert_same_matches(js.match(spread, USERS, method="likelihood"), want)
            found = js.match(spread, USERS, k=5, method="likelihood")
            for best, whole in zip(found, want, strict=True):
                assert_best_of(best, whole, 5)
            assert_same_specification(spread["m4"], plain["m4"])
            assert "new" in spread.add({"new": drawn(50)})
    with pytest.raises(TypeError, match=r"mesh: expected a jax.sharding.Mesh"):
        plain.shard(mesh.abstract_mesh)


def check_from_stacked():
    plain = js.Market.from_stacked(SPACE, list(drawn_batches(COUNT)))
    explicit = jax.sharding.AxisType.Explicit
    for mesh in (line(), jax.make_mesh((DEVICES,), ("x",), axis_types=(explicit,))):
        spread = js.Market.from_stacked(SPACE, drawn_batches(COUNT), count=COUNT, mesh=mesh)
        assert spread.mesh is not None
        assert plain.mesh is None
        assert_answers_alike(spread, plain)
        assert_same_specification(spread["m20"], plain["m20"])
    tight = js.Market.from_stacked(SPACE, drawn_batches(COUNT), count=COUNT, spare=0.0, mesh=line())
    assert tight.arrays.weights.shape[0] == 24  # 21 in complete rows of eight devices
    best = js.match(tight, USERS, k=30)
    assert [one.ids for one in best] == [one.ids for one in js.match(plain, USERS, k=30)]
    assert all(len(one.ids) == COUNT for one in best)


def check_fewer_learnwares_than_devices():
    for count in (1, 3):
        plain = drawn_market(count)
        assert_answers_alike(plain.shard(line()), plain, k=count)


def check_some_of_the_devices():
    plain = drawn_market()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[2:5]), ("market",))
    spread = plain.shard(mesh)
    want = js.match(plain, USERS, method="likelihood")
    for best, whole in zip(js.match(spread, USERS, k=4, method="likelihood"), want, strict=True):
        assert_best_of(best, whole, 4)
    assert spread.arrays.points.devices() == set(jax.devices()[2:5])


def check_equal_scores_keep_the_order():
    kinds = [drawn(seed) for seed in (1, 4, 2)]  # with a probe proxy each
    plain = js.Market(SPACE, {f"m{i}": kinds[i % 3] for i in range(COUNT)})
    spread = plain.shard(line())
    for method in NAMES:
        for one in js.match(spread, USERS[:1], k=COUNT, method=method):
            assert len(set(one.scores.tolist())) == 3  # copies are equal to the last bit
            places = [int(name[1:]) for name in one.ids]
            for first in range(0, COUNT, 7):  # seven copies of one kind in their order
                part = places[first : first + 7]
                assert part == sorted(part)
                assert len({place % 3 for place in part}) == 1


def check_growth_and_removal():
    plain = drawn_market()
    spread = plain.shard(line())
    rows = spread.arrays.weights.shape[0]
    room = rows - COUNT - 7  # learnwares are written in pieces of eight rows
    for step in range(room):
        plain = plain.add({f"new{step}": drawn(100 + step)})
        spread = spread.add({f"new{step}": drawn(100 + step)})
    assert spread.arrays.weights.shape[0] == rows
    assert_answers_alike(spread, plain)
    leaving = ["m0", "m13", "new2"]
    plain, spread = plain.remove(leaving), spread.remove(leaving)
    assert not any(name in spread for name in leaving)
    assert_answers_alike(spread, plain)
    more = {"last": drawn(200), "m0": drawn(0)}
    beyond = spread.add(more)  # no room: copied, still spread
    assert beyond.arrays.weights.shape[0] > rows
    assert beyond.mesh == spread.mesh
    assert_shared_out(beyond)
    assert_answers_alike(beyond, plain.add(more))
    assert len(spread) == COUNT + room - 3  # the older version is as it was
    many = drawn(7, classes=6)
    wider = spread.add({"many": many})
    assert_same_specification(wider["many"], drawn_market().add({"many": many})["many"])


def check_reading():
    plain = drawn_market()
    spread = plain.shard(line())
    assert spread.ids == plain.ids
    for name in plain.ids:
        assert_same_specification(spread[name], plain[name])
    assert_same_specification(spread.remove(["m3"])["m4"], plain["m4"])


def check_saving():
    plain = drawn_market().remove(["m5"])
    with tempfile.TemporaryDirectory() as folder:
        plain.shard(line()).save(Path(folder) / "market")
        loaded = js.Market.load(Path(folder) / "market")
    assert loaded.mesh is None
    assert loaded.ids == plain.ids
    for name in plain.ids:
        assert_same_specification(loaded[name], plain[name])
    assert_answers_alike(loaded.shard(line()), plain)


def check_spreading_again_and_precision():
    plain = drawn_market()
    again = plain.shard(jax.make_mesh((4, 2), ("a", "b"))).shard(line())
    assert_answers_alike(again, plain)
    held = again.astype("bfloat16")
    assert held.mesh == again.mesh
    assert_shared_out(held)
    assert_same_specification(held["m1"], plain.astype("bfloat16")["m1"])


def check_int8():
    plain = drawn_market(precision="int8")
    spread = plain.shard(line())
    assert spread.precision == "int8"
    assert spread.arrays.points.dtype == np.int8
    assert_answers_alike(spread, plain)
    assert_same_specification(spread["m2"], plain["m2"])


def assert_shared_out(market):
    """Check that every device holds its part of every row array, and nothing of another's."""
    total, devices = market.arrays.weights.shape[0], market.mesh.size
    for name in ROW_ARRAYS:
        value = getattr(market.arrays, name)
        assert len(value.addressable_shards) == devices
        starts = set()
        for shard in value.addressable_shards:
            assert shard.data.shape == (total // devices, *value.shape[1:]), name
            starts.add(shard.index[0].start or 0)
        assert starts == set(range(0, total, total // devices)), name


def check_every_device_holds_only_its_part():
    spread = drawn_market().shard(line())
    assert_shared_out(spread)
    used = (np.asarray(spread.arrays.class_ids) >= 0).any(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(used), np.sort(spread.rows))
    # The learnwares themselves are shared out evenly, not only the rows.
    held = np.bincount(spread.rows // (len(used) // DEVICES), minlength=DEVICES)
    assert held.max() - held.min() <= 1
    assert_shared_out(spread.add({"new": drawn(50)}))
    bare = drawn_market(probe=False).shard(line())  # with arrays of no size
    assert_shared_out(bare.add({"new": drawn(50, probe=False)}))


def check_growing_and_other_users_compile_nothing():
    spread = drawn_market().shard(line())
    users = [USERS[0], drawn_user(4, "abcd"), drawn_user(5, "ab"), drawn_user(6, "abcd")]
    new = [drawn(51 + step) for step in range(3)]

    def ask(market, user):
        js.match(market, user)
        js.match(market, user, k=3)

    ask(spread, users[0])
    ask(spread, users[1])  # no learnware has all of its classes
    ask(spread, drawn_user(7, "wxyz"))
    with CompileCounter() as counter:
        grown = spread
        for step in range(3):
            grown = grown.add({f"new{step}": new[step]}).remove([f"m{step}"])
            ask(grown, users[0])
        ask(grown, users[2])
        ask(grown, users[3])
    assert counter.count == 0, counter.count


def check_a_market_that_was_emptied():
    market = drawn_market(2).remove(["m0", "m1"])
    for empty in (market, market.shard(line()), market.astype("int8")):
        assert len(empty) == 0
        refilled = empty.add({"new": drawn(3)}).add({"m0": drawn(4)})
        assert refilled.ids == ("new", "m0")
        assert refilled["m0"].class_names == drawn(4).class_names
    want = drawn_market(2).remove(["m0", "m1"]).add({"new": drawn(3)})
    got = market.shard(line()).add({"new": drawn(3)})
    assert_same_match(js.match(got, USERS[0]), js.match(want, USERS[0]))


CHECKS = {name: value for name, value in list(globals().items()) if name.startswith("check_")}


# What every one of several processes checks


def run_process(which, folder):
    with one_width():
        check_process(which, folder)


def check_process(which, folder):
    assert jax.process_count() == PROCESSES
    assert len(jax.local_devices()) == 1
    mesh = jax.make_mesh((PROCESSES,), ("market",))
    wanted = dict(np.load(Path(folder) / "wanted.npz"))
    spread = drawn_market().shard(mesh)
    assert not spread.arrays.points.is_fully_addressable
    (own,) = spread.arrays.points.addressable_shards
    assert own.data.shape[0] * PROCESSES == spread.arrays.points.shape[0]

    def check_all(where, name, method="likelihood"):
        for one, scores in zip(js.match(where, USERS, method=method), wanted[name], strict=True):
            np.testing.assert_allclose(one.scores, scores, atol=1e-5)

    def check_best(where, name, method="likelihood", k=5):
        found = js.match(where, USERS, k=k, method=method)
        for one, scores in zip(found, wanted[name], strict=True):
            rows = np.argsort(-scores, kind="stable")[:k]
            assert one.ids == tuple(f"m{row}" for row in rows)
            np.testing.assert_allclose(one.scores, scores[rows], atol=1e-5)

    check_all(spread, "likelihood")
    for method in NAMES:
        check_best(spread, method, method)
    for refused in (
        lambda: spread["m3"],
        lambda: spread.save(Path(folder) / f"market{which}"),
        lambda: spread.astype("int8"),
    ):
        with pytest.raises(ValueError, match="spread over several processes"):
            refused()
    index = js.Index.build(spread)
    check_best(index, "likelihood")
    # The calibration of a market that has changed: the processes find it together.
    grown = index.add({"m21": drawn(21)})
    check_best(grown, "grown")
    check_all(grown.market, "grown")
    check_all(spread.remove(["m20"]), "smaller")
    stacked = js.Market.from_stacked(SPACE, drawn_batches(COUNT), count=COUNT, mesh=mesh)
    check_best(stacked, "stacked")
    print("done", flush=True)


@pytest.fixture(scope="module")
def outcome(request):
    """Run the checks of the tests that were selected, all in one process."""
    here = Path(__file__)
    items = [item for item in request.session.items if Path(item.path) == here]
    return outcome_of(
        __file__, [i.callspec.params["check"] for i in items if hasattr(i, "callspec")]
    )


# The others take minutes: `pytest -m slow`.
QUICK = (
    "check_growth_and_removal",
    "check_every_device_holds_only_its_part",
)


@pytest.mark.parametrize(
    "check",
    [pytest.param(one, marks=[] if one in QUICK else [pytest.mark.slow]) for one in CHECKS],
)
def test_on_eight_devices(outcome, check):
    assert outcome[check] is None, outcome[check]


@pytest.mark.slow
def test_on_four_processes(tmp_path):
    plain = drawn_market()

    def scores_of(market, method="likelihood"):
        return np.stack([one.scores for one in js.match(market, USERS, method=method)])

    wanted = {method: scores_of(plain, method) for method in NAMES}
    wanted["grown"] = scores_of(plain.add({"m21": drawn(21)}))
    wanted["smaller"] = scores_of(plain.remove(["m20"]))
    wanted["stacked"] = scores_of(js.Market.from_stacked(SPACE, list(drawn_batches(COUNT))))
    np.savez(tmp_path / "wanted.npz", **wanted)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [
        start_process("test_sharded", port, which, PROCESSES, tmp_path)
        for which in range(PROCESSES)
    ]
    try:
        until = time.monotonic() + TIMEOUT
        while any(child.poll() is None for child in children) and time.monotonic() < until:
            if any(child.poll() for child in children):  # one failed: the others would wait
                break
            time.sleep(0.1)
    finally:
        for child in children:
            child.kill()
    printed = [child.communicate()[0] for child in children]
    assert all("done" in one for one in printed), "\n".join(printed)


if __name__ == "__main__":
    with one_width():
        run_checks({name: CHECKS[name] for name in sys.argv[2:] or CHECKS})
