"""What a person sees when data or storage are at fault: one line, with what was got, what is wanted and the way out; and nothing lost."""

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest
import s3fs
from PIL import Image

from pipelines import prepare, shards
from pipelines.errors import Failed, Refused
from tests.genmodels.test_media import encoded, vast
from tests.pipelines.test_decoder import endless
from tests.pipelines.test_prepare import digests, recipe


def refused(storage: Path | str, source: Path | str, **data: Any) -> str:
    """The line that prepare stops with."""
    with pytest.raises((Refused, Failed)) as caught:
        prepare.prepare(recipe(storage, source, **data))
    said = str(caught.value)
    assert "\n" not in said and "0x" not in said
    return said


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(count):
        (folder / f"{i:03d}.png").write_bytes(encoded(Image.new("L", (8, 8), i)))
    return folder


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "data" / ".git").mkdir(parents=True)
    (tmp_path / "data" / "README.md").write_text("nothing here")
    said = refused(tmp_path / "runs", tmp_path / "data")
    assert said == f"data.source {tmp_path}/data holds no files; wanted image files there; hidden ones, texts and tables do not count"


def test_storage_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    said = refused(tmp_path / "runs", pictures(tmp_path / "data", 3))
    assert said == f"prepare could not write to {tmp_path}/runs: Not a directory; free some space there, or set storage elsewhere"


def test_asking_what_would_be_done_needs_no_storage(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    assert not prepare.output(recipe(tmp_path / "runs", pictures(tmp_path / "data", 3))).done


@pytest.fixture
def fresh_s3() -> Iterator[None]:
    """fsspec keeps S3 filesystems with the credentials of their first use."""
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


def test_s3_without_credentials(fresh_s3: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    said = refused(tmp_path / "runs", "s3://bucket/pictures")
    assert said == "no S3 credentials for s3://bucket/pictures; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"


@pytest.mark.ray
def test_every_file_bad(ray_session: object, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for i in range(5):
        (tmp_path / "data" / f"{i}.png").write_bytes(b"no picture")
    asked = recipe(tmp_path / "runs", tmp_path / "data", max_bad=100)
    said = refused(tmp_path / "runs", tmp_path / "data", max_bad=100)
    where = prepare.output(asked).uri
    assert said == (
        f"none of the 5 inputs of {tmp_path}/data could be read; the first: 0.png: cannot identify image (all of them: {where}/quarantine.parquet)"
    )
    assert len(pandas.read_parquet(f"{where}/quarantine.parquet")) == 5


@pytest.mark.ray
def test_more_bad_than_max_bad(ray_session: object, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", 17)
    for i in range(3):
        (data / f"bad{i}.png").write_bytes(b"no picture")
    said = refused(tmp_path / "runs", data, max_bad=2)
    assert said.startswith(
        "3 of 20 inputs could not be read, data.max_bad=2 allows fewer: mend them or raise it; the first: bad0.png: cannot identify image "
        "(all of them: "
    )
    assert refused(tmp_path / "runs", data, max_bad=0.1).startswith(
        "3 of 20 inputs could not be read, data.max_bad=0.1 allows fewer: mend them or raise it; "
    )
    assert sum(prepare.prepare(recipe(tmp_path / "runs", data, max_bad=0.15)).rows.values()) == 17


@pytest.mark.ray
def test_vast_and_endless_pictures_cost_themselves_only(ray_session: object, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", 10)
    (data / "vast.png").write_bytes(vast(40_000, 25_000))
    (data / "endless.jpg").write_bytes(endless())
    begun = time.monotonic()
    done = prepare.prepare(recipe(tmp_path / "runs", data, max_bad=2, seconds_per_file=3))
    assert time.monotonic() - begun < 40 and sum(done.rows.values()) == 10
    said = pandas.read_parquet(f"{done.uri}/quarantine.parquet").set_index("source")["reason"].to_dict()
    assert said["endless.jpg"] == "not decoded within 3 s" and said["vast.png"].startswith("Image size (1000000000 pixels) exceeds limit")


@pytest.mark.ray
def test_a_file_given_more_time_is_tried_again(ray_session: object, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", 3)
    whole = encoded(Image.new("L", (4000, 4000), 128), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    (data / "slow.jpg").write_bytes(whole[:last] + whole[last:-2] * 200 + whole[-2:])
    first = prepare.prepare(recipe(tmp_path / "runs", data, max_bad=1, seconds_per_file=1))
    assert shards.manifest(first)["quarantined"] == 1
    shutil.rmtree(first.uri)
    assert sum(prepare.prepare(recipe(tmp_path / "runs", data, max_bad=0, seconds_per_file=60)).rows.values()) == 4


@pytest.mark.ray
def test_labels_that_fit_nothing(ray_session: object, tmp_path: Path) -> None:
    said = refused(tmp_path / "runs", pictures(tmp_path / "data", 3), label={"by": "pattern", "pattern": "class_(.)"})
    assert said == "data.label.by pattern labels none of the 3 inputs; correct it, or set data.label.by=none"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 200 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.ray
def test_a_full_disk(ray_session: object, tmp_path: Path, small_disk: Path) -> None:
    asked: dict[str, Any] = {"image": {"height": 64, "width": 64, "levels": 17}}
    said = refused(small_disk / "runs", "digits", **asked)
    words = os.strerror(errno.ENOSPC)
    assert said == f"prepare could not write to {small_disk}/runs: {words}; free some space there, or set storage elsewhere"
    assert not prepare.output(recipe(small_disk / "runs", "digits", **asked)).done
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    again = prepare.prepare(recipe(small_disk / "runs", "digits", **asked))
    assert digests(again.uri) == digests(prepare.prepare(recipe(tmp_path / "runs", "digits", **asked)).uri)


@pytest.mark.ray
def test_storage_that_holds_the_half_finished_run_of_another_recipe(ray_session: object, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", 20)
    other = prepare.prepare(recipe(tmp_path / "runs", data, name="other", image={"height": 4, "width": 4}))
    Path(other.uri, "manifest.json").unlink()
    left = digests(other.uri)
    done = prepare.prepare(recipe(tmp_path / "runs", data))
    assert digests(other.uri) == left
    assert digests(done.uri) == digests(prepare.prepare(recipe(tmp_path / "fresh", data)).uri)
