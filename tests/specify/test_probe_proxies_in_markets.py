"""What a market makes of probe proxies."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import DIMENSION, SPACE, made_specification, made_task, made_user, names, probed_space

import jaxspec as js


def model(features):
    """Return the class probabilities of a nonlinear classifier of four classes."""
    weights = np.random.default_rng(5).normal(size=(DIMENSION, 4))
    powers = np.exp(2 * np.tanh(np.asarray(features, np.float64) @ weights))
    return powers / powers.sum(axis=1, keepdims=True)


def probed(seed, outputs=None):
    """Return a specification with a probe proxy of these outputs."""
    space = probed_space()
    features, labels = made_task(seed)
    outputs = model(space.probe) if outputs is None else outputs
    return js.specify(space, features, labels, class_names=names(4), size=10, probe_outputs=outputs)


def in_probed_space(spec):
    space = probed_space()
    return dataclasses.replace(spec, space_name=space.name, space_digest=space.digest)


def test_a_market_keeps_probe_proxies_and_mixes_with_specifications_without():
    with_probe, bare = probed(0), in_probed_space(made_specification(1))
    market = js.Market(probed_space(), {"with": with_probe, "without": bare})
    kept = market["with"].probe_proxy
    np.testing.assert_allclose(kept.weights, with_probe.probe_proxy.weights, atol=1e-6)
    np.testing.assert_allclose(kept.bias, with_probe.probe_proxy.bias, atol=1e-6)
    assert float(kept.fidelity) == float(with_probe.probe_proxy.fidelity)
    assert market["without"].probe_proxy is None
    found = js.match(market, made_user(1, space=probed_space()))
    assert np.isfinite(found.scores).all()


def test_a_market_without_probe_proxies_takes_the_first_one_with():
    with_probe, bare = probed(0), in_probed_space(made_specification(1))
    alone = js.Market(probed_space(), {"bare": bare})
    grown = alone.add({"with": with_probe})
    assert alone["bare"].probe_proxy is None
    assert alone.arrays.probe_weights.size == 0
    np.testing.assert_allclose(
        grown["with"].probe_proxy.weights, with_probe.probe_proxy.weights, atol=1e-6
    )
    user = made_user(1, space=probed_space())
    want = js.match(js.Market(probed_space(), {"bare": bare, "with": with_probe}), user)
    np.testing.assert_allclose(js.match(grown, user).scores, want.scores, atol=1e-6)


def test_a_probe_proxy_in_a_space_without_a_probe_is_refused():
    spec = dataclasses.replace(made_specification(0), probe_proxy=probed(0).probe_proxy)
    with pytest.raises(ValueError, match="'b': expected no probe proxy.*'made-features' has no"):
        js.Market(SPACE, {"b": spec})


def test_a_model_that_errs_on_the_users_examples_is_ranked_below():
    """The data and the proxies are the same: only the behaviour on the probe differs."""
    logits = np.asarray(js.fit_proxy(*made_task(0), num_classes=4).weights)
    powers = np.exp(np.asarray(probed_space().probe) @ logits)
    good = powers / powers.sum(axis=1, keepdims=True)
    bad = good[:, [1, 2, 3, 0]]
    market = js.Market(probed_space(), {"bad": probed(0, bad), "good": probed(0, good)})
    found = js.match(market, made_user(0, space=probed_space()), reuse="direct")
    assert found.method == "likelihood"
    assert found.top_k(1)[0][0] == "good"
    assert found.scores[1] > found.scores[0] + 0.5


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("weights", lambda x: x[:-1], r"probe_proxy.weights of shape \(200, 4\), got \(199, 4\)"),
        ("weights", lambda x: x[:, :3], r"probe_proxy.weights of shape \(200, 4\)"),
        ("weights", lambda x: x * jnp.nan, "finite numbers in probe_proxy.weights"),
        ("bias", lambda x: x[:3], r"probe_proxy.bias of shape \(4,\)"),
        ("bias", lambda x: x + 1e30, "numbers of at most 1e.15 in probe_proxy.bias"),
    ],
)
def test_a_probe_proxy_that_is_not_sound_is_refused_by_field(part, change, message):
    spec = probed(0)
    broken = dataclasses.replace(
        spec.probe_proxy, **{part: change(getattr(spec.probe_proxy, part))}
    )
    with pytest.raises(ValueError, match=f"'m': expected {message}"):
        js.Market(probed_space(), {"m": dataclasses.replace(spec, probe_proxy=broken)})


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda p: p[:, :3], "expected class probabilities"),
        (lambda p: p[:10], "expected class probabilities"),
        (lambda p: np.log(p), "expected probabilities, got a value of -"),
        (lambda p: p * 2, r"expected rows that sum to one.*\(are these logits\?\)"),
        (lambda p: p * np.nan, "expected finite"),
    ],
)
def test_bad_outputs_are_named(outputs, message):
    with pytest.raises(ValueError, match=f"probe_outputs: {message}"):
        probed(0, outputs(model(probed_space().probe)))
