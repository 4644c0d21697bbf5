"""What every autoregressive family is held to: causality, the whole past, kept activations, units, completion; all by enumeration or perturbation."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from genmodels.core import Autoregressive, Batch, Density, Event, Trained
from genmodels.noise import Noise
from genmodels.zoo import MODELS, build
from tests.genmodels.conftest import COUNTABLE, EVENTS, TINY, cases, examples, labels, shaken, states
from tests.genmodels.test_contract import g_test

FAMILIES = [name for name, kind in MODELS.items() if issubclass(kind, Autoregressive)]
TRAINED = [name for name in FAMILIES if issubclass(MODELS[name], Trained)]
SOURCES = {
    "image": Event(modality="image", shape=(1, 4, 4), levels=2),
    "audio": Event(modality="audio", shape=(16,), levels=2, sample_rate=1000),
    "table": Event(modality="table", shape=(16,), levels=2),
}
STAY = 0.85
"""How likely the source's next value is the one before, in raster order."""

WIDE = Event(modality="image", shape=(1, 17, 17), levels=3, classes=2)
"""On a smaller picture a blind spot hides."""
COLOUR = Event(modality="image", shape=(3, 5, 5), levels=4)
PARTIAL = {"pixelcnn", "row_lstm", "bayesnet"}
"""Families that do not see the whole past, a fact of theirs which their own tests state exactly."""
REACHING: dict[str, dict[str, Any]] = {
    "gated_pixelcnn": {"hidden": 4, "layers": 8, "head": 8},
    "multiscale": {"hidden": 4, "layers": 8, "head": 8},
}
"""Settings with which a family's receptive field spans 17 x 17; its defaults do where it is not named."""


def autoregressive(family: str, event: Event, **config: Any) -> Autoregressive:
    """A shaken model in float64."""
    model = shaken(family, event, **config).double()
    assert isinstance(model, Autoregressive)
    return model


def influence(model: Autoregressive, *, noise: Noise | None = None) -> Tensor:
    """(D, D): how far changing the value of step s moves the nats of step t at most, over a few pictures and labels; row s, column t."""
    event, order = model.event, model.order
    total = torch.zeros(event.dims, event.dims, dtype=torch.float64)
    for seed in range(2):
        base = examples(event, 1, seed=seed).flatten(1)
        x = base.repeat(event.dims + 1, 1)
        for step, place in enumerate(order.tolist()):
            x[step + 1, place] = (x[step + 1, place] + 1 + seed) % event.levels
        y = torch.full((len(x),), seed % event.classes) if event.classes else None
        same = None if noise is None else Noise(noise.seeds[0], position=[seed] * len(x))
        with torch.no_grad():
            nats = model.conditional_log_probs(x.reshape(-1, *event.shape), y=y, c=None, noise=same).flatten(1)[:, order]
        total = torch.maximum(total, (nats[1:] - nats[:1]).abs())
    return total


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("family", [name for name in FAMILIES if "image" in MODELS[name].modalities])
@pytest.mark.parametrize("event", [WIDE, COLOUR], ids=["grey", "colour"])
def test_the_whole_past_is_seen_and_nothing_else(family: str, event: Event, training: bool) -> None:
    model = autoregressive(family, event, **REACHING.get(family, {})).train(training)
    moved = influence(model, noise=Noise(1, position=[0]) if training else None)
    later = torch.ones_like(moved).tril(-1).bool()  # step t before step s
    assert float(moved[later].max()) < 1e-9, f"the future is seen: (of, by) {(moved * later > 1e-9).nonzero().flip(1).tolist()[:5]}"
    past = torch.ones_like(moved).triu(1).bool()
    if family not in PARTIAL:
        blind = past & (moved < 1e-14)
        assert not bool(blind.any()), (
            f"{int(blind.sum())} of {int(past.sum())} past values unseen: (of, by) {blind.nonzero().flip(1).tolist()[:5]}"
        )
    assert bool(((moved > 1e-9) & past).any(0)[1:].all()), "a value hears of none before it"


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_do_not_see_each_other_in_training(family: str) -> None:
    event = next(event for name, event in EVENTS.items() if event.modality in MODELS[family].modalities and name != "binary")
    model = autoregressive(family, event).train()
    x, noise = examples(event, 4), Noise(0, position=range(4))
    changed = x.clone()
    changed[2] = ((changed[2].long() + 1) % event.levels).to(torch.uint8)
    with torch.no_grad():
        one, other = (model.conditional_log_probs(each, y=labels(event, 4), c=None, noise=noise) for each in (x, changed))
    keep = [0, 1, 3]
    torch.testing.assert_close(one[keep], other[keep], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("family", "event"), cases(EVENTS, Autoregressive))
