"""Mixtures of discretised logistics: mass one for any number of levels, mean and scale; draws from that mass; the mass of the textbook."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from genmodels.nn.likelihood import LogisticMixture, discretised_logistic
from genmodels.nn.scaling import rounded, scaled
from genmodels.noise import Noise


@pytest.mark.parametrize("levels", [2, 3, 16, 256, 65536])
@pytest.mark.parametrize("mean", [-5.0, -1.0, -0.3, 0.0, 0.9999, 1.0, 3.0])
@pytest.mark.parametrize("log_scale", [-14.0, -7.0, -2.0, 1.0])
def test_mass_is_one(levels: int, mean: float, log_scale: float) -> None:
    every = torch.arange(levels, dtype=torch.float32)
    unit = (levels - 1) / 2
    mass = discretised_logistic(every, torch.tensor((mean + 1) * unit), torch.tensor(math.exp(log_scale) * unit), levels)
    assert bool((mass <= 0).all())
    assert mass.double().exp().sum().item() == pytest.approx(1, abs=2e-5)


def test_mass_is_a_difference_of_logistic_cdfs() -> None:
    levels, mean, scale = 16, 6.3, 2.1
    edges = torch.arange(1, levels, dtype=torch.float64) - 0.5
    cdf = torch.cat([torch.zeros(1), torch.sigmoid((edges - mean) / scale), torch.ones(1)])
    mine = discretised_logistic(torch.arange(levels, dtype=torch.float64), torch.tensor(mean), torch.tensor(scale), levels)
    torch.testing.assert_close(mine.exp(), cdf.diff())


def test_the_tails_have_finite_gradients() -> None:
    mean, log_scale = torch.tensor([-3.0, 400.0, 0.0], requires_grad=True), torch.tensor([-9.0, -9.0, -14.0], requires_grad=True)
    nats = discretised_logistic(torch.tensor([200.0, 3.0, 255.0]), mean, log_scale.exp(), 256)
    assert bool(nats.isfinite().all())
    for gradient in torch.autograd.grad(nats.sum(), (mean, log_scale)):
        assert bool(gradient.isfinite().all())


def mixture(channels: int, levels: int, *, height: int = 1, seed: int = 0) -> LogisticMixture:
    raw = torch.randn(1, LogisticMixture.parameters(3, channels), height, 1, generator=torch.Generator().manual_seed(seed))
    return LogisticMixture.of(1.5 * raw, channels=channels, levels=levels)


def repeated(density: LogisticMixture, n: int) -> LogisticMixture:
    parts = ("weights", "means", "log_scales", "coefficients")
    return replace(density, **{name: getattr(density, name).expand(n, *getattr(density, name).shape[1:]) for name in parts})


@pytest.mark.parametrize(("channels", "levels"), [(1, 2), (1, 256), (3, 2), (3, 6)])
def test_a_pixels_channels_sum_to_one_together(channels: int, levels: int) -> None:
    every = torch.cartesian_prod(*[torch.arange(levels)] * channels).reshape(-1, channels, 1, 1)
    assert mixture(channels, levels).log_prob(every).double().exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_channels_one_by_one_add_up_to_the_pixel(channels: int, levels: int) -> None:
    """Each channel's levels have mass one, given the channels before; the nats of those taken are its conditional, and their sum is log_prob."""
    n = 50
    x = torch.randint(0, levels, (n, channels, 2, 1), generator=torch.Generator().manual_seed(1))
    density = repeated(mixture(channels, levels, height=2), n)
    each = density.conditionals(x)
    torch.testing.assert_close(each.sum(1), density.log_prob(x))
    for c in range(channels):
        every = density.logits(torch.where(torch.arange(channels)[:, None, None] < c, x, 0), c)
        torch.testing.assert_close(every.double().exp().sum(1), torch.ones(n, 2, 1, dtype=torch.float64), rtol=0, atol=2e-5)
        torch.testing.assert_close(every.gather(1, x[:, c, None])[:, 0], each[:, c])


