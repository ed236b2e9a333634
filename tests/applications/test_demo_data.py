"""The embedded demo data: what their file holds."""

from __future__ import annotations

import dataclasses
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from jaxspec.applications.demo_data import load_fashion_contexts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data():
    return load_fashion_contexts()


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
