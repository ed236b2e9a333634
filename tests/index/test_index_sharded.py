"""The index of a market that is spread over devices answers as that of one device.

The checks run on eight devices of one CPU, in a process of their own; see `test_sharded`.
"""

import dataclasses
import sys

import jax
import numpy as np
import pytest
import test_sharded
from conftest import CompileCounter
from test_index import assert_like_codes
from test_sharded import COUNT, DEVICES, USERS, drawn, drawn_market, line

import jaxspec as js
from jaxspec.index import encoder as index_codes
from jaxspec.index import index as indices
from jaxspec.index import search as index_search
from jaxspec.index.codes import Codes
from jaxspec.market import builder as market_storage
from jaxspec.scoring import embedding_pass as embeddings

MANY = 300
DEPTH = indices.LEAST  # candidates of `shallow` indices


def meshes():
    """Return a line of devices, a grid, and one device."""
    devices = np.array(jax.devices())
    shapes = (devices, devices.reshape(4, 2), devices[3:4])
    return [jax.sharding.Mesh(one, ("a", "b")[: one.ndim]) for one in shapes]


def shallow(index, filters):
    """Return an index that asks for `DEPTH` candidates, with given filters."""
    few = {key: (found[0], np.full(64, 10.0)) for key, found in filters.items()}
    return js.Index(index.market, index._codes, few)


def filters_of(index, kinds):
    return {(name, by_name): index._filter(name, by_name=by_name) for name, by_name in kinds}


def spaces_of(by_name):
    return "homogeneous" if by_name else "heterogeneous"


def assert_alike(got, want, k=10):
    """Check that indices found the same candidates with the same scores."""
    for one, other in zip(got, want, strict=True):
        assert one.ids[:k] == other.ids[:k]
        assert sorted(one.ids) == sorted(other.ids)
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
    near = np.where([market[name].probe is not None for name in exact.ids], exact.squared_mmd, 9)
    return exact.ids[int(near.argmin())]


# What is checked on eight devices


def check_a_few_candidates_of_many_are_those_of_one_device():
    for probe, kinds in (
        (True, [("likelihood", True), ("transfer", False)]),
        (False, [("classwise", False), ("rkme", True)]),
    ):
        plain = drawn_market(MANY, probe=probe)
        alone = js.Index.build(plain)
        filters = filters_of(alone, kinds)
        alone = shallow(alone, filters)
        for mesh in meshes()[: 3 if probe else 1]:
            spread = plain.shard(mesh)
            index = js.Index(spread, Codes(spread, alone._codes.encoder), alone._filters)
            for method, by_name in kinds if mesh.shape == {"a": DEVICES} else kinds[:1]:
                asked = dict(method=method, label_spaces=spaces_of(by_name))
                found = index.search(USERS, 3, **asked)
                assert_alike(found, alone.search(USERS, 3, **asked))
                for user, one in zip(USERS, found, strict=True):
                    assert len(one.ids) == DEPTH
                    # What is known of the peer's own worth is what the candidates say.
                    but = [peer_of(plain, user)] if method == "likelihood" else []
                    assert_exact(one, plain, user, but, **asked)


def check_filters_are_those_of_one_device():
    plain = drawn_market(MANY)
    kinds = [("likelihood", True), ("transfer", False)]
    want, got = (filters_of(js.Index.build(one), kinds) for one in (plain, plain.shard(line())))
    for key, (model, needed) in want.items():
        np.testing.assert_allclose(got[key][0].weights, model.weights, rtol=1e-2, atol=1e-3)
        # Depths are drawn: where scores differ by rounding, one draw in some hundred may differ.
        close = np.isclose(got[key][1], needed, rtol=0.05)
        assert close.mean() >= 0.98, (got[key][1][~close], needed[~close])
        for share in (0.5, 0.9, 0.99, 1.0):  # what candidates are asked for by
            depths = [np.quantile(one, share) for one in (got[key][1], needed)]
            np.testing.assert_allclose(*depths, rtol=0.05)


def check_all_of_a_small_market():
    for count in (1, COUNT):  # with fewer learnwares than devices too
        plain = drawn_market(count)
        found = js.Index.build(plain.shard(line())).search(USERS, 5, method="likelihood")
        for user, one in zip(USERS, found, strict=True):
            assert sorted(one.ids) == sorted(plain.ids)
            assert_exact(one, plain, user, method="likelihood")


def check_the_first_of_equally_near_learnwares_is_the_peer():
    # Twins share the reduced set and differ in what their models do.
    first = {f"m{seed}": drawn(seed) for seed in range(1, 20, 3)}
    later = {f"twin of {name}": one for name, one in first.items()}
    for seed, name in enumerate(later):
        other = drawn(100 + 3 * seed, classes=len(later[name].class_names))
        assert other.probe is not None
        later[name] = dataclasses.replace(later[name], probe=other.probe)
    plain = js.Market.from_specifications({**later, **first})
    for market in (plain, plain.shard(line())):
        found = js.Index.build(market).search(USERS, 5, method="likelihood")
        for user, one in zip(USERS, found, strict=True):
            assert_exact(one, plain, user, method="likelihood")


