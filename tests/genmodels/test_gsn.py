"""The chain against its enumerated transition matrix: where it is after a few steps and after many, with values held fast, and when trained."""

from typing import Any

import pytest
import torch
from torch import Tensor

from genmodels.core import BLOCK, Batch, Event
from genmodels.models.gsn import GSN
from genmodels.nn import values
from genmodels.noise import Noise
from genmodels.train import Schedule, TrainConfig, fit
from tests.genmodels.conftest import examples, shaken, states
from tests.genmodels.test_contract import g_test

TOY = Event(modality="image", shape=(1, 2, 3), levels=2)
LABELLED = Event(modality="image", shape=(1, 2, 2), levels=3, classes=2)
SINGLE = Event(modality="image", shape=(1, 1, 1), levels=16)
CASES = [(TOY, None), (LABELLED, 1)]


def model_of(event: Event = TOY, *, by: float = 1.5, **config: Any) -> GSN:
    model = shaken("gsn", event, by=by, **{"hidden": (8,), **config})
    assert isinstance(model, GSN)
    return model


def indices(x: Tensor, event: Event) -> Tensor:
    """(B, *shape) -> (B,) int64: the number of each state in `states`."""
    return (x.flatten(1).long() * event.levels ** torch.arange(event.dims - 1, -1, -1)).sum(1)


def spoiling(model: GSN) -> Tensor:
    """(S, S) float64: C(x~ | x) of every pair of states, from the settings alone."""
    noise, levels = model.config.noise, model.event.levels
    drawn = torch.zeros(levels, dtype=torch.float64)
    if model.config.corruption == "uniform":
        drawn += 1 / levels
    else:
        drawn[0] = drawn[-1] = 1 / 2
    one = (1 - noise) * torch.eye(levels, dtype=torch.float64) + noise * drawn
    every = states(model.event).flatten(1).long()
    return one[every[:, None], every[None]].prod(2)


@torch.no_grad()
def transition(model: GSN, y: int | None = None) -> Tensor:
    """(S, S) float64: the probability of x' after x."""
    every = states(model.event)
    nats = values.log_probs(model.restored(every, None if y is None else torch.full((len(every),), y)), model.event.levels).double()
    reached = nats[:, torch.arange(model.event.dims), every.flatten(1).long()].sum(2)  # (spoilt, restored)
    return spoiling(model) @ reached.exp()


def stationary(matrix: Tensor) -> tuple[Tensor, float]:
    """The left eigenvector of eigenvalue one, as probabilities; and the size of the next eigenvalue, by which a step forgets."""
    eigenvalues, vectors = torch.linalg.eig(matrix.T)
    order = eigenvalues.abs().argsort(descending=True)
    law = vectors[:, order[0]].real
    return law / law.sum(), eigenvalues[order[1]].abs().item()


def after(model: GSN, n: int, y: int | None, seed: int = 3) -> Tensor:
    """(S,) int64: in which states n chains end."""
    label = None if y is None else torch.full((n,), y)
    with torch.no_grad():
        x = model.draw(Noise(seed, position=range(n)), y=label, c=None, temperature=torch.ones(n))
    return torch.bincount(indices(x, model.event), minlength=model.event.levels**model.event.dims)


def total_variation(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().sum() / 2).item()


@pytest.mark.parametrize("corruption", ["uniform", "salt-and-pepper"])
@pytest.mark.parametrize("levels", [2, 3, 256])
def test_a_value_is_spoilt_with_the_stated_probabilities(levels: int, corruption: str) -> None:
    event, draws = Event(modality="image", shape=(1, 1, 2), levels=levels), 30_000
    model = model_of(event, corruption=corruption, noise=0.4)
    x = torch.tensor([1, levels - 1], dtype=torch.uint8).expand(draws, 1, 1, 2)
    spoilt = model.spoilt(x, Noise(1, position=range(draws)).uniform("u", (2,)))
    assert spoilt.dtype == torch.uint8 and spoilt.shape == x.shape
    for place, level in enumerate((1, levels - 1)):
        p = torch.full((levels,), 0.4 / levels) if corruption == "uniform" else torch.zeros(levels)
        if corruption != "uniform":
            p[0] = p[-1] = 0.2
        p[level] += 0.6
        seen = torch.bincount(spoilt[:, 0, 0, place].long(), minlength=levels)
        assert not seen[p == 0].any() and g_test(seen.numpy(), p.double().numpy()) > 1e-4


