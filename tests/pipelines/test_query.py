"""The commands that ask a model: the server's bytes without a server, maps that can be read, conditions from files, one line for a mistake."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genmodels import Event, load, media
from genmodels.core import Autoregressive, Classifies, Completes
from pipelines import cli, surprise
from serve.schema import Settings
from tests.pipelines.commands import Command, command
from tests.serve.conftest import Local, save

SOUNDS = Event(modality="audio", shape=(40,), levels=256, sample_rate=8000, companding="mu-law", classes=3)
SOUND = {"modality": "audio", "sample_rate": 8000, "seconds": 0.005, "levels": 256, "companding": "mu-law", "window": "all", "hop": None}
PICTURE = Event(modality="image", shape=(1, 4, 4), levels=5)
SMALL = Event(modality="image", shape=(1, 2, 2), levels=5)
X = (np.arange(16) * 3 % 5).astype(np.uint8).reshape(1, 4, 4)
CODES = np.arange(100, 140, dtype=np.uint8)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models and of files for them."""
    root = tmp_path_factory.mktemp("query")
    save(root / "digits")
    save(root / "sounds", family="wavenet", event=SOUNDS, prepare=SOUND, stacks=1, layers=3, residual=8, skip=8)
    save(root / "vocoder", family="wavenet", event=SOUNDS, prepare=SOUND, layers=2, residual=8, skip=8, condition="log-mel", mels=4, hop=8)
    save(root / "larger", event=PICTURE, hidden=8, layers=2, head=8, condition="smaller")
    save(root / "filler", event=PICTURE, hidden=8, layers=2, head=8, condition="masked")
    save(root / "told", event=replace(PICTURE, condition=SMALL), hidden=8, layers=2, head=8, condition="given")
    save(root / "gan", family="gan", event=PICTURE)
    (root / "x.png").write_bytes(media.png(X, levels_count=5))
    (root / "x.wav").write_bytes(media.wav(CODES, sample_rate=8000, levels_count=256, companding="mu-law"))
    (root / "other.wav").write_bytes(media.wav(CODES[::-1], sample_rate=8000, levels_count=256, companding="mu-law"))
    (root / "short.wav").write_bytes(media.wav(CODES[:25], sample_rate=8000, levels_count=256, companding="mu-law"))
    (root / "fast.wav").write_bytes(media.wav(CODES, sample_rate=16000, levels_count=256, companding="mu-law"))
    (root / "text.png").write_text("no picture")
    Image.fromarray(np.array([[255] * 4, [0] * 4, [255] * 4, [0] * 4], np.uint8)).save(root / "mask.png")
    Image.new("L", (5, 4)).save(root / "wide.png")
    return root


