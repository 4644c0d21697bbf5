"""What a core of this machine does at most, measured: peaks.cpp, compiled for it on the spot."""

import ctypes
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch


@dataclass(frozen=True)
class Peaks:
    """Of one core."""

    f32: float
    """Multiply-adds a second."""
    bf16: float
    """The same of bf16, by vectors or by the matrix unit; 0 where the processor has neither."""
    int8: float
    """The same of eight bits; 0 where the processor has no instruction."""

    def seconds(self, precision: str, macs: int, weights: int) -> float:
        """The least time for so many multiply-adds with so many weights, which have to be read once at the speed of the cache that holds them."""
        rate, size = {"f32": (self.f32, 4), "bf16": (self.bf16, 2), "int8": (self.int8, 1)}[precision]
        return max(macs / rate, size * weights / read_rate(size * weights))


@cache
def measured() -> Peaks:
    library = _library()
    for function in (library.peak_f32, library.peak_bf16, library.peak_int8):
        function.restype = ctypes.c_double
    dots = library.peak_bf16()
    return Peaks(f32=library.peak_f32(), bf16=dots and max(dots, _matrices()), int8=library.peak_int8())


def _matrices() -> float:
    """Multiply-adds a second of large bf16 matrices, which take the matrix unit where there is one."""
    had = torch.get_num_threads()
    torch.set_num_threads(1)
    a, b = (torch.randn(1024, 1024).bfloat16() for _ in range(2))
    best = min(_seconds(lambda: a @ b) for _ in range(12))
    torch.set_num_threads(had)
    return 1024**3 / best


def _seconds(act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


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
    narrow = "".join(f", {name} {2e-9 * rate:,.0f}" for name, rate in (("bf16", peaks.bf16), ("int8", peaks.int8)) if rate)
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
