"""Decoding files in a process of its own, which can be killed: a decoder stuck in C code is deaf to everything else.

The parent sends batches of files; the child answers with their levels and with a reason for each it could not decode. The child notes in shared
memory which file it is at and since when, so a time limit per file costs nothing per file.
"""

import contextlib
import hashlib
import json
import mmap
import os
import select
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from genmodels import media
from pipelines.parquet import keep_memory

_LENGTH = struct.Struct("<Q")
_PROGRESS_BYTES = 16

TIMED_OUT = "not decoded within {limit:g} s"


def columns(settings: Mapping[str, Any]) -> pa.Schema:
    """What the decoder makes: index of the file in its batch, number of the window in the file, levels as bytes, valid steps, hash of the content."""
    return pa.schema(
        [
            ("index", pa.int32()),
            ("window", pa.int32()),
            ("levels", pa.binary(row_bytes(settings))),
            ("length", pa.int32()),
            ("id", pa.string()),
        ]
    )


def row_bytes(settings: Mapping[str, Any]) -> int:
    """Of an example, before its label."""
    if settings["modality"] == "table":
        return 4 * (len(settings["features"]) + (settings["kind"] == "regression"))
    if settings["modality"] == "image":
        return settings["channels"] * settings["height"] * settings["width"]
    return media.window_steps(settings)


def content_id(levels: bytes, length: int = 0) -> str:
    """The name of an example: blake2b of its levels, padding left out."""
    return hashlib.blake2b(levels[:length] if length else levels, digest_size=16).hexdigest()


class Progress:
    """Which file is under way (-1: none) and since when on the monotonic clock, in memory that two processes share.

    Two stores of eight bytes, each whole whenever it is read. One struct.pack_into of both would write zeros first, and whoever read those saw a file
    that had been under way since the clock began.
    """

    def __init__(self, descriptor: int) -> None:
        self._values = memoryview(mmap.mmap(descriptor, _PROGRESS_BYTES)).cast("d")

    def note(self, index: int) -> None:
        self._values[1] = time.monotonic()
        self._values[0] = index

    @property
    def index(self) -> int:
        return int(self._values[0])

    @property
    def since(self) -> float:
        return self._values[1]


