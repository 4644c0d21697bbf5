"""What every family of the zoo owes to the rest of the project. Adding a family needs no edit here."""

import random
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from genmodels.core import (
    BLOCK,
    Batch,
    Bounded,
    Classifies,
    Decodes,
    Density,
    Encodes,
    Event,
    GenerativeModel,
    Objective,
    Progressive,
    Tempered,
    Trained,
    capabilities,
    copied,
)
from genmodels.noise import Noise
from genmodels.zoo import MODELS, build
from tests.genmodels.conftest import COUNTABLE, EVENTS, FULL, PERSISTENT, TINY, cases, examples, labels, shaken, states


@contextmanager
def global_generators_untouched() -> Iterator[None]:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[union-attr]  # noqa: NPY002
    yield
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[arg-type]  # noqa: NPY002
    assert before[2] == random.getstate()


@contextmanager
def state_dict_untouched(model: GenerativeModel, *, but: Collection[str] = ()) -> Iterator[None]:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    yield
    assert {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])} - set(but) == set()


def batch_of(event: Event, n: int) -> Batch:
    length = torch.arange(1, n + 1).clamp(max=event.shape[0]) if event.modality == "audio" else None
    return Batch(x=examples(event, n), y=labels(event, n), length=length, position=torch.arange(100, 100 + n), step=3)


@pytest.mark.parametrize(("family", "event"), cases(EVENTS))
def test_first_weights_are_a_function_of_the_seed(family: str, event: str) -> None:
    with global_generators_untouched():
        models = [build(family, EVENTS[event], seed=seed) for seed in (5, 5, 6)]
    one, same, other = (nn.utils.parameters_to_vector(model.parameters()) for model in models)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("family", MODELS)
def test_modality_of_another_kind_is_refused(family: str) -> None:
    for event in EVENTS.values():
        if event.modality not in MODELS[family].modalities:
            with pytest.raises(ValueError, match=r"models (image|audio|table).*; got " + event.modality):
                build(family, event)


@pytest.mark.parametrize("family", MODELS)
def test_unknown_setting_is_refused(family: str) -> None:
    event = next(event for event in EVENTS.values() if event.modality in MODELS[family].modalities)
    with pytest.raises(ValueError, match=f"^unknown setting 'widht' of {family}; known: "):
        build(family, event, widht=3)


@pytest.mark.parametrize(("family", "event"), cases(EVENTS))
def test_a_sample_depends_on_its_own_request_alone(family: str, event: str) -> None:
    """The same bytes for any n, any start, any neighbours and any place in the block of rows."""
    model, y = shaken(family, EVENTS[event]), labels(EVENTS[event], 2 * BLOCK)
    with global_generators_untouched(), state_dict_untouched(model):
        all_rows = model.sample(BLOCK + 3, seed=11, y=None if y is None else y[: BLOCK + 3])
        few = model.sample(2, seed=11, first=4, y=None if y is None else y[4:6])
        order = torch.randperm(BLOCK, generator=torch.Generator().manual_seed(1)).tolist()
        strangers = [11 if i % 2 else 12 for i in range(BLOCK)]
        mixed = model.sample_rows(strangers, order, y=None if y is None else y[order], temperature=torch.ones(BLOCK))
    assert all_rows.shape == (BLOCK + 3, *EVENTS[event].shape)
    assert all_rows.dtype == torch.uint8 and int(all_rows.max()) < EVENTS[event].levels
    assert torch.equal(few, all_rows[4:6])
    for row, index in enumerate(order):
        assert torch.equal(mixed[row], all_rows[index]) == bool(row % 2), f"row {row} holds sample {index}"


@pytest.mark.parametrize(("family", "event"), cases(FULL))
def test_a_row_s_bytes_do_not_depend_on_its_place_at_full_size(family: str, event: str) -> None:
    model, one = shaken(family, FULL[event]), torch.ones(BLOCK)
    y = torch.arange(BLOCK) % 10
    order = torch.randperm(BLOCK, generator=torch.Generator().manual_seed(2))
    rows = model.sample_rows([3] * BLOCK, range(BLOCK), y=y, temperature=one)
    moved = model.sample_rows([3 if i % 3 else 4 for i in range(BLOCK)], order.tolist(), y=y[order], temperature=one)
    for row, index in enumerate(order.tolist()):
        assert torch.equal(moved[row], rows[index]) == bool(row % 3), f"row {row} holds sample {index}"


