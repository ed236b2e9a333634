"""The scores: what each looks at, its constants, and how it combines what it sees.

A score is a frozen, hashable object with a `name`, the `needs` it has (names of fields of
`Evidence`, which decide what a pass computes), and a function of the evidence that returns one
number per learnware and user, larger is better. Strings select the four that are here:

    "rkme"        `Rkme`, the baseline: nearness of the embeddings.
    "classwise"   `Classwise`, the paper's: similarity of class vectors, and closeness.
    "likelihood"  `Likelihood`, the default for direct use.
    "transfer"    `Transfer`, the default for fine-tuning.

Anybody's own object of this form can be passed wherever a method is asked for. What cannot be gamed
is left out by construction: embeddings enter by their angle and logits in units of their own size,
so scaling weights gains nothing; with names in common only shared classes are looked at, so adding
classes gains nothing; probabilities are of logits of one size, so overconfidence gains nothing;
what a learnware withholds while others publish it counts as what a model without knowledge would
show. The constants were chosen on drawn markets that no reported figure uses
(`benchmarks/studies/identification.py`).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import jax.numpy as jnp

from jaxspec.scoring.types import Evidence

if TYPE_CHECKING:
    from jaxtyping import Array, Float

__all__ = [
    "METHODS",
    "Classwise",
    "Likelihood",
    "Rkme",
    "Score",
    "Transfer",
    "as_score",
    "evaluate",
    "needs_labels",
    "needs_peers",
    "needs_proxies",
]

# Evidence that comes from the labels of a user's points.
FROM_LABELS = (
    "share",
    "label_probability",
    "agreement",
    "explained_by_outputs",
    "explained_by_hidden",
)
NEEDS = tuple(
    field.name
    for field in dataclasses.fields(Evidence)
    if field.name
    not in (
        "has_probe",
        "has_representation",
        "mean_closeness",
        "by_name",
        "classes",
        "slope",
        "following",
        "probed",
    )
)


@runtime_checkable
class Score(Protocol):
    """What a score is; see the module's docstring.

    Attributes:
        name: what answers call it.
        needs: names of the fields of `Evidence` that it reads and that cost something to compute.
    """

    @property
    def name(self) -> str:
        """What answers call it."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the fields of `Evidence` that have to be computed for it."""
        ...

    def __call__(self, evidence: Evidence) -> Float[Array, "rows Q"]:
        """Return one number per learnware and user, larger is better."""
        ...


@dataclasses.dataclass(frozen=True)
class Rkme:
    """- |Phi_T - Phi_l|^2: how near the distributions are. The baseline of the paper."""

    name: ClassVar[str] = "rkme"
    needs: ClassVar[tuple[str, ...]] = ("squared_mmd",)

    def __call__(self, evidence: Evidence) -> Float[Array, "rows Q"]:
        """Return the score."""
        return -evidence.squared_mmd


@dataclasses.dataclass(frozen=True)
class Classwise:
    """Mean similarity of the class vectors + closeness cos(Phi_T, Phi_l): the paper's score.

    Attributes:
        closeness: weight of the closeness beside the similarity.
    """

    closeness: float = 2.0
    name: ClassVar[str] = "classwise"
    needs: ClassVar[tuple[str, ...]] = ("closeness", "similarity")

    def __call__(self, evidence: Evidence) -> Float[Array, "rows Q"]:
        """Return the score."""
        return evidence.similarity + self.closeness * evidence.closeness


@dataclasses.dataclass(frozen=True)
class Imputation:
    """A linear guess at what a probe would have shown, for learnwares without a probe proxy."""

    similarity: float
    closeness: float
    constant: float

    def __call__(self, evidence: Evidence) -> Float[Array, "rows Q"]:
        """Return the guess."""
        part = self.similarity * evidence.shared_similarity + self.closeness * evidence.closeness
        return part + self.constant


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """For direct use: p + weight * s * (G + slope * (C - mean C)).

    p is the mean probability that the learnware's proxy gives the user's labels, s the share of the
    examples that it has classes for, G its mutual information with the user's peer (the learnware
    nearest in distribution) at the landmarks near it, as far as the peer can be believed, and C the
    closeness, weighed by what the market found out about itself.

    In a market where few have a probe proxy p and G are guessed; the guesses come from a regression
    on six markets (correlations 0.88 and 0.63). Where at least half of the learnwares publish one,
    a learnware without gets at most what answers without knowledge would get: p = 1 / (number of
    the user's classes) and G = 0. With the guesses there, a model with random answers came into the
    first three for 33 % of users if it withheld its probe proxy, and for none if it published it.

    Attributes:
        weight: of agreement and closeness beside the probability; results are flat from 0.5 to 0.7.
        probability_guess: of p for the examples of shared classes.
        agreement_guess: of G.
    """

    weight: float = 0.6
    probability_guess: Imputation = Imputation(0.57, 1.14, -0.61)
    agreement_guess: Imputation = Imputation(0.25, 1.36, -1.04)
    name: ClassVar[str] = "likelihood"
    needs: ClassVar[tuple[str, ...]] = (
        "closeness",
        "shared_similarity",
        "share",
        "label_probability",
        "agreement",
        "reliability",
    )

    def __call__(self, evidence: Evidence) -> Float[Array, "rows Q"]:
        """Return the score."""
        known, withheld = evidence.has_probe, evidence.probed & ~evidence.has_probe
        guess, agreement = self.probability_guess(evidence), self.agreement_guess(evidence)
        # Below chance the guess still orders those who withhold.
        guess = jnp.where(withheld, jnp.clip(guess, 0.0, 1.0) / evidence.classes, guess)
        agreement = jnp.where(withheld, jnp.minimum(agreement, 0.0), agreement)
        probability = jnp.where(known, evidence.label_probability, evidence.share * guess)
        agreement = jnp.where(known, evidence.agreement, agreement)
        centred = evidence.closeness - evidence.mean_closeness
        nearness = evidence.reliability * agreement + evidence.slope * centred
        return probability + self.weight * evidence.share * nearness


