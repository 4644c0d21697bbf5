"""Markov kernels that leave a density unchanged: what one is, Metropolis and Hastings' random walk, and Gibbs.

Equation of State Calculations by Fast Computing Machines (Metropolis et al., 1953); Monte Carlo sampling methods using Markov chains and their
applications (Hastings, 1970); Stochastic relaxation, Gibbs distributions (Geman and Geman, 1984).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from genmodels.noise import Noise

LogDensity = Callable[[Tensor], Tensor]
"""theta (C, d) float64 -> (C,) nats up to a constant, rows independent."""

Proposal = Callable[[Tensor, Tensor, Noise], tuple[Tensor, Tensor]]
"""(theta (C, d), scale (d,) or (), noise) -> proposed (C, d), and Hastings' correction (C,): log q(theta | proposed) - log q(proposed | theta)."""


@dataclass(frozen=True)
class State:
    """Where every chain is. accepted: the probability with which the last proposal was accepted; errors: how many proposals had a log density
    that is no number (NaN or +inf), or none for a gradient where it is finite, and were refused for it."""

    theta: Tensor  # (C, d) float64
    log_density: Tensor  # (C,) float64 nats
    accepted: Tensor  # (C,) float64 in [0, 1]
    errors: Tensor  # (C,) int64
    gradient: Tensor  # (C, d) float64; (C, 0) for a kernel that needs none


class Kernel(ABC):
    """How a chain begins and how it takes a step. Kernels are frozen: all that changes is the state."""

    @abstractmethod
    def init(self, theta: Tensor) -> State:
        """theta (C, d) -> the state there. Raises ValueError where the log density is not finite."""

    @abstractmethod
    def step(self, state: State, noise: Noise) -> State:
        """One step of every chain; noise: a row a chain, the step named by noise.step."""


class Adaptive(Kernel):
    """Has a step size and a diagonal metric, which warmup chooses."""

    target: ClassVar[float]
    """The mean acceptance probability that the step size is chosen for."""

    @property
    @abstractmethod
    def size(self) -> Tensor:
        """() float64: the step size."""

    @abstractmethod
    def tuned(self, size: Tensor, metric: Tensor) -> Self:
        """The same kernel with another step size, and a metric (d,): estimated variances, by whose roots steps are scaled."""


def additive(theta: Tensor, scale: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """A Gaussian step: as likely there as back."""
    return theta + scale * noise.normal("proposal", theta.shape[1:]).double(), theta.new_zeros(len(theta))


def multiplicative(theta: Tensor, scale: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """A log-normal factor, for coordinates that keep their sign: a density falls as 1 / theta', so the way back differs by theta' / theta."""
    steps = scale * noise.normal("proposal", theta.shape[1:]).double()
    return theta * steps.exp(), steps.sum(1)


@dataclass(frozen=True)
class RandomWalk(Adaptive):
    """Random-walk Metropolis and Hastings. scale: of a step in every coordinate, times the root of the metric where there is one."""

    log_density: LogDensity
    scale: float | Tensor = 0.5
    proposal: Proposal = additive
    metric: Tensor | None = None

    target: ClassVar[float] = 0.3  # between 0.44, best in one dimension, and 0.234 in many (Roberts, Gelman, Gilks, 1997)

    @property
    def size(self) -> Tensor:
        return torch.as_tensor(self.scale, dtype=torch.float64)

    def tuned(self, size: Tensor, metric: Tensor) -> Self:
        # Variances scale steps that are added; those of another proposal are in units of its own.
        return replace(self, scale=size, metric=metric if self.proposal is additive else self.metric)

    def init(self, theta: Tensor) -> State:
        return begun(theta, self.log_density(theta))

    def step(self, state: State, noise: Noise) -> State:
        scale = self.size if self.metric is None else self.size * self.metric.sqrt()
        theta, correction = self.proposal(state.theta, scale, noise)
        proposed = State(theta, self.log_density(theta), state.accepted, state.errors, state.gradient)
        return metropolis(state, proposed, proposed.log_density - state.log_density + correction, noise)


Conditional = Callable[[Tensor, Noise], Tensor]
"""(theta (C, d), noise) -> (C, d): some coordinates redrawn given the rest, the rest as they were. Its noise's tags are its own alone."""


@dataclass(frozen=True)
class Gibbs(Kernel):
    """Redraws the coordinates in turn from their exact conditionals. Where no log density is given, the states' is 0."""

    conditionals: Sequence[Conditional]
    log_density: LogDensity | None = None

    def init(self, theta: Tensor) -> State:
        return begun(theta, self._nats(theta))

    def step(self, state: State, noise: Noise) -> State:
        theta = state.theta
        for conditional in self.conditionals:
            theta = conditional(theta, noise)
        bad = ~theta.isfinite().all(1)
        theta = torch.where(bad[:, None], state.theta, theta)
        return State(theta, self._nats(theta), (~bad).double(), state.errors + bad, state.gradient)

    def _nats(self, theta: Tensor) -> Tensor:
        return theta.new_zeros(len(theta)) if self.log_density is None else self.log_density(theta)


def begun(theta: Tensor, log_density: Tensor, gradient: Tensor | None = None) -> State:
    """The state of chains that begin at theta (C, d). Raises ValueError for another shape or dtype, or a log density that is not finite there."""
    if theta.ndim != 2 or theta.dtype != torch.float64:
        raise ValueError(f"chains that begin at {theta.dtype} of shape {tuple(theta.shape)}; wanted float64 of shape (chains, dimensions)")
    if log_density.shape != theta.shape[:1]:
        raise ValueError(
            f"a log density of shape {tuple(log_density.shape)} for {len(theta)} chains; wanted one number a chain: ({len(theta)},)"
        )
    gradient = theta[:, :0] if gradient is None else gradient
    bad = ~(log_density.isfinite() & gradient.isfinite().all(1) & theta.isfinite().all(1))
    if bool(bad.any()):
        chain = int(bad.nonzero()[0, 0])
        where = [round(value, 4) for value in theta[chain, :4].tolist()]
        raise ValueError(
            f"chain {chain} begins at {where} with log density {float(log_density[chain]):g}; wanted a start where it and its gradient are finite"
        )
    return State(theta, log_density, theta.new_ones(len(theta)), torch.zeros(len(theta), dtype=torch.int64), gradient)


def metropolis(state: State, proposed: State, log_ratio: Tensor, noise: Noise) -> State:
    """The proposed row where log u < log_ratio (C,), else the present one. A proposal whose log density, or its gradient, is no number is refused
    and counted."""
    wrong = proposed.log_density.isnan() | (proposed.log_density == math.inf)
    # Outside of the support, at -inf, there is no gradient to miss.
    wrong |= proposed.log_density.isfinite() & ~proposed.gradient.isfinite().all(1)
    log_ratio = torch.where(wrong | log_ratio.isnan(), -math.inf, log_ratio)
    moved = noise.uniform("accept").double().log() < log_ratio
    return State(
        theta=torch.where(moved[:, None], proposed.theta, state.theta),
        log_density=torch.where(moved, proposed.log_density, state.log_density),
        accepted=log_ratio.clamp(max=0).exp(),
        errors=state.errors + wrong,
        gradient=torch.where(moved[:, None], proposed.gradient, state.gradient),
    )
