"""The parts of the scores against plain numpy, and what does not lift a learnware."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import DIMENSION, made_specification, made_task, made_user
from test_probe import oracle_lift, specification_with_probe

import jaxspec as js
from jaxspec.matching import match as matching
from jaxspec.scoring import class_pass as comparison
from jaxspec.scoring import class_vectors, peers
from jaxspec.scoring import leave_one_out as transfer
from jaxspec.scoring import score_pass as scoring
from jaxspec.scoring.types import UserArrays


def oracle_chances(logits):
    """Class probabilities (n, C) of logits of root mean square one, times two."""
    centred = logits - logits.mean(axis=1, keepdims=True)
    powers = np.exp(2 * centred / np.sqrt((centred**2).mean()))
    return powers / powers.sum(axis=1, keepdims=True)


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


def probed(spec, points):
    """Return the probe proxy's logits, (n, C)."""
    lifted = oracle_lift(spec.probe.landmarks, np.asarray(points, np.float64))
    return lifted @ spec.probe.weights + spec.probe.bias


def oracle_regions(specs):
    """How much each landmark counts for each learnware, (specs, D)."""
    values = []
    for spec in specs:
        kernel, own = spec.kernel, spec.reduced_set
        at = js.ReducedSet(spec.probe.landmarks, np.eye(len(spec.probe.landmarks)))
        gram = np.asarray(js.gram(kernel, at.points, own.points), np.float64)
        norm = float(js.inner_product(kernel, own, own))
        values.append(gram @ np.asarray(own.weights) / np.sqrt(norm))
    above = np.maximum(np.array(values) - np.mean(values, axis=0), 0)
    return above / above.sum(axis=1, keepdims=True)


def oracle_agreement(spec, peer, region):
    """Mutual information of two probe proxies' classes at the landmarks of a region."""
    own, other = (oracle_chances(probed(one, one.probe.landmarks)) for one in (spec, peer))
    joint = np.einsum("dc,db,d->cb", own, other, region) + 1e-4
    joint /= joint.sum()
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    return (joint * np.log(joint / apart)).sum()


def oracle_slope(specs):
    """Regression of agreement on closeness within pseudo-users, shrunk to 0.7."""
    regions = oracle_regions(specs)
    near, agree = np.zeros((2, len(specs), len(specs)))
    for i, one in enumerate(specs):
        for j, other in enumerate(specs):
            near[i, j] = closeness(one, other)
            agree[i, j] = oracle_agreement(other, one, regions[i])
    others = ~np.eye(len(specs), dtype=bool)
    top = bottom = 0.1
    top *= 0.7
    for i in range(len(specs)):
        x, y = near[i, others[i]], agree[i, others[i]]
        top += ((x - x.mean()) * (y - y.mean())).sum()
        bottom += ((x - x.mean()) ** 2).sum()
    return max(top / bottom, 0)


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


def test_closeness_counts_for_fine_tuning_as_far_as_models_follow_the_features():
    specs = [specification_with_probe(s) for s in range(3)]
    market = js.Market.from_specifications({f"m{s}": spec for s, spec in enumerate(specs)})
    user = made_user(1)
    arrays, alive = matching.stack_users(market, [user]), market.alive

    def scores(slope):
        calibration = dataclasses.replace(market.calibration, slope=np.float32(slope))
        length = np.int32(market.length)
        found = scoring.score_market(
            market.arrays, arrays, length, alive, calibration, method="transfer"
        )
        return np.asarray(found.scores)[0, market.rows]

    none, some, full, more = (scores(slope) for slope in (0.0, 0.35, 0.7, 3.0))
    labels = np.asarray(user.labels)
    want = [oracle_transfer(probed(s, user.reduced_set.points), labels, 4) for s in specs]
    np.testing.assert_allclose(none, want, atol=1e-3)
    np.testing.assert_allclose(full - none, [2 * closeness(s, user) for s in specs], atol=1e-3)
    np.testing.assert_allclose(some, none + 0.25 * (full - none), atol=1e-5)
    np.testing.assert_allclose(full, more, atol=1e-6)


