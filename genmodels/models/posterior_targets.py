"""What a posterior is of: a prior of theta, a likelihood given it, and once data were seen the density of theta given them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from genmodels.core import Event
from genmodels.mcmc import LogDensity, additive
from genmodels.mcmc.kernels import Conditional, Proposal
from genmodels.noise import Noise
from genmodels.vi import DiagonalGaussian, Family, coordinate_ascent

GIBBS, MEAN_FIELD = "gibbs", "vi-mean-field"
CHAINS = ("hmc", "mala", "metropolis", GIBBS)
SMOOTH = frozenset({"hmc", "mala", "metropolis", "vi-diagonal", "vi-full"})
"""Methods for a density that has a gradient; the others need more."""


@dataclass(frozen=True)
class Data:
    """All examples. x (N, *event.shape); c (N, features) or None; y (N,) int64 or None; position (N,) int64."""

    x: Tensor
    c: Tensor | None
    y: Tensor | None
    position: Tensor


@dataclass(frozen=True, kw_only=True)
class MeanField:
    """Mean field by coordinate ascent: `fit(seed's noise, sweeps)` -> the factors and the bound in nats after every sweep; `draw(factors, noise)` ->
    theta, a draw a row of the noise."""

    start: Callable[[Noise], Any]
    updates: Sequence[Callable[[Any], Any]]
    bound: Callable[[Any], Tensor]
    draw: Callable[[Any, Noise], Tensor]

    def fit(self, noise: Noise, sweeps: int) -> tuple[Any, list[float]]:
        return coordinate_ascent(self.start(noise), self.updates, self.bound, sweeps=sweeps)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A posterior to be explored by any method.

    names: of theta's coordinates, d of them. log_density: theta (C, d) float64 -> (C,) nats, log p(data, theta), normalised over both, so that
    its integral is the evidence. start(noise): theta (C, d), spread wide, a chain a row of the noise. gibbs: the conditionals, or None. mean_field:
    or None. evidence(): exact log p(data) in nats; None where no one knows. family: what parametric q begins from. proposal: of a random walk.
    ordered: theta (..., d) -> the same point written with its components in order, in which draws can be averaged. constrain: theta (..., d) -> the
    same parameters in units that one reads (precisions, not their logs), by `natural` names.
    """

    names: tuple[str, ...]
    natural: tuple[str, ...]
    rows: int
    log_density: LogDensity
    start: Callable[[Noise], Tensor]
    gibbs: tuple[Conditional, ...] | None = None
    mean_field: MeanField | None = None
    evidence: Callable[[], float | None] = lambda: None
    family: Family
    proposal: Proposal = additive
    ordered: Callable[[Tensor], Tensor] = lambda theta: theta
    constrain: Callable[[Tensor], Tensor] = lambda theta: theta


class Parametric(nn.Module, ABC):
    """A prior and a likelihood of one event. What it must know of the data beside them, such as their scales, are its buffers."""

    methods: ClassVar[frozenset[str]] = SMOOTH
    names: tuple[str, ...]

    @property
    def dims(self) -> int:
        return len(self.names)

    @property
    def family(self) -> Family:
        return DiagonalGaussian(self.dims)

    @abstractmethod
    def see(self, data: Data) -> None:
        """Takes down what is needed of the data, once, before any target."""

    @abstractmethod
    def target(self, data: Data) -> Target: ...

    @abstractmethod
    def log_prob(self, theta: Tensor, x: Tensor, *, y: Tensor | None, c: Tensor | None) -> Tensor:
        """theta (S, d), x (B, *shape) -> (S, B) float64 nats, log p(x | theta, y, c)."""

    @abstractmethod
    def draw(self, theta: Tensor, noise: Noise, *, y: Tensor | None, c: Tensor | None) -> Tensor:
        """theta (B, d), a row each -> (B, *shape) from p(x | theta, y, c)."""

    def ordered(self, theta: Tensor) -> Tensor:
        return theta


