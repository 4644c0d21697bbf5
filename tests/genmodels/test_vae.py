"""The VAE's terms against torch.distributions, and its bounds against the exact likelihood, integrated where the code has one dimension."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, MultivariateNormal, Normal, kl_divergence

from genmodels.core import Batch, Event, capabilities
from genmodels.evaluate import collapse
from genmodels.models import vae_completion
from genmodels.models.vae import VAE
from genmodels.models.vae_completion import Chain
from genmodels.nn.dense import Dense
from genmodels.nn.likelihood import LogisticMixture
from genmodels.noise import Noise
from tests.genmodels.conftest import examples, shaken, states

SMALL = Event(modality="image", shape=(1, 2, 3), levels=2)


def model_of(event: Event, **config: Any) -> VAE:
    model = shaken("vae", event, **config)
    assert isinstance(model, VAE)
    return model


def leave(model: VAE) -> nn.Linear:
    """The encoder's last layer, of a dense VAE."""
    assert isinstance(model.encoder, Dense)
    return model.encoder.leave


def blind(model: VAE) -> None:
    """Lets the decoder of a dense VAE ignore the code."""
    assert isinstance(model.decoder, Dense)
    with torch.no_grad():
        model.decoder.hidden[0].weight.zero_()  # type: ignore[operator]


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
        q = model.posterior(x, y)
        terms = model.terms(x, y, noise.normal("z", (1, 5)))
        torch.testing.assert_close(terms.divergence, kl_divergence(q, Normal(0.0, 1.0)).sum(1))
        z = q.loc + q.scale * noise.normal("z", (5,))
        each = [
            [model.likelihood(z[i : i + 1], y[i : i + 1]).log_prob(x[i : i + 1])[0, r, c] for r in range(5) for c in range(4)]
            for i in range(4)
        ]
        torch.testing.assert_close(terms.bound, torch.tensor(each).sum(1) - terms.divergence, rtol=1e-4, atol=1e-3)
        assert torch.equal(model.elbo(x, y, noise), terms.bound)


@pytest.mark.parametrize("likelihood", ["logistic", "bernoulli", "categorical"])
@pytest.mark.parametrize("network", ["convolutional", "dense"])
def test_the_likelihood_integrates_and_sums_to_one(network: str, likelihood: str) -> None:
    event = SMALL if likelihood != "categorical" else replace(SMALL, shape=(1, 2, 2), levels=3)
    model = model_of(event, latent=1, hidden=8, network=network, likelihood=likelihood)
    assert exact(model, states(event)).double().exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_importance_weights_against_torch_distributions() -> None:
    model = model_of(SMALL, latent=3, hidden=8)
    x, noise = examples(SMALL, 5), Noise(2, position=range(5))
    with torch.no_grad():
        q = model.posterior(x, None)
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


@pytest.mark.parametrize("classes", [0, 3])
def test_bounds_are_the_likelihood_at_the_exact_posterior(classes: int) -> None:
    """A decoder that ignores its code has the prior for posterior; an encoder that says so makes every bound tight. Without a label that is the
    likelihood with the labels summed out, and not what the nets say where they hear of none."""
    model = model_of(replace(SMALL, classes=classes), latent=4, hidden=8, network="dense", by=1.5)
    with torch.no_grad():
        blind(model)
        leave(model).weight.zero_()
        leave(model).bias.zero_()
        x, noise = states(SMALL), Noise(0, position=range(64))
        labels = [torch.full((64,), label) for label in range(classes)] or [None]
        each = torch.stack([model.elbo(x, y, noise) for y in labels], 1)
        truth = torch.logsumexp(each + model.class_frequencies.log(), 1) if classes else each[:, 0]
        torch.testing.assert_close(model.elbo(x, None, noise), truth)
        for k in (1, 7):
            torch.testing.assert_close(model.iwae(x, None, k, noise), truth)
        assert truth.double().exp().sum().item() == pytest.approx(1, abs=1e-5)
        assert not classes or float(each.std(1).mean()) > 0.1, "the labels change nothing"


