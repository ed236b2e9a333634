"""`audit`: verification and suspicions for the learnwares of a market, as a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxspec.admission.policy import Policy
from jaxspec.admission.suspicions import Suspicions
from jaxspec.admission.verify import Verification, verify
from jaxspec.market import Market

__all__ = ["Audit", "audit"]


@dataclasses.dataclass(frozen=True)
class Audit:
    """What was found out about the learnwares of a market.

    Attributes:
        count: learnwares of the market.
        verifications: {id: what running its model told}, where a model was given.
        suspicions: {id: sentences}, what is suspicious by comparison with the other learnwares.
    """

    count: int
    verifications: dict[str, Verification]
    suspicions: dict[str, tuple[str, ...]]

    @property
    def verified(self) -> tuple[str, ...]:
        """The ids whose models give their answers, for `Market.mark_verified`."""
        return tuple(name for name, one in self.verifications.items() if one.accepted)

    @property
    def refused(self) -> dict[str, tuple[str, ...]]:
        """{id: reasons} of the models that do not give their published answers."""
        return {name: one.reasons for name, one in self.verifications.items() if not one.accepted}

    def __str__(self) -> str:
        """Return a summary, then everything that was found."""
        ran = len(self.verifications)
        lines = [
            f"Audit of {self.count} learnwares: {len(self.verified)} of {ran} models give their "
            f"published answers, {self.count - ran} were not run, {len(self.suspicions)} are "
            "suspicious"
        ]
        for word, group in (("refused", self.refused), ("suspicious", self.suspicions)):
            for name, sentences in group.items():
                lines += [f"- {word} {name!r}: {sentence}" for sentence in sentences]
        return "\n".join(lines)


def audit(
    market: Market,
    models: Mapping[str, Callable[[Any], Any]] | None = None,
    inputs: Any = None,
    *,
    policy: Policy | None = None,
) -> Audit:
    """Run the models of a market, and compare all learnwares with each other.

    Args:
        market: whose learnwares are looked at. It is not changed.
        models: {id: callable} of the models that can be run, see `verify`; others are not run.
        inputs: what the models take, one entry per row of the space's probe; None for the features.
        policy: which suspicions are looked for, at which rate of false alarms.

    Raises:
        TypeError: not a market, or models that are not a mapping.
        KeyError: a model of an id that is not in the market.
    """
    if not isinstance(market, Market):
        raise TypeError(f"market: expected a Market, got a {type(market).__name__}")
    if models is not None and not isinstance(models, Mapping):
        raise TypeError(f"models: expected a mapping by id, got a {type(models).__name__}")
    policy = Policy() if policy is None else policy
    verifications = {
        name: verify(market[name], model, market.space, inputs=inputs, rows=policy.rows)
        for name, model in (models or {}).items()
    }
    search, found = Suspicions(market, policy), {}
    names = list(market.ids)
    for start in range(0, len(names), 256):
        some = {name: market[name] for name in names[start : start + 256]}
        for name, sentences in search.of(some).items():
            if sentences:
                found[name] = tuple(sentences.values())
    return Audit(len(market), verifications, found)
