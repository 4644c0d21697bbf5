"""What benchmarks/sampling.py draws: reference models with random weights, and the ways to draw from them."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, cast, get_args

import torch
from torch import nn

from genmodels.core import Autoregressive, Eager, Event
from genmodels.models.pixelcnn import GatedPixelCNN
from genmodels.models.wavenet import WaveNet
from genmodels.nn.masked import PastConv2d
from genmodels.noise import Noise
from genmodels.sampling.native import Native
from genmodels.sampling.packing import Precision
from genmodels.zoo import MODELS, build

SOUND = Event(modality="audio", shape=(16_000,), levels=256, sample_rate=16_000, companding="mu-law")
PICTURE = Event(modality="image", shape=(1, 28, 28), levels=256)
BITS = Event(modality="image", shape=(1, 28, 28), levels=2)


PRECISIONS = get_args(Precision)


class Workload(ABC):
    """One model; a unit is a step of a sound or a whole picture."""

    unit = "step"
    rate_name = "steps/s"
    narrow: ClassVar[list[str]] = ["bf16"]
    """The precisions below float32 that its sampler draws in."""

    def __init__(self, title: str, model: Autoregressive, *, units: int) -> None:
        self.title, self.model, self.units = title, model.eval(), units
        convolutions = [m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Linear | PastConv2d)]
        self.weights = sum(cast(torch.Tensor, m.weight).numel() for m in convolutions)

    @property
    def macs(self) -> int:
        """Multiply-adds of a unit of one example: every weight once a step."""
        return self.weights * self.model.steps // self.units

    @property
    def samplers(self) -> list[str]:
        return ["eager", "f32"] if not Native().padded(self.model) else ["eager"]

    def rate(self, seconds: float) -> str:
        return f"{1 / seconds:,.0f}"

    def seconds(self, way: str, batch: int, threads: int) -> float:
        """Of a unit of the whole batch."""
        with torch.no_grad():
            if way == "full forward":
                return self.forward()
            if way == "windowed":
                return self.windowed()
            return self.drawn(way, batch, threads)

    def drawn(self, way: str, batch: int, threads: int) -> float:
        sampler = Native(precision=cast(Precision, way), threads=threads) if way in PRECISIONS else Eager()
        self.model.sampler = sampler
        state = self.model.begin(Noise(0, position=range(batch)), y=None, c=None, temperature=torch.ones(batch))
        steps = self.count(way, batch)
        self.model.advance(state, self.ahead)
        return timed(lambda: self.model.advance(state, steps)) / steps * self.model.steps / self.units

    ahead = 1
    """Steps before the clock starts."""

    @abstractmethod
    def count(self, way: str, batch: int) -> int:
        """How many steps are timed."""

    @abstractmethod
    def forward(self) -> float:
        """A unit by the whole network at every step."""

    @abstractmethod
    def windowed(self) -> float:
        """A unit by the network over what the step can see."""


class Sound(Workload):
    model: WaveNet
    narrow: ClassVar[list[str]] = ["bf16", "int8"]

    def __init__(self, title: str, **config: int) -> None:
        super().__init__(title, cast(Autoregressive, build("wavenet", SOUND, **config)), units=SOUND.dims)

    def rate(self, seconds: float) -> str:
        return f"{1 / seconds:,.0f} ({1 / seconds / 16_000:.2g} x 16 kHz)"

    def count(self, way: str, batch: int) -> int:
        return 40 if way == "eager" else 1600 // batch + 100

    def forward(self) -> float:
        return sum(self._logits(length) for length in (4000, 8000, 12_000)) / 3

    def windowed(self) -> float:
        return self._logits(self.model.receptive_field)

    def _logits(self, length: int) -> float:
        x = torch.zeros(1, length, dtype=torch.uint8)
        return timed(lambda: self.model.logits(self.model.embed(x), None))


class Picture(Workload):
    unit = "picture"
    rate_name = "pictures/s"
    model: GatedPixelCNN

    def __init__(self, title: str, **config: Any) -> None:
        super().__init__(title, cast(Autoregressive, build("gated_pixelcnn", PICTURE, **config)), units=1)

    ahead = 28
    """The first row has nothing above it."""

    def rate(self, seconds: float) -> str:
        return f"{1 / seconds:,.3g}"

    def count(self, way: str, batch: int) -> int:
        return 28 if way == "eager" else 756 if batch < 64 else 112

    def forward(self) -> float:
        return self._logits(28)

    def windowed(self) -> float:
        return self._logits(12)

    def _logits(self, rows: int) -> float:
        """The window: the rows that a pixel can depend on, in full width."""
        if rows == 28:
            z = torch.zeros(1, *PICTURE.shape)
            return timed(lambda: self.model.logits(z, None)) * self.model.steps
        small = cast(
            GatedPixelCNN, build("gated_pixelcnn", Event(modality="image", shape=(1, rows, 28), levels=256), **vars(self.model.config))
        )
        z = torch.zeros(1, 1, rows, 28)
        return timed(lambda: small.logits(z, None)) * self.model.steps


class Default(Workload):
    """A family at its defaults."""

    def count(self, way: str, batch: int) -> int:
        return min(self.model.steps - 1, 28 * 4) if way == "eager" else self.model.steps - 1

    def forward(self) -> float:
        raise NotImplementedError

    windowed = forward


REFERENCES = {
    "wavenet-3x10": lambda: Sound("WaveNet 3x10 layers, 64 and 128 channels", stacks=3, layers=10, residual=64, skip=128),
    "wavenet-2x8": lambda: Sound("WaveNet 2x8 layers, 32 and 64 channels", stacks=2, layers=8, residual=32, skip=64),
    "gated-pixelcnn": lambda: Picture("Gated PixelCNN, 8 layers of 64 channels, 28x28x256", layers=8, hidden=64, kernel=3, head=64),
}


def families() -> Iterator[Workload]:
    for name, kind in MODELS.items():
        if not issubclass(kind, Autoregressive) or name in ("mixture", "bayesnet"):
            continue
        event = BITS if "image" in kind.modalities else Event(modality="audio", shape=(2000,), levels=256, sample_rate=8000)
        said = "28x28x2" if event is BITS else "2,000 steps"
        yield Default(f"{name} | {said}", cast(Autoregressive, build(name, event)), units=event.dims)


def timed(act: Any) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun
