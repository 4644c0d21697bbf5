"""Variational inference against what is known in closed form: too small variances, exact evidence, gaps that are divergences, exact gradients."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.distributions import Dirichlet, Gamma, MultivariateNormal, Normal, kl_divergence

from genmodels.noise import Noise
from genmodels.vi import (
    Ascent,
    Categoricals,
    DiagonalGaussian,
    Family,
    FullRankGaussian,
    MixtureFactors,
    MixtureMeanField,
    NormalGamma,
    Regression,
    coordinate_ascent,
    elbo,
    fit,
    judged,
)

MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.5, -0.3], [0.1, -0.3, 0.4]], dtype=torch.float64)
PRECISION = torch.linalg.inv(COVARIANCE)
EVIDENCE = -7.25
"""log of the constant that the correlated Gaussian is multiplied by."""


def gaussian(theta: Tensor) -> Tensor:
    return MultivariateNormal(MEAN, COVARIANCE).log_prob(theta) + EVIDENCE


def data(rows: int, dims: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated features and a noisy linear target."""
    noise = Noise(seed, position=range(rows))
    x = noise.normal("x", (dims,)).double() @ (torch.eye(dims, dtype=torch.float64) + 0.5)
    return x, x @ torch.linspace(-1, 2, dims, dtype=torch.float64) + 0.7 * noise.normal("y").double()


def regression(rows: int = 12, dims: int = 3) -> Regression:
    x, y = data(rows, dims)
    return Regression(gram=x.T @ x, moment=x.T @ y, square=y @ y, rows=rows, precision=0.5, shape=2.0, rate=1.5)


def some(family: type[Family], seed: int = 1) -> Family:
    """A member far from where the family starts."""
    q = family(3)
    return q.at(0.4 * Noise(seed, position=[0]).normal("phi", (len(q.phi),))[0].double())


@pytest.mark.parametrize("family", [DiagonalGaussian, FullRankGaussian])
def test_gaussians_are_those_of_torch(family: type[Family]) -> None:
    q = some(family)
    assert isinstance(q, DiagonalGaussian | FullRankGaussian)
    theirs = MultivariateNormal(q.mean, q.covariance)
    theta = q.draw(Noise(0, position=range(40_000)))
    torch.testing.assert_close(q.log_prob(theta), theirs.log_prob(theta))
    torch.testing.assert_close(q.entropy(), theirs.entropy())
    torch.testing.assert_close(theta.mean(0), q.mean, atol=0.05, rtol=0)
    torch.testing.assert_close(theta.T.cov(), q.covariance, atol=0.08, rtol=0.03)


def test_mean_field_finds_the_known_too_small_variances() -> None:
    found = fit(gaussian, DiagonalGaussian(3), steps=600, samples=32, lr=0.1)
    assert isinstance(found.q, DiagonalGaussian)
    torch.testing.assert_close(found.q.mean, MEAN, atol=0.03, rtol=0)
    torch.testing.assert_close(found.q.covariance.diagonal(), 1 / PRECISION.diagonal(), rtol=0.05, atol=0)
    assert bool((found.q.covariance.diagonal() < 0.95 * COVARIANCE.diagonal()).all())
    gap = kl_divergence(MultivariateNormal(found.q.mean, found.q.covariance), MultivariateNormal(MEAN, COVARIANCE)).item()
    assert gap > 0.3
    assert EVIDENCE - found.elbo == pytest.approx(gap, abs=4 * found.stderr)


def test_mean_field_by_coordinates_finds_them_too_and_never_goes_down() -> None:
    """Bishop's eq. 10.13 to 10.15: each factor's mean given the others', its precision the diagonal of the precision matrix."""

    def update(i: int) -> Callable[[Tensor], Tensor]:
        def set_to_best(mean: Tensor) -> Tensor:
            rest = [j for j in range(3) if j != i]
            new = mean.clone()
            new[i] = MEAN[i] - PRECISION[i, rest] @ (mean[rest] - MEAN[rest]) / PRECISION[i, i]
            return new

        return set_to_best

    def bound(mean: Tensor) -> Tensor:
        q = MultivariateNormal(mean, torch.diag(1 / PRECISION.diagonal()))
        return EVIDENCE - kl_divergence(q, MultivariateNormal(MEAN, COVARIANCE))

    start = torch.tensor([5.0, 5.0, 5.0], dtype=torch.float64)
    mean, trace = coordinate_ascent(start, [update(i) for i in range(3)], bound, sweeps=200)
    torch.testing.assert_close(mean, MEAN, atol=1e-3, rtol=0)
    assert len(trace) > 5 and all(low <= high + 1e-9 for low, high in pairwise(trace))


