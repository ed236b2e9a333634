"""A market spread over devices and processes answers as it does on one device.

How many devices there are is settled when jax starts, so everything here runs in processes of its
own: this file, called with what to do. `devices` runs all `check_...` functions on eight devices of
one CPU and prints what became of each; `process` is one of several processes.
"""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import CompileCounter

import jaxspec as js
from jaxspec.market.market import ROW_FIELDS
from jaxspec.matching.match import METHODS
from jaxspec.scoring import embedding_pass as embeddings
from jaxspec.specify.probe_proxy import ProbeProxy
from jaxspec.specify.representation import RANK

DEVICES, PROCESSES, COUNT, TIMEOUT = 8, 4, 21, 600
KERNEL, D, SPACE = js.Gaussian(bandwidth=2.0), 5, "drawn"
LANDMARKS = np.random.default_rng(9).normal(size=(20, D)).astype(np.float32)


# Drawn markets: fitting is none of the business here, and would have to be compiled.


def drawn(seed, *, probe=True, classes=None):
    """Return a specification of so many or two to four of six classes; a third have no probe.

    With as many classes as asked for it has a representation, else every second one has.
    """
    rng = np.random.default_rng(seed)
    mapped = probe and (classes is not None or seed % 2)
    classes = classes or 2 + seed % 3

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    weights = rng.random(6).astype(np.float32)
    proxy = ProbeProxy(
        LANDMARKS, normal(20, classes), normal(classes), np.float32(0.9), "fingerprint"
    )
    return js.Specification(
        js.ReducedSet(normal(6, D) + normal(D), weights / weights.sum()),
        js.Proxy(normal(D, classes), normal(classes)),
        KERNEL,
        tuple("abcdef"[(seed + i) % 6] for i in range(classes)),
        SPACE,
        num_examples=50,
        probe=proxy if probe and seed % 3 else None,
        representation=normal(D, RANK) if mapped else None,
    )


def drawn_user(seed, names="abc"):
    rng = np.random.default_rng(1000 + seed)
    n, classes = 12, len(names)
    points = 0.7 * rng.normal(size=(n, D)) + rng.normal(size=D)
    weights = rng.normal(size=(D, classes)).astype(np.float32)
    return js.UserSpecification(
        js.ReducedSet(points.astype(np.float32), np.full(n, 1 / n, np.float32)),
        js.Proxy(weights, np.zeros(classes, np.float32)),
        KERNEL,
        (np.arange(n) % classes).astype(np.int32),
        tuple(names),
        SPACE,
        num_examples=n,
    )


USERS = [drawn_user(0), drawn_user(1, "bc"), drawn_user(2, "xyz"), drawn_user(3, "ab")]


def drawn_market(count=COUNT, *, probe=True, **options):
    specs = {f"m{seed}": drawn(seed, probe=probe) for seed in range(count)}
    return js.Market.from_specifications(specs, **options)


def drawn_batches(count, size=7):
    """Yield what `from_stacked` takes: learnwares of three classes, all with a probe proxy."""
    for start in range(0, count, size):
        seeds = range(start, min(start + size, count))
        specs = [drawn(3 * seed + 1, classes=3) for seed in seeds]
        specs = [dataclasses.replace(one, class_names=("a", "b", "c")) for one in specs]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *specs)
        shared = dataclasses.replace(stacked.probe, landmarks=LANDMARKS)
        ids = [f"m{seed}" for seed in seeds]
        yield ids, dataclasses.replace(stacked, probe=shared, kernel=KERNEL)


def assert_same_match(got, want):
    assert got.ids == want.ids
    np.testing.assert_array_equal(got.class_map, want.class_map)
    for name in ("scores", "squared_mmd", "class_similarity"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), atol=1e-5)


