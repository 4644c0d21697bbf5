"""The compiled samplers as a model's Sampler: k steps of all rows in one call of C++, without Python's lock."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genmodels import machine
from genmodels.core import Autoregressive, Drawing, Fused, Sampler, blocks
from genmodels.sampling import library, stages
from genmodels.sampling.packing import Packer, Plan, Precision

ROW = np.dtype(
    [("step", "i8")]
    + [(name, "u8") for name in ("state", "told", "uniforms", "order", "x", "given", "known", "log_weight", "logits")]
    + [("temperature", "f8")]
)
"""Row of kernels/draw.h: the next step, and where in memory everything of an example lies."""


class Compiled(Autoregressive):
    """Has a compiled sampler."""

    compiled: ClassVar[str]
    """The name of its kernel in the library."""

    def compilable(self) -> bool:
        """Whether its kernel is the better sampler for a model of this size; where not, it is drawn from eagerly."""
        return True

    @abstractmethod
    def packed(self, packer: Packer) -> Plan:
        """The model for its kernel, which states what it reads. Raises ValueError for a weight that is not finite."""

    @abstractmethod
    def told(self, n: int, *, y: Tensor | None, c: Tensor | None) -> Tensor:
        """(n, floats), or (1, floats) where all rows are told the same: what biases, label and condition add, as the kernel lays it out."""


@dataclass(frozen=True)
class Native(Sampler):
    """Draws by a compiled copy where there is one and the model has a kernel, weights of float32 and a place on the processor; else eagerly.

    precision of the weights: f32; where the processor has it bf16, and int8 for WaveNet. copy: None for the machine's best. threads: None as torch's,
    and one for a single row; a WaveNet draws a single row on two where they are asked for, which pays on a machine that has both to spare.
    """

    precision: Precision = "f32"
    threads: int | None = None
    copy: str | None = None

    def begin(self, model: Autoregressive, order: Tensor, n: int, *, y: Tensor | None, c: Tensor | None) -> Fused | None:
        function = self._function(model)
        if function is not None and isinstance(model, stages.Staged):
            return stages.begin(model, self, n, y)
        if function is None or not isinstance(model, Compiled):
            return None
        plan = _plans(model).of(model, self.precision)
        fixed = Fixed(function=function, plan=plan, told=_told(model, n, y, c), threads=self.threads)
        return NativeMemory(fixed=fixed, kept=torch.zeros(n, plan.state))

    def padded(self, model: Autoregressive) -> bool:
        return self._function(model) is None

    def backend(self, model: Autoregressive) -> str:
        if self._function(model) is None:
            return "eager"
        copy = self._copy()
        if self.precision == "bf16" and copy in library.NARROW:
            return f"native-{library.NARROW[copy]}"
        if self.precision == "int8":
            return "native-int8"
        return "native-portable" if copy == "portable" else "native-f32"

    def equality_class(self, model: Autoregressive) -> str:
        backend = self.backend(model)
        own = machine.equality_class(device=model.device, backend=backend)
        # What a condition says is computed by torch, whose last bit depends on more.
        told = model.event.condition is not None or isinstance(model, stages.Staged)
        return own if backend == "eager" or not told else f"{machine.equality_class()}/{backend}"

    def _copy(self) -> str | None:
        return self.copy or library.chosen()

    def _function(self, model: Autoregressive) -> Callable[..., int] | None:
        """Of the model's kernel, or of its first stage's."""
        if isinstance(model, stages.Staged):
            return self._function(model.stages()[0])
        weights = next(model.parameters())
        copy = self._copy()
        if not isinstance(model, Compiled) or copy is None or weights.device.type != "cpu" or weights.dtype != torch.float32:
            return None
        if not model.compilable():
            return None
        function = library.function(copy, f"genmodels_{model.compiled}_{self.precision}")
        if function is None and self.precision != "f32":
            able = [each for each in get_args(Precision) if library.function(copy, f"genmodels_{model.compiled}_{each}")]
            raise ValueError(
                f"precision {self.precision} of the sampler; copy {copy} draws a {type(model).__name__} in {' or '.join(able)}"
            )
        return function


def _told(model: Compiled, n: int, y: Tensor | None, c: Tensor | None) -> Tensor:
    """As model.told, a row's last bit being the same whatever the number of rows: torch makes it of the condition. Raises ValueError."""
    if c is None:
        told = model.told(n, y=y, c=None)
    else:
        told = torch.cat([model.told(len(rows), y=None if y is None else y[rows], c=c[rows])[:count] for rows, count in blocks(n)])
    if not bool(told.isfinite().all()):
        raise ValueError("biases, label and condition are not all finite numbers: the model's weights or the condition are broken")
    return told.detach().to(torch.float32).contiguous()


