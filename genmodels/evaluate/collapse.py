"""How much of its code a model uses: a decoder that explains everything by itself leaves the code with nothing to say (posterior collapse).

Importance Weighted Autoencoders (Burda, Grosse, Salakhutdinov, 2015), arXiv:1509.00519, section 5.2: a latent is active where its mean moves with
the example, Cov_x(E[z|x]) > 0.01.
"""

from collections.abc import Iterable

import torch
from torch.distributions import Normal

from genmodels.core import Batch, Encodes
from genmodels.evaluate.likelihood import evaluating, labelled
from genmodels.evaluate.score import Score

THRESHOLD = 0.01


def collapse(model: Encodes, batches: Iterable[Batch], *, split: str, name: str | None = None) -> list[Score]:
    """Active units and KL(q(z|x) || p(z)) a latent, over the labelled examples of a class model. Empty for codes that are no Gaussian's."""
    means, divergences = [], []
    with evaluating(model):
        for batch in batches:
            known = labelled(batch) if model.event.classes else torch.ones(len(batch), dtype=torch.bool)
            if not bool(known.any()):
                continue
            y = batch.y[known] if model.event.classes and batch.y is not None else None
            q = model.encode(batch.x[known], y)
            if not isinstance(q, Normal):
                return []
            means.append(q.loc.double().cpu())
            divergences.append((0.5 * (q.loc.square() + q.scale.square() - 1) - q.scale.log()).double().cpu())
    if not means:
        return []
    mean, divergence = torch.cat(means), torch.cat(divergences).mean(0)
    common = {"model": name or type(model).__name__, "split": split, "n": len(mean)}
    latents = mean.shape[1]
    active = int((mean.var(0, unbiased=False) > THRESHOLD).sum())
    spread = f"mean over examples and {latents} latents, from {divergence.min():.3f} to {divergence.max():.3f}"
    protocol = f"Cov_x(E[z|x]) > {THRESHOLD:g}, of {latents} latents"
    return [
        Score(name="active units", value=active, unit="", protocol=protocol, **common),
        Score(name="KL a latent", value=divergence.mean().item(), unit="nats", protocol=f"KL(q(z|x) || p(z)), {spread}", **common),
    ]