@pytest.mark.parametrize(("event", "y"), CASES)
def test_the_enumerated_chain_is_one_and_forgets(event: Event, y: int | None) -> None:
    matrix = transition(model_of(event), y)
    torch.testing.assert_close(matrix.sum(1), torch.ones(len(matrix), dtype=torch.float64), rtol=1e-6, atol=1e-6)
    law, forgets = stationary(matrix)
    assert bool((law > 0).all()) and forgets < 0.99 and law.std() > 0.3 * law.mean()
    torch.testing.assert_close(law @ matrix, law)


@pytest.mark.parametrize(("event", "y"), CASES)
def test_a_short_chain_is_where_its_matrix_says(event: Event, y: int | None) -> None:
    """After two steps from even levels: a step too few or many, or a law of the start, would show."""
    model, draws = model_of(event, steps=2, noise=0.1), 40_000
    matrix = transition(model, y)
    even = torch.full((len(matrix),), 1 / len(matrix), dtype=torch.float64)
    law = even @ matrix @ matrix
    for other in (even @ matrix, law @ matrix):
        assert total_variation(law, other) > 0.02, "one step more or less would not show"
    assert g_test(after(model, draws, y).numpy(), law.numpy()) > 1e-4


@pytest.mark.parametrize(("event", "y"), CASES)
@pytest.mark.parametrize("corruption", ["uniform", "salt-and-pepper"])
def test_a_long_chain_draws_from_the_stationary_law(event: Event, y: int | None, corruption: str) -> None:
    model, draws = model_of(event, steps=24, noise=0.5, corruption=corruption), 20_000
    law, forgets = stationary(transition(model, y))
    assert forgets**24 < 1e-4, "the chain is too short to have forgotten its start"
    assert g_test(after(model, draws, y).numpy(), law.numpy()) > 1e-4


@pytest.mark.parametrize(("event", "y"), CASES)
def test_completions_are_where_the_clamped_matrix_says(event: Event, y: int | None) -> None:
    model, draws = model_of(event, steps=3, noise=0.2), 20_000
    known = torch.zeros(event.shape, dtype=torch.bool)
    known[0, 0, :2] = True
    x, every = examples(event, 1, seed=1), states(event)
    put_back = torch.zeros(len(every), len(every), dtype=torch.float64)
    put_back[torch.arange(len(every)), indices(torch.where(known, x, every), event)] = 1
    law = torch.full((len(every),), 1 / len(every), dtype=torch.float64) @ put_back
    for _ in range(3):
        law = law @ transition(model, y) @ put_back
    label = None if y is None else torch.full((draws,), y)
    noise = Noise(5, position=range(draws))
    with torch.no_grad():
        drawn = model._clamped(noise, x.expand(draws, -1, -1, -1), known.expand(draws, -1, -1, -1), label)
    seen = torch.bincount(indices(drawn, event), minlength=len(every))
    assert not seen[law == 0].any() and g_test(seen.numpy(), law.numpy()) > 1e-4
    found = model.complete(x.expand(40, -1, -1, -1), known, seed=5, y=None if label is None else label[:40])
    assert torch.equal(found.x, drawn[:40]) and not found.exact and found.ess is None


def test_a_completion_depends_on_its_own_row_alone() -> None:
    model, n = model_of(LABELLED, steps=4), BLOCK + 3
    x, y = examples(LABELLED, n), torch.arange(n) % 2
    known = examples(LABELLED, n, seed=2) > 0
    whole = model.complete(x, known, seed=7, y=y)
    assert torch.equal(whole.x[known], x[known]) and "known values put back after each of its 4 steps" in whole.method
    hidden = torch.where(known, x, 255)  # what is not known is not looked at
    part = model.complete(hidden[4:6], known[4:6], seed=7, y=y[4:6], first=4)
    assert torch.equal(part.x, whole.x[4:6])
    assert torch.equal(model.complete(x[4:6], known[4:6], seed=7, first=4).x[known[4:6]], x[4:6][known[4:6]])
    nothing = torch.zeros(LABELLED.shape, dtype=torch.bool)
    assert torch.equal(model.complete(x, nothing, seed=7, y=y).x, model.sample(n, seed=7, y=y))
    everything = model.complete(x, ~nothing, seed=7, y=y)
    assert torch.equal(everything.x, x)


