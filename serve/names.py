"""The nearest known name, for whoever misspelt one."""

import difflib
from collections.abc import Iterable


def unknown(kind: str, got: str, known: Iterable[str]) -> str:
    """`unknown model 'digit'; did you mean 'digits'?`, or what is known where nothing is near."""
    names = sorted(set(known))
    near = difflib.get_close_matches(got, names, n=1, cutoff=0.5)
    return f"unknown {kind} {got!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}")
