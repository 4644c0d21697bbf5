"""Bayesian linear regression of unknown noise, with the conjugate prior: every method has something to be held to."""

import math
from functools import cached_property

import torch
from torch import Tensor

from genmodels.core import Event
from genmodels.models.posterior_targets import GIBBS, MEAN_FIELD, SMOOTH, Data, MeanField, Regressed, Target, Units
from genmodels.noise import Noise
from genmodels.vi import NormalGamma, Regression


class Linear(Regressed):
    """x = w c + e, e ~ N(0, 1 / lambda), w | lambda ~ N(0, prior_scale^2 / lambda), lambda ~ Gamma(1, 1), x and c in units of their own mean and
    standard deviation. theta: intercept, w, log lambda."""

    methods = SMOOTH | {GIBBS, MEAN_FIELD}

    def __init__(self, event: Event, prior_scale: float) -> None:
        super().__init__(event, prior_scale, levels=False)
        self.units = Units(1)
        self.names = ("intercept", *(f"w[{i}]" for i in range(self.features)), "log precision")

    def see(self, data: Data) -> None:
        assert data.c is not None
        self.given.see(data.c)
        self.units.see(data.x)

    def target(self, data: Data) -> Target:
        known = Known(self.regression(data), len(data.x) * float(self.units.log_volume))
        return Target(
            names=self.names,
            natural=(*self.names[:-1], "precision"),
            rows=len(data.x),
            log_density=known.log_density,
            start=lambda noise: noise.normal("start", (self.dims,)).double(),
            gibbs=(known.weights, known.precision),
            mean_field=known.mean_field,
            evidence=known.evidence,
            family=self.family,
            constrain=lambda theta: torch.cat([theta[..., :-1], theta[..., -1:].exp()], -1),
        )

    def regression(self, data: Data) -> Regression:
        design, x = self.design(data.c), self.units(data.x)[:, 0]
        return Regression(gram=design.T @ design, moment=design.T @ x, square=x @ x, rows=len(x), precision=self.prior_scale**-2)

    def log_prob(self, theta: Tensor, x: Tensor, *, y: Tensor | None, c: Tensor | None) -> Tensor:
        error = self.units(x)[:, 0] - theta[:, :-1] @ self.design(c).T
        log_precision = theta[:, -1:]
        return (log_precision - math.log(2 * math.pi) - log_precision.exp() * error.square()) / 2 - self.units.log_volume

    def draw(self, theta: Tensor, noise: Noise, *, y: Tensor | None, c: Tensor | None) -> Tensor:
        mean = (theta[:, :-1] * self.design(c)).sum(1, keepdim=True)
        x = mean + torch.exp(-theta[:, -1:] / 2) * noise.normal("x", (1,)).double()
        return (self.units.shift + self.units.scale * x).float()


class Known:
    """The posterior of one data set. volume: nats that its density in raw units is lower by."""

    def __init__(self, regression: Regression, volume: float) -> None:
        self.regression, self.volume = regression, volume

    def log_density(self, theta: Tensor) -> Tensor:
        model, w, log_precision = self.regression, theta[:, :-1], theta[:, -1]
        residual, length = self._squares(w)
        data = model.rows * (log_precision - math.log(2 * math.pi)) - log_precision.exp() * residual
        weights = w.shape[1] * (log_precision + math.log(model.precision / (2 * math.pi))) - model.precision * log_precision.exp() * length
        # The last log_precision is the derivative of lambda by its log.
        prior = model.shape * math.log(model.rate) - math.lgamma(model.shape) + (model.shape - 1) * log_precision + log_precision
        return (data + weights) / 2 + prior - model.rate * log_precision.exp() - self.volume

    def _squares(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """w (C, D) -> |x - w c|^2 and |w|^2, (C,) each."""
        model = self.regression
        return model.square - 2 * w @ model.moment + (w @ model.gram * w).sum(1), w.square().sum(1)

    @cached_property
    def _root(self) -> tuple[Tensor, Tensor]:
        """The mean of w, and R with R R' = the inverse of its precision over lambda."""
        mean, sharp = self.regression.peak
        return mean, torch.linalg.inv(torch.linalg.cholesky(sharp)).T

    def weights(self, theta: Tensor, noise: Noise) -> Tensor:
        """w redrawn given lambda."""
        mean, root = self._root
        eps = noise.normal("w", (len(mean),)).double() @ root.T
        return torch.cat([mean + eps * torch.exp(-theta[:, -1:] / 2), theta[:, -1:]], 1)

    def precision(self, theta: Tensor, noise: Noise) -> Tensor:
        """lambda redrawn given w."""
        model, (residual, length) = self.regression, self._squares(theta[:, :-1])
        shape = torch.full_like(residual, model.shape + (model.rows + theta.shape[1] - 1) / 2)
        found = noise.gamma("lambda", shape) / (model.rate + (residual + model.precision * length) / 2)
        return torch.cat([theta[:, :-1], found.log()[:, None]], 1)

    @property
    def mean_field(self) -> MeanField:
        model = self.regression
        return MeanField(start=lambda noise: model.start(), updates=model.updates, bound=lambda q: model.bound(q) - self.volume, draw=drawn)

    def evidence(self) -> float:
        return self.regression.evidence() - self.volume


def drawn(q: NormalGamma, noise: Noise) -> Tensor:
    """(n, d): theta from q(w) q(lambda)."""
    w = q.mean + noise.normal("w", (len(q.mean),)).double() @ torch.linalg.cholesky(q.covariance).T
    precision = noise.gamma("lambda", q.shape.expand(len(noise))) / q.rate
    return torch.cat([w, precision.log()[:, None]], 1)
