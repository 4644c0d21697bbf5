"""The PixelRNNs: the Row LSTM's cone, the Diagonal BiLSTM's two sweeps and its shift, and their kept activations."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.core import Event
from genmodels.models.pixelrnn import DiagonalBiLSTM, PixelRNN, RowLSTM
from genmodels.nn.lstm import DiagonalLayer, RowLayer, Sweep
from genmodels.nn.recurrence import cell, picture, recur, swept
from genmodels.nn.scaling import scaled
from genmodels.noise import Noise
from tests.genmodels.conftest import examples, shaken

SIDE = 17
FAMILIES = ["row_lstm", "diagonal_bilstm"]


def model_of(family: str, event: Event, **config: Any) -> PixelRNN:
    model = shaken(family, event, **config).double()
    assert isinstance(model, PixelRNN)
    return model


def layer_of(kind: type[Sweep]) -> Sweep:
    """A float64 layer of 4 features."""
    torch.manual_seed(0)
    return (RowLayer(4, 3, 3, 2) if kind is RowLayer else DiagonalLayer(4, 3, 2)).double()


def dependence(model: PixelRNN, row: int, column: int) -> Tensor:
    """(H, W) bool: the pixels that move the logits of one, over several random pictures; unlike zero, not unlike noise."""
    z = scaled(examples(model.event, 3), model.event.levels, torch.float64).requires_grad_()
    logits = model.logits(z, None)[:, 0, row, column]
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((logits * weight).sum(), z)
    return (gradient != 0).any(0)[0]


def cone(config: RowLSTM.Config, row: int, column: int) -> Tensor:
    """(SIDE, SIDE) bool: what a Row LSTM sees."""
    seen, step, reach = torch.zeros(SIDE, SIDE, dtype=torch.bool), config.width // 2, config.kernel // 2
    for up in range(row + 1):
        left = column - step * (config.layers + up) - reach
        right = column + max(step * up - 1, step * (up - 1) + reach if up else -1)
        seen[row - up, max(0, left) : right + 1] = True
    return seen


def past(row: int, column: int) -> Tensor:
    """(SIDE, SIDE) bool: rows above and pixels to the left."""
    order = torch.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    return order < order[row, column]


@pytest.mark.parametrize("settings", [{"layers": 1, "kernel": 3}, {"layers": 2, "kernel": 7}, {"layers": 1, "kernel": 3, "width": 5}])
@pytest.mark.parametrize("pixel", [(12, 5), (12, 12), (8, 8), (3, 16), (16, 0)])
def test_row_lstm_sees_a_cone(pixel: tuple[int, int], settings: dict[str, int]) -> None:
    model = model_of("row_lstm", Event(modality="image", shape=(1, SIDE, SIDE), levels=4), hidden=3, head=4, **settings)
    assert torch.equal(dependence(model, *pixel), cone(model.config, *pixel))  # type: ignore[arg-type]


def test_the_cone_misses_much_of_the_past() -> None:
    """7 layers deep or not, the right part of the rows above opens by one column a row."""
    missed = past(12, 5) & ~cone(RowLSTM.Config(layers=7), 12, 5)
    assert int(missed.sum()) == sum(SIDE - 1 - (5 + up + 2) for up in range(1, 9))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("pixel", [(12, 5), (8, 8), (3, 16), (16, 0), (1, 2), (0, 5)])
def test_diagonal_bilstm_sees_its_whole_past_and_nothing_else(pixel: tuple[int, int], layers: int) -> None:
    event = Event(modality="image", shape=(1, SIDE, SIDE), levels=4)
    model = model_of("diagonal_bilstm", event, hidden=3, layers=layers, head=4, kernel=3)
    seen = dependence(model, *pixel)
    assert torch.equal(seen, past(*pixel)), (seen ^ past(*pixel)).nonzero().tolist()


def test_without_the_column_beyond_the_edge_a_row_s_last_pixel_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why we differ from the paper: its two layers would be blind to that pixel from the row below, but for the first convolution's reach."""
    monkeypatch.setattr(DiagonalBiLSTM, "beyond", 0)
    model = model_of("diagonal_bilstm", Event(modality="image", shape=(1, SIDE, SIDE), levels=4), hidden=3, head=4, kernel=7)
    assert (past(12, 5) & ~dependence(model, 12, 5)).nonzero().tolist() == [[11, SIDE - 1]]
    assert torch.equal(dependence(model, 12, SIDE - 4), past(12, SIDE - 4))


