"""The multi-scale model: its parts make up the picture, a doubling sees all that is known, and whole and parts are one density."""

from typing import Any

import pytest
import torch

from genmodels.core import Event
from genmodels.models.multiscale import Multiscale, between, join
from genmodels.models.pixelcnn import GatedPixelCNN
from genmodels.noise import Noise
from genmodels.zoo import build
from tests.genmodels.conftest import examples, labels, shaken, states
from tests.genmodels.test_autoregressive import influence
from tests.genmodels.test_contract import g_test

SMALL = {"hidden": 8, "layers": 2, "kernel": 3, "head": 8}


def model_of(event: Event, **config: Any) -> Multiscale:
    model = shaken("multiscale", event, **config)
    assert isinstance(model, Multiscale)
    return model


def parts(model: Multiscale) -> list[GatedPixelCNN]:
    return [part for part in model.parts if isinstance(part, GatedPixelCNN)]


def test_a_picture_is_every_second_pixel_and_those_between() -> None:
    x = examples(Event(modality="image", shape=(3, 6, 4), levels=9), 2)
    assert torch.equal(join(x[..., ::2, ::2], between(x)), x)
    assert torch.equal(between(x)[0, :, 1, 1], torch.cat([x[0, :, 2, 3], x[0, :, 3, 2], x[0, :, 3, 3]]))


def test_the_small_picture_is_drawn_first_then_each_doubling() -> None:
    model = model_of(Event(modality="image", shape=(1, 4, 4), levels=2), **SMALL)
    assert model.doublings == 2
    assert model.order.tolist() == [0, 2, 8, 10, 1, 4, 5, 3, 6, 7, 9, 12, 13, 11, 14, 15]
    colour = model_of(Event(modality="image", shape=(3, 2, 2), levels=2), **SMALL).order
    assert colour.tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]


@pytest.mark.parametrize(
    ("shape", "scales", "doublings"),
    [((1, 28, 28), 2, 2), ((1, 28, 28), 3, 2), ((3, 32, 32), 3, 3), ((1, 6, 4), 2, 1), ((1, 5, 4), 2, 0), ((1, 8, 8), 0, 0)],
)
def test_there_are_as_many_doublings_as_both_sides_allow(shape: tuple[int, int, int], scales: int, doublings: int) -> None:
    model = build("multiscale", Event(modality="image", shape=shape, levels=2), scales=scales, **SMALL)
    assert isinstance(model, Multiscale)
    channels, height, width = shape
    assert [part.event.shape for part in parts(model)] == [
        (channels, height >> doublings, width >> doublings),
        *((3 * channels, height >> s, width >> s) for s in range(doublings, 0, -1)),
    ]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 4, 8)])
def test_every_value_sees_all_before_it_and_nothing_else(shape: tuple[int, int, int], training: bool) -> None:
    """Within a part, across the parts, and from a doubling back to the small picture."""
    model = model_of(Event(modality="image", shape=shape, levels=3, classes=2), hidden=4, layers=4, head=8, dropout=0.2)
    moved = influence(model.double().train(training), noise=Noise(1, position=[0]) if training else None)
    later = torch.ones_like(moved).tril(-1).bool()
    assert float(moved[later].max()) < 1e-9
    blind = later.T & (moved < 1e-14)
    assert not bool(blind.any()), f"{int(blind.sum())} unseen: {blind.nonzero().tolist()[:5]}"


def test_the_whole_is_the_product_of_its_parts() -> None:
    event = Event(modality="image", shape=(3, 4, 8), levels=5, classes=2)
    model, x, y = model_of(event, **SMALL), examples(event, 4), torch.tensor([0, 1, 1, 0])
    small, middle = x[..., ::4, ::4], x[..., ::2, ::2]
    with torch.no_grad():
        total = parts(model)[0].log_prob(small, y) + parts(model)[1].log_prob(between(middle), y, small)
        total = total + parts(model)[2].log_prob(between(x), y, middle)
        torch.testing.assert_close(model.log_prob(x, y), total)


@pytest.mark.parametrize(("shape", "levels", "scales"), [((1, 2, 4), 2, 1), ((1, 4, 2), 2, 2), ((2, 2, 2), 2, 1)])
def test_the_density_sums_to_one_and_is_what_is_drawn(shape: tuple[int, int, int], levels: int, scales: int) -> None:
    event, draws = Event(modality="image", shape=shape, levels=levels, classes=2), 40_000
    model, every = model_of(event, scales=scales, by=1.0, **SMALL), states(event)
    weight, y = levels ** torch.arange(event.dims - 1, -1, -1), torch.ones(len(every), dtype=torch.int64)
    with torch.no_grad():
        p = model.log_prob(every, y).double().exp()
        x = model.draw(Noise(3, position=range(draws)), y=y[:1].expand(draws), c=None, temperature=torch.ones(draws))
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    assert g_test(torch.bincount((x.flatten(1).long() * weight).sum(1), minlength=len(every)).numpy(), p.numpy()) > 1e-4


def test_a_small_picture_is_enlarged_exactly() -> None:
    """Completion of every second pixel of every second row: those come first, so the rest is drawn from the exact conditional."""
    event = Event(modality="image", shape=(1, 8, 8), levels=4, classes=3)
    model, x = model_of(event, **SMALL), examples(event, 3)
    known = torch.zeros(1, 8, 8, dtype=torch.bool)
    known[:, ::2, ::2] = True
    done = model.complete(x, known, seed=1, y=labels(event, 3))
    assert done.exact and torch.equal(done.x[..., ::2, ::2], x[..., ::2, ::2])
    assert not torch.equal(done.x, x)


@pytest.mark.parametrize("settings", [{"scales": -1}, {"kernel": 2}, {"layers": 0}, {"dropout": 1.0}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="; wanted "):
        Multiscale.Config(**settings)  # type: ignore[arg-type]


def test_events_that_it_does_not_take_are_refused() -> None:
    real = Event(modality="image", shape=(1, 4, 4), levels=0)
    with pytest.raises(ValueError, match=r"^Multiscale models levels, without a condition; got image 1x4x4, real values$"):
        build("multiscale", real)
    with pytest.raises(ValueError, match=r"^Multiscale models levels, without a condition; got image 1x4x4, 2 levels with one$"):
        build("multiscale", Event(modality="image", shape=(1, 4, 4), levels=2, condition=real))
