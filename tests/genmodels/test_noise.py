"""Randomness that is a function of what names it: Philox against its published answers, moments, independence of the batch."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from genmodels import noise
from genmodels.noise import Noise, bijection, categorical, derive, initialising, philox

KNOWN = {
    "zeros": ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    "ones": ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    "pi": (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
}
"""Known answers of Philox4x32-10 from its authors' Random123."""


@pytest.mark.parametrize("name", KNOWN)
def test_philox_gives_the_published_answers(name: str) -> None:
    counter, key, answer = KNOWN[name]
    words = philox([torch.tensor(word) for word in counter], [torch.tensor(word) for word in key])
    assert [int(word) for word in words] == answer


def test_philox_gives_the_same_words_on_the_host_and_on_a_device() -> None:
    generator = torch.Generator().manual_seed(0)

    def words(*shape: int) -> torch.Tensor:
        return torch.randint(0, 2**32, shape, generator=generator)

    counter, key = (words(5, 1), words(5, 1), words(), words(1, 7).T.contiguous().T), (words(5, 1), words(1, 1))
    before = [word.clone() for word in (*counter, *key)]
    for here, there in zip(noise._on_host(counter, key), noise._on_device(counter, key), strict=True):
        assert here.shape == (5, 7) and torch.equal(here, there.expand(5, 7))
    assert all(map(torch.equal, before, (*counter, *key)))


def test_uniforms_are_uniform_and_on_their_grid() -> None:
    u = Noise(1, position=range(500)).uniform("u", (401,)).double()
    assert bool(((u >= 0) & (u < 1)).all()) and bool((u * 2**24 == (u * 2**24).round()).all())
    n = u.numel()
    assert abs(u.mean() - 0.5) < 4 / math.sqrt(12 * n)
    assert abs(u.var() - 1 / 12) < 4 / math.sqrt(180 * n)
    counts = torch.histc(u, bins=64, min=0, max=1)
    assert ((counts - n / 64).square() / (n / 64)).sum() < 63 + 4.5 * math.sqrt(126)
    for lag in (1, 2, 3, 4, 5):
        assert abs(torch.corrcoef(torch.stack([u[:, :-lag].flatten(), u[:, lag:].flatten()]))[0, 1]) < 4 / math.sqrt(n)
    assert abs(torch.corrcoef(torch.stack([u[:-1].flatten(), u[1:].flatten()]))[0, 1]) < 4 / math.sqrt(n)


def test_normals_are_normal() -> None:
    z = Noise(2, position=range(400)).normal("z", (500,)).double().flatten()
    n = len(z)
    assert bool(z.isfinite().all())
    assert abs(z.mean()) < 4 / math.sqrt(n) and abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((z**3).mean()) < 4 * math.sqrt(15 / n) and abs((z**4).mean() - 3) < 4 * math.sqrt(96 / n)
    quantile = torch.distributions.Normal(0.0, 1.0).cdf(z.sort().values)
    assert (quantile - torch.linspace(0, 1, n)).abs().max() < 1.95 / math.sqrt(n)


def test_gumbels_choose_by_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0])
    chosen = (logits + Noise(3, position=range(100_000)).gumbel("g", (3,))).argmax(1)
    share = torch.bincount(chosen, minlength=3) / len(chosen)
    assert (share - logits.softmax(0)).abs().max() < 4 * math.sqrt(0.25 / len(chosen))


@pytest.mark.parametrize("kind", ["uniform", "normal", "gumbel"])
def test_a_row_s_numbers_do_not_depend_on_its_batch(kind: str) -> None:
    whole = Noise(7, position=range(50, 60), step=3)
    numbers = getattr(whole, kind)("x", (3, 5))
    assert torch.equal(getattr(whole.rows(4, 7), kind)("x", (3, 5)), numbers[4:7])
    assert torch.equal(getattr(Noise([1, 7, 2], position=[0, 55, 55], step=3), kind)("x", (3, 5))[1], numbers[5])
    assert torch.equal(getattr(whole, kind)("x", (17,))[:, :15], getattr(whole, kind)("x", (15,)))
    others = Noise(8, position=[55], step=3), Noise(7, position=[54], step=3), Noise(7, position=[55], step=4)
    assert all(not torch.equal(getattr(other, kind)("x", (3, 5))[0], numbers[5]) for other in others)
    assert not torch.equal(getattr(whole, kind)("y", (3, 5)), numbers)


