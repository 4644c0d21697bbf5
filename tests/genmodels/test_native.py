"""What a compiled sampler promises, of every family that has one: the eager one's distribution, the same bytes in any company, no crash."""

import copy
import logging
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genmodels import build
from genmodels.core import Autoregressive, Drawing, Event, Sampler, Trained
from genmodels.core.drawing import Eager, along
from genmodels.core.forced import TeacherForced
from genmodels.descent import flatten
from genmodels.noise import Noise
from genmodels.sampling import library
from genmodels.sampling.native import Compiled, Native
from genmodels.sampling.stages import Staged
from genmodels.zoo import MODELS
from tests.genmodels.conftest import EVENTS, TINY, UNFIT, cases, examples, labels, shaken

FAMILIES = [family for family, kind in MODELS.items() if issubclass(kind, (Compiled, Staged))]
CASES = [(family, event) for family, event in cases(EVENTS, Autoregressive) if family in FAMILIES]
CONDITIONED = [
    *((family, "colour", {"condition": kind}) for family in ("pixelcnn", "gated_pixelcnn") for kind in ("grey", "masked")),
    *((family, "grey", {"condition": "smaller", "factor": 4}) for family in ("pixelcnn", "gated_pixelcnn")),
    ("wavenet", "mu-law", {"condition": "log-mel", "mels": 3, "hop": 7}),
]
TOLERANCE = {"f32": 2e-5, "bf16": 2e-2, "int8": 5e-2}
"""The largest difference of a logit, relative to the largest of the model's logits, or to 1."""

EDGE = 1e-4
"""Two samplers may draw neighbouring levels where a uniform is this near to where their intervals meet."""

pytestmark = pytest.mark.skipif(not library.runnable(), reason="no compiled sampler in this installation")
needs_bf16 = pytest.mark.skipif(library.chosen() not in library.NARROW, reason="no processor with bf16")


def model_of(family: str, event: Event, **config: Any) -> Autoregressive:
    model = shaken(family, event, **{**TINY.get(family, {}), **config})
    assert isinstance(model, Autoregressive)
    return model


def common(family: str) -> Event:
    """The most demanding event that a family takes of those with labels."""
    names = ["colour", "grey", "mu-law", "table"]
    return next(EVENTS[name] for name in names if EVENTS[name].modality in MODELS[family].modalities and name not in UNFIT.get(family, ()))


def conditions(model: Autoregressive, n: int) -> Tensor | None:
    """Random values in the shape of the model's condition."""
    event = model.event.condition
    if event is None or event.levels:
        return None if event is None else examples(event, n, seed=8)
    return torch.randn(n, *event.shape, generator=torch.Generator().manual_seed(8))


def begun(
    model: Autoregressive, n: int, sampler: Sampler, *, x: Tensor | None = None, known: Tensor | None = None, hot: bool = False
) -> Drawing:
    """n rows with labels and conditions of their own and, where hot, temperatures of their own."""
    model.sampler = sampler
    given = {} if known is None else {"x": x, "known": known}
    temperature = 0.6 + torch.arange(n) % 7 / 5 if hot else torch.ones(n)
    return model.begin(Noise(3, position=range(n)), y=labels(model.event, n), c=conditions(model, n), temperature=temperature, **given)


def drawn(model: Autoregressive, n: int, sampler: Sampler, **asked: Any) -> Drawing:
    return model.advance(begun(model, n, sampler, **asked), model.steps)


def forced(model: Autoregressive, x: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor]:
    """x (n, *shape), every value of which is given -> (n, D, K) logits of each step, (n,) nats of all."""
    state = begun(model, len(x), sampler, x=x, known=torch.ones(x.shape, dtype=torch.bool))
    logits = torch.empty(len(x), model.steps, model.event.levels)
    if isinstance(sampler, Native):
        assert not model.sampler.padded(model)
        state.memory.advance(state, model.steps, logits)
    else:
        for step in range(model.steps):
            logits[:, step] = model.next_logits(state)
            model.advance(state, 1)
    return logits, state.log_weight


