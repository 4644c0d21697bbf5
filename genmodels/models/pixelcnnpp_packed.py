"""PixelCNN++ as its compiled sampler reads it (sampling/kernels/pixelcnnpp.h, streams.h)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genmodels.nn.scaling import scaled
from genmodels.nn.streams import Block, CausalConv, Double, Halve, Stream
from genmodels.sampling.packing import Packer, Plan, lanes, size

if TYPE_CHECKING:
    from genmodels.models.pixelcnnpp import PixelCNNPlusPlus

KINDS = {Block: 0, Halve: 1, Double: 2}


@dataclass
class State:
    """What a row keeps, laid out piece by piece."""

    floats: int = 0

    def piece(self, floats: int) -> int:
        """-> where it begins."""
        self.floats += size(floats)
        return self.floats - size(floats)


@dataclass(frozen=True)
class Places:
    """Where a node's pieces lie: those of Node in streams.h."""

    first: int
    second: int = 0
    hint: int = 0


def plan(model: "PixelCNNPlusPlus", packer: Packer) -> Plan:
    config, (channels, height, width), state = model.config, model.event.shape, State()
    widths = [wide for _, wide in model.vertical.sizes]
    parameters = 1 + 2 * channels + channels * (channels - 1) // 2
    raw = state.piece(parameters * size(config.components))
    row = state.piece((2 * model.reach + width) * (channels + 1) + 16)
    hints = [state.piece(widths[node.level] * size(config.hidden)) if isinstance(node, Block) else 0 for node in model.vertical.nodes]
    vertical = _vertical_places(model.vertical, widths, hints, state)
    coarse = [state.piece(wide * size(config.hidden)) for wide in widths]
    kept = state.floats
    horizontal = _horizontal_places(model.horizontal, coarse, hints, state)

    packer.numbers(model.event.levels, channels, height, width)
    packer.floats(scaled(torch.arange(model.event.levels), model.event.levels))
    told = sum(size(2 * config.hidden) for node in model.vertical.nodes if isinstance(node, Block))
    packer.numbers(config.hidden, len(widths), model.reach, config.components, told, raw, row, kept, state.floats)
    packer.matrix(_window(model.above.weight), close=True)
    packer.matrix(_window(model.left.weight), model.left.bias, close=True)
    packer.matrix(*_by_kind(model, parameters), outs=[config.components] * parameters, close=True, exact=True)
    packer.floats(lanes((model.place + _bias(model.above)[:, None, None]).movedim(0, -1), 2))
    _vertical(packer, model, vertical)
    _horizontal(packer, model, horizontal)
    return packer.plan(model.compiled, state=state.floats)


def told(model: "PixelCNNPlusPlus", n: int, y: Tensor | None) -> Tensor:
    """Each block's biases of the second convolution, the vertical stream's and then the horizontal one's."""
    blocks = [node for stream in (model.vertical, model.horizontal) for node in stream.nodes if isinstance(node, Block)]
    rows = 1 if y is None else n
    return torch.cat([lanes(block.label(_bias(block.second.conv).expand(rows, -1), y), 1) for block in blocks], dim=1)


def _vertical_places(stream: Stream, widths: list[int], hints: list[int], state: State) -> list[Places]:
    def rows(level: int) -> int:
        """Two of a convolution's inputs."""
        return state.piece(2 * size((widths[level] + 2) * stream.hidden + 16))

    places = []
    for node, hint in zip(stream.nodes, hints, strict=True):
        if isinstance(node, Block):
            places.append(Places(rows(node.level), rows(node.level), hint))
        elif isinstance(node, Halve):
            places.append(Places(rows(node.level - 1)))
        elif isinstance(node, Double):
            places.append(Places(rows(node.level), state.piece(widths[node.level + 1] * size(stream.hidden))))
    return places


def _horizontal_places(stream: Stream, coarse: list[int], hints: list[int], state: State) -> list[Places]:
    past, places = 2 * stream.hidden, []
    for node, hint in zip(stream.nodes, hints, strict=True):
        if isinstance(node, Block):
            places.append(Places(state.piece(past), state.piece(past), hint))
        else:
            places.append(Places(state.piece(past), coarse[node.level + 1] if isinstance(node, Double) else 0))
    return places


def _vertical(packer: Packer, model: "PixelCNNPlusPlus", places: list[Places]) -> None:
    packer.numbers(len(places))
    for node, other, place in zip(model.vertical.nodes, model.horizontal.nodes, places, strict=True):
        _node(packer, node, place)
        if not isinstance(node, Block):
            _halves(packer, node.conv, _bias(node.conv.conv))  # type: ignore[union-attr, arg-type]
            continue
        bias = _bias(node.first.conv)
        if node.shortcut is not None:
            packer.matrix(node.shortcut.weight.flatten(1), bias + _bias(node.shortcut), close=True)
        _halves(packer, node.first, bias)
        _halves(packer, node.second)
        assert isinstance(other, Block) and other.hint is not None
        hint = _bias(other.hint) + _bias(other.first.conv)  # the first thing that its pixels add up
        packer.matrix(other.hint.weight.flatten(1), hint if other.shortcut is None else hint + _bias(other.shortcut), close=True)


def _horizontal(packer: Packer, model: "PixelCNNPlusPlus", places: list[Places]) -> None:
    packer.numbers(len(places))
    for node, place in zip(model.horizontal.nodes, places, strict=True):
        _node(packer, node, place)
        if isinstance(node, Block):
            first = _window(node.first.conv.weight)
            packer.matrix(first if node.shortcut is None else torch.cat([first, node.shortcut.weight.flatten(1)], dim=1), close=True)
            packer.matrix(_window(node.second.conv.weight), close=True)
        else:
            packer.matrix(_window(node.conv.conv.weight), _bias(node.conv.conv), close=True)  # type: ignore[union-attr, arg-type]


def _node(packer: Packer, node: torch.nn.Module, place: Places) -> None:
    assert isinstance(node, Block | Halve | Double)
    mirror = node.mirror if isinstance(node, Block) and node.mirror is not None else -1
    packer.numbers(KINDS[type(node)], node.level, mirror, place.first, place.second, place.hint)


def _halves(packer: Packer, conv: CausalConv, bias: Tensor | None = None) -> None:
    """The row before, and the present one."""
    for row in range(2):
        packer.matrix(_window(conv.conv.weight[:, :, row : row + 1]), None if row else bias, close=True)


def _window(weight: Tensor) -> Tensor:
    """weight (outputs, inputs, 1, columns) -> (outputs, columns x inputs)."""
    return weight[:, :, 0].movedim(2, 1).flatten(1)


def _by_kind(model: "PixelCNNPlusPlus", parameters: int) -> tuple[Tensor, Tensor]:
    """The last layer with each parameter's components side by side."""
    weight, bias = model.out.weight.flatten(1), _bias(model.out)
    parts = weight.reshape(-1, parameters, weight.shape[1]).transpose(0, 1)
    return parts.flatten(0, 1), bias.reshape(-1, parameters).T.flatten()


def _bias(layer: torch.nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias
