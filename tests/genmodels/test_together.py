"""Drawings that are advanced in one call: each is drawn as if it were alone, whoever joins and leaves."""

import pytest
import torch

from genmodels import build
from genmodels.core import Autoregressive, Drawing, Event
from genmodels.noise import Noise
from genmodels.sampling.native import Compiled, Native, NotFinite
from genmodels.sampling.together import advance_together, parted
from genmodels.zoo import MODELS
from tests.genmodels.conftest import EVENTS, TINY

SOUND = EVENTS["mu-law"]
COMPILED = [family for family, kind in MODELS.items() if issubclass(kind, Compiled)]


def made(family: str, event: Event = SOUND) -> Autoregressive:
    """A model with a compiled sampler and weights far from their first values."""
    model = build(family, event, seed=1, **TINY.get(family, {}))
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) * 0.1)
    assert isinstance(model, Autoregressive)
    if model.sampler.padded(model):
        pytest.skip("no compiled sampler in this installation")
    return model


def begun(model: Autoregressive, number: int) -> Drawing:
    """One to four rows, each drawing with a seed, a label, a temperature and now and then a beginning of its own."""
    n, event = 1 + number % 4, model.event
    y = torch.full((n,), number % event.classes) if event.classes else None
    given = {}
    if number % 3 == 2:
        x = torch.arange(event.dims).remainder(event.levels).to(torch.uint8).reshape(1, *event.shape).expand(n, *event.shape)
        known = (torch.arange(event.dims) < number).reshape(1, *event.shape).expand(n, *event.shape)
        given = {"x": x, "known": known}
    noise = Noise([number] * n, position=range(number, number + n))
    return model.begin(noise, y=y, c=None, temperature=torch.full((n,), 0.5 + number / 8), **given)


def together(model: Autoregressive, count: int) -> list[Drawing]:
    """A new drawing joins every turn, turns are of different lengths, and one in five is given up half drawn; -> those that were not."""
    states, running, number, turn = [], [], 0, 0
    while number < count or running:
        if number < count:
            running.append(begun(model, number))
            states += [running[-1]] * (number % 5 != 3)
            number += 1
        running = [state for state in running if any(state is kept for kept in states) or state.step < model.steps // 2]
        advance_together(running[:: (-1) ** turn], 1 + turn * 5 % 7)
        running = [state for state in running if state.step < model.steps or turn % 2]  # done ones may stay a turn
        turn += 1
    return states


@pytest.mark.parametrize("family", COMPILED)
def test_whoever_joins_and_leaves_each_is_drawn_as_alone(family: str) -> None:
    event = next(event for event in EVENTS.values() if event.modality in MODELS[family].modalities and event.classes)
    model = made(family, event)
    found = together(model, 12)
    numbers = [number for number in range(12) if number % 5 != 3]
    assert len(found) == len(numbers)
    for number, state in zip(numbers, found, strict=True):
        alone = model.advance(begun(model, number), model.steps)
        assert torch.equal(model.read(state), model.read(alone)) and torch.equal(state.log_weight, alone.log_weight)
        assert state.step == model.steps


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_show(threads: int) -> None:
    model = made("wavenet")
    alone = [model.read(model.advance(begun(model, number), model.steps)) for number in range(7)]
    model.sampler = Native(threads=threads)
    states = [begun(model, number) for number in range(7)]
    advance_together(states[:5], 11)
    advance_together(states, model.steps)
    assert all(torch.equal(model.read(state), one) for state, one in zip(states, alone, strict=True))


def test_a_drawing_goes_on_alone_and_comes_back() -> None:
    model = made("wavenet")
    wanted = [model.read(model.advance(begun(model, number), model.steps)) for number in range(2)]
    one, other = begun(model, 0), begun(model, 1)
    advance_together([one, other], 5)
    model.advance(one, 9)
    model.next_logits(one)
    advance_together([other, one], model.steps)
    assert torch.equal(model.read(one), wanted[0]) and torch.equal(model.read(other), wanted[1])
    advance_together([], 3)
    advance_together([one], 3)
    assert one.step == model.steps


@pytest.mark.parametrize("family", COMPILED)
def test_rows_that_began_together_go_their_own_ways(family: str) -> None:
    event = next(event for event in EVENTS.values() if event.modality in MODELS[family].modalities and event.classes)
    model, sizes = made(family, event), [1, 3, 2]

    def several() -> Drawing:
        noise, y = Noise([3, 3, 4, 5, 6, 6], position=range(6)), torch.arange(6) % event.classes
        return model.begin(noise, y=y, c=None, temperature=torch.linspace(0.5, 1.5, 6))

    wanted = model.read(model.advance(several(), model.steps)).split(sizes)
    states = parted(several(), sizes)
    advance_together(states[1:], 3)
    advance_together(states[::-1], 5)
    model.advance(states[0], 2)
    advance_together(states, model.steps)
    assert all(torch.equal(model.read(state), rows) for state, rows in zip(states, wanted, strict=True))


def test_the_drawing_whose_logits_are_not_finite_is_named() -> None:
    model = made("fvbn", EVENTS["grey"])
    states = [begun(model, number) for number in range(6)]
    states[4].memory.kept.fill_(torch.nan)
    with pytest.raises(NotFinite, match=r"the logits of row \d+ at step \d+ are not all finite numbers") as raised:
        advance_together(states, model.steps)
    assert raised.value.state is states[4]


def test_drawings_of_two_models_are_refused() -> None:
    with pytest.raises(ValueError, match="drawings of several plans"):
        advance_together([begun(made("wavenet"), 0), begun(made("wavenet"), 1)], 1)
