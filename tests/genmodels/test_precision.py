"""What makes a training faster changes its loss curve by rounding only: bf16 within a stated band of f32, the layout of memory within f32's own."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from genmodels.core import Batch, Event, Trained
from genmodels.models.pixelcnn import GatedPixelCNN, PixelCNN
from genmodels.models.pixelcnnpp import PixelCNNPlusPlus
from genmodels.train import TrainConfig, Training
from genmodels.zoo import build

DIGITS = Event(modality="image", shape=(1, 8, 8), levels=17, classes=10)
SIZES: dict[str, dict[str, Any]] = {
    "pixelcnn": {"hidden": 8, "layers": 2, "kernel": 5, "head": 16, "dropout": 0.1},
    "gated_pixelcnn": {"hidden": 8, "layers": 2, "kernel": 5, "head": 16, "dropout": 0.1},
    "pixelcnnpp": {"hidden": 8, "blocks": 1, "scales": 1, "components": 2},
}
STEPS, ROWS, WINDOW, BAND = 240, 16, 20, 0.005
"""The band: the mean loss of every WINDOW steps in bf16 is within half a percent of that in f32."""


def training(family: str, **config: Any) -> Training:
    model = build(family, DIGITS, seed=1, **SIZES[family])
    assert isinstance(model, Trained)
    return Training(model, TrainConfig(steps=STEPS, batch_size=ROWS, seed=2, lr=3e-3, **config))


def batches():
    images, labels = (np.asarray(each) for each in load_digits(return_X_y=True))
    x, y = torch.from_numpy(images.astype(np.uint8)).reshape(-1, *DIGITS.shape), torch.from_numpy(labels.astype(np.int64))

    def batch(step: int) -> Batch:
        position = torch.arange(step * ROWS, (step + 1) * ROWS)
        rows = position * 7919 % len(x)
        return Batch(x=x[rows], y=y[rows], position=position, step=step)

    return batch


def curve(trained: Training, steps: int) -> torch.Tensor:
    """(steps,) losses in nats a sub-pixel."""
    return torch.tensor([record["likelihood.loss"] for record in trained.run(batches(), until=steps)])


@pytest.mark.parametrize("family", ["pixelcnn", "gated_pixelcnn"])
def test_the_loss_curve_of_bf16_stays_in_the_band(family: str) -> None:
    if not any(present is True for name, present in torch.cpu.get_capabilities().items() if "bf16" in name):
        pytest.skip("this CPU has no bf16 arithmetic")
    full, half = (curve(training(family, precision=precision), STEPS).reshape(-1, WINDOW).mean(1) for precision in ("f32", "bf16"))
    assert full[-1] < 0.8 * full[0], "nothing was learnt: any two curves are alike"
    assert not torch.equal(full, half)
    torch.testing.assert_close(half, full, rtol=BAND, atol=0)


def entrances(model: nn.Module) -> list[nn.Module]:
    """The convolutions through which a picture comes in."""
    if isinstance(model, PixelCNN):
        return [model.first]
    if isinstance(model, GatedPixelCNN):
        return [model.layers[0]]
    assert isinstance(model, PixelCNNPlusPlus)
    return [model.above, model.left]


def contiguous(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(each.contiguous() if isinstance(each, torch.Tensor) else each for each in inputs)


@pytest.mark.parametrize("family", SIZES)
def test_the_layout_of_memory_changes_nothing_but_rounding(family: str) -> None:
    last, first = training(family), training(family)
    for entrance in entrances(first.model):
        entrance.register_forward_pre_hook(contiguous)
    torch.testing.assert_close(curve(last, 20), curve(first, 20), rtol=1e-5, atol=0)
