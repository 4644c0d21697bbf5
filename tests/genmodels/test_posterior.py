"""Posteriors against closed forms, grids and enumeration; the predictive density is a density, and what is drawn is drawn from it."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Dirichlet, Gamma, MultivariateNormal, Normal

from genmodels import artifact, mcmc
from genmodels.core import BLOCK, Batch, Event
from genmodels.iterate import Iteration
from genmodels.models.helmholtz import Helmholtz
from genmodels.models.posterior import Posterior, target_of
from genmodels.models.posterior_latent import Latent
from genmodels.models.posterior_linear import Linear
from genmodels.models.posterior_mixture import RATE, SHAPE, GaussianMixture
from genmodels.models.posterior_targets import Logistic
from genmodels.models.vae import VAE
from genmodels.noise import Noise, derive
from genmodels.train import TrainConfig
from genmodels.zoo import build
from tests.genmodels.conftest import examples, shaken, states
from tests.genmodels.test_contract import g_test


def given(dims: int, levels: int = 0) -> Event:
    return Event(modality="table", shape=(1,), levels=levels, condition=Event(modality="table", shape=(dims,), levels=0))


POINTS = Event(modality="table", shape=(2,), levels=0)
PICTURE = Event(modality="image", shape=(1, 2, 3), levels=2)


def regression(rows: int = 30, dims: int = 2) -> list[Batch]:
    """Features of odd units, a linear target in odd units."""
    noise = Noise(1, position=range(rows))
    z = noise.normal("c", (dims,))
    x = 40 + 8 * (z @ torch.linspace(-1, 2, dims) + 0.6 * noise.normal("e"))
    return cut(Batch(x=x[:, None], c=5 + 3 * z, position=torch.arange(rows)))


def classification(rows: int = 25, levels: int = 2) -> list[Batch]:
    noise = Noise(2, position=range(rows))
    c = noise.normal("c", (1,))
    x = (levels * torch.sigmoid(1.5 * c[:, 0] + noise.normal("e"))).long().clamp(max=levels - 1)
    return cut(Batch(x=x.to(torch.uint8)[:, None], c=100 + 7 * c, position=torch.arange(rows)))


def clouds(rows: int = 40) -> list[Batch]:
    noise = Noise(3, position=range(rows))
    centre = torch.where(torch.arange(rows)[:, None] % 3 == 0, torch.tensor([9.0, 1.0]), torch.tensor([4.0, 2.0]))
    return cut(Batch(x=centre + noise.normal("x", (2,)), position=torch.arange(rows)))


def cut(batch: Batch) -> list[Batch]:
    return [batch.rows(start, min(start + 16, len(batch))) for start in range(0, len(batch), 16)]


def learnt(event: Event, data: list[Batch], passes: int = 40, seed: int = 0, **config: Any) -> Posterior:
    model = build("posterior", event, **config)
    assert isinstance(model, Posterior)
    Iteration(model, TrainConfig(steps=passes, seed=seed)).run(lambda _: data, until=passes)
    return model.eval()  # type: ignore[return-value]


def joined(data: Iterable[Batch]) -> Batch:
    batches = list(data)
    c = [batch.c for batch in batches if batch.c is not None]
    return replace(
        batches[0], x=torch.cat([b.x for b in batches]), c=torch.cat(c) if c else None, position=torch.arange(sum(map(len, batches)))
    )


QUICK = {"chains": 16, "warmup": 150, "draws": 100, "round": 100}
"""Many short chains: they run side by side."""


def standard(values: Tensor) -> Tensor:
    values = values.double()
    return (values - values.mean(0)) / values.std(0, correction=0)


def exact_regression(data: list[Batch], prior_scale: float) -> tuple[Tensor, Tensor, float, float]:
    """Normal-Gamma posterior: mean (D,), precision over lambda (D, D), shape, rate; textbook formulas on standardised data."""
    whole = joined(data)
    assert whole.c is not None
    x, design = standard(whole.x)[:, 0], torch.cat([torch.ones(len(whole), 1).double(), standard(whole.c)], 1)
    sharp = design.T @ design + torch.eye(design.shape[1]).double() / prior_scale**2
    mean = torch.linalg.solve(sharp, design.T @ x)
    return mean, sharp, 1 + len(x) / 2, 1 + float(x @ x - mean @ sharp @ mean) / 2


def test_regression_s_density_is_the_closed_form_s_times_the_evidence() -> None:
    data = regression()
    target = target_of(build("posterior", given(2), prior_scale=0.7), data)  # type: ignore[arg-type]
    mean, sharp, shape, rate = exact_regression(data, 0.7)
    theta = target.start(Noise(5, position=range(6)))
    precision = theta[:, -1].exp()
    shapes = torch.tensor([shape, rate], dtype=torch.float64)
    log_p = Gamma(shapes[0], shapes[1]).log_prob(precision) + theta[:, -1]
    log_p = log_p + torch.stack(
        [MultivariateNormal(mean, precision_matrix=sharp * p).log_prob(w) for w, p in zip(theta[:, :-1], precision, strict=True)]
    )
    evidence = target.evidence()
    assert evidence is not None
    torch.testing.assert_close(target.log_density(theta), log_p + evidence, rtol=1e-9, atol=1e-7)
    assert target.rows == 30 and len(target.names) == len(target.natural) == 4 and target.natural[-1] == "precision"
    torch.testing.assert_close(target.constrain(theta)[:, -1], precision)


@pytest.mark.parametrize("method", ["hmc", "mala", "metropolis", "gibbs"])
def test_chains_find_regression_s_closed_form(method: str) -> None:
    data = regression()
    model = learnt(given(2), data, method=method, passes=12, **{**QUICK, "draws": 200})
    mean, sharp, shape, rate = exact_regression(data, 1.0)
    draws, ess = model.draws, mcmc.ess(model.theta.data)
    scale = torch.cat(
        [
            (torch.linalg.inv(sharp).diagonal() * rate / (shape - 1)).sqrt(),
            torch.special.polygamma(1, torch.tensor([shape])).double().sqrt(),
        ]
    )
    expected = torch.cat([mean, torch.digamma(torch.tensor([shape]).double()) - math.log(rate)])
    assert float(ess.min()) > 300
    assert bool(((draws.mean(0) - expected).abs() < 4.5 * scale / ess.sqrt()).all())
    torch.testing.assert_close(draws.std(0), scale, rtol=0.15, atol=0)


def test_variational_regression_finds_mean_and_known_variances() -> None:
    data = regression()
    mean, sharp, shape, rate = exact_regression(data, 1.0)
    field = learnt(given(2), data, method="vi-mean-field", warmup=100, draws=5000)
    full = learnt(given(2), data, method="vi-full", warmup=1500, round=500, draws=5000, lr=0.1)
    evidence = target_of(field, data).evidence()
    assert evidence is not None and field.converged and full.converged
    for model in (field, full):
        torch.testing.assert_close(model.draws[:, :-1].mean(0), mean, atol=0.03, rtol=0)
        # Both think lambda and w independent or jointly normal: E[1 / lambda] of theirs is near the posterior's, never far above.
        torch.testing.assert_close(model.draws[:, :-1].T.cov(), torch.linalg.inv(sharp) * rate / (shape - 1), rtol=0.15, atol=0.002)
        assert 0 < evidence - float(model.bound) < 0.15
        assert model.findings()["elbo"] == float(model.bound) and "rhat" not in model.findings()


def stein(model: Posterior, data: list[Batch], draws: Tensor) -> None:
    """Under a density E[d log p / d theta_i] = 0 and E[theta_i d log p / d theta_i] = -1 for every i; errors by effective draws."""
    flat = draws.flatten(0, 1).requires_grad_()
    slope = torch.autograd.grad(target_of(model, data).log_density(flat).sum(), flat)[0]
    for moments, wanted in ((slope, 0.0), (slope * flat.detach(), -1.0)):
        error = moments.std(0) / mcmc.ess(moments.reshape(draws.shape), ranked=False).sqrt()
        assert bool(((moments.mean(0) - wanted).abs() < 5 * error).all()), (moments.mean(0), error)
        assert float(error.max()) < 1.0, "too few draws to have tested anything"


def test_gibbs_of_the_mixture_leaves_its_density_as_it_is() -> None:
    data = clouds()
    model = build("posterior", POINTS, target="mixture", prior_scale=2.0)
    assert isinstance(model, Posterior)
    target = target_of(model, data)
    assert target.gibbs is not None
    begin = torch.cat([target.start(Noise(0, position=range(16)))])
    found = mcmc.run(mcmc.Gibbs(target.gibbs, target.log_density), begin, warmup=100, draws=600, seed=0)
    stein(model, data, found.draws)


def test_the_mixture_s_density_is_prior_times_likelihood() -> None:
    data = clouds()
    model = build("posterior", POINTS, target="mixture", prior_scale=2.0, components=3)
    assert isinstance(model, Posterior)
    target, theta = target_of(model, data), 0.7 * Noise(4, position=range(5)).normal("theta", (14,)).double()
    pi = torch.cat([theta[:, :2], torch.zeros(5, 1)], 1).softmax(1)
    mu, tau = theta[:, 2:8].reshape(5, 3, 2), theta[:, 8:].reshape(5, 3, 2).exp()
    log_p = Dirichlet(torch.ones(3).double()).log_prob(pi) + pi.log().sum(1)  # the derivative of pi by the logits is prod pi
    log_p = log_p + (Gamma(torch.tensor(SHAPE).double(), RATE).log_prob(tau) + tau.log() + Normal(0.0, 2.0 / tau.sqrt()).log_prob(mu)).sum(
        (1, 2)
    )
    x = joined(data).x.double()
    units = standard(x)
    each = Normal(mu[:, None], tau[:, None].rsqrt()).log_prob(units[None, :, None]).sum(-1) + pi.log()[:, None]
    log_p = log_p + each.logsumexp(-1).sum(1) - len(x) * x.std(0, correction=0).log().sum()
    torch.testing.assert_close(target.log_density(theta), log_p, rtol=1e-6, atol=1e-6)


def test_a_permutation_of_the_components_changes_nothing() -> None:
    data = clouds()
    model = learnt(POINTS, data, target="mixture", method="gibbs", passes=3, **QUICK)
    part, target, x = model.parametric, target_of(model, data), joined(data).x
    assert isinstance(part, GaussianMixture)
    log_pi, mu, log_tau = part.split(model.draws)
    swapped = part.joined(log_pi.flip(-1), mu.flip(-2), log_tau.flip(-2))
    assert not torch.equal(swapped, model.draws)
    torch.testing.assert_close(target.log_density(swapped), target.log_density(model.draws))
    before = model.log_prob(x)
    torch.testing.assert_close(target.ordered(swapped), model.draws)
    assert bool((part.split(model.draws)[1][..., 0].diff(dim=-1) >= 0).all())
    model.theta.data = swapped.reshape(model.theta.shape)
    torch.testing.assert_close(model.log_prob(x), before)


def test_mean_field_s_bound_of_the_mixture_is_below_the_evidence_that_chains_imply() -> None:
    """log p(x) >= bound, the bound being near the mean of log p(x, theta) - log q(theta) that gradients estimate with the same density."""
    data = clouds()
    field = learnt(POINTS, data, target="mixture", method="vi-mean-field", draws=500)
    target = target_of(field, data)
    gibbs = learnt(POINTS, data, target="mixture", method="gibbs", passes=4, **QUICK)
    torch.testing.assert_close(target.constrain(field.draws).mean(0), target.constrain(gibbs.draws).mean(0), rtol=0.15, atol=0.08)
    diagonal = learnt(POINTS, data, target="mixture", method="vi-diagonal", warmup=600, round=600, lr=0.1)
    # q(z) q(theta) is no better than the best q(theta) with z summed out; a diagonal Gaussian is no best one.
    assert float(diagonal.bound) == pytest.approx(float(field.bound), abs=1.5)


def grid_of(target: Any, low: float = -8, high: float = 8, n: int = 321) -> tuple[Tensor, Tensor]:
    """(n^2, 2) points and their share of the posterior."""
    axis = torch.linspace(low, high, n, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    return points, torch.cat([target.log_density(part) for part in points.split(20_000)]).softmax(0)


@pytest.mark.parametrize("method", ["hmc", "vi-full"])
def test_logistic_regression_against_a_grid(method: str) -> None:
    data = classification()
    settings = QUICK if method == "hmc" else {"warmup": 1000, "round": 1000, "draws": 2000}
    model = learnt(given(1, 2), data, target="logistic", method=method, prior_scale=1.5, passes=6, **settings)
    points, share = grid_of(target_of(model, data))
    mean = share @ points
    cov = (points - mean).T @ (share[:, None] * (points - mean))
    exactly = method == "hmc"
    torch.testing.assert_close(model.draws.mean(0), mean, atol=0.08 if exactly else 0.12, rtol=0)
    torch.testing.assert_close(model.draws.T.cov(), cov, atol=0.05 if exactly else 0.1, rtol=0.1)
    whole = joined(data)
    assert whole.c is not None
    design = torch.cat([torch.ones(len(whole), 1).double(), standard(whole.c)], 1)
    p = torch.sigmoid(design @ points.T) @ share
    ones = torch.ones(len(whole), 1, dtype=torch.uint8)
    torch.testing.assert_close(model.log_prob(ones, None, whole.c).exp(), p, atol=0.02, rtol=0)


@pytest.mark.parametrize("levels", [2, 3])
def test_logistic_density_is_prior_times_likelihood_and_sums_to_one(levels: int) -> None:
    data = classification(levels=levels)
    model = build("posterior", given(1, levels), target="logistic", prior_scale=1.5)
    assert isinstance(model, Posterior) and isinstance(model.parametric, Logistic)
    target, whole = target_of(model, data), joined(data)
    assert whole.c is not None
    theta = target.start(Noise(3, position=range(4)))
    weights = theta.reshape(4, -1, 2)
    if levels == 2:
        weights = torch.cat([torch.zeros(4, 1, 2).double(), weights], 1)
    design = torch.cat([torch.ones(len(whole), 1).double(), standard(whole.c)], 1)
    likelihood = torch.distributions.Categorical(logits=torch.einsum("skd,bd->sbk", weights, design)).log_prob(whole.x[:, 0].long())
    torch.testing.assert_close(target.log_density(theta), likelihood.sum(1) + Normal(0.0, 1.5).log_prob(theta).sum(1))
    model.position.data = model.parametric.target(model._read(data)).start(Noise(1, position=range(4)))
    each = [model.log_prob(torch.full_like(whole.x, k), None, whole.c).exp() for k in range(levels)]
    torch.testing.assert_close(torch.stack(each).sum(0), torch.ones(len(whole)).double())


def test_what_is_predicted_of_real_values_integrates_to_one_and_is_drawn_from() -> None:
    data = regression()
    model = learnt(given(2), data, method="gibbs", passes=3, **QUICK)
    c = torch.tensor([[5.0, 2.0]])
    line = torch.linspace(-150, 250, 20_001)
    density = model.log_prob(line[:, None], None, c.expand(len(line), -1)).exp()
    assert float(density.sum() * 400 / 20_000) == pytest.approx(1, abs=1e-6)
    drawn = model.draw(Noise(9, position=range(20_000)), y=None, c=c.expand(20_000, -1), temperature=torch.ones(20_000))[:, 0]
    cdf = density.cumsum(0) * 400 / 20_000
    assert stats.kstest(drawn.numpy(), lambda x: np.interp(x, line.numpy(), cdf.numpy())).pvalue > 1e-3
    assert 0.1 < float(cdf[torch.searchsorted(line, drawn.mean())]) < 0.9


def test_the_mixture_s_prediction_integrates_to_one_and_is_drawn_from() -> None:
    model = learnt(POINTS, clouds(), target="mixture", method="gibbs", passes=3, warmup=100, draws=20, round=20)
    side, cell = torch.linspace(-15, 25, 161), 0.25**2
    p = (model.log_prob(torch.cartesian_prod(side, side)).exp() * cell).reshape(161, 161)
    assert float(p.sum()) == pytest.approx(1, abs=2e-3)
    drawn = model.draw(Noise(9, position=range(20_000)), y=None, c=None, temperature=torch.ones(20_000))
    for axis in (0, 1):
        cdf = p.sum(1 - axis).cumsum(0)
        assert stats.kstest(drawn[:, axis].numpy(), lambda x, cdf=cdf: np.interp(x, (side + 0.125).numpy(), cdf.numpy())).pvalue > 1e-3


def parent(kind: str, event: Event = PICTURE, **config: Any) -> tuple[VAE | Helmholtz, dict[str, Any]]:
    model = shaken(kind, event, by=1.5, **config)
    assert isinstance(model, VAE | Helmholtz)
    return model, {"family": kind, "event": event.to_json(), "config": config}


def of_code(
    kind: str, event: Event = PICTURE, *, parents: dict[str, Any] | None = None, **config: Any
) -> tuple[Posterior, VAE | Helmholtz, list[Batch]]:
    """The posterior of example 3's code, with its parent's weights put in."""
    source, described = parent(kind, event, **(parents or {"latent": 1, "hidden": 8} if kind == "vae" else parents or {"hidden": (4, 3)}))
    model = build("posterior", event, target="latent", parent=described, example=3, **config)
    assert isinstance(model, Posterior) and isinstance(model.parametric, Latent)
    model.parametric.parent.load_state_dict(source.state_dict())
    y = torch.arange(8) % event.classes if event.classes else None
    return model.eval(), source, cut(Batch(x=examples(event, 8), y=y, position=torch.arange(8)))  # type: ignore[return-value]


def run(model: Posterior, data: list[Batch], passes: int = 40) -> Posterior:
    Iteration(model, TrainConfig(steps=passes)).run(lambda _: data, until=passes)
    return model.eval()  # type: ignore[return-value]


@pytest.mark.parametrize("classes", [0, 2])
def test_the_code_of_a_vae_against_a_grid(classes: int) -> None:
    event = replace(PICTURE, classes=classes)
    model, source, data = of_code("vae", event, method="hmc", chains=16, warmup=150, draws=60, round=60)
    run(model, data, 5)
    assert isinstance(source, VAE)
    z = torch.linspace(-6, 6, 1201)[:, None]
    y = torch.full((1201,), 3 % classes) if classes else None
    with torch.no_grad():
        nats = source.likelihood(z, y).log_prob(data[0].x[3:4]).double().sum((1, 2)) + Normal(0.0, 1.0).log_prob(z[:, 0].double())
        share = nats.softmax(0)
        mean = share @ z[:, 0].double()
        variance = share @ (z[:, 0].double() - mean).square()
        assert float(model.effective) > 200 and float((mean.square() + (variance - 1).square()).sqrt()) > 0.1, "the prior would do too"
        assert float(model.draws.mean()) == pytest.approx(float(mean), abs=4.5 * math.sqrt(variance / float(model.effective)))
        assert float(model.draws.var()) == pytest.approx(float(variance), rel=0.25)
        every = states(PICTURE)
        y = torch.full((64,), 1) if classes else None
        p = model.log_prob(every, y).exp()
        assert float(p.sum()) == pytest.approx(1, abs=1e-5)
        given_z = torch.stack(
            [source.likelihood(z, None if y is None else y[:1].expand(1201)).log_prob(x[None]).double().sum((1, 2)) for x in every]
        )
        torch.testing.assert_close(p, given_z.exp() @ share, rtol=0.15, atol=0.004)


@pytest.mark.parametrize("kind", ["vae", "helmholtz"])
def test_pictures_are_drawn_from_what_is_predicted(kind: str) -> None:
    model, _, data = of_code(kind, method="metropolis", chains=4, warmup=50, draws=20, round=20)
    run(model, data, 3)
    with torch.no_grad():
        p = model.log_prob(states(PICTURE)).exp()
        x = model.draw(Noise(3, position=range(50_000)), y=None, c=None, temperature=torch.ones(50_000))
    seen = torch.bincount((x.flatten(1).long() * 2 ** torch.arange(5, -1, -1)).sum(1), minlength=64)
    assert g_test(seen.numpy(), p.numpy()) > 1e-4


@pytest.mark.parametrize("method", ["gibbs", "metropolis", "vi-mean-field"])
def test_the_bits_of_a_helmholtz_machine_against_enumeration(method: str) -> None:
    event = replace(PICTURE, classes=2)
    settings: dict[str, Any] = (
        {"warmup": 800, "round": 400, "draws": 200} if method.startswith("vi") else {"chains": 32, "warmup": 50, "draws": 200, "round": 200}
    )
    model, source, data = of_code("helmholtz", event, method=method, **settings)
    run(model, data, 4)
    assert isinstance(source, Helmholtz) and isinstance(model.parametric, Latent)
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=7)))
    with torch.no_grad():
        nats = source.log_joint(data[0].x[3:4], every[None], torch.tensor([1]))[0].double()
    evidence, share = nats.logsumexp(0), nats.softmax(0)
    assert model.parametric.evidence() == pytest.approx(float(evidence), abs=1e-5)
    marginals = share @ every.double()
    assert float((marginals - 0.5).abs().max()) > 0.2
    if method != "vi-mean-field":
        error = (marginals * (1 - marginals) / mcmc.ess(model.theta.data)).sqrt()
        assert bool(((model.draws.mean(0) - marginals).abs() < 4.5 * error).all()) and float(error.max()) < 0.03
        return
    log_q = model.parametric.family.at(model.phi[0]).log_prob(every.double())
    assert log_q.exp().sum() == pytest.approx(1)
    gap = (log_q.exp() * (log_q - nats + evidence)).sum()
    assert float(evidence - model.bound) == pytest.approx(float(gap), abs=0.1)
    assert torch.equal(model.draws, model.draws.round()) and float((model.draws.mean(0) - log_q.exp() @ every.double()).abs().max()) < 0.06


CASES: list[tuple[Event, Any, dict[str, Any]]] = [
    (given(2), regression, {"method": "hmc"}),
    (given(2), regression, {"method": "metropolis"}),
    (given(1, 3), lambda: classification(levels=3), {"target": "logistic", "method": "mala"}),
    (given(1, 2), classification, {"target": "logistic", "method": "vi-full"}),
    (POINTS, clouds, {"target": "mixture", "method": "gibbs"}),
    (POINTS, clouds, {"target": "mixture", "method": "vi-mean-field"}),
]


@pytest.mark.parametrize(("event", "make", "config"), CASES)
def test_rounds_cut_anywhere_are_the_undisturbed_ones(event: Event, make: Any, config: dict[str, Any], tmp_path: Path) -> None:
    data, passes = make(), 7

    def fresh() -> Iteration:
        model = build("posterior", event, warmup=20, draws=16, round=8, rhat=1.0001, **config)
        return Iteration(model, TrainConfig(steps=passes, seed=3))  # type: ignore[arg-type]

    whole = fresh()
    records = whole.run(lambda _: data, until=passes)
    whole.save(tmp_path / "whole")
    for cut_at in range(1, len(records)):
        first, second = fresh(), fresh()
        before = first.run(lambda _: data, until=cut_at)
        first.save(tmp_path / "cut")
        torch.manual_seed(cut_at)
        second.restore(tmp_path / "cut")
        assert before + second.run(lambda _: data, until=passes) == records
        second.save(tmp_path / "again")
        assert (tmp_path / "again/state.safetensors").read_bytes() == (tmp_path / "whole/state.safetensors").read_bytes()


@pytest.mark.parametrize(("event", "make", "config"), CASES)
def test_a_saved_posterior_is_the_same_one(event: Event, make: Any, config: dict[str, Any], tmp_path: Path) -> None:
    data = make()
    model, whole = learnt(event, data, passes=4, warmup=20, draws=16, round=8, **config), joined(data)
    artifact.save(model, tmp_path / "model", family="posterior", prepare={}, labels=())
    again = artifact.load(tmp_path / "model")
    assert isinstance(again, Posterior) and again.converged == model.converged
    assert torch.equal(again.log_prob(whole.x, None, whole.c), model.log_prob(whole.x, None, whole.c))
    c = None if whole.c is None else whole.c[:5]
    assert torch.equal(again.sample(5, seed=1, c=c), model.sample(5, seed=1, c=c))
    assert again.findings() == pytest.approx(model.findings(), nan_ok=True)


def test_a_saved_posterior_of_a_code_holds_its_parent(tmp_path: Path) -> None:
    model, source, data = of_code("vae", parents={"latent": 2, "hidden": 8}, method="hmc", warmup=10, draws=8, round=8)
    run(model, data, 3)
    artifact.save(model, tmp_path / "model", family="posterior", prepare={}, labels=())
    again = artifact.load(tmp_path / "model")
    assert isinstance(again, Posterior) and isinstance(again.parametric, Latent)
    for name, value in again.parametric.parent.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name
    assert torch.equal(again.parametric.example, data[0].x[3])
    assert torch.equal(again.log_prob(data[0].x), model.log_prob(data[0].x))


@pytest.mark.parametrize(("event", "make", "config"), CASES[:5])
def test_a_sample_depends_on_its_own_request_alone(event: Event, make: Any, config: dict[str, Any]) -> None:
    data = make()
    model, whole = learnt(event, data, passes=3, warmup=20, draws=16, round=16, **config), joined(data)
    c = None if whole.c is None else whole.c[: BLOCK + 3]
    rows = model.sample(BLOCK + 3, seed=4, c=c)
    few = model.sample(2, seed=4, first=4, c=None if c is None else c[4:6])
    assert torch.equal(few, rows[4:6]) and rows.dtype == (torch.uint8 if event.levels else torch.float32)
    assert len(rows.unique(dim=0)) > 1
    assert not torch.equal(model.sample(BLOCK + 3, seed=5, c=c), rows)


def test_draws_that_do_not_agree_are_thinned_and_go_on() -> None:
    """What is kept in the end is every thin-th draw of one long run; whether they agree is told."""
    data = regression()
    model = build("posterior", given(2), method="metropolis", warmup=30, draws=16, round=16, rhat=1.0001)
    assert isinstance(model, Posterior)
    iteration = Iteration(model, TrainConfig(steps=5, seed=3))
    records = iteration.run(lambda _: data, until=5)
    assert (int(model.thin), int(model.kept)) == (4, 12) and not model.converged
    seed = derive(derive(3, "iterate"), "chains")
    begin = target_of(model, data).start(Noise(derive(3, "iterate"), position=range(4)))
    kernel = mcmc.RandomWalk(target_of(model, data).log_density)
    long = mcmc.run(kernel, begin, warmup=30, draws=12, seed=seed, thin=4)
    torch.testing.assert_close(model.theta[:, :12], long.draws)
    assert records[-1]["rhat"] == float(model.worst) == pytest.approx(float(mcmc.rhat(long.draws).amax()))
    findings = model.findings()
    assert findings["converged"] is False and findings["rhat"] > 1.0001 and findings["draws"] == 48


def test_chains_that_stand_still_have_an_r_hat_all_the_same() -> None:
    """Bits that differ between chains and never turn over: an infinite R-hat, told as 99, and nothing that is not finite."""
    model, _, data = of_code("helmholtz", method="metropolis", chains=4, warmup=0, draws=8, round=8)
    Iteration(model, TrainConfig(steps=1)).run(lambda _: data, until=1)
    model.theta.data = model.position.data[:, None].expand(model.theta.shape).clone()
    model.kept.fill_(8)
    from genmodels.models import posterior_methods

    found = posterior_methods._diagnosed(model)
    assert float(found["rhat"]) == 99 and not model.converged


def test_assignments_follow_the_clouds() -> None:
    data = clouds()
    model = learnt(POINTS, data, target="mixture", method="gibbs", passes=3, **QUICK)
    share = model.assignments(joined(data).x)
    assert share.shape == (40, 2) and float((share.sum(1) - 1).abs().max()) < 1e-9
    own = torch.arange(40) % 3 == 0  # the cloud further right comes second
    assert float((share[:, 1].round().bool() == own).double().mean()) > 0.95
    with pytest.raises(ValueError, match=r"^a posterior of target linear assigns nothing; "):
        build("posterior", given(2)).assignments(torch.zeros(1, 1))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("event", "config", "line"),
    [
        (given(2), {"target": "linaer"}, r"^target 'linaer'; wanted one of linear, logistic, mixture, latent$"),
        (given(2), {"draws": 9}, r"^9 draws a chain; wanted an even number of at least 8$"),
        (given(2), {"chains": 1}, r"^1 chain has none to agree with, so it has no R-hat; wanted at least 2$"),
        (given(2), {"prior_scale": 0.0}, r"^prior_scale 0, .* wanted above 0"),
        (
            given(2, 3),
            {"target": "logistic", "method": "gibbs"},
            r"^method gibbs of target logistic; it has hmc, mala, metropolis, vi-diagonal, vi-full$",
        ),
        (given(2, 3), {}, r"wanted one target, a real number, given a table of real-valued features; set data.table.target and kind$"),
        (given(2), {"target": "logistic"}, r"wanted one target, a label \(levels = how many there are\), given a table"),
        (POINTS, {}, r"^table 2, real values given None: wanted one target"),
        (
            given(2),
            {"target": "mixture"},
            r"target mixture models a table of real values without a condition; leave data.table.target out$",
        ),
        (PICTURE, {}, r"^target linear models tables; got image 1x2x3, 2 levels$"),
        (PICTURE, {"target": "latent"}, r"^target latent and a parent go together: "),
        (
            PICTURE,
            {"target": "latent", "parent": "models:/mine@champion"},
            r"^parent 'models:/mine@champion'; wanted a trained vae or helmholtz, ",
        ),
        (
            PICTURE,
            {"target": "latent", "parent": {"family": "gan"}},
            r"^parent of family 'gan'; wanted one that has a prior and a likelihood",
        ),
    ],
)
def test_what_cannot_be_is_refused(event: Event, config: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        build("posterior", event, **config)


def test_a_parent_of_other_data_is_refused() -> None:
    _, described = parent("vae", latent=1, hidden=8)
    with pytest.raises(ValueError, match=r"^the parent models image 1x2x3, 2 levels; the posterior's data is image 1x4x4, 2 levels: "):
        build("posterior", replace(PICTURE, shape=(1, 4, 4)), target="latent", parent=described)
    model, _, data = of_code("vae", method="hmc")
    assert isinstance(model.parametric, Latent)
    model.parametric.row = 8
    with pytest.raises(ValueError, match=r"^example 8 of 8 training examples; wanted 0 to 7$"):
        run(model, data, 1)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_table_with_holes_is_refused_in_one_line(broken: float) -> None:
    for column in ("x", "c"):
        whole = joined(regression())
        values = getattr(whole, column).clone()
        values[17, 0] = broken
        with pytest.raises(
            ValueError, match=r"^1 of 30 rows hold NaN or infinity \(the first: row 17\); a posterior needs whole rows: [^\n]+$"
        ):
            learnt(given(2), cut(replace(whole, **{column: values})))
    with pytest.raises(ValueError, match=r"^condition missing; "):
        learnt(given(2), [replace(joined(regression()), c=None)])


def test_a_feature_that_never_varies_is_no_trouble() -> None:
    whole = joined(regression())
    assert whole.c is not None
    data = [replace(whole, c=torch.cat([whole.c, torch.full((30, 1), 3.0)], 1))]
    model = learnt(given(3), data, method="gibbs", passes=3, **QUICK)
    assert isinstance(model.parametric, Linear) and bool(model.log_prob(data[0].x, None, data[0].c).isfinite().all())
