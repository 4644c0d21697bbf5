"""The Frechet distance of samples to data, in a feature space that is named and hashed.

GANs trained by a two time-scale update rule converge to a local Nash equilibrium (Heusel et al., 2017), arXiv:1706.08500, eq. 6. Their feature
space is a network trained on ImageNet; ours is made from the training set, so the number is never called FID.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from genmodels.core import Batch, Event
from genmodels.evaluate.score import Score


@dataclass(frozen=True, kw_only=True)
class Features:
    """Projection on the first principal components of the training examples. mean (D,), components (D, k) float64; levels scaled to [0, 1]."""

    mean: Tensor
    components: Tensor
    levels: int

    @classmethod
    def fit(cls, event: Event, batches: Iterable[Batch], *, components: int = 64) -> "Features":
        """Raises ValueError for an event too large for a covariance, or fewer than two examples."""
        if event.dims > 4096:
            raise ValueError(f"principal components of {event.dims} values an example; at most 4096 are held in memory")
        n, total, outer = 0, torch.zeros(event.dims, dtype=torch.float64), torch.zeros(event.dims, event.dims, dtype=torch.float64)
        for batch in batches:
            flat = _unit(batch.x, event.levels)
            n, total, outer = n + len(flat), total + flat.sum(0), outer + flat.T @ flat
        if n < 2:
            raise ValueError(f"principal components of {n} examples; wanted at least 2")
        mean = total / n
        _, vectors = torch.linalg.eigh(outer / n - torch.outer(mean, mean))
        top = vectors.flip(1)[:, :components]
        sign = top.gather(0, top.abs().argmax(0, keepdim=True)).sign()  # an eigenvector has no sign of its own
        return cls(mean=mean, components=top * sign, levels=event.levels)

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, *shape) levels -> (B, k) float64."""
        return (_unit(x, self.levels) - self.mean) @ self.components

    @property
    def digest(self) -> str:
        """12 hex digits that name these very numbers."""
        content = self.mean.numpy().tobytes() + self.components.contiguous().numpy().tobytes()
        return hashlib.blake2b(content, digest_size=6).hexdigest()

    @property
    def title(self) -> str:
        return f"PCA-{self.components.shape[1]} of training values {self.digest}"


def _unit(x: Tensor, levels: int) -> Tensor:
    return x.flatten(1).to("cpu", torch.float64) / (levels - 1 if levels else 1)


def frechet(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of the Gaussians fitted to a (n, k) and b (m, k), with unbiased covariances, in float64.

    |mean_a - mean_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) (Dowson and Landau, 1982). Its estimate is biased upwards when n or m is small:
    compare only at equal n and m. Raises ValueError below two rows.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a Frechet distance of {len(a)} and {len(b)} rows; wanted at least 2 of each")
    a, b = a.to(torch.float64), b.to(torch.float64)
    cov_a, cov_b = (torch.atleast_2d(torch.cov(part.T)) for part in (a, b))
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, distance.item())


def frechet_score(real: Tensor, fake: Tensor, *, model: str, space: str, split: str) -> Score:
    """The distance as a Score whose protocol names the space and both counts."""
    protocol = f"Frechet distance in {space}, n_real {len(real)}, n_fake {len(fake)}"
    return Score(
        model=model, name="Frechet distance", value=frechet(real, fake), unit="", protocol=protocol, split=split, n=len(real), stderr=None
    )
