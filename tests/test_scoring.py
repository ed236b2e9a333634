"""The parts of the scores against plain numpy, and what does not lift a learnware."""

import dataclasses

import numpy as np
import pytest
from conftest import made_specification, made_task, made_user
from test_probe import oracle_lift, specification_with_probe

import jaxspec as js
from jaxspec import scoring


def oracle_likelihood(logits, labels, classes):
    """Best mean log-likelihood over temperatures, over that of guessing; logits (n, classes)."""
    centred = logits - logits.mean(axis=1, keepdims=True)
    unit = centred / np.sqrt((centred**2).mean())
    values = []
    for temperature in (0.5, 1.0, 2.0, 4.0):
        powers = np.exp(temperature * unit)
        chance = (powers / powers.sum(axis=1, keepdims=True))[np.arange(len(labels)), labels]
        values.append(np.log(0.9 * chance * classes + 0.1).mean())
    return max(values)


def oracle_transfer(logits, labels, classes, ridge=0.3):
    """Leave-one-out ridge regression, by leaving every row out and solving again."""
    n = len(labels)
    x = logits - logits.mean(axis=1, keepdims=True)
    x = x - x.mean(axis=0)
    x = x / np.sqrt((x**2).sum() / n)
    y = np.eye(classes)[labels]
    y = y - y.mean(axis=0)
    design = np.c_[x, np.ones(n)]
    penalty = n * np.diag([ridge] * x.shape[1] + [0.0])
    error = 0.0
    for i in range(n):
        rows = np.arange(n) != i
        a = design[rows].T @ design[rows] + penalty
        fitted = design[i] @ np.linalg.solve(a, design[rows].T @ y[rows])
        error += ((y[i] - fitted) ** 2).sum()
    return 1 - error / (y**2).sum()


def proxy_logits(spec, user):
    points = np.asarray(user.reduced_set.points, np.float64)
    return points @ np.asarray(spec.proxy.weights) + np.asarray(spec.proxy.bias)


def oracle_agreement(spec, peer):
    """Mutual information of the proxy's classes with the peer's on the peer's points."""
    points = np.asarray(peer.reduced_set.points, np.float64)
    answers = (points @ peer.proxy.weights + peer.proxy.bias).argmax(axis=1)
    logits = oracle_lift(spec.probe.landmarks, points) @ spec.probe.weights + spec.probe.bias
    logits = logits - logits.mean(axis=1, keepdims=True)
    powers = np.exp(2 * logits / np.sqrt((logits**2).mean()))
    chance = powers / powers.sum(axis=1, keepdims=True)
    joint = chance.T @ np.eye(4)[answers] / len(points)
    # The smoothing covers the padded classes of the market too: eight by eight cells.
    joint = np.pad(joint, ((0, 4), (0, 4))) + 1e-4
    joint /= joint.sum()
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    return (joint * np.log(joint / apart)).sum()


def closeness(spec, user):
    def inner(a, b):
        return float(js.inner_product(spec.kernel, a.reduced_set, b.reduced_set))

    return inner(spec, user) / np.sqrt(inner(spec, spec) * inner(user, user))


def test_transfer_equals_leaving_every_example_out(market):
    user = made_user(1)
    result = js.match(market, user, method="transfer")
    for score, (_, spec) in zip(result.scores, market.items(), strict=True):
        want = oracle_transfer(proxy_logits(spec, user), np.asarray(user.labels), 4)
        np.testing.assert_allclose(score, want + 2 * closeness(spec, user), atol=1e-3)


