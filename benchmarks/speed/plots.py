"""The pictures of the measurements of speed: error against time, and time against size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["plot_errors", "plot_growth"]

COLOURS = {"jaxspec": "tab:blue", "learnware": "tab:red"}


def _panels(count: int) -> tuple[Any, Any, Any]:
    """Return pyplot, a figure and its panels, with logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    columns = min(count, 3)
    rows = math.ceil(count / columns)
    figure, panels = plt.subplots(rows, columns, figsize=(5 * columns, 4 * rows), squeeze=False)
    flat = panels.ravel()
    for panel in flat[count:]:
        panel.set_axis_off()
    for panel in flat[:count]:
        panel.set_xscale("log")
        panel.set_yscale("log")
        for axis in (panel.xaxis, panel.yaxis):  # labels of minor ticks would overlap
            axis.set_minor_formatter(NullFormatter())
        panel.grid(which="both", alpha=0.3)
    return plt, figure, flat


def _colour(name: str) -> str:
    return COLOURS.get(name.split(",")[0], "tab:orange")


def _save(plt: Any, figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_errors(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Draw the error of every method against its median time, one panel per record.

    Args:
        path: of the picture.
        records: each with "case", "quality" (what the error is) and "methods", a mapping of names
            to records with "median_s" and "error".
    """
    plt, figure, panels = _panels(len(records))
    for panel, record in zip(panels, records, strict=False):
        for place, (name, row) in enumerate(record["methods"].items()):
            panel.plot(
                row["median_s"] * 1e3,
                row["error"],
                "osD^vP*X"[place % 8],
                color=_colour(name),
                label=name,
                alpha=0.8,
            )
        panel.set_title(record["case"], fontsize=9)
        panel.set_xlabel("median time, ms")
        panel.set_ylabel(record["quality"])
        panel.margins(0.15)
        panel.legend(fontsize=7)
    _save(plt, figure, path)


def plot_growth(path: Path, growth: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw times against sizes with their exponents, one panel per axis.

    Args:
        path: of the picture.
        growth: axis to method to a record with "sizes", "min_s" and "exponent".
    """
    plt, figure, panels = _panels(len(growth))
    for panel, (axis, methods) in zip(panels, growth.items(), strict=False):
        for name, row in methods.items():
            label = f"{name}: {axis}^{row['exponent']:.2f}"
            times = [seconds * 1e3 for seconds in row["min_s"]]
            panel.plot(row["sizes"], times, "o-", color=_colour(name), label=label)
        panel.set_xlabel(axis)
        panel.set_ylabel("fastest time, ms")
        panel.legend(fontsize=7)
    _save(plt, figure, path)
