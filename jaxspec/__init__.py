"""Specifications for learnware markets: find, among many trained models, the ones worth reusing.

The method is that of Guo, Zhou, Li and Zhou, "Identifying Useful Learnwares for Heterogeneous
Label Spaces" (ICML 2023). A market publishes a `Space`; owners of models call `specify`; users call
`specify_user` and `match`. `docs/first-market.md` goes through it step by step.
"""

from jaxspec import evaluation, reuse, stream
from jaxspec.admission import Admission, Audit, Policy, Verification, admit, audit, verify
from jaxspec.base import FileError, cache_compilations
from jaxspec.files import MarketFolder, from_learnware, to_learnware
from jaxspec.index import Index
from jaxspec.kernels import (
    Gaussian,
    InverseMultiquadric,
    Laplacian,
    ReducedSet,
    gram,
    median_bandwidth,
    mmd,
    squared_mmd,
)
from jaxspec.market import Market
from jaxspec.matching import ClassNameWarning, Match, match, user_arrays
from jaxspec.scoring import Classwise, Likelihood, Rkme, Transfer, score_arrays
from jaxspec.specify import (
    Proxy,
    Space,
    Specification,
    UserSpecification,
    best_weights,
    fit_proxies,
    fit_proxy,
    reduce_set,
    reduce_sets,
    specify,
    specify_many,
    specify_user,
    suggest_size,
)

__version__ = "0.2.0"

__all__ = [
    "Admission",
    "Audit",
    "ClassNameWarning",
    "Classwise",
    "FileError",
    "Gaussian",
    "Index",
    "InverseMultiquadric",
    "Laplacian",
    "Likelihood",
    "Market",
    "MarketFolder",
    "Match",
    "Policy",
    "Proxy",
    "ReducedSet",
    "Rkme",
    "Space",
    "Specification",
    "Transfer",
    "UserSpecification",
    "Verification",
    "admit",
    "audit",
    "best_weights",
    "cache_compilations",
    "evaluation",
    "fit_proxies",
    "fit_proxy",
    "from_learnware",
    "gram",
    "match",
    "median_bandwidth",
    "mmd",
    "reduce_set",
    "reduce_sets",
    "reuse",
    "score_arrays",
    "specify",
    "specify_many",
    "specify_user",
    "squared_mmd",
    "stream",
    "suggest_size",
    "to_learnware",
    "user_arrays",
    "verify",
]
