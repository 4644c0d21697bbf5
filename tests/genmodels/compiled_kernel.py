"""The WaveNet kernel compiled for a GPU that need not be there.

python -m tests.genmodels.compiled_kernel     one line of JSON: of each precision, bytes of shared memory, and instructions of the matrix units
"""

import json
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from genmodels.sampling.wavenet_kernel import draw

HOPPER = GPUTarget("cuda", 90, 32)
PAPER: dict[str, Any] = {"K": 256, "M": 256, "R": 64, "S": 128, "LAYERS": 30, "KERNEL": 2, "ROWS": 16, "CHUNK": 64}
"""A WaveNet of 3 x 10 layers of 64 and 128 features."""
WEIGHTS = {"taps", "residuals", "skips", "hidden", "out", "rings"}
TYPES = {
    "which": "*i32", "frames": "*i32", "dilations": "*i32", "begins": "*i64", "levels": "*u8", "known": "*u8", "given": "*i64",
    "log_weight": "*fp64", "broken": "*i32", "step": "i32", "k": "i32", "batch": "i32", "length": "i32", "tables": "i32",
}  # fmt: skip


def compiled(precision: str, *, warps: int = 8, stages: int = 1, **sizes: int) -> Any:
    constants = PAPER | {"PRECISION": precision, "KNOWN": False, "LOGITS": False} | sizes
    narrow = "*bf16" if precision == "bf16" else "*fp32"
    names = [name for name in draw.arg_names if name not in constants]
    types = {name: TYPES.get(name, narrow if name in WEIGHTS else "*fp32") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if types[name].startswith("*")}
    source = ASTSource(draw, types | dict.fromkeys(constants, "constexpr"), constants, aligned)
    return triton.compile(source, target=HOPPER, options={"num_warps": warps, "num_stages": stages})


if __name__ == "__main__":
    kernels = {precision: compiled(precision) for precision in ("f32", "tf32", "bf16")}
    print(json.dumps({name: [kernel.metadata.shared, kernel.asm["ptx"].count("mma.sync")] for name, kernel in kernels.items()}))
