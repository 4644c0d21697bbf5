"""Multi-scale PixelCNN: a small picture first, then the pixels between its pixels, and between those again.

Pixel Recurrent Neural Networks (van den Oord, Kalchbrenner, Kavukcuoglu, 2016), arXiv:1601.06759, sec. 3.6; the doublings as in Parallel Multiscale
Autoregressive Density Estimation (Reed, van den Oord, Kalchbrenner, Colmenarejo, Wang, Belov, de Freitas, 2017), arXiv:1703.03664.

The small picture is every 2^s-th pixel of every 2^s-th row, not an average: its pixels are pixels of the whole, which therefore has a density, the
product of the parts'. A doubling draws the three unknown pixels of each 2x2 block as one place of 3C channels, under a gated PixelCNN conditioned on
the known picture. There we differ from both papers. The first draws the known pixels once more, which wastes mass on pictures that contradict their
own small one; the second takes the pixels of a group to be independent, which is faster and less likely. Here every value is conditioned on all
before it. A doubling makes even sides only, so there are as many as both sides allow, at most `scales`; with none this is the gated PixelCNN itself.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from genmodels.core import Event, Objective, Optimizer, Trained
from genmodels.models.pixelcnn import GatedPixelCNN
from genmodels.noise import Noise, derive
from genmodels.sampling.stages import Staged


@dataclass
class Growing:
    """A picture half drawn: the parts that are done, joined, and the one that is being drawn."""

    y: Tensor | None
    """(B,) int64."""
    known: Tensor | None
    """(B, C, h, w) levels: what all finished parts come to."""
    part: int
    memory: Any
    """The present part's own."""
    drawn: Tensor
    """(B, values of the part) levels in its order."""
    step: int = 0
    """Of the present part."""


class Multiscale(Trained, Staged):
    modalities = frozenset({"image"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """scales: doublings at most; hidden, layers, kernel, head, dropout: of every part's GatedPixelCNN."""

        scales: int = 2
        hidden: int = 32
        layers: int = 5
        kernel: int = 5
        head: int = 64
        dropout: float = 0.1

        def __post_init__(self) -> None:
            if self.scales < 0:
                raise ValueError(f"scales {self.scales}; wanted 0 or more")
            assert self.part  # which checks the others

        @property
        def part(self) -> GatedPixelCNN.Config:
            """Of the smallest picture; raises ValueError as that does."""
            return GatedPixelCNN.Config(hidden=self.hidden, layers=self.layers, kernel=self.kernel, head=self.head, dropout=self.dropout)

    config: Config

    def __init__(self, event: Event, config: Config) -> None:
        super().__init__(event, config)
        if event.levels == 0 or event.condition is not None:
            raise ValueError(f"Multiscale models levels, without a condition; got {event}" + (" with one" if event.condition else ""))
        channels, height, width = event.shape
        self.doublings = next(s for s in range(config.scales, -1, -1) if height % 2**s == width % 2**s == 0)
        small = replace(event, shape=(channels, height >> self.doublings, width >> self.doublings))
        self.parts = nn.ModuleList([GatedPixelCNN(small, config.part)])
        for _ in range(self.doublings):
            known = Event(modality="image", shape=small.shape, levels=event.levels)
            between = replace(small, shape=(3 * channels, *small.shape[1:]), condition=known)
            self.parts.append(GatedPixelCNN(between, replace(config.part, condition="given")))
            small = replace(small, shape=(channels, 2 * small.shape[1], 2 * small.shape[2]))

    @property
    def order(self) -> Tensor:
        """The places of the smallest picture in raster order, then those that the first doubling adds, block by block, and so on."""
        places = torch.arange(self.event.dims, device=self.device).reshape(1, *self.event.shape)
        return torch.cat([_sequence(part)[0] for part, _ in self._split(places)])

    def conditional_log_probs(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, noise: Noise | None = None) -> Tensor:
        nats = [
            model.conditional_log_probs(part, y=y, c=known, noise=None if noise is None else _own(noise, i))
            for i, (model, (part, known)) in enumerate(zip(self._parts(), self._split(x), strict=True))
        ]
        whole = nats[0]
        for between in nats[1:]:
            whole = join(whole, between)
        return whole

    def objectives(self) -> list[Objective]:
        optimizer = Optimizer(lr=2e-3, betas=(0.9, 0.99))
        return [Objective(name="likelihood", loss=self.loss, parameters=list(self.parameters()), optimizer=optimizer)]

    def start(self, order: Tensor, n: int, *, y: Tensor | None, c: Tensor | None) -> Growing:
        growing = Growing(y=y, known=None, part=0, memory=None, drawn=order.new_zeros(n, 0, dtype=torch.uint8))
        self._begin(growing, n)
        return growing

    def predict(self, memory: Growing) -> Tensor:
        return self._parts()[memory.part].predict(memory.memory)

    def take(self, memory: Growing, level: Tensor) -> None:
        model = self._parts()[memory.part]
        model.take(memory.memory, level)
        memory.drawn[:, memory.step] = level.to(torch.uint8)
        memory.step += 1
        if memory.step == model.event.dims and memory.part < self.doublings:
            channels, height, width = model.event.shape
            drawn = memory.drawn.reshape(-1, height, width, channels).movedim(-1, 1)
            memory.known = drawn if memory.known is None else join(memory.known, drawn)
            memory.part += 1
            self._begin(memory, len(level))

    def stages(self) -> list[GatedPixelCNN]:
        return self._parts()

    def stage_condition(self, stage: int, x: Tensor) -> Tensor | None:
        apart = 2 ** (self.doublings - stage + 1)
        return x[..., ::apart, ::apart] if stage else None

    def _begin(self, growing: Growing, n: int) -> None:
        """The present part, of which nothing is drawn."""
        model = self._parts()[growing.part]
        growing.memory = model.start(model.order, n, y=growing.y, c=growing.known)
        growing.drawn, growing.step = growing.drawn.new_zeros(n, model.event.dims), 0

    def _split(self, x: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """x (B, C, H, W) -> each part's values (B, channels, h, w), with the known picture (B, C, h, w) that they are drawn into."""
        parts: list[tuple[Tensor, Tensor | None]] = []
        for _ in range(self.doublings):
            parts.append((between(x), x[..., ::2, ::2]))
            x = x[..., ::2, ::2]
        return [(x, None), *reversed(parts)]

    def _parts(self) -> list[GatedPixelCNN]:
        return list(self.parts)  # type: ignore[arg-type]


def between(x: Tensor) -> Tensor:
    """x (B, C, 2h, 2w) -> (B, 3C, h, w): of each 2x2 block the pixel to the right of the known one, the one below it, the one across."""
    return torch.cat([x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]], dim=1)


def join(known: Tensor, others: Tensor) -> Tensor:
    """known (B, C, h, w), others (B, 3C, h, w) as `between` gives them -> (B, C, 2h, 2w)."""
    right, below, across = others.chunk(3, dim=1)
    rows = torch.stack([torch.stack([known, right], dim=-1), torch.stack([below, across], dim=-1)], dim=-3)
    return rows.flatten(-2).flatten(2, 3)


def _sequence(part: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h w C): in raster order, the channels of a place together."""
    return part.movedim(1, -1).flatten(1)


def _own(noise: Noise, part: int) -> Noise:
    """Each part's dropout is its own."""
    return Noise([derive("part", seed, part) for seed in noise.seeds], position=noise.position, step=noise.step)
