"""A VAE that learns from few labels and from examples without one: the model M2, whose label is a second latent variable where it is missing.

Semi-Supervised Learning with Deep Generative Models (Kingma, Mohamed, Rezende, Welling, 2014), arXiv:1406.5298. Of an example without a label

    log p(x) >= sum_y q(y|x) (L(x, y) + log p(y)) + H(q(y|x)) = U(x),    L(x, y) the bound of log p(x | y),    (eq. 7)

summed over all classes exactly; of one with a label log p(x, y) >= L(x, y) + log p(y), and alpha log q(y|x) beside it, without which a label would
never reach q(y|x) (eq. 9).

We differ from the paper: p(y) are the labels' frequencies among the labelled examples; L may be the bound of k draws (objective: iwae), and U is
then a bound still. alpha counts a labelled example; the paper's is 0.1 times all examples over the labelled ones.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import Categorical as Choice
from torch.distributions import Distribution, MixtureSameFamily, Normal

from genmodels.core import Batch, Metrics
from genmodels.nn.scaling import wide

if TYPE_CHECKING:
    from genmodels.models.vae import VAE


@dataclass(frozen=True)
class Terms:
    """(B,) nats each: what training ascends, the bound that is reported, and KL(q || p) summed over latents."""

    objective: Tensor
    bound: Tensor
    divergence: Tensor


def log_labels(model: "VAE", x: Tensor) -> Tensor:
    """x (B, C, H, W) levels -> (B, classes) nats, log q(y | x)."""
    return torch.log_softmax(wide(model.classifier(model.scaled(x), None)), dim=1)


def check_labels(model: "VAE") -> None:
    """Raises ValueError where a class has no labelled example to be learnt from."""
    if bool((missing := model.class_frequencies <= 0).any()):
        label = int(missing.nonzero()[0, 0])
        raise ValueError(
            f"semi-supervised training without one labelled example of class {label}; wanted at least one of each of {model.event.classes} classes: "
            "label more of the train split"
        )


def without_label(model: "VAE", log_q: Tensor, each: Tensor) -> Tensor:
    """log_q (B, classes) nats, each (B, classes) bounds of log p(x | y) -> (B,) nats, U(x) (Kingma et al., eq. 7)."""
    return (log_q.exp() * (each + model.class_frequencies.log() - log_q)).sum(1)


def terms(model: "VAE", batch: Batch, eps: Tensor) -> tuple[Terms, Metrics]:
    """Every row under its label, or under all of them where it has none. Bounds are of log p(x | y) and of log p(x)."""
    if batch.y is None:
        raise ValueError("semi-supervised training on examples that say nothing of labels; wanted y, -1 where there is none")
    known, log_q, log_p = batch.y >= 0, log_labels(model, batch.x), model.class_frequencies.log()
    rows, labels = _pairs(batch.y, model.event.classes)
    each = model.terms(batch.x[rows], labels, eps[rows])
    share = torch.where(known[rows], 1.0, log_q[rows, labels].exp())

    def summed(nats: Tensor) -> Tensor:
        return torch.zeros_like(log_q[:, 0]).index_add(0, rows, share * nats)

    entropy = -(log_q.exp() * log_q).sum(1)
    own = log_q.gather(1, batch.y.clamp(min=0)[:, None])[:, 0]
    prior = torch.where(known[rows], 0.0, log_p[labels])  # of a labelled row a constant: left out, its bound is one of log p(x | y)
    objective = summed(each.objective + prior) + torch.where(known, model.config.alpha * own, entropy)
    found = Terms(
        objective=objective, bound=summed(each.bound + prior) + torch.where(known, 0.0, entropy), divergence=summed(each.divergence)
    )
    nats = -torch.where(known, own, 0.0).sum() / known.sum().clamp(min=1)
    return found, {"label_nats": nats.detach(), "labelled": known.float().mean()}


def _pairs(y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """y (B,) -> (P,) rows and (P,) labels: a labelled row once, one without a label once for every class."""
    known, unknown = (y >= 0).nonzero()[:, 0], (y < 0).nonzero()[:, 0]
    every = torch.arange(classes, device=y.device).repeat(len(unknown))
    return torch.cat([known, unknown.repeat_interleave(classes)]), torch.cat([y[known], every])


def posterior(model: "VAE", x: Tensor) -> Distribution:
    """x (B, C, H, W) levels -> sum_y q(y|x) q(z_j | x, y) of every number z_j: batch shape (B, latent)."""
    classes = model.event.classes
    q = model.posterior(x.repeat_interleave(classes, 0), torch.arange(classes, device=x.device).repeat(len(x)))
    mean, scale = (value.reshape(len(x), classes, -1).transpose(1, 2) for value in (q.loc, q.scale))
    weights = log_labels(model, x)[:, None].expand(-1, mean.shape[1], -1)
    return MixtureSameFamily(Choice(logits=weights), Normal(mean, scale))
