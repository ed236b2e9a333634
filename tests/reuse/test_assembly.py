"""Assemblies against their formula in float64 and against the teams that are to be tried."""

import numpy as np
import pytest
from made_models import ARRAY_LIBRARIES, cross_task, proxy_model, user_of

import jaxspec as js
from jaxspec import reuse
from jaxspec.reuse.team_inputs import block_scalings, stack_blocks, team_blocks


@pytest.fixture(scope="module")
def models(market):
    return {learnware: proxy_model(spec) for learnware, spec in market.items()}


@pytest.fixture(scope="module")
def assembled(market, models):
    features, labels = cross_task(80)
    result = js.match(market, user_of(features, labels, list("wxyz")))
    return result, reuse.assemble(result, models, features, features, labels, size=3)


def test_an_assembly_takes_the_likeliest_team_of_the_short_list(assembled):
    result, assembly = assembled
    top = [learnware for learnware, _ in result.top_k(3)]
    rows = [result.ids.index(learnware) for learnware in top]
    by_class = {top[int(i)] for i in result.class_similarity[rows].argmax(axis=0)}
    want = {frozenset(by_class), *(frozenset(top[:k]) for k in (1, 2, 3))}
    assert {frozenset(team) for team in assembly.tried} == want
    assert assembly.log_likelihood == max(assembly.tried.values())
    assert assembly.tried[assembly.ids] == assembly.log_likelihood
    assert assembly.class_names == tuple("wxyz")


def test_an_assembly_predicts_as_its_parts_say(assembled, models):
    """The stacked regression, written out in float64 from the fields."""
    _, assembly = assembled
    features, labels = cross_task(400)
    got = assembly(models, features, features)
    roots = [np.sqrt(models[learnware](features)) for learnware in assembly.ids]
    blocks = [features, *roots]
    for i in range(len(roots)):
        for j in range(i):
            products = [np.outer(a, b).ravel() for a, b in zip(roots[i], roots[j], strict=True)]
            blocks.append(np.stack(products))
    columns = [(b - mean) * by for b, (mean, by) in zip(blocks, assembly.parts, strict=True)]
    logits = np.concatenate(columns, axis=1).astype(np.float64) @ assembly.proxy.weights
    powers = np.exp(logits + assembly.proxy.bias)
    np.testing.assert_allclose(got, powers / powers.sum(axis=1, keepdims=True), atol=1e-5)
    assert (got.argmax(axis=1) == labels).mean() > 0.8
    assert -np.log(4) < assembly.log_likelihood < 0


def test_the_three_kinds_of_inputs_have_equal_variance():
    rng = np.random.default_rng(0)
    outputs = [rng.dirichlet(np.ones(c), size=30) for c in (3, 4, 2)]
    blocks = team_blocks(rng.normal(size=(30, 5)) * 9 + 4, outputs)
    assert [block.shape[1] for block in blocks] == [5, 3, 4, 2, 12, 6, 8]
    stacked = stack_blocks(blocks, block_scalings(blocks, 3))
    variance = stacked.var(axis=0)
    for part in (variance[:5], variance[5:14], variance[14:]):
        np.testing.assert_allclose(part.sum(), 1 / 3, rtol=1e-5)
    np.testing.assert_allclose(stacked.mean(axis=0), 0, atol=1e-6)


def test_bad_input_to_an_assembly_is_named(market, models, assembled):
    result, assembly = assembled
    features, labels = cross_task(80)
    with pytest.raises(ValueError, match="labels"):
        reuse.assemble(result, models, features, features, labels[:-1])
    with pytest.raises(ValueError, match=r"^labels: .*none of \[3\]"):
        reuse.assemble(result, models, features, features, np.minimum(labels, 2))
    with pytest.raises(ValueError, match="size"):
        reuse.assemble(result, models, features, features, labels, size=0)
    with pytest.raises(KeyError, match="models"):
        reuse.assemble(result, {}, features, features, labels)
    with pytest.raises(ValueError, match="features"):
        assembly(models, features, features[:, :3])


def test_one_example_of_a_class_is_assembled_without_validation(assembled, models):
    result, _ = assembled
    features, labels = cross_task(80)
    kept = [i for i in range(7) if labels[i] != 3] + [int(np.flatnonzero(labels == 3)[0])]
    few = reuse.assemble(result, models, features[kept], features[kept], labels[kept])
    top = [result.ids.index(learnware) for learnware, _ in result.top_k(5)]
    class_wise = {result.ids[top[i]] for i in result.class_similarity[top].argmax(axis=0)}
    assert set(few.ids) == class_wise
    assert np.isnan(few.log_likelihood)
    assert np.isfinite(few(models, features, features)).all()


def test_the_pairs_of_four_models_are_all_their_products():
    rng = np.random.default_rng(1)
    outputs = [rng.dirichlet(np.ones(c), size=20) for c in (2, 3, 4, 5)]
    pairs = team_blocks(rng.normal(size=(20, 3)), outputs)[5:]
    assert sorted(block.shape[1] for block in pairs) == [6, 8, 10, 12, 15, 20]
    for block in pairs:  # rows of products of two probability vectors, squared, sum to one
        np.testing.assert_allclose(np.square(block).sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("library", ARRAY_LIBRARIES)
def test_labels_of_any_array_library_give_the_same_assembly(assembled, models, library):
    result, assembly = assembled
    features, labels = cross_task(80)
    convert = ARRAY_LIBRARIES[library]
    same = reuse.assemble(result, models, features, convert(features), convert(labels), size=3)
    assert same.ids == assembly.ids
    got = same(models, features, convert(features))
    np.testing.assert_allclose(got, assembly(models, features, features), atol=1e-5)
