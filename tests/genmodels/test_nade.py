"""NADE answers in every order with one network: each order is a density, any subset is completed exactly, and training meets every order alike."""

from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from genmodels.core import Batch, Event
from genmodels.core.drawing import copied
from genmodels.models import nade
from genmodels.models.nade import NADE
from genmodels.noise import Noise
from genmodels.zoo import build
from tests.genmodels.conftest import COUNTABLE, EVENTS, examples, labels, shaken, states
from tests.genmodels.test_contract import g_test

SMALL: dict[str, Any] = {"hidden": (12,)}
DEEP: dict[str, Any] = {"hidden": (12, 7), "activation": "sigmoid"}
ORDERS = {"raster": range(9), "back": range(8, -1, -1), "other": [4, 0, 8, 2, 6, 1, 7, 3, 5]}


def model_of(event: Event, **config: Any) -> NADE:
    model = shaken("nade", event, by=1.0, **config).double()
    assert isinstance(model, NADE)
    return model


class Stated(Noise):
    """Noise that says what it was told to."""

    def __init__(self, uniforms: Tensor) -> None:
        super().__init__(0, position=range(len(uniforms)))
        self.uniforms = uniforms

    def uniform(self, tag: str, shape: Any = ()) -> Tensor:
        assert self.uniforms.shape[1:] == tuple(shape)
        return self.uniforms


def every_draw(dims: int, length: int) -> Tensor:
    """(n, dims + 1) uniforms: every order of the first `length` places with every number of them shown, once."""
    rows = []
    for order in permutations(range(length)):
        u = torch.zeros(dims + 1)
        u[list(order)] = torch.arange(length) / length
        rows += [torch.cat([u[:-1], torch.tensor([(d + 0.5) / length])]) for d in range(length)]
    return torch.stack(rows)


@pytest.mark.parametrize("config", [SMALL, DEEP], ids=["one layer", "two layers"])
@pytest.mark.parametrize("order", ORDERS)
def test_every_order_is_a_density(order: str, config: dict[str, Any]) -> None:
    model = model_of(COUNTABLE["binary"], **config)
    with torch.no_grad():
        nats = model.log_prob_in_order(states(model.event), ORDERS[order])
        apart = float((nats - model.log_prob(states(model.event))).abs().mean())
    assert nats.exp().sum().item() == pytest.approx(1, abs=1e-9)
    assert apart == 0 if order == "raster" else apart > 0.01


