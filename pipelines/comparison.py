"""How far each way of inference is from a long reference run, and how much of that Monte Carlo error alone would explain."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from genmodels.mcmc import ess, rhat

CONVERGED = 1.01
"""The largest R-hat of chains that may be relied on (Vehtari et al., 2021)."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one method made of a posterior.

    draws (C, N, d) float64: of chains, or C = 1 of independent draws; names: of the d unknowns. elbo: nats and standard error (0 where it is known
    in closed form), None of chains. errors: proposals whose log density was no number. failed: why there is nothing else.
    """

    method: str
    draws: NDArray[np.float64]
    names: tuple[str, ...] = ()
    chains: bool = True
    elbo: tuple[float, float] | None = None
    seconds: float = 0.0
    accepted: float | None = None
    step_size: float | None = None
    errors: int = 0
    failed: str | None = None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """log p(data) in nats: exact, or an estimate with its standard error; by which method."""

    value: float
    stderr: float
    exact: bool
    method: str


@dataclass(frozen=True)
class Moments:
    """Of every coordinate (d,): mean and variance, and the squared standard errors of the mean in units of that variance, and of the variance in
    units of its square; R-hat (None of independent draws) and effective sample size."""

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    mean_error: NDArray[np.float64]
    variance_error: NDArray[np.float64]
    rhat: NDArray[np.float64] | None
    ess: NDArray[np.float64]


def moments(found: Found) -> Moments:
    """Raises ValueError for fewer than four draws a chain."""
    draws = torch.tensor(found.draws)  # a copy: what comes from another process cannot be written to
    mean, variance = draws.mean((0, 1)), draws.var((0, 1))
    squares = (draws - mean).square()
    n = draws.shape[0] * draws.shape[1]
    every = torch.full_like(mean, n)
    counts, square_counts = (ess(each, ranked=False) if found.chains else every for each in (draws, squares))
    return Moments(
        mean=mean.numpy(),
        variance=variance.numpy(),
        mean_error=(1 / counts).numpy(),
        variance_error=(squares.var((0, 1)) / variance.square() / square_counts).numpy(),
        rhat=rhat(draws).numpy() if found.chains else None,
        ess=(ess(draws) if found.chains else every).numpy(),
    )


def rows(reference: Found, found: Sequence[Found], evidence: Evidence | None) -> list[dict[str, Any]]:
    """A row of figures a method, the reference's own first. Errors are root mean squares over the coordinates: of means in the reference's standard
    deviations, of variances relative to the reference's; `by_chance` is what two sets of so many effective draws from one law would show."""
    truth = moments(reference)
    moved = truth.variance > 1e-24 * (1 + truth.mean**2)  # bits that the data decide for good have no deviation to measure in
    return [
        _row(reference, truth, None, moved, evidence),
        *(_row(each, None if each.failed else moments(each), truth, moved, evidence) for each in found),
    ]


def _row(found: Found, own: Moments | None, truth: Moments | None, moved: NDArray[np.bool_], evidence: Evidence | None) -> dict[str, Any]:
    role = "method" if truth else "reference"
    row: dict[str, Any] = {"row": "inference", "method": found.method, "role": role, "failed": found.failed}
    row |= dict.fromkeys(("mean_error", "mean_by_chance", "variance_error", "variance_by_chance"))
    row |= {"elbo": None, "elbo_stderr": None, "gap": None, "gap_stderr": None, "gap_is": None}
    row |= {"rhat": None, "converged": None, "ess": None, "ess_per_second": None, "seconds": found.seconds}
    row |= {"draws": int(np.prod(found.draws.shape[:2])), "errors": found.errors}
    row |= {"accepted": found.accepted, "step_size": found.step_size}
    if own is None:
        return row
    if truth is not None:
        row |= _errors(own, truth, moved)
    if found.elbo is not None:
        row |= _gap(found.elbo, evidence)
    return row | _trust(found, own, moved)


def _errors(own: Moments, truth: Moments, moved: NDArray[np.bool_]) -> dict[str, float | None]:
    """What chance explains is None where chains never moved in some coordinate: nothing tells how far they would have."""
    mean = (own.mean - truth.mean)[moved] / np.sqrt(truth.variance[moved])
    variance = own.variance[moved] / truth.variance[moved] - 1
    return {
        "mean_error": _root_mean_square(mean),
        "mean_by_chance": _root_mean(own.mean_error + truth.mean_error, moved),
        "variance_error": _root_mean_square(variance),
        "variance_by_chance": _root_mean(own.variance_error + truth.variance_error, moved),
    }


def _gap(elbo: tuple[float, float], evidence: Evidence | None) -> dict[str, Any]:
    row: dict[str, Any] = {"elbo": elbo[0], "elbo_stderr": elbo[1]}
    if evidence is None:
        return row
    kind = "exact" if evidence.exact else "estimate"
    return row | {"gap": evidence.value - elbo[0], "gap_stderr": float(np.hypot(elbo[1], evidence.stderr)), "gap_is": kind}


def _trust(found: Found, own: Moments, moved: NDArray[np.bool_]) -> dict[str, Any]:
    """R-hat and effective draws of the worst coordinate; chains that never moved where the reference did have no R-hat and did not converge."""
    if own.rhat is None or not moved.any():
        return {}
    worst, least = float(np.max(own.rhat[moved])), float(np.min(own.ess[moved]))
    return {
        "rhat": worst if np.isfinite(worst) else None,
        "converged": bool(worst < CONVERGED),
        "ess": least if np.isfinite(least) else None,
        "ess_per_second": least / found.seconds if np.isfinite(least) and found.seconds else None,
    }


def _root_mean(squares: NDArray[np.float64], moved: NDArray[np.bool_]) -> float | None:
    found = float(np.sqrt(np.mean(squares[moved])))
    return found if np.isfinite(found) else None


def _root_mean_square(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
