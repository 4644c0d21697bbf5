"""The format of Shards as other programs read it, and the one order of training."""

import hashlib
import json
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from genmodels import noise
from genmodels.core import Event
from pipelines import shards
from pipelines.errors import Failed, Refused
from pipelines.records import Shards

IMAGE = Event(modality="image", shape=(1, 2, 3), levels=256, classes=3)
SOUND = Event(modality="audio", shape=(5,), levels=256, sample_rate=8000, companding="mu-law")


def write(folder: Path, event: Event, files: dict[str, list[int]]) -> Shards:
    """Shards whose row number r of a split holds levels that spell r, label r % 3 (every seventh unlabelled) and length 1 + r % 5."""
    entries: list[dict] = []
    number: dict[str, int] = dict.fromkeys(shards.SPLITS, 0)
    for name, groups in files.items():
        split = name.partition("-")[0]
        r = np.arange(number[split], number[split] + sum(groups))
        number[split] += sum(groups)
        levels = np.zeros((len(r), event.dims), np.uint8)
        levels[:, 0], levels[:, 1] = r % 256, r // 256
        column = {
            "id": [f"{i:032x}" for i in r],
            "levels": pa.FixedShapeTensorArray.from_numpy_ndarray(levels.reshape(len(r), *event.shape)),
            "label": [None if i % 7 == 6 else int(i % 3) for i in r],
            "source": [f"{i}.png" for i in r],
            "length": (1 + r % 5).astype(np.int32),
        }
        form = shards.schema(event)
        table = pa.table([column[field] for field in form.names], schema=form)
        with pq.ParquetWriter(folder / name, form) as writer:
            starts = np.cumsum([0, *groups])
            for start, rows in zip(starts, groups, strict=False):
                writer.write_table(table.slice(start, rows), row_group_size=rows)
        entries.append({"name": name, "split": split, "rows": sum(groups), "row_groups": groups})
    value = {"event": event.to_json(), "files": entries, "fingerprint": "0" * 12, "labels": list("abc")[: event.classes], "prepare": {}}
    (folder / "manifest.json").write_text(json.dumps(value))
    return shards.open_shards(str(folder))


@pytest.fixture
def images(tmp_path: Path) -> Shards:
    files = {
        "train-00000.parquet": [64, 64, 37],
        "train-00001.parquet": [64, 50],
        "train-00002.parquet": [21],
        "valid-00000.parquet": [16, 5],
    }
    return write(tmp_path, IMAGE, files)


def number(x: torch.Tensor) -> torch.Tensor:
    flat = x.flatten(1).long()
    return flat[:, 0] + 256 * flat[:, 1]


