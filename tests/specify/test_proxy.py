"""Properties of linear proxies, against scikit-learn, scipy in float64 and optimality itself."""

import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy.special import log_softmax, softmax, xlogy
from sklearn.linear_model import LogisticRegression

from jaxspec.specify.proxy import (
    Proxy,
    centre_classes,
    fit_proxies,
    fit_proxy,
    predict_log_probabilities,
)

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


def problem(n=90, d=6, classes=4, seed=0, offset=0.0):
    generator = np.random.default_rng(seed)
    means = 1.5 * generator.normal(size=(classes, d))
    labels = np.arange(n) % classes
    features = means[labels] + generator.normal(size=(n, d)) + offset
    teacher = softmax(generator.normal(size=(n, classes)), axis=1)
    return features.astype(np.float32), labels.astype(np.int32), teacher.astype(np.float32)


def objective(parameters, z, labels, teacher, teacher_weight, ridge, classes):
    """The documented objective, written from the documentation in float64."""
    parameters = np.asarray(parameters, np.float64).reshape(-1, classes)
    log_p = log_softmax(z.astype(np.float64) @ parameters[:-1] + parameters[-1], axis=1)
    value = 0.5 * ridge * np.sum(parameters[:-1] ** 2)
    if labels is not None:
        value -= log_p[np.arange(len(z)), labels].mean()
    if teacher is not None:
        t = teacher.astype(np.float64)
        value += teacher_weight * (xlogy(t, t) - t * log_p).sum(axis=1).mean()
    return value


def joined(proxy):
    return np.concatenate([proxy.weights, proxy.bias[None]])


def compilations(work):
    seen = []

    def listen(event, duration, **_):
        if event == COMPILE_EVENT:
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        work()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return len(seen)


@pytest.mark.parametrize("classes", [2, 4])
def test_labels_only_agree_with_scikit_learn(classes):
    z, y, _ = problem(classes=classes)
    ridge = 1e-2
    proxy = fit_proxy(z, y, num_classes=classes, ridge=ridge, tolerance=1e-6)
    # Two classes: scikit-learn fits one vector w for W = (-w/2, w/2), so |W|^2 = |w|^2 / 2.
    scale = 2.0 if classes == 2 else 1.0
    oracle = LogisticRegression(C=scale / (len(z) * ridge), tol=1e-10, max_iter=10000)
    oracle.fit(z.astype(np.float64), y)
    np.testing.assert_allclose(
        np.exp(predict_log_probabilities(proxy, z)), oracle.predict_proba(z), atol=1e-4
    )
    if classes > 2:
        np.testing.assert_allclose(proxy.weights, oracle.coef_.T, atol=1e-4)


@pytest.mark.parametrize(
    ("use_labels", "use_teacher", "teacher_weight"),
    [(True, True, 1.0), (True, True, 0.3), (False, True, 2.0), (True, False, 1.0)],
)
def test_minimiser_agrees_with_scipy_in_float64(use_labels, use_teacher, teacher_weight):
    z, y, t = problem(n=40, d=3, classes=3)
    y, t = y if use_labels else None, t if use_teacher else None
    proxy = fit_proxy(
        z, y, num_classes=3, teacher=t, teacher_weight=teacher_weight, ridge=1e-2, tolerance=1e-6
    )
    options = (z, y, t, teacher_weight, 1e-2, 3)
    best = scipy.optimize.minimize(objective, np.zeros(12), options, method="BFGS", tol=1e-7)
    expected = best.x.reshape(-1, 3)
    expected = expected - expected.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(joined(proxy), expected, atol=2e-4)
    np.testing.assert_allclose(proxy.diagnostics.objective, best.fun, rtol=1e-5)
    np.testing.assert_allclose(
        proxy.diagnostics.objective, objective(joined(proxy).ravel(), *options), rtol=1e-5
    )


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("unit", [1e-2, 1.0, 100.0])
def test_gradient_vanishes_at_every_offset_and_unit(offset, unit):
    z, y, t = problem(n=200, d=8, classes=5)
    z = ((z + offset) * unit).astype(np.float32)
    ridge = 1e-3 * unit**2
    proxy = fit_proxy(z, y, num_classes=5, teacher=t, ridge=ridge)
    assert proxy.diagnostics.gradient_norm < 1e-5
    centred = z - z.mean(axis=0, dtype=np.float64)
    s = np.sqrt(np.square(centred).mean())
    at = joined(proxy).astype(np.float64)
    at[-1] += z.mean(axis=0, dtype=np.float64) @ at[:-1]
    at[:-1] *= s  # the unknowns of the reported norm

    def value(parameters):
        return objective(parameters, centred / s, y, t, 1.0, ridge / s**2, 5)

    slope = scipy.optimize.approx_fprime(at.ravel(), value, 1e-6)
    # The stored bias is float32: beside an offset it carries a rounding of offset * |W| * 6e-8.
    assert np.linalg.norm(slope) < (2e-5 if offset == 0 else 2e-4)


