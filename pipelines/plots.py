"""Pictures of a posterior as PNG: chains by ArviZ (traces, ranks), and the marginals of every method over those of the reference run."""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.comparison import Found

COORDINATES = 4
"""Shown of every chain: those whose R-hat is worst."""

CHAINS = 8
"""Shown of a run of more: those whose means are furthest from everybody's."""

MARGINALS = 12
BINS = 60
COLOURS = ("#c2703d", "#4d8b55", "#8a5a9e", "#2f6690", "#b23a48", "#1b998b", "#6d6875")
KEPT = 1000
"""Draws a chain that a picture is made of, evenly taken."""


@contextmanager
def _drawing() -> Iterator[Any]:
    """ArviZ and matplotlib without a screen; what they warn of is for those who write them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import matplotlib as mpl

        mpl.use("Agg")
        import arviz

        yield arviz
        import matplotlib.pyplot as plt

        plt.close("all")


def traces(found: Found, names: Sequence[str], coordinates: Sequence[int]) -> bytes:
    """Density and trace of each chain, a row a coordinate."""
    with _drawing() as arviz:
        axes = arviz.plot_trace(_data(arviz, found, names, coordinates), figsize=(10, 2.1 * len(coordinates)), compact=False)
        return _png(axes, tight=True)


def ranks(found: Found, names: Sequence[str], coordinates: Sequence[int]) -> bytes:
    """In how many draws each chain holds which ranks among all chains: even bars where they mix."""
    with _drawing() as arviz:
        grid = (-(-len(coordinates) // 2), min(2, len(coordinates)))
        axes = arviz.plot_rank(_data(arviz, found, names, coordinates), figsize=(10, 3 * grid[0]), grid=grid)
        return _png(axes, tight=True)


def marginals(reference: Found, found: Mapping[str, Found], names: Sequence[str]) -> bytes:
    """Of the first coordinates the reference's histogram, and each method's density as a line over it; found: by what to call it."""
    shown = range(min(MARGINALS, len(names)))
    columns = min(3, len(shown))
    with _drawing():
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(-(-len(shown) // columns), columns, figsize=(10, 2.3 * -(-len(shown) // columns)), squeeze=False)
        for axis in axes.flat[len(shown) :]:
            axis.set_visible(False)
        for axis, index in zip(axes.flat, shown, strict=False):
            _marginal(axis, reference, found, index)
            axis.set_title(names[index], fontsize=9)
        figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="lower center", ncols=4, fontsize=8, frameon=False)
        figure.tight_layout(rect=(0, 0.02 + 0.1 / len(axes), 1, 1))
        return _png(axes)


def _marginal(axis: Any, reference: Found, found: Mapping[str, Found], index: int) -> None:
    truth = reference.draws[..., index].ravel()
    low, high = (float(np.quantile(truth, share)) for share in (0.001, 0.999))
    edges = np.linspace(low, high, BINS + 1) if low < high else np.linspace(low - 0.5, low + 0.5, BINS + 1)
    axis.hist(truth, edges, density=True, color="#b9c2c9", label=f"reference ({reference.method})")
    for colour, (name, each) in zip(COLOURS, found.items(), strict=False):
        values = each.draws[..., index].ravel()
        counts, _ = np.histogram(values, edges)
        heights = _smooth(counts) / (len(values) * np.diff(edges))
        axis.plot((edges[:-1] + edges[1:]) / 2, heights, color=colour, linewidth=1.3, label=name)
    axis.set_yticks([])
    axis.tick_params(labelsize=7)


def _smooth(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Over three bins: lines of few draws stay readable."""
    padded = np.pad(counts.astype(float), 1, mode="edge")
    return (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4


def _data(arviz: Any, found: Found, names: Sequence[str], coordinates: Sequence[int]) -> Any:
    draws = found.draws[..., list(coordinates)]
    draws = draws[furthest(draws), :: max(1, draws.shape[1] // KEPT)]
    return arviz.from_dict(posterior={names[index]: draws[..., place] for place, index in enumerate(coordinates)})


def furthest(draws: NDArray[np.float64]) -> NDArray[np.int64]:
    """draws (C, N, k) -> CHAINS of the chains, or all where there are no more: those that stray most in any coordinate, by its own scale."""
    away = np.abs(draws.mean(1) - draws.mean((0, 1))) / (draws.std((0, 1)) + np.finfo(float).tiny)
    return np.sort(np.argsort(-away.max(1), kind="stable")[:CHAINS])


def _png(axes: Any, *, tight: bool = False) -> bytes:
    figure, file = np.ravel(axes)[0].figure, io.BytesIO()
    if tight:
        figure.tight_layout()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()
