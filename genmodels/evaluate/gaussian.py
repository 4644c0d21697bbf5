"""The baseline of real values that needs no learning: each column's mean and variance."""

from collections.abc import Iterable

import torch
from torch import Tensor

from genmodels.core import Batch, Density, Event
from genmodels.evaluate.histogram import Histogram, histograms
from genmodels.noise import Noise


class Gaussian(Density):
    """The baseline to beat where values are real: every value independent of the others and of the condition, with the mean and the variance that
    its column has in the training set."""

    mean: Tensor
    """(dims,) float64."""
    scale: Tensor
    """(dims,) float64; of a column of one value what float32 can tell apart there, since such a column has no density."""
    name = "gaussian"

    def __init__(self, event: Event, mean: Tensor, variance: Tensor) -> None:
        super().__init__(event, self.Config())
        narrowest = torch.finfo(torch.float32).eps * mean.abs().clamp(min=1)
        self.register_buffer("mean", mean.double())
        self.register_buffer("scale", torch.maximum(variance.double().sqrt(), narrowest.double()))

    def conditional_log_prob(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, length: Tensor | None) -> Tensor:
        each = torch.distributions.Normal(self.mean, self.scale, validate_args=False).log_prob(x.flatten(1).double())
        if length is not None:
            each = each.masked_fill(torch.arange(self.event.dims) >= length[:, None], 0)
        return each.sum(-1)

    def draw(self, noise: Noise, *, y: Tensor | None, c: Tensor | None, temperature: Tensor) -> Tensor:
        drawn = self.mean + self.scale * noise.normal("gaussian", (self.event.dims,)).double()
        return drawn.float().reshape(len(noise), *self.event.shape)


def gaussian(event: Event, batches: Iterable[Batch]) -> Gaussian:
    """The baseline of a training set of real values. Raises ValueError for one without examples."""
    n, total, squares = 0, torch.zeros(event.dims, dtype=torch.float64), torch.zeros(event.dims, dtype=torch.float64)
    shift = None
    for batch in batches:
        x = batch.x.flatten(1).double()
        shift = x.mean(0) if shift is None else shift  # near the mean: no digits are lost between two large sums
        n, total, squares = n + len(x), total + (x - shift).sum(0), squares + (x - shift).square().sum(0)
    if shift is None:
        raise ValueError("no examples for a baseline; the training set is empty")
    mean = total / n
    return Gaussian(event, shift + mean, (squares / n - mean.square()).clamp(min=0))


def baselines(event: Event, batches: Iterable[Batch]) -> list[Histogram | Gaussian]:
    """What a model of a training set has to beat: histograms of levels, a Gaussian of real values."""
    return [*histograms(event, batches)] if event.levels else [gaussian(event, batches)]
