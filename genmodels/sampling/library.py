"""The compiled samplers: which copies were built, which of them this machine can run, and loading one.

A copy is a shared library with a plain C interface (kernels/samplers.cpp), built for one instruction set when the package is installed. Those with
fused multiply-add give the same bytes; `portable` runs anywhere and is an equality class of its own. Where there is none, sampling is eager.
"""

import ctypes
import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import ClassVar

COPIES = ("portable", "avx2", "avx512", "avx512bf16", "amx")
"""From the one that runs anywhere to the one that asks most of a machine."""

NARROW = {"avx512bf16": "bf16", "amx": "bf16-amx"}
"""The copies that draw with bf16 weights too, and WaveNet with int8 ones, and what the equality class of bf16 is called."""

ABI = 3
"""Of kernels/samplers.cpp; a library of another version is not used."""

CHOICE = "GENMODELS_ISA"
"""Environment variable: a copy to take in place of the best one, or eager."""

FOLDER = "GENMODELS_COPIES"
"""Environment variable: where the copies lie, if not beside this file; as those that were built with a sanitizer."""

log = logging.getLogger("genmodels")


class Call(ctypes.Structure):
    """Call of kernels/draw.h: k steps of n rows by the kernel of a plan."""

    _fields_: ClassVar = [
        ("plan", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("numbers", "tensors", "rows")),
        *((name, ctypes.c_int64) for name in ("n", "k", "threads")),
    ]


def path(copy: str) -> Path:
    return Path(os.environ.get(FOLDER) or Path(__file__).parent) / f"_native_{copy}.so"


@cache
def load(copy: str) -> ctypes.CDLL | None:
    """The library of a copy; None where it was not built, is of another version, or asks for what this machine has not."""
    if COPIES.index(copy) > _level():
        return None
    return _open(copy)


@cache
def function(copy: str, name: str) -> Callable[[Call], int] | None:
    """A sampler of a copy: takes a Call -> -1, the row that failed, or -2 without memory. None where it has none."""
    found = getattr(load(copy), name, None)
    if found is not None:
        found.argtypes, found.restype = [ctypes.POINTER(Call)], ctypes.c_int64
    return found


@cache
def runnable() -> tuple[str, ...]:
    """The copies that were built and that this machine can run, the best one last."""
    return tuple(copy for copy in COPIES if load(copy) is not None)


@cache
def chosen() -> str | None:
    """The copy that samplers take unless told otherwise: the best one, or what GENMODELS_ISA names. None: sampling is eager; the log says so once."""
    wanted = os.environ.get(CHOICE)
    if wanted == "eager":
        return None
    if wanted and wanted not in runnable():
        raise ValueError(f"{CHOICE}={wanted}; this machine has {', '.join((*runnable(), 'eager'))}")
    if not runnable():
        log.warning(
            "no compiled samplers in this installation: sampling is eager, some 5 to 100 times slower; `genmodels doctor` says more"
        )
        return None
    return wanted or runnable()[-1]


@cache
def _open(copy: str) -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(path(copy)))
        for function in (library.genmodels_abi, library.genmodels_allowed):
            function.restype = ctypes.c_int64
        return library if library.genmodels_abi() == ABI and library.genmodels_allowed() else None
    except (OSError, AttributeError):
        return None


@cache
def _level() -> int:
    """The place in COPIES of the last one that this machine can run; the portable copy asks the processor."""
    portable = _open("portable")
    if portable is None:
        return -1
    portable.genmodels_level.restype = ctypes.c_int64
    return int(portable.genmodels_level())
