"""The policy of a market: limits and switches that decide what it takes in."""

from __future__ import annotations

import dataclasses

from jaxspec.base import as_size

__all__ = ["Policy"]

SUSPICIOUS = ("refuse", "warn")


@dataclasses.dataclass(frozen=True)
class Policy:
    """What a market takes in.

    Attributes:
        max_points: of a reduced set; all learnwares of a market are padded to the largest.
        max_classes: of a learnware, likewise.
        require_probe: refuse specifications without a probe proxy where the space has a probe.
        require_verified: refuse specifications whose model was not run, or failed.
        copies: look for copies of learnwares under another id.
        mixtures: look for mixtures of learnwares: of their reduced sets, and of their answers.
        contradictions: look for answers on the probe that contradict the linear proxy on the
            owner's own reduced set.
        suspicious: "refuse" what these find, or "warn". A finding other than a copy is a warning
            only where the model was verified.
        false_alarms: share of honest learnwares that each of them may find, at most 0.1.
        rows: of the probe that a model is run on.
    """

    max_points: int = 1000
    max_classes: int = 1000
    require_probe: bool = False
    require_verified: bool = False
    copies: bool = True
    mixtures: bool = True
    contradictions: bool = True
    suspicious: str = "refuse"
    false_alarms: float = 0.01
    rows: int = 200

    def __post_init__(self) -> None:
        for name in ("max_points", "max_classes", "rows"):
            as_size(name, getattr(self, name))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "bool" and not isinstance(value, bool):
                raise TypeError(f"{field.name}: expected True or False, got {value!r:.80}")
        if self.suspicious not in SUSPICIOUS:
            raise ValueError(
                f"suspicious: expected one of {SUSPICIOUS}, got {self.suspicious!r:.80}"
            )
        number = isinstance(self.false_alarms, int | float)
        if not number or not 0 < self.false_alarms <= 0.1:
            raise ValueError(
                f"false_alarms: expected a share above 0 and at most 0.1, got {self.false_alarms!r}"
            )
