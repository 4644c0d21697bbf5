"""PixelCNN++: what its streams know at every resolution, its walk against the full network, and dropout that replays."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from genmodels.core import Event
from genmodels.models.pixelcnnpp import PixelCNNPlusPlus
from genmodels.nn.gates import drop
from genmodels.nn.streams import COLUMNS, ROWS, Halve, Stream, halved
from genmodels.noise import Noise
from tests.genmodels.conftest import examples, shaken


def picture(channels: int, height: int, width: int, *, levels: int = 17, classes: int = 0) -> Event:
    return Event(modality="image", shape=(channels, height, width), levels=levels, classes=classes)


def double(event: Event, **config: Any) -> PixelCNNPlusPlus:
    model = shaken("pixelcnnpp", event, **config).double()
    assert isinstance(model, PixelCNNPlusPlus)
    return model


def test_sizes_are_halved_rounding_up_until_a_picture_is_tiny() -> None:
    assert halved((28, 28), 2) == [(28, 28), (14, 14), (7, 7)]
    assert halved((5, 7), 9) == [(5, 7), (3, 4), (2, 2)]
    assert halved((1, 9), 2) == [(1, 9), (1, 5), (1, 3)]
    assert halved((3, 3), 2) == [(3, 3)]


@pytest.mark.parametrize(
    ("event", "config"),
    [
        (picture(1, 5, 7, classes=3), {"blocks": 2}),
        (picture(3, 7, 6, levels=256), {}),
        (picture(3, 9, 11, levels=4, classes=2), {"scales": 3, "reach": 2, "components": 1}),
        (picture(2, 6, 5), {"scales": 0}),
        (picture(1, 1, 9), {}),
        (picture(1, 9, 1, levels=2), {}),
    ],
)
def test_the_walk_gives_the_full_networks_distributions(event: Event, config: dict[str, int]) -> None:
    """Every level of every value, in four different rows, one of them unlabelled."""
    model, x = double(event, hidden=5, **config), examples(event, 4)
    y = torch.arange(4) % event.classes if event.classes else None
    if y is not None:
        y[2] = -1
    with torch.no_grad():
        mixture, memory = model.mixture(x, y), model.start(model.order, 4, y=y, c=None)
        whole = torch.stack([mixture.logits(x, c) for c in range(event.shape[0])], dim=2).flatten(2)  # (B, K, D)
        for place in model.order.tolist():
            torch.testing.assert_close(model.predict(memory), whole[:, :, place], rtol=0, atol=1e-9)
            model.take(memory, x.flatten(1)[:, place].long())


def changed(before: list[Tensor], after: list[Tensor]) -> list[Tensor]:
    """Where each node's output moved: (H', W') bool."""
    return [(one - other).abs().amax((0, 1)) > 0 for one, other in zip(before, after, strict=True)]


@pytest.mark.parametrize("axis", [ROWS, COLUMNS])
def test_a_coarse_slice_knows_what_its_finest_one_knew(axis: int) -> None:
    """Each input of a 5 x 7 picture moved: a node's row r' at level l hears of rows <= 2^l r'; a pixel of row 2^l r' alone, of columns <= 2^l c'."""
    torch.manual_seed(0)
    stream = Stream(axis, 3, halved((5, 7), 2), blocks=1, classes=0, dropout=0.0).double()
    assert sum(isinstance(node, Halve) for node in stream.nodes) == 2
    x, levels = torch.randn(1, 3, 5, 7, dtype=torch.float64), [node.level for node in stream._nodes()]
    heard = torch.zeros(len(levels), dtype=torch.int64)
    with torch.no_grad():
        before = stream(x, None)
        for row, column in [(row, column) for row in range(5) for column in range(7)]:
            other = x.clone()
            other[:, :, row, column] += 1
            for i, moved in enumerate(changed(before, stream(other, None))):
                rows, columns = (torch.arange(size) << levels[i] for size in moved.shape)
                later = row <= rows[:, None] if axis == ROWS else (row <= rows[:, None]) & (column <= columns[None])
                assert not bool((moved & ~later).any()), f"node {i} hears of ({row}, {column}) too early"
                heard[i] += int(moved.sum())
    assert bool((heard > 0).all())


def test_a_pixels_mixture_knows_nothing_of_the_pixel_and_all_that_came_before() -> None:
    event = picture(2, 5, 7, levels=4)
    model, x = double(event, hidden=6), examples(event, 1)
    with torch.no_grad():
        before = model.mixture(x, None)
        for place in range(35):
            other = x.clone()
            other.flatten(2)[:, place % 2, place] = (other.flatten(2)[:, place % 2, place] + 1) % 4
            after = model.mixture(other, None)
            for one, two in ((before.weights, after.weights), (before.means.flatten(1, 2), after.means.flatten(1, 2))):
                moved = (one - two).abs().amax((0, 1)).flatten() > 0
                assert moved.tolist() == [pixel > place for pixel in range(35)]


def test_what_dropout_keeps_makes_up_for_what_it_drops() -> None:
    x, noise = torch.full((500, 20, 2, 2), 3.0), Noise(0, position=range(500))
    dropped = drop(x, 0.25, noise, "here")
    assert dropped.flatten(2).std(2).max() == 0, "a feature map goes as a whole"
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 4.0]))
    assert abs(float(dropped.mean()) - 3) < 4 * 4 * math.sqrt(0.25 * 0.75 / 10_000)
    assert torch.equal(drop(x, 0.25, None, "here"), x)


def test_dropout_replays_by_its_noise() -> None:
    event = picture(1, 6, 5)
    model, x = double(event), examples(event, 4)
    noise, later = Noise(0, position=range(4), step=1), Noise(0, position=range(4), step=2)
    with torch.no_grad():
        once, again, other = (model.conditional_log_probs(x, y=None, c=None, noise=each) for each in (noise, noise, later))
        alone = model.conditional_log_probs(x[2:3], y=None, c=None, noise=noise.rows(2, 3))
        plain = model.conditional_log_probs(x, y=None, c=None)
        assert torch.equal(once, again)
        torch.testing.assert_close(once[2:3], alone, rtol=0, atol=1e-12)
        for each in (other, plain):
            assert bool(((once - each).flatten(1).abs().amax(1) > 1e-3).all())
        undropped = double(event, dropout=0)
        torch.testing.assert_close(undropped.conditional_log_probs(x, y=None, c=None, noise=noise), plain)


def test_what_cannot_be_is_refused() -> None:
    wrong: list[dict[str, Any]] = [{"blocks": 0}, {"scales": -1}, {"reach": 0}, {"dropout": 1.0}]
    for settings in wrong:
        with pytest.raises(ValueError, match=r"wanted sizes of at least 1, scales of at least 0 and a dropout below 1$"):
            PixelCNNPlusPlus.Config(**settings)
    with pytest.raises(ValueError, match=r"^PixelCNNPlusPlus models levels; got "):
        PixelCNNPlusPlus(picture(1, 6, 5, levels=0), PixelCNNPlusPlus.Config())
