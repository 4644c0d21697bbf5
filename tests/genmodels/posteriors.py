"""Small data with posteriors that are known, and posteriors learnt from them."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from genmodels.core import Batch, Event
from genmodels.iterate import Iteration
from genmodels.models.posterior import Posterior
from genmodels.noise import Noise
from genmodels.train import TrainConfig
from genmodels.zoo import build


def given(dims: int, levels: int = 0) -> Event:
    return Event(modality="table", shape=(1,), levels=levels, condition=Event(modality="table", shape=(dims,), levels=0))


POINTS = Event(modality="table", shape=(2,), levels=0)
PICTURE = Event(modality="image", shape=(1, 2, 3), levels=2)


def regression(rows: int = 30, dims: int = 2) -> list[Batch]:
    """Features of odd units, a linear target in odd units."""
    noise = Noise(1, position=range(rows))
    z = noise.normal("c", (dims,))
    x = 40 + 8 * (z @ torch.linspace(-1, 2, dims) + 0.6 * noise.normal("e"))
    return cut(Batch(x=x[:, None], c=5 + 3 * z, position=torch.arange(rows)))


def classification(rows: int = 25, levels: int = 2) -> list[Batch]:
    noise = Noise(2, position=range(rows))
    c = noise.normal("c", (1,))
    x = (levels * torch.sigmoid(1.5 * c[:, 0] + noise.normal("e"))).long().clamp(max=levels - 1)
    return cut(Batch(x=x.to(torch.uint8)[:, None], c=100 + 7 * c, position=torch.arange(rows)))


def clouds(rows: int = 40) -> list[Batch]:
    noise = Noise(3, position=range(rows))
    centre = torch.where(torch.arange(rows)[:, None] % 3 == 0, torch.tensor([9.0, 1.0]), torch.tensor([4.0, 2.0]))
    return cut(Batch(x=centre + noise.normal("x", (2,)), position=torch.arange(rows)))


def cut(batch: Batch) -> list[Batch]:
    return [batch.rows(start, min(start + 16, len(batch))) for start in range(0, len(batch), 16)]


def learnt(event: Event, data: list[Batch], passes: int = 40, seed: int = 0, **config: Any) -> Posterior:
    model = build("posterior", event, **config)
    assert isinstance(model, Posterior)
    Iteration(model, TrainConfig(steps=passes, seed=seed)).run(lambda _: data, until=passes)
    return model.eval()  # type: ignore[return-value]


def joined(data: Iterable[Batch]) -> Batch:
    batches = list(data)
    c = [batch.c for batch in batches if batch.c is not None]
    return replace(
        batches[0], x=torch.cat([b.x for b in batches]), c=torch.cat(c) if c else None, position=torch.arange(sum(map(len, batches)))
    )


QUICK = {"chains": 16, "warmup": 150, "draws": 100, "round": 100}
"""Many short chains: they run side by side."""


def run(model: Posterior, data: list[Batch], passes: int = 40) -> Posterior:
    Iteration(model, TrainConfig(steps=passes)).run(lambda _: data, until=passes)
    return model.eval()  # type: ignore[return-value]
