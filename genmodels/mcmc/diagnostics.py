"""How far chains can be trusted: R-hat and the effective sample size.

Rank-normalization, folding, and localization: an improved R-hat for assessing convergence of MCMC (Vehtari, Gelman, Simpson, Carpenter, Bürkner,
2021), arXiv:1903.08008; the numbers are those of ArviZ.
"""

import math

import torch
from torch import Tensor


def rhat(draws: Tensor) -> Tensor:
    """draws (C, N, d) -> (d,): rank-normalised split R-hat, the larger one of location (bulk) and scale (folded).

    1 where chains agree, above 1.01 where they cannot be relied on; NaN for a coordinate that never moved or is not finite.
    Raises ValueError for fewer than four draws a chain.
    """
    halves = _split(draws)
    folded = (halves - _median(halves)).abs()
    return torch.maximum(_between(_ranked(halves)), _between(_ranked(folded)))


def ess(draws: Tensor, *, ranked: bool = True) -> Tensor:
    """draws (C, N, d) -> (d,): how many independent draws tell as much; of the bulk, or not `ranked`, of the mean of the draws as they are.

    Raises ValueError for fewer than four draws a chain.
    """
    halves = _split(draws)
    return _effective(_ranked(halves) if ranked else halves)


def _split(draws: Tensor) -> Tensor:
    """(C, N, d) -> (2C, N // 2, d): both halves of each chain; the middle draw of an odd number is left out."""
    if draws.ndim != 3 or draws.shape[1] < 4:
        raise ValueError(f"draws of shape {tuple(draws.shape)}; wanted (chains, at least 4 draws, dimensions)")
    half = draws.shape[1] // 2
    return torch.cat([draws[:, :half], draws[:, -half:]]).double()


def _median(draws: Tensor) -> Tensor:
    """(C, N, d) -> (d,): the mean of the two in the middle, from which both are then equally far to the last bit."""
    ordered = draws.flatten(0, 1).sort(dim=0).values
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _ranked(draws: Tensor) -> Tensor:
    """Normal quantiles of the ranks in all chains together (eq. 14), ties sharing their mean rank."""
    flat = draws.flatten(0, 1)
    out = torch.empty_like(flat)
    for column in range(flat.shape[1]):
        _, which, counts = flat[:, column].unique(return_inverse=True, return_counts=True)
        last = counts.cumsum(0).double()
        out[:, column] = (last - (counts - 1) / 2)[which]
    out = torch.special.ndtri((out - 3 / 8) / (len(flat) + 1 / 4))
    return torch.where(flat.isfinite().all(0), out, math.nan).reshape(draws.shape)


def _between(draws: Tensor) -> Tensor:
    """Eq. 1 to 4 of chains (C, N, d) -> (d,)."""
    n = draws.shape[1]
    within = draws.var(1).mean(0)
    between = n * draws.mean(1).var(0)
    return ((between / within + n - 1) / n).sqrt()


def _effective(draws: Tensor) -> Tensor:
    """Eq. 10 and 11: autocorrelations of all chains together, summed in pairs while those are positive and never growing (Geyer, 1992)."""
    chains, n, _ = draws.shape
    covariance = _autocovariance(draws).mean(0)
    within = covariance[0] * n / (n - 1)
    total = covariance[0] + (draws.mean(1).var(0) if chains > 1 else 0)
    rho = 1 - (within - covariance) / total
    rho[0] = 1
    last = max(0, (n - 3) // 2)
    even = rho[: 2 * last + 1 : 2]
    pairs = even + rho[1 : 2 * last + 2 : 2]
    negative = pairs <= 0
    negative[-1] = True
    stop = negative.double().argmax(0)
    before = torch.arange(len(pairs))[:, None] < stop
    tau = 2 * (pairs.cummin(0).values * before).sum(0) - 1 + even.gather(0, stop[None])[0].clamp(min=0)
    tau = tau.clamp(min=1 / math.log10(chains * n))
    still = (draws.amax((0, 1)) - draws.amin((0, 1))) < torch.finfo(draws.dtype).resolution
    return torch.where(still, float(chains * n), chains * n / tau)


def _autocovariance(draws: Tensor) -> Tensor:
    """(C, N, d) -> (C, N, d): at lag 0 to N - 1, each divided by N, by the Fourier transform."""
    n = draws.shape[1]
    spectrum = torch.fft.rfft(draws - draws.mean(1, keepdim=True), 2 * n, dim=1)
    return torch.fft.irfft(spectrum.abs().square(), 2 * n, dim=1)[:, :n] / n