class LinearGaussian(VAE):
    """x = W z + b + s e, whose likelihood and posterior are known; W's columns are orthogonal, so that the posterior has independent numbers."""

    truth: MultivariateNormal
    w: Tensor
    s: Any
    off: Any
    """How far the encoder's means are from the posterior's, in standard deviations."""

    @classmethod
    def of(cls, *, off: float) -> "LinearGaussian":
        event = Event(modality="image", shape=(1, 1, 3), levels=256)
        model = cls(event, VAE.Config(latent=2, hidden=2, network="dense"))
        model.off, model.s = off, 0.4
        model.w = torch.tensor([[0.8, -0.5], [0.8, 0.5], [0.0, 0.3]])
        model.w[:, 1] -= model.w[:, 0] * (model.w[:, 0] @ model.w[:, 1]) / model.w[:, 0].square().sum()
        model.truth = MultivariateNormal(torch.tensor([0.1, -0.2, 0.3]), model.w @ model.w.T + model.s**2 * torch.eye(3))
        return model.double()

    def likelihood(self, z: Tensor, y: Tensor | None) -> Any:
        mean = (z @ self.w.to(z.dtype).T + self.truth.mean)[:, None, None]

        class Pixels:
            @staticmethod
            def log_prob(x: Tensor) -> Tensor:
                return Normal(mean, self.s).log_prob(self.scaled(x))[:, 0]

        return Pixels()

    def posterior(self, x: Tensor, y: Tensor | None) -> Normal:
        w = self.w.double()
        variance = 1 / (1 + w.square().sum(0) / self.s**2)
        mean = variance * ((self.scaled(x).flatten(1) - self.truth.mean) @ w) / self.s**2
        return Normal(mean + self.off * variance.sqrt(), variance.sqrt().expand_as(mean))


def test_bounds_of_a_linear_gaussian_model_are_below_its_likelihood_and_tight_at_its_posterior() -> None:
    x, repeats, ks = examples(Event(modality="image", shape=(1, 1, 3), levels=256), 3), 3000, (1, 2, 8, 64)
    many, noise = x.repeat_interleave(repeats, 0), Noise(4, position=range(3 * repeats))
    tight, loose = LinearGaussian.of(off=0.0), LinearGaussian.of(off=1.0)
    truth = tight.truth.log_prob(tight.scaled(x).float().flatten(1)).double()
    for k in ks:
        torch.testing.assert_close(tight.iwae(x, None, k, noise.rows(0, 3)), truth, rtol=1e-5, atol=1e-5)
    draws = [loose.elbo(many, None, noise), *(loose.iwae(many, None, k, noise) for k in ks[1:])]
    means = [value.reshape(3, repeats).mean(1) for value in draws]
    errors = [value.reshape(3, repeats).std(1) / math.sqrt(repeats) for value in draws]
    # A mean that is off by one standard deviation in each of two numbers costs half a nat each.
    assert bool(((means[0] - (truth - 1)).abs() < 4.5 * errors[0]).all())
    for low, high, wide, narrow in zip(means, means[1:], errors, errors[1:], strict=False):
        assert bool((low < high - 4.5 * (wide**2 + narrow**2).sqrt()).all())
    assert bool((means[-1] < truth + 4.5 * errors[-1]).all()) and bool((truth - means[-1] < 0.1).all())


