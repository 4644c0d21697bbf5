"""A model's weights as the compiled samplers read them: padded to sixteens, in blocks of outputs, one after the other in large pages."""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Precision = Literal["f32", "bf16", "int8"]
"""Of the weights that a compiled sampler draws with."""

LANES = 16
"""Sizes are padded to multiples of this many floats, whatever the width of a vector."""

PAGE = 2**21


@dataclass(frozen=True)
class Plan:
    """What a kernel needs of a model."""

    kernel: str
    state: int
    """Floats that a row keeps."""
    numbers: NDArray[np.int64]
    pointers: NDArray[np.uint64]
    arena: Any
    """The memory that the pointers point into."""
    number: int = field(default_factory=count().__next__, init=False)
    """No other plan of this process has it: the samplers know by it whose kernel they have kept."""


class Packer:
    """Collects the numbers and tensors of a plan in the order in which its kernel reads them."""

    def __init__(self, precision: Precision) -> None:
        self._precision: Precision = precision
        self._numbers: list[int] = []
        self._tensors: list[Tensor] = []

    def numbers(self, *values: int) -> None:
        self._numbers += [int(value) for value in values]

    def integers(self, values: Sequence[int]) -> None:
        self._tensors.append(torch.tensor(values, dtype=torch.int64))

    def floats(self, values: Tensor) -> None:
        self._tensors.append(values.detach().to(torch.float32).contiguous())

    def matrix(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        outs: Sequence[int] = (),
        ins: Sequence[int] = (),
        close: bool = False,
        exact: bool = False,
    ) -> None:
        """weight (outputs, inputs), bias (outputs,). outs, ins: sizes of the groups that outputs and inputs lie in, each padded for itself; one
        group where nothing is said. close: inputs are padded to an even number alone. exact: float32 in every precision."""
        weight = lanes(weight, 0, outs)
        weight = F.pad(weight, (0, weight.shape[1] % 2)) if close else lanes(weight, 1, ins)
        bias = torch.zeros(len(weight)) if bias is None else lanes(bias, 0, outs)
        self.numbers(weight.shape[1], weight.shape[0])
        self._tensors += [_packed(weight.detach(), "f32" if exact else self._precision), bias.detach().to(torch.float32).contiguous()]

    def plan(self, kernel: str, *, state: int) -> Plan:
        """Raises ValueError where a weight is not finite."""
        arena, pointers = _arranged(self._tensors)
        return Plan(kernel, state, np.array(self._numbers, np.int64), pointers, arena)


def lanes(x: Tensor, dim: int, groups: Sequence[int] = ()) -> Tensor:
    """x with zeros behind each of its groups along a dimension, up to a multiple of 16."""
    parts = x.split(list(groups) or [x.shape[dim]], dim=dim)
    padded = []
    for part in parts:
        behind = [0, 0] * (x.ndim - 1 - dim) + [0, -part.shape[dim] % LANES]
        padded.append(F.pad(part, behind))
    return torch.cat(padded, dim=dim)


def size(n: int) -> int:
    """n padded."""
    return -(-n // LANES) * LANES


def _packed(weight: Tensor, precision: Precision) -> Tensor:
    """weight (outputs, inputs), both padded -> in blocks of 64 outputs, then 32, then 16: of each word of inputs the weights of all its outputs. In
    int8 outputs have scales of their own; these lie behind, and 128 times the sum of each output's weights (kernels/int8.h)."""
    together = {"f32": 1, "bf16": 2, "int8": 4}[precision]
    scales = weight.abs().amax(1) / 127
    if precision == "int8":
        weight = (weight / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round().clamp(-127, 127)
    blocks, start = [], 0
    for size in (64, 32, 16):
        while start + size <= len(weight):
            blocks.append(weight[start : start + size].T.unflatten(0, (-1, together)).transpose(1, 2).flatten())
            start += size
    words = torch.cat(blocks).to({"f32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}[precision])
    if precision != "int8":
        return words
    corrections = (128 * weight.sum(1)).to(torch.int32)
    return torch.cat([words, scales.contiguous().view(torch.int8), corrections.view(torch.int8)])


def _arranged(tensors: Sequence[Tensor]) -> tuple[Any, NDArray[np.uint64]]:
    """All tensors in one stretch of memory, each at a multiple of 64 bytes -> it and where they lie."""
    starts, total = [], 0
    for each in tensors:
        if each.is_floating_point() and not bool(each.isfinite().all()):
            raise ValueError("the model's weights are not all finite numbers")
        starts.append(total)
        total += -(-each.numel() * each.element_size() // 64) * 64
    whole = zeros(total + 64)  # what a vector reads beyond the end is still ours
    for start, each in zip(starts, tensors, strict=True):
        content = each.contiguous().reshape(-1).view(torch.uint8).numpy()
        whole[start : start + len(content)] = content
    return whole, np.array([whole.ctypes.data + start for start in starts], np.uint64)


def zeros(size: int) -> NDArray[np.uint8]:
    """Bytes in large pages: a step streams all weights, and would wait for the tables of small ones."""
    arena = mmap.mmap(-1, size + PAGE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        arena.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(arena, np.uint8)
    first = -whole.ctypes.data % PAGE
    return whole[first : first + size]