@dataclasses.dataclass(frozen=True)
class Transfer:
    """For fine-tuning: how much of the labels a small model on the learnware would explain.

    The small model sees the proxy's outputs, whatever the classes are called; for a user of other
    class names it sees the representation, since of a model that is tuned to such a user the hidden
    layers stay. Closeness and representation speak of the public features, so they count as far as
    the market's calibration finds its models to follow these.

    Attributes:
        closeness: weight of cos(Phi_T, Phi_l).
        hidden_gain: by how much a representation counts as explaining more than the outputs do, for
            a learnware that publishes none in a market where some do. It is 0.12 on average, but
            with that a useless model came into the first three for 14 % of users of other class
            names if it withheld its representation, and for 10 % if it published it; with zero for
            1 %.
    """

    closeness: float = 2.0
    hidden_gain: float = 0.0
    name: ClassVar[str] = "transfer"
    needs: ClassVar[tuple[str, ...]] = (
        "closeness",
        "explained_by_outputs",
        "explained_by_hidden",
    )

    def __call__(self, evidence: Evidence) -> Float[Array, "rows Q"]:
        """Return the score."""
        following, withheld = evidence.following, evidence.probed & ~evidence.has_probe
        # At most one is explained, so this is at most what answers without knowledge explain.
        outputs = evidence.explained_by_outputs - 1.0 * withheld
        guess = outputs + self.hidden_gain
        hidden = jnp.where(evidence.has_representation, evidence.explained_by_hidden, guess)
        hidden = jnp.where(evidence.by_name, outputs, hidden)
        scores = outputs + following * (hidden - outputs)
        return scores + following * self.closeness * evidence.closeness


METHODS: dict[str, Score] = {
    score.name: score for score in (Rkme(), Classwise(), Likelihood(), Transfer())
}


def as_score(name: str, value: object) -> Score:
    """Return the score that a string selects, or the score that `value` is.

    Raises:
        TypeError: neither a string nor a score.
        ValueError: no score of this name, or needs that there are not.
    """
    if isinstance(value, str):
        if value not in METHODS:
            raise ValueError(f"{name}: expected one of {tuple(METHODS)}, got {value!r:.80}")
        return METHODS[value]
    if isinstance(value, type) or not isinstance(value, Score) or not callable(value):
        raise TypeError(
            f"{name}: expected one of {tuple(METHODS)} or a score with name, needs and a call, "
            f"got a {type(value).__name__}"
        )
    unknown = [need for need in value.needs if need not in NEEDS]
    if unknown:
        raise ValueError(f"{name}.needs: expected names of {NEEDS}, got {unknown}")
    try:
        hash(value)
    except TypeError:
        raise TypeError(
            f"{name}: expected a hashable score, such as an instance of a frozen dataclass"
        ) from None
    return value


def evaluate(score: Score, evidence: Evidence) -> Float[Array, "rows Q"]:
    """Return the scores of rows, inside a compiled function.

    Zeros lose their sign: to `top_k` minus zero is less than zero, so that equal scores would not
    keep their order.

    Raises:
        TypeError, ValueError: a score that does not return one real number per row and user.
    """
    values, shape = jnp.asarray(score(evidence)), evidence.squared_mmd.shape
    if values.shape != shape:
        raise ValueError(
            f"method: expected {score.name!r} to return one number per learnware and user, "
            f"of shape {shape}, got shape {values.shape}"
        )
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(f"method: expected {score.name!r} to return floats, got {values.dtype}")
    values = values.astype(jnp.float32)
    return jnp.where(values == 0, 0.0, values)


def needs_proxies(score: Score) -> bool:
    """Tell whether a score needs the learnwares' proxies, and not only their reduced sets."""
    return any(need not in ("squared_mmd", "closeness") for need in score.needs)


def needs_labels(score: Score) -> bool:
    """Tell whether a score needs the labels of the user's points."""
    return any(need in FROM_LABELS for need in score.needs)


def needs_peers(score: Score) -> bool:
    """Tell whether a score needs the user's peer, where a market has probe proxies."""
    return "agreement" in score.needs or "reliability" in score.needs
