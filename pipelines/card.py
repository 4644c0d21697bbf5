"""The model card: what lies in a model folder, for whoever opens it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from genmodels.artifact import Artifact
from genmodels.evaluate import Score
from pipelines.recipe import Recipe

TEMPLATES = Path(__file__).parent / "templates"


def text(recipe: Recipe, artifact: Artifact, scores: tuple[Score, ...]) -> str:
    """The card as Markdown."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    environment.filters["cell"] = lambda value: str(value).replace("|", "\\|").replace("\n", " ")
    return environment.get_template("card.md").render(
        name=recipe.registered_name,
        about=" ".join(recipe.about.split()),
        artifact=artifact,
        sounds=artifact.event.modality == "audio",
        scores=scores,
        figure=figure,
        lineage=[(key, value) for key, value in flat(artifact.lineage) if not key.startswith("recipe.")],
    )


def figure(score: Score) -> str:
    """1.753 ± 0.012 bits/dim."""
    error = f" ± {digits(score.stderr)}" if score.stderr is not None else ""
    return f"{digits(score.value)}{error} {score.unit}".strip()


def digits(value: float) -> str:
    """Three decimals, or two significant digits where those would show little."""
    return f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.2g}"


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A nested mapping as dotted keys."""
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner
