"""An example's label, as text: from the source itself, its folder, a pattern on its path, or a CSV."""

import csv
import functools
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines import storage
from pipelines.errors import Failed
from pipelines.sections import Label
from pipelines.sources.source import Source


@dataclass(frozen=True)
class Labels:
    """How to label; `csv` is the absolute URL of the CSV."""

    settings: Label
    csv: str | None = None

    @property
    def facts(self) -> list[Any]:
        """What shapes the labels: the settings, and what the CSV says."""
        settings = self.settings.model_dump(exclude={"csv"})
        return [settings, None if self.csv is None else hashlib.sha256(_content(self.csv)).hexdigest()]

    def of(self, source: Source, names: Sequence[str], own: Sequence[str | None]) -> list[str | None]:
        """names: of the examples, own: labels that the source gave -> labels, None where there is none."""
        if self.settings.by == "none":
            return [None] * len(names)
        if self.settings.by == "source":
            return [given if given is not None else source.label(_path(name)) for name, given in zip(names, own, strict=True)]
        return [self._by_path(_path(name)) for name in names]

    def _by_path(self, path: str) -> str | None:
        if self.settings.by == "folder":
            return path.rpartition("/")[0].rpartition("/")[2] or None
        if self.settings.pattern is not None:
            found = re.search(self.settings.pattern, path)
            return found.group(1) if found else None
        assert self.csv is not None
        return _table(self.csv, self.settings.file_column, self.settings.label_column).get(path)


def ordered(labels: Sequence[str]) -> list[str]:
    """Labels in the order of their numbers: by value where all are whole numbers, else by text."""
    unique = set(labels)
    return sorted(unique, key=int) if all(re.fullmatch(r"-?\d{1,18}", label) for label in unique) else sorted(unique)


def _path(name: str) -> str:
    return name.partition("#")[0]


def _content(uri: str) -> bytes:
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError:
        raise Failed(f"data.label.csv: no file at {uri}; a relative one starts at the data's root") from None


@functools.lru_cache(maxsize=4)
def _table(uri: str, file_column: str, label_column: str) -> dict[str, str]:
    try:
        text = _content(uri).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Failed(f"data.label.csv: {uri} is not UTF-8 text") from None
    reader = csv.DictReader(io.StringIO(text))
    for column in (file_column, label_column):
        if column not in (reader.fieldnames or ()):
            raise Failed(f"data.label.csv: {uri} has no column {column!r}; it has: {', '.join(reader.fieldnames or ()) or 'none'}")
    return {row[file_column]: row[label_column] for row in reader if row[label_column]}
