"""The evaluate stage: every example once, baselines beside it, samples as the model draws them, and a model folder that vouches for the rest."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from genmodels import artifact
from genmodels import evaluate as scoring
from genmodels.core import Batch, Event
from genmodels.noise import Noise
from genmodels.zoo import build
from pipelines import card, conditions, features, sheet, summary
from pipelines import recipe as recipes
from pipelines.evaluate import evaluate, output
from pipelines.memory import nearest
from pipelines.recipe import Recipe
from pipelines.records import Checkpoint, Scores, Shards
from pipelines.shards import examples
from pipelines.storage import read_bytes, upload
from tests.pipelines import small

Made = tuple[Recipe, Checkpoint, Shards, Scores]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("evaluate")
    shards = small.digits(root)
    recipe, checkpoint = small.recipe(root), small.checkpoint(root, shards)
    return recipe, checkpoint, shards, evaluate(recipe, checkpoint, shards)


def test_the_test_split_is_scored_whole_beside_its_baselines(made: Made) -> None:
    _, checkpoint, shards, scores = made
    model = artifact.load(checkpoint.uri)
    baselines = scoring.histograms(shards.event, examples(shards, "train", 600))
    whole = scoring.evaluate(model, examples(shards, "test", 150), split="test", name="gated_pixelcnn", baselines=baselines)
    for found, expected in zip(scores.scores, whole, strict=False):
        assert found.value == pytest.approx(expected.value, abs=1e-6)
        assert (found.model, found.name, found.protocol, found.n) == (expected.model, expected.name, expected.protocol, 150)
    valid = scores.score("valid")
    assert valid is not None and (valid.name, valid.n, valid.protocol) == ("bits/dim", 100, "exact p(x|y)")
    by_name = {(score.model, score.name): score.value for score in scores.scores if score.split == "test"}
    assert by_name["class_histogram", "bits/dim"] < by_name["histogram", "bits/dim"] < np.log2(17)


def test_a_finished_evaluation_is_read_not_repeated(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, checkpoint, shards, scores = made
    before = {path: path.stat().st_mtime_ns for path in Path(recipe.root).rglob("*") if path.is_file()}
    assert evaluate(recipe, checkpoint, shards) == scores
    assert "done already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in Path(recipe.root).rglob("*") if path.is_file()} == before


def test_a_half_finished_evaluation_is_done_again_with_the_same_bytes(made: Made) -> None:
    recipe, checkpoint, shards, scores = made
    Path(scores.uri, "scores.json").unlink()
    Path(scores.artifact, "model.json").write_text("{")
    assert not output(recipe, checkpoint, shards).done
    assert evaluate(recipe, checkpoint, shards) == scores
    assert artifact.verify(Path(scores.artifact)) == scores.digest


def test_the_fingerprint_follows_what_matters_and_no_place(made: Made, tmp_path: Path) -> None:
    recipe, checkpoint, shards, _ = made
    name = output(recipe, checkpoint, shards).fingerprint
    assert output(small.recipe(tmp_path), checkpoint, shards).fingerprint == name
    assert output(small.recipe(tmp_path, "evaluate.seed=1"), checkpoint, shards).fingerprint != name
    other = small.checkpoint(tmp_path, shards, seed=1)
    assert output(recipe, other, shards).fingerprint != name


def test_an_object_store_gets_the_same_bytes_as_a_disk(made: Made) -> None:
    recipe, checkpoint, shards, scores = made
    upload(Path(checkpoint.uri), "memory://bucket/trained")
    remote = recipes.check({**recipes.dump(recipe), "storage": "memory://bucket/runs"})
    found = evaluate(remote, replace(checkpoint, uri="memory://bucket/trained"), shards)
    assert found.artifact.startswith("memory://bucket/runs/models/small-")
    assert (found.scores, found.digest, found.fingerprint) == (scores.scores, scores.digest, scores.fingerprint)
    assert read_bytes(found.samples) == Path(scores.samples).read_bytes()


def test_the_model_folder_carries_scores_samples_and_a_card(made: Made, tmp_path: Path) -> None:
    _, checkpoint, _, scores = made
    folder = Path(scores.artifact)
    found = artifact.read(folder)
    assert found.digest == scores.digest != checkpoint.digest
    assert [score["value"] for score in found.scores] == [score.value for score in scores.scores]
    assert found.lineage["trained"] == checkpoint.digest
    assert str(tmp_path.parent) not in (folder / "model.json").read_text()
    assert torch.equal(artifact.load(folder).sample(2, seed=1), artifact.load(checkpoint.uri).sample(2, seed=1))
    text = (folder / "README.md").read_text()
    for score in scores.scores:
        assert f"| {score.model} | {score.name} | {card.figure(score)} |" in text
    assert "exact p(x\\|y) minus class_histogram's exact p(x\\|y)" in text
    assert (folder / "samples.png").read_bytes() == Path(scores.samples).read_bytes()


def test_the_cards_own_code_runs(made: Made) -> None:
    folder = Path(made[3].artifact)
    code = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    scope: dict[str, Any] = {}
    exec(code.replace("path/to/this/folder", str(folder)), scope)
    assert scope["x"].shape == (16, 1, 8, 8) and scope["nats"].shape == (16,)


def test_the_sheet_shows_the_samples_of_the_stated_seed_a_row_for_each_label(made: Made) -> None:
    recipe, checkpoint, shards, scores = made
    labels, columns = sheet.layout(shards.event, recipe.evaluate.samples)
    assert labels is not None and labels[: columns + 1] == [0, 0, 1] and columns == 2
    x = artifact.load(checkpoint.uri).sample(20, seed=0, y=labels).numpy()
    shown = Image.open(scores.samples)
    alone = Image.open(io.BytesIO(sheet.pictures(x, shards.event, columns)))
    margin = shown.width - alone.width
    assert margin > 0 and shown.height == alone.height
    assert np.array_equal(np.asarray(shown.convert("L"))[:, margin:], np.asarray(alone.convert("L")))


def test_a_model_with_a_condition_is_asked_under_those_of_test_examples(made: Made, tmp_path: Path) -> None:
    shards = made[2]
    recipe, checkpoint = small.recipe(tmp_path), small.checkpoint(tmp_path, shards, condition="smaller")
    scores = evaluate(recipe, checkpoint, shards)
    model, test = artifact.load(scores.artifact), next(examples(shards, "test", 150))
    assert test.y is not None and {score.protocol for score in scores.scores if score.name == "nll"} >= {"exact p(x|y,c)", "exact p(x|y)"}
    labels, columns = sheet.layout(shards.event, recipe.evaluate.samples)
    assert labels is not None
    first = [(test.y == label).nonzero()[i, 0] for label in range(10) for i in range(2)]
    x = model.sample(20, seed=recipe.evaluate.seed, y=labels, c=test.x[torch.stack(first)][..., ::2, ::2]).numpy()
    names = sheet.row_names(labels, columns, shards.labels)
    assert Path(scores.samples).read_bytes() == sheet.pictures(x, shards.event, columns, names=names)


def test_conditions_come_again_where_examples_are_few_and_bring_their_labels(made: Made) -> None:
    shards = made[2]
    model, test = build("gated_pixelcnn", shards.event, condition="smaller"), next(examples(shards, "test", 150))
    labels, c = conditions.asked(model, shards, "test", 160, None)
    assert test.y is not None and c is not None
    assert labels == [*test.y.tolist(), *test.y[:10].tolist()]
    assert torch.equal(c, torch.cat([test.x, test.x[:10]])[..., ::2, ::2])
    assert conditions.asked(build("gated_pixelcnn", shards.event), shards, "test", 4, [1, 2, 3, 4]) == ([1, 2, 3, 4], None)
    given = Event.from_json({**shards.event.to_json(), "condition": model.event.to_json()["condition"]})
    with pytest.raises(ValueError, match=r"^condition missing; this model's condition is: image 1x4x4, 17 levels$"):
        conditions.asked(build("gated_pixelcnn", given, condition="given"), shards, "test", 4, None)


def test_a_sheet_of_one_sample_a_class_is_ten_wide() -> None:
    event = Event(modality="image", shape=(1, 8, 8), levels=17, classes=10)
    labels, columns = sheet.layout(event, 16)
    assert (labels, columns) == (list(range(10)), 10)
    assert sheet.row_names(labels, columns, small.LABELS) == []
    assert sheet.row_names(*sheet.layout(event, 20), small.LABELS) == list(small.LABELS)
    assert sheet.layout(Event(modality="image", shape=(1, 8, 8), levels=17), 64) == (None, 8)


def test_labels_of_any_alphabet_are_written_out() -> None:
    pages = [Image.new("L", (24, 24)) for _ in range(5)]
    for page, letter in zip(pages, "Äжλo\uffff", strict=True):
        ImageDraw.Draw(page).text((4, 4), letter, fill=255, font=sheet.letters(13))
    assert len({page.tobytes() for page in pages}) == 5  # none of them is the box of a letter that the font lacks


def test_scoring_a_part_is_said(made: Made, tmp_path: Path) -> None:
    _, checkpoint, shards, _ = made
    scores = evaluate(small.recipe(tmp_path, "evaluate.max_examples=40"), checkpoint, shards)
    own = scores.score("test")
    assert own is not None and own.n == 40
    assert own.protocol == "exact p(x|y), the first 40 of 150 in hash order"


def test_a_bound_names_its_draws_and_is_compared_with_exact_baselines(tmp_path: Path) -> None:
    shards = small.digits(tmp_path, rows={"train": 100, "valid": 20, "test": 30})
    checkpoint = small.checkpoint(tmp_path, shards, family="vae")
    scores = evaluate(small.recipe(tmp_path, "evaluate.iwae=5", "evaluate.samples=10", family="vae"), checkpoint, shards)
    own, valid = scores.score("test"), scores.score("valid")
    assert own is not None and (own.name, own.protocol) == ("bits/dim bound", "IWAE_5 lower bound of p(x|y)")
    assert valid is not None and valid.protocol == "IWAE_5 lower bound of p(x|y)"
    pair = next(score for score in scores.scores if score.name == "paired difference")
    assert pair.protocol == "IWAE_5 lower bound of p(x|y) minus class_histogram's exact p(x|y)"


@pytest.mark.parametrize("collapsed", [False, True])
def test_a_collapsed_code_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], collapsed: bool) -> None:
    shards = small.digits(tmp_path, rows={"train": 100, "valid": 20, "test": 30})
    checkpoint = small.checkpoint(tmp_path, shards, family="vae", latent=4, network="dense", semi_supervised=True)
    if collapsed:
        model: Any = artifact.load(checkpoint.uri)
        torch.nn.init.zeros_(model.encoder.leave.weight)
        torch.nn.init.zeros_(model.encoder.leave.bias)
        said = artifact.read(Path(checkpoint.uri))
        artifact.save(model, Path(checkpoint.uri), family="vae", prepare=said.prepare, labels=said.labels)
    scores = evaluate(small.recipe(tmp_path, "evaluate.iwae=2", "evaluate.samples=10", family="vae"), checkpoint, shards)
    units, divergence = scores.score("test", "active units"), scores.score("test", "KL a latent")
    assert units is not None and divergence is not None and units.protocol == "Cov_x(E[z|x]) > 0.01, of 4 latents"
    assert (units.value == 0) == (divergence.value < 1e-6) == collapsed
    told = capsys.readouterr().err
    assert ("posterior collapse: 0 of 4 latents are active, and all of them together say 0.000 nats" in told) == collapsed
    summary.show({"evaluate": scores})
    assert "Cov_x(E[z|x]) > 0.01, of 4 latents" in capsys.readouterr().out, "brackets are no markup"
    right = scores.score("test", "accuracy")
    assert right is not None and (right.n, right.protocol) == (30, "likeliest label by the recognition network q(y|x)")


def test_sounds_are_scored_without_their_padding_and_can_be_heard(tmp_path: Path) -> None:
    shards = small.sounds(tmp_path)
    checkpoint = small.checkpoint(tmp_path, shards, family="wavenet", stacks=1, layers=3, residual=4, skip=4)
    recipe = small.recipe(tmp_path, "evaluate.samples=6", family="wavenet")
    scores = evaluate(recipe, checkpoint, shards)
    own = scores.score("test")
    assert own is not None and own.protocol == "exact p(x|y), all nats over all 4500 valid steps"
    batch = next(examples(shards, "test", 12))
    model: Any = artifact.load(checkpoint.uri)
    nats = model.log_prob(batch.x, batch.y, length=batch.length).detach()
    assert own.value == pytest.approx(-nats.double().sum().item() / 4500 / np.log(2), rel=1e-6)
    x = model.sample(6, seed=0, y=[0, 0, 1, 1, 2, 2]).numpy()
    assert Path(scores.samples).read_bytes() == sheet.wav(sheet.joined(x, shards.event), shards.event)
    folder = Path(scores.artifact)
    assert {"samples.wav", "samples.png", "README.md"} <= {path.name for path in folder.iterdir()}
    assert "[samples.wav](samples.wav)" in (folder / "README.md").read_text()


def test_a_model_without_likelihood_is_compared_in_named_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = "gan"
    monkeypatch.setattr(features, "STEPS", 60)
    shards = small.digits(tmp_path, rows={"train": 300, "valid": 80, "test": 90})
    checkpoint = small.checkpoint(tmp_path, shards, family=family)
    recipe = small.recipe(tmp_path, "evaluate.generated=90", family=family)
    scores = evaluate(recipe, checkpoint, shards)
    test = [score for score in scores.scores if score.split == "test"]
    assert [(score.model, score.name) for score in test] == [
        (family, "Frechet distance"),
        ("training examples", "Frechet distance"),
        (family, "Frechet distance"),
        ("training examples", "Frechet distance"),
        ("classifier", "accuracy"),
    ]
    pca, net = features.components(recipe.root, shards), features.classifier(recipe.root, shards)
    assert net is not None and net.accuracy == test[-1].value > 0.3
    assert test[0].protocol == f"Frechet distance in {pca.title}, n_real 90, n_fake 90"
    assert test[2].protocol == f"Frechet distance in {net.title}, n_real 90, n_fake 90"
    drawn = artifact.load(checkpoint.uri).sample(90, seed=0)
    real = torch.cat([batch.x for batch in examples(shards, "test", 90)])
    assert test[0].value == pytest.approx(scoring.frechet(pca(real), pca(drawn)), rel=1e-6)
    assert test[2].value == pytest.approx(scoring.frechet(net(real), net(drawn)), rel=1e-4)
    assert test[1].value < test[0].value  # an untrained generator is further away than other real pictures
    valid = scores.score("valid")
    assert valid is not None and valid.protocol.endswith(f"{pca.digest}, n_real 80, n_fake 80")


def test_feature_spaces_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "STEPS", 150)
    shards = small.digits(tmp_path)
    steps: list[int] = []
    net = features.classifier(str(tmp_path), shards, lambda done, total: steps.append(done))
    assert net is not None and net.accuracy > 0.8 and len(steps) == 150 and net.n == 150
    again = features.classifier(str(tmp_path), shards, lambda done, total: steps.append(done))
    assert again is not None and (again.digest, again.accuracy) == (net.digest, net.accuracy) and len(steps) == 150
    x = next(examples(shards, "test", 5)).x
    assert torch.equal(net(x), again(x)) and net(x).shape == (5, 64)
    assert features.components(str(tmp_path), shards).digest == features.components(str(tmp_path), shards).digest
    assert features.classifier(str(tmp_path), small.digits(tmp_path, seed=1)).digest != net.digest  # pyright: ignore[reportOptionalMemberAccess]


def test_nearest_neighbours_are_those_of_brute_force_and_copies_lie_at_zero() -> None:
    event = Event(modality="image", shape=(1, 3, 3), levels=256)
    draw = Noise(0, position=range(60)).uniform("x", (1, 3, 3))
    train = (draw[:40] * 256).to(torch.uint8)
    samples, test = (draw[40:50] * 256).to(torch.uint8), (draw[50:] * 256).to(torch.uint8)
    samples[3], samples[7] = train[11], train[39]
    batches = [Batch(x=part, position=torch.arange(len(part))) for part in train.split(16)]
    found = nearest("model", samples.numpy(), Batch(x=test, position=torch.arange(10)), batches, event, pairs=3)
    distance = ((samples[:, None].double() - train.double()).square().flatten(2).mean(-1)).sqrt() / 255
    assert found.scores[0].value == pytest.approx(distance.min(1).values.median().item(), abs=1e-12)
    assert found.scores[1].model == "test examples" and found.scores[1].n == 10
    assert found.scores[2].value == pytest.approx(0.2) and found.scores[2].n == 10
    assert found.samples[:2] == [3, 7]
    assert np.array_equal(found.examples[:2], train[[11, 39]].numpy())
    assert np.array_equal(found.examples[2], train[distance[found.samples[2]].argmin()].numpy())


def test_sounds_are_drawn_as_spectrograms() -> None:
    event = Event(modality="audio", shape=(4000,), levels=256, sample_rate=8000, companding="mu-law")
    wave = np.sin(2 * np.pi * 1000 * np.arange(4000) / 8000)
    power = sheet.spectrogram(wave)
    assert power.shape[0] == 129 and power.max() == pytest.approx(0)
    assert set(power.argmax(0)) == {round(1000 / 8000 * 256)}
    levels = np.rint((wave + 1) / 2 * 255).astype(np.uint8)[None].repeat(3, 0)
    joined = sheet.joined(levels, event)
    assert len(joined) == 3 * 4000 + 2 * 1200
    assert sheet.wav(joined, event)[:4] == b"RIFF"
    drawn = Image.open(io.BytesIO(sheet.sounds(levels, event, ["a <b> $x$", "c"])))
    assert drawn.width > 600 and len(set(drawn.convert("L").tobytes())) > 20


def test_scores_are_plain_json(made: Made) -> None:
    value = json.loads(Path(made[3].uri, "scores.json").read_text())
    assert set(value["scores"][0]) == {"model", "name", "value", "unit", "protocol", "split", "n", "stderr"}
