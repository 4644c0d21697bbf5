"""The baseline that needs no learning: how often each level came at each place."""

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from genmodels.core import Batch, Density, Event
from genmodels.evaluate.likelihood import sizes
from genmodels.noise import Noise, categorical


class Histogram(Density):
    """The baseline to beat: every value independent of the others, its levels' counts in the training set with one added to each (Laplace).

    A pixel has a histogram of its own; the steps of a sound share one. By class: one histogram a label.
    """

    table: Tensor
    """(classes or 1, dims or 1, K) float64: log p(level)."""

    def __init__(self, event: Event, counts: Tensor) -> None:
        super().__init__(event, self.Config())
        smoothed = counts.to(torch.float64) + 1
        self.register_buffer("table", (smoothed / smoothed.sum(-1, keepdim=True)).log())

    @property
    def name(self) -> str:
        return "class_histogram" if self.event.classes else "histogram"

    def conditional_log_prob(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, length: Tensor | None) -> Tensor:
        rows = self.table[torch.zeros(len(x), dtype=torch.int64) if y is None else y]
        flat = x.flatten(1).to(torch.int64)
        each = rows.expand(-1, self.event.dims, -1).gather(-1, flat[..., None])[..., 0]
        if length is not None:
            each = each.masked_fill(torch.arange(self.event.dims) >= length[:, None], 0)
        return each.sum(-1)

    def draw(self, noise: Noise, *, y: Tensor | None, c: Tensor | None, temperature: Tensor) -> Tensor:
        rows = self.table[torch.zeros(len(noise), dtype=torch.int64) if y is None else y]
        levels = categorical(rows.expand(-1, self.event.dims, -1), noise.uniform("histogram", (self.event.dims,)))
        return levels.to(torch.uint8).reshape(len(noise), *self.event.shape)


def histograms(event: Event, batches: Iterable[Batch]) -> list[Histogram]:
    """The baselines of a training set of levels: over all labels together, and by class where there are labels."""
    places = 1 if event.modality == "audio" else event.dims
    shape = (event.classes + 1, places, event.levels)  # the last row counts what has no label
    counts = torch.zeros(math.prod(shape), dtype=torch.int64)
    for batch in batches:
        row = torch.full((len(batch),), event.classes) if batch.y is None else torch.where(batch.y < 0, event.classes, batch.y)
        place = torch.arange(event.dims) % places if places > 1 else torch.zeros(event.dims, dtype=torch.int64)
        index = (row[:, None] * places + place) * event.levels + batch.x.flatten(1).to(torch.int64)
        valid = torch.arange(event.dims) < sizes(batch)[:, None]
        counts += torch.bincount(index[valid], minlength=len(counts))
    table = counts.reshape(shape)
    overall = Histogram(replace(event, classes=0), table.sum(0, keepdim=True))
    return [overall, Histogram(event, table[:-1])] if event.classes else [overall]
