"""FVBN: what one regression a value can know, in the order it was told; what it refuses."""

import math

import pytest
import torch

from genmodels.core import Batch, Event
from genmodels.models.fvbn import FVBN
from genmodels.noise import Noise
from genmodels.zoo import build
from tests.genmodels.conftest import COUNTABLE, examples, shaken, states

TABLE = Event(modality="table", shape=(5,), levels=2)


def test_its_density_is_that_of_the_regressions() -> None:
    """Eq. 1: each value is a Bernoulli whose logit is linear in the values before it, computed here one at a time."""
    model = shaken("fvbn", TABLE, order=(3, 0, 4, 1, 2)).double()
    assert isinstance(model, FVBN)
    weight, bias = model.weight[:, 0, :, 0], model.bias
    for x in states(TABLE):
        z, nats = 2.0 * x[model.order] - 1, 0.0
        for t in range(5):
            logit = bias[t] + sum(z[s] * weight[s, t] for s in range(t))
            nats += math.log(torch.sigmoid(z[t] * logit).item())
        assert model.log_prob(x[None]).item() == pytest.approx(nats, abs=1e-12)


def test_weights_of_a_logistic_chain_are_found() -> None:
    """Fitted to all states, weighed by their probabilities, it finds the weights that made them, and zeros where the chain has none."""
    true = torch.zeros(5, 5)
    true[range(4), range(1, 5)] = torch.tensor([1.2, -0.8, 0.5, -1.5])
    every, bias = states(TABLE), torch.tensor([0.3, -0.2, 0.1, 0.4, -0.5])
    source, model = FVBN(TABLE, FVBN.Config()).double(), FVBN(TABLE, FVBN.Config()).double()
    with torch.no_grad():
        source.weight[:, 0, :, 0].copy_(true)
        source.bias.copy_(bias)
        p = source.log_prob(every).exp()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def cross_entropy() -> torch.Tensor:
        optimizer.zero_grad()
        nats = -(p * model.log_prob(every)).sum()
        nats.backward()
        return nats

    optimizer.step(cross_entropy)  # type: ignore[arg-type]
    torch.testing.assert_close(model.weight[:, 0, :, 0].triu(1), true.double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(model.bias.detach(), bias.double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("event", [name for name, event in COUNTABLE.items() if event.modality != "audio"])
@pytest.mark.parametrize("order", ["raster", "random", "stated"])
def test_a_value_depends_on_those_before_it_in_the_order_alone(event: str, order: str) -> None:
    kind = COUNTABLE[event]
    places = tuple(reversed(range(kind.dims))) if order == "stated" else order
    model = shaken("fvbn", kind, order=places).double()
    assert isinstance(model, FVBN)
    assert sorted(model.order.tolist()) == list(range(kind.dims))
    assert order != "stated" or model.order.tolist() == list(places)
    x, y = examples(kind, 1), torch.zeros(1, dtype=torch.int64) if kind.classes else None
    before = model.log_probs(x, y).flatten()
    for step, place in enumerate(model.order.tolist()):
        moved = x.clone()
        moved.view(-1)[place] = (moved.view(-1)[place] + 1) % kind.levels
        changed = (model.log_probs(moved, y).flatten() - before).abs()[model.order] > 1e-9
        assert changed.tolist() == [t >= step for t in range(kind.dims)]


def test_a_random_order_is_a_function_of_its_seed() -> None:
    event = Event(modality="image", shape=(1, 8, 8), levels=2)
    one, same, other = (build("fvbn", event, order="random", order_seed=seed, seed=seed) for seed in (1, 1, 2))
    assert isinstance(one, FVBN) and isinstance(same, FVBN) and isinstance(other, FVBN)
    assert torch.equal(one.order, same.order) and not torch.equal(one.order, other.order)
    assert sum(a == b for a, b in zip(one.order.tolist(), range(64), strict=True)) < 12


@pytest.mark.parametrize("order", ["random", (5, 4, 3, 2, 1, 0)])
def test_sums_to_one_and_samples_in_any_order(order: str | tuple[int, ...]) -> None:
    event = COUNTABLE["table"]
    model, n = shaken("fvbn", event, order=order), 4000
    assert isinstance(model, FVBN)
    y = torch.zeros(len(states(event)), dtype=torch.int64)
    with torch.no_grad():
        p = model.log_prob(states(event), y).exp().double()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    drawn = model.draw(Noise(0, position=range(n)), y=torch.zeros(n, dtype=torch.int64), c=None, temperature=torch.ones(n))
    with torch.no_grad():
        surprise = -model.log_prob(drawn, torch.zeros(n, dtype=torch.int64)).double()
    entropy = -(p * p.log()).sum()
    assert abs(float(surprise.mean() - entropy)) < 4 * float(surprise.std()) / math.sqrt(n)


def test_the_first_step_of_training_moves_only_what_is_before() -> None:
    model = build("fvbn", TABLE).train()
    assert isinstance(model, FVBN)
    batch = Batch(x=examples(TABLE, 64), position=torch.arange(64))
    model.loss(batch, Noise(0, position=batch.position))[0].backward()
    assert model.weight.grad is not None
    assert torch.equal(model.weight.grad[:, 0, :, 0] != 0, torch.ones(5, 5).triu(1).bool())


def test_what_it_cannot_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^FVBN models at most 4096 values of levels; got image 3x64x64"):
        build("fvbn", Event(modality="image", shape=(3, 64, 64), levels=2))
    with pytest.raises(ValueError, match=r"; got table 5, real values$"):
        build("fvbn", Event(modality="table", shape=(5,), levels=0))
    for order in ("spiral", (0, 1, 2, 3), (0, 1, 2, 3, 3)):
        with pytest.raises(ValueError, match=r"^order .*; wanted raster, random, or each place from 0 to 4 once$"):
            build("fvbn", TABLE, order=order)
