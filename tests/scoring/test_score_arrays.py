"""`score_arrays` as pipelines call it: under jit, vmap, grad, shard_map and strict settings."""

import dataclasses
import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CompileCounter, alike
from drawn_markets import (
    SPACE,
    USERS,
    NearAndAlike,
    drawn,
    drawn_market,
    drawn_user,
    near_user,
    one_width,
    small_chunks,
)
from eight_devices import environment

import jaxspec as js
from jaxspec.scoring import METHODS, market_pass, pallas_pass

NAMES = tuple(METHODS)


@pytest.fixture(autouse=True, scope="module")
def fewer_programs():
    with one_width(), small_chunks():
        yield


@pytest.fixture(scope="module")
def market():
    return drawn_market().remove(["m5"])


@pytest.mark.parametrize(
    "method", [NearAndAlike(), *alike("likelihood", "transfer", "classwise", "rkme")]
)
def test_scores_are_those_of_match(market, method):
    for user in (USERS[0], near_user(drawn(4)), drawn_user(2, "xyz")):
        found = js.score_arrays(market.arrays, js.user_arrays(market, user), method=method)
        assert found.shape == market.arrays.alive.shape
        want = js.match(market, user, method=method).scores
        np.testing.assert_allclose(found[market.rows], want, atol=1e-6)
        rest = np.delete(np.asarray(found), market.rows)
        assert (rest == -np.inf).all()


def test_the_default_is_the_likelihood(market):
    users = js.user_arrays(market, USERS[0])
    found = js.score_arrays(market.arrays, users)
    np.testing.assert_array_equal(found, js.score_arrays(market.arrays, users, method="likelihood"))


def test_a_sequence_of_users_is_a_batch_and_jit_changes_nothing(market):
    users = js.user_arrays(market, USERS)
    assert users.points.shape[0] == len(USERS)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(users))
    found = js.score_arrays(market.arrays, users, method="likelihood")
    jitted = jax.jit(lambda market, users: js.score_arrays(market, users, method="likelihood"))
    np.testing.assert_allclose(jitted(market.arrays, users), found, atol=1e-6)
    for user, row in zip(USERS, found, strict=True):
        want = js.match(market, user, method="likelihood").scores
        np.testing.assert_allclose(row[market.rows], want, atol=1e-5)


@pytest.mark.parametrize("method", alike("likelihood", "transfer"))
def test_vmap_over_users_equals_the_batch(market, method):
    users = js.user_arrays(market, USERS)
    arrays = market.arrays
    found = jax.vmap(lambda user: js.score_arrays(arrays, user, method=method))(users)
    want = js.score_arrays(arrays, users, method=method)
    np.testing.assert_allclose(found, want, atol=1e-5)


@pytest.mark.parametrize("method", alike("likelihood", "transfer", "classwise", "rkme"))
def test_derivatives_in_the_users_points_equal_finite_differences(market, method):
    # The default user of all scores, near a learnware so that agreement and peers count too.
    users, arrays = js.user_arrays(market, near_user(drawn(4))), market.arrays
    rows = jnp.asarray(market.rows)

    @jax.jit
    def total(points):
        moved = dataclasses.replace(users, points=points)
        return js.score_arrays(arrays, moved, method=method)[rows].sum()

    slope = jax.jit(jax.grad(total))(users.points)
    assert np.isfinite(slope).all()
    np.testing.assert_array_equal(slope[12:], 0)  # the padding
    rng = np.random.default_rng(0)
    for _ in range(4):
        way = np.zeros(slope.shape, np.float32)
        way[:12] = rng.normal(size=(12, slope.shape[1]))
        step = 2e-3
        ahead, behind = total(users.points + step * way), total(users.points - step * way)
        want = (float(ahead) - float(behind)) / (2 * step)
        np.testing.assert_allclose((slope * way).sum(), want, rtol=0.02, atol=5e-3)


def test_derivatives_through_the_fused_kernel_are_those_of_the_plain_pass(market, monkeypatch):
    users, arrays = js.user_arrays(market, USERS[0]), market.arrays

    def slope():
        def total(points):
            moved = dataclasses.replace(users, points=points)
            return js.score_arrays(arrays, moved, method="rkme")[market.rows].sum()

        return jax.value_and_grad(total)(users.points)

    value, want = slope()
    jax.clear_caches()
    calls = []

    def interpreted(*arguments):
        calls.append(1)
        return pallas_pass.fused_products(*arguments, backend="gpu", interpret=True)

    monkeypatch.setattr(market_pass, "fused_for", lambda kernel: True)
    monkeypatch.setattr(market_pass, "fused_products", interpreted)
    scored = js.score_arrays(arrays, users, method="rkme")[market.rows].sum()
    assert calls
    np.testing.assert_allclose(scored, value, atol=1e-4)
    np.testing.assert_allclose(slope()[1], want, atol=1e-5)
    jax.clear_caches()


