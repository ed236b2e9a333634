"""The index of a market that is spread over devices answers as that of one device.

How many devices there are is settled when jax starts. So this file also is a program that runs all
`check_...` functions (or those that are named) on eight devices of one processor and prints what
became of each.
"""

import dataclasses
import functools
import json
import os
import pickle
import subprocess
import sys
import time
import traceback
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import CompileCounter
from made_index import (
    COUNT,
    PROBED,
    assert_close_codes,
    drawn,
    drawn_market,
    drawn_user,
    drawn_users,
)

import jaxspec as js
from jaxspec.index import encoder as encoders
from jaxspec.index import index as indexes
from jaxspec.index import search as searches
from jaxspec.index.codes import Codes
from jaxspec.scoring import METHODS, embedding_pass

DEVICES, MANY, TIMEOUT = 8, 340, 900
USERS = drawn_users()


def line():
    return jax.make_mesh((DEVICES,), ("market",))


def meshes():
    """Return a line of devices, a grid, and one device."""
    devices = np.array(jax.devices())
    shapes = (devices, devices.reshape(4, 2), devices[3:4])
    return [jax.sharding.Mesh(one, ("a", "b")[: one.ndim]) for one in shapes]


def shallow(index, depth=10.0):
    """Let the fitted filters of an index ask for few candidates, and return the index."""
    for key, fitted in index._codes.filters.items():
        index._codes.filters[key] = dataclasses.replace(fitted, depths=np.full(64, depth))
    return index


def built(market, like=None, kinds=()):
    """Return an index with the encoder and filters of another, or with filters of some kinds."""
    if like is None:
        index = js.Index.build(market)
        for method, by_name in kinds:
            index._filter(METHODS[method], by_name=by_name)
        return index
    index = js.Index(market, Codes(market, like=like._codes))
    index._codes.filters.update(like._codes.filters)
    return index


def spaces_of(by_name):
    return "homogeneous" if by_name else "heterogeneous"


def assert_alike(got, want):
    for one, other in zip(got, want, strict=True):
        assert one.ids == other.ids
        for name in ("scores", "squared_mmd", "class_similarity"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-5)
        np.testing.assert_array_equal(one.class_map, other.class_map)


def assert_exact(found, market, user, but=(), **asked):
    """Check candidates' scores against the pass over the whole market, and their order."""
    exact = js.match(market, user, **asked)
    rows = np.array([exact.ids.index(learnware) for learnware in found.ids])
    np.testing.assert_allclose(found.squared_mmd, exact.squared_mmd[rows], atol=1e-5)
    assert (np.diff(found.scores) <= 0).all()
    same = [learnware not in but for learnware in found.ids]
    np.testing.assert_allclose(found.scores[same], exact.scores[rows[same]], atol=1e-5)


def peer_of(market, user):
    """Return the nearest learnware with a probe proxy, by the pass over the whole market."""
    exact = js.match(market, user, method="rkme")
    able = [market[name].probe_proxy is not None for name in exact.ids]
    return exact.ids[int(np.where(able, exact.squared_mmd, 9).argmin())]


# What is checked on eight devices


def check_a_few_candidates_of_many_are_those_of_one_device():
    for probe, kinds in (
        (True, [("likelihood", True), ("transfer", False)]),
        (False, [("classwise", False), ("rkme", True)]),
    ):
        plain, users = drawn_market(MANY, probe=probe), drawn_users(probe)
        alone = shallow(built(plain, kinds=kinds))
        for mesh in meshes()[: 3 if probe else 1]:
            index = built(plain.shard(mesh), alone)
            for method, by_name in kinds if mesh.shape == {"a": DEVICES} else kinds[:1]:
                assert index.candidates(30, method=method, by_name=by_name) < MANY / 2
                asked = dict(method=method, label_spaces=spaces_of(by_name))
                found = js.match(index, users, k=30, **asked)
                assert_alike(found, js.match(alone, users, k=30, **asked))
                for user, one in zip(users, found, strict=True):
                    assert len(one.ids) == 30
                    # What is known of the peer's own worth is what the candidates say.
                    but = [peer_of(plain, user)] if method == "likelihood" else []
                    assert_exact(one, plain, user, but, **asked)


def check_among_some_of_the_learnwares():
    plain, among = drawn_market(MANY), np.random.default_rng(0).random(MANY) < 0.4
    alone = shallow(built(plain, kinds=[("rkme", True)]), depth=5.0)
    index = built(plain.shard(line()), alone)
    asked = dict(k=10, method="rkme", label_spaces="homogeneous", among=among)
    found = js.match(index, USERS, **asked)
    assert_alike(found, js.match(alone, USERS, **asked))
    chosen = {name for name, one in zip(plain.ids, among, strict=True) if one}
    assert all(set(one.ids) <= chosen for one in found)


