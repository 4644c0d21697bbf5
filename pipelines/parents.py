"""A trained model inside another one: where a recipe's model.parent is found, what stands for it in a fingerprint, and how its weights come in."""

from pathlib import Path
from typing import Any

from genmodels import artifact
from genmodels.core import GenerativeModel
from pipelines.errors import Refused
from pipelines.recipe import Recipe, put
from serve import catalogue
from serve.catalogue import Located

PARENT = "parent"


def located(recipe: Recipe) -> Located | None:
    """Where the parent's artifact is: a folder, a URL or models:/name@alias; None where the recipe names none. Raises Refused where there is none."""
    asked = recipe.model.config.get(PARENT)
    if not isinstance(asked, str):
        return None
    try:
        return catalogue.resolve(asked, storage=recipe.storage)
    except ValueError as error:
        raise Refused(f"recipe {recipe.name}: model.parent: {error}") from None


def described(recipe: Recipe) -> dict[str, Any]:
    """The model's settings for a fingerprint: the parent by its digest, wherever it lies and whatever it is called."""
    found = located(recipe)
    return recipe.model.config if found is None else {**recipe.model.config, PARENT: found.digest}


def pinned(recipe: Recipe) -> Recipe:
    """The recipe with its parent's artifact named: an alias may move while a training runs, and workers have no registry."""
    found = located(recipe)
    if found is None:
        return recipe
    return Recipe.model_validate(put(recipe.model_dump(by_alias=True), f"model.{PARENT}", found.artifact))


def lineage(recipe: Recipe) -> dict[str, Any]:
    """What a model's record says of its parent."""
    found = located(recipe)
    return {} if found is None else {PARENT: {"model": recipe.model.config[PARENT], "digest": found.digest}}


def embedded(recipe: Recipe) -> tuple[dict[str, Any], GenerativeModel | None]:
    """The model's settings with the parent's family, event and settings in place of its name, and the parent itself. Raises Refused where it cannot
    be had, or is not the one that was registered."""
    found = located(recipe)
    if found is None:
        return recipe.model.config, None
    try:
        folder = Path(catalogue.fetch(found))
        about, model = artifact.read(folder), artifact.load(folder)
    except ValueError as error:
        raise Refused(f"recipe {recipe.name}: model.parent: {error}") from None
    parent = {"family": about.family, "event": about.event.to_json(), "config": dict(about.config)}
    return {**recipe.model.config, PARENT: parent}, model
