"""`genmodels compress` and `decompress`: the same levels back under the files' own names, and one line and no file for what is refused."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from genmodels import artifact, coding, media
from genmodels.compressed import HEADER
from genmodels.core import Autoregressive, Event
from genmodels.zoo import MODELS, build
from pipelines import cli, codecs
from pipelines.files import Examples, unique
from tests.genmodels.conftest import TINY

PICTURES = Event(modality="image", shape=(1, 8, 8), levels=17, classes=3)
SOUNDS = Event(modality="audio", shape=(200,), levels=256, sample_rate=4000, companding="mu-law")
TABLES = Event(modality="table", shape=(6,), levels=5)
PREPARE: dict[str, dict[str, Any]] = {
    "image": {"modality": "image", "height": 8, "width": 8, "channels": 1, "levels": 17, "fit": "crop"},
    "audio": {
        "modality": "audio",
        "sample_rate": 4000,
        "seconds": 0.05,
        "levels": 256,
        "companding": "mu-law",
        "window": "first",
        "hop": 0.01,
    },
    "table": {},
}


def saved(folder: Path, family: str, event: Event, *, seed: int = 0) -> str:
    """A model folder with first weights of a seed."""
    model = build(family, event, seed=seed, **TINY.get(family, {}))
    labels = ["ant", "bee", "cow"][: event.classes]
    artifact.save(model, folder, family=family, prepare=PREPARE[event.modality], labels=labels)
    return str(folder)


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """The result of a command that is done, from --json."""
    with pytest.raises(SystemExit) as end:
        cli.main([*map(str, arguments), "--json"])
    captured = capsys.readouterr()
    assert not end.value.code, captured.err
    return json.loads(captured.out.splitlines()[-1])


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of a command that fails."""
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert end.value.code in (1, 2)
    lines = [line for line in captured.err.splitlines() if line.startswith("genmodels: ")]
    assert len(lines) == 1 and "Traceback" not in captured.err
    return lines[0]


def pictures(folder: Path) -> list[Path]:
    """Three pictures, two of one name."""
    draw = np.random.default_rng(0)
    files = [folder / "a" / "one.png", folder / "b" / "one.jpg", folder / "two.bmp"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (8, 8), dtype=np.uint8)).save(file)
    return files


