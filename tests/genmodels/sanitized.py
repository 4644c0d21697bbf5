"""The compiled samplers under a sanitizer: copies built with it draw a seeded set of cases, and must give the ordinary copies' bytes.

    python -m tests.genmodels.sanitized [--sanitizer address,undefined | thread] [--cases 25] [--copies avx2 ...] [--families wavenet ...]

Python itself is not instrumented: the sanitizer's library is preloaded. Every tensor of a plan and every row of a drawing has memory of its own here,
so that a step beyond its end is seen.
"""

import argparse
import hashlib
import os
import random
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genmodels.core import Autoregressive, Drawing
from genmodels.noise import Noise
from genmodels.sampling import library, packing
from genmodels.sampling.native import Native, NativeMemory
from genmodels.sampling.together import advance_together
from tests.genmodels.conftest import examples, labels, shaken
from tests.genmodels.test_native import FAMILIES, conditions, random_case

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = {"address,undefined": "libasan.so", "thread": "libtsan.so"}
OPTIONS = {
    # Python and torch keep what they took to the end, and link things twice.
    "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0:alloc_dealloc_mismatch=0",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "TSAN_OPTIONS": "halt_on_error=1:ignore_noninstrumented_modules=1",
}


def build(sanitizer: str, copies: Sequence[str], folder: Path) -> None:
    """The copies of the kernels with a sanitizer, side by side. Raises CalledProcessError."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["GENMODELS_SANITIZE"] = sanitizer
    command = runpy.run_path(str(ROOT / "setup.py"))["command"]
    running = [subprocess.Popen(command(copy, folder.resolve() / library.path(copy).name), cwd=ROOT) for copy in copies]
    for process in running:
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, process.args)


def preloads(sanitizer: str) -> dict[str, str] | None:
    """The environment that a sanitizer's copies are loaded in; None where the compiler has not its library."""
    names = [RUNTIME[sanitizer], "libstdc++.so"]  # the latter too: an exception is looked for where it was at the start
    try:
        found = [subprocess.check_output([os.environ.get("CXX", "c++"), f"-print-file-name={name}"], text=True).strip() for name in names]
    except (OSError, subprocess.CalledProcessError):
        return None
    return OPTIONS | {"LD_PRELOAD": " ".join(found)} if all(Path(each).is_absolute() for each in found) else None


def apart(tensors: Sequence[Tensor]) -> tuple[Any, Any]:
    """As packing._arranged: each tensor in memory of its own, with what a vector may read beyond it."""
    if not all(bool(each.isfinite().all()) for each in tensors if each.is_floating_point()):
        raise ValueError("the model's weights are not all finite numbers")
    kept = []
    for each in tensors:
        content = each.contiguous().reshape(-1).view(torch.uint8)
        kept.append(torch.zeros(len(content) + 64, dtype=torch.uint8))
        kept[-1][: len(content)] = content
    return kept, np.array([each.data_ptr() for each in kept], np.uint64)


def draw(family: str, seed: int, copy: str) -> str:
    """A hash of what a case draws: sizes, batch, threads, calls, what is given and which weights are broken are functions of the seed."""
    rng = random.Random(f"{family} {seed}")
    event, config = random_case(family, rng)
    model = shaken(family, event, seed=seed, **config)
    assert isinstance(model, Autoregressive)
    bf16 = rng.random() < 0.5 and copy in library.NARROW
    model.sampler = Native("bf16" if bf16 else "f32", threads=rng.choice([1, 2]), copy=copy)
    n, broken = rng.randint(1, 20), rng.choice([None] * 6 + ["state", "huge", "weight"])
    if broken in ("huge", "weight"):
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1e30) if broken == "huge" else weight.fill_(torch.nan)
    given = {}
    if rng.random() < 0.5:
        known = torch.rand(n, *event.shape, generator=torch.Generator().manual_seed(seed)) < 0.4
        given = {"x": examples(event, n, seed=seed), "known": known}
    ks = [rng.randint(1, model.steps) for _ in range(3)]
    try:
        together = drawn(model, begun(model, range(n), given), ks, broken == "state")
        alone = [begun(model, [row], {name: value[row, None] for name, value in given.items()}) for row in range(min(n, 5))]
        rows = apart_drawn(model, alone, ks[::-1], broken == "state")
        assert all(torch.equal(row, together[i : i + 1]) for i, row in enumerate(rows)), "a row alone differs from the row in its batch"
        return hashlib.blake2b(together.numpy().tobytes(), digest_size=8).hexdigest()
    except ValueError as error:
        assert broken and "are not all finite numbers" in str(error), error
        return "refused"


