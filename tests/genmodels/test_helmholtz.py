"""Each phase against the weights of the other net, and every law against the enumeration of all bits and all pictures."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli

from genmodels.core import Batch, Event
from genmodels.models.helmholtz import Helmholtz
from genmodels.nn.conditioning import ClassLinear
from genmodels.noise import Noise
from genmodels.train import TrainConfig, fit
from tests.genmodels.conftest import examples, shaken, states
from tests.genmodels.test_contract import g_test

TOY = Event(modality="image", shape=(1, 2, 3), levels=2)
LABELLED = Event(modality="image", shape=(1, 2, 2), levels=3, classes=2)


def model_of(event: Event = TOY, *, hidden: tuple[int, ...] = (4, 3), by: float = 1.5, **config: Any) -> Helmholtz:
    """Labels weigh as much as the layers do: what is wrong about one would show."""
    model = shaken("helmholtz", event, by=by, hidden=hidden, **config)
    assert isinstance(model, Helmholtz)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "label" in name:
                parameter.mul_(3)
    return model


def linear(layers: nn.ModuleList, index: int) -> nn.Linear:
    layer = layers[index]
    assert isinstance(layer, ClassLinear)
    return layer.linear


def all_bits(model: Helmholtz) -> Tensor:
    """(2^bits, bits) float32."""
    return torch.cartesian_prod(*[torch.arange(2.0)] * model.bits).reshape(-1, model.bits)


@torch.no_grad()
def exact(model: Helmholtz, x: Tensor, y: Tensor | None = None) -> Tensor:
    """(B,) nats, log p(x | y): the joint summed over every state of the bits."""
    return torch.logsumexp(model.log_joint(x, all_bits(model).expand(len(x), -1, -1), y), 1)


def batch_of(x: Tensor, step: int = 0) -> Batch:
    return Batch(x=x, position=torch.arange(len(x)) + step * len(x), step=step)


def law() -> Tensor:
    """(64,) probabilities of TOY's pictures: mostly one of four stripes, some of it anything."""
    rows = states(TOY).flatten(1).tolist()
    stripes = ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 0, 1], [0, 1, 0, 0, 1, 0])
    return torch.tensor([0.2 if row in stripes else 0.2 / 60 for row in rows])


def from_law(n: int, step: int) -> Batch:
    rows = torch.searchsorted(law().cumsum(0), Noise(9, position=range(n), step=step).uniform("x")).clamp(max=63)
    return batch_of(states(TOY)[rows], step)


@pytest.mark.parametrize("hidden", [(5,), (4, 3), (3, 2, 3)])
def test_both_nets_laws_against_torch_distributions(hidden: tuple[int, ...]) -> None:
    model = model_of(hidden=hidden)
    x, bits = examples(TOY, 3), all_bits(model)[::7]
    signs = [2 * h - 1 for h in bits.split(hidden, 1)]
    layers = list(bits.split(hidden, 1))
    with torch.no_grad():
        joint = Bernoulli(logits=model.top).log_prob(layers[-1]).sum(1)
        for index in range(1, len(hidden)):
            joint = joint + Bernoulli(logits=linear(model.generation, index)(signs[index])).log_prob(layers[index - 1]).sum(1)
        pixels = Bernoulli(logits=linear(model.generation, 0)(signs[0]))
        for row in range(3):
            posterior = torch.zeros(len(bits))
            below = [(2 * x[row].flatten().float() - 1).expand(len(bits), -1), *signs]
            for index, h in enumerate(layers):
                posterior = posterior + Bernoulli(logits=linear(model.recognition, index)(below[index])).log_prob(h).sum(1)
            torch.testing.assert_close(model.log_posterior(x, bits.expand(3, -1, -1), None)[row], posterior)
            wanted = joint + pixels.log_prob(x[row].flatten().float()).sum(1)
            torch.testing.assert_close(model.log_joint(x, bits.expand(3, -1, -1), None)[row], wanted)


