import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_owners import averaged, made, probe, rows_of, space, useless_model

import jaxspec as js
from jaxspec.admission.verify import _below, _wilson


def test_an_honest_model_is_accepted_and_agrees_as_its_fidelity_says():
    market, models, _ = made()
    for name, model in models.items():
        ran = js.verify(market[name], model, space())
        assert ran.accepted
        assert ran.rows == 200
        assert ran.stated == float(market[name].probe_proxy.fidelity)
        assert ran.interval[0] <= ran.agreement <= ran.interval[1]
        assert abs(ran.agreement - ran.stated) < 0.07


def test_the_agreement_is_the_share_of_equal_classes():
    market, models, _ = made()
    spec, own = market["m3"], space()
    ran = js.verify(spec, models["m3"], own, rows=len(probe()))
    landmarks = np.asarray(own.landmarks, np.float64)

    def gram(x):
        apart = ((x[:, None] - landmarks[None]) ** 2).sum(axis=2)
        return np.exp(-apart / (2 * float(own.kernel.bandwidth) ** 2))

    values, vectors = np.linalg.eigh(gram(landmarks))
    white = vectors / np.sqrt(np.maximum(values, 1e-6 * values[-1])) @ vectors.T
    lifted = gram(probe().astype(np.float64)) @ white
    logits = lifted @ np.asarray(spec.probe_proxy.weights) + np.asarray(spec.probe_proxy.bias)
    same = logits.argmax(axis=1) == models["m3"](probe()).argmax(axis=1)
    assert ran.agreement == pytest.approx(same.mean(), abs=1.5 / len(same))


def test_lies_of_a_useless_model_are_refused_whatever_fidelity_they_state():
    market, _, useless = made()
    lies = {"averaged": averaged(market, useless), "copy": market["m2"]}
    for spec in lies.values():
        for stated in (0.99, 0.3, 0.0):
            proxy = dataclasses.replace(spec.probe_proxy, fidelity=jnp.float32(stated))
            told = dataclasses.replace(spec, probe_proxy=proxy)
            ran = js.verify(told, useless_model, space())
            assert not ran.accepted
            assert ran.reasons
            assert "refused" in str(ran)
    assert js.verify(useless, useless_model, space()).accepted  # it does what it says


def test_without_a_probe_proxy_the_linear_one_is_compared_near_the_reduced_set():
    market, models, useless = made()
    bare = dataclasses.replace(market["m4"], probe_proxy=None)
    near, _ = rows_of(4, 400, seed=3)
    ran = js.verify(bare, models["m4"], space(), features=near)
    assert (ran.accepted, ran.published, ran.stated) == (True, "linear proxy", None)
    assert not js.verify(bare, useless_model, space(), features=near).accepted


def test_another_number_or_order_of_outputs_is_named():
    market, models, _ = made()
    more = js.verify(market["m0"], lambda z: np.c_[models["m0"](z), np.zeros(len(z))], space())
    assert not more.accepted
    assert np.isnan(more.agreement)
    assert "4 outputs" in more.reasons[0]
    turned = js.verify(market["m0"], lambda z: models["m0"](z)[:, [1, 2, 0]], space())
    assert not turned.accepted
    assert "another order" in turned.reasons[-1]
    assert "'b'" in turned.reasons[-1]


def test_raw_inputs_belong_to_rows_of_the_probe():
    market, models, _ = made()
    texts = [",".join(map(repr, row)) for row in probe().tolist()]

    def model(some):
        return models["m1"](np.array([[float(x) for x in one.split(",")] for one in some]))

    own = js.verify(market["m1"], models["m1"], space())
    assert js.verify(market["m1"], model, space(), inputs=texts).agreement == own.agreement
    other = js.verify(market["m1"], models["m1"], space(), key=jax.random.key(4), rows=50)
    assert other.rows == 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": [1, 2]}, r"inputs: expected 300 entries, one per row of the probe, got 2"),
        ({"rows": 3}, "rows"),
        ({"features": np.zeros((30, 5))}, "features"),
        ({"model": lambda z: np.zeros(len(z))}, r"model: expected outputs of shape \(200, cl"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    market, models, _ = made()
    model = options.pop("model", models["m0"])
    with pytest.raises(ValueError, match=message):
        js.verify(market["m0"], model, space(), **options)


def test_a_space_without_a_probe_asks_for_rows():
    market, models, _ = made()
    bare = dataclasses.replace(
        market["m0"], probe_proxy=None, space_digest=space(probed=False).digest
    )
    with pytest.raises(ValueError, match="features: expected rows"):
        js.verify(bare, models["m0"], space(probed=False))


def test_the_binomial_tail_and_the_interval_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for k, n, p in ((0, 20, 0.5), (150, 200, 0.8), (199, 200, 0.99), (20, 20, 0.3)):
        assert _below(k, n, p) == pytest.approx(stats.binom.cdf(k, n, p), rel=1e-9)
        ends = stats.binomtest(k, n).proportion_ci(method="wilson")
        assert _wilson(k, n) == pytest.approx((ends.low, ends.high), abs=1e-4)
