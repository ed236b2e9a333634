"""How classes are assigned and compared, against plain numpy."""

import jax
import numpy as np
import pytest
import scoring_oracles as oracles

from jaxspec.scoring import class_vectors


def test_assign_is_greedy_and_shares_when_classes_run_out():
    similarity = np.array([[0.9, 0.8, 0.1], [0.85, 0.2, 0.3]], np.float32)
    chosen = class_vectors.assign(similarity, np.ones((2, 3), bool))
    np.testing.assert_array_equal(chosen, [0, 0, 1])  # 0-0, then 1-2; class 1 shares the best
    nothing = class_vectors.assign(similarity, np.zeros((2, 3), bool))
    np.testing.assert_array_equal(nothing, [-1, -1, -1])


@pytest.mark.parametrize(("rows", "columns"), [(2, 7), (5, 5), (8, 3), (1, 4)])
def test_assign_equals_a_loop_over_sorted_pairs(rows, columns):
    rng = np.random.default_rng(rows)
    similarity = rng.normal(size=(30, rows, columns)).astype(np.float32)
    found = class_vectors.assign(similarity, np.ones(similarity.shape, bool))
    np.testing.assert_array_equal(found, [oracles.greedy(one) for one in similarity])


def test_a_class_that_may_not_be_matched_is_not():
    rng = np.random.default_rng(0)
    similarity = rng.normal(size=(50, 4, 5)).astype(np.float32)
    allowed = rng.random(size=similarity.shape) > 0.6
    chosen = np.asarray(class_vectors.assign(similarity, allowed))
    for place in np.ndindex(50, 5):
        possible = allowed[place[0], :, place[1]]
        if chosen[place] < 0:
            assert not possible.any()
        else:
            assert possible[chosen[place]]


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
    assert (found[chosen < 0] == -1).all()
    for row in range(0, learnwares, 37):
        for user in range(8):
            matched = np.flatnonzero(chosen[row, user] >= 0)
            one = own[row, chosen[row, user, matched]]
            other = asked[user, matched]
            one, other = one - one.mean(axis=0), other - other.mean(axis=0)
            norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
            want = (one * other).sum(axis=1) / norms
            np.testing.assert_allclose(found[row, user, matched], want, atol=1e-5)


def test_roots_and_quotients_have_finite_derivatives_at_zero():
    values = np.array([0.0, 4.0], np.float32)
    np.testing.assert_array_equal(class_vectors.root(values), [0, 2])
    np.testing.assert_array_equal(
        jax.grad(lambda x: class_vectors.root(x).sum())(values), [0, 0.25]
    )
    quotient = jax.grad(lambda x: class_vectors.divided(values, x).sum())(values)
    np.testing.assert_array_equal(quotient, [0, -0.25])
