"""The four scores against plain float64 numpy, own scores, and what does not lift a learnware."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import scoring_oracles as oracles
from conftest import alike
from drawn_markets import (
    SPACE,
    D,
    NearAndAlike,
    assert_best_of,
    drawn,
    drawn_market,
    drawn_specifications,
    drawn_user,
    near_user,
    one_width,
)

import jaxspec as js
from jaxspec.scoring import METHODS, Likelihood, as_score, needs_labels, needs_peers
from jaxspec.specify import ProbeProxy

NAMES = tuple(METHODS)
KINDS = {
    "without probes": {"probe": False},
    "with probes": {},
    "all with probes": {"classes": 3},
}


def market_of(kind, count=10):
    specs = {f"m{i}": drawn(2 * i + 1, **KINDS[kind]) for i in range(count)}
    if kind == "all with probes":
        specs = {f"m{i}": drawn(3 * i + 1, classes=3) for i in range(count)}
        for i in range(0, count, 2):  # half of them have the same classes
            specs[f"m{i}"] = dataclasses.replace(specs[f"m{i}"], class_names=("a", "b", "c"))
    return specs, js.Market(SPACE, specs)


# Users here often have classes that no learnware has.
pytestmark = pytest.mark.filterwarnings("ignore::jaxspec.ClassNameWarning")


@pytest.fixture(autouse=True, scope="module")
def fewer_programs():
    with one_width():
        yield


# The formulas


@pytest.mark.parametrize("label_spaces", ["homogeneous", "heterogeneous"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", NAMES)
def test_scores_equal_the_formulas_in_float64(method, kind, label_spaces):
    specs, market = market_of(kind)
    users = [drawn_user(1), near_user(specs["m3"], names="cde"), drawn_user(2, "ab", n=70)]
    found = js.match(market, users, method=method, label_spaces=label_spaces)
    for user, one in zip(users, found, strict=True):
        by_name = label_spaces == "homogeneous"
        want = oracles.SCORES[method](SPACE, list(specs.values()), user, by_name)
        # Probabilities at landmarks are kept in 255 steps, and one may fall on either side of one.
        np.testing.assert_allclose(one.scores, want, atol=3e-4 if method == "likelihood" else 5e-5)


@pytest.mark.parametrize("label_spaces", ["homogeneous", "heterogeneous"])
def test_squared_mmd_similarity_and_class_map_equal_float64(label_spaces):
    specs, market = market_of("with probes")
    user = drawn_user(4, "abcd")
    found = js.match(market, user, method="classwise", label_spaces=label_spaces)
    for row, spec in enumerate(specs.values()):
        chosen = oracles.class_map(spec, user, label_spaces == "homogeneous")
        np.testing.assert_array_equal(found.class_map[row], chosen)
        alike = oracles.class_similarity(spec, user, chosen)
        np.testing.assert_allclose(found.class_similarity[row], alike, atol=1e-5)
        apart = oracles.squared_mmd(SPACE.kernel, spec, user)
        np.testing.assert_allclose(found.squared_mmd[row], apart, atol=1e-5)


def test_a_user_near_a_learnware_has_it_as_a_reliable_peer():
    """So that agreement counts in the formulas that are compared here."""
    specs, market = market_of("all with probes")
    user, peer = near_user(specs["m3"]), specs["m3"]
    apart = oracles.squared_mmd(SPACE.kernel, peer, user)
    noise = (1 - oracles.inner(SPACE.kernel, peer, peer)) / 12
    assert 3 - apart / noise > 0.5
    found = js.match(market, user, method=Everything("reliability")).scores
    np.testing.assert_allclose(found, min(3 - apart / noise, 1), atol=1e-3)
    found = js.match(market, user, method=Everything("agreement")).scores
    weights = oracles.region(SPACE, list(specs.values()), peer)
    want = [oracles.agreement(SPACE, one, peer, weights) for one in specs.values()]
    want[3] = max(value for i, value in enumerate(want) if i != 3)
    assert max(want) > 0.01
    np.testing.assert_allclose(found, want, atol=1e-4)


def test_the_slope_of_a_market_equals_the_shrunk_regression():
    for kind in KINDS:
        specs, market = market_of(kind)
        want = oracles.slope(SPACE, list(specs.values()))
        np.testing.assert_allclose(float(market.calibration.slope), want, atol=1e-3)


def with_slope(market, slope):
    arrays = market.arrays
    calibration = dataclasses.replace(arrays.calibration, slope=jnp.float32(slope))
    return dataclasses.replace(arrays, calibration=calibration)


def scores_at(market, user, slope, label_spaces="auto"):
    users = js.user_arrays(market, user, label_spaces=label_spaces)
    found = js.score_arrays(with_slope(market, slope), users, method="transfer")
    return np.asarray(found)[market.rows]


def test_closeness_counts_for_fine_tuning_as_far_as_models_follow_the_features():
    specs, market = market_of("all with probes")
    user = drawn_user(1)
    none, half, full, more = (
        scores_at(market, user, slope, "homogeneous") for slope in (0.0, 0.35, 0.7, 3.0)
    )
    want = [oracles.explained_by_outputs(SPACE, one, user) for one in specs.values()]
    near = [oracles.closeness(SPACE.kernel, one, user) for one in specs.values()]
    np.testing.assert_allclose(none, want, atol=5e-5)
    np.testing.assert_allclose(full - none, 2 * np.array(near), atol=5e-5)
    np.testing.assert_allclose(half, none + 0.25 * (full - none), atol=1e-5)
    np.testing.assert_allclose(full, more, atol=1e-6)


def test_hidden_directions_count_as_far_as_models_follow_the_features():
    specs, market = market_of("all with probes")
    flat = {name: dataclasses.replace(one, representation=None) for name, one in specs.items()}
    plain, stranger = js.Market(SPACE, flat), drawn_user(1, "wxyz")
    lift = {s: scores_at(market, stranger, s) - scores_at(plain, stranger, s) for s in (0, 0.35, 5)}
    want = [
        oracles.explained_by_hidden(one, stranger)
        - oracles.explained_by_outputs(SPACE, one, stranger)
        for one in specs.values()
    ]
    assert np.abs(want).min() > 1e-3
    np.testing.assert_allclose(lift[0], 0, atol=1e-5)
    np.testing.assert_allclose(lift[0.35], 0.25 * np.array(want), atol=5e-5)
    np.testing.assert_allclose(lift[5], want, atol=5e-5)


def test_closeness_counts_where_near_models_agree_and_not_where_they_do_not():
    """The market's own calibration: models that follow the features, and models that do not."""
    rng = np.random.default_rng(0)
    landmarks = np.asarray(SPACE.landmarks)
    contexts = 2 * rng.normal(size=(3, D))  # four learnwares in each
    habits = rng.normal(size=(3, 20, 3))
    slopes = {}
    for kind in ("of the features", "of their own"):
        specs = {}
        for i in range(12):
            spec = drawn(3 * i + 1, classes=3)
            points = contexts[i % 3] + rng.normal(size=(6, D)) + landmarks.mean(axis=0)
            own = rng.normal(size=(20, 3))
            weights = habits[i % 3] + 0.1 * own if kind == "of the features" else own
            specs[f"m{i}"] = dataclasses.replace(
                spec,
                reduced_set=js.ReducedSet(jnp.float32(points), jnp.full(6, 1 / 6, jnp.float32)),
                probe_proxy=ProbeProxy(jnp.float32(weights), jnp.zeros(3), jnp.float32(0.9)),
            )
        slopes[kind] = float(js.Market(SPACE, specs).calibration.slope)
    assert slopes["of the features"] > 2 * slopes["of their own"]


