"""The embedded demo data, and the rendering and the packing that made them."""

from __future__ import annotations

import dataclasses
import importlib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from jaxspec.applications.demo_data import load_fashion_contexts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data():
    return load_fashion_contexts()


@pytest.fixture
def fashion(monkeypatch):
    """The study's module, where the benchmarks and what they draw with are at hand."""
    pytest.importorskip("scipy")
    pytest.importorskip("PIL")
    return _benchmark(monkeypatch, "fashion")


@pytest.fixture
def packing(monkeypatch):
    return _benchmark(monkeypatch, "build_demo_data")


def _benchmark(monkeypatch, name):
    if not (ROOT / "benchmarks" / f"{name}.py").exists():
        pytest.skip("the benchmarks are not part of an installed package")
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module(f"benchmarks.{name}")


def _picture(seed=0):
    """A made-up garment: bright cloth with a pattern, wider at the top, and no symmetry."""
    picture = np.zeros((28, 28), np.uint8)
    picture[3:25, 8:20] = np.random.default_rng(seed).integers(90, 255, (22, 12))
    picture[4:9, 3:22] = 200
    return picture


# The file -----------------------------------------------------------------------------------


def test_shapes_and_types_agree(data):
    rows, images = len(data.labels), len(data.thumbnails)
    assert data.features.shape == (rows, 256)
    assert data.features.dtype == np.float32
    assert data.labels.shape == data.contexts.shape == (rows,)
    assert data.labels.dtype == data.contexts.dtype == np.uint8
    assert data.thumbnails.shape == (images, 28, 28, 3)
    assert data.thumbnails.dtype == np.uint8
    assert data.thumbnail_index.shape == (images,)
    assert np.issubdtype(data.thumbnail_index.dtype, np.integer)


def test_names_are_distinct_plain_strings(data):
    for names, count in ((data.class_names, 10), (data.context_names, 11)):
        assert isinstance(names, tuple)
        assert len(set(names)) == len(names) == count
        assert all(type(name) is str and name for name in names)


def test_every_context_has_every_class_equally_often(data):
    cells = data.contexts.astype(int) * len(data.class_names) + data.labels
    counts = np.bincount(cells, minlength=110)
    assert counts.shape == (110,)
    assert counts.min() == counts.max() >= 200


def test_features_are_finite_and_in_proportion(data):
    assert np.isfinite(data.features).all()
    norms = (data.features[:, :64].astype(np.float64) ** 2).sum(1)
    assert 55 < norms.mean() < 75
    variance = data.features.astype(np.float64).var(0)
    assert variance.min() > 0
    assert variance[:64].min() > 0.8 * variance[64:].max()  # by falling variance


def test_no_picture_occurs_twice(data):
    assert len(np.unique(data.features, axis=0)) == len(data.features)


def test_a_thumbnail_shows_every_class_in_every_context(data):
    assert (np.diff(data.thumbnail_index) > 0).all()
    assert data.thumbnail_index[0] >= 0
    assert data.thumbnail_index[-1] < len(data.labels)
    shown = {(data.contexts[i], data.labels[i]) for i in data.thumbnail_index}
    assert len(shown) == 110
    assert (np.bincount(data.contexts[data.thumbnail_index], minlength=11) >= 60).all()
    assert (data.thumbnails.reshape(len(data.thumbnails), -1).std(1) > 0).all()


def test_thumbnails_belong_to_their_rows(data):
    """Inverted pictures are bright at the rim, upright ones black; only tints have colour."""
    look = data.contexts[data.thumbnail_index]
    images = data.thumbnails.astype(float)
    corner = images[:, :2, :2].mean((1, 2, 3))
    colour = np.ptp(images, axis=-1).mean((1, 2))
    name = data.context_names.index
    assert np.median(corner[look == name("inverted")]) > 200
    assert np.median(corner[look == name("upright")]) < 20
    coloured = np.isin(look, [name("tinted"), name("textured")])
    assert colour[coloured].min() > 10
    assert colour[~coloured].max() == 0


def test_contexts_truly_differ(data):
    """The distance of any two contexts' means stands far above what chance gives."""
    halves, means = [], []
    for context in range(len(data.context_names)):
        features = data.features[data.contexts == context, :64]
        means.append(features.mean(0))
        halves.append(np.linalg.norm(features[::2].mean(0) - features[1::2].mean(0)))
    means = np.stack(means)
    apart = np.linalg.norm(means[:, None] - means[None], axis=-1)
    assert apart[~np.eye(len(means), dtype=bool)].min() > 2 * max(halves)


def test_a_model_loses_accuracy_outside_its_context(data):
    """Ridge regression on 64 features: useful at home, worse in every other context."""
    home = data.context_names.index("upright")
    rows = np.flatnonzero(data.contexts == home)
    lift = np.c_[data.features[:, :64], np.ones(len(data.features))].astype(np.float64)
    trained, held_out = rows[:1500], rows[1500:]
    targets = np.eye(10)[data.labels[trained]]
    gram = lift[trained].T @ lift[trained] + 10 * np.eye(65)
    weights = np.linalg.solve(gram, lift[trained].T @ targets)
    correct = (lift @ weights).argmax(1) == data.labels
    accuracy = correct[held_out].mean()
    assert accuracy > 0.7
    others = [correct[data.contexts == k].mean() for k in range(11) if k != home]
    assert max(others) < accuracy - 0.03
    assert min(others) < 0.6


