"""A model folder: what is loaded is what was saved; whatever was changed, is missing or is unknown here is refused in one line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from genmodels import artifact, zoo
from genmodels.core import Event
from tests.genmodels.tiny import EVENT, Tiny

LABELS = ["zero", "one", "two"]
PREPARE = {"modality": "image", "height": 2, "width": 3, "levels": 4}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(zoo.MODELS, "tiny", Tiny)
    model = zoo.build("tiny", EVENT, seed=3, width=5, sides=(4, 5, 6))
    model.class_frequencies.copy_(torch.tensor([0.5, 0.3, 0.2]))
    artifact.save(model, tmp_path / "model", family="tiny", prepare=PREPARE, labels=LABELS, lineage={"shards": "abc"})
    return tmp_path / "model"


def test_loaded_model_is_the_saved_one(folder: Path) -> None:
    saved = zoo.build("tiny", EVENT, seed=3, width=5)
    saved.class_frequencies.copy_(torch.tensor([0.5, 0.3, 0.2]))
    loaded = artifact.load(folder)
    assert isinstance(loaded, Tiny) and isinstance(saved, Tiny)
    assert not loaded.training
    x = torch.randint(0, 4, (9, 1, 2, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(loaded.log_prob(x), saved.eval().log_prob(x))
    assert torch.equal(loaded.sample(40, seed=5), saved.sample(40, seed=5))
    assert loaded.config == Tiny.Config(width=5, sides=(4, 5, 6))


def test_read_says_what_it_is(folder: Path) -> None:
    read = artifact.read(folder)
    assert (read.family, read.event, read.labels, read.prepare) == ("tiny", EVENT, tuple(LABELS), PREPARE)
    assert read.capabilities == ("density",)
    assert read.lineage == {"shards": "abc"}
    assert read.digest == artifact.verify(folder)


def test_same_model_same_digest_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    again = artifact.save(artifact.load(folder), tmp_path / "b", family="tiny", prepare=PREPARE, labels=LABELS, lineage={"shards": "abc"})
    assert again == artifact.read(folder).digest
    other = zoo.build("tiny", EVENT, seed=4, width=5)
    assert artifact.save(other, tmp_path / "c", family="tiny", prepare=PREPARE, labels=LABELS, lineage={"shards": "abc"}) != again


def test_sha256sum_agrees(folder: Path) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum on this machine")
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True, capture_output=True)


def test_annotate_keeps_weights_and_other_files(folder: Path) -> None:
    (folder / "samples.png").write_bytes(b"picture")
    before = artifact.read(folder)
    weights = (folder / "model.safetensors").read_bytes()
    digest = artifact.annotate(folder, scores=[{"name": "bits/dim", "value": 1.5}], lineage={"run": "r"})
    after = artifact.read(folder)
    assert digest == after.digest != before.digest
    assert after.scores == ({"name": "bits/dim", "value": 1.5},)
    assert after.lineage == {"shards": "abc", "run": "r"}
    assert (folder / "model.safetensors").read_bytes() == weights
    assert (folder / "samples.png").read_bytes() == b"picture"
    assert artifact.verify(folder) == digest
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["model.json", "model.safetensors", "SHA256SUMS"])
@pytest.mark.parametrize("place", [0.1, 0.5, 0.99])
def test_a_changed_byte_is_refused(folder: Path, name: str, place: float) -> None:
    content = bytearray((folder / name).read_bytes())
    content[int(len(content) * place)] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"changed since it was written|lists .*; wanted") as refusal:
        artifact.load(folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors", "SHA256SUMS"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ValueError, match=name):
        artifact.load(folder)


def test_an_unknown_family_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(zoo.MODELS, "tiny")
    with pytest.raises(ValueError, match="unknown family 'tiny'; known:"):
        artifact.load(folder)


def test_an_unknown_setting_is_refused(folder: Path) -> None:
    description = json.loads((folder / "model.json").read_text())
    description["config"]["depth"] = 3
    artifact._seal(folder, description)
    with pytest.raises(ValueError, match="unknown setting 'depth' of tiny"):
        artifact.load(folder)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    description = json.loads((folder / "model.json").read_text())
    description["config"]["width"] = 6
    artifact._seal(folder, description)
    with pytest.raises(ValueError, match="size mismatch") as refusal:
        artifact.load(folder)
    assert "\n" not in str(refusal.value)


def test_what_is_saved_must_fit(folder: Path, tmp_path: Path) -> None:
    model = artifact.load(folder)
    with pytest.raises(ValueError, match="2 label names for 3 classes"):
        artifact.save(model, tmp_path / "x", family="tiny", prepare={}, labels=["a", "b"])
    with pytest.raises(ValueError, match="saved as family 'wide'"):
        artifact.save(model, tmp_path / "x", family="wide", prepare={}, labels=[])
    assert not (tmp_path / "x").exists()


def test_a_failed_save_leaves_what_was_there(folder: Path) -> None:
    before = artifact.verify(folder)
    with pytest.raises(TypeError):
        artifact.save(artifact.load(folder), folder, family="tiny", prepare={"bad": object()}, labels=LABELS)
    assert artifact.verify(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_an_unlabelled_event_comes_back() -> None:
    event = Event(modality="audio", shape=(16,), levels=256, sample_rate=8000, companding="mu-law", condition=EVENT)
    assert Event.from_json(json.loads(json.dumps(event.to_json()))) == event


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, genmodels; assert 'torch' not in sys.modules; genmodels.Event; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
