"""Spaces: their digest, equality, landmarks, and the refusal of what lives in another space."""

import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import DIMENSION, SPACE, made_probe, made_specification, made_task, made_user
from oracles import oracle_gram
from scipy.spatial.distance import pdist

import jaxspec as js
from jaxspec.specify.probe_proxy import PROBE_LANDMARKS

PROBE = made_probe(40)
ARGUMENTS = {
    "name": "a space",
    "kernel": js.Gaussian(bandwidth=3.0),
    "dimension": DIMENSION,
    "probe": PROBE,
}
CHANGED = {
    "name": "another space",
    "kernel's form": js.Laplacian(bandwidth=3.0),
    "bandwidth": js.Gaussian(bandwidth=3.0001),
    "dimension": DIMENSION + 1,
    "probe": PROBE[::-1],
    "one number of the probe": PROBE + np.eye(40, DIMENSION, dtype=np.float32) * 1e-3,
    "no probe": None,
}
FIELD = {"kernel's form": "kernel", "bandwidth": "kernel"}


def made_space(**changes):
    arguments = {**ARGUMENTS, **changes}
    return js.Space(
        arguments["name"],
        arguments["kernel"],
        dimension=arguments["dimension"],
        probe=arguments["probe"],
    )


def test_a_space_keeps_what_it_was_made_of():
    space = made_space()
    assert (space.name, space.dimension) == ("a space", DIMENSION)
    assert isinstance(space.kernel, js.Gaussian)
    assert float(space.kernel.bandwidth) == 3.0
    np.testing.assert_array_equal(space.probe, PROBE)
    assert isinstance(space.probe, jax.Array)


@pytest.mark.parametrize("what", CHANGED)
def test_the_digest_changes_with_everything_that_a_space_is_made_of(what):
    field = FIELD.get(what, "probe" if "probe" in what else what)
    changes = {field: CHANGED[what]}
    if what == "dimension":
        changes["probe"] = np.zeros((40, DIMENSION + 1))
        assert made_space(**changes) != made_space(probe=np.zeros((40, DIMENSION)))
    assert made_space(**changes).digest != made_space().digest
    assert made_space(**changes) != made_space()


@pytest.mark.parametrize(
    "changes",
    [
        {"kernel": js.Gaussian(bandwidth=np.float64(3.0))},
        {"kernel": js.Gaussian(bandwidth=jnp.float32(3.0))},
        {"kernel": js.Gaussian(bandwidth=3)},
        {"probe": PROBE.astype(np.float64)},
        {"probe": jnp.asarray(PROBE)},
        {"probe": PROBE.tolist()},
        {"dimension": np.int64(DIMENSION)},
    ],
)
def test_the_digest_does_not_depend_on_the_types_of_numbers(changes):
    assert made_space(**changes).digest == made_space().digest


def test_spaces_of_one_digest_are_equal_and_hash_alike():
    one, other = made_space(), made_space()
    assert one == other
    assert hash(one) == hash(other)
    assert len({one, other, made_space(name="x")}) == 2
    assert one != "a space"
    assert one != None  # noqa: E711


@pytest.mark.parametrize(
    ("kernel", "metric"), [(js.Gaussian, "euclidean"), (js.Laplacian, "cityblock")]
)
def test_from_features_takes_the_median_distance_as_bandwidth(kernel, metric):
    features, _ = made_task(0)
    space = js.Space.from_features("made", features, kernel=kernel, probe=PROBE)
    want = np.median(pdist(features.astype(np.float64), metric))
    np.testing.assert_allclose(space.kernel.bandwidth, want, rtol=1e-2)
    assert (type(space.kernel), space.dimension) == (kernel, DIMENSION)
    np.testing.assert_array_equal(space.probe, PROBE)


def test_a_space_cannot_be_changed():
    space, rows = made_space(), PROBE.copy()
    for name in ("name", "kernel", "dimension", "probe", "digest", "landmarks", "anything"):
        with pytest.raises(AttributeError, match=f"{name}: a Space cannot be changed"):
            setattr(space, name, "other")
    given = made_space(probe=rows)
    rows[:] = 0
    assert given == space
    np.testing.assert_array_equal(given.probe, PROBE)


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_copies_and_pickles_are_equal(again):
    for space in (made_space(), SPACE):
        found = again(space)
        assert found == space
        assert found.name == space.name
        np.testing.assert_array_equal(found.landmarks, space.landmarks)


