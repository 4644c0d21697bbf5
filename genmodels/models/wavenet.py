"""WaveNet: a sound as a product of K-way softmaxes, one a sample, each seeing the samples before it through a stack of dilated convolutions.

WaveNet: A Generative Model for Raw Audio (van den Oord, Dieleman, Zen, Simonyan, Vinyals, Graves, Kalchbrenner, Senior, Kavukcuoglu, 2016),
arXiv:1609.03499. Stepwise sampling with a ring of past activations a layer: Fast Wavenet Generation Algorithm (Le Paine et al., 2016),
arXiv:1611.09482.

We differ from the paper in three ways. The first causal convolution has width 1 (an embedding of the previous sample's level), so that the
receptive field is 1 + (k - 1) * sum of dilations and no sample more. That embedding starts out smooth in the level, so that neighbouring levels
need not be learnt to be neighbours: 1.4 bits a sample fewer after 75 steps on plucked strings. The last layer has no residual output, since
nothing would read it.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.core import Autoregressive, Event, Objective, Optimizer, Trained
from genmodels.nn.conditioning import ClassBias
from genmodels.nn.gates import drop, gate
from genmodels.nn.scaling import wide
from genmodels.noise import Noise


class DilatedLayer(nn.Module):
    """x (B, residual, T) -> (x (B, residual, T), skip (B, skip, T)). Sees x_t, x_{t-d}, ..., x_{t-(k-1)d}."""

    def __init__(self, config: "WaveNet.Config", classes: int, dilation: int, *, last: bool) -> None:
        super().__init__()
        self.dilation, self.memory = dilation, (config.kernel - 1) * dilation
        self.taps = nn.Conv1d(config.residual, 2 * config.residual, config.kernel, dilation=dilation)
        self.label = ClassBias(classes, 2 * config.residual)
        self.skip = nn.Conv1d(config.residual, config.skip, 1)
        self.residual = None if last else nn.Conv1d(config.residual, config.residual, 1)

    def forward(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        out = gate(self.label(self.taps(F.pad(x, (self.memory, 0))), y))  # eq. 2 and 3
        return x if self.residual is None else x + self.residual(out), self.skip(out)


@dataclass(frozen=True)
class Weights:
    """The convolutions as the products that one step takes; pairs are (matrix, bias column)."""

    taps: list[Tensor]
    """A layer's (2 residual, kernel * residual), the oldest tap first."""
    labels: list[Tensor]
    """A layer's (2 residual, B): what bias and class add to its taps."""
    residuals: list[tuple[Tensor, Tensor]]
    skip: tuple[Tensor, Tensor]
    """All layers' skips at once: the sum over layers is inside the product."""
    hidden: tuple[Tensor, Tensor]
    out: tuple[Tensor, Tensor]


@dataclass
class Tape:
    """What later samples will need of a sound half drawn. Features come first and rows last: a row is a lane of every product."""

    weights: Weights
    x: Tensor
    """(residual, B): the embedded sample before the next one, zeros before the first."""
    rings: list[Tensor]
    """A layer's (memory, residual, B): its input of the last `memory` steps, that of step t in slot t % memory."""
    step: int = 0


