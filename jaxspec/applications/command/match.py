"""The command `match`: which learnwares of a market are worth reusing for a user."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any, Optional

import numpy as np
import typer

from jaxspec.applications.command import markets
from jaxspec.applications.command.describe import kind_of
from jaxspec.applications.command.errors import WrongUse, blamed
from jaxspec.applications.command.inputs import Data, class_names_of, settled_labels
from jaxspec.applications.command.library import library
from jaxspec.applications.command.match_output import match_document, print_match
from jaxspec.applications.command.options import (
    ClassNames,
    Extractor,
    Ignore,
    Labels,
    MarketPath,
    PictureSize,
    ProjectionFile,
    Verified,
    Where,
    read_any,
)
from jaxspec.applications.command.output import Answer, require_input
from jaxspec.applications.command.session import Session, command

__all__ = ["LabelSpaces", "Method", "Reuse", "ReuseKind", "SpacesKind", "register"]

OPTIONS = {
    "k": "-k",
    "method": "--method",
    "reuse": "--reuse",
    "label_spaces": "--label-spaces",
    "verified": "--verified",
    "among": "--where",
}


class ReuseKind(str, enum.Enum):
    """What the model is to be used for."""

    direct = "direct"
    fine_tune = "fine-tune"


class SpacesKind(str, enum.Enum):
    """How classes are compared."""

    auto = "auto"
    homogeneous = "homogeneous"
    heterogeneous = "heterogeneous"


Reuse = Annotated[
    Optional[ReuseKind],  # noqa: UP045
    typer.Option(
        "--reuse", help="How the model is to be used; decided by the classes if left out."
    ),
]
Method = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--method", help="Name of a score: likelihood, transfer, classwise or rkme."),
]
LabelSpaces = Annotated[
    SpacesKind, typer.Option("--label-spaces", help="How classes are compared.")
]


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    command(
        app,
        "match",
        examples="""
        jaxspec match market.jax mine.npz
        jaxspec match market.jax user.safetensors -k 3 --reuse fine-tune
        jaxspec match market.jax mine.csv --labels kind --where "licence = MIT" --json
        jaxspec match market.jax mine.npz --explain north
        """,
    )(match)


def match(
    session: Session,
    market: MarketPath,
    user: Annotated[
        Path,
        typer.Argument(
            metavar="USER",
            help="A user's specification, or data: .npz, .csv, a folder of pictures.",
        ),
    ],
    k: Annotated[int, typer.Option("-k", min=1, help="How many learnwares, best first.")] = 10,
    reuse: Reuse = None,
    method: Method = None,
    label_spaces: LabelSpaces = SpacesKind.auto,
    where: Where = None,
    verified: Verified = False,
    explain: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--explain", metavar="ID", help="Compare the classes of this learnware."),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Read the market in parts; for markets beyond memory.")
    ] = False,
    index: Annotated[bool, typer.Option("--index", help="Ask the market's saved index.")] = False,
    labels: Labels = None,
    class_names: ClassNames = None,
    ignore: Ignore = None,
    extractor: Extractor = None,
    picture_size: PictureSize = 224,
    projection: ProjectionFile = None,
) -> Answer:
    """Ask which models are worth reusing for a user.

    USER is a file of `jaxspec specify --user`, or simply an .npz with `features`, `labels` and
    `class_names`. Larger scores are better; they compare within one answer only.
    """
    if stream and index:
        raise WrongUse("--stream: it reads the market in parts, and --index does not; pass one")
    markets.require_market(market)
    require_input(user)
    data = None
    if kind_of(user) is None and user.suffix.lower() != ".safetensors":
        data = read_any(
            session,
            user,
            labels=labels,
            ignore=ignore,
            extractor=extractor,
            picture_size=picture_size,
            projection=projection,
        )
        targets = settled_labels(data, class_names_of(class_names))
    elif class_names or labels or ignore or extractor or projection:
        raise WrongUse(f"--labels: {user} is a specification and has labels of its own")
    js = library(session)
    options: dict[str, Any] = {
        "method": method,
        "reuse": None if reuse is None else reuse.value,
        "label_spaces": label_spaces.value,
    }
    if verified:
        options["verified"] = True
    with markets.asked(js, session, market, stream=stream, index=index) as place:
        catalogue = place.market if index else place
        asking = js.UserSpecification.load(user) if data is None else None
        if data is not None:
            asking = _specified(js, session, catalogue.space, data, *targets)
        mask = markets.selected(catalogue, where)
        if explain is not None and explain not in catalogue.ids:
            raise WrongUse(f"--explain: {market} has no learnware {explain!r}")
        with session.stage(f"Asking {len(catalogue)} learnwares") as advance, blamed(user, OPTIONS):
            if stream:
                options["progress"] = advance
            found = js.match(place, asking, k=k, among=mask, **options)
            explained = found
            if explain is not None and explain not in found.ids:
                only = np.array([one == explain for one in catalogue.ids])
                explained = js.match(place, asking, k=1, among=only, **options)
    document = {"market": str(market), "user": str(user), **match_document(found)}
    pairs = None if explain is None else explained.explain(explain)
    if pairs is not None:
        document["explain"] = {
            "id": explain,
            "classes": [
                {"user": own, "learnware": other, "similarity": value}
                for own, other, value in pairs
            ],
        }
    return Answer(document, lambda console: print_match(console, found, explain, pairs))


def _specified(
    js: Any, session: Session, space: Any, data: Data, labels: Any, class_names: Any
) -> Any:
    options = {"class_names": "--class-names"}
    with session.stage(f"Specifying {data.path.name}"), blamed(data.path, options):
        return js.specify_user(space, data.features, labels, class_names=class_names)
