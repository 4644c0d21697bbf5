"""What each family is trained with where all of them get the same budget."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """What a family is trained with: its Config's keys, and what of TrainConfig differs from the defaults here."""

    config: Mapping[str, Any]
    batch: int = 32
    lr: float = 3e-3
    ema: float = 0.999
    precision: str = "bf16"
    warmup: int = 50
    weight_decay: float = 0.0
    family: str | None = None
    """Where it is not the row's name."""


BINARY: dict[str, Setting] = {
    "fvbn": Setting({}, batch=128, lr=1e-2, precision="f32"),
    "nade": Setting({"hidden": (500,)}, batch=256, lr=3e-3),
    "made": Setting({"hidden": (1200,), "order": "random", "dropout": 0.25}, batch=256, lr=4e-3, weight_decay=0.2),
    "row_lstm": Setting({"hidden": 16, "layers": 3}, batch=32, lr=4e-3, precision="f32"),
    "diagonal_bilstm": Setting({"hidden": 16, "layers": 2}, batch=32, lr=4e-3, precision="f32"),
    "pixelcnn": Setting({"hidden": 32, "layers": 8}, batch=16, lr=4e-3),
    "gated_pixelcnn": Setting({"hidden": 32, "layers": 6, "kernel": 5, "head": 64, "dropout": 0.0}, batch=16, lr=4e-3),
    "multiscale": Setting({"hidden": 32, "layers": 5, "dropout": 0.0}, batch=16, lr=4e-3),
    "pixelcnnpp": Setting({"dropout": 0.0}, batch=16, lr=4e-3),
    "mixture": Setting({"components": 100}),
    "bayesnet": Setting({}),
    "vae": Setting({"hidden": 16, "latent": 32, "likelihood": "bernoulli"}, batch=64, lr=4e-3),
    "iwae": Setting({"hidden": 16, "latent": 32, "likelihood": "bernoulli", "objective": "iwae", "k": 5}, batch=32, lr=4e-3, family="vae"),
    "helmholtz": Setting({"hidden": (200, 200)}, batch=50, lr=6e-3, precision="f32"),
    "rbm": Setting({"hidden": 500, "particles": 100, "temperatures": 5_000}, batch=100, lr=2e-3, precision="f32"),
}
LEVELS: dict[str, Setting] = {
    **BINARY,
    "fvbn": Setting({}, batch=128, lr=3e-3, precision="f32"),
    "pixelcnnpp": Setting({"dropout": 0.0}, batch=16, lr=3e-3),
    "mixture": Setting({"components": 50}),
    "wavenet": Setting({"stacks": 2, "layers": 7}, batch=32, lr=4e-3),
}
SOUND: dict[str, Setting] = {**LEVELS, "made": Setting({"hidden": (500,), "dropout": 0.25}, batch=128, lr=3e-3, weight_decay=0.2)}
"""What differs with 256 levels, and with sounds."""
