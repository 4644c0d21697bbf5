"""Posteriors of tables against closed forms, grids and enumeration; the predictive density is a density, and what is drawn is drawn from it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Dirichlet, Gamma, MultivariateNormal, Normal

from genmodels import mcmc
from genmodels.core import Batch
from genmodels.models.posterior import Posterior, target_of
from genmodels.models.posterior_mixture import RATE, SHAPE, GaussianMixture
from genmodels.models.posterior_targets import Logistic
from genmodels.noise import Noise
from genmodels.zoo import build
from tests.genmodels.posteriors import POINTS, QUICK, classification, clouds, given, joined, learnt, regression


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
