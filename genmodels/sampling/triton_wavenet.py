"""A WaveNet's samples from one persistent GPU kernel (wavenet_kernel.py): the whole loop over steps on the device, thousands of sounds at once.

For many sounds it is bound by what its programs read of weights from the second level cache, once a step each: half as much with bf16 weights. A
product of float32 is three of tf32, nearly as exact. Triton's interpreter runs the same kernel on a processor. Triton needs a C compiler at run time.
"""

import importlib.util
from abc import abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from genmodels.core import Autoregressive, Drawing, Fused, Sampler

Precision = Literal["f32", "tf32", "bf16"]

SHARED = 2**17
"""Bytes of one weight matrix that a product may need at once; an SM has 227 KiB."""


@dataclass(frozen=True)
class Stack:
    """A WaveNet's weights. Every matrix is out by in."""

    embedding: Tensor
    """(K, residual)."""
    dilations: list[int]
    taps: Tensor
    """(layers, 2 residual, residual, kernel), the oldest tap first."""
    residuals: tuple[Tensor, Tensor]
    """(layers, residual, residual) and (layers, residual), zeros in the last."""
    skips: tuple[Tensor, Tensor]
    """(layers, skip, residual) and (layers, skip)."""
    hidden: tuple[Tensor, Tensor]
    out: tuple[Tensor, Tensor]


class Dilated(Autoregressive):
    """A family that is a stack of dilated convolutions over a sound."""

    @abstractmethod
    def stack(self) -> Stack: ...

    @abstractmethod
    def gates(self, n: int, *, y: Tensor | None, c: Tensor | None) -> Tensor:
        """(frames, layers, 2 residual, n): what bias, label and condition add to each row's taps."""

    @abstractmethod
    def frame(self, step: int | Tensor) -> int | Tensor:
        """The frame that a step lies in."""


