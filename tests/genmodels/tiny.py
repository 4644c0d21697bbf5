"""A family for tests alone: every part of a training that must survive a resume is in it, and a step takes well under a millisecond."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genmodels.core import Batch, Density, Event, Metrics, Objective, Optimizer, Trained
from genmodels.noise import Noise, categorical

EVENT = Event(modality="image", shape=(1, 2, 3), levels=4, classes=3)


class Tiny(Trained, Density):
    """Independent categorical dimensions given the label; a probe that sees the hidden features; a chain with a slot a position."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        width: int = 8
        sides: tuple[int, ...] = (2, 3)
        """Nothing but a tuple that has to come back from JSON as one."""
        breaks_at: int = -1
        """The step whose loss is not finite."""

    chain: Tensor

    def __init__(self, event: Event, config: Config) -> None:
        super().__init__(event, config)
        if config.width > 64:
            raise ValueError(f"width {config.width}; wanted at most 64")
        self.embedding = nn.Embedding(event.classes, config.width)
        self.logits = nn.Linear(config.width, event.dims * event.levels)
        self.probe = nn.Linear(config.width, 1)
        self.unused = nn.Parameter(torch.ones(5))
        self.register_buffer("chain", torch.zeros(7))

    def objectives(self) -> list[Objective]:
        likelihood = [*self.embedding.parameters(), *self.logits.parameters(), self.unused]
        probe = Optimizer(algorithm="sgd", lr=0.05, momentum=0.9, clip=0)
        return [
            Objective(name="likelihood", loss=self._nll, parameters=likelihood, optimizer=Optimizer(lr=0.01, weight_decay=0.01)),
            Objective(name="probe", loss=self._probe, parameters=list(self.probe.parameters()), every=3, optimizer=probe),
        ]

    def _nll(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        assert batch.y is not None
        hidden = self.embedding(batch.y)
        hidden = hidden * (noise.uniform("dropout", hidden.shape[1:]) < 0.8)
        logits = self.logits(hidden).reshape(len(batch), self.event.dims, -1)
        loss = F.cross_entropy(logits.transpose(1, 2), batch.x.flatten(1).long())
        with torch.no_grad():
            self.chain[batch.position % 7] += noise.normal("chain")
        if 0 <= self.config.breaks_at == batch.step:
            loss = loss * torch.inf
        return loss, {"bits": loss.detach() / torch.tensor(2.0).log()}

    def _probe(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        return (self.probe(self.embedding(batch.y)).squeeze(-1) - batch.x.float().mean((1, 2, 3))).square().mean(), {}

    def conditional_log_prob(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, length: Tensor | None) -> Tensor:
        logits = self.logits(self.embedding(y)).reshape(len(x), self.event.dims, -1)
        return -F.cross_entropy(logits.transpose(1, 2), x.flatten(1).long(), reduction="none").sum(1)

    def draw(self, noise: Noise, *, y: Tensor | None, c: Tensor | None, temperature: Tensor) -> Tensor:
        logits = self.logits(self.embedding(y)).reshape(len(noise), self.event.dims, -1)
        return categorical(logits, noise.uniform("x", (self.event.dims,))).reshape(len(noise), *self.event.shape).to(torch.uint8)


def batches(size: int, *, rank: int = 0, workers: int = 1):
    """An endless ordered stream: example p is a function of p alone; a rank takes its slice of each step."""

    def batch(step: int) -> Batch:
        position = torch.arange(step * size + rank * size // workers, step * size + (rank + 1) * size // workers)
        y = position * 7919 % 3
        x = (position[:, None] * torch.arange(1, 7) + y[:, None]) % 5 % 4
        return Batch(x=x.reshape(-1, 1, 2, 3).to(torch.uint8), y=y, position=position, step=step)

    return batch
