"""A loss compiled by torch.compile as one graph: fewer passes over memory, for seconds to a minute of compilation at the start of a training.

Random numbers stay what they are without it. A batch's step reaches the graph as a tensor, else every step would be compiled anew; and Philox is
one operation of the graph that nothing looks into: compiled for vectors, its wrapping products of 64 bits come out wrong (torch 2.13, CPU).
"""

import os
import shutil
import sys
from collections.abc import Callable

import torch
import torch.compiler
from torch import Tensor

from genmodels import noise
from genmodels.core import Batch, Metrics, Objective
from genmodels.noise import Noise


class NotCompiled(ValueError):
    """A loss that torch.compile cannot take, or a compiler that failed."""


@torch.library.custom_op("genmodels::philox", mutates_args=())
def _philox(keys: Tensor, position: Tensor, step: Tensor, size: int) -> Tensor:
    return noise.words(keys, position, step, size).contiguous()


@_philox.register_fake
def _(keys: Tensor, position: Tensor, step: Tensor, size: int) -> Tensor:
    return position.new_empty(len(position), size)


class Traced(Noise):
    """The same numbers, asked for inside a graph."""

    def __init__(self, noise: Noise) -> None:
        super().__init__(noise.seeds, position=noise.position)
        self._counted = torch.tensor(noise.step, device=noise.position.device)

    def _words(self, tag: str, position: Tensor, size: int) -> Tensor:
        return _philox(self._keys(tag), position, self._counted, size)


def compiled(objective: Objective) -> Callable[[Batch, Noise], tuple[Tensor, Metrics]]:
    """The objective's loss as one graph, made at its first call. That raises NotCompiled where a loss is no graph (one that looks at its values,
    or differentiates by itself)."""
    torch.compiler.assume_constant_result(noise.key)
    graph = torch.compile(objective.loss, fullgraph=True, dynamic=False)

    def loss(batch: Batch, noise: Noise) -> tuple[Tensor, Metrics]:
        try:
            return graph(batch, Traced(noise))
        except _failures() as error:
            raise NotCompiled(f"objective {objective.name} cannot be compiled ({_said(error)}); set compile to false") from error

    return loss


def check_compiler(device: torch.device) -> None:
    """Raises ValueError where there is nothing to compile with."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ValueError("compile on a GPU without Triton; install triton, or set compile to false")
        return
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise ValueError(f"compile without a C++ compiler ({compiler} is not found); install one, or set compile to false")


def _failures() -> tuple[type[Exception], ...]:
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
    from torch._inductor.exc import CppCompileError

    return TorchDynamoException, FailOnRecompileLimitHit, CppCompileError


def _said(error: Exception) -> str:
    """The first line that says something; the second one too where the first only announces it."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 1 + lines[0].endswith(":")])[:160]