@dataclass(frozen=True)
class Fixed:
    """What no step changes, shared by copies of a state."""

    function: Callable[..., int]
    plan: Plan
    told: Tensor
    threads: int | None

    def run(self, arguments: tuple[Any, ...], table: NDArray[Any], k: int) -> None:
        """k steps of the rows of a table, to which the arguments point."""
        threads = self.threads or (torch.get_num_threads() if len(table) > 1 else 1)
        failed = self.function(*arguments, k, threads)
        if failed >= 0:
            raise NotFinite(failed, int(table["step"][failed]))
        if failed < -1:
            raise MemoryError("no memory for the sampler's scratch")


class NotFinite(ValueError):
    """Logits of a row that are no finite numbers."""

    state: Drawing | None = None
    """Where several were advanced, the one that the row belongs to."""

    def __init__(self, row: int, step: int) -> None:
        super().__init__(f"the logits of row {row} at step {step} are not all finite numbers: the model's weights are broken")
        self.row = row


@dataclass
class NativeMemory(Fused):
    fixed: Fixed
    kept: Tensor
    """(B, plan.state) float32, each row's as its kernel lays it out."""
    rows: "Rows | None" = None
    """Where everything lies, found once and held until something lies elsewhere."""

    def advance(self, state: Drawing, k: int, logits: Tensor | None = None) -> None:
        k = min(k, state.x.shape[1] - state.step)
        rows = self.found(state)
        if logits is not None or rows.asked:
            rows.table["logits"] = 0 if logits is None else _addresses(logits, len(rows.table))
            rows.asked = logits is not None
        self.fixed.run(rows.arguments, rows.table, k)
        rows.step = state.step = state.step + k

    def found(self, state: Drawing) -> "Rows":
        """Little happens here, and nothing for each row, while a state goes on from where it was: a step may take a few microseconds."""
        rows = self.rows
        if rows is None or rows.key != _key(state, self.kept):
            rows = self.rows = Rows(state, self)
        if rows.step != state.step:
            rows.table["step"] = rows.step = state.step
        return rows


class Rows:
    """The rows of a drawing as a kernel takes them."""

    step = 0
    """Where the table says that they stand; a kernel counts there."""
    asked = False
    """Whether the table asks for logits."""

    def __init__(self, state: Drawing, memory: NativeMemory) -> None:
        state.uniforms, state.order = state.uniforms.contiguous(), state.order.contiguous()
        if state.known is not None and state.given is not None:
            state.known, state.given = state.known.contiguous(), state.given.contiguous()
        n, plan = len(state.x), memory.fixed.plan
        self.key = _key(state, memory.kept)
        self.table = np.zeros(n, ROW)
        places = {"state": memory.kept, "told": memory.fixed.told, "uniforms": state.uniforms, "order": state.order, "x": state.x}
        places |= {"log_weight": state.log_weight}
        if state.known is not None and state.given is not None:
            places |= {"given": state.given, "known": state.known}
        for name, tensor in places.items():
            self.table[name] = _addresses(tensor, n)
        self.table["temperature"] = state.temperature[:, 0].numpy()
        self.arguments = arguments(plan, self.table)


def arguments(plan: Plan, table: NDArray[Any]) -> tuple[Any, ...]:
    return plan.numbers.ctypes.data, plan.pointers.ctypes.data, table.ctypes.data, len(table)


def _key(state: Drawing, kept: Tensor) -> tuple[int, ...]:
    """Changes whenever something lies elsewhere, as it does in a copy of the state."""
    given = 0 if state.given is None else state.given.data_ptr()
    return state.x.data_ptr(), kept.data_ptr(), state.uniforms.data_ptr(), state.order.data_ptr(), state.log_weight.data_ptr(), given


def _addresses(tensor: Tensor, n: int) -> NDArray[np.uint64]:
    """(n,): where each row's part of a table begins, a table of one row being common to all, as an order (D,) is."""
    step = tensor.stride(0) * tensor.element_size() if len(tensor) == n and tensor.ndim > (1 if tensor.dtype == torch.int64 else 0) else 0
    return np.uint64(tensor.data_ptr()) + np.arange(n, dtype=np.uint64) * np.uint64(step)


class Plans:
    """A model's plans, by precision, packed again when a weight has changed since. A copy of the model has none yet."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[list[Tensor], Plan]] = {}

    def __deepcopy__(self, memo: Any) -> "Plans":
        return Plans()

    def __reduce__(self) -> tuple[type["Plans"], tuple[()]]:
        return Plans, ()

    def of(self, model: Compiled, precision: Precision) -> Plan:
        weights = [value.detach() for value in model.parameters()]
        packed = self._known.get(precision)
        # Compared by value: whoever trains may write through another view of the same memory, which leaves no other trace.
        if packed is None or not all(torch.equal(now, then) for now, then in zip(weights, packed[0], strict=True)):
            packed = [value.clone() for value in weights], model.packed(Packer(precision))
            self._known[precision] = packed
        return packed[1]


def _plans(model: Compiled) -> Plans:
    if "_plans" not in vars(model):
        vars(model)["_plans"] = Plans()
    return vars(model)["_plans"]
