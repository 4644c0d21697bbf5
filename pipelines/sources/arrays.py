"""Files that hold many examples: IDX (as MNIST is published), npz, and Parquet with a column of pictures or sounds."""

import gzip
import io
import math
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines import storage
from pipelines.errors import Failed
from pipelines.sources.source import EVERYWHERE, Containers, Examples, Leaf, inputs, leaf
from pipelines.sources.tree import Tree

IDX_IMAGES = re.compile(r"idx3-ubyte(\.gz)?$")


def read_idx(content: bytes) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes, gzipped or not -> its array. Raises ValueError for anything else."""
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError) as error:
            raise ValueError(f"a broken gzip file: {error}") from None
    if len(content) < 4 or content[:3] != b"\0\0\x08" or not 1 <= content[3] <= 4 or len(content) < 4 + 4 * content[3]:
        raise ValueError("no IDX file of unsigned bytes: it does not begin with 0, 0, 8 and its number of axes")
    shape = np.frombuffer(content, ">u4", content[3], 4).astype(np.int64)
    if len(content) != 4 + 4 * content[3] + math.prod(shape.tolist()):
        raise ValueError(f"an IDX file of shape {tuple(shape.tolist())} with {len(content)} bytes; it is cut short, or not what it says")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


@dataclass(frozen=True)
class _Placed(Containers):
    """Containers at a place of their own."""

    tree: Tree

    def url_of(self, path: str) -> str:
        return self.tree.url_of(path)


@dataclass(frozen=True)
class Idx(_Placed):
    """Pictures in IDX files, each with a labels file beside it where there is one (…-images-idx3-ubyte, …-labels-idx1-ubyte).

    In a folder with both train-… and t10k-… files the latter are the test split, which is kept whole.
    """

    names: tuple[str, ...]
    """The images files, relative to the tree's root."""
    modality = "image"

    @property
    def official(self) -> bool:  # type: ignore[override]
        sides = {self._side(name) for name in self.names}
        return sides == {"rest", "test"}

    def leaves(self, cache: str) -> Iterator[Leaf]:
        stamps = []
        for name in self.names:
            labels = self._labels_file(name)
            pair = [self.tree.stamp(name), *([self.tree.stamp(labels)] if labels else [])]
            stamps.append((sum(size for size, _ in pair), " ".join(stamp for _, stamp in pair)))
        yield leaf(inputs(list(self.names), [size for size, _ in stamps], [stamp for _, stamp in stamps]))

    def examples(self, source: str, piece: int) -> Examples:
        return idx_examples(self.tree, source, self._labels_file(source), self._side(source) if self.official else EVERYWHERE)

    def _labels_file(self, name: str) -> str | None:
        beside = name.replace("-images", "-labels").replace("idx3", "idx1")
        return beside if beside != name and storage.exists(self.tree.url_of(beside)) else None

    def _side(self, name: str) -> str:
        stem = name.rpartition("/")[2]
        return "rest" if stem.startswith("train") else "test" if stem.startswith(("t10k", "test")) else EVERYWHERE


def idx_examples(tree: Tree, images: str, labels: str | None, side: str) -> Examples:
    pixels = read_idx(tree.read(images))
    given = None if labels is None else read_idx(tree.read(labels))
    if pixels.ndim != 3 or (given is not None and given.shape != pixels.shape[:1]):
        raise ValueError(
            f"images of shape {pixels.shape} with labels of shape {None if given is None else given.shape}; wanted (n, H, W) and (n,)"
        )
    names = numbered(images.removesuffix(".gz"), len(pixels))
    return Examples(
        pixels=pixels, names=names, labels=None if given is None else [str(label) for label in given], sides=[side] * len(pixels)
    )


def numbered(name: str, count: int, first: int = 0) -> list[str]:
    """Names of the examples inside a container."""
    return [f"{name}#{i:07d}" for i in range(first, first + count)]