def drawn(stream: shards.Stream, positions: int, batch_size: int, workers: int = 1) -> torch.Tensor:
    steps = range(-(-positions // batch_size))
    rows = [number(stream.batch(t, batch_size, rank=r, workers=workers).x) for t in steps for r in range(workers)]
    return torch.cat(rows)[:positions]


@pytest.mark.parametrize("window", [None, 1, 2, 6, 100])
def test_an_epoch_holds_every_row_once_and_epochs_differ(images: Shards, window: int | None) -> None:
    first, second = drawn(shards.Stream(images, seed=3, window=window), 600, 7).split(300)
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(300))
    assert (first != second).sum() > 250 and (first != torch.arange(300)).sum() > 250
    assert (drawn(shards.Stream(images, seed=4, window=window), 300, 7) != first).sum() > 250


@pytest.mark.parametrize("window", [1, 2, 4, 6])
def test_the_order_is_the_stated_one(images: Shards, window: int) -> None:
    sizes = [64, 64, 37, 64, 50, 21]
    starts = np.cumsum([0, *sizes])
    expected = []
    for epoch in range(2):
        order = noise.bijection(torch.arange(6), n=6, seed=noise.derive(3, "groups", epoch)).tolist()
        for number_of_window, first in enumerate(range(0, 6, window)):
            rows = np.concatenate([int(starts[g]) + np.arange(sizes[g]) for g in order[first : first + window]])
            seed = noise.derive(3, "rows", epoch, number_of_window)
            expected += rows[noise.bijection(torch.arange(len(rows)), n=len(rows), seed=seed).numpy()].tolist()
    assert drawn(shards.Stream(images, seed=3, window=window), 600, 11).tolist() == expected


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("workers", [2, 3, 6])
def test_every_number_of_workers_sees_the_same_stream(images: Shards, workers: int, window: int | None) -> None:
    alone, together = shards.Stream(images, seed=5, window=window), [shards.Stream(images, seed=5, window=window) for _ in range(workers)]
    for step in range(40):
        whole = alone.batch(step, 20)
        parts = [stream.batch(step, 20, rank=rank, workers=workers) for rank, stream in enumerate(together)]
        assert [len(part) for part in parts] == [(r + 1) * 20 // workers - r * 20 // workers for r in range(workers)]
        for column in ("x", "y", "position"):
            assert torch.equal(torch.cat([getattr(part, column) for part in parts]), getattr(whole, column))
        assert whole.position.tolist() == list(range(20 * step, 20 * step + 20)) and whole.step == step


def test_any_step_can_be_asked_for_first(images: Shards) -> None:
    """The loader's whole state is the step: a fresh stream goes on where another stopped, forwards and backwards."""
    stream = shards.Stream(images, seed=9, window=2)
    ordered = [stream.batch(step, 16) for step in range(50)]
    for step in (49, 0, 33, 18, 19, 20, 2):
        assert torch.equal(shards.Stream(images, seed=9, window=2).batch(step, 16).x, ordered[step].x)
        assert torch.equal(stream.batch(step, 16).x, ordered[step].x)


def test_batches_larger_than_the_data_and_slices_without_rows(images: Shards) -> None:
    stream = shards.Stream(images, "valid", seed=0)
    assert number(stream.batch(0, 63).x).sort().values.tolist() == sorted(list(range(21)) * 3)
    assert len(stream.batch(0, 2, rank=0, workers=4)) == 0 and len(stream.batch(0, 2, rank=1, workers=4)) == 1


def test_labels_and_lengths(images: Shards, tmp_path: Path) -> None:
    batch = shards.Stream(images, seed=1).batch(0, 300)
    r = number(batch.x)
    assert batch.x.dtype == torch.uint8 and batch.x.shape == (300, 1, 2, 3) and batch.length is None
    assert batch.y is not None and torch.equal(batch.y, torch.where(r % 7 == 6, -1, r % 3))
    (tmp_path / "sound").mkdir()
    sound = shards.Stream(write(tmp_path / "sound", SOUND, {"train-00000.parquet": [30]}), seed=1).batch(0, 30)
    assert sound.y is None and sound.length is not None and torch.equal(sound.length, 1 + number(sound.x) % 5)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 300, 1000])
@pytest.mark.parametrize("limit", [None, 130])
def test_examples_come_once_each_in_the_order_on_disk(images: Shards, batch_size: int, limit: int | None) -> None:
    batches = list(shards.examples(images, "train", batch_size, limit=limit))
    total = limit or 300
    assert torch.cat([number(batch.x) for batch in batches]).tolist() == list(range(total))
    assert torch.cat([batch.position for batch in batches]).tolist() == list(range(total))
    assert [len(batch) for batch in batches] == [min(batch_size, total - start) for start in range(0, total, batch_size)]


