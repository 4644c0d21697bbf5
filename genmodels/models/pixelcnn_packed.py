"""PixelCNNs as their compiled samplers read them (sampling/kernels/raster.h, pixelcnn.h, gated.h)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.nn.local import LocalBias
from genmodels.nn.raster import Raster
from genmodels.nn.scaling import scaled
from genmodels.sampling.packing import Packer, Plan, lanes, size

if TYPE_CHECKING:
    from genmodels.models.pixelcnn import Block, GatedLayer, GatedPixelCNN, PixelCNN


def plain(model: "PixelCNN", packer: Packer) -> Plan:
    hidden, config, first = model.config.hidden, model.config, model.first
    wide, line = size(2 * hidden), model.event.shape[2]
    _picture(packer, model)
    packer.numbers(config.layers, wide, size(hidden), first.taps)
    _context(packer, model, wide + config.layers * size(hidden))
    blocks = _blocks(model)
    for block in blocks:
        packer.matrix(block.past.weight[..., :3].movedim(2, 1).flatten(1), ins=[hidden] * 3)
        _mix(packer, block.local)
    packer.matrix(first.weight.movedim(2, 1).flatten(1))
    for block in blocks:
        packer.matrix(block.down.weight.flatten(1), block.down.bias)
        packer.matrix(block.past.weight[..., 3:].movedim(2, 1).flatten(1), ins=[hidden] * 2)
        packer.matrix(block.up.weight.flatten(1), block.up.bias)
    packer.integers([offset for t in range(first.taps) for offset in (first.reach - t // first.kernel, t % first.kernel - first.reach)])
    packer.floats(_places(model.place, first.bias))
    return _headed(packer, model, wide, config.layers * size(hidden) * (line + line + 2))


def gated(model: "GatedPixelCNN", packer: Packer) -> Plan:
    hidden, layers, line = model.config.hidden, _layers(model), model.event.shape[2]
    padded, reach = size(hidden), layers[0].reach
    _picture(packer, model)
    packer.numbers(len(layers), padded, reach)
    _context(packer, model, len(layers) * 3 * 2 * padded)
    for i, layer in enumerate(layers):
        if i == 0:
            packer.matrix(*_with_skip(layer), outs=[hidden] * (2 if layer.skip is None else 3))
        for t in range(layer.reach + 1 if i else 0):
            columns = layer.vertical.weight[:, :, t].movedim(2, 1).flatten(1)
            packer.matrix(columns, layer.vertical.bias, outs=[hidden] * 2, ins=[hidden] * (2 * layer.reach + 1))
        packer.matrix(layer.hint.weight.flatten(1), outs=[hidden] * 2, ins=[hidden] * 2)
        _mix(packer, layer.h_local, 2)
        _mix(packer, layer.v_local, 2)
    for i, layer in enumerate(layers):
        taps = layer.horizontal.weight[:, :, 0].movedim(2, 1)
        packer.matrix(taps.flatten(1), outs=[hidden] * 2, ins=[hidden] * taps.shape[1] if i else ())
        packer.matrix(layer.out.weight.flatten(1), layer.out.bias)
    packer.floats(_places(model.place, layers[0].out.bias))
    kept = reach * (line + 2 * reach + 1) * padded
    return _headed(packer, model, padded, len(layers) * line * 2 * padded + (len(layers) - 1) * kept)


def plain_told(model: "PixelCNN", n: int, y: Tensor | None, c: Tensor | None) -> Tensor:
    none = model.place.new_zeros(_rows(n, y, c), 2 * model.config.hidden)
    blocks = [block.label(block.past.bias.expand(len(none), -1), y) for block in _blocks(model)]
    return _with_context(model, [model.label(none, y), *blocks], c)


def gated_told(model: "GatedPixelCNN", n: int, y: Tensor | None, c: Tensor | None) -> Tensor:
    none, hidden = model.place.new_zeros(_rows(n, y, c), 2 * model.config.hidden), model.config.hidden
    each = []
    for layer in _layers(model):
        assert layer.hint.bias is not None
        each += [layer.v_class(none, y), layer.h_class(none, y), layer.h_class(layer.hint.bias.expand(len(none), -1), y)]
    return _with_context(model, [half for bias in each for half in bias.split(hidden, dim=1)], c)


def _rows(n: int, y: Tensor | None, c: Tensor | None) -> int:
    """One row for all where nothing is told."""
    return 1 if y is None and c is None else n


def _picture(packer: Packer, model: Raster) -> None:
    packer.numbers(model.event.levels, *model.event.shape)
    packer.floats(scaled(torch.arange(model.event.levels), model.event.levels))


def _context(packer: Packer, model: Raster, biases: int) -> None:
    condition = model.event.condition
    height, width, features = (0, 0, 0) if condition is None else (*condition.shape[1:], size(model.config.hidden))
    packer.numbers(height, width, features, biases)


def _mix(packer: Packer, local: LocalBias, halves: int = 1) -> None:
    if local.mix is not None:
        weight = local.mix.weight.flatten(1)
        packer.matrix(weight, outs=[len(weight) // halves] * halves)


def _places(place: Tensor, bias: Tensor | None) -> Tensor:
    """place (features, H, W), bias (features,) -> (H, W, padded)."""
    assert bias is not None
    return lanes((place + bias[:, None, None]).movedim(0, -1), 2)


def _with_skip(layer: "GatedLayer") -> tuple[Tensor, Tensor]:
    """The first layer's vertical kernel over (columns, lines, channels), and its skip as one that sees the last line's middle column alone."""
    weight, bias = layer.vertical.weight.permute(0, 3, 2, 1), layer.vertical.bias
    assert bias is not None
    if layer.skip is None:
        return weight.flatten(1), bias
    assert isinstance(layer.skip, nn.Conv2d) and layer.skip.bias is not None
    reach = layer.reach
    skip = F.pad(layer.skip.weight.movedim(1, -1), (0, 0, reach, 0, reach, reach))
    return torch.cat([weight, skip]).flatten(1), torch.cat([bias, layer.skip.bias])


def _headed(packer: Packer, model: Raster, features: int, state: int) -> Plan:
    """Adds the heads, which every raster's plan ends with. features: padded; state: floats that the stack keeps."""
    narrow = len(model.place)
    packer.numbers(size(model.config.head))
    for c, head in enumerate(model.heads):
        first, _, last = head  # type: ignore[misc]
        packer.matrix(first.weight.flatten(1), first.bias, ins=[narrow, c] if c else ())
        packer.matrix(last.weight.flatten(1), last.bias)
    return packer.plan(model.compiled, state=features + size(model.event.shape[0]) + state)  # type: ignore[attr-defined]


def _with_context(model: Raster, biases: Sequence[Tensor], c: Tensor | None) -> Tensor:
    """biases (rows, features) each -> (rows, floats): they, padded, and the context of every place."""
    told = [lanes(bias, 1) for bias in biases]
    if model.context is not None and c is not None:
        told.append(lanes(model.context(c).movedim(1, -1), 3).flatten(1))
    return torch.cat(told, dim=1)


def _blocks(model: "PixelCNN") -> list["Block"]:
    return list(model.blocks)  # type: ignore[arg-type]


def _layers(model: "GatedPixelCNN") -> list["GatedLayer"]:
    return list(model.layers)  # type: ignore[arg-type]