def test_what_iwae_descends_is_the_bound_itself_and_its_gradient_weighs_the_draws() -> None:
    """The surrogate, the draws' log weights weighed by themselves, has the same gradient and another value."""
    model, x = model_of(SMALL, latent=3, hidden=8, network="dense", objective="iwae", k=6), examples(SMALL, 5)
    batch = Batch(x=x, position=torch.arange(5))
    noise = Noise(0, position=range(5), step=2)
    loss, metrics = model.loss(batch, noise)
    parameters = list(model.parameters())
    got = torch.autograd.grad(loss, parameters)
    log_w = model._log_weights(x, None, model.posterior(x, None), noise.normal("z", (6, 3)))
    surrogate = (torch.softmax(log_w, 1).detach() * log_w).sum(1)
    bound = log_w.logsumexp(1) - math.log(6)
    assert loss.item() == pytest.approx(-bound.mean().item() / 6, rel=1e-5)
    assert set(metrics) == {"bits_per_dim_iwae_6", "kl"}
    assert metrics["bits_per_dim_iwae_6"].item() == pytest.approx(-bound.mean().item() / 6 / math.log(2), rel=1e-5)
    for one, other in zip(got, torch.autograd.grad(-surrogate.mean() / 6, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_loss_of_k_draws_is_the_mean_over_them() -> None:
    x, noise = examples(SMALL, 4), Noise(0, position=range(4))
    model = model_of(SMALL, latent=2, hidden=8, network="dense", k=3)
    loss, _ = model.loss(Batch(x=x, position=torch.arange(4)), noise)
    eps = noise.normal("z", (3, 2))
    each = [model.terms(x, None, eps[:, j : j + 1]).bound for j in range(3)]
    assert loss.item() == pytest.approx(-torch.stack(each).mean().item() / 6, rel=1e-5)


@pytest.mark.parametrize("config", [{"beta": 4.0}, {"free_bits": 0.6}, {"beta": 0.5, "free_bits": 0.6}])
def test_beta_and_free_bits_change_what_is_descended_and_nothing_that_is_reported(config: dict[str, float]) -> None:
    x, noise = examples(SMALL, 6), Noise(0, position=range(6))
    batch = Batch(x=x, position=torch.arange(6))
    plain, other = (model_of(SMALL, latent=4, hidden=8, network="dense", **each) for each in ({}, config))
    with torch.no_grad():
        (loss, metrics), (plain_loss, plain_metrics) = other.loss(batch, noise), plain.loss(batch, noise)
        divergence = kl_divergence(plain.posterior(x, None), Normal(0.0, 1.0))
        assert bool((divergence < 0.6).any()) and bool((divergence > 0.6).any())
        costs = config.get("beta", 1.0) * divergence.clamp(min=config.get("free_bits", 0.0)).sum(1)
        assert loss.item() - plain_loss.item() == pytest.approx((costs - divergence.sum(1)).mean().item() / 6, rel=1e-3)
        assert abs(loss.item() - plain_loss.item()) > 0.01
        assert metrics == plain_metrics
        assert metrics["bits_per_dim_elbo"].item() == pytest.approx(-other.elbo(x, None, noise).mean().item() / 6 / math.log(2), rel=1e-5)
        assert metrics["kl"].item() == pytest.approx(divergence.sum(1).mean().item(), rel=1e-5)
        assert torch.equal(other.iwae(x, None, 7, noise), plain.iwae(x, None, 7, noise))


def test_a_latent_below_its_free_bits_costs_the_same_wherever_it_is() -> None:
    """With a decoder that ignores the code, nothing pulls on latents that are below, and the divergence pulls on those above."""
    model = model_of(SMALL, latent=4, hidden=8, network="dense", free_bits=0.5)
    x = examples(SMALL, 6)
    with torch.no_grad():
        blind(model)
        leave(model).weight.zero_()
        leave(model).bias.copy_(torch.tensor([0.1, 0.9, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
    loss, _ = model.loss(Batch(x=x, position=torch.arange(6)), Noise(0, position=range(6)))
    (pull,) = torch.autograd.grad(loss, leave(model).bias)
    torch.testing.assert_close(pull[:4], torch.tensor([0.0, 0.0, 2.0, 0.0]) / 6)  # half of 0.9^2 is below 0.5


def test_the_likelihoods_are_those_of_torch_distributions() -> None:
    colour = Event(modality="image", shape=(3, 2, 3), levels=5)
    for event, likelihood in ((replace(colour, levels=2), "bernoulli"), (colour, "categorical")):
        model, x = model_of(event, latent=2, hidden=8, likelihood=likelihood), examples(event, 4)
        with torch.no_grad():
            found = model.likelihood(torch.randn(4, 2), None)
            assert not isinstance(found, LogisticMixture)
            truth: Any = Bernoulli(logits=found.logits) if likelihood == "bernoulli" else Categorical(logits=found.logits)
            torch.testing.assert_close(found.log_prob(x), truth.log_prob(x.float()).sum(1))
            likeliest = truth.probs > 0.5 if likelihood == "bernoulli" else truth.probs.argmax(-1)
            assert torch.equal(found.mode().long(), likeliest.long())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"likelihood": "bernoulli"}, r"^likelihood bernoulli of 17 levels: binary cross-entropy on grey levels is no likelihood.*set likelihood to"),
        ({"likelihood": "gaussian"}, r"^likelihood 'gaussian'; wanted logistic, bernoulli, categorical$"),
        ({"network": "deep"}, r"^network 'deep'; wanted convolutional, dense$"),
        ({"objective": "surrogate"}, r"^objective 'surrogate'; wanted elbo, iwae$"),
        ({"objective": "iwae", "beta": 2.0}, r"^beta and free_bits weigh a divergence, and objective iwae has none"),
        ({"beta": -1.0}, r"^beta -1, free_bits 0, alpha 50; wanted at least 0$"),
        ({"k": 0}, r"wanted sizes of at least 1$"),
        ({"semi_supervised": True}, r"^semi_supervised wants at least 2 classes; got image 1x8x8, 17 levels$"),
    ],
)  # fmt: skip
def test_settings_that_make_no_model_are_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        model_of(Event(modality="image", shape=(1, 8, 8), levels=17), **config)


def known_of(event: Event) -> Tensor:
    known = torch.zeros(event.shape, dtype=torch.bool)
    known[:, 0] = True
    return known


@pytest.mark.parametrize(("classes", "semi_supervised"), [(0, False), (3, False), (3, True)])
def test_completions_are_drawn_from_the_posterior_given_the_known_part(classes: int, semi_supervised: bool) -> None:
    """After a chain's steps the shares of the missing row's states are those of p(x) restricted to the known row. The encoder is a poor one, but
    wide enough for the chain to move: pseudo-Gibbs alone would be off by a twelfth."""
    event = replace(SMALL, classes=classes)
    model = model_of(event, latent=1, hidden=8, network="dense", by=1.0, semi_supervised=semi_supervised)
    assert isinstance(model.encoder, Dense)
    with torch.no_grad():
        leave(model).weight.mul_(torch.tensor([[0.3], [0.5]]))
        leave(model).bias.copy_(torch.tensor([0.0, 0.2]))
        for label in model.encoder.labels:
            for vectors in label.parameters():
                vectors.mul_(2)  # labels whose codes are wider or narrower, which their proposals are weighed for
    rows, steps = 5000, 60
    known = known_of(event).expand(rows, *event.shape)
    every = states(event)
    x = every[0b101000].expand(rows, *event.shape)
    noise = Noise(5, position=range(rows))
    y = model.drawn_labels(noise) if classes else None
    with torch.no_grad():
        drawn = model.draw(noise, y=y, c=None, temperature=torch.ones(rows))
        chain = Chain(torch.where(known, x, drawn), model.codes(noise), y)
        vae_completion.run(model, chain, known, noise, label_given=False, steps=steps)
        assert torch.equal(chain.x[known], x[known])
        like = every[0b101000:0b110000]
        joint = [exact(model, like, torch.full((8,), label)) + model.class_frequencies[label].log() for label in range(classes)]
        p = torch.softmax(torch.stack(joint).logsumexp(0) if classes else exact(model, like), 0)
    seen = torch.bincount((chain.x[:, 0, 1].long() * torch.tensor([4, 2, 1])).sum(1), minlength=8) / rows
    errors = (p * (1 - p) / rows).sqrt()
    assert p.max() < 0.9 and bool((p > 0.003).sum() > 3), "next to nothing is left to be drawn"
    assert bool(((seen - p).abs() < 4.5 * errors + 0.004).all()), torch.stack([seen, p])


def test_a_completion_depends_on_its_own_row_alone_and_says_how_it_was_made() -> None:
    event = Event(modality="image", shape=(1, 4, 4), levels=4, classes=2)
    model, known = model_of(event, latent=2, hidden=8), known_of(event)
    x = examples(event, 19)
    whole = model.complete(x, known, seed=3, steps=4)
    few = model.complete(x[17:19], known, seed=3, first=17, steps=4)
    assert torch.equal(few.x, whole.x[17:19]) and torch.equal(whole.x[:, known], x[:, known])
    assert not whole.exact and whole.ess is None
    assert whole.method == "Metropolis within Gibbs, a chain of 4 steps from a draw of the model, the first 4 of them pseudo-Gibbs"
    unseen = torch.where(known, x, 3)
    assert torch.equal(model.complete(unseen, known, seed=3, steps=4).x, whole.x), "what is not known is looked at"
    assert torch.equal(model.complete(x, torch.ones_like(known), seed=3, steps=2).x, x)
    labelled = model.complete(x, known, seed=3, y=torch.ones(19, dtype=torch.int64), steps=4)
    assert not torch.equal(labelled.x, whole.x)


def test_completions_that_make_no_sense_are_refused() -> None:
    event = Event(modality="image", shape=(3, 2, 2), levels=4)
    model, x = model_of(event, latent=2, hidden=8), examples(event, 2)
    with pytest.raises(ValueError, match=r"^known values marked by torch.bool of shape \(2,\); wanted bool of shape \(3, 2, 2\)"):
        model.complete(x, torch.ones(2, dtype=torch.bool), seed=0)
    red = torch.zeros(3, 2, 2, dtype=torch.bool)
    red[0] = True
    with pytest.raises(ValueError, match=r"^some channels of a pixel are known and others not.*mark whole pixels as known$"):
        model.complete(x, red, seed=0)
    assert model_of(event, latent=2, hidden=8, likelihood="categorical").complete(x, red, seed=0, steps=2).x.shape == x.shape
    with pytest.raises(ValueError, match=r"^temperature other than 1 asked of VAE"):
        model.complete(x, red.any(0).expand(3, 2, 2), seed=0, temperature=0.5)


def test_collapsed_latents_are_counted() -> None:
    """The encoder says two numbers of each example, next to nothing in the third, and nothing in the other two."""
    model, event = model_of(SMALL, latent=5, hidden=8, network="dense"), SMALL
    with torch.no_grad():
        leave(model).weight[2].mul_(0.05 / model.posterior(states(event), None).loc[:, 2].std())
        leave(model).weight[3:5].zero_()
        leave(model).weight[7:].zero_()
        leave(model).bias[2:5] = torch.tensor([0.0, 1.0, 0.0])
        leave(model).bias[7:] = 0.0
    x = states(event)
    batches = [Batch(x=part, position=torch.arange(len(part))) for part in x.split(10)]
    units, divergence = collapse(model, batches, split="test")
    q = model.posterior(x, None)
    assert (units.name, units.value, units.n) == ("active units", 2.0, 64)
    assert units.protocol == "Cov_x(E[z|x]) > 0.01, of 5 latents"
    each = kl_divergence(q, Normal(0.0, 1.0)).mean(0)
    assert (divergence.name, divergence.unit) == ("KL a latent", "nats")
    assert divergence.value == pytest.approx(each.mean().item(), rel=1e-5)
    assert divergence.protocol == f"KL(q(z|x) || p(z)), mean over examples and 5 latents, from 0.000 to {each.max():.3f}"


def test_a_vae_without_a_classifier_says_so() -> None:
    model = model_of(Event(modality="image", shape=(1, 4, 4), levels=4, classes=2))
    assert "classifies" not in capabilities(model) and "classifies" in capabilities(VAE)
    with pytest.raises(
        ValueError, match=r"^this VAE does not classify: it was trained without model.semi_supervised, so it has no q\(y\|x\)$"
    ):
        model.classify(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))


def test_bound_of_k_does_not_depend_on_how_its_draws_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    model, noise = model_of(SMALL, latent=2, hidden=8), Noise(0, position=range(6))
    with torch.no_grad():
        whole = model.iwae(examples(SMALL, 6), None, 20, noise)
        monkeypatch.setattr("genmodels.models.vae.ROWS", 18)
        torch.testing.assert_close(model.iwae(examples(SMALL, 6), None, 20, noise), whole)


@pytest.mark.parametrize("likelihood", ["logistic", "bernoulli", "categorical"])
def test_samples_come_from_prior_decoder_and_likelihood(likelihood: str) -> None:
    """The share of each state among samples is its integrated likelihood."""
    model = model_of(SMALL, latent=1, hidden=8, network="dense", likelihood=likelihood)
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
