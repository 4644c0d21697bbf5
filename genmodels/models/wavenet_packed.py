"""A WaveNet's convolutions as the products that one step takes: of the eager sampler, the compiled one (sampling/kernels/wavenet.h) and the GPU's."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from genmodels.sampling.packing import Packer, Plan, lanes, size
from genmodels.sampling.triton_wavenet import Stack

if TYPE_CHECKING:
    from genmodels.models.wavenet import DilatedLayer, WaveNet


@dataclass(frozen=True)
class Weights:
    """The convolutions as the products that one step takes; pairs are (matrix, bias column)."""

    taps: list[Tensor]
    """A layer's (2 residual, kernel * residual), the oldest tap first."""
    biases: list[list[Tensor]]
    """A frame's, or those of all time where there is no condition: a layer's (2 residual, B), what bias, class and condition add to its taps."""
    residuals: list[tuple[Tensor, Tensor]]
    skip: tuple[Tensor, Tensor]
    """All layers' skips at once: the sum over layers is inside the product."""
    hidden: tuple[Tensor, Tensor]
    out: tuple[Tensor, Tensor]


def weights(model: "WaveNet", biases: list[list[Tensor]]) -> Weights:
    layers = model.convolutions()
    return Weights(
        taps=[_taps(layer) for layer in layers],
        biases=biases,
        residuals=[_matrix(layer.residual) for layer in layers if layer.residual is not None],
        skip=(
            torch.cat([layer.skip.weight[..., 0] for layer in layers], dim=1),
            torch.stack([column(layer.skip) for layer in layers]).sum(0),
        ),
        hidden=_matrix(model.hidden),
        out=_matrix(model.out),
    )


def packed(model: "WaveNet", packer: Packer) -> Plan:
    config, layers, local = model.config, model.convolutions(), model.event.condition
    residual, skip = size(config.residual), size(config.skip)
    frames, hop = (1 if local is None else local.shape[2]), config.hop if config.condition == "log-mel" else 0
    packer.numbers(model.event.levels, model.steps, residual, skip, len(layers), config.kernel, frames, hop)
    packer.integers(config.dilations)
    packer.floats(lanes(model.levels.weight, 1))
    for layer in layers:
        packer.matrix(_taps(layer), outs=[config.residual] * 2, ins=[config.residual] * config.kernel)
        for out in (layer.skip, *([] if layer.residual is None else [layer.residual])):
            packer.matrix(out.weight[..., 0], out.bias)
    packer.floats(lanes(_total(layers), 0))
    for head in (model.hidden, model.out):
        packer.matrix(head.weight[..., 0], head.bias)
    return packer.plan(model.compiled, state=sum(layer.memory for layer in layers) * residual)


def stack(model: "WaveNet") -> Stack:
    layers, width = model.convolutions(), model.config.residual
    residuals = [_matrix(layer.residual) for layer in layers if layer.residual is not None]
    residuals.append((model.out.weight.new_zeros(width, width), model.out.weight.new_zeros(width, 1)))
    return Stack(
        embedding=model.levels.weight,
        dilations=model.config.dilations,
        taps=torch.stack([layer.taps.weight for layer in layers]),
        residuals=(torch.stack([weight for weight, _ in residuals]), torch.cat([bias.T for _, bias in residuals])),
        skips=(torch.stack([layer.skip.weight[..., 0] for layer in layers]), torch.cat([column(layer.skip).T for layer in layers])),
        hidden=(model.hidden.weight[..., 0], column(model.hidden)[:, 0]),
        out=(model.out.weight[..., 0], column(model.out)[:, 0]),
    )


def _total(layers: list["DilatedLayer"]) -> Tensor:
    """(skip,): the sum of all layers' biases, exact enough that the order of the sum does not show."""
    return torch.stack([column(layer.skip)[:, 0] for layer in layers]).double().sum(0).float()


def _taps(layer: "DilatedLayer") -> Tensor:
    """(2 residual, kernel residual), the oldest tap first."""
    return layer.taps.weight.movedim(2, 1).flatten(1)


def column(layer: nn.Conv1d) -> Tensor:
    assert layer.bias is not None
    return layer.bias[:, None]


def _matrix(layer: nn.Conv1d) -> tuple[Tensor, Tensor]:
    return layer.weight[..., 0].contiguous(), column(layer)