def test_proxy_is_centred_across_classes_and_centring_changes_nothing():
    z, y, t = problem()
    proxy = fit_proxy(z, y, num_classes=4, teacher=t)
    np.testing.assert_allclose(joined(proxy).sum(axis=1), 0, atol=1e-5)
    moved = Proxy(proxy.weights + np.arange(6.0)[:, None], proxy.bias - 3.0)
    np.testing.assert_allclose(joined(centre_classes(moved)), joined(proxy), atol=1e-5)


def test_a_one_hot_teacher_counts_as_the_labels_again():
    z, y, _ = problem()
    teacher = np.eye(4, dtype=np.float32)[y]
    both = fit_proxy(z, y, num_classes=4, teacher=teacher, teacher_weight=1.0, ridge=2e-2)
    once = fit_proxy(z, y, num_classes=4, ridge=1e-2)
    np.testing.assert_allclose(joined(both), joined(once), atol=2e-3)
    alone = fit_proxy(z, None, num_classes=4, teacher=teacher, ridge=1e-2)
    np.testing.assert_allclose(joined(alone), joined(once), atol=1e-4)


def test_a_linear_teacher_is_recovered():
    z, _, _ = problem(n=300)
    generator = np.random.default_rng(3)
    weights = generator.normal(size=(6, 4)).astype(np.float32)
    teacher = softmax(z @ weights, axis=1)
    proxy = fit_proxy(z, None, num_classes=4, teacher=teacher, ridge=1e-7, tolerance=1e-6)
    expected = weights - weights.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(proxy.weights, expected, atol=1e-2)


def test_permuting_classes_and_rows_permutes_the_proxy():
    z, y, t = problem()
    options = {"num_classes": 4, "ridge": 1e-2, "tolerance": 1e-6}
    proxy = fit_proxy(z, y, teacher=t, **options)
    generator = np.random.default_rng(1)
    classes, rows = generator.permutation(4), generator.permutation(len(z))
    renamed = np.argsort(classes)[y]
    other = fit_proxy(z[rows], renamed[rows], teacher=t[rows][:, classes], **options)
    np.testing.assert_allclose(joined(other), joined(proxy)[:, classes], atol=1e-4)


def test_translating_the_features_leaves_the_probabilities():
    z, y, t = problem()
    options = {"num_classes": 4, "teacher": t, "ridge": 1e-2}
    here, there = fit_proxy(z, y, **options), fit_proxy(z + 100, y, **options)
    np.testing.assert_allclose(here.weights, there.weights, atol=1e-4)
    np.testing.assert_allclose(
        predict_log_probabilities(here, z), predict_log_probabilities(there, z + 100), atol=2e-3
    )


