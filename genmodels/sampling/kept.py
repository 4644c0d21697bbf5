"""A family's memory as a list of tensors, and back: so that it can lie in tensors that stay where they are."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Leaf:
    """A tensor of a memory."""

    path: str
    """Where in the memory it is."""
    tensor: Tensor
    frozen: bool
    """Whether it is part of what no step writes to."""

    @property
    def kind(self) -> tuple[Any, ...]:
        """What a tensor that may take its place has in common with it: the layout too, by which kernels are chosen and last bits decided."""
        layout = None if self.tensor.is_contiguous() else torch.empty_like(self.tensor, device="meta").stride()
        return self.path, tuple(self.tensor.shape), layout, self.tensor.dtype


def leaves(memory: Any, path: str = "", frozen: bool = False) -> Iterator[Leaf]:
    """Every tensor, in the order of `rebuilt`."""
    if isinstance(memory, Tensor):
        yield Leaf(path, memory, frozen)
    elif isinstance(memory, list | tuple):
        for i, item in enumerate(memory):
            yield from leaves(item, f"{path}.{i}", frozen)
    elif _plain(memory):
        inside = frozen or type(memory).__dataclass_params__.frozen
        for each in fields(memory):
            yield from leaves(getattr(memory, each.name), f"{path}.{each.name}", inside)


def rebuilt(memory: Any, tensors: Iterator[Tensor]) -> Any:
    """The same memory on other tensors. Nothing that can be written to is shared with the first one but those; numbers are as they are there."""
    if isinstance(memory, Tensor):
        return next(tensors)
    if isinstance(memory, list | tuple):
        return type(memory)(rebuilt(item, tensors) for item in memory)
    if _plain(memory):
        return replace(memory, **{each.name: rebuilt(getattr(memory, each.name), tensors) for each in fields(memory)})
    return memory


def settle(before: list[Tensor], after: list[Tensor]) -> None:
    """Copies before[i] to after[i] for all i at once: a tensor of `before` that lies in one of `after` is read before that is written."""
    pairs = [(source, target) for source, target in zip(before, after, strict=True) if source is not target]
    homes = {_home(target) for _, target in pairs}
    apart = [source.clone() if _home(source) in homes else source for source, _ in pairs]
    for source, (_, target) in zip(apart, pairs, strict=True):
        target.copy_(source)


def place_for(leaf: Leaf) -> Tensor:
    """A new tensor of a leaf's kind, without gaps between its values and with no two of them in one place."""
    return torch.empty_like(leaf.tensor)


def _home(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _plain(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)
