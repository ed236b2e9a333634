"""How much a specification looks like a copy or a mixture of others: numbers, larger is worse.

`Compared` holds what is compared of some specifications; `copy_scores`, `mixture_scores` and
`average_scores` take two of them. Nothing here decides: `suspicions.py` finds thresholds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxspec.admission.published import kernel_table, lifted_rows, published_logits
from jaxspec.specify import Space, Specification

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

__all__ = [
    "Compared",
    "average_scores",
    "compared",
    "copy_scores",
    "joint_rows",
    "mixture_scores",
]

MAX_ROWS = 800  # at which answers are compared
SWEEPS = 200  # of the coordinate descent
MIN_AVERAGED = 2  # learnwares with a class of the same name


@dataclasses.dataclass(frozen=True)
class Compared:
    """What is compared of n specifications.

    Attributes:
        specs: the specifications.
        rows: (r, d) at which answers are compared.
        classes: n arrays (r,), the class that is named at every row.
        columns: (r, total) probabilities of all classes of all specifications, centred over rows.
        owners: (total,) whose the columns are.
        names: (total,) class names.
    """

    specs: Sequence[Specification]
    rows: Float[np.ndarray, "r d"]
    classes: Sequence[np.ndarray]
    columns: Float[np.ndarray, "r total"]
    owners: np.ndarray
    names: np.ndarray


def joint_rows(space: Space, specs: Sequence[Specification]) -> Float[np.ndarray, "r d"]:
    """Return rows at which answers are compared: the landmarks, or points of the reduced sets."""
    if space.probe is not None:
        return np.asarray(space.landmarks)
    points = np.concatenate([np.asarray(spec.reduced_set.points) for spec in specs])
    if len(points) > MAX_ROWS:
        points = points[np.sort(np.random.default_rng(0).permutation(len(points))[:MAX_ROWS])]
    return points


def compared(
    space: Space, specs: Sequence[Specification], rows: Float[np.ndarray, "r d"]
) -> Compared:
    """Return what is compared of some specifications at some rows."""
    lifted = lifted_rows(space, rows) if space.probe is not None else None
    classes, columns, owners, names = [], [], [], []
    for i, spec in enumerate(specs):
        logits = published_logits(space, spec, rows, lifted)
        # In units of their own size, so that scaling does not hide a copy.
        logits -= logits.mean(axis=1, keepdims=True)
        logits *= 2.0 / max(float(np.sqrt(np.square(logits).mean())), 1e-12)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        chance = powers / powers.sum(axis=1, keepdims=True)
        classes.append(logits.argmax(axis=1))
        columns.append(chance - chance.mean(axis=0))
        owners += [i] * chance.shape[1]
        names += list(spec.class_names)
    return Compared(
        specs, rows, classes, np.concatenate(columns, axis=1), np.array(owners), np.array(names)
    )


def inner_products(
    space: Space, one: Sequence[Specification], other: Sequence[Specification]
) -> Float[np.ndarray, "n m"]:
    """Return <Phi_i, Phi_j> of two lists of specifications."""
    points, weights, owner = _stacked(other)
    found = np.empty((len(one), len(other)))
    for i, spec in enumerate(one):
        values = kernel_table(space, np.asarray(spec.reduced_set.points), points)
        products = (np.asarray(spec.reduced_set.weights, np.float64) @ values) * weights
        found[i] = np.bincount(owner, products, minlength=len(other))
    return found


def _stacked(specs: Sequence[Specification]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    points = [np.asarray(spec.reduced_set.points, np.float32) for spec in specs]
    weights = [np.asarray(spec.reduced_set.weights, np.float64) for spec in specs]
    owner = np.repeat(np.arange(len(specs)), [len(one) for one in points])
    return np.concatenate(points), np.concatenate(weights), owner


def self_terms(space: Space, specs: Sequence[Specification]) -> Float[np.ndarray, " n"]:
    """Return the squared norms of embeddings."""
    found = [float(inner_products(space, [spec], [spec])[0, 0]) for spec in specs]
    return np.maximum(np.array(found), 1e-12)


def copy_scores(
    cosines: Float[np.ndarray, "n m"],
    some: Compared,
    others: Compared,
    allowed: Bool[np.ndarray, "n m"],
) -> tuple[Float[np.ndarray, " n"], np.ndarray]:
    """Return how much the likest other resembles each specification, and which one it is.

    It is the smaller of the cosine of the embeddings and of the shared information of the answers,
    both at most one: owners of the same data have other answers, and models with the same answers
    other data. Class names do not count, so renaming hides nothing.
    """
    alike = np.zeros(cosines.shape)
    for i, j in np.argwhere(allowed):
        if cosines[i, j] > 0.5:  # further ones are no copies
            shared = _shared_information(some.classes[i], others.classes[j])
            alike[i, j] = min(cosines[i, j], shared)
    return alike.max(axis=1), alike.argmax(axis=1)


def _shared_information(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mutual information of two sequences of classes by the larger entropy."""
    table = np.zeros((one.max() + 1, other.max() + 1))
    np.add.at(table, (one, other), 1.0 / len(one))

    def entropy(values: np.ndarray) -> float:
        kept = values[values > 0]
        return float(-(kept * np.log(kept)).sum())

    first, second = entropy(table.sum(axis=1)), entropy(table.sum(axis=0))
    joint = entropy(table.ravel())
    return (first + second - joint) / max(first, second, 1e-9)


