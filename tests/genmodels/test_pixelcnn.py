"""What each PixelCNN sees of the past, that a condition changes nothing about that, and that its conditional density is one for every condition."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genmodels import artifact
from genmodels.core import Event
from genmodels.models.pixelcnn import GatedPixelCNN, PixelCNN
from genmodels.nn.raster import Raster
from genmodels.nn.scaling import scaled
from genmodels.noise import Noise
from genmodels.zoo import build
from tests.genmodels.conftest import examples, shaken, states
from tests.genmodels.test_contract import g_test

SIDE = 17
"""On a smaller picture a blind spot hides."""
FAMILIES = ["pixelcnn", "gated_pixelcnn"]
KINDS = ["given", "smaller", "grey", "masked"]


def model_of(family: str, event: Event, **config: Any) -> Raster:
    model = shaken(family, event, **config).double()
    assert isinstance(model, Raster)
    return model


def event_of(kind: str, shape: tuple[int, int, int], *, levels: int = 4, classes: int = 0, real: bool = False) -> Event:
    """An event with its condition, half as high and wide, where one is to be given; without it where the model derives it."""
    small = Event(modality="image", shape=(2, shape[1] // 2 or 1, shape[2] // 2 or 1), levels=0 if real else 5)
    return Event(modality="image", shape=shape, levels=levels, classes=classes, condition=small if kind == "given" else None)


def conditions(model: Raster, n: int) -> Tensor:
    """Any conditions, not those of some examples."""
    assert model.event.condition is not None
    c = examples(Event(modality="image", shape=model.event.condition.shape, levels=model.event.condition.levels or 7), n, seed=9)
    return c if model.event.condition.levels else c / 3 - 1


def labels(model: Raster, n: int) -> Tensor | None:
    return torch.arange(n) % model.event.classes if model.event.classes else None


def dependence(model: Raster, row: int, column: int, channel: int, noise: Noise | None) -> tuple[Tensor, Tensor | None]:
    """(C, H, W) bool: the inputs that move the logits of one sub-pixel, over several random pictures: unlike zero, not unlike noise. And of c."""
    z = scaled(examples(model.event, 3), model.event.levels, torch.float64).requires_grad_()
    c = None
    if model.event.condition:
        c = conditions(model, 3).double().requires_grad_()
    logits = model.logits(z, labels(model, 3), noise, c=c)[:, channel, row, column]
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradient, *given = torch.autograd.grad((logits * weight).sum(), [z] if c is None else [z, c])
    return (gradient != 0).any(0), (given[0] != 0).any(0) if given else None


def past(event: Event, row: int, column: int, channel: int) -> Tensor:
    """(C, H, W) bool: rows above, pixels to the left, channels before."""
    channels, height, width = event.shape
    order = torch.arange(height * width * channels).reshape(height, width, channels).permute(2, 0, 1)
    return order < order[channel, row, column]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("channels", "pixel"), [(1, (12, 5)), (1, (8, 8)), (1, (3, 16)), (1, (16, 0)), (3, (12, 5)), (3, (0, 3))])
def test_the_gated_stacks_see_the_whole_past_and_nothing_else(channels: int, pixel: tuple[int, int], training: bool) -> None:
    event = Event(modality="image", shape=(channels, SIDE, SIDE), levels=4, classes=2)
    model = model_of("gated_pixelcnn", event, hidden=4, layers=8, kernel=5, head=8, dropout=0.2).train(training)
    noise = Noise(1, position=range(3)) if training else None
    for channel in range(channels):
        seen, _ = dependence(model, *pixel, channel, noise)
        wanted = past(event, *pixel, channel)
        assert torch.equal(seen, wanted), f"channel {channel}: {(seen ^ wanted).nonzero().tolist()}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_condition_is_seen_and_the_past_is_what_it_was(kind: str) -> None:
    event = event_of(kind, (3, 16, 16), classes=2)
    model = model_of("gated_pixelcnn", event, hidden=4, layers=8, kernel=5, head=8, dropout=0.2, condition=kind).train()
    for channel, pixel in ((0, (11, 5)), (2, (8, 8)), (1, (0, 0))):
        seen, given = dependence(model, *pixel, channel, Noise(1, position=range(3)))
        wanted = past(event, *pixel, channel)
        assert torch.equal(seen, wanted), f"channel {channel}: {(seen ^ wanted).nonzero().tolist()}"
        assert given is not None and bool(given.all()), "a place of the condition is not seen"


@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize(("channels", "pixel"), [(1, (12, 5)), (1, (8, 8)), (1, (16, 0)), (1, (2, 16)), (3, (12, 5))])
def test_the_plain_stack_has_its_known_blind_spot(channels: int, pixel: tuple[int, int], kernel: int) -> None:
    """In the d-th row above, everything but what lies further right than the first kernel's reach and d - 1 columns: a triangle."""
    event = Event(modality="image", shape=(channels, SIDE, SIDE), levels=4, classes=2)
    model = model_of("pixelcnn", event, hidden=8, layers=16, kernel=kernel, head=8, dropout=0.2).train()
    up, right = pixel[0] - torch.arange(SIDE)[:, None], torch.arange(SIDE) - pixel[1]
    blind = (up > 0) & (right > kernel // 2 + up - 1)
    assert bool(blind.any()) == (pixel[1] < SIDE - kernel // 2 - 1)
    for channel in range(channels):
        seen, _ = dependence(model, *pixel, channel, Noise(1, position=range(3)))
        wanted = past(event, *pixel, channel) & ~blind
        assert torch.equal(seen, wanted), f"channel {channel}: {(seen ^ wanted).nonzero().tolist()}"


@pytest.mark.parametrize("kernel", [3, 5])
def test_only_the_plain_stack_s_first_layer_has_mask_a(kernel: int) -> None:
    """Of its window each convolution reads the past, and from the second on the pixel itself too."""
    model = model_of("pixelcnn", Event(modality="image", shape=(1, 9, 9), levels=4), hidden=4, layers=2, kernel=kernel, head=8)
    assert isinstance(model, PixelCNN)
    for past_conv, reach, itself in ((model.first, kernel // 2, False), *((block.past, 1, True) for block in model._blocks())):
        x = torch.randn(1, past_conv.weight.shape[1], 9, 9, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(past_conv(x)[:, :, 4, 4].sum(), x)
        wanted = past(model.event, 4, 4, 0)[0]
        wanted[4, 4] = itself
        near = (torch.arange(9) - 4).abs() <= reach
        assert torch.equal((gradient != 0).all(1)[0], wanted & near[:, None] & near)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_changed_sub_pixel_changes_no_logits_before_it(family: str) -> None:
    event = Event(modality="image", shape=(3, 5, 4), levels=4)
    model = model_of(family, event, hidden=4, layers=2, kernel=3, head=8)
    z = scaled(examples(event, 2), 4, torch.float64)
    with torch.no_grad():
        before = model.logits(z, None)
        for channel, row, column in [(channel, row, column) for channel in range(3) for row in range(5) for column in range(4)]:
            changed = z.clone()
            changed[:, channel, row, column] += 0.7
            moved = (model.logits(changed, None) != before).any(-1).any(0)
            earlier = past(event, row, column, channel)
            earlier[channel, row, column] = True
            assert not bool((moved & earlier).any()), f"sub-pixel {(channel, row, column)} is seen by its past or by itself"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("shape", "levels", "classes", "kernel", "kind"),
    [
        ((1, 6, 5), 17, 3, 5, "none"),
        ((3, 4, 5), 4, 0, 3, "none"),
        ((1, 3, 9), 2, 2, 7, "none"),
        ((3, 3, 1), 256, 0, 3, "none"),
        ((1, 6, 4), 3, 2, 5, "given"),
        ((3, 4, 4), 5, 0, 3, "smaller"),
        ((3, 3, 5), 4, 2, 3, "grey"),
        ((1, 5, 4), 4, 0, 7, "masked"),
    ],
)
def test_kept_activations_give_the_full_networks_logits(
    family: str, shape: tuple[int, int, int], levels: int, classes: int, kernel: int, kind: str
) -> None:
    event = event_of(kind, shape, levels=levels, classes=classes)
    model = model_of(family, event, hidden=8, layers=3, kernel=kernel, head=8, condition=kind)
    y, c = labels(model, 5), None if kind == "none" else conditions(model, 5)
    state = model.begin(Noise(4, position=range(5)), y=y, c=c, temperature=torch.ones(5))
    with torch.no_grad():
        for place in model.order.tolist():
            full = model.logits(scaled(model.read(state), levels, torch.float64), y, c=c).flatten(1, 3)[:, place]
            torch.testing.assert_close(model.next_logits(state), full, rtol=1e-10, atol=1e-10)
            state = model.advance(state, 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("kind", "shape", "levels", "real"),
    [
        ("given", (1, 2, 4), 2, False),
        ("given", (1, 2, 4), 2, True),
        ("smaller", (1, 2, 4), 2, False),
        ("grey", (3, 1, 2), 3, False),
        ("masked", (1, 3, 3), 2, False),
    ],
)
def test_the_density_and_the_sampler_of_every_condition(
    family: str, kind: str, shape: tuple[int, int, int], levels: int, real: bool
) -> None:
    """p(x|c) sums to one over x for each c, and 20,000 draws come from it, not from another c's."""
    event = event_of(kind, shape, levels=levels, classes=2, real=real)
    model, draws = shaken(family, event, by=1, hidden=8, layers=2, kernel=3, head=8, condition=kind), 20_000
    assert isinstance(model, Raster)
    every, weight = states(event), levels ** torch.arange(event.dims - 1, -1, -1)
    y = torch.ones(len(every), dtype=torch.int64)
    several = conditions(model, 50).unique(dim=0)[:12]
    with torch.no_grad():
        p = torch.stack([model.log_prob(every, y, c.expand(len(every), *c.shape)).double().exp() for c in several])
        c = several[:1].expand(draws, *several.shape[1:])
        drawn = model.draw(Noise(17, position=range(draws)), y=y[:1].expand(draws), c=c, temperature=torch.ones(draws))
    torch.testing.assert_close(p.sum(1), torch.ones(len(p), dtype=torch.float64), rtol=0, atol=1e-5)
    seen = torch.bincount((drawn.flatten(1).long() * weight).sum(1), minlength=len(every))
    assert g_test(seen.numpy(), p[0].numpy()) > 1e-4
    furthest = p[(p - p[0]).abs().sum(1).argmax()]
    assert g_test(seen.numpy(), furthest.numpy()) < 1e-9, "the condition changes nothing"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_derived_condition_is_the_default_and_stays_with_the_model(family: str, kind: str, tmp_path: Path) -> None:
    event = event_of(kind, (3, 4, 6), classes=2)
    model = shaken(family, event, hidden=8, layers=2, kernel=3, head=8, condition=kind)
    x, y = examples(event, 3), torch.tensor([0, 1, 1])
    c = model.derive(x)
    assert isinstance(model, Raster) and model.event.condition is not None
    assert c.dtype == torch.uint8 and tuple(c.shape[1:]) == model.event.condition.shape and int(c.max()) < event.levels
    with torch.no_grad():
        assert torch.equal(model.log_prob(x, y), model.log_prob(x, y, c))
        assert torch.equal(model.classify(x), model.classify(x, c))
        assert not torch.equal(model.log_prob(x, y), model.log_prob(x, y, c.flip(0)))
    artifact.save(model, tmp_path / "model", family=family, prepare={}, labels=())
    loaded = artifact.load(tmp_path / "model")
    assert loaded.event == model.event
    assert torch.equal(loaded.sample(3, seed=1, y=y, c=c), model.sample(3, seed=1, y=y, c=c))
    with pytest.raises(ValueError, match=r"^condition missing; "):
        model.sample(1, seed=0, y=0)


def test_what_is_derived() -> None:
    x = torch.arange(48).reshape(1, 3, 4, 4).to(torch.uint8)
    event = Event(modality="image", shape=(3, 4, 4), levels=64)
    smaller, grey, masked = (build("gated_pixelcnn", event, condition=kind).derive(x) for kind in KINDS[1:])
    assert torch.equal(smaller, x[..., [0, 2], :][..., [0, 2]])
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]
    assert torch.equal(grey, (x.double() * weights).sum(1, keepdim=True).round().to(torch.uint8))
    hole = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]).bool()
    assert torch.equal(masked[:, :3], x * ~hole)
    assert torch.equal(masked[0, 3], torch.where(hole, 0, 63).to(torch.uint8))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "settings",
    [{"kernel": 4}, {"kernel": 1}, {"layers": 0}, {"dropout": 1.0}, {"condition": "blurred"}, {"condition": "smaller", "factor": 1}],
)
def test_settings_that_make_no_sense_are_refused(family: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="; wanted "):
        (PixelCNN if family == "pixelcnn" else GatedPixelCNN).Config(**settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_events_that_do_not_fit_are_refused(family: str) -> None:
    grey, real = (Event(modality="image", shape=(1, 4, 6), levels=levels) for levels in (4, 0))
    wide, audio = event_of("given", (1, 8, 6)), Event(modality="audio", shape=(9,), levels=4, sample_rate=8)
    odd = Event(modality="image", shape=(1, 5, 6), levels=4, condition=grey)
    with pytest.raises(ValueError, match=r"PixelCNN models levels; got image 1x4x6, real values$"):
        build(family, real)
    for event, kind, line in [
        (grey, "grey", r"^condition grey of image 1x4x6, 4 levels; wanted three channels, R, G and B$"),
        (grey, "given", r"^condition None given for image 1x4x6, 4 levels; wanted an image whose height and width divide the picture's$"),
        (odd, "given", r"^condition image 1x4x6, 4 levels given for image 1x5x6, 4 levels; wanted an image whose"),
        (wide, "none", r"^an event with a condition, image 2x4x3, 5 levels; this model takes none unless"),
        (wide, "masked", r"^an event with a condition, image 2x4x3, 5 levels; this model makes its own, image 2x8x6, 4 levels$"),
        (audio, "masked", r"PixelCNN models image; got audio"),
    ]:
        with pytest.raises(ValueError, match=line):
            build(family, event, condition=kind)
    with pytest.raises(ValueError, match=r"^condition smaller by 4 of image 1x4x6, 4 levels; wanted a factor of both height and width$"):
        build(family, grey, condition="smaller", factor=4)
