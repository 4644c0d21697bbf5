"""What both loops share: their numbers, what a step came to, and the state that they leave off and go on from."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from genmodels.descent import Precision

STATE, VOUCHER = "state.safetensors", "state.json"

Record = dict[str, float]
"""What one step came to: step (how many are done) and its metrics, those of descent by `<objective>.<name>`."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up over `warmup` steps, then constant, or a half cosine down to `final` of the learning rate at the last step."""

    warmup: int = 0
    decay: Literal["constant", "cosine"] = "constant"
    final: float = 0.0

    def factor(self, step: int, steps: int) -> float:
        """What the learning rate is multiplied by at a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.decay == "constant":
            return 1.0
        done = (step - self.warmup) / max(1, steps - 1 - self.warmup)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * min(1.0, done))) / 2


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The numbers of a training. batch_size: examples a step over all workers; accumulate: parts that a worker's slice is computed in;
    lr: of every objective that names none of its own; objectives: per objective, overrides of its Optimizer; ema: decay of the running
    mean of the weights (0: none), lower at first: min(ema, (1 + t) / (10 + t)); compile: losses by torch.compile, which takes a C++ compiler
    (Triton on a GPU) and half a minute or so at the start of every process.

    Where a model learns by passes, steps is the largest number of them, batch_size the rows read at once, and only seed and threads count beside."""

    steps: int
    batch_size: int = 64
    accumulate: int = 1
    lr: float | None = None
    objectives: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    schedule: Schedule = field(default_factory=Schedule)
    ema: float = 0.0
    precision: Precision = "f32"
    compile: bool = False
    seed: int = 0
    threads: int = 1


class NonFinite(ArithmeticError):
    """A metric, such as a loss or a gradient's norm, that is not a finite number. `records`: the steps since the last look, so that nothing of
    it is hidden."""

    def __init__(self, records: Sequence[Record], advice: str) -> None:
        broken = [record for record in records if not all(map(math.isfinite, record.values()))]
        values = ", ".join(f"{name} {value:g}" for name, value in broken[0].items() if name != "step")
        super().__init__(f"step {broken[0]['step']:g} is not finite ({values}; {len(broken)} such steps before it was stopped): {advice}")
        self.records, self.step, self.count = list(records), int(broken[0]["step"]), len(broken)


def save(folder: Path, *, step: int, tensors: Mapping[str, Tensor], identity: Mapping[str, Any]) -> None:
    """Writes a whole state: state.safetensors, and state.json that vouches for it and says whose it is."""
    folder.mkdir(parents=True, exist_ok=True)
    content = safetensors.torch.save(copies(tensors))
    (folder / STATE).write_bytes(content)
    state = {"step": step, "sha256": hashlib.sha256(content).hexdigest(), **identity}
    (folder / VOUCHER).write_text(json.dumps(state, indent=2))


def load(folder: Path, identity: Mapping[str, Any]) -> tuple[int, dict[str, Tensor]]:
    """A saved state's step and tensors. Raises ValueError when it is damaged, or is that of another model or config."""
    state = json.loads((folder / VOUCHER).read_text())
    content = (folder / STATE).read_bytes()
    if hashlib.sha256(content).hexdigest() != state["sha256"]:
        raise ValueError(f"{folder}: {STATE} was changed since it was written; remove this checkpoint to go on from an earlier one")
    for key, value in json.loads(json.dumps(identity)).items():
        if state.get(key) != value:
            raise ValueError(f"{folder}: this checkpoint's {key} is another: {_difference(state.get(key), value)}")
    return state["step"], safetensors.torch.load(content)


def of_model(model: nn.Module) -> dict[str, Tensor]:
    """A model's part of a state."""
    return {f"model.{name}": value for name, value in model.state_dict().items()}


def into_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts a model's part of a state back."""
    model.load_state_dict({name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")})


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values, each in memory of its own: tensors that share some are refused by safetensors."""
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}


def _difference(old: Any, new: Any) -> str:
    """The first thing that differs, short enough for a line."""
    if isinstance(old, dict) and isinstance(new, dict):
        key = next(key for key in sorted({*old, *new}) if old.get(key) != new.get(key))
        return f"{key} {old.get(key)!r}, here {new.get(key)!r}"
    return f"{str(old)[:80]!r}, here {str(new)[:80]!r}"
