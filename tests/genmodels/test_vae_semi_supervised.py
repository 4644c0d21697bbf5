"""M2's bounds against sums over all labels, what a label teaches and whom, and what cannot be learnt from."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, Normal, kl_divergence

from genmodels.core import Batch, Event, capabilities
from genmodels.evaluate import collapse
from genmodels.evaluate.accuracy import accuracy
from genmodels.models.vae import VAE
from genmodels.models.vae_semi_supervised import log_labels
from genmodels.nn.dense import Dense
from genmodels.noise import Noise
from genmodels.train import TrainConfig, fit
from tests.genmodels.conftest import examples, shaken, states
from tests.genmodels.test_vae import blind, exact, leave

EVENT = Event(modality="image", shape=(1, 2, 3), levels=2, classes=3)
X, Y = examples(EVENT, 6), torch.tensor([2, -1, 0, -1, -1, 1])
BATCH = Batch(x=X, y=Y, position=torch.arange(6))
NOISE = Noise(0, position=range(6))


def model_of(event: Event = EVENT, **config: Any) -> VAE:
    model = shaken("vae", event, **{"latent": 2, "hidden": 8, "network": "dense", "semi_supervised": True, **config})
    assert isinstance(model, VAE)
    return model


def head(model: VAE) -> nn.Linear:
    assert isinstance(model.classifier, Dense)
    return model.classifier.leave


def by_enumeration(model: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """U(x) (B,): the expectation over q(y|x) of log p(x, y, z) - log q(y, z | x), one label after the other, by torch.distributions."""
    q_y = Categorical(logits=model.classify(x))
    total = torch.zeros(len(x))
    for label in range(model.event.classes):
        y = torch.full((len(x),), label)
        q = model.posterior(x, y)
        likelihood = model.likelihood(q.loc + q.scale * eps, y).log_prob(x).sum((1, 2))
        log_p_y = Categorical(probs=model.class_frequencies).log_prob(y)
        divergence = kl_divergence(q, Normal(0.0, 1.0)).sum(1)
        total += q_y.probs[:, label] * (likelihood + log_p_y - divergence - q_y.log_prob(y))
    return total


def test_the_bound_without_a_label_is_the_sum_over_all_of_them() -> None:
    model = model_of()
    with torch.no_grad():
        wanted = by_enumeration(model, X, NOISE.normal("z", (2,)))
        torch.testing.assert_close(model.elbo(X, None, NOISE), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [{}, {"alpha": 7.0}, {"beta": 3.0, "free_bits": 0.4}, {"objective": "iwae", "k": 4}])
def test_the_loss_of_a_mixed_batch_is_each_row_s_own(config: dict[str, Any]) -> None:
    """Its value, and its gradient by every parameter: q(y|x) is pulled on by its entropy and by all that it weighs."""
    model, classes = model_of(**config), EVENT.classes
    eps = NOISE.normal("z", (model.config.k, 2))
    loss, metrics = model.loss(BATCH, NOISE)
    log_q, log_p = model.classify(X), model.class_frequencies.log()
    objective, bound = torch.zeros(6), torch.zeros(6)
    for i, label in enumerate(Y.tolist()):
        each = [model.terms(X[i : i + 1], torch.tensor([y]), eps[i : i + 1]) for y in range(classes)]
        if label >= 0:
            objective[i] = each[label].objective[0] + model.config.alpha * log_q[i, label]
            bound[i] = each[label].bound[0]
            continue
        for y, one in enumerate(each):
            objective[i] += log_q[i, y].exp() * (one.objective[0] + log_p[y] - log_q[i, y])
            bound[i] += log_q[i, y].exp() * (one.bound[0] + log_p[y] - log_q[i, y])
    parameters = list(model.parameters())
    wanted = torch.autograd.grad(-objective.mean() / 6, parameters)
    for one, other in zip(torch.autograd.grad(loss, parameters), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    name = "bits_per_dim_iwae_4" if model.config.objective == "iwae" else "bits_per_dim_elbo"
    assert loss.item() == pytest.approx(-objective.mean().item() / 6, rel=1e-5)
    assert metrics[name].item() == pytest.approx(-bound.mean().item() / 6 / math.log(2), rel=1e-5)
    known = Y >= 0
    assert metrics["label_nats"].item() == pytest.approx(-log_q[known, Y[known]].mean().item(), rel=1e-5)
    assert metrics["labelled"].item() == 0.5


def test_bounds_without_a_label_are_below_the_likelihood_and_tight_at_both_posteriors() -> None:
    """A toy whose only latent variable is the label: the decoder ignores the code, and the encoder says so."""
    model, x = model_of(by=1.5), states(EVENT)
    blind(model)
    with torch.no_grad():
        leave(model).weight.zero_()
        leave(model).bias.zero_()
        each = [model.likelihood(torch.zeros(64, 2), torch.full((64,), y)).log_prob(x).sum((1, 2)) for y in range(3)]
        joint = torch.stack(each, 1) + model.class_frequencies.log()
        truth = joint.logsumexp(1)
        assert truth.double().exp().sum().item() == pytest.approx(1, abs=1e-5)
        noise = Noise(0, position=range(64))
        gap = kl_divergence(Categorical(logits=model.classify(x)), Categorical(logits=joint))
        assert float(gap.min()) > 1e-3
        torch.testing.assert_close(model.elbo(x, None, noise), truth - gap, rtol=1e-4, atol=1e-4)
        for k in (1, 5):
            torch.testing.assert_close(model.iwae(x, None, k, noise), truth, rtol=1e-5, atol=1e-5)


def test_bounds_without_a_label_are_below_the_likelihood_in_expectation() -> None:
    model, repeats = model_of(latent=1), 3000
    x = X[:3]
    with torch.no_grad():
        each = [exact(model, x, torch.full((3,), y)) + model.class_frequencies[y].log() for y in range(3)]
        truth = torch.stack(each).logsumexp(0)
        many, noise = x.repeat_interleave(repeats, 0), Noise(1, position=range(3 * repeats))
        values = [value.reshape(3, repeats) for value in (model.elbo(many, None, noise), model.iwae(many, None, 50, noise))]
        low, high = (value.mean(1) for value in values)
        errors = [value.std(1) / math.sqrt(repeats) for value in values]
    assert bool((low < high - 4.5 * (errors[0] ** 2 + errors[1] ** 2).sqrt()).all())
    assert bool((high < truth + 4.5 * errors[1] + 1e-4).all())


def test_a_label_reaches_the_classifier_by_alpha_alone() -> None:
    def pull(y: Tensor, alpha: float) -> Tensor:
        model = model_of(alpha=alpha)
        return torch.autograd.grad(model.loss(replace(BATCH, y=y), NOISE)[0], head(model).weight)[0]

    all_known, unknown = torch.zeros(6, dtype=torch.int64), torch.full((6,), -1)
    assert not pull(all_known, 0.0).any() and bool(pull(all_known, 1.0).any()) and bool(pull(unknown, 0.0).any())
    torch.testing.assert_close(pull(all_known, 10.0), 10 * pull(all_known, 1.0))


@pytest.mark.parametrize("network", ["dense", "convolutional"])
@pytest.mark.parametrize("y", [Y, torch.full((6,), -1), torch.zeros(6, dtype=torch.int64)])
def test_every_parameter_is_moved_and_slices_add_up(network: str, y: Tensor) -> None:
    event = Event(modality="image", shape=(1, 4, 4), levels=4, classes=3)
    model, x = model_of(event, network=network), examples(event, 6)
    (objective,) = model.objectives()
    assert {id(parameter) for parameter in objective.parameters} == {id(parameter) for parameter in model.parameters()}
    batch = Batch(x=x, y=y, position=torch.arange(6))

    def gradient(part: slice) -> Tensor:
        loss, metrics = objective.loss(batch.rows(part.start, part.stop), NOISE.rows(part.start, part.stop))
        assert all(bool(value.isfinite()) and not value.requires_grad for value in metrics.values())
        found = torch.autograd.grad(loss, list(objective.parameters))
        assert all(bool(one.any()) for one in found)
        return torch.cat([loss.detach()[None], *(one.flatten() for one in found)])

    parts = gradient(slice(0, 2)) / 3 + gradient(slice(2, 6)) * 2 / 3
    torch.testing.assert_close(parts, gradient(slice(0, 6)), rtol=1e-4, atol=1e-5)


def test_a_code_without_a_label_is_the_mixture_over_all_of_them() -> None:
    model = model_of()
    with torch.no_grad():
        q = model.encode(X)
        assert isinstance(q, MixtureSameFamily) and q.batch_shape == (6, 2)
        weights = model.classify(X).exp()
        means = torch.stack([model.posterior(X, torch.full((6,), y)).loc for y in range(3)], 2)
        torch.testing.assert_close(q.mean, (weights[:, None] * means).sum(2))
        torch.testing.assert_close(model.features(X), q.mean)
        assert isinstance(model.encode(X, torch.zeros(6, dtype=torch.int64)), Normal)
    unlabelled = [Batch(x=X, y=torch.full((6,), -1), position=torch.arange(6))]
    assert collapse(model, unlabelled, split="test") == []


def test_it_classifies_by_its_recognition_network() -> None:
    model = model_of()
    assert "classifies" in capabilities(model) and VAE.classifies_by == "the recognition network q(y|x)"
    with torch.no_grad():
        found = model.classify(X)
        assert torch.equal(found, log_labels(model, X))
        torch.testing.assert_close(found.exp().sum(1), torch.ones(6))
        best = found.argmax(1)
    y = torch.where(torch.arange(6) < 4, best, (best + 1) % 3)
    y[0] = -1
    score = accuracy(model, [Batch(x=X, y=y, position=torch.arange(6))], split="test", name="vae")
    assert score is not None
    assert (score.model, score.name, score.value, score.n) == ("vae", "accuracy", 0.6, 5)
    assert score.protocol == "likeliest label by the recognition network q(y|x)"
    assert score.stderr == pytest.approx(math.sqrt(0.6 * 0.4 / 4))
    assert accuracy(model_of(semi_supervised=False), [BATCH], split="test") is None


def test_what_cannot_be_learnt_from_is_refused() -> None:
    model = model_of()
    model.class_frequencies.copy_(torch.tensor([0.5, 0.0, 0.5]))
    with pytest.raises(
        ValueError, match=r"^semi-supervised training without one labelled example of class 1; wanted at least one of each of 3"
    ):
        fit(model, TrainConfig(steps=1), lambda step: BATCH)
    with pytest.raises(
        ValueError, match=r"^semi-supervised training on examples that say nothing of labels; wanted y, -1 where there is none$"
    ):
        model_of().loss(replace(BATCH, y=None), NOISE)


def test_examples_without_a_label_teach_what_a_few_labels_cannot() -> None:
    """Stripes of two kinds under noise: four labelled examples say which is which, the others what a stripe is."""
    event = Event(modality="image", shape=(1, 4, 6), levels=2, classes=2)
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(600) % 2
    stripes = torch.stack([torch.arange(6) % 2, 1 - torch.arange(6) % 2])
    flips = torch.rand(600, 4, 6, generator=generator) < 0.3
    x = (stripes[y][:, None].expand(600, 4, 6) ^ flips.long())[:, None].to(torch.uint8)
    shown = torch.where(torch.arange(600) < 4, y, -1)

    def batch(step: int) -> Batch:
        # Half of a batch are the four labelled examples.
        rows = torch.cat([torch.arange(16) % 4, (step * 16 + torch.arange(16)) % 400])
        return Batch(x=x[rows], y=shown[rows], position=step * 32 + torch.arange(32), step=step)

    def right(kept: int) -> float:
        model = model_of(event, by=0.0, likelihood="bernoulli", alpha=5.0)
        model.class_frequencies.fill_(0.5)
        fit(model, TrainConfig(steps=150, batch_size=kept, lr=5e-3), lambda step: batch(step).rows(0, kept))
        with torch.no_grad():
            return (model.classify(x[400:]).argmax(1) == y[400:]).float().mean().item()

    alone, together = right(16), right(32)
    assert together > 0.93 and together > alone + 0.15
