"""MADE: no member sees its future, members differ, and their average is one of densities: it sums to one and the sampler draws from it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genmodels import artifact
from genmodels.core import Batch, Event
from genmodels.models.made import MADE
from genmodels.nn import values
from genmodels.noise import Noise
from genmodels.zoo import build
from tests.genmodels.conftest import COUNTABLE, EVENTS, examples, labels, shaken, states
from tests.genmodels.test_contract import g_test

BINARY = COUNTABLE["binary"]


def made(event: Event = BINARY, *, seed: int = 0, **config: Any) -> MADE:
    model = shaken("made", event, seed=seed, by=1.0, **{"hidden": (12, 10), **config})
    assert isinstance(model, MADE)
    return model


def assert_strictly_triangular(model: MADE, order: int, mask: int, read: Tensor) -> None:
    """d raw_i / d read_j, summed over what a value is read and predicted by, is zero unless j comes before i, and not always zero there."""
    y = torch.ones(1, dtype=torch.int64) if model.event.classes else None
    jacobian = torch.autograd.functional.jacobian(lambda z: model.raw(z[None], y, order, mask)[0], read)
    assert isinstance(jacobian, Tensor)
    flow = jacobian.unflatten(2, (model.event.dims, model.inputs)).abs().sum((1, 3))  # (of, by) in places
    visits = model.orders[order]
    in_order = flow[visits][:, visits]
    assert not bool(in_order.triu().any())
    assert bool((in_order.tril(-1) > 0)[torch.ones_like(in_order).tril(-1).bool()].all())


@pytest.mark.parametrize("event", ["binary", "grey", "colour", "table"])
def test_no_member_sees_its_future(event: str, tmp_path: Path) -> None:
    kind = EVENTS[event]
    model = made(kind, orders=2, masks=3)
    names = [str(label) for label in range(kind.classes)]
    artifact.save(model, tmp_path / "model", family="made", prepare={}, labels=names)
    loaded = artifact.load(tmp_path / "model")
    resampled = made(kind, orders=2, masks=3, mask_seed=1)
    resampled.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(0)
    for each in (model, model.train(), loaded, resampled):
        assert isinstance(each, MADE)
        each = each.double()
        read = torch.randn(kind.dims * each.inputs, generator=generator, dtype=torch.float64)
        for member in range(6):
            assert_strictly_triangular(each, *divmod(member, 3), read)
    assert not torch.equal(model.get_buffer("degrees_0"), resampled.get_buffer("degrees_0"))


def test_members_differ_and_are_the_same_again() -> None:
    model, same = made(orders=3, masks=2), made(orders=3, masks=2)
    x = examples(BINARY, 20)
    with torch.no_grad():
        each = [model.member(x, None, *divmod(m, 2)).flatten(1).sum(1) for m in range(6)]
        again = [same.member(x, None, *divmod(m, 2)).flatten(1).sum(1) for m in range(6)]
    assert all(torch.equal(a, b) for a, b in zip(each, again, strict=True))
    assert all(float((each[a] - each[b]).abs().max()) > 1e-3 for a in range(6) for b in range(a))
    assert model.order.tolist() == list(range(9))
    assert len(torch.unique(model.orders, dim=0)) == 3


def test_degrees_are_spread_evenly_and_never_reach_the_last_value() -> None:
    event = Event(modality="image", shape=(1, 6, 6), levels=2)
    model = build("made", event, hidden=(70, 35, 5), masks=8)
    for i, units in enumerate((70, 35, 5)):
        for degrees in model.get_buffer(f"degrees_{i}")[0]:
            count = torch.bincount(degrees, minlength=35)
            assert len(count) == 35 and int(count[1:].max() - count[1:].min()) <= 1 and int(count.sum()) == units
            below = model.get_buffer(f"degrees_{max(0, i - 1)}")[0]
            assert int(degrees.min()) >= int(below.min(1).values.min())


def ensemble(model: MADE, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
    """The log of the mean of the members' densities, and what comes of averaging their logits."""
    orders, masks, levels = model.config.orders, model.config.masks, model.event.levels
    read = values.features(x.flatten(1), levels, model.out.weight.dtype).flatten(1)
    raw = torch.stack([model.raw(read, y, *divmod(m, masks)) for m in range(orders * masks)])
    nats = torch.stack([values.log_prob(each, x.flatten(1), levels).sum(1) for each in raw])
    return nats.logsumexp(0) - math.log(len(raw)), values.log_prob(raw.mean(0), x.flatten(1), levels).sum(1)