@pytest.mark.parametrize(("window", "batch_size"), [(1, 16), (1, 150), (2, 16), (3, 64)])
def test_two_windows_are_held_however_large_the_split(
    images: Shards, monkeypatch: pytest.MonkeyPatch, window: int, batch_size: int
) -> None:
    """The one in use and the one that is read ahead; a window that is over is let go before another one is begun."""
    read, alive, most = shards.Stored.read, weakref.WeakValueDictionary[int, shards.Rows](), 0

    def counted(self: shards.Stored, groups: Sequence[int], *, threads: int = 1) -> shards.Rows:
        nonlocal most
        most = max(most, sum(map(len, alive.values())) + int(self.sizes[list(groups)].sum()))
        rows = read(self, groups, threads=threads)
        alive[id(rows)] = rows
        return rows

    monkeypatch.setattr(shards.Stored, "read", counted)
    stream = shards.Stream(images, seed=2, window=window)
    for step in [*range(900 // batch_size), 3, 0, 5]:
        stream.batch(step, batch_size)
        assert sum(map(len, alive.values())) <= 2 * window * 64
    assert 64 < most <= 2 * window * 64


def test_the_next_window_is_read_before_it_is_asked_for(images: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    read, begun = shards.Stored.read, threading.Semaphore(0)

    def noted(self: shards.Stored, groups: Sequence[int], *, threads: int = 1) -> shards.Rows:
        begun.release()
        return read(self, groups, threads=threads)

    monkeypatch.setattr(shards.Stored, "read", noted)
    stream = shards.Stream(images, seed=2, window=2)
    stream.batch(0, 4)
    assert begun.acquire(timeout=10) and begun.acquire(timeout=10) and not begun.acquire(timeout=0.2)


@pytest.mark.parametrize("threads", [1, 2, 3, 9])
def test_row_groups_come_in_the_order_asked_for_on_any_number_of_threads(images: Shards, threads: int) -> None:
    rows = shards.Stored(images, "train").read([4, 1, 0, 5], threads=threads)
    sizes = shards.Stored(images, "train").sizes.tolist()
    starts = np.cumsum([0, *sizes])
    expected = [row for group in (4, 1, 0, 5) for row in range(starts[group], starts[group] + sizes[group])]
    assert number(torch.from_numpy(rows.x)).tolist() == expected
    assert rows.label.tolist() == [-1 if row % 7 == 6 else row % 3 for row in expected]


def test_what_is_handed_out_may_be_written_to(images: Shards) -> None:
    """A batch is a copy: changing it must not change the window it came from."""
    stream = shards.Stream(images, seed=1)
    before = stream.batch(0, 8).x.clone()
    stream.batch(0, 8).x.fill_(255)
    assert torch.equal(stream.batch(0, 8).x, before)
    next(shards.examples(images, "train", 8)).x.fill_(255)


def test_plain_programs_read_the_files(images: Shards) -> None:
    path = f"{images.uri}/train-00000.parquet"
    table = pq.read_table(path)
    assert table.column("levels").combine_chunks().to_numpy_ndarray().shape == (165, 1, 2, 3)
    assert Event.from_json(json.loads(table.schema.metadata[b"genmodels.event"])) == IMAGE
    frame = pandas.read_parquet(path)
    assert (np.stack(frame["levels"].to_list())[:, 0].tolist() == list(range(165)) and frame["label"][6] is None) or np.isnan(
        frame["label"][6]
    )
    relation = duckdb.sql(f"select count(*), sum(levels[1]), count(label) from '{path}'")
    assert relation is not None and relation.fetchall() == [(165, sum(range(165)), 165 - sum(i % 7 == 6 for i in range(165)))]


def test_no_finished_shards_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        shards.open_shards(str(tmp_path))
    assert str(caught.value) == f"no finished shards at {tmp_path}: it holds no manifest.json; run `genmodels prepare` on the recipe"


def test_an_empty_or_unknown_split_is_told_in_a_line(images: Shards) -> None:
    with pytest.raises(Failed) as empty:
        shards.Stream(images, "test", seed=0)
    assert str(empty.value) == f"the test split of {images.uri} is empty; add data, or raise data.split.test in the recipe"
    with pytest.raises(Refused, match=r"^split 'dev'; wanted one of train, valid, test$"):
        shards.Stream(images, "dev", seed=0)


def test_the_order_never_changes_without_notice(images: Shards) -> None:
    """A run resumed under another version must see the order it began with."""
    order = drawn(shards.Stream(images, seed=3, window=2), 600, 50)
    assert hashlib.sha256(order.numpy().astype("<i8").tobytes()).hexdigest()[:16] == "5985b64084dce7f0"


def test_the_whole_permutation_is_the_bijection_of_every_index() -> None:
    for n in (1, 2, 3, 4, 5, 16, 17, 1000):
        whole = noise.permuted(n, seed=11)
        assert torch.equal(whole, noise.bijection(torch.arange(n), n=n, seed=11)) and whole.sort().values.tolist() == list(range(n))
