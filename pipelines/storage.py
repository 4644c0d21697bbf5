"""Files and small JSON records at any fsspec URL: a local path, s3://, http://. Writing is atomic: a reader sees all of a file or none."""

import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import fsspec


def absolute(uri: str) -> str:
    """A local path made absolute, any other URL as it is."""
    if is_local(uri):
        return str(Path(uri.removeprefix("file://")).expanduser().resolve())
    return uri.rstrip("/")


def is_local(uri: str) -> bool:
    return urlsplit(uri).scheme in ("", "file")


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *parts])


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URL, and the path inside it."""
    return fsspec.core.url_to_fs(uri)


def exists(uri: str) -> bool:
    fs, path = filesystem(uri)
    return fs.exists(path)


def read_json(uri: str) -> Any:
    """Raises FileNotFoundError where there is nothing."""
    return json.loads(read_bytes(uri))


def write_json(uri: str, value: Any) -> None:
    write_bytes(uri, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def read_bytes(uri: str) -> bytes:
    fs, path = filesystem(uri)
    return fs.cat_file(path)


def write_bytes(uri: str, content: bytes) -> None:
    if not is_local(uri):
        fs, path = filesystem(uri)
        fs.pipe_file(path, content)  # an object store shows an object when it is whole
        return
    with writing(uri) as file:
        file.write_bytes(content)


@contextmanager
def writing(uri: str) -> Iterator[Path]:
    """A path on this machine to write a file to, which takes its place at the URL when the block ends, and is gone when it raises."""
    fs, path = filesystem(uri)
    if not is_local(uri):
        with tempfile.TemporaryDirectory() as folder:
            yield (file := Path(folder) / path.rpartition("/")[2])
            fs.put_file(str(file), path)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def open_read(uri: str) -> IO[bytes]:
    fs, path = filesystem(uri)
    return fs.open(path, "rb")


def sha256(uri: str) -> str:
    """Of a file's content, in hexadecimal."""
    total = hashlib.sha256()
    with open_read(uri) as file:
        while piece := file.read(2**20):
            total.update(piece)
    return total.hexdigest()


def upload(folder: Path, uri: str) -> None:
    """Copies every file under a local folder to a URL."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        write_bytes(join(uri, *file.relative_to(folder).parts), file.read_bytes())


def download(uri: str, folder: Path) -> Path:
    """Copies every file under a URL into a local folder."""
    fs, root = filesystem(uri)
    for path in fs.find(root):
        target = folder / os.path.relpath(path, root)
        target.parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(path, str(target))
    return folder


@contextmanager
def local(uri: str) -> Iterator[Path]:
    """A folder's files on this machine: the folder itself where it is here, else a copy that is gone afterwards."""
    if is_local(uri):
        yield Path(absolute(uri))
        return
    with tempfile.TemporaryDirectory() as folder:
        yield download(uri, Path(folder))


def remove(uri: str) -> None:
    fs, path = filesystem(uri)
    if fs.exists(path):
        fs.rm(path, recursive=True)
