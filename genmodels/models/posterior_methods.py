"""How a posterior's draws come about: a round of each method. All that a round leaves behind is in the model's buffers, so any two may be parted."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genmodels import mcmc, vi
from genmodels.core import Metrics
from genmodels.models.posterior_targets import Target
from genmodels.noise import Noise, derive

if TYPE_CHECKING:
    from genmodels.models.posterior import Posterior

WORST = 99.0
"""What an R-hat beyond it is told as: chains that stand still in different places have an infinite one."""

NARROW = -2.3
"""Log scale that a Gaussian q begins with: a tenth, wherever it begins, so that a mixture's components do not melt into one."""


def kernel(model: "Posterior", target: Target) -> mcmc.Kernel:
    """The method's kernel, of the step size and metric that warmup chose where it did."""
    method = model.config.method
    if method == "gibbs":
        assert target.gibbs is not None
        return mcmc.Gibbs(target.gibbs, target.log_density)
    each: Mapping[str, mcmc.HMC | mcmc.MALA | mcmc.RandomWalk] = {
        "hmc": mcmc.HMC(target.log_density, leapfrog=model.config.leapfrog),
        "mala": mcmc.MALA(target.log_density),
        "metropolis": mcmc.RandomWalk(target.log_density, proposal=target.proposal),
    }
    found = each[method]
    return found.tuned(model.size, model.metric) if bool(model.size.isfinite()) else found


def chains(model: "Posterior", target: Target, noise: Noise) -> Metrics:
    """Warmup, at the second pass; then a round of draws, of which each thin-th is kept."""
    seed, own = derive(noise.seeds[0], "chains"), kernel(model, target)
    if int(model.passes) == 1:
        warmed, state = mcmc.warm(own, model.position, warmup=model.config.warmup, seed=seed)
        model.position.copy_(state.theta)
        if isinstance(warmed, mcmc.HMC | mcmc.MALA | mcmc.RandomWalk):
            model.size.copy_(warmed.size)
            model.metric.copy_(model.metric if warmed.metric is None else warmed.metric)
        return {"loss": -state.log_density.mean(), "accepted": state.accepted.mean()}
    _make_room(model)
    kept, thin = int(model.kept), int(model.thin)
    draws = min(model.config.draws - kept, max(1, model.config.round // thin))
    # Where a round was cut its state is begun anew: theta is all that a kernel goes on from.
    found = mcmc.advance(own, own.init(model.position.data), draws=draws, seed=seed, thin=thin, first=kept)
    model.theta[:, kept : kept + draws] = target.ordered(found.draws)
    model.position.copy_(found.state.theta)
    model.kept += draws
    model.accepted.copy_(found.accepted.mean())
    metrics = {"loss": -found.log_density.mean(), "accepted": found.accepted.mean(), "refused": found.errors.sum().double()}
    return metrics | _diagnosed(model)


def _make_room(model: "Posterior") -> None:
    """Of a full set of draws that do not agree, every second one: what chains of twice the thinning would have kept."""
    if int(model.kept) == model.config.draws:
        half = model.config.draws // 2
        model.theta[:, :half] = model.theta[:, 1::2].clone()
        model.kept.fill_(half)
        model.thin *= 2


def _diagnosed(model: "Posterior") -> Metrics:
    """R-hat and effective draws of the worst parameter; of bits that no chain ever turned over there is neither."""
    if int(model.kept) < 8:
        return {}
    draws = model.theta[:, : int(model.kept)]
    moved = (draws.amax((0, 1)) > draws.amin((0, 1))).nonzero()[:, 0]
    worst = mcmc.rhat(draws[..., moved]).nan_to_num(nan=1.0, posinf=WORST).amax() if len(moved) else torch.tensor(WORST)
    model.worst.copy_(worst.clamp(max=WORST))
    model.effective.copy_(mcmc.ess(draws[..., moved]).nan_to_num(nan=0.0).amin() if len(moved) else torch.tensor(0.0))
    return {"rhat": model.worst.clone(), "ess": model.effective.clone()}


def family(method: str, like: vi.Family) -> vi.Family:
    return vi.FullRankGaussian(like.dims) if method == "vi-full" else like


def numbers(method: str, like: vi.Family) -> int:
    """How many numbers describe q of a method by gradient; 0 of the others."""
    by_gradient = method in ("vi-diagonal", "vi-full") or not like.reparameterised
    return len(family(method, like).phi) if by_gradient and method.startswith("vi-") else 0


def gradient(model: "Posterior", target: Target, noise: Noise) -> Metrics:
    """A round of steps up the bound; behind the last of `warmup` the draws, all at once."""
    config, like = model.config, family(model.config.method, target.family)
    if int(model.passes) == 1 and like.reparameterised:
        model.phi[0, : like.dims] = model.position[0]
        model.phi[0, like.dims : 2 * like.dims] = NARROW
    start = like.at(model.phi[0].clone())
    ascent = vi.Ascent(
        log_density=target.log_density,
        family=start,
        steps=max(1, config.warmup),
        samples=max(2, config.samples),
        lr=config.lr,
        estimator="reparameterised" if like.reparameterised else "score",
    )
    done = min(config.warmup, (int(model.passes) - 1) * config.round)
    state = vi.State(*model.phi.clone(), step=done, elbo=model.bound.clone()) if done else ascent.init()
    for step in range(done, min(config.warmup, done + config.round)):
        state = ascent.step(state, Noise(derive(noise.seeds[0], "vi"), position=(), step=step))
    model.phi.copy_(torch.stack([state.phi, state.first, state.second]))
    q, seed = like.at(state.phi), derive(noise.seeds[0], "judge")
    if state.step < config.warmup:
        model.bound.copy_(state.elbo)
        return {"loss": -state.elbo, "elbo": state.elbo}
    model.bound.fill_(vi.judged(target.log_density, q, Noise(seed, position=range(1024)))[0])
    return _drawn(model, target, q.draw, noise.seeds[0])


def mean_field(model: "Posterior", target: Target, noise: Noise) -> Metrics:
    """All sweeps and all draws in one round; of bits, for which there is no closed form, by the score function's gradient."""
    if target.mean_field is None:
        return gradient(model, target, noise)
    factors, trace = target.mean_field.fit(Noise(derive(noise.seeds[0], "vi"), position=(0,)), max(1, model.config.warmup))
    model.bound.fill_(trace[-1])
    found = target.mean_field
    return _drawn(model, target, lambda rows: found.draw(factors, rows), noise.seeds[0])


def _drawn(model: "Posterior", target: Target, draw: Callable[[Noise], Tensor], seed: int) -> Metrics:
    """Fills the kept draws with independent ones."""
    total = model.config.chains * model.config.draws
    theta = draw(Noise(derive(seed, "independent"), position=range(total)))
    model.theta.copy_(target.ordered(theta).reshape(model.theta.shape))
    model.kept.fill_(model.config.draws)
    return {"loss": -model.bound, "elbo": model.bound.clone()}


METHODS: Mapping[str, Callable[["Posterior", Target, Noise], Metrics]] = {
    **dict.fromkeys(("hmc", "mala", "metropolis", "gibbs"), chains),
    **dict.fromkeys(("vi-diagonal", "vi-full"), gradient),
    "vi-mean-field": mean_field,
}