@torch.no_grad()
def assert_logits_are_right(model: Autoregressive, precision: Any = "f32", copy: str | None = None) -> None:
    x = examples(model.event, 3)
    eager, nats = forced(model, x, Eager())
    native, own = forced(model, x, Native(precision, copy=copy))
    scale = max(1.0, float(eager.abs().max()))
    torch.testing.assert_close(native, eager, rtol=0, atol=TOLERANCE[precision] * scale)
    torch.testing.assert_close(own, nats, rtol=0, atol=model.steps * TOLERANCE[precision] * scale)
    if isinstance(model, TeacherForced):
        whole = model.all_logits(x, y=labels(model.event, 3), c=conditions(model, 3)).flatten(1, -2)[:, model.order]
        torch.testing.assert_close(native, whole, rtol=0, atol=TOLERANCE[precision] * scale)


def assert_drawn_alike(model: Autoregressive, native: Drawing, eager: Drawing) -> int:
    """Rows are equal up to a draw that is a near-tie. -> how many are equal to the end."""
    logits, _ = forced(model, eager.x.reshape(-1, *model.event.shape), Native())
    whole = 0
    for row in range(len(eager.x)):
        one, two, uniforms = (along(eager.order, table)[row] for table in (native.x, eager.x, eager.uniforms))
        differences = (one != two).nonzero()
        if len(differences) == 0:
            whole += 1
            torch.testing.assert_close(native.log_weight[row], eager.log_weight[row], rtol=1e-5, atol=1e-4)
            continue
        step = int(differences[0])
        edges = torch.softmax(logits[row, step].double() / eager.temperature[row], dim=-1).cumsum(-1)
        assert float((edges - uniforms[step]).abs().min()) < EDGE, f"row {row}, step {step}: levels {int(one[step])} and {int(two[step])}"
    return whole


@pytest.mark.parametrize(("family", "event"), CASES)
def test_logits_are_the_eager_samplers_and_the_whole_networks(family: str, event: str) -> None:
    assert_logits_are_right(model_of(family, EVENTS[event]))


@pytest.mark.parametrize(("family", "event", "config"), CONDITIONED)
def test_logits_under_a_condition(family: str, event: str, config: dict[str, Any]) -> None:
    model = model_of(family, EVENTS[event], **config)
    assert_logits_are_right(model)
    assert_drawn_alike(model, drawn(model, 3, Native()), drawn(model, 3, Eager()))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("copy", library.runnable())
def test_logits_of_every_copy(family: str, copy: str) -> None:
    assert_logits_are_right(model_of(family, common(family)), copy=copy)


@needs_bf16
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_in_bf16(family: str) -> None:
    assert_logits_are_right(model_of(family, common(family)), "bf16")


@needs_bf16
@pytest.mark.parametrize("event", ["mu-law", "clicks"])
def test_logits_of_a_wavenet_in_int8(event: str) -> None:
    assert_logits_are_right(model_of("wavenet", EVENTS[event]), "int8")


@needs_bf16
def test_a_family_without_int8_says_what_it_has() -> None:
    with pytest.raises(ValueError, match=r"^precision int8 of the sampler; copy \w+ draws a GatedPixelCNN in f32 or bf16$"):
        drawn(model_of("gated_pixelcnn", EVENTS["binary"]), 1, Native("int8"))


@pytest.mark.parametrize(("family", "event"), CASES)
def test_samples_are_the_eager_samplers(family: str, event: str) -> None:
    model = model_of(family, EVENTS[event])
    native, eager = drawn(model, 6, Native(), hot=True), drawn(model, 6, Eager(), hot=True)
    assert assert_drawn_alike(model, native, eager) >= 3


