"""The nets of a VAE and what its decoder's numbers mean: which likelihood, over which levels."""

from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from genmodels.core import Event
from genmodels.nn.dense import Dense
from genmodels.nn.independent import Bernoulli, Categorical
from genmodels.nn.likelihood import LogisticMixture
from genmodels.nn.residual import Down, Up

if TYPE_CHECKING:
    from genmodels.models.vae import VAE

Network = Literal["convolutional", "dense"]
Likelihood = Literal["logistic", "bernoulli", "categorical"]
Pixels = LogisticMixture | Bernoulli | Categorical


def check(event: Event, config: "VAE.Config") -> None:
    """Raises ValueError for an event that a VAE of this config does not model."""
    if event.levels == 0:
        raise ValueError(f"VAE models levels; got {event}")
    if config.likelihood == "bernoulli" and event.levels != 2:
        raise ValueError(
            f"likelihood bernoulli of {event.levels} levels: binary cross-entropy on grey levels is no likelihood, it sums to one over two levels "
            "only; set likelihood to logistic or categorical, or levels to 2"
        )
    if config.semi_supervised and event.classes < 2:
        raise ValueError(f"semi_supervised wants at least 2 classes; got {event}")


def encoder(event: Event, config: "VAE.Config", out: int, classes: int) -> nn.Module:
    """x (B, C, H, W) in [-1, 1], y -> (B, out)."""
    channels, height, width = event.shape
    if config.network == "dense":
        return Dense(event.dims, hidden=config.hidden, layers=config.layers, shape=(out,), classes=classes)
    return Down(channels, size=(height, width), hidden=config.hidden, blocks=config.blocks, out=out, classes=classes)


def decoder(event: Event, config: "VAE.Config") -> nn.Module:
    """z (B, latent), y -> (B, parameters, H, W) of the likelihood."""
    channels, height, width = event.shape
    each = {
        "logistic": LogisticMixture.parameters(config.components, channels),
        "bernoulli": channels,
        "categorical": channels * event.levels,
    }
    out = each[config.likelihood]
    if config.network == "dense":
        return Dense(config.latent, hidden=config.hidden, layers=config.layers, shape=(out, height, width), classes=event.classes)
    return Up(config.latent, size=(height, width), hidden=config.hidden, blocks=config.blocks, out=out, classes=event.classes)


def pixels(event: Event, config: "VAE.Config", raw: Tensor) -> Pixels:
    """raw (B, parameters, H, W), as the decoder puts it out."""
    if config.likelihood == "bernoulli":
        return Bernoulli.of(raw)
    if config.likelihood == "categorical":
        return Categorical.of(raw, channels=event.shape[0])
    return LogisticMixture.of(raw, channels=event.shape[0], levels=event.levels)
