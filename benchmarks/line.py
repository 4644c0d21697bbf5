"""A row of a benchmark's table: what was measured, and beside what other figure."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Line:
    """`ours` beside `theirs`, the same in the way that `other` names; 0 where there is none."""

    what: str
    ours: float
    unit: str
    other: str = ""
    theirs: float = 0.0

    def __str__(self) -> str:
        beside = f"{self.other}: {short(self.theirs)} | {self.ours / self.theirs:.2f}" if self.theirs else f"{self.other} | "
        return f"| {self.what} | {short(self.ours)} {self.unit} | {beside} |"


def short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def alone(module: str, *words: str | Path) -> dict[str, float]:
    """What a module of these benchmarks prints, run as a process of its own."""
    ran = subprocess.run([sys.executable, "-m", module, *map(str, words)], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(ran.stdout.splitlines()[-1])