def test_the_whitening_is_the_inverse_root_of_the_landmarks_gram_matrix():
    space = made_space(probe=PROBE[:20] * 2)
    np.testing.assert_array_equal(space.landmarks, space.probe)
    gram = oracle_gram(space.kernel, space.landmarks, space.landmarks)
    values, vectors = np.linalg.eigh(gram)
    want = vectors @ np.diag(1 / np.sqrt(values)) @ vectors.T
    np.testing.assert_allclose(space.whitening, want, rtol=2e-3, atol=2e-3 * np.abs(want).max())


def test_a_space_without_a_probe_has_no_landmarks():
    assert SPACE.probe is None
    assert SPACE.landmarks.shape == (0, DIMENSION)
    assert SPACE.whitening.shape == (0, 0)


def test_landmarks_of_a_probe_that_is_stacked_by_domain_cover_every_domain():
    domains = np.repeat(np.arange(4), 1000)
    rows = np.random.default_rng(0).normal(size=(4000, DIMENSION)) + 100 * domains[:, None]
    landmarks = np.asarray(made_space(probe=rows).landmarks)
    assert len(landmarks) == PROBE_LANDMARKS
    counts = np.bincount(np.rint(landmarks.mean(axis=1) / 100).astype(int), minlength=4)
    assert (np.abs(counts - PROBE_LANDMARKS / 4) < 60).all()
    assert {tuple(row) for row in landmarks.tolist()} <= {
        tuple(row) for row in rows.astype(np.float32).tolist()
    }


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"name": 3}, TypeError, "name: expected a string, got a int"),
        ({"name": " "}, ValueError, "name: expected a non-empty string"),
        ({"kernel": "gaussian"}, TypeError, "kernel: expected a kernel"),
        ({"kernel": js.Gaussian(bandwidth=np.ones(1))}, ValueError, "kernel.bandwidth: expected a"),
        ({"dimension": 0}, ValueError, "dimension: expected at least 1, got 0"),
        ({"dimension": 2.5}, TypeError, "dimension: expected an integer"),
        ({"probe": PROBE[:, :3]}, ValueError, "probe: expected 6 columns"),
        ({"probe": PROBE[0]}, ValueError, r"probe: expected shape \(n, d\)"),
        ({"probe": PROBE * np.nan}, ValueError, "probe: expected finite"),
        ({"probe": np.ma.masked_greater(PROBE, 0)}, (TypeError, ValueError), "probe: .*mask"),
    ],
)
def test_bad_input_is_named(changes, error, message):
    with pytest.raises(error, match=message):
        made_space(**changes)


@pytest.mark.parametrize("what", ["kernel's form", "bandwidth", "probe", "no probe"])
def test_a_space_of_one_name_but_another_digest_is_refused_with_the_cause(what):
    field = FIELD.get(what, "probe")
    other = made_space(**{field: CHANGED[what]})
    spec = dataclasses.replace(
        made_specification(0), space_name=other.name, space_digest=other.digest
    )
    cause = f"{other.digest}.* and not .*{made_space().digest}.*kernel, its bandwidth.*probe differ"
    with pytest.raises(ValueError, match=f"'m0'.*'a space'.*{cause}"):
        js.Market(made_space(), {"m0": spec})


def test_a_space_of_another_name_is_refused_and_both_are_named():
    other = made_space()
    with pytest.raises(ValueError, match="'m0': its space is 'made-features', but .*'a space'"):
        js.Market(other, {"m0": made_specification(0)})
    with pytest.raises(ValueError, match="'m1': its space is 'made-features', but .*'a space'"):
        js.Market(other).add({"m1": made_specification(0)})
    market = js.Market(SPACE, {"m0": made_specification(0)})
    with pytest.raises(ValueError, match="user: its space is 'a space', but .*'made-features'"):
        js.match(market, made_user(0, space=other))


def test_the_repr_is_short_and_holds_no_numbers_of_the_probe():
    text = repr(made_space())
    assert "'a space'" in text
    assert "Gaussian" in text
    assert "a probe of 40 rows" in text
    assert len(text) < 120
    assert "no probe" in repr(SPACE)
