"""How a stage stops: one line of what was got, what is wanted and the way out.

Stop
├── Refused   wrong use: the recipe or the command line is at fault; exit 2
└── Failed    the work could not be done: bad data, no credentials, a full disk; exit 1
"""

import difflib
from collections.abc import Iterable


class Stop(Exception):
    """A message for the user; the command prints it on one line and exits with `code`."""

    code = 1


class Refused(Stop):
    code = 2


class Failed(Stop):
    code = 1


def unknown(kind: str, got: str, known: Iterable[str]) -> str:
    """`unknown family 'gatedpixelcnn'; did you mean 'gated_pixelcnn'?`, or the list of what is known where nothing is near."""
    names = sorted(known)
    near = difflib.get_close_matches(got, names, n=1, cutoff=0.5)
    return f"unknown {kind} {got!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}")
