"""The one training loop for every family that learns by descent, and the state it leaves off and goes on from.

Where nothing is random but by address (genmodels.noise) and the order of examples is a function of the step, a training is a fold over steps:
`Training.run(until=...)` does some of them, `save` and `restore` move the whole state to a folder and back, and the bits do not
depend on where it was cut.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genmodels import checkpoint
from genmodels.allocator import keep_memory
from genmodels.checkpoint import NonFinite, Record, Schedule, TrainConfig
from genmodels.compilation import check_compiler
from genmodels.core import Batch, Metrics, Objective, Optimizer, Trained
from genmodels.descent import Player, Precision, Sum, flatten
from genmodels.noise import Noise, derive

__all__ = ["Batches", "NonFinite", "Record", "Schedule", "TrainConfig", "Training", "fit"]

Batches = Callable[[int], Batch]
"""The batch of a step; on one of several workers its slice of it."""


def fit(model: Trained, config: TrainConfig, batches: Batches, *, sum_over_workers: Sum | None = None) -> "Training":
    """Trains a model, in place, from its present weights for config.steps steps."""
    training = Training(model, config)
    training.run(batches, until=config.steps, sum_over_workers=sum_over_workers)
    return training


class Training:
    """A model in training: weights, their running mean, optimisers, the step. Raises ValueError for what this model or machine cannot do."""

    def __init__(self, model: Trained, config: TrainConfig) -> None:
        _check_precision(config.precision, model.device)
        if config.compile:
            check_compiler(model.device)
        torch.set_num_threads(config.threads)
        keep_memory()
        self.model, self.config, self.step = model, config, 0
        objectives = model.objectives()
        if stray := set(config.objectives) - {objective.name for objective in objectives}:
            raise ValueError(f"no objective {min(stray)!r} in {type(model).__name__}; known: {', '.join(o.name for o in objectives)}")
        self._pieces = flatten(model, objectives)
        self._players = [
            Player(model, objective, self._pieces, _optimizer(objective, config), precision=config.precision, compiling=config.compile)
            for objective in objectives
        ]
        self._mean = [piece.values.detach().clone() for piece in self._pieces] if config.ema else []

    @property
    def done(self) -> bool:
        return self.step >= self.config.steps

    @property
    def objectives(self) -> list[str]:
        """Their names, in the order of a step's turns."""
        return [player.objective.name for player in self._players]

    def run(self, batches: Batches, *, until: int, sum_over_workers: Sum | None = None) -> list[Record]:
        """Steps up to `until` -> one record a step. Values are looked at once, at the end: a device never waits for the host in between.

        Raises NonFinite when a step among them was not finite; the weights are then of no use, the last saved state is.
        """
        self.model.train()
        metrics = [self._advance(batches(step), sum_over_workers) for step in range(self.step, until)]
        names = [(index, name) for index, each in enumerate(metrics) for name in each]
        values = torch.stack([metrics[index][name] for index, name in names]).tolist() if names else []
        records: list[Record] = [{"step": self.step - len(metrics) + index + 1} for index in range(len(metrics))]
        for (index, name), value in zip(names, values, strict=True):
            records[index][name] = value
        if not all(map(math.isfinite, values)):
            raise NonFinite(records, "lower the learning rate, lengthen the warm-up or clip harder")
        return records

    def _advance(self, batch: Batch, sum_over_workers: Sum | None) -> Metrics:
        batch = batch if self.model.device.type == "cpu" else batch.to(self.model.device)
        factor = self.config.schedule.factor(self.step, self.config.steps)
        metrics: Metrics = {}
        for player in self._players:
            if self.step % player.objective.every == 0:
                noise = Noise(derive(self.config.seed, player.objective.name), position=batch.position, step=self.step)
                found = player.gradients(batch, noise, self.config.accumulate)
                if sum_over_workers is not None:
                    found = player.average(found, len(batch), sum_over_workers)
                found |= player.descend(factor)
                metrics |= {f"{player.objective.name}.{name}": value.float() for name, value in found.items()}
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        for mean, piece in zip(self._mean, self._pieces if self._mean else (), strict=True):
            mean.lerp_(piece.values.detach(), 1 - decay)
        self.step += 1
        return metrics

    def rate(self, objective: str) -> float:
        """The learning rate of an objective's last step."""
        player = next(player for player in self._players if player.objective.name == objective)
        return float(player.optimizer.param_groups[0]["lr"])

    @contextmanager
    def averaged(self) -> Iterator[Trained]:
        """Inside, the model has the running mean of its weights (where config.ema > 0); outside, those it is trained with."""
        self._swap()
        try:
            yield self.model
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for mean, piece in zip(self._mean, self._pieces if self._mean else (), strict=True):
            held = mean.clone()
            mean.copy_(piece.values)
            piece.values.copy_(held)

    def save(self, folder: Path) -> None:
        """Writes the whole state: state.safetensors, and state.json that vouches for it."""
        checkpoint.save(folder, step=self.step, tensors=self._tensors(), identity=self._identity())

    def restore(self, folder: Path) -> None:
        """Goes on from a saved state. Raises ValueError when it is damaged, or is that of another model or config."""
        step, tensors = checkpoint.load(folder, self._identity())
        checkpoint.into_model(self.model, tensors)
        for index, mean in enumerate(self._mean):
            mean.copy_(tensors[f"mean.{index}"])
        for player in self._players:
            player.restore(tensors)
        self.step = step

    def _tensors(self) -> dict[str, Tensor]:
        tensors = checkpoint.of_model(self.model) | {f"mean.{index}": mean for index, mean in enumerate(self._mean)}
        for player in self._players:
            tensors |= player.state()
        return tensors

    def _identity(self) -> dict[str, Any]:
        """What a state must agree on to be this training's: the config, and which parameter lies where."""
        return {"config": asdict(self.config), "layout": [piece.layout for piece in self._pieces]}


def _optimizer(objective: Objective, config: TrainConfig) -> Optimizer:
    """The objective's defaults, the config's learning rate, and last what the config says of this objective."""
    given = {"lr": config.lr, **config.objectives.get(objective.name, {})}
    return replace(objective.optimizer, **{key: value for key, value in given.items() if value is not None})


def _check_precision(precision: Precision, device: torch.device) -> None:
    """bf16 where the hardware computes it; elsewhere it would be emulated, slower than f32."""
    if precision == "f32":
        return
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = any(present is True for name, present in torch.cpu.get_capabilities().items() if "bf16" in name)
    if not able:
        raise ValueError(f"precision bf16 on a {device.type} without bf16 arithmetic; set precision f32")
