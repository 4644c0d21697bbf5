"""The central types: what is modelled (Event), what is learnt from (Batch, Objective), and what a model can do (the capabilities).

A family's class header tells the reader everything: `class GatedPixelCNN(Trained, Density, Tempered, Progressive, Classifies)`.
Capabilities are abstract base classes, so a test for one is `isinstance` and never a look at names.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Generic, Literal, TypeVar, final

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from genmodels.noise import Noise, categorical

BLOCK = 16
"""Rows that an eager sampler computes at once, padded: torch's last bit changes with the size of the batch, so the size never changes."""

Metrics = dict[str, Tensor]
State = TypeVar("State")


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
                blocks = [self._block(noise, start, y, c, temperature) for start in range(0, n, BLOCK)]
        finally:
            self.train(was_training)
        return torch.cat(blocks) if blocks else torch.empty(0, *self.event.shape, dtype=torch.uint8 if self.event.levels else torch.float32)

    def _block(self, noise: Noise, start: int, y: Tensor | None, c: Tensor | None, temperature: Tensor) -> Tensor:
        rows = torch.arange(start, start + BLOCK).clamp_(max=len(noise) - 1)
        block = Noise([noise.seeds[i % len(noise.seeds)] for i in rows.tolist()], position=noise.position[rows])
        columns = {"y": None if y is None else y[rows], "c": None if c is None else c[rows], "temperature": temperature[rows]}
        return self.draw(block, **columns)[: min(BLOCK, len(noise) - start)]

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
        if (c is not None) != (self.event.condition is not None):
            raise ValueError(f"condition {'given' if c is not None else 'missing'}; this model's condition is: {self.event.condition}")
        if c is not None and self.event.condition is not None and tuple(c.shape) != (len(noise), *self.event.condition.shape):
            raise ValueError(f"condition of shape {tuple(c.shape)}; wanted {(len(noise), *self.event.condition.shape)}")
        return y, None if c is None else c.to(self.device), temperature.to(self.device)

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
    def advance(self, data_pass: Iterable[Batch], noise: Noise) -> Metrics:
        """One pass or one round of chains."""

    @property
    @abstractmethod
    def converged(self) -> bool: ...


class Density(GenerativeModel):
    """Has an exact likelihood that sums to one over the event."""

    @abstractmethod
    def conditional_log_prob(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, length: Tensor | None) -> Tensor:
        """x (B, *shape) levels, checked; y (B,) int64 where the event has classes -> (B,) nats, log p(x | y, c) of the first `length` steps."""

    @final
    def log_prob(self, x: Tensor, y: Tensor | None = None, c: Tensor | None = None, *, length: Tensor | None = None) -> Tensor:
        """x (B, *shape) levels -> (B,) nats, exact. Without y on a class model: log p(x) = logsumexp over labels of log p(x|y) + log p(y)."""
        x = self.examples(x)
        length = None if length is None else length.to(self.device, torch.int64)
        if self.event.classes == 0 or y is not None:
            return self.conditional_log_prob(x, y=self.condition(y, len(x)), c=c, length=length)
        return torch.logsumexp(self.joint_log_prob(x, c, length=length), dim=-1)

    @final
    def joint_log_prob(self, x: Tensor, c: Tensor | None = None, *, length: Tensor | None = None) -> Tensor:
        """x (B, *shape) levels -> (B, classes) nats, log p(x, y) for every label y."""
        columns = [
            self.conditional_log_prob(x, y=torch.full((len(x),), label, device=self.device), c=c, length=length)
            for label in range(self.event.classes)
        ]
        return torch.stack(columns, dim=-1) + self.class_frequencies.log()


