"""What a replica computes about codes: the distributions of given examples, and examples of given codes, block by block."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent

from genmodels.core import BLOCK, Decodes, Encodes
from genmodels.noise import Noise
from serve.jobs import Job, Part, Weighing


@dataclass(kw_only=True, eq=False)
class Encoding(Weighing):
    """The parameters of q(z|x), (n, parameters, *latent.shape) float32; y (n,) or None. Which they are is known when the first rows are."""

    y: Tensor | None
    distribution: str = ""
    names: tuple[str, ...] = ()

    def weigh(self, rows: Tensor) -> Tensor:
        assert isinstance(self.model, Encodes)
        x, _, _ = self.picked(rows)
        q = self.model.encode(x, None if self.y is None else self.y[rows])
        self.distribution, parameters = named(q)
        self.names = tuple(parameters)
        return torch.stack(list(parameters.values()), dim=1).float()


def named(q: Distribution) -> tuple[str, dict[str, Tensor]]:
    """The kind of a distribution over codes, and its parameters by name; the first of them is its mean."""
    while isinstance(q, Independent):
        q = q.base_dist
    if isinstance(q, Bernoulli):
        return "Bernoulli", {"probs": q.mean}
    return type(q).__name__, {"mean": q.mean, "stddev": q.stddev}


@dataclass(kw_only=True, eq=False)
class Decoding(Job):
    """Examples of codes z (n, *latent.shape); y (n,) or None. A row's levels do not depend on whose rows it is decoded with."""

    z: Tensor
    y: Tensor | None

    @property
    def kin(self) -> object:
        return Decoding, id(self.model), self.y is None

    @staticmethod
    def compute(parts: Sequence[Part]) -> NDArray[Any]:
        model = parts[0].job.model
        assert isinstance(model, Decodes)
        z = torch.cat([part.job.z[part.start : part.stop] for part in parts]).to(model.device)
        y = None if parts[0].job.y is None else torch.cat([part.job.y[part.start : part.stop] for part in parts])
        return model.decode_rows(z, y).cpu().numpy()


def drawn_code(model: Decodes, seed: int, index: int) -> Tensor:
    """(*latent.shape): the code that sample `index` of a seed is made of, computed in a block as that is."""
    with torch.no_grad():
        return model.codes(Noise([seed] * BLOCK, position=[index] * BLOCK).to(model.device))[0].cpu()