# Own scores


def test_an_own_score_is_the_function_of_the_evidence_that_it_says():
    specs, market = market_of("with probes")
    user = drawn_user(1)
    found = js.match(market, user, method=NearAndAlike(2.0), label_spaces="homogeneous")
    assert found.method == "near and alike"
    want = [
        oracles.class_similarity(one, user, oracles.class_map(one, user, True)).mean()
        - 2.0 * oracles.squared_mmd(SPACE.kernel, one, user)
        for one in specs.values()
    ]
    np.testing.assert_allclose(found.scores, want, atol=1e-5)
    best = js.match(market, user, method=NearAndAlike(2.0), label_spaces="homogeneous", k=4)
    assert_best_of(best, found, 4)


@dataclasses.dataclass(frozen=True)
class Everything:
    """A score that reads all evidence, each field on a place of its own."""

    field: str
    name: str = "everything"

    @property
    def needs(self):
        always = ("mean_closeness", "slope", "following", "by_name", "has_probe")
        free = (*always, "has_representation")
        return () if self.field in free else (self.field,)

    def __call__(self, evidence):
        return jnp.zeros_like(evidence.squared_mmd) + getattr(evidence, self.field)


@pytest.mark.slow
def test_every_field_of_the_evidence_is_what_its_description_says():
    specs, market = market_of("with probes")
    listed, user = list(specs.values()), drawn_user(1)
    maps = [oracles.class_map(one, user, True) for one in listed]
    near = np.array([oracles.closeness(SPACE.kernel, one, user) for one in listed])
    has_probe = np.array([one.probe_proxy is not None for one in listed])
    chance = [
        oracles.label_probability(SPACE, one, user, chosen)
        for one, chosen in zip(listed, maps, strict=True)
    ]
    sample = oracles.sampled(listed)
    wanted = {
        "closeness": near,
        "share": [oracles.share(user, chosen) for chosen in maps],
        "label_probability": np.where(has_probe, chance, np.nan),
        "explained_by_outputs": [oracles.explained_by_outputs(SPACE, one, user) for one in listed],
        "explained_by_hidden": [
            np.nan if one.representation is None else oracles.explained_by_hidden(one, user)
            for one in listed
        ],
        "has_probe": has_probe * 1.0,
        "has_representation": [one.representation is not None for one in listed],
        "by_name": np.ones(len(listed)),
        "mean_closeness": np.full(
            len(listed),
            np.mean([oracles.closeness(SPACE.kernel, one, user) for one in sample]),
        ),
        "slope": np.full(len(listed), oracles.slope(SPACE, listed)),
    }
    for field, want in wanted.items():
        method = Everything(field)
        found = js.match(market, user, method=method, label_spaces="homogeneous").scores
        want = np.asarray(want, np.float64)
        known = np.isfinite(want)
        np.testing.assert_allclose(found[known], want[known], atol=1e-3, err_msg=field)


