"""Verification: a model is run, and its answers are compared with those that were published.

A file is consistent in itself whatever it claims, so only this tells a lie from the truth. `verify`
decides; it trusts neither the specification nor the fidelity that it states.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxspec.admission.published import (
    corrected_agreement,
    linear_logits,
    nearness,
    proxy_of,
    published_logits,
)
from jaxspec.base import as_features, as_key, as_size, to_numpy
from jaxspec.market import check_specification
from jaxspec.specify import Space, Specification

if TYPE_CHECKING:
    from jax.typing import ArrayLike

__all__ = ["Verification", "verify"]

LEVEL = 0.005  # of each of the two tests: 0.5 % of honest models fail the first by chance
# Least agreement beyond chance (Cohen's kappa). On 88 honest heads it was at least 0.83 on the
# probe, 0.55 on fresh rows, and 0.44 for linear proxies on the 100 nearest rows; whole lies of
# useless models reached 0.05, 0.04 and 0.05, and where half of the answers were lies 0.54.
FLOORS = {"probe proxy, probe": 0.6, "probe proxy, fresh": 0.3, "linear proxy": 0.25}
NEAR_SHARE = 0.1  # of the rows: a linear proxy follows its model only near the owner's data
MIN_ROWS = 20
MAX_ORDERED = 6  # classes of which all orders are tried


@dataclasses.dataclass(frozen=True)
class Verification:
    """What running a model told about its specification.

    Attributes:
        accepted: whether the model gives the published answers.
        agreement: share of the rows in which the model names the published class; NaN if its
            outputs cannot be compared.
        interval: 95 % (Wilson) for the agreement of further rows like these.
        chance: agreement that answers without relation to each other would have.
        rows: how many rows the model was run on.
        published: "probe proxy" or "linear proxy", what was compared.
        stated: the fidelity that the specification states, or None.
        reasons: sentences that say why it was accepted or not.
    """

    accepted: bool
    agreement: float
    interval: tuple[float, float]
    chance: float
    rows: int
    published: str
    stated: float | None
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        """Return the decision and its reasons, a line each."""
        word = "accepted" if self.accepted else "refused"
        return "\n".join([f"Verification: {word}", *(f"- {reason}" for reason in self.reasons)])


def verify(
    specification: Specification,
    model: Callable[[Any], ArrayLike],
    space: Space,
    *,
    inputs: Any = None,
    features: ArrayLike | None = None,
    rows: int = 200,
    key: jax.Array | None = None,
) -> Verification:
    """Run a model and say whether it gives the answers that its specification publishes.

    The answers are those of the probe proxy, or of the linear proxy near the reduced set. A model
    is refused if it agrees less than the stated fidelity allows (on rows of the probe, at a level
    of 0.5 %), no more than chance explains (0.5 %), or less than a floor that no stated fidelity
    lowers.

    Args:
        specification: what was published.
        model: returns class probabilities or logits (n, C) for n inputs, in the order of the
            specification's class names.
        space: of the specification.
        inputs: what the model takes, one entry per row of the space's probe or of `features`: an
            array, or anything that an array of integers indexes. None if it takes the features.
        features: (n, d) of rows that submitters never saw, which then replace the probe.
        rows: how many rows are drawn; fewer if there are fewer.
        key: jax random key of the draw; None means `jax.random.key(0)`.

    Raises:
        TypeError, ValueError: an unsound specification or one of another space, no rows to run the
            model on, or outputs that are not (n, something) numbers.
    """
    check_specification("specification", specification, space)
    proxy_of(specification)
    if not callable(model):
        raise TypeError(f"model: expected a callable, got a {type(model).__name__}")
    count = as_size("rows", rows, minimum=MIN_ROWS)
    fresh = features is not None
    if features is not None:
        known = np.asarray(as_features("features", features, dimension=space.dimension))
    elif space.probe is not None:
        known = np.asarray(space.probe)
    else:
        raise ValueError(
            f"features: expected rows to run the model on, as the space {space.name!r} has no "
            "probe, got None"
        )
    given = known if inputs is None else inputs
    if not hasattr(given, "__getitem__") or not hasattr(given, "__len__"):
        raise TypeError(f"inputs: expected a sequence or an array, got a {type(given).__name__}")
    if len(given) != len(known):
        raise ValueError(
            f"inputs: expected {len(known)} entries, one per row of "
            f"{'`features`' if fresh else 'the probe'}, got {len(given)}"
        )
    chosen = _chosen_rows(specification, space, known, count, key)
    picked = [given[i] for i in chosen] if isinstance(given, list | tuple) else given[chosen]
    outputs = to_numpy("model", model(picked))
    if outputs.ndim != 2 or len(outputs) != len(chosen) or outputs.dtype.kind not in "fiu":
        raise ValueError(
            f"model: expected outputs of shape ({len(chosen)}, classes), got shape "
            f"{outputs.shape} and dtype {outputs.dtype}"
        )
    return _decided(specification, space, known[chosen], outputs, fresh)


def _chosen_rows(
    spec: Specification, space: Space, known: np.ndarray, count: int, key: jax.Array | None
) -> np.ndarray:
    """Return rows that are drawn: of all, or of those near the reduced set for a linear proxy."""
    own_key = jax.random.key(0) if key is None else as_key("key", key)
    seed = np.asarray(jax.random.key_data(own_key)).astype(np.uint32).tolist()
    rng, places = np.random.default_rng(seed), np.arange(len(known))
    if spec.probe_proxy is None:
        near = max(MIN_ROWS, round(NEAR_SHARE * len(known)))
        places = np.argsort(-nearness(space, spec, known), kind="stable")[:near]
    return np.sort(rng.permutation(places)[:count])


def _decided(
    spec: Specification, space: Space, rows: np.ndarray, outputs: np.ndarray, fresh: bool
) -> Verification:
    """Compare a model's outputs with what was published for the same rows."""
    names, count = spec.class_names, len(rows)
    published, stated = "linear proxy", None
    if spec.probe_proxy is not None:
        published, stated = "probe proxy", float(np.asarray(spec.probe_proxy.fidelity))

    def refused(reason: str) -> Verification:
        none = (math.nan, math.nan)
        return Verification(False, math.nan, none, math.nan, count, published, stated, (reason,))

    if outputs.shape[1] != len(names):
        return refused(
            f"The model has {outputs.shape[1]} outputs, and the specification names "
            f"{len(names)} classes."
        )
    if not np.isfinite(outputs).all():
        return refused("The model's outputs are not all finite.")
    logits = (
        published_logits(space, spec, rows) if stated is not None else linear_logits(spec, rows)
    )
    said, own = logits.argmax(axis=1), outputs.argmax(axis=1)
    same = int((said == own).sum())
    kappa, chance = corrected_agreement(said, own)
    where = "rows of the probe" if not fresh else "fresh rows"
    where += " near the reduced set" if stated is None else ""
    found = f"The model names the class of the {published} in {same} of {count} {where}"
    reasons = []
    if stated is not None and not fresh and _below(same, count, stated) < LEVEL:
        reasons.append(f"{found}, which is too few for the stated fidelity of {stated:.0%}.")
    if _below(count - same, count, 1.0 - chance) >= LEVEL:
        reasons.append(f"{found}; answers without any relation would agree in {chance:.0%}.")
    kind = published if stated is None else f"{published}, {'fresh' if fresh else 'probe'}"
    if kappa < FLOORS[kind]:
        reasons.append(
            f"{found}, {kappa:.2f} of what is possible beyond chance; at least "
            f"{FLOORS[kind]} is asked for, whatever fidelity is stated."
        )
    if reasons:
        reasons += _other_order(said, own, names, FLOORS[kind])
    accepted = not reasons
    if accepted:
        reasons.append(f"{found}; answers without any relation would agree in {chance:.0%}.")
    interval = _wilson(same, count)
    return Verification(
        accepted, same / count, interval, chance, count, published, stated, tuple(reasons)
    )


