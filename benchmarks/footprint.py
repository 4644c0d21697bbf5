"""How much memory this process and all its descendants hold, shared pages counted once (Linux)."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EVERY = 0.2


def held() -> int:
    """Bytes: the sum of the proportional set sizes."""
    return sum(_proportional(pid) for pid in _tree(os.getpid()))


@contextmanager
def watched() -> Iterator[list[int]]:
    """Inside, what is held is looked at every EVERY seconds and appended."""
    seen, over = [held()], threading.Event()

    def look() -> None:
        while not over.wait(EVERY):
            seen.append(held())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def peak() -> int:
    """Bytes: the most that this process alone has held at a time."""
    return _field(Path("/proc/self/status"), "VmHWM:")


def _tree(root: int) -> set[int]:
    parents = {int(path.name): _field(path / "status", "PPid:") // 1024 for path in Path("/proc").iterdir() if path.name.isdigit()}
    found, new = {root}, {root}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new} - found
        found |= new
    return found


def _proportional(pid: int) -> int:
    return _field(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")


def _field(path: Path, name: str) -> int:
    """A number of kB as bytes; 0 where the process is gone."""
    try:
        return next(1024 * int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(name))
    except (OSError, StopIteration):
        return 0