class Unhashable:
    name, needs = "unhashable", ("closeness",)
    __hash__ = None

    def __call__(self, evidence):
        return evidence.closeness


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        ("best", ValueError, r"method: expected one of \('rkme', .*got 'best'"),
        (3, TypeError, "method: expected one of .* or a score .* got a int"),
        (js.Rkme, TypeError, "method: .*got a type"),
        (lambda evidence: evidence.closeness, TypeError, "method: .*got a function"),
        (NearAndAlike(needs=("speed",)), ValueError, r"method.needs: .*got \['speed'\]"),
        (Unhashable(), TypeError, "method: expected a hashable score"),
    ],
)
def test_what_is_no_score_is_refused_and_the_argument_is_named(method, error, message):
    market, user = drawn_market(3), drawn_user(1)
    with pytest.raises(error, match=message):
        js.match(market, user, method=method)
    with pytest.raises(error, match=message):
        js.match(market, user, method=method, k=2)
    with pytest.raises(error, match=message):
        js.score_arrays(market.arrays, js.user_arrays(market, user), method=method)


@dataclasses.dataclass(frozen=True)
class Returning:
    """A score that returns what it is told to."""

    kind: str
    name: str = "returning"
    needs: tuple[str, ...] = ("squared_mmd",)

    def __call__(self, evidence):
        if self.kind == "shape":
            return evidence.squared_mmd.sum(axis=1)
        if self.kind == "integers":
            return evidence.squared_mmd.astype(int)
        return jnp.where(jnp.arange(len(evidence.squared_mmd)) % 2 == 0, -0.0, 0.0)[:, None]


def test_a_score_that_returns_something_else_is_refused_and_the_argument_is_named():
    market, user = drawn_market(3), drawn_user(1)
    users = js.user_arrays(market, user)
    for kind, error in (("shape", ValueError), ("integers", TypeError)):
        for ask in (
            lambda method: js.match(market, user, method=method),
            lambda method: js.match(market, user, method=method, k=2),
            lambda method: js.score_arrays(market.arrays, users, method=method),
        ):
            with pytest.raises(error, match="method: expected 'returning' to return"):
                ask(Returning(kind))


