"""Samples of a table made visible: each column's distribution beside that of the data."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.sheet import GREY

DATA, DRAWN = "#9aa4ad", "#2f6690"
PANELS = 24
"""Columns that are shown; the first ones of a wider table."""


def figure(samples: np.ndarray, data: np.ndarray, prepare: Mapping[str, Any]) -> bytes:
    """samples (n, D) and data (m, D) -> a PNG with a panel for each column. prepare: the columns' names, and the labels' of a classification."""
    from matplotlib.figure import Figure  # slow to import

    names = ([prepare["target"]] if prepare["target"] else list(prepare["features"]))[:PANELS]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    page = Figure(figsize=(max(4.0, 2.6 * columns), 2.2 * rows + 0.4))
    axes = page.subplots(rows, columns, squeeze=False)
    for place, axis in enumerate(axes.flat):
        axis.set_visible(place < len(names))
        if place < len(names):
            _panel(axis, samples[:, place], data[:, place], prepare["labels"])
            axis.set_title(names[place], fontsize=8, loc="left", parse_math=False, color=GREY)
    handles, titles = axes.flat[0].get_legend_handles_labels()
    page.legend(handles, titles, loc="lower center", ncols=2, fontsize=8, frameon=False, labelcolor=GREY)
    page.tight_layout(pad=0.4, rect=(0, 0.35 / (2.2 * rows + 0.4), 1, 1))
    out = io.BytesIO()
    page.savefig(out, format="png", dpi=110, transparent=True, metadata={"Software": None})
    return out.getvalue()


def _panel(axis: Any, drawn: np.ndarray, data: np.ndarray, labels: list[str]) -> None:
    """Shares of labels as pairs of bars, or of values as two histograms over the same bins."""
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color(GREY)
    axis.tick_params(labelsize=7, colors=GREY)
    axis.set_yticks([])
    titles = (f"{len(data)} test examples", f"{len(drawn)} samples")
    if labels:
        place = np.arange(len(labels))
        for values, shift, colour, title in ((data, -0.2, DATA, titles[0]), (drawn, 0.2, DRAWN, titles[1])):
            axis.bar(place + shift, np.bincount(values, minlength=len(labels)) / len(values), width=0.38, color=colour, label=title)
        few = len(labels) <= 8
        axis.set_xticks(place if few else place[:: len(labels) // 8], labels if few else labels[:: len(labels) // 8], parse_math=False)
        return
    both = np.concatenate([data, drawn])
    bins = np.linspace(both.min(), both.max() if both.max() > both.min() else both.min() + 1, 25)
    axis.hist(data, bins=bins, density=True, color=DATA, alpha=0.8, label=titles[0])
    axis.hist(drawn, bins=bins, density=True, histtype="step", color=DRAWN, linewidth=1.6, label=titles[1])