def check_filters_are_those_of_one_device():
    plain = drawn_market(MANY)
    kinds = [("likelihood", True), ("transfer", False)]
    alone, spread = (built(one, kinds=kinds) for one in (plain, plain.shard(line())))
    for key, want in alone._codes.filters.items():
        got = spread._codes.filters[key]
        np.testing.assert_allclose(got.weights, want.weights, rtol=1e-2, atol=1e-3)
        # Depths are drawn: where scores differ by rounding, one draw in some hundred may differ.
        close = np.isclose(got.depths, want.depths, rtol=0.05)
        assert close.mean() >= 0.98, (got.depths[~close], want.depths[~close])
        for share in (0.5, 0.9, 0.99, 1.0):
            depths = [np.quantile(one.depths, share) for one in (got, want)]
            np.testing.assert_allclose(*depths, rtol=0.05)


def check_all_of_a_small_market():
    for count in (1, COUNT):  # with fewer learnwares than devices too
        plain = drawn_market(count)
        found = js.match(js.Index.build(plain.shard(line())), USERS, k=COUNT, method="likelihood")
        for user, one in zip(USERS, found, strict=True):
            assert sorted(one.ids) == sorted(plain.ids)
            assert_exact(one, plain, user, method="likelihood")


def force_candidates():
    """Let indexes of small markets search by codes too."""
    indexes.SMALL_MARKET, indexes.EXACT_FRACTION = 0, 9.0


def check_the_first_of_equally_near_learnwares_is_the_peer():
    # Twins share the reduced set and differ in what their models do.
    first = {f"m{seed}": drawn(seed) for seed in range(1, 20, 3)}
    later = {f"twin of {name}": one for name, one in first.items()}
    for seed, name in enumerate(later):
        other = drawn(100 + 3 * seed, classes=len(later[name].class_names))
        assert other.probe_proxy is not None
        later[name] = dataclasses.replace(later[name], probe_proxy=other.probe_proxy)
    plain = js.Market(PROBED, {**later, **first})
    force_candidates()
    for market in (plain, plain.shard(line())):
        found = js.match(js.Index.build(market), USERS, k=5, method="likelihood")
        for user, one in zip(USERS, found, strict=True):
            assert_exact(one, plain, user, method="likelihood")


def check_the_largest_of_all_are_those_of_one_device():
    mesh, rows = meshes()[0], 100
    values = np.random.default_rng(0).integers(0, 9, DEVICES * rows).astype(np.float32)
    values[::5] = -np.inf
    split = jax.sharding.PartitionSpec("a")

    def local(values, k):
        found, real = searches.largest_of_all(values, k, ("a",))
        return jax.numpy.zeros(rows, bool).at[found].max(real)

    for k in (3, 300, 800):
        spread = values.reshape(rows, DEVICES).T.reshape(-1)  # row r of device d is slot r K + d
        chosen = jax.shard_map(
            functools.partial(local, k=k), mesh=mesh, in_specs=split, out_specs=split
        )(spread)
        chosen = np.asarray(chosen).reshape(DEVICES, rows).T.reshape(-1)
        want = np.argsort(-values, kind="stable")[:k]
        want = want[np.isfinite(values[want])]
        np.testing.assert_array_equal(np.flatnonzero(chosen), np.sort(want))


def check_equal_scores_come_in_order():
    plain = js.Market(PROBED, {f"m{i}": drawn((1, 4, 2)[i % 3]) for i in range(COUNT)})
    best = js.match(plain, USERS, k=COUNT, method="classwise")
    force_candidates()
    found = js.match(js.Index.build(plain.shard(line())), USERS, k=COUNT, method="classwise")
    assert [one.ids for one in found] == [one.ids for one in best]


def check_growth_and_removal():
    force_candidates()
    plain = drawn_market()
    alone, index = js.Index.build(plain), js.Index.build(plain.shard(line()))
    before = index
    room = index.market.arrays.weights.shape[0] - COUNT - 7  # written in pieces of eight rows
    for step in range(room + 3):  # past the room: copied, still spread
        alone, index = (one.add({f"new{step}": drawn(100 + step)}) for one in (alone, index))
    gone = ["m0", "m13", "new2"]
    alone, index = alone.remove(gone), index.remove(gone)
    assert len(before) == COUNT and len(index) == COUNT + room
    assert index.market.mesh is not None
    asked = dict(method="likelihood", label_spaces="homogeneous")  # one filter to fit, not four
    found = js.match(index, USERS, k=20, **asked)
    assert_alike(found, js.match(alone, USERS, k=20, **asked))
    for user, one in zip(USERS, found, strict=True):
        assert_exact(one, alone.market, user, **asked)
    assert sorted(js.match(before, USERS[0], k=99, **asked).ids) == sorted(plain.ids)
    shared = index.market.shared
    encoder, kernel = jax.tree.map(np.asarray, (index._codes.encoder, index.market.kernel))
    again = encoders.encode_rows(encoder, kernel, shared.take(index.market.slots))
    assert_close_codes(index._codes.stored, *again, index.market.rows)


