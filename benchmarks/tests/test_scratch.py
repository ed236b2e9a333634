"""The study's convolutional nets on a small made task: bright and dark halves of a picture."""

import dataclasses

import jax
import numpy as np
import pytest

from benchmarks.studies import scratch
from jaxspec.applications.heads import direct_truth
from jaxspec.applications.scenario import Developer, LabelSpace, MarketDraw, User

NAMES = ("top", "bottom", "middle")
COUNT = 96


def made_images(count, seed):
    """Noise with one bright third, and the third as a label."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 60, (count, 28, 28, 3), np.uint8)
    labels = rng.integers(0, 3, count)
    for image, label in zip(images, labels, strict=True):
        top = (0, 19, 9)[label]
        image[top : top + 9] += 150
    return images, labels


@pytest.fixture(scope="module")
def images():
    return made_images(3 * COUNT, 0)[0]


@pytest.fixture(scope="module")
def draw():
    """Two developers and two users; the second of each gives other names to the classes."""
    labels = made_images(3 * COUNT, 0)[1]
    rows = np.arange(3 * COUNT)
    spaces = (
        LabelSpace(NAMES, np.arange(3)),
        LabelSpace(("middle", "top", "floor"), np.array([1, 2, 0])),
    )
    developers = tuple(
        Developer(f"d {i}", 0, space, part := rows[i * COUNT : (i + 1) * COUNT], classes[part])
        for i, space in enumerate(spaces)
        for classes in [space.of_garment[labels]]
    )
    users = tuple(
        User(f"u {i}", 0, space, rows[own], classes[own], rows[rest], classes[rest])
        for i, space in enumerate(spaces)
        for classes in [space.of_garment[labels]]
        for own, rest in [(slice(-COUNT, -COUNT + 15), slice(-COUNT + 15, None))]
    )
    return MarketDraw(developers, users, (), rows[:0])


@pytest.fixture(scope="module")
def params(images, draw):
    return scratch.train_scratch(images, draw.developers, seed=3, epochs=10, batch_size=32)


def test_parameters_have_a_leading_axis_of_developers(params):
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(params))
    assert params["output"]["bias"].shape == (2, 3)


def test_progress_counts_the_models(images, draw):
    seen = []
    options = {"epochs": 1, "batch_size": 32, "progress": lambda *done: seen.append(done)}
    scratch.train_scratch(images, draw.developers, **options)
    assert seen == [(1, 2), (2, 2)]


def test_training_repeats_under_its_seed_and_changes_with_it(images, draw):
    first, again, other = (
        scratch.train_scratch(images, draw.developers, seed=seed, epochs=1, batch_size=32)
        for seed in (5, 5, 6)
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first["output"]["kernel"] != other["output"]["kernel"]).any()


def test_developers_with_other_numbers_of_classes_are_refused(images, draw):
    pair = Developer(
        "pair", 0, LabelSpace(("a", "b"), np.arange(2)), np.arange(4), np.arange(4) % 2
    )
    with pytest.raises(ValueError, match=r"one number of classes, got \[2, 3\]"):
        scratch.train_scratch(images, [*draw.developers, pair])


def test_a_separable_task_is_learned(params):
    fresh, labels = made_images(200, 1)
    probabilities = scratch.predict_scratch(params, 0, fresh)
    assert probabilities.shape == (200, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert (probabilities.argmax(axis=1) == labels).mean() > 0.95


def test_prediction_depends_on_no_other_picture_and_compiles_once(params, compile_counter):
    fresh, _ = made_images(scratch.CHUNK + 3, 2)
    whole = scratch.predict_scratch(params, 0, fresh)
    with compile_counter() as counter:
        parts = [scratch.predict_scratch(params, 0, part) for part in (fresh[:1], fresh[1:])]
        assert scratch.predict_scratch(params, 1, fresh[:0]).shape == (0, 3)
    assert counter.count == 0
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)


def test_augmentation_keeps_pictures_with_their_labels():
    labels = np.arange(60)
    flat = np.broadcast_to(labels[:, None, None, None], (60, 28, 28, 3)).astype(np.uint8)
    shown, named = scratch._augmented(jax.random.key(0), flat, labels)
    np.testing.assert_array_equal(np.sort(named), labels)
    assert (np.asarray(shown) == np.asarray(named)[:, None, None, None]).all()


def test_augmentation_shifts_and_mirrors():
    column = np.zeros((200, 28, 28, 3), np.uint8)
    column[:, 11, 5] = 255
    shown, _ = scratch._augmented(jax.random.key(1), column, np.zeros(200, int))
    _, rows, columns = np.nonzero(np.asarray(shown)[..., 0])
    shifts = range(-scratch.SHIFT, scratch.SHIFT + 1)
    assert set(rows.tolist()) == {11 + s for s in shifts}
    assert set(columns.tolist()) == {5 + s for s in shifts} | {22 + s for s in shifts}


def test_truth_is_that_of_the_scenario(params, draw, images, monkeypatch):
    tests, brute = scratch.scratch_truth(params, draw, images)
    monkeypatch.setattr("jaxspec.applications.heads.predict", scratch.predict_scratch)
    expected, expected_brute = direct_truth(params, draw, images)
    for hits, other in zip(tests, expected, strict=True):
        np.testing.assert_array_equal(hits, other)
    np.testing.assert_allclose(brute, expected_brute)


def test_output_columns_are_kept_by_name():
    rng = np.random.default_rng(0)
    output = {"kernel": rng.normal(size=(7, 3)), "bias": rng.normal(size=3)}
    own = scratch._output_for(output, NAMES, ("middle", "floor", "top", "attic"))
    np.testing.assert_allclose(own["kernel"][:, [0, 2]], output["kernel"][:, [2, 0]], rtol=1e-6)
    np.testing.assert_allclose(own["bias"], [output["bias"][2], 0, output["bias"][0], 0], rtol=1e-6)
    assert (own["kernel"][:, [1, 3]] == 0).all()


def test_without_steps_fine_tuning_is_direct_use_of_a_full_match(params, draw, images):
    hits = scratch.scratch_fine_tuning(params, draw.developers, draw.users, images, steps=0)
    direct, _ = scratch.scratch_truth(params, draw, images)
    for i in range(2):
        np.testing.assert_array_equal(hits[i][i], direct[i][i])


def test_fine_tuning_learns_classes_that_no_net_has(params, draw, images):
    before = params["convolution_0"]["kernel"].copy()
    space = LabelSpace(("roof", "floor", "wall"), np.arange(3))
    stranger = dataclasses.replace(draw.users[0], space=space)
    (start,), (tuned,) = (
        scratch.scratch_fine_tuning(params, draw.developers, [stranger], images, **options)
        for options in ({"steps": 0}, {"steps": 30})
    )
    assert tuned.shape == (2, COUNT - 15)
    assert start.mean() < 0.6  # all logits are zero: always the first class
    assert tuned.mean(axis=1).min() > 0.9
    np.testing.assert_array_equal(params["convolution_0"]["kernel"], before)
