"""The command `specify`: the specification of a model, or of a user's task, from a file of data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from jaxspec.applications.command.describe import rows_of, specification_facts
from jaxspec.applications.command.errors import WrongUse, blamed
from jaxspec.applications.command.inputs import class_names_of, read_matrix, settled_labels
from jaxspec.applications.command.library import library
from jaxspec.applications.command.options import (
    ClassNames,
    Extractor,
    Force,
    Ignore,
    Labels,
    PictureSize,
    ProjectionFile,
    entries_of,
    read_any,
)
from jaxspec.applications.command.output import Answer, check_output, facts_table, require_input
from jaxspec.applications.command.session import Session, command

__all__ = ["register"]

OPTIONS = {"size": "--size", "about": "--about", "class_names": "--class-names"}
_File = Optional[Path]  # noqa: UP045


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    command(
        app,
        "specify",
        examples="""
        jaxspec specify fashion.space.safetensors mine.npz -o mine.safetensors
        jaxspec specify s.safetensors mine.csv --labels kind --about licence=MIT -o m.safetensors
        jaxspec specify s.safetensors photos/ --extractor efficientnet -o m.safetensors
        jaxspec specify s.safetensors few.npz --user -o user.safetensors
        """,
    )(specify)


def specify(
    session: Session,
    space: Annotated[Path, typer.Argument(metavar="SPACE", help="File of the market's space.")],
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help=".npz, .npy, .csv, or a folder of pictures.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    labels: Labels = None,
    class_names: ClassNames = None,
    teacher: Annotated[
        _File,
        typer.Option("--teacher", help="The model's probabilities (n, C) on the data."),
    ] = None,
    probe_outputs: Annotated[
        _File,
        typer.Option("--probe-outputs", help="The model's probabilities (p, C) on the probe."),
    ] = None,
    hidden: Annotated[
        _File,
        typer.Option("--hidden", help="The model's activations (n, h) before its output layer."),
    ] = None,
    size: Annotated[int, typer.Option("--size", min=1, help="Points of the reduced set.")] = 50,
    about: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--about", help="name=value, such as licence=MIT; may be repeated."),
    ] = None,
    user: Annotated[
        bool, typer.Option("--user", help="Of a user's task and not of a model.")
    ] = False,
    share_labels: Annotated[
        bool, typer.Option("--share-labels/--no-share-labels", help="For --user: hand them out.")
    ] = True,
    ignore: Ignore = None,
    extractor: Extractor = None,
    picture_size: PictureSize = 224,
    projection: ProjectionFile = None,
    force: Force = False,
) -> Answer:
    """Make the specification of a model or a user.

    It is made from the data of the model's owner, or with --user from the examples of a user.

    An .npz holds `features`, `labels` and, if the labels are integers, `class_names`; it may hold
    `teacher`, `probe_outputs` and `hidden`. A table has one column of labels, called label, class
    or y, or named by --labels. The specification holds no row of the data of an owner.
    """
    extra = {"--teacher": teacher, "--probe-outputs": probe_outputs, "--hidden": hidden}
    for_models = [name for name, value in {**extra, "--about": about}.items() if value]
    if user and for_models:
        raise WrongUse(f"{for_models[0]}: it belongs to a model, and --user makes a user's task")
    entries = entries_of("--about", about)
    require_input(space, data, *extra.values())
    check_output(output, force=force)
    found = read_any(
        session,
        data,
        labels=labels,
        ignore=ignore,
        extractor=extractor,
        picture_size=picture_size,
        projection=projection,
    )
    targets, names = settled_labels(found, class_names_of(class_names))
    parts = {
        "teacher": found.teacher if teacher is None else read_matrix(teacher, "teacher"),
        "probe_outputs": found.probe_outputs
        if probe_outputs is None
        else read_matrix(probe_outputs, "probe_outputs"),
        "hidden": found.hidden if hidden is None else read_matrix(hidden, "hidden"),
    }
    js = library(session)
    published = js.Space.load(space)
    with session.stage(f"Specifying {data.name}"), blamed(data, OPTIONS):
        made: Any
        if user:
            made = js.specify_user(
                published, found.features, targets, class_names=names, share_labels=share_labels
            )
        else:
            made = js.specify(
                published,
                found.features,
                targets,
                class_names=names,
                size=size,
                about=entries,
                **parts,
            )
    made.save(output)
    facts = specification_facts(made, output)
    return Answer(facts, lambda console: console.print(facts_table(rows_of(facts))))
