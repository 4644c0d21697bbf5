"""The compiled samplers of FVBN, NADE and MADE where they are least like the eager ones: units made once, stretches of steps, orders and masks.

What holds for every compiled family is proven in test_native.py.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from genmodels.core import Autoregressive, Event, Sampler
from genmodels.core.drawing import Eager
from genmodels.models import made
from genmodels.models.made import MADE
from genmodels.noise import Noise
from genmodels.sampling import causal, library
from genmodels.sampling.native import Native
from genmodels.sampling.packing import Packer
from genmodels.zoo import build
from tests.genmodels.conftest import examples, labels, shaken

CASES: list[tuple[str, dict[str, Any]]] = [
    ("fvbn", {}),
    ("fvbn", {"order": "random"}),
    ("nade", {"hidden": (70,)}),
    ("nade", {"hidden": (33, 17, 5), "activation": "sigmoid", "orders": 3, "components": 19}),
    ("made", {"hidden": (7,)}),  # fewer units than stretches: some have none
    ("made", {"hidden": (400, 37, 50)}),  # layers of one stretch that feed each other in one step
    ("made", {"hidden": (20, 30), "masks": 3}),
    ("made", {"hidden": (9, 70), "masks": 2, "orders": 3}),
]

needs_copy = pytest.mark.skipif(not library.runnable(), reason="no compiled sampler in this installation")


def event_of(levels: int, side: int = 9) -> Event:
    """Of 99 values: one stretch and a part of one for two levels; no multiple of any stretch for more."""
    return Event(modality="image", shape=(1, side, 11), levels=levels, classes=2)


def model_of(family: str, levels: int, **config: Any) -> Autoregressive:
    model = shaken(family, event_of(levels), by=0.7, **config)
    assert isinstance(model, Autoregressive)
    return model


def forced(model: Autoregressive, sampler: Sampler, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
    """x (B, *shape) given whole -> (B, D, K) logits of every step, (B,) nats."""
    model.sampler = sampler
    n, known = len(x), torch.ones(x.shape, dtype=torch.bool)
    state = model.begin(Noise(3, position=range(n)), y=y, c=None, temperature=torch.ones(n), x=x, known=known)
    each = []
    for _ in range(model.steps):
        each.append(model.next_logits(state))
        model.advance(state, 1)
    return torch.stack(each, dim=1), state.log_weight


@needs_copy
@pytest.mark.parametrize("levels", [2, 3, 16, 17, 256])
@pytest.mark.parametrize(("family", "config"), CASES, ids=[f"{family}-{i}" for i, (family, _) in enumerate(CASES)])
def test_logits_are_the_eager_ones_in_every_order_layer_and_mask(family: str, config: dict[str, Any], levels: int) -> None:
    model, n = model_of(family, levels, **config), 4
    x, y = examples(model.event, n), labels(model.event, n)
    x[0], x[1, :, :5] = levels - 1, 0  # the ends of a range are read by features of their own
    (eager, nats), (native, own) = (forced(model, sampler, x, y) for sampler in (Eager(), Native()))
    torch.testing.assert_close(native, eager.float(), rtol=0, atol=2e-5 * (1 + float(eager.abs().max()) / 10))
    torch.testing.assert_close(own, nats, rtol=1e-6, atol=1e-4)


@needs_copy
@pytest.mark.parametrize("levels", [2, 5])
def test_rows_of_several_orders_stand_in_one_batch(levels: int) -> None:
    model, n = model_of("made", levels, hidden=(40, 30), orders=4, masks=2), 17
    y = labels(model.event, n)
    model.sampler = Eager()
    eager = model.sample(n, seed=5, y=y, temperature=1.3)
    model.sampler = Native()
    assert torch.equal(model.sample(n, seed=5, y=y, temperature=1.3), eager)
    assert len(model.arranged(Noise(5, position=range(n)), None).unique(dim=0)) == 4


@needs_copy
def test_seventeen_and_more_rows_of_signs_are_each_drawn_as_alone() -> None:
    model, n = model_of("fvbn", 2), 50
    known = torch.zeros(n, *model.event.shape, dtype=torch.bool)
    known[::3, :, :4] = True
    x, y, noise = examples(model.event, n), labels(model.event, n), Noise(7, position=range(n))
    assert y is not None
    temperature = 0.5 + torch.arange(n) / n
    whole = model.advance(model.begin(noise, y=y, c=None, temperature=temperature, x=x, known=known), model.steps)
    for i in (0, 15, 16, 33, 49):
        one = slice(i, i + 1)
        state = model.begin(noise.rows(i, i + 1), y=y[one], c=None, temperature=temperature[one], x=x[one], known=known[one])
        model.advance(state, model.steps)
        assert torch.equal(state.x[0], whole.x[i]) and torch.equal(state.log_weight[0], whole.log_weight[i])


@needs_copy
def test_an_ensemble_that_would_fill_the_memory_is_drawn_from_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("made", 2, hidden=(20,), masks=2)
    assert model.sampler.backend(model) != "eager"
    monkeypatch.setattr(made, "PACKED", 1)
    assert model.sampler.backend(model) == "eager" and model.sampler.padded(model)
    assert model.sample(1, seed=0, y=torch.tensor([1])).shape == (1, *model.event.shape)
    alone = model_of("made", 2, hidden=(20,))
    assert alone.sampler.backend(alone) != "eager"


def test_every_unit_has_one_slot_in_the_stretch_of_its_degree() -> None:
    model = build("made", event_of(2), hidden=(400, 37), masks=2, orders=2)
    assert isinstance(model, MADE)
    degrees = causal.by_member([model.get_buffer("degrees_0"), model.get_buffer("degrees_1")])
    for cut, layers in zip(causal.stretches(99, 1, degrees), degrees, strict=True):
        assert (cut.count, cut.span) == (2, 64)
        for layer, degree in enumerate(layers):
            slots = cut.slots(layer)
            assert torch.equal(slots[slots < len(degree)].sort().values, torch.arange(len(degree)))
            for i, units in enumerate(slots):
                assert (degree[units[units < len(degree)]] // 64 == i).all()


@pytest.mark.parametrize("family", ["fvbn", "nade", "made"])
def test_weights_that_are_not_finite_are_refused(family: str) -> None:
    model = model_of(family, 5)
    with torch.no_grad():
        next(model.parameters()).flatten()[0] = torch.nan
    with pytest.raises(ValueError, match=r"^the model's weights are not all finite numbers$"):
        model.packed(Packer("f32"))  # type: ignore[operator]
