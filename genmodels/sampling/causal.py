"""Masked networks as the compiled sampler reads them: hidden units sorted by the last value that they see, weights cut into stretches of steps.

Sorted so, a unit is made once, and what a stretch reads of all before it is a block without a mask: masks are left only inside a stretch, and are
multiplied into its weights here (kernels/causal.h).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.sampling.packing import Packer, Plan, lanes, size

OUTPUTS = 64
"""Of a stretch, about: what one block of a matrix holds."""


@dataclass(frozen=True)
class Member:
    """The weights of one order and mask, steps in place of places. D steps, F numbers that a value is read as, P that it is predicted by."""

    direct: Tensor
    """(D, F, D, P): from the values to the outputs."""
    hidden: Sequence[Tensor] = ()
    """(D F, H), (H, H'), ...: from the values, then from each layer, to the next layer."""
    leave: Tensor | None = None
    """(H', D, P): from the last layer to the outputs."""
    degrees: Sequence[Tensor] = ()
    """A layer's (H,) int64: the last step that each unit sees."""


@dataclass(frozen=True)
class Stretches:
    """How a member's steps and units are cut."""

    steps: int
    span: int
    """Steps of a stretch."""
    degrees: Sequence[Tensor]
    widths: Sequence[int]
    """Units of a layer in a stretch, at most and padded."""

    @property
    def count(self) -> int:
        return -(-self.steps // self.span)

    def ready(self, layer: int) -> Tensor:
        """(D + 1,) int64: how many units wait for no value from a step on."""
        return torch.searchsorted(self.degrees[layer].sort().values, torch.arange(self.steps + 1))

    def slots(self, layer: int) -> Tensor:
        """(count, width) int64: the units of each stretch, H where there is none."""
        by_degree, ready = self.degrees[layer].argsort(stable=True), self.ready(layer)
        out = torch.full((self.count, self.widths[layer]), len(by_degree))
        for i in range(self.count):
            units = by_degree[ready[i * self.span] : ready[min(self.steps, (i + 1) * self.span)]]
            out[i, : len(units)] = units
        return out


def span(outputs: int) -> int:
    """Steps of a stretch where a value is predicted by so many numbers."""
    return max(1, OUTPUTS // outputs)


def stretches(steps: int, outputs: int, degrees: Sequence[Sequence[Tensor]]) -> list[Stretches]:
    """degrees: each member's, by layer."""
    per, ends = span(outputs), torch.arange(0, steps + span(outputs), span(outputs)).clamp(max=steps)
    widths = [
        size(max(int(torch.searchsorted(each.sort().values, ends).diff().max()) for each in layer)) for layer in zip(*degrees, strict=True)
    ]
    return [Stretches(steps, per, each, widths) for each in degrees]


def by_member(degrees: Sequence[Tensor]) -> list[list[Tensor]]:
    """A layer's (O, M, H) degrees for O orders and M masks -> each member's, by layer."""
    return [[layer[o, mask] for layer in degrees] for o, mask in itertools.product(*map(range, degrees[0].shape[:2]))]


def ensemble(weights: Sequence[Tensor], leave: Tensor, orders: Tensor, degrees: Sequence[Tensor]) -> list[Member]:
    """weights: of the hidden layers, from (D, F, H) by place on; leave (D, P, H' + D F): from the last one and all values; orders (O, D) places;
    degrees: a layer's (O, M, H) -> a member for each order and mask."""
    dims, read, _ = weights[0].shape
    last, direct = leave.split([leave.shape[2] - dims * read, dims * read], dim=2)
    members = []
    for order, *layers in zip(orders, *degrees, strict=True):
        own = Member(
            direct=direct[order].unflatten(2, (dims, read))[:, :, order].permute(2, 3, 0, 1),
            hidden=[weights[0][order].flatten(0, 1), *weights[1:]],
            leave=last[order].permute(2, 0, 1),
        )
        members += [replace(own, degrees=each) for each in zip(*layers, strict=True)]
    return members


def pack(packer: Packer, kernel: str, members: Sequence[Member], orders: Tensor, *, levels: int) -> Plan:
    """members: each order's masks, one order after the other; orders (O, D) int64 places. Raises ValueError for a weight that is not finite."""
    steps, read, _, outputs = members[0].direct.shape
    cuts = stretches(steps, outputs, [member.degrees for member in members])
    masks, units = len(members) // len(orders), [size(len(each)) for each in members[0].degrees]
    packer.numbers(levels, outputs, steps, cuts[0].span, len(units), len(orders), masks)
    for layer, width in zip(units, cuts[0].widths, strict=True):
        packer.numbers(layer, width)
    packer.integers(orders.flatten().tolist())
    packer.integers([unit for cut in cuts for layer in range(len(units)) for unit in cut.ready(layer).tolist()])
    for member, cut in zip(members, cuts, strict=True):
        _pack_member(packer, member, cut)
    width = size(cuts[0].span * outputs) + sum(cuts[0].widths)
    return packer.plan(kernel, state=16 + size(steps * read) + masks * (16 + sum(units) + width))


def tell(members: Sequence[Sequence[Tensor]], cuts: Sequence[Stretches], outs: Sequence[Tensor]) -> Tensor:
    """members: each one's biases by layer, (n, H); outs: each one's (n, D, P) -> (n, floats), what its sums start from in each stretch."""
    parts = []
    for layers, cut, out in zip(members, cuts, outs, strict=True):
        behind = cut.count * cut.span - cut.steps
        each = [lanes(F.pad(out, (0, 0, 0, behind)).unflatten(1, (cut.count, cut.span)).flatten(2), 2)]
        each += [F.pad(bias, (0, 1))[:, cut.slots(layer)] for layer, bias in enumerate(layers)]
        parts.append(torch.cat(each, dim=2).flatten(1))
    return torch.cat(parts, dim=1)


def _pack_member(packer: Packer, member: Member, cut: Stretches) -> None:
    steps, read, _, outputs = member.direct.shape
    degrees = [F.pad(each, (0, 1)) for each in member.degrees]
    slots = [cut.slots(layer) for layer in range(len(degrees))]
    made = [(each.argsort(stable=True), cut.ready(layer)) for layer, each in enumerate(member.degrees)]
    # A row and a column of zeros for the units that a stretch has not.
    enter = [F.pad(each, (0, 1)) for each in member.hidden[:1]]
    between = [F.pad(each, (0, 1, 0, 1)) for each in member.hidden[1:]]
    leave = None if member.leave is None else F.pad(member.leave, (0, 0, 0, 0, 0, 1))
    for i in range(cut.count):
        start, end = i * cut.span, min(steps, (i + 1) * cut.span)
        time, own = torch.arange(start, end), [each[i] for each in slots]
        width = size(cut.span * outputs)
        later = _wide((time[:, None] < time).repeat_interleave(outputs, dim=1), width)
        into, seen = _wide(member.direct[:end, :, start:end].flatten(2), width), later
        if enter:
            into = torch.cat([into, enter[0].unflatten(0, (steps, read))[:end, :, own[0]]], dim=2)
            seen = torch.cat([later, time[:, None] <= degrees[0][own[0]]], dim=1)
        _pack_part(packer, into[:start].flatten(0, 1), (into[start:] * seen[:, None]).flatten(0, 1))
        for layer, (order, ready) in enumerate(made):
            known, unit = order[: ready[start]], own[layer]
            degree = degrees[layer][unit][:, None]
            if layer + 1 < len(made):
                into, seen = between[layer][:, own[layer + 1]], degree <= degrees[layer + 1][own[layer + 1]]
            else:
                assert leave is not None
                into = _wide(leave[:, start:end].flatten(1), width)
                seen = _wide((degree < time).repeat_interleave(outputs, dim=1), width)
            _pack_part(packer, into[known], into[unit] * seen)


def _pack_part(packer: Packer, before: Tensor, inside: Tensor) -> None:
    """Weights (inputs, outputs) of what lies before a stretch, and in it."""
    packer.matrix(before.T if len(before) else before.new_zeros(before.shape[1], 1))
    packer.floats(inside)


def _wide(x: Tensor, width: int) -> Tensor:
    return F.pad(x, (0, width - x.shape[-1]))
