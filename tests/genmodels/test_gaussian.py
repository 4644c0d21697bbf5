"""The baseline of real values: a density with the training set's moments."""

import numpy as np
import pytest
import torch
from scipy import stats

from genmodels.core import Batch, Event
from genmodels.evaluate import evaluate, validation
from genmodels.evaluate.gaussian import Gaussian, baselines, gaussian
from genmodels.evaluate.histogram import Histogram

TABLE = Event(modality="table", shape=(2,), levels=0)
GIVEN = Event(modality="table", shape=(1,), levels=0, condition=TABLE)


def batches(x: np.ndarray, size: int, c: np.ndarray | None = None) -> list[Batch]:
    given = None if c is None else torch.from_numpy(c).float()
    whole = Batch(x=torch.from_numpy(x).float(), c=given, position=torch.arange(len(x)))
    return [whole.rows(start, start + size) for start in range(0, len(x), size)]


@pytest.mark.parametrize("size", [7, 200])
def test_it_scores_as_independent_normals_of_the_training_sets_moments(size: int) -> None:
    x = np.random.default_rng(0).normal([3e5, -2], [1, 40], (200, 2)).astype(np.float32)
    model = gaussian(TABLE, batches(x, size))
    wanted = stats.norm.logpdf(x[:9], x.astype(np.float64).mean(0), x.astype(np.float64).std(0)).sum(1)
    np.testing.assert_allclose(model.log_prob(torch.from_numpy(x[:9])).numpy(), wanted, rtol=1e-6)
    drawn = model.sample(4000, seed=1).double().numpy()
    assert stats.kstest((drawn[:, 1] + 2) / x[:, 1].std(), stats.norm((x[:, 1].mean() + 2) / x[:, 1].std()).cdf).pvalue > 1e-3


def test_a_column_of_one_value_has_a_finite_score() -> None:
    x = np.stack([np.full(50, 7.0), np.arange(50.0)], axis=1)
    model = gaussian(TABLE, batches(x, 20))
    assert bool(model.log_prob(torch.from_numpy(x).float()).isfinite().all())


def test_a_regression_is_compared_with_its_target_alone() -> None:
    draw = np.random.default_rng(1)
    c, x = draw.normal(size=(60, 2)), draw.normal(5, 2, (60, 1))
    (baseline,) = baselines(GIVEN, batches(x, 60, c))
    assert isinstance(baseline, Gaussian)
    model = Gaussian(GIVEN, torch.tensor([5.0]), torch.tensor([4.0]))
    scores = evaluate(model, batches(x, 13, c), split="test", name="mine", baselines=[baseline])
    wanted = -stats.norm.logpdf(x.astype(np.float32), 5, 2).mean()
    assert [(score.model, score.name, score.unit) for score in scores] == [
        ("mine", "nll", "nats"),
        ("gaussian", "nll", "nats"),
        ("mine", "paired difference", "nats"),
    ]
    assert scores[0].value == pytest.approx(wanted, rel=1e-6) and scores[0].protocol == "exact p(x|c)" and scores[0].n == 60
    assert scores[2].value == pytest.approx(scores[0].value - scores[1].value, abs=1e-9)
    valid = validation(model, batches(x, 13, c))
    assert valid is not None and (valid.name, valid.value) == ("nll", pytest.approx(wanted, rel=1e-6))


def test_labels_are_compared_with_how_often_they_come() -> None:
    event = Event(modality="table", shape=(1,), levels=3, condition=TABLE)
    x = np.array([[0], [0], [0], [1]])
    parts = [Batch(x=torch.from_numpy(x).to(torch.uint8), c=torch.zeros(4, 2), position=torch.arange(4))]
    (baseline,) = baselines(event, parts)
    assert isinstance(baseline, Histogram)
    found = baseline.log_prob(torch.tensor([[0], [1], [2]], dtype=torch.uint8), c=torch.ones(3, 2)).exp()
    torch.testing.assert_close(found, torch.tensor([4, 2, 1], dtype=torch.float64) / 7)