def test_full_rank_finds_the_truth() -> None:
    found = fit(gaussian, FullRankGaussian(3), steps=600, samples=16, lr=0.1)
    assert isinstance(found.q, FullRankGaussian)
    torch.testing.assert_close(found.q.mean, MEAN, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.q.covariance, COVARIANCE, atol=1e-3, rtol=0)
    assert found.elbo == pytest.approx(EVIDENCE, abs=1e-4)


@pytest.mark.parametrize("estimator", ["reparameterised", "score"])
@pytest.mark.parametrize("family", [DiagonalGaussian, FullRankGaussian])
def test_gradients_are_the_exact_one_within_their_error(family: type[Family], estimator: str) -> None:
    q = some(family)
    phi = q.phi.clone().requires_grad_()
    q = q.at(phi)
    assert isinstance(q, DiagonalGaussian | FullRankGaussian)
    exact = torch.autograd.grad(-kl_divergence(MultivariateNormal(q.mean, q.covariance), MultivariateNormal(MEAN, COVARIANCE)), phi)[0]
    groups, k = 400, 50
    each = torch.stack(
        [torch.autograd.grad(elbo(gaussian, q, Noise(2, position=(), step=step), k, estimator), phi)[0] for step in range(groups)]  # type: ignore[arg-type]
    )
    error = each.std(0) / math.sqrt(groups)
    assert bool(((each.mean(0) - exact).abs() < 4.5 * error).all())
    assert bool((error < 0.1 * exact.norm()).all()), "too noisy to have tested anything"


def test_the_path_derivative_has_no_variance_at_the_posterior() -> None:
    root = torch.linalg.cholesky(COVARIANCE)
    unit = torch.diag(1 / root.diagonal()) @ root
    row, column = torch.tril_indices(3, 3, -1)
    phi = torch.cat([MEAN, root.diagonal().log(), unit[row, column]]).requires_grad_()
    value = elbo(gaussian, FullRankGaussian(3, phi), Noise(0, position=()), 5)
    assert value.item() == pytest.approx(EVIDENCE, abs=1e-9)
    assert float(torch.autograd.grad(value, phi)[0].abs().max()) < 1e-9


def test_the_control_variate_lowers_the_variance_and_moves_no_mean() -> None:
    phi = some(DiagonalGaussian).phi.clone().requires_grad_()
    q, pairs = DiagonalGaussian(3, phi), []
    for step in range(300):
        noise = Noise(4, position=range(20), step=step)
        theta = q.draw(noise).detach()
        plain = ((gaussian(theta) - q.log_prob(theta)).detach() * q.log_prob(theta)).mean()
        pairs.append(
            torch.stack(
                [torch.autograd.grad(value, phi)[0] for value in (plain, elbo(gaussian, q, Noise(4, position=(), step=step), 20, "score"))]
            )
        )
    bare, controlled = torch.stack(pairs).unbind(1)
    assert bool((controlled.var(0) < 0.7 * bare.var(0)).all())
    assert bool(((bare - controlled).mean(0).abs() < 4.5 * (bare - controlled).std(0) / math.sqrt(300)).all())


@pytest.mark.parametrize("family", [DiagonalGaussian, Categoricals])
def test_of_two_draws_the_score_is_half_the_product_of_their_differences(family: type[Family]) -> None:
    """Each draw's baseline is the other alone (Kool and others, 2019): a mean that it is part of itself would make the slope half as steep."""
    q = some(family)
    phi = q.phi.clone().requires_grad_()
    q = q.at(phi)
    found = torch.autograd.grad(elbo(gaussian, q, Noise(6, position=()), 2, "score"), phi)[0]
    one, other = q.draw(Noise(6, position=range(2))).detach().split(1)
    scores = [torch.autograd.grad(q.log_prob(theta).sum(), phi)[0] for theta in (one, other)]
    weights = [(gaussian(theta) - q.log_prob(theta)).detach() for theta in (one, other)]
    assert float((weights[0] - weights[1]).abs()) > 0.1
    torch.testing.assert_close(found, (weights[0] - weights[1]) * (scores[0] - scores[1]) / 2)


