"""Probe proxies against a float64 oracle, and what a market makes of them."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import DIMENSION, KERNEL, SPACE, made_specification, made_task, made_user, names
from scipy.spatial.distance import cdist

import jaxspec as js
from jaxspec.specify import probe_proxy as probes


def model(features):
    """Some nonlinear classifier of four classes; returns probabilities."""
    rng = np.random.default_rng(5)
    weights = rng.normal(size=(DIMENSION, 4))
    logits = np.tanh(np.asarray(features, np.float64) @ weights)
    powers = np.exp(2 * logits)
    return powers / powers.sum(axis=1, keepdims=True)


PROBE = np.random.default_rng(7).normal(size=(300, DIMENSION)).astype(np.float32) * 2


def specification_with_probe(seed, outputs=None):
    features, labels = made_task(seed)
    return js.specify(
        jax.random.key(seed),
        features,
        labels,
        class_names=names(4),
        kernel=KERNEL,
        size=10,
        feature_space=SPACE,
        probe=(PROBE, model(PROBE) if outputs is None else outputs),
    )


def oracle_lift(landmarks, x):
    scale = 2 * float(KERNEL.bandwidth) ** 2
    x, landmarks = np.asarray(x, np.float64), np.asarray(landmarks, np.float64)
    values, vectors = np.linalg.eigh(np.exp(-cdist(landmarks, landmarks, "sqeuclidean") / scale))
    values = np.maximum(values, 1e-6 * values[-1])
    white = vectors / np.sqrt(values) @ vectors.T
    return np.exp(-cdist(x, landmarks, "sqeuclidean") / scale) @ white


def test_the_proxy_is_the_ridge_regression_of_the_log_probabilities():
    found = probes.fit_probe_proxy(KERNEL, PROBE, model(PROBE), size=40)
    lifted = oracle_lift(PROBE[:40], PROBE)
    logits = np.log(np.maximum(model(PROBE), probes.SMALLEST_PROBABILITY))
    logits -= logits.mean(axis=1, keepdims=True)
    x, y = lifted - lifted.mean(axis=0), logits - logits.mean(axis=0)
    matrix = x.T @ x / len(x) + probes.RIDGE * np.eye(40)
    weights = np.linalg.solve(matrix, x.T @ y / len(x))
    want = lifted @ weights + logits.mean(axis=0) - lifted.mean(axis=0) @ weights
    got = lifted @ found.weights + found.bias
    np.testing.assert_allclose(got, want, atol=2e-3)
    assert float(found.fidelity) == pytest.approx(
        (want.argmax(axis=1) == logits.argmax(axis=1)).mean(), abs=0.02
    )


def test_the_proxy_follows_a_bent_model_off_the_probe_where_a_linear_one_cannot():
    rng = np.random.default_rng(8)

    def bent(x):
        """Class 0 within a ball, class 1 outside."""
        inside = 1 / (1 + np.exp(np.asarray(x, np.float64)[:, :3].std(axis=1) * 3 - 4.5))
        return np.stack([inside, 1 - inside], axis=1)

    rows = rng.normal(size=(1000, 3)).astype(np.float32) * 2
    fresh = rng.normal(size=(500, 3)).astype(np.float32) * 2
    found = probes.fit_probe_proxy(KERNEL, rows, bent(rows), size=150)
    logits = oracle_lift(found.landmarks, fresh) @ found.weights + found.bias
    truth = bent(fresh).argmax(axis=1)
    linear = js.fit_proxy(rows, None, num_classes=2, teacher=bent(rows))
    linear_agrees = ((fresh @ linear.weights + linear.bias).argmax(axis=1) == truth).mean()
    assert (logits.argmax(axis=1) == truth).mean() > max(0.9, linear_agrees + 0.2)


def test_lift_equals_float64_oracle():
    white = probes.whitening(KERNEL, PROBE[:30])
    got = probes.lift(KERNEL, PROBE[:30], white, PROBE[50:60])
    np.testing.assert_allclose(got, oracle_lift(PROBE[:30], PROBE[50:60]), atol=5e-3)


def test_a_market_keeps_probe_proxies_and_mixes_with_specifications_without():
    with_probe = specification_with_probe(0)
    market = js.Market.from_specifications({"with": with_probe, "without": made_specification(1)})
    np.testing.assert_allclose(market["with"].probe.weights, with_probe.probe.weights)
    assert market["without"].probe is None
    assert market.probe == with_probe.probe.fingerprint
    result = js.match(market, made_user(1))
    assert np.isfinite(result.scores).all()
    bare = js.Market.from_specifications({"a": made_specification(1)})
    grown = bare.add("with", with_probe)
    assert grown.probe == with_probe.probe.fingerprint
    assert bare.probe is None


def test_another_probe_set_is_refused_and_both_are_named():
    spec = specification_with_probe(0)
    other = dataclasses.replace(
        spec, probe=dataclasses.replace(spec.probe, fingerprint="of another set")
    )
    market = js.Market.from_specifications({"a": spec})
    with pytest.raises(ValueError, match=f"'b'.*of another set.*{market.probe}"):
        market.add("b", other)
    with pytest.raises(ValueError, match="'b'.*of another set"):
        js.Market.from_specifications({"a": spec, "b": other})


def test_a_model_that_errs_on_the_users_examples_is_ranked_below():
    """Same data, same own proxy: only the behaviour on the probe differs."""
    user = made_user(0)
    logits = np.asarray(js.fit_proxy(*made_task(0), num_classes=4).weights)
    shifted = np.exp(PROBE @ logits)
    good = shifted / shifted.sum(axis=1, keepdims=True)
    bad = good[:, [1, 2, 3, 0]]
    market = js.Market.from_specifications(
        {"bad": specification_with_probe(0, bad), "good": specification_with_probe(0, good)}
    )
    result = js.match(market, user, reuse="direct")
    assert result.top_k(1)[0][0] == "good"
    assert result.scores[1] > result.scores[0] + 0.5


@pytest.mark.parametrize(
    ("probe", "error", "message"),
    [
        (PROBE, TypeError, "probe: expected a pair"),
        ((PROBE[:, :3], model(PROBE)), ValueError, r"probe\[0\]: expected 6 columns"),
        ((PROBE, model(PROBE)[:, :3]), ValueError, r"probe\[1\]: expected class probabilities"),
        ((PROBE, model(PROBE)[:10]), ValueError, r"probe\[1\]: expected class probabilities"),
        ((PROBE, np.log(model(PROBE))), ValueError, r"probe\[1\]: expected probabilities"),
        ((PROBE * np.nan, model(PROBE)), ValueError, r"probe\[0\]: expected finite"),
    ],
)
def test_bad_probes_are_named(probe, error, message):
    features, labels = made_task(0)
    with pytest.raises(error, match=message):
        js.specify(
            jax.random.key(0),
            features,
            labels,
            class_names=names(4),
            kernel=KERNEL,
            size=10,
            feature_space=SPACE,
            probe=probe,
        )


def test_half_of_the_owners_data_is_refused_by_name():
    """Given alone, the one array would be ignored without a word."""
    own = made_task(0)[0]
    with pytest.raises(ValueError, match="own_probabilities: expected an array"):
        probes.fit_probe_proxy(KERNEL, PROBE, model(PROBE), own_features=own)
    with pytest.raises(ValueError, match="own_features: expected an array"):
        probes.fit_probe_proxy(KERNEL, PROBE, model(PROBE), own_probabilities=model(own))
    with pytest.raises(TypeError, match="kernel: expected a kernel"):
        probes.fit_probe_proxy(None, PROBE, model(PROBE))
