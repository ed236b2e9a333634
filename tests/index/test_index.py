"""An index answers as its market does: for all scores, users, and choices among learnwares."""

import copy
import dataclasses
import functools
import pickle

import jax
import numpy as np
import pytest
from conftest import alike, made_probe, made_task, made_user, probed_space
from made_index import assert_same_answer, index, large, share_with_all, small, users

import jaxspec as js
from benchmarks.markets import made_shapes
from jaxspec.index import filter as filters
from jaxspec.index import index as indexes
from jaxspec.market import following


def test_the_exact_best_ten_are_found_from_few_candidates():
    for found, exact in zip(
        js.match(index(), users(), k=10), js.match(large(), users(), k=10), strict=True
    ):
        assert_same_answer(found, exact)
    assert index().candidates(10) < len(large()) / 4


@pytest.mark.parametrize("method", alike("transfer", "likelihood", "classwise", "rkme"))
def test_answers_are_those_of_the_exact_pass(method):
    user = users(1)[0]
    assert_same_answer(
        js.match(index(), user, k=5, method=method), js.match(large(), user, k=5, method=method)
    )


@dataclasses.dataclass(frozen=True)
class OwnScore:
    """A user's own score, which no filter was made for."""

    factor: float = 1.0
    name: str = "own"
    needs: tuple[str, ...] = ("closeness", "share", "similarity")

    def __call__(self, evidence):
        return self.factor * evidence.share * evidence.closeness**3 + evidence.similarity**2


@pytest.mark.slow
def test_the_recall_holds_for_a_users_own_score():
    for score in (OwnScore(), OwnScore(factor=-1.0)):
        found, exact = (js.match(one, users(), k=10, method=score) for one in (index(), large()))
        assert share_with_all(found, exact) >= 0.99
        assert found[0].method == "own"


def test_without_a_number_all_learnwares_are_answered_in_the_markets_order():
    found = js.match(index(), users(1)[0])
    assert found.ids == large().ids
    assert_same_answer(found, js.match(large(), users(1)[0]), atol=0)


# A part of the market


@pytest.mark.parametrize("share", [0.5, 0.1, 0.004])
def test_the_recall_holds_among_some_of_the_learnwares(share):
    """Also where the choice has to do with what the user wants: the worst by closeness are left."""
    people = users(8, seed=11)
    rng = np.random.default_rng(0)
    near = js.match(large(), people[0], method="rkme").scores
    masks = [
        rng.random(1500) < share,
        near <= np.quantile(near, share),
        near >= np.quantile(near, 1 - share),
    ]
    for among in masks:
        found, exact = (js.match(x, people, k=10, among=among) for x in (index(), large()))
        assert share_with_all(found, exact) >= 0.99
        assert all(len(one) == min(10, among.sum()) for one in found)
        np.testing.assert_allclose(found[0].scores, exact[0].scores, atol=2e-5)


@pytest.mark.slow
def test_the_recall_holds_after_most_of_the_market_was_removed():
    kept = index().remove(large().ids[100:1200])
    people = users(8, seed=12)
    found, exact = (js.match(x, people, k=10) for x in (kept, kept.market))
    assert len(kept) == 400
    assert share_with_all(found, exact) >= 0.99


@pytest.mark.slow
def test_one_learnware_is_left():
    among = np.arange(1500) == 700
    found, exact = (js.match(x, users(2), k=10, among=among) for x in (index(), large()))
    for one, other in zip(found, exact, strict=True):
        assert one.ids == other.ids == (large().ids[700],)
        np.testing.assert_allclose(one.scores, other.scores, atol=2e-5)


def test_no_learnware_is_left():
    found = js.match(index(), users(1)[0], k=3, among=np.zeros(1500, bool))
    assert found.ids == ()


@pytest.mark.slow
def test_more_learnwares_than_there_are_can_be_asked_for():
    small_index = js.Index.build(small())
    assert len(js.match(small_index, made_user(1), k=100)) == 6
    found, exact = (js.match(x, users(1)[0], k=2000) for x in (index(), large()))
    assert_same_answer(found, exact)


