"""The WaveNet kernel draws what the eager sampler draws, as far as a machine without a GPU can tell: in triton's interpreter. And it
compiles for one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from genmodels.core import Eager
from genmodels.sampling.triton_wavenet import TritonWaveNet
from tests.genmodels.conftest import EVENTS, shaken
from tests.genmodels.interpreted import SIZES, begun, model_of

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("triton", reason="triton is made for Linux")


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return said_by("interpreted", os.environ | {"TRITON_INTERPRET": "1"})


def said_by(module: str, environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-m", f"tests.genmodels.{module}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("size", list(SIZES))
def test_logits_are_the_eager_ones(found: dict[str, Any], size: str) -> None:
    """Teacher-forced. float32: to its rounding; bf16: to a twentieth of how far logits lie apart."""
    exact = found[size]["f32"]
    assert exact["logits"] < 1e-5 and exact["log_weight"] < 1e-6
    if "bf16" in found[size]:
        assert 1e-4 < found[size]["bf16"]["logits"] < 0.05 * found[size]["bf16"]["spread"]


@pytest.mark.parametrize("size", list(SIZES))
def test_samples_are_the_eager_ones(found: dict[str, Any], size: str) -> None:
    """In portions, from a copy, from the state that it was copied from, and with values given."""
    assert found[size]["free"] == {"portions": True, "left": True, "half given": True}


def test_broken_weights_are_said(found: dict[str, Any]) -> None:
    assert found["broken"]["error"].startswith("the logits of row 0 from step 0 on are not all finite numbers")


def test_it_compiles_for_hopper(tmp_path: Path) -> None:
    """With the matrix units' instructions, and in less shared memory than an SM has."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    kernels = said_by("compiled_kernel", environment)
    assert set(kernels) == {"f32", "tf32", "bf16"}
    for shared, products in kernels.values():
        assert 0 < shared <= 227 * 1024 and products > 0


def test_without_a_gpu_samples_are_eager() -> None:
    model, n = model_of("odd")
    assert TritonWaveNet().backend(model) == "eager" and TritonWaveNet().padded(model)
    assert type(begun(model, n, TritonWaveNet()).memory) is type(begun(model, n, Eager()).memory)
    assert TritonWaveNet(interpreted=True).backend(model) == "triton-f32" and not TritonWaveNet(interpreted=True).padded(model)
    other = shaken("pixelcnn", EVENTS["binary"])
    assert TritonWaveNet(interpreted=True).backend(other) == "eager"  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^precision 'f64', rows 16; wanted one of f32, tf32, bf16, and a power of two"):
        TritonWaveNet("f64")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"rows 24; "):
        TritonWaveNet(rows=24)