def mixture_scores(
    own: Float[np.ndarray, " n"],
    products: Float[np.ndarray, "n m"],
    gram: Float[np.ndarray, "m m"],
    allowed: Bool[np.ndarray, "n m"],
) -> Float[np.ndarray, " n"]:
    """Return by how much a mixture of other embeddings explains each one better than the nearest.

    It is log(r_1 / r), with r the part of |Phi|^2 that the best mixture with weights of at least
    zero leaves, and r_1 what the best single one leaves. Owners of the same data have about zero.

    Args:
        own: squared norms.
        products: with the embeddings of others.
        gram: of the others.
        allowed: which of the others may be mixed.
    """
    kept = np.where(allowed, products, 0.0)
    single = 1.0 - (np.maximum(kept, 0.0) ** 2 / np.diagonal(gram)).max(axis=1, initial=0.0) / own
    rest = _unexplained(own, kept, gram, allowed)
    return np.log(np.maximum(single, 1e-4) / np.maximum(rest, 1e-4))


def average_scores(
    some: Compared, others: Compared, allowed: Bool[np.ndarray, "n m"]
) -> Float[np.ndarray, " n"]:
    """Return how well averages of others' answers explain those of each specification, in nats.

    It is -log of the mean unexplained variance of the class probabilities, each explained by those
    of classes of the same name with weights of at least zero. NaN where fewer than two others have
    classes of the same names.
    """
    gram = others.columns.T @ others.columns + 1e-9 * np.eye(others.columns.shape[1])
    found = np.full(len(some.specs), np.nan)
    products = some.columns.T @ others.columns
    own = np.maximum(np.square(some.columns).sum(axis=0), 1e-12)
    may = (some.names[:, None] == others.names) & allowed[some.owners][:, others.owners]
    enough = may.sum(axis=1) >= MIN_AVERAGED
    rest = _unexplained(own, np.where(may, products, 0.0), gram, may)
    for i in range(len(some.specs)):
        mine = (some.owners == i) & enough
        if mine.any():
            found[i] = -np.log(max(float((rest * own)[mine].sum() / own[mine].sum()), 1e-6))
    return found


def _unexplained(
    own: np.ndarray, products: np.ndarray, gram: np.ndarray, allowed: np.ndarray
) -> np.ndarray:
    """Return the part of each squared norm that non-negative combinations leave, (n,).

    Coordinate descent for all targets at once.
    """
    weights = np.zeros(products.shape)
    fitted = np.zeros(products.shape)  # weights @ gram
    used = np.flatnonzero(allowed.any(axis=0))
    for _ in range(SWEEPS):
        largest = 0.0
        for k in used:
            step = (products[:, k] - fitted[:, k]) / gram[k, k]
            new = np.where(allowed[:, k], np.maximum(weights[:, k] + step, 0.0), 0.0)
            change = new - weights[:, k]
            if np.abs(change).max() > 0:
                fitted += change[:, None] * gram[k]
                weights[:, k] = new
                largest = max(largest, float(np.abs(change).max()))
        if largest < 1e-5:
            break
    left = own - 2.0 * (weights * products).sum(axis=1) + (weights * fitted).sum(axis=1)
    return np.clip(left / own, 0.0, 1.0)