class Decoder:
    """A child process that decodes; started at the first batch, replaced after a crash or a time-out, gone when its parent is."""

    def __init__(self, settings: Mapping[str, Any], seconds: float) -> None:
        self._settings, self._seconds = dict(settings), seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as this is
        self._file.truncate(_PROGRESS_BYTES)
        self._progress = Progress(self._file.fileno())

    def decode(self, files: Sequence[str | bytes]) -> tuple[pa.Table, dict[int, str]]:
        """Paths on this machine, or contents -> rows as in `columns`, and why each of the other files could not be decoded."""
        bad: dict[int, str] = {}
        crashed: set[int] = set()
        while True:
            left = [i for i in range(len(files)) if i not in bad]
            try:
                rows, reasons = self._ask([files[i] for i in left])
            except _Cut as cut:
                at = left[cut.index]
                if cut.is_final or at in crashed:  # a crash may be a want of memory that has passed
                    bad[at] = cut.reason
                crashed.add(at)
                continue
            index = pa.array(np.asarray(left, np.int32)).take(rows.column("index").combine_chunks())
            bad |= {left[int(i)]: reason for i, reason in reasons.items()}
            return rows.set_column(0, "index", index), bad

    @property
    def at(self) -> int:
        """Which file of the batch is under way; -1 between batches."""
        return self._progress.index

    @property
    def peak_bytes(self) -> int:
        """The most memory that the running child has held (Linux)."""
        assert self._child is not None
        status = Path(f"/proc/{self._child.pid}/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def _ask(self, files: Sequence[str | bytes]) -> tuple[pa.Table, dict[str, str]]:
        child = self._start()
        self._progress.note(-1)
        paths = [file if isinstance(file, str) else None for file in files]
        contents = [file if isinstance(file, bytes) else None for file in files]
        assert child.stdin is not None and child.stdout is not None
        try:
            _write(child.stdin, pa.table({"path": pa.array(paths, pa.string()), "content": pa.array(contents, pa.large_binary())}))
            self._wait(child.stdout)
            rows = _read(child.stdout)
        except (EOFError, BrokenPipeError):
            rows = None
        if rows is None:
            index = self.at
            code = child.wait()
            self.close()
            if index < 0:
                raise RuntimeError(f"the decoder ended before its first file, with code {code}")
            raise _Cut(index, f"its decoder crashed, signal {-code}" if code < 0 else f"its decoder ended with code {code}", is_final=False)
        return rows.replace_schema_metadata(None), json.loads((rows.schema.metadata or {}).get(b"bad", b"{}"))

    def _wait(self, answer: IO[bytes]) -> None:
        """Until the child answers, or has been at one file for longer than the limit."""
        while True:
            index, since = self._progress.index, self._progress.since
            left = self._seconds if index < 0 else since + self._seconds - time.monotonic()
            if left <= 0:
                self.close()
                raise _Cut(index, TIMED_OUT.format(limit=self._seconds), is_final=True)
            if select.select([answer], [], [], left)[0]:
                return

    def _start(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is not None:
            self.close()
        if self._child is None:
            known = os.pathsep.join(path for path in sys.path if path)
            self._child = subprocess.Popen(
                [sys.executable, "-m", "pipelines.decoder", json.dumps(self._settings), str(self._file.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # libtiff and libpng complain there about every odd file
                pass_fds=[self._file.fileno()],
                env={**os.environ, "PYTHONPATH": known, "OMP_NUM_THREADS": "1"},
            )
        return self._child


class _Cut(Exception):
    """The child is gone; `index` is the file it was at."""

    def __init__(self, index: int, reason: str, *, is_final: bool) -> None:
        super().__init__(reason)
        self.index, self.reason, self.is_final = index, reason, is_final


def _write(pipe: IO[bytes], table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body = sink.getvalue()
    pipe.write(_LENGTH.pack(body.size))
    pipe.write(body)
    pipe.flush()


def _read(pipe: IO[bytes]) -> pa.Table:
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    size = _LENGTH.unpack(head)[0]
    body = pipe.read(size)
    if len(body) < size:
        raise EOFError
    return pa.ipc.open_stream(body).read_all()


def decode_files(
    files: Sequence[str | bytes], settings: Mapping[str, Any], note: Any = lambda index: None
) -> tuple[pa.Table, dict[int, str]]:
    """The child's work: rows as in `columns`, and reasons. note(index) is called before each file."""
    made: dict[str, list[Any]] = {name: [] for name in columns(settings).names}
    bad: dict[int, str] = {}
    for index, file in enumerate(files):
        note(index)
        try:
            content = _content(file) if isinstance(file, str) else file
            windows = _windows(content, settings)
        except (ValueError, OSError) as error:
            bad[index] = error.strerror or "not readable" if isinstance(error, OSError) else str(error)
            continue
        for number, (levels, length) in enumerate(windows):
            for name, value in zip(made, (index, number, levels, length, content_id(levels, length)), strict=True):
                made[name].append(value)
    return _table(made, columns(settings)), bad


def _table(made: Mapping[str, Sequence[Any]], form: pa.Schema) -> pa.Table:
    """As pa.table makes it, the levels copied once."""
    joined = pa.py_buffer(b"".join(made["levels"]))
    levels = pa.FixedSizeBinaryArray.from_buffers(form.field("levels").type, len(made["levels"]), [None, joined])
    return pa.table({**made, "levels": levels}, schema=form)


def _content(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - half the time of a Path, once a file
        return file.read()


def _windows(content: bytes, settings: Mapping[str, Any]) -> list[tuple[bytes, int]]:
    if settings["modality"] == "image":
        return [(media.levels_from_image(content, settings).tobytes(), 0)]
    return [(levels.tobytes(), length) for levels, length in media.levels_from_sound(content, settings)]


def main(settings: str, progress: str) -> None:
    import warnings

    keep_memory()
    warnings.simplefilter("ignore")  # of broken EXIF blocks and the like
    with contextlib.suppress(ValueError):
        _windows(b"", json.loads(settings))  # what is loaded at the first file is not of its time
    shared = Progress(int(progress))
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            table = _read(sys.stdin.buffer)
            files = [path or content for path, content in zip(table["path"].to_pylist(), table["content"].to_pylist(), strict=True)]
            files = [b"" if file is None else file for file in files]
            rows, bad = decode_files(files, json.loads(settings), shared.note)
            shared.note(-1)
            _write(sys.stdout.buffer, rows.replace_schema_metadata({"bad": json.dumps(bad)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
