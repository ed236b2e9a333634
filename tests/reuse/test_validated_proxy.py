"""Validated proxies against scikit-learn's logistic regression under the same folds."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from jaxspec.reuse.folds import stratified_folds
from jaxspec.reuse.validated_proxy import RIDGES, fit_validated_proxy


@pytest.mark.parametrize(("rows", "columns"), [(60, 8), (30, 70)])
def test_the_validated_proxy_equals_scikit_learn(rows, columns):
    """Also where there are more columns than rows, and the problem is solved in rows."""
    rng = np.random.default_rng(rows)
    labels = np.arange(rows) % 3
    inputs = (rng.normal(size=(rows, columns)) + labels[:, None]) + 2
    inputs /= np.sqrt(inputs.var(axis=0).sum())
    proxy, ridge, likelihood = fit_validated_proxy(inputs, labels, num_classes=3)
    scaled, same, _ = fit_validated_proxy(50 * inputs - 7, labels, num_classes=3)
    assert same == ridge
    np.testing.assert_allclose(50 * scaled.weights, proxy.weights, rtol=1e-2, atol=1e-3)
    fold = np.arange(rows) // 3 % 5
    totals = []
    for value in RIDGES:
        chance = np.zeros((rows, 3))
        for i in range(5):
            kept = fold != i
            model = LogisticRegression(C=1 / (value * kept.sum()), solver="newton-cg", tol=1e-6)
            chance[~kept] = model.fit(inputs[kept], labels[kept]).predict_proba(inputs[~kept])
        totals.append(np.log(chance[np.arange(rows), labels]).mean())
    assert ridge == RIDGES[int(np.argmax(totals))]
    np.testing.assert_allclose(likelihood, max(totals), atol=2e-3)
    model = LogisticRegression(C=1 / (ridge * rows), solver="newton-cg", tol=1e-6).fit(
        inputs, labels
    )
    np.testing.assert_allclose(
        np.transpose(proxy.weights), model.coef_, atol=5e-3 * np.abs(model.coef_).max()
    )


def test_the_proxy_and_its_bias_are_centred_over_classes():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 4
    features = rng.normal(size=(40, 6)) + labels[:, None] + 30
    proxy = fit_validated_proxy(features, labels, num_classes=4).proxy
    np.testing.assert_allclose(np.sum(proxy.weights, axis=1), 0, atol=1e-4)
    np.testing.assert_allclose(np.sum(proxy.bias), 0, atol=1e-2)


def test_a_class_with_one_example_takes_the_middle_ridge_without_validation():
    labels = np.array([0, 0, 0, 1, 1, 2])
    features = np.random.default_rng(0).normal(size=(6, 3))
    fitted = fit_validated_proxy(features, labels, num_classes=3)
    assert fitted.ridge == sorted(RIDGES)[len(RIDGES) // 2]
    assert np.isnan(fitted.log_likelihood)


def test_folds_are_stratified():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 3], [4, 9, 17]))
    fold = stratified_folds(labels, 5)
    assert set(fold) == {0, 1, 2, 3}  # the smallest class has four examples
    for label in (0, 1, 3):
        sizes = np.bincount(fold[labels == label], minlength=4)
        assert sizes.min() >= 1
        assert sizes.max() - sizes.min() <= 1
    assert stratified_folds(np.array([0, 0, 1]), 5) is None
