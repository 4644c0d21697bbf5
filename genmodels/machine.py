"""The equality class: what, besides model and seed, decides the last bit of a result."""

import platform
from importlib.metadata import version

import torch


def equality_class(*, device: torch.device | str = "cpu", precision: str = "f32", workers: int = 1, backend: str = "eager") -> str:
    """A short text that is equal on two machines exactly when bit equality between them is promised."""
    device = torch.device(device)
    model = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu-{platform.machine()}"
    isa = torch.backends.cpu.get_cpu_capability().lower()
    libraries = f"torch-{version('torch')},numpy-{version('numpy')}"
    return "/".join([model, isa, f"threads-{torch.get_num_threads()}", f"workers-{workers}", backend, precision, libraries])
