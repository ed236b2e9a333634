"""Kernels, their mean embeddings, the median heuristic and the Nystroem feature map.

`kernels` holds the kernels, distances and dense kernel matrices; `mean_embedding` weighted point
sets and their squared MMD; `bandwidth` the median heuristic; `nystroem` features lifted on
landmarks. Everything here is a function of arrays; nothing reads files or knows of markets.
"""

from jaxspec.kernels.bandwidth import median_bandwidth
from jaxspec.kernels.kernels import (
    Gaussian,
    InverseMultiquadric,
    Kernel,
    Laplacian,
    as_kernel,
    distances,
    gram,
    kernel_label,
    kernel_values,
    usable_bandwidth,
)
from jaxspec.kernels.mean_embedding import (
    ReducedSet,
    inner_product,
    mmd,
    one_by_one,
    square_norm,
    squared_mmd,
    weighted_sum,
)
from jaxspec.kernels.nystroem import lift, whitening

__all__ = [
    "Gaussian",
    "InverseMultiquadric",
    "Kernel",
    "Laplacian",
    "ReducedSet",
    "as_kernel",
    "distances",
    "gram",
    "inner_product",
    "kernel_label",
    "kernel_values",
    "lift",
    "median_bandwidth",
    "mmd",
    "one_by_one",
    "square_norm",
    "squared_mmd",
    "usable_bandwidth",
    "weighted_sum",
    "whitening",
]
