"""Direct use and the trial of the short list, against loops in numpy float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import made_specification, made_task, made_user, names
from made_models import ARRAY_LIBRARIES, TensorLike, proxy_model, user_of

import jaxspec as js
from jaxspec import reuse
from jaxspec.specify.proxy import predict_log_probabilities


def oracle_user_probabilities(probabilities, class_map):
    """Loops in float64, one row and one class at a time."""
    out = np.zeros((len(probabilities), len(class_map)))
    for i, row in enumerate(np.asarray(probabilities, np.float64)):
        for k, c in enumerate(class_map):
            if c >= 0:
                out[i, k] = row[c] / sum(other == c for other in class_map)
        if out[i].sum() == 0:
            mapped = [c >= 0 for c in class_map]
            out[i] = mapped if any(mapped) else 1.0
        out[i] /= out[i].sum()
    return out


@pytest.fixture(scope="module")
def models(market):
    return {learnware: proxy_model(spec) for learnware, spec in market.items()}


class Counted(dict):
    """A mapping that remembers which models were taken."""

    def __init__(self, *args):
        super().__init__(*args)
        self.taken = []

    def __getitem__(self, key):
        self.taken.append(key)
        return super().__getitem__(key)


@pytest.mark.parametrize(
    "class_map", [[0, 1, 2], [2, -1, 0], [1, 1, -1, 0], [3, 3], [-1, -1], [-1, 2, -1, -1, 2]]
)
def test_user_probabilities_equal_a_loop_in_numpy(class_map):
    raw = np.random.default_rng(0).gamma(0.3, size=(40, 4))
    raw[0] = [0, 0, 0, 1]
    raw[1] = [1, 0, 0, 0]
    raw /= raw.sum(axis=1, keepdims=True)
    got = reuse.to_user_classes(raw, class_map)
    np.testing.assert_allclose(got, oracle_user_probabilities(raw, class_map), atol=1e-6)
    np.testing.assert_allclose(jnp.sum(got, axis=1), 1, atol=1e-6)
    jitted = jax.jit(lambda p: reuse.to_user_classes(p, class_map))(raw.astype(np.float32))
    np.testing.assert_allclose(jitted, got, atol=1e-6)


@pytest.mark.parametrize(
    ("class_map", "error"),
    [([0, 4], ValueError), ([-2, 0], ValueError), ([], TypeError), ([0.0, 1.0], TypeError)],
)
def test_a_class_map_that_does_not_fit_is_refused(class_map, error):
    with pytest.raises(error, match="class_map"):
        reuse.to_user_classes(np.full((3, 4), 0.25), class_map)


def test_direct_use_follows_class_names_in_the_users_order(market, models):
    features, labels = made_task(2, n=400)
    order = [3, 1, 0, 2]  # the user's class k is the task's class order[k]
    of_user = np.argsort(order)[labels]
    user = user_of(features[:40], of_user[:40], [names(4)[k] for k in order])
    result = js.match(market, user)
    predict = reuse.direct_predictor(result, "m2", models["m2"])
    got = predict(features)
    np.testing.assert_allclose(got, models["m2"](features)[:, order], atol=1e-6)
    assert (np.argmax(got, axis=1) == of_user).mean() > 0.95


def test_direct_use_asks_for_a_known_learnware(market, models):
    result = js.match(market, made_user(0))
    with pytest.raises(KeyError, match="nobody"):
        reuse.direct_predictor(result, "nobody", models["m0"])
    with pytest.raises(TypeError, match="result: expected the Match of one user, got list"):
        reuse.direct_predictor([result], "m0", models["m0"])
    with pytest.raises(TypeError, match="result: expected the Match of one user, got list"):
        reuse.try_short_list([result], models, *made_task(0, n=8))


def test_the_short_list_runs_only_k_models(market, models):
    features, labels = made_task(4, n=40)
    result = js.match(market, made_user(4))
    counted = Counted(models)
    trial = reuse.try_short_list(result, counted, features, labels, k=2)
    assert counted.taken == [learnware for learnware, _ in result.top_k(2)]
    assert trial.ids == tuple(counted.taken)
    assert trial.chosen == "m4"
    whole = reuse.try_short_list(result, models, features, labels, k=100)
    assert whole.ids == tuple(learnware for learnware, _ in result.top_k(6))


def test_the_posterior_equals_its_formula(market, models):
    features, labels = made_task(3, n=24)
    result = js.match(market, made_user(3))
    trial = reuse.try_short_list(result, models, features, labels, k=3, prior_examples=10)
    z = (result.scores - result.scores.mean()) / result.scores.std()
    for place, learnware in enumerate(trial.ids):
        row = result.ids.index(learnware)
        chance = oracle_user_probabilities(models[learnware](features), result.class_map[row])
        right = np.mean([np.argmax(p) == y for p, y in zip(chance, labels, strict=True)])
        own = [np.log(0.9 * 4 * p[y] + 0.1) for p, y in zip(chance, labels, strict=True)]
        want = (10 * z[row] + 24 * (right + np.mean(own) / 2) / 2) / 34
        np.testing.assert_allclose(trial.accuracy[place], right, atol=1e-6)
        np.testing.assert_allclose(trial.log_likelihood[place], np.mean(own), atol=1e-5)
        np.testing.assert_allclose(trial.posterior[place], want, atol=1e-5)
    assert trial.chosen == trial.ids[int(np.argmax(trial.posterior))]
    assert trial.reasons()[0].startswith(trial.chosen)


def test_many_examples_overrule_the_score_and_few_do_not(market, models):
    """A score that is wrong: the first of the list is turned round by the evidence."""
    features, labels = made_task(1, n=2000)
    result = js.match(market, made_user(1))
    scores = np.array(result.scores)
    scores[result.ids.index("m5")] = scores.max() + 0.5 * scores.std()
    wrong = dataclasses.replace(result, scores=scores)
    assert reuse.try_short_list(wrong, models, features[:4], labels[:4], k=2).chosen == "m5"
    assert reuse.try_short_list(wrong, models, features, labels, k=2).chosen == "m1"
    alone = reuse.try_short_list(wrong, models, features[:8], labels[:8], prior_examples=0)
    assert alone.chosen == "m1"


def test_models_may_be_one_function(market, models):
    features, labels = made_task(0, n=40)
    result = js.match(market, made_user(0))
    one = reuse.try_short_list(result, models, features, labels)
    two = reuse.try_short_list(result, lambda i, x: models[i](x), features, labels)
    np.testing.assert_array_equal(one.posterior, two.posterior)


def test_bad_input_to_the_short_list_is_named(market, models):
    features, labels = made_task(0, n=40)
    result = js.match(market, made_user(0))
    call = reuse.try_short_list
    with pytest.raises(ValueError, match="k: "):
        call(result, models, features, labels, k=0)
    with pytest.raises(KeyError, match="models"):
        call(result, {}, features, labels)
    with pytest.raises(TypeError, match="models"):
        call(result, 3, features, labels)
    with pytest.raises(ValueError, match="labels"):
        call(result, models, features, labels + 1)
    with pytest.raises(TypeError, match="labels"):
        call(result, models, features, labels.astype(float))
    with pytest.raises(ValueError, match="prior_examples"):
        call(result, models, features, labels, prior_examples=-1)
    with pytest.raises(ValueError, match=r"models\['m\d'\].*logits"):
        call(result, lambda i, x: 3 * models[i](x), features, labels)
    with pytest.raises(ValueError, match=r"models\['m\d'\].*shape"):
        call(result, models, features[:-1], labels)


def test_made_specifications_are_what_the_models_are(models):
    features, _ = made_task(0, n=10)
    want = np.exp(predict_log_probabilities(made_specification(0).proxy, features))
    np.testing.assert_allclose(models["m0"](features), want, atol=1e-5)


def test_user_probabilities_work_under_strict_promotion_and_have_gradients():
    raw = np.random.default_rng(0).dirichlet(np.ones(4), size=5).astype(np.float32)
    expected = oracle_user_probabilities(raw, [2, -1, 0, 2])

    def mapped(p):
        return reuse.to_user_classes(p, [2, -1, 0, 2])

    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        np.testing.assert_allclose(mapped(raw), expected, atol=1e-6)
        np.testing.assert_allclose(jax.jit(mapped)(raw), expected, atol=1e-6)
    slope = jax.grad(lambda p: mapped(p)[0, 2])(raw)
    a, c = raw[0, 0], raw[0, 2]  # class 2 of the user has a / (a + c), whatever stands for it
    np.testing.assert_allclose(slope[0], [c / (a + c) ** 2, 0, -a / (a + c) ** 2, 0], atol=1e-5)


@pytest.mark.parametrize("library", ARRAY_LIBRARIES)
def test_labels_and_outputs_of_any_array_library_give_the_same_trial(market, models, library):
    features, labels = made_task(0, n=40)
    result = js.match(market, made_user(0))
    convert = ARRAY_LIBRARIES[library]
    expected = reuse.try_short_list(result, models, features, labels)
    trial = reuse.try_short_list(
        result, lambda i, x: convert(models[i](np.asarray(x))), features, convert(labels)
    )
    assert trial.ids == expected.ids
    np.testing.assert_allclose(trial.posterior, expected.posterior, atol=1e-6)


def test_tensors_that_need_a_gradient_are_refused_by_name(market, models):
    features, labels = made_task(0, n=40)
    result = js.match(market, made_user(0))
    with pytest.raises(TypeError, match=r"labels: .* requires a gradient"):
        reuse.try_short_list(result, models, features, TensorLike(labels, requires_grad=True))

    def model(learnware, inputs):
        return TensorLike(models[learnware](inputs), requires_grad=True)

    with pytest.raises(TypeError, match=r"models\['m\d'\]: .* requires a gradient"):
        reuse.try_short_list(result, model, features, labels)


def test_masked_labels_are_refused_by_name(market, models):
    features, labels = made_task(0, n=40)
    masked = np.ma.masked_equal(labels, 3)
    with pytest.raises(ValueError, match="labels: .* masked array"):
        reuse.try_short_list(js.match(market, made_user(0)), models, features, masked)


def test_labels_may_be_class_names_in_either_unicode_form(market, models):
    features, labels = made_task(0, n=40)
    class_names = ["a", "b", "c", "d\u00e9"]
    result = js.match(market, user_of(features, labels, class_names))
    expected = reuse.try_short_list(result, models, features, labels)
    for form in ("d\u00e9", "de\u0301"):
        spelled = [[*class_names[:3], form][label] for label in labels]
        trial = reuse.try_short_list(result, models, features, spelled)
        np.testing.assert_array_equal(trial.posterior, expected.posterior)
    with pytest.raises(ValueError, match="labels: .* unknown"):
        reuse.try_short_list(result, models, features, ["e"] * 40)