def assert_best_of(best, want, k):
    """Check `top_k` for a batch against a `match` of the whole market: a stable sort."""
    for q, one in enumerate(best):
        rows = np.argsort(-want.scores[q], kind="stable")[:k]
        classes = len(want.class_names[q])
        assert one.ids == tuple(want.ids[row] for row in rows)
        np.testing.assert_allclose(one.scores, want.scores[q][rows], atol=1e-5)
        np.testing.assert_array_equal(one.class_map, want.class_map[q][rows, :classes])


def assert_answers_alike(spread, plain, methods=("likelihood",), k=5):
    for method in methods:
        want = js.match(plain, USERS, method=method)
        assert_same_match(js.match(spread, USERS, method=method), want)
        assert_best_of(js.top_k(spread, USERS, k, method=method), want, k)


def assert_same_specification(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(one, other)


# What is checked on eight devices


def line():
    return jax.make_mesh((DEVICES,), ("market",))


def check_all_methods_on_a_line_of_devices():
    plain = drawn_market()
    assert_answers_alike(plain.shard(line()), plain, METHODS)


def check_all_methods_on_a_grid_of_devices():
    plain = drawn_market()
    spread = plain.shard(jax.make_mesh((4, 2), ("a", "b")))
    for method in METHODS:
        want = js.match(plain, USERS, method=method)
        assert_best_of(js.top_k(spread, USERS, 5, method=method), want, 5)
    assert_same_match(js.match(spread, USERS), js.match(plain, USERS))


def check_without_probes():
    plain = drawn_market(probe=False)
    assert_answers_alike(plain.shard(line()), plain, ("likelihood", "transfer"))


def check_users_without_labels():
    user = dataclasses.replace(USERS[0], labels=None)
    plain = drawn_market()
    assert_same_match(js.match(plain.shard(line()), user), js.match(plain, user))


def check_kinds_of_meshes_and_a_mesh_that_the_caller_has_set():
    plain = drawn_market()
    want = js.match(plain, USERS, method="likelihood")
    for kind in jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit:
        mesh = jax.make_mesh((DEVICES,), ("market",), axis_types=(kind,))
        assert_answers_alike(plain.shard(mesh), plain)
        with jax.set_mesh(mesh):
            assert_same_match(js.match(plain, USERS, method="likelihood"), want)
            spread = plain.shard(mesh)
            assert_same_match(js.match(spread, USERS, method="likelihood"), want)
            assert_best_of(js.top_k(spread, USERS, 5, method="likelihood"), want, 5)
            assert_same_specification(spread["m4"], plain["m4"])
            assert "new" in spread.add("new", drawn(50))
    try:
        plain.shard(mesh.abstract_mesh)
    except TypeError as error:
        assert "mesh: expected a jax.sharding.Mesh" in str(error)
    else:
        raise AssertionError("a mesh without devices was taken")


def check_from_stacked():
    plain = js.Market.from_stacked(list(drawn_batches(COUNT)))
    for mesh in (line(), jax.make_mesh((DEVICES,), ("x",), axis_types=(EXPLICIT,))):
        spread = js.Market.from_stacked(drawn_batches(COUNT), count=COUNT, mesh=mesh)
        assert spread.mesh is not None and plain.mesh is None
        assert_answers_alike(spread, plain)
        assert_same_specification(spread["m20"], plain["m20"])
    tight = js.Market.from_stacked(drawn_batches(COUNT), count=COUNT, spare=0.0, mesh=line())
    assert tight.arrays.weights.shape[0] == 24  # 21 in whole rows of eight devices
    best = js.top_k(tight, USERS, 30)
    assert [one.ids for one in best] == [one.ids for one in js.top_k(plain, USERS, 30)]
    assert all(len(one.ids) == COUNT for one in best)


def check_fewer_learnwares_than_devices():
    for count in (1, 3):
        plain = drawn_market(count)
        assert_answers_alike(plain.shard(line()), plain, k=count)


def check_some_of_the_devices():
    plain = drawn_market()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[2:5]), ("market",))
    spread = plain.shard(mesh)
    best = js.top_k(spread, USERS, 4, method="likelihood")
    assert_best_of(best, js.match(plain, USERS, method="likelihood"), 4)
    assert spread.arrays.points.devices() == set(jax.devices()[2:5])


