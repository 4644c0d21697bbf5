"""Tables: rows of numbers, and a target beside them; from CSV, from Parquet, or as scikit-learn bundles them."""

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines import storage
from pipelines.errors import Failed, Refused
from pipelines.sections import Data, TableData
from pipelines.sources import comma
from pipelines.sources.arrays import numbered
from pipelines.sources.source import Containers, Examples, Leaf, inputs, leaf
from pipelines.sources.tree import Tree, retried, tree_at
from serve.names import unknown

CSV, PARQUET = (".csv", ".tsv"), (".parquet",)
OWN_TARGET = "target"
"""The column in which a bundled table has what its publishers wanted to know."""


@dataclass(frozen=True)
class Layout:
    """Which columns make an example."""

    features: tuple[str, ...]
    target: str | None
    kind: str | None

    @property
    def numbers(self) -> tuple[str, ...]:
        """The columns of numbers, in the order in which an example has them: a regression's target comes first."""
        return (self.target, *self.features) if self.target and self.kind == "regression" else self.features


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Some rows of a table. columns: numbers, or text as it was written; names: of the rows; bad: reasons of rows that are none, by row."""

    columns: Mapping[str, Sequence[Any] | NDArray[Any]]
    names: Sequence[str]
    bad: Mapping[int, str]


@dataclass(frozen=True)
class Table(Containers):
    """Inputs that hold rows; a row that lacks a number goes to quarantine, the others stay."""

    layout: Layout
    modality = "table"

    @abstractmethod
    def pieces(self, source: str, piece: int) -> Iterator[Columns]:
        """An input's rows, some thousands at a time. Raises ValueError for an input that is no table, or lacks a column."""

    def examples(self, source: str, piece: int) -> Examples:
        parts, names, labels, bad = [np.empty((0, len(self.layout.numbers)), np.float32)], [], [], dict[int, str]()
        for rows in self.pieces(source, piece):
            values, reasons = self._numbers(rows)
            if self.layout.kind == "classification":
                given, missing = _labels(self.layout.target, rows)
                labels += given
                reasons = {**missing, **reasons}
            bad |= {len(names) + i: reason for i, reason in {**reasons, **rows.bad}.items()}
            parts.append(values)
            names += rows.names
        return Examples(values=np.concatenate(parts), names=names, labels=labels or None, bad=bad)

    def _numbers(self, rows: Columns) -> tuple[NDArray[np.float32], dict[int, str]]:
        values, reasons = np.empty((len(rows.names), len(self.layout.numbers)), np.float32), dict[int, str]()
        for place, name in enumerate(self.layout.numbers):
            values[:, place], bad = numbers(name, rows.columns[name])
            reasons = {**bad, **reasons}
        return values, reasons


