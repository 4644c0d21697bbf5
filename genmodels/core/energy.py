"""Unnormalised densities: an energy, and log Z, which belongs to the weights that it was found for."""

import hashlib
from abc import abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from genmodels.core.model import GenerativeModel
from genmodels.noise import Noise


@dataclass(frozen=True, kw_only=True)
class Partition:
    """log Z in nats, the interval that holds it with 95 % (a point where it was counted out), how it was found, and whether that is exact."""

    value: float
    interval: tuple[float, float]
    method: str
    exact: bool

    def protocol(self, what: str) -> str:
        """How a likelihood that needs it came about: exact p(x), or an estimate of it within so many nats."""
        if self.exact:
            return f"exact {what} (log Z {self.method})"
        low, high = (self.value - end for end in reversed(self.interval))
        return f"estimate of {what} (log Z by {self.method}; within {low:+.2f} to {high:+.2f} nats with 95 %)"


class Energy(GenerativeModel):
    """Has an unnormalised density, p(x) = exp(-energy(x)) / Z, and estimates of log Z."""

    known: tuple[str, Partition] | None = None
    """The SHA-256 of the weights that log Z was last found for, and what was found: of other weights it says nothing."""

    @abstractmethod
    def energy(self, x: Tensor) -> Tensor:
        """x (B, *shape) levels -> (B,) nats: -log p(x) up to a constant."""

    @abstractmethod
    def log_partition(self, noise: Noise) -> Partition:
        """log Z of the present parameters, found anew. noise: any number of rows; its seed and step say which draws an estimate is made of."""

    @final
    def partition(self) -> Partition:
        """log Z of the present parameters, by the draws of seed 0: an artifact keeps it, and so does the model until its weights change."""
        weights = self.weights_sha256
        if self.known is None or self.known[0] != weights:
            with torch.no_grad():
                self.known = weights, self.log_partition(Noise(0, position=[0]).to(self.device))
        return self.known[1]

    @property
    def weights_sha256(self) -> str:
        """Hex, of all that a file of weights holds: names, types, shapes and bytes."""
        found = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            found.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return found.hexdigest()
