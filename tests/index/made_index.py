"""Markets for the tests of the index.

In drawn markets nothing is fitted, so nothing of that is compiled. Unlike those of `conftest`,
their learnwares differ in their classes, and some have no probe proxy or no representation.
"""

import functools

import jax.numpy as jnp
import numpy as np
from conftest import SPACE, made_specification

import jaxspec as js
from benchmarks.markets import made_market
from jaxspec.specify import RANK, ProbeProxy

D, COUNT = 5, 21
KERNEL = js.Gaussian(bandwidth=2.0)
PROBE = np.random.default_rng(9).normal(size=(20, D)).astype(np.float32)
PROBED = js.Space("drawn", KERNEL, dimension=D, probe=PROBE)
BARE = js.Space("drawn without a probe", KERNEL, dimension=D)


def space_with(probe):
    return PROBED if probe else BARE


def drawn(seed, *, probe=True, classes=None, shift=0.0, letters="abcdef"):
    """Return a specification of two to four of six classes; of three, one has no probe proxy.

    With as many classes as asked for it has a representation, else every second one has. Learnwares
    with another shift lie in another region.
    """
    rng = np.random.default_rng(seed)
    mapped = probe and (classes is not None or seed % 2)
    classes = classes or 2 + seed % 3
    space = space_with(probe)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    weights = rng.random(6).astype(np.float32)
    points = normal(6, D) + normal(D) + np.float32(shift)
    proxy = js.Proxy(jnp.asarray(normal(D, classes)), jnp.asarray(normal(classes)))
    shown = ProbeProxy(
        jnp.asarray(normal(len(PROBE), classes)), jnp.asarray(normal(classes)), jnp.float32(0.9)
    )
    return js.Specification(
        js.ReducedSet(jnp.asarray(points), jnp.asarray(weights / weights.sum())),
        proxy,
        class_names=tuple(letters[(seed + i) % 6] for i in range(classes)),
        space_name=space.name,
        space_digest=space.digest,
        num_examples=50,
        probe_proxy=shown if probe and seed % 3 else None,
        representation=jnp.asarray(normal(D, RANK)) if mapped else None,
    )


def drawn_user(seed, names="abc", *, probe=True, shift=0.0):
    rng = np.random.default_rng(1000 + seed)
    n, classes, space = 12, len(names), space_with(probe)
    points = 0.7 * rng.normal(size=(n, D)) + rng.normal(size=D) + shift
    weights = rng.normal(size=(D, classes)).astype(np.float32)
    return js.UserSpecification(
        js.ReducedSet(jnp.asarray(points, jnp.float32), jnp.full(n, 1 / n, jnp.float32)),
        js.Proxy(jnp.asarray(weights), jnp.zeros(classes, jnp.float32)),
        jnp.asarray(np.arange(n) % classes, jnp.int32),
        class_names=tuple(names),
        space_name=space.name,
        space_digest=space.digest,
        num_examples=n,
    )


def drawn_users(probe=True):
    names = ("abc", "bc", "xyz", "ab")
    return [drawn_user(seed, one, probe=probe) for seed, one in enumerate(names)]


def drawn_market(count=COUNT, *, probe=True, **options):
    specs = {f"m{seed}": drawn(seed, probe=probe) for seed in range(count)}
    return js.Market(space_with(probe), specs, **options)


def assert_close_codes(stored, values, scales, rows):
    """Codes of these rows are those computed again, but for rounding to a step."""
    old = np.asarray(stored.values, np.int32)[rows]
    assert np.abs(old - np.asarray(values, np.int32)).max() <= 1
    assert (old == np.asarray(values)).mean() > 0.99
    np.testing.assert_allclose(np.asarray(stored.scales)[rows], scales, rtol=1e-4)


@functools.cache
def world():
    return made_market.make_world(dimension=16)


@functools.cache
def large():
    return made_market.make_market(world(), 1500, size=20)


@functools.cache
def index():
    return js.Index.build(large())


def users(count=8, seed=5):
    return made_market.make_users(world(), count, size=30, seed=seed)


def share_with_all(found, exact):
    """Return the share of users for whom all of the exact best were found."""
    return np.mean([set(b.ids) == set(a.ids) for a, b in zip(found, exact, strict=True)])


def assert_same_answer(found, exact, atol=2e-5):
    assert found.ids == exact.ids
    for name in ("scores", "squared_mmd", "class_similarity"):
        np.testing.assert_allclose(getattr(found, name), getattr(exact, name), atol=atol)
    np.testing.assert_array_equal(found.class_map, exact.class_map)
    for name in ("method", "reuse", "label_spaces", "notes", "class_names"):
        assert getattr(found, name) == getattr(exact, name)


def small(count=6):
    specs = {f"m{seed}": made_specification(seed) for seed in range(count)}
    return js.Market(SPACE, specs)


def specifications_of(market, prefix, change=lambda spec: spec):
    return {f"{prefix} {name}": change(market[name]) for name in market.ids}
