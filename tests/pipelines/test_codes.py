"""The commands about codes: features of files and Shards with their names and labels, the server's bytes without a server, one line for a mistake."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from genmodels import Event, artifact, build, load, media
from genmodels.core import Decodes, Encodes
from genmodels.noise import Noise
from pipelines import cli
from pipelines.decoder import content_id
from pipelines.records import Shards
from pipelines.shards import examples
from serve.schema import Settings
from tests.pipelines import small
from tests.pipelines.commands import Command, command
from tests.serve.conftest import Local, save

ROOT = Path(__file__).resolve().parents[2]
PICTURE = Event(modality="image", shape=(1, 8, 8), levels=17)
LABELLED = Event(modality="image", shape=(1, 8, 8), levels=17, classes=10)
BITS = Event(modality="image", shape=(1, 8, 8), levels=2)
X = (np.arange(3 * 64) * 5 % 17).astype(np.uint8).reshape(3, 1, 8, 8)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return small.digits(tmp_path_factory.mktemp("shards"), rows={"train": 1040, "valid": 20, "test": 30})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, shards: Shards) -> Path:
    root = tmp_path_factory.mktemp("codes")
    save(root / "vae", family="vae", event=PICTURE, prepare=small.PREPARE)
    artifact.save(build("vae", LABELLED, seed=1), root / "classes", family="vae", prepare=small.PREPARE, labels=small.LABELS)
    save(root / "gan", family="gan", event=PICTURE, prepare=small.PREPARE)
    save(root / "bits", family="helmholtz", event=BITS, prepare={**small.PREPARE, "levels": 2}, hidden=(6,))
    save(root / "density", event=PICTURE, prepare=small.PREPARE, hidden=8, layers=2, head=8)
    (root / "folder" / "inner").mkdir(parents=True)
    for number, path in enumerate(("folder/b.png", "folder/a.png", "folder/inner/c.png")):
        (root / path).write_bytes(media.png(X[number], levels_count=17))
    (root / "folder" / ".hidden").write_text("no picture")
    (root / "empty").mkdir()
    (root / "text.png").write_text("no picture")
    np.save(root / "z.npy", np.random.default_rng(0).normal(size=(20, 16)).astype(np.float32))
    np.save(root / "rows.npy", X)
    pq.write_table(pa.table({"other": [1]}), root / "other.parquet")
    (root / "shards").symlink_to(shards.uri)
    return root


@pytest.fixture
def run(models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command in the folder of the models, its answers as JSON."""
    monkeypatch.chdir(models)
    return command(capsys)


def served(models: Path, name: str, verb: str, body: dict[str, Any]) -> Any:
    local = Local({name: models / name}, Settings())
    try:
        return local.ask("POST", f"/v1/models/{name}/{verb}", json=body, headers={"Accept": "application/x-npy"})
    finally:
        local.close()