def test_pictures_come_back_level_by_level(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, files = saved(tmp_path / "model", "gated_pixelcnn", PICTURES), pictures(tmp_path)
    done = command(capsys, "compress", model, *files, "-o", tmp_path / "out.gmz")
    assert done["examples"] == 3 and done["header"] == HEADER <= 64
    assert (tmp_path / "out.gmz").stat().st_size == done["header"] + done["payload"] + done["names"]
    assert done["bits_per_dim"] == pytest.approx(8 * done["payload"] / 192)
    assert (
        done["bits_per_dim"] <= 1.01 * done["model_bits_per_dim"] + 3 * 2 / 192 + 64 / 192
    )  # a label of log2 3 bits each, and the last words
    assert (
        set(done["codecs"]) == {name for name in done["codecs"] if name.startswith(("plain", "PNG", "zstd"))} and len(done["codecs"]) == 3
    )
    back = command(capsys, "decompress", model, tmp_path / "out.gmz", "-o", tmp_path / "back")
    assert back["files"] == ["one.png", "one-2.png", "two.png"] and set(back["labels"]) <= {"ant", "bee", "cow"}
    for name, file in zip(back["files"], files, strict=True):
        ours, theirs = (media.levels_from_image(path.read_bytes(), PREPARE["image"]) for path in (tmp_path / "back" / name, file))
        assert np.array_equal(ours, theirs)


def test_a_given_label_is_coded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, files = saved(tmp_path / "model", "gated_pixelcnn", PICTURES), pictures(tmp_path)
    done = command(capsys, "compress", model, *files, "-o", tmp_path / "out.gmz", "--label", "cow")
    assert done["protocol"] == "p(x, y)"
    assert command(capsys, "decompress", model, tmp_path / "out.gmz", "-o", tmp_path / "back")["labels"] == ["cow"] * 3


def test_sounds_come_back_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """However the model was trained on windows, every step of a sound is kept, and no silence is added."""
    model, draw = saved(tmp_path / "model", "wavenet", SOUNDS), np.random.default_rng(0)
    files = [tmp_path / name for name in ("long.wav", "short.flac", "longer name.wav")]
    for file, (steps, rate) in zip(files, [(450, 4000), (37, 4000), (250, 4000)], strict=True):
        soundfile.write(file, draw.uniform(-1, 1, steps), rate)
    done = command(capsys, "compress", model, *files, "-o", tmp_path / "out.gmz")
    assert done["examples"] == 3 + 1 + 2 and any(name.startswith("FLAC") for name in done["codecs"])
    assert done["codecs"]["plain levels"]["bytes"] == 450 + 37 + 250
    assert done["bits_per_dim"] <= 1.01 * done["model_bits_per_dim"] + 64 / 737
    back = command(capsys, "decompress", model, tmp_path / "out.gmz", "-o", tmp_path / "back")
    assert back["files"] == ["long.wav", "short.wav", "longer name.wav"] and back["labels"] is None
    whole = {**PREPARE["audio"], "window": "all", "hop": None}
    for name, file in zip(back["files"], files, strict=True):
        ours, theirs = (media.levels_from_sound(path.read_bytes(), whole) for path in (tmp_path / "back" / name, file))
        assert [length for _, length in ours] == [length for _, length in theirs]
        assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(ours, theirs, strict=True))
    soundfile.write(tmp_path / "fast.wav", draw.uniform(-1, 1, 500), 8000)
    said = complaint(capsys, "compress", model, tmp_path / "fast.wav", "-o", tmp_path / "fast.gmz")
    assert "fast.wav: a sound of 8000 Hz; this model's have 4000 Hz" in said and not (tmp_path / "fast.gmz").exists()
    soundfile.write(tmp_path / "wide.wav", draw.uniform(-1, 1, (500, 2)), 4000)
    said = complaint(capsys, "compress", model, tmp_path / "wide.wav", "-o", tmp_path / "wide.gmz")
    assert "wide.wav: a sound of 2 channels; this model's have one" in said and not (tmp_path / "wide.gmz").exists()


@pytest.mark.parametrize(
    "family", [name for name, kind in MODELS.items() if issubclass(kind, Autoregressive) and "table" in kind.modalities]
)
def test_rows_come_back(tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str) -> None:
    model, rows = saved(tmp_path / "model", family, TABLES), np.random.default_rng(0).integers(0, 5, (20, 6))
    np.save(tmp_path / "rows.npy", rows)
    command(capsys, "compress", model, tmp_path / "rows.npy", "-o", tmp_path / "out.gmz")
    command(capsys, "decompress", model, tmp_path / "out.gmz", "-o", tmp_path / "back")
    assert np.array_equal(np.load(tmp_path / "back" / "rows.npy"), rows)
    np.save(tmp_path / "wide.npy", rows[:, :5])
    assert "(n, 6)" in complaint(capsys, "compress", model, tmp_path / "wide.npy", "-o", tmp_path / "wide.gmz")


def test_what_cannot_be_compressed_is_one_line_and_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, files = saved(tmp_path / "model", "gated_pixelcnn", PICTURES), pictures(tmp_path)
    vae, out = saved(tmp_path / "vae", "vae", PICTURES), tmp_path / "new" / "out.gmz"
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert "VAE" in complaint(capsys, "compress", vae, *files, "-o", out)
    assert "broken.png" in complaint(capsys, "compress", model, *files, tmp_path / "broken.png", "-o", out)
    assert "none.png" in complaint(capsys, "compress", model, tmp_path / "none.png", "-o", out)
    Image.new("L", (9, 8)).save(tmp_path / "wide.png")
    Image.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / "red.png")
    assert "wide.png: a picture of 9 x 8 pixels; this model's have 8 x 8" in complaint(
        capsys, "compress", model, *files, tmp_path / "wide.png", "-o", out
    )
    assert "red.png: a picture in colour" in complaint(capsys, "compress", model, tmp_path / "red.png", "-o", out)
    assert "'bee'" in complaint(capsys, "compress", model, *files, "-o", out, "--label", "bea")
    assert "0 to 2" in complaint(capsys, "compress", model, *files, "-o", out, "--label", "3")
    assert "one of the files" in complaint(capsys, "compress", model, *files, "-o", files[0])
    assert not out.parent.exists()


