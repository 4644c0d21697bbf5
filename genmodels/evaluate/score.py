"""A measured figure and how it came about."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Score:
    """A measured figure. `protocol` says how it came about ("exact p(x|y)", "IWAE_64 lower bound of p(x)"); stderr is the mean's standard error."""

    model: str
    name: str
    value: float
    unit: str
    protocol: str
    split: str
    n: int
    stderr: float | None = None