@dataclass(frozen=True)
class TritonWaveNet(Sampler):
    """Draws a Dilated float32 model on a GPU with triton; others eagerly.

    precision: of the products; bf16: of weights and rings too. rows: sounds a program, at least 16; warps, stages: triton's num_warps, num_stages. At
    these values registers hold a 3 x 10 WaveNet of 64 and 128 features without spilling, in bf16 up to 32 rows.
    interpreted: on the processor, by triton's interpreter (TRITON_INTERPRET=1 in the environment before triton is imported).
    """

    precision: Precision = "f32"
    rows: int = 16
    warps: int = 8
    stages: int = 1
    interpreted: bool = False

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision) or self.rows < 16 or self.rows & self.rows - 1:
            known = ", ".join(get_args(Precision))
            raise ValueError(f"precision {self.precision!r}, rows {self.rows}; wanted one of {known}, and a power of two from 16 on")

    def begin(self, model: Autoregressive, order: Tensor, n: int, *, y: Tensor | None, c: Tensor | None) -> "Rings | None":
        if not isinstance(model, Dilated) or not self._can(model):
            return None
        fixed = self._fixed(model, n, y, c)
        narrow, width = fixed.taps.dtype, fixed.embedding.shape[1]
        rings = torch.zeros(fixed.slots, n, width, dtype=narrow, device=model.device)
        return Rings(fixed, rings, torch.zeros(n, width, device=model.device))

    def padded(self, model: Autoregressive) -> bool:
        return not self._can(model)

    def backend(self, model: Autoregressive) -> str:
        return f"triton-{self.precision}" if self._can(model) else "eager"

    def _can(self, model: Autoregressive) -> bool:
        if not isinstance(model, Dilated) or importlib.util.find_spec("triton") is None:
            return False
        with torch.no_grad():
            stack = model.stack()
        weights, out = stack.embedding, stack.out[0]
        residual, skip, bytes_ = _width(weights.shape[1]), _width(out.shape[1]), 2 if self.precision == "bf16" else 4
        fits = residual * max(residual, skip) * bytes_ <= SHARED and min(skip, 64) * _width(len(out)) * bytes_ <= SHARED
        return fits and weights.dtype == torch.float32 and (self.interpreted or model.device.type == "cuda")

    def _fixed(self, model: Dilated, n: int, y: Tensor | None, c: Tensor | None) -> "Fixed":
        stack, dtype = model.stack(), torch.bfloat16 if self.precision == "bf16" else torch.float32
        layers, residual, kernel = len(stack.dilations), stack.embedding.shape[1], stack.taps.shape[3]
        width, skip, levels = _width(residual), _width(len(stack.hidden[0])), _width(len(stack.out[0]))
        memory = torch.tensor(stack.dilations) * (kernel - 1)
        gates, which = self._gates(model, n, y, c)
        # Row-major from in to out: what a product reads of it is contiguous.
        taps = stack.taps.unflatten(1, (2, residual)).permute(0, 4, 1, 3, 2)
        return Fixed(
            sampler=self,
            embedding=_padded(stack.embedding, len(stack.embedding), width),
            taps=_padded(taps, width, width).to(dtype),
            residuals=_padded(stack.residuals[0].mT, width, width).to(dtype),
            residual_bias=_padded(stack.residuals[1], layers, width),
            skips=_padded(stack.skips[0].mT, width, skip).to(dtype),
            skip_bias=_padded(stack.skips[1].sum(0, keepdim=True), 1, skip),
            hidden=_padded(stack.hidden[0].T, skip, skip).to(dtype),
            hidden_bias=_padded(stack.hidden[1][None], 1, skip),
            out=_padded(stack.out[0].T, skip, levels).to(dtype),
            out_bias=_padded(stack.out[1][None], 1, levels),
            gates=_padded(gates.movedim(3, 2).unflatten(3, (2, residual)), 2, width),
            which=which.to(model.device, torch.int32),
            frames=torch.as_tensor(model.frame(torch.arange(model.steps, device=model.device))).to(torch.int32),
            dilations=torch.tensor(stack.dilations, dtype=torch.int32, device=model.device),
            begins=(memory.cumsum(0) - memory).to(model.device),
            slots=int(memory.sum()),
        )

    def _gates(self, model: Dilated, n: int, y: Tensor | None, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gates of every different row, and which of them each row has: labels share theirs, a condition is a row's own."""
        if c is not None:
            return model.gates(n, y=y, c=c), torch.arange(n)
        if y is None:
            return model.gates(1, y=None, c=None), torch.zeros(n)
        every = torch.arange(-1, model.event.classes, device=model.device)
        return model.gates(len(every), y=every, c=None), y + 1


@dataclass(frozen=True)
class Fixed:
    """What no step changes, as the kernel takes it: sizes are padded to powers of two by zeros."""

    sampler: TritonWaveNet
    embedding: Tensor
    taps: Tensor
    residuals: Tensor
    residual_bias: Tensor
    skips: Tensor
    skip_bias: Tensor
    hidden: Tensor
    hidden_bias: Tensor
    out: Tensor
    out_bias: Tensor
    gates: Tensor
    which: Tensor
    frames: Tensor
    dilations: Tensor
    begins: Tensor
    slots: int

    @property
    def weights(self) -> list[Tensor]:
        """In the kernel's order."""
        outer = [self.embedding, self.taps, self.residuals, self.residual_bias, self.skips, self.skip_bias, self.hidden, self.hidden_bias]
        return [*outer, self.out, self.out_bias, self.gates, self.which, self.frames, self.dilations, self.begins]

    def sizes(self) -> dict[str, int | str]:
        """The kernel's constants, but for what a call asks."""
        width, skip, levels = self.embedding.shape[1], self.hidden.shape[0], self.out.shape[1]
        constants = {"K": len(self.embedding), "M": levels, "R": width, "S": skip, "LAYERS": len(self.taps), "KERNEL": self.taps.shape[1]}
        wide = self.sampler.interpreted and self.sampler.precision == "bf16"
        return constants | {
            "ROWS": self.sampler.rows,
            "CHUNK": min(skip, 64),
            "PRECISION": "bf16-wide" if wide else self.sampler.precision,
        }


@dataclass
class Rings(Fused):
    fixed: Fixed
    rings: Tensor
    """(slots, B, R)."""
    x: Tensor
    """(B, R) float32: the embedded sample before the next one, zeros before the first."""

    def advance(self, state: Drawing, k: int, logits: Tensor | None = None) -> None:
        batch, length = state.x.shape
        k = min(k, length - state.step)
        if k <= 0:
            return
        assert state.x.is_contiguous(), "a drawing's table"
        said = self.x.new_empty(batch, k, len(self.fixed.embedding)) if logits is not None else self.x
        broken = torch.zeros(batch, dtype=torch.int32, device=self.x.device)
        self._launch(state, k, said, broken, wanted=logits is not None)
        if bool(broken.any()):
            row = int(broken.argmax())
            raise ValueError(
                f"the logits of row {row} from step {state.step} on are not all finite numbers: the model's weights are broken"
            )
        if logits is not None:
            logits.copy_(said)
        state.step += k

    def _launch(self, state: Drawing, k: int, said: Tensor, broken: Tensor, *, wanted: bool) -> None:
        from genmodels.sampling import wavenet_kernel

        kernel: Any = wavenet_kernel.draw
        fixed, sampler, (batch, length) = self.fixed, self.fixed.sampler, state.x.shape
        some = state.known is not None and state.given is not None
        known = state.known.contiguous().view(torch.uint8) if state.known is not None and some else state.x
        given = state.given.contiguous() if state.given is not None and some else fixed.begins
        scratch = self.x.new_empty(batch, fixed.hidden.shape[0])
        tables = [self.rings, self.x, scratch, state.uniforms.contiguous(), state.temperature[:, 0].contiguous(), state.x]
        numbers = [state.step, k, batch, length, fixed.gates.shape[2]]
        with torch.cuda.device(self.x.device) if self.x.is_cuda else nullcontext():
            kernel[(-(-batch // sampler.rows),)](
                *fixed.weights,
                *tables,
                known,
                given,
                state.log_weight,
                said,
                broken,
                *numbers,
                **fixed.sizes(),
                KNOWN=some,
                LOGITS=wanted,
                num_warps=sampler.warps,
                num_stages=sampler.stages,
            )


def _width(size: int) -> int:
    """The power of two from 16 on that holds it: the sizes that products come in."""
    return max(16, 1 << (size - 1).bit_length())


def _padded(x: Tensor, rows: int, columns: int) -> Tensor:
    """x (..., rows', columns') -> (..., rows, columns), contiguous, zeros at the ends."""
    out = x.new_zeros(*x.shape[:-2], rows, columns)
    out[..., : x.shape[-2], : x.shape[-1]] = x.detach()
    return out
