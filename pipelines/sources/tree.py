"""Files under a root: a local folder, or anything that fsspec opens (s3, http, a zip); listed leaf by leaf, read with retries."""

import hashlib
import io
import os
import stat
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.errors import Failed, Stop
from pipelines.sources.source import Leaf, inputs, leaf

NO_DATA = frozenset({".csv", ".tsv", ".json", ".jsonl", ".txt", ".md", ".rst", ".yaml", ".yml", ".html", ".xml", ".py", ".sha256"})
"""Suffixes of files that lie beside data and are none; left out, like hidden files and LICENSE, README, SHA256SUMS."""

_NO_DATA_NAMES = frozenset({"LICENSE", "LICENCE", "README", "COPYING", "SHA256SUMS", "Thumbs.db", "desktop.ini"})
_SMALL = 2**20
_LEAF, _LARGEST_LEAF = 4096, 32768
_TRIES = (0.5, 1.0, 2.0)

T = TypeVar("T")
Entry = tuple[str, int, str]
"""Path relative to the root, size in bytes, and what changes with the content without reading it: mtime, etag, CRC."""


@dataclass(frozen=True)
class Tree:
    """The files under a URL (absolute; a zip as zip://::<url>)."""

    url: str

    @property
    def is_local(self) -> bool:
        return storage.is_local(self.url)

    def leaves(self, cache: str) -> Iterator[Leaf]:
        """Every data file, in leaves that end where a path's own hash says so: a file more or less changes one leaf, not all after it.

        Local files are named by the hash of their content, taken once and then kept in the leaf under their sizes and times; others by their etag.
        """
        for entries in _cut(self.entries()):
            if not self.is_local:
                yield leaf(inputs(*map(list, zip(*entries, strict=True))))
                continue
            name = hashlib.blake2b(repr((self.url, entries)).encode(), digest_size=12).hexdigest()
            yield name, _kept(storage.join(cache, f"{name}.parquet")) or self._hashed(entries)

    def entries(self) -> Iterator[Entry]:
        """Data files in one fixed order."""
        found = _walk(Path(self.url)) if self.is_local else self._remote()
        return (entry for entry in found if is_data(entry[0]))

    def local(self, path: str) -> str | None:
        return os.path.join(self.url, path) if self.is_local else None  # noqa: PTH118 - called once a file

    def url_of(self, path: str) -> str:
        """The URL of one file below the root."""
        return f"zip://{path}{self.url.removeprefix('zip://')}" if self.url.startswith("zip://::") else f"{self.url}/{path}"

    def names(self) -> Iterator[str]:
        """What lies directly below the root: files and folders, by name."""
        if self.is_local:
            with os.scandir(self.url) as found:
                yield from (entry.name for entry in found)
        else:
            fs, root = self._opened()
            yield from (path.rstrip("/").rpartition("/")[2] for path in retried(lambda: fs.ls(root, detail=False), self.url))

    def kind(self) -> str:
        """What is at the root: folder, file or nothing."""
        fs, root = self._opened()
        if not root.strip("/") or retried(lambda: fs.isdir(root), self.url):
            return "folder"
        return "file" if retried(lambda: fs.exists(root), self.url) else "nothing"

    def read(self, path: str) -> bytes:
        """Raises Failed when the network stays down, or the file is gone."""
        fs, root = self._opened()
        return retried(lambda: fs.cat_file(f"{root}/{path}" if root.strip("/") else path), self.url, path)

    def stamp(self, path: str) -> tuple[int, str]:
        """Size and content hash of one local file, or size and etag of a remote one."""
        if self.is_local:
            local = Path(self.url) / path
            if not local.is_file():
                raise Failed(unreachable(FileNotFoundError(), self.url, path))
            return local.stat().st_size, content_hash(str(local))
        fs, full = retried(lambda: storage.filesystem(self.url_of(path)), self.url)
        info = retried(lambda: fs.info(full), self.url, path)
        return int(info.get("size") or info.get("file_size") or 0), _etag(fs, full, info)

    def _opened(self) -> tuple[Any, str]:
        return retried(lambda: storage.filesystem(self.url), self.url)

    def _hashed(self, entries: Sequence[Entry]) -> pa.Table:
        with ThreadPoolExecutor(8) as pool:
            paths = [f"{self.url}/{path}" for path, _, _ in entries]
            batches = [paths[start : start + 128] for start in range(0, len(paths), 128)]
            stamps = [stamp for batch in pool.map(lambda batch: [content_hash(path) for path in batch], batches) for stamp in batch]
        return inputs([path for path, _, _ in entries], [size for _, size, _ in entries], stamps)

    def _remote(self) -> Iterator[Entry]:
        fs, root = self._opened()
        fs.invalidate_cache()  # what was listed before may have changed since
        found = retried(lambda: fs.find(root, detail=True), self.url)
        for path in sorted(found):
            info = found[path]
            relative = path[len(root) :].lstrip("/") if path.startswith(root) else path
            if is_data(relative):
                full = info if _has_etag(info) else retried(lambda path=path: fs.info(path), self.url, relative)
                yield relative, int(full.get("size") or 0), _etag(fs, path, full)


