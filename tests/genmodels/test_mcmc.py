"""Markov chains: every kernel leaves its density unchanged, to the last digit where it can be enumerated; diagnostics are those of ArviZ."""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from genmodels.mcmc import HMC, MALA, Chains, Gibbs, Kernel, RandomWalk, State, advance, ess, multiplicative, rhat, run, warm
from genmodels.mcmc.chains import foreseen
from genmodels.noise import Noise, derive

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    import arviz

COVARIANCE = torch.tensor([[1.0, 0.6, -0.3], [0.6, 2.0, 0.2], [-0.3, 0.2, 0.5]], dtype=torch.float64)
MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def gaussian(theta: Tensor) -> Tensor:
    apart = theta - MEAN
    return -((apart @ torch.linalg.inv(COVARIANCE)) * apart).sum(1) / 2


def banana(theta: Tensor) -> Tensor:
    """theta_0 standard normal, theta_1 normal about its square with scale a half."""
    return -theta[:, 0].square() / 2 - ((theta[:, 1] - theta[:, 0].square()) / 0.5).square() / 2


def skewed(theta: Tensor) -> Tensor:
    """One dimension, not symmetric, tails like a Gaussian's: three quarters at -1, one at 2 with half its scale."""
    x = theta[:, 0]
    return torch.logaddexp(-(x + 1).square() / 2 + math.log(0.75), -2 * (x - 2).square() + math.log(0.5))


def gamma(theta: Tensor) -> Tensor:
    """Gamma(3, 1), nowhere but on positive numbers."""
    x = theta[:, 0]
    return torch.where(x > 0, 2 * x.clamp(min=1e-300).log() - x, -math.inf)


class Forced(Noise):
    """Noise that says what it is told: these proposals, all of them accepted, trajectories as long as they get."""

    def __init__(self, proposals: Tensor) -> None:
        super().__init__(0, position=range(len(proposals)))
        self.proposals = proposals

    def normal(self, tag: str, shape: Sequence[int] = ()) -> Tensor:
        return self.proposals.reshape(-1, *shape)

    def uniform(self, tag: str, shape: Sequence[int] = ()) -> Tensor:
        return torch.zeros(len(self), *shape)

    def shared(self, tag: str, shape: Sequence[int] = ()) -> Tensor:
        return torch.full(tuple(shape), 1 - 2**-24)