def test_hidden_directions_count_as_far_as_models_follow_the_features():
    rng = np.random.default_rng(0)
    flat = [specification_with_probe(s) for s in range(3)]
    deep = [
        dataclasses.replace(s, representation=rng.normal(size=(DIMENSION, 16)).astype(np.float32))
        for s in flat
    ]
    stranger = made_user(1, class_names=list("wxyz"))

    def scores(specs, slope):
        market = js.Market.from_specifications({f"m{i}": one for i, one in enumerate(specs)})
        market._calibration = dataclasses.replace(market.calibration, slope=np.float32(slope))
        return js.match(market, stranger, method="transfer").scores

    np.testing.assert_allclose(scores(deep, 0.0), scores(flat, 0.0), atol=1e-5)
    half = scores(deep, 0.35) - scores(flat, 0.35)
    whole = scores(deep, 0.7) - scores(flat, 0.7)
    assert np.abs(whole).min() > 1e-3
    np.testing.assert_allclose(half, 0.25 * whole, atol=1e-5)


def test_likelihood_equals_the_formula():
    specs = [specification_with_probe(s) for s in range(3)]
    market = js.Market.from_specifications({f"m{s}": spec for s, spec in enumerate(specs)})
    user = made_user(1)
    result = js.match(market, user, method="likelihood")
    labels = np.asarray(user.labels)
    chance = []
    for spec in specs:
        found = oracle_chances(probed(spec, user.reduced_set.points))
        chance.append(found[np.arange(len(labels)), labels].mean())
    # The user's own task is the second learnware's: that one is its peer.
    peer = specs[1]
    noise = (1 - float(js.inner_product(peer.kernel, peer.reduced_set, peer.reduced_set))) / 40
    reliability = np.clip(3 - result.squared_mmd[1] / noise, 0, 1)
    assert reliability > 0.5
    region = oracle_regions(specs)[1]
    agreement = [oracle_agreement(spec, peer, region) for spec in specs]
    agreement[1] = max(agreement[0], agreement[2])  # it agrees with itself: that is no evidence
    near = np.array([closeness(spec, user) for spec in specs])
    slope = oracle_slope(specs)
    np.testing.assert_allclose(float(market.calibration.slope), slope, atol=2e-2)
    rest = reliability * np.array(agreement) + slope * (near - near.mean())
    np.testing.assert_allclose(result.scores, np.array(chance) + 0.6 * rest, atol=1e-2)


def test_a_learnware_is_asked_only_for_the_classes_it_has():
    spec = specification_with_probe(1)
    fewer = dataclasses.replace(
        spec,
        proxy=js.Proxy(spec.proxy.weights[:, :2], spec.proxy.bias[:2]),
        probe=dataclasses.replace(
            spec.probe, weights=spec.probe.weights[:, :2], bias=spec.probe.bias[:2]
        ),
        class_names=spec.class_names[:2],
    )
    market = js.Market.from_specifications({"all": spec, "two": fewer})
    user = made_user(1)
    labels = np.asarray(user.labels)
    found = oracle_chances(probed(fewer, user.reduced_set.points))
    chance = np.where(labels < 2, found[np.arange(len(labels)), np.minimum(labels, 1)], 0.0)
    arrays = matching.stack_users(market, [user])
    parts = comparison.compare_classes(
        market.arrays, arrays, np.int32(2), "likelihood", peers_of(market, arrays)
    )
    np.testing.assert_allclose(parts.behaviour[1, 0], chance.mean(), atol=5e-3)
    np.testing.assert_allclose(parts.share[:2, 0], [1.0, (labels < 2).mean()], atol=1e-6)
    result = js.match(market, user)
    assert result.scores[0] > result.scores[1]


def peers_of(market, arrays):
    alive = np.zeros(market.arrays.weights.shape[0], bool)
    alive[market.rows] = True
    embedded = scoring.embed(market.arrays, arrays, np.int32(market.length))
    return peers.find_peers(market.arrays, arrays, embedded, alive, market.calibration)


