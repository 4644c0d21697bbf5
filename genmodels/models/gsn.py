"""The generative stochastic network: a Markov chain that spoils a picture and restores it, of which only the restoring is learnt.

Deep Generative Stochastic Networks Trainable by Backprop (Bengio, Laufer, Alain, Yosinski, 2014), arXiv:1306.1091; the chain and its training by
walkback from Generalized Denoising Auto-Encoders as Generative Models (Bengio, Yao, Alain, Vincent, 2013), arXiv:1305.6663.

    x~ ~ C(x~ | x),    x' ~ P(x' | x~) = prod_i P(x'_i | x~),    and x' is the next x.

C draws anew each value with a certain probability, P is a perceptron that puts out a distribution over levels for every value. P is positive
everywhere, so the chain has one stationary law: that is the model. Nobody can write it down but for tiny events, where the tests do.

We differ from the paper in that the chain keeps nothing from step to step but the picture: the paper's own network carries noisy hidden layers too.
Since P's values are independent given x~, the stationary law is that of the data only as far as corrupted values are nearly so: with little noise, or
of one value at a time. Much noise forgets the start sooner, and blurs what the values have to do with each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.core import Batch, Chained, Completes, Completion, Event, Metrics, Objective, Optimizer, Trained
from genmodels.nn import values
from genmodels.nn.conditioning import ClassLinear
from genmodels.noise import Noise

Corruption = Literal["uniform", "salt-and-pepper"]


class GSN(Trained, Chained, Completes):
    modalities = frozenset({"image"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """hidden: units of each layer; noise: the probability that a value is drawn anew, from all levels or from the two ends; walkback: steps
        of the chain that training walks away from an example; steps: of the chain that draws a sample."""

        hidden: tuple[int, ...] = (256, 256)
        corruption: Corruption = "uniform"
        noise: float = 0.3
        walkback: int = 3
        steps: int = 20

        def __post_init__(self) -> None:
            object.__setattr__(self, "hidden", tuple(self.hidden))
            if self.corruption not in get_args(Corruption):
                raise ValueError(f"corruption {self.corruption!r}; wanted {' or '.join(get_args(Corruption))}")
            if min(self.hidden, default=0) < 1 or min(self.walkback, self.steps) < 1 or not 0 < self.noise <= 1:
                raise ValueError(f"{self}; wanted a hidden layer or more, sizes and steps of at least 1 and noise above 0 up to 1")

    config: Config

    def __init__(self, event: Event, config: Config) -> None:
        super().__init__(event, config)
        if event.levels == 0:
            raise ValueError(f"GSN models levels; got {event}")
        read, tell = values.input_features(event.levels), values.output_parameters(event.levels)
        sizes = [event.dims * read, *config.hidden]
        self.layers = nn.ModuleList(ClassLinear(a, b, event.classes) for a, b in pairwise(sizes))
        self.leave = nn.Linear(config.hidden[-1], event.dims * tell)
        # What a value's own spoilt level says of it would otherwise have to find its way through the narrow layers.
        self.own = nn.Parameter(torch.zeros(event.dims, read, tell))

    @property
    def chain(self) -> str:
        levels = "all levels" if self.config.corruption == "uniform" else "the two ends"
        spoiling = f"each value drawn anew from {levels} with probability {self.config.noise:g}"
        return f"spoiling ({spoiling}) and restoring, {self.config.steps:,} steps from independent even levels"

    def restored(self, x: Tensor, y: Tensor | None) -> Tensor:
        """x (B, *shape) spoilt levels, y (B,) labels or None -> (B, D, P): what P(x' | x, y) says of each value (genmodels.nn.values)."""
        read = values.features(x.flatten(1), self.event.levels, self.leave.weight.dtype)
        h = read.flatten(1)
        for layer in self.layers:
            h = F.relu(layer(h, y))
        own = torch.einsum("bdf,dfp->bdp", read, self.own)
        return self.leave(h).unflatten(1, (self.event.dims, -1)) + own

    def spoilt(self, x: Tensor, u: Tensor) -> Tensor:
        """x (B, *shape) levels, u (B, D) in [0, 1) -> x~ ~ C(x~ | x): where u is below the noise, the share of it that u is chooses the level."""
        share, levels = u / self.config.noise, self.event.levels
        choices = levels if self.config.corruption == "uniform" else 2
        new = (share * choices).long().clamp(max=choices - 1) * ((levels - 1) // (choices - 1))
        return torch.where(share < 1, new.to(x.dtype), x.flatten(1)).reshape(x.shape)

    def step(self, x: Tensor, y: Tensor | None, noise: Noise, tag: str = "chain") -> Tensor:
        """One step of the chain: x (B, *shape) levels -> as many."""
        spoilt = self.spoilt(x, noise.uniform(f"{tag}.spoil", (self.event.dims,)))
        u = noise.uniform(f"{tag}.restore", (self.event.dims, values.uniforms(self.event.levels)))
        return values.sample(self.restored(spoilt, y), u, self.event.levels).reshape(x.shape)

    def objectives(self) -> list[Objective]:
        return [Objective(name="restoration", loss=self.loss, parameters=list(self.parameters()), optimizer=Optimizer(lr=2e-3))]

    def loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """-log P(x | x~) in nats a value, the mean over the walk's spoilt pictures: each goes on from what was restored of the one before, and all
        are to be restored to the example itself, so that the chain is led back from where it strays (Bengio, Yao and others, 2013)."""
        x, each = batch.x, []
        for walked in range(self.config.walkback):
            spoilt = self.spoilt(x, noise.uniform(f"walk.{walked}.spoil", (self.event.dims,)))
            raw = self.restored(spoilt, batch.y)
            each.append(-values.log_prob(raw, batch.x.flatten(1), self.event.levels).mean())
            if walked + 1 < self.config.walkback:
                u = noise.uniform(f"walk.{walked}.restore", (self.event.dims, values.uniforms(self.event.levels)))
                x = values.sample(raw.detach(), u, self.event.levels).reshape(x.shape)
        return torch.stack(each).mean(), {"first": each[0].detach(), "last": each[-1].detach()}

    def draw(self, noise: Noise, *, y: Tensor | None, c: Tensor | None, temperature: Tensor) -> Tensor:
        x, steps = self._walk(noise)
        for now in steps:
            x = self.step(x, y, now)
        return x

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        seed: int,
        y: Tensor | None = None,
        c: Tensor | None = None,
        temperature: float = 1.0,
        first: int = 0,
    ) -> Completion:
        """As Completes.complete, approximate: the chain of `draw` with the known values put back after every step (Bengio, Laufer and others, 2014).

        A label that is not given is drawn by its frequency in training, whatever is known.
        """
        n, known = len(x), self.mask(known, len(x))
        x = self.examples(torch.where(known, x.to(self.device), 0))
        noise = Noise([seed] * n, position=range(first, first + n)).to(self.device)
        y, _, _ = self._asked(noise, y, c, torch.full((n,), float(temperature)))
        filled = x.clone()
        for rows, count in self.drawn_together(n):
            filled[rows[:count]] = self._clamped(noise.pick(rows), x[rows], known[rows], None if y is None else y[rows])[:count]
        return Completion(
            x=filled, method=f"a chain with the known values put back after each of its {self.config.steps} steps", exact=False
        )

    def _clamped(self, noise: Noise, x: Tensor, known: Tensor, y: Tensor | None) -> Tensor:
        start, steps = self._walk(noise)
        now = torch.where(known, x, start)
        for each in steps:
            now = torch.where(known, x, self.step(now, y, each))
        return now

    def _walk(self, noise: Noise) -> tuple[Tensor, Iterator[Noise]]:
        """Where a row's chain starts, (B, *shape) levels each as likely as any other, and the numbers of each of its steps."""
        levels = self.event.levels
        start = (noise.uniform("chain.start", self.event.shape) * levels).to(torch.uint8)
        return start, (Noise(noise.seeds, position=noise.position, step=noise.step + now) for now in range(self.config.steps))
