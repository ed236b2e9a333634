"""The rival solvers and optimisers solve the problems that they are compared on."""

import jax
import numpy as np
import pytest

from benchmarks.speed import optimisers, proxy_solvers
from benchmarks.speed.specification_cases import mixture, overlapping_classes, relative_error

RIDGE = 1e-3


@pytest.fixture(scope="module")
def classes():
    return overlapping_classes(300, 12, 4)


@pytest.mark.parametrize("name", proxy_solvers.SOLVERS)
def test_every_solver_reaches_the_optimum(name, classes):
    features, labels = classes
    problem = proxy_solvers.problem_of(features, labels, 4, RIDGE)
    v, norm, steps = jax.jit(proxy_solvers.SOLVERS[name])(problem)
    assert norm <= proxy_solvers.TOLERANCE
    assert steps >= 1
    centred = features - features.mean(axis=0)
    unit = np.sqrt(np.square(centred).mean())
    weights, bias = np.asarray(v)[:, :-1].T / unit, np.asarray(v)[:, -1]
    bias = bias - features.mean(axis=0) @ weights
    own = proxy_solvers.gradient_norm(features, labels, weights, bias, ridge=RIDGE)
    assert own <= 2 * proxy_solvers.TOLERANCE
    expected, _ = proxy_solvers.logistic(features, labels, ridge=RIDGE, tolerance=1e-8)
    expected = expected - expected.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(weights - weights.mean(axis=1, keepdims=True), expected, atol=5e-3)


def test_gradient_of_the_reduced_set_objective_is_that_of_autodiff():
    rows = mixture(200, 6)
    rows -= rows.mean(axis=0)
    found = optimisers.evaluate(rows[:8], rows, 1.5)
    expected = jax.grad(lambda points: optimisers.evaluate(points, rows, 1.5).value)(rows[:8])
    np.testing.assert_allclose(found.gradient, expected, atol=1e-6)


@pytest.mark.parametrize("name", optimisers.RIVALS)
def test_every_optimiser_lowers_the_error(name):
    rows = mixture(300, 6)
    rows -= rows.mean(axis=0)
    error = relative_error(rows, 1.5)

    def objective(points):
        return optimisers.evaluate(points, rows, 1.5)

    # The undamped steps of the particles are only safe for a single one.
    points = rows[: 1 if "undamped" in name else 10]
    start = objective(points)
    found = jax.jit(lambda points: optimisers.RIVALS[name](objective(points), objective))(points)
    before, after = (error(one.points, one.weights) for one in (start, found))
    assert after < 0.9 * before


def test_relative_error_is_that_of_dense_gram_matrices():
    rng = np.random.default_rng(0)
    rows, points, weights = (
        rng.normal(size=(1200, 3)) + 5,
        rng.normal(size=(4, 3)) + 5,
        rng.random(4),
    )

    def gram(x, y):
        return np.exp(-0.5 * np.square(x[:, None] - y[None]).sum(axis=2))

    norm = gram(rows, rows).mean()
    squared = norm - 2 * gram(rows, points).mean(axis=0) @ weights
    squared += weights @ gram(points, points) @ weights
    assert relative_error(rows, 1.0)(points, weights) == pytest.approx(squared / norm, rel=1e-9)
