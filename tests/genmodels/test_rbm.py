"""The machine against sums over all its states: gradients, chains, completions, labels, codes. Its partition function: test_rbm_partition.py."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genmodels.core import Batch, Event
from genmodels.models.rbm import RBM
from genmodels.noise import Noise, derive
from genmodels.train import TrainConfig, Training, fit
from genmodels.zoo import build
from tests.genmodels import conftest, test_contract
from tests.genmodels.conftest import shaken, states
from tests.genmodels.test_contract import g_test

PLAIN = Event(modality="image", shape=(1, 2, 3), levels=2)
LABELLED = Event(modality="table", shape=(5,), levels=2, classes=3)


def model_of(event: Event = PLAIN, *, by: float = 2.0, seed: int = 0, **config: Any) -> RBM:
    model = shaken("rbm", event, by=by, seed=seed, **{"hidden": 4, "length": 60, **config})
    assert isinstance(model, RBM)
    return model


def joint(model: RBM) -> Tensor:
    """(2^D, classes or 1, 2^H) float64 nats: log exp(-E(x, y, h)) of every state, from the energy's definition."""
    bits, classes, hidden = model.event.dims, model.event.classes, model.config.hidden
    weight, b, c = model.weight.detach().double(), model.visible.detach().double(), model.hidden.detach().double()
    x, h = (states(Event(modality="table", shape=(n,), levels=2)).double() for n in (bits, hidden))
    one = torch.eye(classes).double() if classes else torch.zeros(1, 0).double()
    v = torch.cat([x[:, None].expand(-1, len(one), -1), one.expand(len(x), -1, -1)], dim=2)
    return (v @ b)[..., None] + h @ c + v @ weight.T @ h.T


def batch_of(x: Tensor, y: Tensor | None = None, step: int = 0) -> Batch:
    return Batch(x=x, y=y, position=torch.arange(len(x)), step=step)


def target(n: int) -> Tensor:
    """(n, 1, 2, 3) uint8: three patterns, each bit of which is turned one time in eight."""
    noise = Noise(1, position=range(n))
    patterns = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 0, 1, 0, 1, 0]])[(3 * noise.uniform("pattern")).long()]
    return (patterns ^ (noise.uniform("turned", (6,)) < 1 / 8).long()).reshape(n, *PLAIN.shape).to(torch.uint8)


def machine(model: RBM) -> list[Tensor]:
    """Its parameters, without those of the independent bits beside it."""
    return [model.weight, model.visible, model.hidden]


def gradient(model: RBM, batch: Batch, noise: Noise) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(model.loss(batch, noise)[0], machine(model))])


def true_gradients(model: RBM, x: Tensor) -> tuple[Tensor, ...]:
    """Those of the mean of -log p(x), log Z differentiated as the sum it is."""
    nats = model.energy(x).mean() + (-model.energy(states(model.event))).logsumexp(0)
    return torch.autograd.grad(nats, machine(model))


def test_contrastive_divergence_tends_to_the_gradient_of_the_likelihood() -> None:
    rows, far = 10_000, []
    x, noise = target(rows), Noise(1, position=range(rows))
    for k in (1, 3, 10):
        model = model_of(by=4.0, seed=1, training="cd", k=k)
        exact = torch.cat([g.flatten() for g in true_gradients(model, x)])
        far.append(float((gradient(model, batch_of(x), noise) - exact).norm()))
    assert far[0] > 0.5 and far[0] > 3 * far[1] > 9 * far[2] and far[2] < 0.03, far


@pytest.mark.parametrize("training", ["cd", "pcd"])
def test_gradient_is_the_difference_of_two_means_and_does_not_pass_through_the_samples(training: str) -> None:
    """d loss / d W = -<p(h|x) x>_data + <p(h|x) x>_chains at the chains' bits, and so on: nothing else."""
    model, noise = model_of(LABELLED, training=training, k=2, discriminative=0.0), Noise(4, position=range(8))
    batch = batch_of(states(LABELLED)[3:11], torch.arange(8) % 3)
    with torch.no_grad():
        data = model._with_labels(batch, noise)
        negative = model._negative(data, noise)
        assert set(negative.unique().tolist()) == {0.0, 1.0} and bool((negative[:, -3:].sum(1) == 1).all())
        on = [torch.sigmoid(model.units.inputs(v)) for v in (data, negative)]
        wanted = [h.T @ v / len(v) for h, v in zip(on, (data, negative), strict=True)]
        biases = negative.mean(0) - data.mean(0), on[1].mean(0) - on[0].mean(0)
        rates = torch.cat([model.base[:5].sigmoid(), model.base[5:].softmax(0)])
    got = torch.autograd.grad(model.loss(batch, noise)[0], [*machine(model), model.base])
    for found, want in zip(got, (wanted[1] - wanted[0], *biases, rates - data.mean(0)), strict=True):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-6)


