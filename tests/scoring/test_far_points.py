"""Groups of points that lie thousands of bandwidths apart, in a pass over a market."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec as js

KERNEL = js.Gaussian(bandwidth=1.0)
SPACE = js.Space("far", KERNEL, dimension=8)


def two_groups(seed, offset):
    """Return 20 points around zero and 20 at a distance, in float32."""
    points = np.random.default_rng(seed).normal(size=(40, 8))
    points[20:] += offset / np.sqrt(8)
    return points.astype(np.float32)


def mean_kernel(a, b):
    squared = np.square(a[:, None].astype(float) - b[None].astype(float)).sum(axis=2)
    return np.exp(-squared / 2).mean()


def market_of(points):
    shares = jnp.full(len(points), 1.0 / len(points), jnp.float32)
    proxy = js.fit_proxy(two_groups(9, 0.0), np.arange(40) % 2, num_classes=2)
    spec = js.Specification(
        js.ReducedSet(jnp.asarray(points), shares),
        proxy,
        class_names=("a", "b"),
        space_name=SPACE.name,
        space_digest=SPACE.digest,
    )
    return js.Market(SPACE, {"one": spec})


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e4, 1e5])
def test_squared_mmd_of_a_match_agrees_with_float64(offset):
    own, asked = two_groups(0, offset), two_groups(1, offset)
    user = js.specify_user(SPACE, asked, np.arange(40) % 2, class_names=["a", "b"])
    found = js.match(market_of(own), user, method="rkme").squared_mmd[0]
    expected = mean_kernel(own, own) + mean_kernel(asked, asked) - 2 * mean_kernel(own, asked)
    assert abs(found - expected) < 1e-5


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_gradient_with_far_points_is_finite():
    market = market_of(two_groups(0, 1e4))
    asked = two_groups(1, 1e4)
    user = js.specify_user(SPACE, asked, np.arange(40) % 2, class_names=["a", "b"])
    arrays = js.user_arrays(market, user)

    def score(points):
        own = dataclasses.replace(arrays, points=points)
        return js.score_arrays(market.arrays, own, method="rkme")[0]

    assert np.isfinite(np.asarray(jax.grad(score)(arrays.points))).all()