def tree_at(url: str) -> Tree:
    """The files at a path or URL; a zip's are those inside it."""
    url = storage.absolute(url)
    return Tree(f"zip://::{url}" if url.endswith(".zip") and "::" not in url else url)


def is_data(path: str) -> bool:
    *folders, name = path.split("/")
    hidden = any(part.startswith((".", "__MACOSX")) for part in (*folders, name))
    return not hidden and name not in _NO_DATA_NAMES and os.path.splitext(name)[1].lower() not in NO_DATA  # noqa: PTH122 - called once a file


def content_hash(path: str) -> str:
    """blake2b of a local file. An unreadable one is named by that, and goes to quarantine when it is decoded."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - called once a file
            begin = file.read(_SMALL)
            content = hashlib.blake2b(begin, digest_size=16)
            while len(begin) == _SMALL and (more := file.read(_SMALL)):
                content.update(more)
            return content.hexdigest()
    except OSError as error:
        return f"unreadable: {error.strerror}"


def retried(call: Callable[[], T], url: str, path: str = "") -> T:
    """The call's result; after some tries, a Failed that says what is out of reach and what may help."""
    for wait in (*_TRIES, None):
        try:
            return call()
        except Stop:
            raise
        except Exception as raised:  # each filesystem has a family of errors of its own
            error = _cause(raised)
            if wait is None or _final(error):
                raise Failed(unreachable(error, url, path)) from error
            time.sleep(wait)
    raise AssertionError


def _cause(error: Exception) -> Exception:
    """Over http, fsspec says "not found" of whatever goes wrong; what it was is the error's cause."""
    while isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def unreachable(error: Exception, url: str, path: str = "") -> str:
    where = f"{url.removeprefix('zip://::')}" + (f" ({path})" if path else "")
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError"):
        return f"no S3 credentials for {where}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if isinstance(error, PermissionError):
        return f"not allowed to read {where}: {_words(error)}; check its permissions, or the credentials in use"
    if isinstance(error, zipfile.BadZipFile):
        return f"{where} is no zip file: {_words(error)}"
    if isinstance(error, FileNotFoundError):
        return f"nothing at {where}; check data.source"
    if str(error).startswith("Protocol not known"):
        return f"could not read {where}: {_words(error)}; give a folder, or an address that begins with s3:// or https://"
    return f"could not read {where}: {_words(error)}; check the network and run again, what is done stays done"


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _final(error: Exception) -> bool:
    return isinstance(error, (FileNotFoundError, PermissionError, NotADirectoryError, zipfile.BadZipFile)) or type(error).__name__.endswith(
        "CredentialsError"
    )


def _stop(error: OSError) -> None:
    raise Failed(unreachable(error, str(error.filename))) from error


def _walk(root: Path) -> Iterator[Entry]:
    """Regular files below a folder, links followed; each folder once, whatever links lead to it."""
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_stop):
        here = os.stat(folder)  # noqa: PTH116
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = os.path.relpath(folder, root).replace(os.sep, "/")
        for name in sorted(names):
            try:
                found = os.stat(os.path.join(folder, name))  # noqa: PTH116, PTH118
            except OSError:
                continue  # a link to nowhere
            if stat.S_ISREG(found.st_mode):
                yield (name if prefix == "." else f"{prefix}/{name}"), found.st_size, str(found.st_mtime_ns)


def _cut(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    part: list[Entry] = []
    for entry in entries:
        part.append(entry)
        if zlib.crc32(entry[0].encode()) % _LEAF == 0 or len(part) == _LARGEST_LEAF:
            yield part
            part = []
    if part:
        yield part


def _kept(uri: str) -> pa.Table | None:
    try:
        return pq.read_table(io.BytesIO(storage.read_bytes(uri)), use_threads=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _has_etag(info: dict[str, Any]) -> bool:
    return any(info.get(name) for name in ("ETag", "etag", "CRC"))


def _etag(fs: Any, path: str, info: dict[str, Any]) -> str:
    for name in ("ETag", "etag", "CRC", "LastModified", "mtime"):
        if info.get(name):
            return f"{name.lower()}:{info[name]}".replace('"', "")
    return str(fs.ukey(path))
