"""What every model is (GenerativeModel), how it learns (Trained, Iterated) and what it descends (Objective)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from genmodels import machine
from genmodels.core.event import Batch, Event
from genmodels.noise import Noise, categorical

BLOCK = 16
"""Rows that an eager sampler computes at once, padded: torch's last bit changes with the size of the batch, so the size never changes."""

Metrics = dict[str, Tensor]


def blocks(n: int) -> Iterator[tuple[Tensor, int]]:
    """Row numbers (BLOCK,) of each block of n rows, the last one padded with its last row, and how many of them count."""
    for start in range(0, n, BLOCK):
        yield torch.arange(start, start + BLOCK).clamp_(max=n - 1), min(BLOCK, n - start)


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Defaults of an objective's optimiser; a recipe overrides them under train.objectives.<name>."""

    algorithm: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    momentum: float = 0.0
    clip: float = 1.0
    """Largest norm of the gradient of all the objective's parameters together; 0 leaves it alone."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One thing to descend. loss(batch, noise) -> (scalar, metrics): a mean over the batch's rows, so that slices weighted by their counts add up."""

    name: str
    loss: Callable[[Batch, Noise], tuple[Tensor, Metrics]]
    parameters: Sequence[nn.Parameter]
    every: int = 1
    optimizer: Optimizer = field(default_factory=Optimizer)