def test_the_folder_stays_under_ten_megabytes():
    folder = resources.files("jaxspec.data")
    files = [entry for entry in folder.iterdir() if entry.is_file()]
    assert sum(len(entry.read_bytes()) for entry in files) < 10e6
    assert {"README.md", "fashion_contexts.npz"} <= {entry.name for entry in files}


def test_loading_gives_fresh_arrays_in_a_frozen_record(data):
    again = load_fashion_contexts()
    again.features[0] = 0
    assert data.features[0].any()
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.labels = again.labels


# Rendering ----------------------------------------------------------------------------------


def test_rendering_is_deterministic(fashion):
    for index in (0, 69_999):
        for context in fashion.CONTEXT_NAMES:
            first = fashion.render(_picture(), context, index)
            assert first.shape == (96, 96, 3)
            assert first.dtype == np.uint8
            np.testing.assert_array_equal(first, fashion.render(_picture(), context, index))
            small = fashion.thumbnail(first)
            assert small.shape == (28, 28, 3)
            assert abs(small.mean() - first.mean()) < 2  # an average by area keeps the mean


def test_rendered_contexts_differ_from_each_other(fashion):
    looks = [fashion.render(_picture(), name, 5).astype(float) for name in fashion.CONTEXT_NAMES]
    for i, first in enumerate(looks):
        for second in looks[:i]:
            assert np.abs(first - second).mean() > 3


def test_exact_contexts_are_what_they_say(fashion):
    upright = fashion.render(_picture(), "upright", 0)
    np.testing.assert_array_equal(fashion.render(_picture(), "inverted", 0), 255 - upright)
    np.testing.assert_array_equal(fashion.render(_picture(), "upside down", 0), upright[::-1, ::-1])
    blocks = fashion.render(_picture(), "pixelated", 0).reshape(16, 6, 16, 6, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()


def test_random_contexts_vary_with_the_picture_and_the_seed(fashion):
    for context in ("textured", "noisy", "tinted", "small"):
        looks = [
            fashion.render(_picture(), context, index, seed=seed)
            for index, seed in ((1, 7), (2, 7), (1, 8))
        ]
        assert (looks[0] != looks[1]).any()
        assert (looks[0] != looks[2]).any()


def test_every_picture_gets_one_context_and_classes_spread_evenly(fashion):
    labels = np.random.default_rng(0).integers(0, 10, 5_003)
    contexts = fashion.assign_contexts(labels)
    np.testing.assert_array_equal(contexts, fashion.assign_contexts(labels))
    assert (contexts != fashion.assign_contexts(labels, seed=1)).any()
    assert np.ptp(np.bincount(contexts, minlength=11)) <= 1
    for label in range(10):
        assert np.ptp(np.bincount(contexts[labels == label], minlength=11)) <= 1


def test_reading_a_folder_without_the_pictures_is_refused(fashion, tmp_path):
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        fashion.read_pictures(tmp_path)
    with pytest.raises(FileNotFoundError, match="benchmarks.fashion"):
        fashion.load_cache(tmp_path)


def test_principal_projection_keeps_distances_and_sets_the_scale(fashion):
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(500, 80)) * np.linspace(2, 0.1, 80) + 3).astype(np.float32)
    mean, directions = fashion.principal_projection(features, dimensions=80)
    projected = (features - mean).astype(np.float64) @ directions
    assert (projected[:, :64] ** 2).sum(1).mean() == pytest.approx(64, rel=1e-4)
    covariance = np.cov(projected.T)
    assert np.abs(covariance - np.diag(covariance.diagonal())).max() < 1e-3
    assert (np.diff(covariance.diagonal()) < 1e-6).all()
    before = np.linalg.norm(features[0] - features[1:].astype(np.float64), axis=1)
    after = np.linalg.norm(projected[0] - projected[1:], axis=1)
    np.testing.assert_allclose(after / before, (after / before)[0], rtol=1e-4)


# Packing ------------------------------------------------------------------------------------


def test_eight_bits_are_off_by_half_a_step_at_most(packing):
    features = np.random.default_rng(0).normal(size=(300, 7)) * 10.0 ** np.arange(-3, 4)
    codes, scales = packing.quantise(features)
    assert codes.dtype == np.int8
    assert scales.dtype == np.float32
    assert (np.abs(codes * scales.astype(np.float64) - features) <= 0.5001 * scales).all()
    assert (np.abs(codes.astype(int)).max(0) == 127).all()


def test_the_packed_file_is_byte_identical_and_reads_back(packing, tmp_path):
    arrays = {"a": np.arange(6, dtype=np.int8).reshape(2, 3), "b": np.array(["x", "yz"])}
    for name in ("one.npz", "two.npz"):
        packing.write_npz(tmp_path / name, arrays)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with np.load(tmp_path / "one.npz", allow_pickle=False) as file:
        for name, array in arrays.items():
            np.testing.assert_array_equal(file[name], array)


def test_chosen_rows_are_balanced_distinct_and_refused_when_too_few(packing):
    rng = np.random.default_rng(0)
    labels, contexts = rng.integers(0, 3, 900), rng.integers(0, 2, 900)
    rows = packing.choose_rows(labels, contexts, 20, seed=1)
    assert len(np.unique(rows)) == len(rows) == 120
    cells = np.bincount(labels[rows] + 3 * contexts[rows])
    assert (cells == 20).all()
    with pytest.raises(ValueError, match="at least 500 pictures"):
        packing.choose_rows(labels, contexts, 500, seed=1)