def numbers(name: str, given: Sequence[Any] | NDArray[Any]) -> tuple[NDArray[np.float32], dict[int, str]]:
    """A column as float32, and by row why a value is no finite number."""
    try:
        wide = np.asarray(given, np.float64)
    except (ValueError, TypeError):
        wide = np.array([number(value) for value in given], np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = wide.astype(np.float32) + np.float32(0)  # -0 is 0: equal rows have equal bytes
    return narrow, {i: f"column {name!r} {_why(given[i])}" for i in np.flatnonzero(~np.isfinite(narrow)).tolist()}


def number(value: Any) -> float:
    """NaN for what is none."""
    try:
        return float(value)
    except (ValueError, TypeError):
        return math.nan


def _why(value: Any) -> str:
    text = "" if value is None else str(value).strip()
    if text.lower() in ("", "nan"):
        return "has no value"
    return f"holds {text[:40]!r}, no number" if math.isnan(number(text)) else f"holds {text[:40]}, not finite in 32 bits"


def _labels(target: str | None, rows: Columns) -> tuple[list[str | None], dict[int, str]]:
    assert target is not None
    found = [_label(value) for value in rows.columns[target]]
    return found, {i: f"column {target!r} has no value" for i, label in enumerate(found) if label is None}


def _label(value: Any) -> str | None:
    """A label as text, a whole number without a point; None where there is none."""
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else str(int(value)) if float(value).is_integer() else str(value)
    return (str(value).strip() or None) if value is not None else None


@dataclass(frozen=True)
class Bundled(Table):
    """One of scikit-learn's tables: diabetes (Efron et al., 2004; in years, kg/m2, mmHg ...), breast_cancer (Street et al., 1993), wine (Forina et
    al., 1988) and iris (Fisher, 1936). Their own target is the column `target`, of the last three by its name."""

    name: str

    def leaves(self, cache: str) -> Iterator[Leaf]:
        yield leaf(inputs([self.name], [0], [PINS[self.name]]))

    def pieces(self, source: str, piece: int) -> Iterator[Columns]:
        columns = bundled(self.name)
        content = b"".join(np.asarray(column).astype("S" if isinstance(column, list) else "<f8").tobytes() for column in columns.values())
        if (found := hashlib.sha256(content).hexdigest()) != PINS[self.name]:
            raise ValueError(
                f"scikit-learn's {self.name} has the sha256 {found[:12]}..., wanted {PINS[self.name][:12]}...; another version?"
            )
        yield Columns(columns=columns, names=numbered(self.name, len(columns[OWN_TARGET])), bad={})


PINS = {
    "breast_cancer": "db9bf4bbd7f1d6f4b22f35a43bf0b4bff95018dc004e5364fa49795929a28c9d",
    "diabetes": "6b8599357673c4791fcbe488a15ceaf1c762dda4af1e406adb959a285ebf344a",
    "iris": "5d5b06050bc6cd796db43c9ce8d13bdc55a7f4bf38cb77ae8ac811190fe51f07",
    "wine": "2ddf55b798a434446a90dfb384a55d78895bcad7b5f78354fdd9a0d3f19615ab",
}
"""sha256 of the columns one after the other, numbers as little-endian float64, labels as ASCII."""


def bundled(name: str) -> dict[str, Any]:
    """The columns of a bundled table, its target last."""
    from sklearn import datasets

    found: Any = datasets.load_diabetes(scaled=False) if name == "diabetes" else getattr(datasets, f"load_{name}")()
    target = found.target if name == "diabetes" else [str(found.target_names[i]) for i in found.target]
    return {**dict(zip(map(str, found.feature_names), found.data.T, strict=True)), OWN_TARGET: target}


@dataclass(frozen=True)
class CsvFiles(Table):
    """CSV of UTF-8 with names in the first line, cut by commas, semicolons, tabs or bars."""

    tree: Tree
    names: tuple[str, ...]

    def leaves(self, cache: str) -> Iterator[Leaf]:
        stamps = [self.tree.stamp(name) for name in self.names]
        yield leaf(inputs(self.names, [size for size, _ in stamps], [stamp for _, stamp in stamps]))

    def pieces(self, source: str, piece: int) -> Iterator[Columns]:
        wanted, first = (*self.layout.features, *filter(None, [self.layout.target])), 0
        for columns, bad in comma.read(self.tree.read(source), wanted):
            names = numbered(source, len(columns[wanted[0]]), first)
            first += len(names)
            yield Columns(columns=columns, names=names, bad=bad)


@dataclass(frozen=True)
class ParquetTables(Table):
    """Parquet files, an input a row group."""

    tree: Tree
    names: tuple[str, ...]

    def leaves(self, cache: str) -> Iterator[Leaf]:
        for name in self.names:
            size, stamp = self.tree.stamp(name)
            groups = _opened(self.tree, name).num_row_groups
            yield leaf(inputs([name] * groups, [size] * groups, [stamp] * groups, list(range(groups))))

    def pieces(self, source: str, piece: int) -> Iterator[Columns]:
        wanted = [*self.layout.features, *filter(None, [self.layout.target])]
        with storage.open_read(self.tree.url_of(source)) as opened, pq.ParquetFile(opened) as file:
            if missing := [name for name in wanted if name not in file.schema_arrow.names]:
                raise ValueError(f"no column {missing[0]!r}")
            first = sum(file.metadata.row_group(i).num_rows for i in range(piece))
            table = file.read_row_group(piece, columns=wanted, use_threads=False)
        columns = {name: _floats(table.column(name)) if name in self.layout.numbers else table.column(name).to_pylist() for name in wanted}
        yield Columns(columns=columns, names=numbered(source, len(table), first), bad={})


def _floats(column: pa.ChunkedArray) -> Sequence[Any] | NDArray[np.float64]:
    if not _is_number(column.type):
        return column.to_pylist()
    return column.cast(pa.float64(), safe=False).fill_null(math.nan).to_numpy()


def _is_number(kind: pa.DataType) -> bool:
    return any(check(kind) for check in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal))


