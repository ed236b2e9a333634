"""Matching: a user's question to a market, and the answer.

`match` is the one verb. `query` checks a question and decides what it leaves open, `users` makes
arrays of users, `match_result` is the answer. Indexes and folders register with `places`.
"""

from jaxspec.matching.best import Best, matches_of
from jaxspec.matching.match import match, user_arrays
from jaxspec.matching.match_result import Match
from jaxspec.matching.places import Catalogue, answer, catalogue_of, start_best
from jaxspec.matching.query import ClassNameWarning, Group, Query, prepare_query
from jaxspec.matching.users import stack_users

__all__ = [
    "Best",
    "Catalogue",
    "ClassNameWarning",
    "Group",
    "Match",
    "Query",
    "answer",
    "catalogue_of",
    "match",
    "matches_of",
    "prepare_query",
    "stack_users",
    "start_best",
    "user_arrays",
]
