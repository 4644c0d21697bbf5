"""Builds the compiled samplers: one shared library for each instruction set, with a plain C interface, where a C++ compiler is found.

Without a compiler the installation goes on and sampling is eager. CXX names another compiler; everything else about the package is in pyproject.toml.
"""

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

KERNELS = Path("genmodels/sampling/kernels")
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
COPIES = {"portable": [], "avx2": AVX2, "avx512": AVX512, "avx512bf16": [*AVX512, "-mavx512bf16"]}


class Copies(build_ext):
    """Each Extension is a copy; one that cannot be built is left out, and said so."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        alone = [] if sys.platform == "darwin" else ["-static-libstdc++", "-static-libgcc", "-s"]
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        command = [*compiler, *FLAGS, *COPIES[ext.name.rpartition("_")[2]], str(KERNELS / "samplers.cpp"), *alone, "-o", str(target)]
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            target.unlink(missing_ok=True)
            raise RuntimeError(f"{target.name} left out: {error}") from error  # setuptools prints it and goes on: the extension is optional

    def get_ext_filename(self, ext_name: str) -> str:
        return str(Path(*ext_name.split(".")).with_suffix(".so"))

    def copy_extensions_to_source(self) -> None:
        self.extensions = [each for each in self.extensions if Path(self.get_ext_fullpath(each.name)).exists() or self.inplace]
        super().copy_extensions_to_source()


class AnyPython(bdist_wheel):
    """The libraries know nothing of Python, so one wheel serves every version of it on a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def copies() -> list[Extension]:
    names = COPIES if platform.machine().lower() in ("x86_64", "amd64") else ["portable"]
    sources = [str(KERNELS / "samplers.cpp")]
    depends = [str(header) for header in KERNELS.glob("*.h")]
    return [Extension(f"genmodels.sampling._native_{name}", sources, depends=depends, optional=True) for name in names]


setup(ext_modules=copies(), cmdclass={"build_ext": Copies, "bdist_wheel": AnyPython})
