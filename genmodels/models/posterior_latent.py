"""The posterior p(z | x) of one example's code, under a trained VAE or Helmholtz machine, which is part of it and stays as it is."""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.core import Event
from genmodels.mcmc import additive
from genmodels.models.helmholtz import Helmholtz
from genmodels.models.posterior_targets import GIBBS, MEAN_FIELD, SMOOTH, Data, Parametric, Target
from genmodels.models.vae import VAE
from genmodels.noise import Noise
from genmodels.vi import Categoricals, DiagonalGaussian, Family

PARENTS: Mapping[str, type[VAE] | type[Helmholtz]] = {"vae": VAE, "helmholtz": Helmholtz}
COUNTABLE = 14
"""Bits whose states are counted out for the evidence."""


class Latent(Parametric):
    """theta: the code z of a VAE, real numbers; or the bits of all layers of a Helmholtz machine, 0 or 1. The prior is the parent's own."""

    example: Tensor
    """(*shape) levels: the example whose code is asked for."""
    label: Tensor
    """() int64: its label; -1 where there is none."""
    row: int

    def __init__(self, event: Event, parent: Mapping[str, Any] | str | None, row: int) -> None:
        super().__init__()
        if not isinstance(parent, Mapping):
            raise ValueError(
                f"parent {parent!r}; wanted a trained {' or '.join(PARENTS)}, as family, event and config: a recipe names its folder or "
                "models:/name@alias, and the pipeline puts the model in"
            )
        if parent["family"] not in PARENTS:
            raise ValueError(
                f"parent of family {parent['family']!r}; wanted one that has a prior and a likelihood of codes: {', '.join(PARENTS)}"
            )
        kind: Any = PARENTS[parent["family"]]
        its = Event.from_json(parent["event"])
        if its != event:
            raise ValueError(f"the parent models {its}; the posterior's data is {event}: give it the data that the parent was trained on")
        self.parent: VAE | Helmholtz = kind(its, kind.Config(**parent["config"])).requires_grad_(False)
        self.row = row
        self.methods = frozenset({GIBBS, "metropolis", MEAN_FIELD}) if isinstance(self.parent, Helmholtz) else SMOOTH  # type: ignore[misc]
        count = self.parent.bits if isinstance(self.parent, Helmholtz) else self.parent.config.latent
        self.names = tuple(f"{'h' if isinstance(self.parent, Helmholtz) else 'z'}[{i}]" for i in range(count))
        self.register_buffer("example", torch.zeros(event.shape, dtype=torch.uint8))
        self.register_buffer("label", torch.tensor(-1))

    @property
    def family(self) -> Family:
        return Categoricals(self.dims) if isinstance(self.parent, Helmholtz) else DiagonalGaussian(self.dims)

    def see(self, data: Data) -> None:
        found = (data.position == self.row).nonzero()[:, 0]
        if not len(found):
            raise ValueError(f"example {self.row} of {len(data.x)} training examples; wanted 0 to {len(data.x) - 1}")
        self.example.copy_(data.x[found[0]])
        if data.y is not None and self.parent.event.classes:
            self.label.copy_(data.y[found[0]])
            if int(self.label) < 0:
                raise ValueError(f"example {self.row} has no label, and the parent is conditioned on one; choose another example")

    def target(self, data: Data | None = None) -> Target:
        bits = isinstance(self.parent, Helmholtz)
        return Target(
            names=self.names,
            natural=self.names,
            rows=1,
            log_density=self.log_joint,
            start=self.begun,
            gibbs=(self.flipped,) if bits else None,
            evidence=self.evidence,
            family=self.family,
            proposal=flips if bits else additive,
        )

    def begun(self, noise: Noise) -> Tensor:
        """The prior's scale, of bits fair coins."""
        if isinstance(self.parent, Helmholtz):
            return (noise.uniform("start", (self.dims,)) < 0.5).double()
        return noise.normal("start", (self.dims,)).double()

    def log_joint(self, theta: Tensor) -> Tensor:
        """theta (C, d) -> (C,) nats, log p(z) + log p(x | z) of the example."""
        y = self.label.expand(len(theta)) if self.parent.event.classes else None
        x = self.example.expand(len(theta), *self.example.shape)
        if isinstance(self.parent, Helmholtz):
            return self.parent.log_joint(x, self._cast(theta)[:, None], y)[:, 0].double()
        prior = -(theta.square() + math.log(2 * math.pi)).sum(1) / 2
        return prior + self.parent.likelihood(self._cast(theta), y).log_prob(x).double().sum((1, 2))

    def flipped(self, theta: Tensor, noise: Noise) -> Tensor:
        """A sweep of Gibbs over all bits in turn, each redrawn given the others."""
        u, theta = noise.uniform("bits", (self.dims,)).double(), theta.clone()
        for i in range(self.dims):
            nats = []
            for value in (0.0, 1.0):
                theta[:, i] = value
                nats.append(self.log_joint(theta))
            theta[:, i] = (u[:, i] < torch.sigmoid(nats[1] - nats[0])).double()
        return theta

    def evidence(self) -> float | None:
        """log p(x) of the example, where its codes can be counted."""
        if not isinstance(self.parent, Helmholtz) or self.dims > COUNTABLE:
            return None
        states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=self.dims)), dtype=torch.float64)
        return torch.logsumexp(self.log_joint(states), 0).item()

    def log_prob(self, theta: Tensor, x: Tensor, *, y: Tensor | None, c: Tensor | None) -> Tensor:
        out = theta.new_empty(len(theta), len(x))
        for label in [None] if y is None else y.unique():
            under = self._likelihood(theta, None if label is None else label.expand(len(theta)))
            for row in range(len(x)) if y is None else (y == label).nonzero()[:, 0].tolist():
                out[:, row] = under(x[row : row + 1].expand(len(theta), *x.shape[1:]))
        return out

    def _likelihood(self, theta: Tensor, y: Tensor | None) -> Callable[[Tensor], Tensor]:
        """x (S, *shape) -> (S,) nats under codes that are decoded once."""
        if isinstance(self.parent, Helmholtz):
            told = self.parent.told(self._cast(theta), y)
            return lambda x: told.log_prob(x).double()
        pixels = self.parent.likelihood(self._cast(theta), y)
        return lambda x: pixels.log_prob(x).double().sum((1, 2))

    def draw(self, theta: Tensor, noise: Noise, *, y: Tensor | None, c: Tensor | None) -> Tensor:
        if isinstance(self.parent, Helmholtz):
            return self.parent.told(self._cast(theta), y).draw(noise)
        channels, height, width = self.parent.event.shape
        return self.parent.likelihood(self._cast(theta), y).sample(noise.uniform("levels", (channels + 1, height, width)))

    def _cast(self, theta: Tensor) -> Tensor:
        return theta.to(next(self.parent.parameters()).dtype)


def flips(theta: Tensor, scale: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """One bit turned over, and each other with probability scale / d: as likely there as back."""
    dims = theta.shape[1]
    others = noise.uniform("proposal", (dims,)) < (scale / dims).clamp(max=0.5)
    one = F.one_hot((noise.uniform("which") * dims).long().clamp(max=dims - 1), dims).bool()
    return torch.where(others | one, 1 - theta, theta), theta.new_zeros(len(theta))
