"""train.labels: few labels are shown, which ones is known beforehand, and nothing else changes."""

from pathlib import Path

import pytest
import torch

from pipelines import recipe as recipes
from pipelines import shards, train
from pipelines.errors import Refused
from pipelines.few_labels import shares
from pipelines.labelled_stream import Repeated
from pipelines.learning import Learning, fresh
from pipelines.records import Shards
from tests.pipelines import small
from tests.pipelines.test_shards import IMAGE, SOUND, write

FILES = {"train-00000.parquet": [64, 64, 37], "train-00001.parquet": [64, 50], "valid-00000.parquet": [16, 5]}


@pytest.fixture
def images(tmp_path: Path) -> Shards:
    """Row r has label r % 3, and none where r % 7 is 6."""
    return write(tmp_path, IMAGE, FILES)


def labels(of: Shards, split: str = "train", **asked: int) -> torch.Tensor:
    return torch.cat([batch.y for batch in shards.examples(of, split, 50, **asked) if batch.y is not None])


@pytest.mark.parametrize("count", [3, 7, 30, 150])
def test_the_first_ones_of_each_class_on_disk_are_shown(images: Shards, count: int) -> None:
    every, few = labels(images), labels(images, labels=count)
    for number in range(3):
        share = count // 3 + (number < count % 3)
        wanted = (every == number).nonzero()[:share, 0]
        assert len(wanted) == share and torch.equal((few == number).nonzero()[:, 0], wanted)
    assert int((few >= 0).sum()) == count and set(few[few < 0].tolist()) == {-1}
    assert torch.equal(few[few >= 0], every[few >= 0]), "a row is shown its own label or none"


def test_more_labels_hold_the_fewer(images: Shards) -> None:
    few, more = labels(images, labels=6), labels(images, labels=9)
    assert torch.equal(more[few >= 0], few[few >= 0])


@pytest.mark.parametrize("window", [None, 1, 2])
@pytest.mark.parametrize("workers", [1, 3])
def test_every_epoch_of_the_stream_shows_the_same_rows(images: Shards, window: int | None, workers: int) -> None:
    stream, all_shown = (shards.Stream(images, seed=4, window=window, labels=count) for count in (9, None))
    seen = {}
    for step in range(2 * 279 // 31):
        for rank in range(workers):
            few, whole = (each.batch(step, 31, rank=rank, workers=workers) for each in (stream, all_shown))
            assert few.y is not None and whole.y is not None and torch.equal(few.x, whole.x) and torch.equal(few.position, whole.position)
            for x, y, own in zip(few.x.flatten(1).long(), few.y.tolist(), whole.y.tolist(), strict=True):
                seen.setdefault(int(x[0] + 256 * x[1]), set()).add(y)
                assert y in (-1, own)
    wanted = labels(images, labels=9)
    assert {row: {int(y)} for row, y in enumerate(wanted)} == seen


@pytest.mark.parametrize("workers", [1, 3])
def test_labelled_examples_come_as_often_as_asked_and_the_others_where_they_were(images: Shards, workers: int) -> None:
    plain = shards.Stream(images, seed=4, labels=9)
    mixed = Repeated(plain, images, labels=9, every=3)
    few = [x for batch in shards.examples(images, "train", 50, labels=9) for x in batch.x[batch.y >= 0]]  # type: ignore[operator]
    for step in range(12):
        for rank in range(workers):
            got, there = (each.batch(step, 31, rank=rank, workers=workers) for each in (mixed, plain))
            assert got.y is not None and there.y is not None and torch.equal(got.position, there.position) and got.step == step
            for i, position in enumerate(got.position.tolist()):
                if position % 3:
                    assert torch.equal(got.x[i], there.x[i]) and got.y[i] == there.y[i]
                else:
                    assert torch.equal(got.x[i], few[position // 3 % 9]) and got.y[i] >= 0


def test_repeating_labels_needs_some() -> None:
    with pytest.raises(Refused, match="labelled_every 2 without labels; say in labels how many are shown, or leave it out"):
        recipes.load("digits-vae", ["train.labelled_every=2"])


def test_too_few_are_refused_in_one_line(images: Shards, tmp_path: Path) -> None:
    for count, said in {
        2: "train.labels 2: 1 of the 3 classes would have none; wanted at least 3",
        600: "train.labels 600: class 'a' has 80 labelled training examples, its share is 200; wanted at most 240",
    }.items():
        with pytest.raises(Refused) as caught:
            shards.Stream(images, seed=0, labels=count)
        assert str(caught.value) == said
    folder = tmp_path / "sounds"
    folder.mkdir()
    with pytest.raises(Refused, match=r"^train\.labels 5: the examples have no classes; leave it out"):
        shards.Stream(write(folder, SOUND, FILES), seed=0, labels=5)
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        recipes.Train(steps=1, labels=0)


def test_other_splits_keep_their_labels_and_frequencies_are_of_what_is_shown(tmp_path: Path) -> None:
    digits = small.digits(tmp_path)
    recipe = small.recipe(tmp_path, "train.labels=23", "train.batch_size=600")
    learning = Learning(recipe, digits)
    with learning._loader() as loader:
        batch = loader(0)
    assert batch.y is not None and torch.bincount(batch.y[batch.y >= 0]).tolist() == shares(23, 10).tolist() == [3, 3, 3, *[2] * 7]
    torch.testing.assert_close(fresh(recipe, digits).class_frequencies, torch.tensor([3.0, 3, 3, *[2] * 7]) / 23)
    assert int((labels(digits, "valid") < 0).sum()) == 0
    passes = list(Learning(small.recipe(tmp_path, "train.labels=23", family="mixture"), digits)._passes()(0))
    assert sum(int((part.y >= 0).sum()) for part in passes if part.y is not None) == 23


def test_the_number_of_labels_is_in_the_fingerprint_and_its_absence_is_not(tmp_path: Path) -> None:
    digits = small.digits(tmp_path)
    plain, few, more = (small.recipe(tmp_path, *change) for change in ([], ["train.labels=20"], ["train.labels=30"]))
    assert len({train.output(each, digits).fingerprint for each in (plain, few, more)}) == 3
    assert "labels" not in train.decisive(plain) and train.decisive(few)["labels"] == 20
