"""Made rows and float64 oracles that the tests of kernels share."""

import numpy as np
from scipy.spatial.distance import cdist

from jaxspec.kernels import Gaussian, InverseMultiquadric, Laplacian

KERNELS = [Gaussian, Laplacian, InverseMultiquadric]


def oracle_gram(kernel, x, y):
    """The kernels' formulas in float64, from scipy's distances."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    bandwidth = float(kernel.bandwidth)
    if isinstance(kernel, Gaussian):
        return np.exp(-cdist(x, y, "sqeuclidean") / (2 * bandwidth**2))
    if isinstance(kernel, Laplacian):
        return np.exp(-cdist(x, y, "cityblock") / bandwidth)
    return 1 / np.sqrt(1 + cdist(x, y, "sqeuclidean") / bandwidth**2)


def sample(seed, n, d=8, offset=0.0):
    """Float32 rows; the oracle sees the same rounded numbers."""
    return (np.random.default_rng(seed).normal(size=(n, d)) + offset).astype(np.float32)