def check_many_are_added_at_once():
    plain = drawn_market(MANY)
    specs = {f"new{seed}": drawn(1000 + seed) for seed in range(40)}
    alone, index = (js.Index.build(one).add(specs) for one in (plain, plain.shard(line())))
    assert_alike(js.match(index, USERS, k=10), js.match(alone, USERS, k=10))
    encoder, kernel = jax.tree.map(np.asarray, (index._codes.encoder, index.market.kernel))
    again = encoders.encode_rows(encoder, kernel, index.market.shared.take(index.market.slots))
    assert_close_codes(index._codes.stored, *again, index.market.rows)


def check_new_class_names():
    named = dataclasses.replace(drawn(7), class_names=("g", "h", "i"))
    user = drawn_user(5, "gh")
    plain = drawn_market(MANY)
    alone = built(plain, kinds=[("likelihood", True)])
    index = built(plain.shard(line()), shallow(alone))
    alone, index = (one.add({"new": named}) for one in (alone, index))
    found = js.match(index, user, k=3, method="likelihood")
    assert found.ids[0] == "new"
    assert_alike([found], [js.match(alone, user, k=3, method="likelihood")])


def check_markets_in_fewer_bits():
    force_candidates()
    plain = drawn_market(precision="int8")
    found = js.match(js.Index.build(plain.shard(line())), USERS, k=COUNT, method="transfer")
    for user, one in zip(USERS, found, strict=True):
        assert_exact(one, plain, user, method="transfer")


def check_codes_lie_with_their_rows():
    index = js.Index.build(drawn_market().shard(line())).add({"new": drawn(50)})
    total = index.market.arrays.weights.shape[0]
    for value in jax.tree.leaves(index._codes.stored):
        assert value.sharding == index.market.arrays.weights.sharding
        assert {one.data.shape[0] for one in value.addressable_shards} == {total // DEVICES}


def check_a_spread_index_cannot_be_pickled():
    with pytest.raises(TypeError, match=r"Market\.save"):
        pickle.dumps(js.Index.build(drawn_market().shard(line())))


def check_growing_and_other_users_compile_nothing():
    index = js.Index.build(drawn_market().shard(line()))
    js.match(index, USERS[0], k=3)
    js.match(index, drawn_user(4, "abcd"), k=3)  # no learnware covers it: another method
    with CompileCounter() as counter:
        for step in range(3):
            index = index.add({f"new{step}": drawn(51 + step)}).remove([f"m{step}"])
            js.match(index, USERS[0], k=3)
        js.match(index, drawn_user(5, "ab"), k=3)
        js.match(index, drawn_user(6, "abcd"), k=3)
    assert counter.count == 0, counter.count


CHECKS = {name: value for name, value in list(globals().items()) if name.startswith("check_")}
LIMITS = (indexes.SMALL_MARKET, indexes.EXACT_FRACTION)


def run_checks(names):
    assert jax.device_count() == DEVICES
    outcome = {}
    for name in names or CHECKS:
        indexes.SMALL_MARKET, indexes.EXACT_FRACTION = LIMITS
        began = time.perf_counter()
        try:
            CHECKS[name]()
            outcome[name] = None
        except Exception:
            outcome[name] = traceback.format_exc()
        print(f"{name}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
    print(json.dumps(outcome))


@pytest.fixture(scope="module")
def outcome(request):
    """Run the checks of the tests that were selected, all in one process."""
    here = Path(__file__)
    chosen = [
        item.callspec.params["check"]
        for item in request.session.items
        if Path(item.path) == here and hasattr(item, "callspec")
    ]
    paths = [str(here.parent), *map(str, here.parents[1:3]), os.environ.get("PYTHONPATH", "")]
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(paths),
        # Programs that run once: compiling them with less care halves the time of this file.
        "XLA_FLAGS": f"--xla_backend_optimization_level=0 {flags}",
    }
    done = subprocess.run(
        [sys.executable, __file__, "devices", *chosen],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


# The others take minutes: `pytest -m slow`.
QUICK = (
    "check_growth_and_removal",
    "check_a_spread_index_cannot_be_pickled",
)


@pytest.mark.parametrize(
    "check",
    [pytest.param(one, marks=[] if one in QUICK else [pytest.mark.slow]) for one in CHECKS],
)
def test_on_eight_devices(outcome, check):
    assert outcome[check] is None, outcome[check]


if __name__ == "__main__":
    embedding_pass.WIDTHS = (128,)  # one size of the last block of columns to compile, not eight
    assert sys.argv[1] == "devices"
    run_checks(sys.argv[2:])
