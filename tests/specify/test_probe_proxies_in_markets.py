"""What a market makes of probe proxies."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import DIMENSION, KERNEL, SPACE, made_specification, made_task, made_user, names

import jaxspec as js


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
