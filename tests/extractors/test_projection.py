"""Projections against the singular value decomposition in float64."""

import jax
import numpy as np
import pytest

from jaxspec.extractors import center_and_project


def correlated(n=200, d=12, seed=0):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d, d)) * np.geomspace(1, 0.01, d)
    return (rng.normal(size=(n, d)) @ mixing.T + rng.normal(size=d)).astype(np.float32)


@pytest.mark.parametrize("shape", [(200, 12), (5, 12), (5000, 7)])
def test_projection_agrees_with_the_svd(shape):
    rows = correlated(*shape)
    kept = min(shape[0] - 1, shape[1], 4)
    projection = center_and_project(rows, components=kept)
    exact = rows.astype(np.float64)
    left, singular, _ = np.linalg.svd(exact - exact.mean(axis=0), full_matrices=False)
    scores = left[:, :kept] * singular[:kept]
    scores /= np.sqrt(np.mean(np.sum(scores**2, axis=1)))
    scores *= np.sign(np.sum(scores * projection.apply(rows), axis=0))
    np.testing.assert_allclose(projection.apply(rows), scores, atol=2e-5)


def test_projected_features_have_mean_zero_and_mean_squared_norm_one():
    rows = correlated()
    projected = center_and_project(rows, components=5).apply(rows)
    np.testing.assert_allclose(projected.mean(axis=0), 0, atol=1e-6)
    assert np.mean(np.sum(projected**2, axis=1)) == pytest.approx(1, rel=1e-5)


def test_directions_are_orthonormal_and_ordered_by_variance():
    rows = correlated()
    projection = center_and_project(rows, components=12)
    np.testing.assert_allclose(
        projection.directions.T @ projection.directions, np.eye(12), atol=1e-9
    )
    assert (np.diff(projection.apply(rows).var(axis=0)) <= 0).all()


def test_the_largest_entry_of_every_direction_is_positive():
    directions = center_and_project(correlated(), components=12).directions
    assert (directions.max(axis=0) == np.abs(directions).max(axis=0)).all()


def test_a_full_projection_keeps_the_proportions_of_distances():
    rows = correlated()
    projection = center_and_project(rows, components=12)
    before = np.linalg.norm(rows[:100] - rows[100:], axis=1)
    projected = projection(rows)
    after = np.linalg.norm(projected[:100] - projected[100:], axis=1)
    np.testing.assert_allclose(after / before, projection.scale, rtol=1e-4)


def test_projection_ignores_the_order_and_the_offset_of_its_rows():
    rows = correlated()
    projection = center_and_project(rows, components=3)
    shuffled = np.random.default_rng(1).permutation(rows)
    np.testing.assert_allclose(
        center_and_project(shuffled, components=3).apply(rows),
        projection.apply(rows),
        atol=1e-6,
    )
    moved = rows + np.float32(64)
    np.testing.assert_allclose(
        center_and_project(moved, components=3).apply(moved),
        projection.apply(rows),
        atol=2e-5,
    )


def test_projection_applies_to_rows_it_was_not_fitted_on():
    projection = center_and_project(correlated(), components=3)
    fresh = correlated(seed=5)
    expected = projection.scale * (fresh.astype(np.float64) - projection.origin)
    projected = projection.apply(fresh)
    assert projected.dtype == np.float32
    np.testing.assert_allclose(projected, expected @ projection.directions, atol=1e-6)


def test_more_components_than_the_features_span_are_refused():
    with pytest.raises(ValueError, match=r"components: expected at most 4, .*\(5, 12\).* got 5"):
        center_and_project(correlated(5, 12), components=5)
    doubled = np.repeat(correlated(50, 3), 2, axis=1)
    with pytest.raises(ValueError, match="components: expected at most 3"):
        center_and_project(doubled, components=4)
    with pytest.raises(ValueError, match="components: expected at most 0"):
        center_and_project(np.full((1000, 6), 0.1), components=1)


@pytest.mark.parametrize(
    ("rows", "components", "error", "message"),
    [
        ([1.0, 2.0], 1, ValueError, "features: expected"),
        (np.zeros((0, 3)), 1, ValueError, "features: expected"),
        ([[1.0, np.nan], [1.0, 2.0]], 1, ValueError, "features: expected finite"),
        ([["a"]], 1, TypeError, "features: expected"),
        ([[1.0, 2.0], [2.0, 1.0]], 0, ValueError, "components: expected at least 1"),
        ([[1.0, 2.0], [2.0, 1.0]], 1.0, TypeError, "components: expected an integer"),
    ],
)
def test_bad_features_are_refused_by_name(rows, components, error, message):
    with pytest.raises(error, match=message):
        center_and_project(rows, components=components)


