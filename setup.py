"""Builds the compiled samplers: one shared library for each instruction set, with a plain C interface, where a C++ compiler is found.

Without a compiler the installation goes on and sampling is eager. CXX names another compiler, GENMODELS_SANITIZE the sanitizers to build with (make
sanitize), GENMODELS_BUILT a folder of libraries that are taken as they are; everything else about the package is in pyproject.toml.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

KERNELS = Path("genmodels/sampling/kernels")
WARNINGS = ["-Wall", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-ffp-contract=off", "-fno-math-errno", *WARNINGS]
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
AVX512BF16 = [*AVX512, "-mavx512bf16", "-mavx512vnni"]
COPIES = {"portable": [], "avx2": AVX2, "avx512": AVX512, "avx512bf16": AVX512BF16, "amx": [*AVX512BF16, "-mamx-tile", "-mamx-bf16"]}


def command(copy: str, target: Path) -> list[str]:
    """What builds a copy."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    return [*compiler, *FLAGS, *COPIES[copy], *last_flags(), str(KERNELS / "samplers.cpp"), "-o", str(target)]


def last_flags() -> list[str]:
    if sanitizers := os.environ.get("GENMODELS_SANITIZE"):
        # A null pointer needs no looking for: it faults.
        return ["-O1", "-g1", f"-fsanitize={sanitizers}", "-fno-sanitize=null", "-fno-sanitize-recover", "-D_GLIBCXX_ASSERTIONS"]
    return [] if sys.platform == "darwin" else ["-static-libstdc++", "-static-libgcc", "-s"]


class Copies(build_ext):
    """Each Extension is a copy; one that cannot be built is left out, and said so."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or True  # a compiler for each processor

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        built = Path(os.environ.get("GENMODELS_BUILT", "")) / target.name
        if built.is_file():
            shutil.copy(built, target)
            return
        try:
            subprocess.run(command(ext.name.rpartition("_")[2], target), check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            target.unlink(missing_ok=True)
            reason = f"{error.cmd[0]} ended with {error.returncode}" if isinstance(error, subprocess.CalledProcessError) else error
            # Of all errors, this is one after which setuptools goes on without an optional extension, and says so.
            raise CompileError(f"{target.name} left out: {reason}; sampling will be slower") from error

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


if __name__ == "__main__":
    setup(ext_modules=copies(), cmdclass={"build_ext": Copies, "bdist_wheel": AnyPython})
