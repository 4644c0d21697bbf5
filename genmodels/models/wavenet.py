"""WaveNet: a sound as a product of K-way softmaxes, one a sample, each seeing the samples before it through a stack of dilated convolutions.

WaveNet: A Generative Model for Raw Audio (van den Oord, Dieleman, Zen, Simonyan, Vinyals, Graves, Kalchbrenner, Senior, Kavukcuoglu, 2016),
arXiv:1609.03499. Stepwise sampling with a ring of past activations a layer: Fast Wavenet Generation Algorithm (Le Paine et al., 2016),
arXiv:1611.09482.

We differ from the paper in three ways. The first causal convolution has width 1 (an embedding of the previous sample's level), so that the
receptive field is 1 + (k - 1) * sum of dilations and no sample more. That embedding starts out smooth in the level, so that neighbouring levels
need not be learnt to be neighbours: 1.4 bits a sample fewer after 75 steps on plucked strings. The last layer has no residual output, since
nothing would read it.

Local conditioning (sec. 2.5) is on frames: a small convolution over them, added in every layer's gate, each frame repeated over the steps that it
spans. The paper found that a little worse than learnt upsampling; it lets a layer's product be made once a frame.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.core import Event, Objective, Optimizer, Trained
from genmodels.core.forced import TeacherForced
from genmodels.models import wavenet_packed
from genmodels.models.wavenet_packed import Weights, column
from genmodels.nn import mel
from genmodels.nn.conditioning import ClassBias
from genmodels.nn.gates import drop, gate
from genmodels.nn.heads import nats
from genmodels.nn.scaling import scaled
from genmodels.noise import Noise
from genmodels.sampling.graphs import Periodic
from genmodels.sampling.native import Compiled
from genmodels.sampling.packing import Packer, Plan, lanes
from genmodels.sampling.triton_wavenet import Dilated, Stack

Condition = Literal["none", "given", "log-mel"]


class DilatedLayer(nn.Module):
    """x (B, residual, T) -> (x (B, residual, T), skip (B, skip, T)). Sees x_t, x_{t-d}, ..., x_{t-(k-1)d}."""

    def __init__(self, config: "WaveNet.Config", classes: int, dilation: int, *, last: bool) -> None:
        super().__init__()
        self.dilation, self.memory = dilation, (config.kernel - 1) * dilation
        self.taps = nn.Conv1d(config.residual, 2 * config.residual, config.kernel, dilation=dilation)
        self.label = ClassBias(classes, 2 * config.residual)
        self.skip = nn.Conv1d(config.residual, config.skip, 1)
        self.residual = None if last else nn.Conv1d(config.residual, config.residual, 1)
        self.local = None if config.condition == "none" else nn.Conv1d(config.residual, 2 * config.residual, 1, bias=False)

    def forward(self, x: Tensor, y: Tensor | None, heard: Tensor | None = None, frame: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """heard (B, residual, frames): what the condition says; frame (T,) int64: which of them a step lies in."""
        taps = self.label(self.taps(F.pad(x, (self.memory, 0))), y)  # eq. 3
        if self.local is not None and heard is not None:
            taps = taps + self.local(heard)[..., frame]  # sec. 2.5
        out = gate(taps)  # eq. 2
        return x if self.residual is None else x + self.residual(out), self.skip(out)


@dataclass
class Tape:
    """What later samples will need of a sound half drawn. Features come first and rows last: a row is a lane of every product."""

    weights: Weights
    x: Tensor
    """(residual, B): the embedded sample before the next one, zeros before the first."""
    rings: list[Tensor]
    """A layer's (memory, residual, B): its input of the last `memory` steps, that of step t in slot t % memory."""
    step: int = 0