@pytest.mark.parametrize(("event", "y"), [(TOY, None), (LABELLED, 0), (LABELLED, 1)])
def test_both_nets_laws_sum_to_one(event: Event, y: int | None) -> None:
    model, x = model_of(event), states(event)
    label = None if y is None else torch.full((len(x),), y)
    with torch.no_grad():
        posterior = model.log_posterior(x, all_bits(model).expand(len(x), -1, -1), label)
    assert exact(model, x, label).double().exp().sum().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(posterior.exp().sum(1), torch.ones(len(x)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("event", "y"), [(TOY, None), (LABELLED, 1)])
def test_samples_come_from_the_enumerated_density(event: Event, y: int | None) -> None:
    model, draws = model_of(event), 50_000
    label = None if y is None else torch.full((draws,), y)
    with torch.no_grad():
        x = model.draw(Noise(3, position=range(draws)), y=label, c=None, temperature=torch.ones(draws))
    weight = event.levels ** torch.arange(event.dims - 1, -1, -1)
    seen = torch.bincount((x.flatten(1).long() * weight).sum(1), minlength=event.levels**event.dims)
    p = exact(model, states(event), None if y is None else torch.full((event.levels**event.dims,), y)).double().exp()
    assert p.std() > 0.3 * p.mean(), "the density is too flat to test anything"
    assert g_test(seen.numpy(), p.numpy()) > 1e-4


def test_guesses_come_from_the_posterior_that_weighs_them() -> None:
    model, draws = model_of(), 40_000
    x = examples(TOY, 1)
    with torch.no_grad():
        bits, log_q = model.guess(x, None, Noise(1, position=[0]).uniform("u", (draws, model.bits)))
        torch.testing.assert_close(log_q, model.log_posterior(x, bits, None))
        p = model.log_posterior(x, all_bits(model)[None], None)[0].exp()
    seen = torch.bincount((bits[0] @ (2.0 ** torch.arange(model.bits - 1, -1, -1))).long(), minlength=len(p))
    assert g_test(seen.numpy(), p.double().numpy()) > 1e-4


@pytest.mark.parametrize(("event", "y"), [(TOY, None), (LABELLED, None), (LABELLED, 1)])
def test_bounds_rise_with_k_and_stay_below_the_likelihood(event: Event, y: int | None) -> None:
    """In expectation: means over repeats, with their error bars; and every weight's own mean is the likelihood."""
    model, repeats = model_of(event, by=0.5 if event.classes else 0.8), 2000
    x = examples(event, 3)
    if event.classes and y is None:
        each = torch.stack([exact(model, x, torch.full((3,), label)) for label in range(event.classes)], 1)
        truth = torch.logsumexp(each + model.class_frequencies.log(), 1)
    else:
        truth = exact(model, x, None if y is None else torch.full((3,), y))
    many, label = x.repeat_interleave(repeats, 0), None if y is None else torch.full((3 * repeats,), y)
    noise, means, errors = Noise(1, position=range(3 * repeats)), [], []
    with torch.no_grad():
        for value in (model.elbo(many, label, noise), *(model.iwae(many, label, k, noise) for k in (2, 8, 64))):
            weight = (value.reshape(3, repeats) - truth[:, None]).exp()
            assert bool(((weight.mean(1) - 1).abs() < 5 * weight.std(1) / math.sqrt(repeats)).all()), "biased weights"
            means.append(value.reshape(3, repeats).mean(1))
            errors.append(value.reshape(3, repeats).std(1) / math.sqrt(repeats))
    for low, high, error in zip(means, means[1:], errors, strict=False):
        assert bool((low < high - 4 * error).all()), "a bound of more draws is no tighter"
    assert bool((means[-1] < truth + 4 * errors[-1]).all())
    assert bool((truth - means[-1] < 0.3 * (truth - means[0])).all()), "64 draws come no nearer than one"


def test_the_bound_is_the_likelihood_at_the_exact_posterior() -> None:
    """A net whose pictures do not depend on its only layer has the prior for posterior."""
    model = model_of(hidden=(4,))
    with torch.no_grad():
        linear(model.generation, 0).weight.zero_()
        linear(model.recognition, 0).weight.zero_()
        linear(model.recognition, 0).bias.copy_(model.top)
        for k in (1, 7):
            bound = model.iwae(states(TOY), None, k, Noise(0, position=range(64)))
            torch.testing.assert_close(bound, exact(model, states(TOY)))


def test_bound_of_k_does_not_depend_on_how_its_draws_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    model, noise = model_of(), Noise(0, position=range(6))
    with torch.no_grad():
        whole = model.iwae(examples(TOY, 6), None, 20, noise)
        monkeypatch.setattr("genmodels.models.helmholtz.ROWS", 18)
        torch.testing.assert_close(model.iwae(examples(TOY, 6), None, 20, noise), whole)


@pytest.mark.parametrize("algorithm", ["wake-sleep", "reweighted"])
def test_a_phase_leaves_the_other_net_alone(algorithm: str) -> None:
    """Even with nothing frozen no gradient reaches it."""
    model = model_of(LABELLED, algorithm=algorithm).train()
    nets = {"wake": model.generation, "sleep": model.recognition, "recognition": model.recognition}
    batch = Batch(x=examples(LABELLED, 8), y=torch.arange(8) % 2, position=torch.arange(8))
    for objective in model.objectives():
        model.zero_grad()
        objective.loss(batch, Noise(0, position=range(8)))[0].backward()
        moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        own = {name for name, parameter in model.named_parameters() if any(parameter is each for each in objective.parameters)}
        assert moved == own
        inside = {id(parameter) for parameter in nets[objective.name].parameters()}
        assert inside <= {id(parameter) for parameter in objective.parameters}


def test_sleep_looks_at_no_picture() -> None:
    model, noise = model_of(algorithm="wake-sleep"), Noise(4, position=range(16))
    name, sleep = (lambda objective: (objective.name, objective.loss))(model.objectives()[1])
    assert name == "sleep"
    losses = [sleep(batch_of(x), noise)[0] for x in (examples(TOY, 16), 1 - examples(TOY, 16), torch.zeros_like(examples(TOY, 16)))]
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])


