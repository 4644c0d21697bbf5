"""Kernels that follow the gradient: Langevin's diffusion and Hamilton's dynamics, both corrected by Metropolis and Hastings.

Exponential convergence of Langevin distributions (Roberts and Tweedie, 1996); MCMC using Hamiltonian dynamics (Neal, 2011), arXiv:1206.1901.
Where we differ: a step of HMC takes between one and `leapfrog` leapfrog steps, drawn afresh for all chains together (Neal, section 3.2), for on a
target that is nearly Gaussian a fixed length may be a period, after which every chain is where it was.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from genmodels.mcmc.kernels import Adaptive, LogDensity, State, begun, metropolis
from genmodels.noise import Noise


def with_gradient(log_density: LogDensity, theta: Tensor) -> tuple[Tensor, Tensor]:
    """theta (C, d) -> log density (C,) and its gradient (C, d); also where the caller keeps no graph."""
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        nats = log_density(theta)
        (gradient,) = torch.autograd.grad(nats.sum(), theta)
    return nats.detach(), gradient


@dataclass(frozen=True)
class MALA(Adaptive):
    """Metropolis-adjusted Langevin: a step along the gradient and a Gaussian one, whose way back is corrected for."""

    log_density: LogDensity
    step_size: float | Tensor = 0.5
    metric: Tensor | None = None

    target: ClassVar[float] = 0.574  # Optimal scaling of discrete approximations to Langevin diffusions (Roberts and Rosenthal, 1998)

    @property
    def size(self) -> Tensor:
        return torch.as_tensor(self.step_size, dtype=torch.float64)

    def tuned(self, size: Tensor, metric: Tensor) -> Self:
        return replace(self, step_size=size, metric=metric)

    def init(self, theta: Tensor) -> State:
        return begun(theta, *with_gradient(self.log_density, theta))

    def step(self, state: State, noise: Noise) -> State:
        scale = self.size * _root(self.metric, state.theta)
        theta = self._mean(state, scale) + scale * noise.normal("proposal", state.theta.shape[1:]).double()
        proposed = State(theta, *self._found(theta, state))
        there = -((theta - self._mean(state, scale)) / scale).square().sum(1) / 2
        back = -((state.theta - self._mean(proposed, scale)) / scale).square().sum(1) / 2
        return metropolis(state, proposed, proposed.log_density - state.log_density + back - there, noise)

    def _mean(self, state: State, scale: Tensor) -> Tensor:
        return state.theta + scale.square() / 2 * state.gradient

    def _found(self, theta: Tensor, state: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        nats, gradient = with_gradient(self.log_density, theta)
        return nats, state.accepted, state.errors, gradient


@dataclass(frozen=True)
class HMC(Adaptive):
    """Hamiltonian Monte Carlo: a fresh Gaussian momentum, up to `leapfrog` steps of the dynamics, accepted by the error of the energy."""

    log_density: LogDensity
    step_size: float | Tensor = 0.1
    leapfrog: int = 16
    metric: Tensor | None = None

    target: ClassVar[float] = 0.8

    @property
    def size(self) -> Tensor:
        return torch.as_tensor(self.step_size, dtype=torch.float64)

    def tuned(self, size: Tensor, metric: Tensor) -> Self:
        return replace(self, step_size=size, metric=metric)

    def init(self, theta: Tensor) -> State:
        return begun(theta, *with_gradient(self.log_density, theta))

    def step(self, state: State, noise: Noise) -> State:
        # Momenta are in units in which their mass is one: theta moves by scale * momentum.
        scale = self.size * _root(self.metric, state.theta)
        before = noise.normal("momentum", state.theta.shape[1:]).double()
        steps = 1 + int(float(noise.shared("length")) * self.leapfrog)
        proposed, after = self._flown(state, before, scale, steps)
        kinetic = (before.square() - after.square()).sum(1) / 2
        return metropolis(state, proposed, proposed.log_density - state.log_density + kinetic, noise)

    def _flown(self, state: State, momentum: Tensor, scale: Tensor, steps: int) -> tuple[State, Tensor]:
        """Leapfrog (Neal, eq. 2.28 to 2.30): half a step of the momentum, then full ones of both in turn, at last half a step back."""
        theta, nats, gradient = state.theta, state.log_density, state.gradient
        momentum = momentum + scale * gradient / 2
        for _ in range(steps):
            theta = theta + scale * momentum
            nats, gradient = with_gradient(self.log_density, theta)
            momentum = momentum + scale * gradient
        momentum = momentum - scale * gradient / 2
        return State(theta, nats, state.accepted, state.errors, gradient), momentum


def _root(metric: Tensor | None, theta: Tensor) -> Tensor:
    return theta.new_ones(theta.shape[1]) if metric is None else metric.sqrt()