class WaveNet(Trained, Autoregressive):
    modalities = frozenset({"audio"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """stacks of layers with dilations 1, 2, ..., 2^(layers - 1); residual and skip: features. The paper's size is near 3 x 10 of 64 and 128."""

        stacks: int = 2
        layers: int = 8
        kernel: int = 2
        residual: int = 32
        skip: int = 64
        dropout: float = 0.0

        def __post_init__(self) -> None:
            if min(self.stacks, self.layers, self.residual, self.skip) < 1 or self.kernel < 2 or not 0 <= self.dropout < 1:
                raise ValueError(f"{self}; wanted sizes of at least 1, a kernel of at least 2 and a dropout below 1")

        @property
        def dilations(self) -> list[int]:
            return [2**i for _ in range(self.stacks) for i in range(self.layers)]

    config: Config

    def __init__(self, event: Event, config: Config) -> None:
        super().__init__(event, config)
        if event.levels == 0:
            raise ValueError(f"WaveNet models levels; got {event}")
        self.levels = nn.Embedding(event.levels, config.residual)
        with torch.no_grad():
            self.levels.weight.copy_(_waves(event.levels, config.residual))
        last = len(config.dilations) - 1
        self.layers = nn.ModuleList(DilatedLayer(config, event.classes, d, last=i == last) for i, d in enumerate(config.dilations))
        self.hidden = nn.Conv1d(config.skip, config.skip, 1)
        self.out = nn.Conv1d(config.skip, event.levels, 1)

    @property
    def receptive_field(self) -> int:
        """How many past samples the next one depends on."""
        return 1 + (self.config.kernel - 1) * sum(self.config.dilations)

    def embed(self, x: Tensor) -> Tensor:
        """x (B, T) levels -> (B, residual, T)."""
        return self.levels(x.long()).transpose(1, 2)

    def logits(self, z: Tensor, y: Tensor | None, noise: Noise | None = None) -> Tensor:
        """z (B, residual, T) embedded levels -> (B, T, K): the logits of each sample given those before it."""
        x = F.pad(z, (1, 0))[..., :-1]  # step t reads sample t - 1, step 0 reads nothing
        total = z.new_zeros(())
        for i, layer in enumerate(self._layers()):
            x, skip = layer(drop(x, self.config.dropout, noise, f"dropout.{i}"), y)
            total = total + skip
        return self.out(F.relu(self.hidden(F.relu(total)))).transpose(1, 2)

    def conditional_log_probs(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, noise: Noise | None = None) -> Tensor:
        logits = wide(self.logits(self.embed(x), y, noise))
        return -F.cross_entropy(logits.flatten(0, 1), x.flatten().long(), reduction="none").reshape(x.shape)

    def objectives(self) -> list[Objective]:
        return [Objective(name="likelihood", loss=self.loss, parameters=list(self.parameters()), optimizer=Optimizer(lr=4e-3))]

    def start(self, order: Tensor, n: int, *, y: Tensor | None, c: Tensor | None) -> Tape:
        layers, zeros = self._layers(), self.out.weight.new_zeros
        return Tape(
            weights=self._weights([layer.label(_column(layer.taps).T.expand(n, -1), y).T.contiguous() for layer in layers]),
            x=zeros(self.config.residual, n),
            rings=[zeros(layer.memory, self.config.residual, n) for layer in layers],
        )

    def predict(self, memory: Tape) -> Tensor:
        weights, x, outs = memory.weights, memory.x, []
        for i, (dilation, ring) in enumerate(zip(self.config.dilations, memory.rings, strict=True)):
            slots = [(memory.step - j * dilation) % len(ring) for j in range(self.config.kernel - 1, 0, -1)]
            seen = torch.cat([*(ring[slot] for slot in slots), x])
            ring[slots[0]] = x
            filtered, gated = torch.addmm(weights.labels[i], weights.taps[i], seen).chunk(2)
            outs.append(torch.tanh(filtered) * torch.sigmoid(gated))
            x = x + _mix(weights.residuals[i], outs[-1]) if i < len(weights.residuals) else x
        total = _mix(weights.skip, torch.cat(outs))
        return _mix(weights.out, F.relu(_mix(weights.hidden, F.relu(total)))).T

    def take(self, memory: Tape, level: Tensor) -> None:
        memory.x = self.levels(level).T
        memory.step += 1

    def _weights(self, labels: list[Tensor]) -> Weights:
        layers = self._layers()
        residuals = [layer.residual for layer in layers if layer.residual is not None]
        return Weights(
            taps=[layer.taps.weight.movedim(2, 1).flatten(1) for layer in layers],
            labels=labels,
            residuals=[_matrix(residual) for residual in residuals],
            skip=(
                torch.cat([layer.skip.weight[..., 0] for layer in layers], dim=1),
                torch.stack([_column(layer.skip) for layer in layers]).sum(0),
            ),
            hidden=_matrix(self.hidden),
            out=_matrix(self.out),
        )

    def _layers(self) -> list[DilatedLayer]:
        return list(self.layers)  # type: ignore[arg-type]


def _waves(levels: int, features: int) -> Tensor:
    """(levels, features) of unit variance: sines of the level with 0.15 to 4 periods over the whole range and random phases."""
    cycles, phase = torch.linspace(0.15, 4, features), torch.rand(features)
    return 2**0.5 * torch.sin(2 * math.pi * (torch.linspace(0, 1, levels)[:, None] * cycles + phase))


def _column(layer: nn.Conv1d) -> Tensor:
    assert layer.bias is not None
    return layer.bias[:, None]


def _matrix(layer: nn.Conv1d) -> tuple[Tensor, Tensor]:
    return layer.weight[..., 0].contiguous(), _column(layer)


def _mix(weight: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    """A convolution of width 1 at one step: x (F, B) -> (F', B)."""
    return torch.addmm(weight[1], weight[0], x)
