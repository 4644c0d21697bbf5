"""Fixed-point iteration ends at the ancestral sampler's samples, in at most a pass a value, and says in how many."""

from typing import Any

import pytest
import torch

from genmodels.core import Autoregressive, Drawing, Eager, Event, Sampler, copied
from genmodels.core.forced import TeacherForced
from genmodels.models.pixelcnn import PixelCNN
from genmodels.noise import Noise
from genmodels.sampling.fixed_point import FixedPoint, Settling
from genmodels.zoo import MODELS
from tests.genmodels.conftest import EVENTS, TINY, cases, examples, labels, shaken
from tests.genmodels.test_graphs import Tape

FORCED = [name for name, kind in MODELS.items() if issubclass(kind, TeacherForced)]
SMALL = {"colour": EVENTS["colour"], "binary": EVENTS["binary"], "clicks": EVENTS["clicks"]}
COLOUR = Event(modality="image", shape=(3, 4, 4), levels=4, classes=2)


def model_of(family: str, event: Event, **config: Any) -> Autoregressive:
    """In float64, where no logits computed in two ways lie so near that a draw tells them apart."""
    model = shaken(family, event, **TINY.get(family, {}) | config).double()
    assert isinstance(model, Autoregressive)
    return model


def drawn(model: Autoregressive, n: int, sampler: Sampler, portions: list[int], **given: Any) -> Drawing:
    model.sampler = sampler
    y, temperature = labels(model.event, n), torch.linspace(0.6, 1.5, n)
    with torch.no_grad():
        state = model.begin(Noise(1, position=range(n)), y=y, c=given.pop("c", None), temperature=temperature, **given)
    for k in portions:
        model.advance(state, k)
    return state


def settled(state: Drawing) -> Settling:
    assert isinstance(state.memory, Settling)
    return state.memory


def test_which_families_settle() -> None:
    assert set(FORCED) == {"pixelcnn", "gated_pixelcnn", "pixelcnnpp", "row_lstm", "diagonal_bilstm", "wavenet"}
    fvbn = model_of("fvbn", EVENTS["table"])
    assert FixedPoint().backend(fvbn) == "eager" and not isinstance(drawn(fvbn, 2, FixedPoint(), [3]).memory, Settling)


@pytest.mark.parametrize(("family", "event"), [case for case in cases(EVENTS, Autoregressive) if case[0] in FORCED])
def test_all_logits_are_those_of_the_conditionals(family: str, event: str) -> None:
    model, x, y = model_of(family, EVENTS[event]), examples(EVENTS[event], 3), labels(EVENTS[event], 3)
    assert isinstance(model, TeacherForced)
    with torch.no_grad():
        logits = model.all_logits(x, y=y, c=None)
        nats = model.conditional_log_probs(x, y=y, c=None)
    assert logits.shape == (*x.shape, model.event.levels)
    torch.testing.assert_close(torch.log_softmax(logits, dim=-1).gather(-1, x.long()[..., None])[..., 0], nats, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("family", "event"), [case for case in cases(SMALL, Autoregressive) if case[0] in FORCED])
def test_samples_are_the_ancestral_samplers(family: str, event: str) -> None:
    model, n = model_of(family, SMALL[event]), 3
    ancestral = drawn(model, n, Eager(), [model.steps])
    whole, portions = drawn(model, n, FixedPoint(), [model.steps]), drawn(model, n, FixedPoint(), [1, 6, 2, model.steps])
    assert torch.equal(whole.x, ancestral.x) and torch.equal(portions.x, ancestral.x) and portions.step == model.steps
    assert 2 <= settled(whole).passes <= model.steps and settled(portions).passes == settled(whole).passes


@pytest.mark.parametrize(
    ("family", "event", "config"),
    [("gated_pixelcnn", COLOUR, {"condition": "grey"}), ("wavenet", EVENTS["clicks"], {"condition": "log-mel", "hop": 5, "mels": 3})],
)
def test_conditions_and_recorded_passes(family: str, event: Event, config: dict[str, Any]) -> None:
    model, n, tape = model_of(family, event, **config), 4, Tape()
    wanted = model.event.condition
    assert wanted is not None
    conditions = [examples(wanted, n, seed=i) if wanted.levels else Noise(i, position=range(n)).normal("c", wanted.shape) for i in (1, 2)]
    for c in conditions:
        ancestral = drawn(model, n, Eager(), [model.steps], c=c)
        assert torch.equal(drawn(model, n, FixedPoint(tape), [5, model.steps], c=c).x, ancestral.x)
    assert tape.recorded == 1


def test_independent_values_take_one_pass_and_one_to_be_sure() -> None:
    model = model_of("pixelcnn", EVENTS["grey"])
    assert isinstance(model, PixelCNN)
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.mul_(parameter.ndim == 1)  # its biases are left
    state = drawn(model, 5, FixedPoint(), [model.steps])
    assert settled(state).passes == 2 and torch.equal(state.x, drawn(model, 5, Eager(), [model.steps]).x)


@pytest.mark.parametrize("family", ["wavenet", "pixelcnnpp"])
def test_given_values_are_put_in_and_weighed(family: str) -> None:
    model, n = model_of(family, SMALL["clicks" if family == "wavenet" else "colour"]), 4
    x, known = examples(model.event, n), torch.rand(n, *model.event.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    ancestral, state = (drawn(model, n, sampler, [9, model.steps], x=x, known=known) for sampler in (Eager(), FixedPoint()))
    assert torch.equal(state.x, ancestral.x)
    torch.testing.assert_close(state.log_weight, ancestral.log_weight, rtol=1e-9, atol=1e-9)


def test_a_state_can_be_looked_ahead_of_and_copied() -> None:
    model, n = model_of("gated_pixelcnn", EVENTS["grey"]), 2
    ancestral, state = drawn(model, n, Eager(), [10]), drawn(model, n, FixedPoint(), [10])
    assert torch.equal(model.read(state), model.read(ancestral))  # nothing of what is but guessed is shown
    torch.testing.assert_close(model.next_logits(state).double(), model.next_logits(ancestral), rtol=1e-6, atol=1e-6)
    twin = copied(state)
    for each in (twin, ancestral, state):
        model.advance(each, model.steps)
    assert torch.equal(state.x, ancestral.x) and torch.equal(twin.x, ancestral.x) and settled(twin).passes == settled(state).passes


def test_weights_that_are_no_numbers_are_said() -> None:
    model = model_of("wavenet", EVENTS["clicks"])
    with torch.no_grad():
        next(model.parameters())[0] = torch.nan
    with pytest.raises(ValueError, match=r"^logits of steps from 0 on are not all finite numbers"):
        drawn(model, 2, FixedPoint(), [100])
