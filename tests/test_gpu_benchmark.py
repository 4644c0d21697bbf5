"""The GPU table's arithmetic, and all of its code but for the GPU."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from benchmarks import gpu
from benchmarks.roofline import Operator, bounds, operators_of
from genmodels.core import Eager
from genmodels.sampling.fixed_point import FixedPoint
from genmodels.sampling.triton_wavenet import TritonWaveNet


def test_operators_are_counted() -> None:
    """A convolution forward and backward; what only looks at memory in another way costs nothing."""
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3, requires_grad=True)

    def work() -> None:
        F.conv2d(x, weight).flatten(1).transpose(0, 1).relu().sum().backward()

    operators = operators_of(work)
    products = [each for each in operators if each.flops]
    one = 2 * (2 * 5 * 6 * 6) * (3 * 3 * 3)
    assert [each.flops for each in products] == [one, one]  # x wants no gradient
    assert products[0].bytes == 4 * (2 * 3 * 8 * 8 + 5 * 3 * 3 * 3 + 2 * 5 * 6 * 6)
    relu = next(each for each in operators if each.name == "relu")
    assert relu.bytes == 2 * 4 * (2 * 5 * 6 * 6) and relu.flops == 0
    assert not any(each.name in ("view", "transpose", "_unsafe_view", "t", "expand") for each in operators)


def test_bounds() -> None:
    heavy, light, add = Operator("mm", 1000, 10), Operator("mm", 10, 1000), Operator("add", 0, 500)
    assert heavy.seconds(10.0, 5.0) == 100 and light.seconds(10.0, 5.0) == 200
    assert bounds([heavy, light, add], 10.0, 5.0) == (300, 400)


def test_rows() -> None:
    assert gpu.sound_row("graphs", 64, 512, 0.256, 1.0) == ["64", "graphs", "500", "128,000", "8.00", "1.0000"]
    assert gpu.sound_row("triton", 4096, 512, 0.0512, 0.5)[3:] == ["40,960,000", "2,560", "0.5000"]
    row = gpu.training_row("pixelcnn", "eager", 256, 0.01, 2e12, 8e14, (0.002, 0.008))
    assert row == ["pixelcnn", "eager", "25,600", "200.0", "25.0 %", "20.0 %", "80.0 %"]


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu"])
    assert gpu.main() == 2
    out, error = capsys.readouterr()
    assert out == "" and error == "no CUDA device: this table is of a GPU\n"


def test_the_table_on_a_processor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Small models, and samplers that need a GPU drawing eagerly: every line of the table runs."""
    monkeypatch.setattr(gpu, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(gpu, "SOUND", replace(gpu.SOUND, shape=(90,)))
    monkeypatch.setattr(gpu, "WAVENET", {"stacks": 1, "layers": 2, "residual": 8, "skip": 8})
    monkeypatch.setattr(gpu, "PICTURE", replace(gpu.PICTURE, shape=(1, 6, 6)))
    monkeypatch.setattr(gpu, "PIXELCNN", {"layers": 1, "hidden": 4, "head": 4})
    monkeypatch.setattr(gpu, "SAMPLERS", {"eager": (Eager(), 4), "triton": (TritonWaveNet(), 4), "fixed point": (FixedPoint(), 4)})
    rate, bandwidth = gpu.peaks(64, 2**16)
    gpu.show(gpu.sounds(2, [1, 3]))
    gpu.show(gpu.pictures(2, 2))
    gpu.show(gpu.training(1, rate, bandwidth, rows=4, steps=1, kinds="eager"))
    lines = capsys.readouterr().out.splitlines()
    tables = [lines[i] for i in range(len(lines)) if lines[i].startswith("| ---")]
    assert len(tables) == 3 and len(lines) == 3 * 3 + 6 + 4 + 2
    assert all(line.endswith("1.0000 |") for line in lines if line.startswith(("| 1 |", "| 3 |", "| graphs", "| wavefront", "| fixed")))
