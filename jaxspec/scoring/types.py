"""What a score is made of: a batch of users as arrays, and what comparing them with a market gives.

Frozen pytrees only; `jaxspec.scoring` says how they become scores.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxspec.base import register

__all__ = ["LEAST_POINTS", "Embedded", "Parts", "Peers", "Scores", "UserArrays"]

Array = Any
LEAST_POINTS = 128  # that a batch of users has room for: 3 or 12 classes of ten compile nothing new


@register
@dataclasses.dataclass(frozen=True)
class UserArrays:
    """A batch of Q users, padded to common sizes.

    Attributes:
        points: (Q, n, d), relative to the market's origin.
        weights: (Q, n), zero in the padding.
        labels: (Q, n) int32, the points' classes, -1 in the padding or where not shared.
        counts: (Q,) int32, points that are not padding.
        examples: (Q,) how many examples stand behind the points.
        class_vectors: (Q, k, d) proxy weights, one row a class.
        class_mask: (Q, k) bool.
        class_numbers: (Q, k) int32, the market's number of every class name, -2 if it has none.
        by_name: (Q,) bool, whether class k is compared with the class of that name only.
    """

    points: Array
    weights: Array
    labels: Array
    counts: Array
    examples: Array
    class_vectors: Array
    class_mask: Array
    class_numbers: Array
    by_name: Array


@register
@dataclasses.dataclass(frozen=True)
class Scores:
    """What `score_market` returns; leading axes are (Q, slots).

    Attributes:
        scores: (Q, slots), larger is better.
        squared_mmd: (Q, slots).
        class_similarity: (Q, slots, k), cosines; -1 for a class the learnware does not have.
        class_map: (Q, slots, k) int32, which learnware class stands for user class k, or -1.
    """

    scores: Array
    squared_mmd: Array
    class_similarity: Array
    class_map: Array


@register
@dataclasses.dataclass(frozen=True)
class Embedded:
    """Comparisons of embeddings; axes are (slots, Q).

    Attributes:
        squared_mmd: (slots, Q).
        closeness: (slots, Q), the cosine of the angle between the embeddings.
    """

    squared_mmd: Array
    closeness: Array


@register
@dataclasses.dataclass(frozen=True)
class Peers:
    """For each user the learnware that is nearest in distribution.

    Attributes:
        row: (Q,) int32, where it lies; over all devices where the market is spread.
        squared_mmd: (Q,).
        reliability: (Q,) one where the user's examples cannot be told from its distribution,
            falling to zero.
        chance: (Q, C, D) class probabilities of the peer's probe proxy at the landmarks.
        valid: (Q, C) bool, classes that the peer has.
        region: (Q, D) how much each landmark counts for the peer.
    """

    row: Array
    squared_mmd: Array
    reliability: Array
    chance: Array
    valid: Array
    region: Array


@register
@dataclasses.dataclass(frozen=True)
class Parts:
    """Comparisons of classes and proxies; leading axes are (slots, Q).

    Attributes:
        similarity: (slots, Q, k), cosines of class vectors, zero in the padding.
        class_map: (slots, Q, k) int32.
        share: (slots, Q), of the user's weights, examples whose class the learnware has.
        behaviour: (slots, Q), the method's own part on the users' examples.
        deeper: (slots, Q), the same of representations for "transfer", where there are any.
        agreement: (slots, Q), with the users' peers.
    """

    similarity: Array
    class_map: Array
    share: Array
    behaviour: Array
    deeper: Array
    agreement: Array
