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

    def _function(self, model: Autoregressive) -> Callable[[library.Call], int] | None:
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

    function: Callable[[library.Call], int]
    plan: Plan
    told: Tensor
    threads: int | None


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
        rows = self.found(state)
        left = rows.steps - state.step
        if k > left:
            k = left
        if logits is not None or rows.asked:
            rows.table["logits"] = 0 if logits is None else _addresses(logits, len(rows.table))
            rows.asked = logits is not None
        rows.run(k)
        rows.step = state.step = state.step + k

    def found(self, state: Drawing) -> "Rows":
        """The rows of a state: found again where one of its tensors is another than it was, as in a copy. Little happens here, and nothing for each
        row, while it goes on from where it was: all steps of a call may take a few microseconds."""
        rows = self.rows
        if not (
            rows is not None
            and state.x is rows.x
            and self.kept is rows.kept
            and state.uniforms is rows.uniforms
            and state.order is rows.order
            and state.log_weight is rows.log_weight
            and state.temperature is rows.temperature
            and state.given is rows.given
            and state.known is rows.known
        ):
            rows = self.rows = Rows(state, self)
        if rows.step != state.step:
            rows.table["step"] = rows.step = state.step
        return rows


class Asked:
    """Rows for a kernel, and the call that they are handed over by: made once, since to convert its arguments takes as long as some steps."""

    def __init__(self, fixed: Fixed, table: NDArray[Any]) -> None:
        plan = fixed.plan
        self.fixed, self.table, self.n = fixed, table, len(table)
        self.call = library.Call(plan.number, plan.numbers.ctypes.data, plan.pointers.ctypes.data, table.ctypes.data, self.n)
        self._k = self._threads = 0

    def run(self, k: int) -> None:
        """k steps of all rows."""
        threads = self.fixed.threads or (torch.get_num_threads() if self.n > 1 else 1)
        if k != self._k or threads != self._threads:
            self.call.k, self.call.threads = self._k, self._threads = k, threads
        failed = self.fixed.function(self.call)
        if failed >= 0:
            raise NotFinite(failed, int(self.table["step"][failed]))
        if failed < -1:
            raise MemoryError("no memory for the sampler's scratch")


class Rows(Asked):
    """The rows of a drawing."""

    step = 0
    """Where the table says that they stand; a kernel counts there."""
    asked = False
    """Whether the table asks for logits."""

    def __init__(self, state: Drawing, memory: NativeMemory) -> None:
        state.uniforms, state.order = state.uniforms.contiguous(), state.order.contiguous()
        if state.known is not None and state.given is not None:
            state.known, state.given = state.known.contiguous(), state.given.contiguous()
        n, self.steps = state.x.shape
        places = {"state": memory.kept, "told": memory.fixed.told, "uniforms": state.uniforms, "order": state.order, "x": state.x}
        places |= {"log_weight": state.log_weight}
        if state.known is not None and state.given is not None:
            places |= {"given": state.given, "known": state.known}
        table = np.zeros(n, ROW)
        for name, tensor in places.items():
            table[name] = _addresses(tensor, n)
        table["temperature"] = state.temperature[:, 0].numpy()
        super().__init__(memory.fixed, table)
        self.x, self.kept, self.uniforms, self.order = state.x, memory.kept, state.uniforms, state.order
        self.log_weight, self.temperature, self.given, self.known = state.log_weight, state.temperature, state.given, state.known


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