def test_minus_zero_equals_zero_so_that_equal_scores_keep_their_order():
    market = drawn_market(9)
    found = js.match(market, drawn_user(1), k=9, method=Returning("zeros"))
    assert found.ids == market.ids


def test_a_name_and_its_object_are_the_same_score():
    market, user = drawn_market(6), drawn_user(1)
    for name, score in METHODS.items():
        assert as_score("method", name) is score
        assert as_score("method", type(score)()) == score
        one, other = js.match(market, user, method=name), js.match(market, user, method=score)
        np.testing.assert_array_equal(one.scores, other.scores)
        assert one.method == other.method == name


def test_scores_say_whether_they_need_labels_and_peers():
    assert [needs_labels(METHODS[name]) for name in NAMES] == [False, False, True, True]
    assert [needs_peers(METHODS[name]) for name in NAMES] == [False, False, True, False]
    assert needs_labels(NearAndAlike(needs=("share",)))
    assert not needs_labels(NearAndAlike())
    silent = dataclasses.replace(drawn_user(1), labels=None)
    with pytest.raises(ValueError, match="method: 'near and alike' needs the labels"):
        js.match(drawn_market(3), silent, method=NearAndAlike(needs=("agreement", "similarity")))


def test_another_constant_changes_the_score_as_the_formula_says():
    market, user = drawn_market(6), drawn_user(1)
    plain, heavy = (
        js.match(market, user, method=js.Classwise(closeness=c)).scores for c in (0.0, 5.0)
    )
    near = [oracles.closeness(SPACE.kernel, one, user) for one in drawn_specifications(6).values()]
    np.testing.assert_allclose(heavy - plain, 5 * np.array(near), atol=2e-5)


def test_default_method_follows_the_reuse_and_the_label_spaces():
    market = drawn_market(6)
    same, stranger = drawn_user(1), drawn_user(1, "wxyz")
    silent = dataclasses.replace(same, labels=None)
    assert js.match(market, same).method == "likelihood"
    assert js.match(market, same, reuse="fine-tune").method == "transfer"
    assert js.match(market, stranger).method == "transfer"
    assert js.match(market, stranger, reuse="direct").method == "likelihood"
    assert js.match(market, silent).method == "classwise"
    found = js.match(market, [same, stranger, silent])
    assert [one.method for one in found] == ["likelihood", "transfer", "classwise"]


# What an owner could do to a specification


def scaled(spec, *, proxy=1.0, weights=1.0, probe=1.0):
    return dataclasses.replace(
        spec,
        proxy=js.Proxy(spec.proxy.weights * proxy, spec.proxy.bias * proxy),
        reduced_set=js.ReducedSet(spec.reduced_set.points, spec.reduced_set.weights * weights),
        probe_proxy=dataclasses.replace(
            spec.probe_proxy,
            weights=spec.probe_proxy.weights * probe,
            bias=spec.probe_proxy.bias * probe,
        ),
    )


@pytest.mark.parametrize("method", NAMES[1:])
@pytest.mark.parametrize("factor", [0.1, 0.9, 10.0])
@pytest.mark.parametrize("part", ["proxy", "weights", "probe"])
def test_scaling_does_not_lift(method, factor, part):
    spec = drawn(1, classes=3)
    market = js.Market(SPACE, {"plain": spec, "scaled": scaled(spec, **{part: factor})})
    for user in (drawn_user(1), near_user(spec)):
        plain, changed = js.match(market, user, method=method).scores
        assert changed <= plain + 1e-4


def with_more_classes(spec, extra, seed=0):
    """Add classes with random vectors of the size of the others'."""
    rng = np.random.default_rng(seed)

    def widen(weights):
        weights = np.asarray(weights)
        more = weights.std() * rng.normal(size=(*weights.shape[:-1], extra))
        return jnp.float32(np.concatenate([weights, more], axis=-1))

    return dataclasses.replace(
        spec,
        proxy=js.Proxy(widen(spec.proxy.weights), widen(spec.proxy.bias)),
        probe_proxy=dataclasses.replace(
            spec.probe_proxy,
            weights=widen(spec.probe_proxy.weights),
            bias=widen(spec.probe_proxy.bias),
        ),
        class_names=(*spec.class_names, *(f"extra {i}" for i in range(extra))),
    )