def _below(successes: int, count: int, share: float) -> float:
    """Return P(X <= successes) for X ~ Binomial(count, share)."""
    if share >= 1.0:
        return 1.0 if successes >= count else 0.0
    if share <= 0.0:
        return 1.0
    logs = [
        math.lgamma(count + 1)
        - math.lgamma(k + 1)
        - math.lgamma(count - k + 1)
        + k * math.log(share)
        + (count - k) * math.log1p(-share)
        for k in range(successes + 1)
    ]
    return min(math.fsum(math.exp(value) for value in logs), 1.0)


def _wilson(successes: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share."""
    share, extra = successes / count, z * z / count
    middle = (share + extra / 2) / (1 + extra)
    half = z / (1 + extra) * math.sqrt(share * (1 - share) / count + extra / (4 * count))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _other_order(
    said: np.ndarray, own: np.ndarray, names: tuple[str, ...], floor: float
) -> list[str]:
    """Return a sentence if the model agrees well with its outputs in another order."""
    classes = len(names)
    table = np.zeros((classes, classes))
    np.add.at(table, (own, said), 1.0)
    if classes <= MAX_ORDERED:
        orders: Any = itertools.permutations(range(classes))
        order = max(orders, key=lambda one: sum(table[i, j] for i, j in enumerate(one)))
    else:
        order = tuple(table.argmax(axis=1).tolist())
        if len(set(order)) < classes:
            return []
    if order == tuple(range(classes)):
        return []
    kappa, _ = corrected_agreement(said, np.array(order)[own])
    if kappa < max(floor, 0.5):
        return []
    first = next(i for i, j in enumerate(order) if i != j)
    return [
        f"The classes seem to be in another order: output {first} of the model, taken as "
        f"{names[first]!r}, goes with {names[order[first]]!r}."
    ]
