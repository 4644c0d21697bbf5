"""The machine under a model: its equality class, which besides model and seed decides the last bit of a result, and how it keeps memory."""

import ctypes
import platform
import sys
from importlib.metadata import version

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""


def equality_class(*, device: torch.device | str = "cpu", precision: str = "f32", workers: int = 1, backend: str = "eager") -> str:
    """A short text that is equal on two machines exactly when bit equality between them is promised.

    A compiled sampler (backend native-...) gives the same bytes on any number of threads and, with fused multiply-add, for any vector width.
    """
    device = torch.device(device)
    if backend.startswith("native-"):
        return f"cpu-{platform.machine()}/{backend}"
    model = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu-{platform.machine()}"
    isa = torch.backends.cpu.get_cpu_capability().lower()
    libraries = f"torch-{version('torch')},numpy-{version('numpy')}"
    return "/".join([model, isa, f"threads-{torch.get_num_threads()}", f"workers-{workers}", backend, precision, libraries])


def keep_memory() -> None:
    """Memory that is freed stays with this process, where the C library is glibc. By itself it hands large blocks back to the kernel, which clears
    and maps them anew, page by page, for the next step's activations: a twentieth to an eighth of the processor's time."""
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return  # another C library
    mallopt(_TRIM_THRESHOLD, 2**30)
    mallopt(_MMAP_THRESHOLD, 2**25)  # the most that it takes