def test_a_bound_s_error_is_how_much_it_varies() -> None:
    """Over a hundred judgements of 200 draws each."""
    found = [judged(gaussian, some(DiagonalGaussian), Noise(seed, position=range(200))) for seed in range(100)]
    values, errors = torch.tensor(found, dtype=torch.float64).unbind(1)
    assert float(values.std()) == pytest.approx(float(errors.mean()), rel=0.3)


def test_regression_s_evidence_is_that_of_the_student_t() -> None:
    x, y = data(12, 3)
    model, scale = regression(), 1.5 / 2.0
    spread = scale * (torch.eye(12, dtype=torch.float64) + x @ x.T / 0.5)
    square = y @ torch.linalg.solve(spread, y)
    norm = math.lgamma(8.0) - math.lgamma(2.0) - 6 * math.log(4 * math.pi) - torch.logdet(spread).item() / 2
    assert model.evidence() == pytest.approx(norm - 8.0 * math.log1p(square.item() / 4), abs=1e-9)


def test_mean_field_regression_rises_and_its_gap_is_its_divergence() -> None:
    model = regression()
    q, trace = coordinate_ascent(model.start(), model.updates, model.bound, sweeps=100)
    assert len(trace) > 2 and all(low <= high for low, high in pairwise(trace))
    mean, sharp, shape, rate = model.exact
    gamma = Gamma(q.shape, q.rate)
    expected, log_expected = q.shape / q.rate, torch.digamma(q.shape) - q.rate.log()
    # KL(q(w) || N(mean, 1 / (lambda sharp))) averaged over q(lambda), then that of q(lambda) from its exact marginal.
    given = (expected * (sharp * q.covariance).sum() - 3 - 3 * log_expected - torch.logdet(sharp) - torch.logdet(q.covariance)) / 2
    given = given + expected * (q.mean - mean) @ sharp @ (q.mean - mean) / 2
    gap = given + kl_divergence(gamma, Gamma(torch.tensor(shape, dtype=torch.float64), rate))
    assert gap.item() > 0.02
    assert model.evidence() - trace[-1] == pytest.approx(gap.item(), abs=1e-9)


def test_regression_s_updates_are_each_the_best_of_their_factor() -> None:
    """A step away from an update, in any number of its factor, lowers the bound."""
    model = regression()
    start = NormalGamma(*(value.clone() for value in vars(model.measure(model.weigh(model.measure(model.start())))).values()))
    for update, names in ((model.weigh, ("mean", "covariance")), (model.measure, ("shape", "rate"))):
        best = update(start)
        for name in names:
            for factor in (0.97, 1.03):
                moved = NormalGamma(**{**vars(best), name: vars(best)[name] * factor})
                assert float(model.bound(moved)) < float(model.bound(best)), name


def mixture(rows: int = 7) -> MixtureMeanField:
    noise = Noise(3, position=range(rows))
    x = 0.9 * noise.normal("x", (2,)).double() + torch.where(torch.arange(rows)[:, None] % 3 == 0, 1.0, -0.5)
    return MixtureMeanField(x, 2, count=1.5, strength=0.3, shape=2.0, rate=1.2)


def log_joint(model: MixtureMeanField, z: Tensor) -> Tensor:
    """z (A, N) -> (A,) nats: log p(x, z), weights, means and precisions integrated out: Dirichlet-multinomial times Student's t."""
    hot = torch.nn.functional.one_hot(z, model.components).double()
    n, first, second = hot.sum(1), hot.transpose(1, 2) @ model.x, hot.transpose(1, 2) @ model.x.square()
    prior = torch.tensor([model.count, model.shape, model.components * model.count], dtype=torch.float64).lgamma()
    weights = torch.lgamma(model.count + n).sum(1) - model.components * prior[0] + prior[2]
    weights = weights - math.lgamma(model.components * model.count + len(model.x))
    strength, shape = model.strength + n[..., None], model.shape + n[..., None] / 2
    rate = model.rate + (second - first.square() / strength) / 2
    each = (math.log(model.strength) - strength.log()) / 2 + torch.lgamma(shape) - prior[1] + model.shape * math.log(model.rate)
    return weights + (each - shape * rate.log() - n[..., None] * math.log(2 * math.pi) / 2).sum((1, 2))


