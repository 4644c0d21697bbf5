"""The generative adversarial network: a generator that only has to fool a critic which is trained beside it.

Generative Adversarial Nets (Goodfellow et al., 2014), arXiv:1406.2661: the minimax game as written, or its non-saturating form; Geometric GAN
(Lim, Ye, 2017), arXiv:1705.02894: hinge; Improved Training of Wasserstein GANs (Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville, 2017),
arXiv:1704.00028. Beside them R1, the zero-centred penalty at the data (Mescheder, Geiger, Nowozin, 2018, arXiv:1801.04406), and spectral
normalisation (models.spectral). Labels are concatenated (Conditional Generative Adversarial Nets, Mirza, Osindero, 2014, arXiv:1411.1784) or
projected on (cGANs with Projection Discriminator, Miyato, Koyama, 2018, arXiv:1802.05637).

We differ from the papers in three ways. The generator has group norm and the critic no norm of its activations, for a picture's output must not
depend on its neighbours. R1 is on where nothing else bounds the critic, since small sets diverge without it. And real and generated levels both get
uniform noise of one level's width before the critic sees them, since it could tell levels from reals by that alone; real values get none.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from genmodels.core import Batch, Decodes, Event, Metrics, Objective, Optimizer, Trained
from genmodels.models.gan_losses import Loss, critic_loss, generator_loss, squared_gradients, unit_norm_penalty
from genmodels.models.gan_players import PictureCritic, PictureGenerator, TableCritic, TableGenerator
from genmodels.nn.scaling import rounded, scaled, wide
from genmodels.noise import Noise


class GAN(Trained, Decodes):
    VERSION = 2  # R1's weight, once `penalty`, is `r1`; with no settings the numbers are those of 1
    modalities = frozenset({"image", "table"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """critic_steps: the critic's for one of the generator's; penalty: the weight of wgan-gp's; r1: R1's gamma, where None is 1 unless the loss
        is wgan-gp or the critic spectral; spectral: every layer of the critic has spectral norm 1; conditioning: how the critic hears of a label.

        latent: numbers in a code; embedding: numbers that stand for a label; hidden: feature maps at full size, on a table units a layer; blocks:
        residual blocks a size of the generator, on a table hidden layers but the first. location, scale: both players see a table's real values
        as (x - location) / scale; one number for all columns, or one each.
        """

        loss: Loss = "non-saturating"
        latent: int = 64
        embedding: int = 16
        hidden: int = 24
        blocks: int = 1
        critic_steps: int = 1
        penalty: float = 10.0
        r1: float | None = None
        spectral: bool = False
        conditioning: Literal["concatenation", "projection"] = "concatenation"
        location: tuple[float, ...] = (0.0,)
        scale: tuple[float, ...] = (1.0,)

        def __post_init__(self) -> None:
            if self.loss not in get_args(Loss):
                raise ValueError(f"loss {self.loss!r}; wanted {', '.join(get_args(Loss))}")
            if self.conditioning not in ("concatenation", "projection"):
                raise ValueError(f"conditioning {self.conditioning!r}; wanted concatenation or projection")
            if min(self.latent, self.embedding, self.hidden, self.critic_steps) < 1 or min(self.blocks, self.penalty, self.r1 or 0) < 0:
                raise ValueError(f"{self}; wanted sizes and steps of at least 1 and penalties of at least 0")
            if self.loss == "wgan-gp" and self.r1:
                raise ValueError(f"r1 {self.r1:g} with wgan-gp, which has a penalty of its own; leave r1 out, or take another loss")

        @property
        def gamma(self) -> float:
            """R1's weight, chosen or not."""
            return (0.0 if self.spectral or self.loss == "wgan-gp" else 1.0) if self.r1 is None else self.r1

    config: Config
    location: Tensor
    scale: Tensor
    """(1,) or (D,) float32, of a table of real values; not saved, since the config has them."""

    def __init__(self, event: Event, config: Config) -> None:
        super().__init__(event, config)
        _check(event, config)
        self.latent = Event(modality="table", shape=(config.latent,), levels=0, classes=event.classes)
        projects = config.conditioning == "projection"
        makes = {"latent": config.latent, "embedding": config.embedding, "hidden": config.hidden, "blocks": config.blocks}
        judges = {"embedding": config.embedding, "hidden": config.hidden, "spectral": config.spectral, "projects": projects}
        self.generator: PictureGenerator | TableGenerator
        self.critic: PictureCritic | TableCritic
        if event.modality == "image":
            self.generator, self.critic = PictureGenerator(event, **makes), PictureCritic(event, **judges)
        else:
            self.generator, self.critic = TableGenerator(event, **makes), TableCritic(event, blocks=config.blocks, **judges)
        for name in ("location", "scale"):
            self.register_buffer(name, torch.tensor(getattr(config, name)), persistent=False)

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
        real = self._blurred(self._inside(batch.x), noise, "critic.real")
        with torch.no_grad():
            fake = self._fakes(batch, noise, "critic")
        at_real, at_fake = wide(self.critic(real, batch.y)), wide(self.critic(fake, batch.y))
        penalty = self._penalty(real, fake, batch.y, noise)
        loss = critic_loss(self.config.loss, at_real, at_fake) + penalty
        apart = (at_real - at_fake).detach().mean()
        return loss.mean(), {"real_minus_fake": apart, "penalty": penalty.detach().mean()}

    def generator_loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        """The generator's mean loss over the rows."""
        at_fake = wide(self.critic(self._fakes(batch, noise, "generator"), batch.y))
        return generator_loss(self.config.loss, at_fake).mean(), {}

    def codes(self, noise: Noise) -> Tensor:
        return noise.normal("z", (self.config.latent,))

    def draw(self, noise: Noise, *, y: Tensor | None, c: Tensor | None, temperature: Tensor) -> Tensor:
        return self._outside(self.generator(self.codes(noise), y))

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """z (B, latent) -> (B, *shape) uint8 levels, float32 of a table of real values: what the generator makes of it."""
        if z.ndim != 2 or z.shape[1] != self.config.latent:
            raise ValueError(f"codes of shape {tuple(z.shape)}; wanted (n, {self.config.latent})")
        y = self.condition(y, len(z))
        with torch.no_grad():
            return self._outside(self.generator(z.to(self.device), y))

    def _penalty(self, real: Tensor, fake: Tensor, y: Tensor | None, noise: Noise) -> Tensor:
        """(B,): the weighted penalty of the critic's gradient, at the data or between data and samples."""
        if self.config.loss == "wgan-gp" and self.config.penalty:
            share = noise.uniform("critic.share").reshape(-1, *[1] * len(self.event.shape))
            return self.config.penalty * unit_norm_penalty(self.critic, share * real + (1 - share) * fake, y)
        if self.config.gamma:
            return self.config.gamma / 2 * squared_gradients(self.critic, real, y)  # Mescheder et al., eq. 9
        return real.new_zeros(len(real))

    def _fakes(self, batch: Batch, noise: Noise, player: str) -> Tensor:
        z = noise.normal(f"{player}.z", (self.config.latent,))
        return self._blurred(self.generator(z, batch.y), noise, f"{player}.fake")

    def _inside(self, x: Tensor) -> Tensor:
        """Examples (B, *shape) as the players see them: levels in [-1, 1], real values moved and scaled."""
        return scaled(x, self.event.levels) if self.event.levels else (x - self.location) / self.scale

    def _outside(self, x: Tensor) -> Tensor:
        """What the generator makes, as examples."""
        return rounded(x, self.event.levels) if self.event.levels else x * self.scale + self.location

    def _blurred(self, x: Tensor, noise: Noise, tag: str) -> Tensor:
        """x in [-1, 1] with uniform noise of one level's width, so that levels and what is to become levels look alike; real values as they are."""
        if not self.event.levels:
            return x
        return x + (2 * noise.uniform(tag, self.event.shape) - 1) / (self.event.levels - 1)


def _check(event: Event, config: GAN.Config) -> None:
    """Raises ValueError for an event that these settings do not fit."""
    if event.condition is not None:
        raise ValueError(f"GAN takes no condition but a label; got {event} with a condition, {event.condition}")
    if event.modality == "image" and not event.levels:
        raise ValueError(f"GAN models pictures of levels; got {event}")
    if config.conditioning == "projection" and not event.classes:
        raise ValueError(f"conditioning by projection for {event}, which has no classes; set conditioning to concatenation, or give labels")
    if event.levels and (config.location, config.scale) != ((0.0,), (1.0,)):
        raise ValueError(f"location {config.location} and scale {config.scale} for {event}; they are of real values, leave them out")
    for name, each in (("location", config.location), ("scale", config.scale)):
        if len(each) not in (1, event.dims):
            raise ValueError(f"{len(each)} numbers of {name} for {event}; wanted 1 or {event.dims}")
    if min(config.scale) <= 0:
        raise ValueError(f"scale {config.scale}; wanted numbers above 0")