def test_a_user_of_other_sizes_and_a_grown_market_compile_nothing(market):
    js.score_arrays(market.arrays, js.user_arrays(market, USERS[0]))
    grown = market.add({"new": drawn(60)})
    arrays = grown.arrays  # what calibrates the market is compiled here
    user = drawn_user(8, "abcd", n=31)
    with CompileCounter() as counter:
        found = js.score_arrays(arrays, js.user_arrays(grown, user))
    assert counter.count == 0
    assert np.isfinite(found[grown.rows[-1]])


@pytest.mark.slow
def test_strict_ranks_and_types_and_x64_change_nothing(market):
    users = js.user_arrays(market, USERS)
    want = {name: js.score_arrays(market.arrays, users, method=name) for name in NAMES}
    with (
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
        jax.enable_x64(True),
    ):
        for name in NAMES:
            users = js.user_arrays(market, USERS)
            found = js.score_arrays(market.arrays, users, method=name)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, want[name], atol=1e-6)
            jitted = jax.jit(functools.partial(js.score_arrays, market.arrays, method=name))
            np.testing.assert_allclose(jitted(users), want[name], atol=1e-6)


def test_arrays_without_their_version_are_refused(market):
    users = js.user_arrays(market, USERS[0])
    for name in ("alive", "length", "calibration"):
        arrays = dataclasses.replace(market.arrays, **{name: None})
        with pytest.raises(ValueError, match="market: expected `Market.arrays`"):
            js.score_arrays(arrays, users)
    with pytest.raises(TypeError, match="market: expected .*MarketArrays.* got a Market"):
        js.score_arrays(market, users)
    with pytest.raises(TypeError, match="users: expected .*UserArrays.* got a UserSpecification"):
        js.score_arrays(market.arrays, USERS[0])


def test_user_arrays_know_the_class_names_of_the_market(market):
    one = js.user_arrays(market, drawn_user(1, "ba"), label_spaces="homogeneous")
    assert bool(one.by_name)
    ids = np.asarray(market.arrays.class_ids)
    for learnware, row in zip(market.ids, market.rows, strict=True):
        own = market[learnware].class_names
        for k, name in enumerate("ba"):
            place = np.flatnonzero(ids[row] == int(one.class_numbers[k]))
            assert [own[i] for i in place] == [name] * (name in own)
    with pytest.raises(ValueError, match="label_spaces: expected one of"):
        js.user_arrays(market, USERS[0], label_spaces="same")


SHARDED = """
import json
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from drawn_markets import (
    SPACE,
    USERS,
    NearAndAlike,
    drawn,
    drawn_market,
    drawn_user,
    near_user,
    one_width,
    small_chunks,
)
import jaxspec as js
from jaxspec.scoring import METHODS, embedding_pass

embedding_pass.WIDTHS, embedding_pass.block_entries = (128,), lambda: 1 << 13
market = drawn_market()
arrays = market.arrays
users = js.user_arrays(market, [drawn_user(i, "abc") for i in range(16)])
mesh = jax.make_mesh((8,), ("users",))
split = jax.device_put(users, NamedSharding(mesh, P("users")))
everywhere = jax.device_put(arrays, NamedSharding(mesh, P()))
worst = {}
for name in METHODS:
    want = np.asarray(js.score_arrays(arrays, users, method=name))
    local = lambda market, users: js.score_arrays(market, users, method=name)
    for check in (True, False):
        over = jax.shard_map(
            local, mesh=mesh, in_specs=(P(), P("users")), out_specs=P("users"), check_vma=check
        )
        found = jax.jit(over)(everywhere, split)
        assert len(found.sharding.device_set) == 8
        found = np.asarray(found)
        same = np.isfinite(want)
        assert (np.isfinite(found) == same).all()
        worst[f"{name} {check}"] = float(np.abs(np.where(same, found - want, 0)).max())
print(json.dumps(worst))
"""


@pytest.mark.slow
def test_inside_shard_map_each_of_eight_devices_scores_its_users():
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env=environment("--xla_force_host_platform_device_count=8"),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    worst = json.loads(done.stdout.splitlines()[-1])
    assert len(worst) == 8
    assert max(worst.values()) < 1e-5, worst


def test_markets_of_another_space_are_refused(market):
    other = dataclasses.replace(USERS[0], space_name="elsewhere", space_digest="another")
    with pytest.raises(ValueError, match=f"'elsewhere'.*{SPACE.name!r}"):
        js.user_arrays(market, other)
