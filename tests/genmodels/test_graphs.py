"""Recorded steps draw the eager sampler's bytes, whoever draws what in which portions. A tape of torch's operators stands in for CUDA's graphs:
like those it freezes every number that Python counted, and refuses what waits for its own results."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from genmodels.core import Autoregressive, Drawing, Eager, Event, copied
from genmodels.noise import Noise
from genmodels.sampling import graphs
from genmodels.sampling.capture import Capture, Waits, Watch, Work
from genmodels.sampling.graphs import Captured, Graphs, programs_of
from tests.genmodels.conftest import EVENTS, TINY, cases, examples, labels, shaken

SMALL = {"colour": EVENTS["colour"], "binary": EVENTS["binary"], "clicks": EVENTS["clicks"], "table": EVENTS["table"]}
SPOKEN = Event(modality="audio", shape=(30,), levels=5, sample_rate=1000, classes=2)
WAITS = {"mixture"}
"""Families one of whose steps looks at what it computed, and which are therefore drawn eagerly."""


class Recorder(TorchDispatchMode):
    """Keeps every operator with the tensors that it read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, tensors(out)))
        return out

    def replay(self) -> None:
        for func, args, kwargs, outs in self.calls:
            homes = {each.untyped_storage().data_ptr() for each in tensors((args, kwargs))}
            for new, old in zip(tensors(func(*args, **kwargs)), outs, strict=True):
                if old.untyped_storage().data_ptr() not in homes:  # else a view, or written in place
                    old.copy_(new)


class Tape(Capture):
    def __init__(self) -> None:
        self.recorded = 0

    def rehearse(self, work: Callable[[], Any]) -> Any:
        with Watch():
            return work()

    def record(self, work: Work) -> Work:
        self.recorded += 1
        with Recorder() as recorder:
            work()
        return recorder.replay


def tensors(value: Any) -> list[Tensor]:
    return [each for each in tree_leaves(value) if isinstance(each, Tensor)]


def model_of(family: str, event: Event, **config: Any) -> Autoregressive:
    model = shaken(family, event, **TINY.get(family, {}) | config)
    assert isinstance(model, Autoregressive)
    return model


def began(model: Autoregressive, n: int, *, seed: int = 1, **given: Any) -> Drawing:
    y = labels(model.event, n)
    with torch.no_grad():
        return model.begin(Noise(seed, position=range(n)), y=y, c=given.pop("c", None), temperature=torch.linspace(0.7, 1.4, n), **given)


def both(model: Autoregressive, n: int, portions: list[int], **given: Any) -> tuple[Drawing, Drawing]:
    """The same drawing by the eager sampler and from a tape."""
    states = []
    for sampler in (Eager(), Graphs(Tape())):
        model.sampler = sampler
        state = began(model, n, **given)
        for k in portions:
            model.advance(state, k)
        states.append(state)
    return states[0], states[1]


@pytest.mark.parametrize(("family", "event"), cases(SMALL, Autoregressive))
def test_a_tape_draws_the_eager_bytes(family: str, event: str) -> None:
    model, n = model_of(family, SMALL[event]), 3
    eager, taped = both(model, n, [1, 5, model.steps])
    assert isinstance(taped.memory, Captured) and taped.step == eager.step == model.steps
    assert torch.equal(taped.x, eager.x)
    (program,) = programs_of(model).known.values()
    assert isinstance(program.capture, Tape) == (family not in WAITS), (
        "a step of this family waits for its own results, and no graph holds it"
    )


