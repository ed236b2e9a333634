import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import KERNEL, SPACE, made_specification, made_task, made_user, names

import jaxspec as js
from jaxspec.reuse import reuse


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


def proxy_model(spec):
    """A model that is its own proxy: a float64 softmax regression on the public features."""

    def model(features):
        weights = np.asarray(spec.proxy.weights, np.float64)
        logits = np.asarray(features, np.float64) @ weights + np.asarray(spec.proxy.bias)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    return model


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
    user = js.specify_user(
        features[:40],
        of_user[:40],
        class_names=[names(4)[k] for k in order],
        kernel=KERNEL,
        feature_space=SPACE,
    )
    result = js.match(market, [made_user(0), user])
    predict = reuse.direct_predictor(result, "m2", models["m2"], user=1)
    got = predict(features)
    np.testing.assert_allclose(got, models["m2"](features)[:, order], atol=1e-6)
    assert (np.argmax(got, axis=1) == of_user).mean() > 0.95


def test_direct_use_asks_for_a_known_learnware(market, models):
    result = js.match(market, made_user(0))
    with pytest.raises(KeyError, match="nobody"):
        reuse.direct_predictor(result, "nobody", models["m0"])
    with pytest.raises(IndexError, match="user"):
        reuse.direct_predictor(result, "m0", models["m0"], user=1)
    with pytest.raises(TypeError, match="result"):
        reuse.direct_predictor([], "m0", models["m0"])


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


def linear(parameters, inputs):
    return inputs @ parameters["w"] + parameters["b"]


def test_fine_tuning_steps_are_gradient_descent():
    """Plain gradient descent with a kept head, against a loop in float64."""
    import optax

    features, labels = made_task(7, n=40)
    start = {"w": np.zeros((6, 4), np.float32), "b": np.zeros(4, np.float32)}
    tuned = reuse.fine_tune(
        linear, start, features, labels, num_classes=4, new_head=False,
        optimiser=optax.sgd(0.05), max_steps=30,
    )  # fmt: skip
    assert tuned.head is None
    assert tuned.steps == tuned.losses.argmin()
    w, b = np.zeros((6, 4)), np.zeros(4)
    x, y = features.astype(np.float64), np.eye(4)[labels]
    for _ in range(tuned.steps):
        p = np.exp(x @ w + b)
        p /= p.sum(axis=1, keepdims=True)
        w, b = w - 0.05 * x.T @ (p - y) / 40, b - 0.05 * (p - y).mean(axis=0)
    np.testing.assert_allclose(tuned.parameters["w"], w, atol=1e-5)
    np.testing.assert_allclose(tuned.parameters["b"], b, atol=1e-5)
    np.testing.assert_allclose(tuned.losses[0], np.log(4), atol=1e-6)
    assert (np.argmax(tuned(features), axis=1) == labels).mean() > 0.9
    np.testing.assert_allclose(tuned(features).sum(axis=1), 1, atol=1e-5)


def test_a_flax_module_gets_a_new_head():
    from flax import linen

    module = linen.Sequential([linen.Dense(16), linen.relu])
    features, labels = made_task(3, n=300, classes=5)
    start = module.init(jax.random.key(0), features[:1])
    tuned = reuse.fine_tune(module.apply, start, features[:50], labels[:50], num_classes=5)
    assert tuned.head[0].shape == (16, 5)
    assert jax.tree.structure(tuned.parameters) == jax.tree.structure(start)
    assert tuned.losses.shape == (121,)
    np.testing.assert_allclose(tuned.losses[0], np.log(5), atol=1e-6)
    assert (np.argmax(tuned(features[50:]), axis=1) == labels[50:]).mean() > 0.9
    again = reuse.fine_tune(module.apply, start, features[:50], labels[:50], num_classes=5)
    np.testing.assert_array_equal(again.head[0], tuned.head[0])


