"""What the endpoint asks of a replica, checked and in arrays, and what it gets back."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.schema import Description, LogPartition


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Samples first..first+n-1 of a seed. y: a class number each, or None to draw them; c (*condition.shape) for all of them."""

    seed: int
    first: int
    n: int
    y: tuple[int, ...] | None = None
    c: NDArray[Any] | None = None
    temperature: float = 1.0
    version: str | None = None
    """Answer only as this version."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """levels (n, *shape) and who drew them. labels: the class of each, where the event has classes."""

    levels: NDArray[Any]
    labels: tuple[int, ...] | None
    description: Description


@dataclass(frozen=True, kw_only=True)
class Decode:
    """Codes z (n, *latent.shape) to make examples of. y: a class number each, or None."""

    z: NDArray[Any]
    y: tuple[int, ...] | None = None
    version: str | None = None
    """Answer only as this version."""

    @property
    def n(self) -> int:
        return len(self.z)


@dataclass(frozen=True, kw_only=True)
class End:
    """Where a path begins or ends: at the code of sample `index` of a seed, or at the mean code of x (*shape) levels."""

    seed: int | None = None
    index: int = 0
    x: NDArray[Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Interpolate:
    """n steps between two codes, both of them included. y: a class number each, or None; the ends are encoded under the first and the last."""

    ends: tuple[End, End]
    n: int
    y: tuple[int, ...] | None = None
    version: str | None = None
    """Answer only as this version."""


@dataclass(frozen=True, kw_only=True)
class Decoded(Drawn):
    """z (n, *latent.shape): the codes that the levels were made of. row: they belong in one row."""

    z: NDArray[Any]
    row: bool = False


Asked = Draw | Decode | Interpolate
"""What examples are drawn or made for."""


@dataclass(frozen=True, kw_only=True)
class Fill(Draw):
    """Completions first..first+n-1 of a seed of one example: x (*shape) levels, known (*shape) bool; x is 0 where nothing is known."""

    x: NDArray[Any]
    known: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Filled(Drawn):
    """How the rest was filled in, whether exactly, and where draws were weighted the effective sample size (n,) of each."""

    method: str
    exact: bool
    ess: NDArray[np.floating] | None


@dataclass(frozen=True, kw_only=True)
class Examples:
    """x (n, *shape) levels; lengths valid steps each, or None; c (*condition.shape) for all of them, (n, *condition.shape) for each, or None."""

    x: NDArray[Any]
    lengths: tuple[int, ...] | None = None
    c: NDArray[Any] | None = None
    version: str | None = None
    """Answer only as this version."""


@dataclass(frozen=True, kw_only=True)
class Encode(Examples):
    """Examples to encode: y a class number each, or None."""

    y: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """q(z|x) of each of n examples: the kind of distribution, and each of its parameters (n, *latent.shape) by name."""

    distribution: str
    parameters: dict[str, NDArray[np.float32]]
    protocol: str
    description: Description


@dataclass(frozen=True, kw_only=True)
class Weigh(Examples):
    """Examples to score: y a class number each, or None; map: also the nats of every value."""

    y: tuple[int, ...] | None = None
    seed: int = 0
    k: int = 64
    map: bool = False


@dataclass(frozen=True, kw_only=True)
class Weighed:
    """nats (n,); map (n, *shape) float32, where it was asked for."""

    nats: NDArray[np.float64]
    protocol: str
    description: Description
    map: NDArray[np.float32] | None = None
    partition: LogPartition | None = None
    """log Z that the nats were found with, of a model whose density is unnormalised."""


@dataclass(frozen=True, kw_only=True)
class Classified:
    """log_probs (n, classes) nats: log p(y|x)."""

    log_probs: NDArray[np.float64]
    protocol: str
    description: Description
