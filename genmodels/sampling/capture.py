"""Work that is done over and over, recorded once and replayed without Python: CUDA graphs; on other devices, the plain call.

What is recorded reads and writes tensors that stay where they are. Python's part of it, numbers that it counted and branches that it took, is frozen.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Work = Callable[[], None]

WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "nonzero_static",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "is_nonzero",
    "equal",
}
"""Operators whose result Python waits for, or whose shape depends on what is in a tensor: no graph holds them."""


class Waits(RuntimeError):
    """The work reads back what it computes, and cannot be recorded."""


class Capture(ABC):
    """How work is recorded."""

    @abstractmethod
    def rehearse(self, work: Callable[[], Any]) -> Any:
        """Does the work for real, where recording will do it, so that libraries have come up. Raises Waits where it cannot be recorded."""

    @abstractmethod
    def record(self, work: Work) -> Work:
        """What does on the device all that work does. Recording itself may do it or not: the tensors that it writes hold rubbish after it."""


class Calls(Capture):
    """No recording: the work is called each time."""

    def rehearse(self, work: Callable[[], Any]) -> Any:
        return work()

    def record(self, work: Work) -> Work:
        return work


class CudaGraphs(Capture):
    """One graph for each piece of work. All of one object share the memory of what lies between their first and last operator, so their results must
    be in tensors of before, and no two of them may run at once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def rehearse(self, work: Callable[[], Any]) -> Any:
        # In the stream that records: cuBLAS keeps its handles and workspaces by stream, and must not make them while recording.
        with self._aside(), Watch():
            return work()

    def record(self, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self.device)
        with self._aside():
            # Not torch.cuda.graph: that hands all cached memory back to the driver before each of what may be thousands of graphs.
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        return graph.replay

    def _aside(self) -> "Aside":
        return Aside(self.stream)


class Aside:
    """Inside, work goes to another stream, after all that was asked before and before all that is asked after."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream, self.inside = stream, torch.cuda.stream(stream)

    def __enter__(self) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        self.inside.__enter__()

    def __exit__(self, *raised: Any) -> None:
        self.inside.__exit__(*raised)
        torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)


class Watch(TorchDispatchMode):
    """Inside, an operator that no graph can hold raises Waits. It sees torch's operators, on any device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        name, given = func.overloadpacket.__name__, [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        masks = name in ("index", "index_put", "index_put_") and any(each.dtype in (torch.bool, torch.uint8) for each in _indices(args))
        # A single number may stay on the processor, as an argument of the kernel.
        if name in WAITING or masks or len({each.device.type for each in given if each.ndim}) > 1:
            raise Waits(f"{name} of {[(tuple(each.shape), each.device.type) for each in given]}")
        return func(*args, **(kwargs or {}))


def _indices(args: tuple[Any, ...]) -> Iterator[Tensor]:
    return (each for each in tree_leaves(args[1]) if isinstance(each, Tensor))


def capture_for(device: torch.device) -> Capture | None:
    """None where nothing can be recorded."""
    return CudaGraphs(device) if device.type == "cuda" else None
