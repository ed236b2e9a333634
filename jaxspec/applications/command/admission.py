"""What `market add` asks before it takes specifications in: `jaxspec.admit` with a policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxspec.applications.command.errors import WrongUse, one_line

__all__ = ["Verdict", "admitted"]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Which specifications may enter.

    Attributes:
        accepted: {id: specification}.
        refused: {id: reasons in words}.
        warnings: in words.
    """

    accepted: dict[str, Any]
    refused: dict[str, list[str]]
    warnings: list[str]


def admitted(
    js: Any, market: Any, specs: Mapping[str, Any], policy: Mapping[str, Any] | None
) -> Verdict:
    """Return what a market with this policy would do with specifications.

    Args:
        js: the library.
        market: in memory.
        specs: {id: specification}.
        policy: arguments of `jaxspec.Policy`; None for its defaults.

    Raises:
        WrongUse: a policy that the library does not know.
    """
    known = {one.name for one in dataclasses.fields(js.Policy)}
    strange = sorted((policy or {}).keys() - known)
    if strange:
        raise WrongUse(f"--policy: there is no {strange[0]!r}; there is {', '.join(sorted(known))}")
    try:
        chosen = js.Policy(**(policy or {}))
    except (TypeError, ValueError) as error:
        raise WrongUse(f"--policy: {one_line(error)}") from error
    found = js.admit(market, dict(specs), policy=chosen)
    warnings = found.warnings
    if isinstance(warnings, Mapping):
        warnings = [
            f"{name}: {text}" for name, texts in warnings.items() for text in _listed(texts)
        ]
    return Verdict(
        dict(found.accepted),
        {name: [str(reason) for reason in _listed(why)] for name, why in found.refused.items()},
        [str(text) for text in warnings],
    )


def _listed(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(value)
