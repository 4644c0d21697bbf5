"""The GPU table: WaveNet's samples a second, a picture's latency, and training against the machine's bf16 rate.

    python -m benchmarks.gpu [--only sounds,pictures,training] [--rounds 3]

Every sampler's samples are compared with the eager one's. The picture model is first trained on gratings: how many passes fixed-point iteration takes
is a matter of what has been learnt. Medians; ends with 2 where there is no CUDA device.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.roofline import bounds, operators_of
from genmodels.core import Autoregressive, Batch, Drawing, Eager, Event, Sampler, Trained
from genmodels.machine import equality_class
from genmodels.noise import Noise
from genmodels.sampling.fixed_point import FixedPoint
from genmodels.sampling.graphs import Graphs, period
from genmodels.sampling.passes import Guess
from genmodels.sampling.triton_wavenet import TritonWaveNet
from genmodels.sampling.wavefront import Wavefront
from genmodels.train import TrainConfig, Training
from genmodels.zoo import build

DEVICE = torch.device("cuda")
SOUND = Event(modality="audio", shape=(4096,), levels=256, sample_rate=16000, companding="mu-law")
WAVENET: dict[str, Any] = {"stacks": 3, "layers": 10, "residual": 64, "skip": 128}
PICTURE = Event(modality="image", shape=(1, 28, 28), levels=256)
PIXELCNN: dict[str, Any] = {"layers": 8, "hidden": 64, "head": 64, "dropout": 0.0}
SAMPLERS: dict[str, tuple[Sampler, int]] = {
    "eager": (Eager(), 32),
    "graphs": (Graphs(), 512),
    "triton f32": (TritonWaveNet(), 512),
    "triton tf32": (TritonWaveNet("tf32"), 512),
    "triton bf16": (TritonWaveNet("bf16"), 512),
    "triton bf16, 32 rows": (TritonWaveNet("bf16", rows=32), 512),
    "triton bf16, 2 stages": (TritonWaveNet("bf16", stages=2), 512),
}
"""And how many steps are timed at once."""
WARM = 5

Row = Sequence[str]


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Median time of the work, and of what it has asked of the device."""
    took = []
    for _ in range(rounds):
        wait()
        begun = time.perf_counter()
        work()
        wait()
        took.append(time.perf_counter() - begun)
    return statistics.median(took)


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def peaks(side: int = 8192, size: int = 2**32) -> tuple[float, float]:
    """FLOP/s of a product of random bf16 matrices; bytes/s of a copy, read and written."""
    a, b = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    source = torch.zeros(size, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    for _ in range(3):
        torch.mm(a, b)
        target.copy_(source)
    return 2 * side**3 / seconds(lambda: torch.mm(a, b), 10), 2 * source.numel() / seconds(lambda: target.copy_(source), 10)


def begun(model: Autoregressive, sampler: Sampler, n: int) -> Drawing:
    model.sampler = sampler
    with torch.no_grad():
        return model.begin(Noise(0, position=range(n)).to(DEVICE), y=None, c=None, temperature=torch.ones(n, device=DEVICE))


def on_gpu(family: str, event: Event, config: dict[str, Any]) -> Autoregressive:
    model = build(family, event, **config).to(DEVICE).eval()
    assert isinstance(model, Autoregressive)
    return model


def sound_row(name: str, batch: int, steps: int, took: float, agree: float) -> Row:
    """took: seconds of `steps` steps of `batch` sounds; agree: the share of their samples that are the eager sampler's."""
    rate = batch * steps / took
    per_step, times = f"{1e6 * took / steps:,.0f}", rate / (SOUND.sample_rate or 1)
    return [str(batch), name, per_step, f"{rate:,.0f}", f"{times:,.2f}" if times < 10 else f"{times:,.0f}", f"{agree:.4f}"]


def sounds(rounds: int, batches: Sequence[int]) -> Iterator[Row]:
    yield ["sounds", "sampler", "µs a step", "samples/s", "times real time", "as eager"]
    model = on_gpu("wavenet", SOUND, WAVENET)
    for batch in batches:
        eager = begun(model, Eager(), batch)
        for name, (sampler, steps) in SAMPLERS.items():
            state = begun(model, sampler, batch)
            model.advance(state, period(model) + 1 if name == "graphs" else 64)  # records, compiles
            took = seconds(lambda state=state, steps=steps: model.advance(state, steps), rounds)
            if name == "eager":
                eager = state
            same = (state.x[:, : eager.step] == eager.x[:, : eager.step]).float().mean()
            yield sound_row(name, batch, steps, took, float(same))


def gratings(rows: int, step: int) -> Batch:
    """Pictures of waves of any direction, length and phase, with noise."""
    noise = Noise(1, position=torch.arange(step * rows, (step + 1) * rows))
    u, side = noise.uniform("wave", (3, 1, 1)), PICTURE.shape[2]
    grid = torch.arange(float(side))
    angle, length, phase = 2 * math.pi * u[:, 0], 4 + 12 * u[:, 1], 2 * math.pi * u[:, 2]
    wave = torch.sin((grid[:, None] * torch.sin(angle) + grid * torch.cos(angle)) * 2 * math.pi / length + phase)
    x = 127.5 + 100 * wave + 8 * noise.normal("noise", (side, side))
    return Batch(x=x.round().clamp(0, 255).to(torch.uint8)[:, None], position=noise.position, step=step)


def pictures(rounds: int, steps: int) -> Iterator[Row]:
    yield ["gated PixelCNN 28x28, 1 picture", "ms", "times eager", "passes", "as eager"]
    model = on_gpu("gated_pixelcnn", PICTURE, PIXELCNN)
    assert isinstance(model, Trained)
    Training(model, TrainConfig(steps=steps, batch_size=64, precision="bf16")).run(lambda step: gratings(64, step), until=steps)
    model.eval()
    first: tuple[float, Tensor] | None = None
    for name, sampler in {"eager": Eager(), "graphs": Graphs(), "fixed point": FixedPoint(), "wavefront": Wavefront()}.items():
        model.advance(begun(model, sampler, 1), model.steps)
        states: list[Drawing] = []
        took = seconds(lambda sampler=sampler, states=states: states.append(model.advance(begun(model, sampler, 1), model.steps)), rounds)
        first = first or (took, states[-1].x)
        passes = str(states[-1].memory.passes) if isinstance(states[-1].memory, Guess) else ""
        same = float((states[-1].x == first[1]).float().mean())
        yield [name, f"{1e3 * took:,.2f}", f"{first[0] / took:.1f}", passes, f"{same:.4f}"]


def training_row(family: str, kind: str, rows: int, step: float, flops: float, rate: float, least: tuple[float, float]) -> Row:
    """step: seconds of a step; flops: of its products; least: seconds that it takes at least, fused and not."""
    shares = [flops / step / rate, least[0] / step, least[1] / step]
    return [family, kind, f"{rows / step:,.0f}", f"{flops / step / 1e12:,.1f}", *(f"{100 * share:.1f} %" for share in shares)]


def training(rounds: int, rate: float, bandwidth: float, rows: int = 256, steps: int = 20, kinds: str = "eager compiled") -> Iterator[Row]:
    yield ["training", "bf16", "pictures/s", "TFLOP/s", "of the bf16 rate", "of the products' roofline", "of all operators' roofline"]
    for family in ("gated_pixelcnn", "pixelcnn"):
        for kind in kinds.split():
            model = on_gpu(family, PICTURE, PIXELCNN)
            assert isinstance(model, Trained)
            batch = gratings(rows, 0).to(DEVICE)

            def loss(model: Trained = model, batch: Batch = batch) -> None:
                with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
                    value = model.objectives()[0].loss(batch, Noise(0, position=batch.position))[0]
                value.backward()

            operators = operators_of(loss)
            model.zero_grad()
            config = TrainConfig(steps=WARM + rounds * steps, batch_size=rows, precision="bf16", compile=kind == "compiled")
            loop = Training(model, config)
            loop.run(lambda step, batch=batch: batch, until=WARM)
            took = seconds(lambda loop=loop, batch=batch: loop.run(lambda step: batch, until=loop.step + steps), rounds) / steps
            flops, least = sum(each.flops for each in operators), bounds(operators, rate, bandwidth)
            yield training_row(family, kind, rows, took, flops, rate, least)


def show(rows: Iterator[Row]) -> None:
    """As a Markdown table, line by line as they come."""
    for i, row in enumerate(rows):
        print(f"| {' | '.join(row)} |" + (f"\n|{' --- |' * len(row)}" if i == 0 else ""), flush=True)
    print()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="sounds,pictures,training")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", default="1,64,1024,4096,8192")
    parser.add_argument("--trained", type=int, default=400, help="steps that the picture model is trained first")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        return print("no CUDA device: this table is of a GPU", file=sys.stderr) or 2
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 is float32 in every sampler
    rate, bandwidth = peaks()
    print(f"{equality_class(device='cuda')}: {rate / 1e12:,.0f} bf16 TFLOP/s of 8192^3, {bandwidth / 1e12:.2f} TB/s copied\n")
    batches = [int(batch) for batch in asked.batches.split(",")]
    tables = {"sounds": sounds(asked.rounds, batches), "pictures": pictures(asked.rounds, asked.trained)}
    tables["training"] = training(asked.rounds, rate, bandwidth)
    for name in asked.only.split(","):
        show(tables[name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
