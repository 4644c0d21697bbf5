"""Variational families: distributions q(theta; phi) whose numbers phi lie in one vector, so that whoever fits them may keep it anywhere.

A family with other numbers is `q.at(phi)`; nothing is ever written to. Draws are rows of a Noise, float64.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from genmodels.noise import Noise, categorical


@dataclass(frozen=True, eq=False)
class Family(ABC):
    """q over theta (d,). phi (P,) float64: all of its numbers; without it where the family starts."""

    dims: int
    phi: Tensor = field(default_factory=lambda: torch.empty(0))
    reparameterised: ClassVar[bool]
    """Whether draws are a smooth function of phi."""

    def __post_init__(self) -> None:
        if self.dims < 1:
            raise ValueError(f"a family over {self.dims} numbers; wanted at least 1")
        if not len(self.phi):
            object.__setattr__(self, "phi", self._start())
        assert self.phi.shape == self._start().shape and self.phi.dtype == torch.float64

    def at(self, phi: Tensor) -> Self:
        """The family's member of other numbers (P,)."""
        return replace(self, phi=phi)

    @abstractmethod
    def _start(self) -> Tensor: ...

    @abstractmethod
    def draw(self, noise: Noise) -> Tensor:
        """(S, d) float64, a draw a row of the noise; a function of phi by which to differentiate where the family is reparameterised."""

    @abstractmethod
    def log_prob(self, theta: Tensor) -> Tensor:
        """theta (S, d) -> (S,) nats."""

    @abstractmethod
    def entropy(self) -> Tensor:
        """() nats."""


@dataclass(frozen=True, eq=False)
class DiagonalGaussian(Family):
    """Independent normals. phi: means (d,), logs of scales (d,)."""

    reparameterised = True

    def _start(self) -> Tensor:
        return torch.zeros(2 * self.dims, dtype=torch.float64)

    @property
    def mean(self) -> Tensor:
        return self.phi[: self.dims]

    @property
    def covariance(self) -> Tensor:
        """(d, d)."""
        return torch.diag(torch.exp(2 * self.phi[self.dims :]))

    def draw(self, noise: Noise) -> Tensor:
        return self.mean + torch.exp(self.phi[self.dims :]) * noise.normal("q", (self.dims,)).double()

    def log_prob(self, theta: Tensor) -> Tensor:
        log_scale = self.phi[self.dims :]
        return -(((theta - self.mean) * torch.exp(-log_scale)).square() / 2 + log_scale).sum(-1) - self.dims * math.log(2 * math.pi) / 2

    def entropy(self) -> Tensor:
        return self.phi[self.dims :].sum() + self.dims * math.log(2 * math.pi * math.e) / 2


@dataclass(frozen=True, eq=False)
class FullRankGaussian(Family):
    """Any normal: theta = mean + diag(scale) (I + U) eps, where U is strictly lower triangular and has no unit.

    phi: means (d,), logs of scales (d,), U by rows."""

    reparameterised = True

    def _start(self) -> Tensor:
        return torch.zeros(2 * self.dims + self.dims * (self.dims - 1) // 2, dtype=torch.float64)

    @property
    def mean(self) -> Tensor:
        return self.phi[: self.dims]

    @property
    def covariance(self) -> Tensor:
        """(d, d)."""
        root = torch.exp(self._log_scale)[:, None] * self._unit
        return root @ root.T

    @property
    def _log_scale(self) -> Tensor:
        return self.phi[self.dims : 2 * self.dims]

    @property
    def _unit(self) -> Tensor:
        """(d, d): I + U."""
        row, column = torch.tril_indices(self.dims, self.dims, -1)
        return torch.eye(self.dims, dtype=torch.float64).index_put((row, column), self.phi[2 * self.dims :])

    def draw(self, noise: Noise) -> Tensor:
        return self.mean + torch.exp(self._log_scale) * (noise.normal("q", (self.dims,)).double() @ self._unit.T)

    def log_prob(self, theta: Tensor) -> Tensor:
        eps = torch.linalg.solve_triangular(self._unit, ((theta - self.mean) * torch.exp(-self._log_scale)).T, upper=False)
        return -eps.square().sum(0) / 2 - self._log_scale.sum() - self.dims * math.log(2 * math.pi) / 2

    def entropy(self) -> Tensor:
        return self._log_scale.sum() + self.dims * math.log(2 * math.pi * math.e) / 2


@dataclass(frozen=True, eq=False)
class Categoricals(Family):
    """Independent categorical factors of `levels` each; theta holds levels, as float64. phi: logits (d, levels), flat."""

    levels: int = 2
    reparameterised = False

    def _start(self) -> Tensor:
        return torch.zeros(self.dims * self.levels, dtype=torch.float64)

    @property
    def log_probs(self) -> Tensor:
        """(d, levels) nats."""
        return self.phi.reshape(self.dims, self.levels).log_softmax(-1)

    def draw(self, noise: Noise) -> Tensor:
        return categorical(self.log_probs.detach(), noise.uniform("q", (self.dims,))).double()

    def log_prob(self, theta: Tensor) -> Tensor:
        return self.log_probs.expand(len(theta), -1, -1).gather(-1, theta.long()[..., None])[..., 0].sum(-1)

    def entropy(self) -> Tensor:
        return -(self.log_probs.exp() * self.log_probs).sum()