def check_the_largest_of_all_are_those_of_one_device():
    mesh, rows = meshes()[0], 100
    values = np.random.default_rng(0).integers(0, 9, DEVICES * rows).astype(np.float32)
    values[::5] = -np.inf
    split = jax.sharding.PartitionSpec("a")

    def local(values, k):
        found, real = index_search._largest_of_all(values, k, ("a",))
        return jax.numpy.zeros(rows, bool).at[found].max(real)

    for k in (3, 300, 800):
        spread = values.reshape(rows, DEVICES).T.reshape(-1)  # row r of device d is slot r K + d
        chosen = jax.shard_map(
            lambda one, k=k: local(one, k), mesh=mesh, in_specs=split, out_specs=split
        )(spread)
        chosen = np.asarray(chosen).reshape(DEVICES, rows).T.reshape(-1)
        want = np.argsort(-values, kind="stable")[:k]
        want = want[np.isfinite(values[want])]
        np.testing.assert_array_equal(np.flatnonzero(chosen), np.sort(want))


def check_equal_scores_come_in_order():
    specs = {f"m{i}": drawn((1, 4, 2)[i % 3]) for i in range(COUNT)}
    plain = js.Market.from_specifications(specs)
    best = js.top_k(plain, USERS, COUNT, method="classwise")
    found = js.Index.build(plain.shard(line())).search(USERS, 3, method="classwise")
    assert [one.ids for one in found] == [one.ids for one in best]


def check_growth_and_removal():
    plain = drawn_market()
    alone, index = js.Index.build(plain), js.Index.build(plain.shard(line()))
    before = index
    room = index.market.arrays.weights.shape[0] - COUNT
    for step in range(room + 3):  # past the room: copied, still spread
        alone, index = (one.add(f"new{step}", drawn(100 + step)) for one in (alone, index))
    for name in ("m0", "m13", "new2"):
        alone, index = alone.remove(name), index.remove(name)
    assert len(before) == COUNT and len(index) == COUNT + room
    assert index.market.mesh is not None
    assert_alike(index.search(USERS, 5), alone.search(USERS, 5))
    assert sorted(before.search(USERS[0], 5).ids) == sorted(plain.ids)
    for user, one in zip(USERS, index.search(USERS, 5, method="likelihood"), strict=True):
        assert_exact(one, alone.market, user, method="likelihood")
    stored = market_storage.take(index.market._storage, index.market.slots)
    encoder, kernel = jax.tree.map(np.asarray, (index._codes.encoder, index.market.kernel))
    again = index_codes.encode_rows(encoder, kernel, stored)
    assert_like_codes(index._codes.codes, again, index.market.rows)


def check_new_class_names():
    named = dataclasses.replace(drawn(7), class_names=("g", "h", "i"))
    user = test_sharded.drawn_user(5, "gh")
    plain = drawn_market(MANY)
    alone, index = (js.Index.build(one) for one in (plain, plain.shard(line())))
    filters = filters_of(alone, [("likelihood", True)])
    alone, index = (shallow(one, filters).add("new", named) for one in (alone, index))
    found = index.search(user, 3, method="likelihood")
    assert found.ids[0] == "new"
    assert_alike([found], [alone.search(user, 3, method="likelihood")])


def check_storage_in_fewer_bits():
    plain = drawn_market(storage="int8")
    found = js.Index.build(plain.shard(line())).search(USERS, 5, method="transfer")
    for user, one in zip(USERS, found, strict=True):
        assert_exact(one, plain, user, method="transfer")


def check_codes_lie_with_their_rows():
    index = js.Index.build(drawn_market().shard(line())).add("new", drawn(50))
    total = index.market.arrays.weights.shape[0]
    for value in (index._codes.codes.values, index._codes.codes.scales, index._codes.spaces):
        assert value.sharding == index.market.arrays.weights.sharding
        assert {one.data.shape[0] for one in value.addressable_shards} == {total // DEVICES}


def check_growing_and_other_users_compile_nothing():
    index = js.Index.build(drawn_market().shard(line()))
    other = test_sharded.drawn_user
    index.search(USERS[0], 3)
    index.search(other(4, "abcd"), 3)  # no learnware covers it: another method
    with CompileCounter() as counter:
        for step in range(3):
            index = index.add(f"new{step}", drawn(51 + step)).remove(f"m{step}")
            index.search(USERS[0], 3)
        index.search(other(5, "ab"), 3)
        index.search(other(6, "abcd"), 3)
    assert counter.count == 0, counter.count


CHECKS = {name: value for name, value in list(globals().items()) if name.startswith("check_")}


@pytest.fixture(scope="module")
def outcome():
    return test_sharded.outcome_of(__file__)


@pytest.mark.parametrize("check", CHECKS)
def test_on_eight_devices(outcome, check):
    assert outcome[check] is None, outcome[check]


if __name__ == "__main__":
    embeddings.WIDTHS = (128,)  # one size of the last block of columns to compile, not eight
    assert sys.argv[1] == "devices"
    test_sharded.run_checks(CHECKS)
