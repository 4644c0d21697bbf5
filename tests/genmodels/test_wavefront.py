"""A row may follow the one above it at exactly the distance that a model says, whatever stands where nothing is drawn yet."""

from dataclasses import replace

import pytest
import torch

from genmodels.core import Autoregressive, Eager, Event
from genmodels.core.forced import Slanted
from genmodels.nn.scaling import scaled
from genmodels.sampling.fixed_point import FixedPoint
from genmodels.sampling.wavefront import Advancing, Wavefront, turns
from genmodels.zoo import MODELS, build
from tests.genmodels.conftest import EVENTS, examples
from tests.genmodels.test_fixed_point import drawn, model_of, settled
from tests.genmodels.test_graphs import Tape

WIDE = Event(modality="image", shape=(1, 6, 19), levels=3, classes=2)
COLOUR = Event(modality="image", shape=(3, 4, 13), levels=4)
SHAPES = [
    ("pixelcnn", {"layers": 3, "kernel": 3}),
    ("pixelcnn", {"layers": 4, "kernel": 7}),
    ("gated_pixelcnn", {"layers": 3, "kernel": 3}),
    ("gated_pixelcnn", {"layers": 2, "kernel": 5}),
    ("gated_pixelcnn", {"layers": 1, "kernel": 7}),
]


@pytest.mark.parametrize(("family", "config"), SHAPES)
def test_the_distance_is_the_least_one(family: str, config: dict[str, int]) -> None:
    """By gradients: of all pixels that a pixel's logits hear of, each is drawn in an earlier wave, and at one column less some would not be."""
    model = model_of(family, WIDE, **config)
    assert isinstance(model, Slanted) and isinstance(model, MODELS[family])
    _, height, width = model.event.shape
    z = scaled(examples(model.event, 1), model.event.levels, torch.float64).requires_grad_()
    logits = model.logits(z, torch.tensor([0]))  # type: ignore[operator]
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    late = dict.fromkeys((model.behind, model.behind - 1), 0)
    for row in range(height):
        for column in range(width):
            (heard,) = torch.autograd.grad(logits[0, 0, row, column].square().sum(), z, retain_graph=True)
            for behind in late:
                late[behind] += int(((heard[0, 0] != 0) & (columns + behind * rows >= column + behind * row)).sum())
    assert late[model.behind] == 0 < late[model.behind - 1]


@pytest.mark.parametrize(("family", "config"), SHAPES)
@pytest.mark.parametrize("event", [WIDE, COLOUR], ids=["grey", "colour"])
def test_samples_are_the_ancestral_samplers_whatever_the_guess(family: str, config: dict[str, int], event: Event) -> None:
    model, n = model_of(family, event, **config), 2
    ancestral = drawn(model, n, Eager(), [model.steps])
    channels, height, width = event.shape
    for portions in ([model.steps], [1, 20, 3, model.steps]):
        state = drawn(model, n, Wavefront(), [])
        assert isinstance(state.memory, Advancing) and isinstance(model, Slanted)
        state.memory.x = examples(event, n, seed=9).flatten(1)
        for k in portions:
            model.advance(state, k)
        assert torch.equal(state.x, ancestral.x)
        assert state.memory.passes == channels * (width + min(model.behind, width) * (height - 1))
    assert settled(drawn(model, n, FixedPoint(), [model.steps])).passes <= state.memory.passes


def test_how_many_passes_a_picture_of_digits_takes() -> None:
    event = Event(modality="image", shape=(1, 28, 28), levels=2)
    found = {}
    for family, config in [
        ("pixelcnn", {}),
        ("gated_pixelcnn", {"layers": 8, "kernel": 3}),
        ("gated_pixelcnn", {"layers": 5, "kernel": 5}),
    ]:
        model = build(family, event, **config)
        assert isinstance(model, Autoregressive)
        found[family, model.config.layers] = int(turns(model).max()) + 1
    assert found == {("pixelcnn", 8): 136, ("gated_pixelcnn", 8): 271, ("gated_pixelcnn", 5): 325}


def test_narrow_pictures_conditions_given_values_and_tapes() -> None:
    event = replace(EVENTS["colour"], shape=(3, 4, 4))
    model, n, tape = model_of("gated_pixelcnn", event, condition="grey"), 3, Tape()
    assert model.event.condition is not None
    c, x, known = examples(model.event.condition, n), examples(event, n), torch.rand(n, *event.shape) < 0.3
    for given in ({}, {"x": x, "known": known}):
        ancestral, state = (drawn(model, n, sampler, [5, model.steps], c=c, **given) for sampler in (Eager(), Wavefront(tape)))
        assert torch.equal(state.x, ancestral.x)
        torch.testing.assert_close(state.log_weight, ancestral.log_weight, rtol=1e-9, atol=1e-9)
    assert tape.recorded == 2


def test_families_without_a_slant_are_drawn_eagerly() -> None:
    model = model_of("row_lstm", EVENTS["binary"])
    assert Wavefront().backend(model) == "eager" and not isinstance(drawn(model, 2, Wavefront(), [3]).memory, Advancing)
