"""The machine under a model: its equality class, which besides model and seed decides the last bit of a result."""

import platform
from importlib.metadata import version

import torch


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
