"""Probe proxies against a float64 oracle."""

import jax
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from jaxspec.kernels import Gaussian, whitening
from jaxspec.specify.probe_proxy import (
    MIN_PROBABILITY,
    PROBE_LANDMARKS,
    RIDGE,
    choose_landmarks,
    fit_probe_proxies,
    fit_probe_proxy,
)
from jaxspec.specify.proxy import fit_proxy

DIMENSION = 6
KERNEL = Gaussian(bandwidth=3.0)


def model(features):
    """Some nonlinear classifier of four classes; returns probabilities."""
    rng = np.random.default_rng(5)
    weights = rng.normal(size=(DIMENSION, 4))
    logits = np.tanh(np.asarray(features, np.float64) @ weights)
    powers = np.exp(2 * logits)
    return powers / powers.sum(axis=1, keepdims=True)


PROBE = np.random.default_rng(7).normal(size=(300, DIMENSION)).astype(np.float32) * 2


def oracle_lift(landmarks, x):
    scale = 2 * float(KERNEL.bandwidth) ** 2
    x, landmarks = np.asarray(x, np.float64), np.asarray(landmarks, np.float64)
    values, vectors = np.linalg.eigh(np.exp(-cdist(landmarks, landmarks, "sqeuclidean") / scale))
    values = np.maximum(values, 1e-6 * values[-1])
    white = vectors / np.sqrt(values) @ vectors.T
    return np.exp(-cdist(x, landmarks, "sqeuclidean") / scale) @ white


def fitted(probe, outputs, size=40):
    landmarks = choose_landmarks(probe, size)
    found = fit_probe_proxy(KERNEL, landmarks, whitening(KERNEL, landmarks), probe, outputs)
    return landmarks, found


def test_the_proxy_is_the_ridge_regression_of_the_log_probabilities():
    landmarks, found = fitted(PROBE, model(PROBE))
    lifted = oracle_lift(landmarks, PROBE)
    logits = np.log(np.maximum(model(PROBE), MIN_PROBABILITY))
    logits -= logits.mean(axis=1, keepdims=True)
    x, y = lifted - lifted.mean(axis=0), logits - logits.mean(axis=0)
    weights = np.linalg.solve(x.T @ x / len(x) + RIDGE * np.eye(40), x.T @ y / len(x))
    want = lifted @ weights + logits.mean(axis=0) - lifted.mean(axis=0) @ weights
    got = lifted @ np.asarray(found.weights) + found.bias
    np.testing.assert_allclose(got, want, atol=2e-3)
    assert float(found.fidelity) == pytest.approx(
        (want.argmax(axis=1) == logits.argmax(axis=1)).mean(), abs=0.02
    )
    np.testing.assert_allclose(np.sum(found.weights, axis=1), 0, atol=1e-3)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))


def test_the_proxy_follows_a_bent_model_off_the_probe_where_a_linear_one_cannot():
    rng = np.random.default_rng(8)

    def bent(x):
        """Class 0 within a ball, class 1 outside."""
        inside = 1 / (1 + np.exp(np.asarray(x, np.float64)[:, :3].std(axis=1) * 3 - 4.5))
        return np.stack([inside, 1 - inside], axis=1)

    rows = rng.normal(size=(1000, 3)).astype(np.float32) * 2
    fresh = rng.normal(size=(500, 3)).astype(np.float32) * 2
    landmarks, found = fitted(rows, bent(rows), size=150)
    logits = oracle_lift(landmarks, fresh) @ np.asarray(found.weights) + found.bias
    truth = bent(fresh).argmax(axis=1)
    linear = fit_proxy(rows, None, num_classes=2, teacher=bent(rows))
    linear_agrees = ((fresh @ linear.weights + linear.bias).argmax(axis=1) == truth).mean()
    assert (logits.argmax(axis=1) == truth).mean() > max(0.9, linear_agrees + 0.2)