def _opened(tree: Tree, name: str) -> pq.FileMetaData:
    def read() -> pq.FileMetaData | str:
        try:
            with storage.open_read(tree.url_of(name)) as source:
                return pq.ParquetFile(source).metadata
        except pa.ArrowInvalid as error:
            return f"{name} is no Parquet file: {' '.join(str(error).split())[:120]}"

    found = retried(read, tree.url, name)
    if isinstance(found, str):
        raise Failed(found)
    return found


def open_table(data: Data) -> Table:
    """The table of a recipe's data section. Raises Refused for a column that is not there or holds no numbers, Failed for what is no table."""
    assert data.table is not None
    if data.source in PINS:
        seen = {name: "text" if isinstance(column, list) else None for name, column in bundled(data.source).items()}
        return Bundled(layout(data.table, seen, {OWN_TARGET}), data.source)
    tree, names = _files(data.source)
    if names[0].lower().endswith(CSV):
        return CsvFiles(layout(data.table, comma.columns(tree, names[0]), set()), tree, names)
    fields = _opened(tree, names[0]).schema.to_arrow_schema()
    return ParquetTables(
        layout(data.table, {field.name: None if _is_number(field.type) else str(field.type) for field in fields}, set()), tree, names
    )


def layout(wanted: TableData, columns: Mapping[str, str | None], own: set[str]) -> Layout:
    """columns: by name what is in one that holds no numbers, else None; own: which of them features leave out unless they name them."""
    for key, names in (("features", wanted.features), ("target", (wanted.target,) if wanted.target else ())):
        if strange := [name for name in names if name not in columns]:
            raise Refused(f"data.table.{key}: {unknown('column', strange[0], columns)}")
    features = wanted.features or tuple(name for name in columns if name not in own | {wanted.target})
    if not features:
        raise Refused(f"data.table.features: no column is left beside the target {wanted.target!r}")
    for name in features:
        if columns[name] is not None:
            numbers = [name for name in features if columns[name] is None]
            way = "leave it out" if wanted.features else f"name those to take, as data.table.features=[{', '.join(numbers[:4])}]"
            raise Refused(f"data.table.features: column {name!r} holds {columns[name]}, no numbers; {way}")
    if wanted.kind == "regression" and (holds := columns[wanted.target or ""]):
        raise Refused(f"data.table.target: column {wanted.target!r} holds {holds}, no numbers; set data.table.kind=classification")
    return Layout(features, wanted.target, wanted.kind)


def _files(source: str) -> tuple[Tree, tuple[str, ...]]:
    """A file, or those of a folder: all CSV or all Parquet."""
    url = storage.absolute(source)
    if url.lower().endswith((*CSV, *PARQUET)) and not (storage.is_local(url) and Path(url).is_dir()):
        parent, _, name = url.rpartition("/")
        return Tree(parent), (name,)
    place = tree_at(url)
    kind = place.kind()
    found = sorted(name for name in place.names() if name.lower().endswith((*CSV, *PARQUET))) if kind == "folder" else []
    if not found or len({name.lower().endswith(CSV) for name in found}) > 1:
        what = "holds both CSV and Parquet" if found else {"nothing": "is not there", "file": "is another file"}.get(kind, "holds neither")
        known = ", ".join(PINS)
        raise Refused(f"data.source: {source} {what}; wanted a CSV or Parquet file, a folder of one of the two, or one of {known}")
    return place, tuple(found)
