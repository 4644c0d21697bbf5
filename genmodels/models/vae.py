"""The variational autoencoder: a Gaussian latent code, a convolutional decoder, and a likelihood that is a density over levels.

Auto-Encoding Variational Bayes (Kingma, Welling, 2013), arXiv:1312.6114; the bound of k draws from Importance Weighted Autoencoders
(Burda, Grosse, Salakhutdinov, 2015), arXiv:1509.00519.

We differ from the paper in the likelihood: a mixture of discretised logistics a pixel (genmodels.nn.likelihood), so that the bound is in nats over
levels for any number of them; binary cross-entropy on grey levels would be no likelihood. Labels, where there are any, condition both networks.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Normal

from genmodels.core import Batch, Bounded, Decodes, Encodes, Event, Metrics, Objective, Optimizer, Trained
from genmodels.nn.likelihood import LogisticMixture
from genmodels.nn.residual import Down, Up
from genmodels.nn.scaling import scaled, wide
from genmodels.noise import Noise

ROWS = 512
"""Codes decoded at once by the bound of k draws."""


class VAE(Trained, Bounded, Encodes, Decodes):
    modalities = frozenset({"image"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """latent: numbers in a code; hidden: feature maps at full size; blocks: residual blocks a size; components: logistics a pixel."""

        latent: int = 16
        hidden: int = 24
        blocks: int = 1
        components: int = 3

        def __post_init__(self) -> None:
            if min(self.latent, self.hidden, self.components) < 1 or self.blocks < 0:
                raise ValueError(f"{self}; wanted sizes of at least 1")

    config: Config

    def __init__(self, event: Event, config: Config) -> None:
        super().__init__(event, config)
        if event.levels == 0:
            raise ValueError(f"VAE models levels; got {event}")
        channels, *size = event.shape
        self.latent = Event(modality="table", shape=(config.latent,), levels=0, classes=event.classes)
        shared = {"size": (size[0], size[1]), "hidden": config.hidden, "blocks": config.blocks, "classes": event.classes}
        self.encoder = Down(channels, out=2 * config.latent, **shared)
        self.decoder = Up(config.latent, out=LogisticMixture.parameters(config.components, channels), **shared)

    def encode(self, x: Tensor, y: Tensor | None = None) -> Normal:
        """x (B, C, H, W) levels -> q(z | x, y), a Normal of batch shape (B, latent)."""
        return self.posterior(self.examples(x), self.condition(y, len(x)))

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """z (B, latent) -> (B, C, H, W) uint8: the most likely level of each sub-pixel."""
        if z.ndim != 2 or z.shape[1] != self.config.latent:
            raise ValueError(f"codes of shape {tuple(z.shape)}; wanted (n, {self.config.latent})")
        with torch.no_grad():
            return self.likelihood(z.to(self.device), self.condition(y, len(z))).mode()

    def posterior(self, x: Tensor, y: Tensor | None) -> Normal:
        out = self.encoder(scaled(x, self.event.levels, self.encoder.leave.weight.dtype), y)
        mean, log_scale = wide(out).chunk(2, dim=1)
        return Normal(mean, torch.exp(log_scale.clamp(-10, 5)))

    def likelihood(self, z: Tensor, y: Tensor | None) -> LogisticMixture:
        return LogisticMixture.of(self.decoder(z, y), channels=self.event.shape[0], levels=self.event.levels)

    def elbo(self, x: Tensor, y: Tensor | None, noise: Noise) -> Tensor:
        """(B,) nats, one draw of the bound of log p(x | y) with the divergence in closed form; of log p(x) where a class model gets no label."""
        x = self.examples(x)
        if y is None and self.event.classes:
            return self.iwae(x, None, 1, noise)
        reconstruction, divergence = self._terms(x, self.condition(y, len(x)), noise)
        return reconstruction - divergence

    def iwae(self, x: Tensor, y: Tensor | None, k: int, noise: Noise) -> Tensor:
        """(B,) nats, log of the mean of k importance weights. A class model without a label weighs the labels by their frequencies."""
        x = self.examples(x)
        if y is not None or self.event.classes == 0:
            return self._log_mean_weight(x, self.condition(y, len(x)), k, noise)
        # The weighted sum of unbiased estimates of p(x|y) is one of p(x), so its log is a lower bound in expectation too.
        labels = [torch.full((len(x),), label, device=self.device) for label in range(self.event.classes)]
        each = torch.stack([self._log_mean_weight(x, y, k, noise) for y in labels], dim=-1)
        return torch.logsumexp(each + self.class_frequencies.log(), dim=-1)

    def _log_mean_weight(self, x: Tensor, y: Tensor | None, k: int, noise: Noise) -> Tensor:
        """logsumexp(log w) - log k (Burda et al., eq. 8), over chunks of codes."""
        q = self.posterior(x, y)
        draws = noise.normal("iwae", (k, self.config.latent)).to(q.loc.dtype)
        chunk = max(1, ROWS // len(x))
        log_w = [self._log_weights(x, y, q, draws[:, start : start + chunk]) for start in range(0, k, chunk)]
        return torch.logsumexp(torch.cat(log_w, dim=1), dim=1) - math.log(k)

    def _log_weights(self, x: Tensor, y: Tensor | None, q: Normal, draws: Tensor) -> Tensor:
        """draws (B, k, latent) standard normal -> (B, k) nats, log p(x | z) + log p(z) - log q(z | x)."""
        rows, k = draws.shape[:2]
        z = q.loc[:, None] + q.scale[:, None] * draws
        many_x, many_y = x.repeat_interleave(k, 0), None if y is None else y.repeat_interleave(k, 0)
        likelihood = self.likelihood(z.flatten(0, 1), many_y).log_prob(many_x).sum((1, 2)).reshape(rows, k)
        # The two normals differ by their exponents and by the scale; their constants cancel.
        return likelihood + (draws.square() / 2 - z.square() / 2 + q.scale.log()[:, None]).sum(-1)

    def _terms(self, x: Tensor, y: Tensor | None, noise: Noise) -> tuple[Tensor, Tensor]:
        """(B,) nats each: log p(x | z) summed over pixels at one z ~ q, and KL(q || p) summed over latents (Kingma and Welling, appendix B)."""
        q = self.posterior(x, y)
        z = q.loc + q.scale * noise.normal("z", (self.config.latent,)).to(q.loc.dtype)
        divergence = 0.5 * (q.loc.square() + q.scale.square() - 1) - q.scale.log()
        return self.likelihood(z, y).log_prob(x).sum((1, 2)), divergence.sum(1)

    def objectives(self) -> list[Objective]:
        return [Objective(name="elbo", loss=self.loss, parameters=list(self.parameters()), optimizer=Optimizer(lr=2e-3))]

    def loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """The negative bound in nats a sub-pixel, averaged over the rows."""
        reconstruction, divergence = self._terms(batch.x, batch.y, noise)
        loss = (divergence - reconstruction).mean() / self.event.dims
        return loss, {"bits_per_dim_bound": loss.detach() / math.log(2), "kl": divergence.detach().mean()}

    def codes(self, noise: Noise) -> Tensor:
        return noise.normal("z", (self.config.latent,)).to(self.encoder.leave.weight.dtype)

    def draw(self, noise: Noise, *, y: Tensor | None, c: Tensor | None, temperature: Tensor) -> Tensor:
        channels, height, width = self.event.shape
        z = self.codes(noise)
        return self.likelihood(z, y).sample(noise.uniform("levels", (channels + 1, height, width)))