def test_positions_beyond_32_bits_have_numbers_of_their_own() -> None:
    u = Noise(0, position=[5, 5 + 2**32, 5 + 2**33]).uniform("u", (4,))
    assert len({tuple(row) for row in u.tolist()}) == 3


def test_shared_draws_are_the_step_s() -> None:
    one, other = Noise(5, position=range(3), step=9), Noise(5, position=range(90, 97), step=9)
    assert torch.equal(one.shared("order", (8,)), other.shared("order", (8,)))
    assert torch.equal(one.permutation("order", 8).sort().values, torch.arange(8))
    assert not torch.equal(one.shared("order", (8,)), Noise(5, position=range(3), step=10).shared("order", (8,)))
    with pytest.raises(ValueError, match=r"^shared draws need one seed for all rows; these rows have one each$"):
        Noise([1, 2], position=range(2)).shared("order")


def test_seeds_must_fit_the_rows() -> None:
    with pytest.raises(ValueError, match=r"^2 seeds for 3 rows; give one seed, or one a row$"):
        Noise([1, 2], position=range(3))


@pytest.mark.parametrize("n", [1, 2, 3, 16, 17, 1000, 4097])
def test_bijection_is_a_permutation(n: int) -> None:
    images = [bijection(torch.arange(n), n=n, seed=seed) for seed in (0, 1)]
    for image in images:
        assert torch.equal(image.sort().values, torch.arange(n))
    if n > 16:
        assert not torch.equal(*images)
        assert abs(torch.corrcoef(torch.stack([torch.arange(n), images[0]]).double())[0, 1]) < 5 / math.sqrt(n)
    assert torch.equal(bijection(torch.tensor([n - 1]), n=n, seed=0), images[0][-1:])


def test_categorical_is_the_inverse_cdf_in_level_order() -> None:
    logits = torch.tensor([0.1, 0.2, 0.0, 0.7]).log()
    u = torch.tensor([0.0, 0.0999, 0.1001, 0.2999, 0.3001, 1 - 2**-24])
    assert categorical(logits.expand(6, 4), u).tolist() == [0, 0, 1, 1, 3, 3]
    shares = torch.bincount(categorical(logits.expand(100_000, 4), Noise(0, position=range(100_000)).uniform("u")), minlength=4) / 100_000
    assert (shares - logits.exp()).abs().max() < 0.006 and shares[2] == 0


def test_derived_seeds_tell_parts_apart() -> None:
    assert len({derive(1, 2), derive(12), derive("1", 2), derive(1, "2")}) == 4
    assert 0 <= derive("anything") < 2**63


def test_initialising_leaves_the_caller_s_generator_alone() -> None:
    before = torch.get_rng_state()
    with initialising(4):
        first = torch.randn(3)
    with initialising(4):
        assert torch.equal(torch.randn(3), first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", [0.3, 0.999, 1.0, 2.5, 120.0])
def test_gammas_are_gammas(shape: float) -> None:
    drawn = Noise(3, position=range(20_000)).gamma("g", torch.full((20_000, 2), shape, dtype=torch.float64))
    assert drawn.dtype == torch.float64 and bool((drawn > 0).all())
    for column in drawn.T:
        assert stats.kstest(column.numpy(), stats.gamma(shape).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(drawn.numpy().T)[0, 1]) < 0.04


def test_a_row_s_gammas_do_not_depend_on_its_neighbours() -> None:
    noise, shape = Noise(3, position=range(9)), torch.linspace(0.2, 5, 9, dtype=torch.float64)[:, None]
    assert torch.equal(noise.rows(4, 6).gamma("g", shape[4:6]), noise.gamma("g", shape)[4:6])
