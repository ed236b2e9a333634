"""Nobody buys a better rank: a useless model with attacks on a made market, and on the demo's."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from made_owners import NAMES, REGIONS, averaged, made, rows_of, space, useless_model

import jaxspec as js
from jaxspec.specify import fit_proxy


@pytest.fixture(scope="module")
def users():
    made_users = []
    for region in range(REGIONS):
        features, labels = rows_of(region, 60, seed=4)
        made_users.append(js.specify_user(space(), features, labels, class_names=NAMES))
    return made_users


def places(market, spec, users, reuse):
    """Return the place of an added specification for every user, zero for the first."""
    found = js.match(market.add({"added": spec}), users, reuse=reuse, k=len(market) + 1)
    return np.array([one.ids.index("added") for one in found])


def withheld(spec):
    return dataclasses.replace(spec, probe_proxy=None)


def truthful_proxy(spec):
    """Return a useless model's specification with a linear proxy of the true classes."""
    features, labels = rows_of(0, 150)
    return dataclasses.replace(spec, proxy=fit_proxy(features, labels, num_classes=3))


def formal(spec):
    reduced, proxy, probe = spec.reduced_set, spec.proxy, spec.probe_proxy
    for factor in (0.1, 10.0, -1.0):
        scaled = js.ReducedSet(reduced.points, factor * reduced.weights)
        yield dataclasses.replace(spec, reduced_set=scaled)
    louder = dataclasses.replace(probe, weights=10 * probe.weights, bias=10 * probe.bias)
    yield dataclasses.replace(
        spec, proxy=js.Proxy(10 * proxy.weights, 10 * proxy.bias), probe_proxy=louder
    )
    bias = jnp.array([20.0, -10.0, -10.0])
    sure = dataclasses.replace(probe, weights=0 * probe.weights, bias=bias)
    yield dataclasses.replace(spec, proxy=js.Proxy(0 * proxy.weights, bias), probe_proxy=sure)


@pytest.mark.parametrize("reuse", ["direct", "fine-tune"])
def test_withholding_the_probe_proxy_never_pays(users, reuse):
    market, _, useless = made()
    for spec in (useless, truthful_proxy(useless)):
        shown = places(market, spec, users, reuse)
        hidden = places(market, withheld(spec), users, reuse)
        assert (hidden < 3).sum() <= (shown < 3).sum()
        assert (hidden[1:] >= len(market) // 2).all()  # not even near users of its own region


def test_a_good_model_that_withholds_loses_and_none_is_judged_alone(users):
    market, _, _ = made()
    spec = market["m4"]
    without = market.remove(["m4"])
    assert places(without, spec, users, "direct")[4] == 0
    assert places(without, withheld(spec), users, "direct")[4] > 2
    bare = js.Market(space(), {name: withheld(market[name]) for name in without.ids})
    assert places(bare, withheld(spec), users, "direct")[4] <= 1


@pytest.mark.parametrize("reuse", ["direct", "fine-tune"])
def test_formal_attacks_gain_nothing(users, reuse):
    market, _, useless = made()
    honest = (places(market, useless, users, reuse) < 3).sum()
    for spec in formal(useless):
        assert (places(market, spec, users, reuse) < 3).sum() <= honest + 1


def test_lies_pay_until_somebody_runs_the_model(users):
    market, _, useless = made()
    lie = averaged(market, useless)
    honest = (places(market, useless, users, "direct") < 3).mean()
    assert (places(market, lie, users, "direct") < 3).mean() > honest + 0.2
    assert not js.verify(lie, useless_model, space()).accepted


@pytest.mark.slow
def test_the_table_of_attacks_on_markets_of_the_demo(tmp_path):
    from benchmarks.studies import attack_markets, attacks

    cache = Path(tmp_path)
    markets = [attack_markets.load_market(seed, cache) for seed in range(1000, 1010)]
    assert sum(len(market.users) for market in markets) >= 200
    for probed in (True, False):
        table = attacks.table_of_attacks(markets, probed=probed)["attacks"]
        for name in (*attacks.FORMAL, *attacks.WITHHELD[:2]):
            for use in ("direct", "fine-tuning", "other classes"):
                figures = table.get(name, {}).get(use)
                if figures is None:
                    continue
                # Naming all classes reaches the users of the other label space too. Without probes
                # their guess is kind to it: docs/limits.md. The lower end was 1.8 %.
                known = not probed and (name, use) == ("all class names", "direct")
                assert figures[1] <= (3.0 if known else 0.0), (probed, name, use)
    ran = attacks.errors_of_verify(markets)
    assert ran["honest models"][1] <= 1
    lies = ("mixture with averaged answers", "averaged answers", "copy of the best")
    assert min(ran[name][1] for name in lies) >= 99