@pytest.mark.parametrize(("family", "event"), cases({"colour": SMALL["colour"], "clicks": SMALL["clicks"]}, Autoregressive))
def test_given_values_are_put_in_and_weighed(family: str, event: str) -> None:
    model, n = model_of(family, SMALL[event]), 3
    known = torch.rand(n, *model.event.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    if family == "bayesnet":  # beliefs: any order
        known[:] = False
    x = examples(model.event, n)
    eager, taped = both(model, n, [7, model.steps], x=x, known=known)
    assert torch.equal(taped.x, eager.x) and torch.equal(taped.log_weight, eager.log_weight)
    assert torch.equal(model.read(taped)[known], x[known])


def test_drawings_take_turns_on_one_program() -> None:
    """A state, a copy of it that goes another way, and another seed's: each draws what it draws alone, next_logits between."""
    model, n = model_of("gated_pixelcnn", EVENTS["grey"]), 2
    alone = [both(model, n, [model.steps], seed=seed)[0].x for seed in (1, 2)]
    model.sampler = Graphs(Tape())
    first, other = (model.advance(began(model, n, seed=seed), 10 + seed) for seed in (1, 2))
    twin = copied(first)
    twin.temperature = twin.temperature * 3
    for state in (first, other, twin, first, other, twin):
        before = model.next_logits(state)
        assert torch.equal(before, model.next_logits(state))
        model.advance(state, 9)
    for state in (other, twin, first):
        model.advance(state, model.steps)
    assert torch.equal(first.x, alone[0]) and torch.equal(other.x, alone[1])
    assert not torch.equal(twin.x, alone[0]) and torch.equal(twin.x[:, :11], alone[0][:, :11])
    assert len(programs_of(model).known) == 3  # two of them made by `both`


def test_a_wavenet_has_as_many_graphs_as_its_rings_have_slots() -> None:
    model, tape = model_of("wavenet", EVENTS["mu-law"]), Tape()
    eager = both(model, 3, [model.steps])[0]
    model.sampler = Graphs(tape)
    taped = began(model, 3)
    for k in (3, 1, 17, 40):
        model.advance(taped, k)
    assert torch.equal(taped.x, eager.x)
    assert graphs.period(model) == 4 and tape.recorded == 5  # the first step reads its input from where no other leaves it


@pytest.mark.parametrize(
    ("family", "event", "config"),
    [
        ("wavenet", SPOKEN, {"condition": "log-mel", "hop": 7, "mels": 3}),
        ("wavenet", SPOKEN, {"kernel": 3}),
        ("pixelcnn", EVENTS["colour"], {"condition": "grey"}),
        ("nade", EVENTS["table"], {"training": "order-agnostic", "orders": 3}),
        ("made", EVENTS["table"], {"orders": 3}),
    ],
)
def test_conditions_and_orders(family: str, event: Event, config: dict[str, Any]) -> None:
    if config.get("condition") == "grey":
        event = replace(event, shape=(3, 4, 4))
    model, n = model_of(family, event, **config), 4
    wanted = model.event.condition
    c = None
    if wanted is not None:
        c = Noise(3, position=range(n)).normal("c", wanted.shape) if not wanted.levels else examples(wanted, n)
    eager, taped = both(model, n, [2, 3, model.steps], c=c)
    assert torch.equal(taped.x, eager.x)


def test_weights_that_change_and_weights_that_move() -> None:
    model, n = model_of("pixelcnn", EVENTS["binary"]), 2
    model.sampler = Graphs(Tape())
    old = model.advance(began(model, n), model.steps).x
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1)
    eager, taped = both(model, n, [model.steps])
    assert torch.equal(eager.x, taped.x) and not torch.equal(old, taped.x)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone() * -1
    assert torch.equal(model.advance(began(model, n), model.steps).x, old)


def test_weights_that_are_no_numbers_are_said() -> None:
    model = model_of("wavenet", EVENTS["clicks"])
    model.sampler = Graphs(Tape())
    with torch.no_grad():
        next(model.parameters())[0] = torch.nan
    with pytest.raises(ValueError, match=r"^logits of steps 0 to 24 are not all finite numbers"):
        model.advance(began(model, 2), 100)


def test_what_cannot_be_recorded_is_drawn_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("pixelcnn", EVENTS["binary"])
    model.sampler = Graphs()  # no CUDA: nothing to record with
    assert not isinstance(began(model, 2).memory, Captured) and model.sampler.backend(model) == "eager"
    model.sampler = Graphs(Tape())
    assert model.sampler.backend(model) == "graphs"
    monkeypatch.setattr(graphs, "LONGEST", 19)
    assert not isinstance(began(model, 2).memory, Captured)
    x = torch.arange(6.0)
    for work in (lambda: float(x[0]), lambda: x[x > 2], lambda: x.nonzero(), lambda: x[torch.tensor(3)], lambda: bool((x > 9).any())):
        with pytest.raises(Waits), Watch():
            work()