def check_equal_scores_keep_the_order():
    kinds = [drawn(seed) for seed in (1, 4, 2)]  # with a probe proxy each; all classes in all
    specs = {f"m{i}": kinds[i % 3] for i in range(COUNT)}
    plain = js.Market.from_specifications(specs)
    spread = plain.shard(line())
    for method in METHODS:
        want = js.match(plain, USERS, method=method)
        best = js.top_k(spread, USERS, COUNT, method=method)
        for q, one in enumerate(best):
            assert len(set(one.scores.tolist())) == 3  # copies are equal to the last bit
            assert one.ids == tuple(name for name, _ in want.top_k(COUNT)[q])
            kinds_of = [int(name[1:]) % 3 for name in one.ids]
            assert sorted(kinds_of) == sorted(kinds_of, key=sorted(set(kinds_of)).index)
            for kind in range(3):
                places = [int(name[1:]) for name in one.ids if int(name[1:]) % 3 == kind]
                assert places == sorted(places)


def check_growth_and_removal():
    plain = drawn_market()
    spread = plain.shard(line())
    room = spread.arrays.weights.shape[0] - COUNT
    for step in range(room):
        plain = plain.add(f"new{step}", drawn(100 + step))
        spread = spread.add(f"new{step}", drawn(100 + step))
    assert spread.arrays.weights.shape[0] == COUNT + room
    assert_answers_alike(spread, plain)
    for name in ("m0", "m13", "new2"):
        plain, spread = plain.remove(name), spread.remove(name)
        assert name not in spread
    assert_answers_alike(spread, plain)
    beyond = spread.add("last", drawn(200)).add("m0", drawn(0))  # no room: copied, still spread
    assert beyond.arrays.weights.shape[0] > COUNT + room and beyond.mesh == spread.mesh
    assert_shared_out(beyond)
    plain = plain.add("last", drawn(200)).add("m0", drawn(0))
    assert_answers_alike(beyond, plain)
    assert len(spread) == COUNT + room - 3  # the older version is as it was
    many = drawn(7, classes=6)
    wider = spread.add("many", many)
    assert_same_specification(wider["many"], drawn_market().add("many", many)["many"])


def check_reading():
    plain = drawn_market()
    spread = plain.shard(line())
    assert spread.ids == plain.ids
    for name in plain.ids:
        assert_same_specification(spread[name], plain[name])
    assert_same_specification(spread.remove("m3")["m4"], plain["m4"])


def check_saving():
    plain = drawn_market().remove("m5")
    with tempfile.TemporaryDirectory() as folder:
        plain.shard(line()).save(Path(folder) / "market")
        loaded = js.Market.load(Path(folder) / "market")
    assert loaded.mesh is None
    assert loaded.ids == plain.ids
    for name in plain.ids:
        assert_same_specification(loaded[name], plain[name])
    assert_answers_alike(loaded.shard(line()), plain)


def check_respreading_and_precision():
    plain = drawn_market()
    again = plain.shard(jax.make_mesh((4, 2), ("a", "b"))).shard(line())
    assert_answers_alike(again, plain)
    held = again.stored_as("bfloat16")
    assert held.mesh == again.mesh
    assert_shared_out(held)
    assert_same_specification(held["m1"], plain.stored_as("bfloat16")["m1"])


def check_int8():
    plain = drawn_market(storage="int8")
    spread = plain.shard(line())
    assert spread.storage == "int8" and spread.arrays.points.dtype == np.int8
    assert_answers_alike(spread, plain)
    assert_same_specification(spread["m2"], plain["m2"])


