"""What makes a PixelCNN's step fast, one rung after the other: from masks multiplied into full kernels at each forward to one compiled graph."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from genmodels.core import Batch, Event, Trained
from genmodels.descent import Precision
from genmodels.models.pixelcnn import GatedLayer, GatedPixelCNN, PixelCNN
from genmodels.noise import Noise
from genmodels.train import TrainConfig, Training
from genmodels.zoo import build

EVENT = Event(modality="image", shape=(1, 28, 28), levels=256)
SIZES = {"layers": 8, "hidden": 64, "head": 64, "dropout": 0.0}
WARM = 3


@dataclass(frozen=True, kw_only=True)
class Rung:
    name: str
    masked: bool = False
    channels_last: bool = False
    precision: Precision = "f32"
    compile: bool = False


LADDER = (
    Rung(name="masks at every forward, f32", masked=True),
    Rung(name="cropped kernels, f32"),
    Rung(name="+ bf16 autocast", precision="bf16"),
    Rung(name="+ channels last", precision="bf16", channels_last=True),
    Rung(name="+ torch.compile", precision="bf16", channels_last=True, compile=True),
)


class MaskedConv(nn.Module):
    """The usual way: a full kernel of which all that lies behind the centre in raster order is multiplied away each time."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], *, taps: int, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=(kernel[0] // 2, kernel[1] // 2), bias=bias)
        size = kernel[0] * kernel[1]
        self.register_buffer("mask", (torch.arange(size) < taps).float().reshape(1, 1, *kernel))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.conv.weight * self.mask, self.conv.bias, padding=self.conv.padding)  # type: ignore[arg-type]


class MaskedLayer(nn.Module):
    """A GatedLayer whose two convolutions are masked."""

    def __init__(self, layer: GatedLayer) -> None:
        super().__init__()
        kernel, inputs, outputs = 2 * layer.reach + 1, layer.vertical.in_channels, layer.vertical.out_channels
        layer.vertical = nn.Identity()  # type: ignore[assignment]
        layer.horizontal = nn.Identity()  # type: ignore[assignment]
        self.layer = layer
        self.vertical = MaskedConv(inputs, outputs, (kernel, kernel), taps=(layer.reach + 1) * kernel)
        self.horizontal = MaskedConv(inputs, outputs, (1, kernel), taps=layer.reach + (not layer.first), bias=False)

    def forward(self, v: Tensor, h: Tensor, y: Tensor | None, context: Tensor | None) -> tuple[Tensor, Tensor]:
        risen = self.vertical(v)
        hint = F.pad(self.layer.hint(risen), (0, 0, 1, 0))[:, :, :-1]
        return self.layer.next_v(v, risen, y), self.layer.next_h(h, self.horizontal(h) + hint, y)


def model_of(family: str, rung: Rung) -> Trained:
    model = build(family, EVENT, seed=0, **SIZES)
    assert isinstance(model, PixelCNN | GatedPixelCNN)
    if rung.masked:
        mask(model)
    if not rung.channels_last:
        (model.first if isinstance(model, PixelCNN) else model.layers[0]).register_forward_pre_hook(channels_first)
    return model


def mask(model: PixelCNN | GatedPixelCNN) -> None:
    if isinstance(model, GatedPixelCNN):
        model.layers = nn.ModuleList(MaskedLayer(layer) for layer in model._layers())
        return
    for owner, name in ((model, "first"), *((block, "past") for block in model._blocks())):
        past = getattr(owner, name)
        outputs, inputs, taps = past.weight.shape
        setattr(owner, name, MaskedConv(inputs, outputs, (past.kernel, past.kernel), taps=taps))


def channels_first(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(each.contiguous() if isinstance(each, Tensor) else each for each in inputs)


def batch_of(rows: int, step: int) -> Batch:
    position = torch.arange(step * rows, (step + 1) * rows)
    x = Noise(0, position=position).uniform("x", EVENT.shape) * EVENT.levels
    return Batch(x=x.to(torch.uint8), position=position, step=step)


def flops(family: str, rows: int) -> float:
    """Of one step's convolutions, forward and backward, kernels cropped."""
    model, batch = model_of(family, LADDER[1]), batch_of(rows, 0)
    with FlopCounterMode(display=False) as counter:
        model.objectives()[0].loss(batch, Noise(0, position=batch.position))[0].backward()
    return float(counter.get_total_flops())


def peak(precision: Precision, seconds: float = 1.0, side: int = 2048) -> float:
    """FLOP/s of a large product of matrices, the best of about a second."""
    a, b = (torch.ones(side, side, dtype=torch.bfloat16 if precision == "bf16" else torch.float32) for _ in range(2))
    took, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until or len(took) < 3:
        begun = time.perf_counter()
        torch.mm(a, b)
        took.append(time.perf_counter() - begun)
    return 2 * side**3 / min(took)


@dataclass(frozen=True, kw_only=True)
class Climbed:
    rung: Rung
    seconds: float
    """Median of a step."""
    start: float
    """Seconds of the first steps, compilation among them, beyond what they take later."""


def climb(family: str, *, rows: int, threads: int, rounds: int, rungs: tuple[Rung, ...]) -> list[Climbed]:
    """Every rung trains; a round is one step of each."""
    batches = [batch_of(rows, step) for step in range(WARM + rounds)]
    trainings, starts = [], []
    for rung in rungs:
        config = TrainConfig(steps=len(batches), batch_size=rows, precision=rung.precision, compile=rung.compile, threads=threads)
        begun = time.perf_counter()
        training = Training(model_of(family, rung), config)
        training.run(batches.__getitem__, until=WARM)
        trainings.append(training)
        starts.append(time.perf_counter() - begun)
    took: list[list[float]] = [[] for _ in rungs]
    for step in range(WARM, len(batches)):
        for training, times in zip(trainings, took, strict=True):
            begun = time.perf_counter()
            training.run(batches.__getitem__, until=step + 1)
            times.append(time.perf_counter() - begun)
    steps = [statistics.median(times) for times in took]
    return [
        Climbed(rung=rung, seconds=step, start=max(0.0, start - WARM * step))
        for rung, step, start in zip(rungs, steps, starts, strict=True)
    ]
