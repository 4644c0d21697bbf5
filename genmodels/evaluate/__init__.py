"""One number per model; its name says what it means.

A likelihood is in bits a dimension (nats / valid values / ln 2), of real values in nats, and is exact, a bound or an estimate. A model that has none
of these is compared by the Frechet distance of two Gaussians in a feature space that is named and hashed.
"""

from collections.abc import Iterable, Sequence

import torch

from genmodels.core import Batch, Energy, GenerativeModel
from genmodels.evaluate.accuracy import accuracy
from genmodels.evaluate.collapse import collapse
from genmodels.evaluate.features import Features, frechet, frechet_score
from genmodels.evaluate.gaussian import Gaussian, baselines
from genmodels.evaluate.histogram import Histogram, histograms
from genmodels.evaluate.likelihood import Likelihoods, evaluating, grounds, has_likelihood, labelled, likelihoods
from genmodels.evaluate.score import Score

__all__ = [
    "Features",
    "Gaussian",
    "Histogram",
    "Likelihoods",
    "Score",
    "accuracy",
    "baselines",
    "collapse",
    "evaluate",
    "evaluating",
    "frechet",
    "frechet_score",
    "grounds",
    "has_likelihood",
    "histograms",
    "likelihoods",
    "validation",
]

VALIDATION_IWAE = 16
"""k of the bound that validation during training looks at."""


def evaluate(
    model: GenerativeModel,
    batches: Iterable[Batch],
    *,
    split: str,
    iwae: int = 64,
    seed: int = 0,
    name: str | None = None,
    baselines: Sequence[Histogram | Gaussian] = (),
) -> list[Score]:
    """The model's likelihood (or bound, or estimate), each baseline's, and the paired difference to the last baseline, all on the same examples; of a
    model with an energy log Z too.

    Empty for a model that has none of them. `name` stands for the model in the scores; its class's name where left out.
    """
    if not has_likelihood(model):
        return []
    name = name or type(model).__name__
    if isinstance(model, Energy):  # its labels are summed out
        baselines = [baseline for baseline in baselines if not baseline.event.classes]
    own, *others = likelihoods([model, *baselines], batches, iwae=iwae, seed=seed)
    scores = own.scores(name, split)
    for baseline, other in zip(baselines, others, strict=True):
        scores += other.scores(baseline.name, split)
    if others:
        scores.append(own.minus(others[-1], model=name, baseline=baselines[-1].name, split=split))
    return scores


def validation(
    model: GenerativeModel,
    batches: Iterable[Batch],
    *,
    seed: int = 0,
    features: Features | None = None,
    iwae: int = VALIDATION_IWAE,
    name: str | None = None,
    split: str = "valid",
) -> Score | None:
    """One number, lower is better: bits/dim (exact, or the bound of `iwae` draws), or the Frechet distance in `features` of as many samples as
    examples, with their labels. None where the model has no likelihood and no features are given."""
    name = name or type(model).__name__
    if has_likelihood(model):
        return likelihoods([model], batches, iwae=iwae, seed=seed)[0].scores(name, split)[0]
    if features is None:
        return None
    real, fake = [], []
    for batch in batches:
        real.append(features(batch.x))
        labels = batch.y if model.event.classes and bool(labelled(batch).all()) else None
        c = model.given(model.examples(batch.x), batch.c)
        drawn = model.sample(len(batch), seed=seed, y=labels, c=c, first=sum(map(len, fake)))
        fake.append(features(drawn.cpu()))
    if not real:
        raise ValueError("no examples to compare with; the split is empty")
    return frechet_score(torch.cat(real), torch.cat(fake), model=name, space=features.title, split=split)
