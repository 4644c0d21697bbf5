"""What is modelled (Event) and what is learnt from (Batch)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Event:
    """What one example looks like. shape: image (C, H, W), audio (T,), table (D,); levels K in 2..256, or 0 for real values."""

    modality: Literal["image", "audio", "table"]
    shape: tuple[int, ...]
    levels: int
    sample_rate: int | None = None
    companding: Literal["mu-law"] | None = None
    classes: int = 0
    condition: "Event | None" = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(side) for side in self.shape))
        axes = {"image": 3, "audio": 1, "table": 1}
        if self.modality not in axes:
            raise ValueError(f"modality {self.modality!r}; wanted one of {', '.join(axes)}")
        if len(self.shape) != axes[self.modality] or min(self.shape, default=0) < 1:
            raise ValueError(f"{self.modality} of shape {self.shape}; wanted {axes[self.modality]} positive sides")
        if self.levels != 0 and not 2 <= self.levels <= 256:
            raise ValueError(f"{self.levels} levels; wanted 2 to 256, or 0 for real values")
        if (self.sample_rate is not None) != (self.modality == "audio"):
            raise ValueError(f"{self.modality} with sample_rate {self.sample_rate}; audio has a rate in Hz, nothing else has")
        if self.companding and (self.modality != "audio" or self.levels != 256):
            raise ValueError(f"mu-law on {self.modality} of {self.levels} levels; it is defined for audio of 256 levels")
        if self.classes < 0:
            raise ValueError(f"{self.classes} classes; wanted 0 (unlabelled) or more")

    @property
    def dims(self) -> int:
        """How many numbers one example has."""
        return math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "shape": list(self.shape), "condition": self.condition.to_json() if self.condition else None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Event":
        condition = value.get("condition")
        return cls(**{**value, "shape": tuple(value["shape"]), "condition": cls.from_json(condition) if condition else None})

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        kind = f"{self.levels} levels" if self.levels else "real values"
        return f"{self.modality} {size}, {kind}" + (f", {self.classes} classes" if self.classes else "")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B examples. x (B, *shape) uint8 levels (float32 where levels = 0); y (B,) int64, -1 unlabelled; c condition (B, *condition.shape);
    length (B,) int64 valid steps; position (B,) int64 in the stream; step: the global step."""

    x: Tensor
    y: Tensor | None = None
    c: Tensor | None = None
    length: Tensor | None = None
    position: Tensor
    step: int = 0

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, start: int, stop: int) -> "Batch":
        return self._map(lambda column: column[start:stop])

    def to(self, device: torch.device | str) -> "Batch":
        return self._map(lambda column: column.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        columns = {name: getattr(self, name) for name in ("x", "y", "c", "length", "position")}
        return replace(self, **{name: change(column) for name, column in columns.items() if column is not None})
