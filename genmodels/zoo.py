"""The families by name, and how to build one. Adding a family is one file in models/ and one line here."""

from typing import Any

from genmodels import noise
from genmodels.core import Autoregressive, Event, GenerativeModel
from genmodels.models.bayesnet import BayesNet
from genmodels.models.fvbn import FVBN
from genmodels.models.gan import GAN
from genmodels.models.gsn import GSN
from genmodels.models.helmholtz import Helmholtz
from genmodels.models.made import MADE
from genmodels.models.mixture import Mixture
from genmodels.models.multiscale import Multiscale
from genmodels.models.nade import NADE
from genmodels.models.pixelcnn import GatedPixelCNN, PixelCNN
from genmodels.models.pixelcnnpp import PixelCNNPlusPlus
from genmodels.models.pixelrnn import DiagonalBiLSTM, RowLSTM
from genmodels.models.posterior import Posterior
from genmodels.models.rbm import RBM
from genmodels.models.vae import VAE
from genmodels.models.wavenet import WaveNet
from genmodels.sampling.native import Native

MODELS: dict[str, type[GenerativeModel]] = {
    "fvbn": FVBN,
    "nade": NADE,
    "made": MADE,
    "row_lstm": RowLSTM,
    "diagonal_bilstm": DiagonalBiLSTM,
    "pixelcnn": PixelCNN,
    "gated_pixelcnn": GatedPixelCNN,
    "multiscale": Multiscale,
    "pixelcnnpp": PixelCNNPlusPlus,
    "wavenet": WaveNet,
    "vae": VAE,
    "helmholtz": Helmholtz,
    "rbm": RBM,
    "gan": GAN,
    "gsn": GSN,
    "mixture": Mixture,
    "bayesnet": BayesNet,
    "posterior": Posterior,
}


def build(family: str, event: Event, *, seed: int = 0, **config: Any) -> GenerativeModel:
    """A fresh model of a family for an event; its first weights are a function of the seed. Raises ValueError for an unknown family or setting."""
    if family not in MODELS:
        raise ValueError(f"unknown family {family!r}; known: {', '.join(sorted(MODELS))}")
    kind = MODELS[family]
    known = kind.Config.__dataclass_fields__
    if stray := [key for key in config if key not in known]:
        raise ValueError(f"unknown setting {stray[0]!r} of {family}; known: {', '.join(known)}")
    with noise.initialising(seed):
        model = kind(event, kind.Config(**config))
    if isinstance(model, Autoregressive):
        model.sampler = Native()
    return model
