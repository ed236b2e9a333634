"""A `Match`: what a market answers one user, with what was decided for the user and why."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxspec.base import as_size

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

__all__ = ["Match"]

PRINTED = 10  # learnwares of a printed table


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Match:
    """The answer to one user: M learnwares, best first if a number of them was asked for.

    Attributes:
        ids: of the learnwares.
        scores: larger is better; comparable only within this answer.
        squared_mmd: between the user's and the learnware's embedding.
        class_similarity: in [-1, 1], how well a class of the learnware stands for user class k; -1
            for a class that it does not have.
        class_map: which of the learnware's classes that is, -1 for none.
        class_names: the user's classes, k of them.
        learnware_class_names: the classes of every learnware.
        method: the name of the score.
        reuse: "direct" or "fine-tune", what the score is meant for.
        label_spaces: "homogeneous" if classes were compared by name, else "heterogeneous".
        notes: what was decided for the user, and what the user should know, in sentences.
        verified: (M,) bool, whether the learnware's model was run and gave the published answers;
            None stands for nobody.
    """

    ids: tuple[str, ...]
    scores: Float[np.ndarray, " M"]
    squared_mmd: Float[np.ndarray, " M"]
    class_similarity: Float[np.ndarray, "M k"]
    class_map: Int[np.ndarray, "M k"]
    class_names: tuple[str, ...]
    learnware_class_names: tuple[tuple[str, ...], ...]
    method: str
    reuse: str
    label_spaces: str
    notes: tuple[str, ...] = ()
    verified: Bool[np.ndarray, " M"] | None = None

    def __post_init__(self) -> None:
        if self.verified is None:
            object.__setattr__(self, "verified", np.zeros(len(self.ids), bool))

    def __len__(self) -> int:
        return len(self.ids)

    def order(self) -> Int[np.ndarray, " M"]:
        """Return the places of the learnwares, best score first; equal scores keep their order."""
        scores = np.where(np.isnan(self.scores), -np.inf, self.scores)
        return np.argsort(-scores, kind="stable")

    def top_k(self, k: int) -> list[tuple[str, float]]:
        """Return the k best as [(id, score), ...], best first; all of them if there are fewer.

        Raises:
            TypeError, ValueError: k is not an integer of at least one.
        """
        chosen = self.order()[: as_size("k", k)]
        return [(self.ids[i], float(self.scores[i])) for i in chosen]

    def best_for_class(self) -> dict[str, str]:
        """Return, for every class of the user, the learnware whose class is most similar to it."""
        best = self.class_similarity.argmax(axis=0) if len(self) else []
        return {name: self.ids[int(i)] for name, i in zip(self.class_names, best, strict=False)}

    def class_names_of(self, learnware: str) -> tuple[str, ...]:
        """Return the class names of one learnware.

        Raises:
            KeyError: an id that the answer does not hold.
        """
        return self.learnware_class_names[self.place_of(learnware)]

    def place_of(self, learnware: str) -> int:
        """Return where a learnware stands in the arrays.

        Raises:
            KeyError: an id that the answer does not hold.
        """
        if learnware not in self.ids:
            raise KeyError(f"learnware: expected an id of this answer, got {learnware!r:.80}")
        return self.ids.index(learnware)

    def explain(self, learnware: str) -> list[tuple[str, str | None, float]]:
        """Return (user class, learnware class or None, similarity) for every user class.

        Raises:
            KeyError: an id that the answer does not hold.
        """
        place = self.place_of(learnware)
        own = self.learnware_class_names[place]
        pairs = zip(
            self.class_names, self.class_map[place], self.class_similarity[place], strict=True
        )
        return [
            (name, own[chosen] if chosen >= 0 else None, float(similarity))
            for name, chosen, similarity in pairs
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as dictionaries, lists, strings and numbers, best learnware first."""
        verified = np.asarray(self.verified)
        learnwares = [
            {
                "id": self.ids[i],
                "score": _number(self.scores[i]),
                "squared_mmd": _number(self.squared_mmd[i]),
                "verified": bool(verified[i]),
                "classes": [
                    {"user": user, "learnware": own, "similarity": _number(similarity)}
                    for user, own, similarity in self.explain(self.ids[i])
                ],
            }
            for i in self.order()
        ]
        return {
            "method": self.method,
            "reuse": self.reuse,
            "label_spaces": self.label_spaces,
            "notes": list(self.notes),
            "class_names": list(self.class_names),
            "learnwares": learnwares,
        }

    def __repr__(self) -> str:
        best = f", best {self.top_k(1)[0][0]!r}" if len(self) else ""
        return (
            f"Match({len(self)} learnwares{best}, method {self.method!r}, reuse {self.reuse!r}, "
            f"{self.label_spaces} label spaces)"
        )

    def __str__(self) -> str:
        """Return a table of the best learnwares and the notes."""
        verified = np.asarray(self.verified)
        header = ("rank", "learnware", "score", "squared MMD", "classes", "verified")
        rows = [header]
        for rank, i in enumerate(self.order()[:PRINTED], start=1):
            stands = int((self.class_map[i] >= 0).sum())
            rows.append(
                (
                    str(rank),
                    self.ids[i],
                    f"{self.scores[i]:.3f}",
                    f"{self.squared_mmd[i]:.4f}",
                    f"{stands} of {len(self.class_names)}",
                    "yes" if verified[i] else "no",
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = []
        for row in rows:
            cells = [
                cell.ljust(width) if i in (1, 4, 5) else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        if len(self) > PRINTED:
            lines.append(f"... and {len(self) - PRINTED} more")
        return "\n".join([repr(self), *lines, *(f"- {note}" for note in self.notes)])


def _number(value: Any) -> float | None:
    """Return a float that JSON has, or None."""
    found = float(value)
    return found if np.isfinite(found) else None