class GenerativeModel(nn.Module, ABC):
    """A model of one event. Everything at its public boundary speaks levels; how it scales them inside is its own affair."""

    VERSION: ClassVar[int] = 1
    """Raised when the same config and seed would give other numbers than before."""

    modalities: ClassVar[frozenset[str]] = frozenset({"image", "audio", "table"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of the family; with no arguments laptop-small."""

    class_frequencies: Tensor
    """(classes,) float32: how often each label came in the training set; p(y) wherever one is needed."""

    def __init__(self, event: Event, config: Any) -> None:
        super().__init__()
        if event.modality not in self.modalities:
            raise ValueError(f"{type(self).__name__} models {' and '.join(sorted(self.modalities))}; got {event}")
        self.event, self.config = event, config
        self.register_buffer("class_frequencies", torch.full((event.classes,), 1 / max(1, event.classes)))

    @property
    def device(self) -> torch.device:
        return self.class_frequencies.device

    @abstractmethod
    def draw(self, noise: Noise, *, y: Tensor | None, c: Tensor | None, temperature: Tensor) -> Tensor:
        """One example a row of the noise. y (B,) int64, c (B, *condition.shape), temperature (B,) float32 -> (B, *shape) levels."""

    @final
    def sample(
        self,
        n: int,
        *,
        seed: int,
        y: int | Sequence[int] | Tensor | None = None,
        c: Tensor | None = None,
        temperature: float = 1.0,
        first: int = 0,
    ) -> Tensor:
        """Samples first..first+n-1 of a seed -> (n, *shape) uint8 levels (float32 where levels = 0).

        Sample i depends on (weights, seed, i, y_i, c_i, temperature) alone: not on n, nor on its neighbours. y: a label for all or one for each;
        None draws labels by their training frequencies. Raises ValueError for a label, condition or temperature that this model does not take.
        """
        labels = None if y is None else torch.as_tensor(y, dtype=torch.int64).expand(n) if isinstance(y, int) else torch.as_tensor(y)
        return self.sample_rows([seed] * n, range(first, first + n), y=labels, c=c, temperature=torch.full((n,), float(temperature)))

    @final
    def sample_rows(
        self, seeds: Sequence[int], indices: Sequence[int], *, y: Tensor | None = None, c: Tensor | None = None, temperature: Tensor
    ) -> Tensor:
        """As `sample`, each row with a seed, an index and a temperature of its own: how a server answers several requests at once."""
        n = len(seeds)
        noise = Noise(seeds, position=list(indices)).to(self.device)
        y, c, temperature = self._asked(noise, y, c, temperature)
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                drawn = [
                    self.draw(
                        noise.pick(rows),
                        y=None if y is None else y[rows],
                        c=None if c is None else c[rows],
                        temperature=temperature[rows],
                    )[:count]
                    for rows, count in self.drawn_together(n)
                ]
        finally:
            self.train(was_training)
        return torch.cat(drawn) if drawn else torch.empty(0, *self.event.shape, dtype=torch.uint8 if self.event.levels else torch.float32)

    @property
    def withheld(self) -> Mapping[str, str]:
        """Capabilities of the family that this model's settings leave out, by name, and why."""
        return {}

    @property
    def equality_class(self) -> str:
        """Where this one is the same, the same request gives the same sample, bit for bit."""
        return machine.equality_class(device=self.device)

    def drawn_together(self, n: int) -> Iterator[tuple[Tensor, int]]:
        """The rows that are drawn at once, block after block, as `blocks` gives them."""
        return blocks(n)

    def _asked(self, noise: Noise, y: Tensor | None, c: Tensor | None, temperature: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """The request's columns on the model's device, or a ValueError that says which of them this model does not take."""
        if bool((temperature != 1).any()) and not isinstance(self, Tempered):
            raise ValueError(f"temperature other than 1 asked of {type(self).__name__}, which has no temperature; leave it at 1")
        if not bool(((temperature > 0) & temperature.isfinite()).all()):
            raise ValueError(f"temperature {temperature.min().item():g}; wanted a finite number above 0")
        if self.event.classes == 0 and y is not None:
            raise ValueError("a label was given to an unlabelled model; leave it out")
        if self.event.classes and y is None:
            y = self.drawn_labels(noise)
        if y is not None:
            y = self.labels(y, len(noise))
        if c is None and self.event.condition is not None:
            raise ValueError(f"condition missing; this model's condition is: {self.event.condition}")
        return y, None if c is None else self._fitting(c, len(noise)), temperature.to(self.device)

    def derive(self, x: Tensor) -> Tensor:
        """x (B, *shape) levels, checked -> (B, *condition.shape): what to condition on, in families that derive it from the example itself."""
        raise ValueError(f"condition missing; this model's condition is: {self.event.condition}")

    @final
    def given(self, x: Tensor, c: Tensor | None) -> Tensor | None:
        """The checked condition of examples on the model's device: c as given, or derived from x; None for a model without one."""
        if c is None and self.event.condition is not None:
            c = self.derive(x)
        return None if c is None else self._fitting(c, len(x))

    def _fitting(self, c: Tensor, n: int) -> Tensor:
        wanted = self.event.condition
        if wanted is None:
            raise ValueError("a condition was given; this model takes none: leave it out")
        if tuple(c.shape) != (n, *wanted.shape):
            raise ValueError(f"condition of shape {tuple(c.shape)}; wanted {(n, *wanted.shape)}")
        return c.to(self.device)

    @final
    def drawn_labels(self, noise: Noise) -> Tensor:
        """(B,) int64: the labels that `sample` gives rows nobody chose one for, by how often each came in training."""
        return categorical(self.class_frequencies.log().expand(len(noise), -1), noise.uniform("label"))

    @final
    def labels(self, y: Tensor, n: int) -> Tensor:
        """Checked labels on the model's device: y (n,) integers -> (n,) int64. Raises ValueError when one is outside 0..classes-1."""
        y = y.to(self.device, torch.int64)
        if tuple(y.shape) != (n,):
            raise ValueError(f"labels of shape {tuple(y.shape)}; wanted ({n},)")
        if bool(((y < 0) | (y >= self.event.classes)).any()):
            raise ValueError(f"label {y[(y < 0) | (y >= self.event.classes)][0].item()}; wanted 0 to {self.event.classes - 1}")
        return y

    @final
    def condition(self, y: Tensor | None, n: int) -> Tensor | None:
        """Checked labels where the event has classes, None where it has none. Raises ValueError for one too few or one too many."""
        if (y is None) != (self.event.classes == 0):
            raise ValueError(
                "this model is conditioned on labels; give y" if y is None else "a label was given to an unlabelled model; leave it out"
            )
        return None if y is None else self.labels(y, n)

    @final
    def examples(self, x: Tensor) -> Tensor:
        """Checked examples on the model's device. Raises ValueError for a wrong shape, or a value that is no level of the event."""
        if x.ndim != 1 + len(self.event.shape) or tuple(x.shape[1:]) != self.event.shape:
            raise ValueError(f"examples of shape {tuple(x.shape)}; wanted (n, {', '.join(map(str, self.event.shape))})")
        if self.event.levels == 0:
            return x.to(self.device, torch.float32)
        if x.is_floating_point():
            raise ValueError(f"examples of dtype {x.dtype}; wanted integer levels 0 to {self.event.levels - 1}")
        if len(x) and not 0 <= int(x.min()) <= int(x.max()) < self.event.levels:
            raise ValueError(f"levels from {x.min().item()} to {x.max().item()}; wanted 0 to {self.event.levels - 1}")
        return x.to(self.device, torch.uint8)


class Trained(GenerativeModel):
    """Learns by descent: genmodels.train.fit turns its objectives into one ordinary loop."""

    @abstractmethod
    def objectives(self) -> list[Objective]:
        """What to descend, in the order of a step's turns; their names are unique."""


class Iterated(GenerativeModel):
    """Learns by passes over the data or by chains: EM, Chow-Liu, coordinate ascent, MCMC."""

    @abstractmethod
    def iterate(self, data_pass: Iterable[Batch], noise: Noise) -> Metrics:
        """One pass or one round of chains."""

    @property
    @abstractmethod
    def converged(self) -> bool: ...

    def findings(self) -> Mapping[str, Any]:
        """What its record is to say of how it was learnt, such as whether its chains agree; JSON's values."""
        return {}


class Tempered(GenerativeModel):
    """Has a temperature; `temperature_scales` says what it scales."""

    temperature_scales: ClassVar[str]