class WaveNet(Trained, Compiled, Dilated, TeacherForced, Periodic):
    modalities = frozenset({"audio"})
    compiled = "wavenet"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """stacks of layers with dilations 1, 2, ..., 2^(layers - 1); residual and skip: features. The paper's size is near 3 x 10 of 64 and 128.

        condition: none; given, a feature sequence (1, features, frames) of any rate; or log-mel, made of the sound: `mels` bands, a frame every
        `hop` steps.
        """

        stacks: int = 2
        layers: int = 8
        kernel: int = 2
        residual: int = 32
        skip: int = 64
        dropout: float = 0.0
        condition: Condition = "none"
        mels: int = 20
        hop: int = 80

        def __post_init__(self) -> None:
            if min(self.stacks, self.layers, self.residual, self.skip) < 1 or self.kernel < 2 or not 0 <= self.dropout < 1:
                raise ValueError(f"{self}; wanted sizes of at least 1, a kernel of at least 2 and a dropout below 1")
            if self.condition not in get_args(Condition) or min(self.mels, self.hop) < 1:
                known = ", ".join(get_args(Condition))
                raise ValueError(
                    f"condition {self.condition!r}, mels {self.mels}, hop {self.hop}; wanted one of {known}, and sizes of at least 1"
                )

        @property
        def dilations(self) -> list[int]:
            return [2**i for _ in range(self.stacks) for i in range(self.layers)]

    config: Config

    def __init__(self, event: Event, config: Config) -> None:
        super().__init__(conditioned(event, config), config)
        if event.levels == 0:
            raise ValueError(f"WaveNet models levels; got {event}")
        self.levels = nn.Embedding(event.levels, config.residual)
        with torch.no_grad():
            self.levels.weight.copy_(_waves(event.levels, config.residual))
        last = len(config.dilations) - 1
        self.layers = nn.ModuleList(DilatedLayer(config, event.classes, d, last=i == last) for i, d in enumerate(config.dilations))
        self.hidden = nn.Conv1d(config.skip, config.skip, 1)
        self.out = nn.Conv1d(config.skip, event.levels, 1)
        local = self.event.condition
        self.frames = None if local is None else nn.Conv1d(local.shape[1], config.residual, 3, padding=1)

    @property
    def receptive_field(self) -> int:
        """How many past samples the next one depends on."""
        return 1 + (self.config.kernel - 1) * sum(self.config.dilations)

    @property
    def period(self) -> int:
        """After so many steps every ring has come round; frames of a condition are no part of that."""
        return (self.config.kernel - 1) * max(self.config.dilations) if self.event.condition is None else self.steps

    def embed(self, x: Tensor) -> Tensor:
        """x (B, T) levels -> (B, residual, T)."""
        return self.levels(x.long()).transpose(1, 2)

    def derive(self, x: Tensor) -> Tensor:
        """x (B, T) levels -> (B, 1, mels, frames) float32 log-mel features; of padding too, where x has any."""
        if self.config.condition != "log-mel" or self.event.sample_rate is None:
            return super().derive(x)
        wave = mel.amplitude(x, self.event.levels, self.event.companding)
        return mel.log_mel(wave, self.event.sample_rate, self.config.hop, self.config.mels)[:, None]

    def hear(self, c: Tensor | None) -> Tensor | None:
        """c (B, 1, features, frames) levels or real values -> (B, residual, frames)."""
        if self.frames is None or self.event.condition is None or c is None:
            return None
        levels, dtype = self.event.condition.levels, self.frames.weight.dtype
        return F.relu(self.frames(scaled(c[:, 0], levels, dtype) if levels else c[:, 0].to(dtype)))

    def frame(self, step: int | Tensor) -> int | Tensor:
        """The frame that a step lies in."""
        if self.event.condition is None:
            return step * 0
        spans = self.config.condition == "log-mel"
        return step // self.config.hop if spans else step * self.event.condition.shape[2] // self.steps

    def logits(self, z: Tensor, y: Tensor | None, noise: Noise | None = None, c: Tensor | None = None) -> Tensor:
        """z (B, residual, T) embedded levels -> (B, T, K): the logits of each sample given those before it."""
        x = F.pad(z, (1, 0))[..., :-1]  # step t reads sample t - 1, step 0 reads nothing
        total, heard, frame = z.new_zeros(()), self.hear(c), self.frame(torch.arange(z.shape[2], device=z.device))
        for i, layer in enumerate(self.convolutions()):
            x, skip = layer(drop(x, self.config.dropout, noise, f"dropout.{i}"), y, heard, frame)
            total = total + skip
        return self.out(F.relu(self.hidden(F.relu(total)))).transpose(1, 2)

    def conditional_log_probs(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, noise: Noise | None = None) -> Tensor:
        return nats(self.all_logits(x, y=y, c=c, noise=noise), x)

    def all_logits(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, noise: Noise | None = None) -> Tensor:
        return self.logits(self.embed(x), y, noise, c)

    def objectives(self) -> list[Objective]:
        return [Objective(name="likelihood", loss=self.loss, parameters=list(self.parameters()), optimizer=Optimizer(lr=4e-3))]

    def start(self, order: Tensor, n: int, *, y: Tensor | None, c: Tensor | None) -> Tape:
        layers, zeros = self.convolutions(), self.out.weight.new_zeros
        return Tape(
            weights=wavenet_packed.weights(self, self._biases(n, y, c)),
            x=zeros(self.config.residual, n),
            rings=[zeros(layer.memory, self.config.residual, n) for layer in layers],
        )

    def predict(self, memory: Tape) -> Tensor:
        weights, x, outs = memory.weights, memory.x, []
        biases = weights.biases[self.frame(memory.step)]
        for i, (dilation, ring) in enumerate(zip(self.config.dilations, memory.rings, strict=True)):
            slots = [(memory.step - j * dilation) % len(ring) for j in range(self.config.kernel - 1, 0, -1)]
            seen = torch.cat([*(ring[slot] for slot in slots), x])
            ring[slots[0]] = x
            filtered, gated = torch.addmm(biases[i], weights.taps[i], seen).chunk(2)
            outs.append(torch.tanh(filtered) * torch.sigmoid(gated))
            x = x + _mix(weights.residuals[i], outs[-1]) if i < len(weights.residuals) else x
        total = _mix(weights.skip, torch.cat(outs))
        return _mix(weights.out, F.relu(_mix(weights.hidden, F.relu(total)))).T

    def take(self, memory: Tape, level: Tensor) -> None:
        memory.x = self.levels(level).T
        memory.step += 1

    def _biases(self, n: int, y: Tensor | None, c: Tensor | None) -> list[list[Tensor]]:
        """A frame's list of the layers' (2 residual, n)."""
        heard, each = self.hear(c), []
        for layer in self.convolutions():
            bias = layer.label(column(layer.taps).T.expand(n, -1), y)[None]
            if layer.local is not None and heard is not None:
                bias = bias + layer.local(heard).permute(2, 0, 1)
            each.append(bias.transpose(1, 2).contiguous().unbind())
        return [list(frame) for frame in zip(*each, strict=True)]

    def packed(self, packer: Packer) -> Plan:
        return wavenet_packed.packed(self, packer)

    def told(self, n: int, *, y: Tensor | None, c: Tensor | None) -> Tensor:
        biases = self.gates(1 if y is None and c is None else n, y=y, c=c)
        return lanes(biases, 2, [self.config.residual] * 2).movedim(3, 0).flatten(1)

    def stack(self) -> Stack:
        return wavenet_packed.stack(self)

    def gates(self, n: int, *, y: Tensor | None, c: Tensor | None) -> Tensor:
        return torch.stack([torch.stack(frame) for frame in self._biases(n, y, c)])

    def convolutions(self) -> list[DilatedLayer]:
        return list(self.layers)  # type: ignore[arg-type]