def test_likelihood_equals_the_formula():
    specs = {f"m{s}": specification_with_probe(s) for s in range(3)}
    user = made_user(1)
    result = js.match(js.Market.from_specifications(specs), user, method="likelihood")
    wanted = []
    for row, spec in enumerate(specs.values()):
        lifted = oracle_lift(spec.probe.landmarks, user.reduced_set.points)
        logits = lifted @ spec.probe.weights + spec.probe.bias
        want = oracle_likelihood(logits, np.asarray(user.labels), 4)
        want += 0.5 * result.class_similarity[row].mean() + 4 * closeness(spec, user)
        wanted.append(want)
    # The peer part, from its definition, for the user whose own task is the second learnware's.
    peer = list(specs.values())[1]
    noise = (1 - float(js.inner_product(peer.kernel, peer.reduced_set, peer.reduced_set))) / 40
    reliability = np.clip(3 - result.squared_mmd[1] / noise, 0, 1)
    assert reliability > 0.5
    agreement = [oracle_agreement(spec, peer) for spec in specs.values()]
    agreement[1] = max(agreement[0], agreement[2])  # it agrees with itself: that is no evidence
    np.testing.assert_allclose(
        result.scores, np.array(wanted) + reliability * np.array(agreement), atol=3e-2
    )


def test_inverse_equals_numpy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 3, 9, 12))
    matrix = (x @ x.swapaxes(-1, -2) / 12 + 0.3 * np.eye(9)).astype(np.float32)
    np.testing.assert_allclose(scoring._inverse(matrix), np.linalg.inv(matrix), atol=2e-4)


def test_assign_is_greedy_and_shares_when_classes_run_out():
    similarity = np.array([[0.9, 0.8, 0.1], [0.85, 0.2, 0.3]], np.float32)
    chosen = scoring.assign(similarity, np.ones((2, 3), bool))
    np.testing.assert_array_equal(chosen, [0, 0, 1])  # 0-0, then 1-2; class 1 shares the best
    nothing = scoring.assign(similarity, np.zeros((2, 3), bool))
    np.testing.assert_array_equal(nothing, [-1, -1, -1])


def test_default_method_follows_the_reuse_and_the_label_spaces(market):
    same, stranger = made_user(1), made_user(1, class_names=["w", "x", "y", "z"])
    assert js.match(market, same).method == "likelihood"
    assert js.match(market, same, reuse="fine-tune").method == "transfer"
    assert js.match(market, stranger).method == "transfer"
    assert js.match(market, stranger, reuse="direct").method == "likelihood"
    assert js.match(market, made_user(1, share_labels=False)).method == "classwise"
    assert js.match(market, [same, stranger]).method == ("likelihood", "transfer")
    with pytest.raises(ValueError, match="'transfer' needs the labels"):
        js.match(market, made_user(1, share_labels=False), method="transfer")
    with pytest.raises(ValueError, match="reuse: expected one of"):
        js.match(market, same, reuse="teach")


# What a submitter could do to its specification


def scaled(spec, *, proxy=1.0, weights=1.0, probe=1.0):
    return dataclasses.replace(
        spec,
        proxy=js.Proxy(spec.proxy.weights * proxy, spec.proxy.bias * proxy),
        reduced_set=js.ReducedSet(spec.reduced_set.points, spec.reduced_set.weights * weights),
        probe=dataclasses.replace(
            spec.probe, weights=spec.probe.weights * probe, bias=spec.probe.bias * probe
        ),
    )


METHODS = ("classwise", "likelihood", "transfer")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [0.1, 0.9, 10.0])
@pytest.mark.parametrize("part", ["proxy", "weights", "probe"])
def test_scaling_does_not_lift(method, factor, part):
    spec, user = specification_with_probe(3), made_user(1)
    market = js.Market.from_specifications(
        {"plain": spec, "scaled": scaled(spec, **{part: factor})}
    )
    plain, changed = js.match(market, user, method=method).scores
    assert changed <= plain + 1e-4


