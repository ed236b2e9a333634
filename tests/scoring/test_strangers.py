"""What a stranger's numbers can do to scores: nothing to others, and nothing for itself.

Honest scores "rkme" and "classwise" keep their bits; the others depend on what the market has found
out about itself, and change through that alone.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SPACE, alike, made_specification, made_user

import jaxspec as js
from jaxspec.market.calibration import MAX_SLOPE
from jaxspec.specify import check_user_weights, check_weights

METHODS = ("rkme", "classwise", "likelihood", "transfer")


@pytest.fixture(scope="module")
def honest():
    return js.Market(SPACE, {f"m{s}": made_specification(s) for s in range(6)})


def with_set(points, weights, seed=0):
    """Return a sound specification with another reduced set of ten points."""
    phi = js.ReducedSet(jnp.asarray(points, jnp.float32), jnp.asarray(weights, jnp.float32))
    return dataclasses.replace(made_specification(seed), reduced_set=phi)


def strangers():
    rng = np.random.default_rng(0)
    phi = made_specification(1).reduced_set
    points, weights = np.asarray(phi.points, np.float64), np.asarray(phi.weights, np.float64)
    signs = np.tile([1.0, -1.0], 5)
    near = np.repeat(points[:5], 2, axis=0) + 1e-4 * rng.normal(size=(10, 6))
    proxy = made_specification(0).proxy
    return {
        "far": with_set(points + 9e14, weights),
        "heavy": with_set(points, weights * 9e14),
        "cancelling": with_set(near, signs),
        "cancelling and heavy": with_set(near, 1e3 * signs),
        "coinciding": with_set(np.repeat(points[:1], 10, axis=0), signs),
        "subnormal": with_set(points, np.full(10, 1e-40)),
        "nothing": with_set(points, np.zeros(10)),
        "large proxy": dataclasses.replace(
            made_specification(0), proxy=js.Proxy(proxy.weights * 1e14, proxy.bias)
        ),
        "no proxy": dataclasses.replace(
            made_specification(0), proxy=js.Proxy(proxy.weights * 0, proxy.bias * 0)
        ),
    }


@pytest.mark.parametrize("precision", alike("float32", "int8"))
def test_scores_are_finite_and_honest_ones_keep_their_bits(honest, precision):
    users = [made_user(1), made_user(2, class_names=list("wxyz"))]
    odd = strangers()
    fill = {f"f{i}": made_specification(i % 6) for i in range(len(odd))}
    before, after = honest.astype(precision).add(fill), honest.astype(precision).add(odd)
    for method in METHODS:
        found = js.match(after, users, method=method)
        wanted = js.match(before, users, method=method)
        for one, two in zip(found, wanted, strict=True):
            assert np.isfinite(one.scores).all()
            if method in ("rkme", "classwise"):
                np.testing.assert_array_equal(one.scores[:6], two.scores[:6])


def test_scores_of_others_change_through_the_calibration_alone(honest):
    """Without probes: likelihood = p + 0.6 s (r G + slope (C - mean C)), with r = 0."""
    user, odd = made_user(1), strangers()
    grown = honest.add(odd)
    shares = 1.0  # every learnware has all of the user's classes

    def parts(market):
        found = js.match(market, user, method="likelihood").scores[:6]
        closeness = js.match(market, user, method="classwise")
        close = (closeness.scores - closeness.class_similarity.mean(axis=1)) / 2
        slope = float(market.calibration.slope)
        return found, close[:6].astype(np.float64), slope

    before, close, slope = parts(honest)
    after, same, other_slope = parts(grown)
    np.testing.assert_array_equal(close, same)
    assert 0 <= other_slope <= MAX_SLOPE
    mean = np.mean(close)  # of the calibration's sample, which is the whole market here
    every = js.match(grown, user, method="classwise")
    other_mean = np.mean((every.scores - every.class_similarity.mean(axis=1)) / 2)
    predicted = 0.6 * shares * (other_slope * (close - other_mean) - slope * (close - mean))
    np.testing.assert_allclose(after - before, predicted, atol=2e-5)
    # The bound: |C - mean C| is at most 2 for either market, up to rounding.
    assert np.abs(after - before).max() <= 0.6 * shares * 2 * 2 * MAX_SLOPE


def test_cancelling_weights_buy_no_rank(honest):
    """Their norm is rounding, even zero: divided by it, a cosine was 2e10 and came first."""
    points = np.repeat(np.asarray(made_specification(1).reduced_set.points[:5], np.float64), 2, 0)
    signs, odd = np.tile([1.0, -1.0], 5), {}
    for apart in (1e-4, 1e-5):
        for seed in range(12):
            moved = points + apart * np.random.default_rng(seed).normal(size=points.shape)
            odd[f"{apart} {seed}"] = with_set(moved, signs)
    market = honest.add(odd)
    for seed in range(4):
        for method in METHODS:
            found = js.match(market, made_user(seed), method=method, k=1)
            assert found.ids[0] in honest
        classwise = js.match(market, made_user(seed), method="classwise")
        closeness = (classwise.scores - classwise.class_similarity.mean(axis=1)) / 2
        assert np.abs(closeness).max() <= 1.01


def test_the_origin_follows_the_majority(honest):
    """Of two learnwares one may be a stranger's: their median would lie between the two."""
    specs = {"m0": made_specification(0), "far": strangers()["far"]}
    market, user = js.Market(SPACE, specs), made_user(0)
    np.testing.assert_array_equal(market.origin, 0)
    found = js.match(market, user, method="rkme")
    alone = js.match(honest, user, method="rkme")
    np.testing.assert_allclose(found.squared_mmd[0], alone.squared_mmd[0], atol=1e-6)


