"""Parametric variational inference: q(theta; phi) is moved up a Monte Carlo estimate of the evidence lower bound.

The reparameterised estimator differentiates along the path theta(phi) alone (Auto-Encoding Variational Bayes, Kingma, Welling, 2013,
arXiv:1312.6114; Sticking the landing, Roeder, Wu, Duvenaud, 2017, arXiv:1703.09194), so that it has no variance where q is the posterior. The
score-function estimator (Black box variational inference, Ranganath, Gerrish, Blei, 2014, arXiv:1401.0118) needs no derivative of the density, and
takes the mean of the other draws for its control variate (Buy 4 REINFORCE samples, Kool, van Hoof, Welling, 2019). The steps are Adam's
(arXiv:1412.6980), shortened along half a cosine.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from genmodels.noise import Noise, derive
from genmodels.vi.families import Family

LogDensity = Callable[[Tensor], Tensor]
"""theta (S, d) float64 -> (S,) nats, log p(x, theta); rows independent. With p(x, theta) normalised the bound is one of log p(x)."""

Estimator = Literal["reparameterised", "score"]

FAR = 1e10
"""How far out along an axis a density is looked at for whether it can have an integral."""


@dataclass(frozen=True, eq=False)
class State:
    """q's numbers phi (P,), Adam's means of gradients and of their squares (P,), how many steps were made, and the last estimate of the bound."""

    phi: Tensor
    first: Tensor
    second: Tensor
    step: int
    elbo: Tensor


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """The recipe as a kernel: `init(q)`, then `step(state, noise)` again and again. samples: draws a step; steps: after which the rate lr is down to
    a hundredth."""

    log_density: LogDensity
    family: Family
    steps: int
    samples: int = 16
    lr: float = 0.05
    estimator: Estimator = "reparameterised"

    def __post_init__(self) -> None:
        if self.estimator == "reparameterised" and not self.family.reparameterised:
            raise ValueError(f"reparameterised gradients of {type(self.family).__name__}, whose draws jump; use the score function")
        if self.steps < 1 or self.lr <= 0 or self.samples < (2 if self.estimator == "score" else 1):
            raise ValueError(
                f"{self.steps} steps of {self.samples} draws at rate {self.lr:g}; wanted at least 1 (2 draws for the score function), rate above 0"
            )

    def init(self) -> State:
        """Raises ValueError for a density that has no integral."""
        if self.family.reparameterised:
            proper(self.log_density, self.family.phi[: self.family.dims])
        phi = self.family.phi.detach()
        return State(phi, torch.zeros_like(phi), torch.zeros_like(phi), 0, torch.tensor(-math.inf, dtype=torch.float64))

    def step(self, state: State, noise: Noise) -> State:
        """The lecture's six steps, a line each. noise: its seed and step say which draws. Raises ValueError where the density is not finite."""
        with torch.enable_grad():
            phi = state.phi.detach().requires_grad_()
            log_p = self.log_density  # 1 model: log p(x, theta)
            q = self.family.at(phi)  # 2 variational family: q(theta; phi)
            bound = Weights(log_p, q)  # 3 evidence lower bound: E_q[log p(x, theta) - log q(theta; phi)]
            elbo = bound.expectation(noise, self.samples, self.estimator)  # 4 expectation: over draws of q
            (slope,) = torch.autograd.grad(elbo, phi)  # 5 derivative: by phi
        return replace(_descend(state, -slope, self._rate(state.step)), elbo=elbo.detach())  # 6 descent: of the bound's negative

    def _rate(self, step: int) -> float:
        return self.lr * (0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, step / self.steps))) / 2)


@dataclass(frozen=True)
class Weights:
    """The logs of importance weights, log p(x, theta) - log q(theta), whose mean under q is the bound."""

    log_density: LogDensity
    q: Family

    def expectation(self, noise: Noise, k: int, estimator: Estimator) -> Tensor:
        """() nats: the mean over k draws; its derivative by q.phi is the estimator's."""
        draws = Noise(noise.seeds[0], position=range(k), step=noise.step)
        theta = self.q.draw(draws)
        if estimator == "score":
            theta = theta.detach()
            weights = (finite(self.log_density, theta) - self.q.log_prob(theta)).detach()
            baseline = (weights.sum() - weights) / (k - 1)
            surrogate = ((weights - baseline) * self.q.log_prob(theta)).mean()
            return surrogate + (weights.mean() - surrogate).detach()
        held = self.q.at(self.q.phi.detach())
        return (finite(self.log_density, theta) - held.log_prob(theta)).mean()