def test_a_batch_agrees_with_single_fits_whatever_the_numbers_of_classes():
    landmarks = choose_landmarks(PROBE, 40)
    white = whitening(KERNEL, landmarks)
    two = np.stack([model(PROBE)[:, 0], 1 - model(PROBE)[:, 0]], axis=1)
    batch = fit_probe_proxies(KERNEL, landmarks, white, PROBE, [model(PROBE), two])
    for outputs, found in zip((model(PROBE), two), batch, strict=True):
        one = fit_probe_proxy(KERNEL, landmarks, white, PROBE, outputs)
        np.testing.assert_allclose(found.weights, one.weights, atol=5e-2)
        lifted = oracle_lift(landmarks, PROBE)
        np.testing.assert_allclose(
            lifted @ np.asarray(found.weights) + found.bias,
            lifted @ np.asarray(one.weights) + one.bias,
            atol=1e-3,
        )
        np.testing.assert_allclose(found.fidelity, one.fidelity, atol=0.01)


def test_landmarks_cover_every_domain_of_a_probe_that_is_stacked_by_domain():
    domains = np.repeat(np.arange(20), 100)
    probe = np.random.default_rng(0).normal(size=(2000, 3)) + 10 * domains[:, None]
    landmarks = np.asarray(choose_landmarks(probe))
    assert landmarks.shape == (PROBE_LANDMARKS, 3)
    found = np.abs(landmarks[:, None] - np.arange(0, 200, 10)[None, :, None]).sum(-1).argmin(1)
    counts = np.bincount(found, minlength=20)
    assert counts.min() >= 20 and counts.max() <= 60  # 40 on average
    rows = {row.tobytes() for row in probe.astype(np.float32)}
    assert len({row.tobytes() for row in landmarks} & rows) == PROBE_LANDMARKS
    np.testing.assert_array_equal(landmarks, choose_landmarks(probe))


def test_a_small_probe_gives_all_its_rows_in_order():
    np.testing.assert_array_equal(choose_landmarks(PROBE), PROBE)
    np.testing.assert_array_equal(choose_landmarks(PROBE, len(PROBE)), PROBE)


def test_another_number_of_rows_or_classes_compiles_nothing(compile_counter):
    landmarks = choose_landmarks(PROBE, 40)
    white = np.asarray(whitening(KERNEL, landmarks))

    def fit(rows, outputs, bandwidth):
        fit_probe_proxy(Gaussian(bandwidth), landmarks, white, PROBE[:rows], outputs[:rows])

    fit(290, model(PROBE), np.float32(3.0))
    two = np.stack([model(PROBE)[:, 0], 1 - model(PROBE)[:, 0]], axis=1)
    with compile_counter() as counter:
        fit(300, model(PROBE), 3.0)
        fit(291, two, 3)
    assert counter.count == 0


LANDMARKS = PROBE[:20]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"probe": PROBE[:, :3]}, ValueError, "landmarks: expected 3 columns"),
        ({"probe": PROBE * np.nan}, ValueError, "probe: expected finite"),
        ({"whitening": np.eye(19)}, ValueError, r"whitening: expected shape \(20, 20\)"),
        ({"kernel": None}, TypeError, "kernel: expected a kernel"),
        ({"outputs": model(PROBE)[:10]}, ValueError, "mine: expected class probabilities"),
        ({"outputs": model(PROBE)[:, 0]}, ValueError, "mine: expected"),
        ({"outputs": np.log(model(PROBE))}, ValueError, "mine: expected probabilities"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {
        "kernel": KERNEL,
        "landmarks": LANDMARKS,
        "whitening": np.eye(20),
        "probe": PROBE,
        "outputs": model(PROBE),
        "name": "mine",
    }
    with pytest.raises(error, match=message):
        fit_probe_proxy(**{**arguments, **change})


def test_a_model_of_many_is_named():
    with pytest.raises(ValueError, match=r"outputs\[1\]: expected class probabilities"):
        fit_probe_proxies(
            KERNEL, LANDMARKS, np.eye(20), PROBE, [model(PROBE), model(PROBE)[:, :3][:7]]
        )
    with pytest.raises(ValueError, match="outputs: expected the outputs of at least one model"):
        fit_probe_proxies(KERNEL, LANDMARKS, np.eye(20), PROBE, [])
