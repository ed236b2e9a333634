"""The scores that the studies compare, on a made market of two learnwares with probe proxies."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.special import softmax

import jaxspec as js
from benchmarks.studies import rankings
from benchmarks.studies.probe import Variant, specify_variant
from benchmarks.studies.study_data import SPACE

NAMES, DIMENSION, PROBE = ("left", "right"), 4, 40


def examples(count, seed):
    """Two clusters and which of them a row is of."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    features = rng.normal(size=(count, DIMENSION)) + 3.0 * labels[:, None]
    return features.astype(np.float32), labels


def outputs_of(features, sign):
    """Probabilities of a model that is right (1) or always wrong (-1)."""
    margin = sign * (features.mean(axis=1) - 1.5)
    return softmax(np.stack([-margin, margin], axis=1), axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def made():
    """A space with a probe, specifications of a right and a wrong model, and a user."""
    probe = examples(PROBE, 0)[0]
    kernel = js.Gaussian(bandwidth=2.0)
    bare_space = js.Space(SPACE, kernel, dimension=DIMENSION)
    own = examples(30, 1)
    bare = js.specify_many(bare_space, [own[0]] * 2, [own[1]] * 2, class_names=[NAMES] * 2, size=5)
    signs = (1.0, -1.0)
    space, specifications = specify_variant(
        Variant("made", size=PROBE, probe=PROBE),
        bare_space,
        bare,
        probe,
        [outputs_of(probe, sign) for sign in signs],
        [(own[0], outputs_of(own[0], sign)) for sign in signs],
    )
    user = js.specify_user(space, *examples(20, 2), class_names=NAMES)
    bare_user = js.specify_user(bare_space, *examples(20, 2), class_names=NAMES)
    market, bare_market = (
        js.Market(where, dict(zip("ab", specs, strict=True)))
        for where, specs in ((space, specifications), (bare_space, bare))
    )
    return space, specifications, market, bare_market, user, bare_user


def test_outputs_of_probe_proxies_are_those_of_a_dense_nystroem_map(made):
    space, specifications, *_, user, _ = made
    points = np.asarray(user.reduced_set.points, np.float64)
    landmarks = np.asarray(space.landmarks, np.float64)

    def values(x):
        return np.exp(-cdist(x, landmarks, "sqeuclidean") / (2 * 2.0**2))

    lifted = values(points) @ np.asarray(space.whitening, np.float64)
    found = rankings.probe_outputs(space, specifications, [user])
    assert found.shape == (1, 2, len(points), 2)
    for own, spec in zip(found[0], specifications, strict=True):
        proxy = spec.probe_proxy
        logits = lifted @ np.asarray(proxy.weights) + np.asarray(proxy.bias)
        np.testing.assert_allclose(own, softmax(logits, axis=1), atol=1e-4)


@pytest.mark.slow
def test_the_right_model_is_best_by_every_score_that_sees_outputs(made):
    space, specifications, market, bare, user, bare_user = made
    keep = np.ones((1, 2), bool)
    scores = rankings.own_scores(market, bare, [user], [bare_user], "direct", keep)
    assert scores["jaxspec"][0, 0] > scores["jaxspec"][0, 1]
    shown = rankings.probe_outputs(space, specifications, [user])
    labels = np.asarray(user.labels)
    right = (shown[0].argmax(axis=-1) == labels).mean(axis=-1)
    assert right[0] > 0.9
    assert right[1] < 0.1


@pytest.mark.slow
def test_learnwares_that_are_not_kept_have_no_score(made):
    *_, market, bare, user, bare_user = made
    keep = np.array([[False, True]])
    scores = rankings.own_scores(market, bare, [user], [bare_user], "direct", keep)
    assert all(np.isneginf(one[0, 0]) for name, one in scores.items() if name != "random")
    assert all(np.isfinite(one[0, 1]) for one in scores.values())
