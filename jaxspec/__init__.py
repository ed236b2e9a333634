"""Specifications for learnware markets: find, among many trained models, the ones worth reusing.

The method is that of Guo, Zhou, Li and Zhou, "Identifying Useful Learnwares for Heterogeneous
Label Spaces" (ICML 2023). A market publishes a `Space`; owners of models call `specify`; users call
`specify_user` and `match`. `docs/first-market.md` goes through it step by step.
"""

from jaxspec import evaluation, reuse, stream
from jaxspec.applications.answer_files import read_answers
from jaxspec.applications.batch import BatchReport, match_many
from jaxspec.base import FileError, Pace, cache_compilations
from jaxspec.files import MarketFolder, from_learnware, save_users, to_learnware
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
from jaxspec.matching import BatchAnswers, ClassNameWarning, Match, match, user_arrays
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
    "BatchAnswers",
    "BatchReport",
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
    "Pace",
    "Proxy",
    "ReducedSet",
    "Rkme",
    "Space",
    "Specification",
    "Transfer",
    "UserSpecification",
    "best_weights",
    "cache_compilations",
    "evaluation",
    "fit_proxies",
    "fit_proxy",
    "from_learnware",
    "gram",
    "match",
    "match_many",
    "median_bandwidth",
    "mmd",
    "read_answers",
    "reduce_set",
    "reduce_sets",
    "reuse",
    "save_users",
    "score_arrays",
    "specify",
    "specify_many",
    "specify_user",
    "squared_mmd",
    "stream",
    "suggest_size",
    "to_learnware",
    "user_arrays",
]
