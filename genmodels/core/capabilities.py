"""What a model can do. Capabilities are abstract base classes, so a test for one is `isinstance` and never a look at names."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar, final

import torch
from torch import Tensor
from torch.distributions import Distribution

from genmodels.core.event import Event
from genmodels.core.model import GenerativeModel, blocks
from genmodels.noise import Noise

State = TypeVar("State")


class Density(GenerativeModel):
    """Has an exact likelihood that sums to one over the event."""

    @abstractmethod
    def conditional_log_prob(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, length: Tensor | None) -> Tensor:
        """x (B, *shape) levels, checked; y (B,) int64 where the event has classes -> (B,) nats, log p(x | y, c) of the first `length` steps."""

    @final
    def log_prob(self, x: Tensor, y: Tensor | None = None, c: Tensor | None = None, *, length: Tensor | None = None) -> Tensor:
        """x (B, *shape) levels -> (B,) nats, exact. Without y on a class model: log p(x) = logsumexp over labels of log p(x|y) + log p(y)."""
        x = self.examples(x)
        c = self.given(x, c)
        length = None if length is None else length.to(self.device, torch.int64)
        if self.event.classes == 0 or y is not None:
            return self.conditional_log_prob(x, y=self.condition(y, len(x)), c=c, length=length)
        return torch.logsumexp(self.joint_log_prob(x, c, length=length), dim=-1)

    @final
    def joint_log_prob(self, x: Tensor, c: Tensor | None = None, *, length: Tensor | None = None) -> Tensor:
        """x (B, *shape) levels -> (B, classes) nats, log p(x, y) for every label y."""
        c = self.given(x, c)
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


class Encodes(GenerativeModel):
    """Maps examples to a distribution over its latent event."""

    latent: Event

    @abstractmethod
    def encode(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        """x (B, *shape) levels -> q(z | x, y) with batch shape (B, latent dims)."""

    @final
    def features(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """x (B, *shape) levels -> (B, latent dims) float32: the mean code, for other tasks to learn from."""
        with torch.no_grad():
            return self.encode(x, y).mean.flatten(1).float()


class Decodes(GenerativeModel):
    """Maps points of its latent event to examples."""

    latent: Event

    @abstractmethod
    def codes(self, noise: Noise) -> Tensor:
        """(B, *latent.shape): the codes that `draw` makes its examples of, from the prior."""

    @abstractmethod
    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """z (B, *latent.shape) -> (B, *shape) levels: the most likely, or for a generator the only, example."""

    @final
    def decode_rows(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """As `decode`, in blocks of one size: a row's levels are the same whichever rows it is decoded with."""
        each = [self.decode(z[rows], None if y is None else y[rows])[:count] for rows, count in blocks(len(z))]
        return torch.cat(each) if each else self.decode(z, y)

    @final
    def path(self, a: Tensor, b: Tensor, steps: int) -> Tensor:
        """a, b (B, *latent.shape) -> (B, steps, *latent.shape): codes on the great circle from a to b, both of them included.

        Sampling Generative Networks (White, 2016), arXiv:1609.04468: codes of a wide Gaussian lie near a sphere, which a straight line leaves.
        Raises ValueError for codes of bits, which have nothing between them, and for fewer than two steps.
        """
        if self.latent.levels:
            raise ValueError(f"codes of {self.latent.levels} levels have nothing between them; a path needs real-valued codes")
        if steps < 2 or a.shape != b.shape or tuple(a.shape[1:]) != self.latent.shape:
            raise ValueError(
                f"{steps} steps from codes of shape {tuple(a.shape)} to {tuple(b.shape)}; wanted at least 2, and (n, {self.latent.dims})"
            )
        found = _great_circle(a.flatten(1).double(), b.flatten(1).double(), steps).to(a.dtype)
        return found.reshape(len(a), steps, *self.latent.shape)

    @final
    def interpolate(self, a: Tensor, b: Tensor, steps: int, y: Tensor | None = None) -> Tensor:
        """a, b (B, *latent.shape) -> (B, steps, *shape) levels, decoded along `path`, each row under its label. Raises ValueError as `path`."""
        labels = None if y is None else y.repeat_interleave(steps, 0)
        return self.decode_rows(self.path(a, b, steps).flatten(0, 1), labels).reshape(len(a), steps, *self.event.shape)


