"""The variational autoencoder: a Gaussian latent code, a decoder, and a likelihood that is a density over levels.

Auto-Encoding Variational Bayes (Kingma, Welling, 2013), arXiv:1312.6114; trained on and scored by the bound of k draws of Importance Weighted
Autoencoders (Burda, Grosse, Salakhutdinov, 2015), arXiv:1509.00519. beta: beta-VAE (Higgins et al., 2017, ICLR). free_bits: Improving Variational
Inference with Inverse Autoregressive Flow (Kingma et al., 2016), arXiv:1606.04934, eq. 15. Few labels: genmodels.models.vae_semi_supervised; what is
missing: genmodels.models.vae_completion.

We differ from the papers in the likelihood: by default a mixture of discretised logistics a pixel (genmodels.nn.likelihood), so that the bound is in
nats over levels for any number of them; binary cross-entropy on grey levels would be no likelihood, and is refused. Labels, where there are any,
condition both networks. Free bits are counted an example and not as a minibatch's mean, which slices of a batch could not add up to. beta and free
bits change what is descended and nothing that is reported. The bound of k draws is descended itself: the derivative of its logsumexp is Burda's
eq. 14, so there is no surrogate that could be mistaken for it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from genmodels.core import (
    Batch,
    Bounded,
    Classifies,
    Completes,
    Completion,
    Decodes,
    Encodes,
    Event,
    Metrics,
    Objective,
    Optimizer,
    Trained,
)
from genmodels.models import vae_completion, vae_networks, vae_semi_supervised
from genmodels.models.vae_networks import Likelihood, Network, Pixels
from genmodels.models.vae_semi_supervised import Terms
from genmodels.nn.scaling import scaled, wide
from genmodels.noise import Noise

ROWS = 512
"""Codes decoded at once by the bound of k draws."""


class VAE(Trained, Bounded, Encodes, Decodes, Completes, Classifies):
    modalities = frozenset({"image"})
    classifies_by = "the recognition network q(y|x)"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """latent: numbers in a code. network: convolutional (hidden: feature maps at full size; blocks: residual blocks a size) or dense (layers of
        hidden tanh units). components: logistics a pixel. k: draws of z an example and step. beta: weight of the divergence; free_bits: nats that a
        latent's divergence costs at least. alpha: nats by which the -log q(y|x) of a labelled example counts."""

        network: Network = "convolutional"
        latent: int = 16
        hidden: int = 24
        blocks: int = 1
        layers: int = 2
        likelihood: Likelihood = "logistic"
        components: int = 3
        objective: Literal["elbo", "iwae"] = "elbo"
        k: int = 1
        beta: float = 1.0
        free_bits: float = 0.0
        semi_supervised: bool = False
        alpha: float = 50.0

        def __post_init__(self) -> None:
            for key, known in (("network", get_args(Network)), ("likelihood", get_args(Likelihood)), ("objective", ("elbo", "iwae"))):
                if getattr(self, key) not in known:
                    raise ValueError(f"{key} {getattr(self, key)!r}; wanted {', '.join(known)}")
            if min(self.latent, self.hidden, self.components, self.k) < 1 or min(self.blocks, self.layers) < 0:
                raise ValueError(f"{self}; wanted sizes of at least 1")
            if min(self.beta, self.free_bits, self.alpha) < 0:
                raise ValueError(f"beta {self.beta:g}, free_bits {self.free_bits:g}, alpha {self.alpha:g}; wanted at least 0")
            if self.objective == "iwae" and (self.beta != 1 or self.free_bits):
                raise ValueError(
                    "beta and free_bits weigh a divergence, and objective iwae has none; leave them out, or set objective elbo"
                )

    config: Config

    def __init__(self, event: Event, config: Config) -> None:
        super().__init__(event, config)
        vae_networks.check(event, config)
        self.latent = Event(modality="table", shape=(config.latent,), levels=0, classes=event.classes)
        self.encoder = vae_networks.encoder(event, config, 2 * config.latent, event.classes)
        self.decoder = vae_networks.decoder(event, config)
        if config.semi_supervised:
            self.classifier = vae_networks.encoder(event, config, event.classes, 0)

    @property
    def withheld(self) -> Mapping[str, str]:
        if self.config.semi_supervised:
            return {}
        return {"classifies": "it was trained without model.semi_supervised, so it has no q(y|x)"}

    def encode(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        """x (B, C, H, W) levels -> q(z | x, y), a Normal of batch shape (B, latent); of a semi-supervised model without y each number's marginal,
        a mixture of them over q(y | x)."""
        x = self.examples(x)
        if y is None and self.config.semi_supervised:
            return vae_semi_supervised.posterior(self, x)
        return self.posterior(x, self.condition(y, len(x)))

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """z (B, latent) -> (B, C, H, W) uint8: the most likely level of each sub-pixel."""
        if z.ndim != 2 or z.shape[1] != self.config.latent:
            raise ValueError(f"codes of shape {tuple(z.shape)}; wanted (n, {self.config.latent})")
        with torch.no_grad():
            return self.likelihood(z.to(self.device), self.condition(y, len(z))).mode()

    def posterior(self, x: Tensor, y: Tensor | None) -> Normal:
        mean, log_scale = wide(self.encoder(self.scaled(x), y)).chunk(2, dim=1)
        return Normal(mean, torch.exp(log_scale.clamp(-10, 5)))

    def scaled(self, x: Tensor) -> Tensor:
        return scaled(x, self.event.levels, self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.encoder.parameters()).dtype

    def likelihood(self, z: Tensor, y: Tensor | None) -> Pixels:
        return vae_networks.pixels(self.event, self.config, self.decoder(z, y))

    def classify(self, x: Tensor, c: Tensor | None = None, *, length: Tensor | None = None) -> Tensor:
        """x (B, C, H, W) levels -> (B, classes) nats, log q(y | x). Raises ValueError where the model is not semi-supervised."""
        if self.withheld:
            raise ValueError(f"this VAE does not classify: {self.withheld['classifies']}")
        return vae_semi_supervised.log_labels(self, self.examples(x))

    def elbo(self, x: Tensor, y: Tensor | None, noise: Noise) -> Tensor:
        """(B,) nats, one draw of the bound of log p(x | y) with the divergence in closed form; of log p(x) where a class model gets no label."""
        x = self.examples(x)
        eps = self._draws(noise, "z", 1)
        if y is None and self.config.semi_supervised:
            each = torch.stack([self._elbo(x, y, eps) for y in self._every_label(len(x))], dim=-1)
            return vae_semi_supervised.without_label(self, vae_semi_supervised.log_labels(self, x), each)
        if y is None and self.event.classes:
            return self.iwae(x, None, 1, noise)
        return self._elbo(x, self.condition(y, len(x)), eps)

    def _elbo(self, x: Tensor, y: Tensor | None, eps: Tensor) -> Tensor:
        reconstruction, divergence = self._terms(x, y, eps)
        return reconstruction - divergence.sum(1)

    def iwae(self, x: Tensor, y: Tensor | None, k: int, noise: Noise) -> Tensor:
        """(B,) nats, log of the mean of k importance weights. A class model without a label weighs the labels by their frequencies."""
        x = self.examples(x)
        eps = self._draws(noise, "iwae", k)
        if y is not None or self.event.classes == 0:
            y = self.condition(y, len(x))
            return self._log_mean_weight(x, y, self.posterior(x, y), eps)
        # The weighted sum of unbiased estimates of p(x|y) is one of p(x), so its log is a lower bound in expectation too.
        each = torch.stack([self._log_mean_weight(x, y, self.posterior(x, y), eps) for y in self._every_label(len(x))], dim=-1)
        return torch.logsumexp(each + self.class_frequencies.log(), dim=-1)

    def _every_label(self, n: int) -> list[Tensor]:
        return [torch.full((n,), label, device=self.device) for label in range(self.event.classes)]

    def _draws(self, noise: Noise, tag: str, k: int) -> Tensor:
        """(B, k, latent) standard normal."""
        return noise.normal(tag, (k, self.config.latent)).to(torch.promote_types(self._dtype, torch.float32))

    def _log_mean_weight(self, x: Tensor, y: Tensor | None, q: Normal, eps: Tensor) -> Tensor:
        """logsumexp(log w) - log k (Burda et al., eq. 8), over chunks of codes where nothing of them is kept."""
        k = eps.shape[1]
        chunk = k if torch.is_grad_enabled() else max(1, ROWS // len(x))
        log_w = [self._log_weights(x, y, q, eps[:, start : start + chunk]) for start in range(0, k, chunk)]
        return torch.logsumexp(torch.cat(log_w, dim=1), dim=1) - math.log(k)

    def _log_weights(self, x: Tensor, y: Tensor | None, q: Normal, eps: Tensor) -> Tensor:
        """eps (B, k, latent) standard normal -> (B, k) nats, log p(x | z) + log p(z) - log q(z | x)."""
        z = q.loc[:, None] + q.scale[:, None] * eps
        # The two normals differ by their exponents and by the scale; their constants cancel.
        return self._reconstruction(x, y, z) + (eps.square() / 2 - z.square() / 2 + q.scale.log()[:, None]).sum(-1)

    def _reconstruction(self, x: Tensor, y: Tensor | None, z: Tensor) -> Tensor:
        """z (B, k, latent) -> (B, k) nats, log p(x | z) summed over pixels."""
        k = z.shape[1]
        many_x, many_y = x.repeat_interleave(k, 0), None if y is None else y.repeat_interleave(k, 0)
        return self.likelihood(z.flatten(0, 1), many_y).log_prob(many_x).sum((1, 2)).reshape(len(x), k)

    def _terms(self, x: Tensor, y: Tensor | None, eps: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) nats, log p(x | z) averaged over the draws of z ~ q, and (B, latent) nats, KL(q || p) (Kingma and Welling, appendix B)."""
        q = self.posterior(x, y)
        reconstruction = self._reconstruction(x, y, q.loc[:, None] + q.scale[:, None] * eps).mean(1)
        return reconstruction, _divergence(q)

    def terms(self, x: Tensor, y: Tensor | None, eps: Tensor) -> Terms:
        """What training ascends and what it reports of rows under one label each."""
        if self.config.objective == "iwae":
            q = self.posterior(x, y)
            bound = self._log_mean_weight(x, y, q, eps)
            return Terms(objective=bound, bound=bound, divergence=_divergence(q).sum(1))
        reconstruction, divergence = self._terms(x, y, eps)
        # Kingma et al., 2016, eq. 15
        costs = divergence.clamp(min=self.config.free_bits) if self.config.free_bits else divergence
        objective, total = reconstruction - self.config.beta * costs.sum(1), divergence.sum(1)
        return Terms(objective=objective, bound=reconstruction - total, divergence=total)

    def objectives(self) -> list[Objective]:
        if self.config.semi_supervised:
            vae_semi_supervised.check_labels(self)
        return [Objective(name=self.config.objective, loss=self.loss, parameters=list(self.parameters()), optimizer=Optimizer(lr=2e-3))]

    def loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """The negative objective in nats a sub-pixel, averaged over the rows; among the metrics the bound itself, by its name."""
        eps, more = self._draws(noise, "z", self.config.k), {}
        if self.config.semi_supervised:
            terms, more = vae_semi_supervised.terms(self, batch, eps)
        else:
            terms = self.terms(batch.x, batch.y, eps)
        name = f"iwae_{self.config.k}" if self.config.objective == "iwae" else "elbo"
        bits = -terms.bound.detach().mean() / (self.event.dims * math.log(2))
        return -terms.objective.mean() / self.event.dims, {
            f"bits_per_dim_{name}": bits,
            "kl": terms.divergence.detach().mean(),
            **more,
        }

    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        seed: int,
        y: Tensor | None = None,
        c: Tensor | None = None,
        temperature: float = 1.0,
        first: int = 0,
        steps: int = vae_completion.STEPS,
    ) -> Completion:
        """As Completes.complete, by a chain of that many steps."""
        if temperature != 1:
            raise ValueError("temperature other than 1 asked of VAE, which has no temperature; leave it at 1")
        noise = Noise([seed] * len(x), position=range(first, first + len(x))).to(self.device)
        return vae_completion.complete(self, x, known, noise, y, c, steps=steps)

    def codes(self, noise: Noise) -> Tensor:
        return noise.normal("z", (self.config.latent,)).to(self._dtype)

    def draw(self, noise: Noise, *, y: Tensor | None, c: Tensor | None, temperature: Tensor) -> Tensor:
        channels, height, width = self.event.shape
        return self.likelihood(self.codes(noise), y).sample(noise.uniform("levels", (channels + 1, height, width)))


def _divergence(q: Normal) -> Tensor:
    """(B, latent) nats, KL(q || N(0, 1)) of every latent (Kingma and Welling, appendix B)."""
    return 0.5 * (q.loc.square() + q.scale.square() - 1) - q.scale.log()