def conditioned(event: Event, config: WaveNet.Config) -> Event:
    """The event with the condition that such a model has. Raises ValueError where the event has none, or another."""
    given = event.condition
    if config.condition == "log-mel":
        made = Event(modality="image", shape=(1, config.mels, mel.frames(event.dims, config.hop)), levels=0)
        if given not in (None, made):
            raise ValueError(f"an event with a condition, {given}; this model makes its own, {made}")
        return replace(event, condition=made)
    if config.condition == "none" and given is not None:
        raise ValueError(f"an event with a condition, {given}; this model takes none unless its setting `condition` is given")
    if config.condition == "given" and (given is None or given.modality != "image" or given.shape[0] != 1 or given.shape[2] > event.dims):
        raise ValueError(f"condition {given} given for {event}; wanted an image of 1 x features x frames, at most a frame a step")
    return event


def _waves(levels: int, features: int) -> Tensor:
    """(levels, features) of unit variance: sines of the level with 0.15 to 4 periods over the whole range and random phases."""
    cycles, phase = torch.linspace(0.15, 4, features), torch.rand(features)
    return 2**0.5 * torch.sin(2 * math.pi * (torch.linspace(0, 1, levels)[:, None] * cycles + phase))


def _mix(weight: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    """A convolution of width 1 at one step: x (F, B) -> (F', B)."""
    return torch.addmm(weight[1], weight[0], x)
