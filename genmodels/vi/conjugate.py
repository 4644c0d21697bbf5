"""Mean field by coordinate ascent: q = q_1 q_2 ..., each factor in turn set to its best given the others, in closed form.

log q_i(theta_i) = E_{q of the others}[log p(x, theta)] + constant (Pattern Recognition and Machine Learning, Bishop, 2006, eq. 10.9; the regression
is its 10.3 with one precision for weights and noise together, the mixture its 10.2 with diagonal precisions).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

Factors = TypeVar("Factors")


def coordinate_ascent(
    start: Factors,
    updates: Sequence[Callable[[Factors], Factors]],
    bound: Callable[[Factors], Tensor],
    *,
    sweeps: int,
    tolerance: float = 1e-10,
) -> tuple[Factors, list[float]]:
    """Sweeps over the updates until one of them raises the bound by less than `tolerance` times its size -> the factors, and the bound in nats after
    every sweep. Raises ValueError where the bound is no number, or fell: an update was then not the best of its factor."""
    factors, trace = start, list[float]()
    for _ in range(sweeps):
        for update in updates:
            factors = update(factors)
        trace.append(float(bound(factors)))
        before = trace[-2] if len(trace) > 1 else -math.inf
        slack = 1e-9 * max(1.0, abs(trace[-1]))
        if not math.isfinite(trace[-1]) or trace[-1] < before - slack:
            raise ValueError(
                f"sweep {len(trace)} took the bound from {before:g} to {trace[-1]:g} nats; check the data for NaN, and the updates"
            )
        if trace[-1] - before < tolerance * max(1.0, abs(trace[-1])):
            break
    return factors, trace


@dataclass(frozen=True, eq=False)
class NormalGamma:
    """q(w) q(lambda): w ~ N(mean (D,), covariance (D, D)), lambda ~ Gamma(shape (), rate ())."""

    mean: Tensor
    covariance: Tensor
    shape: Tensor
    rate: Tensor


@dataclass(frozen=True, eq=False)
class Regression:
    """y = X w + e, e ~ N(0, 1 / lambda), w | lambda ~ N(0, 1 / (precision lambda)), lambda ~ Gamma(shape, rate): the conjugate prior, so that the
    posterior and the evidence are known too. The data enter by X'X (D, D), X'y (D,), y'y () and how many rows there are."""

    gram: Tensor
    moment: Tensor
    square: Tensor
    rows: int
    precision: float = 1.0
    shape: float = 1.0
    rate: float = 1.0

    @property
    def peak(self) -> tuple[Tensor, Tensor]:
        """(D,) the mean of w and (D, D) its precision over lambda, of the exact posterior."""
        sharp = self.gram + self.precision * torch.eye(len(self.moment), dtype=torch.float64)
        return torch.linalg.solve(sharp, self.moment), sharp

    @property
    def exact(self) -> tuple[Tensor, Tensor, float, Tensor]:
        """The posterior w | lambda ~ N(mean, (lambda sharp)^-1), lambda ~ Gamma(shape, rate): mean, sharp, shape, rate."""
        mean, sharp = self.peak
        return mean, sharp, self.shape + self.rows / 2, self.rate + (self.square - mean @ sharp @ mean) / 2

    def evidence(self) -> float:
        """log p(y | X) in nats."""
        _, sharp, shape, rate = self.exact
        determinants = len(self.moment) * math.log(self.precision) - torch.logdet(sharp)
        gammas = math.lgamma(shape) - math.lgamma(self.shape) + self.shape * math.log(self.rate) - shape * torch.log(rate)
        return float(determinants / 2 + gammas) - self.rows * math.log(2 * math.pi) / 2

    def start(self) -> NormalGamma:
        dims = len(self.moment)
        one = torch.ones((), dtype=torch.float64)
        return NormalGamma(torch.zeros(dims, dtype=torch.float64), torch.eye(dims, dtype=torch.float64), one, one)

    @property
    def updates(self) -> tuple[Callable[[NormalGamma], NormalGamma], ...]:
        return self.weigh, self.measure

    def weigh(self, q: NormalGamma) -> NormalGamma:
        """The best q(w)."""
        mean, sharp = self.peak
        return replace(q, mean=mean, covariance=torch.linalg.inv(sharp) * q.rate / q.shape)

    def measure(self, q: NormalGamma) -> NormalGamma:
        """The best q(lambda)."""
        residual, length = self._squares(q)
        shape = torch.tensor(self.shape + (self.rows + len(self.moment)) / 2, dtype=torch.float64)
        return replace(q, shape=shape, rate=self.rate + (residual + self.precision * length) / 2)

    def bound(self, q: NormalGamma) -> Tensor:
        """() nats: the evidence lower bound, in closed form."""
        residual, length = self._squares(q)
        dims, expected, log_expected = len(q.mean), q.shape / q.rate, torch.digamma(q.shape) - torch.log(q.rate)
        data = self.rows * (log_expected - math.log(2 * math.pi)) / 2 - expected * residual / 2
        weights = dims * (log_expected + math.log(self.precision / (2 * math.pi))) / 2 - self.precision * expected * length / 2
        noise = self.shape * math.log(self.rate) - math.lgamma(self.shape) + (self.shape - 1) * log_expected - self.rate * expected
        entropy = dims * math.log(2 * math.pi * math.e) / 2 + torch.logdet(q.covariance) / 2
        return data + weights + noise + entropy + _gamma_entropy(q.shape, q.rate)

    def _squares(self, q: NormalGamma) -> tuple[Tensor, Tensor]:
        """E|y - X w|^2 and E|w|^2 under q."""
        second = q.covariance + torch.outer(q.mean, q.mean)
        return self.square - 2 * q.mean @ self.moment + (self.gram * second).sum(), second.trace()