@pytest.mark.parametrize("training", ["fixed", "order-agnostic"])
def test_chunks_change_neither_nats_nor_gradients(training: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, y = model_of(EVENTS["grey"], training=training, order="random", **DEEP), labels(EVENTS["grey"], 3)
    x, found = examples(model.event, 3), []
    for chunk in (1, 3 * 12 * 7, 2**30):
        monkeypatch.setattr(nade, "CHUNK", chunk)
        nats = model.log_prob(x, y)
        found.append((nats.detach(), *torch.autograd.grad(nats.sum(), list(model.parameters()))))
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, same, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", ["raster", "random", range(59, -1, -1)])
def test_fixed_training_descends_the_exact_nll(order: Any) -> None:
    model = model_of(EVENTS["colour"], training="fixed", order=order, **DEEP)
    x, y = examples(model.event, 6), labels(model.event, 6)
    (objective,) = model.objectives()
    loss, metrics = objective.loss(Batch(x=x, y=y, position=torch.arange(6)), Noise(0, position=range(6)))
    nll = -model.log_prob(x, y).mean() / model.event.dims
    torch.testing.assert_close(loss, nll)
    torch.testing.assert_close(metrics["bits_per_dim"], nll.detach() / torch.tensor(2.0).log())


@pytest.mark.parametrize("length", [None, 4, 3, 1])
def test_order_agnostic_loss_is_in_expectation_the_nll_of_a_random_order(length: int | None) -> None:
    """Over every order of the valid values and every number of values shown; whatever the padding is."""
    event = Event(modality="audio", shape=(4,), levels=5, sample_rate=1000, classes=2)
    model, valid = model_of(event, **DEEP), 4 if length is None else length
    x, y = examples(event, 1), torch.tensor([1])
    draws = every_draw(4, valid)
    x_rows = x.repeat(len(draws), 1)
    x_rows[:, valid:] = torch.arange(len(draws))[:, None] % 5
    batch = Batch(
        x=x_rows,
        y=y.expand(len(draws)),
        length=None if length is None else torch.full((len(draws),), valid),
        position=torch.arange(len(draws)),
    )
    loss, metrics = model.order_agnostic_loss(batch, Stated(draws))
    rest = list(range(valid, 4))
    orders = [torch.tensor([*order, *rest]) for order in permutations(range(valid))]
    nll = torch.stack([-model._conditionals(x, order, y)[:, :valid].sum() for order in orders]).mean()
    torch.testing.assert_close(loss, nll / 4)
    torch.testing.assert_close(metrics["bits_per_dim"], nll.detach() / valid / torch.tensor(2.0).log())


def test_rows_draw_orders_and_numbers_of_their_own_and_uniformly() -> None:
    model, n = model_of(EVENTS["table"], **SMALL), 20_000
    x, y = examples(model.event, 1), torch.tensor([0])
    batch = Batch(x=x.repeat(n, 1), y=y.expand(n), position=torch.arange(n))
    orders = list(permutations(range(6)))[::7]
    with torch.no_grad():
        loss, _ = model.order_agnostic_loss(batch, Noise(5, position=batch.position))
        every = [model.order_agnostic_loss(batch.rows(i, i + 400), Noise(5, position=range(i, i + 400)))[0] for i in range(0, n, 400)]
        expected = -torch.cat([model.log_prob_in_order(x, order, y) for order in orders]) / 6
    error = float((torch.stack(every).var() / len(every) + expected.var() / len(orders)).sqrt())
    assert abs(float(loss - expected.mean())) < 4 * error < 0.05 * float(loss)


@pytest.mark.parametrize("kind", ["binary", "grey"])
@pytest.mark.parametrize("orders", [1, 3])
def test_any_subset_is_completed_by_the_exact_conditional(kind: str, orders: int) -> None:
    """G-test against the enumerated joint of the order in which the known values come first; their weight is their marginal."""
    event, n = COUNTABLE[kind], 4000
    model = model_of(event, orders=orders, order="random", **SMALL)
    dims, every = event.dims, states(event)
    known = torch.tensor([place % 3 == 1 or place == dims - 1 for place in range(dims)])
    x, y = examples(event, 1, seed=2), torch.tensor([1]) if event.classes else None
    joint = torch.zeros(len(every), dtype=torch.float64)
    with torch.no_grad():
        for order in model.orders:
            seen = [place for place in model.order.tolist() if known[place]]
            order = seen + [place for place in order.tolist() if not known[place]]
            joint += model.log_prob_in_order(every, order, None if y is None else y.expand(len(every))).exp() / orders
    fits = (every.flatten(1) == x.flatten())[:, known].all(1)
    garbage = torch.where(known.reshape(event.shape), x, event.levels - 1).expand(n, *event.shape)
    done = model.complete(garbage, known.reshape(event.shape), seed=3, y=None if y is None else y.expand(n))
    assert done.exact and done.ess is None
    assert bool((done.x.flatten(1) == x.flatten())[:, known].all())
    weight = event.levels ** torch.arange(dims - 1, -1, -1)
    counts = torch.bincount((done.x.flatten(1).long() * weight).sum(1), minlength=len(every))
    assert g_test(counts.numpy(), (joint * fits).numpy()) > 1e-4
    mask = known.reshape(1, *event.shape)
    state = model.begin(Noise(0, position=[0]), y=y, c=None, temperature=torch.ones(1), x=x, known=mask)
    weighed = model.advance(state, model.steps).log_weight.exp().item()
    assert weighed == pytest.approx(float((joint * fits).sum()), rel=1e-9)


def test_a_row_s_completion_depends_on_its_own_mask_alone() -> None:
    model, n = shaken("nade", EVENTS["grey"]), 40
    assert isinstance(model, NADE)
    x, y = examples(model.event, n), labels(model.event, n)
    assert y is not None
    known = Noise(1, position=range(n)).uniform("mask", model.event.shape) < torch.linspace(0, 1, n)[:, None, None, None]
    done = model.complete(x, known, seed=4, y=y)
    assert done.exact and torch.equal(done.x[known], x[known])
    alone = torch.cat([model.complete(x[i : i + 1], known[i : i + 1], seed=4, y=y[i : i + 1], first=i).x for i in range(n)])
    assert torch.equal(alone, done.x)


def test_fixed_training_completes_exactly_only_what_follows_in_its_order() -> None:
    """Other orders were never learnt, so that their conditionals are worth nothing."""
    model = shaken("nade", EVENTS["binary"], training="fixed", order=range(19, -1, -1), **SMALL)
    assert isinstance(model, NADE)
    x, last = examples(model.event, 2), torch.arange(20).reshape(1, 5, 4) >= 12
    assert model.complete(x, last, seed=0).exact
    other = model.complete(x, ~last, seed=0)
    assert not other.exact and "importance" in other.method


def test_a_label_nobody_gave_is_drawn_by_what_is_known() -> None:
    """p(y | known) p(rest | known, y), enumerated over labels and states."""
    event, n = COUNTABLE["grey"], 4000
    model = model_of(event, **SMALL)
    known, every, order = torch.tensor([False, True, False, True]), states(event), [1, 3, 0, 2]
    x = examples(event, 1, seed=1)
    with torch.no_grad():
        each = [model.log_prob_in_order(every, order, torch.full((len(every),), label)).exp() for label in range(2)]
    p = (each[0] * model.class_frequencies[0] + each[1] * model.class_frequencies[1]) * (every.flatten(1) == x.flatten())[:, known].all(1)
    drawn = model.complete(x.expand(n, *event.shape), known.reshape(event.shape), seed=8).x
    seen = torch.bincount((drawn.flatten(1).long() * torch.tensor([64, 16, 4, 1])).sum(1), minlength=len(every))
    assert g_test(seen.numpy(), p.numpy()) > 1e-4


def test_several_orders_are_averaged_as_probabilities() -> None:
    model = model_of(COUNTABLE["grey"], orders=3, **SMALL)
    every = states(model.event)
    y = torch.ones(len(every), dtype=torch.int64)
    with torch.no_grad():
        each = torch.stack([model.log_prob_in_order(every, order, y) for order in model.orders])
        nats = model.log_prob(every, y)
    torch.testing.assert_close(nats.exp(), each.exp().mean(0))
    assert nats.exp().sum().item() == pytest.approx(1, abs=1e-9)
    assert float(each.std(0).mean()) > 0.01
    assert model.orders[0].tolist() == [0, 1, 2, 3] and len({tuple(order) for order in model.orders.tolist()}) == 3
    with pytest.raises(ValueError, match=r"^an average over several orders has no conditionals one by one; build with orders: 1$"):
        model.log_probs(every, y)
    noise = Noise(3, position=range(20_000))
    x = model.draw(noise, y=torch.ones(20_000, dtype=torch.int64), c=None, temperature=torch.ones(20_000))
    seen = torch.bincount((x.flatten(1).long() * torch.tensor([64, 16, 4, 1])).sum(1), minlength=len(every))
    assert g_test(seen.numpy(), nats.exp().numpy()) > 1e-4


def test_steps_in_orders_of_their_own_give_each_order_s_nats() -> None:
    model, n = model_of(EVENTS["colour"], orders=5, **DEEP), 6
    y = labels(model.event, n)
    state = model.begin(Noise(4, position=range(n)), y=y, c=None, temperature=torch.ones(n))
    everything = torch.ones(n, *model.event.shape, dtype=torch.bool)
    assert state.order.shape == (n, 60) and y is not None
    drawn = model.read(model.advance(copied(state), model.steps))
    state.given, state.known = drawn.flatten(1).long(), everything.flatten(1)
    nats = model.advance(state, model.steps).log_weight
    with torch.no_grad():
        each = torch.cat([model.log_prob_in_order(drawn[i : i + 1], state.order[i], y[i : i + 1]) for i in range(n)])
    torch.testing.assert_close(nats, each, rtol=1e-9, atol=1e-9)


def test_a_random_order_belongs_to_its_seed() -> None:
    orders = [build("nade", EVENTS["grey"], order="random", order_seed=seed, hidden=(4,)) for seed in (0, 0, 1)]
    one, same, other = (model.order.tolist() for model in orders if isinstance(model, NADE))
    assert one == same != other and sorted(one) == sorted(other) == list(range(64))


@pytest.mark.parametrize(
    ("event", "config", "message"),
    [
        (
            Event(modality="table", shape=(4097,), levels=2),
            {},
            r"^NADE models at most 4096 values of levels; got table 4097, 2 levels$",
        ),
        (Event(modality="table", shape=(4,), levels=0), {}, r"^NADE models at most 4096 values of levels; got table 4, real values$"),
        (EVENTS["clicks"], {"order": [1, 0]}, r"^order \(1, 0\), orders 1 of a sound; .* wanted order: raster, orders: 1$"),
        (EVENTS["clicks"], {"orders": 2}, r"^order .raster., orders 2 of a sound; "),
        (EVENTS["grey"], {"hidden": ()}, r"^hidden \(\), orders 1, components 5; wanted sizes of at least 1$"),
        (EVENTS["grey"], {"orders": 0}, r"orders 0, .* wanted sizes of at least 1$"),
        (EVENTS["grey"], {"order": "spiral"}, r"^order 'spiral'; wanted raster, random, or each place"),
        (EVENTS["grey"], {"orders": 2, "training": "fixed"}, r"^2 orders of a fixed training, which learns one; "),
    ],
)
def test_what_it_cannot_be_is_said_at_once(event: Event, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("nade", event, **config)


def test_an_order_that_is_none_is_refused() -> None:
    model = build("nade", COUNTABLE["binary"], hidden=(4,))
    assert isinstance(model, NADE)
    for order in ([0, 1], [0] * 9, range(1, 10)):
        with pytest.raises(ValueError, match=r"wanted each place from 0 to 8 once$"):
            model.log_prob_in_order(examples(model.event, 1), order)