@pytest.mark.parametrize("ridge", [1e-3, 1e-6])
def test_separable_data_stay_finite(ridge):
    z = np.repeat(np.eye(5, dtype=np.float32) * 10, 10, axis=0)
    proxy = fit_proxy(z, np.repeat(np.arange(5), 10), num_classes=5, ridge=ridge)
    assert np.isfinite(joined(proxy)).all()
    assert proxy.diagnostics.gradient_norm < 1e-5
    assert (np.argmax(predict_log_probabilities(proxy, z), axis=1) == np.arange(50) // 10).all()


def test_badly_scaled_axes_and_repeated_columns_converge():
    z, y, _ = problem(n=200, d=8)
    z = np.concatenate([z * np.logspace(0, -4, 8), z[:, :1], np.ones((200, 1))], axis=1)
    proxy = fit_proxy(z.astype(np.float32), y, num_classes=4, ridge=1e-5)
    assert proxy.diagnostics.gradient_norm < 1e-5


def test_equal_rows_give_the_class_frequencies():
    y = np.array([0, 0, 0, 1, 2, 2])
    proxy = fit_proxy(np.full((6, 2), 7.0), y, num_classes=3)
    np.testing.assert_allclose(proxy.weights, 0, atol=1e-6)
    found = np.exp(predict_log_probabilities(proxy, np.full((1, 2), 7.0)))[0]
    np.testing.assert_allclose(found, [1 / 2, 1 / 6, 1 / 3], atol=1e-4)


def test_jit_agrees_with_eager_and_vmap_with_a_loop():
    data = [problem(seed=seed) for seed in range(3)]
    z, y, t = (np.stack(part) for part in zip(*data, strict=True))

    def fit(z, y, t):
        return fit_proxy(z, y, num_classes=4, teacher=t, ridge=1e-2, tolerance=1e-6)

    eager = [fit(*one) for one in data]
    np.testing.assert_allclose(joined(jax.jit(fit)(*data[0])), joined(eager[0]), atol=1e-4)
    batch = jax.vmap(fit)(z, y, t)
    for i, one in enumerate(eager):
        np.testing.assert_allclose(batch.weights[i], one.weights, atol=1e-4)
        np.testing.assert_allclose(batch.bias[i], one.bias, atol=1e-4)
    over_ridge = jax.vmap(lambda r: fit_proxy(z[0], y[0], num_classes=4, ridge=r).weights)
    norms = jnp.linalg.norm(over_ridge(jnp.array([1e-3, 1e-2, 1e-1])), axis=(1, 2))
    assert (jnp.diff(norms) < 0).all()


@pytest.mark.parametrize("with_teachers", [False, True])
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_a_batch_agrees_with_single_fits_and_pads_with_zeros(with_teachers, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)  # chooses in turn or together
    sizes, classes = [30, 150, 70], [3, 9, 2]
    data = [problem(n=n, classes=c, seed=n) for n, c in zip(sizes, classes, strict=True)]
    z, y, t = zip(*data, strict=True)
    teachers = t if with_teachers else None
    options = {"ridge": 1e-2, "tolerance": 1e-6}
    batch = fit_proxies(z, y, num_classes=classes, teachers=teachers, **options)
    assert batch.weights.shape == (3, 6, 9)
    assert batch.diagnostics.gradient_norm.shape == (3,)
    for i, count in enumerate(classes):
        teacher = t[i] if with_teachers else None
        single = fit_proxy(z[i], y[i], num_classes=count, teacher=teacher, **options)
        np.testing.assert_allclose(batch.weights[i, :, :count], single.weights, atol=1e-4)
        np.testing.assert_allclose(batch.bias[i, :count], single.bias, atol=1e-4)
        assert (batch.weights[i, :, count:] == 0).all()
        assert (batch.bias[i, count:] == 0).all()


def test_a_batch_larger_than_a_chunk_keeps_its_order():
    data = [problem(n=20, classes=2, seed=seed) for seed in range(70)]
    z, y, _ = zip(*data, strict=True)
    batch = fit_proxies(z, y, num_classes=[2] * 70, ridge=1e-1)
    for i in (0, 63, 64, 69):
        single = fit_proxy(z[i], y[i], num_classes=2, ridge=1e-1)
        np.testing.assert_allclose(batch.weights[i], single.weights, atol=1e-4)


def test_users_of_different_sizes_compile_once():
    def fit(n, classes, teacher):
        z, y, t = problem(n=n, d=11, classes=classes)
        fit_proxy(z, y, num_classes=classes, teacher=t if teacher else None, ridge=1e-2 * n)

    assert compilations(lambda: fit(30, 3, False)) == 1
    others = [(70, 7, False), (128, 8, True), (50, 5, True)]
    assert compilations(lambda: [fit(*other) for other in others]) == 0

    def batch(count, n, classes):
        z, y, _ = zip(*(problem(n, 11, classes, seed) for seed in range(count)), strict=True)
        fit_proxies(z, y, num_classes=[classes] * count)

    assert compilations(lambda: batch(3, 40, 3)) == 1
    assert compilations(lambda: (batch(5, 70, 7), batch(8, 100, 4))) == 0


def test_float32_stays_float32():
    z, y, t = problem()
    for leaf in jax.tree.leaves(fit_proxy(z, y, num_classes=4, teacher=t)):
        assert leaf.dtype in (np.float32, np.int32)
        assert isinstance(leaf, np.ndarray | np.generic)


def test_float64_is_used_where_it_is_enabled():
    code = """
    import numpy as np
    from jaxspec.specify.proxy import fit_proxy
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(60, 3)), np.arange(60) % 3
    proxy = fit_proxy(z, y, num_classes=3, tolerance=1e-11)
    assert proxy.weights.dtype == proxy.bias.dtype == np.float64
    assert proxy.diagnostics.gradient_norm < 1e-11
    assert fit_proxy(z.astype(np.float32), y, num_classes=3).weights.dtype == np.float32
    """
    environment = {**os.environ, "JAX_ENABLE_X64": "1"}
    root = pathlib.Path(__file__).parents[2]
    command = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run(command, check=True, env=environment, cwd=root)


def test_nan_inside_jit_propagates():
    z, y, _ = problem()
    z[0, 0] = np.nan
    proxy = jax.jit(lambda z: fit_proxy(z, y, num_classes=4))(z)
    assert np.isnan(proxy.weights).any()


Z, Y, T = problem()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": np.where(Y == 2, 1, Y)}, ValueError, r"labels: .*got none of \[2\]"),
        ({"num_classes": 1}, ValueError, "num_classes: expected at least 2, got 1"),
        ({"num_classes": 3}, ValueError, r"labels: expected values in 0\.\.2, got 0\.\.3"),
        ({"labels": Y.astype(np.float32)}, TypeError, "labels: expected integer"),
        ({"labels": Y[:-1]}, ValueError, r"labels: expected shape \(90,\)"),
        ({"labels": None}, ValueError, "labels: expected labels, a teacher or both, got neither"),
        ({"teacher": T * 2}, ValueError, "teacher: expected rows that sum to one"),
        ({"teacher": T[:-1]}, ValueError, r"teacher: .*\(90, 4\), got \(89, 4\)"),
        ({"teacher": T[:, :3]}, ValueError, r"teacher: .*\(90, 4\), got \(90, 3\)"),
        ({"features": np.where(Z > 2, np.nan, Z)}, ValueError, "features: expected finite"),
        ({"features": Z[:, 0]}, ValueError, "features: expected shape"),
        ({"ridge": 0.0}, ValueError, "ridge: expected a positive number, got 0.0"),
        ({"tolerance": -1.0}, ValueError, "tolerance: expected a positive"),
        ({"teacher_weight": -1.0}, ValueError, "teacher_weight: expected"),
        ({"max_iterations": 0}, ValueError, "max_iterations: expected at least 1"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {"features": Z, "labels": Y, "num_classes": 4, "teacher": None, **change}
    with pytest.raises(error, match=message):
        fit_proxy(**arguments)


def test_bad_batches_are_named():
    with pytest.raises(ValueError, match=r"labels\[1\]: .*got none of \[3\]"):
        fit_proxies([Z, Z], [Y, Y % 3], num_classes=[4, 4])
    with pytest.raises(ValueError, match="num_classes: expected 2 entries, one a problem, got 1"):
        fit_proxies([Z, Z], [Y, Y], num_classes=[4])
    with pytest.raises(ValueError, match=r"features\[1\]: expected 6 columns"):
        fit_proxies([Z, Z[:, :5]], [Y, Y], num_classes=[4, 4])
    with pytest.raises(ValueError, match="features: expected at least one problem"):
        fit_proxies([], [], num_classes=[])