def test_closeness_counts_where_near_models_agree_and_not_where_they_do_not():
    """The market's own calibration: models that follow the features, and models that do not."""
    rng = np.random.default_rng(0)
    kernel = js.Gaussian(bandwidth=np.float32(3.0))
    probe = (2 * rng.normal(size=(300, 6))).astype(np.float32)
    groups = 2 * rng.normal(size=(3, 6))  # three contexts, four learnwares in each
    habits = rng.normal(size=(3, 6, 3))
    slopes = {}
    for kind in ("of the features", "of their own"):
        specs = {}
        for i in range(12):
            points = (groups[i % 3] + rng.normal(size=(80, 6))).astype(np.float32)
            own = rng.normal(size=(6, 3))
            weights = habits[i % 3] + 0.1 * own if kind == "of the features" else own
            powers = np.exp(probe @ weights)
            labels = np.arange(80) % 3
            specs[f"m{i}"] = js.specify(
                jax.random.key(i),
                points,
                labels,
                class_names=["a", "b", "c"],
                kernel=kernel,
                feature_space="made",
                size=10,
                probe=(probe, (powers / powers.sum(1, keepdims=True)).astype(np.float32)),
            )
        slopes[kind] = float(js.Market.from_specifications(specs).calibration.slope)
    assert slopes["of the features"] > 2 * slopes["of their own"]


def test_inverse_equals_numpy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 3, 9, 12))
    matrix = (x @ x.swapaxes(-1, -2) / 12 + 0.3 * np.eye(9)).astype(np.float32)
    np.testing.assert_allclose(transfer.inverse(matrix), np.linalg.inv(matrix), atol=2e-4)


def test_assign_is_greedy_and_shares_when_classes_run_out():
    similarity = np.array([[0.9, 0.8, 0.1], [0.85, 0.2, 0.3]], np.float32)
    chosen = class_vectors.assign(similarity, np.ones((2, 3), bool))
    np.testing.assert_array_equal(chosen, [0, 0, 1])  # 0-0, then 1-2; class 1 shares the best
    nothing = class_vectors.assign(similarity, np.zeros((2, 3), bool))
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
        users = UserArrays(
            points=points[None],
            weights=np.full((1, 50), 0.02),
            labels=labels[None],
            counts=np.array([50]),
            examples=np.array([50.0]),
            class_vectors=np.zeros((1, 5, 64)),
            class_mask=np.ones((1, 5), bool),
            class_numbers=np.zeros((1, 5), int),
            by_name=np.zeros(1, bool),
        )

        def score(vectors, users=users, points=points):
            logits = (vectors @ points.T)[None, None].astype(np.float32)
            logits -= logits.mean(axis=2, keepdims=True)
            return float(transfer.explained(logits, users, transfer.OUTPUT_RIDGE)[0, 0])

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
    specs = [made_specification(s) for s in range(6)]
    near = np.array([closeness(spec, user) for spec in specs])
    chance = 0.57 * result.class_similarity.mean(axis=1) + 1.14 * near - 0.61
    want = chance + 0.6 * 0.7 * (near - near.mean())
    np.testing.assert_allclose(result.scores, want, atol=1e-3)


@pytest.mark.parametrize("learnwares", [50, 1500])
def test_shared_similarity_equals_numpy_in_small_and_large_chunks(learnwares):
    """A compiler's parallel code may differ with the size; it once did."""
    rng = np.random.default_rng(0)
    own, asked = rng.normal(size=(learnwares, 8, 16)), rng.normal(size=(8, 8, 16))
    chosen = np.full((learnwares, 8, 8), -1, np.int32)
    for row in chosen.reshape(-1, 8):
        count = rng.integers(2, 6)
        row[:count] = rng.permutation(8)[:count]
    grams = [
        np.einsum(rule, x, y).astype(np.float32)
        for rule, x, y in (
            ("lcd,qkd->lqck", own, asked),
            ("lcd,led->lce", own, own),
            ("qcd,qed->qce", asked, asked),
        )
    ]
    found = np.asarray(jax.jit(class_vectors.shared_similarity)(*grams, chosen))
    for row in range(0, learnwares, 37):
        for user in range(8):
            matched = np.flatnonzero(chosen[row, user] >= 0)
            one = own[row, chosen[row, user, matched]]
            other = asked[user, matched]
            one, other = one - one.mean(axis=0), other - other.mean(axis=0)
            norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
            want = (one * other).sum(axis=1) / norms
            np.testing.assert_allclose(found[row, user, matched], want, atol=1e-5)