def assert_shared_out(market):
    """Check that every device holds its share of every row field, and no device another's."""
    total, devices = market.arrays.weights.shape[0], market.mesh.size
    for name in ROW_FIELDS:
        value = getattr(market.arrays, name)
        assert len(value.addressable_shards) == devices
        starts = set()
        for shard in value.addressable_shards:
            assert shard.data.shape == (total // devices, *value.shape[1:]), name
            starts.add(shard.index[0].start or 0)
        assert starts == set(range(0, total, total // devices)), name


def check_every_device_holds_only_its_share():
    spread = drawn_market().shard(line())
    assert_shared_out(spread)
    ids = np.asarray(spread.arrays.class_ids)
    used = (ids[spread.rows] >= 0).any(axis=1)
    assert used.all() and (ids >= 0).any(axis=1).sum() == COUNT
    # The learnwares themselves are shared out evenly, not only the slots.
    held = np.bincount(spread.rows // (len(ids) // DEVICES), minlength=DEVICES)
    assert held.max() - held.min() <= 1
    assert_shared_out(spread.add("new", drawn(50)))
    bare = drawn_market(probe=False).shard(line())  # with fields of no size
    assert_shared_out(bare.add("new", drawn(50, probe=False)))


def check_growing_and_other_users_compile_nothing():
    spread = drawn_market().shard(line())

    def ask(market, users):
        js.match(market, users)
        js.top_k(market, users, 3)

    ask(spread, USERS[0])
    ask(spread, drawn_user(4, "abcd"))  # no learnware covers it: another method
    with CompileCounter() as counter:
        grown = spread
        for step in range(3):
            grown = grown.add(f"new{step}", drawn(51 + step)).remove(f"m{step}")
            ask(grown, USERS[0])
        ask(grown, drawn_user(5, "ab"))
        ask(grown, drawn_user(6, "abcd"))
    assert counter.count == 0, counter.count


def check_a_market_that_was_emptied():
    market = drawn_market(2).remove("m0").remove("m1")
    for empty in (market, market.shard(line()), market.stored_as("int8")):
        assert len(empty) == 0
        refilled = empty.add("new", drawn(3)).add("m0", drawn(4))
        assert refilled.ids == ("new", "m0")
        assert refilled["m0"].class_names == drawn(4).class_names
    want = drawn_market(2).remove("m0").remove("m1").add("new", drawn(3))
    got = market.shard(line()).add("new", drawn(3))
    assert_same_match(js.match(got, USERS[0]), js.match(want, USERS[0]))


EXPLICIT = jax.sharding.AxisType.Explicit
CHECKS = {name: value for name, value in list(globals().items()) if name.startswith("check_")}


def run_checks(checks):
    assert jax.device_count() == DEVICES
    outcome = {}
    for name, check in checks.items():
        began = time.perf_counter()
        try:
            check()
            outcome[name] = None
        except Exception:
            outcome[name] = traceback.format_exc()
        print(f"{name}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
    print(json.dumps(outcome))


# What every one of several processes checks


def run_process(port, which, folder):
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=PROCESSES, process_id=which)
    assert jax.process_count() == PROCESSES and len(jax.local_devices()) == 1
    mesh = jax.make_mesh((PROCESSES,), ("market",))
    wanted = dict(np.load(Path(folder) / "wanted.npz"))
    spread = drawn_market().shard(mesh)
    assert not spread.arrays.points.is_fully_addressable
    (own,) = spread.arrays.points.addressable_shards
    assert own.data.shape[0] * PROCESSES == spread.arrays.points.shape[0]

    def check_scores(got, name):
        np.testing.assert_allclose(got.scores, wanted[name], atol=1e-5)

    def check_best(best, name, k=5):
        for one, scores in zip(best, wanted[name], strict=True):
            rows = np.argsort(-scores, kind="stable")[:k]
            assert one.ids == tuple(f"m{row}" for row in rows)
            np.testing.assert_allclose(one.scores, scores[rows], atol=1e-5)

    check_scores(js.match(spread, USERS, method="likelihood"), "likelihood")
    for method in METHODS:
        check_best(js.top_k(spread, USERS, 5, method=method), method)
    for refused in (
        lambda: spread["m3"],
        lambda: spread.save(Path(folder) / f"market{which}"),
        lambda: spread.stored_as("int8"),
    ):
        try:
            refused()
        except ValueError as error:
            assert "spread over several processes" in str(error)
        else:
            raise AssertionError("rows of other processes were read")
    # Calibration of what has changed since it was whole: the processes find it together.
    check_scores(js.match(spread.add("m21", drawn(21)), USERS, method="likelihood"), "grown")
    smaller = spread.remove("m20")
    check_scores(js.match(smaller, USERS, method="likelihood"), "smaller")
    stacked = js.Market.from_stacked(drawn_batches(COUNT), count=COUNT, mesh=mesh)
    check_best(js.top_k(stacked, USERS, 5, method="likelihood"), "stacked")
    index = js.Index.build(spread)
    check_best([first_of(one, 5) for one in index.search(USERS, 5, method="likelihood")],
               "likelihood")  # fmt: skip
    index = index.add("m21", drawn(21))
    check_best([first_of(one, 5) for one in index.search(USERS, 5, method="likelihood")], "grown")
    print("done", flush=True)


def environment(flags=""):
    paths = [str(Path(__file__).parent), *map(str, Path(__file__).parents[1:3])]
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
        # Programs that run once: compiling them with less care halves the time of this file.
        "XLA_FLAGS": f"--xla_backend_optimization_level=0 {flags}",
    }


def first_of(found, k):
    """Return the first k of a match."""
    names = ("scores", "squared_mmd", "class_similarity", "class_map")
    some = {name: getattr(found, name)[:k] for name in names}
    return dataclasses.replace(found, ids=found.ids[:k], **some)


def start(*arguments, flags="", file=__file__):
    return subprocess.Popen(
        [sys.executable, file, *map(str, arguments)],
        env=environment(flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if arguments[0] == "process" else None,
        text=True,
    )


def outcome_of(file):
    """Run a file's checks on eight devices and return what became of each."""
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    child = start("devices", flags=flags, file=file)
    try:
        said, _ = child.communicate(timeout=TIMEOUT)
    finally:
        child.kill()
    assert child.returncode == 0
    return json.loads(said.splitlines()[-1])


@pytest.fixture(scope="module")
def outcome():
    return outcome_of(__file__)


@pytest.mark.parametrize("check", CHECKS)
def test_on_eight_devices(outcome, check):
    assert outcome[check] is None, outcome[check]


@pytest.mark.slow
def test_on_four_processes(tmp_path):
    plain = drawn_market()
    wanted = {method: js.match(plain, USERS, method=method).scores for method in METHODS}
    for name, other in (
        ("grown", plain.add("m21", drawn(21))),
        ("smaller", plain.remove("m20")),
        ("stacked", js.Market.from_stacked(list(drawn_batches(COUNT)))),
    ):
        wanted[name] = js.match(other, USERS, method="likelihood").scores
    np.savez(tmp_path / "wanted.npz", **wanted)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [start("process", port, which, tmp_path) for which in range(PROCESSES)]
    try:
        until = time.monotonic() + TIMEOUT
        while any(child.poll() is None for child in children) and time.monotonic() < until:
            if any(child.poll() for child in children):  # one failed: the others would wait
                break
            time.sleep(0.1)
    finally:
        for child in children:
            child.kill()
    said = [child.communicate()[0] for child in children]
    failed = [one for one, child in zip(said, children, strict=True) if child.returncode]
    assert all("done" in one for one in said), failed[0] if failed else said[0]


if __name__ == "__main__":
    embeddings.WIDTHS = (128,)  # one size of the last block of columns to compile, not eight
    if sys.argv[1] == "devices":
        run_checks(CHECKS)
    else:
        run_process(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
