"""A Bayesian posterior as a generative model: what the data leave open about theta, and what they therefore say of the next example.

    p(x | c, data) = E[p(x | theta, c)] over theta ~ p(theta | data), here the mean over S kept draws of theta,

which is itself a density that sums to one, a finite mixture, and `draw` takes a kept theta and then an x: it draws from exactly that density. Only
how near it is to the posterior's own is approximate: by Markov chains (genmodels.mcmc; Neal, 2011, arXiv:1206.1901; Hoffman and Gelman, 2014,
arXiv:1111.4246) with R-hat to say whether they agree (Vehtari et al., 2021, arXiv:1903.08008), or by the nearest member of a family (genmodels.vi;
Blei, Kucukelbir, McAuliffe, 2017, arXiv:1601.00670), whose draws are independent and have no R-hat, but a bound.

Where we differ from a textbook: features, and targets that are numbers, are put in units of their own mean and standard deviation, in which the
priors are meant. Kept draws are a fixed number: when it is full and the chains do not agree yet, every second is given up and the chains go on twice
as thinly. Mixtures' components are kept in the order of their means (posterior_mixture.py).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from genmodels.core import Batch, Density, Event, GenerativeModel, Iterated, Metrics
from genmodels.models import posterior_methods as methods
from genmodels.models.posterior_latent import Latent
from genmodels.models.posterior_linear import Linear
from genmodels.models.posterior_mixture import GaussianMixture
from genmodels.models.posterior_targets import CHAINS, Data, Logistic, Parametric, Target
from genmodels.noise import Noise

Kind = Literal["linear", "logistic", "mixture", "latent"]
Method = Literal["hmc", "mala", "metropolis", "gibbs", "vi-diagonal", "vi-full", "vi-mean-field"]

NUMBERS = 2**22
"""Densities of one example under one draw that are held at once."""


class Posterior(Iterated, Density):
    modalities = frozenset({"image", "table"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """target: what theta are the parameters of. chains: run side by side; draws: kept of each, an even number; warmup: steps before them, or of
        gradient or sweeps of vi-*; round: steps a pass of the loop. rhat: the bound below which chains agree. prior_scale: of weights, or of means
        in scales of their component. components: of a mixture. leapfrog: longest walk of hmc. samples, lr: draws and rate of a step of vi-diagonal
        and vi-full. parent: the model whose codes are asked for; example: whose code, by its row in the train split."""

        target: Kind = "linear"
        method: Method = "hmc"
        chains: int = 4
        warmup: int = 500
        draws: int = 500
        round: int = 100
        rhat: float = 1.01
        prior_scale: float = 1.0
        components: int = 2
        leapfrog: int = 32
        samples: int = 16
        lr: float = 0.05
        parent: dict[str, Any] | str | None = None
        example: int = 0

        def __post_init__(self) -> None:
            for name, kinds in (("target", Kind), ("method", Method)):
                if getattr(self, name) not in get_args(kinds):
                    raise ValueError(f"{name} {getattr(self, name)!r}; wanted one of {', '.join(get_args(kinds))}")
            if min(self.chains, self.round, self.components, self.leapfrog, self.samples) < 1 or min(self.warmup, self.example) < 0:
                raise ValueError(f"{self}; wanted counts of at least 1, and warmup and example of at least 0")
            if self.draws < 8 or self.draws % 2:
                raise ValueError(f"{self.draws} draws a chain; wanted an even number of at least 8")
            if self.chains < 2 and self.method in CHAINS:
                raise ValueError("1 chain has none to agree with, so it has no R-hat; wanted at least 2")
            if min(self.prior_scale, self.lr) <= 0 or self.rhat <= 1:
                raise ValueError(f"prior_scale {self.prior_scale:g}, lr {self.lr:g}, rhat {self.rhat:g}; wanted above 0, above 0, above 1")
            if (self.target == "latent") != (self.parent is not None):
                raise ValueError("target latent and a parent go together: the trained model whose codes are asked for")

    config: Config
    kept: Tensor
    """() int64: how many draws of each chain there are."""
    thin: Tensor
    """() int64: steps of the chains from one kept draw to the next."""
    worst: Tensor
    """() float64: the largest R-hat of all parameters; NaN before there are eight draws, and of draws that are no chains."""
    bound: Tensor
    """() float64: nats, the evidence lower bound of vi-*; NaN of chains."""
    accepted: Tensor
    """() float64: the mean acceptance probability of the last round."""
    effective: Tensor
    """() float64: the smallest effective number of draws of all parameters."""
    size: Tensor
    """() float64: the step size that warmup chose, NaN before and of kernels without one."""
    metric: Tensor
    """(d,) float64: the variances that warmup scaled its steps by."""
    phi: Tensor
    """(3, P) float64: q's numbers, and Adam's two means, of vi-* by gradient."""
    passes: Tensor
    """() int64: how many there were."""
    rows: Tensor
    """() int64: examples that were learnt from."""

    def __init__(self, event: Event, config: Config) -> None:
        super().__init__(event, config)
        self.parametric: Parametric = _parametric(event, config)
        if config.method not in self.parametric.methods:
            raise ValueError(f"method {config.method} of target {config.target}; it has {', '.join(sorted(self.parametric.methods))}")
        dims, chains = self.parametric.dims, config.chains
        self.theta = nn.Parameter(torch.zeros(chains, config.draws, dims, dtype=torch.float64), requires_grad=False)
        self.position = nn.Parameter(torch.zeros(chains, dims, dtype=torch.float64), requires_grad=False)
        for name, count in (("passes", 0), ("kept", 0), ("thin", 1), ("rows", 0)):
            self.register_buffer(name, torch.tensor(count))
        for name in ("worst", "bound", "accepted", "effective", "size"):
            self.register_buffer(name, torch.tensor(math.nan, dtype=torch.float64))
        self.register_buffer("metric", torch.ones(dims, dtype=torch.float64))
        self.register_buffer("phi", torch.zeros(3, methods.numbers(config.method, self.parametric.family), dtype=torch.float64))

    @property
    def converged(self) -> bool:
        """Whether all draws are there and, of chains, agree."""
        full = int(self.kept) == self.config.draws
        return full and (self.config.method not in CHAINS or float(self.worst) < self.config.rhat)

    @torch.no_grad()
    def iterate(self, data_pass: Iterable[Batch], noise: Noise) -> Metrics:
        """The first pass takes down the data's units and where chains begin; the second warms them up; each later one is a round of draws, or of
        steps of gradient. loss: nats an example, -log p(data, theta) on average, or minus the bound. rhat: the largest, at most 99.

        Raises ValueError for data that are not finite, or a density that is not.
        """
        first = int(self.passes) == 0
        data = self._read(data_pass) if first or not isinstance(self.parametric, Latent) else None
        if first:
            assert data is not None
            self.parametric.see(data)
        target = self.parametric.target(data)  # type: ignore[arg-type]
        if first:
            self.rows.fill_(target.rows)
            self.position.copy_(target.start(Noise(noise.seeds[0], position=range(self.config.chains))))
            found = {"loss": -target.log_density(self.position).mean()}
        else:
            found = methods.METHODS[self.config.method](self, target, noise)
        self.passes += 1
        return {**found, "loss": found["loss"] / target.rows}

    def inherit(self, parent: GenerativeModel) -> None:
        """Takes over the weights of a trained parent. Raises ValueError where there is no place for one."""
        if not isinstance(self.parametric, Latent) or type(parent) is not type(self.parametric.parent):
            raise ValueError(
                f"a {type(parent).__name__} for parent of a posterior of target {self.config.target}; it takes none, or another"
            )
        self.parametric.parent.load_state_dict(parent.state_dict())

    def target(self, data_pass: Iterable[Batch]) -> Target:
        """What any method may explore: the posterior given these examples, in the units of the data that were learnt from (or, before that, of
        these). Raises ValueError for data that are not finite."""
        data = self._read(data_pass)
        if int(self.passes) == 0:
            self.parametric.see(data)
        return self.parametric.target(data)

    def _read(self, data_pass: Iterable[Batch]) -> Data:
        batches = list(data_pass)
        if not batches:
            raise ValueError("no examples; a posterior wants at least one")
        x, position = torch.cat([batch.x for batch in batches]), torch.cat([batch.position for batch in batches])
        c = None if self.event.condition is None else torch.cat([_given(batch) for batch in batches])
        y = None if batches[0].y is None else torch.cat([batch.y for batch in batches if batch.y is not None])
        for values in (x, c):
            if values is not None and values.is_floating_point() and bool((broken := ~values.flatten(1).isfinite().all(1)).any()):
                raise ValueError(
                    f"{int(broken.sum())} of {len(values)} rows hold NaN or infinity (the first: row {int(broken.nonzero()[0])}); "
                    "a posterior needs whole rows: drop them or fill them in"
                )
        return Data(x, c, y, position)

    @property
    def draws(self) -> Tensor:
        """(S, d) float64: the kept draws of all chains; where the chains begin before there are any."""
        return self.theta[:, : int(self.kept)].flatten(0, 1) if int(self.kept) else self.position

    def conditional_log_prob(self, x: Tensor, *, y: Tensor | None, c: Tensor | None, length: Tensor | None) -> Tensor:
        draws = self.draws
        parts = []
        for rows in torch.arange(len(x)).split(max(1, NUMBERS // len(draws))):
            nats = self.parametric.log_prob(draws, x[rows], y=None if y is None else y[rows], c=None if c is None else c[rows])
            parts.append(torch.logsumexp(nats, 0) - math.log(len(draws)))
        return torch.cat(parts) if parts else x.new_empty(0, dtype=torch.float64)

    def draw(self, noise: Noise, *, y: Tensor | None, c: Tensor | None, temperature: Tensor) -> Tensor:
        draws = self.draws
        which = (noise.uniform("theta").double() * len(draws)).long()
        return self.parametric.draw(draws[which], noise, y=y, c=c)

    def assignments(self, x: Tensor) -> Tensor:
        """x (B, D) -> (B, components): of a mixture the posterior probability that an example is of each component, averaged over the draws.
        Raises ValueError for another target."""
        if not isinstance(self.parametric, GaussianMixture):
            raise ValueError(f"a posterior of target {self.config.target} assigns nothing; wanted target mixture")
        x = self.parametric.units(self.examples(x))
        return torch.stack([self.parametric.each(draw[None], x)[0].softmax(-1) for draw in self.draws]).mean(0)

    def findings(self) -> Mapping[str, Any]:
        """For the record: how its draws came about, and whether they can be relied on."""
        chains = self.config.method in CHAINS
        numbers = {"rhat": self.worst, "ess": self.effective, "accepted": self.accepted} if chains else {"elbo": self.bound}
        return {
            "target": self.config.target,
            "method": self.config.method,
            "draws": int(self.kept) * self.config.chains,
            "converged": self.converged,
            **{name: float(value) for name, value in numbers.items() if math.isfinite(value)},
        }


def target_of(model: Posterior, data_pass: Iterable[Batch]) -> Target:
    """The posterior that a model is of, for other methods than its own."""
    return model.target(data_pass)


def _given(batch: Batch) -> Tensor:
    if batch.c is None:
        raise ValueError("condition missing; this posterior's likelihood is of a target given features: give every batch its c")
    return batch.c


def _parametric(event: Event, config: Posterior.Config) -> Parametric:
    if config.target == "latent":
        return Latent(event, config.parent, config.example)
    if event.modality != "table":
        raise ValueError(f"target {config.target} models tables; got {event}")
    if event.classes:
        raise ValueError(f"target {config.target} models tables without labels beside them; got {event}")
    if config.target == "mixture":
        return GaussianMixture(event, config.prior_scale, config.components)
    return (Linear if config.target == "linear" else Logistic)(event, config.prior_scale)
