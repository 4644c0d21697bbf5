"""What is missing of an example, drawn by a chain over the code, the label and the missing values, given the known ones.

Leveraging the Exact Likelihood of Deep Latent Variable Models (Mattei, Frellsen, 2018), arXiv:1802.04826, algorithm 1: Metropolis within Gibbs. The
encoder proposes a code, which is taken or not by its importance weight; the missing values are drawn given the code. Its first steps take every
proposal, as the pseudo-Gibbs sampler of Stochastic Backpropagation and Approximate Inference in Deep Generative Models (Rezende, Mohamed,
Wierstra, 2014), arXiv:1401.4082, does: a first code that nothing can beat would never be left.

We differ from the paper where a model has labels and none is given: the chain proposes one too, together with its code.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genmodels.core import Completion, blocks
from genmodels.models import vae_semi_supervised
from genmodels.noise import Noise, categorical

if TYPE_CHECKING:
    from genmodels.models.vae import VAE

STEPS, PSEUDO = 200, 20
"""Steps of a chain, and how many of them take every proposal."""


@dataclass
class Chain:
    """x (B, C, H, W) levels, z (B, latent), y (B,) labels or None."""

    x: Tensor
    z: Tensor
    y: Tensor | None


def method(steps: int) -> str:
    return (
        f"Metropolis within Gibbs, a chain of {steps} steps from a draw of the model, the first {min(PSEUDO, steps)} of them pseudo-Gibbs"
    )


@torch.no_grad()
def complete(model: "VAE", x: Tensor, known: Tensor, noise: Noise, y: Tensor | None, c: Tensor | None, *, steps: int) -> Completion:
    """x (B, C, H, W) levels, known (C, H, W) or (B, C, H, W) bool; a row of the noise each. Raises ValueError as Completes.complete."""
    known = _mask(model, known, len(x))
    x = model.examples(torch.where(known.to(x.device), x, 0))
    first, _, temperature = model._asked(noise, y, c, torch.ones(len(x)))
    parts = []
    for rows, count in blocks(len(x)):
        start = None if first is None else first[rows]
        drawn = model.draw(noise.pick(rows), y=start, c=None, temperature=temperature[rows])
        chain = Chain(torch.where(known[rows], x[rows], drawn), model.codes(noise.pick(rows)), start)
        run(model, chain, known[rows], noise.pick(rows), label_given=y is not None, steps=steps)
        parts.append(chain.x[:count])
    return Completion(x=torch.cat(parts) if parts else x, method=method(steps), exact=False)


def run(model: "VAE", chain: Chain, known: Tensor, noise: Noise, *, label_given: bool, steps: int) -> None:
    """Moves every row's chain that many steps on; the known values stay."""
    for t in range(steps):
        here = Noise(noise.seeds, position=noise.position, step=t)
        _step(model, chain, known, here, label_given=label_given, always=t < PSEUDO)


def _step(model: "VAE", chain: Chain, known: Tensor, noise: Noise, *, label_given: bool, always: bool) -> None:
    channels, height, width = model.event.shape
    n, label_odds, both_y = len(chain.x), torch.zeros((), device=chain.x.device), chain.y
    if chain.y is not None:
        proposed = chain.y
        if not label_given:
            log_r = _label_proposal(model, chain.x)
            proposed = categorical(log_r, noise.uniform("completion.y"))
            log_odds = model.class_frequencies.log() - log_r
            label_odds = (log_odds.gather(1, proposed[:, None]) - log_odds.gather(1, chain.y[:, None]))[:, 0]
        both_y = torch.cat([proposed, chain.y])
    both_x = chain.x.repeat(2, 1, 1, 1)
    q = model.posterior(both_x, both_y)
    fresh = q.loc[:n] + q.scale[:n] * noise.normal("completion.z", (model.config.latent,)).to(q.loc.dtype)
    z = torch.cat([fresh, chain.z.to(fresh.dtype)])
    likelihood = model.likelihood(z, both_y)
    # The two normals differ by their exponents and by the scale; their constants cancel.
    weight = likelihood.log_prob(both_x).sum((1, 2)) + (((z - q.loc) / q.scale).square() / 2 - z.square() / 2 + q.scale.log()).sum(1)
    odds = weight[:n] - weight[n:] + label_odds  # Mattei and Frellsen, eq. 13
    taken = torch.log(noise.uniform("completion.accept") + 2.0**-25) < odds
    taken = torch.ones_like(taken) if always else taken
    levels = likelihood.sample(noise.uniform("completion.levels", (channels + 1, height, width)).repeat(2, 1, 1, 1))
    chain.x = torch.where(known, chain.x, torch.where(taken[:, None, None, None], levels[:n], levels[n:]))
    chain.z = torch.where(taken[:, None], z[:n], z[n:])
    if both_y is not None:
        chain.y = torch.where(taken, both_y[:n], both_y[n:])


def _label_proposal(model: "VAE", x: Tensor) -> Tensor:
    """(B, classes) nats: the labels' frequencies; where there is a q(y|x) half of it, so that no label is ruled out by a wrong guess."""
    log_p = model.class_frequencies.log().expand(len(x), -1)
    if not model.config.semi_supervised:
        return log_p
    return torch.logaddexp(vae_semi_supervised.log_labels(model, x), log_p) - torch.log(torch.tensor(2.0, device=x.device))


def _mask(model: "VAE", known: Tensor, n: int) -> Tensor:
    known = model.mask(known, n)
    if model.config.likelihood == "logistic" and bool((known.any(1) != known.all(1)).any()):
        raise ValueError(
            "some channels of a pixel are known and others not, and a logistic mixture couples them; mark whole pixels as known"
        )
    return known