def _great_circle(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """a, b (B, D) -> (B, steps, D); a straight line where the two point the same way or opposite ways."""
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1).clamp(-1, 1)
    angle, share = torch.acos(cosine)[:, None, None], torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device)[None, :, None]
    curved = (torch.sin((1 - share) * angle) * a[:, None] + torch.sin(share * angle) * b[:, None]) / torch.sin(angle)
    path = torch.where(torch.sin(angle) > 1e-6, curved, (1 - share) * a[:, None] + share * b[:, None])
    path[:, 0], path[:, -1] = a, b
    return path


@dataclass(frozen=True, kw_only=True)
class Completion:
    """x (B, *shape) levels, the known part untouched; how it was filled in, and whether every row exactly; ess (B,): effective sample size of the
    rows that were weighted, NaN of those that were not."""

    x: Tensor
    method: str
    exact: bool
    ess: Tensor | None = None


class Completes(GenerativeModel):
    """Fills in missing values."""

    @abstractmethod
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        seed: int,
        y: Tensor | None = None,
        c: Tensor | None = None,
        temperature: float = 1.0,
        first: int = 0,
    ) -> Completion:
        """x (B, *shape) levels, known (*shape) or (B, *shape) bool; what x holds where nothing is known is not looked at.

        Row i is completion first + i of the seed: the same x given B times has B different futures. Raises ValueError for a mask of another
        shape, or a label, condition or temperature that this model does not take.
        """

    @final
    def mask(self, known: Tensor, n: int) -> Tensor:
        """known (*shape) or (n, *shape) bool -> (n, *shape) bool on the model's device. Raises ValueError for anything else."""
        if tuple(known.shape) not in (self.event.shape, (n, *self.event.shape)) or known.dtype != torch.bool:
            raise ValueError(
                f"known values marked by {known.dtype} of shape {tuple(known.shape)}; wanted bool of shape {self.event.shape}, or one mask a row"
            )
        return known.to(self.device).expand(n, *self.event.shape)


class Progressive(GenerativeModel, Generic[State]):
    """Draws an example step by step; the caller owns the state, and the bytes do not depend on how the steps are grouped.

    Streaming, cancelling and going on later are loops around `advance`; `copied` of a state is one that may be gone on from twice.
    """

    @property
    @abstractmethod
    def steps(self) -> int:
        """How many steps one example takes."""

    @abstractmethod
    def begin(self, noise: Noise, *, y: Tensor | None, c: Tensor | None, temperature: Tensor) -> State:
        """The state before the first step, one row of the noise an example."""

    @abstractmethod
    def advance(self, state: State, k: int) -> State:
        """Draws k more steps, or as many as are left; writes to the state and returns it."""

    @abstractmethod
    def read(self, state: State) -> Tensor:
        """(B, *shape) levels drawn so far, 0 where nothing is drawn yet."""

    def draw(self, noise: Noise, *, y: Tensor | None, c: Tensor | None, temperature: Tensor) -> Tensor:
        return self.read(self.advance(self.begin(noise, y=y, c=c, temperature=temperature), self.steps))


class Chained(GenerativeModel):
    """Draws by a Markov chain a sample, of stated length, whose stationary law is the model: approximate."""

    @property
    @abstractmethod
    def chain(self) -> str:
        """Which chain, how long and from where, in words: "block Gibbs, 1,000 steps from independent bits"."""


class Classifies(GenerativeModel):
    """Labels examples."""

    classifies_by: ClassVar[str]
    """What the labels' probabilities are: "Bayes' rule, exact", or "the recognition network q(y|x)"."""

    @abstractmethod
    def classify(self, x: Tensor, c: Tensor | None = None, *, length: Tensor | None = None) -> Tensor:
        """x (B, *shape) levels -> (B, classes) nats, log p(y | x). Raises ValueError on an unlabelled model."""


class ByBayes(Classifies, Density):
    """Labels examples by Bayes' rule, p(y|x) ~ p(x|y) p(y)."""

    classifies_by = "Bayes' rule, exact"

    def classify(self, x: Tensor, c: Tensor | None = None, *, length: Tensor | None = None) -> Tensor:
        if self.event.classes == 0:
            raise ValueError("an unlabelled model has no classes to choose from")
        return torch.log_softmax(self.joint_log_prob(self.examples(x), c, length=length), dim=-1)
