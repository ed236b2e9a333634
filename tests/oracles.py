"""Float64 oracles that several test files share, each written from its formula."""

import itertools

import numpy as np
from scipy.spatial.distance import cdist

import jaxspec as js


def oracle_gram(kernel, x, y):
    """The kernel's formula in float64, from scipy's distances."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    bandwidth = float(kernel.bandwidth)
    if isinstance(kernel, js.Gaussian):
        return np.exp(-cdist(x, y, "sqeuclidean") / (2 * bandwidth**2))
    if isinstance(kernel, js.Laplacian):
        return np.exp(-cdist(x, y, "cityblock") / bandwidth)
    return 1 / np.sqrt(1 + cdist(x, y, "sqeuclidean") / bandwidth**2)


def oracle_inner(kernel, one, other):
    """<Phi, Phi'> of two specifications of any kind."""
    a, b = one.reduced_set, other.reduced_set
    v, w = np.asarray(a.weights, np.float64), np.asarray(b.weights, np.float64)
    return v @ oracle_gram(kernel, a.points, b.points) @ w


def oracle_squared_mmd(kernel, one, other):
    """|Phi - Phi'|^2 of two specifications of any kind."""
    own, others = oracle_inner(kernel, one, one), oracle_inner(kernel, other, other)
    return own + others - 2 * oracle_inner(kernel, one, other)


def oracle_closeness(kernel, one, other):
    """The cosine of the angle between two mean embeddings."""
    norms = oracle_inner(kernel, one, one) * oracle_inner(kernel, other, other)
    return oracle_inner(kernel, one, other) / np.sqrt(norms)


def oracle_cosines(spec, user):
    """Cosines of centred class vectors, (learnware classes, user classes)."""

    def unit(proxy):
        weights = np.asarray(proxy.weights, np.float64).T
        weights = weights - weights.mean(axis=0)
        return weights / np.linalg.norm(weights, axis=1, keepdims=True)

    return unit(spec.proxy) @ unit(user.proxy).T


def oracle_assignment(cosines):
    """The learnware class for each user class with the largest sum of cosines, by trying all."""
    classes, k = cosines.shape
    every = itertools.permutations(range(classes), k)
    return max(every, key=lambda chosen: cosines[chosen, range(k)].sum())


def oracle_transfer(inputs, labels, classes, ridge=0.3):
    """Leave-one-out ridge regression, by leaving every row out and solving again."""
    n = len(labels)
    x = inputs - inputs.mean(axis=1, keepdims=True)
    x = x - x.mean(axis=0)
    x = x / np.sqrt((x**2).sum() / n)
    y = np.eye(classes)[labels]
    y = y - y.mean(axis=0)
    design = np.c_[x, np.ones(n)]
    penalty = n * np.diag([ridge] * x.shape[1] + [0.0])
    error = 0.0
    for i in range(n):
        rows = np.arange(n) != i
        a = design[rows].T @ design[rows] + penalty
        fitted = design[i] @ np.linalg.solve(a, design[rows].T @ y[rows])
        error += ((y[i] - fitted) ** 2).sum()
    return 1 - error / (y**2).sum()


def proxy_logits(spec, user):
    """Logits of a learnware's proxy at the user's points."""
    points = np.asarray(user.reduced_set.points, np.float64)
    return points @ np.asarray(spec.proxy.weights) + np.asarray(spec.proxy.bias)
