"""Answers against float64 oracles, and that they do not depend on how a question is put."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from conftest import (
    DIMENSION,
    KERNEL,
    SPACE,
    alike,
    made_specification,
    made_task,
    made_user,
    names,
)
from oracles import oracle_assignment, oracle_closeness, oracle_cosines, oracle_squared_mmd

import jaxspec as js
from jaxspec.market import ROW_ARRAYS
from jaxspec.scoring import METHODS, Classwise, embedding_pass

OTHERS = list("wxyz")
REUSES = ("direct", "fine-tune")


def best(found):
    return found.top_k(1)[0][0]


# Numbers


def test_squared_mmd_equals_float64_oracle(market):
    user = made_user(1)
    want = [oracle_squared_mmd(KERNEL, spec, user) for spec in market.values()]
    np.testing.assert_allclose(js.match(market, user).squared_mmd, want, atol=1e-6)


def test_rkme_is_minus_the_squared_mmd(market):
    found = js.match(market, made_user(1), method="rkme")
    np.testing.assert_array_equal(found.scores, -found.squared_mmd)


def test_classwise_is_the_mean_similarity_and_twice_the_closeness(market):
    user = made_user(1)
    found = js.match(market, user, method="classwise")
    for row, spec in enumerate(market.values()):
        mean = np.diag(oracle_cosines(spec, user)).mean()
        want = mean + 2 * oracle_closeness(KERNEL, spec, user)
        np.testing.assert_allclose(found.scores[row], want, atol=1e-5)


def test_homogeneous_similarity_compares_classes_of_one_name(market):
    user = made_user(1)
    found = js.match(market, user)
    for row, spec in enumerate(market.values()):
        want = np.diag(oracle_cosines(spec, user))
        np.testing.assert_allclose(found.class_similarity[row], want, atol=1e-5)
    np.testing.assert_array_equal(found.class_map, np.tile(np.arange(4), (6, 1)))


def test_names_decide_not_positions(market):
    order = [2, 0, 3, 1]
    user = made_user(1)
    proxy = js.Proxy(np.asarray(user.proxy.weights)[:, order], np.asarray(user.proxy.bias)[order])
    shuffled = dataclasses.replace(
        user,
        proxy=proxy,
        labels=np.argsort(order).astype(np.int32)[np.asarray(user.labels)],
        class_names=tuple(user.class_names[k] for k in order),
    )
    for method in METHODS:
        plain = js.match(market, user, method=method)
        moved = js.match(market, shuffled, method=method)
        np.testing.assert_allclose(moved.scores, plain.scores, atol=1e-5)
        np.testing.assert_allclose(
            moved.class_similarity, plain.class_similarity[:, order], atol=1e-6
        )
        np.testing.assert_array_equal(moved.class_map[0], order)


def test_heterogeneous_users_get_every_class_assigned_once(market):
    user = made_user(1, class_names=OTHERS)
    found = js.match(market, user)
    for row, spec in enumerate(market.values()):
        chosen = found.class_map[row]
        assert sorted(chosen) == [0, 1, 2, 3]
        want = oracle_cosines(spec, user)[chosen, np.arange(4)]
        np.testing.assert_allclose(found.class_similarity[row], want, atol=1e-5)
    # For the user's own task the greedy choice is the best of all assignments.
    np.testing.assert_array_equal(
        found.class_map[1], oracle_assignment(oracle_cosines(market["m1"], user))
    )
    assert best(found) == "m1"


def test_more_user_classes_than_learnware_classes_share_the_best(market):
    found = js.match(market, made_user(2, classes=6, class_names=list("uvwxyz")))
    assert ((found.class_map >= 0) & (found.class_map < 4)).all()
    assert {tuple(sorted(set(row))) for row in found.class_map.tolist()} == {(0, 1, 2, 3)}


def test_a_users_own_task_comes_first(market):
    for method in METHODS:
        founds = js.match(market, [made_user(seed) for seed in range(6)], method=method)
        assert [best(found) for found in founds] == [f"m{seed}" for seed in range(6)]


def test_a_users_own_task_comes_first_whatever_its_classes_are_called(market):
    users = [made_user(seed, class_names=OTHERS) for seed in range(6)]
    for method in ("rkme", "classwise"):
        founds = js.match(market, users, method=method)
        assert [best(found) for found in founds] == [f"m{seed}" for seed in range(6)]


@pytest.mark.parametrize("kind", [js.Laplacian, js.InverseMultiquadric])
def test_other_kernels_match_too(kind):
    space = js.Space("made-features", kind(bandwidth=4.0), dimension=DIMENSION)
    specs, users = {}, []
    for seed in range(3):
        features, labels = made_task(seed)
        specs[f"m{seed}"] = js.specify(space, features, labels, class_names=names(4), size=10)
        users.append(made_user(seed, space=space))
    founds = js.match(js.Market(space, specs), users)
    for seed, (found, user) in enumerate(zip(founds, users, strict=True)):
        want = [oracle_squared_mmd(space.kernel, spec, user) for spec in specs.values()]
        np.testing.assert_allclose(found.squared_mmd, want, atol=1e-6)
        assert best(found) == f"m{seed}"


# One question put in several ways


@pytest.mark.parametrize("method", alike("likelihood", "transfer", "classwise", "rkme"))
def test_the_best_k_are_those_of_all_scores(market, method):
    users = [made_user(1), made_user(2, classes=3), made_user(3, class_names=OTHERS)]
    for user, whole in zip(users, js.match(market, users, method=method), strict=True):
        for k in (1, 3, 6, 100):
            found = js.match(market, user, k=k, method=method)
            order = whole.order()[:k]
            assert found.ids == tuple(whole.ids[i] for i in order)
            assert found.top_k(k) == [(found.ids[i], found.scores[i]) for i in range(len(found))]
            np.testing.assert_allclose(found.scores, whole.scores[order], atol=2e-6)
            np.testing.assert_allclose(found.squared_mmd, whole.squared_mmd[order], atol=2e-6)
            np.testing.assert_allclose(
                found.class_similarity, whole.class_similarity[order], atol=2e-6
            )
            np.testing.assert_array_equal(found.class_map, whole.class_map[order])
            assert found.notes == whole.notes


@pytest.mark.parametrize("k", [pytest.param(None, marks=pytest.mark.slow), 2])
@pytest.mark.slow
def test_several_users_get_a_list_of_what_each_gets_alone(market, k):
    users = [
        made_user(0),
        made_user(1, classes=3),
        made_user(2, per_class=50),
        made_user(4, class_names=OTHERS),
        made_user(3, share_labels=False),
    ]
    for method in (None, "rkme", "classwise"):
        together = js.match(market, users, k=k, method=method)
        assert isinstance(together, list)
        for found, user in zip(together, users, strict=True):
            one = js.match(market, user, k=k, method=method)
            assert isinstance(found, js.Match)
            assert (found.ids, found.class_names) == (one.ids, user.class_names)
            assert (found.method, found.reuse) == (one.method, one.reuse)
            assert (found.label_spaces, found.notes) == (one.label_spaces, one.notes)
            np.testing.assert_allclose(found.scores, one.scores, atol=2e-6)
            np.testing.assert_allclose(found.squared_mmd, one.squared_mmd, atol=2e-6)
            np.testing.assert_array_equal(found.class_map, one.class_map)
            for learnware in one.ids:
                pairs = zip(found.explain(learnware), one.explain(learnware), strict=True)
                assert all(a[:2] == b[:2] for a, b in pairs)
    alone = js.match(market, [users[0]], k=k)
    assert isinstance(alone, list)
    assert len(alone) == 1
    assert len(js.match(market, tuple(users), k=k)) == len(users)
    assert len(js.match(market, (user for user in users), k=k)) == len(users)


@pytest.mark.parametrize("method", METHODS)
def test_order_of_learnwares_does_not_matter(market, method):
    user = made_user(4)
    turned = js.Market(SPACE, dict(reversed(list(market.items()))))
    a, b = js.match(market, user, method=method), js.match(turned, user, method=method)
    np.testing.assert_allclose(a.scores, b.scores[::-1], atol=1e-6)


def test_equal_scores_come_in_the_markets_order():
    spec = made_specification(1)
    market = js.Market(SPACE, {one: spec for one in ("c", "a", "b")})
    for k in (None, 2, 3):
        found = js.match(market, made_user(1), method="rkme", k=k)
        assert [one for one, _ in found.top_k(3)] == ["c", "a", "b"][:k]


def test_label_spaces_can_be_overridden(market):
    user = made_user(1)
    free = js.match(market, user, label_spaces="heterogeneous")
    named = js.match(market, user)
    assert (free.class_similarity.mean(1) >= named.class_similarity.mean(1)).any()
    stranger = made_user(1, class_names=["class a", "x", "y", "z"])
    with pytest.warns(js.ClassNameWarning):
        named = js.match(market, stranger, label_spaces="homogeneous")
    np.testing.assert_array_equal(named.class_map, np.tile([0, -1, -1, -1], (6, 1)))
    np.testing.assert_array_equal(named.class_similarity[:, 1:], -1)


def test_a_method_may_be_a_score_of_ones_own(market):
    found = js.match(market, made_user(1), method=Classwise(closeness=0.0))
    want = js.match(market, made_user(1)).class_similarity.mean(axis=1)
    np.testing.assert_allclose(found.scores, want, atol=1e-6)
    assert found.method == "classwise"


@dataclasses.dataclass(frozen=True)
class Unsure:
    """A score that is not a number for learnwares that are near the user."""

    name: str = "unsure"
    needs: tuple[str, ...] = ("squared_mmd",)

    def __call__(self, evidence):
        near = evidence.squared_mmd < 0.1
        return jax.numpy.where(near, jax.numpy.nan, -evidence.squared_mmd)


def test_a_score_that_is_not_a_number_never_comes_first(market):
    user = made_user(1)
    found = js.match(market, user, method=Unsure())
    unknown = np.isnan(found.scores)
    assert 0 < unknown.sum() < len(found)
    first = [one for one, score in found.top_k(6) if not np.isnan(score)]
    assert [one for one, _ in found.top_k(6)][: len(first)] == first
    missing = {one for one, none in zip(found.ids, unknown, strict=True) if none}
    assert not missing & set(first)
    gone = next(iter(set(market.ids) - missing))
    for version in (market, market.remove([gone])):
        best_few = js.match(version, user, k=6, method=Unsure())
        assert set(best_few.ids) <= set(version.ids)
        assert len(set(best_few.ids)) == len(best_few.ids)
        assert not missing & set(best_few.ids[: len(version) - len(missing)])
        assert not np.isnan(best_few.scores[: len(version) - len(missing)]).any()


# What does not lift a learnware


def scaled(spec, proxy=1.0, weights=1.0):
    return dataclasses.replace(
        spec,
        proxy=js.Proxy(spec.proxy.weights * proxy, spec.proxy.bias * proxy),
        reduced_set=js.ReducedSet(spec.reduced_set.points, spec.reduced_set.weights * weights),
    )


@pytest.mark.parametrize("class_names", [None, OTHERS])
def test_scaling_does_not_lift_a_learnware(market, class_names):
    user, spec = made_user(1, class_names=class_names), made_specification(3)
    for change in ({"proxy": 10.0}, {"proxy": 0.1}, {"weights": 5.0}, {"weights": 0.9}):
        changed = market.add({"scaled": scaled(spec, **change)})
        scores = js.match(changed, user).scores  # of one market: a score is relative to it
        assert scores[-1] <= scores[3] + 1e-5


def test_a_copied_reduced_set_does_not_win(market):
    thief = dataclasses.replace(
        made_specification(3), reduced_set=made_specification(1).reduced_set
    )
    found = js.match(market.add({"thief": thief}), made_user(1))
    assert best(found) == "m1"
    assert found.scores[-1] < found.scores[1] - 0.1


# Compilation, memory and settings


def test_users_of_three_to_eight_classes_compile_nothing_new(market, compile_counter):
    users = {k: made_user(1, classes=k) for k in (3, 4, 5, 7, 8)}  # above four: other names
    for reuse, k in itertools.product(REUSES, (None, 3)):
        js.match(market, users[4], reuse=reuse, k=k)
    with compile_counter() as counter:
        for user in users.values():
            js.match(market, user)
            js.match(market, user, k=10)
    assert counter.count == 0


def test_users_with_other_numbers_of_examples_compile_nothing_new(market, compile_counter):
    users = [made_user(1, per_class=n) for n in (5, 10, 20, 30)]
    js.match(market, users[0])
    with compile_counter() as counter:
        for user in users:
            js.match(market, user)
    assert counter.count == 0


def arrays_of(market, users):
    return market.arrays, js.user_arrays(market, users)


def rows_in_use(market, scores):
    return np.asarray(scores)[..., market.rows]


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_jit_equals_eager(market, method):
    users = [made_user(1), made_user(2)]
    arrays, asked = arrays_of(market, users)
    jitted = jax.jit(js.score_arrays, static_argnames="method")(arrays, asked, method=method)
    with jax.disable_jit():
        eager = js.score_arrays(arrays, asked, method=method)
    np.testing.assert_allclose(rows_in_use(market, jitted), rows_in_use(market, eager), atol=1e-4)
    founds = js.match(market, users, method=method)
    want = np.stack([found.scores for found in founds])
    np.testing.assert_allclose(rows_in_use(market, jitted), want, atol=1e-5)


@pytest.mark.parametrize("method", alike("likelihood", "transfer", "classwise", "rkme"))
def test_chunks_do_not_change_the_result(market, monkeypatch, method):
    users = [made_user(1, per_class=40), made_user(2)]

    def answers():
        jax.clear_caches()  # the size of a block is read while a pass is compiled
        return js.match(market, users, method=method)

    whole = answers()
    monkeypatch.setattr(embedding_pass, "block_entries", lambda: 2000)
    parts = answers()
    jax.clear_caches()
    for part, want in zip(parts, whole, strict=True):
        np.testing.assert_allclose(part.scores, want.scores, atol=1e-5)
        np.testing.assert_allclose(part.squared_mmd, want.squared_mmd, atol=1e-6)
        np.testing.assert_array_equal(part.class_map, want.class_map)


@pytest.mark.parametrize("method", alike("likelihood", "transfer", "classwise", "rkme"))
def test_no_array_of_market_by_points_by_points_exists(method):
    """M m n is 2 GB here; the compiled pass needs the results and a few blocks."""
    market = js.Market(SPACE, {"m0": made_specification(0)})
    arrays, asked = arrays_of(market, [made_user(1, per_class=30)])
    slots = 100_000
    rows = {
        name: jax.ShapeDtypeStruct((slots, *value.shape[1:]), value.dtype)
        for name, value in ((name, getattr(arrays, name)) for name in (*ROW_ARRAYS, "alive"))
    }
    large = dataclasses.replace(arrays, **rows)
    score = jax.jit(js.score_arrays, static_argnames="method")
    compiled = score.lower(large, asked, method=method).compile()
    budget = max(100 * 2**20, 8 * embedding_pass.block_entries())  # two blocks on an accelerator
    assert compiled.memory_analysis().temp_size_in_bytes < budget


@pytest.mark.parametrize("method", alike("likelihood", "transfer", "classwise", "rkme"))
def test_matching_works_where_promotion_of_ranks_and_types_is_forbidden(method):
    users = [made_user(1), made_user(2, class_names=OTHERS)]
    specs = {f"m{s}": made_specification(s) for s in range(3)}

    def answers():
        market = js.Market(SPACE, specs).add({"new": made_specification(4)})
        market = market.astype("int8").update({"m0": made_specification(5)}).remove(["m1"])
        found = [market["m0"].reduced_set.points]
        for k in (None, 2):
            found += [one.scores for one in js.match(market, users, method=method, k=k)]
        return found

    want = answers()
    jax.clear_caches()
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        strict = answers()
    for one, other in zip(strict, want, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("method", alike("likelihood", "transfer", "classwise", "rkme"))
def test_answers_are_the_same_with_x64_on(market, method):
    users = [made_user(1), made_user(2, classes=3), made_user(3, class_names=OTHERS)]

    def answers_of(k):
        return js.match(market, users, method=method, k=k)

    want = [*answers_of(None), *answers_of(3)]
    with jax.enable_x64(True):
        got = [*answers_of(None), *answers_of(3)]
    for one, other in zip(got, want, strict=True):
        assert one.ids == other.ids
        for field in ("scores", "squared_mmd", "class_similarity", "class_map"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


@pytest.mark.parametrize("reuse", alike(*REUSES))
def test_index_and_stream_answer_the_same_with_x64_on(market, tmp_path, reuse):
    market.save(tmp_path / "market")
    user = made_user(1)

    def answers():
        places = (js.Index.build(market), js.MarketFolder(tmp_path / "market"))
        return [js.match(where, user, k=3, reuse=reuse) for where in places]

    want = answers()
    with jax.enable_x64(True):
        got = answers()
    for one, other in zip(got, want, strict=True):
        assert one.ids == other.ids
        np.testing.assert_array_equal(one.scores, other.scores)
        np.testing.assert_array_equal(one.class_map, other.class_map)
