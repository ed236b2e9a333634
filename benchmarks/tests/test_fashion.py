"""Fashion-MNIST in contexts: rendering, dealing to contexts, projection of the features."""

import numpy as np
import pytest

pytest.importorskip("PIL")

from benchmarks.datasets import fashion
from benchmarks.datasets.fashion_contexts import CONTEXT_NAMES, render
from benchmarks.datasets.features import principal_projection, thumbnail


def _picture(seed=0):
    """Return a made garment: bright cloth with a pattern, wider at the top, without symmetry."""
    picture = np.zeros((28, 28), np.uint8)
    picture[3:25, 8:20] = np.random.default_rng(seed).integers(90, 255, (22, 12))
    picture[4:9, 3:22] = 200
    return picture


def test_rendering_is_deterministic():
    for index in (0, 69_999):
        for context in CONTEXT_NAMES:
            first = render(_picture(), context, index)
            assert first.shape == (96, 96, 3)
            assert first.dtype == np.uint8
            np.testing.assert_array_equal(first, render(_picture(), context, index))
            small = thumbnail(first)
            assert small.shape == (28, 28, 3)
            assert abs(small.mean() - first.mean()) < 2  # an average by area keeps the mean


def test_rendered_contexts_differ_from_each_other():
    looks = [render(_picture(), name, 5).astype(float) for name in CONTEXT_NAMES]
    for i, first in enumerate(looks):
        for second in looks[:i]:
            assert np.abs(first - second).mean() > 3


def test_exact_contexts_are_what_they_say():
    upright = render(_picture(), "upright", 0)
    np.testing.assert_array_equal(render(_picture(), "inverted", 0), 255 - upright)
    np.testing.assert_array_equal(render(_picture(), "upside down", 0), upright[::-1, ::-1])
    blocks = render(_picture(), "pixelated", 0).reshape(16, 6, 16, 6, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()


def test_random_contexts_vary_with_the_picture_and_the_seed():
    for context in ("textured", "noisy", "tinted", "small"):
        looks = [
            render(_picture(), context, index, seed=seed)
            for index, seed in ((1, 7), (2, 7), (1, 8))
        ]
        assert (looks[0] != looks[1]).any()
        assert (looks[0] != looks[2]).any()


def test_every_picture_gets_one_context_and_classes_spread_evenly():
    labels = np.random.default_rng(0).integers(0, 10, 5_003)
    contexts = fashion.assign_contexts(labels)
    np.testing.assert_array_equal(contexts, fashion.assign_contexts(labels))
    assert (contexts != fashion.assign_contexts(labels, seed=1)).any()
    assert np.ptp(np.bincount(contexts, minlength=11)) <= 1
    for label in range(10):
        assert np.ptp(np.bincount(contexts[labels == label], minlength=11)) <= 1


def test_reading_a_folder_without_the_pictures_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        fashion.read_pictures(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"benchmarks\.datasets\.fashion"):
        fashion.load_cache(tmp_path)


def test_principal_projection_keeps_distances_and_sets_the_scale():
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(500, 80)) * np.linspace(2, 0.1, 80) + 3).astype(np.float32)
    mean, directions = principal_projection(features, dimensions=80)
    projected = (features - mean).astype(np.float64) @ directions
    assert (projected[:, :64] ** 2).sum(1).mean() == pytest.approx(64, rel=1e-4)
    covariance = np.cov(projected.T)
    assert np.abs(covariance - np.diag(covariance.diagonal())).max() < 1e-3
    assert (np.diff(covariance.diagonal()) < 1e-6).all()
    before = np.linalg.norm(features[0] - features[1:].astype(np.float64), axis=1)
    after = np.linalg.norm(projected[0] - projected[1:], axis=1)
    np.testing.assert_allclose(after / before, (after / before)[0], rtol=1e-4)
