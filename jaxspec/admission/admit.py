"""`admit`: which specifications may enter a market, by its policy, with reasons in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxspec.admission.policy import Policy
from jaxspec.admission.suspicions import Suspicions
from jaxspec.admission.verify import Verification, verify
from jaxspec.market import Market, check_specification
from jaxspec.specify import Specification

__all__ = ["Admission", "admit"]


@dataclasses.dataclass(frozen=True)
class Admission:
    """What was decided about specifications; nothing has been added to the market.

    Attributes:
        accepted: {id: specification} that may be added.
        refused: {id: reasons}, sentences.
        warnings: {id: sentences} of accepted specifications.
        verifications: {id: what running its model told}, where a model was given.
    """

    accepted: dict[str, Specification]
    refused: dict[str, tuple[str, ...]]
    warnings: dict[str, tuple[str, ...]]
    verifications: dict[str, Verification]

    @property
    def verified(self) -> tuple[str, ...]:
        """The accepted ids whose models give their answers, for `Market.mark_verified`."""
        return tuple(
            name
            for name in self.accepted
            if name in self.verifications and self.verifications[name].accepted
        )

    def __str__(self) -> str:
        """Return how many were accepted, and the reasons and warnings of the others."""
        lines = [f"Admission: {len(self.accepted)} accepted, {len(self.refused)} refused"]
        for word, group in (("refused", self.refused), ("warning", self.warnings)):
            for name, sentences in group.items():
                lines += [f"- {word} {name!r}: {sentence}" for sentence in sentences]
        return "\n".join(lines)


def admit(
    market: Market,
    specifications: Mapping[str, Specification],
    *,
    policy: Policy | None = None,
    models: Mapping[str, Callable[[Any], Any]] | None = None,
    inputs: Any = None,
) -> Admission:
    """Decide which specifications may enter a market. Neither is changed.

    Thresholds are what the market finds out about its own learnwares; with fewer than eight of them
    only clear copies are found. A file alone cannot tell a good lie, see `verify`.

    Args:
        market: that is to take them in.
        specifications: {id: specification}.
        policy: limits and switches; None for `Policy()`.
        models: {id: callable} of the models that can be run, see `verify`.
        inputs: what the models take, one entry per row of the space's probe; None for the features.

    Raises:
        TypeError: an argument of another type. What is wrong with a specification is a reason.
    """
    policy = Policy() if policy is None else policy
    if not isinstance(market, Market) or not isinstance(policy, Policy):
        wrong = market if not isinstance(market, Market) else policy
        name, wanted = ("market", "Market") if wrong is market else ("policy", "Policy")
        raise TypeError(f"{name}: expected a {wanted}, got a {type(wrong).__name__}")
    for name, value in (("specifications", specifications), ("models", models)):
        if not isinstance(value, Mapping) and not (value is None and name == "models"):
            raise TypeError(f"{name}: expected a mapping by id, got a {type(value).__name__}")
    models = {} if models is None else models
    refused: dict[str, tuple[str, ...]] = {
        learnware: (reason,)
        for learnware, spec in specifications.items()
        if (reason := _unsound(market, learnware, spec, policy))
    }
    sound = {name: spec for name, spec in specifications.items() if name not in refused}
    verifications = {
        name: verify(spec, models[name], market.space, inputs=inputs, rows=policy.rows)
        for name, spec in sound.items()
        if name in models
    }
    findings = Suspicions(market, policy).of(sound)
    accepted: dict[str, Specification] = {}
    warnings: dict[str, tuple[str, ...]] = {}
    for name, spec in sound.items():
        against: list[str] = []
        hints: list[str] = []
        ran = verifications.get(name)
        if ran is not None and not ran.accepted:
            against += ran.reasons
        if ran is None and policy.require_verified:
            against.append("Its model was not run, and this market takes in verified models only.")
        for kind, sentence in findings[name].items():
            lifted = ran is not None and ran.accepted and kind != "copy"
            (hints if lifted or policy.suspicious == "warn" else against).append(sentence)
        if against:
            refused[name] = tuple(against)
            continue
        accepted[name] = spec
        if hints:
            warnings[name] = tuple(hints)
    for name in _copies_in_batch(market, accepted, policy):
        del accepted[name]
        warnings.pop(name, None)
        refused[name] = (
            "It is nearly a copy of another specification that was submitted with it.",
        )
    return Admission(accepted, refused, warnings, verifications)


def _unsound(market: Market, learnware: Any, spec: Any, policy: Policy) -> str | None:
    """Return why a specification cannot enter at all, or None."""
    try:
        check_specification(learnware, spec, market.space)
    except (TypeError, ValueError) as error:
        return f"It is unsound: {error}."
    if learnware in market:
        return "Its id is in the market already; `Market.update` replaces a learnware."
    for value, limit, what in (
        (len(spec.reduced_set.weights), policy.max_points, "points"),
        (len(spec.class_names), policy.max_classes, "classes"),
    ):
        if value > limit:
            return f"It has {value} {what}, and this market takes in at most {limit}."
    if policy.require_probe and market.space.probe is not None and spec.probe_proxy is None:
        return "It has no probe proxy, and this market asks for one."
    return None


def _copies_in_batch(
    market: Market, specs: Mapping[str, Specification], policy: Policy
) -> list[str]:
    """Return ids of specifications that are copies of others before them in the same batch."""
    if not policy.copies or policy.suspicious == "warn" or len(specs) < 2:
        return []
    names, copies = list(specs), []
    search = dataclasses.replace(policy, mixtures=False, contradictions=False)
    for i, name in enumerate(names[1:], start=1):
        kept = {other: specs[other] for other in names[:i] if other not in copies}
        if "copy" in Suspicions(Market(market.space, kept), search).of({name: specs[name]})[name]:
            copies.append(name)
    return copies
