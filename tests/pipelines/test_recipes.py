"""Every shipped recipe is checked, builds its model and takes real steps; what the README and CONTRIBUTING name is there and runs."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from genmodels.core import Batch, Event, GenerativeModel, Iterated, Progressive, Trained
from genmodels.iterate import Iteration
from genmodels.noise import Noise
from genmodels.train import TrainConfig, fit
from genmodels.zoo import build
from pipelines import recipe as recipes
from pipelines.recipe import Recipe

ROOT = Path(__file__).parents[2]
CLASSES = {"tones": 12}
COLUMNS = {"diabetes": 10, "breast_cancer": 30, "iris": 4}


def event(recipe: Recipe) -> Event:
    """What the recipe's data section makes of its source, which has ten classes unless said otherwise."""
    classes = CLASSES.get(recipe.data.source, 10)
    if image := recipe.data.image:
        return Event(modality="image", shape=(image.channels, image.height, image.width), levels=image.levels, classes=classes)
    if table := recipe.data.table:
        columns = Event(modality="table", shape=(COLUMNS[recipe.data.source],), levels=0)
        levels = 2 if table.kind == "classification" else 0
        return columns if table.target is None else Event(modality="table", shape=(1,), levels=levels, condition=columns)
    audio = recipe.data.audio
    assert audio is not None
    companding = "mu-law" if audio.levels == 256 else None
    steps = round(audio.seconds * audio.sample_rate)
    return Event(
        modality="audio", shape=(steps,), levels=audio.levels, sample_rate=audio.sample_rate, companding=companding, classes=classes
    )


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_trains_and_draws(name: str) -> None:
    recipe = recipes.load(name)
    assert recipe.name == name and recipe.about, "a recipe is named as its file, and says what it makes"
    what = event(recipe)
    model = build(recipe.model.family, what, **recipe.model.config)
    rows = 4
    noise = Noise(0, position=range(rows))
    x = (noise.uniform("x", what.shape) * what.levels).to(torch.uint8) if what.levels else noise.normal("x", what.shape)
    labels = torch.arange(rows) if what.classes else None
    given = noise.normal("c", what.condition.shape) if what.condition else None
    before = [parameter.detach().clone() for parameter in model.parameters()]

    def batches(step: int) -> Batch:
        return Batch(x=x, y=labels, c=given, position=torch.arange(rows) + rows * step, step=step)

    learn(recipe, model, batches)
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    model.eval()
    with torch.no_grad():
        temperature = torch.ones(rows)
        if isinstance(model, Progressive):
            state = model.advance(model.begin(noise, y=labels, c=given, temperature=temperature), 3)
            drawn = model.read(state)
        else:
            drawn = model.draw(noise, y=labels, c=given, temperature=temperature)
    assert drawn.shape == (rows, *what.shape) and (bool(drawn.isfinite().all()) if what.levels == 0 else int(drawn.max()) < what.levels)


def learn(recipe: Recipe, model: GenerativeModel, batches: Callable[[int], Batch]) -> None:
    """As many steps as every objective needs for two turns, or two passes over one batch."""
    if isinstance(model, Iterated):
        Iteration(model, TrainConfig(steps=2)).run(lambda step: [batches(0)], until=2)
        return
    assert isinstance(model, Trained)
    overrides = {key: value.model_dump(exclude_none=True) for key, value in recipe.train.objectives.items()}
    steps = 2 * max(objective.every for objective in model.objectives())
    fit(model, TrainConfig(steps=steps, batch_size=4, lr=recipe.train.lr, objectives=overrides, ema=recipe.train.ema), batches)


def test_the_recipes_of_the_readme_are_shipped() -> None:
    text = (ROOT / "README.md").read_text()
    assert set(recipes.names()) == set(re.findall(r"^\| `([a-z]+(?:-[a-z0-9]+)+)` \|", text, flags=re.MULTILINE))


def test_every_command_that_the_readme_names_exists() -> None:
    from pipelines.cli import app

    known = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
    text = "".join((ROOT / page).read_text() for page in ("README.md", "CONTRIBUTING.md", "docs/sampling.md"))
    named = set(re.findall(r"genmodels ([a-z]+)(?= )", text)) & set(
        re.findall(r"(?:^|`|\s{4})genmodels ([a-z]+)", text, flags=re.MULTILINE)
    )
    assert named and named <= known, named - known
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"(?:^|`|\s{4})make ([a-z-]+)", text, flags=re.MULTILINE)) <= targets


def test_the_recipe_that_the_readme_explains_is_a_recipe(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        path = tmp_path / "readme.yaml"
        path.write_text(block)
        recipes.load(str(path))


@pytest.mark.parametrize("page", ["README.md", "docs/sampling.md"])
def test_the_python_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        if "Client(" not in block:  # the client's block needs an endpoint: tests/serve has it
            exec(compile(block, page, "exec"), {})
