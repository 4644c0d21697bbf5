"""What a source of data is: a listing of inputs, cheap to take again, and the raw examples inside one input."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.fingerprint import fingerprint

LISTING = pa.schema([("key", pa.string()), ("source", pa.string()), ("size", pa.int64()), ("stamp", pa.string()), ("piece", pa.int32())])
"""Inputs: source is the path relative to the root, stamp its content hash or etag, piece a part of it (a row group; else 0); key hashes these four."""

EVERYWHERE, REST = "", "rest"
"""Sides of an official split besides train, valid and test: none given; and given to the training side, of which valid is still to be cut."""


def inputs(source: Sequence[str], size: Sequence[int], stamp: Sequence[str], piece: Sequence[int] | None = None) -> pa.Table:
    """A listing of inputs."""
    piece = piece or [0] * len(source)
    rows = zip(source, size, stamp, piece, strict=True)
    key = [hashlib.blake2b("\0".join(map(str, row)).encode(), digest_size=16).hexdigest() for row in rows]
    return pa.table([key, source, size, stamp, piece], schema=LISTING)


@dataclass(frozen=True)
class Examples:
    """n decoded examples of one input, ready to be quantised.

    pixels (n, H, W) or (n, H, W, 3) uint8 in 0..255, or waves: n arrays (steps,) float in -1..1 at the event's rate. names: what to add to the
    input's path to name an example, label: text or None, side: of an official split.
    """

    pixels: NDArray[np.uint8] | None = None
    waves: Sequence[NDArray[np.floating]] | None = None
    encoded: Sequence[bytes] | None = None
    """Pictures or sounds still in their files' encoding."""
    names: Sequence[str] = ()
    labels: Sequence[str | None] | None = None
    side: str = EVERYWHERE


class Source(ABC):
    """Where examples come from. Small and picklable: it travels to the workers."""

    official: bool = False
    """Has a split of its own, which is kept whole."""

    @abstractmethod
    def listings(self, cache: str | None) -> Iterator[pa.Table]:
        """Tables of inputs (LISTING), some thousands each, the same ones for the same content. cache: URI of a folder for what is costly to find out."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What besides the inputs shapes the examples."""
        return {}

    def label(self, source: str) -> str | None:
        """The label that an input's path gives."""
        return None

    def side(self, source: str) -> str:
        """The side of the official split that an input's path gives."""
        return EVERYWHERE


class Files(Source):
    """Inputs that are one picture or sound each."""

    @abstractmethod
    def local(self, source: str) -> str | None:
        """The input's path on this machine, if it lies on it."""

    @abstractmethod
    def read(self, source: str) -> bytes:
        """The input's bytes."""


class Containers(Source):
    """Inputs that hold many examples each."""

    @abstractmethod
    def examples(self, source: str, piece: int) -> Examples:
        """Raises ValueError for an input that cannot be read."""


def digest(tables: Sequence[str]) -> str:
    return fingerprint(list(tables))