def test_what_a_completion_does_not_take_is_refused() -> None:
    model, x = model_of(), examples(TOY, 2)
    known = torch.ones(TOY.shape, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"^known values marked by torch.uint8 of shape \(1, 2, 3\); wanted bool of shape "):
        model.complete(x, known.to(torch.uint8), seed=0)
    with pytest.raises(ValueError, match=r"^known values marked by torch.bool of shape \(2, 3\); "):
        model.complete(x, known[0], seed=0)
    with pytest.raises(ValueError, match=r"^temperature other than 1 asked of GSN, "):
        model.complete(x, known, seed=0, temperature=0.5)
    with pytest.raises(ValueError, match=r"^a label was given to an unlabelled model; leave it out$"):
        model.complete(x, known, seed=0, y=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^levels from 0 to 7; wanted 0 to 1$"):
        model.complete(torch.full_like(x, 7), torch.cat([known, known]).reshape(2, 1, 2, 3) & (torch.arange(3) > 0), seed=0)


@pytest.mark.parametrize("walkback", [1, 3])
def test_the_loss_is_its_expectation_over_the_walk(walkback: int) -> None:
    """Of one example: where the walk is at each turn, by the matrices, and what it costs there to restore the example."""
    model, rows = model_of(walkback=walkback, noise=0.3), 40_000
    x, every = examples(TOY, 1, seed=3), states(TOY)
    spoil, step = spoiling(model), transition(model)
    with torch.no_grad():
        cost = -values.log_prob(model.restored(every, None), x.flatten(1).expand(64, -1), 2).double().mean(1)
        where, wanted = torch.zeros(64, dtype=torch.float64), []
        where[indices(x, TOY)] = 1
        for _ in range(walkback):
            wanted.append((where @ spoil @ cost).item())
            where = where @ step
        batch = Batch(x=x.expand(rows, -1, -1, -1), position=torch.arange(rows))
        loss, metrics = model.loss(batch, Noise(0, position=batch.position))
    assert loss.item() == pytest.approx(sum(wanted) / walkback, rel=0.01)
    assert metrics["first"].item() == pytest.approx(wanted[0], rel=0.01)
    assert metrics["last"].item() == pytest.approx(wanted[-1], rel=0.01)
    assert walkback == 1 or wanted[-1] > 1.05 * wanted[0], "the walk leads nowhere"


def trained(event: Event, law: Tensor, **config: Any) -> float:
    """The total variation between a law and the stationary one of a chain that was trained on draws from it."""
    model = model_of(event, by=0.1, hidden=(32,), **config).train()

    def batches(step: int) -> Batch:
        u = Noise(9, position=range(512), step=step).uniform("x")
        rows = torch.searchsorted(law.cumsum(0), u).clamp(max=len(law) - 1)
        return Batch(x=states(event)[rows], position=torch.arange(512) + 512 * step, step=step)

    fit(model, TrainConfig(steps=400, batch_size=512, lr=0.02, schedule=Schedule(decay="cosine")), batches)
    return total_variation(stationary(transition(model))[0], law.double())


def stripes() -> Tensor:
    """(64,) probabilities of TOY's pictures: mostly one of four stripes, some of it anything."""
    rows = states(TOY).flatten(1).tolist()
    chosen = ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 0, 1], [0, 1, 0, 0, 1, 0])
    return torch.tensor([0.2 if row in chosen else 0.2 / 60 for row in rows])


@pytest.mark.parametrize(("noise", "walkback"), [(0.8, 1), (0.3, 3)])
def test_a_chain_of_one_value_tends_to_the_law_it_was_trained_on(noise: float, walkback: int) -> None:
    """One value given its spoilt self has nothing to be independent of: whatever the noise, the stationary law is the data's."""
    law = torch.softmax(2 * torch.sin(torch.arange(16.0)), 0)
    assert total_variation(law, torch.full((16,), 1 / 16)) > 0.4
    assert trained(SINGLE, law, noise=noise, walkback=walkback) < 0.06


def test_less_noise_comes_nearer_to_a_law_of_many_values() -> None:
    """Restoring values independently of each other is right for few at a time, and blurs the stripes for many."""
    near, far = (trained(TOY, stripes(), noise=noise, walkback=1) for noise in (0.1, 0.6))
    assert near < 0.15 and far > near + 0.15, (near, far)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^corruption 'gaussian'; wanted uniform or salt-and-pepper$"):
        GSN.Config(corruption="gaussian")  # type: ignore[arg-type]
    wrong: list[dict[str, Any]] = [{"noise": 0.0}, {"noise": 1.5}, {"steps": 0}, {"walkback": 0}, {"hidden": ()}]
    for settings in wrong:
        with pytest.raises(ValueError, match=r"wanted a hidden layer or more, sizes and steps of at least 1 and noise above 0 up to 1$"):
            GSN.Config(**settings)
    said = "spoiling (each value drawn anew from all levels with probability 0.3) and restoring, 7 steps from independent even levels"
    assert model_of(steps=7).chain == said
