import dataclasses

import numpy as np
import pytest
from made_owners import averaged, made, model_of, probe, space, specified, useless_model

import jaxspec as js
from jaxspec.admission import duplicates
from jaxspec.admission.suspicions import threshold_of


@pytest.fixture(scope="module")
def newcomer():
    return specified({"new": (9, model_of(9))})["new"]


def test_an_honest_newcomer_is_accepted_and_the_market_stays_as_it_was(newcomer):
    market, _, _ = made()
    found = js.admit(market, {"new": newcomer}, models={"new": model_of(9)})
    assert list(found.accepted) == ["new"]
    assert found.verified == ("new",)
    assert "new" not in market
    grown = market.add(found.accepted).mark_verified(found.verified)
    assert grown.verified.tolist() == [False] * len(market) + [True]


def test_copies_under_another_id_are_found_even_renamed_scaled_or_jittered():
    market, _, _ = made()
    spec, rng = market["m5"], np.random.default_rng(0)
    scaled = dataclasses.replace(
        spec,
        class_names=("x", "y", "z"),
        probe_proxy=dataclasses.replace(
            spec.probe_proxy,
            weights=3 * spec.probe_proxy.weights,
            bias=3 * spec.probe_proxy.bias,
        ),
    )
    points = np.asarray(spec.reduced_set.points)
    jittered = dataclasses.replace(
        spec,
        reduced_set=js.ReducedSet(
            (points + 0.01 * rng.normal(size=points.shape)).astype(np.float32),
            spec.reduced_set.weights,
        ),
    )
    specs = {"copy": spec, "renamed": scaled, "jittered": jittered}
    for name, one in specs.items():
        found = js.admit(market, {name: one})
        assert not found.accepted
        assert any("copy of 'm5'" in reason for reason in found.refused[name])


def test_a_copy_within_one_submission_is_found(newcomer):
    market, _, _ = made()
    found = js.admit(market, {"first": newcomer, "second": newcomer})
    assert list(found.accepted) == ["first"]
    assert "submitted with it" in found.refused["second"][0]


def test_averaged_answers_are_suspicious_and_a_model_that_was_run_refutes_them():
    market, _, useless = made()
    lie = averaged(market, useless)
    found = js.admit(market, {"lie": lie})
    assert not found.accepted
    assert any("averages" in reason or "contradict" in reason for reason in found.refused["lie"])
    ran = js.admit(market, {"lie": lie}, models={"lie": useless_model})
    assert not ran.verifications["lie"].accepted
    warned = js.admit(market, {"lie": lie}, policy=js.Policy(suspicious="warn"))
    assert list(warned.accepted) == list(warned.warnings) == ["lie"]
    assert "warning 'lie'" in str(warned)


def test_the_policy_sets_limits_and_names_what_is_unsound(newcomer):
    market, _, _ = made()
    bare = dataclasses.replace(newcomer, probe_proxy=None)
    cases = {
        "m1": (newcomer, js.Policy(), "in the market already"),
        "few": (newcomer, js.Policy(max_points=5), "at most 5"),
        "classes": (newcomer, js.Policy(max_classes=2), "at most 2"),
        "bare": (bare, js.Policy(require_probe=True), "no probe proxy"),
        "unrun": (newcomer, js.Policy(require_verified=True), "was not run"),
        "other": (dataclasses.replace(newcomer, space_digest="x"), js.Policy(), "unsound"),
    }
    for name, (spec, policy, words) in cases.items():
        found = js.admit(market, {name: spec}, policy=policy)
        assert not found.accepted
        assert words in found.refused[name][0]
        assert name in str(found)


def test_a_small_market_finds_certain_copies_only(newcomer):
    market, _, useless = made()
    small = market.remove(market.ids[3:])
    found = js.admit(small, {"copy": market["m0"], "new": newcomer, "odd": useless})
    assert sorted(found.accepted) == ["new", "odd"]
    empty = js.Market(space())
    assert list(js.admit(empty, {"new": newcomer}).accepted) == ["new"]


def test_an_audit_runs_models_and_reports_on_the_others():
    market, models, useless = made()
    lying = market.add({"lie": averaged(market, useless), "copy": market["m6"]})
    report = js.audit(lying, {**models, "lie": useless_model})
    assert set(report.verified) == set(models)
    assert list(report.refused) == ["lie"]
    assert "copy" in report.suspicions
    assert "11 learnwares: 9 of 10 models" in str(report)
    with pytest.raises(KeyError):
        js.audit(market, {"nobody": useless_model})


def test_mixtures_are_told_from_owners_of_the_same_data():
    market, _, _ = made()
    specs = [market[name] for name in market.ids]
    points = np.concatenate([np.asarray(one.reduced_set.points) for one in specs])
    weights = np.concatenate([np.asarray(one.reduced_set.weights) for one in specs]) / len(specs)
    mixed = dataclasses.replace(specs[0], reduced_set=js.ReducedSet(points, weights))
    some = [mixed, specs[0]]
    own = duplicates.self_terms(space(), some)
    products = duplicates.inner_products(space(), some, specs)
    gram = duplicates.inner_products(space(), specs, specs)
    scores = duplicates.mixture_scores(own, products, gram, np.ones(products.shape, bool))
    assert scores[0] > 4
    assert abs(scores[1]) < 1e-6


def test_non_negative_combinations_are_those_of_scipy():
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(0)
    basis, targets = rng.normal(size=(12, 6)) + 0.5, rng.normal(size=(3, 12)) + 0.3
    own = (targets**2).sum(axis=1)
    allowed = np.ones((3, 6), bool)
    allowed[1, 2] = False
    products = np.where(allowed, targets @ basis, 0.0)
    left = duplicates._unexplained(own, products, basis.T @ basis, allowed)
    for i in range(3):
        _, rest = optimize.nnls(basis[:, allowed[i]], targets[i])
        assert left[i] == pytest.approx(rest**2 / own[i], abs=1e-4)


def test_the_threshold_of_few_values_keeps_the_rate_of_false_alarms():
    rng = np.random.default_rng(0)
    alarms = [value[-1] > threshold_of(value[:-1], 0.01) for value in rng.normal(size=(4000, 23))]
    assert 0.003 < np.mean(alarms) < 0.02


@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"max_points": 0}, ValueError, "max_points"),
        ({"copies": 1}, TypeError, "copies"),
        ({"suspicious": "ignore"}, ValueError, "suspicious"),
        ({"false_alarms": 0.5}, ValueError, "false_alarms"),
    ],
)
def test_a_wrong_policy_is_named(options, error, name):
    with pytest.raises(error, match=name):
        js.Policy(**options)


def test_wrong_arguments_are_named(newcomer):
    market, _, _ = made()
    with pytest.raises(TypeError, match="market: expected a Market"):
        js.admit("market", {})
    with pytest.raises(TypeError, match="policy: expected a Policy"):
        js.admit(market, {}, policy={})
    with pytest.raises(TypeError, match="specifications: expected a mapping"):
        js.admit(market, [newcomer])
    assert probe().shape == (300, 4)
