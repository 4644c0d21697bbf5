"""What the tests of the models share: small events of every kind, and models whose weights are far from their first values."""

from typing import Any

import torch

from genmodels.core import Event, GenerativeModel
from genmodels.zoo import MODELS, build

EVENTS = {
    "binary": Event(modality="image", shape=(1, 5, 4), levels=2),
    "grey": Event(modality="image", shape=(1, 8, 8), levels=17, classes=3),
    "colour": Event(modality="image", shape=(3, 4, 5), levels=4, classes=2),
    "deep colour": Event(modality="image", shape=(3, 6, 6), levels=256),
    "mu-law": Event(modality="audio", shape=(40,), levels=256, sample_rate=8000, companding="mu-law", classes=3),
    "clicks": Event(modality="audio", shape=(24,), levels=4, sample_rate=1000),
    "table": Event(modality="table", shape=(6,), levels=3, classes=2),
}
"""A family is tried on every event of its modalities."""

FULL = {
    "image": Event(modality="image", shape=(1, 28, 28), levels=256, classes=10),
    "audio": Event(modality="audio", shape=(400,), levels=256, sample_rate=8000, companding="mu-law", classes=10),
}
"""Events of the size that recipes have: products of other shapes may take other kernels."""

COUNTABLE = {
    "binary": Event(modality="image", shape=(1, 3, 3), levels=2),
    "grey": Event(modality="image", shape=(1, 2, 2), levels=4, classes=2),
    "colour": Event(modality="image", shape=(3, 1, 2), levels=3),
    "clicks": Event(modality="audio", shape=(5,), levels=4, sample_rate=1000),
    "labelled clicks": Event(modality="audio", shape=(7,), levels=2, sample_rate=1000, classes=3),
    "table": Event(modality="table", shape=(6,), levels=3, classes=2),
}
"""Events of at most 1,024 states, all of which can be scored."""

TINY: dict[str, dict[str, Any]] = {
    "nade": {"hidden": (16,), "training": "fixed"},
    "made": {"hidden": (16, 12), "masks": 2},
    "row_lstm": {"hidden": 6, "layers": 1, "kernel": 7, "head": 8},
    "diagonal_bilstm": {"hidden": 6, "layers": 1, "kernel": 3, "head": 8},
    "pixelcnn": {"hidden": 8, "layers": 2, "kernel": 7, "head": 8},
    "gated_pixelcnn": {"hidden": 8, "layers": 2, "kernel": 3, "head": 8},
    "multiscale": {"scales": 1, "hidden": 8, "layers": 2, "kernel": 3, "head": 8},
    "mixture": {"components": 3},
    "gsn": {"hidden": (16,), "steps": 3},
    "helmholtz": {"hidden": (12, 6)},
    "pixelcnnpp": {"hidden": 8, "scales": 1, "components": 2},
    "wavenet": {"stacks": 1, "layers": 3, "residual": 8, "skip": 8},
}
"""Settings for tests that draw very often; a family that is not here is built with its defaults."""

UNFIT = {
    "bayesnet": {"deep colour", "image"},
    "rbm": {"grey", "colour", "deep colour", "table", "image"},
    "posterior": {"binary", "grey", "colour", "deep colour", "table", "image"},  # without settings a regression: a number given features
}
"""Events of its modalities that a family says it cannot take, which its own tests hold it to."""

PERSISTENT = {"rbm": {"particles", "moved"}}
"""What of its state a family's loss moves: chains that go on from one step to the next, as persistent contrastive divergence demands. Every other
loss leaves the state as it was."""


def cases(events: dict[str, Event], *capabilities: type[GenerativeModel]) -> list[tuple[str, str]]:
    """Every (family, event) of the zoo where the family has the capabilities and models such events."""
    families = [name for name, kind in MODELS.items() if all(issubclass(kind, capability) for capability in capabilities)]
    return [
        (family, name)
        for family in families
        for name, event in events.items()
        if event.modality in MODELS[family].modalities and name not in UNFIT.get(family, ())
    ]


def shaken(family: str, event: Event, *, seed: int = 0, by: float = 0.5, **config: Any) -> GenerativeModel:
    """A model in eval mode whose every parameter was moved, so that nothing is zero or uniform by luck of the first weights."""
    model = build(family, event, seed=seed, **config)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            width = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.add_(torch.randn(parameter.shape, generator=generator) * by / max(1, width) ** 0.5)
        if event.classes:
            model.class_frequencies.copy_(torch.softmax(torch.arange(event.classes).float(), 0))
    return model.eval()


def examples(event: Event, n: int, *, seed: int = 0) -> torch.Tensor:
    """(n, *shape) uint8 random levels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, event.levels, (n, *event.shape), generator=generator).to(torch.uint8)


def labels(event: Event, n: int) -> torch.Tensor | None:
    return torch.arange(n) % event.classes if event.classes else None


def states(event: Event) -> torch.Tensor:
    """(K^D, *shape) uint8: every state of a countable event."""
    axes = [torch.arange(event.levels)] * event.dims
    return torch.cartesian_prod(*axes).reshape(-1, *event.shape).to(torch.uint8)
