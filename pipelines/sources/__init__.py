"""Sources by name or by URL."""

import re
from pathlib import PurePosixPath

from pipelines import storage
from pipelines.errors import Refused
from pipelines.sections import Data
from pipelines.sources.arrays import IDX_IMAGES, Idx, Npz, ParquetFiles
from pipelines.sources.bundled import Digits, Tones
from pipelines.sources.folder import Folder
from pipelines.sources.published import BinarizedMnist, FashionMnist, Fsdd, Mnist
from pipelines.sources.source import Source
from pipelines.sources.tables import PINS, open_table
from pipelines.sources.tree import Tree, tree_at
from serve.names import unknown

NAMED = ("binarized_mnist", "digits", "fashion_mnist", "fsdd", "mnist", "tones")
KINDS = {"image": "pictures", "audio": "sounds", "table": "a table"}


def open_source(data: Data) -> Source:
    """The source of a recipe's data section. Raises Refused for a name or a place that is none, Failed for one out of reach."""
    if data.source in PINS and not data.table:
        raise Refused(f"data.source {data.source!r} holds a table; got data.{data.modality}, wanted data.table")
    source = _named(data) if data.source in NAMED else _at(data)
    if source.modality not in (None, data.modality):
        kind = KINDS[str(source.modality)]
        raise Refused(f"data.source {data.source!r} holds {kind}; got data.{data.modality}, wanted data.{source.modality}")
    return source


def _named(data: Data) -> Source:
    if data.source == "tones":
        return Tones(sample_rate=data.audio.sample_rate if data.audio else 16000, seconds=data.audio.seconds if data.audio else 1.0)
    return {"binarized_mnist": BinarizedMnist, "digits": Digits, "fashion_mnist": FashionMnist, "fsdd": Fsdd, "mnist": Mnist}[data.source]()


def _at(data: Data) -> Source:
    """What lies at a path or URL."""
    if data.source not in PINS and re.fullmatch(r"[A-Za-z0-9_-]+", data.source) and not storage.exists(storage.absolute(data.source)):
        names = PINS if data.table else NAMED
        raise Refused(f"data.source: {unknown('source', data.source, names)} (or give a path or a URL)")
    if data.table:
        return open_table(data)
    url = storage.absolute(data.source)
    parent, _, name = url.rpartition("/")
    suffix = PurePosixPath(name).suffix.lower()
    if suffix == ".npz":
        return Npz(Tree(parent), name, data.modality)
    if suffix == ".parquet":
        return ParquetFiles(Tree(parent), (name,), data.label.label_column)
    if IDX_IMAGES.search(name):
        return Idx(Tree(parent), (name,))
    return _below(tree_at(url), data)


def _below(place: Tree, data: Data) -> Source:
    """A folder: of IDX files, of Parquet files, or of pictures or sounds."""
    kind = place.kind()
    if kind == "nothing":
        raise Refused(
            f"data.source: nothing at {data.source}; wanted a folder, a zip, an IDX, npz or Parquet file, or one of {', '.join(NAMED)}"
        )
    if kind == "file":
        raise Refused(f"data.source: {data.source} is one file; wanted a folder of files, a zip, or an IDX, npz or Parquet file")
    special = sorted(name for name in place.names() if IDX_IMAGES.search(name) or name.endswith(".parquet"))
    if images := tuple(name for name in special if IDX_IMAGES.search(name)):
        return Idx(place, images)
    return ParquetFiles(place, tuple(special), data.label.label_column) if special else Folder(place)