def elbo(log_density: LogDensity, q: Family, noise: Noise, k: int, estimator: Estimator = "reparameterised") -> Tensor:
    """() nats: the bound from k draws, whose derivative by q.phi is the estimator's. noise: its seed and step say which draws."""
    return Weights(log_density, q).expectation(noise, k, estimator)


@dataclass(frozen=True, eq=False)
class Fit:
    """The fitted q; the bound's estimate at every step (steps,); and in the end (nats, its standard error) by draws of their own."""

    q: Family
    trace: Tensor
    elbo: float
    stderr: float


def fit(
    log_density: LogDensity,
    q: Family,
    *,
    steps: int,
    samples: int = 16,
    lr: float = 0.05,
    seed: int = 0,
    estimator: Estimator = "reparameterised",
    judged_by: int = 4096,
) -> Fit:
    """Moves q, from where it is, to the nearest it comes to the density. Raises ValueError for a density that is improper or not finite."""
    ascent = Ascent(log_density=log_density, family=q, steps=steps, samples=samples, lr=lr, estimator=estimator)
    state, trace = ascent.init(), []
    for step in range(steps):
        state = ascent.step(state, Noise(derive(seed, "vi"), position=(), step=step))
        trace.append(state.elbo)
    found = q.at(state.phi)
    mean, error = judged(log_density, found, Noise(derive(seed, "judge"), position=range(judged_by)))
    return Fit(found, torch.stack(trace), mean, error)


@torch.no_grad()
def judged(log_density: LogDensity, q: Family, noise: Noise) -> tuple[float, float]:
    """The bound in nats by a draw a row of the noise, and its standard error."""
    theta = q.draw(noise)
    weights = finite(log_density, theta) - q.log_prob(theta)
    return weights.mean().item(), (weights.std() / math.sqrt(len(weights))).item()


def finite(log_density: LogDensity, theta: Tensor) -> Tensor:
    """The density of some points. Raises ValueError where it is no finite number."""
    nats = log_density(theta)
    broken = ~nats.isfinite()
    if bool(broken.any()):
        first = int(broken.nonzero()[0])
        point = ", ".join(f"{value:.4g}" for value in theta[first, :4].tolist()) + (", ..." if theta.shape[1] > 4 else "")
        raise ValueError(
            f"log density {nats[first].item()} at theta = ({point}), {int(broken.sum())} of {len(nats)} draws; "
            "wanted a finite number of nats wherever q draws: check the data for NaN, and give every parameter an unbounded scale"
        )
    return nats


@torch.no_grad()
def proper(log_density: LogDensity, centre: Tensor) -> None:
    """Raises ValueError for a density without an integral: one that far out along an axis does not fall faster than 1 / distance."""
    axes = torch.eye(len(centre), dtype=torch.float64)
    for sign in (1.0, -1.0):
        near, far = (log_density(centre + sign * distance * axes) for distance in (FAR, 100 * FAR))
        # What is beyond counting with out there, -inf or NaN, says nothing; the bound of its draws will.
        flat = near.isfinite() & far.isfinite() & (far - near > -math.log(100) * (1 - 1e-6))
        if bool(flat.any()):
            raise ValueError(
                f"improper log density: along parameter {int(flat.nonzero()[0])} it does not fall, so it has no integral and no posterior; "
                "give that parameter a prior"
            )


def _descend(state: State, slope: Tensor, rate: float) -> State:
    """One step of Adam with decays 0.9 and 0.99."""
    first, second, step = 0.9 * state.first + 0.1 * slope, 0.99 * state.second + 0.01 * slope.square(), state.step + 1
    size = (second / (1 - 0.99**step)).sqrt() + 1e-8
    return replace(state, phi=state.phi - rate * first / (1 - 0.9**step) / size, first=first, second=second, step=step)
