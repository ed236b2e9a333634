"""The command `market audit`: what is suspicious, and whose models give their answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from jaxspec.applications.command import markets
from jaxspec.applications.command.errors import FILE_REFUSED, FileRefused
from jaxspec.applications.command.inputs import read_matrix
from jaxspec.applications.command.library import library
from jaxspec.applications.command.options import MarketPath
from jaxspec.applications.command.output import Answer, plain_lines
from jaxspec.applications.command.session import Session, command

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the group `market`."""
    command(
        app,
        "audit",
        examples="""
        jaxspec market audit market.jax
        jaxspec market audit market.jax --outputs answers/
        """,
    )(audit)


def audit(
    session: Session,
    market: MarketPath,
    outputs: Annotated[
        Path | None,
        typer.Option(
            "--outputs",
            help="Folder with ID.npy for models that were run: class probabilities, one row per "
            "row of the space's probe.",
        ),
    ] = None,
) -> Answer:
    """Compare all learnwares with each other, and models with what they publish.

    The exit code is 3 if a model does not give its published answers.
    """
    markets.require_market(market)
    js = library(session)
    with session.stage("Reading the market"):
        loaded = markets.load(js, market)
    models = {} if outputs is None else _recorded(outputs, loaded)
    rows = None if loaded.space.probe is None else np.arange(len(loaded.space.probe))
    with session.stage("Comparing learnwares"):
        found = js.audit(loaded, models, rows)
    document = {
        "market": str(market),
        "learnwares": found.count,
        "ran": len(found.verifications),
        "verified": list(found.verified),
        "refused": {name: list(why) for name, why in found.refused.items()},
        "suspicious": {name: list(why) for name, why in found.suspicions.items()},
    }
    code = FILE_REFUSED if found.refused else 0
    lines = str(found).splitlines()
    return Answer(document, lambda console: console.print(plain_lines(lines)), code)


def _recorded(folder: Path, market: Any) -> dict[str, Callable[[Any], np.ndarray]]:
    """Return {id: the answers on rows of the probe} of the models whose outputs were recorded."""
    if not folder.is_dir():
        raise FileRefused(folder, "expected a folder with one ID.npy for each model that was run")
    if market.space.probe is None:
        raise FileRefused(folder, "expected no outputs, as the market's space has no probe")
    models: dict[str, Callable[[Any], np.ndarray]] = {}
    for file in sorted(folder.glob("*.npy")):
        if file.stem not in market:
            raise FileRefused(file, "expected the id of a learnware of the market as its name")
        answers = np.asarray(read_matrix(file, "probe_outputs"))
        if answers.ndim != 2 or len(answers) != len(market.space.probe):
            raise FileRefused(
                file,
                f"expected {len(market.space.probe)} rows, one per row of the probe, got an array "
                f"of shape {answers.shape}",
            )
        models[file.stem] = answers.__getitem__
    if not models:
        raise FileRefused(folder, "expected one ID.npy for each model that was run, got none")
    return models
