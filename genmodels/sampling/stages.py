"""A model that is a row of models, each conditioned on what those before it drew: it is drawn by their own samplers, one after the other."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genmodels.core import Autoregressive, Drawing, Fused, Sampler


class Staged(Autoregressive):
    """Its `order` is the first stage's values in that one's order, then the second's, and so on: one order for all rows."""

    @abstractmethod
    def stages(self) -> Sequence[Autoregressive]:
        """Those that draw, at least one. They have the model's labels and levels."""

    @abstractmethod
    def stage_condition(self, stage: int, x: Tensor) -> Tensor | None:
        """x (B, *shape) levels, of which those of all earlier stages are drawn -> the condition of a stage, None where it has none."""


@dataclass(frozen=True)
class Asked:
    """What no step changes, shared by copies of a state."""

    model: Staged
    sampler: Sampler
    y: Tensor | None


@dataclass
class StagedMemory(Fused):
    asked: Asked
    memory: Fused
    """The present stage's."""
    stage: int = 0
    first: int = 0
    """The step at which the present stage began."""
    orders: tuple[Tensor, Tensor] | None = None
    """The state's order, and the present stage's part of it: held, since a memory knows a state again by its tensors."""

    def advance(self, state: Drawing, k: int, logits: Tensor | None = None) -> None:
        stages, done = self.asked.model.stages(), 0
        k = min(k, state.x.shape[1] - state.step)
        # Held by the state, so that the stages' memories know it again.
        state.uniforms = state.uniforms.contiguous()
        if state.known is not None and state.given is not None:
            state.known, state.given = state.known.contiguous(), state.given.contiguous()
        while done < k:
            if state.step == self.first + stages[self.stage].steps:
                self._next(state)
            last = self.first + stages[self.stage].steps
            count = min(k - done, last - state.step)
            if self.orders is None or self.orders[0] is not state.order:
                self.orders = state.order, state.order[self.first : last]
            part = replace(state, memory=self.memory, order=self.orders[1], step=state.step - self.first)
            self.memory.advance(part, count, None if logits is None else logits[:, done : done + count])
            state.step, done = state.step + count, done + count

    def _next(self, state: Drawing) -> None:
        self.first, self.stage, self.orders = state.step, self.stage + 1, None
        self.memory = begun(self.asked, self.stage, len(state.x), state.x)


def begin(model: Staged, sampler: Sampler, n: int, y: Tensor | None) -> StagedMemory:
    """The memory of n rows, drawn stage by stage by a sampler that has a Fused memory for each."""
    asked = Asked(model, sampler, y)
    return StagedMemory(asked, begun(asked, 0, n, torch.zeros(n, model.event.dims, dtype=torch.uint8)))


@torch.no_grad()
def begun(asked: Asked, stage: int, n: int, x: Tensor) -> Fused:
    """x (n, D) levels by place."""
    model = asked.model.stages()[stage]
    c = asked.model.stage_condition(stage, x.reshape(n, *asked.model.event.shape))
    memory = asked.sampler.begin(model, model.order, n, y=asked.y, c=c)
    assert memory is not None
    return memory
