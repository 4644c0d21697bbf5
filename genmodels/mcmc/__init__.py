"""Markov chain Monte Carlo: kernels that leave a density unchanged, many chains of them at once, and how far those can be trusted.

A density is a `LogDensity`: theta (C, d) float64 -> (C,) nats up to a constant, each row by itself; row = chain. A kernel is (init, step).
"""

from genmodels.mcmc.chains import Chains, advance, run, warm
from genmodels.mcmc.diagnostics import ess, rhat
from genmodels.mcmc.gradient import HMC, MALA
from genmodels.mcmc.kernels import Adaptive, Gibbs, Kernel, LogDensity, RandomWalk, State, additive, multiplicative

__all__ = [
    "HMC",
    "MALA",
    "Adaptive",
    "Chains",
    "Gibbs",
    "Kernel",
    "LogDensity",
    "RandomWalk",
    "State",
    "additive",
    "advance",
    "ess",
    "multiplicative",
    "rhat",
    "run",
    "warm",
]
