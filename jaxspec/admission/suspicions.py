"""What is suspicious about specifications, by what the market finds out about its own learnwares.

Each statistic is computed for every learnware of the market against the others (leave one out).
What so many of them exceed as false alarms are allowed is the threshold. `Suspicions` is made once
for a market; nothing here runs a model or decides what happens.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np

from jaxspec.admission import duplicates
from jaxspec.admission.plausibility import contradiction
from jaxspec.admission.policy import Policy
from jaxspec.admission.published import proxy_of
from jaxspec.market import Market, evenly_spaced
from jaxspec.matching import match
from jaxspec.specify import Specification, UserSpecification

__all__ = ["MIN_MARKET", "Suspicions", "threshold_of"]

MIN_MARKET = 8  # learnwares; of fewer no threshold can be found out
COMPARED = 128  # learnwares that stand for the market,
NEAREST = 8  # and those that are nearest to a specification
CERTAIN_COPY = 0.98  # of `copy_scores`, whatever the market is like
# A market whose learnwares differ much has low thresholds; below these nothing is worth a refusal.
# In two markets of 22 honest heads the largest were 0.37, 0.00, 1.46 and -0.50; copies had 0.90,
# mixtures 3.4, averages 3.1, and answers that are shuffled -0.01.
FLOORS = {"copy": 0.7, "mixture": 1.6, "average": 2.0, "contradiction": -0.4}

SENTENCES = {
    "copy": "It is nearly a copy of {other!r}: both the data and the answers are alike.",
    "mixture": "Its reduced set is a mixture of those of other learnwares, which explain it "
    "{0:.0f} times better together than the nearest alone.",
    "average": "Its answers are averages of other learnwares' answers, which explain {0:.1%} of "
    "them.",
    "contradiction": "Its answers on the probe contradict its linear proxy on its own reduced set "
    "(agreement beyond chance {0:.2f}).",
}


class Suspicions:
    """The statistics of a market's own learnwares, their thresholds, and the search for others."""

    def __init__(self, market: Market, policy: Policy) -> None:
        """Compute the statistics of the learnwares that stand for the market."""
        self.market, self.policy = market, policy
        slots = evenly_spaced(market.slots, COMPARED) if len(market) else market.slots
        names = [market.ledger.ids[slot] for slot in slots.tolist()]
        self.specs: dict[str, Specification] = {
            name: spec for name in names if (spec := market[name]).proxy is not None
        }
        self.thresholds: dict[str, float] = {}
        self.own: dict[str, dict[str, tuple[float, str]]] = {}
        if len(self.specs) >= MIN_MARKET:
            self.own = self._statistics(self.specs, self.specs)
            for kind in SENTENCES:
                values = np.array([one[kind][0] for one in self.own.values()])
                limit = threshold_of(values, policy.false_alarms)
                self.thresholds[kind] = max(limit, FLOORS[kind])

    def of(self, specs: Mapping[str, Specification]) -> dict[str, dict[str, str]]:
        """Return {id: {kind: sentence}} of what is suspicious about specifications.

        A specification is not compared with a learnware of the same id. Of one without a proxy
        nothing is said: it states nothing about a model.
        """
        silent: dict[str, dict[str, str]] = {
            name: {} for name, spec in specs.items() if spec.proxy is None
        }
        specs = {name: spec for name, spec in specs.items() if name not in silent}
        others = dict(self.specs)
        if len(self.market) > len(self.specs):
            for learnware in self._nearest(specs):
                others.setdefault(learnware, self.market[learnware])
        others = {name: spec for name, spec in others.items() if spec.proxy is not None}
        if not specs or not others:
            return silent | {name: {} for name in specs}
        found = self._statistics(specs, others)
        return silent | {name: self._sentences(values) for name, values in found.items()}

    def _nearest(self, specs: Mapping[str, Specification]) -> list[str]:
        users = [
            UserSpecification(
                spec.reduced_set,
                proxy_of(spec),
                None,
                class_names=spec.class_names,
                space_name=spec.space_name,
                space_digest=spec.space_digest,
                num_examples=max(spec.num_examples, 1),
            )
            for spec in specs.values()
        ]
        found = match(self.market, users, k=NEAREST, method="rkme", label_spaces="heterogeneous")
        return list(dict.fromkeys(name for one in found for name in one.ids))

    def _sentences(self, values: Mapping[str, tuple[float, str]]) -> dict[str, str]:
        found = {}
        for kind, (value, other) in values.items():
            certain = kind == "copy" and value >= CERTAIN_COPY
            if certain or value > self.thresholds.get(kind, np.inf):
                shown = {
                    "mixture": np.exp(value),
                    "average": 1.0 - np.exp(-value),
                    "contradiction": -value,
                }.get(kind, value)
                found[kind] = SENTENCES[kind].format(shown, other=other)
        return found

    def _statistics(
        self, specs: Mapping[str, Specification], others: Mapping[str, Specification]
    ) -> dict[str, dict[str, tuple[float, str]]]:
        """Return {id: {kind: (value, id of the likest other)}}; NaN for what is not looked for."""
        space, names = self.market.space, list(others)
        allowed = np.array([[name != other for other in names] for name in specs])
        some, all_specs = list(specs.values()), list(others.values())
        nothing = np.full(len(some), np.nan)
        values = {kind: nothing for kind in SENTENCES}
        likest = np.zeros(len(some), int)
        if self.policy.copies or self.policy.mixtures:
            products = duplicates.inner_products(space, some, all_specs)
            own = duplicates.self_terms(space, some)
            rows = duplicates.joint_rows(space, list(self.specs.values()))
            one = duplicates.compared(space, some, rows)
            other = duplicates.compared(space, all_specs, rows)
        if self.policy.copies:
            terms = duplicates.self_terms(space, all_specs)
            cosines = products / np.sqrt(own[:, None] * terms)
            values["copy"], likest = duplicates.copy_scores(cosines, one, other, allowed)
        if self.policy.mixtures:
            gram = duplicates.inner_products(space, all_specs, all_specs)
            values["mixture"] = duplicates.mixture_scores(own, products, gram, allowed)
            values["average"] = duplicates.average_scores(one, other, allowed)
        if self.policy.contradictions:
            values["contradiction"] = np.array([contradiction(space, spec) for spec in some])
        return {
            name: {kind: (float(values[kind][i]), names[likest[i]]) for kind in SENTENCES}
            for i, name in enumerate(specs)
        }


def threshold_of(values: np.ndarray, false_alarms: float) -> float:
    """Return what a further honest value exceeds with this probability.

    With enough values their quantile; else the bound of Student's t distribution for one more.
    """
    kept = values[np.isfinite(values)]
    if len(kept) < MIN_MARKET:
        return float("inf")
    if len(kept) * false_alarms >= 1:
        return float(np.quantile(kept, 1.0 - false_alarms, method="higher"))
    freedom = len(kept) - 1
    z = NormalDist().inv_cdf(1.0 - false_alarms)
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return float(kept.mean() + t * kept.std(ddof=1) * np.sqrt(1 + 1 / len(kept)))
