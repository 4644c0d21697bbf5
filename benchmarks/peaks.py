"""What a core of this machine does at most, measured: peaks.cpp, compiled for it on the spot."""

import ctypes
import os
import shlex
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Peaks:
    """Of one core."""

    f32: float
    """Multiply-adds a second."""
    bf16: float
    """The same of bf16 pairs; 0 where the processor has none."""

    def seconds(self, precision: str, macs: int, weights: int) -> float:
        """The least time for so many multiply-adds with so many weights, which have to be read once at the speed of the cache that holds them."""
        rate, size = (self.bf16, 2) if precision == "bf16" else (self.f32, 4)
        return max(macs / rate, size * weights / read_rate(size * weights))


@cache
def measured() -> Peaks:
    library = _library()
    for function in (library.peak_f32, library.peak_bf16, library.read_rate):
        function.restype = ctypes.c_double
    return Peaks(f32=library.peak_f32(), bf16=library.peak_bf16())


@cache
def read_rate(size: int) -> float:
    """Bytes a second, read again and again from a buffer of so many."""
    library = _library()
    library.read_rate.restype = ctypes.c_double
    return library.read_rate(ctypes.c_int64(size))


def described() -> str:
    peaks = measured()
    sizes = {"256 KB": 2**18, "1 MB": 2**20, "4 MB": 2**22, "256 MB": 2**28}
    reads = ", ".join(f"{read_rate(size) / 1e9:.0f} from {name}" for name, size in sizes.items())
    narrow = f", bf16 dot {2e-9 * peaks.bf16:.0f} GFLOP/s" if peaks.bf16 else ""
    return f"one core: f32 FMA {2e-9 * peaks.f32:.0f} GFLOP/s{narrow}; reads, GB/s: {reads}"


@cache
def _library() -> ctypes.CDLL:
    source = Path(__file__).with_name("peaks.cpp")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "peaks.so"
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        flags = ["-std=c++17", "-O3", "-ffast-math", "-march=native", "-fPIC", "-shared"]
        subprocess.run([*compiler, *flags, str(source), "-o", str(target)], check=True)
        return ctypes.CDLL(str(target))
