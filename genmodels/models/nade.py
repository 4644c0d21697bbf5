"""NADE: a network reads the values seen so far, in whatever order they came, and predicts any one that is missing.

The Neural Autoregressive Distribution Estimator (Larochelle, Murray, 2011); A Deep and Tractable Density Estimator (Uria, Murray, Larochelle, 2014),
arXiv:1310.1757; Neural Autoregressive Distribution Estimation (Uria, Cote, Gregor, Murray, Larochelle, 2016), arXiv:1605.02226.

The first layer is a sum over the values seen, so one network serves every order: a subset that is known goes first, and the rest is drawn exactly.
A model trained in one fixed order is not asked to do that: a subset that does not come first there is completed by importance resampling.
We differ from the papers in two ways. Fixed training, too, reads which places are seen, which the paper of 2011 has not. Up to 16 levels have
indicators and a softmax and more a mixture of discretised logistics, where the papers have bits and real values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genmodels.core import Batch, Event, Metrics, Objective, Optimizer, Trained
from genmodels.core.autoregressive import LN2
from genmodels.nn import values
from genmodels.nn.conditioning import ClassBias
from genmodels.nn.orders import arrangement, check, inverse
from genmodels.nn.scaling import wide
from genmodels.noise import Noise, categorical, derive
from genmodels.sampling.native import Compiled
from genmodels.sampling.packing import Packer, Plan, lanes, size

CHUNK = 2**21
"""Numbers that one layer makes of one chunk of steps: what bounds the memory of a score."""


@dataclass(frozen=True)
class Tables:
    """The outer layers, a block of rows for each place."""

    enter: Tensor
    """(D, F + 1, hidden): what a seen value adds to the first layer; the last row is for its being seen at all."""
    leave: Tensor
    """(D, hidden, P)."""
    bias: Tensor
    """(D, 1, P)."""


@dataclass
class Seen:
    """The values seen so far, summed up."""

    tables: Tables
    order: Tensor
    y: Tensor | None
    sums: Tensor
    """(B, hidden): the first layer before its non-linearity."""
    step: int = 0


class NADE(Trained, Compiled):
    compiled = "nade"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """hidden: units of each layer. order: raster, random (a function of order_seed), or the places of the flattened event as they are visited: of
        fixed training, and of scores and samples always; orders: how many a density averages over, the others than that one random.
        components: of the mixtures that more than 16 levels are predicted by."""

        hidden: tuple[int, ...] = (500,)
        activation: Literal["relu", "sigmoid"] = "relu"
        training: Literal["order-agnostic", "fixed"] = "order-agnostic"
        order: Literal["raster", "random"] | tuple[int, ...] = "raster"
        order_seed: int = 0
        orders: int = 1
        components: int = 5

        def __post_init__(self) -> None:
            if not isinstance(self.order, str):
                object.__setattr__(self, "order", tuple(self.order))
            if not self.hidden or min(*self.hidden, self.orders, self.components) < 1:
                raise ValueError(f"hidden {self.hidden}, orders {self.orders}, components {self.components}; wanted sizes of at least 1")
            choices = {"activation": ("relu", "sigmoid"), "training": ("order-agnostic", "fixed")}
            for name, known in choices.items():
                if getattr(self, name) not in known:
                    raise ValueError(f"{name} {getattr(self, name)!r}; wanted {' or '.join(known)}")
            if self.training == "fixed" and self.orders > 1:
                raise ValueError(
                    f"{self.orders} orders of a fixed training, which learns one; wanted training: order-agnostic, or orders: 1"
                )

    config: Config
    orders: Tensor
    """(M, D) int64: the orders that the density averages over."""

    def __init__(self, event: Event, config: Config) -> None:
        super().__init__(event, config)
        check("NADE", event, config.order, config.orders)
        inputs, units = values.input_features(event.levels) + 1, config.hidden
        self.outputs = values.output_parameters(event.levels, config.components)
        self.enter = nn.Linear(event.dims * inputs, units[0])
        self.deeper = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(units))
        self.classes = nn.ModuleList(ClassBias(event.classes, size) for size in units)
        self.leave = nn.Linear(units[-1], event.dims * self.outputs)
        self.register_buffer("orders", self._orders(), persistent=False)  # a function of the settings

    def _orders(self) -> Tensor:
        raster, seed = super().order, self.config.order_seed
        others = [arrangement(raster, "random", derive("another order", seed, i)) for i in range(1, self.config.orders)]
        return torch.stack([arrangement(raster, self.config.order, seed), *others])

    @property
    def order(self) -> Tensor:
        """(D,) int64: the only order, or the first of several."""
        return self.orders[0]

    def arranged(self, noise: Noise, known: Tensor | None) -> Tensor:
        """As Autoregressive. What is known comes first, in the first order for every row alike, and the rest in an order drawn from the several:
        exact conditionals of the joint in that order (`log_prob_in_order`), or of the average over orders that begin so."""
        if self.config.training == "fixed" or (known is None and len(self.orders) == 1):
            return self.order
        chosen = categorical(torch.zeros(len(noise), len(self.orders), device=self.device), noise.uniform("order"))
        if known is None:
            return self.orders[chosen]
        ranks = self.orders.argsort(1)
        return torch.where(known, ranks[0], ranks[chosen] + self.event.dims).argsort(1)

    def objectives(self) -> list[Objective]:
        loss = self.loss if self.config.training == "fixed" else self.order_agnostic_loss
        return [Objective(name="likelihood", loss=loss, parameters=list(self.parameters()), optimizer=Optimizer(lr=1e-3))]

    def order_agnostic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Nats of what a row's order has not shown after d values, each counted D / (D - d) times, over the event's dims.

        d and the order are a row's own draws; in expectation this is the mean over all orders of the NLL. Padding is never shown nor counted.
        """
        x, dims = batch.x.flatten(1), self.event.dims
        length = torch.full((len(x),), dims, device=x.device) if batch.length is None else batch.length
        u = noise.uniform("order", (dims + 1,)).double().to(x.device)
        valid = torch.arange(dims, device=x.device) < length[:, None]
        rank = torch.where(valid, u[:, :-1], 2).argsort(1).argsort(1)
        shown = (u[:, -1] * length).long()
        seen = rank < shown[:, None]
        sums = self._labelled(0, wide(self.enter((self._inputs(x) * seen[..., None]).flatten(1))), batch.y)
        raw = self.leave(self._units(sums, batch.y)).unflatten(1, (dims, self.outputs))
        missing = -values.log_prob(raw, x, self.event.levels) * (valid & ~seen)
        nats = missing.sum(1) * length / (length - shown).clamp(min=1)
        return nats.mean() / dims, {"bits_per_dim": (nats.detach() / length.clamp(min=1)).mean() / LN2}

    def conditional_log_prob(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, length: Tensor | None) -> Tensor:
        if len(self.orders) == 1:
            return super().conditional_log_prob(x, y=y, c=c, length=length)
        each = torch.stack([self._conditionals(x.flatten(1), order, y).sum(1) for order in self.orders])
        return torch.logsumexp(each, dim=0) - math.log(len(each))

    def conditional_log_probs(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, noise: Noise | None = None) -> Tensor:
        if len(self.orders) > 1:
            raise ValueError("an average over several orders has no conditionals one by one; build with orders: 1")
        return self._conditionals(x.flatten(1), self.order, y).reshape(x.shape)

    def log_prob_in_order(self, x: Tensor, order: Sequence[int] | Tensor, y: Tensor | None = None) -> Tensor:
        """x (B, *shape) levels, order (D,): the places of the flattened event as they are visited -> (B,) nats, log p(x | y) in that order."""
        places = torch.as_tensor(order, device=self.device)
        if not torch.equal(places.sort().values, torch.arange(self.event.dims, device=self.device)):
            raise ValueError(f"{places.tolist()[:8]}... is no order; wanted each place from 0 to {self.event.dims - 1} once")
        x = self.examples(x)
        return self._conditionals(x.flatten(1), places, self.condition(y, len(x))).sum(1)

    def _conditionals(self, x: Tensor, order: Tensor, y: Tensor | None) -> Tensor:
        """x (B, D) levels, order (D,) -> (B, D) nats by place. One chunk of steps at a time; a backward pass computes the chunk again."""
        tables, sums, found = self._tables(), self._empty(len(x), y), []
        most = max(1, CHUNK // (max(1, len(x)) * max(self.config.hidden)))
        for places in order.split(most):
            block = Tables(tables.enter[places], tables.leave[places], tables.bias[places])
            nats, sums = checkpoint(self._stretch, x[:, places], sums, block, y, use_reentrant=False, preserve_rng_state=False)  # type: ignore[misc]
            found.append(nats)
        return torch.cat(found, dim=1)[:, inverse(order)]

    def _stretch(self, x: Tensor, sums: Tensor, tables: Tables, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, T) levels in order, sums (B, hidden) before them -> (B, T) nats of each given all before it, and the sums after them."""
        added = wide(torch.einsum("btf,tfh->bth", self._inputs(x), tables.enter)).cumsum(1)
        before = torch.cat([sums[:, None], sums[:, None] + added[:, :-1]], dim=1)
        raw = torch.einsum("bth,thp->btp", self._units(before, y), tables.leave) + tables.bias[:, 0]
        return values.log_prob(raw, x, self.event.levels), sums + added[:, -1]

    def start(self, order: Tensor, n: int, *, y: Tensor | None, c: Tensor | None) -> Seen:
        return Seen(tables=self._tables(), order=order, y=y, sums=self._empty(n, y))

    def predict(self, memory: Seen) -> Tensor:
        places = _places(memory)
        units = self._units(memory.sums, memory.y)[:, None]
        raw = units @ _each(memory.tables.leave[places], units) + memory.tables.bias[places]
        return values.log_probs(raw[:, 0], self.event.levels)

    def take(self, memory: Seen, level: Tensor) -> None:
        inputs = self._inputs(level)[:, None]
        memory.sums = memory.sums + (inputs @ _each(memory.tables.enter[_places(memory)], inputs))[:, 0]
        memory.step += 1

    def _inputs(self, x: Tensor) -> Tensor:
        """x (...) levels -> (..., F + 1): the value, and a one that says it is seen."""
        read = values.features(x, self.event.levels, self.enter.weight.dtype)
        return torch.cat([read, torch.ones_like(read[..., :1])], dim=-1)

    def _empty(self, n: int, y: Tensor | None) -> Tensor:
        """(n, hidden): the first layer's sums where nothing is seen."""
        return self._labelled(0, self.enter.bias.expand(n, -1), y)

    def _units(self, sums: Tensor, y: Tensor | None) -> Tensor:
        """sums (B, ..., hidden) of the first layer -> (B, ..., hidden): the units of the last one."""
        act = torch.relu if self.config.activation == "relu" else torch.sigmoid
        units = act(sums)
        for i, layer in enumerate(self.deeper):
            units = act(self._labelled(i + 1, layer(units), y))
        return units

    def _deeper(self) -> list[nn.Linear]:
        return list(self.deeper)  # type: ignore[arg-type]

    def _labelled(self, layer: int, sums: Tensor, y: Tensor | None) -> Tensor:
        return self.classes[layer](sums.movedim(-1, 1), y).movedim(1, -1)

    def _tables(self) -> Tables:
        dims = self.event.dims
        return Tables(
            enter=self.enter.weight.unflatten(1, (dims, -1)).permute(1, 2, 0).contiguous(),
            leave=self.leave.weight.unflatten(0, (dims, -1)).transpose(1, 2).contiguous(),
            bias=self.leave.bias.reshape(dims, 1, -1),
        )

    def packed(self, packer: Packer) -> Plan:
        levels, units, tables = self.event.levels, self.config.hidden, self._tables()
        packer.numbers(levels, self.outputs, self.steps, self.config.activation == "sigmoid", len(units), *(size(each) for each in units))
        packer.floats(self.leave.bias)
        told_apart = torch.arange(levels) if levels <= values.SOFTMAX else torch.tensor([0, levels - 1])
        gains = self._inputs(told_apart) @ tables.enter
        if levels > values.SOFTMAX:
            gains = torch.cat([tables.enter[:, :1], tables.enter[:, -1:], gains], dim=1)
        packer.floats(torch.cat([lanes(tables.leave.transpose(1, 2), 2).flatten(1), lanes(gains, 2).flatten(1)], dim=1))
        for layer in self._deeper():
            packer.matrix(layer.weight)
        return packer.plan(self.compiled, state=size(units[0]))

    def told(self, n: int, *, y: Tensor | None, c: Tensor | None) -> Tensor:
        rows = 1 if y is None else n
        deeper = (self._labelled(i + 1, layer.bias.expand(rows, -1), y) for i, layer in enumerate(self._deeper()))
        return torch.cat([lanes(each, 1) for each in (self._empty(rows, y), *deeper)], dim=1)


def _places(memory: Seen) -> Tensor:
    """The place that comes next: (1,) for all rows, or (B,)."""
    return memory.order[memory.step].reshape(1) if memory.order.ndim == 1 else memory.order[:, memory.step]


def _each(tables: Tensor, rows: Tensor) -> Tensor:
    """One table for all rows, or one a row -> one a row. A row's product is its own, so its bytes do not depend on its neighbours."""
    return tables.expand(len(rows), -1, -1)