@dataclass(frozen=True)
class Npz(_Placed):
    """An npz with an array x of pictures (n, H, W), (n, H, W, 1 or 3) or (n, 1 or 3, H, W), uint8 or bool; or of sounds (n, T), float in -1..1 or
    int16, at the event's rate. Labels in y (n,), where there is one."""

    name: str
    kind: str

    def leaves(self, cache: str) -> Iterator[Leaf]:
        size, stamp = self.tree.stamp(self.name)
        yield leaf(inputs([self.name], [size], [stamp]))

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"kind": self.kind}

    def examples(self, source: str, piece: int) -> Examples:
        try:
            with np.load(io.BytesIO(self.tree.read(source)), allow_pickle=False) as file:
                x, y = file["x"], file["y"] if "y" in file.files else None
        except (KeyError, zipfile.BadZipFile, EOFError, OSError) as error:
            raise ValueError(f"no npz with an array x: {error}") from None
        if y is not None and y.shape != x.shape[:1]:
            raise ValueError(f"x of shape {x.shape} with y of shape {y.shape}; wanted one label an example")
        labels = None if y is None else [str(label) for label in y.tolist()]
        names = numbered(source, len(x) if x.ndim else 0)
        if self.kind == "image":
            return Examples(pixels=_pixels(x), names=names, labels=labels)
        return Examples(waves=_waves(x), names=names, labels=labels)


def _pixels(x: NDArray[Any]) -> NDArray[np.uint8]:
    if x.dtype == bool:
        x = x.astype(np.uint8) * np.uint8(255)
    if x.ndim == 4 and x.shape[3] not in (1, 3):
        x = x.transpose(0, 2, 3, 1)
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)):
        raise ValueError(f"x is {x.dtype} of shape {x.shape}; wanted pictures, uint8 or bool, (n, H, W) or with 1 or 3 channels")
    return x


def _waves(x: NDArray[Any]) -> Sequence[NDArray[np.floating]]:
    if x.dtype == np.int16:
        x = x / 32768
    if x.ndim != 2 or not np.issubdtype(x.dtype, np.floating) or x.shape[1] == 0:
        raise ValueError(f"x is {x.dtype} of shape {x.shape}; wanted sounds, float in -1..1 or int16, (n, T)")
    return list(x)


@dataclass(frozen=True)
class ParquetFiles(_Placed):
    """Parquet files with a column of encoded pictures or sounds: binary, or a struct with a field bytes (as Hugging Face datasets write them)."""

    names: tuple[str, ...]
    label_column: str

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"label_column": self.label_column}

    def leaves(self, cache: str) -> Iterator[Leaf]:
        for name in self.names:
            size, stamp = self.tree.stamp(name)
            with storage.open_read(self.tree.url_of(name)) as source:
                groups = _groups(source, name)
            yield leaf(inputs([name] * groups, [size] * groups, [stamp] * groups, list(range(groups))))

    def examples(self, source: str, piece: int) -> Examples:
        with storage.open_read(self.tree.url_of(source)) as opened, pq.ParquetFile(opened) as file:
            column = content_column(file.schema_arrow)
            labelled = self.label_column in file.schema_arrow.names
            first = sum(file.metadata.row_group(i).num_rows for i in range(piece))
            table = file.read_row_group(piece, columns=[column, *([self.label_column] if labelled else [])], use_threads=False)
        values = table.column(column).to_pylist()
        encoded = [(value["bytes"] if isinstance(value, dict) else value) or b"" for value in values]
        labels = [None if label is None else str(label) for label in table.column(self.label_column).to_pylist()] if labelled else None
        return Examples(encoded=encoded, names=numbered(source, len(encoded), first), labels=labels)


def _groups(source: Any, name: str) -> int:
    try:
        return pq.ParquetFile(source).metadata.num_row_groups
    except pa.ArrowInvalid as error:
        raise Failed(f"{name} is no Parquet file: {' '.join(str(error).split())[:120]}") from None


def content_column(schema: pa.Schema) -> str:
    """The first column that holds files' bytes. Raises ValueError where none does."""
    for field in schema:
        inner = (
            field.type.field("bytes").type if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0 else field.type
        )
        if pa.types.is_binary(inner) or pa.types.is_large_binary(inner):
            return field.name
    raise ValueError(f"no column of binary, or of a struct with bytes; its columns: {', '.join(schema.names)}")
