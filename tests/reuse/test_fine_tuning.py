"""Fine-tuning against gradient descent written out in float64, and its stopping rule."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import made_task
from made_models import ARRAY_LIBRARIES, TensorLike, linear, linear_start

from jaxspec import reuse


def test_fine_tuning_steps_are_gradient_descent():
    """Plain gradient descent with a kept head, against a loop in float64."""
    features, labels = made_task(7, n=40)
    start = linear_start()
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
    tuned = reuse.fine_tune(
        linear, start, inputs, labels, num_classes=3, new_head=False,
        optimiser=optax.adam(0.05), max_steps=60,
    )  # fmt: skip
    assert tuned.steps < 10
    assert tuned.losses[-1] > tuned.losses.min() + 0.5


def test_a_class_with_one_example_is_tuned_without_validation():
    features, labels = made_task(3, n=9)
    start = linear_start()
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 3])
    tuned = reuse.fine_tune(linear, start, features, labels, num_classes=4, max_steps=10)
    assert tuned.steps == 5
    assert tuned.losses.size == 0


def test_bad_input_to_fine_tuning_is_named():
    features, labels = made_task(3, n=40)
    start = linear_start()

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


@pytest.mark.parametrize("library", ARRAY_LIBRARIES)
def test_inputs_and_labels_of_any_array_library_give_the_same_model(library):
    features, labels = made_task(3, n=24)
    convert = ARRAY_LIBRARIES[library]
    options = {"num_classes": 4, "max_steps": 5}
    expected = reuse.fine_tune(linear, linear_start(), features, labels, **options)
    tuned = reuse.fine_tune(linear, linear_start(), convert(features), convert(labels), **options)
    assert tuned.steps == expected.steps
    np.testing.assert_allclose(tuned.losses, expected.losses, atol=1e-6)
    np.testing.assert_allclose(tuned(convert(features)), expected(features), atol=1e-6)


@pytest.mark.parametrize("argument", ["inputs", "labels"])
def test_tensors_that_need_a_gradient_are_refused_by_name(argument):
    features, labels = made_task(3, n=24)
    given = {"inputs": features, "labels": labels}
    given[argument] = TensorLike(given[argument], requires_grad=True)
    with pytest.raises(TypeError, match=f"{argument}: .* requires a gradient"):
        reuse.fine_tune(linear, linear_start(), **given, num_classes=4, max_steps=3)


@pytest.mark.parametrize("argument", ["inputs", "labels"])
def test_masked_arrays_are_refused_by_name(argument):
    features, labels = made_task(3, n=24)
    given = {"inputs": features, "labels": labels}
    given[argument] = np.ma.masked_greater(given[argument], 2)
    with pytest.raises(ValueError, match=f"{argument}: .* masked array"):
        reuse.fine_tune(linear, linear_start(), **given, num_classes=4, max_steps=3)


def test_fine_tuning_works_under_strict_promotion():
    features, labels = made_task(3, n=24)
    options = {"num_classes": 4, "max_steps": 4}
    expected = reuse.fine_tune(linear, linear_start(), features, labels, **options)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        tuned = reuse.fine_tune(linear, linear_start(), features, labels, **options)
        np.testing.assert_allclose(tuned(features), expected(features), atol=1e-6)


def test_a_bfloat16_model_gets_a_float32_head():
    features, labels = made_task(3, n=200)

    def rounded(parameters, inputs):
        return (inputs * parameters["scale"]).astype(jnp.bfloat16)

    start = {"scale": np.ones(6, np.float32)}
    tuned = reuse.fine_tune(rounded, start, features[:40], labels[:40], num_classes=4)
    assert tuned.head[0].dtype == jnp.float32
    assert (np.argmax(tuned(features[40:]), axis=1) == labels[40:]).mean() > 0.9


def test_the_given_parameters_stay_as_they_are():
    features, labels = made_task(3, n=24)
    start = linear_start()
    reuse.fine_tune(linear, start, features, labels, num_classes=4, max_steps=3)
    assert not start["w"].any() and not start["b"].any()


def test_importing_the_package_imports_neither_flax_nor_torch():
    code = "import sys, jaxspec.reuse; sys.exit(any(m in sys.modules for m in ('flax', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_second_model_of_the_same_shapes_compiles_nothing(compile_counter):
    features, labels = made_task(3, n=24)
    options = {"num_classes": 4, "max_steps": 6}
    reuse.fine_tune(linear, linear_start(), features, labels, **options)
    with compile_counter() as counter:
        reuse.fine_tune(linear, linear_start(), features + 1, labels, **options)
    assert counter.count == 0
