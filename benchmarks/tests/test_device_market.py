"""Markets that are drawn on the device: what they hold is what the library makes of it."""

import numpy as np
import pytest

import jaxspec as js
from benchmarks.markets import made_market
from benchmarks.markets.device_market import make_on_device
from jaxspec.market import SCHEMA

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "precision", ["int8", pytest.param("float32", marks=SLOW), pytest.param("bfloat16", marks=SLOW)]
)
def test_scores_are_those_of_a_market_of_its_specifications(precision):
    world = made_market.make_world(16)
    drawn = make_on_device(world, 32, precision=precision, size=10)
    drawn = drawn.remove(drawn.ids[24:])  # the other market then has as many rows
    again = js.Market(world.space, dict(drawn.items()), precision=precision)
    assert drawn.ids == again.ids
    users = made_market.make_users(world, 2)
    # Class vectors in bfloat16 are centred and rounded a second time.
    atol = 2e-5 if precision == "float32" else 1e-3
    for method in ("rkme", "classwise", "transfer"):
        answers = (js.match(one, users, method=method) for one in (drawn, again))
        for found, expected in zip(*answers, strict=True):
            np.testing.assert_allclose(found.scores, expected.scores, atol=atol)


def test_arrays_have_the_types_and_padding_of_a_market_of_its_specifications():
    world = made_market.make_world(16)
    drawn = make_on_device(world, 24, precision="int8", size=9)
    again = js.Market(world.space, dict(drawn.items()), precision="int8")
    for name in SCHEMA:
        one, other = (getattr(market.shared.arrays, name) for market in (drawn, again))
        assert (name, one.dtype, one.shape[1:]) == (name, other.dtype, other.shape[1:])


def test_label_spaces_are_those_of_the_world():
    world = made_market.make_world(16)
    drawn = make_on_device(world, 40, size=10)
    spaces = {made_market.class_names(world, space) for space in range(len(world.spaces))}
    assert {drawn.class_names(one) for one in drawn.ids} <= spaces