def test_validation_stops_where_labels_are_noise():
    """Labels that have nothing to do with the inputs: training on is worse than not at all."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(60, 30)).astype(np.float32)
    labels = np.arange(60) % 3
    start = {"w": np.zeros((30, 3), np.float32), "b": np.zeros(3, np.float32)}
    import optax

    tuned = reuse.fine_tune(
        linear, start, inputs, labels, num_classes=3, new_head=False,
        optimiser=optax.adam(0.05), max_steps=60,
    )  # fmt: skip
    assert tuned.steps < 10
    assert tuned.losses[-1] > tuned.losses.min() + 0.5


def test_a_class_with_one_example_is_tuned_without_validation():
    features, labels = made_task(3, n=9)
    start = {"w": np.zeros((6, 4), np.float32), "b": np.zeros(4, np.float32)}
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 3])
    tuned = reuse.fine_tune(linear, start, features, labels, num_classes=4, max_steps=10)
    assert tuned.steps == 5
    assert tuned.losses.size == 0


def test_bad_input_to_fine_tuning_is_named():
    features, labels = made_task(3, n=40)
    start = {"w": np.zeros((6, 4), np.float32), "b": np.zeros(4, np.float32)}

    def call(apply=linear, inputs=features, given=labels, **options):
        options = {"num_classes": 4, "max_steps": 3, **options}
        return reuse.fine_tune(apply, start, inputs, given, **options)

    with pytest.raises(ValueError, match="apply"):
        call(num_classes=5, new_head=False)
    with pytest.raises(ValueError, match="apply"):
        call(apply=lambda p, x: linear(p, x).sum(axis=1))
    with pytest.raises(ValueError, match="labels"):
        call(given=labels[:-1])
    with pytest.raises(ValueError, match="inputs"):
        call(inputs=features[:0], given=labels[:0])
    with pytest.raises(ValueError, match="num_classes"):
        call(num_classes=1)
    with pytest.raises(ValueError, match="max_steps"):
        call(max_steps=0)
    with pytest.raises(ValueError, match="folds"):
        call(folds=1)
    with pytest.raises(ValueError, match="NaN"):
        call(inputs=np.where(np.arange(40)[:, None] == 7, np.nan, features))
    with pytest.raises(TypeError, match="apply: expected a function, got a NoneType"):
        call(apply=None)
    with pytest.raises(ValueError, match="inputs: expected an array, got None"):
        call(inputs=None)


def stranger_task(n):
    """A task whose classes cut across: x from task 1, the class from pairs of its eight."""
    features, labels = made_task(1, n=n, classes=8)
    return features, np.array([0, 1, 2, 3, 1, 0, 3, 2])[labels]


@pytest.fixture(scope="module")
def assembled(market, models):
    features, labels = stranger_task(80)
    user = js.specify_user(
        features, labels, class_names=list("wxyz"), kernel=KERNEL, feature_space=SPACE
    )
    result = js.match(market, user)
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
    features, labels = stranger_task(400)
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
    blocks = reuse._blocks(rng.normal(size=(30, 5)) * 9 + 4, outputs)
    assert [block.shape[1] for block in blocks] == [5, 3, 4, 2, 12, 6, 8]
    stacked = reuse._side_by_side(blocks, reuse._scales(blocks, 3))
    variance = stacked.var(axis=0)
    for part in (variance[:5], variance[5:14], variance[14:]):
        np.testing.assert_allclose(part.sum(), 1 / 3, rtol=1e-5)
    np.testing.assert_allclose(stacked.mean(axis=0), 0, atol=1e-6)


@pytest.mark.parametrize(("rows", "columns"), [(60, 8), (30, 70)])
def test_calibration_equals_scikit_learn(rows, columns):
    """Also where there are more columns than rows, and the problem is solved in rows."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(rows)
    labels = np.arange(rows) % 3
    inputs = (rng.normal(size=(rows, columns)) + labels[:, None]) + 2
    inputs /= np.sqrt(inputs.var(axis=0).sum())
    proxy, ridge, likelihood = reuse.calibrate(inputs, labels, num_classes=3)
    scaled, same, _ = reuse.calibrate(50 * inputs - 7, labels, num_classes=3)
    assert same == ridge
    np.testing.assert_allclose(50 * scaled.weights, proxy.weights, rtol=1e-2, atol=1e-3)
    fold = np.arange(rows) // 3 % 5
    totals = []
    for value in reuse.RIDGES:
        chance = np.zeros((rows, 3))
        for i in range(5):
            kept = fold != i
            model = LogisticRegression(C=1 / (value * kept.sum()), solver="newton-cg", tol=1e-6)
            chance[~kept] = model.fit(inputs[kept], labels[kept]).predict_proba(inputs[~kept])
        totals.append(np.log(chance[np.arange(rows), labels]).mean())
    assert ridge == reuse.RIDGES[int(np.argmax(totals))]
    np.testing.assert_allclose(likelihood, max(totals), atol=2e-3)
    model = LogisticRegression(C=1 / (ridge * rows), solver="newton-cg", tol=1e-6).fit(
        inputs, labels
    )
    np.testing.assert_allclose(proxy.weights.T, model.coef_, atol=5e-3 * np.abs(model.coef_).max())


def test_bad_input_to_an_assembly_is_named(market, models, assembled):
    result, assembly = assembled
    features, labels = stranger_task(80)
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
    features, labels = stranger_task(80)
    some = [0, 1, 2, 3, 4, 5, 6]  # class 3 once or twice: keep one
    some = [i for i in some if labels[i] != 3] + [int(np.flatnonzero(labels == 3)[0])]
    few = reuse.assemble(result, models, features[some], features[some], labels[some])
    assert np.isnan(few.log_likelihood)
    assert np.isfinite(few(models, features, features)).all()


def test_importing_the_module_does_not_import_optax():
    code = "import sys, jaxspec.reuse; sys.exit(any(m in sys.modules for m in ('optax', 'flax')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_made_specifications_are_what_the_models_are(models):
    features, _ = made_task(0, n=10)
    want = np.exp(js.proxy.predict_log_probabilities(made_specification(0).proxy, features))
    np.testing.assert_allclose(models["m0"](features), want, atol=1e-5)
