"""One method of inference on a recipe's posterior: the very model that `genmodels run` would make of that method, and what came of it."""

import math
import re
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genmodels import vi
from genmodels.checkpoint import NonFinite
from genmodels.core import Batch
from genmodels.iterate import Iteration
from genmodels.models.posterior import Posterior
from genmodels.models.posterior_methods import family
from genmodels.models.posterior_targets import CHAINS, GIBBS, Target
from genmodels.noise import Noise, derive
from pipelines import learning
from pipelines.comparison import Evidence, Found
from pipelines.errors import Refused
from pipelines.recipe import Recipe, check, dump, put
from pipelines.records import Shards
from pipelines.shards import examples

JUDGED_BY = 8192
"""Draws that a bound without a closed form is estimated by."""

WEIGHED = 20_000
FREEDOM = 6
"""Degrees of freedom of the Student's t that importance sampling draws from: tails heavier than the posterior's."""

FEWEST = 100
"""Effective draws below which importance sampling says nothing."""

ROUND = 500
"""Steps a pass of the reference run."""

CODES, LONG, WARMED, PATH = 32, 500, 4000, 8
"""The reference run on a code, whose step costs nearly the same for few chains as for some dozens: chains; draws that each of them has at least;
steps of warmup of all together; longest walk of Hamiltonian ones unless the recipe has another, for the prior is a standard normal."""

AT_ONCE = 1024
"""Densities of importance sampling that are found together: those of a decoder are not small."""


def changed(recipe: Recipe, **keys: Any) -> Recipe:
    """The recipe with some of its keys set, a dot written as two underscores."""
    values = dump(recipe)
    for key, value in keys.items():
        values = put(values, key.replace("__", "."), value)
    return check(values)


def fresh(recipe: Recipe, shards: Shards) -> Posterior:
    model = learning.fresh(recipe, shards)
    if not isinstance(model, Posterior):
        raise Refused(
            f"recipe {recipe.name}: infer compares methods on a posterior; model.family is {recipe.model.family}, wanted posterior"
        )
    return model


def methods(model: Posterior, wanted: Sequence[str]) -> list[str]:
    """Those asked for, or all that the target takes. Raises Refused for one that it does not take."""
    known = sorted(model.parametric.methods)
    if stray := [name for name in wanted if name not in known]:
        raise Refused(f"infer.methods: {stray[0]} of target {model.config.target}; it has {', '.join(known)}")
    return list(wanted) or known


