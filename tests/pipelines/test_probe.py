"""The linear probe: what a classifier reads out of codes, by its own arithmetic; no label inside them; the parts of a split that it looks at."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.distributions import Normal

from genmodels.core import Encodes, Event
from genmodels.noise import Noise
from genmodels.zoo import MODELS, build
from pipelines import evaluate, probe
from pipelines.records import Shards
from pipelines.shards import examples
from tests.pipelines import small


class Halves(Encodes):
    """The codes are the sums of the picture's rows; asked for a label, they would hold it."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        needs_label: bool = False

    config: Config

    def __init__(self, event: Event, config: Config) -> None:
        super().__init__(event, config)
        self.latent = Event(modality="table", shape=(8,), levels=0)
        self.seen: list[Tensor | None] = []

    def encode(self, x: Tensor, y: Tensor | None = None) -> Normal:
        self.seen.append(y)
        y = self.condition(y, len(x)) if self.config.needs_label else None
        codes = x.float().sum((1, 3))
        return Normal(codes if y is None else torch.where(torch.arange(8) == y[:, None], 1e3, codes), 1.0)

    def draw(self, noise: Noise, *, y: Tensor | None, c: Tensor | None, temperature: Tensor) -> Tensor:
        raise NotImplementedError


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return small.digits(tmp_path_factory.mktemp("probe"))


def columns(shards: Shards, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    batch = next(examples(shards, split, 1000))
    assert batch.y is not None
    return batch.x.float().sum((1, 3)).numpy(), batch.x.flatten(1).float().numpy(), batch.y.numpy()


def accuracy(x: np.ndarray, y: np.ndarray, tried: np.ndarray, wanted: np.ndarray) -> float:
    mean, scale = x.mean(0), np.where(x.std(0) == 0, 1, x.std(0))
    fit = LogisticRegression(max_iter=1000).fit((x - mean) / scale, y)
    return float((fit.predict((tried - mean) / scale) == wanted).mean())


def test_both_accuracies_are_those_of_logistic_regression_on_train_tried_on_test(shards: Shards) -> None:
    model = Halves(shards.event, Halves.Config())
    own, pixels = probe.scores(model, shards, name="halves")
    (codes, values, y), (codes_test, values_test, wanted) = columns(shards, "train"), columns(shards, "test")
    assert own.value == pytest.approx(accuracy(codes, y, codes_test, wanted), abs=0.02)
    assert pixels.value == pytest.approx(accuracy(values, y, values_test, wanted), abs=0.02)
    assert 0.3 < own.value < pixels.value < 1
    for score, who in ((own, "halves"), (pixels, "pixels")):
        assert (score.model, score.name, score.split, score.n) == (who, "probe accuracy", "test", 150)
        assert score.stderr == pytest.approx(math.sqrt(score.value * (1 - score.value) / 150))
    assert own.protocol == (
        "linear probe of 8 features, the label not given: multinomial logistic regression on 600 labelled train examples, standardised"
    )
    assert pixels.protocol == "linear probe of 64 values: multinomial logistic regression on 600 labelled train examples, standardised"
    assert model.seen and all(y is None for y in model.seen), "features that were given the label would tell it"


def test_codes_that_would_hold_the_label_are_not_probed_and_it_is_said(shards: Shards, capsys: pytest.CaptureFixture[str]) -> None:
    assert probe.scores(Halves(shards.event, Halves.Config(needs_label=True)), shards, name="halves") == []
    said = " ".join(capsys.readouterr().err.split())
    assert said == "no linear probe of halves: its codes would hold the label (this model is conditioned on labels; give y)"


def test_only_so_many_examples_are_looked_at_and_it_is_said(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "TRAIN", 90)
    own, _ = probe.scores(Halves(shards.event, Halves.Config()), shards, name="halves", test=40)
    assert own.n == 40
    assert own.protocol.endswith("on 90 labelled train examples, standardised; 40 of 150 test examples")


def test_examples_without_a_label_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shards = small.digits(tmp_path, rows={"train": 200, "valid": 10, "test": 60})
    for split, kept in (("train", 50), ("test", 20)):
        path = Path(shards.uri) / f"{split}-00000.parquet"
        table = pq.read_table(path)
        label = pa.array([one if row < kept else None for row, one in enumerate(table["label"].to_pylist())], pa.int32())
        place = table.schema.get_field_index("label")
        pq.write_table(table.set_column(place, table.schema.field("label"), label).cast(table.schema), path)
    own, _ = probe.scores(Halves(shards.event, Halves.Config()), shards, name="halves")
    assert own.n == 20 and "on 50 labelled train examples, standardised; 20 of 60 test examples" in own.protocol


def test_nothing_to_tell_is_no_score(shards: Shards, tmp_path: Path) -> None:
    unlabelled = Event(modality="image", shape=(1, 8, 8), levels=17)
    plain = Shards(uri=shards.uri, fingerprint="f", event=unlabelled, rows=shards.rows)
    assert probe.scores(build("vae", unlabelled), plain, name="vae") == []
    assert probe.scores(build("gan", shards.event), shards, name="gan") == []


def test_an_evaluation_carries_the_probe_of_a_family_that_encodes_without_a_label(tmp_path: Path) -> None:
    """The semi-supervised VAE's codes are had without a label; the class-conditional one's are not."""
    shards = small.digits(tmp_path, rows={"train": 200, "valid": 20, "test": 40})
    changes = ("evaluate.iwae=2", "evaluate.samples=10")
    found: dict[bool, Any] = {}
    for semi in (True, False):
        checkpoint = small.checkpoint(tmp_path, shards, seed=semi, family="vae", semi_supervised=semi)
        found[semi] = evaluate.evaluate(small.recipe(tmp_path, *changes, family="vae", semi_supervised=semi), checkpoint, shards)
    rows = [(score.model, score.name) for score in found[True].scores if score.name == "probe accuracy"]
    assert rows == [("vae", "probe accuracy"), ("pixels", "probe accuracy")]
    assert not [score for score in found[False].scores if score.name == "probe accuracy"]
    assert found[True].score("test").name == "bits/dim bound", "the model's own score stays the first"


def test_every_family_that_encodes_has_features_of_its_codes_size(shards: Shards) -> None:
    """Where they are to be had without a label."""
    for family, kind in MODELS.items():
        if issubclass(kind, Encodes):
            event = Event(modality="image", shape=(1, 4, 4), levels=2)
            model = build(family, event)
            assert isinstance(model, Encodes)
            x = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
            assert model.features(x).shape == (3, model.latent.dims) and model.features(x).dtype == torch.float32
