"""The compiled PixelCNN++ where its shapes are special: odd sizes at every scale, windows that vectors stand out of, mixtures near and far."""

from typing import Any

import pytest
import torch
from torch import Tensor

from genmodels.core import Event
from genmodels.models.pixelcnnpp import PixelCNNPlusPlus
from genmodels.noise import Noise
from genmodels.sampling import library
from genmodels.sampling.native import Native
from genmodels.sampling.packing import Precision
from tests.genmodels.conftest import examples, shaken

pytestmark = pytest.mark.skipif(not library.runnable(), reason="no compiled sampler in this installation")

SHAPES = [
    ((1, 5, 7), 256, 3, {"hidden": 5, "blocks": 2}),
    ((3, 7, 6), 256, 0, {"hidden": 24}),
    ((3, 9, 11), 4, 2, {"hidden": 7, "scales": 3, "reach": 2, "components": 1}),
    ((2, 6, 5), 17, 0, {"hidden": 16, "scales": 0}),
    ((4, 4, 5), 3, 2, {"hidden": 1, "scales": 1, "reach": 1}),
    ((1, 1, 9), 17, 0, {"hidden": 33}),
    ((1, 9, 1), 2, 0, {"hidden": 9}),
    ((3, 5, 4), 100, 0, {"hidden": 40, "components": 18}),
]


def model_of(shape: tuple[int, int, int], levels: int, classes: int = 0, **config: Any) -> PixelCNNPlusPlus:
    model = shaken("pixelcnnpp", Event(modality="image", shape=shape, levels=levels, classes=classes), **config)
    assert isinstance(model, PixelCNNPlusPlus)
    return model


def whole(model: PixelCNNPlusPlus, x: Tensor, y: Tensor | None) -> Tensor:
    """(n, D, K) logits by the full network."""
    with torch.no_grad():
        mixture = model.mixture(x, y)
        logits = torch.stack([mixture.logits(x, c) for c in range(x.shape[1])], dim=-1)
    return logits.permute(0, 2, 3, 4, 1).flatten(1, 3)


def forced(model: PixelCNNPlusPlus, x: Tensor, y: Tensor | None, *, precision: Precision = "f32", copy: str | None = None) -> Tensor:
    """The same by the compiled sampler, every value given."""
    model.sampler = Native(precision, copy=copy)
    state = model.begin(Noise(0, position=range(len(x))), y=y, c=None, temperature=torch.ones(len(x)), x=x, known=torch.ones_like(x).bool())
    logits = torch.empty(len(x), model.steps, model.event.levels)
    state.memory.advance(state, model.steps, logits)
    return logits


def some(model: PixelCNNPlusPlus) -> tuple[Tensor, Tensor | None]:
    """Four pictures, the third unlabelled where there are labels."""
    classes = model.event.classes
    return examples(model.event, 4), torch.tensor([0, 1, -1, classes - 1]) if classes else None


@pytest.mark.parametrize(("shape", "levels", "classes", "config"), SHAPES)
def test_logits_in_every_copy(shape: tuple[int, int, int], levels: int, classes: int, config: dict[str, int]) -> None:
    model = model_of(shape, levels, classes, **config)
    x, y = some(model)
    fused, exact = [], whole(model.double(), x, y)
    model.float()
    for copy in library.runnable():
        logits = forced(model, x, y, copy=copy)
        torch.testing.assert_close(logits.double(), exact, rtol=0, atol=3e-5)
        fused += [] if copy == "portable" else [logits]
    assert all(torch.equal(each, fused[0]) for each in fused)


@pytest.mark.skipif(library.chosen() not in library.NARROW, reason="no processor with bf16")
@pytest.mark.parametrize(("shape", "levels", "classes", "config"), SHAPES)
def test_bf16_keeps_the_distributions(shape: tuple[int, int, int], levels: int, classes: int, config: dict[str, int]) -> None:
    """Within three hundredths in total variation: the last layer, on which means and scales hang, stays in float32."""
    model = model_of(shape, levels, classes, **config)
    x, y = some(model)
    apart = torch.softmax(forced(model, x, y, precision="bf16").double(), -1) - torch.softmax(whole(model, x, y).double(), -1)
    assert 0 < float(apart.abs().sum(-1).max()) / 2 < 0.03


@pytest.mark.parametrize("levels", [2, 3, 16, 17, 256])
@pytest.mark.parametrize("spread", [0.5, 2.0, 8.0])
def test_mixtures_keep_their_nats_however_far_the_levels_lie(levels: int, spread: float) -> None:
    """Mixtures alone, from wide to a hundredth of a level, weights hundreds of nats apart: as exact as float32 has them, and never infinite."""
    model = model_of((3, 1, 2), levels, components=7)
    generator = torch.Generator().manual_seed(levels)
    with torch.no_grad():
        model.out.weight.zero_()
        assert model.out.bias is not None
        parts = spread * torch.randn(7, 10, generator=generator)  # a component's weight, means, log scales and coefficients
        parts[:, 0] *= 10
        model.out.bias.copy_(parts.flatten())
    x = examples(model.event, 8)
    exact, eager = whole(model.double(), x, None), whole(model.float(), x, None)
    logits = forced(model, x, None)
    assert bool(logits.isfinite().all())
    error, allowed = (logits.double() - exact).abs(), (eager.double() - exact).abs().amax()
    assert float(error.max()) < 1e-5 + 1e-6 * float(exact.abs().max()) + 2 * float(allowed)
