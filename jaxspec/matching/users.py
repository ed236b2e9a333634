"""Users as padded arrays: what a pass over a market takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxspec.base import bucket
from jaxspec.scoring import MIN_PADDED_POINTS, UserArrays
from jaxspec.specify import UserSpecification, check_user

if TYPE_CHECKING:
    from jaxtyping import Bool

    from jaxspec.matching.places import Catalogue

__all__ = ["as_users", "stack_users"]


def as_users(catalogue: Catalogue, user: Any) -> list[UserSpecification]:
    """Return one or several users as a list, checked against the space of a market.

    Raises:
        TypeError: not a user's specification, nor a sequence of them.
        ValueError: no user, or one of another space; the message names which.
    """
    if isinstance(user, UserSpecification):
        check_user("user", user, catalogue.space)
        return [user]
    if isinstance(user, Mapping | str) or not isinstance(user, Iterable):
        raise TypeError(
            f"user: expected a UserSpecification or a sequence of them, got a {type(user).__name__}"
        )
    users = list(user)
    if not users:
        raise ValueError("user: expected at least one user, got an empty sequence")
    for i, one in enumerate(users):
        check_user(f"user[{i}]", one, catalogue.space)
    return users


def stack_users(
    catalogue: Catalogue, users: Sequence[UserSpecification], by_name: Bool[np.ndarray, " Q"]
) -> UserArrays:
    """Copy checked users into padded numpy arrays, so that no new size compiles anything.

    Args:
        catalogue: of the market.
        users: Q of them.
        by_name: which of them are compared by name.
    """
    counts = [int(user.reduced_set.points.shape[0]) for user in users]
    batch, d = len(users), catalogue.space.dimension
    n = bucket(max(counts), minimum=MIN_PADDED_POINTS)
    k = bucket(max(len(user.class_names) for user in users))
    origin = np.asarray(catalogue.origin)
    sizes = np.array([len(user.class_names) for user in users])
    examples = [user.num_examples or count for user, count in zip(users, counts, strict=True)]
    arrays: dict[str, Any] = dict(
        points=np.zeros((batch, n, d), np.float32),
        weights=np.zeros((batch, n), np.float32),
        labels=np.full((batch, n), -1, np.int32),
        counts=np.array(counts, np.int32),
        examples=np.array(examples, np.float32),
        class_vectors=np.zeros((batch, k, d), np.float32),
        class_mask=np.arange(k) < sizes[:, None],
        class_numbers=np.full((batch, k), -2, np.int32),
        by_name=np.asarray(by_name, bool),
    )
    stacked: Any = UserArrays(**arrays)
    ledger = catalogue.ledger
    for i, (user, count, size) in enumerate(zip(users, counts, sizes, strict=True)):
        own: Any = (
            user.reduced_set.points,
            user.reduced_set.weights,
            user.proxy.weights,
            user.labels,
        )
        points, weights, vectors, labels = jax.device_get(own)
        np.subtract(points, origin, out=stacked.points[i, :count], casting="same_kind")
        stacked.weights[i, :count] = weights
        if labels is not None:
            stacked.labels[i, :count] = labels
        stacked.class_vectors[i, :size] = vectors.T
        stacked.class_numbers[i, :size] = ledger.numbers_of(user.class_names)
    found: UserArrays = stacked
    return found