def begun(model: Autoregressive, rows: Sequence[int], given: dict[str, Tensor]) -> Drawing:
    y, c = labels(model.event, rows[-1] + 1), conditions(model, 20)
    temperature = torch.tensor([1 if row % 3 else 0.6 + row / 9 for row in rows])
    noise, index = Noise([9] * len(rows), position=rows), torch.tensor(list(rows))
    return model.begin(noise, y=None if y is None else y[index], c=None if c is None else c[index], temperature=temperature, **given)


def drawn(model: Autoregressive, state: Drawing, ks: Sequence[int], broken: bool) -> Tensor:
    """To the end by calls of so many steps in turn; the first logits are asked for on the way."""
    model.next_logits(state)
    if broken and isinstance(state.memory, NativeMemory):
        state.memory.kept.fill_(torch.nan)
    while state.step < model.steps:
        model.advance(state, ks[state.step % len(ks)])
    return state.x


def apart_drawn(model: Autoregressive, states: Sequence[Drawing], ks: Sequence[int], broken: bool) -> list[Tensor]:
    """Drawings of a row each, in one call where the memory allows it."""
    if broken or not all(isinstance(state.memory, NativeMemory) for state in states):
        return [drawn(model, state, ks, broken) for state in states]
    for i in range(len(states)):
        advance_together(states[: i + 1], ks[i % len(ks)])
    advance_together(states, model.steps)
    return [state.x for state in states]


def hashes(cases: int, copies: Sequence[str], families: Sequence[str]) -> None:
    """Prints what every case draws, one a line."""
    torch.set_num_threads(1)
    packing._arranged = apart
    for family in families:
        for seed in range(cases):
            for copy in copies:
                print(family, seed, copy, draw(family, seed, copy), flush=True)


def child(asked: argparse.Namespace, environment: dict[str, str]) -> subprocess.Popen[str]:
    """`hashes` in a process of its own."""
    arguments = ["--cases", str(asked.cases), "--copies", *asked.copies, "--families", *asked.families]
    command = [sys.executable, "-m", "tests.genmodels.sanitized", "--hashes", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, text=True)


def lines(process: subprocess.Popen[str]) -> list[str]:
    """What it prints. Exits where it fails; what the sanitizer found stands on stderr."""
    found = process.communicate()[0].splitlines()
    if process.returncode:
        sys.exit(f"failed with {process.returncode} after: {found[-1] if found else 'nothing'}")
    return found


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sanitizer", choices=list(RUNTIME), default="address,undefined")
    parser.add_argument("--cases", type=int, default=25, help="of each family")
    parser.add_argument("--copies", nargs="+", default=list(library.runnable()))
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "sanitized", help="where the copies are built")
    parser.add_argument("--hashes", action="store_true", help="draw with the copies there are, and print")
    return parser.parse_args()


def main() -> None:
    asked = parsed()
    if asked.hashes:
        hashes(asked.cases, asked.copies, asked.families)
        return
    environment, folder = preloads(asked.sanitizer), (asked.folder / asked.sanitizer).resolve()
    if environment is None or not asked.copies:
        sys.exit(f"no compiled samplers here, or no {RUNTIME[asked.sanitizer]} of this compiler")
    ordinary = child(asked, {})
    # Always the portable one too: it says what the machine can run.
    build(asked.sanitizer, sorted({*asked.copies, "portable"}), folder)
    found, wanted = lines(child(asked, environment | {library.FOLDER: str(folder)})), lines(ordinary)
    if different := [line for line, other in zip(found, wanted, strict=True) if line != other]:
        sys.exit("bytes differ from those of the ordinary copies (are they of these sources?):\n" + "\n".join(different))
    refused = sum(line.endswith("refused") for line in found)
    copies = ", ".join(asked.copies)
    print(f"{asked.sanitizer}: {len(found)} cases clean on {copies}, with the ordinary copies' bytes; {refused} refused for broken weights")


if __name__ == "__main__":
    main()