def test_a_channel_given_those_before_it_by_enumeration() -> None:
    """p(G | R) = sum_B p(R, G, B) / sum_GB p(R, G, B): by the mixture's weights, and by the means that R moves."""
    levels = 5
    every = torch.cartesian_prod(*[torch.arange(levels)] * 3)[:, :, None, None]
    for moved in (1.0, 0.0):
        density = mixture(3, levels)
        density = replace(density, coefficients=moved * density.coefficients)
        p = density.log_prob(every).double().exp().reshape(levels, levels, levels)
        red, green = p.sum((1, 2)), p.sum(2)
        for c, given in enumerate([red, green / red[:, None], p / green[..., None]]):
            wanted = given.reshape(-1, levels).repeat_interleave(levels ** (3 - c), dim=0)  # a row for each of `every`
            torch.testing.assert_close(
                repeated(density, len(every)).logits(every, c)[..., 0, 0].double().exp(), wanted, rtol=1e-4, atol=1e-5
            )
        assert float((green / red[:, None]).std(0).max()) > 0.01, "R tells nothing of G"


@pytest.mark.parametrize(("channels", "levels"), [(1, 17), (3, 4)])
def test_draws_come_from_that_mass(channels: int, levels: int) -> None:
    draws = 200_000
    every = torch.cartesian_prod(*[torch.arange(levels)] * channels).reshape(-1, channels, 1, 1)
    density, weight = mixture(channels, levels), levels ** torch.arange(channels - 1, -1, -1)
    p = density.log_prob(every).double().exp().flatten().numpy()
    x = repeated(density, draws).sample(Noise(5, position=range(draws)).uniform("u", (channels + 1, 1, 1)))
    seen = np.bincount((x.flatten(1).long() * weight).sum(1).numpy(), minlength=len(p))
    common = p * draws >= 5
    observed, expected = np.append(seen[common], seen[~common].sum()), np.append(p[common], p[~common].sum()) * draws
    keep = expected > 0
    expected = expected[keep] * observed[keep].sum() / expected[keep].sum()
    assert stats.power_divergence(observed[keep], expected, lambda_="log-likelihood").pvalue > 1e-4


@pytest.mark.parametrize("levels", [2, 3, 17, 256, 65536])
def test_means_reach_from_end_to_end(levels: int) -> None:
    """-1 is the lowest level and 1 the highest, however many there are; an earlier channel moves a mean by the same measure."""
    every = torch.arange(levels) if levels <= 256 else torch.tensor([0, 1, 40_000, levels - 1])
    mean, ones = scaled(every, levels, torch.float64), torch.ones(len(every), dtype=torch.float64)
    density = LogisticMixture(
        weights=ones.reshape(-1, 1, 1, 1),
        means=torch.stack([mean, mean - 0.5], dim=1).reshape(-1, 1, 2, 1, 1),
        log_scales=(math.log(0.05 / (levels - 1)) * ones).reshape(-1, 1, 1, 1, 1).expand(-1, 1, 2, 1, 1),
        coefficients=(0.5 * ones).reshape(-1, 1, 1, 1, 1),
        levels=levels,
    )
    x = torch.stack([torch.full_like(every, levels - 1), every], dim=1)[..., None, None]
    assert float(density.conditionals(x)[:, 1].exp().min()) > 0.999
    assert float(density.conditionals(x.flip(1))[:, 0].exp().min()) > 0.999


def test_mode_is_the_most_likely_level() -> None:
    density = mixture(1, 17, height=40)
    every = torch.arange(17).reshape(17, 1, 1, 1).expand(17, 1, 40, 1)
    best = repeated(density, 17).log_prob(every).argmax(0).flatten()
    assert torch.equal(density.mode().flatten().long(), best)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_scaling_there_and_back(levels: int) -> None:
    every = torch.arange(levels)
    assert scaled(every, levels).min() == -1 and scaled(every, levels).max() == 1
    assert torch.equal(rounded(scaled(every, levels), levels).long(), every)
    assert rounded(torch.tensor([-3.0, 3.0]), levels).tolist() == [0, levels - 1]