@dataclass(frozen=True, eq=False)
class MixtureFactors:
    """q(z) q(pi) q(mu, tau): z_n ~ share (N, K), pi ~ Dirichlet(counts (K,)), tau ~ Gamma(shape (K, 1), rate (K, D)),
    mu | tau ~ N(mean (K, D), 1 / (strength (K, 1) tau))."""

    share: Tensor
    counts: Tensor
    mean: Tensor
    strength: Tensor
    shape: Tensor
    rate: Tensor


@dataclass(frozen=True, eq=False)
class MixtureMeanField:
    """x_n | z_n ~ N(mu_z, 1 / tau_z) a dimension, z_n ~ pi, pi ~ Dirichlet(count), tau ~ Gamma(shape, rate), mu | tau ~ N(0, 1 / (strength tau)).
    x (N, D) float64."""

    x: Tensor
    components: int
    count: float = 1.0
    strength: float = 0.1
    shape: float = 1.0
    rate: float = 1.0

    def start(self, centres: Tensor) -> MixtureFactors:
        """Every point to the nearest of the centres (K, D)."""
        nearest = (self.x[:, None] - centres).square().sum(-1).argmin(1)
        share = torch.nn.functional.one_hot(nearest, self.components).double()
        one = torch.ones(self.components, 1, dtype=torch.float64)
        return self.place(MixtureFactors(share, one[:, 0], centres, one, one, one.expand(centres.shape)))

    @property
    def updates(self) -> tuple[Callable[[MixtureFactors], MixtureFactors], ...]:
        return self.assign, self.place

    def expected(self, q: MixtureFactors) -> Tensor:
        """(N, K) nats: E[log p(x_n, z_n = k | pi, mu, tau)]."""
        weights = torch.digamma(q.counts) - torch.digamma(q.counts.sum())
        log_tau = torch.digamma(q.shape) - torch.log(q.rate)
        square = (self.x[:, None] - q.mean).square() * (q.shape / q.rate) + 1 / q.strength
        return weights + (log_tau - math.log(2 * math.pi) - square).sum(-1) / 2

    def assign(self, q: MixtureFactors) -> MixtureFactors:
        """The best q(z)."""
        return replace(q, share=self.expected(q).softmax(-1))

    def place(self, q: MixtureFactors) -> MixtureFactors:
        """The best q(pi) and q(mu, tau): the exact posterior, were the assignments' shares observed."""
        n = q.share.sum(0)[:, None]
        strength, first, second = self.strength + n, q.share.T @ self.x, q.share.T @ self.x.square()
        mean = first / strength
        rate = self.rate + (second - strength * mean.square()) / 2
        return replace(q, counts=self.count + n[:, 0], mean=mean, strength=strength, shape=self.shape + n / 2, rate=rate)

    def bound(self, q: MixtureFactors) -> Tensor:
        """() nats: the evidence lower bound, in closed form."""
        divergences = _dirichlet_divergence(q.counts, torch.full_like(q.counts, self.count)) + self._divergence(q).sum()
        return (q.share * self.expected(q)).sum() - torch.xlogy(q.share, q.share).sum() - divergences

    def _divergence(self, q: MixtureFactors) -> Tensor:
        """(K, D) nats: KL(q(mu, tau) || p(mu, tau))."""
        ratio = self.strength / q.strength
        means = (ratio - 1 - torch.log(ratio) + self.strength * q.mean.square() * q.shape / q.rate) / 2
        shape = q.shape.expand(q.rate.shape)
        expected, log_expected = shape / q.rate, torch.digamma(shape) - torch.log(q.rate)
        prior = self.shape * math.log(self.rate) - math.lgamma(self.shape) + (self.shape - 1) * log_expected - self.rate * expected
        return means - _gamma_entropy(shape, q.rate) - prior


def _gamma_entropy(shape: Tensor, rate: Tensor) -> Tensor:
    return shape - torch.log(rate) + torch.lgamma(shape) + (1 - shape) * torch.digamma(shape)


def _dirichlet_divergence(q: Tensor, p: Tensor) -> Tensor:
    """() nats: KL of Dirichlet(q) from Dirichlet(p)."""
    norms = torch.lgamma(q.sum()) - torch.lgamma(q).sum() - torch.lgamma(p.sum()) + torch.lgamma(p).sum()
    return norms + ((q - p) * (torch.digamma(q) - torch.digamma(q.sum()))).sum()