def test_what_cannot_be_decompressed_is_one_line_and_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, files = saved(tmp_path / "model", "gated_pixelcnn", PICTURES), pictures(tmp_path)
    other = saved(tmp_path / "other", "gated_pixelcnn", PICTURES, seed=1)
    out, back = tmp_path / "out.gmz", tmp_path / "new" / "back"
    command(capsys, "compress", model, *files, "-o", out)
    data = out.read_bytes()
    (tmp_path / "cut.gmz").write_bytes(data[:-9])
    (tmp_path / "changed.gmz").write_bytes(data[:70] + bytes([data[70] ^ 1]) + data[71:])
    line = complaint(capsys, "decompress", other, out, "-o", back)
    assert all(coding.digest(artifact.load(folder)) in line for folder in (model, other))
    assert "cut short" in complaint(capsys, "decompress", model, tmp_path / "cut.gmz", "-o", back)
    assert "changed" in complaint(capsys, "decompress", model, tmp_path / "changed.gmz", "-o", back)
    assert "no compressed file" in complaint(capsys, "decompress", model, files[0], "-o", back)
    assert "out.gmz is there already" in complaint(capsys, "decompress", model, out, "-o", out)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(coding, "equality_class", lambda device: "another machine")
        line = complaint(capsys, "decompress", model, out, "-o", back)
        assert "another machine" in line and "threads-1" in line
    assert not back.parent.exists()


def test_a_disk_that_fills_up_leaves_nothing_half_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, files = saved(tmp_path / "model", "gated_pixelcnn", PICTURES), pictures(tmp_path)
    command(capsys, "compress", model, *files, "-o", tmp_path / "out.gmz")
    encode, room = media.png, [2]

    def full(levels: Any, **settings: Any) -> bytes:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(28, "No space left on device")
        return encode(levels, **settings)

    monkeypatch.setattr(media, "png", full)
    assert "the disk is full" in complaint(capsys, "decompress", model, tmp_path / "out.gmz", "-o", tmp_path / "new" / "back")
    assert list((tmp_path / "new").iterdir()) == []


def test_names_stay_inside_the_folder_and_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unique(["a", "A", "a-2", "a"], ".png") == ["a.png", "A-2.png", "a-2-2.png", "a-3.png"]
    model = saved(tmp_path / "model", "gated_pixelcnn", PICTURES)
    x = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    for at, names in enumerate([[("../../away.png", 1), ("..", 1)], []]):
        made = coding.compress(artifact.load(model), x, names={"files": names})
        (tmp_path / f"{at}.gmz").write_bytes(made.to_bytes())
    back = command(capsys, "decompress", model, tmp_path / "0.gmz", "-o", tmp_path / "back")
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == sorted(back["files"])
    assert "no names of files" in complaint(capsys, "decompress", model, tmp_path / "1.gmz", "-o", tmp_path / "second")


def test_the_other_codecs_are_not_made_to_look_bad() -> None:
    """PNG of few colours is packed, FLAC keeps the levels and nothing more, zstd packs bits."""
    draw = np.random.default_rng(0)
    binary = (draw.random((4, 1, 28, 28)) < 0.1).astype(np.uint8)
    event = Event(modality="image", shape=(1, 28, 28), levels=2)
    found = codecs.sizes(Examples(event=event, x=torch.from_numpy(binary), files=tuple((f"{i}", 1) for i in range(4))))
    file = io.BytesIO()
    Image.fromarray(binary[0, 0] * np.uint8(255)).save(file, "PNG", optimize=True)
    assert found["plain levels"] == 4 * 98
    assert codecs.png(binary[0], 2) <= file.tell()
    assert codecs.zstd([draw.integers(0, 2, 8000, dtype=np.uint8)], 2) < 1100
    wave = media.encode(np.sin(np.arange(4000) / 9) / 2, 256, "mu-law")
    assert codecs.flac(wave, SOUNDS) < 4000