def test_features_of_a_folder_are_the_servers_means_under_the_files_names(
    run: Command, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the names, whatever order the disk has them in."""
    listed = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: sorted(listed(self, pattern), reverse=True))
    out = tmp_path / "f.parquet"
    (said,) = run("encode", "vae", "folder", "rows.npy", "-o", str(out))
    table = pq.read_table(out)
    assert table.schema.names == ["id", "source", "label", "features"]
    assert table.schema.field("features").type == pa.list_(pa.float32(), 16)
    assert table["source"].to_pylist() == ["folder/a.png", "folder/b.png", "folder/inner/c.png", *["rows.npy"] * 3]
    order = [1, 0, 2, 0, 1, 2]
    assert table["id"].to_pylist() == [content_id(X[row].tobytes()) for row in order]
    assert table["label"].to_pylist() == [None] * 6
    found = np.stack(table["features"].to_numpy())
    means = np.load(_content(served(models, "vae", "encodings", {"x": X.tolist()})))
    assert np.array_equal(found, means[order])
    assert (said["rows"], said["features"], said["distribution"], said["protocol"]) == (6, 16, "Normal", "q(z|x)")
    assert (table.schema.metadata or {})[b"artifact"].decode() == artifact.read(models / "vae").digest == said["artifact"]


def _content(answer: Any) -> io.BytesIO:
    return io.BytesIO(answer.content)


def test_features_of_shards_keep_ids_sources_and_labels(run: Command, models: Path, shards: Shards, tmp_path: Path) -> None:
    """More rows than are encoded at once; a row's features are the same in a smaller set."""
    out = tmp_path / "f.parquet"
    run("encode", "vae", "--shards", "shards", "--split", "train", "-o", str(out))
    table, stored = pq.read_table(out), pq.read_table(next(Path(shards.uri).glob("train-*.parquet")))
    for column in ("id", "source", "label"):
        assert table[column].to_pylist() == stored[column].to_pylist()
    model, batch = load(models / "vae"), next(examples(shards, "train", 2000))
    assert isinstance(model, Encodes)
    found = np.stack(table["features"].to_numpy())
    torch.testing.assert_close(torch.from_numpy(found), model.features(batch.x), rtol=1e-4, atol=1e-5)
    np.save(tmp_path / "some.npy", batch.x[1000:1037].numpy())
    run("encode", "vae", str(tmp_path / "some.npy"), "-o", str(out))
    assert np.array_equal(np.stack(pq.read_table(out)["features"].to_numpy()), found[1000:1037])


def test_a_model_that_encodes_under_labels_is_told_which(run: Command, models: Path, shards: Shards, tmp_path: Path) -> None:
    out, model, batch = tmp_path / "f.parquet", load(models / "classes"), next(examples(shards, "test", 100))
    assert isinstance(model, Encodes) and batch.y is not None
    for arguments, y in ((["--own-labels"], batch.y), (["--label", "3"], torch.full((30,), 3))):
        (said,) = run("encode", "classes", "--shards", "shards", *arguments, "-o", str(out))
        found = np.stack(pq.read_table(out)["features"].to_numpy())
        torch.testing.assert_close(torch.from_numpy(found), model.features(batch.x, y), rtol=1e-4, atol=1e-5)
        assert said["protocol"] == "q(z|x,y)"


def test_decodings_are_the_servers_byte_for_byte_from_an_array_or_from_features(run: Command, models: Path, tmp_path: Path) -> None:
    out, z = tmp_path / "x.npy", np.load(models / "z.npy")
    (said,) = run("decode", "vae", "z.npy", "-o", str(out))
    answer = served(models, "vae", "decodings", {"z": z.tolist()})
    assert out.read_bytes() == answer.content
    slip = json.loads(answer.headers["X-Genmodels-Receipt"])
    assert {**said["receipt"], "model": slip["model"], "version": slip["version"]} == slip
    run("encode", "vae", "rows.npy", "-o", str(tmp_path / "f.parquet"))
    run("decode", "vae", str(tmp_path / "f.parquet"), "-o", str(out))
    model = load(models / "vae")
    assert isinstance(model, Encodes) and isinstance(model, Decodes)
    assert (np.load(out) == model.decode_rows(model.features(torch.from_numpy(X))).numpy()).mean() > 0.99


def test_a_path_is_the_servers_and_a_row(run: Command, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "row.npy"
    (said,) = run("interpolate", "vae", "--seeds", "3", "4", "--steps", "5", "-o", str(out))
    answer = served(models, "vae", "interpolations", {"a": {"seed": 3}, "b": {"seed": 4}, "steps": 5})
    assert out.read_bytes() == answer.content
    assert said["receipt"]["decoded"] == json.loads(answer.headers["X-Genmodels-Receipt"])["decoded"]
    run("interpolate", "vae", "folder/b.png", "folder/a.png", "--steps", "5", "-o", str(out))
    ends = {"a": {"x": X[0].tolist()}, "b": {"x": X[1].tolist()}}
    assert out.read_bytes() == served(models, "vae", "interpolations", {**ends, "steps": 5}).content
    run("interpolate", "gan", "--seeds", "1", "2", "-o", str(tmp_path / "row.png"))
    assert Image.open(tmp_path / "row.png").size == (9 * 34 + 2, 36)
    model = load(models / "gan")
    assert isinstance(model, Decodes)
    a, b = model.codes(Noise(1, position=[0])), model.codes(Noise(2, position=[0]))
    run("interpolate", "gan", "--seeds", "1", "2", "--steps", "3", "-o", str(out))
    assert np.array_equal(np.load(out), model.interpolate(a, b, 3)[0].numpy())


def test_the_lines_of_the_readme_run(run: Command, models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = re.findall(
        r"^    genmodels ((?:encode|decode|interpolate) .*?)(?:  +#.*)?$", (ROOT / "README.md").read_text(), flags=re.MULTILINE
    )
    assert {line.split()[0] for line in lines} == {"encode", "decode", "interpolate"}
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("seven.png", "other.png", "pictures/a.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(media.png(X[number], levels_count=17))
    for line in lines:
        (said,) = run(*line.replace("models:/digits-vae@champion", str(models / "classes")).split())
        assert (tmp_path / said["file"]).stat().st_size > 100


def test_a_person_reads_what_was_written(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(models)
    with pytest.raises(SystemExit):
        cli.main(["encode", "vae", "folder", "-o", str(tmp_path / "f.parquet")])
    assert "(3 rows of 16 features: means of Normal codes, q(z|x))" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["interpolate", "vae", "--seeds", "1", "2", "-o", str(tmp_path / "row.png")])
    assert "row.png  (9 steps of vae" in capsys.readouterr().out


CAN = "it can: density, tempered, completes, progressive, classifies, autoregressive"
NOTHING_BETWEEN = (
    "has codes of 2 levels, which have nothing between them; decode codes of your own, or interpolate in a model of real-valued codes"
)
MISTAKES = [
    (["encode", "vae"], "encode takes files or --shards URI, one of them"),
    (["encode", "vae", "folder", "--shards", "shards"], "encode takes files or --shards URI, one of them"),
    (["encode", "vae", "empty"], "nothing to encode: the folder holds no files"),
    (["encode", "vae", "text.png"], "text.png: the image cannot be read: cannot identify image"),
    (["encode", "vae", "gone.png"], "cannot read gone.png: No such file or directory"),
    (["encode", "vae", "folder", "-o", "f.csv"], "--out f.csv: features are written to Parquet; give a name that ends in .parquet"),
    (["encode", "vae", "folder", "--own-labels"], "--own-labels goes with --shards, whose rows have labels, and not with --label"),
    (["encode", "vae", "--shards", "folder"],
     "no finished shards at folder: it holds no manifest.json; run `genmodels prepare` on the recipe"),
    (["encode", "vae", "--shards", "shards", "--split", "best"], "--split best; wanted one of train, valid, test"),
    (["encode", "bits", "--shards", "shards"], "shards holds image 1x8x8, 17 levels, 10 classes; bits models image 1x8x8, 2 levels"),
    (["encode", "classes", "--shards", "shards"], "this model is conditioned on labels; give y: --label, or --own-labels"),
    (["encode", "gan", "folder"], "gan (gan) cannot encode examples; it can: decodes"),
    (["encode", "density", "folder"], f"density (gated_pixelcnn) cannot encode examples; {CAN}"),
    (["decode", "density", "z.npy"], f"density (gated_pixelcnn) cannot decode codes; {CAN}"),
    (["decode", "vae", "rows.npy"], "codes of shape (3, 1, 8, 8); wanted (n, 16)"),
    (["decode", "vae", "text.png"], "text.png: the body is no .npy array: it does not begin as one; numpy.save writes them"),
    (["decode", "vae", "other.parquet"],
     "other.parquet has columns other; wanted one named features, as `genmodels encode` writes it"),
    (["decode", "vae", "z.npy", "-o", "x.wav"], "--out x.wav: decodings of vae can be written as .png, .json, .npy"),
    (["decode", "classes", "z.npy"], "classes decodes a code under a label; give label, 0 to 9, as 0"),
    (["interpolate", "vae"], "0 files and no --seeds; interpolate takes two files, or --seeds A B"),
    (["interpolate", "vae", "folder/a.png"], "1 files and no --seeds; interpolate takes two files, or --seeds A B"),
    (["interpolate", "vae", "folder/a.png", "folder/b.png", "--seeds", "1", "2"],
     "2 files and two --seeds; interpolate takes two files, or --seeds A B"),
    (["interpolate", "gan", "folder/a.png", "folder/b.png"],
     "gan (gan) decodes and interpolates but does not encode: give a seed and an index in place of an example"),
    (["interpolate", "bits", "--seeds", "1", "2"],
     f"bits (helmholtz) {NOTHING_BETWEEN}"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "line"), MISTAKES, ids=[" ".join(row[0]) for row in MISTAKES])
def test_a_mistake_is_one_line_and_nothing_is_written(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    monkeypatch.chdir(models)
    before = sorted(models.iterdir())
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    said = capsys.readouterr()
    assert (end.value.code, said.err.strip()) == (2, f"genmodels: {line}")
    assert not said.out
    assert sorted(models.iterdir()) == before
