"""How this process keeps memory that it frees. Loads no torch: decoders and the tasks that prepare data live without it."""

import ctypes
import sys
from collections.abc import Callable

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""


def keep_memory() -> None:
    """Memory that is freed stays with this process, where the C library is glibc. By itself it hands large blocks back to the kernel, which clears
    and maps them anew, page by page, for the next step's activations or the next batch of files: a twentieth to a third of the processor's time."""
    if (mallopt := _of_glibc("mallopt")) is not None:
        mallopt(_TRIM_THRESHOLD, 2**30)
        mallopt(_MMAP_THRESHOLD, 2**25)  # the most that it takes


def give_back() -> None:
    """What is free now goes to the kernel: between two pieces of work, what one left scattered would lie idle beside what the next one needs."""
    if (trim := _of_glibc("malloc_trim")) is not None:
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function of the C library; None where it is another."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
