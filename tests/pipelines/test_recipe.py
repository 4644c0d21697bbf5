"""A recipe is checked to the last key: every mistake is one line that names the key, what was got and what is wanted."""

from pathlib import Path
from typing import Any

import pytest

from pipelines import recipe as recipes
from pipelines.errors import Refused

PLAIN: dict[str, Any] = {
    "name": "plain",
    "data": {"source": "digits", "image": {"height": 8, "width": 8, "levels": 17}},
    "model": {"family": "gated_pixelcnn"},
    "train": {"steps": 10},
}


def changed(key: str, value: Any) -> dict[str, Any]:
    return recipes.put(PLAIN, key, value)


TUNED = {"search": {"space": {"train.lr": {"loguniform": [1e-4, 1e-2]}}}}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("trian", {}, "trian: unknown key 'trian'; did you mean 'train'?"),
        ("data.sorce", "x", "data.sorce: unknown key 'sorce'; did you mean 'source'?"),
        ("data.image.hight", 8, "data.image.hight: unknown key 'hight'; did you mean 'height'?"),
        ("data.label", {"bye": "folder"}, "data.label.bye: unknown key 'bye'; did you mean 'by'?"),
        ("data.split.tran", 0.8, "data.split.tran: unknown key 'tran'; did you mean 'train'?"),
        ("model.hiden", 8, "model.hiden: unknown key 'hiden'; did you mean 'hidden'?"),
        ("train.stepz", 8, "train.stepz: unknown key 'stepz'; did you mean 'steps'?"),
        ("train.schedule.warmpu", 8, "train.schedule.warmpu: unknown key 'warmpu'; did you mean 'warmup'?"),
        ("train.objectives", {"nll": {"lrr": 1}}, "train.objectives.nll.lrr: unknown key 'lrr'; did you mean 'lr'?"),
        ("tune", {**TUNED, "trails": 3}, "tune.trails: unknown key 'trails'; did you mean 'trials'?"),
        ("tune", {"search": {**TUNED["search"], "spice": 3}}, "tune.search.spice: unknown key 'spice'; did you mean 'space'?"),
        ("evaluate", {"iwea": 3}, "evaluate.iwea: unknown key 'iwea'; did you mean 'iwae'?"),
        ("register", {"modle": "x"}, "register.modle: unknown key 'modle'; did you mean 'model'?"),
        ("register", {"gate": {"rul": "x"}}, "register.gate.rul: unknown key 'rul'; did you mean 'rule'?"),
        ("serve", {"replica": 1}, "serve.replica: unknown key 'replica'; did you mean 'replicas'?"),
        ("model.family", "gatedpixelcnn", "model.family: unknown family 'gatedpixelcnn'; did you mean 'gated_pixelcnn'?"),
        ("model.family", "wavenet", "model.family: wavenet models audio; the recipe's data is image"),
        ("train.steps", "many", "train.steps: Input should be a valid integer, unable to parse string as an integer (got 'many')"),
        ("train.steps", 0, "train.steps: Input should be greater than or equal to 1 (got 0)"),
        ("train.lr", -1, "train.lr: Input should be greater than 0 (got -1)"),
        ("data.image.levels", 300, "data.image.levels: Input should be less than or equal to 256 (got 300)"),
        ("data.audio", {"sample_rate": 8000, "seconds": 1}, "data: got image and audio of image, audio, table; wanted one of them"),
        ("data.image", None, "data: got none of image, audio, table; wanted one of them"),
        ("data.split", {"train": 0.9}, "data.split: train + valid + test = 1.1; wanted 1"),
        ("data.label", {"by": "pattern"}, "data.label: by: pattern and a pattern go together"),
        ("data.label", {"by": "pattern", "pattern": "(a)(b)"}, "data.label: pattern '(a)(b)' has 2 groups; wanted one, around the label"),
        (
            "tune",
            {"search": {"space": {"train.lr": {"loguniformly": [1, 2]}}}},
            "tune.search.space.train.lr: unknown distribution 'loguniformly'; did you mean 'loguniform'?",
        ),
        ("tune", {"search": {"space": {"train.lrate": {"choice": [1]}}}}, "train.lrate: unknown key 'lrate'; did you mean 'lr'?"),
        ("tune", {"search": {"space": {"train.lr": {"uniform": [1]}}}}, "tune.search.space.train.lr: uniform of [1]; wanted a list of 2"),
    ],
)
def test_every_mistake_is_named_on_one_line(key: str, value: Any, message: str) -> None:
    with pytest.raises(Refused) as refusal:
        recipes.check(changed(key, value))
    text = str(refusal.value)
    assert "\n" not in text
    assert text.startswith("recipe plain: ")
    assert text == f"recipe plain: {message}"


def test_a_missing_section_is_named() -> None:
    with pytest.raises(Refused, match=r"^recipe plain: train: missing$"):
        recipes.check({key: value for key, value in PLAIN.items() if key != "train"})


def test_changes_are_checked_as_the_file_is(tmp_path: Path) -> None:
    file = tmp_path / "plain.yaml"
    file.write_text(
        "name: plain\ndata: {source: digits, image: {height: 8, width: 8}}\nmodel: {family: gated_pixelcnn}\ntrain: {steps: 5}\n"
    )
    assert recipes.load(str(file), ["train.lr=1e-3", "train.schedule.decay=cosine"]).train.lr == 1e-3
    with pytest.raises(Refused, match="unknown key 'lrr'"):
        recipes.load(str(file), ["train.lrr=1"])
    with pytest.raises(Refused, match=r"^--set train.lr: wanted KEY=VALUE, as in --set train.steps=100$"):
        recipes.load(str(file), ["train.lr"])
    with pytest.raises(Refused, match=r"^--set data.image={height: 8: {height: 8 is no YAML: expected ',' or '}'"):
        recipes.load(str(file), ["data.image={height: 8"])
    with pytest.raises(Refused, match=r"data: wanted a section of keys and values \(got 'x'\)$"):
        recipes.load(str(file), ["data=x"])


def test_a_file_that_is_no_recipe(tmp_path: Path) -> None:
    for name, content, said in (
        ("broken", b"a: [1\n", r"is no YAML: expected ',' or '\]', but got '<stream end>' \(line 2, column 1\)$"),
        ("tabs", b"name: a\n\tstorage: x\n", r"\(line 2, column 1\); indent with spaces, YAML takes no tabs$"),
        ("list", b"- 1\n", "holds a list; wanted a mapping with name, data, model, train$"),
        ("text", b"some words\n", "holds a text; wanted a mapping"),
        ("empty", b"", "holds nothing; wanted a mapping"),
        ("bytes", b"\xff\xfe\x00", r"bytes\.yaml is no text in UTF-8; wanted a recipe in YAML$"),
    ):
        (tmp_path / f"{name}.yaml").write_bytes(content)
        with pytest.raises(Refused, match=said):
            recipes.load(str(tmp_path / f"{name}.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(Refused, match=r"folder\.yaml is a folder; wanted the recipe's file$"):
        recipes.load(str(tmp_path / "folder.yaml"))
    with pytest.raises(Refused, match="no recipe at"):
        recipes.load(str(tmp_path / "none.yaml"))
    with pytest.raises(Refused, match=r"unknown recipe 'digits-pixelcn'; did you mean 'digits-pixelcnn'\?"):
        recipes.load("digits-pixelcn")


def test_dump_is_taken_back_unchanged() -> None:
    recipe = recipes.check({**PLAIN, "tune": TUNED, "register": {"gate": {"rule": "always"}}})
    assert recipes.check(recipes.dump(recipe)) == recipe
