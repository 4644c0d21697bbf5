"""Variational inference: of a family of distributions q the one nearest to a posterior that is known up to its constant.

Two ways up the same evidence lower bound, E_q[log p(x, theta) - log q(theta)] = log p(x) - KL(q || p(theta | x)): mean field by coordinate
ascent where the model is conjugate (conjugate.py), and any parametric family by gradient (families.py, gradient.py, whose `Ascent.step` is the
recipe line by line).
"""

from genmodels.vi.conjugate import MixtureFactors, MixtureMeanField, NormalGamma, Regression, coordinate_ascent
from genmodels.vi.families import Categoricals, DiagonalGaussian, Family, FullRankGaussian
from genmodels.vi.gradient import Ascent, Estimator, Fit, LogDensity, State, Weights, elbo, finite, fit, judged, proper

__all__ = [
    "Ascent",
    "Categoricals",
    "DiagonalGaussian",
    "Estimator",
    "Family",
    "Fit",
    "FullRankGaussian",
    "LogDensity",
    "MixtureFactors",
    "MixtureMeanField",
    "NormalGamma",
    "Regression",
    "State",
    "Weights",
    "coordinate_ascent",
    "elbo",
    "finite",
    "fit",
    "judged",
    "proper",
]