class Bounded(GenerativeModel):
    """Has lower bounds of the likelihood in place of the likelihood."""

    @abstractmethod
    def elbo(self, x: Tensor, y: Tensor | None, noise: Noise) -> Tensor:
        """x (B, *shape) levels -> (B,) nats: one draw of the evidence lower bound."""

    @abstractmethod
    def iwae(self, x: Tensor, y: Tensor | None, k: int, noise: Noise) -> Tensor:
        """x (B, *shape) levels -> (B,) nats: logsumexp(log w) - log k over k draws (Burda et al., 2015, eq. 8)."""


class Energy(GenerativeModel):
    """Has an unnormalised density."""

    @abstractmethod
    def energy(self, x: Tensor) -> Tensor:
        """x (B, *shape) levels -> (B,) nats: -log p(x) up to a constant."""

    @abstractmethod
    def log_partition(self, noise: Noise) -> tuple[float, tuple[float, float]]:
        """An estimate of the constant, nats, and its interval."""


class Encodes(GenerativeModel):
    """Maps examples to a distribution over its latent event."""

    @abstractmethod
    def encode(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        """x (B, *shape) levels -> q(z | x, y) with batch shape (B, latent dims)."""


class Decodes(GenerativeModel):
    """Maps points of its latent event to examples."""

    latent: Event

    @abstractmethod
    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """z (B, *latent.shape) -> (B, *shape) levels: the most likely, or for a generator the only, example."""


class Tempered(GenerativeModel):
    """Has a temperature; `temperature_scales` says what it scales."""

    temperature_scales: ClassVar[str]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """x (B, *shape) levels, the known part untouched; how it was filled in, whether exactly, and the effective sample size if weighted."""

    x: Tensor
    method: str
    exact: bool
    ess: Tensor | None = None


class Completes(GenerativeModel):
    """Fills in missing values."""

    @abstractmethod
    def complete(self, x: Tensor, known: Tensor, *, y: Tensor | None = None, c: Tensor | None = None, seed: int) -> Completion:
        """x (B, *shape) levels, known (*shape) or (B, *shape) bool."""


class Progressive(GenerativeModel, Generic[State]):
    """Draws an example step by step; the caller owns the state, and the bytes do not depend on how the steps are grouped."""

    steps: int
    """How many steps one example takes."""

    @abstractmethod
    def begin(self, noise: Noise, *, y: Tensor | None, c: Tensor | None, temperature: Tensor) -> State:
        """The state before the first step, one row of the noise an example."""

    @abstractmethod
    def advance(self, state: State, k: int) -> State:
        """Draws k more steps, or as many as are left."""

    @abstractmethod
    def read(self, state: State) -> Tensor:
        """(B, *shape) levels drawn so far, 0 where nothing is drawn yet."""

    def draw(self, noise: Noise, *, y: Tensor | None, c: Tensor | None, temperature: Tensor) -> Tensor:
        return self.read(self.advance(self.begin(noise, y=y, c=c, temperature=temperature), self.steps))


class Classifies(Density):
    """Labels examples by Bayes' rule, p(y|x) ~ p(x|y) p(y)."""

    def classify(self, x: Tensor, c: Tensor | None = None, *, length: Tensor | None = None) -> Tensor:
        """x (B, *shape) levels -> (B, classes) nats, log p(y | x). Raises ValueError on an unlabelled model."""
        if self.event.classes == 0:
            raise ValueError("an unlabelled model has no classes to choose from")
        return torch.log_softmax(self.joint_log_prob(self.examples(x), c, length=length), dim=-1)


CAPABILITIES: Mapping[str, type[GenerativeModel]] = {
    "density": Density,
    "bounded": Bounded,
    "energy": Energy,
    "encodes": Encodes,
    "decodes": Decodes,
    "tempered": Tempered,
    "completes": Completes,
    "progressive": Progressive,
    "classifies": Classifies,
}


def capabilities(model: GenerativeModel | type[GenerativeModel]) -> list[str]:
    """The names of what a model, or a family, can do."""
    family = model if isinstance(model, type) else type(model)
    return [name for name, capability in CAPABILITIES.items() if issubclass(family, capability)]
