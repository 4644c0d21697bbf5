"""The members of a MADE's ensemble: the degrees and masks that make one of its weights, and rows of several members half drawn."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.noise import Noise

if TYPE_CHECKING:
    from genmodels.models.made import MADE


def spread(dims: int, config: "MADE.Config") -> list[Tensor]:
    """A hidden layer's (O, S, H) int64 degrees, from the least of the layer below up to D - 2: a unit that sees all values has no reader."""
    layers: list[list[Tensor]] = [[] for _ in config.hidden]
    for member in range(config.orders * config.masks):
        noise, least = Noise(config.mask_seed, position=[0], step=member), 0
        for i, units in enumerate(config.hidden):
            span = max(1, dims - 1 - least)
            even = (noise.permutation(f"degrees.{i}", units) + noise.shared(f"offset.{i}").double()) * span / units
            layers[i].append(least + even.long().clamp(max=span - 1))
            least = int(layers[i][-1].min())
    return [torch.stack(each).unflatten(0, (config.orders, config.masks)) for each in layers]


def masked(layer: nn.Linear, x: Tensor, have: Tensor, own: Tensor) -> Tensor:
    """x (B, in) -> (B, out): each unit reads those that have no higher degree than its own. have (in,), own (out,)."""
    # The product with a mask of the weight's own dtype: four times as fast as with a mask of bools, thirty times as torch.where.
    return F.linear(x, layer.weight * (have <= own[:, None]).to(layer.weight.dtype), layer.bias)


def fan_in(have: Tensor, own: Tensor) -> Tensor:
    """(out,) float32: how many units each unit reads, 1 where it reads none."""
    return torch.searchsorted(have.sort().values, own, right=True).clamp(min=1).float()


@dataclass(frozen=True)
class Members:
    """The members that a request's rows are drawn from: rows of one order mix its S masks. Lead is 1 where all rows share one order, else B."""

    order: Tensor
    """(D,) or (B, D) places as visited."""
    group: Tensor
    """(lead,): which of the G orders in use is the row's."""
    first: Tensor
    """(lead, S, H): degrees of the first hidden layer."""
    last: Tensor
    """(lead, S, H'): degrees of the last one."""
    enter: Tensor
    """(D, F, H): the first layer's weights, a block for each place."""
    between: list[Tensor]
    """A further layer's (G, S, in, out) masked weights."""
    leave: Tensor
    """(D, P, H' + D F): the output layer's weights, a block for each place."""
    bias: Tensor
    """(B, D, P): the output layer's bias, the label's added."""


@dataclass
class Partial:
    """What later values need of those taken."""

    members: Members
    sums: Tensor
    """(B, S, H): the first hidden layer before its activation."""
    read: Tensor
    """(B, D, F) features by place, 0 where nothing is taken yet."""
    log_weight: Tensor
    """(B, S) float64 nats: the values taken under each mask."""
    each: Tensor
    """(B, S, K) nats of the next value under each mask."""
    step: int = 0

    @property
    def place(self) -> Tensor:
        """The place that comes next: (1,) for all rows, or (B,). Never (), which torch would read from a device to index by."""
        return self.members.order[..., self.step].reshape(-1)


def of_group(h: Tensor, weight: Tensor, group: Tensor) -> Tensor:
    """h (B, S, in), weight (G, S, in, out), group (lead,) -> (B, S, out). Every group is computed for every row: shapes, and so bytes, are fixed."""
    out = torch.einsum("bsi,sio->bso", h, weight[0])
    for g in range(1, len(weight)):
        out = torch.where((group == g)[:, None, None], torch.einsum("bsi,sio->bso", h, weight[g]), out)
    return out


def at(table: Tensor, place: Tensor) -> Tensor:
    """table (B, D, P), place (1,) or (B,) -> (B, P)."""
    return table[torch.arange(len(table), device=table.device), place]