# Each limit of numbers, at both sides


@pytest.mark.parametrize("bandwidth", [1.1e-19, 6.4e18])
def test_bandwidths_whose_squares_can_be_computed_with_give_kernel_values(bandwidth):
    for kernel in (js.Gaussian, js.Laplacian, js.InverseMultiquadric):
        space = js.Space("s", kernel(bandwidth=bandwidth), dimension=2)
        apart = np.array([[0.0, 0.0], [0.9 * bandwidth, 0.0]], np.float32)
        values = np.asarray(js.gram(space.kernel, apart * 1e-1, apart * 1e-1), np.float64)
        assert np.isfinite(values).all()
        np.testing.assert_allclose(np.diag(values), 1.0)


@pytest.mark.parametrize("bandwidth", [7e-21, 1.0e-19, 6.6e18, 1e38])
def test_bandwidths_whose_squares_are_lost_are_refused(bandwidth):
    for kernel in (js.Gaussian, js.Laplacian, js.InverseMultiquadric):
        with pytest.raises(ValueError, match="bandwidth: expected one whose square float32 holds"):
            kernel(bandwidth=bandwidth)


def test_sums_of_weights_are_bounded_at_both_sides():
    check_weights("x", np.full(900, 1e15), (900,))
    with pytest.raises(ValueError, match="x: reduced_set.weights: expected sizes that sum to at"):
        check_weights("x", np.full(1100, 1e15), (1100,))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, -0.5], "expected a sum above zero, got 0.0"),
        ([-1.0, 0.5], "expected a sum above zero, got -0.5"),
        ([1.0, -0.9985], "a sum of at least 1e-06, and of at least 0.001 of"),
        ([4e-7, 4e-7], "a sum of at least 1e-06"),
    ],
)
def test_a_users_weights_need_a_sum_where_they_are_read_and_where_they_are_matched(
    honest, weights, message
):
    user = made_user(1)
    phi = js.ReducedSet(user.reduced_set.points[:2], jnp.asarray(weights, jnp.float32))
    broken = dataclasses.replace(user, reduced_set=phi, labels=user.labels[:2])
    with pytest.raises(ValueError, match=f"user: reduced_set.weights: .*{message}"):
        js.match(honest, broken)
    with pytest.raises(ValueError, match=rf"user\[1\]: reduced_set.weights: .*{message}"):
        js.match(honest, [user, broken])


def test_a_users_weights_at_the_limits_are_taken():
    check_user_weights("x", np.array([1.0, -0.99]), (2,))
    check_user_weights("x", np.array([6e-7, 6e-7]), (2,))


def test_a_user_of_one_point_gets_finite_scores(honest):
    user = made_user(1)
    phi = js.ReducedSet(user.reduced_set.points[:1], jnp.ones(1))
    one = dataclasses.replace(user, reduced_set=phi, labels=user.labels[:1], num_examples=1)
    for method in METHODS:
        assert np.isfinite(js.match(honest, one, method=method).scores).all()
