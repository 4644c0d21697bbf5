"""What a step of training cannot be faster than: each operator takes at least the time of its products, and at least that of reading its inputs and
writing its outputs once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Operator:
    """One call of one of torch's operators."""

    name: str
    flops: int
    """Of products of matrices and convolutions, a multiplication and an addition each; 0 of all other operators."""
    bytes: int
    """Of its inputs and outputs, each once."""

    def seconds(self, rate: float, bandwidth: float) -> float:
        """At least, on a machine of so many FLOP/s and bytes/s."""
        return max(self.flops / rate, self.bytes / bandwidth)


class Recorder(TorchDispatchMode):
    """Inside, every operator that touches memory is written down; views are not."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Operator] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        read, written = _tensors((args, kwargs)), _tensors(out)
        homes = {each.untyped_storage()._cdata for each in read}
        if func._schema.is_mutable or any(each.untyped_storage()._cdata not in homes for each in written):
            count = flop_registry.get(func.overloadpacket)
            flops = int(count(*args, **kwargs, out_val=out)) if count is not None else 0
            size = sum(each.numel() * each.element_size() for each in [*read, *written])
            self.operators.append(Operator(func.overloadpacket.__name__, flops, size))
        return out


def operators_of(work: Callable[[], Any]) -> list[Operator]:
    with Recorder() as recorder:
        work()
    return recorder.operators


def bounds(operators: Sequence[Operator], rate: float, bandwidth: float) -> tuple[float, float]:
    """Seconds, at least: of the products alone, as if all else were part of them; and of all operators one by one, as eager torch does them."""
    products = sum(each.seconds(rate, bandwidth) for each in operators if each.flops)
    return products, sum(each.seconds(rate, bandwidth) for each in operators)


def _tensors(value: Any) -> list[Tensor]:
    return [each for each in tree_leaves(value) if isinstance(each, torch.Tensor)]
