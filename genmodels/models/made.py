"""MADE: an autoencoder whose masked weights make each output a conditional of the values before it, for several orders and masks at once.

MADE: Masked Autoencoder for Distribution Estimation (Germain, Gregor, Murray, Larochelle, 2015), arXiv:1502.03509.

A member of the ensemble is an order of the values and a degree for every hidden unit; the weights are common to all. The density is the mean of the
members' densities, never the exponential of the mean of their logits, which is no density.
We differ from the paper in three ways. The degrees of a layer are spread evenly and shuffled, where the paper draws each alone: every value gets
its share of units. A training step draws its member at random, where the paper goes through them in turn. More than two levels have indicators
and a softmax, and more than 16 a mixture of discretised logistics (nn/values.py).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.core import Event, Objective, Optimizer, Trained
from genmodels.models.made_members import Members, Partial, at, fan_in, masked, of_group, spread
from genmodels.nn import values
from genmodels.nn.conditioning import ClassBias
from genmodels.nn.gates import drop
from genmodels.nn.orders import arrangements, check, inverse
from genmodels.noise import Noise, categorical
from genmodels.sampling import causal
from genmodels.sampling.native import Compiled
from genmodels.sampling.packing import Packer, Plan

START = 0.1
"""Variance of the first outputs, about: small, so that training starts near the uniform."""

PACKED = 2**29
"""Bytes of weights that the compiled sampler may keep for the members of an ensemble; larger ones are drawn from eagerly."""


class MADE(Trained, Compiled):
    compiled = "causal"
    orders: Tensor
    """(O, D) int64 places as visited."""
    ranks: Tensor
    """(O, D) int64: when each place is visited."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """hidden: units of each layer; orders, and masks of each order; order: of the first (raster, random, or the places as they are
        visited), the further ones are random; mask_seed: of random orders and of masks."""

        hidden: tuple[int, ...] = (500,)
        orders: int = 1
        masks: int = 1
        order: Literal["raster", "random"] | tuple[int, ...] = "raster"
        mask_seed: int = 0
        dropout: float = 0.0

        def __post_init__(self) -> None:
            object.__setattr__(self, "hidden", tuple(self.hidden))
            if not isinstance(self.order, str):
                object.__setattr__(self, "order", tuple(self.order))
            if min(self.hidden, default=0) < 1 or min(self.orders, self.masks) < 1 or not 0 <= self.dropout < 1:
                raise ValueError(f"{self}; wanted a hidden layer or more, sizes of at least 1 and a dropout below 1")

    config: Config

    def __init__(self, event: Event, config: Config) -> None:
        super().__init__(event, config)
        check("MADE", event, config.order, config.orders)
        self.inputs, self.outputs = values.input_features(event.levels), values.output_parameters(event.levels)
        orders = arrangements(super().order, config.order, config.mask_seed, config.orders)
        self.register_buffer("orders", orders, persistent=False)
        self.register_buffer("ranks", inverse(orders), persistent=False)
        for i, degrees in enumerate(spread(event.dims, config)):
            self.register_buffer(f"degrees_{i}", degrees, persistent=False)
        sizes = [event.dims * self.inputs, *config.hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, config.hidden, strict=False))
        self.out = nn.Linear(config.hidden[-1] + sizes[0], event.dims * self.outputs)
        self.hidden_label = ClassBias(event.classes, config.hidden[0])
        self.label = ClassBias(event.classes, event.dims * self.outputs)
        self._initialise()

    @property
    def order(self) -> Tensor:
        return self.orders[0]

    @property
    def averages_orders(self) -> bool:
        return self.config.orders > 1

    def raw(self, read: Tensor, y: Tensor | None, order: int, mask: int, noise: Noise | None = None) -> Tensor:
        """read (B, D F) features by place -> (B, D, P) by place: what one member says of each value (eq. 12 and 13)."""
        ranks, *degrees, need = self._member(order, mask)
        h, have = read, ranks
        for i, (layer, own) in enumerate(zip(self._layers(), degrees, strict=True)):
            h = masked(layer, h, have, own)
            h = drop(F.relu(self.hidden_label(h, y) if i == 0 else h), self.config.dropout, noise, f"dropout.{i}")
            have = own
        raw = masked(self.out, torch.cat([h, read], dim=1), torch.cat([have, ranks]), need)
        return self.label(raw, y).unflatten(1, (-1, self.outputs))

    def member(self, x: Tensor, y: Tensor | None, order: int, mask: int, noise: Noise | None = None) -> Tensor:
        """x (B, *shape) levels -> (B, *shape) nats: one member's conditionals."""
        levels, flat = self.event.levels, x.flatten(1)
        read = values.features(flat, levels, self.out.weight.dtype).flatten(1)
        return values.log_prob(self.raw(read, y, order, mask, noise), flat, levels).reshape(x.shape)

    def conditional_log_probs(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, noise: Noise | None = None) -> Tensor:
        """As Autoregressive; in training those of the member that the step draws."""
        orders, masks = self.config.orders, self.config.masks
        if noise is not None:
            drawn = int(noise.shared("member") * (orders * masks))
            return self.member(x, y, *divmod(drawn, masks), noise)
        if orders > 1:
            raise ValueError(f"an average over {orders} orders has no conditionals one by one; build with orders: 1")
        if masks == 1:
            return self.member(x, y, 0, 0)
        each = torch.stack([self.member(x, y, 0, mask) for mask in range(masks)])
        return self.mixed(each, each.new_full((masks,), -math.log(masks)))

    def conditional_log_prob(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, length: Tensor | None) -> Tensor:
        if self.config.orders == 1:
            return super().conditional_log_prob(x, y=y, c=c, length=length)
        each = torch.stack([self.member(x, y, *divmod(m, self.config.masks)) for m in range(self.config.orders * self.config.masks)])
        if length is not None:
            each = each * (torch.arange(x.shape[1], device=x.device) < length[:, None])
        return torch.logsumexp(each.flatten(2).sum(2), dim=0) - math.log(len(each))

    def objectives(self) -> list[Objective]:
        return [Objective(name="likelihood", loss=self.loss, parameters=list(self.parameters()), optimizer=Optimizer(lr=5e-3))]

    def arranged(self, noise: Noise, known: Tensor | None) -> Tensor:
        if self.config.orders == 1:
            return self.order
        even = torch.zeros(len(noise), self.config.orders, device=self.device)
        return self.orders[categorical(even, noise.uniform("order"))]

    def start(self, order: Tensor, n: int, *, y: Tensor | None, c: Tensor | None) -> Partial:
        # The rows' orders say which was drawn: no two of the model's are equal.
        which = (order.reshape(-1, 1, self.event.dims) == self.orders).all(2).to(torch.uint8).argmax(1)
        used, group = which.unique(return_inverse=True)
        degrees, dims = self._degrees(), self.event.dims
        between = [
            layer.weight.T * (have[used][:, :, :, None] <= own[used][:, :, None]).to(layer.weight.dtype)
            for layer, have, own in zip(self._layers()[1:], degrees, degrees[1:], strict=False)
        ]
        members = Members(
            order=order,
            group=group,
            first=degrees[0][which],
            last=degrees[-1][which],
            enter=self._layers()[0].weight.T.reshape(dims, self.inputs, -1).contiguous(),
            between=between,
            leave=self.out.weight.unflatten(0, (dims, self.outputs)),
            bias=self.label(self.out.bias.expand(n, -1), y).unflatten(1, (dims, self.outputs)),
        )
        sums = self.hidden_label(self._layers()[0].bias.expand(n, -1), y)[:, None]
        return Partial(
            members=members,
            sums=sums.repeat(1, self.config.masks, 1),
            read=sums.new_zeros(n, dims, self.inputs),
            log_weight=torch.zeros(n, self.config.masks, dtype=torch.float64, device=self.device),
            each=torch.empty(0, device=self.device),
        )

    def predict(self, memory: Partial) -> Tensor:
        members, place = memory.members, memory.place
        h = F.relu(memory.sums)
        for layer, weight in zip(self._layers()[1:], members.between, strict=True):
            h = F.relu(of_group(h, weight, members.group) + layer.bias)
        h = h * (members.last < memory.step)
        read = memory.read.flatten(1)[:, None].expand(-1, h.shape[1], -1)
        leave, bias = members.leave[place], at(members.bias, place)
        raw = torch.cat([h, read], dim=2) @ leave.mT.expand(len(h), -1, -1) + bias[:, None]
        memory.each = values.log_probs(raw, self.event.levels)
        return torch.logsumexp(torch.log_softmax(memory.log_weight, dim=1)[..., None] + memory.each, dim=1)

    def take(self, memory: Partial, level: Tensor) -> None:
        members, place = memory.members, memory.place
        read = values.features(level, self.event.levels, memory.sums.dtype)
        memory.read[torch.arange(len(read), device=self.device), place] = read
        share = read[:, None] @ members.enter[place].expand(len(read), -1, -1)
        memory.sums += share * (members.first >= memory.step)
        memory.log_weight += memory.each.gather(2, level[:, None, None].expand(-1, memory.each.shape[1], 1))[..., 0]
        memory.step += 1

    def compilable(self) -> bool:
        """Its kernel has weights of every member's own, half of them on average."""
        members = self.config.orders * self.config.masks
        return members == 1 or 2 * members * sum(each.numel() for each in self.parameters()) <= PACKED

    def packed(self, packer: Packer) -> Plan:
        first, *further = self._layers()
        weights = [first.weight.T.unflatten(0, (self.event.dims, self.inputs)), *(layer.weight.T for layer in further)]
        leave = self.out.weight.unflatten(0, (self.event.dims, self.outputs))
        members = causal.ensemble(weights, leave, self.orders, self._degrees())
        return causal.pack(packer, self.compiled, members, self.orders, levels=self.event.levels)

    def told(self, n: int, *, y: Tensor | None, c: Tensor | None) -> Tensor:
        rows, degrees = 1 if y is None else n, causal.by_member(self._degrees())
        biases = [layer.bias.expand(rows, -1) for layer in self._layers()]
        raw = self.label(self.out.bias.expand(rows, -1), y).unflatten(1, (self.event.dims, self.outputs))
        return causal.tell(
            [[self.hidden_label(biases[0], y), *biases[1:]]] * len(degrees),
            causal.stretches(self.event.dims, self.outputs, degrees),
            [raw[:, order] for order in self.orders for _ in range(self.config.masks)],
        )

    def _member(self, order: int, mask: int) -> list[Tensor]:
        """What one member's units have and need: ranks of the inputs, degrees of each hidden layer, the last rank that each output may see."""
        ranks = self.ranks[order]
        return [
            ranks.repeat_interleave(self.inputs),
            *(each[order, mask] for each in self._degrees()),
            ranks.repeat_interleave(self.outputs) - 1,
        ]

    @torch.no_grad()
    def _initialise(self) -> None:
        """He's variance over the units that a first member's unit really reads; the direct connections start at zero."""
        have, *degrees, need = self._member(0, 0)
        for layer, own in zip(self._layers(), degrees, strict=True):
            layer.weight.copy_(torch.randn_like(layer.weight) * (2 / fan_in(have, own))[:, None].sqrt())
            layer.bias.zero_()
            have = own
        self.out.weight.zero_()
        self.out.weight[:, : len(have)] = torch.randn(len(need), len(have)) * (START / fan_in(have, need))[:, None].sqrt()
        self.out.bias.zero_()

    def _layers(self) -> list[nn.Linear]:
        return list(self.layers)  # type: ignore[arg-type]

    def _degrees(self) -> list[Tensor]:
        """A hidden layer's (O, S, H) int64: the last rank that each unit may see."""
        return [self.get_buffer(f"degrees_{i}") for i in range(len(self.config.hidden))]
