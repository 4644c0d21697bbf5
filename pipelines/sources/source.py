"""What a source of data is: a listing of inputs, cheap to take again, and the raw examples inside one input."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

LISTING = pa.schema([("key", pa.string()), ("source", pa.string()), ("size", pa.int64()), ("stamp", pa.string()), ("piece", pa.int32())])
"""Inputs. source: path relative to the root; stamp: content hash or etag; piece: which part of it (a row group; else 0); key: hash of these."""

EVERYWHERE, REST = "", "rest"
"""Sides of an official split besides train, valid and test: none given; and given to the training side, of which valid is still to be cut."""

Leaf = tuple[str, pa.Table]
"""Some thousands of inputs (LISTING), and a name that is the same only for the same inputs."""


def inputs(source: Sequence[str], size: Sequence[int], stamp: Sequence[str], piece: Sequence[int] | None = None) -> pa.Table:
    """A listing of inputs."""
    piece = piece or [0] * len(source)
    rows = zip(source, size, stamp, piece, strict=True)
    key = [hashlib.blake2b("\0".join(map(str, row)).encode(), digest_size=16).hexdigest() for row in rows]
    return pa.table([key, source, size, stamp, piece], schema=LISTING)


def leaf(table: pa.Table) -> Leaf:
    return hashlib.blake2b("".join(table.column("key").to_pylist()).encode(), digest_size=12).hexdigest(), table


@dataclass(frozen=True, kw_only=True)
class Examples:
    """n examples of one input, not yet quantised: one of pixels, waves, encoded and values.

    pixels (n, H, W) or (n, H, W, 3) uint8 in 0..255; waves: n arrays (steps,) float in -1..1 at the event's rate; encoded: n pictures or sounds as
    files' bytes; values (n, columns) float32 of a table. names: the examples' own, as they come in the Shards' column `source`; labels: text, or
    None for none; sides: of an official split; bad: by number, why some of them are none.
    """

    pixels: NDArray[np.uint8] | None = None
    waves: Sequence[NDArray[np.floating]] | None = None
    encoded: Sequence[bytes] | None = None
    values: NDArray[np.float32] | None = None
    names: Sequence[str]
    labels: Sequence[str | None] | None = None
    sides: Sequence[str] | None = None
    bad: Mapping[int, str] = field(default_factory=dict)


class Source(ABC):
    """Where examples come from. Small and picklable: it travels to the workers."""

    official: bool = False
    """Has a split of its own, which is kept whole."""

    modality: str | None = None
    """What its examples are, where it holds only one kind."""

    @abstractmethod
    def leaves(self, cache: str) -> Iterator[Leaf]:
        """The inputs, leaf by leaf, the same for the same content. cache: URI of the folder where the caller keeps each leaf as <name>.parquet."""

    def fetched(self, root: str) -> "Source":
        """The source with its data within reach of every worker and checked; downloads what is missing to the storage at `root`."""
        return self

    def url_of(self, path: str) -> str | None:
        """The URL of a file beside the inputs; None where the source has no place."""
        return None

    @property
    def facts(self) -> Mapping[str, Any]:
        """What besides its inputs shapes the examples."""
        return {}

    def label(self, source: str) -> str | None:
        """The label that an input's path gives."""
        return None


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