def reference_recipe(recipe: Recipe, model: Posterior) -> Recipe:
    """The long run: Gibbs where its conditionals are known, else Hamiltonian chains, else a random walk; of a seed of its own."""
    assert recipe.infer is not None
    best = next(name for name in (GIBBS, "hmc", "metropolis") if name in model.parametric.methods)
    config, draws = model.config, recipe.infer.reference_draws
    chains, warmup, leapfrog = max(2, config.chains), 1000, config.leapfrog
    if config.target == "latent":
        chains = max(chains, min(CODES, draws // LONG))
        warmup, leapfrog = max(500, WARMED // chains), recipe.model.config.get("leapfrog", PATH)
    each = 2 * math.ceil(draws / chains / 2)
    return changed(
        recipe,
        model__method=recipe.infer.reference or best,
        model__chains=chains,
        model__draws=each,
        model__round=ROUND,
        model__warmup=max(warmup, config.warmup),
        model__leapfrog=leapfrog,
        train__steps=2 + 2 * math.ceil(each / ROUND),
        train__seed=derive(recipe.train.seed, "reference"),
    )


def found(recipe: Recipe, shards: Shards) -> tuple[Found, Evidence | None]:
    """Trains the recipe's posterior to its end -> its draws; and log p(data), where it is known, or where its chains are to say where to look."""
    model, data = fresh(recipe, shards), _data(recipe, shards)
    began = time.perf_counter()
    try:
        records = Iteration(model, learning.numbers(recipe.train)).run(lambda _: data, until=recipe.train.steps)
    except (ValueError, NonFinite) as error:
        return _failed(recipe, " ".join(str(error).split())), None
    seconds = time.perf_counter() - began
    kept = int(model.kept)
    if kept < 8:
        return _failed(recipe, f"{kept} draws a chain after {recipe.train.steps} passes; raise train.steps"), None
    target = model.target(data)
    draws, chains = target.constrain(model.theta[:, :kept].data), model.config.method in CHAINS
    result = Found(
        method=model.config.method,
        names=readable(target.natural, shards.prepare.get("features", ())),
        draws=np.ascontiguousarray((draws if chains else draws.reshape(1, -1, draws.shape[-1])).numpy()),
        chains=chains,
        elbo=None if chains else bound(model, target),
        seconds=seconds,
        accepted=_number(model.accepted),
        step_size=_number(model.size),
        errors=round(sum(record.get("refused", 0.0) for record in records)),
    )
    return result, evidence(model, target)


def readable(names: Sequence[str], features: Sequence[str]) -> tuple[str, ...]:
    """The unknowns' names with the table's columns in place of their numbers."""
    if not features:
        return tuple(names)
    # The last number in brackets is a column's, of all that is one value a column.
    return tuple(name if name.startswith("pi") else re.sub(r"(\d+)\]", lambda found: f"{features[int(found[1])]}]", name) for name in names)


def bound(model: Posterior, target: Target) -> tuple[float, float]:
    """The evidence lower bound in nats and its standard error, which is 0 where the bound is known in closed form."""
    if not bool(model.phi.numel()):
        return float(model.bound), 0.0
    q = family(model.config.method, target.family).at(model.phi[0].data)
    return vi.judged(target.log_density, q, Noise(derive(0, "compare"), position=range(JUDGED_BY)))


@torch.no_grad()
def evidence(model: Posterior, target: Target) -> Evidence | None:
    """log p(data): exact where it is known; else by importance sampling from a Student's t at the draws, None where too few of its draws count."""
    exact = target.evidence()
    if exact is not None:
        return Evidence(value=exact, stderr=0.0, exact=True, method="closed form, or counted out")
    if not target.family.reparameterised:
        return None
    draws = model.draws
    theta, log_q = _student(draws.mean(0), torch.linalg.cholesky(draws.T.cov() + 1e-12 * torch.eye(draws.shape[1]).double()))
    weights = torch.cat([target.log_density(rows) for rows in theta.split(AT_ONCE)]) - log_q
    # Components can change places: their region in order is looked at alone, and holds one part of so many alike.
    weights = torch.where((target.ordered(theta) - theta).abs().amax(1) < 1e-6, weights, -math.inf)
    copies = math.lgamma(model.config.components + 1) if model.config.target == "mixture" else 0.0
    value = float(torch.logsumexp(weights, 0)) - math.log(WEIGHED)
    share = torch.exp(weights - value)
    effective = float(share.sum() ** 2 / share.square().sum())
    if not effective >= FEWEST:
        return None
    name = f"importance sampling, {WEIGHED:,} draws of a Student's t, {effective:,.0f} of them effective"
    return Evidence(value=value + copies, stderr=float(share.std()) / math.sqrt(WEIGHED), exact=False, method=name)


def _student(mean: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """WEIGHED draws of a multivariate Student's t at `mean` (d,) with scale root root' (d, d), and their log densities."""
    noise, dims = Noise(derive(0, "evidence"), position=range(WEIGHED)), len(mean)
    z, square = noise.normal("z", (dims,)).double(), noise.normal("chi", (FREEDOM,)).double().square().sum(1)
    scaled = z / (square / FREEDOM).sqrt()[:, None]
    constant = math.lgamma((FREEDOM + dims) / 2) - math.lgamma(FREEDOM / 2) - dims * math.log(FREEDOM * math.pi) / 2
    log_q = constant - root.diagonal().log().sum() - (FREEDOM + dims) / 2 * torch.log1p(scaled.square().sum(1) / FREEDOM)
    return mean + scaled @ root.T, log_q


def _data(recipe: Recipe, shards: Shards) -> list[Batch]:
    return list(examples(shards, "train", recipe.train.batch_size))


def _failed(recipe: Recipe, why: str) -> Found:
    return Found(method=recipe.model.config.get("method", "hmc"), draws=np.empty((0, 0, 0)), failed=why)


def _number(value: Tensor) -> float | None:
    return float(value) if math.isfinite(value) else None
