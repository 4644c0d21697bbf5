"""One objective's turn in a step: gradients, their mean over workers, clipping, a step.

The parameters that the same objectives move lie in one flat buffer, and so do their gradients and moments: averaging over workers, clipping,
stepping and the running mean are one tensor operation each, where a small model would otherwise spend its time on dispatch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from genmodels.compilation import compiled
from genmodels.core import Batch, GenerativeModel, Metrics, Objective, Optimizer
from genmodels.noise import Noise

Precision = Literal["f32", "bf16"]

Sum = Callable[[Tensor], None]
"""Replaces a flat float32 buffer by its sum over all workers."""

_ALIGNMENT = 16
"""Parameters start at multiples of 16 elements of their buffer, as far apart as torch's own allocations are aligned."""


@dataclass(frozen=True)
class Piece:
    """Parameters that the same objectives move, as one flat parameter with one flat gradient that they are views of."""

    values: nn.Parameter
    names: frozenset[str]
    """Of the objectives that move it."""
    layout: list[tuple[str, list[int]]]


def flatten(model: GenerativeModel, objectives: Sequence[Objective]) -> list[Piece]:
    """Moves every parameter that an objective names into a flat buffer; the model goes on using it as before."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    movers: dict[nn.Parameter, set[str]] = {}
    for objective in objectives:
        for parameter in objective.parameters:
            if parameter.requires_grad:
                movers.setdefault(parameter, set()).add(objective.name)
    groups: dict[tuple[frozenset[str], torch.dtype], list[nn.Parameter]] = {}
    for parameter, by in movers.items():
        groups.setdefault((frozenset(by), parameter.dtype), []).append(parameter)
    return [_piece(group, who, names) for (who, _), group in groups.items()]


def _piece(group: Sequence[nn.Parameter], movers: frozenset[str], names: Mapping[int, str]) -> Piece:
    offsets, size = [], 0
    for parameter in group:
        offsets.append(size)
        size += -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT
    values = nn.Parameter(group[0].new_zeros(size))
    values.grad = torch.zeros_like(values)
    for parameter, offset in zip(group, offsets, strict=True):
        # Strides are kept, so that a channels-last weight stays one; a weight that is no dense block of memory becomes one.
        dense = parameter.detach().clone()
        view = torch.as_strided(values.detach(), dense.shape, dense.stride(), offset)
        view.copy_(dense)
        parameter.data = view
        parameter.grad = torch.as_strided(values.grad, dense.shape, dense.stride(), offset)
    return Piece(values, movers, [(names[id(parameter)], list(parameter.shape)) for parameter in group])


class Player:
    """One objective's turn in a step."""

    def __init__(
        self,
        model: GenerativeModel,
        objective: Objective,
        pieces: Sequence[Piece],
        settings: Optimizer,
        *,
        precision: Precision,
        compiling: bool,
    ) -> None:
        self._own = list(dict.fromkeys(parameter for parameter in objective.parameters if parameter.requires_grad))
        own = set(self._own)
        self.objective, self.settings, self.precision = objective, settings, precision
        self._loss = compiled(objective) if compiling else objective.loss
        self.values = [piece.values for piece in pieces if objective.name in piece.names]
        self.optimizer = _torch_optimizer(self.values, settings)
        self._others = [parameter for parameter in model.parameters() if parameter not in own and parameter.requires_grad]

    @property
    def _gradients(self) -> list[Tensor]:
        return [value.grad for value in self.values if value.grad is not None]

    def gradients(self, batch: Batch, noise: Noise, parts: int) -> Metrics:
        """Fills the flat gradients with those of the mean loss over the batch's rows -> that loss and its metrics."""
        for gradient in self._gradients:
            gradient.zero_()
        rows, found = len(batch), []
        with _frozen(self._others):
            for start, stop in _parts(rows, parts):
                whole = stop - start == rows
                given = (batch, noise) if whole else (batch.rows(start, stop), noise.rows(start, stop))
                with torch.autocast(batch.x.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
                    loss, metrics = self._loss(*given)
                share = (stop - start) / rows
                (loss if whole else loss * share).backward(inputs=self._own)
                found.append({name: value.detach() * share for name, value in {"loss": loss, **metrics}.items()})
        return {name: torch.stack([each[name] for each in found]).sum(0) for name in found[0]} if len(found) > 1 else found[0]

    def average(self, metrics: Metrics, rows: int, sum_over_workers: Sum) -> Metrics:
        """Gradients and metrics become those of the mean over all workers' rows: one sum of one flat buffer."""
        numbers = torch.stack([value.float() for value in metrics.values()])
        buffer = torch.cat([*(gradient.float() for gradient in self._gradients), numbers, numbers.new_ones(1)]) * rows
        sum_over_workers(buffer)
        *gradients, numbers, _ = (buffer / buffer[-1]).split([*(len(gradient) for gradient in self._gradients), len(numbers), 1])
        for gradient, mean in zip(self._gradients, gradients, strict=True):
            gradient.copy_(mean)
        return dict(zip(metrics, numbers, strict=True))

    def descend(self, factor: float) -> Metrics:
        """Clips and steps; `factor` is the schedule's."""
        norms = [torch.linalg.vector_norm(gradient) for gradient in self._gradients]
        norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
        if self.settings.clip:
            scale = (self.settings.clip / (norm + 1e-6)).clamp(max=1.0)
            for gradient in self._gradients:
                gradient.mul_(scale)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * factor
        self.optimizer.step()
        return {"gradient_norm": norm}

    def state(self) -> dict[str, Tensor]:
        state = self.optimizer.state_dict()["state"]
        return {f"optimizer.{self.objective.name}.{i}.{key}": value for i, each in state.items() for key, value in each.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        prefix, state = f"optimizer.{self.objective.name}.", {}
        for name, value in tensors.items():
            if name.startswith(prefix):
                index, key = name.removeprefix(prefix).split(".")
                state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})


def _torch_optimizer(values: list[nn.Parameter], settings: Optimizer) -> torch.optim.Optimizer:
    if settings.algorithm == "sgd":
        return torch.optim.SGD(values, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay, fused=True)
    return torch.optim.AdamW(values, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=True)


@contextmanager
def _frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Other players' parameters stand still: neither moved nor recorded."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _parts(rows: int, parts: int) -> list[tuple[int, int]]:
    cuts = [part * rows // parts for part in range(parts + 1)]
    return [(start, stop) for start, stop in pairwise(cuts) if stop > start]
