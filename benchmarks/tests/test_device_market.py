"""Markets that are drawn on the device: what they hold is what the library makes of it."""

import numpy as np
import pytest

import jaxspec as js
from benchmarks.markets import made_market
from benchmarks.markets.device_market import make_on_device


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
def test_scores_are_those_of_a_market_of_its_specifications(storage):
    world = made_market.make_world(16)
    drawn = make_on_device(world, 24, storage, size=10)
    again = js.Market.from_specifications(dict(drawn.items()), storage=storage)
    assert drawn.ids == again.ids
    users = made_market.make_users(world, 2)
    # Class vectors in bfloat16 are centred and rounded a second time.
    atol = 2e-5 if storage == "float32" else 1e-3
    for method in ("rkme", "classwise", "transfer"):
        found, expected = (js.match(one, users, method=method).scores for one in (drawn, again))
        np.testing.assert_allclose(found, expected, atol=atol)


def test_label_spaces_are_those_of_the_world():
    world = made_market.make_world(16)
    drawn = make_on_device(world, 40, "float32", size=10)
    spaces = {tuple(f"class {c}" for c in classes) for classes in world.spaces}
    assert {drawn.class_names(one) for one in drawn.ids} <= spaces
