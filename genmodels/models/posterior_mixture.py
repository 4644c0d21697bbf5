"""A Gaussian mixture whose weights, means and precisions are unknown, and which example belongs to which component.

Bayesian analysis of mixture models with label switching (Stephens, 2000): the likelihood is the same for every order of the components, so chains
may settle on different ones. Here chains run as they will, and a draw is kept with its components in the order of their means in the first column;
what is predicted does not depend on it.
"""

import math

import torch
from torch import Tensor

from genmodels.core import Event
from genmodels.models.posterior_targets import GIBBS, MEAN_FIELD, SMOOTH, Data, MeanField, Parametric, Target, Units
from genmodels.noise import Noise
from genmodels.vi import MixtureFactors, MixtureMeanField

SHAPE, RATE = 2.0, 0.5
"""Of the precisions' prior, in units of the whole column's variance: components are thought to be about half as wide as the data."""


class GaussianMixture(Parametric):
    """x ~ sum_k pi_k N(mu_k, 1 / tau_k), pi ~ Dirichlet(1), tau ~ Gamma(2, 1/2), mu | tau ~ N(0, prior_scale^2 / tau) a column, columns in units of
    their own mean and standard deviation. theta: log pi_k / pi_K of all but the last, mu (K, D), log tau (K, D)."""

    methods = SMOOTH | {GIBBS, MEAN_FIELD}

    def __init__(self, event: Event, prior_scale: float, components: int) -> None:
        super().__init__()
        if event.levels or event.condition is not None or event.modality != "table":
            raise ValueError(f"{event}: target mixture models a table of real values without a condition; leave data.table.target out")
        self.components, self.columns, self.strength = components, event.dims, prior_scale**-2
        self.units = Units(event.dims)
        each = [f"[{k},{d}]" for k in range(components) for d in range(event.dims)]
        self.names = (*(f"logit[{k}]" for k in range(components - 1)), *(f"mu{i}" for i in each), *(f"log tau{i}" for i in each))
        self.natural = (*(f"pi[{k}]" for k in range(components)), *(f"mu{i}" for i in each), *(f"tau{i}" for i in each))

    def see(self, data: Data) -> None:
        self.units.see(data.x)

    def split(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """theta (..., d) -> log pi (..., K), mu and log tau (..., K, D)."""
        logits, mu, log_tau = theta.split([self.components - 1, self.components * self.columns, self.components * self.columns], -1)
        both = torch.cat([logits, torch.zeros_like(theta[..., :1])], -1)
        shape = (self.components, self.columns)
        return both.log_softmax(-1), mu.unflatten(-1, shape), log_tau.unflatten(-1, shape)

    def joined(self, log_pi: Tensor, mu: Tensor, log_tau: Tensor) -> Tensor:
        return torch.cat([log_pi[..., :-1] - log_pi[..., -1:], mu.flatten(-2), log_tau.flatten(-2)], -1)

    def each(self, theta: Tensor, x: Tensor) -> Tensor:
        """theta (S, d), x (B, D) in units -> (S, B, K) nats, log pi_k N(x; mu_k, 1 / tau_k)."""
        log_pi, mu, log_tau = self.split(theta)
        square = (x[:, None] - mu[:, None]).square() * log_tau.exp()[:, None]
        return log_pi[:, None] + (log_tau[:, None] - math.log(2 * math.pi) - square).sum(-1) / 2

    def log_prior(self, theta: Tensor) -> Tensor:
        log_pi, mu, log_tau = self.split(theta)
        weights = math.lgamma(self.components) + log_pi.sum(-1)  # Dirichlet(1), times the derivative of pi by the logits
        means = (math.log(self.strength / (2 * math.pi)) + log_tau - self.strength * log_tau.exp() * mu.square()) / 2
        precisions = SHAPE * math.log(RATE) - math.lgamma(SHAPE) + SHAPE * log_tau - RATE * log_tau.exp()
        return weights + (means + precisions).sum((-1, -2))

    def target(self, data: Data) -> Target:
        x, volume = self.units(data.x), len(data.x) * float(self.units.log_volume)

        def start(noise: Noise) -> Tensor:
            rows = (noise.uniform("start", (self.components,)) * len(x)).long()
            log_pi = torch.zeros(len(noise), self.components, dtype=torch.float64)
            return self.joined(log_pi, x[rows], torch.ones_like(x[rows]))

        return Target(
            names=self.names,
            natural=self.natural,
            rows=len(x),
            log_density=lambda theta: self.log_prior(theta) + self.each(theta, x).logsumexp(-1).sum(1) - volume,
            start=start,
            gibbs=(lambda theta, noise: self.redrawn(theta, x, noise),),
            mean_field=self.mean_field(x, volume),
            family=self.family,
            ordered=self.ordered,
            constrain=self.constrained,
        )

    def redrawn(self, theta: Tensor, x: Tensor, noise: Noise) -> Tensor:
        """A sweep of Gibbs: every example's component given theta, then weights, precisions and means given those, all exact."""
        cumulative = self.each(theta, x).softmax(-1).cumsum(-1)
        z = (cumulative[..., :-1] <= noise.uniform("z", (len(x),)).double()[..., None]).sum(-1)
        share = torch.nn.functional.one_hot(z, self.components).double()
        n, first, second = share.sum(1), share.transpose(1, 2) @ x, share.transpose(1, 2) @ x.square()
        strength = self.strength + n[..., None]
        mean = first / strength
        rate = RATE + (second - strength * mean.square()) / 2
        return self._components(1 + n, SHAPE + n[..., None] / 2, rate, mean, strength, noise)

    def _components(self, counts: Tensor, shape: Tensor, rate: Tensor, mean: Tensor, strength: Tensor, noise: Noise) -> Tensor:
        """(n, d): pi ~ Dirichlet(counts), tau ~ Gamma(shape, rate), mu | tau ~ N(mean, 1 / (strength tau)), a draw a row of the noise."""
        log_pi = noise.gamma("pi", counts).log()
        tau = noise.gamma("tau", shape.expand(rate.shape)) / rate
        mu = mean + noise.normal("mu", mean.shape[1:]).double() / (strength * tau).sqrt()
        return self.joined(log_pi, mu, tau.log())

    def mean_field(self, x: Tensor, volume: float) -> MeanField:
        model = MixtureMeanField(x, self.components, count=1.0, strength=self.strength, shape=SHAPE, rate=RATE)

        def draw(q: MixtureFactors, noise: Noise) -> Tensor:
            counts, shape, rate, mean, strength = (
                value.expand(len(noise), *value.shape) for value in (q.counts, q.shape, q.rate, q.mean, q.strength)
            )
            return self._components(counts, shape, rate, mean, strength, noise)

        def start(noise: Noise) -> MixtureFactors:
            return model.start(x[noise.permutation("start", len(x))[: self.components]])

        return MeanField(start=start, updates=model.updates, bound=lambda q: model.bound(q) - volume, draw=draw)

    def ordered(self, theta: Tensor) -> Tensor:
        log_pi, mu, log_tau = self.split(theta)
        order = mu[..., 0].argsort(-1)
        wide = order[..., None].expand(mu.shape)
        return self.joined(log_pi.gather(-1, order), mu.gather(-2, wide), log_tau.gather(-2, wide))

    def constrained(self, theta: Tensor) -> Tensor:
        log_pi, mu, log_tau = self.split(theta)
        return torch.cat([log_pi.exp(), mu.flatten(-2), log_tau.exp().flatten(-2)], -1)

    def log_prob(self, theta: Tensor, x: Tensor, *, y: Tensor | None, c: Tensor | None) -> Tensor:
        return self.each(theta, self.units(x)).logsumexp(-1) - self.units.log_volume

    def draw(self, theta: Tensor, noise: Noise, *, y: Tensor | None, c: Tensor | None) -> Tensor:
        log_pi, mu, log_tau = self.split(theta)
        k = (log_pi.exp().cumsum(-1)[:, :-1] <= noise.uniform("component").double()[:, None]).sum(1)
        own = torch.arange(len(theta), device=theta.device)
        x = mu[own, k] + torch.exp(-log_tau[own, k] / 2) * noise.normal("x", (self.columns,)).double()
        return (self.units.shift + self.units.scale * x).float()