@pytest.mark.parametrize("silent", [0, 1])
def test_each_sweep_brings_its_own_side(silent: int) -> None:
    """The left one all that is above and left of the pixel, it included; the right one all that is above and right, from the row above on."""
    layer, height, width, row, column = layer_of(DiagonalLayer), 6, 7, 3, 2
    assert isinstance(layer, DiagonalLayer) and layer.enter.bias is not None
    with torch.no_grad():
        layer.enter.weight.view(2, 4, 3, -1)[silent, 2:] = 0  # a shut cell: its content is 0
        layer.enter.bias.view(2, 4, 3)[silent, 2:] = 0
        layer.recur[silent] = 0
    x = torch.randn(2, 4, height, width, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad((layer(x, None) - x)[:, :, row, column].square().sum(), x)
    wanted = torch.zeros(height, width, dtype=torch.bool)
    wanted[(slice(0, row), slice(column, width)) if silent == 0 else (slice(0, row + 1), slice(0, column + 1))] = True
    assert torch.equal((gradient != 0).any(0).any(0), wanted)


@pytest.mark.parametrize("shape", [(5, 4), (1, 6), (6, 1), (1, 1), (3, 8)])
def test_a_picture_is_swept_in_rows_and_in_diagonals(shape: tuple[int, int]) -> None:
    height, width = shape
    x = torch.randn(2, 3, height, width, 2)
    rows, diagonals = swept(x, diagonal=False), swept(x, diagonal=True)
    assert rows.shape == (height, 2, 3, width, 2) and diagonals.shape == (height + width - 1, 2, 3, height, 2)
    assert torch.equal(picture(rows, diagonal=False), x) and torch.equal(picture(diagonals, diagonal=True), x)
    for d in range(height + width - 1):
        for row in range(height):
            inside = 0 <= d - row < width
            assert torch.equal(diagonals[d, ..., row, :], x[..., row, d - row, :] if inside else torch.zeros(2, 3, 2))


@pytest.mark.parametrize("shape", [(3, 4), (1, 3), (3, 1)])
@pytest.mark.parametrize(("offsets", "diagonal"), [((-1, 0, 1), False), ((-2, -1, 0, 1, 2), False), ((0, -1), True)])
def test_the_gradient_written_out_is_the_gradient(offsets: tuple[int, ...], diagonal: bool, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    gates = torch.randn(2, 8, *shape, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(2, 8, 2 * len(offsets), dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda gates, weight: recur(gates, weight, offsets, diagonal=diagonal), (gates, weight))


@pytest.mark.parametrize("width", [3, 5])
@pytest.mark.parametrize("shape", [(5, 4), (1, 6), (6, 1)])
def test_row_sweep_is_the_paper_s_recurrence(shape: tuple[int, int], width: int) -> None:
    """Row by row with torch's own convolutions: h, c of a row from its masked input, from h around in the row above, and from c above."""
    torch.manual_seed(0)
    layer, x, reach = RowLayer(4, 3, width, 0).double(), torch.randn(2, 4, *shape, dtype=torch.float64), width // 2
    gates = layer.enter(F.pad(x, (reach, 0)))
    kernel = layer.recur.weight.unflatten(1, (width, 3)).transpose(1, 2)
    h = c = torch.zeros(2, shape[1], 3, dtype=torch.float64)
    out = layer(x, None)
    for i in range(shape[0]):
        around = F.conv1d(h.transpose(1, 2), kernel, padding=reach)
        h, c = cell((gates[:, :, i] + around).transpose(1, 2), c)
        torch.testing.assert_close(out[:, :, i], x[:, :, i] + layer.leave(h.transpose(1, 2)[:, :, None])[:, :, 0])


@pytest.mark.parametrize("shape", [(5, 4), (1, 6), (6, 1)])
def test_diagonal_sweeps_are_the_paper_s_recurrence(shape: tuple[int, int]) -> None:
    """Pixel by pixel, with plain loops: h, c of (i, j) from h of (i, j - 1) and (i - 1, j) and c of (i, j - 1); mirrored; shifted; added."""
    layer, x = layer_of(DiagonalLayer), torch.randn(2, 4, *shape, dtype=torch.float64)
    assert isinstance(layer, DiagonalLayer)
    height, width = shape
    gates = layer.enter(x)
    nothing = torch.zeros(2, 3, dtype=torch.float64)
    states = []
    for side, columns in ((0, list(range(width))), (1, list(range(width))[::-1])):
        h: dict[tuple[int, int], Tensor] = {}
        for i in range(height):
            beside = c = nothing
            for j in columns:
                seen = torch.cat([beside, h.get((i - 1, j), nothing)], dim=1)
                beside, c = cell(gates[:, 12 * side : 12 * side + 12, i, j] + seen @ layer.recur[side].T, c)
                h[i, j] = beside
        states.append(h)
    out = layer(x, None)
    for i in range(height):
        for j in range(width):
            both = states[0][i, j] + states[1].get((i - 1, j), nothing)
            torch.testing.assert_close(out[..., i, j], x[..., i, j] + layer.leave(both[..., None, None])[..., 0, 0])


@pytest.mark.parametrize("kind", [RowLayer, DiagonalLayer])
@pytest.mark.parametrize("shape", [(5, 6), (1, 5), (5, 1)])
def test_no_layer_sees_the_future_and_rows_of_a_batch_are_apart(kind: type[Sweep], shape: tuple[int, int]) -> None:
    layer, pixels = layer_of(kind), torch.arange(shape[0] * shape[1])
    x = torch.randn(3, 4, *shape, dtype=torch.float64, requires_grad=True)
    out = layer(x, torch.tensor([0, 1, -1])).flatten(2)
    for pixel in pixels.tolist():
        (gradient,) = torch.autograd.grad(out[1, :, pixel].sum(), x, retain_graph=True)
        gradient = gradient.flatten(2)
        assert gradient[1, :, pixel].all()
        assert not gradient[1][:, pixels > pixel].any() and not gradient[[0, 2]].any()


@pytest.mark.parametrize("kind", [RowLayer, DiagonalLayer])
def test_forget_gates_start_open(kind: type[Sweep]) -> None:
    layer = layer_of(kind)
    assert isinstance(layer, RowLayer | DiagonalLayer) and layer.enter.bias is not None
    assert bool((layer.enter.bias.view(-1, 4, 3)[:, 1] == 1).all())
    h, c = cell(torch.cat([torch.full((1, 3), v) for v in (-50.0, 50.0, 0.0, 1.0)], dim=1), torch.ones(1, 3))
    torch.testing.assert_close((c, h), (torch.ones(1, 3), torch.tanh(torch.ones(1, 3)) / 2))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("shape", "levels", "classes", "kernel"),
    [((1, 6, 5), 17, 3, 7), ((3, 4, 5), 4, 2, 3), ((1, 1, 9), 2, 2, 7), ((3, 5, 1), 256, 0, 3), ((1, 1, 1), 2, 0, 5)],
)
def test_kept_activations_give_the_full_networks_logits(
    family: str, shape: tuple[int, int, int], levels: int, classes: int, kernel: int
) -> None:
    event = Event(modality="image", shape=shape, levels=levels, classes=classes)
    model = model_of(family, event, hidden=4, layers=3, kernel=kernel, head=8)
    y = torch.arange(5) % classes if classes else None
    state = model.begin(Noise(4, position=range(5)), y=y, c=None, temperature=torch.ones(5))
    with torch.no_grad():
        for place in model.order.tolist():
            full = model.logits(scaled(model.read(state), levels, torch.float64), y).flatten(1, 3)[:, place]
            torch.testing.assert_close(model.next_logits(state), full, rtol=1e-10, atol=1e-10)
            state = model.advance(state, 1)


def test_the_paper_s_size_can_be_built() -> None:
    event = Event(modality="image", shape=(1, 28, 28), levels=2)
    for kind in (RowLSTM, DiagonalBiLSTM):
        assert len(kind(event, kind.Config(hidden=16, layers=7, head=32)).layers) == 7


@pytest.mark.parametrize("settings", [{"kernel": 4}, {"kernel": 1}, {"layers": 0}, {"dropout": 1.0}, {"width": 2}, {"width": 1}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="; wanted "):
        RowLSTM.Config(**settings)


@pytest.mark.parametrize("kind", [RowLSTM, DiagonalBiLSTM])
def test_real_values_are_refused(kind: type[PixelRNN]) -> None:
    with pytest.raises(ValueError, match=f"^{kind.__name__} models levels; got image 1x4x4, real values$"):
        kind(Event(modality="image", shape=(1, 4, 4), levels=0), kind.Config())
