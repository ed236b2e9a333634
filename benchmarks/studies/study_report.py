"""The report of a study: means and intervals over markets, tables and the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies.rankings import REGIMES
from jaxspec import evaluation

__all__ = ["aggregate", "draw_points", "markdown"]

PAPER = {  # Pre@1, 2, 3 of the paper and of its RKME baseline, in per cent
    "homo-direct": ((95.15, 100, 100), (54.54, 81.82, 95.45)),
    "homo-fine-tuning": ((81.82, 90.91, 90.91), (40.90, 68.18, 81.82)),
    "hetero-fine-tuning": ((59.09, 63.63, 68.18), (36.36, 45.45, 50.00)),
}


def aggregate(markets: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means and 95 % bootstrap intervals over markets."""
    rng = np.random.default_rng(0)
    report: dict[str, Any] = {}
    for setting in markets[0]:
        report[setting] = {}
        for regime in REGIMES:
            report[setting][regime] = {}
            for method in markets[0][setting][regime]:
                rows = [market[setting][regime][method] for market in markets]
                entry = {}
                for metric in rows[0]:
                    values = np.array([row[metric] for row in rows])
                    entry[metric] = float(values.mean())
                    if len(values) > 1:
                        low, high = evaluation.bootstrap_interval(values, rng=rng)
                        entry[f"{metric} interval"] = [float(low), float(high)]
                report[setting][regime][method] = entry
    return report


def markdown(report: dict[str, Any], title: str) -> str:
    """Return the report as Markdown tables."""
    lines = [f"# {title}", ""]
    for setting, regimes in report.items():
        for regime, table in regimes.items():
            lines += [f"## {setting}, {regime}", ""]
            lines += ["| method | Pre@1 | Pre@2 | Pre@3 | tau | regret, points |"]
            lines += ["|---|---|---|---|---|---|"]
            for method, row in table.items():
                low, high = row.get("pre@1 interval", (row["pre@1"], row["pre@1"]))
                lines.append(
                    f"| {method} | {100 * row['pre@1']:.1f} ({100 * low:.0f} to {100 * high:.0f}) "
                    f"| {100 * row['pre@2']:.1f} | {100 * row['pre@3']:.1f} | {row['tau']:.2f} "
                    f"| {100 * row['regret']:.2f} |"
                )
            lines.append("")
    lines += ["## Margins over the RKME baseline at Pre@1, in points", ""]
    lines += ["| setting | the paper | here, seen | here, unseen |", "|---|---|---|---|"]
    for setting, regimes in report.items():
        paper = PAPER[setting][0][0] - PAPER[setting][1][0]
        margins = [
            100 * (regimes[regime]["jaxspec"]["pre@1"] - regimes[regime]["rkme"]["pre@1"])
            for regime in REGIMES
        ]
        lines.append(f"| {setting} | {paper:+.1f} | {margins[0]:+.1f} | {margins[1]:+.1f} |")
    return "\n".join(lines) + "\n"


def draw_points(markets: list[dict[str, Any]], path: Path) -> None:
    """Draw performance against score, one panel a setting, as in the paper's figure."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    settings = list(markets[0])
    figure, panels = plt.subplots(
        1, len(settings), figsize=(4.2 * len(settings), 3.6), squeeze=False, layout="constrained"
    )
    for axes, setting in zip(panels[0], settings, strict=True):
        scores = np.concatenate([np.array(m[setting]["points"]["score"]) for m in markets])
        truth = np.concatenate([np.array(m[setting]["points"]["performance"]) for m in markets])
        tau = evaluation.kendall_tau(scores, truth)
        axes.plot(scores.ravel(), truth.ravel(), ".", ms=2, alpha=0.25, color="#2b6cb0")
        axes.set_title(f"{setting}: mean tau {tau:.2f}", fontsize=10)
        axes.set_xlabel("score, from specifications alone")
        axes.set_ylabel("measured test accuracy")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
