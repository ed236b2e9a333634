"""A market remembers which learnwares were verified; a specification cannot say so of itself."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
from drawn_markets import USERS, drawn, drawn_market

import jaxspec as js
from jaxspec.market import Entry


def test_marking_makes_another_market_and_leaves_the_old_one():
    market = drawn_market(5)
    marked = market.mark_verified(["m1", "m3"])
    assert not market.verified.any()
    assert marked.verified.tolist() == [False, True, False, True, False]
    assert marked.mark_verified(["m1"], False).verified.tolist() == [False] * 3 + [True, False]
    assert marked.ids == market.ids
    assert marked.calibration is not None


def test_marks_stay_with_their_learnwares_whatever_happens_to_the_market():
    marked = drawn_market(5).mark_verified(["m1", "m3"])

    def verified(market):
        return {name for name, one in zip(market.ids, market.verified, strict=True) if one}

    assert verified(marked.remove(["m0", "m3"])) == {"m1"}
    assert verified(marked.add({"new": drawn(7)})) == {"m1", "m3"}
    many = {f"n{i}": drawn(i) for i in range(40)}  # more than there is room for: copied
    assert verified(marked.remove(["m0"]).add(many)) == {"m1", "m3"}
    assert verified(marked.astype("bfloat16")) == {"m1", "m3"}
    assert verified(pickle.loads(pickle.dumps(marked))) == {"m1", "m3"}
    assert verified(copy.copy(marked)) == {"m1", "m3"}
    # What is published in its place has to be verified anew.
    assert verified(marked.update({"m1": drawn(9)})) == {"m3"}
    assert verified(marked.remove(["m1"]).add({"m1": drawn(1)})) == {"m3"}


def test_marks_are_saved_with_a_market_and_shown_by_a_folder(tmp_path):
    marked = drawn_market(5).mark_verified(["m1", "m3"])
    marked.save(tmp_path / "market")
    loaded = js.Market.load(tmp_path / "market")
    assert loaded.verified.tolist() == marked.verified.tolist()
    folder = js.MarketFolder(tmp_path / "market")
    assert folder.verified.tolist() == marked.verified.tolist()
    assert loaded.mark_verified(["m1"], False).verified.sum() == 1
    best = js.match(folder, USERS[0], k=5, verified=True)
    assert sorted(best.ids) == ["m1", "m3"]
    assert best.verified.all()


def test_a_submitter_cannot_say_so(tmp_path):
    spec = drawn(1)
    assert "verified" not in {field.name for field in dataclasses.fields(js.Specification)}
    assert not Entry.of(dataclasses.replace(spec, about={"verified": True})).verified
    spec.save(tmp_path / "one.safetensors")
    read = js.Specification.load(tmp_path / "one.safetensors")
    assert not drawn_market(2).add({"new": read}).verified.any()


@pytest.mark.parametrize("k", [None, 3])
def test_only_verified_learnwares_are_ranked_on_request(k):
    market = drawn_market(8).mark_verified(["m2", "m5", "m6"])
    whole = js.match(market, USERS[0], k=None)
    assert whole.verified.tolist() == market.verified.tolist()
    found = js.match(market, USERS[0], k=k, verified=True)
    assert set(found.ids) == {"m2", "m5", "m6"}
    assert found.verified.all()
    among = np.array([name != "m5" for name in market.ids])
    assert set(js.match(market, USERS[0], k=k, among=among, verified=True).ids) == {"m2", "m6"}


@pytest.mark.slow
def test_an_index_ranks_only_verified_learnwares_on_request():
    index = js.Index.build(drawn_market(8).mark_verified(["m2", "m5", "m6"]))
    found = js.match(index, USERS[0], k=3, verified=True)
    assert set(found.ids) == {"m2", "m5", "m6"}
    assert found.verified.all()


def test_an_answer_shows_who_is_verified_and_says_if_nobody_is():
    market = drawn_market(4)
    found = js.match(market, USERS[0], verified=True)
    assert len(found) == 0
    assert "none is verified" in found.notes[-1]
    shown = js.match(market.mark_verified(["m2"]), USERS[0])
    by_id = {one["id"]: one["verified"] for one in shown.to_dict()["learnwares"]}
    assert by_id == {"m0": False, "m1": False, "m2": True, "m3": False}
    row = next(line for line in str(shown).splitlines() if " m2 " in line)
    assert row.endswith("yes")


def test_wrong_arguments_are_named():
    market = drawn_market(2)
    with pytest.raises(TypeError, match="ids: expected a sequence"):
        market.mark_verified("m0")
    with pytest.raises(KeyError, match="nobody"):
        market.mark_verified(["nobody"])
    with pytest.raises(TypeError, match="value: expected True or False"):
        market.mark_verified(["m0"], 1)
    with pytest.raises(TypeError, match="verified: expected True or False"):
        js.match(market, USERS[0], verified="yes")
