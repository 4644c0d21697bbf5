"""The gated PixelCNN sees the whole past of a pixel and nothing else, and its kept activations are those of the full network."""

from typing import Any

import pytest
import torch
from torch import Tensor

from genmodels.core import Event
from genmodels.models.pixelcnn import GatedPixelCNN
from genmodels.nn.scaling import scaled
from genmodels.noise import Noise
from tests.genmodels.conftest import examples, shaken

SIDE = 17
"""On a smaller picture a blind spot hides."""


def model_of(event: Event, **config: Any) -> GatedPixelCNN:
    model = shaken("gated_pixelcnn", event, **config).double()
    assert isinstance(model, GatedPixelCNN)
    return model


def dependence(model: GatedPixelCNN, row: int, column: int, c: int, noise: Noise | None) -> Tensor:
    """(C, H, W) bool: the inputs that move the logits of one sub-pixel, over several random pictures; unlike zero, not unlike noise."""
    z = scaled(examples(model.event, 3), model.event.levels, torch.float64).requires_grad_()
    y = torch.arange(3) % model.event.classes if model.event.classes else None
    logits = model.logits(z, y, noise)[:, c, row, column]
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((logits * weight).sum(), z)
    return (gradient != 0).any(0)


def past(event: Event, row: int, column: int, c: int) -> Tensor:
    """(C, H, W) bool: rows above, pixels to the left, channels before."""
    channels, height, width = event.shape
    order = torch.arange(height * width * channels).reshape(height, width, channels).permute(2, 0, 1)
    return order < order[c, row, column]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("channels", "pixel"), [(1, (12, 5)), (1, (8, 8)), (1, (3, 16)), (1, (16, 0)), (3, (12, 5)), (3, (0, 3))])
def test_a_pixel_sees_its_whole_past_and_nothing_else(channels: int, pixel: tuple[int, int], training: bool) -> None:
    event = Event(modality="image", shape=(channels, SIDE, SIDE), levels=4, classes=2)
    model = model_of(event, hidden=4, layers=8, kernel=5, head=8, dropout=0.2).train(training)
    noise = Noise(1, position=range(3)) if training else None
    for c in range(channels):
        seen = dependence(model, *pixel, c, noise)
        assert torch.equal(seen, past(event, *pixel, c)), f"channel {c}: {(seen ^ past(event, *pixel, c)).nonzero().tolist()}"


def test_one_changed_sub_pixel_changes_no_logits_before_it() -> None:
    event = Event(modality="image", shape=(3, 5, 4), levels=4)
    model = model_of(event, hidden=4, layers=2, kernel=3, head=8)
    z = scaled(examples(event, 2), 4, torch.float64)
    with torch.no_grad():
        before = model.logits(z, None)
        for c, row, column in [(c, row, column) for c in range(3) for row in range(5) for column in range(4)]:
            changed = z.clone()
            changed[:, c, row, column] += 0.7
            moved = (model.logits(changed, None) != before).any(-1).any(0)
            earlier = past(event, row, column, c)
            earlier[c, row, column] = True
            assert not bool((moved & earlier).any()), f"sub-pixel {(c, row, column)} is seen by its past or by itself"


def test_rows_do_not_see_each_other() -> None:
    event = Event(modality="image", shape=(1, 6, 6), levels=4)
    model = model_of(event).train()
    z = scaled(examples(event, 4), 4, torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(model.logits(z, None, Noise(0, position=range(4)))[2].sum(), z)
    assert gradient[2].any() and not gradient[[0, 1, 3]].any()


@pytest.mark.parametrize(
    ("shape", "levels", "classes", "kernel"), [((1, 6, 5), 17, 3, 5), ((3, 4, 5), 4, 0, 3), ((1, 3, 9), 2, 2, 7), ((3, 3, 1), 256, 0, 3)]
)
def test_kept_activations_give_the_full_networks_logits(shape: tuple[int, int, int], levels: int, classes: int, kernel: int) -> None:
    event = Event(modality="image", shape=shape, levels=levels, classes=classes)
    model = model_of(event, hidden=8, layers=3, kernel=kernel, head=8)
    y = torch.arange(5) % classes if classes else None
    state = model.begin(Noise(4, position=range(5)), y=y, c=None, temperature=torch.ones(5))
    with torch.no_grad():
        for place in model.order.tolist():
            full = model.logits(scaled(model.read(state), levels, torch.float64), y).flatten(1, 3)[:, place]
            torch.testing.assert_close(model.next_logits(state), full, rtol=1e-10, atol=1e-10)
            state = model.advance(state, 1)


@pytest.mark.parametrize("settings", [{"kernel": 4}, {"kernel": 1}, {"layers": 0}, {"dropout": 1.0}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="; wanted "):
        GatedPixelCNN.Config(**settings)  # type: ignore[arg-type]


def test_real_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^GatedPixelCNN models levels; got image 1x4x4, real values$"):
        shaken("gated_pixelcnn", Event(modality="image", shape=(1, 4, 4), levels=0))