def test_persistent_chains_go_where_the_exact_gradient_goes() -> None:
    """The exact likelihood rises, and ends where descending it exactly by the same steps ends; nothing is better than the data's entropy."""
    seen, steps, rate = target(200), 250, 0.3
    model, by_hand = (model_of(by=0.0, hidden=8, particles=200) for _ in range(2))
    _, counts = seen.flatten(1).unique(dim=0, return_counts=True)
    entropy = float(-(counts / 200 * (counts / 200).log()).sum())

    def nats(model: RBM) -> float:
        with torch.no_grad():
            return float(model.energy(seen).mean()) + model.log_partition(Noise(0, position=range(1))).value

    before = nats(model)
    config = TrainConfig(steps=steps, batch_size=200, lr=rate, objectives={"contrast": {"algorithm": "sgd"}})
    fit(model, config, lambda step: Batch(x=seen, position=torch.arange(200) + 200 * step, step=step))
    optimizer = torch.optim.SGD(machine(by_hand), lr=rate)
    for _ in range(steps):
        for parameter, value in zip(machine(by_hand), true_gradients(by_hand, seen), strict=True):
            parameter.grad = value
        optimizer.step()
    assert entropy < nats(by_hand) < before - 0.5
    assert nats(model) == pytest.approx(nats(by_hand), abs=0.03)


def test_persistent_chains_move_once_a_step_and_only_in_training() -> None:
    model, batch = model_of().train(), batch_of(target(4))
    start = model.particles.clone()
    gradients = [gradient(model, batch, Noise(0, position=range(4), step=step)) for step in (0, 0, 1)]
    assert torch.equal(gradients[0], gradients[1]) and not torch.equal(gradients[0], gradients[2])
    after = model.particles.clone()
    assert not torch.equal(after, start)
    gradient(model.eval(), batch, Noise(0, position=range(4), step=7))
    assert torch.equal(model.particles, after)


def batches(step: int, rows: slice = slice(0, 8)) -> Batch:
    position = torch.arange(8 * step, 8 * step + 8)[rows]
    return Batch(x=target(8)[rows], position=position, step=step)


