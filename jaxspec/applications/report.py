"""Pictures of results, drawn with matplotlib (the extra `demo`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxspec.applications.demo import DemoResult
from jaxspec.base import as_path

__all__ = ["draw_user"]

GOOD, PLAIN, LEARNWARE = "#1b7f5c", "#b9c2cc", "#2b6cb0"


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install matplotlib") from (error)
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _mosaic(result: DemoResult, context: int, garments: np.ndarray, columns: int) -> np.ndarray:
    """Return one row of thumbnails of a context that show the given garments, as one picture."""
    data = result.data
    at = data.thumbnail_index
    fits = (data.contexts[at] == context) & np.isin(data.labels[at], garments)
    order = np.flatnonzero(fits)
    # Alternate between the group's garments, so that a row shows both.
    by_garment = [order[data.labels[at[order]] == g] for g in garments]
    turns = [rows[i] for i in range(columns) for rows in by_garment if i < len(rows)]
    tiles = [
        np.pad(data.thumbnails[t], ((1, 1), (1, 1), (0, 0)), constant_values=255)
        for t in turns[:columns]
    ]
    blank = np.full((30, 30, 3), 255, np.uint8)
    return np.concatenate(tiles + [blank] * (columns - len(tiles)), axis=1)


def draw_user(result: DemoResult, user: int, path: str | Path) -> Path:
    """Draw one user's question and the market's answer to it; return the file's path.

    Left: the user's pictures, class by class, beside the recommended model's own. Right: how well
    every model of the market really does for this user, in the order of the recommendation.
    """
    plt = _pyplot()
    found = result.matches[user]
    task = result.draw.users[user]
    best = found.top_k(1)[0][0]
    developers = {one.name: one for one in result.draw.developers}
    own = developers[best]
    accuracy = dict(zip(result.market.ids, result.performance[user], strict=True))
    order = [learnware for learnware, _ in found.top_k(len(found.ids))]

    figure = plt.figure(figsize=(12.5, 5.2), constrained_layout=True)
    grid = figure.add_gridspec(1, 3, width_ratios=[1.15, 1.15, 1.5])
    columns = 6
    explained = found.explain(best)
    for place, (title, context, space) in enumerate(
        [
            (
                f"the user: {len(task.rows)} labelled pictures\n“{task.name}”",
                task.context,
                task.space,
            ),
            (f"recommended model: trained on\n“{best}”", own.context, own.space),
        ]
    ):
        axes = figure.add_subplot(grid[0, place])
        rows = []
        for k, (_, stands_for, _) in enumerate(explained):
            c = k if place == 0 else (space.names.index(stands_for) if stands_for else None)
            garments = np.flatnonzero(space.of_garment == c) if c is not None else np.array([])
            rows.append(_mosaic(result, context, garments, columns))
        picture = np.concatenate(rows)
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xticks([])
        axes.set_yticks(np.arange(len(rows)) * 30 + 15)
        if place == 0:
            axes.set_yticklabels(
                [name.replace(" / ", "\nor ") for name, _, _ in explained], fontsize=8
            )
        else:
            axes.yaxis.tick_right()
            axes.set_yticklabels([f"{value:.2f}" for _, _, value in explained], fontsize=8)
            axes.set_xlabel("right: how alike the class vectors are (cosine)", fontsize=8)
        for side in axes.spines.values():
            side.set_visible(False)
        axes.tick_params(length=0)

    axes = figure.add_subplot(grid[0, 2])
    heights = [accuracy[learnware] for learnware in order]
    truly_best = max(heights)
    colours = [GOOD if value == truly_best else PLAIN for value in heights]
    axes.barh(np.arange(len(order)), heights, color=colours, height=0.75)
    axes.invert_yaxis()
    axes.set_yticks(np.arange(len(order)))
    axes.set_yticklabels(order, fontsize=7)
    axes.get_yticklabels()[0].set_fontweight("bold")
    axes.set_xlim(0, 1)
    axes.set_xlabel("measured accuracy on this user's test pictures", fontsize=8)
    axes.set_title(
        "the market's ranking, best first (from specifications alone);\n"
        "green: the truly best of the market",
        fontsize=10,
        loc="left",
    )
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path = as_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