@pytest.mark.parametrize(("family", "event"), cases(EVENTS))
def test_what_a_model_does_not_take_is_refused(family: str, event: str) -> None:
    model, classes = build(family, EVENTS[event]), EVENTS[event].classes
    if classes:
        with pytest.raises(ValueError, match=f"^label {classes}; wanted 0 to {classes - 1}$"):
            model.sample(2, seed=0, y=classes)
        with pytest.raises(ValueError, match=r"^labels of shape \(3,\); wanted \(2,\)$"):
            model.sample(2, seed=0, y=[0, 0, 0])
    else:
        with pytest.raises(ValueError, match=r"^a label was given to an unlabelled model; leave it out$"):
            model.sample(2, seed=0, y=0)
    if not isinstance(model, Tempered):
        with pytest.raises(ValueError, match=f"^temperature other than 1 asked of {type(model).__name__}, "):
            model.sample(1, seed=0, temperature=0.5)
    with pytest.raises(ValueError, match=r"^temperature .*"):
        model.sample(1, seed=0, temperature=0.0)
    with pytest.raises(ValueError, match=r"^a condition was given; this model takes none: leave it out$"):
        model.sample(1, seed=0, c=torch.zeros(1))


@pytest.mark.parametrize(("family", "event"), cases(EVENTS, Tempered))
def test_temperature_is_a_row_s_own_and_low_ones_agree(family: str, event: str) -> None:
    model = shaken(family, EVENTS[event])
    y = labels(EVENTS[event], 4)
    temperature = torch.tensor([1.0, 1e-6, 1e-6, 3.0])
    rows = model.sample_rows([1, 2, 3, 4], [0, 0, 0, 0], y=None if y is None else y[:1].expand(4), temperature=temperature)
    assert torch.equal(rows[1], rows[2])  # next to no randomness is left
    assert torch.equal(rows[0], model.sample(1, seed=1, y=None if y is None else y[:1])[0])
    assert not torch.equal(rows[3], model.sample(1, seed=4, y=None if y is None else y[:1], temperature=1e-6)[0])


@pytest.mark.parametrize(("family", "event"), cases(COUNTABLE, Density))
def test_density_sums_to_one(family: str, event: str) -> None:
    model = shaken(family, COUNTABLE[event])
    assert isinstance(model, Density)
    every = states(COUNTABLE[event])
    given: list[Tensor | None] = [None, *(torch.full((len(every),), label) for label in range(COUNTABLE[event].classes))]
    with torch.no_grad(), state_dict_untouched(model), global_generators_untouched():
        totals = [model.log_prob(every, y).double().exp().sum().item() for y in given]
    assert totals == pytest.approx([1.0] * len(totals), abs=1e-5)


@pytest.mark.parametrize(("family", "event"), cases(COUNTABLE, Density))
def test_sampler_draws_from_the_density(family: str, event: str) -> None:
    """G-test of 200,000 draws against the enumerated probabilities."""
    draws, chunk = 200_000, 40_000
    model = shaken(family, COUNTABLE[event], **TINY.get(family, {}))
    assert isinstance(model, Density)
    every, classes = states(COUNTABLE[event]), COUNTABLE[event].classes
    y = (lambda n: torch.full((n,), classes - 1)) if classes else (lambda n: None)
    weight = COUNTABLE[event].levels ** torch.arange(COUNTABLE[event].dims - 1, -1, -1)
    seen = torch.zeros(len(every), dtype=torch.int64)
    with torch.no_grad():
        p = model.log_prob(every, y(len(every))).double().exp().numpy()
        for start in range(0, draws, chunk):
            noise = Noise(17, position=range(start, start + chunk))
            x = model.draw(noise, y=y(chunk), c=None, temperature=torch.ones(chunk))
            seen += torch.bincount((x.flatten(1).long() * weight).sum(1), minlength=len(every))
    assert p.std() > 0.05 * p.mean(), "the density is too flat to test anything"
    assert g_test(seen.numpy(), p) > 1e-4


