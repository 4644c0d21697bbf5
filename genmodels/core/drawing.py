"""An example half drawn, value by value: the state of every autoregressive sampler, and who advances it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from genmodels import machine

if TYPE_CHECKING:
    from genmodels.core.autoregressive import Autoregressive


@dataclass
class Drawing:
    """Examples half drawn. Nobody but its owner holds it; advance writes to it, and `copied` makes one that may go another way. Its tensors may be
    replaced; they are not to be resized or moved in place."""

    memory: Any
    """What the family keeps of the values taken so far: its own, or a Fused one."""
    order: Tensor
    """(D,) int64, or (B, D) where rows have orders of their own: the places of the flattened event as they are visited."""
    uniforms: Tensor
    """(B, D) float32 by place: the randomness of every value."""
    temperature: Tensor
    """(B, 1) float32."""
    x: Tensor
    """(B, D) uint8 levels by place, 0 where nothing is drawn yet."""
    log_weight: Tensor
    """(B,) float64 nats: the probability of the values that were given, each given all before it."""
    given: Tensor | None = None
    """(B, D) int64 levels by place."""
    known: Tensor | None = None
    """(B, D) bool by place: where `given` is to be taken in place of a draw."""
    step: int = 0


class Fused:
    """The memory of a sampler that draws many steps in one call, in place of a family's own predict and take.

    No ABC: every call asks whether a memory is one, and of an ABC that is as much work as handing the steps over.
    """

    def advance(self, state: Drawing, k: int, logits: Tensor | None = None) -> None:
        """Draws k more steps of every row, at most as many as are left, and counts them in state.step. logits (B, k, K) float32 is filled in, where
        given, with those of each step before the temperature. Raises ValueError where one of them is not finite."""
        raise NotImplementedError


class Sampler(ABC):
    """Who draws a model's values. Samplers of one equality class give the same bytes; a model has one, and begins with the eager one."""

    @abstractmethod
    def begin(self, model: "Autoregressive", order: Tensor, n: int, *, y: Tensor | None, c: Tensor | None) -> Fused | None:
        """The memory of n rows before the first step; None: the family's own, advanced eagerly. Arguments as Autoregressive.start."""

    @abstractmethod
    def padded(self, model: "Autoregressive") -> bool:
        """Whether the last bit of a row may change with the size of its batch, so that rows must be drawn in blocks of one size."""

    @abstractmethod
    def backend(self, model: "Autoregressive") -> str:
        """What computes: eager, native-f32, ...; a part of the equality class."""

    def equality_class(self, model: "Autoregressive") -> str:
        """Samples of one class are equal, bit for bit."""
        return machine.equality_class(device=model.device, backend=self.backend(model))


class Eager(Sampler):
    """One step of torch's own operations after the other, keeping activations."""

    def begin(self, model: "Autoregressive", order: Tensor, n: int, *, y: Tensor | None, c: Tensor | None) -> None:
        return None

    def padded(self, model: "Autoregressive") -> bool:
        return True

    def backend(self, model: "Autoregressive") -> str:
        return "eager"


class Place:
    """Where in the flattened event the next value lies: one place for all rows, or one a row."""

    def __init__(self, order: Tensor, step: int) -> None:
        self._one = int(order[step]) if order.ndim == 1 else None
        self._each = None if order.ndim == 1 else order[:, step, None]

    def of(self, table: Tensor) -> Tensor:
        """(B, D) -> (B,)."""
        return table[:, self._one] if self._each is None else table.gather(1, self._each)[:, 0]

    def put(self, table: Tensor, value: Tensor) -> None:
        if self._each is None:
            table[:, self._one] = value.to(table.dtype)
        else:
            table.scatter_(1, self._each, value.to(table.dtype)[:, None])


def along(order: Tensor, table: Tensor) -> Tensor:
    """(B, D) by place -> (B, D) by step."""
    return table[:, order] if order.ndim == 1 else table.gather(1, order)


def copied(value: Any) -> Any:
    """A copy that shares nothing that is written to: tensors, lists and plain dataclasses are copied, frozen dataclasses are shared."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, list):
        return [copied(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type) and not type(value).__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return replace(value, **{each.name: copied(getattr(value, each.name)) for each in fields(value)})
    return value
