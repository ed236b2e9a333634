"""Metadata of a market as columns, and choosing learnwares by it."""

import dataclasses

import numpy as np
import pytest
from conftest import SPACE, made_specification, made_user

import jaxspec as js
from jaxspec.specify import About

NOTES = [
    {"licence": "MIT", "parameters": 4_200_000, "open": True, "accuracy": 0.5},
    {"licence": "GPL", "parameters": 1_000, "open": False},
    {"licence": "MIT", "open": True, "accuracy": 1},
    {"parameters": 7, "open": False, "mixed": "text"},
]


def described_market():
    specs = {
        f"m{s}": dataclasses.replace(made_specification(s), about=About(notes))
        for s, notes in enumerate(NOTES)
    }
    specs["m4"] = dataclasses.replace(
        made_specification(4), about=About({"open": True, "mixed": 3, "licence": "MIT"})
    )
    return js.Market(SPACE, specs)


def test_strings_come_as_objects_with_none_where_they_are_missing():
    column = described_market().about["licence"]
    assert column.dtype == object
    assert column.tolist() == ["MIT", "GPL", "MIT", None, "MIT"]
    assert (column == "MIT").tolist() == [True, False, True, False, True]
    assert (column == "MIT").dtype == bool


def test_numbers_come_as_float64_with_nan_where_they_are_missing():
    about = described_market().about
    np.testing.assert_array_equal(about["parameters"], [4_200_000, 1_000, np.nan, 7, np.nan])
    np.testing.assert_array_equal(about["accuracy"], [0.5, np.nan, 1, np.nan, np.nan])
    assert about["parameters"].dtype == about["accuracy"].dtype == np.float64
    assert (about["parameters"] < 1e6).tolist() == [False, True, False, True, False]


def test_booleans_come_as_a_mask_and_mixed_values_as_objects():
    about = described_market().about
    np.testing.assert_array_equal(about["open"], [True, False, True, False, True])
    assert about["open"].dtype == bool
    assert about["mixed"].tolist() == [None, None, None, "text", 3]


def test_columns_are_a_mapping_over_the_names_that_occur():
    market = described_market()
    about = market.about
    assert set(about) == {"licence", "parameters", "open", "accuracy", "mixed"}
    assert len(about) == 5
    assert "licence" in about
    assert about.get("author") is None
    with pytest.raises(KeyError, match="no metadata 'author'; there is .*'licence'"):
        about["author"]
    assert repr(about) == "AboutColumns(['accuracy', 'licence', 'mixed', 'open', 'parameters'])"
    assert market["m0"].about == NOTES[0]


def test_columns_follow_the_order_of_the_ids_of_each_version():
    market = described_market()
    shrunk = market.remove(["m1"]).update({"m0": made_specification(5)})
    assert shrunk.ids == ("m2", "m3", "m4", "m0")
    assert shrunk.about["licence"].tolist() == ["MIT", None, "MIT", None]
    assert market.about["licence"].tolist() == ["MIT", "GPL", "MIT", None, "MIT"]
    only = market.remove(["m3", "m4"])
    assert "mixed" not in only.about
    assert len(js.Market(SPACE).about) == 0


def test_columns_survive_pickling_and_saving(tmp_path):
    market = described_market()
    market.save(tmp_path / "market")
    loaded = js.Market.load(tmp_path / "market")
    for name, column in market.about.items():
        np.testing.assert_array_equal(loaded.about[name], column)


@pytest.mark.parametrize("method", ["rkme", "classwise", "likelihood", "transfer"])
def test_among_leaves_learnwares_out_of_the_answer_and_keeps_the_scores_of_the_rest(method):
    """With its scores of the whole market, since a market says something about its learnwares."""
    market, user = described_market(), made_user(1)
    mask = market.about["licence"] == "MIT"
    whole = js.match(market, user, method=method)
    found = js.match(market, user, method=method, among=mask)
    assert found.ids == ("m0", "m2", "m4")
    if method in ("rkme", "classwise", "transfer"):
        np.testing.assert_allclose(found.scores, whole.scores[mask], atol=1e-6)
    best = js.match(market, user, method=method, among=mask, k=10)
    assert len(best) == 3
    assert best.ids == tuple(found.ids[i] for i in found.order())
    np.testing.assert_allclose(best.scores, found.scores[found.order()], atol=1e-6)
    first = js.match(market, user, method=method, among=mask.tolist(), k=1)
    assert first.ids == best.ids[:1]
    after = market.remove(["m0"])
    assert js.match(after, user, among=np.array([False, True, True, False]), k=5).ids in (
        ("m2", "m3"),
        ("m3", "m2"),
    )


def test_among_may_be_a_filter_by_metadata():
    market, user = described_market(), made_user(1)
    text = "licence = MIT and not accuracy < 0.7"
    assert js.match(market, user, among=text).ids == ("m2", "m4")
    mask = market.about.where(text)
    assert (
        js.match(market, user, k=5, among=text).ids == js.match(market, user, k=5, among=mask).ids
    )
    none = js.match(market, user, k=5, among="licence = BSD")
    assert len(none) == 0
    assert "`among` leaves out all" in none.notes[-1]
    with pytest.raises(ValueError, match="among: expected a number, .* at character 11"):
        js.match(market, user, among="licence = ")


def test_among_that_leaves_nothing_is_an_empty_answer_that_says_why():
    market = described_market()
    nothing = np.zeros(5, bool)
    for options in ({}, {"k": 3}):
        found = js.match(market, made_user(1), among=nothing, **options)
        assert len(found) == 0
        assert found.ids == ()
        assert found.scores.shape == found.squared_mmd.shape == (0,)
        assert found.class_map.shape == found.class_similarity.shape == (0, 4)
        assert found.top_k(3) == []
        assert found.best_for_class() == {}
        assert any("`among` leaves out all" in note for note in found.notes)
        assert "0 learnwares" in str(found)
        assert found.to_dict()["learnwares"] == []
    founds = js.match(market, [made_user(1), made_user(2)], among=nothing)
    assert [len(found) for found in founds] == [0, 0]


@pytest.mark.parametrize(
    ("among", "error", "message"),
    [
        (
            np.ones(4, bool),
            ValueError,
            r"among: expected shape \(5,\), one per learnware, got \(4,",
        ),
        (np.ones((5, 1), bool), ValueError, r"among: expected shape \(5,\)"),
        (np.arange(5), TypeError, "among: expected a boolean mask .*, got dtype int64"),
        (["m0"], TypeError, "among: expected a boolean mask"),
        (True, ValueError, r"among: expected shape \(5,\)"),
    ],
)
def test_what_is_no_mask_is_refused(among, error, message):
    with pytest.raises(error, match=message):
        js.match(described_market(), made_user(1), among=among)
