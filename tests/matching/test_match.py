"""The matching pass against plain numpy loops over learnwares."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import DIMENSION, KERNEL, SPACE, made_specification, made_task, made_user, names

import jaxspec as js
from jaxspec.market.market import ROW_FIELDS
from jaxspec.matching import match as matching
from jaxspec.scoring import embedding_pass as embeddings
from jaxspec.scoring import score_pass as scoring


def oracle_squared_mmd(spec, user):
    """|Phi_l - Phi_T|^2 in float64, from the formula."""
    a, v = (np.asarray(x, np.float64) for x in (spec.reduced_set.points, spec.reduced_set.weights))
    b, w = (np.asarray(x, np.float64) for x in (user.reduced_set.points, user.reduced_set.weights))

    def total(x, p, y, q):
        squared = ((x[:, None] - y[None]) ** 2).sum(axis=2)
        return p @ np.exp(-squared / (2 * float(KERNEL.bandwidth) ** 2)) @ q

    return total(a, v, a, v) + total(b, w, b, w) - 2 * total(a, v, b, w)


def alive(market):
    mask = np.zeros(market.arrays.weights.shape[0], bool)
    mask[market.slots] = True
    return mask


def oracle_cosines(spec, user):
    def unit(proxy):
        weights = np.asarray(proxy.weights, np.float64).T
        weights = weights - weights.mean(axis=0)
        return weights / np.linalg.norm(weights, axis=1, keepdims=True)

    return unit(spec.proxy) @ unit(user.proxy).T  # (learnware classes, user classes)


def test_squared_mmd_equals_float64_oracle(market):
    user = made_user(1)
    got = js.match(market, user).squared_mmd
    want = [oracle_squared_mmd(spec, user) for _, spec in market.items()]
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_rkme_is_minus_the_squared_mmd(market):
    result = js.match(market, made_user(1), method="rkme")
    np.testing.assert_array_equal(result.scores, -result.squared_mmd)


def test_homogeneous_similarity_compares_classes_of_one_name(market):
    user = made_user(1)
    result = js.match(market, user)
    for row, (_, spec) in enumerate(market.items()):
        np.testing.assert_allclose(
            result.class_similarity[row], np.diag(oracle_cosines(spec, user)), atol=1e-5
        )
    np.testing.assert_array_equal(result.class_map, np.tile(np.arange(4), (6, 1)))


def test_names_decide_not_positions(market):
    order = [2, 0, 3, 1]
    user = made_user(1)
    proxy = js.Proxy(np.asarray(user.proxy.weights)[:, order], np.asarray(user.proxy.bias)[order])
    shuffled = dataclasses.replace(
        user, proxy=proxy, class_names=tuple(user.class_names[k] for k in order)
    )
    plain, moved = js.match(market, user), js.match(market, shuffled)
    np.testing.assert_allclose(moved.scores, plain.scores, atol=1e-6)
    np.testing.assert_allclose(moved.class_similarity, plain.class_similarity[:, order], atol=1e-6)
    np.testing.assert_array_equal(moved.class_map[0], order)


def test_heterogeneous_users_get_every_class_assigned_once(market):
    user = made_user(1, class_names=["w", "x", "y", "z"])
    result = js.match(market, user)
    for row, (_, spec) in enumerate(market.items()):
        cosines = oracle_cosines(spec, user)
        chosen = result.class_map[row]
        assert sorted(chosen) == [0, 1, 2, 3]
        np.testing.assert_allclose(
            result.class_similarity[row], cosines[chosen, np.arange(4)], atol=1e-5
        )
    # For the user's own task the greedy choice is the best of all assignments.
    cosines = oracle_cosines(market["m1"], user)
    best = max(itertools.permutations(range(4)), key=lambda p: cosines[p, range(4)].sum())
    np.testing.assert_array_equal(result.class_map[1], best)
    assert result.top_k(1)[0][0] == "m1"


def test_more_user_classes_than_learnware_classes_share_the_best(market):
    user = made_user(2, classes=6, class_names=list("uvwxyz"))
    result = js.match(market, user)
    assert ((result.class_map >= 0) & (result.class_map < 4)).all()
    first = {tuple(sorted(set(row))) for row in result.class_map.tolist()}
    assert first == {(0, 1, 2, 3)}


def test_label_spaces_can_be_overridden(market):
    user = made_user(1)
    free = js.match(market, user, label_spaces="heterogeneous")
    assert (free.class_similarity.mean(1) >= js.match(market, user).class_similarity.mean(1)).any()
    stranger = made_user(1, class_names=["class a", "x", "y", "z"])
    named = js.match(market, stranger, label_spaces="homogeneous")
    np.testing.assert_array_equal(named.class_map, np.tile([0, -1, -1, -1], (6, 1)))
    np.testing.assert_array_equal(named.class_similarity[:, 1:], -1)


def test_a_users_own_task_comes_first(market):
    for method in matching.METHODS:
        for seed in range(6):
            result = js.match(market, made_user(seed), method=method)
            assert result.top_k(1)[0][0] == f"m{seed}"


def test_a_batch_equals_one_by_one(market):
    users = [made_user(0), made_user(1, classes=3), made_user(2, per_class=50), made_user(3)]
    for method in matching.METHODS:
        batch = js.match(market, users, method=method)
        assert batch.scores.shape == (4, 6)
        for q, user in enumerate(users):
            one = js.match(market, user, method=method)
            k = len(user.class_names)
            np.testing.assert_allclose(batch.scores[q], one.scores, atol=2e-6)
            np.testing.assert_allclose(batch.squared_mmd[q], one.squared_mmd, atol=2e-6)
            np.testing.assert_array_equal(batch.class_map[q][:, :k], one.class_map)
            assert batch.top_k(2)[q][0][0] == one.top_k(2)[0][0]
            assert batch.explain("m0", user=q)[0][0] == one.explain("m0")[0][0]


@pytest.mark.parametrize("method", scoring.METHODS)
def test_jit_equals_eager(market, method):
    arrays = matching.stack_users(market, [made_user(1), made_user(2)])
    length = np.int32(len(market))
    jitted = scoring.score_market(
        market.arrays, arrays, length, alive(market), market.calibration, method=method
    )
    with jax.disable_jit():
        eager = scoring.score_market(
            market.arrays, arrays, length, alive(market), market.calibration, method=method
        )
    np.testing.assert_allclose(jitted.scores, eager.scores, atol=1e-4)
    np.testing.assert_array_equal(jitted.class_map, eager.class_map)


@pytest.mark.parametrize("method", scoring.METHODS)
def test_chunks_do_not_change_the_result(market, monkeypatch, method):
    arrays = matching.stack_users(market, [made_user(1, per_class=40), made_user(2)])
    length = np.int32(len(market))
    whole = scoring.score_market(
        market.arrays, arrays, length, alive(market), market.calibration, method=method
    )
    monkeypatch.setattr(embeddings, "block_entries", lambda: 2000)
    jax.clear_caches()
    parts = scoring.score_market(
        market.arrays, arrays, length, alive(market), market.calibration, method=method
    )
    jax.clear_caches()
    seen = slice(0, int(length))  # other slots hold what `length` leaves uncomputed
    np.testing.assert_allclose(parts.scores[:, seen], whole.scores[:, seen], atol=1e-5)
    np.testing.assert_array_equal(parts.class_map[:, seen], whole.class_map[:, seen])


@pytest.mark.parametrize("method", scoring.METHODS)
def test_no_array_of_market_by_points_by_points_exists(method):
    """M m n is 2 GB here; the compiled pass needs the results and a few blocks."""
    market = js.Market.from_specifications({"m0": made_specification(0)})
    arrays = matching.stack_users(market, [made_user(1, per_class=30)])
    slots = 100_000
    rows = {
        name: jax.ShapeDtypeStruct((slots, *value.shape[1:]), value.dtype)
        for name, value in ((n, getattr(market.arrays, n)) for n in ROW_FIELDS)
    }
    large = dataclasses.replace(market.arrays, **rows)
    compiled = scoring.score_market.lower(
        large, arrays, np.int32(0), np.zeros(slots, bool), market.calibration, method=method
    ).compile()
    budget = max(100 * 2**20, 8 * embeddings.block_entries())  # two blocks on an accelerator
    assert compiled.memory_analysis().temp_size_in_bytes < budget


def test_users_of_three_to_eight_classes_compile_nothing_new(market, compile_counter):
    for reuse in matching.REUSES:  # users of over four classes are strangers here
        js.match(market, made_user(1, classes=4), reuse=reuse)
    with compile_counter() as counter:
        for classes in (3, 5, 7, 8):
            js.match(market, made_user(1, classes=classes))
    assert counter.count == 0


@pytest.mark.parametrize("method", matching.METHODS)
def test_order_of_learnwares_does_not_matter(market, method):
    user = made_user(4)
    turned = js.Market.from_specifications(dict(reversed(list(market.items()))))
    a, b = js.match(market, user, method=method), js.match(turned, user, method=method)
    np.testing.assert_allclose(a.scores, b.scores[::-1], atol=1e-6)


@pytest.mark.parametrize("kind", [js.Laplacian, js.InverseMultiquadric])
def test_other_kernels_match_too(kind):
    kernel = kind(bandwidth=4.0)
    specs = {f"m{s}": dataclasses.replace(made_specification(s), kernel=kernel) for s in range(3)}
    user = dataclasses.replace(made_user(1), kernel=kernel)
    result = js.match(js.Market.from_specifications(specs), user)
    want = [js.squared_mmd(kernel, s.reduced_set, user.reduced_set) for s in specs.values()]
    np.testing.assert_allclose(result.squared_mmd, want, atol=1e-6)


def scaled(spec, proxy=1.0, weights=1.0):
    return dataclasses.replace(
        spec,
        proxy=js.Proxy(spec.proxy.weights * proxy, spec.proxy.bias * proxy),
        reduced_set=js.ReducedSet(spec.reduced_set.points, spec.reduced_set.weights * weights),
    )


@pytest.mark.parametrize("class_names", [None, ["w", "x", "y", "z"]])
def test_scaling_does_not_lift_a_learnware(market, class_names):
    user, spec = made_user(1, class_names=class_names), made_specification(3)
    for change in ({"proxy": 10.0}, {"proxy": 0.1}, {"weights": 5.0}, {"weights": 0.9}):
        changed = market.add("scaled", scaled(spec, **change))
        scores = js.match(changed, user).scores  # of one market: a score is relative to it
        assert scores[-1] <= scores[3] + 1e-5


def test_a_copied_reduced_set_does_not_win(market):
    thief = dataclasses.replace(
        made_specification(3), reduced_set=made_specification(1).reduced_set
    )
    result = js.match(market.add("thief", thief), made_user(1))
    assert result.top_k(1)[0][0] == "m1"
    assert result.scores[-1] < result.scores[1] - 0.1


def test_the_result_explains_itself(market):
    result = js.match(market, made_user(1))
    top = result.top_k(3)
    assert [score for _, score in top] == sorted(result.scores, reverse=True)[:3]
    rows = result.explain("m1")
    assert [row[0] for row in rows] == names(4)
    assert [row[1] for row in rows] == names(4)
    np.testing.assert_allclose([row[2] for row in rows], result.class_similarity[1])
    assert result.best_for_class() == dict.fromkeys(names(4), "m1")
    assert len(result.top_k(100)) == 6


def test_bad_input_is_named(market):
    user = made_user(1)
    with pytest.raises(ValueError, match="method: expected one of"):
        js.match(market, user, method="best")
    with pytest.raises(ValueError, match="label_spaces: expected one of"):
        js.match(market, user, label_spaces="same")
    with pytest.raises(ValueError, match="user: expected at least one"):
        js.match(market, [])
    with pytest.raises(TypeError, match="user: expected a UserSpecification"):
        js.match(market, [made_specification(0)])
    with pytest.raises(TypeError, match="market: expected a Market"):
        js.match({"m0": made_specification(0)}, user)
    with pytest.raises(ValueError, match="'elsewhere'.*'made-features'"):
        js.match(market, dataclasses.replace(user, feature_space="elsewhere"))
    with pytest.raises(ValueError, match=r"user\[1\].*Laplacian.*Gaussian"):
        js.match(market, [user, dataclasses.replace(user, kernel=js.Laplacian(bandwidth=1.0))])
    empty = js.Market.from_specifications({"m0": made_specification(0)}).remove("m0")
    with pytest.raises(ValueError, match="got an empty market"):
        js.match(empty, user)
    points = np.array(user.reduced_set.points)
    points[1, 1] = np.inf
    broken = js.ReducedSet(points, user.reduced_set.weights)
    with pytest.raises(ValueError, match="user: its specification holds NaN"):
        js.match(market, dataclasses.replace(user, reduced_set=broken))
    with pytest.raises(ValueError, match="k: expected at least 1"):
        js.match(market, user).top_k(0)
    for nobody in (None, made_specification(0), {"me": user}, 3):
        for ask in (js.match, js.top_k):
            with pytest.raises(TypeError, match="user: expected a UserSpecification or a sequence"):
                ask(market, nobody)
    for option in ("method", "reuse", "label_spaces"):
        for value in (["rkme"], np.array(["rkme", "classwise"]), 1):
            with pytest.raises(ValueError, match=f"{option}: expected one of"):
                js.match(market, user, **{option: value})
    result = js.match(market, [user, user])
    for k in (2.0, "2", True):
        with pytest.raises(TypeError, match="k: expected an integer"):
            result.top_k(k)
    with pytest.raises(KeyError, match="learnware: expected an id of the match, got 'nobody'"):
        result.explain("nobody")
    for look in (result.best_for_class, lambda user: result.explain("m0", user)):
        with pytest.raises(IndexError, match=r"user: expected 0\.\.1, got 2"):
            look(user=2)


def changed(user, **fields):
    """The user with another reduced set or proxy where a field of these is given."""
    weights, points = fields.pop("weights", None), fields.pop("points", None)
    phi, vectors = user.reduced_set, fields.pop("vectors", None)
    if weights is not None or points is not None:
        fields["reduced_set"] = js.ReducedSet(
            phi.points if points is None else points, phi.weights if weights is None else weights
        )
    if vectors is not None:
        fields["proxy"] = js.Proxy(vectors, user.proxy.bias)
    return dataclasses.replace(user, **fields)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda u: {"labels": u.labels + 1}, ValueError, r"labels: expected values in 0\.\.3"),
        (lambda u: {"labels": u.labels - 1}, ValueError, r"labels: expected values in 0\.\.3"),
        (lambda u: {"labels": u.labels[:1]}, ValueError, r"labels: expected shape \(40,\)"),
        (lambda u: {"labels": u.labels * 1.0}, TypeError, "labels: expected integer"),
        (lambda u: {"class_names": ("a", "b", "c", "a")}, ValueError, "class_names: .*different"),
        (lambda u: {"class_names": ("a", "b")}, ValueError, r"proxy.weights of shape \(6, 2\)"),
        (lambda u: {"weights": u.reduced_set.weights[:1]}, ValueError, "reduced_set.weights of sh"),
        (lambda u: {"points": u.reduced_set.points[0]}, ValueError, r"points of shape \(n, d\)"),
        (lambda u: {"vectors": u.proxy.weights[:1]}, ValueError, r"proxy.weights of shape \(6, 4"),
        (lambda u: {"vectors": u.proxy.weights[:, :1]}, ValueError, "proxy.weights of shape"),
        (lambda u: {"vectors": u.proxy.weights * 1e20}, ValueError, "a number of .* in proxy.wei"),
        (lambda u: {"points": u.reduced_set.points * 1e20}, ValueError, "in reduced_set.points"),
        (lambda u: {"reduced_set": None}, TypeError, "expected a ReducedSet and a Proxy in it"),
        (lambda u: {"kernel": None}, TypeError, "kernel: expected a kernel"),
    ],
)
def test_a_user_specification_that_is_off_is_refused_and_not_broadcast(
    market, change, error, message
):
    user = made_user(1)
    broken = changed(user, **change(user))
    with pytest.raises(error, match="user: .*" + message):
        js.match(market, broken)
    with pytest.raises(error, match=r"user\[1\]: .*" + message):
        js.match(market, [user, broken])


@pytest.mark.parametrize("method", scoring.METHODS)
def test_answers_are_the_same_with_x64_on(market, method):
    users = [made_user(1), made_user(2, classes=3), made_user(3, class_names=["w", "x", "y", "z"])]
    want, best = js.match(market, users, method=method), js.top_k(market, users, 3, method=method)
    with jax.enable_x64(True):
        got = js.match(market, users, method=method)
        best_with = js.top_k(market, users, 3, method=method)
    for field in ("scores", "squared_mmd", "class_similarity", "class_map"):
        np.testing.assert_array_equal(getattr(got, field), getattr(want, field))
    assert [one.top_k(3) for one in best_with] == [one.top_k(3) for one in best]


@pytest.mark.parametrize("reuse", ["direct", "fine-tune"])
def test_index_and_stream_answer_the_same_with_x64_on(market, tmp_path, reuse):
    market.save(tmp_path / "market")
    user = made_user(1)

    def answers():
        found = js.Index.build(market).search(user, 3, reuse=reuse)
        return found, js.stream_top_k(tmp_path / "market", user, 3, reuse=reuse)

    want = answers()
    with jax.enable_x64(True):
        got = answers()
    for one, other in zip(got, want, strict=True):
        assert one.ids == other.ids
        np.testing.assert_array_equal(one.scores, other.scores)
        np.testing.assert_array_equal(one.class_map, other.class_map)


def test_all_of_a_market_works_with_x64_on(tmp_path):
    with jax.enable_x64(True):
        probe = np.random.default_rng(0).normal(size=(40, DIMENSION)) * 2
        specs = {}
        for seed in range(3):
            features, labels = made_task(seed)
            outputs = np.full((len(features), 4), 0.25)
            specs[f"m{seed}"] = js.specify(
                jax.random.key(seed),
                features.astype(np.float64),
                labels,
                class_names=names(4),
                teacher=outputs,
                probe=(probe, outputs[:40]),
                hidden=features,
                kernel=js.Gaussian(bandwidth=jnp.float64(3.0)),
                size=10,
                feature_space=SPACE,
            )
        assert specs["m0"].reduced_set.points.dtype == np.float64
        specs["m0"].save(tmp_path / "m0.safetensors")
        specs["m0"] = js.Specification.load(tmp_path / "m0.safetensors")
        market = js.Market.from_specifications(specs).add("m3", specs["m1"]).remove("m1")
        market.save(tmp_path / "market")
        loaded = js.Market.load(tmp_path / "market")
        features, labels = made_task(1, n=40)
        user = js.specify_user(
            features.astype(np.float64),
            labels,
            class_names=names(4),
            kernel=js.Gaussian(bandwidth=3.0),
            feature_space=SPACE,
        )
        for reuse in ("direct", "fine-tune"):
            found = js.match(loaded, user, reuse=reuse)
            assert found.top_k(1)[0][0] == "m3"
            np.testing.assert_array_equal(found.scores, js.match(market, user, reuse=reuse).scores)
        compact = js.match(market.stored_as("int8"), user, method="rkme")
        np.testing.assert_allclose(compact.squared_mmd, found.squared_mmd, atol=1e-2)
