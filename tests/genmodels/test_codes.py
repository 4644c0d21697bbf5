"""Codes and the way between them: on a great circle, evenly, both ends exact; a row decoded alone is the row decoded in company."""

import math

import pytest
import torch

from genmodels.core import Decodes, Event
from genmodels.models.gan import GAN
from genmodels.noise import Noise
from genmodels.zoo import build
from tests.genmodels.conftest import shaken

EVENT = Event(modality="image", shape=(1, 8, 8), levels=17)


@pytest.fixture(scope="module")
def model() -> Decodes:
    model = shaken("gan", EVENT)
    assert isinstance(model, GAN)
    return model


def test_a_path_between_codes_of_one_length_keeps_it_and_turns_evenly(model: Decodes) -> None:
    a, b = Noise(0, position=range(6)).normal("z", (2, 64)).unbind(1)
    a, b = (64**0.5 * z / z.norm(dim=1, keepdim=True) for z in (a, b))
    path = model.path(a, b, 7)
    assert torch.equal(path[:, 0], a) and torch.equal(path[:, -1], b)
    torch.testing.assert_close(path.norm(dim=2), torch.full((6, 7), 8.0), rtol=1e-5, atol=0)
    turned = torch.acos((path[:, 1:] * path[:, :-1]).sum(2) / 64)
    whole = torch.acos((a * b).sum(1) / 64)
    torch.testing.assert_close(turned, (whole / 6)[:, None].expand(6, 6), rtol=1e-3, atol=1e-4)
    assert bool(((path[:, 3] - (a + b) / 2).norm(dim=1) > 1).all()), "a straight line would come nearer to the origin"


def test_codes_that_point_the_same_way_or_opposite_ways_are_joined_by_a_line(model: Decodes) -> None:
    a = Noise(0, position=range(3)).normal("z", (64,))
    for factor in (1.0, 3.0, -1.0):
        path = model.path(a, factor * a, 5)
        wanted = torch.stack([(1 - share) * a + share * factor * a for share in torch.linspace(0, 1, 5)], dim=1)
        torch.testing.assert_close(path, wanted, rtol=1e-3, atol=1e-3)
        assert bool(path.isfinite().all())


def test_a_quarter_circle_is_a_quarter_circle(model: Decodes) -> None:
    a, b = torch.eye(64)[:1], torch.eye(64)[1:2]
    for step, angle in enumerate(math.pi / 2 * share / 4 for share in range(5)):
        torch.testing.assert_close(model.path(a, b, 5)[0, step, :2], torch.tensor([math.cos(angle), math.sin(angle)]), rtol=1e-6, atol=1e-7)


def test_an_interpolation_decodes_the_path_under_each_rows_label() -> None:
    model = shaken("gan", Event(modality="image", shape=(1, 8, 8), levels=17, classes=3))
    assert isinstance(model, Decodes)
    a, b, y = *Noise(0, position=range(4)).normal("z", (2, 64)).unbind(1), torch.tensor([2, 0, 1, 2])
    found = model.interpolate(a, b, 5, y)
    assert found.shape == (4, 5, 1, 8, 8)
    for row in range(4):
        assert torch.equal(found[row], model.decode_rows(model.path(a, b, 5)[row], y[row].expand(5)))


def test_a_row_decoded_alone_is_the_row_decoded_in_company(model: Decodes) -> None:
    z = Noise(3, position=range(37)).normal("z", (64,))
    whole = model.decode_rows(z)
    for rows in (slice(0, 1), slice(5, 22), slice(36, 37)):
        assert torch.equal(model.decode_rows(z[rows]), whole[rows])
    assert model.decode_rows(z[:0]).shape == (0, 1, 8, 8)


def test_what_is_no_path_is_refused(model: Decodes) -> None:
    z = torch.zeros(2, 64)
    for a, b, steps in ((z, z, 1), (z, z[:1], 3), (z[:, :5], z[:, :5], 3)):
        with pytest.raises(ValueError, match=r"^\d steps from codes of shape .* wanted at least 2, and \(n, 64\)$"):
            model.path(a, b, steps)
    bits = build("helmholtz", Event(modality="image", shape=(1, 4, 4), levels=2), hidden=(6,))
    assert isinstance(bits, Decodes)
    with pytest.raises(ValueError, match=r"^codes of 2 levels have nothing between them; a path needs real-valued codes$"):
        bits.path(torch.zeros(1, 6), torch.ones(1, 6), 3)
