"""Matching: a user's question to a market, and the answer.

`match` is the one verb. `query` checks a question and decides what it leaves open, `users` makes
arrays of users, `match_result` is the answer. Indexes and folders register with `places`. `many`
answers very many users, in the batches that `batches` makes, by `batch_answers`.
"""

from jaxspec.matching.batch_answers import BatchAnswers
from jaxspec.matching.best import Best, matches_of
from jaxspec.matching.many import Asked, answer_many, as_asked
from jaxspec.matching.match import match, user_arrays
from jaxspec.matching.match_result import Match
from jaxspec.matching.places import Catalogue, answer, catalogue_of, start_best
from jaxspec.matching.query import ClassNameWarning, Group, Query, prepare_query
from jaxspec.matching.users import stack_users

__all__ = [
    "Asked",
    "BatchAnswers",
    "Best",
    "Catalogue",
    "ClassNameWarning",
    "Group",
    "Match",
    "Query",
    "answer",
    "answer_many",
    "as_asked",
    "catalogue_of",
    "match",
    "matches_of",
    "prepare_query",
    "stack_users",
    "start_best",
    "user_arrays",
]