@pytest.mark.parametrize("event", [TOY, LABELLED])
def test_sleep_is_the_expectation_over_dreams(event: Event) -> None:
    """-log q(h | x, y) under p(x, h | y) and the labels' frequencies, by enumeration; the batch's own labels are not looked at."""
    model, rows = model_of(event, algorithm="wake-sleep"), 40_000
    x = states(event)
    bits, truth = all_bits(model).expand(len(x), -1, -1), torch.zeros(())
    with torch.no_grad():
        for label, share in enumerate(model.class_frequencies if event.classes else torch.ones(1)):
            y = torch.full((len(x),), label) if event.classes else None
            truth -= share * (model.log_joint(x, bits, y).exp() * model.log_posterior(x, bits, y)).sum() / model.bits
        batch = batch_of(torch.zeros(rows, *event.shape, dtype=torch.uint8))
        labels = torch.zeros(rows, dtype=torch.int64) if event.classes else None
        loss, _ = model.sleep_loss(replace(batch, y=labels), Noise(0, position=range(rows)))
    assert loss.item() == pytest.approx(truth.item(), rel=0.01)


@pytest.mark.parametrize(("algorithm", "name"), [("wake-sleep", "elbo"), ("reweighted", "iwae_4")])
def test_the_wake_phase_reports_the_bound_of_its_guesses(algorithm: str, name: str) -> None:
    model, x, noise = model_of(algorithm=algorithm, k=4), examples(TOY, 5), Noise(0, position=range(5))
    guesses = noise.uniform("wake", (4 if algorithm == "reweighted" else 1, model.bits))
    with torch.no_grad():
        bits, _ = model.guess(x, None, guesses)
        weights = (model.log_joint(x, bits, None) - model.log_posterior(x, bits, None)).double().exp()
        metrics = model.wake_loss(batch_of(x), noise)[1]
    assert set(metrics) == {f"bits_per_dim_{name}"}
    assert metrics[f"bits_per_dim_{name}"].item() == pytest.approx(-weights.mean(1).log2().mean().item() / TOY.dims, rel=1e-5)


@pytest.mark.parametrize(("algorithm", "k"), [("wake-sleep", 1), ("reweighted", 2000)])
def test_the_wake_phase_descends_what_the_paper_says(algorithm: str, k: int) -> None:
    """Wake-sleep: the mean of -log p(x, h) under q. Reweighted with many guesses: the gradient of the exact log-likelihood."""
    model = model_of(algorithm=algorithm, k=k, by=0.8)
    x = examples(TOY, 1)
    rows = 20_000 if algorithm == "wake-sleep" else 100
    batch = batch_of(x.expand(rows, -1, -1, -1))
    parameters = list(model.objectives()[0].parameters)
    found = torch.autograd.grad(model.wake_loss(batch, Noise(0, position=range(rows)))[0], parameters)
    bits = all_bits(model)[None]
    joint = model.log_joint(x, bits, None)
    guessed = model.log_posterior(x, bits, None).exp().detach()
    wanted = torch.autograd.grad(
        (-(guessed * joint).sum() if algorithm == "wake-sleep" else -torch.logsumexp(joint, 1).sum()) / TOY.dims, parameters
    )
    a, b = nn.utils.parameters_to_vector(found), nn.utils.parameters_to_vector(wanted)
    assert (a - b).norm() < 0.05 * b.norm()