def with_more_classes(spec, extra, seed=0):
    """Add classes with random vectors of the size of the others'."""
    rng = np.random.default_rng(seed)

    def widen(weights):
        weights = np.asarray(weights)
        size = weights.std()
        more = size * rng.normal(size=(*weights.shape[:-1], extra))
        return np.concatenate([weights, more], axis=-1).astype(np.float32)

    return dataclasses.replace(
        spec,
        proxy=js.Proxy(widen(spec.proxy.weights), widen(spec.proxy.bias)),
        probe=dataclasses.replace(
            spec.probe, weights=widen(spec.probe.weights), bias=widen(spec.probe.bias)
        ),
        class_names=(*spec.class_names, *(f"extra {i}" for i in range(extra))),
    )


@pytest.mark.parametrize("method", ["classwise", "likelihood"])
def test_further_classes_change_nothing_for_a_user_of_the_same_names(method):
    spec, user = specification_with_probe(3), made_user(1)
    market = js.Market.from_specifications(
        {"plain": spec, "more": with_more_classes(spec, 4), "many": with_more_classes(spec, 12)}
    )
    plain, more, many = js.match(market, user, method=method, label_spaces="homogeneous").scores
    np.testing.assert_allclose([more, many], plain, atol=1e-4)


def test_further_random_outputs_do_not_help_transfer_on_average():
    """In 64 dimensions, as real features have; in very few, random outputs are a basis."""
    rng = np.random.default_rng(0)
    lifts = []
    for _ in range(40):
        centres = rng.normal(size=(5, 64))
        labels = np.arange(50) % 5
        points = centres[labels] + 2 * rng.normal(size=(50, 64))
        own = centres[rng.permutation(5)] + 2 * rng.normal(size=(5, 64))  # a related model
        more = rng.normal(size=(5, 64)) * own.std()
        users = scoring.UserArrays(
            points=points[None],
            weights=np.full((1, 50), 0.02),
            labels=labels[None],
            count=np.array(50),
            examples=np.array([50.0]),
            class_vectors=np.zeros((1, 5, 64)),
            class_mask=np.ones((1, 5), bool),
            class_numbers=np.zeros((1, 5), int),
            by_name=np.zeros(1, bool),
        )

        def score(vectors, users=users, points=points):
            logits = (vectors @ points.T)[None, None].astype(np.float32)
            return float(scoring._transfer(logits, np.ones((1, len(vectors)), bool), users)[0, 0])

        lifts.append(score(np.concatenate([own, more])) - score(own))
    assert np.mean(lifts) < 0.005


@pytest.mark.parametrize("method", METHODS)
def test_a_copied_reduced_set_does_not_pass_its_owner(method):
    owner, thief = specification_with_probe(1), specification_with_probe(3)
    features, labels = made_task(1)
    good = np.asarray(js.fit_proxy(features, labels, num_classes=4).weights)
    from test_probe import PROBE

    powers = np.exp(PROBE @ good)
    owner = specification_with_probe(1, powers / powers.sum(axis=1, keepdims=True))
    thief = dataclasses.replace(thief, reduced_set=owner.reduced_set)
    market = js.Market.from_specifications({"owner": owner, "thief": thief})
    scores = js.match(market, made_user(1), method=method).scores
    assert scores[0] > scores[1]


def test_a_market_without_probe_ranks_like_class_vectors_and_embeddings(market):
    """Without probes the likelihood is a fixed mix of the two other parts."""
    user = made_user(2)
    result = js.match(market, user, method="likelihood")
    peer = made_specification(2).reduced_set
    noise = (1 - float(js.inner_product(market.kernel, peer, peer))) / 40
    reliability = np.clip(3 - result.squared_mmd[2] / noise, 0, 1)
    for row, spec in enumerate(made_specification(s) for s in range(6)):
        similarity = result.class_similarity[row].mean()
        close = closeness(spec, user)
        likelihood = 1.92 * similarity + 0.99 * close - 0.83
        agreement = -0.06 * similarity + 1.43 * close - 0.93
        want = likelihood + 0.5 * similarity + 4 * close + reliability * agreement
        np.testing.assert_allclose(result.scores[row], want, atol=1e-3)
