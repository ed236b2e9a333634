"""Specifications: the space they live in, what they hold, and how they are fitted to data.

`Space` is what a market publishes; `specify`, `specify_many` and `specify_user` make
specifications. Reduced sets (`reduce_set`), linear proxies (`fit_proxy`), probe proxies and
representations are the parts. Nothing here knows of markets.
"""

from jaxspec.specify.about import About, AboutValue
from jaxspec.specify.limits import MAX_ID, MAX_NAME, Limits, LimitWarning
from jaxspec.specify.making import specify, specify_many, specify_user
from jaxspec.specify.probe_proxy import ProbeProxy, fit_probe_proxies
from jaxspec.specify.proxy import Proxy, centre_classes, fit_proxies, fit_proxy
from jaxspec.specify.reduced_set import best_weights, reduce_set, reduce_sets, suggest_size
from jaxspec.specify.representation import RANK, fit_representation
from jaxspec.specify.space import Space, check_same_space
from jaxspec.specify.stacked_users import (
    StackedUsers,
    check_numbers_of_users,
    stack_users_of,
    starts_of,
    user_of,
)
from jaxspec.specify.types import (
    FORMAT_VERSION,
    LARGEST,
    Specification,
    UserSpecification,
    as_class_names,
    check_part,
    check_user,
    check_user_weights,
    check_weights,
)

__all__ = [
    "FORMAT_VERSION",
    "LARGEST",
    "MAX_ID",
    "MAX_NAME",
    "RANK",
    "About",
    "AboutValue",
    "LimitWarning",
    "Limits",
    "ProbeProxy",
    "Proxy",
    "Space",
    "Specification",
    "StackedUsers",
    "UserSpecification",
    "as_class_names",
    "best_weights",
    "centre_classes",
    "check_numbers_of_users",
    "check_part",
    "check_same_space",
    "check_user",
    "check_user_weights",
    "check_weights",
    "fit_probe_proxies",
    "fit_proxies",
    "fit_proxy",
    "fit_representation",
    "reduce_set",
    "reduce_sets",
    "specify",
    "specify_many",
    "specify_user",
    "stack_users_of",
    "starts_of",
    "suggest_size",
    "user_of",
]