@pytest.mark.parametrize("training", ["cd", "pcd"])
def test_parts_and_workers_see_the_same_chains(training: str) -> None:
    """Parts of a batch one after the other, and uneven slices on two workers, come to what the whole batch does: weights and chains."""
    config = TrainConfig(steps=6, batch_size=8, lr=0.5, seed=3, objectives={"contrast": {"algorithm": "sgd"}})
    models = [build("rbm", PLAIN, hidden=4, training=training, particles=5) for _ in range(4)]
    whole, parts, first, second = (
        Training(model, replace(config, accumulate=2 if index == 1 else 1)) for index, model in enumerate(models) if isinstance(model, RBM)
    )
    whole.run(batches, until=6)
    parts.run(batches, until=6)
    for step in range(6):
        buffers: list[Tensor] = []
        # Each worker's flat gradient is replaced by the sum of both: computed first, then handed out.
        workers = [(first, slice(0, 3)), (second, slice(3, 8))]
        for worker, rows in workers:
            player = worker._players[0]
            noise = Noise(derive(3, "contrast"), position=batches(step, rows).position, step=step)
            player.gradients(batches(step, rows), noise, 1)
            buffers.append(player.values[0].grad * len(batches(step, rows)) / 8)  # type: ignore[operator]
        for worker, _ in workers:
            worker._players[0].values[0].grad.copy_(buffers[0] + buffers[1])  # type: ignore[union-attr]
            worker._players[0].descend(1.0)
    for other in (models[1], models[2], models[3]):
        for name, value in models[0].state_dict().items():
            torch.testing.assert_close(other.state_dict()[name].float(), value.float(), rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_training_cut_anywhere_has_the_same_bits(at: int, tmp_path: Path) -> None:
    config = TrainConfig(steps=6, batch_size=8, lr=0.05, ema=0.9)
    whole, first, second = (Training(model, config) for model in (model_of(by=0.0), model_of(by=0.0), model_of(by=0.0, seed=1)))
    whole.run(batches, until=6)
    first.run(batches, until=at)
    first.save(tmp_path)
    first.run(batches, until=6)  # what is restored must not remember what came after
    first.restore(tmp_path)
    second.restore(tmp_path)
    for other in (first, second):
        other.run(batches, until=6)
        for name, value in whole.model.state_dict().items():
            assert torch.equal(other.model.state_dict()[name], value), name


def seen_in(x: Tensor, dims: int) -> Tensor:
    """(2^D,) int64: how often each state came."""
    return torch.bincount((x.flatten(1).long() * 2 ** torch.arange(dims - 1, -1, -1)).sum(1), minlength=2**dims)


@pytest.mark.parametrize("event", [PLAIN, LABELLED])
def test_a_gibbs_step_leaves_the_law_as_it_is(event: Event) -> None:
    """The enumerated transition matrix of (x, y), by the model's own two conditionals, has exp(-F) / Z as its left eigenvector."""
    model = model_of(event).double()
    units, classes = model.units, max(1, event.classes)
    x = states(event).flatten(1).double()
    v = x if not event.classes else torch.cat([x.repeat_interleave(classes, 0), torch.eye(classes).double().repeat(len(x), 1)], dim=1)
    h = states(model.latent).double()
    with torch.no_grad():
        on, logits = torch.sigmoid(units.inputs(v)), units.logits(h)
        up = (on[:, None] * h + (1 - on[:, None]) * (1 - h)).prod(2)
        bits = torch.sigmoid(logits[:, None, : event.dims])
        down = (bits * v[:, : event.dims] + (1 - bits) * (1 - v[:, : event.dims])).prod(2)
        if event.classes:
            down = down * (logits[:, event.dims :].softmax(1)[:, None] * v[:, event.dims :]).sum(2)
        law = torch.softmax(joint(model).logsumexp(2).flatten(), dim=0)
    torch.testing.assert_close((up @ down).sum(1), torch.ones(len(v)).double())
    torch.testing.assert_close(law @ up @ down, law, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("event", [PLAIN, LABELLED])
def test_chains_begin_at_independent_bits_of_the_fitted_rates(event: Event) -> None:
    """And at one label of theirs, none of it held."""
    model, n = model_of(event), 20_000
    with torch.no_grad():
        start, held = model._start(Noise(1, position=range(n)), None)
        rates = torch.cat([model.base[: event.dims].sigmoid(), model.base[event.dims :].softmax(0)])
    assert float((rates - torch.sigmoid(model.visible.detach())).abs().max()) > 0.1
    assert not held.any() and set(start.unique().tolist()) == {0.0, 1.0}
    assert bool(((start.mean(0) - rates).abs() < 4.5 * (rates * (1 - rates) / n).sqrt()).all())
    related = torch.corrcoef(start.T[: event.dims]) - torch.eye(event.dims)
    assert float(related.abs().max()) < 4.5 / n**0.5


@pytest.mark.parametrize("event", [PLAIN, LABELLED])
def test_samples_come_from_the_normalised_energy(event: Event) -> None:
    """G-test of 20,000 chains against exp(-F(x, y)) / Z_y; the chain is long enough for these weights."""
    model, label, n = model_of(event, length=40), 1 if event.classes else 0, 20_000
    y = torch.full((n,), label) if event.classes else None
    with torch.no_grad():
        x = model.draw(Noise(5, position=range(n)), y=y, c=None, temperature=torch.ones(n))
    p = torch.softmax(joint(model).logsumexp(2)[:, label], dim=0)
    assert p.std() > 0.5 * p.mean()
    assert g_test(seen_in(x, event.dims).numpy(), p.numpy()) > 1e-3


@pytest.mark.parametrize(("event", "y"), [(PLAIN, None), (LABELLED, None), (LABELLED, 2)])
def test_completions_come_from_the_conditional(event: Event, y: int | None) -> None:
    """Given two bits (and the label, or not): G-test of 20,000 chains against enumeration."""
    model, n = model_of(event, length=40), 20_000
    known = torch.zeros(event.dims, dtype=torch.bool)
    known[[0, 3]] = True
    x = torch.ones(n, *event.shape, dtype=torch.uint8)
    x.flatten(1)[:, 3] = 0
    with torch.no_grad():
        labels = None if y is None else torch.full((n,), y)
        noise = Noise(5, position=range(n))
        found = model._walk(noise, *model._start(noise, labels, x, known.expand(n, -1).reshape(x.shape)))[1]
    every = states(event).flatten(1)
    fits = (every[:, known] == x.flatten(1)[0, known]).all(1)
    nats = joint(model).logsumexp(2)
    p = torch.softmax((nats.logsumexp(1) if y is None else nats[:, y]).masked_fill(~fits, -math.inf), dim=0)
    assert g_test(seen_in(found[:, : event.dims], event.dims).numpy(), p.numpy()) > 1e-3


@pytest.mark.parametrize("event", [PLAIN, LABELLED])
def test_a_completion_keeps_what_is_known_and_depends_on_its_own_row_alone(event: Event) -> None:
    model, x = model_of(event), states(event)[:20]
    known = torch.rand(20, *event.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    found = model.complete(x, known, seed=3)
    assert torch.equal(found.x[known], x[known]) and not found.exact and found.ess is None
    assert found.method == "block Gibbs, 60 steps from independent bits of the data's rates, the known values held"
    assert torch.equal(model.complete(x[7:9], known[7:9], seed=3, first=7).x, found.x[7:9])
    assert torch.equal(model.complete(torch.where(known, x, 1), known, seed=3).x, found.x), "what is not known was looked at"
    assert not torch.equal(model.complete(x, known, seed=4).x, found.x)
    for wrong in (known[:3], known.long()):
        with pytest.raises(ValueError, match=r"^known values marked by "):
            model.complete(x, wrong, seed=0)
    with pytest.raises(ValueError, match=r"^temperature other than 1 asked of RBM"):
        model.complete(x, known, seed=0, temperature=0.5)


def test_labels_by_free_energies_are_the_enumerated_ones() -> None:
    model = model_of(LABELLED, by=6.0, hidden=5)
    nats = joint(model).logsumexp(2)
    with torch.no_grad():
        torch.testing.assert_close(model.classify(states(LABELLED)), nats.log_softmax(1).float(), rtol=1e-4, atol=1e-5)
    assert nats.log_softmax(1).std(0).min() > 0.1, "the labels hang on nothing"
    with pytest.raises(ValueError, match=r"^an unlabelled model has no classes"):
        model_of().classify(states(PLAIN))


@pytest.mark.parametrize("event", [PLAIN, LABELLED])
def test_codes_are_the_enumerated_ones(event: Event) -> None:
    """p(h_j | x, y), p(h_j | x), and the likeliest x of some hidden bits."""
    model = model_of(event, hidden=3)
    every, h, x = joint(model), states(model.latent), states(event)
    y = torch.arange(len(x)) % event.classes if event.classes else None
    label = torch.zeros(len(x), dtype=torch.int64) if y is None else y
    given = every[torch.arange(len(x)), label].softmax(1)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(x, y).mean, (given @ h.double()).float())
        torch.testing.assert_close(model.features(x), (every.flatten(1).softmax(1).reshape(every.shape).sum(1) @ h.double()).float())
    best = every.logsumexp(1).argmax(0)
    assert torch.equal(model.decode(h, None if y is None else y[: len(h)]), x[best])


def test_codes_of_the_prior_are_those_that_draw_makes_its_examples_of() -> None:
    """Of 2,000 draws the mean of log p(x | h) at the codes of their noise is the negative entropy of p(x | h); at another's codes it is less."""
    n = 2000
    model, noise = model_of(by=5.0), Noise(2, position=range(n))
    with torch.no_grad():
        h = model.codes(noise)
        x = model.draw(noise, y=None, c=None, temperature=torch.ones(n)).flatten(1).float()
        own, other = (torch.distributions.Bernoulli(logits=model.units.logits(each)) for each in (h, h.roll(1, 0)))
        over = own.log_prob(x).sum(1) + own.entropy().sum(1)
        assert abs(float(over.mean())) < 4 * float(over.std()) / n**0.5
        assert float((other.log_prob(x) - own.log_prob(x)).sum(1).mean()) < -0.5
    assert h.shape == (n, 4) and set(h.unique().tolist()) == {0.0, 1.0}
    with pytest.raises(ValueError, match="codes of 2 levels have nothing between them"):
        model.interpolate(h, h, 3)


def test_an_unlabelled_row_teaches_what_the_label_summed_out_teaches() -> None:
    """The mean gradient over drawn labels is that of -log sum_y exp(-F(x, y)); a row with a label is taken at its word."""
    model, rows = model_of(LABELLED, particles=1), 40_000
    x = states(LABELLED)[5:6].expand(rows, -1)
    unlabelled, noise = batch_of(x, torch.full((rows,), -1)), Noise(3, position=range(rows))
    parameters = machine(model)
    v = model._with_labels(unlabelled, noise)
    found = torch.autograd.grad(model.units.free_energy(v, model.units.inputs(v)).mean(), parameters)
    wanted = torch.autograd.grad(model.energy(x[:1]).mean(), parameters)
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0.015)
    assert torch.equal(model._with_labels(batch_of(x, None), noise), model._with_labels(unlabelled, noise))
    given = model._with_labels(batch_of(x, torch.full((rows,), 2)), noise)
    assert torch.equal(given[:, -3:], torch.tensor([0.0, 0, 1]).expand(rows, -1))


def test_discriminative_weight_adds_the_nats_of_the_labels_that_are_known() -> None:
    y, x, noise = torch.tensor([0, -1, 2, 1]), states(LABELLED)[:4], Noise(0, position=range(4))
    plain, hybrid = (model_of(LABELLED, discriminative=weight) for weight in (0.0, 3.0))
    known = F.nll_loss(plain.classify(x[y >= 0]), y[y >= 0], reduction="sum") / 4
    torch.testing.assert_close(hybrid.loss(batch_of(x, y), noise)[0] - plain.loss(batch_of(x, y), noise)[0], 3 * known)


def test_the_pseudo_likelihood_of_the_metrics_is_one_and_is_called_one() -> None:
    """Its mean over flipped bits is sum_i log p(x_i | all others) by enumeration, of (x, y) jointly where there are labels."""
    for event in (PLAIN, LABELLED):
        model, n = model_of(event), 20_000
        row = states(event)[11:12]
        label = torch.zeros(n, dtype=torch.int64) if event.classes else None
        noise = Noise(0, position=range(n))
        found = model.loss(batch_of(row.expand(n, *event.shape), label), noise)[1]
        nats = joint(model).logsumexp(2)[:, 0]
        flipped = [11 ^ 1 << bit for bit in range(event.dims)]
        wanted = sum(float(nats[11] - torch.logaddexp(nats[11], nats[other])) for other in flipped)
        assert set(found) == {"free_energy_gap", "pseudo_log_likelihood"}
        assert float(found["pseudo_log_likelihood"]) == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("levels", [17, 256, 0])
def test_grey_levels_are_refused_with_the_reason(levels: int) -> None:
    with pytest.raises(
        ValueError, match=r"^RBM models bits .*, for grey levels taken as probabilities .*; got image 1x8x8.*; set levels: 2$"
    ):
        build("rbm", Event(modality="image", shape=(1, 8, 8), levels=levels))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"training": "bp"}, "^training 'bp'; wanted cd or pcd$"),
        ({"k": 0}, "at least 1"),
        ({"chains": 1}, "at least 2 chains"),
        ({"discriminative": -1.0}, r"^discriminative -1.0; "),
    ],
)
def test_settings_that_mean_nothing_are_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RBM.Config(**config)


@pytest.mark.parametrize(
    "promise",
    [
        test_contract.test_a_sample_depends_on_its_own_request_alone,
        test_contract.test_what_a_model_does_not_take_is_refused,
        test_contract.test_decoding_gives_levels,
        test_contract.test_an_objective_moves_its_own_parameters_and_only_those,
        test_contract.test_loss_is_a_mean_over_rows,
        test_contract.test_loss_is_counted_in_float32_under_autocast,
    ],
)
def test_labels_break_no_promise(promise: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(conftest.EVENTS, "labelled bits", LABELLED)
    promise("rbm", "labelled bits")


def test_a_row_s_bytes_do_not_depend_on_its_place_at_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(conftest.FULL, "bits", Event(modality="image", shape=(1, 28, 28), levels=2, classes=10))
    test_contract.test_a_row_s_bytes_do_not_depend_on_its_place_at_full_size("rbm", "bits")
