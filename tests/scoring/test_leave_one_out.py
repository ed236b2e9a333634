"""The closed form of leaving every example out, and what does not raise it."""

import jax
import numpy as np
import scoring_oracles as oracles

from jaxspec.scoring import UserArrays
from jaxspec.scoring.leave_one_out import explained, inverse


def users_of(points, labels, classes):
    n = len(labels)
    return UserArrays(
        points=points[None],
        weights=np.full((1, n), 1 / n),
        labels=labels[None],
        counts=np.array([n]),
        examples=np.array([float(n)]),
        class_vectors=np.zeros((1, classes, points.shape[1])),
        class_mask=np.ones((1, classes), bool),
        class_numbers=np.zeros((1, classes), int),
        by_name=np.zeros(1, bool),
    )


def test_inverse_equals_numpy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 3, 9, 12))
    matrix = (x @ x.swapaxes(-1, -2) / 12 + 0.3 * np.eye(9)).astype(np.float32)
    np.testing.assert_allclose(inverse(matrix), np.linalg.inv(matrix), atol=2e-4)


def test_the_closed_form_equals_solving_without_each_example():
    rng = np.random.default_rng(1)
    labels = np.arange(20) % 3
    for ridge in (0.1, 0.3, 2.0):
        inputs = rng.normal(size=(4, 6, 20)) + np.eye(6, 3)[:, labels]
        users = users_of(np.zeros((20, 2)), labels, 3)
        found = explained(inputs[:, None].astype(np.float32), users, ridge)[:, 0]
        want = [oracles.explained(one.T, labels, 3, ridge) for one in inputs]
        np.testing.assert_allclose(found, want, atol=2e-5)


def test_inputs_that_never_change_explain_less_than_nothing_and_have_finite_derivatives():
    labels = np.arange(12) % 3
    users = users_of(np.zeros((12, 2)), labels, 3)
    inputs = np.zeros((1, 1, 3, 12), np.float32)
    found, slope = jax.value_and_grad(lambda x: explained(x, users, 0.3).sum())(inputs)
    want = 1 - (12 / 11) ** 2  # the mean of the others, eleven twelfths of the distance away
    np.testing.assert_allclose(found, want, atol=1e-5)
    assert np.isfinite(slope).all()


def test_further_random_outputs_do_not_help_on_average():
    """In 64 dimensions, as real features have; in very few, random outputs are a basis."""
    rng = np.random.default_rng(0)
    lifts = []
    run = jax.jit(explained, static_argnums=2)
    for _ in range(40):
        centres = rng.normal(size=(5, 64))
        labels = np.arange(50) % 5
        points = centres[labels] + 2 * rng.normal(size=(50, 64))
        own = centres[rng.permutation(5)] + 2 * rng.normal(size=(5, 64))  # a related model
        more = rng.normal(size=(5, 64)) * own.std()
        users = users_of(points, labels, 5)

        def score(vectors, users=users, points=points):
            logits = (vectors @ points.T)[None, None].astype(np.float32)
            logits -= logits.mean(axis=2, keepdims=True)
            return float(run(logits, users, 0.3)[0, 0])

        lifts.append(score(np.concatenate([own, more])) - score(own))
    assert np.mean(lifts) < 0.005
