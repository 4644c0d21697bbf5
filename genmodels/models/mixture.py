"""A Gaussian mixture with diagonal components, fitted by EM and scored by the exact mass of each level's box.

Maximum likelihood from incomplete data via the EM algorithm (Dempster, Laird, Rubin, 1977), Journal of the Royal Statistical Society B 39(1).

    p(x | y) = sum_m w_ym prod_d [Phi((x_d + 1/2 - mu_ymd) / s_ymd) - Phi((x_d - 1/2 - mu_ymd) / s_ymd)],    the end levels taking the tails.

EM ascends the continuous density at the level's value, sum_m w_m N(x; mu_m, s_m^2), under a floor of the scales, without which a component on one
example has no highest likelihood. Each label has components of its own; examples without a label count for all of them by p(y, m | x), values behind
a sound's length for none. The first pass chooses random examples as means (Forgy, 1965), moved a little so that twins among them can part.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genmodels.core import Autoregressive, Batch, Event, Iterated, Metrics
from genmodels.nn.likelihood import discretised_gaussian
from genmodels.noise import Noise

CHUNK = 2**22
"""Masses that are held at once, of rows times components times values."""


@dataclass
class Past:
    """What later values need of those taken so far."""

    y: Tensor
    """(B,) int64: whose components."""
    order: Tensor
    """(D,) or (B, D) int64."""
    posterior: Tensor
    """(B, M) float64 nats: log p(m | values so far), not yet divided by its sum."""
    masses: Tensor
    """(B, M, K) float64 nats of the next value."""
    step: int = 0


class Mixture(Iterated, Autoregressive):
    @dataclass(frozen=True, kw_only=True)
    class Config:
        """components: of each label; floor: the smallest scale, as a share of K - 1; tolerance: nats a value a pass, below which EM has converged."""

        components: int = 20
        floor: float = 0.05
        tolerance: float = 1e-4

        def __post_init__(self) -> None:
            if self.components < 1 or not 0 < self.floor <= 1 or self.tolerance < 0:
                raise ValueError(f"{self}; wanted at least one component, a floor above 0 up to 1 and a tolerance of at least 0")

    config: Config
    passes: Tensor
    """() int64: how many passes over the data it has seen."""
    loss_before: Tensor
    """() float64: the last pass's loss."""
    settled: Tensor
    """() bool."""

    def __init__(self, event: Event, config: Config) -> None:
        super().__init__(event, config)
        if not event.levels or event.condition is not None:
            raise ValueError(f"Mixture models levels without a condition; got {event}")
        shape = (max(1, event.classes), config.components, event.dims)
        top = event.levels - 1
        self.log_weights = _fixed(torch.zeros(shape[:2], dtype=torch.float64))
        self.means = _fixed(top * torch.rand(shape, dtype=torch.float64))
        self.log_scales = _fixed(torch.full(shape, math.log(top / 4), dtype=torch.float64))
        for name, start in (("passes", torch.tensor(0)), ("settled", torch.tensor(False))):
            self.register_buffer(name, start)
        self.register_buffer("loss_before", torch.tensor(0.0, dtype=torch.float64))

    @property
    def converged(self) -> bool:
        return bool(self.settled)

    @torch.no_grad()
    def iterate(self, data_pass: Iterable[Batch], noise: Noise) -> Metrics:
        """The first pass chooses where EM begins; every later one is an E step and an M step. loss: nats a value of the continuous density before
        the M step, of the first pass that of one Gaussian a label."""
        if int(self.passes) == 0:
            loss = Beginning(self).over(data_pass, noise)
        else:
            loss = self._em(data_pass)
            self.settled.fill_(self.loss_before - loss < self.config.tolerance and int(self.passes) > 1)
        self.loss_before.copy_(loss)
        self.passes += 1
        return {"loss": loss}

    def _em(self, data_pass: Iterable[Batch]) -> Tensor:
        sums = Sums(self.means)
        for batch in data_pass:
            x, valid = _flat(batch)
            for rows, own in _by_label(batch.y, len(x), len(self.means)):
                joint = self.log_density(x[rows], valid[rows], own)
                total = torch.logsumexp(joint, dim=1)
                sums.add(torch.exp(joint - total[:, None]), x[rows], valid[rows], own)
                sums.count(total, valid[rows])
        self.settle(sums)
        return sums.loss

    def log_density(self, x: Tensor, valid: Tensor, own: slice) -> Tensor:
        """x, valid (B, D) float64 -> (B, labels * M) nats: each component's weight times its density; over all labels times p(y) too."""
        means, log_scales = self.means[own].flatten(0, 1).double(), self.log_scales[own].flatten(0, 1).double()
        weights = self.log_weights[own].double().log_softmax(-1)
        if len(weights) > 1:
            weights = weights + self.class_frequencies.double().clamp(min=1e-300).log()[:, None]
        precision = torch.exp(-2 * log_scales)
        square = (valid * x * x) @ precision.T - 2 * (valid * x) @ (precision * means).T + valid @ (precision * means * means).T
        constant = valid @ (log_scales + math.log(2 * math.pi) / 2).T
        return weights.flatten() - constant - square / 2

    def settle(self, sums: "Sums") -> None:
        """The M step: moments of the examples weighted by responsibility. A component that nothing belongs to stays where it is."""
        seen = sums.valid > 0
        count = sums.valid.clamp(min=1e-300)
        means = sums.x / count
        variance = (sums.squares / count - means * means).clamp(min=self.narrowest**2)
        self.means.copy_(torch.where(seen, means, self.means))
        self.log_scales.copy_(torch.where(seen, variance.log() / 2, self.log_scales))
        some = sums.rows.sum(1, keepdim=True) > 0
        weights = sums.rows.clamp(min=1e-300).log().log_softmax(-1)
        self.log_weights.copy_(torch.where(some, weights, self.log_weights))

    @property
    def narrowest(self) -> float:
        """The smallest scale, in levels."""
        return self.config.floor * (self.event.levels - 1)

    def conditional_log_prob(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, length: Tensor | None) -> Tensor:
        """What the conditionals add up to, without them: a sum a component, then one over components."""
        valid = torch.ones_like(x.flatten(1)) if length is None else torch.arange(self.event.dims, device=x.device) < length[:, None]
        out = torch.empty(len(x), dtype=self.means.dtype, device=x.device)
        for part, each, weights in self._under_each(x, y):
            nats = (each * valid[part]).sum(-1) + weights[:, None]
            out[part] = torch.logsumexp(nats, dim=0).to(out.dtype)
        return out

    def conditional_log_probs(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, noise: Noise | None = None) -> Tensor:
        out = torch.empty(len(x), self.event.dims, dtype=self.means.dtype, device=x.device)
        for part, each, weights in self._under_each(x, y):
            out[part] = self.mixed(each.reshape(*each.shape[:2], *self.event.shape), weights).flatten(1).to(out.dtype)
        return out.reshape(x.shape)

    def _under_each(self, x: Tensor, y: Tensor | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows of one label at a time: their numbers (b,), nats (M, b, D) of every value under each component, and the log weights (M,)."""
        flat = x.flatten(1).long()
        size = max(1, CHUNK // self.means[0].numel())
        for rows, own in _by_label(y, len(x), len(self.means)):
            table = self._table(own.start) if len(rows) > self.event.levels else None
            for part in rows.split(size):
                yield part, self._masses(flat[part], own.start, table), self.log_weights[own.start].double().log_softmax(-1)

    def _table(self, label: int) -> Tensor:
        """(M, D, K) nats of every level of every value: fewer than the masses of many rows."""
        level = torch.arange(self.event.levels, dtype=torch.float64, device=self.device)
        mean, scale = self.means[label].double()[..., None], self.log_scales[label].double().exp()[..., None]
        return discretised_gaussian(level, mean, scale, self.event.levels)

    def _masses(self, x: Tensor, label: int, table: Tensor | None) -> Tensor:
        """x (B, D) int64 levels -> (M, B, D) nats under each component."""
        if table is None:
            mean, scale = self.means[label].double()[:, None], self.log_scales[label].double().exp()[:, None]
            return discretised_gaussian(x.double(), mean, scale, self.event.levels)
        return table[:, torch.arange(x.shape[1], device=x.device), x]

    def arranged(self, noise: Noise, known: Tensor | None) -> Tensor:
        if known is None:
            return self.order
        return self.order[torch.argsort(~known[:, self.order], dim=1, stable=True)]

    def start(self, order: Tensor, n: int, *, y: Tensor | None, c: Tensor | None) -> Past:
        y = torch.zeros(n, dtype=torch.int64, device=self.device) if y is None else y
        return Past(y, order, self.log_weights[y].double(), torch.empty(0, dtype=torch.float64, device=self.device))

    def predict(self, memory: Past) -> Tensor:
        place = memory.order[..., memory.step]
        mean, scale = self.means[memory.y, :, place].double(), self.log_scales[memory.y, :, place].double().exp()
        level = torch.arange(self.event.levels, dtype=torch.float64, device=self.device)
        memory.masses = discretised_gaussian(level, mean[..., None], scale[..., None], self.event.levels)
        return torch.logsumexp(memory.posterior.log_softmax(-1)[..., None] + memory.masses, dim=1)

    def take(self, memory: Past, level: Tensor) -> None:
        memory.posterior = memory.posterior + memory.masses[torch.arange(len(level), device=level.device), :, level]
        memory.step += 1


class Beginning:
    """Where EM begins, found in one pass: of each label as many random examples as it has components, and the scales of all its examples."""

    def __init__(self, model: Mixture) -> None:
        self._model, labels = model, len(model.means)
        self._sums = Sums(model.means[:, :1])
        self._chosen = [torch.empty(0, model.event.dims, dtype=torch.float64, device=model.device) for _ in range(labels)]
        self._keys = [torch.empty(0, dtype=torch.float64, device=model.device) for _ in range(labels)]

    def over(self, data_pass: Iterable[Batch], noise: Noise) -> Tensor:
        """Moves the model there -> nats a value of one Gaussian a label."""
        for batch in data_pass:
            x, valid = _flat(batch)
            # The examples with the lowest numbers: a sample that does not depend on how they come in batches. Positions break ties.
            keys = Noise(noise.seeds, position=batch.position, step=noise.step).uniform("example").double() + batch.position * 2.0**-52
            for rows, own in _by_label(batch.y, len(x), len(self._keys)):
                share = torch.full((len(rows), own.stop - own.start), 1 / (own.stop - own.start), dtype=torch.float64, device=x.device)
                self._sums.add(share, x[rows], valid[rows], own)
                for label in range(own.start, own.stop):
                    self._keep(label, keys[rows], torch.where(valid[rows] > 0, x[rows], math.nan))
        return self._place(noise)

    def _keep(self, label: int, keys: Tensor, x: Tensor) -> None:
        keys, x = torch.cat([self._keys[label], keys]), torch.cat([self._chosen[label], x])
        lowest = torch.argsort(keys)[: self._model.config.components]
        self._keys[label], self._chosen[label] = keys[lowest], x[lowest]

    def _place(self, noise: Noise) -> Tensor:
        model, sums = self._model, self._sums
        count = sums.valid.clamp(min=1e-300)
        mean = torch.where(sums.valid > 0, sums.x / count, (model.event.levels - 1) / 2)
        variance = torch.where(sums.valid > 0, sums.squares / count - mean * mean, model.means.new_tensor(model.event.levels**2 / 16))
        variance = variance.clamp(min=model.narrowest**2)
        apart = 0.2 * (noise.shared("apart", model.means.shape) - 0.5).to(model.device) * variance.sqrt()
        for label, chosen in enumerate(self._chosen):
            some = chosen[torch.arange(model.config.components) % len(chosen)] if len(chosen) else mean[label]
            model.means[label] = torch.where(some.isnan(), mean[label], some) + apart[label]
        model.log_scales.copy_((variance.log() / 2).expand_as(model.log_scales))
        distance = sums.squares - 2 * mean * sums.x + sums.valid * mean * mean
        return (sums.valid * (2 * math.pi * variance).log() + distance / variance).sum() / 2 / sums.valid.sum()


class Sums:
    """What the M step needs of a pass, in float64, per component of every label."""

    def __init__(self, means: Tensor) -> None:
        zeros = torch.zeros(means.shape, dtype=torch.float64, device=means.device)
        self.rows, self.valid, self.x, self.squares = zeros.sum(-1), zeros.clone(), zeros.clone(), zeros.clone()
        self._nats, self._values = zeros.sum(), zeros.sum()

    def add(self, share: Tensor, x: Tensor, valid: Tensor, own: slice) -> None:
        """share (B, labels * M): how much of each row is each component's."""
        shape = self.valid[own].shape
        self.rows[own] += share.sum(0).reshape(shape[:2])
        for total, values in ((self.valid, valid), (self.x, valid * x), (self.squares, valid * x * x)):
            total[own] += (share.T @ values).reshape(shape)

    def count(self, nats: Tensor, valid: Tensor) -> None:
        self._nats += nats.sum()
        self._values += valid.sum()

    @property
    def loss(self) -> Tensor:
        return -self._nats / self._values


def _fixed(value: Tensor) -> nn.Parameter:
    """Learnt, but not by descent."""
    return nn.Parameter(value, requires_grad=False)


def _flat(batch: Batch) -> tuple[Tensor, Tensor]:
    """(B, D) levels and which of them are valid, both float64."""
    x = batch.x.flatten(1).double()
    if batch.length is None:
        return x, torch.ones_like(x)
    return x, (torch.arange(x.shape[1], device=x.device) < batch.length[:, None]).double()


def _by_label(y: Tensor | None, n: int, labels: int) -> Iterator[tuple[Tensor, slice]]:
    """The rows of each label, and the labels whose components they may come from: their own, or all of them for rows that have none (-1)."""
    if y is None:
        yield torch.arange(n), slice(0, 1)
        return
    for label in y.unique().tolist():
        yield (y == label).nonzero()[:, 0], slice(label, label + 1) if label >= 0 else slice(0, labels)