def test_mean_field_mixture_rises_and_its_gap_is_its_divergence() -> None:
    """log p(x) by enumeration of all assignments; KL(q || p) by draws of q, each term by torch.distributions."""
    model = mixture()
    every = torch.tensor(list(itertools.product(range(2), repeat=len(model.x))))
    evidence = torch.logsumexp(log_joint(model, every), 0).item()
    q, trace = coordinate_ascent(model.start(model.x[:2]), model.updates, model.bound, sweeps=200)
    assert len(trace) > 3 and all(low <= high + 1e-9 for low, high in pairwise(trace))
    weights = importance_weights(model, q, 100_000)
    error = (weights.std() / math.sqrt(len(weights))).item()
    assert trace[-1] == pytest.approx(weights.mean().item(), abs=4 * error)
    assert evidence - trace[-1] > 0.3
    assert evidence == pytest.approx(by_candidate(model, q, every), abs=1e-8)


def by_candidate(model: MixtureMeanField, q: MixtureFactors, every: Tensor) -> float:
    """log p(x) = log p(x, theta) - log p(theta | x) at any theta (Chib, 1995), the posterior being a mixture over all assignments."""
    pi, mu, tau = torch.tensor([0.3, 0.7]).double(), q.mean + 0.1, 0.8 * q.shape / q.rate
    likelihood = torch.logsumexp(Normal(mu, tau.rsqrt()).log_prob(model.x[:, None]).sum(-1) + pi.log(), 1).sum()
    prior = parameters(before_data(model, q), pi, mu, tau)
    given = [parameters(model.place(replace(q, share=torch.nn.functional.one_hot(z, 2).double())), pi, mu, tau) for z in every]
    posterior = torch.logsumexp(torch.stack(given) + log_joint(model, every).log_softmax(0), 0)
    return (likelihood + prior - posterior).item()


def before_data(model: MixtureMeanField, q: MixtureFactors) -> MixtureFactors:
    """The prior, written as factors of the same shapes."""
    counts, mean, strength, shape, rate = (torch.ones_like(value) for value in (q.counts, q.mean, q.strength, q.shape, q.rate))
    return MixtureFactors(q.share, model.count * counts, 0 * mean, model.strength * strength, model.shape * shape, model.rate * rate)


def parameters(q: MixtureFactors, pi: Tensor, mu: Tensor, tau: Tensor) -> Tensor:
    """(...) nats: log q(pi, mu, tau)."""
    shape = q.shape.expand(q.rate.shape)
    each = Gamma(shape, q.rate).log_prob(tau) + Normal(q.mean, (q.strength * tau).rsqrt()).log_prob(mu)
    return Dirichlet(q.counts).log_prob(pi) + each.sum((-1, -2))