@functools.cache
def probed_specification(seed):
    features, labels = made_task(seed)
    outputs = js.fit_proxy(features, labels, num_classes=4)
    logits = made_probe() @ np.asarray(outputs.weights) + np.asarray(outputs.bias)
    chance = np.exp(logits - logits.max(axis=1, keepdims=True))
    return js.specify(
        probed_space(),
        features,
        labels,
        class_names=[f"class {letter}" for letter in "abcd"],
        size=10,
        probe_outputs=chance / chance.sum(axis=1, keepdims=True),
    )


def test_it_serves_markets_with_probes_and_users_of_other_names():
    market = js.Market(probed_space(), {f"m{s}": probed_specification(s) for s in range(6)})
    own = made_user(2, space=probed_space())
    stranger = made_user(2, space=probed_space(), class_names=["w", "x", "y", "z"])
    found, other = js.match(js.Index.build(market), [own, stranger], k=6)
    assert (found.method, other.method) == ("likelihood", "transfer")
    for one, exact in zip((found, other), js.match(market, [own, stranger], k=6), strict=True):
        assert_same_answer(one, exact)


@pytest.mark.parametrize(
    ("other", "probe", "recall"),
    [
        (False, True, 0.99),
        pytest.param(True, True, 0.8, marks=pytest.mark.slow),
        pytest.param(True, False, 0.8, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_the_recall_holds_where_learnwares_differ_in_shape(other, probe, recall):
    shapes = made_shapes.make_world(dimension=16)
    market = made_shapes.make_market(shapes, 1200, size=20, probe=probe)
    people = made_shapes.make_users(shapes, 16, probe=probe, other=other, seed=6)
    shaped = js.Index.build(market)
    found = js.match(shaped, people, k=10, recall=recall)
    exact = js.match(market, people, k=10)
    method = "transfer" if other else "likelihood"
    assert {one.method for one in exact} == {method}
    assert share_with_all(found, exact) >= recall
    # With a probe these models are seen not to follow the public features: codes say nothing of
    # their use to users of other class names, so all learnwares are scored.
    follows = float(following(market.calibration))
    assert follows < 0.1 if probe else follows == 1
    candidates = shaped.candidates(10, recall=recall, method=method, by_name=not other)
    assert (candidates < len(market)) == (not (other and probe))


# Values, compilations, errors


def test_a_copy_of_an_index_answers_as_it_does():
    user = users(1)[0]
    want = js.match(index(), user, k=10)
    assert copy.copy(index()) is index() and copy.deepcopy(index()) is index()
    again = pickle.loads(pickle.dumps(index()))
    assert_same_answer(js.match(again, user, k=10), want)
    grown = again.add({"new": large()["learnware 3"]})
    assert len(grown) == 1501 and len(again) == 1500
    assert_same_answer(js.match(grown, user, k=10), js.match(grown.market, user, k=10))


def test_bad_input_is_named():
    with pytest.raises(TypeError, match="market: expected a Market"):
        js.Index.build("market")
    with pytest.raises(ValueError, match="market: expected at least one learnware"):
        js.Index.build(large().remove(large().ids))
    user = users(1)[0]
    with pytest.raises(ValueError, match="k: expected at least 1"):
        js.match(index(), user, k=0)
    with pytest.raises(ValueError, match="recall: expected a share"):
        js.match(index(), user, recall=1.5)
    with pytest.raises(TypeError, match="recall: expected a number"):
        js.match(index(), user, recall="most")
    with pytest.raises(ValueError, match="resume: expected None"):
        js.match(index(), user, k=3, resume="state")
    with pytest.raises(ValueError, match="made-features"):
        js.match(index(), made_user(1))
    with pytest.raises(ValueError, match="got an empty market"):
        js.match(index().remove(large().ids), user, k=3)
    with pytest.raises(KeyError, match="nobody"):
        index().update({"nobody": large()["learnware 3"]})
    with pytest.raises(ValueError, match="in the market already"):
        index().add({"learnware 3": large()["learnware 3"]})


def test_the_limits_of_the_module_docstring_are_those_of_the_code():
    assert indexes.SMALL_MARKET == 256 and indexes.MAX_NEW == 1024 and indexes.MIN_NEW == 64
    assert (filters.PSEUDO_USERS, filters.MAX_SHOWN) == (64, 16384)
    assert len(jax.tree.leaves(index()._codes.stored)) == 3
