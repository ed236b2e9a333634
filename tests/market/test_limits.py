"""The market sets limits, not the submitter: sizes that are refused, by id and by limit."""

import copy
import dataclasses
import pickle
import warnings

import numpy as np
import pytest
from conftest import SPACE, made_specification, made_task, names

import jaxspec as js
from jaxspec.specify import About

SMALL = js.Limits(points=12, classes=5, id_characters=8, name_characters=9, about_characters=20)


def sized(points=10, classes=4, *, longest=7, about=None):
    """Return a sound specification of these sizes."""
    rng = np.random.default_rng(0)
    return js.Specification(
        js.ReducedSet(rng.normal(size=(points, 6)), np.full(points, 1 / points)),
        js.Proxy(rng.normal(size=(6, classes)), np.zeros(classes)),
        class_names=tuple(f"{k:0{longest}d}" for k in range(classes)),
        space_name=SPACE.name,
        space_digest=SPACE.digest,
        about=About(about),
    )


@pytest.fixture(scope="module")
def small():
    return js.Market(SPACE, {f"m{s}": made_specification(s) for s in range(2)}, limits=SMALL)


@pytest.mark.parametrize(
    ("least", "beyond", "message"),
    [
        ({"points": 12}, {"points": 13}, r"at most 12 points, got 13.*Limits\(points=13\)"),
        ({"classes": 5}, {"classes": 6}, r"at most 5 classes, got 6.*Limits\(classes=6\)"),
        ({"longest": 9}, {"longest": 10}, "at most 9 characters in a class name, got 10"),
        (
            {"about": {"licence": "x" * 13}},
            {"about": {"licence": "x" * 14}},
            "at most 20 characters of metadata, got 21",
        ),
    ],
)
def test_each_limit_is_kept_at_both_sides(small, least, beyond, message):
    assert "new" in small.add({"new": sized(**least)})
    for call in (
        lambda: small.add({"new": sized(**beyond)}),
        lambda: js.Market(SPACE, {"new": sized(**beyond)}, limits=SMALL),
    ):
        with pytest.raises(ValueError, match="'new'.*" + message):
            call()
    with pytest.raises(ValueError, match="'m0'.*" + message):
        small.update({"m0": sized(**beyond)})


def test_an_id_keeps_its_limit(small):
    assert "x" * 8 in small.add({"x" * 8: sized()})
    with pytest.raises(ValueError, match="id: expected a non-empty string of at most 8 characters"):
        small.add({"x" * 9: sized()})


def test_one_file_of_many_points_or_classes_does_not_enlarge_a_market(market, tmp_path):
    """Padded to 19,000 points, a market of 1,000 learnwares would ask for gigabytes per query."""
    layout = market.shared.layout
    for big in (sized(points=19_000), sized(classes=20_000)):
        big.save(tmp_path / "big.safetensors")
        stranger = js.Specification.load(tmp_path / "big.safetensors")
        with pytest.raises(ValueError, match="'big': expected at most"):
            market.add({"big": stranger})
    assert market.add({"new": sized()}).shared.layout == layout


def test_every_market_that_follows_has_the_same_limits(small):
    followers = {
        "add": small.add({"new": sized()}),
        "grown": small.add({f"n{i}": sized(points=12) for i in range(40)}),
        "update": small.update({"m0": sized()}),
        "remove": small.remove(["m0"]),
        "emptied": small.remove(["m0", "m1"]).add({"new": sized()}),
        "astype": small.astype("int8"),
        "sample": small.sample(small.slots[:1]),
        "pickle": pickle.loads(pickle.dumps(small)),
        "copy": copy.deepcopy(small),
    }
    assert {name: one.limits for name, one in followers.items()} == dict.fromkeys(followers, SMALL)
    assert js.Market(SPACE).limits == js.Limits()


def test_the_owner_can_set_other_limits(small):
    wide = small.with_limits(dataclasses.replace(SMALL, points=40))
    assert "new" in wide.add({"new": sized(points=40)})
    with pytest.raises(ValueError, match="at most 12 points"):
        small.add({"new": sized(points=40)})
    narrow = small.with_limits(js.Limits(points=1))  # what is inside stays
    assert narrow.ids == small.ids


def test_stacked_specifications_keep_the_limits_too():
    spec = made_specification(0)
    stacked = dataclasses.replace(
        spec,
        reduced_set=js.ReducedSet(
            *(np.stack([a, a]) for a in (spec.reduced_set.points, spec.reduced_set.weights))
        ),
        proxy=js.Proxy(*(np.stack([a, a]) for a in (spec.proxy.weights, spec.proxy.bias))),
    )
    batches = [(["a", "b"], stacked)]
    assert len(js.Market.from_stacked(SPACE, batches, limits=js.Limits(points=10))) == 2
    with pytest.raises(ValueError, match="at most 9 points, got 10"):
        js.Market.from_stacked(SPACE, batches, limits=js.Limits(points=9))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"points": 0}, ValueError, "points: expected at least 1, got 0"),
        ({"classes": 1}, ValueError, "classes: expected at least 2, got 1"),
        ({"points": 1.5}, TypeError, "points: expected an integer, got 1.5"),
        ({"points": True}, TypeError, "points: expected an integer"),
        ({"id_characters": 1001}, ValueError, "id_characters: expected at most 1000"),
        ({"name_characters": 1001}, ValueError, "name_characters: expected at most 1000"),
        ({"about_characters": -1}, ValueError, "about_characters: expected at least 0"),
    ],
)
def test_limits_that_nothing_could_keep_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        js.Limits(**wrong)


def test_what_are_no_limits_is_refused_by_argument(small):
    for call in (
        lambda: js.Market(SPACE, limits=512),
        lambda: small.with_limits({"points": 3}),
    ):
        with pytest.raises(TypeError, match="limits: expected Limits, got a"):
            call()


def test_specify_warns_where_a_market_would_refuse_by_default():
    features, labels = made_task(0, n=24)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        js.specify(SPACE, features, labels, class_names=names(4), size=2)
    long = ["x" * 201, *names(3)]
    with pytest.warns(js.LimitWarning, match="at most 200 characters in a class name, got 201"):
        js.specify(SPACE, features, labels, class_names=long, size=2)


def test_limits_are_saved_with_the_market_and_hold_on_disk(small, tmp_path):
    small.save(tmp_path / "market")
    assert js.Market.load(tmp_path / "market").limits == SMALL
    folder = js.MarketFolder(tmp_path / "market")
    with pytest.raises(ValueError, match="'new': expected at most .* points"):
        folder.append({"new": sized(points=SMALL.points + 1)})
    after = folder.remove(["m0"]).compact()
    assert after.limits == after.load().limits == SMALL
    other = js.MarketFolder.create(tmp_path / "other", SPACE, limits=SMALL)
    assert other.limits == SMALL
