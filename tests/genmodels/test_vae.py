"""The VAE's terms against torch.distributions, and its bounds against the exact likelihood, integrated where the code has one dimension."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from genmodels.core import Event
from genmodels.models.vae import VAE
from genmodels.noise import Noise
from tests.genmodels.conftest import examples, shaken, states

SMALL = Event(modality="image", shape=(1, 2, 3), levels=2)


def model_of(event: Event, **config: int) -> VAE:
    model = shaken("vae", event, **config)
    assert isinstance(model, VAE)
    return model


@torch.no_grad()
def exact(model: VAE, x: Tensor, y: Tensor | None = None) -> Tensor:
    """(B,) nats of a model with a one-dimensional code: log of the integral of p(x | z) N(z; 0, 1) over a fine grid."""
    z = torch.linspace(-9, 9, 4001)
    log_weight = Normal(0.0, 1.0).log_prob(z) + math.log(18 / 4000)
    columns = []
    for i in range(len(x)):
        label = None if y is None else y[i : i + 1].expand(len(z))
        columns.append(torch.logsumexp(model.likelihood(z[:, None], label).log_prob(x[i : i + 1]).sum((1, 2)) + log_weight, 0))
    return torch.stack(columns)


def test_kl_is_summed_over_latents_and_reconstruction_over_pixels() -> None:
    event = Event(modality="image", shape=(3, 5, 4), levels=17, classes=2)
    model, y = model_of(event, latent=5, hidden=8), torch.tensor([0, 1, 1, 0])
    x, noise = examples(event, 4), Noise(0, position=range(4))
    with torch.no_grad():
        reconstruction, divergence = model._terms(x, y, noise)
        q = model.encode(x, y)
        torch.testing.assert_close(divergence, kl_divergence(q, Normal(0.0, 1.0)).sum(1))
        z = q.loc + q.scale * noise.normal("z", (5,))
        each = [
            [model.likelihood(z[i : i + 1], y[i : i + 1]).log_prob(x[i : i + 1])[0, r, c] for r in range(5) for c in range(4)]
            for i in range(4)
        ]
        torch.testing.assert_close(reconstruction, torch.tensor(each).sum(1), rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(model.elbo(x, y, noise), reconstruction - divergence)


def test_the_likelihood_integrates_and_sums_to_one() -> None:
    model = model_of(SMALL, latent=1, hidden=8)
    assert exact(model, states(SMALL)).double().exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_importance_weights_against_torch_distributions() -> None:
    model = model_of(SMALL, latent=3, hidden=8)
    x, noise = examples(SMALL, 5), Noise(2, position=range(5))
    with torch.no_grad():
        q = model.encode(x)
        z = q.loc[:, None] + q.scale[:, None] * noise.normal("iwae", (4, 3))
        log_p = torch.stack([model.likelihood(z[:, j], None).log_prob(x).sum((1, 2)) for j in range(4)], 1)
        log_w = log_p + (Normal(0.0, 1.0).log_prob(z) - Normal(q.loc[:, None], q.scale[:, None]).log_prob(z)).sum(-1)
        torch.testing.assert_close(model.iwae(x, None, 4, noise), log_w.logsumexp(1) - math.log(4), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("classes", [0, 2])
def test_bounds_rise_with_k_and_stay_below_the_likelihood(classes: int) -> None:
    event = Event(modality="image", shape=(1, 2, 3), levels=3, classes=classes)
    model, repeats = model_of(event, latent=1, hidden=8), 400
    x = examples(event, 4)
    for y in (None, torch.tensor([0, 1, 0, 1])) if classes else (None,):
        if classes and y is None:
            each = torch.stack([exact(model, x, torch.full((4,), label)) for label in range(classes)], 1)
            truth = torch.logsumexp(each + model.class_frequencies.log(), 1)
        else:
            truth = exact(model, x, y)
        many, many_y = x.repeat_interleave(repeats, 0), None if y is None else y.repeat_interleave(repeats)
        means, errors = [], []
        with torch.no_grad():
            noise = Noise(1, position=range(4 * repeats))
            for value in (model.elbo(many, many_y, noise), *(model.iwae(many, many_y, k, noise) for k in (2, 16, 128))):
                means.append(value.reshape(4, repeats).mean(1))
                errors.append(value.reshape(4, repeats).std(1) / math.sqrt(repeats))
        for low, high, error in zip(means, means[1:], errors, strict=False):
            assert bool((low <= high + 4 * error).all())
        assert bool((means[-1] <= truth + 4 * errors[-1] + 1e-4).all())
        assert bool((truth - means[-1] < 0.2 * (truth - means[0]) + 4 * errors[-1] + 1e-3).all()), "128 draws come no nearer than one"
        assert float((truth - means[0]).mean()) > 0.01, "the posterior is exact already: nothing was tested"


def test_bounds_are_the_likelihood_at_the_exact_posterior() -> None:
    """A decoder that ignores its code has the prior for posterior; an encoder that says so makes every bound tight."""
    model = model_of(SMALL, latent=4, hidden=8)
    with torch.no_grad():
        model.decoder.enter.weight.zero_()
        model.encoder.leave.weight.zero_()
        model.encoder.leave.bias.zero_()
        x, noise = states(SMALL), Noise(0, position=range(64))
        elbo = model.elbo(x, None, noise)
        for k in (1, 7):
            torch.testing.assert_close(model.iwae(x, None, k, noise), elbo)
        assert elbo.double().exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_bound_of_k_does_not_depend_on_how_its_draws_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    model, noise = model_of(SMALL, latent=2, hidden=8), Noise(0, position=range(6))
    with torch.no_grad():
        whole = model.iwae(examples(SMALL, 6), None, 20, noise)
        monkeypatch.setattr("genmodels.models.vae.ROWS", 18)
        torch.testing.assert_close(model.iwae(examples(SMALL, 6), None, 20, noise), whole)


def test_samples_come_from_prior_decoder_and_likelihood() -> None:
    """The share of each state among samples is its integrated likelihood."""
    model = model_of(SMALL, latent=1, hidden=8)
    draws = 50_000
    with torch.no_grad():
        x = torch.cat([draw(model, start, 10_000) for start in range(0, draws, 10_000)])
    seen = torch.bincount((x.flatten(1).long() * 2 ** torch.arange(5, -1, -1)).sum(1), minlength=64).double()
    p = exact(model, states(SMALL)).double().exp()
    likely = p * draws > 5
    statistic = ((seen - draws * p).square() / (draws * p))[likely].sum()
    assert statistic < likely.sum() + 4.5 * math.sqrt(2 * likely.sum())


def draw(model: VAE, start: int, n: int) -> Tensor:
    return model.draw(Noise(3, position=range(start, start + n)), y=None, c=None, temperature=torch.ones(n))


def test_a_class_model_wants_a_label_to_encode() -> None:
    event = Event(modality="image", shape=(1, 4, 4), levels=4, classes=2)
    with pytest.raises(ValueError, match=r"^this model is conditioned on labels; give y$"):
        model_of(event).encode(examples(event, 2))
