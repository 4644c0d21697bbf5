"""The Helmholtz machine: a sigmoid belief net that dreams pictures from bits, and a recognition net that guesses the bits of a picture.

The wake-sleep algorithm for unsupervised neural networks (Hinton, Dayan, Frey, Neal, 1995), Science 268; The Helmholtz machine (Dayan, Hinton,
Neal, Zemel, 1995), Neural Computation 7; and its modern variant, Reweighted Wake-Sleep (Bornschein, Bengio, 2015), arXiv:1406.2751.

    p(x, h) = p(h_L) p(h_L-1 | h_L) ... p(x | h_1),    q(h | x) = q(h_1 | x) ... q(h_L | h_L-1)

Every bit is a logistic regression on the layer beside it. Wake-sleep is the case of one guess: the wake phase fits p to pictures and the bits that q
guesses for them, the sleep phase fits q to bits that p dreams and their pictures. Reweighted, k guesses count by their importance p(x, h) / q(h | x),
and q learns awake and asleep alike.

We differ from the papers in three ways. The nets read a bit as -1 or 1, which is the same family of laws and learns faster. More than two levels are
told by a softmax or a mixture of discretised logistics (genmodels.nn.values). A label adds a vector of its own to the logits of every layer.

The latent event is the first layer of bits, h_1: q(h_1 | x) is a product of independent bits, p(h_1) can be drawn from exactly, and p(x | h_1) is a
product over pixels. Of a deeper layer none of this holds; `log_joint` and `log_posterior` speak of the bits of all layers side by side.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli

from genmodels.core import Batch, Bounded, Decodes, Encodes, Event, Metrics, Objective, Optimizer, Trained
from genmodels.nn import values
from genmodels.nn.conditioning import ClassBias, ClassLinear
from genmodels.nn.scaling import wide
from genmodels.noise import Noise

Algorithm = Literal["wake-sleep", "reweighted"]

ROWS = 512
"""Guesses that the bound of k draws looks at together."""


@dataclass(frozen=True)
class Told:
    """p(x | h) of B codes: independent pixels. raw (B, D, P)."""

    raw: Tensor
    event: Event

    def log_prob(self, x: Tensor) -> Tensor:
        """x (B, *shape) levels -> (B,) nats."""
        return values.log_prob(self.raw, x.flatten(1), self.event.levels).sum(-1)

    def draw(self, noise: Noise) -> Tensor:
        """(B, *shape) levels, a row of the noise each."""
        u = noise.uniform("levels", (self.event.dims, values.uniforms(self.event.levels)))
        return values.sample(self.raw, u, self.event.levels).reshape(-1, *self.event.shape)


class Helmholtz(Trained, Bounded, Encodes, Decodes):
    modalities = frozenset({"image"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """hidden: bits of each layer, from the picture up; k: guesses a picture in training (reweighted)."""

        hidden: tuple[int, ...] = (200, 200)
        algorithm: Algorithm = "reweighted"
        k: int = 5

        def __post_init__(self) -> None:
            object.__setattr__(self, "hidden", tuple(self.hidden))
            if self.algorithm not in get_args(Algorithm):
                raise ValueError(f"algorithm {self.algorithm!r}; wanted {' or '.join(get_args(Algorithm))}")
            if min(self.hidden, default=0) < 1 or self.k < 1:
                raise ValueError(f"{self}; wanted a hidden layer or more, and sizes of at least 1")

    config: Config

    def __init__(self, event: Event, config: Config) -> None:
        super().__init__(event, config)
        if event.levels == 0:
            raise ValueError(f"Helmholtz models levels; got {event}")
        self.latent = Event(modality="table", shape=(config.hidden[0],), levels=2, classes=event.classes)
        read, tell = values.input_features(event.levels), values.output_parameters(event.levels)
        self.recognition = nn.ModuleList(ClassLinear(a, b, event.classes) for a, b in pairwise([event.dims * read, *config.hidden]))
        self.generation = nn.ModuleList(ClassLinear(b, a, event.classes) for a, b in pairwise([event.dims * tell, *config.hidden]))
        self.top, self.top_label = nn.Parameter(torch.zeros(config.hidden[-1])), ClassBias(event.classes, config.hidden[-1])

    @property
    def bits(self) -> int:
        """How many there are in all layers."""
        return sum(self.config.hidden)

    def guess(self, x: Tensor, y: Tensor | None, u: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, *shape), u (B, k, bits) in [0, 1) -> bits (B, k, bits) drawn by u from q(h | x, y), layer after layer; their log q (B, k) nats."""
        h, drawn, log_q = self._read(x), [], u.new_zeros(u.shape[:2])
        for layer, part in zip(self.recognition, u.split(self.config.hidden, -1), strict=True):
            logits = wide(layer(h, y))
            drawn.append((part < torch.sigmoid(logits)).to(logits.dtype))
            log_q = log_q + _nats(logits, drawn[-1])
            h = _signs(drawn[-1])
        return torch.cat(drawn, -1), log_q

    def log_posterior(self, x: Tensor, bits: Tensor, y: Tensor | None) -> Tensor:
        """x (B, *shape), bits (B, k, bits) 0 or 1, of all layers from the picture up -> (B, k) nats, log q(h | x, y)."""
        layers = bits.split(self.config.hidden, -1)
        below = [self._read(x), *(_signs(h) for h in layers)]
        return torch.stack([_nats(wide(q(b, y)), h) for q, b, h in zip(self.recognition, below, layers, strict=False)]).sum(0)

    def log_joint(self, x: Tensor, bits: Tensor, y: Tensor | None) -> Tensor:
        """Arguments as log_posterior -> (B, k) nats, log p(x, h | y)."""
        layers = bits.split(self.config.hidden, -1)
        above = [_signs(h) for h in layers]
        hidden = [_nats(wide(p(a, y)), h) for p, a, h in zip(self.generation[1:], above[1:], layers, strict=False)]
        top = wide(self._prior(len(x), y))[:, None]
        pixels = x.flatten(1)[:, None].expand(-1, bits.shape[1], -1)
        return self._pixels(above[0], y, pixels) + torch.stack([*hidden, _nats(top, layers[-1])]).sum(0)

    def elbo(self, x: Tensor, y: Tensor | None, noise: Noise) -> Tensor:
        """(B,) nats: log of one importance weight. A class model without a label weighs the labels by their frequencies."""
        return self.iwae(x, y, 1, noise)

    def iwae(self, x: Tensor, y: Tensor | None, k: int, noise: Noise) -> Tensor:
        """(B,) nats, log of the mean of k importance weights. A class model without a label weighs the labels by their frequencies."""
        x = self.examples(x)
        if y is not None or self.event.classes == 0:
            return self._log_mean_weight(x, self.condition(y, len(x)), k, noise)
        # The weighted sum of unbiased estimates of p(x|y) is one of p(x), so its log is a lower bound in expectation too.
        labels = [torch.full((len(x),), label, device=self.device) for label in range(self.event.classes)]
        each = torch.stack([self._log_mean_weight(x, y, k, noise) for y in labels], dim=-1)
        return torch.logsumexp(each + self.class_frequencies.log(), dim=-1)

    def _log_mean_weight(self, x: Tensor, y: Tensor | None, k: int, noise: Noise) -> Tensor:
        """logsumexp(log w) - log k, w = p(x, h) / q(h | x), over chunks of guesses."""
        log_w = []
        for u in noise.uniform("iwae", (k, self.bits)).split(max(1, ROWS // len(x)), 1):
            bits, log_q = self.guess(x, y, u)
            log_w.append(self.log_joint(x, bits, y) - log_q)
        return torch.logsumexp(torch.cat(log_w, dim=1), dim=1) - math.log(k)

    def objectives(self) -> list[Objective]:
        generative = [*self.generation.parameters(), self.top, *self.top_label.parameters()]
        recognition = list(self.recognition.parameters())
        second = ("sleep", self.sleep_loss) if self.config.algorithm == "wake-sleep" else ("recognition", self.recognition_loss)
        return [
            Objective(name="wake", loss=self.wake_loss, parameters=generative, optimizer=Optimizer(lr=3e-3)),
            Objective(name=second[0], loss=second[1], parameters=recognition, optimizer=Optimizer(lr=3e-3)),
        ]

    def wake_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """-log p(x, h) of what q guesses for pictures, in nats a value; of k guesses each counts by its share of the weights. Among the
        metrics the bound of those guesses, by its name."""
        k = self.config.k if self.config.algorithm == "reweighted" else 1
        with torch.no_grad():
            bits, log_q = self.guess(batch.x, batch.y, noise.uniform("wake", (k, self.bits)))
        log_p = self.log_joint(batch.x, bits, batch.y)
        log_w = log_p.detach() - log_q
        loss = -(torch.softmax(log_w, dim=1) * log_p).sum(1).mean() / self.event.dims
        bound = (math.log(k) - torch.logsumexp(log_w, dim=1)).mean()
        name = f"iwae_{k}" if self.config.algorithm == "reweighted" else "elbo"
        return loss, {f"bits_per_dim_{name}": bound / self.event.dims / math.log(2)}

    def sleep_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """-log q(h | x) of what p dreams, in nats a bit. Of the batch only the number of its rows is looked at."""
        with torch.no_grad():
            y = self.drawn_labels(noise) if self.event.classes else None
            x, bits = self._dream(noise, y)
        return -self.log_posterior(x, bits[:, None], y).mean() / self.bits, {}

    def recognition_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """Half of the sleep phase, half of q's wake phase: -log q(h | x) of what it guesses for pictures, by the same weights."""
        bits, log_q = self.guess(batch.x, batch.y, noise.uniform("wake", (self.config.k, self.bits)))
        with torch.no_grad():
            share = torch.softmax(self.log_joint(batch.x, bits, batch.y) - log_q, dim=1)
        awake = -(share * log_q).sum(1).mean() / self.bits
        asleep = self.sleep_loss(batch, noise)[0]
        return (awake + asleep) / 2, {"awake": awake.detach(), "asleep": asleep.detach()}

    def encode(self, x: Tensor, y: Tensor | None = None) -> Bernoulli:
        """x (B, C, H, W) levels -> q(h_1 | x, y), independent bits of batch shape (B, hidden[0])."""
        x = self.examples(x)
        return Bernoulli(logits=wide(self.recognition[0](self._read(x)[:, 0], self.condition(y, len(x)))), validate_args=False)

    def codes(self, noise: Noise, y: Tensor | None = None) -> Tensor:
        """(B, hidden[0]) uint8 bits from p(h_1 | y); the labels are those that `sample` draws where none are given."""
        y = self.drawn_labels(noise) if y is None and self.event.classes else y
        return self._fantasy(noise, y)[:, : self.config.hidden[0]].to(torch.uint8)

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """z (B, hidden[0]) bits -> (B, C, H, W) uint8: the most likely level of each sub-pixel. Raises ValueError for codes that are no bits."""
        if z.ndim != 2 or z.shape[1] != self.config.hidden[0]:
            raise ValueError(f"codes of shape {tuple(z.shape)}; wanted (n, {self.config.hidden[0]})")
        if bool(((z != 0) & (z != 1)).any()):
            raise ValueError(f"codes with a value {z[(z != 0) & (z != 1)][0].item():g}; wanted bits, 0 or 1: round a mean")
        with torch.no_grad():
            return values.mode(self._told(_signs(z.to(self.device)), self.condition(y, len(z))), self.event.levels).reshape(
                -1, *self.event.shape
            )

    def draw(self, noise: Noise, *, y: Tensor | None, c: Tensor | None, temperature: Tensor) -> Tensor:
        return self._dream(noise, y)[0]

    def _dream(self, noise: Noise, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, *shape) and bits (B, bits) from p(x, h | y)."""
        bits = self._fantasy(noise, y)
        return self.told(bits, y).draw(noise), bits

    def told(self, bits: Tensor, y: Tensor | None) -> "Told":
        """bits (B, bits), of which the first layer's matter -> p(x | h, y)."""
        return Told(self._told(_signs(bits[:, : self.config.hidden[0]]), y), self.event)

    def _fantasy(self, noise: Noise, y: Tensor | None) -> Tensor:
        """(B, bits) from p(h | y), drawn from the top down."""
        *lower, top = noise.uniform("hidden", (self.bits,)).split(self.config.hidden, -1)
        layers = [(top < torch.sigmoid(wide(self._prior(len(noise), y)))).to(top.dtype)]
        for layer, u in zip(reversed(self.generation[1:]), reversed(lower), strict=True):
            layers.append((u < torch.sigmoid(wide(layer(_signs(layers[-1]), y)))).to(u.dtype))
        return torch.cat(layers[::-1], -1)

    def _prior(self, n: int, y: Tensor | None) -> Tensor:
        return self.top_label(self.top.expand(n, -1), y)

    def _read(self, x: Tensor) -> Tensor:
        """(B, 1, features): what the recognition net reads of a picture."""
        return values.features(x.flatten(1), self.event.levels, self.top.dtype).flatten(1)[:, None]

    def _told(self, signs: Tensor, y: Tensor | None) -> Tensor:
        """(B, ..., hidden[0]) -> (B, ..., D, P): what the first layer says of each value."""
        return self.generation[0](signs.to(self.top.dtype), y).unflatten(-1, (self.event.dims, -1))

    def _pixels(self, signs: Tensor, y: Tensor | None, x: Tensor) -> Tensor:
        return values.log_prob(self._told(signs, y), x, self.event.levels).sum(-1)


def _signs(bits: Tensor) -> Tensor:
    return 2 * bits - 1


def _nats(logits: Tensor, bits: Tensor) -> Tensor:
    """(..., H) each -> (...) nats of independent bits."""
    return F.logsigmoid(logits * _signs(bits)).sum(-1)
