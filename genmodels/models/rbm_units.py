"""The units of a restricted Boltzmann machine: its energy, its two conditionals, and its partition function, counted out or annealed.

    E(v, h) = -b.v - c.h - h.W v,    v = (x, one-hot y): D bits, then a softmax group of the labels where there are any

On the Quantitative Analysis of Deep Belief Networks (Salakhutdinov, Murray, 2008), ICML, for the annealed estimate. We differ in the inverse
temperatures, which are evenly spaced: at a few thousand of them the paper's, dense towards 1, gave intervals twice as wide.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.core import Partition
from genmodels.noise import Noise, categorical

COUNTABLE = 16
"""Units of the smaller side whose states are counted out for an exact partition function."""

CHUNK = 4096
"""States counted at once."""

DRAWN = 16
"""Gibbs steps whose random numbers are made at once: one call is cheaper than many."""


@dataclass(frozen=True)
class Units:
    """weight (H, V), visible (V,) and hidden (H,) biases; V = D + classes."""

    weight: Tensor
    visible: Tensor
    hidden: Tensor
    classes: int

    @property
    def bits(self) -> int:
        """D."""
        return len(self.visible) - self.classes

    @property
    def draws(self) -> int:
        """Uniforms of one Gibbs step: one a hidden unit, one a bit, one of the label."""
        return len(self.hidden) + self.bits + min(1, self.classes)

    def double(self) -> "Units":
        return Units(self.weight.detach().double(), self.visible.detach().double(), self.hidden.detach().double(), self.classes)

    def inputs(self, v: Tensor) -> Tensor:
        """v (B, V) -> (B, H): the logits of p(h | v)."""
        return F.linear(v, self.weight, self.hidden)

    def logits(self, h: Tensor) -> Tensor:
        """h (B, H) -> (B, V): those of p(v | h)."""
        return torch.addmm(self.visible, h, self.weight)

    def free_energy(self, v: Tensor, inputs: Tensor) -> Tensor:
        """v (B, V) and its inputs (B, H) -> (B,) nats: -log sum_h exp(-E(v, h)) = -b.v - sum_j softplus(c_j + W_j.v)."""
        return -(v @ self.visible) - F.softplus(inputs).sum(1)

    def under_each(self, x: Tensor) -> Tensor:
        """x (B, D) -> (B, H, classes or 1): the logits of p(h | x, y) for every label y."""
        inputs = F.linear(x, self.weight[:, : self.bits], self.hidden)[..., None]
        return inputs + self.weight[:, self.bits :] if self.classes else inputs

    def log_weights(self, x: Tensor) -> Tensor:
        """x (B, D) -> (B, classes or 1) nats: log sum_h exp(-E(x, y, h)) for every label y (Larochelle and Bengio, 2008, eq. 2)."""
        nats = (x @ self.visible[: self.bits])[:, None] + F.softplus(self.under_each(x)).sum(1)
        return nats + self.visible[self.bits :] if self.classes else nats

    def log_sum(self, logits: Tensor) -> Tensor:
        """logits (..., V) -> (...) nats: log of the sum over all v of exp(logits . v)."""
        total = F.softplus(logits[..., : self.bits]).sum(-1)
        return total + logits[..., self.bits :].logsumexp(-1) if self.classes else total

    def gibbs(self, v: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """v (B, V), u (B, draws) uniforms -> h (B, H) drawn given v, and v drawn given that h: one step of block Gibbs."""
        h = (u[:, : len(self.hidden)] < torch.sigmoid(self.inputs(v))).to(v.dtype)
        return h, self.drawn(self.logits(h), u[:, len(self.hidden) :])

    def drawn(self, logits: Tensor, u: Tensor) -> Tensor:
        """logits (B, V), u (B, D + 1 of the label) -> (B, V): bits, and a one-hot label."""
        x = (u[:, : self.bits] < torch.sigmoid(logits[:, : self.bits])).to(logits.dtype)
        if not self.classes:
            return x
        return torch.cat([x, F.one_hot(categorical(logits[:, self.bits :], u[:, self.bits]), self.classes).to(x.dtype)], dim=1)


def uniforms(noise: Noise, tag: str, steps: int, draws: int) -> Iterator[Tensor]:
    """(B, draws) of one step after the other."""
    for chunk, start in enumerate(range(0, steps, DRAWN)):
        yield from noise.uniform(f"{tag}.{chunk}", (min(DRAWN, steps - start), draws)).unbind(1)


def log_partition(units: Units, base: Tensor, noise: Noise, temperatures: int) -> Partition:
    """log Z in nats: counted out where one side has few enough units, else annealed from the base (V,), a row of the noise a chain."""
    with torch.no_grad():
        if min(units.bits, len(units.hidden)) <= COUNTABLE:
            return counted(units.double())
        return annealed(units, base, noise, temperatures)


def counted(units: Units) -> Partition:
    """log Z as a sum over the states of the smaller side; the other side is summed in closed form."""

    def given_hidden(h: Tensor) -> Tensor:
        return h @ units.hidden + units.log_sum(units.logits(h))

    def given_bits(x: Tensor) -> Tensor:
        return units.log_weights(x).logsumexp(1)

    hidden = len(units.hidden) <= units.bits
    n, what = (len(units.hidden), "hidden") if hidden else (units.bits, "visible")
    value = float(_sum_over_bits(n, given_hidden if hidden else given_bits, units.hidden))
    return Partition(value=value, interval=(value, value), method=f"exact: all {2**n:,} {what} states", exact=True)


def _sum_over_bits(n: int, log_weight: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """log of the sum of exp(log_weight) over all states of n bits."""
    places, totals = torch.arange(n, device=like.device), []
    for index in torch.arange(2**n, device=like.device).split(CHUNK):
        totals.append(log_weight((index[:, None] >> places & 1).to(like.dtype)).logsumexp(0))
    return torch.stack(totals).logsumexp(0)


def annealed(units: Units, base: Tensor, noise: Noise, temperatures: int) -> Partition:
    """log Z by annealed importance sampling (Salakhutdinov and Murray, algorithm 1), from independent visible units of biases base (V,).

    The distribution at beta is itself a machine's: weights beta W, biases beta c and (1 - beta) base + beta b (eq. 17).
    """
    v = units.drawn(base.expand(len(noise), -1), noise.uniform("ais.start", (units.bits + 1,)))
    log_w, apart = torch.zeros(len(noise), dtype=torch.float64, device=v.device), (units.visible - base).double()
    before = 0.0
    for step, u in enumerate(uniforms(noise, "ais", temperatures, units.draws), start=1):
        beta, inputs = step / temperatures, units.inputs(v)
        log_w += (beta - before) * (v.double() @ apart)
        log_w += (F.softplus(beta * inputs) - F.softplus(before * inputs)).double().sum(1)
        h = (u[:, : len(units.hidden)] < torch.sigmoid(beta * inputs)).to(v.dtype)
        v = units.drawn(beta * units.logits(h) + (1 - beta) * base, u[:, len(units.hidden) :])
        before = beta
    start = float(units.log_sum(base.double())) + len(units.hidden) * math.log(2)
    value, error = log_mean(log_w)
    method = f"AIS, {len(noise):,} chains, {temperatures:,} temperatures"
    return Partition(value=start + value, interval=(start + value - 1.96 * error, start + value + 1.96 * error), method=method, exact=False)


def log_mean(log_w: Tensor) -> tuple[float, float]:
    """log_w (M,) nats, M >= 2 -> log of the mean weight, and its standard error by the jackknife.

    Where one weight outweighs all others the error of the delta method, the weights' deviation over their mean, is at most 1; the jackknife's is as
    large as what leaving that weight out changes.
    """
    m = len(log_w)
    value = log_w.logsumexp(0) - math.log(m)
    others = log_w.expand(m, m).masked_fill(torch.eye(m, dtype=torch.bool, device=log_w.device), -math.inf)
    left_out = others.logsumexp(1) - math.log(m - 1)
    error = ((m - 1) / m * (left_out - left_out.mean()).square().sum()).sqrt()
    return float(value), float(error)