def slope(x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(skewed(x[:, None]).sum(), x)[0]


Walk = tuple[Kernel, Callable[[Tensor], Tensor], Tensor, Callable[[Tensor, Tensor], Tensor]]


def walks() -> dict[str, Walk]:
    """Kernel, target, points of the grid, and the standard normal number that leads from x to y."""
    line, positive = torch.linspace(-4, 4, 41, dtype=torch.float64), torch.linspace(0.1, 9, 41, dtype=torch.float64)
    metric = torch.tensor([2.0], dtype=torch.float64)
    scale = 0.8 * math.sqrt(2)

    def drifted(x: Tensor, y: Tensor) -> Tensor:
        return (y - x - scale**2 / 2 * slope(x)) / scale

    return {
        "metropolis": (RandomWalk(skewed, 0.8, metric=metric), skewed, line, lambda x, y: (y - x) / scale),
        "multiplicative": (RandomWalk(gamma, 0.7, multiplicative), gamma, positive, lambda x, y: (y / x).log() / 0.7),
        "mala": (MALA(skewed, 0.8, metric), skewed, line, drifted),
        "hmc": (HMC(skewed, 0.8, 1, metric), skewed, line, drifted),
    }


@pytest.mark.parametrize("name", walks())
def test_detailed_balance_on_a_grid(name: str) -> None:
    """pi(x) q(y | x) alpha(x, y) = pi(y) q(x | y) alpha(y, x): q is worked out here, alpha is what the kernel accepts with."""
    kernel, target, grid, normal = walks()[name]
    x, y = (each.flatten() for each in torch.meshgrid(grid, grid, indexing="ij"))
    z = normal(x, y)
    after = kernel.step(kernel.init(x[:, None]), Forced(z))
    moved = after.accepted > 0
    torch.testing.assert_close(after.theta[moved, 0], y[moved], rtol=1e-9, atol=1e-9)
    log_q = -z.square() / 2 - (y.log() if name == "multiplicative" else 0)
    flow = (target(x[:, None]) + log_q + after.accepted.log()).reshape(len(grid), -1).exp()
    torch.testing.assert_close(flow, flow.T, rtol=1e-8, atol=1e-12)
    assert float((after.accepted < 0.9).double().mean()) > 0.1, "a grid where hardly anything is refused shows nothing"


def clockwise(theta: Tensor, scale: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """On a ring of seven: one on with probability 0.7, else one back."""
    on = noise.normal("proposal", (1,)).double()
    return (theta + on) % 7, on[:, 0] * math.log(0.3 / 0.7)


def test_stationary_law_is_the_left_eigenvector_of_the_enumerated_transitions() -> None:
    law = torch.tensor([1.0, 4.0, 2.0, 0.5, 3.0, 6.0, 1.5], dtype=torch.float64)
    kernel = RandomWalk(lambda theta: law.log()[theta[:, 0].long()], 1.0, clockwise)
    places, transitions = torch.arange(7, dtype=torch.float64)[:, None], torch.zeros(7, 7, dtype=torch.float64)
    for on, probability in ((1, 0.7), (-1, 0.3)):
        accepted = kernel.step(kernel.init(places), Forced(torch.full((7, 1), float(on)))).accepted
        transitions[torch.arange(7), (torch.arange(7) + on) % 7] += probability * accepted
        transitions[torch.arange(7), torch.arange(7)] += probability * (1 - accepted)
    np.testing.assert_allclose(eigenvector(transitions.numpy()), (law / law.sum()).numpy(), atol=1e-12)


def eigenvector(transitions: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eig(transitions.T)
    found = np.real(vectors[:, np.argmax(np.real(values))])
    return found / found.sum()


def test_gibbs_takes_its_conditionals_in_turn_and_keeps_their_joint_law() -> None:
    joint = torch.tensor([[0.1, 0.25, 0.05], [0.3, 0.02, 0.28]], dtype=torch.float64)

    def first(theta: Tensor, noise: Noise) -> Tensor:
        given = joint[:, theta[:, 1].long()]
        drawn = noise.uniform("first") * given.sum(0) >= given[0]
        return torch.stack([drawn.double(), theta[:, 1]], 1)

    def second(theta: Tensor, noise: Noise) -> Tensor:
        given = joint[theta[:, 0].long()].cumsum(1)
        drawn = (noise.uniform("second")[:, None] * given[:, 2:] >= given[:, :2]).sum(1)
        return torch.stack([theta[:, 0], drawn.double()], 1)

    kernel, each = Gibbs([first, second]), 20_000
    state = torch.arange(6).repeat_interleave(each)
    after = kernel.step(kernel.init(torch.stack([state // 3, state % 3], 1).double()), Noise(3, position=range(len(state)))).theta
    counts = np.zeros((6, 6))
    np.add.at(counts, (state.numpy(), (after[:, 0] * 3 + after[:, 1]).long().numpy()), 1)
    redrawn = joint / joint.sum(0)
    wanted = np.array([[float(redrawn[a, s % 3] * joint[a, b] / joint[a].sum()) for a in range(2) for b in range(3)] for s in range(6)])
    np.testing.assert_allclose(eigenvector(wanted), joint.flatten().numpy(), atol=1e-12)
    assert stats.power_divergence(counts.ravel(), each * wanted.ravel(), lambda_="log-likelihood", ddof=5).pvalue > 1e-3


def exact(n: int) -> Tensor:
    """(n, 1) draws from `skewed`."""
    noise = Noise(11, position=range(n))
    z = noise.normal("z").double()
    return torch.where(noise.uniform("which") < 0.75, z - 1, z / 2 + 2)[:, None]


@pytest.mark.parametrize(
    "kernel", [RandomWalk(skewed, 2.0), MALA(skewed, 1.2), HMC(skewed, 0.9, 4)], ids=lambda kernel: type(kernel).__name__
)
def test_chains_that_begin_in_the_law_stay_in_it_and_go_back_as_often_as_forth(kernel: Kernel) -> None:
    """Bowker's test of symmetry of the moves between bins, and the law after the step against the law itself, of 200,000 chains."""
    start = exact(200_000)
    state = kernel.step(kernel.init(start), Noise(1, position=range(len(start))))
    edges = torch.linspace(-3, 3, 11, dtype=torch.float64)
    counts = np.zeros((12, 12))
    np.add.at(counts, (torch.bucketize(start[:, 0], edges).numpy(), torch.bucketize(state.theta[:, 0], edges).numpy()), 1)
    pairs = [(i, j) for i in range(12) for j in range(i) if counts[i, j] + counts[j, i] > 10]
    bowker = sum((counts[i, j] - counts[j, i]) ** 2 / (counts[i, j] + counts[j, i]) for i, j in pairs)
    assert stats.chi2.sf(bowker, len(pairs)) > 1e-3
    for _ in range(3):
        state = kernel.step(state, Noise(1, position=range(len(start)), step=1 + _))
    cdf = lambda x: 0.75 * stats.norm.cdf(x + 1) + 0.25 * stats.norm.cdf(2 * (x - 2))  # noqa: E731
    assert stats.kstest(state.theta[:, 0].numpy(), cdf).pvalue > 1e-3


def redrawn(index: int, theta: Tensor, noise: Noise) -> Tensor:
    """One coordinate of the Gaussian given the others."""
    precision = torch.linalg.inv(COVARIANCE)
    rest = [i for i in range(3) if i != index]
    mean = MEAN[index] - ((theta - MEAN)[:, rest] @ precision[rest, index]) / precision[index, index]
    out = theta.clone()
    out[:, index] = mean + noise.normal(f"coordinate {index}").double() / precision[index, index].sqrt()
    return out


KERNELS: dict[str, Kernel] = {
    "metropolis": RandomWalk(gaussian),
    "gibbs": Gibbs([partial(redrawn, index) for index in range(3)]),
    "mala": MALA(gaussian),
    "hmc": HMC(gaussian, leapfrog=6),
}


def means_are(values: Tensor, wanted: Sequence[float] | np.ndarray, within: float = 0.02) -> None:
    """values (C, N, k): every mean within 4.5 of its own standard errors, which are small."""
    error = (values.var((0, 1)) / ess(values, ranked=False)).sqrt()
    scores = (values.mean((0, 1)) - torch.as_tensor(wanted, dtype=torch.float64)) / error
    assert float(scores.abs().max()) < 4.5, scores
    assert float((error / values.std((0, 1))).max()) < within, error


@pytest.mark.parametrize("name", KERNELS)
def test_moments_of_a_known_gaussian(name: str) -> None:
    chains = run(KERNELS[name], torch.zeros(100, 3, dtype=torch.float64), warmup=200, draws=600, seed=4)
    apart = chains.draws - MEAN
    products = (apart[..., :, None] * apart[..., None, :]).flatten(2)[..., [0, 1, 2, 4, 5, 8]]
    means_are(torch.cat([apart, products], 2), [0, 0, 0, *COVARIANCE.flatten()[[0, 1, 2, 4, 5, 8]].tolist()])
    assert float(rhat(chains.draws).max()) < 1.05


@pytest.mark.parametrize("kernel", [RandomWalk(banana), MALA(banana), HMC(banana, leapfrog=10)], ids=lambda kernel: type(kernel).__name__)
def test_moments_of_a_banana(kernel: Kernel) -> None:
    chains = run(kernel, torch.zeros(200, 2, dtype=torch.float64), warmup=300, draws=1000, seed=2)
    a, b = chains.draws.unbind(-1)
    means_are(torch.stack([a, b, a * a, b * b, a * b, a * a * b], -1), [0, 1, 1, 3.25, 0, 3], within=0.06)


@pytest.mark.parametrize("name", ["metropolis", "mala", "hmc"])
def test_geweke_joint_distribution(name: str) -> None:
    """Getting it right (Geweke, 2004): parameters by the kernel and data by the model, in turn, keep prior and model. Here 20,000 chains of it
    begin in the joint law itself, so that after 12 turns they are independent draws of it or the kernel is wrong."""
    n, noise = 20_000, Noise(9, position=range(20_000))
    prior = noise.normal("prior", (2,)).double() * torch.tensor([1.0, 0.5])
    theta, x = prior, data(prior, noise)
    for turn in range(12):
        target = partial(joint, x=x)
        kernel = {"metropolis": RandomWalk(target, 0.6), "mala": MALA(target, 0.5), "hmc": HMC(target, 0.35, 4)}[name]
        noise = Noise(9, position=range(n), step=turn + 1)
        theta = kernel.step(kernel.init(theta), noise).theta
        x = data(theta, noise)
    for value in (theta[:, 0], theta[:, 1] / 0.5):
        assert stats.kstest(value.numpy(), stats.norm.cdf).pvalue > 1e-3
    fresh = Noise(10, position=range(n))
    prior = fresh.normal("prior", (2,)).double() * torch.tensor([1.0, 0.5])
    for ours, theirs in zip(statistics(theta, x), statistics(prior, data(prior, fresh)), strict=True):
        found: Any = stats.ks_2samp(ours.numpy(), theirs.numpy())
        assert found.pvalue > 1e-3


def test_geweke_joint_distribution_of_gibbs() -> None:
    """The same of a mean, standard normal, and a precision, Gamma(3, 2), each redrawn from its conditional given three numbers and the other."""
    n = 20_000
    start = Noise(9, position=range(n))
    theta = torch.stack([start.normal("mean").double(), start.gamma("precision", torch.full((n,), 3.0)) / 2], 1)
    x = seen(theta, start)
    for turn in range(12):
        noise = Noise(9, position=range(n), step=turn + 1)
        kernel = Gibbs([partial(mean_given, x=x), partial(precision_given, x=x)])
        theta = kernel.step(kernel.init(theta), noise).theta
        x = seen(theta, noise)
    assert stats.kstest(theta[:, 0].numpy(), stats.norm.cdf).pvalue > 1e-3
    assert stats.kstest(theta[:, 1].numpy(), stats.gamma(3, scale=1 / 2).cdf).pvalue > 1e-3
    fresh = Noise(10, position=range(n))
    prior = torch.stack([fresh.normal("mean").double(), fresh.gamma("precision", torch.full((n,), 3.0)) / 2], 1)
    for ours, theirs in zip(statistics(theta, x), statistics(prior, seen(prior, fresh)), strict=True):
        found: Any = stats.ks_2samp(ours.numpy(), theirs.numpy())
        assert found.pvalue > 1e-3


def seen(theta: Tensor, noise: Noise) -> Tensor:
    """(C, 3) normal about theta_0 with precision theta_1."""
    return theta[:, :1] + noise.normal("data", (3,)).double() / theta[:, 1:].sqrt()


def mean_given(theta: Tensor, noise: Noise, *, x: Tensor) -> Tensor:
    precision = 1 + 3 * theta[:, 1]
    mean = theta[:, 1] * x.sum(1) / precision + noise.normal("mean").double() / precision.sqrt()
    return torch.stack([mean, theta[:, 1]], 1)


def precision_given(theta: Tensor, noise: Noise, *, x: Tensor) -> Tensor:
    rate = 2 + (x - theta[:, :1]).square().sum(1) / 2
    return torch.stack([theta[:, 0], noise.gamma("precision", torch.full((len(x),), 4.5)) / rate], 1)


def data(theta: Tensor, noise: Noise) -> Tensor:
    """(C, 3) normal about theta_0 with scale exp(theta_1)."""
    return theta[:, :1] + theta[:, 1:].exp() * noise.normal("data", (3,)).double()


def joint(theta: Tensor, x: Tensor) -> Tensor:
    prior = -theta[:, 0].square() / 2 - (theta[:, 1] / 0.5).square() / 2
    return prior - (((x - theta[:, :1]) / theta[:, 1:].exp()).square() / 2 + theta[:, 1:]).sum(1)


def statistics(theta: Tensor, x: Tensor) -> list[Tensor]:
    return [x[:, 0], x.var(1), theta[:, 0] * x.mean(1), theta[:, 1] * x.var(1).log(), theta.prod(1)]


def autoregressive(chains: int, n: int, rho: float) -> np.ndarray:
    """(C, N, 3) from one seed: a process of this correlation, itself in few levels (ties), and its fourth power with a sign (heavy tails)."""
    z = np.random.default_rng(5).standard_normal((chains, n))
    for t in range(1, n):
        z[:, t] = rho * z[:, t - 1] + math.sqrt(1 - rho**2) * z[:, t]
    return np.stack([z, np.round(z), np.sign(z) * z**4], -1)


def dataset(draws: np.ndarray) -> Callable[..., np.ndarray]:
    """What a function of ArviZ says of draws (C, N, d), as (d,)."""
    data: Any = arviz.convert_to_dataset(draws)
    return lambda function, **options: function(data, **options)["x"].values


@pytest.mark.parametrize("chains", [2, 5])
@pytest.mark.parametrize("n", [6, 7, 10, 101, 1000])
@pytest.mark.parametrize("rho", [0.0, 0.95, -0.8])
@pytest.mark.parametrize("apart", [0.0, 0.7])
def test_rhat_and_ess_are_those_of_arviz(chains: int, n: int, rho: float, apart: float) -> None:
    draws = autoregressive(chains, n, rho) + apart * np.arange(chains)[:, None, None]
    theirs, ours = dataset(draws), torch.from_numpy(draws)
    np.testing.assert_allclose(rhat(ours).numpy(), theirs(arviz.rhat), rtol=1e-9)
    np.testing.assert_allclose(ess(ours).numpy(), theirs(arviz.ess), rtol=1e-9)
    np.testing.assert_allclose(ess(ours, ranked=False).numpy(), theirs(arviz.ess, method="mean"), rtol=1e-9)
    np.testing.assert_allclose(ess(ours[:1]).numpy(), dataset(draws[:1])(arviz.ess), rtol=1e-9)


def test_what_cannot_be_diagnosed_is_no_number_that_reassures() -> None:
    draws = torch.from_numpy(autoregressive(4, 100, 0.0))
    draws[..., 0], draws[2, 5, 1] = 1.0, math.nan
    assert rhat(draws)[:2].isnan().all() and rhat(draws)[2].isfinite() and ess(draws)[1].isnan()
    with pytest.raises(ValueError, match=r"wanted \(chains, at least 4 draws, dimensions\)"):
        rhat(draws[:, :3])


def test_chains_in_two_modes_have_not_converged() -> None:
    far = lambda theta: torch.logaddexp(-(theta[:, 0] - 20).square() / 2, -(theta[:, 0] + 20).square() / 2)  # noqa: E731
    chains = run(HMC(far), torch.tensor([[-20.0], [-20.0], [20.0], [20.0]], dtype=torch.float64), warmup=100, draws=200, seed=0)
    assert float(rhat(chains.draws)) > 1.5


@pytest.mark.parametrize(("value", "said"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
@pytest.mark.parametrize("kind", [RandomWalk, MALA, HMC])
def test_a_start_without_a_finite_log_density_is_refused(kind: type[Kernel], value: float, said: str) -> None:
    target = lambda theta: torch.where(theta[:, 0] > 1, value, -theta.square().sum(1))  # noqa: E731
    theta = torch.tensor([[0.0, 0.0], [2.0, 0.5]], dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"^chain 1 begins at \[2.0, 0.5\] with log density {said}; wanted a start where"):
        run(kind(target), theta, warmup=0, draws=1, seed=0)  # type: ignore[call-arg]


def test_starts_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match=r"torch\.float32 of shape"):
        RandomWalk(gaussian).init(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="wanted one number a chain"):
        RandomWalk(lambda theta: theta).init(torch.zeros(4, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="0 draws, every 1 steps"):
        run(RandomWalk(gaussian), torch.zeros(2, 3, dtype=torch.float64), warmup=0, draws=0, seed=0)


@pytest.mark.parametrize("outside", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [RandomWalk, MALA, HMC])
def test_chains_never_enter_where_the_log_density_is_not_finite(kind: type[Kernel], outside: float) -> None:
    """A normal number above -0.5, and the law is still right; what is no log density at all is counted."""
    target = lambda theta: torch.where(theta[:, 0] > -0.5, -theta[:, 0].square() / 2, outside)  # noqa: E731
    chains = run(kind(target), torch.ones(200, 1, dtype=torch.float64), warmup=100, draws=500, seed=3)  # type: ignore[call-arg]
    assert float(chains.draws.min()) > -0.5 and bool(chains.log_density.isfinite().all())
    assert bool((chains.errors > 0).all()) == (outside != -math.inf)
    means_are(chains.draws, np.array([stats.truncnorm.mean(-0.5, math.inf)]))


@pytest.mark.parametrize("kind", [MALA, HMC])
def test_chains_that_a_gradient_keeps_out_are_told(kind: type[Kernel]) -> None:
    """A square root that is not asked for has a gradient all the same, and it is no number: the chains agree, on half of the law."""

    def target(theta: Tensor) -> Tensor:
        x = theta[:, 0]
        return torch.where(x > 0, 0 * x.sqrt(), 0.0) - x.square() / 2

    chains = run(kind(target), torch.ones(20, 1, dtype=torch.float64), warmup=50, draws=100, seed=3)  # type: ignore[call-arg]
    assert float(chains.draws.min()) > 0 and bool((chains.errors > 0).all())


def test_gibbs_counts_a_draw_that_is_no_number_and_stays() -> None:
    kernel = Gibbs([lambda theta, noise: torch.where(noise.uniform("u")[:, None] < 0.5, math.nan, theta + 1)])
    chains = run(kernel, torch.zeros(8, 2, dtype=torch.float64), warmup=0, draws=20, seed=0)
    torch.testing.assert_close(chains.draws[:, -1, 0], 20.0 - chains.errors.double())
    assert float(chains.errors.sum()) > 40


def stepped(kernel: Kernel, state: State, draws: int, seed: int, chains: Chains) -> None:
    for n, noise in zip(range(draws), foreseen(seed, len(state.theta)), strict=False):
        state = kernel.step(state, noise)
        assert torch.equal(state.theta, chains.draws[:, n])


@pytest.mark.parametrize("name", ["metropolis", "mala", "hmc"])
def test_after_warmup_the_kernel_stays_as_it_is(name: str) -> None:
    """Draws are those of the kernel that warmup left, taken step by step; so many at once are so many in parts, or every other one."""
    theta = torch.zeros(6, 3, dtype=torch.float64)
    kernel, state = warm(KERNELS[name], theta, warmup=80, seed=5)
    chains = run(KERNELS[name], theta, warmup=80, draws=60, seed=5)
    stepped(kernel, state, 60, derive(5, "draws"), chains)
    first = advance(kernel, state, draws=25, seed=5)
    second = advance(first.kernel, first.state, draws=35, seed=5, first=25)
    assert torch.equal(torch.cat([first.draws, second.draws], 1), chains.draws)
    assert torch.equal(advance(kernel, state, draws=30, seed=5, thin=2).draws, chains.draws[:, 1::2])


@pytest.mark.parametrize("kind", [RandomWalk, MALA, HMC])
@pytest.mark.parametrize("begin", [1e-4, 50.0])
def test_warmup_finds_scales_and_a_step_size(kind: type[RandomWalk | MALA | HMC], begin: float) -> None:
    scales = torch.tensor([0.01, 1.0, 30.0], dtype=torch.float64)
    chains = run(kind(lambda theta: -(theta / scales).square().sum(1) / 2, begin), scales.expand(8, 3), warmup=600, draws=400, seed=1)
    kernel = chains.kernel
    assert isinstance(kernel, kind) and kernel.metric is not None
    assert float((kernel.metric.sqrt() / scales).log().abs().max()) < math.log(2)
    assert abs(float(chains.accepted.mean()) - kernel.target) < 0.2
    assert float(chains.kernel.size) == chains.step_size  # type: ignore[attr-defined]


def test_a_chain_does_not_depend_on_its_neighbours() -> None:
    kernel = HMC(banana, 0.2, 5)
    many = run(kernel, torch.zeros(300, 2, dtype=torch.float64), warmup=0, draws=40, seed=8)
    few = run(kernel, torch.zeros(3, 2, dtype=torch.float64), warmup=0, draws=40, seed=8)
    assert torch.equal(many.draws[:3], few.draws)


def test_numbers_found_ahead_are_those_of_their_step() -> None:
    for step, ahead in zip(range(40, 1500, 1), foreseen(7, 5, 40), strict=False):
        plain, found = Noise(7, position=range(5), step=step), ahead.normal("a", (3,))
        if step % 97 == 0 or step < 42:
            assert torch.equal(found, plain.normal("a", (3,)))
            assert torch.equal(ahead.uniform("b"), plain.uniform("b"))
            assert torch.equal(ahead.shared("c", (2,)), plain.shared("c", (2,))) and torch.equal(ahead.shared("d"), plain.shared("d"))
