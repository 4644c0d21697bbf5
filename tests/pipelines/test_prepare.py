"""Files to Shards through Ray Data: the same bytes whoever makes them, nothing done twice, every row where it belongs."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from genmodels import media
from pipelines import cluster, parts, prepare, shards
from pipelines.fingerprint import libraries
from pipelines.recipe import Recipe
from pipelines.records import Shards
from pipelines.sections import Data, Model, Train
from tests.genmodels.test_media import encoded

pytestmark = pytest.mark.ray

GREY = {"height": 8, "width": 8}


def recipe(storage: Path | str, source: Path | str, name: str = "some", **data: Any) -> Recipe:
    kind = {} if "audio" in data else {"image": GREY}
    settings = Data.model_validate({"source": str(source), **kind, **data})
    return Recipe(name=name, storage=str(storage), data=settings, model=Model(family="gated_pixelcnn"), train=Train(steps=1))


def digests(folder: Path | str) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())}


def table(made: Shards, split: str | None = None) -> Any:
    """The rows of Shards as a data frame, with a column `split`."""
    names = [file["name"] for file in shards.manifest(made)["files"] if split in (None, file["split"])]
    frames = [pq.read_table(f"{made.uri}/{name}").to_pandas().assign(split=name.partition("-")[0]) for name in names]
    return pandas.concat(frames, ignore_index=True)


def pictures(folder: Path, count: int = 300) -> Path:
    """Pictures in two folders, all different, besides one that comes twice in `a`, and one in `a` and in `b`; and three that are none."""
    rows = np.random.default_rng(0).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    for i, row in enumerate(rows):
        path = folder / "ab"[i % 2] / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(Image.fromarray(row)))
    shutil.copy(folder / "a" / "0000.png", folder / "a" / "again.png")
    shutil.copy(folder / "a" / "0002.png", folder / "b" / "also.png")
    for name in ("a/empty.png", "b/text.png"):
        (folder / name).write_bytes(b"text"[: len(name) % 5])
    (folder / "a" / "cut.png").write_bytes((folder / "a" / "0004.png").read_bytes()[:60])
    return folder


@pytest.fixture(scope="module")
def made(ray_session: object, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Shards]:
    """The pictures, and their Shards made by as many workers as there are cores."""
    data = pictures(tmp_path_factory.mktemp("made") / "data")
    return data, prepare.prepare(recipe(data.parent / "runs", data, label={"by": "folder"}, max_bad=3))


def test_every_readable_picture_is_there_once_with_its_label(made: tuple[Path, Shards]) -> None:
    data, done = made
    rows = table(done)
    assert len(rows) == 300 and set(rows["id"]) == {
        hashlib.blake2b(levels(path).tobytes(), digest_size=16).hexdigest() for path in readable(data)
    }
    for row in rows.itertuples():
        assert (np.array(row.levels, np.uint8).reshape(1, 8, 8) == levels(data / str(row.source))).all()
        assert done.labels[int(row.label)] == str(row.source)[0]
    assert "a/again.png" not in set(rows["source"]) and "b/also.png" not in set(rows["source"])


def levels(path: Path) -> np.ndarray:
    return media.levels_from_image(path.read_bytes(), {**GREY, "channels": 1, "levels": 256, "fit": "crop"})


def readable(data: Path) -> list[Path]:
    return [path for path in data.rglob("*.png") if path.stem not in ("empty", "text", "cut")]


def test_the_manifest_counts_what_is_there(made: tuple[Path, Shards]) -> None:
    _, done = made
    value, rows = shards.manifest(done), table(done)
    assert (value["inputs"], value["quarantined"], value["duplicates"], value["conflicting_labels"]) == (305, 3, 2, 1)
    assert value["fingerprint"] == done.fingerprint and value["labels"] == ["a", "b"] and value["event"] == done.event.to_json()
    for file in value["files"]:
        content = Path(done.uri, file["name"]).read_bytes()
        found = pq.ParquetFile(Path(done.uri, file["name"]))
        assert file["bytes"] == len(content) and file["sha256"] == hashlib.sha256(content).hexdigest()
        assert file["row_groups"] == [found.metadata.row_group(i).num_rows for i in range(found.num_row_groups)]
    for split, counts in value["splits"].items():
        mine = rows[rows["split"] == split]
        assert counts["rows"] == len(mine) == done.rows[split]
        assert counts["levels"] == np.bincount(np.concatenate(mine["levels"].to_list()), minlength=256).tolist()
        assert (
            counts["labels"] == {"a": int((mine["label"] == 0).sum()), "b": int((mine["label"] == 1).sum())} and counts["unlabelled"] == 0
        )


def test_rows_lie_in_hash_order_and_splits_are_by_hash(made: tuple[Path, Shards]) -> None:
    rows = table(made[1])
    for split in shards.SPLITS:
        ids = rows[rows["split"] == split]["id"].to_list()
        assert ids == sorted(ids)
    place = rows["id"].map(lambda name: int(name[-8:], 16) / 2**32)
    assert (rows["split"] == np.select([place < 0.8, place < 0.9], ["train", "valid"], "test")).all()


def test_quarantine_says_what_and_why(made: tuple[Path, Shards]) -> None:
    frame = pandas.read_parquet(f"{made[1].uri}/quarantine.parquet")
    assert frame.to_dict("records") == [
        {"source": "a/cut.png", "reason": "image file is truncated", "size": 60},
        {"source": "a/empty.png", "reason": "cannot identify image", "size": 1},
        {"source": "b/text.png", "reason": "cannot identify image", "size": 0},
    ]


def test_plain_programs_read_it_without_ray(made: tuple[Path, Shards]) -> None:
    files = f"{made[1].uri}/*-*.parquet"
    relation = duckdb.sql(f"select count(*), count(distinct id), sum(label), min(len(levels)) from '{files}'")
    labels = int(table(made[1])["label"].sum())
    assert relation is not None and relation.fetchall()[0][:3] == (300, 300, labels)
    check = "import sys; sys.modules['ray'] = None; from pipelines import shards; s = shards.open_shards(sys.argv[1]); "
    check += "print(sum(len(b) for p in shards.SPLITS for b in shards.examples(s, p, 32)))"
    assert subprocess.run([sys.executable, "-c", check, made[1].uri], capture_output=True, text=True, check=True).stdout.strip() == "300"


def test_one_worker_and_another_root_give_the_same_bytes(
    made: tuple[Path, Shards], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, done = made
    shutil.copytree(data, tmp_path / "elsewhere" / "deeper")
    monkeypatch.setattr(cluster, "core", lambda: float(cluster.connect().cluster_resources()["CPU"]))
    again = prepare.prepare(recipe(tmp_path / "other", tmp_path / "elsewhere" / "deeper", label={"by": "folder"}, max_bad=3))
    assert again.uri != done.uri and again.fingerprint == done.fingerprint
    assert digests(again.uri) == digests(done.uri)


def test_a_killed_run_goes_on_and_gives_the_same_bytes(made: tuple[Path, Shards], tmp_path: Path) -> None:
    data, done = made
    run = "import sys; from pipelines import prepare, recipe; prepare.prepare(recipe.Recipe.model_validate_json(sys.argv[1]))"
    asked = recipe(tmp_path, data, label={"by": "folder"}, max_bad=3)
    text = asked.model_dump_json(by_alias=True)
    driver = subprocess.Popen([sys.executable, "-c", run, text], stderr=subprocess.DEVNULL, start_new_session=True)
    begun = time.monotonic()
    while not list(tmp_path.glob("parts/*/*.parquet")) or not [
        p for p in tmp_path.glob("parts/*/*.parquet") if p.parent.name != "listings"
    ]:
        assert driver.poll() is None and time.monotonic() - begun < 90
        time.sleep(0.002)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not list(tmp_path.glob("shards/*/manifest.json"))
    again = prepare.prepare(asked)
    assert digests(again.uri) == digests(done.uri)


def test_what_a_kill_left_of_the_second_pass_is_never_trusted(made: tuple[Path, Shards], tmp_path: Path) -> None:
    data, done = made
    shutil.copytree(Path(done.uri).parent.parent, tmp_path / "runs")
    folder = tmp_path / "runs" / "shards" / Path(done.uri).name
    value = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").unlink()
    entry = value["files"][0]
    (folder / "work").mkdir()
    note = {
        "fingerprint": done.fingerprint,
        "bucket": 0,
        "files": [entry],
        "counts": {"duplicates": 0, "conflicting_labels": 0, "leakage": {}},
    }
    (folder / "work" / "bucket-00000.json").write_text(json.dumps(note))
    (folder / entry["name"]).write_bytes((folder / entry["name"]).read_bytes()[:-100])
    (folder / ".train-00000.parquet.0123").write_bytes(b"half")
    again = prepare.prepare(recipe(tmp_path / "runs", data, label={"by": "folder"}, max_bad=3))
    assert Path(again.uri) == folder and digests(folder) == digests(done.uri)


def test_a_second_run_finds_it_done_without_ray(made: tuple[Path, Shards]) -> None:
    data, done = made
    again = recipe(data.parent / "runs", data, label={"by": "folder"}, max_bad=3)
    assert prepare.output(again).done and prepare.output(again).uri == done.uri
    run = "import sys; sys.modules['ray'] = None; from pipelines import prepare, recipe; "
    run += "print(prepare.prepare(recipe.Recipe.model_validate_json(sys.argv[1])).uri)"
    ran = subprocess.run([sys.executable, "-c", run, again.model_dump_json(by_alias=True)], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == done.uri and "done already" in ran.stderr


def decoded(storage: Path) -> Counter[str]:
    """How often each input was decoded, by its source."""
    found: Counter[str] = Counter()
    for path in storage.glob("parts/*/*-*-*.parquet"):
        part = pq.read_table(path, columns=["source"])
        found.update(part.column("source").to_pylist())
        found.update(entry[1] for entry in json.loads(part.schema.metadata[b"bad"]))
    return found


def test_data_added_later_cost_only_themselves_and_no_example_changes_side(ray_session: object, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", 120)
    first = prepare.prepare(recipe(tmp_path / "runs", data, max_bad=3))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("parts/*/*-*-*.parquet")}
    for i in range(5):
        (data / "b" / f"new{i}.png").write_bytes(encoded(Image.new("L", (8, 8), 10 * i)))
    second = prepare.prepare(recipe(tmp_path / "runs", data, max_bad=3))
    assert second.fingerprint != first.fingerprint and sum(second.rows.values()) == sum(first.rows.values()) + 5
    assert set(decoded(tmp_path / "runs").values()) == {1}
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    old, new = (table(each).set_index("id")["split"] for each in (first, second))
    assert (new[old.index] == old).all()
    fresh = prepare.prepare(recipe(tmp_path / "fresh", data, max_bad=3))
    assert digests(fresh.uri) == digests(second.uri)


def test_data_taken_away_are_gone_and_nothing_is_decoded_for_it(ray_session: object, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", 60)
    prepare.prepare(recipe(tmp_path / "runs", data, max_bad=3))
    for name in ("a/0000.png", "b/0001.png", "a/cut.png"):
        (data / name).unlink()
    second = prepare.prepare(recipe(tmp_path / "runs", data, max_bad=3))
    sources = set(table(second)["source"])
    assert "b/0001.png" not in sources and "a/again.png" in sources and shards.manifest(second)["quarantined"] == 2
    fresh = prepare.prepare(recipe(tmp_path / "fresh", data, max_bad=3))
    assert digests(fresh.uri) == digests(second.uri)


def test_labels_and_splits_change_without_decoding_again(made: tuple[Path, Shards]) -> None:
    data, done = made
    before = decoded(data.parent / "runs")
    other = prepare.prepare(
        recipe(
            data.parent / "runs",
            data,
            label={"by": "pattern", "pattern": r"(\d)\.png$"},
            max_bad=3,
            split={"train": 0.5, "valid": 0.25, "test": 0.25},
        )
    )
    assert other.fingerprint != done.fingerprint and other.labels == tuple("0123456789") and decoded(data.parent / "runs") == before
    unlabelled = sum(split["unlabelled"] for split in shards.manifest(other)["splits"].values())
    assert unlabelled == 0 and abs(other.rows["train"] - 150) < 30


def test_sounds_become_windows_that_keep_their_length(ray_session: object, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for seconds, name in ((0.3, "short.wav"), (1.2, "long.flac")):
        wave = 0.5 * np.sin(np.arange(round(seconds * 8000)) * (0.1 if seconds < 1 else 0.07))
        soundfile.write(tmp_path / "data" / name, wave, 8000)
    done = prepare.prepare(recipe(tmp_path / "runs", tmp_path / "data", audio={"sample_rate": 8000, "seconds": 0.5}))
    rows = table(done).set_index("source")
    assert rows["length"].to_dict() == {"short.wav": 2400, "long.flac": 4000, "long.flac#1": 4000, "long.flac#2": 1600}
    assert done.event.shape == (4000,) and done.event.companding == "mu-law" and done.prepare["window"] == "all"
    assert sum(sum(split["levels"]) for split in shards.manifest(done)["splits"].values()) == 2400 + 4000 + 4000 + 1600


def test_an_official_split_is_kept_whole_and_leakage_across_it_is_reported(ray_session: object, tmp_path: Path) -> None:
    def idx(array: np.ndarray) -> bytes:
        return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()

    train, test = np.random.default_rng(1).integers(0, 256, (2, 200, 8, 8), dtype=np.uint8)
    test[:3], test[5] = train[:3], test[4]
    for side, pixels in (("train", train), ("t10k", test)):
        (tmp_path / f"{side}-images-idx3-ubyte").write_bytes(idx(pixels))
        (tmp_path / f"{side}-labels-idx1-ubyte").write_bytes(idx(np.arange(200, dtype=np.uint8) % 2))
    done = prepare.prepare(recipe(tmp_path / "runs", tmp_path))
    value = shards.manifest(done)
    assert done.rows["test"] == 200 and done.rows["train"] + done.rows["valid"] == 200 and 5 < done.rows["valid"] < 45
    assert value["split_by"] == "the source's official split" and value["duplicates"] == 4 and value["conflicting_labels"] == 1
    assert value["leakage"]["train/test"] + value["leakage"]["valid/test"] == 3 and value["leakage"]["train/valid"] == 0
    kept = table(done, "test")
    assert sorted(kept["source"]) == [f"t10k-images-idx3-ubyte#{i:07d}" for i in range(200)]


GOLDEN = {
    "versions": {"prepare": 2, "parts": 1, "media": 1},
    "libraries": "2.4.6 13.0.0 25.0.1 1.9.1 1.17.1 0.14.0 1.1.0",
    "content": "f1598ec33caccd3d",
    "bytes": "29866043c37938f6",
}
"""Of digits. Where `content` changes, the VERSION of what changed it must rise; `bytes` may change with the libraries: the fingerprint has them."""


def test_the_bytes_of_digits_never_change_without_a_version(ray_session: object, tmp_path: Path) -> None:
    done = prepare.prepare(recipe(tmp_path, "digits", image={**GREY, "levels": 17}))
    rows = table(done).sort_values("id")
    content = hashlib.sha256()
    for row in rows.itertuples():
        content.update(f"{row.id} {bytes(row.levels).hex()} {row.label} {row.source} {row.split}\n".encode())
    files = {name: digest for name, digest in digests(done.uri).items() if name != "manifest.json"}
    got = {
        "versions": {"prepare": prepare.VERSION, "parts": parts.VERSION, "media": media.VERSION},
        "libraries": " ".join(libraries(*prepare.LIBRARIES).values()),
        "content": content.hexdigest()[:16],
        "bytes": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16],
    }
    if got["libraries"] != GOLDEN["libraries"]:
        del got["bytes"]
    assert {name: value for name, value in GOLDEN.items() if name in got} | {"libraries": got["libraries"]} == got
    assert done.rows == {"train": 1456, "valid": 182, "test": 159} and len(done.labels) == 10


@pytest.mark.parametrize("name", ["binarized_mnist", "fsdd"])
def test_published_sets_become_shards(name: str, real_data: Path, ray_session: object, tmp_path: Path) -> None:
    kind: dict[str, Any] = {"image": {"height": 28, "width": 28, "levels": 2}}
    if name == "fsdd":
        kind = {"audio": {"sample_rate": 8000, "seconds": 1.0, "window": "first"}}
    done = prepare.prepare(recipe(tmp_path, name, **kind))
    if name == "fsdd":
        assert done.rows["test"] == 300 and done.rows["train"] + done.rows["valid"] == 2700 and done.labels == tuple("0123456789")
    else:
        assert done.rows == {"train": 50000, "valid": 10000, "test": 10000} and done.event.classes == 0
        ones = shards.manifest(done)["splits"]["test"]["levels"][1] / (10000 * 784)
        assert 0.12 < ones < 0.14
