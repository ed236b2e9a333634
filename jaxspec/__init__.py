"""Specifications for learnware markets: find, among many trained models, the ones worth reusing.

The method is that of Guo, Zhou, Li and Zhou, "Identifying Useful Learnwares for Heterogeneous
Label Spaces" (ICML 2023). Submitters call `specify`, users `specify_user` and `match`.
"""

from jaxspec.evaluation import metrics as evaluation
from jaxspec.files import learnware as interop
from jaxspec.index.index import Index
from jaxspec.kernels import (
    Gaussian,
    InverseMultiquadric,
    Laplacian,
    ReducedSet,
    gram,
    inner_product,
    median_bandwidth,
    mmd,
    squared_mmd,
    weighted_sum,
)
from jaxspec.market.market import Market
from jaxspec.matching.match import Match, match, top_k
from jaxspec.reuse import reuse
from jaxspec.specify.proxy import Proxy, fit_proxies, fit_proxy
from jaxspec.specify.reduced_set import best_weights, reduce_set, reduce_sets, suggest_size
from jaxspec.specify.specification import (
    Specification,
    UserSpecification,
    specify,
    specify_many,
    specify_user,
)
from jaxspec.stream.stream import stream_top_k

__version__ = "0.1.0"

__all__ = [
    "Gaussian",
    "Index",
    "InverseMultiquadric",
    "Laplacian",
    "Market",
    "Match",
    "Proxy",
    "ReducedSet",
    "Specification",
    "UserSpecification",
    "best_weights",
    "evaluation",
    "fit_proxies",
    "fit_proxy",
    "gram",
    "inner_product",
    "interop",
    "match",
    "median_bandwidth",
    "mmd",
    "reduce_set",
    "reduce_sets",
    "reuse",
    "specify",
    "specify_many",
    "specify_user",
    "squared_mmd",
    "stream_top_k",
    "suggest_size",
    "top_k",
    "weighted_sum",
]