@pytest.fixture
def run(models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command in the folder of the models, its answers as JSON."""
    monkeypatch.chdir(models)
    return command(capsys)


def test_a_completion_is_the_servers_byte_for_byte(run: Command, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "futures.npy"
    (said,) = run("complete", "digits", "x.png", "--rows", "2", "-n", "6", "--seed", "3", "--label", "one", "-o", str(out))
    body = {"x": X.tolist(), "known": {"first": 2}, "n": 6, "seed": 3, "label": "one"}
    local = Local({"digits": models / "digits"}, Settings())
    try:
        served = local.ask("POST", "/v1/models/digits/completions", json=body, headers={"Accept": "application/x-npy"})
    finally:
        local.close()
    assert out.read_bytes() == served.content
    slip = json.loads(served.headers["X-Genmodels-Receipt"])
    assert {**said["receipt"], "model": slip["model"], "version": slip["version"]} == slip
    assert (said["exact"], said["ess"]) == (True, None)


def test_a_mask_keeps_what_is_white(run: Command, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "filled.npy"
    (said,) = run("complete", "digits", "x.png", "--known", "mask.png", "-n", "2", "-o", str(out))
    model, known = load(models / "digits"), torch.zeros(1, 4, 4, dtype=torch.bool)
    known[:, ::2] = True
    assert isinstance(model, Completes)
    wanted = model.complete(torch.from_numpy(X).expand(2, 1, 4, 4), known, seed=0)
    assert np.array_equal(np.load(out), wanted.x.numpy())
    assert wanted.ess is not None and said["ess"] == wanted.ess.tolist()
    assert said["exact"] is False and "importance resampling" in said["method"]


@pytest.mark.parametrize(("file", "arguments", "kept"), [("x.wav", ["--seconds", "0.002"], 16), ("short.wav", [], 25)])
def test_a_sound_is_continued_in_several_ways(
    run: Command, models: Path, tmp_path: Path, file: str, arguments: list[str], kept: int
) -> None:
    said = run("complete", "sounds", file, *arguments, "-n", "2", "--seed", "4", "--label", "0", "-o", str(tmp_path / "s.wav"))
    model, known = load(models / "sounds"), torch.arange(40) < kept
    assert isinstance(model, Completes)
    wanted = model.complete(torch.from_numpy(CODES).expand(2, 40), known, seed=4, y=torch.zeros(2)).x
    assert [Path(one["file"]).name for one in said] == ["s-0.wav", "s-1.wav"]
    for one, codes in zip(said, wanted, strict=True):
        heard, _ = media.levels_from_sound(Path(one["file"]).read_bytes(), SOUND)[0]
        assert np.array_equal(heard, codes.numpy())
        assert np.array_equal(heard[:kept], CODES[:kept])


def test_files_are_classified_by_bayes_rule(run: Command, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = run("classify", "digits", "x.png", "mask.png")
    model = load(models / "digits")
    assert isinstance(model, Classifies)
    with torch.no_grad():
        wanted = model.classify(torch.from_numpy(X)[None])[0]
    assert list(said[0]["log_probs"].values()) == pytest.approx(wanted.tolist(), abs=1e-4)
    assert said[0]["label"] == ["zero", "one", "two"][int(wanted.argmax())]
    with pytest.raises(SystemExit):
        cli.main(["classify", "digits", "x.png"])
    assert said[0]["label"] in capsys.readouterr().out


def test_a_map_shows_where_the_model_is_surprised(run: Command, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "map.png"
    (said,) = run("score", "digits", "x.png", "--label", "1", "--map", str(out))
    (plain,) = run("score", "digits", "x.png", "--label", "1")
    assert said["map"] == str(out)
    assert said["nats"] == pytest.approx(plain["nats"], rel=1e-5)
    model = load(models / "digits")
    assert isinstance(model, Autoregressive)
    with torch.no_grad():
        bits = -model.log_probs(torch.from_numpy(X)[None], torch.tensor([1]))[0, 0] / np.log(2)
    page = np.asarray(Image.open(out).convert("RGB"))
    top, left, side = 36, 2 * 16 + 256, 64
    heat = page[top : top + 256, left : left + 256][side // 2 :: side, side // 2 :: side]
    assert np.abs(heat.astype(int) - surprise.heat(bits.numpy(), float(bits.max())).astype(int)).max() <= 1
    original = page[top : top + 256, 16 : 16 + 256, 0][side // 2 :: side, side // 2 :: side]
    assert np.array_equal(original, media.shown(X[0], 5))


def test_a_sounds_map_is_a_picture(run: Command, tmp_path: Path) -> None:
    run("score", "sounds", "x.wav", "short.wav", "--map", str(tmp_path / "map.png"))
    with Image.open(tmp_path / "map.png") as page:
        assert page.format == "PNG" and page.width > 800


def test_conditions_come_from_files(run: Command, models: Path, tmp_path: Path) -> None:
    """A picture is decoded to the condition's size; an array is taken as it is."""
    small, out = X[:, :2, :2], tmp_path / "s.npy"
    (tmp_path / "c.png").write_bytes(media.png(small, levels_count=5))
    np.save(tmp_path / "c.npy", small)
    for model in ("larger", "told"):
        wanted = load(models / model).sample(3, seed=1, c=torch.from_numpy(small).expand(3, 1, 2, 2)).numpy()
        for file in ("c.png", "c.npy"):
            run("sample", model, "-n", "3", "--seed", "1", "--condition", str(tmp_path / file), "-o", str(out))
            assert np.array_equal(np.load(out), wanted)


@pytest.mark.parametrize("name", ["larger", "filler"])
def test_a_picture_of_the_models_own_size_is_what_the_condition_is_derived_from(
    run: Command, models: Path, tmp_path: Path, name: str
) -> None:
    model, out = load(models / name), tmp_path / "s.npy"
    run("sample", name, "-n", "2", "--condition", "x.png", "-o", str(out))
    c = model.derive(torch.from_numpy(X)[None])
    assert np.array_equal(np.load(out), model.sample(2, seed=0, c=c.expand(2, *c.shape[1:])).numpy())


def test_a_sound_is_drawn_and_continued_under_the_features_of_another(run: Command, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.npy"
    vocoder = load(models / "vocoder")
    c = vocoder.derive(torch.from_numpy(CODES)[None])
    run("sample", "vocoder", "-n", "2", "--seed", "1", "--condition", "x.wav", "-o", str(out))
    assert np.array_equal(np.load(out), vocoder.sample(2, seed=1, c=c.expand(2, *c.shape[1:])).numpy())
    known = torch.arange(40) < 10
    run("complete", "vocoder", "x.wav", "--seconds", "0.00125", "-n", "2", "--label", "1", "--condition", "x.wav", "-o", str(out))
    assert isinstance(vocoder, Completes)
    filled = vocoder.complete(torch.from_numpy(CODES).expand(2, 40), known, seed=0, y=torch.ones(2), c=c.expand(2, *c.shape[1:]))
    assert np.array_equal(np.load(out), filled.x.numpy())


def test_examples_are_scored_under_a_condition_from_a_file(run: Command, models: Path, tmp_path: Path) -> None:
    """One for all, or a row each; where none is given, what the model derives of each."""
    x = np.stack([X, (X + 2) % 5])
    c = np.stack([X[:, :2, :2], X[:, 2:, 2:]])
    for name, value in (("x", x), ("c", c), ("one", c[0])):
        np.save(tmp_path / f"{name}.npy", value)
    for model in ("told", "larger"):
        loaded = load(models / model)
        assert isinstance(loaded, Autoregressive)
        for file, given in (("one", torch.from_numpy(c[:1]).expand(2, 1, 2, 2)), ("c", torch.from_numpy(c))):
            (said,) = run("score", model, str(tmp_path / "x.npy"), "--condition", str(tmp_path / f"{file}.npy"))
            with torch.no_grad():
                assert said["nats"] == pytest.approx(loaded.log_prob(torch.from_numpy(x), c=given).sum().item(), rel=1e-5)
            assert said["protocol"] == "exact p(x|c)"
    (derived,), (given,) = run("score", "larger", "x.png"), run("score", "larger", "x.png", "--condition", "x.png")
    assert derived == given


def test_a_sound_is_classified_under_the_features_of_another(run: Command, models: Path) -> None:
    own, other = (run("classify", "vocoder", "x.wav", "--condition", file)[0]["log_probs"] for file in ("x.wav", "other.wav"))
    assert own == run("classify", "vocoder", "x.wav")[0]["log_probs"] != other


CAN_GAN = "gan (gan) cannot {}; it can: decodes"
MISTAKES = [
    (["complete", "digits", "x.png"],
     "nothing says what is known of the picture: give --rows N of its 4, or --known MASK.png, white = known"),
    (["complete", "digits", "x.png", "--rows", "9"], "known: the first 9 rows; there are 4"),
    (["complete", "digits", "x.png", "--rows", "1", "--known", "mask.png"], "more than one of --known, --rows and --seconds; give one of them"),
    (["complete", "digits", "x.png", "--seconds", "1"], "--seconds 1: digits models image; seconds are of sounds"),
    (["complete", "digits", "x.png", "--known", "wide.png"], "--known wide.png has 5 x 4 pixels; wanted the model's 4 x 4"),
    (["complete", "digits", "x.png", "--known", "text.png"], "text.png: the picture cannot be read: cannot identify image"),
    (["complete", "digits", "text.png", "--rows", "1"], "text.png: the image cannot be read: cannot identify image"),
    (["complete", "digits", "gone.png", "--rows", "1"], "cannot read gone.png: No such file or directory"),
    (["complete", "digits", "x.png", "--rows", "1", "--label", "tow"],
     "unknown label 'tow'; did you mean 'two'? (or a number, 0 to 2)"),
    (["complete", "digits", "x.png", "--rows", "1", "-o", "x.wav"],
     "--out x.wav: completions of digits can be written as .png, .json, .npy"),
    (["complete", "digits", "x.png", "--known", "mask.png", "--temperature", "0.5"],
     "temperature 0.5 for values that are not first in the model's order: importance weights need temperature 1"),
    (["complete", "digits", "x.png", "--rows", "1", "--temperature", "0"], "temperature: Input should be greater than 0 (got 0.0)"),
    (["sample", "digits", "--temperature", "-1"], "temperature: Input should be greater than 0 (got -1.0)"),
    (["sample", "gan", "--temperature", "0.5"], "temperature 0.5 asked of gan; its family gan has none: leave it at 1"),
    (["complete", "sounds", "x.wav", "--rows", "1"], "--rows: sounds models audio; rows and masks are of pictures"),
    (["complete", "sounds", "fast.wav", "--seconds", "0.001"],
     "fast.wav: a sound of 16000 Hz; sounds models 8000 Hz: resample it first"),
    (["complete", "sounds", "x.wav"], 'known is missing: wanted a mask, or {"first": n} for the first n of 40 steps'),
    (["complete", "gan", "x.png", "--rows", "1"], CAN_GAN.format("fill in what is missing")),
    (["classify", "gan", "x.png"], CAN_GAN.format("say p(y|x)")),
    (["classify", "larger", "x.png"], "larger was trained without labels: there are no classes to choose from"),
    (["score", "told", "x.png"], "told weighs examples under a condition of shape (1, 2, 2): give --condition FILE"),
    (["score", "digits", "x.png", "--condition", "x.png"], "--condition x.png: digits takes none: leave it out"),
    (["score", "digits", "x.png", "--map", "map.jpg"], "--map map.jpg: the map is a picture; give a name that ends in .png"),
    (["score", "digits", "text.png"], "text.png: the image cannot be read: cannot identify image"),
    (["sample", "digits", "--condition", "x.png"], "--condition x.png: digits takes none: leave it out"),
    (["sample", "larger"], "larger draws under a condition of shape (1, 2, 2): give --condition FILE"),
    (["sample", "larger", "--condition", "text.png"], "text.png: the picture cannot be read: cannot identify image"),
    (["sample", "vocoder", "--condition", "x.png"], "--condition x.png: the audio cannot be read: Error opening Format not recognised."),
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


def test_the_tree_has_every_family_once_where_its_capabilities_put_it(capsys: pytest.CaptureFixture[str]) -> None:
    from genmodels.zoo import MODELS

    with pytest.raises(SystemExit):
        cli.main(["models", "--json"])
    said = {one["family"]: one for one in map(json.loads, capsys.readouterr().out.splitlines())}
    groups = {
        "gated_pixelcnn": "autoregressive",
        "wavenet": "autoregressive",
        "mixture": "classical",
        "vae": "variational",
        "gan": "implicit",
    }
    assert {name: said[name]["group"] for name in groups} == groups
    assert said["wavenet"]["temperature"] == "the logits of every value"
    assert said["gan"]["temperature"] is None
    with pytest.raises(SystemExit):
        cli.main(["models"])
    text = capsys.readouterr().out
    leaves = [line.split("─ ")[1].split("  ")[0] for line in text.splitlines() if "─ " in line and "  " in line.split("─ ")[1]]
    assert sorted(leaves) == sorted(MODELS)
    assert max(map(len, text.splitlines())) <= 80
