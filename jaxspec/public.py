"""The public names of jaxspec, collected from all packages.

`import jaxspec` offers exactly these names. They stand in a file of their own because importing
them imports jax, which takes about a second: the command `jaxspec` answers `--help` without it.
"""

from jaxspec import evaluation, reuse, stream
from jaxspec.admission import Admission, Audit, Policy, Verification, admit, audit, verify
from jaxspec.applications.answer_files import read_answers
from jaxspec.applications.batch import BatchReport, match_many
from jaxspec.base import FileError, Pace, cache_compilations
from jaxspec.files import (
    MarketFolder,
    from_learnware,
    from_learnware_folder,
    save_users,
    sign_file,
    signer_of,
    to_learnware,
)
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
    Limits,
    LimitWarning,
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

__all__ = [
    "Admission",
    "Audit",
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
    "LimitWarning",
    "Limits",
    "Market",
    "MarketFolder",
    "Match",
    "Pace",
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
    "from_learnware_folder",
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
    "sign_file",
    "signer_of",
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