@pytest.mark.parametrize("method", ["classwise", "likelihood"])
def test_further_classes_change_nothing_for_a_user_of_the_same_names(method):
    spec = drawn(12, classes=6)
    names = "".join(spec.class_names[:3])
    specs = {"plain": spec, "more": with_more_classes(spec, 4), "many": with_more_classes(spec, 12)}
    found = js.match(js.Market(SPACE, specs), drawn_user(1, names), method=method)
    assert found.label_spaces == "homogeneous"
    scores = found.scores
    if method == "likelihood":  # agreement looks at all classes: the part for the labels is equal
        scores = js.match(
            js.Market(SPACE, specs), drawn_user(1, names), method=Likelihood(weight=0.0)
        ).scores
    np.testing.assert_allclose(scores[1:], scores[0], atol=1e-4)


@pytest.mark.parametrize("method", alike("likelihood", "transfer", "classwise"))
def test_a_copied_reduced_set_does_not_pass_its_owner(method):
    """The owner's proxies know the classes, the copier's do not."""
    rng = np.random.default_rng(3)
    centres, labels, kinds = 2 * rng.normal(size=(3, D)), np.arange(30) % 3, ["a", "b", "c"]

    def drawn_points():
        return (centres[labels] + 0.4 * rng.normal(size=(30, D))).astype(np.float32)

    probe, fresh = drawn_points(), drawn_points()
    space = js.Space("clusters", js.Gaussian(bandwidth=2.0), dimension=D, probe=probe)
    user = js.specify_user(space, drawn_points(), labels, class_names=kinds)
    good = np.full((30, 3), 0.05)
    good[np.arange(30), labels] = 0.9
    # To name other classes is no harm to a model that is tuned, to know none of them is.
    bad = rng.dirichlet(np.ones(3), size=30) if method == "transfer" else np.roll(good, 1, axis=1)
    made = {"class_names": kinds, "size": 8}
    owner = js.specify(space, fresh, labels, probe_outputs=good, **made)
    copier = js.specify(space, fresh, rng.permutation(labels), probe_outputs=bad, **made)
    copier = dataclasses.replace(copier, reduced_set=owner.reduced_set)
    market = js.Market(space, {"owner": owner, "copier": copier})
    scores = js.match(market, user, method=method).scores
    assert scores[0] > scores[1] + 0.05


def test_a_learnware_is_asked_only_for_the_classes_it_has():
    spec = drawn(12, classes=6)
    names = spec.class_names[:4]
    fewer = dataclasses.replace(
        spec,
        proxy=js.Proxy(spec.proxy.weights[:, :2], spec.proxy.bias[:2]),
        probe_proxy=dataclasses.replace(
            spec.probe_proxy,
            weights=spec.probe_proxy.weights[:, :2],
            bias=spec.probe_proxy.bias[:2],
        ),
        class_names=names[:2],
    )
    market, user = js.Market(SPACE, {"all": spec, "two": fewer}), drawn_user(1, "".join(names))
    for field in ("share", "label_probability"):
        found = js.match(market, user, method=Everything(field), label_spaces="homogeneous").scores
        for row, one in enumerate((spec, fewer)):
            chosen = oracles.class_map(one, user, True)
            want = oracles.share(user, chosen)
            if field == "label_probability":
                want = oracles.label_probability(SPACE, one, user, chosen)
            np.testing.assert_allclose(found[row], want, atol=1e-4)


def test_learnwares_without_any_class_of_the_user_get_finite_scores():
    market = drawn_market(6)
    stranger = drawn_user(1, "wxyz")
    for method in NAMES:
        found = js.match(market, stranger, method=method, label_spaces="homogeneous")
        assert (found.class_map == -1).all()
        assert (found.class_similarity == -1).all()
        assert np.isfinite(found.scores).all()