def test_kept_activations_give_the_full_networks_conditionals(family: str, event: str) -> None:
    """Teacher-forced, every step of four different rows; where the rows' levels lie, and that each step's levels sum to one."""
    kind = EVENTS[event]
    model, n = autoregressive(family, kind), 4
    x, y = examples(kind, n, seed=3), labels(kind, n)
    order = model.arranged(Noise(4, position=range(n)), None)
    flat = x.flatten(1).long()
    with torch.no_grad():
        memory, found = model.start(order, n, y=y, c=None), []
        for step in range(kind.dims):
            place = order[step].expand(n) if order.ndim == 1 else order[:, step]
            level = flat.gather(1, place[:, None])[:, 0]
            logits = model.predict(memory)
            assert logits.shape == (n, kind.levels)
            found.append((place, torch.log_softmax(logits, dim=-1).gather(1, level[:, None])[:, 0]))
            model.take(memory, level)
        nats = model.conditional_log_probs(x, y=y, c=None).flatten(1)
    for place, value in found:
        torch.testing.assert_close(value, nats.gather(1, place[:, None])[:, 0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", TRAINED)
def test_a_row_without_a_label_is_of_no_class(family: str) -> None:
    event = next(event for event in EVENTS.values() if event.modality in MODELS[family].modalities and event.classes)
    model, x = autoregressive(family, event), examples(event, 3)
    with torch.no_grad():
        bare, missing, labelled = (
            model.conditional_log_probs(x, y=y, c=None) for y in (None, torch.tensor([-1, 0, -1]), torch.zeros(3).long())
        )
    torch.testing.assert_close(missing, torch.stack([bare[0], labelled[1], bare[2]]), rtol=0, atol=1e-10)
    assert float((bare - labelled).flatten(1).abs().amax(1).min()) > 1e-3


@pytest.mark.parametrize(("family", "event"), cases(EVENTS, Autoregressive))
def test_nats_of_values_add_up(family: str, event: str) -> None:
    kind = EVENTS[event]
    model, x = autoregressive(family, kind), examples(kind, 3)
    length = torch.tensor([1, kind.dims // 2, kind.dims]) if kind.modality == "audio" else None
    with torch.no_grad():
        for y in (None, labels(kind, 3)):
            each = model.log_probs(x, y, length=length)
            assert each.shape == x.shape
            torch.testing.assert_close(each.flatten(1).sum(1), model.log_prob(x, y, length=length), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_model_has_the_same_conditionals(family: str) -> None:
    event = next(event for event in EVENTS.values() if event.modality in MODELS[family].modalities)
    model = shaken(family, event)
    other = build(family, event, seed=9)
    other.load_state_dict(model.state_dict())
    assert isinstance(model, Autoregressive) and isinstance(other, Autoregressive)
    x, y = examples(event, 4), labels(event, 4)
    with torch.no_grad():
        assert torch.equal(model.log_probs(x, y), other.eval().log_probs(x, y))


ONE_EACH = [
    (family, next(name for name in names if COUNTABLE[name].modality in MODELS[family].modalities))
    for family in FAMILIES
    for names in (["binary", "clicks", "table"], ["grey", "labelled clicks", "table"])
]


@pytest.mark.parametrize(("family", "event"), ONE_EACH)
def test_a_beginning_is_continued_by_the_exact_conditional(family: str, event: str) -> None:
    """G-test of completions of one beginning against enumeration; on a class model the label is summed over."""
    kind, n = COUNTABLE[event], 1600
    model = shaken(family, kind, **TINY.get(family, {}))
    assert isinstance(model, Autoregressive)
    every = states(kind).flatten(1)
    beginning = model.order[: kind.dims // 3]
    known = torch.zeros(kind.dims, dtype=torch.bool)
    known[beginning] = True
    x = examples(kind, 1, seed=5)
    fits = (every[:, known] == x.flatten(1)[:, known]).all(1)
    with torch.no_grad():
        p = (model.log_prob(states(kind)).double().exp() * fits).numpy()
    garbage = torch.where(known.reshape(kind.shape), x, kind.levels - 1).expand(n, *kind.shape)
    done = model.complete(garbage, known.reshape(kind.shape), seed=3)
    assert done.exact and done.ess is None
    assert bool((done.x.flatten(1)[:, known] == x.flatten(1)[:, known]).all())
    weight = kind.levels ** torch.arange(kind.dims - 1, -1, -1)
    seen = torch.bincount((done.x.flatten(1).long() * weight).sum(1), minlength=len(every))
    assert g_test(seen.numpy(), p / p.sum()) > 1e-4
    assert torch.equal(done.x[7:9], model.complete(garbage[:2], known.reshape(kind.shape), seed=3, first=7).x)


@pytest.mark.parametrize("family", FAMILIES)
def test_values_in_the_middle_are_kept_and_weighed(family: str) -> None:
    """Where what is known does not come first, a draw's weight is the probability of the known values, each given all before it."""
    event = next(event for name, event in COUNTABLE.items() if event.modality in MODELS[family].modalities and not event.classes)
    model = autoregressive(family, event) if event.modality != "table" else autoregressive(family, COUNTABLE["binary"])
    event, n = model.event, 5
    known = torch.zeros(event.dims, dtype=torch.bool)
    known[model.order[1::2]] = True
    x = examples(event, n)
    done = model.complete(x, known.reshape(event.shape), seed=1)
    assert torch.equal(done.x.flatten(1)[:, known], x.flatten(1)[:, known])
    if done.exact:
        return
    assert done.ess is not None and bool(((done.ess >= 1) & (done.ess <= 64)).all()) and "importance" in done.method
    noise, ones = Noise(2, position=range(n)), torch.ones(n)
    state = model.begin(noise, y=None, c=None, temperature=ones, x=x, known=known.expand(n, -1).reshape(n, *event.shape))
    state = model.advance(state, model.steps)
    with torch.no_grad():
        nats = model.log_probs(model.read(state)).flatten(1)
    torch.testing.assert_close(state.log_weight, nats[:, known].sum(1), rtol=1e-8, atol=1e-8)
    with pytest.raises(ValueError, match=r"^temperature 0.5 for values that are not first in the model's order"):
        model.complete(x, known.reshape(event.shape), seed=1, temperature=0.5)


@pytest.mark.parametrize("temperature", [0.4, 2.5])
def test_a_completion_is_drawn_at_its_temperature(temperature: float) -> None:
    """The values that are drawn have it; the label, which is drawn from p(y | known), has not."""
    event, n = Event(modality="table", shape=(2,), levels=4, classes=2), 4000
    model, y = shaken("fvbn", event, by=3.0), torch.arange(2).repeat_interleave(16)
    assert isinstance(model, Autoregressive)
    with torch.no_grad():
        p = model.log_prob(states(event).repeat(2, 1), y).double().exp().reshape(2, 4, 4)
    known, first = torch.tensor([True, False]), 1
    label = p[:, first].sum(1) * model.class_frequencies
    each = p[:, first] ** (1 / temperature)
    wanted = ((label / label.sum())[:, None] * each / each.sum(1, keepdim=True)).sum(0)
    done = model.complete(torch.tensor([[first, 0]]).expand(n, -1), known, seed=1, temperature=temperature)
    assert g_test(torch.bincount(done.x[:, 1].long(), minlength=4).numpy(), wanted.numpy()) > 1e-4


def test_values_that_come_last_are_weighed_in() -> None:
    """Importance resampling against the enumerated conditional, the label summed over; draws that are not weighed are far from it."""
    kind, n = COUNTABLE["labelled clicks"], 240
    model, every = shaken("fvbn", kind, by=3.0), states(kind)
    assert isinstance(model, Autoregressive)
    known, x = torch.arange(kind.dims) >= kind.dims - 2, examples(kind, 1, seed=1)
    with torch.no_grad():
        p = model.log_prob(every).double().exp()
    weight = 2 ** torch.arange(4, -1, -1)
    free = (every[:, ~known].long() * weight).sum(1)
    fits = (every[:, known] == x[:, known]).all(1)
    posterior, prior = (torch.zeros(2**5, dtype=torch.float64).index_add(0, free, each) for each in (p * fits, p))
    done = model.complete(x.expand(n, -1), known, seed=2)
    seen = torch.bincount((done.x[:, ~known].long() * weight).sum(1), minlength=len(prior)).numpy()
    assert not done.exact and g_test(seen, posterior.numpy()) > 1e-4 and g_test(seen, prior.numpy()) < 1e-9
    assert torch.equal(done.x[7:9], model.complete(x.expand(2, -1), known, seed=2, first=7).x)


@pytest.mark.parametrize(("family", "event"), ONE_EACH)
def test_a_temperature_is_a_power_of_the_first_value_s_probabilities(family: str, event: str) -> None:
    kind, n = COUNTABLE[event], 2000
    model, every = shaken(family, kind, by=1.0, **TINY.get(family, {})), states(kind)
    assert isinstance(model, Autoregressive)
    place, y = int(model.order[0]), torch.full((n,), kind.classes - 1) if kind.classes else None
    with torch.no_grad():
        nats = model.log_prob(every, None if y is None else y[:1].expand(len(every))).double()
    p = torch.zeros(kind.levels, dtype=torch.float64).index_add(0, every.flatten(1)[:, place].long(), nats.exp())
    for temperature in (0.5, 3.0):
        state = model.begin(Noise(2, position=range(n)), y=y, c=None, temperature=torch.full((n,), temperature))
        drawn = model.read(model.advance(state, 1)).flatten(1)[:, place].long()
        assert g_test(torch.bincount(drawn, minlength=kind.levels).numpy(), (p ** (1 / temperature)).numpy()) > 1e-4


@pytest.mark.parametrize("family", ["fvbn", "made", "pixelcnn"])
def test_a_completion_does_not_depend_on_its_neighbours_masks(family: str) -> None:
    """A row whose known values come first is continued exactly beside one whose known values do not."""
    event = COUNTABLE["binary"]
    model, x = shaken(family, event, **TINY.get(family, {})), examples(event, 2)
    assert isinstance(model, Autoregressive)
    known = torch.zeros(2, event.dims, dtype=torch.bool)
    known[0, model.order[:3]] = True
    known[1, model.order[3:6]] = True
    masks = known.reshape(2, *event.shape)
    both = model.complete(x, masks, seed=4)
    alone = [model.complete(x[i : i + 1], masks[i], seed=4, first=i) for i in range(2)]
    assert [one.exact for one in alone] == [True, False] and not both.exact
    assert both.ess is not None and alone[1].ess is not None
    assert both.ess[0].isnan() and both.ess[1] == alone[1].ess[0]
    assert all(torch.equal(both.x[i], one.x[0]) for i, one in enumerate(alone))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mask_of_another_shape_is_refused(family: str) -> None:
    event = next(event for event in EVENTS.values() if event.modality in MODELS[family].modalities)
    model = build(family, event, **TINY.get(family, {}))
    assert isinstance(model, Autoregressive)
    with pytest.raises(ValueError, match=r"^known values marked by torch.bool of shape \(2,\); wanted bool of shape "):
        model.complete(examples(event, 1), torch.ones(2, dtype=torch.bool), seed=0)


@pytest.mark.parametrize(("family", "event"), cases(EVENTS, Autoregressive))
def test_a_uniform_model_scores_d_ln_k(family: str, event: str) -> None:
    """Of zero weights a softmax is uniform; a mixture over a line of levels is not, but it says the same of every value, and that adds up."""
    model, x, y = build(family, EVENTS[event], **TINY.get(family, {})), examples(EVENTS[event], 3), labels(EVENTS[event], 3)
    assert isinstance(model, Autoregressive)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        nats = -model.log_prob(x, y)
        each = torch.log_softmax(
            model.next_logits(model.begin(Noise(0, position=range(3)), y=y, c=None, temperature=torch.ones(3))), dim=-1
        )
    flat = float(each.max() - each.min()) < 1e-5
    if flat:
        torch.testing.assert_close(nats, torch.full((3,), EVENTS[event].dims * math.log(EVENTS[event].levels)))
    torch.testing.assert_close(nats, -each.gather(1, x.flatten(1).long()).sum(1).to(nats.dtype))


@pytest.mark.parametrize("family", TRAINED)
def test_no_score_below_the_entropy_of_the_source(family: str) -> None:
    """Trained on a Markov chain, a model comes near the chain's entropy and stays above it: a leak of the future would go below."""
    event = SOURCES[min(MODELS[family].modalities, key=list(SOURCES).index)]
    model = build(family, event, **TINY.get(family, {})).train()
    assert isinstance(model, Density) and isinstance(model, Trained)
    (objective,) = model.objectives()
    optimizer = torch.optim.Adam(objective.parameters, lr=1e-2)
    for step in range(150):
        batch = Batch(x=chain(event, 128, step=step), position=torch.arange(128), step=step)
        optimizer.zero_grad()
        objective.loss(batch, Noise(0, position=batch.position, step=step))[0].backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        nats = -model.log_prob(chain(event, 4000, step=10_000)).double()
    entropy = math.log(2) - 15 * (STAY * math.log(STAY) + (1 - STAY) * math.log(1 - STAY))
    error = float(nats.std()) / math.sqrt(len(nats))
    assert entropy - 4 * error < float(nats.mean()) < entropy + 4 * error + 0.05 * entropy


def chain(event: Event, n: int, *, step: int) -> Tensor:
    """(n, *shape) uint8: 16 values, each equal to the one before with probability STAY."""
    u = Noise(0, position=range(n), step=step).uniform("chain", (16,))
    flips = (u >= STAY).long()
    flips[:, 0] = (u[:, 0] >= 0.5).long()
    return (flips.cumsum(1) % 2).reshape(n, *event.shape).to(torch.uint8)