@pytest.mark.parametrize("family", FAMILIES)
def test_values_that_are_given_stay_and_are_weighed(family: str) -> None:
    event = common(family)
    model, n = model_of(family, event), 6
    x, known = examples(event, n, seed=4), torch.rand(n, *event.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    native, eager = (drawn(model, n, sampler, x=x, known=known, hot=True) for sampler in (Native(), Eager()))
    for state in (native, eager):
        assert torch.equal(model.read(state)[known], x[known]) and bool((state.log_weight < 0).all())
    assert assert_drawn_alike(model, native, eager) >= 3
    model.sampler = Native()
    beginning = torch.zeros(event.dims, dtype=torch.bool)
    beginning[model.order[: event.dims // 3]] = True
    done = model.complete(x, beginning.reshape(event.shape), seed=2, y=labels(event, n))
    assert torch.equal(done.x.flatten(1)[:, beginning], x.flatten(1)[:, beginning])


NARROW: list[tuple[Any, str | None]] = [("bf16", copy) for copy in library.runnable() if copy in library.NARROW]
"""Each sums in an order of its own."""
WAYS = [(family, how) for family in FAMILIES for how in [("f32", None), *NARROW]]
WAYS += [("wavenet", ("int8", copy)) for _, copy in NARROW]


@pytest.mark.parametrize(("family", "how"), WAYS, ids=str)
def test_a_rows_bytes_know_nothing_of_its_company(family: str, how: tuple[Any, str | None]) -> None:
    model = model_of(family, common(family))
    precision, copy = how
    whole = drawn(model, 65, Native(precision, threads=1, copy=copy), hot=True)
    for n, threads in ((1, 1), (2, 1), (5, 2), (16, 1), (17, 3), (33, 1), (65, 2), (65, 3)):
        some = drawn(model, n, Native(precision, threads=threads, copy=copy), hot=True)
        assert torch.equal(some.x, whole.x[:n]) and torch.equal(some.log_weight, whole.log_weight[:n]), (n, threads)


@pytest.mark.parametrize(("asked", "n", "threads"), [(None, 1, 1), (None, 2, 3), (2, 1, 2), (2, 5, 2)])
def test_a_single_row_takes_a_second_thread_only_where_it_is_asked_for(
    asked: int | None, n: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    model, taken = model_of("wavenet", EVENTS["clicks"]), []
    state = begun(model, n, Native(threads=asked))
    state.memory.fixed = replace(state.memory.fixed, function=lambda call: taken.append(call.threads) or -1)
    model.advance(state, 1)
    assert taken == [threads]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rows_bytes_know_nothing_of_how_many_steps_a_call_takes(family: str) -> None:
    model = model_of(family, common(family))
    whole = drawn(model, 3, Native())
    for ks in ([1], [7], [2, 5, 1], [model.steps - 1]):
        state = begun(model, 3, Native())
        for k in cycle(ks):
            state = copy.copy(model.advance(state, k))
            if state.step == model.steps:
                break
        assert torch.equal(state.x, whole.x), ks
    state = begun(model, 3, Native())
    model.advance(state, model.steps // 2)
    logits = model.next_logits(state)  # asked on a copy: nothing is drawn
    assert torch.equal(logits, model.next_logits(state))
    assert torch.equal(model.advance(state, model.steps).x, whole.x)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_copies_with_fused_multiply_add_give_the_same_bytes(family: str) -> None:
    model = model_of(family, common(family))
    fused = [copy for copy in library.runnable() if copy != "portable"]
    states = [drawn(model, 7, Native(copy=copy), hot=True) for copy in fused]
    assert all(torch.equal(state.x, states[0].x) for state in states[1:])
    logits = [forced(model, examples(model.event, 7), Native(copy=copy))[0] for copy in fused]
    assert all(torch.equal(each, logits[0]) for each in logits[1:])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused(family: str, value: float) -> None:
    model = model_of(family, common(family))
    for weight in list(model.parameters())[-3:]:
        before = weight.detach().clone()
        with torch.no_grad():
            weight.fill_(value)
        with pytest.raises(ValueError, match=r"^[^\n]* are not all finite numbers[^\n]*$"):
            drawn(model, 2, Native())
        with torch.no_grad():
            weight.copy_(before)
    drawn(model, 2, Native())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scale", [1e3, 1e30])
def test_weights_that_are_huge_crash_nothing(family: str, scale: float) -> None:
    model = model_of(family, common(family))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(scale)
    try:
        assert int(drawn(model, 3, Native()).x.max()) < model.event.levels
    except ValueError as error:
        assert "are not all finite numbers" in str(error)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_weight_that_changes_where_it_lies_changes_the_samples(family: str) -> None:
    model = model_of(family, common(family))
    before, other = drawn(model, 5, Native()).x, copy.deepcopy(model)
    names = list(model.state_dict())
    with torch.no_grad():
        list(model.parameters())[-1].mul_(-3)
    changed = drawn(model, 5, Native()).x
    assert not torch.equal(changed, before) and torch.equal(drawn(other, 5, Native()).x, before)
    assert isinstance(model, Trained)
    pieces = flatten(model, model.objectives())
    assert torch.equal(drawn(model, 5, Native()).x, changed)
    with torch.no_grad():
        for piece in pieces:
            piece.values.mul_(-1)  # another view of the same memory, as an optimiser writes to it
    assert not torch.equal(drawn(model, 5, Native()).x, changed)
    assert list(model.state_dict()) == list(other.state_dict()) == names


def random_case(family: str, rng: random.Random) -> tuple[Event, dict[str, Any]]:
    """An event and settings of sizes that are no multiple of anything."""
    levels, classes = rng.choice([2, 3, 16, 17, 31, 255, 256]), rng.choice([0, 3])
    size, layers = rng.choice([1, 7, 16, 17, 33, 66]), rng.randint(1, 3)
    if "image" not in MODELS[family].modalities:
        event = Event(modality="audio", shape=(rng.randint(1, 60),), levels=levels, sample_rate=8000, classes=classes)
        sizes = {
            "stacks": rng.randint(1, 2),
            "layers": layers,
            "kernel": rng.randint(2, 4),
            "residual": size,
            "skip": rng.choice([3, 16, 40]),
        }
        return event, sizes | rng.choice([{}, {"condition": "log-mel", "mels": 3, "hop": rng.randint(3, 70)}])
    event = Event(modality="image", shape=(rng.choice([1, 2, 3]), rng.randint(1, 7), rng.randint(1, 9)), levels=levels, classes=classes)
    known = MODELS[family].Config.__dataclass_fields__
    sizes = {"hidden": size, "layers": layers, "kernel": rng.choice([3, 5, 7]), "head": rng.choice([1, 16, 21]), "blocks": layers}
    sizes |= {"components": rng.randint(1, 7), "reach": rng.randint(1, 9), "scales": rng.randint(0, 2)}
    if "layers" in known and "condition" in known and rng.random() < 0.5:
        event = replace(event, condition=Event(modality="image", shape=(rng.randint(1, 2), 1, event.shape[2]), levels=rng.choice([0, 5])))
        return event, {name: value for name, value in sizes.items() if name in known} | {"condition": "given"}
    if family in ("fvbn", "nade", "made"):
        sizes = {"hidden": (size, 19)[: rng.randint(1, 2)]}
    return event, {name: value for name, value in sizes.items() if name in known}


@pytest.mark.parametrize("family", FAMILIES)
def test_any_sizes(family: str) -> None:
    rng = random.Random(family)
    for _ in range(6):
        event, config = random_case(family, rng)
        model = shaken(family, event, seed=rng.randint(0, 99), **config)
        assert isinstance(model, Autoregressive)
        assert_logits_are_right(model)


@pytest.fixture
def forgetful() -> Iterator[None]:
    """What the library remembers of this machine is forgotten, before and after."""
    remembered = [library.load, library.runnable, library.chosen, library._open, library._level]
    for each in remembered:
        each.cache_clear()
    yield
    for each in remembered:
        each.cache_clear()


@pytest.mark.usefixtures("forgetful")
def test_without_a_library_sampling_is_eager_and_the_log_says_so_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(library.CHOICE, raising=False)
    monkeypatch.setattr(library, "path", lambda copy: tmp_path / copy)
    with caplog.at_level(logging.WARNING, logger="genmodels"):
        for family in FAMILIES:
            model = build(family, common(family), **TINY.get(family, {}))
            assert isinstance(model, Autoregressive)
            assert model.sampler.backend(model) == "eager" and model.sampler.padded(model)
            model.sample(1, seed=0, y=0)
    assert [record.message[:44] for record in caplog.records] == ["no compiled samplers in this installation: s"]


@pytest.mark.usefixtures("forgetful")
def test_the_environment_chooses_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("wavenet", EVENTS["clicks"])
    for wanted, backend in (("eager", "eager"), ("portable", "native-portable")):
        monkeypatch.setenv(library.CHOICE, wanted)
        library.chosen.cache_clear()
        assert Native().backend(model) == backend
    monkeypatch.setenv(library.CHOICE, "sse")
    library.chosen.cache_clear()
    with pytest.raises(ValueError, match=r"^GENMODELS_ISA=sse; this machine has .*, eager$"):
        Native().backend(model)
