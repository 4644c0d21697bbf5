"""How this process keeps memory that it frees. Loads no torch: decoders and the tasks that prepare data live without it."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""


def keep_memory() -> None:
    """Memory that is freed stays with this process, where the C library is glibc. By itself it hands large blocks back to the kernel, which clears
    and maps them anew, page by page, for the next step's activations or the next batch of files: a twentieth to a third of the processor's time."""
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return  # another C library
    mallopt(_TRIM_THRESHOLD, 2**30)
    mallopt(_MMAP_THRESHOLD, 2**25)  # the most that it takes
