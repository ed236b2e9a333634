"""The commands `space create` and `space show`: what a market publishes once."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Optional

import typer

from jaxspec.applications.command.describe import rows_of, space_facts
from jaxspec.applications.command.errors import WrongUse, blamed
from jaxspec.applications.command.inputs import read_features
from jaxspec.applications.command.library import library
from jaxspec.applications.command.options import Force
from jaxspec.applications.command.output import (
    Answer,
    check_output,
    facts_table,
    require_input,
)
from jaxspec.applications.command.session import Session, command

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Make and look at spaces.", rich_markup_mode=None)


class KernelName(str, enum.Enum):
    """The kernels that the option `--kernel` knows."""

    gaussian = "gaussian"
    laplacian = "laplacian"


@command(
    app,
    "create",
    examples="""
    jaxspec space create fashion-pca64 public.npz -o fashion.space.safetensors
    jaxspec space create tables-8 public.csv --probe probe.npz -o t.space.safetensors
    """,
)
def create(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Names the features.")],
    features: Annotated[
        Path, typer.Argument(metavar="FEATURES", help="Public features: .npz, .npy or .csv.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    probe: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--probe", help="Public, unlabelled features on which owners run their models."
        ),
    ] = None,
    kernel: Annotated[KernelName, typer.Option("--kernel", help="Kernel of all embeddings.")] = (
        KernelName.gaussian
    ),
    bandwidth: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--bandwidth", help="Of the kernel; the median distance if left out."),
    ] = None,
    force: Force = False,
) -> Answer:
    """Make the space of a market: a name, a kernel, and a probe if there is one.

    FEATURES are public features of the kind that owners and users have. The median of the distances
    between them becomes the kernel's bandwidth.
    """
    if bandwidth is not None and not 0 < bandwidth < float("inf"):
        raise WrongUse(f"--bandwidth: expected a number above zero, got {bandwidth}")
    require_input(features, probe)
    check_output(output, force=force)
    rows = read_features(features)
    probe_rows = None if probe is None else read_features(probe)
    js = library(session)
    cls = {"gaussian": js.Gaussian, "laplacian": js.Laplacian}[kernel.value]
    with session.stage("Choosing the bandwidth"):
        with blamed(features, {"name": "NAME"}):
            made = js.Space.from_features(name, rows, kernel=cls)
        if bandwidth is not None or probe_rows is not None:
            chosen = made.kernel if bandwidth is None else cls(bandwidth=bandwidth)
            with blamed(probe or features):
                made = js.Space(name, chosen, dimension=made.dimension, probe=probe_rows)
    made.save(output)
    facts = space_facts(made, output)
    return Answer(facts, lambda console: console.print(facts_table(rows_of(facts))))


@command(app, "show", examples="jaxspec space show fashion.space.safetensors")
def show(
    session: Session,
    space: Annotated[Path, typer.Argument(metavar="SPACE", help="File of a space.")],
) -> Answer:
    """Show a space: name, digest, kernel, dimension and probe."""
    require_input(space)
    facts = space_facts(library(session).Space.load(space), space)
    return Answer(facts, lambda console: console.print(facts_table(rows_of(facts))))
