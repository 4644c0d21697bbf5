"""CSV as people write it: UTF-8, names in the first line, one delimiter of a few; read some thousands of rows at a time."""

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import islice

from pipelines import storage
from pipelines.errors import Failed
from pipelines.sources.tree import Tree, retried

DELIMITERS = ",;\t|"
HEAD_BYTES, HEAD_ROWS = 2**18, 100
ROWS = 2**16

Piece = tuple[dict[str, list[str]], dict[int, str]]
"""Columns by name, and why some of their rows are none."""


def read(content: bytes, wanted: Sequence[str]) -> Iterator[Piece]:
    """The wanted columns, as text. Raises ValueError for bytes that are no CSV, and for a column that is not there."""
    try:
        rows = _rows(content)
        header = _header(next(rows, []))
        if missing := [name for name in wanted if name not in header]:
            raise ValueError(f"no column {missing[0]!r}")
        places = [header.index(name) for name in wanted]
        while piece := list(islice(rows, ROWS)):
            bad = {
                i: f"{len(row)} values where the first line has {len(header)} names"
                for i, row in enumerate(piece)
                if len(row) != len(header)
            }
            whole = [[""] * len(header) if i in bad else row for i, row in enumerate(piece)]
            yield {name: [row[place] for row in whole] for name, place in zip(wanted, places, strict=True)}, bad
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"no CSV: {_words(error)}") from None


def columns(tree: Tree, name: str) -> dict[str, str | None]:
    """A file's columns by the first rows: what is in one that holds no number there, else None. Raises Failed for what is no CSV."""
    head = retried(lambda: _head(tree.url_of(name)), tree.url, name)
    whole = len(head) < HEAD_BYTES
    rows: list[list[str]] = []
    try:
        for row in islice(_rows(head if whole else head[: head.rfind(b"\n") + 1]), HEAD_ROWS + 1):
            rows.append(row)
        header = _header(rows[0] if rows else [])
    except (csv.Error, UnicodeDecodeError) as error:
        if whole or len(rows) < 2:
            raise Failed(f"{name} is no CSV: {_words(error)}") from None
        header = _header(rows[0])
    except ValueError as error:
        raise Failed(f"{name} is no CSV with names in its first line: {error}") from None
    if len(rows) < 2:
        raise Failed(f"{name} is empty: it has names of columns and no rows")
    return {title: _text(row[place] for row in rows[1:] if place < len(row)) for place, title in enumerate(header)}


def _head(url: str) -> bytes:
    with storage.open_read(url) as file:
        return file.read(HEAD_BYTES)


def _rows(content: bytes) -> Iterator[list[str]]:
    """Lines that hold something."""
    text = io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline="")
    first = text.readline()
    text.seek(0)
    delimiter = max(DELIMITERS, key=first.count)
    return (row for row in csv.reader(text, delimiter=delimiter, strict=True) if any(cell.strip() for cell in row))


def _header(row: Sequence[str]) -> list[str]:
    """Raises ValueError where the first line has no names."""
    names = [cell.strip() for cell in row]
    if not names:
        raise ValueError("it is empty")
    if not all(names):
        raise ValueError(f"column {names.index('') + 1} of {len(names)} has no name")
    if "\0" in "".join(names):
        raise ValueError("it holds zero bytes")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two columns are named {twice[0]!r}")
    if all(_is_number(name) for name in names):
        raise ValueError(f"it begins with the numbers {', '.join(names[:3])}")
    return names


def _text(cells: Iterator[str]) -> str | None:
    """A value of a column that has some and of which none is a number."""
    some = [cell.strip() for cell in cells if cell.strip()]
    return repr(some[0][:40]) if some and not any(map(_is_number, some)) else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _words(error: Exception) -> str:
    return "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
