"""Whether the parts of one specification contradict each other: a number, larger is worse."""

from __future__ import annotations

import numpy as np

from jaxspec.admission.published import corrected_agreement, linear_logits, published_logits
from jaxspec.specify import Space, Specification

__all__ = ["contradiction"]


def contradiction(space: Space, spec: Specification) -> float:
    """Return by how much the probe proxy contradicts the linear one on the owner's reduced set.

    It is minus Cohen's kappa of the classes that they name, with the points' weights: about zero
    for random or shuffled answers on the probe. NaN without a probe proxy.
    """
    if spec.probe_proxy is None:
        return float("nan")
    points = np.asarray(spec.reduced_set.points)
    one = linear_logits(spec, points).argmax(axis=1)
    other = published_logits(space, spec, points).argmax(axis=1)
    return -corrected_agreement(one, other, np.abs(np.asarray(spec.reduced_set.weights)))[0]
