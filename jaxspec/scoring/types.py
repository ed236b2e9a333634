"""The pytrees of a pass: users as arrays, what is compared, the evidence, and the scores.

Frozen pytrees only; `jaxspec.scoring.methods` says how evidence becomes a score.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from jaxspec.base import register

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

__all__ = [
    "MIN_PADDED_POINTS",
    "ClassEvidence",
    "Evidence",
    "Peers",
    "Scores",
    "UserArrays",
]

MIN_PADDED_POINTS = 128  # per user: three or twelve classes of ten examples have one shape


@register
@dataclasses.dataclass(frozen=True, eq=False)
class UserArrays:
    """A batch of Q users, padded to common sizes; without the axis Q it is a single user.

    Attributes:
        points: relative to the market's origin.
        weights: of the points, zero in the padding.
        labels: the points' classes, -1 in the padding or where they are not shared.
        counts: points that are not padding; these come first.
        examples: how many examples stand behind the points.
        class_vectors: proxy weights, one row per class.
        class_mask: which of the padded classes there are.
        class_numbers: the market's number of every class name, -2 if it has none.
        by_name: whether a class is compared with the class of the same name only.
    """

    points: Float[Array, "Q n d"]
    weights: Float[Array, "Q n"]
    labels: Int[Array, "Q n"]
    counts: Int[Array, " Q"]
    examples: Float[Array, " Q"]
    class_vectors: Float[Array, "Q k d"]
    class_mask: Bool[Array, "Q k"]
    class_numbers: Int[Array, "Q k"]
    by_name: Bool[Array, " Q"]


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """What a pass returns.

    Attributes:
        scores: larger is better.
        squared_mmd: between the user's and the learnware's embedding.
        class_similarity: cosines in [-1, 1]; -1 for a class that the learnware does not have.
        class_map: which of the learnware's classes stands for user class k, or -1.
    """

    scores: Float[Array, "Q rows"]
    squared_mmd: Float[Array, "Q rows"]
    class_similarity: Float[Array, "Q rows k"]
    class_map: Int[Array, "Q rows k"]


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Peers:
    """For each user its peer: the learnware with a probe proxy that is nearest in distribution.

    Attributes:
        row: where it lies; counted over all devices where the market is spread.
        squared_mmd: between the user and its peer.
        reliability: one where the user's examples cannot be told from the peer's distribution,
            falling to zero.
        chance: class probabilities of the peer's probe proxy at the landmarks.
        valid: classes that the peer has.
        region: how much each landmark counts for the peer.
    """

    row: Int[Array, " Q"]
    squared_mmd: Float[Array, " Q"]
    reliability: Float[Array, " Q"]
    chance: Float[Array, "Q C D"]
    valid: Bool[Array, "Q C"]
    region: Float[Array, "Q D"]


@register
@dataclasses.dataclass(frozen=True, eq=False)
class ClassEvidence:
    """What comparing classes and proxies gives; arrays that nothing needs are zero.

    Attributes:
        class_similarity: cosines of class vectors, zero in the padding.
        class_map: which of the learnware's classes stands for user class k, or -1.
        share: of the user's weights, that of examples whose class the learnware has.
        label_probability: mean probability that the learnware's proxy gives the user's labels.
        agreement: mutual information with the user's peer, in nats.
        explained_by_outputs: how much of the labels a small model on the proxy's outputs explains.
        explained_by_hidden: the same on the representation.
    """

    class_similarity: Float[Array, "rows Q k"]
    class_map: Int[Array, "rows Q k"]
    share: Float[Array, "rows Q"]
    label_probability: Float[Array, "rows Q"]
    agreement: Float[Array, "rows Q"]
    explained_by_outputs: Float[Array, "rows Q"]
    explained_by_hidden: Float[Array, "rows Q"]


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """What is known about every learnware for every user: all that a score may look at.

    Attributes:
        squared_mmd: between the embeddings.
        closeness: cosine of the angle between the embeddings.
        similarity: mean over the user's classes of the similarity of the class that stands for it;
            -1 counts for a class that the learnware does not have.
        shared_similarity: the same over the classes that both have, zero where there is none.
        share: of the user's examples, the part whose class the learnware has.
        label_probability: mean probability that the probe proxy gives the user's labels; without
            a probe proxy that of the linear one, or zero.
        agreement: of the probe proxies with the user's peer, in nats. The peer itself gets the
            best of the others. Zero without a probe proxy.
        explained_by_outputs: how much of the labels the proxy's outputs explain, at most one.
        explained_by_hidden: how much of the labels the representation explains, at most one.
        has_probe: whether there is a probe proxy.
        has_representation: whether there is a representation; false for all where a market has
            none at all.
        reliability: how far the user's peer can be believed, from zero to one.
        mean_closeness: the user's mean closeness with a sample of the market.
        by_name: whether the user's classes are compared by name.
        classes: how many classes the user has.
        slope: what the market says of closeness: nats of agreement per unit.
        following: how far the market's models follow the public features, from zero to one.
        probed: whether most learnwares of the market publish probe proxies.
    """

    squared_mmd: Float[Array, "rows Q"]
    closeness: Float[Array, "rows Q"]
    similarity: Float[Array, "rows Q"]
    shared_similarity: Float[Array, "rows Q"]
    share: Float[Array, "rows Q"]
    label_probability: Float[Array, "rows Q"]
    agreement: Float[Array, "rows Q"]
    explained_by_outputs: Float[Array, "rows Q"]
    explained_by_hidden: Float[Array, "rows Q"]
    has_probe: Bool[Array, "rows 1"]
    has_representation: Bool[Array, "rows 1"]
    reliability: Float[Array, "1 Q"]
    mean_closeness: Float[Array, "1 Q"]
    by_name: Bool[Array, "1 Q"]
    classes: Int[Array, "1 Q"]
    slope: Float[Array, ""]
    following: Float[Array, ""]
    probed: Bool[Array, ""]
