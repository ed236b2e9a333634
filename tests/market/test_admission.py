"""What a market does not take in, and that the message says which learnware and why."""

import dataclasses

import numpy as np
import pytest
from conftest import SPACE, made_specification, made_task, made_user, names, probed_space

import jaxspec as js


def sound():
    return made_specification(0)


def with_points(spec, points):
    phi = js.ReducedSet(points, spec.reduced_set.weights)
    return dataclasses.replace(spec, reduced_set=phi)


def with_one_point(value):
    points = np.array(sound().reduced_set.points)
    points[0, 0] = value
    return with_points(sound(), points)


def with_four_features():
    proxy = js.Proxy(np.zeros((4, 4), np.float32), sound().proxy.bias)
    return dataclasses.replace(with_points(sound(), np.zeros((10, 4), np.float32)), proxy=proxy)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        ({"class_names": ("a", "b", "c", "a")}, ValueError, "class_names: expected different"),
        ({"class_names": list("abcd")}, TypeError, "class_names: expected a tuple, got a list"),
        ({"class_names": ("a", "b", "c", 4)}, TypeError, "class_names: expected strings, got 4"),
        ({"class_names": ("a", "b")}, ValueError, r"proxy.weights of shape \(6, 2\), got \(6, 4\)"),
        ({"class_names": ("cafe\u0301", *"abc")}, ValueError, "class_names: expected .*form NFC"),
        ({"reduced_set": None}, TypeError, "expected a ReducedSet and a Proxy in it, got a None"),
        ({"proxy": None}, TypeError, "expected a ReducedSet and a Proxy in it"),
        ({"space_name": "elsewhere", "space_digest": "0"}, ValueError, "'elsewhere'.*'made-feat"),
        (
            {"space_digest": "0"},
            ValueError,
            "the kernel, its bandwidth, the dimension or the probe",
        ),
        (
            lambda: with_one_point(np.nan),
            ValueError,
            "finite numbers in reduced_set.points, got NaN",
        ),
        (lambda: with_one_point(np.inf), ValueError, "finite numbers in reduced_set.points"),
        (
            with_four_features,
            ValueError,
            r"points of shape \(m, 6\) with m above zero, got \(10, 4\)",
        ),
        (lambda: with_points(sound(), np.zeros((0, 6))), ValueError, "with m above zero"),
        (lambda: with_points(sound(), np.zeros((9, 6))), ValueError, r"weights of shape \(9,\)"),
        (lambda: with_points(sound(), np.zeros(6)), ValueError, r"points of shape \(m, 6\)"),
        (lambda: {"points": 1}, TypeError, "expected a Specification, got a dict"),
        (lambda: None, TypeError, "expected a Specification, got a NoneType"),
        (lambda: made_user(0), TypeError, "expected a Specification, got a UserSpecification"),
    ],
)
def test_a_specification_that_is_not_sound_is_refused_by_id_and_field(market, make, error, message):
    broken = make() if callable(make) else dataclasses.replace(sound(), **make)
    attempts = [
        lambda: js.Market(SPACE, {"new": broken}),
        lambda: js.Market(SPACE, {"good": sound(), "new": broken}),
        lambda: market.add({"good": sound(), "new": broken}),
    ]
    for attempt in attempts:
        with pytest.raises(error, match="'new'.*" + message):
            attempt()
    with pytest.raises(error, match="'m0'.*" + message):
        market.update({"m0": broken})
    assert market.ids == tuple(f"m{s}" for s in range(6))


@pytest.mark.parametrize(
    ("learnware", "error", "message"),
    [
        ("m0", ValueError, "id: 'm0' is in the market already; `update` replaces it"),
        ("", ValueError, "id: expected a non-empty string"),
        ("x" * 1001, ValueError, "id: expected a non-empty string of at most 1000 characters"),
        (3, TypeError, "id: expected a string, got 3"),
        (None, TypeError, "id: expected a string, got None"),
    ],
)
def test_an_id_that_cannot_be_used_is_refused(market, learnware, error, message):
    with pytest.raises(error, match=message):
        market.add({learnware: sound()})
    if learnware != "m0":
        with pytest.raises(error, match=message):
            js.Market(SPACE, {learnware: sound()})


@pytest.mark.parametrize("what", [[sound], "m0", 3, sound])
def test_what_is_no_mapping_is_refused_by_argument(market, what):
    for call in (lambda x: js.Market(SPACE, x), market.add, market.update):
        with pytest.raises(TypeError, match="specifications: expected a mapping from ids"):
            call(what)


def test_what_is_no_space_is_refused_by_argument():
    with pytest.raises(TypeError, match="space: expected a Space, got a dict"):
        js.Market({"m0": sound()})
    with pytest.raises(ValueError, match="precision: expected one of .*'int8'.*, got 'float64'"):
        js.Market(SPACE, precision="float64")
    with pytest.raises(ValueError, match="precision: expected one of"):
        js.Market(SPACE).astype(np.int8)


@pytest.mark.parametrize("part", ["points", "weights", "proxy", "bias", "probe", "map"])
def test_a_number_that_would_overflow_the_pass_is_refused(part):
    """One such learnware could turn the scores of all others into NaN."""
    space = probed_space()
    features, labels = made_task(0)
    outputs = np.full((200, 4), 0.25)
    spec = js.specify(
        space,
        features,
        labels,
        class_names=names(4),
        size=10,
        probe_outputs=outputs,
        hidden=features,
    )
    others = {
        f"m{s}": dataclasses.replace(
            made_specification(s), space_name=space.name, space_digest=space.digest
        )
        for s in range(4)
    }
    market = js.Market(space, others)

    def with_number(value):
        phi, proxy, probe = spec.reduced_set, spec.proxy, spec.probe_proxy
        changes = {
            "points": {"reduced_set": js.ReducedSet(phi.points + value, phi.weights)},
            "weights": {"reduced_set": js.ReducedSet(phi.points, phi.weights + value)},
            "proxy": {"proxy": js.Proxy(proxy.weights * value, proxy.bias)},
            "bias": {"proxy": js.Proxy(proxy.weights, proxy.bias + value)},
            "probe": {"probe_proxy": dataclasses.replace(probe, bias=probe.bias + value)},
            "map": {"representation": spec.representation + np.float32(value)},
        }
        return dataclasses.replace(spec, **changes[part])

    with pytest.raises(ValueError, match="'new': expected numbers of at most 1e.15 in .*, got 1"):
        market.add({"new": with_number(1e30)})
    grown = market.add({"new": with_number(1e14)})  # large, and no harm to the others
    user = made_user(1, space=space)
    for method in ("rkme", "classwise", "likelihood", "transfer"):
        scores = js.match(grown, user, method=method).scores
        assert np.isfinite(scores).all()
        if method in ("rkme", "classwise"):  # the others are relative to the market
            alone = js.match(market, user, method=method).scores
            np.testing.assert_allclose(scores[:-1], alone, atol=1e-5)
