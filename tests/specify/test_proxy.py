"""Properties of linear proxies, against scikit-learn, scipy in float64 and optimality itself."""

import os
import pathlib
import subprocess
import sys
import textwrap
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from conftest import alike
from scipy.special import log_softmax, softmax, xlogy
from sklearn.linear_model import LogisticRegression

from jaxspec.specify.proxy import (
    ConvergenceWarning,
    Proxy,
    centre_classes,
    fit_proxies,
    fit_proxy,
    predict_log_probabilities,
)


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
    proxy, diagnostics = fit_proxy(
        z,
        y,
        num_classes=3,
        teacher=t,
        teacher_weight=teacher_weight,
        ridge=1e-2,
        tolerance=1e-6,
        return_diagnostics=True,
    )
    options = (z, y, t, teacher_weight, 1e-2, 3)
    best = scipy.optimize.minimize(objective, np.zeros(12), options, method="BFGS", tol=1e-7)
    expected = best.x.reshape(-1, 3)
    expected = expected - expected.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(joined(proxy), expected, atol=2e-4)
    np.testing.assert_allclose(diagnostics.objective, best.fun, rtol=1e-5)
    np.testing.assert_allclose(
        diagnostics.objective, objective(joined(proxy).ravel(), *options), rtol=1e-5
    )


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("unit", [1e-2, 1.0, 100.0])
def test_gradient_vanishes_at_every_offset_and_unit(offset, unit):
    z, y, t = problem(n=200, d=8, classes=5)
    z = ((z + offset) * unit).astype(np.float32)
    ridge = 1e-3 * unit**2
    proxy, diagnostics = fit_proxy(
        z, y, num_classes=5, teacher=t, ridge=ridge, return_diagnostics=True
    )
    assert diagnostics.gradient_norm <= 1e-5 and diagnostics.converged
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
    proxy, diagnostics = fit_proxy(
        z, np.repeat(np.arange(5), 10), num_classes=5, ridge=ridge, return_diagnostics=True
    )
    assert np.isfinite(joined(proxy)).all()
    assert diagnostics.gradient_norm <= 1e-5
    assert (np.argmax(predict_log_probabilities(proxy, z), axis=1) == np.arange(50) // 10).all()


def test_badly_scaled_axes_and_repeated_columns_converge():
    z, y, _ = problem(n=200, d=8)
    z = np.concatenate([z * np.logspace(0, -4, 8), z[:, :1], np.ones((200, 1))], axis=1)
    _, diagnostics = fit_proxy(
        z.astype(np.float32), y, num_classes=4, ridge=1e-5, return_diagnostics=True
    )
    assert diagnostics.gradient_norm <= 1e-5


def best_objective(z, labels, ridge, classes):
    """The least value of the documented objective, by Newton in float64 on standardised columns.

    W = V / s has the penalty ridge / s^2 on V, so the optimum is the same.
    """
    z = z.astype(np.float64)
    s = z.std(axis=0)
    s[s == 0] = 1
    x = np.c_[(z - z.mean(axis=0)) / s, np.ones(len(z))]
    penalty, one_hot = np.r_[ridge / s**2, 0], np.eye(classes)[labels]
    v = np.zeros((x.shape[1], classes))

    def value(v):
        log_p = log_softmax(x @ v, axis=1)
        return -(log_p * one_hot).sum() / len(x) + 0.5 * (penalty[:, None] * v * v).sum()

    for _ in range(100):
        p = softmax(x @ v, axis=1)
        slope = x.T @ (p - one_hot) / len(x) + penalty[:, None] * v
        bend = np.einsum("ni,nk,kl,nj->ikjl", x, p, np.eye(classes), x, optimize=True)
        bend -= np.einsum("ni,nk,nl,nj->ikjl", x, p, p, x, optimize=True)
        bend = bend.reshape(v.size, v.size) / len(x) + np.diag(np.repeat(penalty, classes))
        step = np.linalg.lstsq(bend, slope.ravel(), rcond=1e-13)[0].reshape(v.shape)
        length = 1.0
        while value(v - length * step) > value(v) and length > 1e-9:
            length /= 2
        v = v - length * step
        if (slope * step).sum() < 1e-12:
            break
    return value(v)


def unscaled_table(seed, n=300, d=19, classes=3):
    """Columns of all scales and offsets: numbers, indicators, one column almost twice, one zero."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    x[:, 5:10] = x[:, 5:10] > 0.5
    x[:, 12] = x[:, 13] + 0.1 * x[:, 12]
    x[:, 18] = 0
    labels = (x @ rng.normal(size=(d, classes)) + 2 * rng.normal(size=(n, classes))).argmax(axis=1)
    scales = 10.0 ** rng.uniform(-4, 6, size=d)
    return (x * scales + 2 * scales * rng.normal(size=d)).astype(np.float32), labels


def two_columns(decisive, scales=(1.0, 1e5), n=400, wrong=0.1):
    """Standard normal columns times `scales`; the sign of one of them gives nine labels in ten."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 2))
    labels = (x[:, decisive] > 0) ^ (rng.random(n) < wrong)
    return (x * scales).astype(np.float32), labels.astype(int)


UNSCALED = {
    "sd 1 decides beside sd 1e5": (*two_columns(0), 2),
    "sd 1e5 decides beside sd 1": (*two_columns(1), 2),
    "separable, sd 1 decides": (*two_columns(0, wrong=0), 2),
    "sd 1e-2 decides beside sd 1e7": (*two_columns(0, scales=(1e-2, 1e7)), 2),
    **{f"table {seed}": (*unscaled_table(seed), 3) for seed in range(3)},
}


@pytest.mark.parametrize("ridge", [1e-3, 1e-6])
@pytest.mark.parametrize("name", UNSCALED)
def test_the_optimum_is_reached_whatever_the_scales_of_the_columns(name, ridge):
    z, y, classes = UNSCALED[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        proxy = fit_proxy(z, y, num_classes=classes, ridge=ridge)
        batch = fit_proxies([z, z], [y, y], num_classes=[classes] * 2, ridge=ridge)
    want = best_objective(z, y, ridge, classes)
    for weights, bias in [(proxy.weights, proxy.bias), (batch.weights[1], batch.bias[1])]:
        # With the exact bias for the weights: a float32 bias beside an offset of 1e6 is rounded.
        found = Proxy(np.asarray(weights, np.float64), np.asarray(bias, np.float64))
        got = objective(joined(found), z, y, None, 0, ridge, classes)
        assert got <= 1.01 * want + 1e-5


def test_the_optimum_is_that_of_scikit_learn_for_unscaled_columns():
    for z, y, classes in UNSCALED.values():
        ridge, scale = 1e-3, 2.0 if classes == 2 else 1.0
        proxy = fit_proxy(z, y, num_classes=classes, ridge=ridge)
        oracle = LogisticRegression(C=scale / (len(z) * ridge), tol=1e-8, max_iter=5000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it stops early on such columns
            oracle.fit(z.astype(np.float64), y)
        weights, bias = oracle.coef_.T, oracle.intercept_
        if classes == 2:
            weights, bias = np.c_[-weights, weights] / 2, np.r_[-bias, bias] / 2
        at_oracle = np.concatenate([weights, bias[None]])
        theirs = objective(at_oracle, z, y, None, 0, ridge, classes)
        assert objective(joined(proxy), z, y, None, 0, ridge, classes) <= 1.01 * theirs


def test_a_stop_before_convergence_is_a_warning_and_in_the_diagnostics():
    z, y, _ = problem(n=200, d=8)
    with pytest.warns(ConvergenceWarning, match=r"Z: .* after 3 steps with a gradient norm of"):
        _, diagnostics = fit_proxy(z, y, num_classes=4, max_iterations=3, return_diagnostics=True)
    assert not diagnostics.converged and diagnostics.iterations == 3
    easy = np.full((4, 8), 7.0)
    with pytest.warns(ConvergenceWarning, match=r"features\[1\]: .* after 3 steps"):
        _, diagnostics = fit_proxies(
            [easy, z],
            [np.arange(4), y],
            num_classes=[4, 4],
            max_iterations=3,
            return_diagnostics=True,
        )
    np.testing.assert_array_equal(diagnostics.converged, [True, False])


def test_many_classes_with_one_example_each():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(257, 16)).astype(np.float32)
    proxy, diagnostics = fit_proxy(
        z, np.arange(257), num_classes=257, ridge=1e-4, return_diagnostics=True
    )
    assert proxy.weights.shape == (16, 257) and diagnostics.converged
    answers = np.argmax(predict_log_probabilities(proxy, z), axis=1)
    assert (answers == np.arange(257)).mean() > 0.95


@pytest.mark.parametrize("x64", alike("1", "0"))
def test_strict_promotion_of_ranks_and_types_is_kept(x64):
    code = """
    import jax
    import numpy as np
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    from jaxspec.specify.proxy import fit_proxies, fit_proxy, predict_log_probabilities
    rng = np.random.default_rng(0)
    z, y, t = rng.normal(size=(60, 3)), np.arange(60) % 3, np.full((60, 3), 1 / 3)
    for kind in (np.float32, np.float64):
        rows = z.astype(kind)
        proxy = fit_proxy(rows, y, num_classes=3, teacher=t)
        predict_log_probabilities(proxy, rows)
        fit_proxies([rows, rows], [y, y], num_classes=[3, 3], teachers=[t, t])
        jax.jit(lambda z: fit_proxy(z, y, num_classes=3))(rows)
    """
    environment = {**os.environ, "JAX_ENABLE_X64": x64}
    root = pathlib.Path(__file__).parents[2]
    command = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run(command, check=True, env=environment, cwd=root)


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
    batch, diagnostics = fit_proxies(
        z, y, num_classes=classes, teachers=teachers, return_diagnostics=True, **options
    )
    assert batch.weights.shape == (3, 6, 9)
    assert all(leaf.shape == (3,) for leaf in jax.tree.leaves(diagnostics))
    assert diagnostics.converged.all()
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((batch, diagnostics)))
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


def test_users_of_different_sizes_compile_once(compile_counter):
    def fit(n, classes, teacher, number=float):
        z, y, t = problem(n=n, d=11, classes=classes)
        teacher = t if teacher else None
        fit_proxy(z, y, num_classes=classes, teacher=teacher, ridge=number(1e-2 * n))

    fit(30, 3, False, number=jnp.float32)
    with compile_counter() as counter:
        for n, classes, teacher in [(70, 7, False), (128, 8, True), (50, 5, True), (101, 3, True)]:
            fit(n, classes, teacher)
            fit(n, classes, teacher, number=jnp.float32)
    assert counter.count == 0

    def batch(count, n, classes):
        z, y, _ = zip(*(problem(n, 11, classes, seed) for seed in range(count)), strict=True)
        fit_proxies(z, y, num_classes=[classes] * count)

    batch(3, 40, 3)
    with compile_counter() as counter:
        batch(5, 70, 7)
        batch(8, 100, 4)
    assert counter.count == 0


def test_float32_stays_float32_in_jax_arrays():
    z, y, t = problem()
    found = fit_proxy(z, y, num_classes=4, teacher=t, return_diagnostics=True)
    for leaf in jax.tree.leaves(found):
        assert leaf.dtype in (np.float32, np.int32, bool)
        assert isinstance(leaf, jax.Array)


def test_float64_is_used_where_it_is_enabled():
    code = """
    import numpy as np
    from jaxspec.specify.proxy import fit_proxy
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(60, 3)), np.arange(60) % 3
    proxy, diagnostics = fit_proxy(
        z, y, num_classes=3, tolerance=1e-11, return_diagnostics=True
    )
    assert proxy.weights.dtype == proxy.bias.dtype == np.float64
    assert diagnostics.gradient_norm <= 1e-11
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
        ({"Z": np.where(Z > 2, np.nan, Z)}, ValueError, "Z: expected finite"),
        ({"Z": Z[:, 0]}, ValueError, "Z: expected shape"),
        ({"ridge": 0.0}, ValueError, "ridge: expected a positive number, got 0.0"),
        ({"tolerance": -1.0}, ValueError, "tolerance: expected a positive"),
        ({"teacher_weight": -1.0}, ValueError, "teacher_weight: expected"),
        ({"max_iterations": 0}, ValueError, "max_iterations: expected at least 1"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {"Z": Z, "labels": Y, "num_classes": 4, "teacher": None, **change}
    with pytest.raises(error, match=message):
        fit_proxy(**arguments)


def test_bad_batches_are_named():
    with pytest.raises(ValueError, match=r"labels\[1\]: .*got none of \[3\]"):
        fit_proxies([Z, Z], [Y, Y % 3], num_classes=[4, 4])
    with pytest.raises(ValueError, match="num_classes: expected 2 entries, one per problem, got 1"):
        fit_proxies([Z, Z], [Y, Y], num_classes=[4])
    with pytest.raises(ValueError, match=r"features\[1\]: expected 6 columns"):
        fit_proxies([Z, Z[:, :5]], [Y, Y], num_classes=[4, 4])
    with pytest.raises(ValueError, match="features: expected at least one problem"):
        fit_proxies([], [], num_classes=[])
