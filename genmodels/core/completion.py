"""How a product of conditionals fills in what is missing: drawn on where the known values come first, importance resampling elsewhere."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genmodels.core.capabilities import Completion
from genmodels.core.drawing import Drawing, along
from genmodels.noise import Noise, categorical, derive

if TYPE_CHECKING:
    from genmodels.core.autoregressive import Autoregressive

CONTINUED = "ancestral: the known values come first in the model's order"
"""The method of what is drawn exactly."""


@dataclass(frozen=True)
class Given:
    """What is asked for, a row each: x (B, *shape) levels, known (B, *shape) bool, y (B,) int64 or None, c (B, *condition.shape) or None."""

    noise: Noise
    x: Tensor
    known: Tensor
    y: Tensor | None
    c: Tensor | None

    def pick(self, rows: Tensor, *, noise: Noise | None = None, y: Tensor | None = None) -> "Given":
        """Some of the rows, with a noise and labels of their own where given."""
        y = self.y[rows] if y is None and self.y is not None else y
        return Given(noise or self.noise.pick(rows), self.x[rows], self.known[rows], y, None if self.c is None else self.c[rows])


def complete(model: "Autoregressive", given: Given, *, temperature: float, particles: int) -> Completion:
    """Each row by the method that its own mask asks for, whatever the others are. ess is NaN where nothing was weighed."""
    first = come_first(model, given.noise, given.known)
    if temperature != 1 and not bool(first.all()):
        raise ValueError(
            f"temperature {temperature:g} for values that are not first in the model's order: importance weights need temperature 1"
        )
    drawn, ess = torch.empty_like(given.x), torch.full((len(first),), torch.nan, device=given.x.device)
    exact = first.nonzero()[:, 0]
    for rows, count in model.drawn_together(len(exact)):
        state = begun(model, given.pick(exact[rows]), temperature)
        drawn[exact[rows][:count]] = model.read(model.advance(state, model.steps))[:count]
    for row in (~first).nonzero()[:, 0]:
        drawn[row], ess[row] = _resampled(model, given.pick(row[None]), particles)
    methods = [CONTINUED] * bool(first.any())
    methods += [f"importance resampling of {particles} draws"] * (not bool(first.all()))
    return Completion(x=drawn, method="; ".join(methods), exact=bool(first.all()), ess=None if bool(first.all()) else ess)


def come_first(model: "Autoregressive", noise: Noise, known: Tensor) -> Tensor:
    """(B,) bool: rows whose known values come first in the order that they are drawn in, so that the rest can be drawn exactly."""
    known = known.flatten(1)
    seen = along(model.arranged(noise, known), known)
    first = (seen[:, 1:] <= seen[:, :-1]).all(1)
    return first & ~known.any(1) if model.averages_orders else first


def _begin(model: "Autoregressive", given: Given, y: Tensor | None, temperature: Tensor) -> Drawing:
    return model.begin(given.noise, y=y, c=given.c, temperature=temperature, x=given.x, known=given.known)


def begun(model: "Autoregressive", given: Given, temperature: float) -> Drawing:
    """One block whose known values come first, before its first step; a label nobody gave is drawn from p(y | known)."""
    y, warmth = given.y, torch.full((len(given.noise),), float(temperature), device=given.x.device)
    if y is None and model.event.classes:
        prefix = int(given.known.flatten(1).sum(1).max())
        ones, weights = torch.ones_like(warmth), []
        for label in range(model.event.classes):
            state = _begin(model, given, torch.full_like(given.noise.position, label), ones)
            weights.append(model.advance(state, prefix).log_weight + model.class_frequencies[label].log())
        y = categorical(torch.stack(weights, dim=-1), given.noise.uniform("label"))
    return _begin(model, given, y, warmth)


def _resampled(model: "Autoregressive", given: Given, particles: int) -> tuple[Tensor, Tensor]:
    """One row: draws with the known values put in, each weighed by the probability of those, and one of them chosen -> it, and the ess."""
    seed = derive("particles", given.noise.seeds[0], int(given.noise.position[0]))
    swarm = Noise(seed, position=range(particles)).to(given.x.device)
    labels = model.drawn_labels(swarm) if given.y is None and model.event.classes else None
    drawn, weights = [], []
    for rows, count in model.drawn_together(particles):
        part = given.pick(torch.zeros_like(rows), noise=swarm.pick(rows), y=None if labels is None else labels[rows])
        state = model.advance(_begin(model, part, part.y, torch.ones(len(rows), device=given.x.device)), model.steps)
        drawn.append(model.read(state)[:count])
        weights.append(state.log_weight[:count])
    weight = torch.softmax(torch.cat(weights), dim=0)
    chosen = categorical(weight.log()[None], given.noise.uniform("particle"))
    return torch.cat(drawn)[chosen[0]], (1 / weight.square().sum()).float()