def test_projection_refuses_features_of_another_space():
    projection = center_and_project(correlated(), components=3)
    with pytest.raises(ValueError, match="features: expected 12 columns"):
        projection.apply(np.zeros((4, 11)))


def test_projections_go_through_transformations():
    """A pipeline may have the projection inside its jitted function."""
    rows = np.random.default_rng(0).normal(size=(30, 7)).astype(np.float32) + 5
    projection = center_and_project(rows, components=3)
    want = projection.apply(rows)
    assert type(want) is np.ndarray
    np.testing.assert_allclose(jax.jit(projection.apply)(rows), want, atol=1e-5)
    both = jax.vmap(projection.apply)(np.stack([rows, 2 * rows]))
    np.testing.assert_allclose(both[1], projection.apply(2 * rows), atol=1e-5)
    slope = jax.grad(lambda z: projection.apply(z).sum())(rows)
    oracle = projection.scale * projection.directions.sum(axis=1)
    np.testing.assert_allclose(slope, np.broadcast_to(oracle, rows.shape), atol=1e-6)


def angle_in_degrees(a, b):
    """Largest principal angle between the column spaces of a and b."""
    cosines = np.linalg.svd(np.linalg.qr(a)[0].T @ np.linalg.qr(b)[0], compute_uv=False)
    return np.degrees(np.arccos(np.clip(cosines.min(), -1, 1)))


@pytest.mark.parametrize("offset", [4.5e6, 1.7e9])
def test_large_offsets_in_float64_do_not_turn_the_projection(offset):
    """Map coordinates in metres and unix times in seconds, with a spread of 0.5."""
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(400, 3)) @ np.array([[0.5, 0.2, 0], [0, 0.3, 0.1], [0, 0, 0.1]])
    rows = spread + offset
    exact = rows - rows.mean(axis=0)  # of the same stored numbers, in float64
    oracle = np.linalg.svd(exact, full_matrices=False)[2].T
    projection = center_and_project(rows, components=2)
    for k in (1, 2):
        assert angle_in_degrees(projection.directions[:, :k], oracle[:, :k]) < 0.01
    expected = projection.scale * exact @ projection.directions
    np.testing.assert_allclose(projection.apply(rows), expected, atol=1e-5)
    scale = np.sqrt(np.mean(np.sum((exact @ oracle[:, :2]) ** 2, axis=1)))
    assert projection.scale == pytest.approx(1 / scale, rel=1e-6)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_integers_that_float32_cannot_hold_are_projected_exactly(dtype):
    steps = np.random.default_rng(0).integers(-5, 6, size=(300, 2))
    rows = (steps + 1_700_000_000).astype(dtype)
    near, far = center_and_project(steps, components=2), center_and_project(rows, components=2)
    np.testing.assert_allclose(far.apply(rows), near.apply(steps), atol=1e-5)


def test_the_traced_projection_keeps_the_differences_of_float32_features_far_from_zero():
    rows = (4.5e6 + np.random.default_rng(0).normal(size=(100, 3)) * 20).astype(np.float32)
    projection = center_and_project(rows, components=3)
    np.testing.assert_allclose(jax.jit(projection.apply)(rows), projection.apply(rows), atol=1e-5)


def test_rows_are_projected_alike_in_one_block_and_in_many(monkeypatch):
    from jaxspec.extractors import projection as module

    rows = correlated(1000, 6)
    together = center_and_project(rows, components=3)
    monkeypatch.setattr(module, "BLOCK_ROWS", 7)
    apart = center_and_project(rows, components=3)
    np.testing.assert_allclose(apart.directions, together.directions, atol=1e-9)
    np.testing.assert_allclose(apart.apply(rows), together.apply(rows), atol=1e-6)


def test_masked_features_are_refused_by_name():
    rows = np.ma.masked_greater(correlated(), 1.5)
    projection = center_and_project(correlated(), components=3)
    for call in (projection.apply, lambda z: center_and_project(z, components=3)):
        with pytest.raises(ValueError, match="features: .* masked array"):
            call(rows)
