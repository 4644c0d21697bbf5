"""The log of a training: one JSON object a line, in storage, where it is the truth that everything else is copied from.

`{"event": "step", "step": 50, "loss": ..., "lr": ..., "examples_per_s": ..., "loader_wait": ..., "cores": ...}` for the mean of the steps since
the line before; loader_wait is a share of their time, cores what rank 0 had of processors: less than its threads where others are busy on them.
Events beside it: started (also after a resume), valid, sheet, stopped, finished. Lines are in the order of steps; a resumed training
takes back those after its checkpoint, since it writes them again.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from pipelines import storage


class Journal:
    """Appends lines. An object store has no append: there the whole is written again at each `flush`."""

    def __init__(self, uri: str, *, step: float = math.inf) -> None:
        """Goes on behind the lines of steps up to `step`; a beginning, step 0, keeps none."""
        self.uri = uri
        self._lines = [line for line in read(uri) if line["step"] <= step and line["event"] not in ("stopped", "finished")] if step else []
        self._seen = 0
        self.flush()

    @property
    def step(self) -> int:
        """The step of the last line."""
        return self._lines[-1]["step"] if self._lines else 0

    def write(self, event: str, step: int, **values: Any) -> None:
        self._lines.append({"event": event, "step": step, **values})

    def flush(self) -> None:
        """Puts every line so far where others can read it."""
        if storage.is_local(self.uri) and self._seen:
            with open(storage.filesystem(self.uri)[1], "a", encoding="utf-8") as file:  # noqa: PTH123
                file.write(_text(self._lines[self._seen :]))
        else:
            storage.write_bytes(self.uri, _text(self._lines).encode())
        self._seen = len(self._lines)


def read(uri: str, *, last: int | None = None) -> list[dict[str, Any]]:
    """All whole lines; none where there is no log. last: those alone that lie in its last so many bytes."""
    fs, path = storage.filesystem(uri)
    try:
        content = fs.cat_file(path) if last is None else fs.cat_file(path, start=-last)
    except FileNotFoundError:
        return []
    lines = content.splitlines(keepends=True)
    whole = lines if last is None or len(content) < last else lines[1:]
    return [json.loads(line) for line in whole if line.endswith(b"\n")]


def _text(lines: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(_finite(line)) + "\n" for line in lines)


def _finite(line: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: they are written as their names."""
    return {key: str(value) if isinstance(value, float) and not math.isfinite(value) else value for key, value in line.items()}