@pytest.mark.parametrize("event", ["binary", "grey", "table"])
@pytest.mark.parametrize(("orders", "masks"), [(1, 3), (3, 1), (2, 2)])
def test_the_average_is_one_of_densities(event: str, orders: int, masks: int) -> None:
    kind = COUNTABLE[event]
    model, every = made(kind, orders=orders, masks=masks).double(), states(kind)
    y = torch.ones(len(every), dtype=torch.int64) if kind.classes else None
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        nats = model.log_prob(every, y)
        mean, of_logits = ensemble(model, every, y)
    assert nats.exp().sum().item() == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(nats, mean)
    assert float((nats - of_logits).abs().max()) > 0.01
    if orders > 1:
        assert abs(float(of_logits.exp().sum()) - 1) > 0.001  # logits of different orders are conditionals of different things
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_masks_are_no_weights() -> None:
    """They are a function of the settings: nothing of them is stored, and weights that masks hide are kept as they are."""
    assert set(made(orders=2, masks=2).state_dict()) == {
        *(f"{layer}.{part}" for layer in ("layers.0", "layers.1", "out") for part in ("weight", "bias")),
        "class_frequencies",
    }


@pytest.mark.parametrize(("event", "orders", "masks"), [("binary", 3, 2), ("grey", 4, 1), ("table", 2, 2), ("colour", 1, 3)])
def test_the_sampler_draws_from_the_average(event: str, orders: int, masks: int) -> None:
    kind, draws = COUNTABLE[event], 50_000
    model, every = made(kind, orders=orders, masks=masks), states(kind)
    y = (lambda n: torch.full((n,), kind.classes - 1)) if kind.classes else (lambda n: None)
    weight = kind.levels ** torch.arange(kind.dims - 1, -1, -1)
    with torch.no_grad():
        p = model.log_prob(every, y(len(every))).double().exp().numpy()
        x = model.draw(Noise(7, position=range(draws)), y=y(draws), c=None, temperature=torch.ones(draws))
    seen = torch.bincount((x.flatten(1).long() * weight).sum(1), minlength=len(every))
    assert g_test(seen.numpy(), p) > 1e-4


@pytest.mark.parametrize("event", ["binary", "grey", "colour", "deep colour", "table"])
def test_masks_are_mixed_step_by_step_as_all_at_once(event: str) -> None:
    kind, n = EVENTS[event], 3
    model = made(kind, masks=3, order="random").double()
    x, y = examples(kind, n), labels(kind, n)
    with torch.no_grad():
        nats, memory = model.log_probs(x, y).flatten(1), model.start(model.order, n, y=y, c=None)
        for place in model.order.tolist():
            level = x.flatten(1)[:, place].long()
            step = torch.log_softmax(model.predict(memory), dim=1).gather(1, level[:, None])[:, 0]
            torch.testing.assert_close(step, nats[:, place], rtol=1e-9, atol=1e-9)
            model.take(memory, level)
        torch.testing.assert_close(nats.sum(1), ensemble(model, x, y)[0])


@pytest.mark.parametrize("event", ["grey", "table"])
def test_rows_of_several_orders_are_each_their_members(event: str) -> None:
    kind, n = EVENTS[event], 12
    model = made(kind, orders=3, masks=1).double()
    x, y = examples(kind, n), labels(kind, n)
    order = model.arranged(Noise(0, position=range(n)), None)
    which = [model.orders.tolist().index(row) for row in order.tolist()]
    assert set(which) == {0, 1, 2}
    with torch.no_grad():
        each = torch.stack([model.member(x, y, o, 0).flatten(1) for o in range(3)])[which, range(n)]
        memory = model.start(order, n, y=y, c=None)
        for place in order.T:
            level = x.flatten(1).gather(1, place[:, None]).long()
            step = torch.log_softmax(model.predict(memory), dim=1).gather(1, level)
            torch.testing.assert_close(step, each.gather(1, place[:, None]), rtol=1e-9, atol=1e-9)
            model.take(memory, level[:, 0])


def test_an_average_over_orders_has_no_conditionals() -> None:
    model = made(EVENTS["table"], orders=3)
    with pytest.raises(ValueError, match=r"^an average over 3 orders has no conditionals one by one; build with orders: 1$"):
        model.log_probs(examples(EVENTS["table"], 2))


