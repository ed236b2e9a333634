"""Answers as objects: the best, the table, dictionaries, and that they survive copying."""

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
from conftest import made_user, names

import jaxspec as js


def made_match(scores=(0.5, 0.9, 0.1), **changes):
    count = len(scores)
    found = js.Match(
        ids=tuple(f"m{i}" for i in range(count)),
        scores=np.array(scores, np.float32),
        squared_mmd=np.linspace(0.1, 0.3, count, dtype=np.float32),
        class_similarity=np.tile(np.array([0.25, -1], np.float32), (count, 1)),
        class_map=np.tile(np.array([1, -1], np.int32), (count, 1)),
        class_names=("cat", "dog"),
        learnware_class_names=(("bird", "cat"),) * count,
        method="likelihood",
        reuse="direct",
        label_spaces="homogeneous",
        notes=("The first note.", "The second note."),
    )
    return dataclasses.replace(found, **changes)


def test_top_k_is_best_first_and_equal_scores_keep_their_order():
    found = made_match((0.5, 0.9, 0.1, 0.9))
    want = [("m1", 0.9), ("m3", 0.9), ("m0", 0.5), ("m2", 0.1)]
    for k in (1, 3, 4, 100):
        top = found.top_k(k)
        assert [one for one, _ in top] == [one for one, _ in want[:k]]
        np.testing.assert_allclose([score for _, score in top], [s for _, s in want[:k]])
        assert all(type(score) is float for _, score in top)


@pytest.mark.parametrize(
    ("k", "error", "message"),
    [
        (0, ValueError, "k: expected at least 1, got 0"),
        (-1, ValueError, "k: expected at least 1"),
        (2.0, TypeError, "k: expected an integer"),
        ("2", TypeError, "k: expected an integer"),
        (True, TypeError, "k: expected an integer"),
        (None, TypeError, "k: expected an integer"),
    ],
)
def test_a_number_that_is_none_is_refused(k, error, message):
    with pytest.raises(error, match=message):
        made_match().top_k(k)


def test_scores_that_are_not_numbers_come_last():
    found = made_match((np.nan, 0.2, np.nan, -np.inf, 0.9))
    assert [one for one, _ in found.top_k(5)][:2] == ["m4", "m1"]
    assert set(np.argsort(found.order())[[0, 2]]) <= {2, 3, 4}


def test_explain_says_which_class_stands_for_which():
    found = made_match()
    pairs = found.explain("m1")
    assert [(one, own) for one, own, _ in pairs] == [("cat", "cat"), ("dog", None)]
    np.testing.assert_allclose([similarity for _, _, similarity in pairs], [0.25, -1])
    assert found.class_names_of("m1") == ("bird", "cat")
    assert found.place_of("m2") == 2
    for look in (found.explain, found.class_names_of, found.place_of):
        with pytest.raises(
            KeyError, match="learnware: expected an id of this answer, got 'nobody'"
        ):
            look("nobody")


def test_best_for_class_is_the_learnware_with_the_most_similar_class():
    similarity = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.3]], np.float32)
    assert made_match(class_similarity=similarity).best_for_class() == {"cat": "m1", "dog": "m0"}


def test_an_answer_explains_the_market_that_was_asked(market):
    found = js.match(market, made_user(1))
    assert [score for _, score in found.top_k(3)] == sorted(found.scores.tolist())[::-1][:3]
    rows = found.explain("m1")
    assert [row[0] for row in rows] == [row[1] for row in rows] == names(4)
    np.testing.assert_allclose([row[2] for row in rows], found.class_similarity[1])
    assert found.best_for_class() == dict.fromkeys(names(4), "m1")
    assert len(found.top_k(100)) == len(found) == 6
    assert found.class_names_of("m3") == tuple(names(4))


def test_the_table_shows_the_best_ten_and_the_notes():
    lines = str(made_match(tuple(np.linspace(0, 1, 12)))).splitlines()
    assert lines[0].startswith("Match(12 learnwares, best 'm11', method 'likelihood'")
    header = ["rank", "learnware", "score", "squared", "MMD", "classes", "verified"]
    assert lines[1].split() == header
    assert lines[2].split() == ["1", "m11", "1.000", "0.3000", "1", "of", "2", "no"]
    assert [line.split()[1] for line in lines[2:12]] == [f"m{i}" for i in range(11, 1, -1)]
    assert lines[12:] == ["... and 2 more", "- The first note.", "- The second note."]
    assert max(len(line) for line in lines) <= 100


def test_columns_of_the_table_line_up(market):
    lines = str(js.match(market, made_user(1))).splitlines()
    table = lines[1:8]
    ends = {line.index(line.split()[2]) + len(line.split()[2]) for line in table}
    assert len(ends) == 1
    assert len(lines) == 8 + 2  # a note on the label spaces, and one on the reuse


def test_the_repr_is_one_short_line():
    text = repr(made_match())
    assert text == (
        "Match(3 learnwares, best 'm1', method 'likelihood', reuse 'direct', "
        "homogeneous label spaces)"
    )


def test_the_dictionary_is_json_best_first():
    found = made_match((0.5, np.nan, 0.9, -np.inf))
    text = json.dumps(found.to_dict(), allow_nan=False)
    read = json.loads(text)
    assert [one["id"] for one in read["learnwares"]][:2] == ["m2", "m0"]
    scores = {one["id"]: one["score"] for one in read["learnwares"]}
    assert scores["m1"] is scores["m3"] is None
    np.testing.assert_allclose([scores["m2"], scores["m0"]], [0.9, 0.5], rtol=1e-6)
    assert read["learnwares"][0]["classes"] == [
        {"user": "cat", "learnware": "cat", "similarity": 0.25},
        {"user": "dog", "learnware": None, "similarity": -1.0},
    ]
    assert read["notes"] == ["The first note.", "The second note."]
    assert {name: read[name] for name in ("method", "reuse", "label_spaces", "class_names")} == {
        "method": "likelihood",
        "reuse": "direct",
        "label_spaces": "homogeneous",
        "class_names": ["cat", "dog"],
    }


def test_the_dictionary_of_a_markets_answer_is_json(market):
    for k in (None, 2):
        read = json.loads(
            json.dumps(js.match(market, made_user(1), k=k).to_dict(), allow_nan=False)
        )
        assert read["learnwares"][0]["id"] == "m1"
        assert len(read["learnwares"]) == (k or 6)


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_an_answer_survives_copying_and_pickling(market, again):
    found = js.match(market, made_user(1), k=3)
    other = again(found)
    assert other.ids == found.ids
    assert other.notes == found.notes
    assert str(other) == str(found)
    for field in ("scores", "squared_mmd", "class_similarity", "class_map"):
        np.testing.assert_array_equal(getattr(other, field), getattr(found, field))


def test_an_answer_cannot_be_changed_and_comparing_never_raises():
    found = made_match()
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.ids = ()
    assert found == found
    assert found != made_match()
    assert found != 3
