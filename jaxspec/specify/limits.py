"""How large a specification may be: limits that a market sets and its submitters keep.

All learnwares of a market share padded arrays, so the largest specification fixes what a question
costs for everybody. `Limits` says how large that may be. A market holds its limits and checks every
specification that enters (`Market(space, specifications, limits=Limits(...))`); `specify` warns
where a size is beyond the default. Nothing here looks at numbers.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

from jaxspec.base import as_size
from jaxspec.specify.about import MAX_ENTRIES, MAX_TEXT, About

__all__ = ["MAX_ID", "MAX_NAME", "LimitWarning", "Limits", "warn_beyond_defaults"]

MAX_ID = 1000  # characters of an id
MAX_NAME = 1000  # characters of a class name
LARGEST_ABOUT = 2 * MAX_ENTRIES * MAX_TEXT  # characters, of all names and texts together


class LimitWarning(UserWarning):
    """A specification is larger than a market takes unless its owner sets other limits."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a market takes in at most, per learnware.

    The defaults hold what honest owners publish, and bound what a stranger can cost. `specify`
    makes 50 points unless told otherwise; a pass takes time in proportion to the points, so 512 of
    them cost ten times as much. 1,024 classes hold those of ImageNet; in a space of 64 features
    and 800 landmarks, so many take 3.5 MB per learnware, so a market of models with few classes is
    well advised to set fewer.

    Attributes:
        points: of a reduced set.
        classes: of a model.
        id_characters: of an id, at most 1,000.
        name_characters: of a class name, at most 1,000.
        about_characters: of all names and texts of the metadata together.
    """

    points: int = 512
    classes: int = 1024
    id_characters: int = 1000
    name_characters: int = 200
    about_characters: int = 16_384

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            TypeError: a limit that is not an integer.
            ValueError: a limit that nothing can keep, or one beyond what files hold.
        """
        largest = {
            "id_characters": MAX_ID,
            "name_characters": MAX_NAME,
            "about_characters": LARGEST_ABOUT,
        }
        least = {"classes": 2, "about_characters": 0}
        for field in dataclasses.fields(self):
            name = field.name
            value = as_size(
                name, getattr(self, name), minimum=least.get(name, 1), maximum=largest.get(name)
            )
            object.__setattr__(self, name, value)

    def check(self, owner: str, *, points: int, class_names: tuple[str, ...], about: Any) -> None:
        """Raise unless a specification keeps the limits.

        Args:
            owner: what the specification is called in errors.
            points: of its reduced set.
            class_names: of its model.
            about: its metadata.

        Raises:
            ValueError: it does not; the message names the limit and how it is set.
        """
        longest = max(map(len, class_names), default=0)
        text = sum(len(name) + len(str(value)) for name, value in about.items()) if about else 0
        for name, what, got in (
            ("points", "points", points),
            ("classes", "classes", len(class_names)),
            ("name_characters", "characters in a class name", longest),
            ("about_characters", "characters of metadata", text),
        ):
            limit = getattr(self, name)
            if got > limit:
                raise ValueError(
                    f"{owner}: expected at most {limit} {what}, got {got}; the market's limits say "
                    f"so, and its owner sets them: limits=Limits({name}={got})"
                )

    def check_id(self, learnware: Any) -> None:
        """Raise unless this is an id that keeps the limits.

        Raises:
            TypeError: not a string.
            ValueError: an empty string, or one that is too long.
        """
        if not isinstance(learnware, str):
            raise TypeError(f"id: expected a string, got {learnware!r:.80}")
        if not learnware or len(learnware) > self.id_characters:
            raise ValueError(
                f"id: expected a non-empty string of at most {self.id_characters} characters "
                f"(limits=Limits(id_characters=...)), got {learnware!r:.80}"
            )


def warn_beyond_defaults(points: int, class_names: tuple[str, ...], about: About) -> None:
    """Warn if a specification of this size needs a market with limits of its own."""
    try:
        Limits().check("specification", points=points, class_names=class_names, about=about)
    except ValueError as error:
        warnings.warn(
            f"{error}. Ask the market's owner for its limits.", LimitWarning, stacklevel=4
        )