def test_a_bit_of_a_sample_does_not_hang_on_its_neighbours() -> None:
    """Rows of other orders, other places in the block, a picture of the usual size."""
    event = Event(modality="image", shape=(1, 28, 28), levels=2)
    for config in ({"orders": 3, "hidden": (40, 30)}, {"masks": 2, "hidden": (100,)}):
        model = build("made", event, **config)
        rows, order = model.sample(16, seed=1), torch.randperm(16, generator=torch.Generator().manual_seed(0))
        strangers = [1 if i % 2 else 2 for i in range(16)]
        moved = model.sample_rows(strangers, order.tolist(), temperature=torch.ones(16))
        assert all(torch.equal(moved[i], rows[order[i]]) == bool(i % 2) for i in range(16))


def test_known_values_are_weighed_where_orders_are_averaged() -> None:
    """Even first in an order they are not completed by drawing on: they tell which order is likelier. Their mean weight is their probability."""
    model, n = made(orders=3, masks=2), 6000
    known = torch.zeros(BINARY.dims, dtype=torch.bool)
    known[:3] = True
    done = model.complete(examples(BINARY, 1), known.reshape(BINARY.shape), seed=0)
    assert not done.exact and done.ess is not None and model.order[:3].tolist() == [0, 1, 2]
    each = [model.complete(examples(BINARY, 1), known.reshape(BINARY.shape), seed=seed, particles=4) for seed in range(12)]
    assert not any(done.exact for done in each), "exact where the drawn order happens to begin with what is known"
    assert model.complete(examples(BINARY, 2), torch.zeros(BINARY.shape, dtype=torch.bool), seed=0, temperature=0.5).exact
    x = examples(BINARY, 1, seed=3)
    fits = (states(BINARY).flatten(1)[:, :3] == x.flatten(1)[:, :3]).all(1)
    state = model.begin(
        Noise(0, position=range(n)),
        y=None,
        c=None,
        temperature=torch.ones(n),
        x=x.expand(n, -1, -1, -1),
        known=known.expand(n, -1).reshape(n, *BINARY.shape),
    )
    weight = model.advance(state, model.steps).log_weight.exp()
    with torch.no_grad():
        p = float(model.log_prob(states(BINARY)).double().exp()[fits].sum())
    assert abs(float(weight.mean()) - p) < 4 * float(weight.std()) / math.sqrt(n)


def test_training_draws_a_member_a_step() -> None:
    """The same for all rows and on every worker; over the steps all of them."""
    model, x = made(orders=2, masks=2), examples(BINARY, 4)
    members = torch.stack([model.member(x, None, *divmod(m, 2)) for m in range(4)]).detach()
    seen = []
    for step in range(40):
        noise = Noise(0, position=range(4), step=step)
        batch = Batch(x=x, position=noise.position, step=step)
        nats = model.train().conditional_log_probs(x, y=None, c=None, noise=noise).detach()
        seen.append(next(m for m in range(4) if torch.equal(nats, members[m])))
        assert model.loss(batch, noise)[0].item() == pytest.approx(-float(nats.sum()) / 4 / 9, rel=1e-5)
        assert torch.equal(model.conditional_log_probs(x[2:], y=None, c=None, noise=noise.rows(2, 4)), nats[2:])
    assert set(seen) == set(range(4))


def test_first_activations_are_of_one_size_whatever_is_masked() -> None:
    """Units that see few values are not born weaker than those that see many."""
    event = Event(modality="image", shape=(1, 16, 16), levels=2)
    model = build("made", event, hidden=(400,))
    assert isinstance(model, MADE)
    read = values.features(examples(event, 500), 2).flatten(1)
    have, own, _ = model._member(0, 0)
    layer = model.layers[0]
    assert isinstance(layer, torch.nn.Linear)
    size = (read @ (layer.weight.detach() * (have <= own[:, None])).T).square().mean(0)
    for part in size[own.argsort()].chunk(4):
        assert 1.6 < float(part.mean()) < 2.4


def test_what_it_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^MADE models at most 4096 values of levels; got image 3x64x64"):
        build("made", Event(modality="image", shape=(3, 64, 64), levels=2))
    with pytest.raises(ValueError, match=r"^7 orders of 3 values; there are only 6$"):
        build("made", Event(modality="table", shape=(3,), levels=2), orders=7)
    assert len(made(Event(modality="table", shape=(3,), levels=2), orders=6).orders.unique(dim=0)) == 6
    wrongs: list[dict[str, Any]] = [{"hidden": ()}, {"hidden": [0]}, {"masks": 0}, {"dropout": 1.0}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"wanted a hidden layer or more, sizes of at least 1 and a dropout below 1$"):
            build("made", BINARY, **wrong)