def importance_weights(model: MixtureMeanField, q: MixtureFactors, draws: int) -> Tensor:
    """(draws,) nats: log p(x, z, pi, mu, tau) - log q(z, pi, mu, tau) under draws of q."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pi = Dirichlet(q.counts).sample((draws,))
        tau = Gamma(q.shape.expand(q.rate.shape), q.rate).sample((draws,))
        mu = Normal(q.mean, (q.strength * tau).rsqrt()).sample()
        z = torch.distributions.Categorical(q.share).sample((draws,))
    rows = torch.arange(len(model.x))
    own = torch.arange(draws)[:, None]
    likelihood = Normal(mu[own, z], tau[own, z].rsqrt()).log_prob(model.x).sum((1, 2)) + pi.gather(1, z).log().sum(1)
    prior, own_q = parameters(before_data(model, q), pi, mu, tau), parameters(q, pi, mu, tau) + q.share[rows, z].log().sum(1)
    return likelihood + prior - own_q


def test_an_update_that_is_not_the_best_is_told() -> None:
    def worse(mean: Tensor) -> Tensor:
        return mean + 1

    with pytest.raises(ValueError, match=r"^sweep 2 took the bound from -1 to -4 nats; "):
        coordinate_ascent(torch.zeros(()), [worse], lambda mean: -mean.square(), sweeps=5)
    with pytest.raises(ValueError, match=r"^sweep 1 took the bound from -inf to nan nats; check the data for NaN"):
        coordinate_ascent(torch.zeros(()), [], lambda mean: mean * math.nan, sweeps=5)


COUPLING = torch.tensor([[0, 0.9, -0.4, 0.2], [0, 0, 0.7, 0], [0, 0, 0, -0.8], [0, 0, 0, 0]], dtype=torch.float64)
EVERY = torch.tensor(list(itertools.product(range(3), repeat=4)), dtype=torch.float64)


def coupled(theta: Tensor) -> Tensor:
    """Four levels of three, pulling at each other."""
    s = theta - 1
    return (s @ COUPLING * s).sum(-1) + 0.3 * s[:, 0] - 0.5 * s[:, 2] - 3.0


def enumerated(phi: Tensor) -> Tensor:
    log_q = Categoricals(4, phi, levels=3).log_prob(EVERY)
    return (log_q.exp() * (coupled(EVERY) - log_q)).sum()


def test_categorical_factors_against_enumeration() -> None:
    q = Categoricals(4, levels=3)
    phi = Noise(5, position=[0]).normal("phi", (12,))[0].double().requires_grad_()
    q = q.at(phi)
    assert q.log_prob(EVERY).exp().sum().item() == pytest.approx(1, abs=1e-12)
    log_q = q.log_prob(EVERY)
    assert q.entropy().item() == pytest.approx(-(log_q.exp() * log_q).sum().item(), abs=1e-12)
    exact = torch.autograd.grad(enumerated(phi), phi)[0]
    each = torch.stack([torch.autograd.grad(elbo(coupled, q, Noise(1, position=(), step=s), 50, "score"), phi)[0] for s in range(400)])
    error = each.std(0) / 20
    assert bool(((each.mean(0) - exact).abs() < 4.5 * error).all()) and bool((error < 0.1 * exact.norm()).all())
    found = fit(coupled, Categoricals(4, levels=3), steps=800, samples=32, lr=0.1, estimator="score")
    log_p = coupled(EVERY)
    evidence = torch.logsumexp(log_p, 0)
    log_q = found.q.log_prob(EVERY)
    gap = (log_q.exp() * (log_q - (log_p - evidence))).sum().item()
    assert evidence.item() - found.elbo == pytest.approx(gap, abs=4 * found.stderr)
    assert float(torch.autograd.functional.jacobian(enumerated, found.q.phi).abs().max()) < 0.02
    assert gap < 0.9 * (evidence - enumerated(torch.zeros(12, dtype=torch.float64))).item()


def test_steps_may_be_cut_anywhere() -> None:
    """A step is a function of a state's numbers and of the noise, so whoever keeps those may go on from them."""
    ascent = Ascent(log_density=gaussian, family=DiagonalGaussian(3), steps=20)
    states = [ascent.init()]
    for step in range(20):
        states.append(ascent.step(states[-1], Noise(3, position=(), step=step)))
    again = replace(states[7], phi=states[7].phi.clone(), first=states[7].first.clone(), second=states[7].second.clone())
    for step in range(7, 20):
        again = ascent.step(again, Noise(3, position=(), step=step))
    assert torch.equal(states[-1].phi, again.phi) and torch.equal(states[-1].elbo, again.elbo)
    assert not torch.equal(states[7].phi, again.phi)


def test_a_density_without_an_integral_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^improper log density: along parameter 1 it does not fall, .*; give that parameter a prior$"):
        fit(lambda theta: -theta[:, 0].square(), DiagonalGaussian(2), steps=5)
    with pytest.raises(ValueError, match=r"^improper log density: along parameter 0 "):
        fit(lambda theta: theta[:, 0] - theta[:, 0].clamp(max=0).square(), DiagonalGaussian(1), steps=5)
    heavy = fit(lambda theta: -torch.log1p(theta.square()).sum(-1), DiagonalGaussian(2), steps=5)  # Cauchy's tails have one
    assert math.isfinite(heavy.elbo)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_density_that_is_not_finite_is_refused(broken: float) -> None:
    def density(theta: Tensor) -> Tensor:
        return torch.where(theta[:, 0] > 0, torch.full_like(theta[:, 0], broken), gaussian(theta))

    with pytest.raises(
        ValueError, match=rf"^log density {broken} at theta = \(\S+, \S+, \S+\), \d+ of 16 draws; wanted a finite number of nats"
    ):
        fit(density, DiagonalGaussian(3), steps=5)
    with pytest.raises(ValueError, match=r"^log density "):
        judged(density, DiagonalGaussian(3), Noise(0, position=range(50)))


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^reparameterised gradients of Categoricals, whose draws jump; use the score function$"):
        fit(coupled, Categoricals(4, levels=3), steps=1)
    with pytest.raises(ValueError, match=r"^5 steps of 1 draws at rate 0.05; "):
        fit(coupled, Categoricals(4, levels=3), steps=5, samples=1, estimator="score")
    with pytest.raises(ValueError, match=r"^a family over 0 numbers; "):
        DiagonalGaussian(0)