def g_test(seen: np.ndarray, p: np.ndarray) -> float:
    """The p-value that counts come from probabilities; states expected fewer than 5 times are taken together."""
    expected = p / p.sum() * seen.sum()
    rare = expected < 5
    observed = np.append(seen[~rare], seen[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    keep = expected > 0
    return float(stats.power_divergence(observed[keep], expected[keep], lambda_="log-likelihood").pvalue)


@pytest.mark.parametrize(("family", "event"), cases({name: event for name, event in EVENTS.items() if event.classes}, Density))
def test_density_without_a_label_weighs_labels_by_their_frequencies(family: str, event: str) -> None:
    model, classes = shaken(family, EVENTS[event]), EVENTS[event].classes
    assert isinstance(model, Density)
    x = examples(EVENTS[event], 5)
    with torch.no_grad():
        each = torch.stack([model.log_prob(x, torch.full((5,), label)) for label in range(classes)], dim=1)
        assert each.std(1).min() > 1e-3, "the labels change nothing"
        joint = each + model.class_frequencies.log()
        torch.testing.assert_close(model.log_prob(x), joint.logsumexp(1))
        if isinstance(model, Classifies):
            torch.testing.assert_close(model.classify(x), joint.log_softmax(1))


@pytest.mark.parametrize(("family", "event"), cases(EVENTS, Density))
def test_a_row_s_score_does_not_depend_on_its_neighbours(family: str, event: str) -> None:
    model = shaken(family, EVENTS[event])
    assert isinstance(model, Density)
    x, y = examples(EVENTS[event], 6), labels(EVENTS[event], 6)
    with torch.no_grad():
        together = model.log_prob(x, y)
        alone = torch.cat([model.log_prob(x[i : i + 1], None if y is None else y[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("family", "event"), cases(EVENTS, Density))
def test_examples_that_are_none_are_refused(family: str, event: str) -> None:
    model, kind = build(family, EVENTS[event]), EVENTS[event]
    assert isinstance(model, Density)
    with pytest.raises(ValueError, match=r"^examples of shape \(2, 1\); wanted \(n, "):
        model.log_prob(torch.zeros(2, 1, dtype=torch.uint8))
    with pytest.raises(ValueError, match=f"^levels from 0 to {kind.levels}; wanted 0 to {kind.levels - 1}$"):
        x = torch.zeros(1, *kind.shape, dtype=torch.int64)
        x.view(-1)[0] = kind.levels
        model.log_prob(x)
    with pytest.raises(ValueError, match=r"^examples of dtype torch.float32; wanted integer levels"):
        model.log_prob(torch.zeros(1, *kind.shape))


@pytest.mark.parametrize(("family", "event"), cases(EVENTS, Progressive))
def test_steps_may_be_grouped_anyhow_and_states_may_be_kept(family: str, event: str) -> None:
    model = shaken(family, EVENTS[event])
    assert isinstance(model, Progressive)
    noise, y = Noise(3, position=range(BLOCK)), labels(EVENTS[event], BLOCK)
    temperature = torch.linspace(0.5, 2, BLOCK)
    whole = model.draw(noise, y=y, c=None, temperature=temperature)
    state = model.begin(noise, y=y, c=None, temperature=temperature)
    assert not model.read(state).any()
    kept = copied(state)
    for k in [1, 2, 5, 1, model.steps]:
        before, kept = model.read(state).clone(), copied(state)
        state = model.advance(state, k)
        assert torch.equal(model.read(kept), before)  # advancing a state leaves its copy as it was
    assert torch.equal(model.read(state), whole)
    assert torch.equal(model.read(model.advance(kept, model.steps)), whole)  # an old state may be gone on from
    assert torch.equal(model.read(model.advance(state, 1)), whole)


@pytest.mark.parametrize(("family", "event"), cases(EVENTS, Bounded))
def test_bounds_are_finite_and_leave_the_model_alone(family: str, event: str) -> None:
    model, kind = shaken(family, EVENTS[event]), EVENTS[event]
    assert isinstance(model, Bounded)
    x, noise = examples(kind, 7), Noise(0, position=range(7))
    with torch.no_grad(), state_dict_untouched(model), global_generators_untouched():
        for y in (labels(kind, 7), None):
            elbo, iwae = model.elbo(x, y, noise), model.iwae(x, y, 5, noise)
            assert elbo.shape == iwae.shape == (7,)
            assert bool((elbo < 0).all()) and bool((iwae < 0).all())
            each = [model.iwae(x[i : i + 1], None if y is None else y[i : i + 1], 5, noise.rows(i, i + 1)) for i in range(7)]
            torch.testing.assert_close(iwae, torch.cat(each), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("family", "event"), cases(EVENTS, Decodes))
def test_decoding_gives_levels(family: str, event: str) -> None:
    model, kind = shaken(family, EVENTS[event]), EVENTS[event]
    assert isinstance(model, Decodes)
    z, y = model.codes(Noise(0, position=range(5))), labels(kind, 5)
    with state_dict_untouched(model), global_generators_untouched():
        x = model.decode(z, y)
    assert x.shape == (5, *kind.shape) and x.dtype == torch.uint8 and int(x.max()) < kind.levels
    with pytest.raises(ValueError, match=r"^codes of shape "):
        model.decode(z[:, :-1], y)
    with pytest.raises(ValueError, match="give y$" if kind.classes else "leave it out$"):
        model.decode(z, None if kind.classes else torch.zeros(5, dtype=torch.int64))
    if isinstance(model, Encodes):
        q = model.encode(x, y)
        assert q.batch_shape == (5, *model.latent.shape)


@pytest.mark.parametrize(("family", "event"), cases(EVENTS, Trained))
def test_objectives_share_out_the_parameters(family: str, event: str) -> None:
    model = build(family, EVENTS[event])
    assert isinstance(model, Trained)
    objectives = model.objectives()
    assert len({objective.name for objective in objectives}) == len(objectives)
    ids = [id(parameter) for objective in objectives for parameter in objective.parameters]
    assert len(ids) == len(set(ids)), "two objectives move one parameter"
    assert set(ids) == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


@pytest.mark.parametrize(("family", "event"), cases(EVENTS, Trained))
def test_an_objective_moves_its_own_parameters_and_only_those(family: str, event: str) -> None:
    """With the other players frozen, as the loop freezes them, every own parameter gets a gradient and no other one does."""
    model = shaken(family, EVENTS[event]).train()
    assert isinstance(model, Trained)
    batch = batch_of(EVENTS[event], 12)
    with state_dict_untouched(model, but=PERSISTENT.get(family, ())), global_generators_untouched():
        for objective in model.objectives():
            own = {id(parameter) for parameter in objective.parameters}
            for parameter in model.parameters():
                parameter.grad = None
                parameter.requires_grad_(id(parameter) in own)
            objective.loss(batch, Noise(0, position=batch.position, step=3))[0].backward()
            for name, parameter in model.named_parameters():
                moved = parameter.grad is not None and bool(parameter.grad.any())
                assert moved == (id(parameter) in own and parameter.numel() > 0), f"{objective.name}: {name}"


@pytest.mark.parametrize(("family", "event"), cases(EVENTS, Trained))
def test_loss_is_a_mean_over_rows(family: str, event: str) -> None:
    """So uneven slices on several workers, weighted by their counts, give the gradient of the whole batch."""
    model = shaken(family, EVENTS[event]).train()
    assert isinstance(model, Trained)
    batch = batch_of(EVENTS[event], 12)
    noise = Noise(0, position=batch.position, step=3)
    for objective in model.objectives():
        whole = gradient(objective, batch, noise)
        parts = [gradient(objective, batch.rows(a, b), noise.rows(a, b)) * (b - a) / 12 for a, b in ((0, 3), (3, 12))]
        torch.testing.assert_close(sum(parts), whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize(("family", "event"), cases(EVENTS, Trained))
def test_loss_is_counted_in_float32_under_autocast(family: str, event: str) -> None:
    model = shaken(family, EVENTS[event])
    assert isinstance(model, Trained)
    batch = batch_of(EVENTS[event], 8)
    noise = Noise(0, position=batch.position, step=3)
    for objective in model.objectives():
        plain = objective.loss(batch, noise)[0]
        with torch.autocast("cpu", torch.bfloat16):
            narrow = objective.loss(batch, noise)[0]
        assert narrow.dtype == torch.float32
        torch.testing.assert_close(narrow, plain, rtol=0.1, atol=0.05)


def gradient(objective: Objective, batch: Batch, noise: Noise) -> Tensor:
    """The loss and its gradient in one vector."""
    loss, metrics = objective.loss(batch, noise)
    assert loss.shape == () and all(value.shape == () and not value.requires_grad for value in metrics.values())
    gradients = torch.autograd.grad(loss, list(objective.parameters), allow_unused=True)
    return torch.cat([loss.detach()[None], *(g.flatten() for g in gradients if g is not None)])


@pytest.mark.parametrize(("family", "event"), cases(EVENTS))
def test_no_layer_mixes_the_rows_of_a_batch(family: str, event: str) -> None:
    layers = [
        type(layer).__name__ for layer in build(family, EVENTS[event]).modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    ]
    assert layers == []


@pytest.mark.parametrize("family", MODELS)
def test_capabilities_say_what_the_class_header_says(family: str) -> None:
    kind = MODELS[family]
    assert ("density" in capabilities(kind)) == issubclass(kind, Density)
    assert ("progressive" in capabilities(kind)) == issubclass(kind, Progressive)
    assert not (issubclass(kind, Density) and issubclass(kind, Bounded)), "an exact likelihood needs no bound"
