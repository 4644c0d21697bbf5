"""Products of conditionals, one a value: what every autoregressive family shares, from stepwise sampling to completion.

A family writes its conditionals twice: all at once, teacher-forced (`conditional_log_probs`, for training and scores), and one at a time
(`start`, `predict`, `take`), keeping what later values need. Sampling, completion, classification and compression are loops around the latter.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor

from genmodels.core import completion
from genmodels.core.capabilities import ByBayes, Completes, Completion, Progressive
from genmodels.core.completion import Given
from genmodels.core.drawing import Drawing, Eager, Fused, Place, Sampler, copied
from genmodels.core.event import Batch
from genmodels.core.model import Metrics, Tempered
from genmodels.noise import Noise, categorical

LN2 = 0.6931471805599453

TOGETHER = 1024
"""Rows drawn at once by a sampler that gives each the same bytes in any company."""


class Autoregressive(Tempered, Progressive[Drawing], Completes, ByBayes):
    """p(x) = prod_t p(x_o(t) | x_o(1), ..., x_o(t-1)) for an order o of the values: one conditional over the K levels a step."""

    temperature_scales = "the logits of every value"

    sampler: Sampler = Eager()
    """Who draws; zoo.build gives a model the fastest one that its machine has."""

    @property
    def order(self) -> Tensor:
        """(D,) int64: the place in the flattened event of the t-th value. Raster order here, the channels of a pixel together."""
        places = torch.arange(self.event.dims, device=self.device)
        return places.reshape(self.event.shape).movedim(0, -1).flatten() if self.event.modality == "image" else places

    def arranged(self, noise: Noise, known: Tensor | None) -> Tensor:
        """(D,) or (B, D) int64: the order in which a request's rows are drawn. known (B, D) bool: values that will be given, None for none.

        A family that can go in any order puts the known values first here, and completes any subset by that.
        """
        return self.order

    @property
    def averages_orders(self) -> bool:
        """Whether the density is a mixture over orders, one of which `arranged` draws for a row: known values then say which is the likelier one,
        so that they are not completed exactly by coming first in the one that was drawn."""
        return False

    @property
    def steps(self) -> int:
        return self.event.dims

    @abstractmethod
    def conditional_log_probs(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, noise: Noise | None = None) -> Tensor:
        """x (B, *shape) levels, checked -> (B, *shape) nats of each value given those before it in `order`. noise: of dropout, in training.

        Raises ValueError for a model that averages over several orders: that has no conditionals one by one.
        """

    @abstractmethod
    def start(self, order: Tensor, n: int, *, y: Tensor | None, c: Tensor | None) -> Any:
        """The memory of n rows of which nothing is known yet. order as `arranged` gave it; y (n,), c (n, *condition.shape)."""

    @abstractmethod
    def predict(self, memory: Any) -> Tensor:
        """(n, K) logits of the next value. Called once before each `take`; it may write to the memory."""

    @abstractmethod
    def take(self, memory: Any, level: Tensor) -> None:
        """level (n,) int64: what the next value turned out to be. Writes to the memory."""

    def conditional_log_prob(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, length: Tensor | None) -> Tensor:
        return _valid(self.conditional_log_probs(x, y=y, c=c), length).flatten(1).sum(1)

    @final
    def log_probs(self, x: Tensor, y: Tensor | None = None, c: Tensor | None = None, *, length: Tensor | None = None) -> Tensor:
        """x (B, *shape) levels -> (B, *shape) nats of each value given those before it: they add up to log_prob. Padding has 0.

        Without y on a class model these are the conditionals of p(x), labels summed over. Raises ValueError as `conditional_log_probs`.
        """
        x = self.examples(x)
        c = self.given(x, c)
        if self.event.classes == 0 or y is not None:
            return _valid(self.conditional_log_probs(x, y=self.condition(y, len(x)), c=c), length)
        each = [
            _valid(self.conditional_log_probs(x, y=torch.full((len(x),), label, device=self.device), c=c), length)
            for label in range(self.event.classes)
        ]
        return self.mixed(torch.stack(each), self.class_frequencies.log())

    @final
    def mixed(self, each: Tensor, log_weights: Tensor) -> Tensor:
        """each (M, B, *shape) nats of M models' conditionals in one `order`, log_weights (M,) -> (B, *shape): those of their mixture.

        p(x_t | past) = sum_m w_m p_m(x_<=t) / sum_m w_m p_m(x_<t).
        """
        flat = each.flatten(2).to(torch.float64)[..., self.order]
        joint = torch.cat([torch.zeros_like(flat[..., :1]), flat.cumsum(-1)], dim=-1) + log_weights.to(torch.float64)[:, None, None]
        steps = torch.logsumexp(joint, dim=0).diff(dim=-1)
        out = torch.empty_like(steps)
        out[:, self.order] = steps
        return out.reshape(each.shape[1:]).to(each.dtype)

    def loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Nats of each row's valid values over the event's dims, averaged over the rows."""
        c = self.given(batch.x, batch.c)
        each = self.conditional_log_probs(batch.x, y=batch.y, c=c, noise=noise if self.training else None)
        nats = -_valid(each, batch.length).flatten(1).sum(1)
        size = self.event.dims if batch.length is None else batch.length.clamp(min=1)
        return nats.mean() / self.event.dims, {"bits_per_dim": (nats.detach() / size).mean() / LN2}

    @final
    @torch.no_grad()
    def begin(
        self,
        noise: Noise,
        *,
        y: Tensor | None,
        c: Tensor | None,
        temperature: Tensor,
        x: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Drawing:
        """The state before the first step. x (B, *shape) levels and known (B, *shape) bool: values that are given and not drawn."""
        n, dims = len(noise), self.event.dims
        known = None if known is None else known.reshape(n, dims).to(self.device)
        order = self.arranged(noise, known)
        return Drawing(
            memory=self.sampler.begin(self, order, n, y=y, c=c) or self.start(order, n, y=y, c=c),
            order=order,
            uniforms=noise.uniform("levels", (dims,)),
            temperature=temperature[:, None],
            x=torch.zeros(n, dims, dtype=torch.uint8, device=self.device),
            log_weight=torch.zeros(n, dtype=torch.float64, device=self.device),
            given=None if x is None else x.reshape(n, dims).to(self.device, torch.int64),
            known=known,
        )

    @final
    def advance(self, state: Drawing, k: int) -> Drawing:
        if isinstance(state.memory, Fused):
            state.memory.advance(state, k)
            return state
        with torch.no_grad():
            for _ in range(min(k, self.steps - state.step)):
                self._step(state)
        return state

    @final
    def read(self, state: Drawing) -> Tensor:
        return state.x.reshape(len(state.x), *self.event.shape)

    @final
    @torch.no_grad()
    def next_logits(self, state: Drawing) -> Tensor:
        """(B, K) logits of the next value, from what is kept."""
        state = copied(state)
        if not isinstance(state.memory, Fused):
            return self.predict(state.memory)
        logits = torch.empty(len(state.x), 1, self.event.levels)
        state.memory.advance(state, 1, logits)
        return logits[:, 0].to(self.device)

    @property
    def equality_class(self) -> str:
        return self.sampler.equality_class(self)

    @final
    def drawn_together(self, n: int) -> Iterator[tuple[Tensor, int]]:
        if self.sampler.padded(self):
            return super().drawn_together(n)
        return ((rows, len(rows)) for rows in torch.arange(n).split(TOGETHER) if n)

    def _step(self, state: Drawing) -> None:
        logits = self.predict(state.memory)
        place = Place(state.order, state.step)
        level = categorical(logits / state.temperature, place.of(state.uniforms))
        if state.known is not None and state.given is not None:
            known, given = place.of(state.known), place.of(state.given)
            level = torch.where(known, given, level)
            nats = torch.log_softmax(logits.double(), dim=-1).gather(1, level[:, None])[:, 0]
            state.log_weight += torch.where(known, nats, 0)
        place.put(state.x, level)
        self.take(state.memory, level)
        state.step += 1

    @final
    @torch.no_grad()
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
        particles: int = 64,
    ) -> Completion:
        """As Completes.complete. Exact where the known values come first in the model's order; else importance resampling: `particles` examples
        drawn with the known values put in, each weighed by the probability of those, and one of them chosen; ess says how many counted.
        """
        given = self._given_to_complete(x, known, seed, range(first, first + len(x)), y, c)
        return completion.complete(self, given, temperature=temperature, particles=particles)

    @final
    def continues(self, known: Tensor, *, n: int, seed: int, first: int = 0) -> bool:
        """Whether `complete` draws n rows exactly, the known values (*shape) or (n, *shape) bool coming first in the order of each."""
        noise = Noise([seed] * n, position=range(first, first + n)).to(self.device)
        return bool(completion.come_first(self, noise, self.mask(known, n)).all())

    @final
    @torch.no_grad()
    def continued(
        self,
        x: Tensor,
        known: Tensor,
        *,
        seed: int,
        indices: Sequence[int],
        y: Tensor | None = None,
        c: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Drawing:
        """What `complete` draws where `continues` says so, before its first step: advanced to the end its rows are the completions of these
        indices."""
        return completion.begun(self, self._given_to_complete(x, known, seed, indices, y, c), temperature)

    def _given_to_complete(self, x: Tensor, known: Tensor, seed: int, indices: Sequence[int], y: Tensor | None, c: Tensor | None) -> Given:
        n, known = len(x), self.mask(known, len(x))
        x = self.examples(torch.where(known.to(x.device), x, 0))
        if c is None and self.event.condition is not None:
            raise ValueError(f"condition missing; this model's condition is: {self.event.condition}")
        noise = Noise([seed] * n, position=indices).to(self.device)
        labels = None if y is None and self.event.classes else self.condition(y, n)
        return Given(noise, x, known, labels, self.given(x, c))


def _valid(nats: Tensor, length: Tensor | None) -> Tensor:
    """Zero in place of what lies behind each row's length; nats (B, T)."""
    if length is None:
        return nats
    return nats * (torch.arange(nats.shape[1], device=nats.device) < length.to(nats.device)[:, None])