class Units(nn.Module):
    """Numbers in units of their own mean and standard deviation; those that never vary are left at scale 1."""

    shift: Tensor
    scale: Tensor

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(dims, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(dims, dtype=torch.float64))

    def see(self, values: Tensor) -> None:
        """values (N, D)."""
        scale = values.double().std(0, correction=0)
        self.shift.copy_(values.double().mean(0))
        self.scale.copy_(torch.where(scale > 1e-12 * (1 + self.shift.abs()), scale, 1.0))

    def __call__(self, values: Tensor) -> Tensor:
        return (values.flatten(1).double() - self.shift) / self.scale

    @property
    def log_volume(self) -> Tensor:
        """() nats that a density of raw values is lower by than one of standard ones."""
        return self.scale.log().sum()


class Regressed(Parametric):
    """A target given features, both a table's row."""

    def __init__(self, event: Event, prior_scale: float, *, levels: bool) -> None:
        super().__init__()
        given = event.condition
        if event.shape != (1,) or bool(event.levels) != levels or given is None or given.levels or len(given.shape) != 1:
            kind = "a label (levels = how many there are)" if levels else "a real number"
            raise ValueError(
                f"{event} given {event.condition}: wanted one target, {kind}, given a table of real-valued features; set data.table.target and kind"
            )
        self.features, self.prior_scale = given.dims, prior_scale
        self.given = Units(given.dims)

    def design(self, c: Tensor | None) -> Tensor:
        """c (B, D) features -> (B, D + 1) float64: a one, then the features in their units."""
        assert c is not None
        return torch.cat([torch.ones(len(c), 1, dtype=torch.float64, device=c.device), self.given(c)], dim=1)


class Logistic(Regressed):
    """p(x = k | w, c) = softmax(w c)_k, w ~ N(0, prior_scale^2); of two labels the sigmoid of one linear function."""

    def __init__(self, event: Event, prior_scale: float) -> None:
        super().__init__(event, prior_scale, levels=True)
        self.outputs = 1 if event.levels == 2 else event.levels
        columns = ["intercept", *(f"w[{i}]" for i in range(self.features))]
        self.names = tuple(columns if self.outputs == 1 else (f"{name} of {k}" for k in range(self.outputs) for name in columns))

    def see(self, data: Data) -> None:
        assert data.c is not None
        self.given.see(data.c)

    def target(self, data: Data) -> Target:
        design, label = self.design(data.c), data.x[:, 0].long()

        def log_density(theta: Tensor) -> Tensor:
            prior = -(theta / self.prior_scale).square().sum(1) / 2 - self.dims * math.log(self.prior_scale * math.sqrt(2 * math.pi))
            return prior + self._nats(theta, design, label).sum(1)

        return Target(
            names=self.names,
            natural=self.names,
            rows=len(label),
            log_density=log_density,
            start=lambda noise: noise.normal("start", (self.dims,)).double() * min(1.0, self.prior_scale),
            family=self.family,
        )

    def _nats(self, theta: Tensor, design: Tensor, label: Tensor) -> Tensor:
        """(S, d), (B, D + 1), (B,) -> (S, B)."""
        logits = torch.einsum("skd,bd->sbk", theta.unflatten(1, (self.outputs, -1)), design)
        if self.outputs == 1:
            return torch.nn.functional.logsigmoid(logits[..., 0] * (2 * label - 1))
        return logits.log_softmax(-1).gather(-1, label.expand(len(theta), -1)[..., None])[..., 0]

    def log_prob(self, theta: Tensor, x: Tensor, *, y: Tensor | None, c: Tensor | None) -> Tensor:
        return self._nats(theta, self.design(c), x[:, 0].long())

    def draw(self, theta: Tensor, noise: Noise, *, y: Tensor | None, c: Tensor | None) -> Tensor:
        logits = (theta.unflatten(1, (self.outputs, -1)) * self.design(c)[:, None]).sum(-1)
        if self.outputs == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        weights = logits.softmax(-1).cumsum(-1)
        u = noise.uniform("label of the target").double()[:, None]
        return (weights[:, :-1] <= u).sum(1, keepdim=True).to(torch.uint8)
