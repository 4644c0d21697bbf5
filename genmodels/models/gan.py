"""The generative adversarial network: a generator that only has to fool a critic which is trained beside it.

Generative Adversarial Nets (Goodfellow et al., 2014), arXiv:1406.2661, with the non-saturating generator loss; or Improved Training of
Wasserstein GANs (Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville, 2017), arXiv:1704.00028. Labels are concatenated (Conditional Generative
Adversarial Nets, Mirza and Osindero, 2014, arXiv:1411.1784).

We differ from the papers in three ways. The generator has group norm and the critic no norm, for a picture's output must not depend on its
neighbours. Beside the non-saturating loss stands R1, the zero-centred penalty at the data (Mescheder et al., 2018, arXiv:1801.04406), without which
small sets diverge. And both real and generated pictures get uniform noise of one level's width before the critic sees them, since it could tell
levels from reals by that alone.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmodels.core import Batch, Decodes, Event, Metrics, Objective, Optimizer, Trained
from genmodels.nn.conditioning import ClassBias
from genmodels.nn.residual import Up, sizes, widths
from genmodels.nn.scaling import rounded, scaled, wide
from genmodels.noise import Noise

Loss = Literal["non-saturating", "wgan-gp"]


class Generator(nn.Module):
    """z (B, latent), y -> (B, C, H, W) in [-1, 1]."""

    def __init__(self, event: Event, config: "GAN.Config") -> None:
        super().__init__()
        channels, height, width = event.shape
        self.embedding = config.embedding if event.classes else 0
        self.label = ClassBias(event.classes, self.embedding, scale=1.0)
        self.up = Up(config.latent + self.embedding, (height, width), config.hidden, config.blocks, channels, classes=0)

    def forward(self, z: Tensor, y: Tensor | None) -> Tensor:
        return torch.tanh(self.up(torch.cat([z, self.label(z.new_zeros(len(z), self.embedding), y)], dim=1), None))


class Critic(nn.Module):
    """x (B, C, H, W) in [-1, 1], y -> (B,): the logit of being real, or the Wasserstein critic's value. No norm of any kind."""

    def __init__(self, event: Event, config: "GAN.Config") -> None:
        super().__init__()
        channels, height, width = event.shape
        steps = sizes(height, width)
        wide = widths(config.hidden, len(steps))
        self.embedding = config.embedding if event.classes else 0
        self.label = ClassBias(event.classes, self.embedding, scale=1.0)
        self.enter = nn.Conv2d(channels + self.embedding, config.hidden, 3, padding=1)
        self.halve = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(wide))
        self.mix = nn.Conv2d(wide[-1], wide[-1], 3, padding=1)
        self.leave = nn.Linear(wide[-1] * steps[-1][0] * steps[-1][1], 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.kaiming_normal_(layer.weight, 0.2)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        label = self.label(x.new_zeros(len(x), self.embedding, *x.shape[2:]), y)
        h = F.leaky_relu(self.enter(torch.cat([x, label], dim=1)), 0.2)
        for halve in self.halve:
            h = F.leaky_relu(halve(h), 0.2)
        return self.leave(F.leaky_relu(self.mix(h), 0.2).flatten(1))[:, 0]


class GAN(Trained, Decodes):
    modalities = frozenset({"image"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """critic_steps: the critic's for one of the generator's; penalty: the gradient penalty's weight (wgan-gp), or R1's gamma."""

        loss: Loss = "non-saturating"
        latent: int = 64
        embedding: int = 16
        hidden: int = 24
        blocks: int = 1
        critic_steps: int = 1
        penalty: float = 1.0

        def __post_init__(self) -> None:
            if self.loss not in ("non-saturating", "wgan-gp"):
                raise ValueError(f"loss {self.loss!r}; wanted non-saturating or wgan-gp")
            if min(self.latent, self.embedding, self.hidden, self.critic_steps) < 1 or self.blocks < 0 or self.penalty < 0:
                raise ValueError(f"{self}; wanted sizes and steps of at least 1 and a penalty of at least 0")

    config: Config

    def __init__(self, event: Event, config: Config) -> None:
        super().__init__(event, config)
        if event.levels == 0:
            raise ValueError(f"GAN models levels; got {event}")
        self.latent = Event(modality="table", shape=(config.latent,), levels=0, classes=event.classes)
        self.generator, self.critic = Generator(event, config), Critic(event, config)

    def objectives(self) -> list[Objective]:
        wasserstein = self.config.loss == "wgan-gp"
        betas = (0.0, 0.9) if wasserstein else (0.0, 0.99)  # without momentum the game does not overshoot
        return [
            Objective(
                name="critic" if wasserstein else "discriminator",
                loss=self.critic_loss,
                parameters=list(self.critic.parameters()),
                optimizer=Optimizer(lr=2e-3, betas=betas, clip=0.0),
            ),
            Objective(
                name="generator",
                loss=self.generator_loss,
                parameters=list(self.generator.parameters()),
                every=self.config.critic_steps,
                optimizer=Optimizer(lr=1e-3 if wasserstein else 5e-4, betas=betas, clip=0.0),
            ),
        ]

    def critic_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """The critic's mean loss over the rows, its penalty included; no gradient reaches the generator."""
        real = self._blurred(scaled(batch.x, self.event.levels), noise, "critic.real")
        with torch.no_grad():
            fake = self._fakes(batch, noise, "critic")
        at_real, at_fake = wide(self.critic(real, batch.y)), wide(self.critic(fake, batch.y))
        if self.config.loss == "wgan-gp":
            share = noise.uniform("critic.share")[:, None, None, None]
            between = share * real + (1 - share) * fake
            penalty = self.config.penalty * unit_norm_penalty(self.critic, between, batch.y)
            loss = at_fake - at_real + penalty  # Gulrajani et al., eq. 3
        else:
            penalty = self.config.penalty / 2 * squared_gradients(self.critic, real, batch.y)  # Mescheder et al., eq. 9
            loss = discriminator_loss(at_real, at_fake) + penalty
        apart = (at_real - at_fake).detach().mean()
        return loss.mean(), {"real_minus_fake": apart, "penalty": penalty.detach().mean()}

    def generator_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        at_fake = wide(self.critic(self._fakes(batch, noise, "generator"), batch.y))
        loss = -at_fake.mean() if self.config.loss == "wgan-gp" else F.softplus(-at_fake).mean()
        return loss, {}

    def codes(self, noise: Noise) -> Tensor:
        return noise.normal("z", (self.config.latent,))

    def draw(self, noise: Noise, *, y: Tensor | None, c: Tensor | None, temperature: Tensor) -> Tensor:
        return rounded(self.generator(self.codes(noise), y), self.event.levels)

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """z (B, latent) -> (B, C, H, W) uint8: what the generator makes of it."""
        if z.ndim != 2 or z.shape[1] != self.config.latent:
            raise ValueError(f"codes of shape {tuple(z.shape)}; wanted (n, {self.config.latent})")
        y = self.condition(y, len(z))
        with torch.no_grad():
            return rounded(self.generator(z.to(self.device), y), self.event.levels)

    def _fakes(self, batch: Batch, noise: Noise, player: str) -> Tensor:
        z = noise.normal(f"{player}.z", (self.config.latent,))
        return self._blurred(self.generator(z, batch.y), noise, f"{player}.fake")

    def _blurred(self, x: Tensor, noise: Noise, tag: str) -> Tensor:
        """x in [-1, 1] with uniform noise of one level's width, so that a picture of levels and one of reals look alike."""
        return x + (2 * noise.uniform(tag, self.event.shape) - 1) / (self.event.levels - 1)


def discriminator_loss(at_real: Tensor, at_fake: Tensor) -> Tensor:
    """(B,) logits each -> (B,) nats: -log D(x) - log(1 - D(G(z))) (Goodfellow et al., eq. 1)."""
    return F.softplus(-at_real) + F.softplus(at_fake)


def squared_gradients(critic: nn.Module, x: Tensor, y: Tensor | None) -> Tensor:
    """(B,) squared norm, over all dimensions of a row, of the critic's gradient at x; in float32 whatever the precision of the rest."""
    with torch.autocast(x.device.type, enabled=False), torch.enable_grad():
        x = x.detach().float().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(x, y).sum(), x, create_graph=True)
    return gradient.square().flatten(1).sum(1)


def unit_norm_penalty(critic: nn.Module, x: Tensor, y: Tensor | None) -> Tensor:
    """(B,): how far the gradient's norm at x is from one, squared."""
    return ((squared_gradients(critic, x, y) + 1e-12).sqrt() - 1).square()
