"""A linear proxy of few examples whose ridge is chosen by cross-validation.

May be called: `fit_validated_proxy`. The fits are those of `jaxspec.specify`; what is added here is
the choice of the ridge. Nothing here draws random numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy

from jaxspec.base import as_features, as_labels, as_size, bucket, pad_to
from jaxspec.reuse.folds import stratified_folds
from jaxspec.specify import Proxy, fit_proxies

if TYPE_CHECKING:
    from jaxtyping import Array
    from numpy.typing import ArrayLike

__all__ = ["RIDGES", "ValidatedProxy", "fit_validated_proxy"]

RIDGES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)  # for features of total variance one
TOLERANCE = 1e-5  # on the gradient norm of every fit: weights within 1e-3 of the optimum
LOG_FLOOR = float(np.log(1e-30))  # in nats, for a label whose probability rounds to zero


class ValidatedProxy(NamedTuple):
    """A proxy and how it was chosen.

    Attributes:
        proxy: weights (d, C) and bias (C,).
        ridge: as chosen, for features of total variance one.
        log_likelihood: cross-validated, mean over examples in nats; NaN without validation.
    """

    proxy: Proxy
    ridge: float
    log_likelihood: float


def fit_validated_proxy(
    features: ArrayLike | Array, labels: ArrayLike | Array, *, num_classes: int, folds: int = 5
) -> ValidatedProxy:
    """Return a linear proxy (d, C) of few examples, its ridge and its validated log-likelihood.

    The ridge, for features of total variance one, is that of `RIDGES` with the best
    cross-validated log-likelihood. Where a class has one example only there is nothing to validate
    on: then it is the middle one, and the likelihood is NaN.

    The best weights lie in the span of the n examples, so that the problem is solved in at most n
    coordinates (padded, so that few shapes compile). Features divided by the root of a ridge make
    it a problem of ridge one, so that all ridges and folds are one batch of one shape.

    Args:
        features: (n, d).
        labels: (n,) integers in 0..num_classes-1, every class at least once.
        num_classes: C.
        folds: of the cross-validation; fewer if a class has fewer examples.

    Raises:
        TypeError, ValueError: an argument that is not as described; the message names it.
    """
    features = np.asarray(as_features("features", features))
    rows, columns = features.shape
    classes = as_size("num_classes", num_classes, minimum=2)
    folds = as_size("folds", folds, minimum=2)
    labels = np.asarray(
        as_labels("labels", labels, rows=rows, num_classes=classes, every_class=True)
    )
    origin = features.mean(axis=0)
    scale = float(np.sqrt(np.square(features - origin).mean(axis=0).sum())) or 1.0
    inputs = (features - origin) / scale
    basis = np.linalg.qr(inputs.T)[0] if columns > rows else np.eye(columns, dtype=inputs.dtype)
    coordinates = basis.shape[1]
    padded = bucket(coordinates, minimum=64)
    small = pad_to((inputs @ basis).astype(np.float32), (rows, padded))
    fold = stratified_folds(labels, folds)
    ridges = RIDGES if fold is not None else (RIDGES[len(RIDGES) // 2],)
    splits = [] if fold is None else [fold == i for i in range(fold.max() + 1)]
    left_out = [*splits, np.zeros(rows, bool)]  # the last fit of every ridge is on all examples
    problems = [(small / np.sqrt(ridge), out) for ridge in ridges for out in left_out]
    fitted = fit_proxies(
        [values[~out] for values, out in problems],
        [labels[~out] for _, out in problems],
        num_classes=[classes] * len(problems),
        ridge=1.0,
        tolerance=TOLERANCE,
    )
    weights, bias = np.asarray(fitted.weights), np.asarray(fitted.bias)
    totals = np.zeros(len(ridges))
    for j, (values, out) in enumerate(problems):
        # By scipy: jax would compile for every size of a fold.
        log_p = scipy.special.log_softmax(values[out] @ weights[j] + bias[j], axis=1)
        of_label = log_p[np.arange(len(log_p)), labels[out]]
        totals[j // len(left_out)] += np.maximum(of_label, LOG_FLOOR).sum()
    best = int(totals.argmax())
    on_all = best * len(left_out) + len(splits)
    weights_of_features = basis @ weights[on_all][:coordinates] / (np.sqrt(ridges[best]) * scale)
    bias_of_features = bias[on_all] - origin @ weights_of_features
    return ValidatedProxy(
        Proxy(
            jnp.asarray(weights_of_features.astype(np.float32)),
            jnp.asarray(bias_of_features.astype(np.float32)),
        ),
        float(ridges[best]),
        float(totals[best] / rows) if splits else float("nan"),
    )
