"""Pictures and their labels in S3, Shards and parts in S3: the same bytes as on a disk."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from pipelines import cluster, prepare, shards, storage
from tests import services
from tests.pipelines.test_prepare import digests, pictures, recipe

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 bucket that Ray's workers reach as well."""
    with services.s3(tmp_path_factory.mktemp("s3"), bucket="bucket") as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        cluster.connect()
        yield "s3://bucket"
        cluster.shutdown()


def test_everything_in_s3_gives_the_bytes_of_a_local_run(bucket: str, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", 80)
    (data / "labels.csv").write_text("file,label\n" + "".join(f"a/{i:04d}.png,even{i % 4}\n" for i in range(0, 80, 2)))
    storage.upload(data, f"{bucket}/pictures")
    label = {"by": "csv", "csv": "labels.csv"}
    local = prepare.prepare(recipe(tmp_path / "runs", data, label=label, max_bad=3))
    remote = prepare.prepare(recipe(f"{bucket}/runs", f"{bucket}/pictures", label=label, max_bad=3))
    assert remote.uri.startswith(f"{bucket}/runs/shards/some-") and remote.rows == local.rows and remote.labels == ("even0", "even2")
    fetched = storage.download(remote.uri, tmp_path / "fetched")
    # An object is named by its etag, a file by its hash: the fingerprints differ, and nothing else does.
    different = {name for name, digest in digests(local.uri).items() if digests(fetched)[name] != digest}
    assert different == {"manifest.json"} and set(digests(fetched)) == set(digests(local.uri))
    assert {**shards.manifest(remote), "fingerprint": ""} == {**shards.manifest(local), "fingerprint": ""}
    here, there = shards.Stream(local, seed=1), shards.Stream(remote, seed=1)
    assert (here.batch(3, 16).x == there.batch(3, 16).x).all()
    again = recipe(f"{bucket}/runs", f"{bucket}/pictures", label=label, max_bad=3)
    assert prepare.output(again).done and prepare.prepare(again).uri == remote.uri


def test_objects_added_later_cost_only_themselves(bucket: str, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", 40)
    storage.upload(data, f"{bucket}/grows")
    asked = recipe(f"{bucket}/other", f"{bucket}/grows", max_bad=3)
    first = prepare.prepare(asked)
    fs, root = storage.filesystem(f"{bucket}/other/parts")
    fs.invalidate_cache()
    before = {path: fs.info(path)["LastModified"] for path in fs.find(root)}
    storage.write_bytes(f"{bucket}/grows/b/new.png", (data / "b" / "0001.png").read_bytes())
    second = prepare.prepare(asked)
    fs.invalidate_cache()
    after = {path: fs.info(path)["LastModified"] for path in fs.find(root)}
    assert second.uri != first.uri and sum(second.rows.values()) == sum(first.rows.values())
    assert shards.manifest(second)["duplicates"] == shards.manifest(first)["duplicates"] + 1
    assert {path: after[path] for path in before} == before and len(
        [path for path in after if path not in before and "listings" not in path]
    ) == 1