def test_q_s_wake_phase_tends_to_the_true_posterior() -> None:
    """With many guesses its gradient is that of the divergence from p(h | x) to q(h | x), by enumeration."""
    model, rows = model_of(k=2000, by=0.8), 100
    x = examples(TOY, 1)
    parameters = list(model.recognition.parameters())
    noise = Noise(0, position=range(rows))
    batch = batch_of(x.expand(rows, -1, -1, -1))
    both = torch.autograd.grad(model.recognition_loss(batch, noise)[0], parameters)
    asleep = torch.autograd.grad(model.sleep_loss(batch, noise)[0], parameters)
    found = 2 * nn.utils.parameters_to_vector(both) - nn.utils.parameters_to_vector(asleep)
    bits = all_bits(model)[None]
    with torch.no_grad():
        truth = torch.softmax(model.log_joint(x, bits, None), 1)
    loss = -(truth * model.log_posterior(x, bits, None)).sum() / model.bits
    wanted = nn.utils.parameters_to_vector(torch.autograd.grad(loss, parameters))
    assert (found - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize("algorithm", ["wake-sleep", "reweighted"])
def test_the_exact_likelihood_rises(algorithm: str) -> None:
    """On a law of 64 pictures: from the first weights towards the law's own entropy, which nothing passes."""
    model = model_of(by=0.1, hidden=(8, 4), algorithm=algorithm).train()
    config = {objective.name: {"lr": 0.02} for objective in model.objectives()}
    p = law()

    def score() -> float:
        return (p * exact(model, states(TOY))).sum().item()

    seen = [score()]
    fit(model, TrainConfig(steps=150, batch_size=128, objectives=config), lambda step: from_law(128, step))
    seen.append(score())
    fit(model, TrainConfig(steps=250, batch_size=128, objectives=config), lambda step: from_law(128, step + 1000))
    seen.append(score())
    entropy = -(p * p.log()).sum().item()
    assert seen[0] < seen[1] - 0.3 and seen[1] < seen[2] - 0.02, seen
    assert seen[2] <= -entropy and seen[2] > -entropy - 0.6, (seen, entropy)


def test_codes_are_the_bits_that_samples_are_made_of() -> None:
    """And their law is the prior's marginal of the first layer, given the label or weighed by the labels' frequencies."""
    model, draws = model_of(LABELLED), 20_000
    noise = Noise(2, position=range(draws))
    with torch.no_grad():
        codes = model.codes(noise)
        y = model.drawn_labels(noise)
        x, bits = model._dream(noise, y)
        assert codes.dtype == torch.uint8 and codes.shape == (draws, *model.latent.shape)
        assert torch.equal(codes, bits[:, :4].to(torch.uint8))
        assert torch.equal(x, model.draw(noise, y=y, c=None, temperature=torch.ones(draws)))
        assert torch.equal(model.codes(noise.rows(0, 50), y[:50]), codes[:50])
        every, p = all_bits(model), torch.zeros(2**4)
        for label, share in enumerate(model.class_frequencies):
            inputs = states(LABELLED), every.expand(81, -1, -1), torch.full((81,), label)
            p += share * model.log_joint(*inputs).exp().sum(0).reshape(16, 8).sum(1)
    seen = torch.bincount((codes.long() * 2 ** torch.arange(3, -1, -1)).sum(1), minlength=16)
    assert g_test(seen.numpy(), p.double().numpy()) > 1e-4


def test_encode_is_the_first_layer_s_law_and_decode_its_likeliest_picture() -> None:
    model, y = model_of(LABELLED), torch.tensor([0, 1, 1])
    x, z = examples(LABELLED, 3), all_bits(model)[[3, 50, 101], :4]
    with torch.no_grad():
        q, shares = model.encode(x, y), model.log_posterior(x, all_bits(model).expand(3, -1, -1), y).exp()
        torch.testing.assert_close(q.mean, torch.einsum("bs,sh->bh", shares, all_bits(model)[:, :4]))
        torch.testing.assert_close(model.features(x, y), q.mean)
        bits = torch.cat([z, torch.zeros(3, 3)], 1)
        scores = torch.stack([model.log_joint(each.expand(3, -1, -1, -1), bits[:, None], y)[:, 0] for each in states(LABELLED)], 1)
    assert torch.equal(model.decode(z, y), states(LABELLED)[scores.argmax(1)])


def test_what_cannot_be_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^algorithm 'sleep-wake'; wanted wake-sleep or reweighted$"):
        Helmholtz.Config(algorithm="sleep-wake")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"wanted a hidden layer or more, and sizes of at least 1$"):
        Helmholtz.Config(hidden=())
    model = model_of()
    with pytest.raises(ValueError, match=r"^codes with a value 0.5; wanted bits, 0 or 1: round a mean$"):
        model.decode(torch.full((1, 4), 0.5))
    with pytest.raises(ValueError, match=r"^codes of 2 levels have nothing between them; "):
        model.interpolate(torch.zeros(1, 4), torch.ones(1, 4), 3)
