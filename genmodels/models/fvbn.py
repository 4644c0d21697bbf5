"""The fully visible belief net: logistic regression of each value on all values before it, in any order, with no hidden unit.

Does the wake-sleep algorithm produce good density estimators? (Frey, Hinton, Dayan, 1996), eq. 1 and 2; for more than two levels Modeling
high-dimensional discrete data with multi-layer neural networks (Bengio, Bengio, 2000), without its hidden layer.

We differ in two ways. A binary value is read as -1 or 1 in place of 0 or 1: its weights then learn from both. Above 16 levels a value is read as a
position on a line and predicted by a mixture of discretised logistics, in place of indicators and a softmax (nn/values.py).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from genmodels.core import Event, Objective, Optimizer, Trained
from genmodels.nn import values
from genmodels.nn.conditioning import ClassBias
from genmodels.nn.orders import arrangement, check, inverse
from genmodels.noise import Noise
from genmodels.sampling import causal
from genmodels.sampling.native import Compiled
from genmodels.sampling.packing import Packer, Plan


@dataclass
class Sums:
    """The outputs of all values so far: each value taken adds its share to all later ones."""

    raw: Tensor
    """(B, D P) in order."""
    step: int = 0


class FVBN(Trained, Compiled):
    compiled = "causal"
    visits: Tensor
    """(D,) int64."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """order: raster, random (a function of order_seed), or the places of the flattened event as they are visited."""

        order: Literal["raster", "random"] | tuple[int, ...] = "raster"
        order_seed: int = 0

        def __post_init__(self) -> None:
            if not isinstance(self.order, str):
                object.__setattr__(self, "order", tuple(self.order))

    config: Config

    def __init__(self, event: Event, config: Config) -> None:
        super().__init__(event, config)
        check("FVBN", event, config.order)
        order = arrangement(super().order, config.order, config.order_seed)
        self.register_buffer("visits", order, persistent=False)
        self.inputs, self.outputs = values.input_features(event.levels), values.output_parameters(event.levels)
        # Near zero, where nothing is saturated; with two levels or a softmax the likelihood is concave, and any start will do.
        self.weight = nn.Parameter(1e-3 * torch.randn(event.dims, self.inputs, event.dims, self.outputs))
        self.bias = nn.Parameter(torch.zeros(event.dims * self.outputs))
        self.label = ClassBias(event.classes, event.dims * self.outputs)

    @property
    def order(self) -> Tensor:
        return self.visits

    def conditional_log_probs(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, noise: Noise | None = None) -> Tensor:
        x_t = x.flatten(1)[:, self.order]
        earlier = torch.ones_like(self.weight[:, 0, :, 0]).triu(1)  # row s, column t: s comes before t
        weight = (self.weight * earlier[:, None, :, None]).flatten(2).flatten(0, 1)
        raw = self.label(torch.addmm(self.bias, values.features(x_t, self.event.levels, weight.dtype).flatten(1), weight), y)
        nats = values.log_prob(raw.unflatten(1, (self.event.dims, self.outputs)), x_t, self.event.levels)
        return nats[:, inverse(self.order)].reshape(x.shape)

    def objectives(self) -> list[Objective]:
        return [Objective(name="likelihood", loss=self.loss, parameters=list(self.parameters()), optimizer=Optimizer(lr=1e-2))]

    def start(self, order: Tensor, n: int, *, y: Tensor | None, c: Tensor | None) -> Sums:
        return Sums(raw=self.label(self.bias.expand(n, -1).clone(), y))

    def predict(self, memory: Sums) -> Tensor:
        first = memory.step * self.outputs
        return values.log_probs(memory.raw[:, first : first + self.outputs], self.event.levels)

    def take(self, memory: Sums, level: Tensor) -> None:
        weight = self.weight[memory.step].flatten(1)
        memory.step += 1
        later = memory.step * self.outputs
        memory.raw[:, later:] += values.features(level, self.event.levels, weight.dtype) @ weight[:, later:]

    def packed(self, packer: Packer) -> Plan:
        return causal.pack(packer, self.compiled, [causal.Member(self.weight)], self.visits[None], levels=self.event.levels)

    def told(self, n: int, *, y: Tensor | None, c: Tensor | None) -> Tensor:
        raw = self.label(self.bias.expand(1 if y is None else n, -1), y).unflatten(1, (self.event.dims, self.outputs))
        return causal.tell([()], causal.stretches(self.event.dims, self.outputs, [()]), [raw])
