"""The report of a run: one HTML file that needs nothing else, no network and no script, with what was learnt, from what, and how well."""

import base64
from collections.abc import Mapping, Sequence
from importlib.metadata import version as installed
from typing import Any

import yaml

from genmodels.core import Iterated
from genmodels.evaluate import Score
from genmodels.zoo import MODELS
from pipelines import card, chart, console, journal, summary, trials
from pipelines import recipe as recipes
from pipelines.fingerprint import fingerprint
from pipelines.log import numbers
from pipelines.recipe import Recipe
from pipelines.records import Checkpoint, Deployment, Scores, Shards, Version
from pipelines.shards import manifest
from pipelines.storage import exists, join, read_bytes, write_bytes
from serve.documentation import zeros

VERSION = 1
"""Raised when the same records would give another page than before."""

SHEETS = 8
"""Sheets drawn during training that are shown, evenly taken."""

_TYPES = {"png": "image/png", "wav": "audio/wav"}
Pairs = list[tuple[str, Any]]


def write(recipe: Recipe, shards: Shards, checkpoint: Checkpoint, scores: Scores, version: Version, deployment: Deployment) -> str:
    """Writes the report of these records, if it is not there yet -> its URI."""
    settings = recipes.dump(recipe)
    inputs = (shards.fingerprint, scores.digest, version.fingerprint, version.champion, version.reason, deployment.receipt)
    uri = join(recipe.root, "reports", f"{recipe.name}-{fingerprint('report', VERSION, settings, *inputs)}", "report.html")
    if exists(uri):
        console.done("report", uri)
        return uri
    with console.stage("report", total=1) as bar:
        write_bytes(uri, html(recipe, shards, checkpoint, scores, version, deployment).encode())
        bar.to(1)
    return uri


def html(recipe: Recipe, shards: Shards, checkpoint: Checkpoint, scores: Scores, version: Version, deployment: Deployment) -> str:
    """The page. Whatever comes from a recipe, a label or a file is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(card.TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    lines, sounds = journal.read(checkpoint.log), shards.event.modality == "audio"
    about, found = manifest(shards), trials.search(recipe, shards)
    return environment.get_template("report.html").render(
        name=recipe.registered_name,
        about=" ".join(recipe.about.split()),
        family=recipe.model.family,
        event=shards.event,
        rows=shards.rows,
        steps=checkpoint.steps,
        version=version.version,
        champion=version.champion,
        head=headline(recipe.model.family, scores),
        sounds=embedded(scores.samples) if sounds else None,
        samples=embedded(join(scores.uri, "samples.png")),
        samples_caption=_samples_caption(recipe, shards),
        sheets=sheets(lines),
        curves=curves(lines),
        training=_training(recipe, checkpoint, lines),
        trials=trials.shown(found, scores.score("valid")) if found else None,
        scores=scores.scores,
        digits=card.digits,
        memory=memorisation(recipe.model.family, scores),
        neighbours=embedded(join(scores.uri, "neighbours.png")),
        data=data_card(shards, about),
        label_chart=_labels_chart(shards, about),
        level_chart=_levels_chart(shards, about),
        commands=_commands(version, shards, recipe.storage),
        answer=_answer(deployment),
        lineage=_lineage(recipe, shards, checkpoint, scores, version),
        recipe=yaml.safe_dump(recipes.dump(recipe), sort_keys=False, allow_unicode=True),
    )


def embedded(uri: str) -> str | None:
    """A file as a data: URI; None where there is none."""
    if not exists(uri):
        return None
    return f"data:{_TYPES[uri.rpartition('.')[2]]};base64,{base64.b64encode(read_bytes(uri)).decode()}"


def headline(family: str, scores: Scores) -> dict[str, Any] | None:
    """The model's first score on test beside the same score of the others, and the paired difference in words."""
    own = scores.score("test")
    if own is None:
        return None
    pair = next((score for score in scores.scores if score.name == "paired difference" and score.split == "test"), None)
    return {
        "value": ("≤ " if own.name.endswith(" bound") else "") + card.digits(own.value),
        "unit": own.unit,
        "error": card.digits(own.stderr) if own.stderr is not None else None,
        "name": own.name,
        "n": own.n,
        "split": own.split,
        "protocol": own.protocol,
        "pair": _pair(family, pair),
        "charts": [
            drawn
            for score in scores.scores
            if (score.model, score.name, score.split) == (own.model, own.name, "test") and (drawn := _compared(score, scores))[0]
        ],
    }


def _compared(own: Score, scores: Scores) -> tuple[Any, str]:
    """The model's score and those it compares with as bars, and what they are; a density's nats may be below 0, where no bar begins."""
    group = [own, *(score for score in scores.scores if score.split == own.split and _comparable(own, score))]
    where = own.protocol if own.name == "Frechet distance" else f"{own.name} on the same examples"
    if min(score.value for score in group) < 0:
        return "", ""
    lines = " The lines are two standard errors to each side." if own.stderr is not None else ""
    return chart.bars([(score.model, score.value, score.stderr) for score in group]), f"{where}; lower is better.{lines}"


def _comparable(own: Score, other: Score) -> bool:
    """Another model's score of the same kind; a Frechet distance in the same space alone."""
    same = other.name.removesuffix(" bound") == own.name.removesuffix(" bound") and other.model != own.model
    return same and (own.name != "Frechet distance" or other.protocol == own.protocol)


def _pair(family: str, pair: Score | None) -> str | None:
    if pair is None:
        return None
    way = "below" if pair.value < 0 else "above"
    error = f" ± {card.digits(pair.stderr)}" if pair.stderr is not None else ""
    baseline = pair.protocol.partition(" minus ")[2].partition("'s ")[0]
    amount = f"{card.digits(abs(pair.value))}{error} {pair.unit} {way} {baseline}"
    return f"{family} is {amount}, as the paired difference on the same {pair.n:,} examples."


def curves(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Losses, validation, learning rate and throughput by step, each chart with the series it has."""
    steps = [line for line in lines if line["event"] == "step"]
    valid = [line for line in lines if line["event"] == "valid"]
    series: dict[str, list[tuple[float, float]]] = {}
    for line in steps:
        for key, value in numbers(line).items():
            series.setdefault(key, []).append((line["step"], value))
    for line in valid:
        for value in numbers(line).values():
            series.setdefault(f"valid {line['metric']}", []).append((line["step"], value))
    groups = {
        "Loss": [key for key in series if key == "loss" or key.endswith(".loss")],
        "Likelihood": [key for key in series if "bits" in key or "nats" in key],
        "Validation": [key for key in series if key.startswith("valid ") and "bits" not in key],
        "Examples a second": [key for key in series if key == "examples_per_s"],
        "Gradient norm": [key for key in series if key.endswith("gradient_norm")],
        "Learning rate": [key for key in series if key == "lr" or key.endswith(".lr")],
    }
    found = {title: {key: series[key] for key in keys} for title, keys in groups.items() if keys}
    return [{"title": title, "chart": chart.line(each, x="step", y=title.lower())} for title, each in found.items()]


def sheets(lines: Sequence[Mapping[str, Any]]) -> list[tuple[int, str]]:
    """Some of the sheets drawn while it learnt, the last one among them."""
    drawn = [(int(line["step"]), line["uri"]) for line in lines if line["event"] == "sheet"]
    stride = -(-len(drawn) // SHEETS) or 1
    taken = drawn[::-1][::stride][::-1]
    return [(step, image) for step, uri in taken if (image := embedded(uri))]


def memorisation(family: str, scores: Scores) -> str:
    """What the distances to the nearest training examples say, in words."""
    near = {score.model: score for score in scores.scores if score.name == "nearest training example"}
    copies = next((score for score in scores.scores if score.name.startswith("copies")), None)
    if family not in near:
        return ""
    own, others = near[family], near.get("test examples")
    scaled = near[family].protocol.rpartition(", ")[2]
    text = f"The median sample lies {card.digits(own.value)} from its nearest training example (root mean square over values, {scaled})"
    text += f"; the median test example lies {card.digits(others.value)}." if others else "."
    if copies:
        text += f" {round(copies.value * copies.n)} of {copies.n} samples equal a training example in every value."
    return text


def data_card(shards: Shards, about: Mapping[str, Any]) -> Pairs:
    """What the shards are made of."""
    rows = ", ".join(f"{count:,} {split}" for split, count in shards.rows.items())
    size = sum(file.get("bytes", 0) for file in about.get("files", []))
    pairs: Pairs = [
        ("examples", rows),
        ("event", str(shards.event)),
        ("split by", about.get("split_by", "")),
        ("size", f"{size / 1e6:,.2f} MB"),
    ]
    if shards.labels:
        pairs.append(
            ("labels", ", ".join(shards.labels[:40]) + (f" and {len(shards.labels) - 40} more" if len(shards.labels) > 40 else ""))
        )
    for name, found in list(about.get("splits", {}).get("train", {}).get("columns", {}).items())[:40]:
        pairs.append((name, f"{found['mean']:.4g} ± {found['std']:.3g}, {found['min']:.4g} to {found['max']:.4g}"))
    for key, title in (
        ("inputs", "inputs read"),
        ("quarantined", "in quarantine"),
        ("duplicates", "duplicates left out"),
        ("conflicting_labels", "conflicting labels"),
    ):
        if key in about:
            pairs.append((title, f"{about[key]:,}"))
    leakage = about.get("leakage") or {}
    pairs.append(("across splits", ", ".join(f"{key}: {value}" for key, value in leakage.items()) or "no duplicates"))
    return [(key, value) for key, value in pairs if value != ""]


def _labels_chart(shards: Shards, about: Mapping[str, Any]) -> Any:
    counts = about.get("splits", {}).get("train", {}).get("labels", {})
    names = [name for name in shards.labels if name in counts]
    return chart.histogram([counts[name] for name in names], names=names, x="label")


def _levels_chart(shards: Shards, about: Mapping[str, Any]) -> Any:
    counts, names = about.get("splits", {}).get("train", {}).get("levels", []), shards.prepare.get("labels") or ()
    return chart.histogram(counts, names=names, x=shards.prepare["target"] if names else "level")


def _samples_caption(recipe: Recipe, shards: Shards) -> str:
    if shards.event.modality == "table":
        given = ", given the features of as many test examples" if shards.event.condition else ""
        return f"Samples 0, 1, 2, … of seed {recipe.evaluate.seed}{given}, beside the data."
    rows = (
        "a row for each label"
        if shards.event.modality == "image" and recipe.evaluate.samples >= 2 * shards.event.classes
        else "in the order of the labels"
    )
    shown = "; the pictures are of some, evenly spaced" if shards.event.modality == "audio" else ""
    return f"Not chosen: samples 0, 1, 2, … of seed {recipe.evaluate.seed}{f', {rows}' if shards.event.classes else ''}{shown}."


def _training(recipe: Recipe, checkpoint: Checkpoint, lines: Sequence[Mapping[str, Any]]) -> str:
    """In words: steps, batch, workers, resumes, which weights were kept."""
    started = [line for line in lines if line["event"] == "started"]
    by_passes = issubclass(MODELS[recipe.model.family], Iterated)
    text = (
        f"{checkpoint.steps:,} passes over the data" if by_passes else f"{checkpoint.steps:,} steps of {recipe.train.batch_size} examples"
    )
    if started and "workers" in started[-1]:
        workers = started[-1]["workers"]
        text += f" on {workers} worker{'s' if workers != 1 else ''}"
    if len(started) > 1:
        text += f", resumed {len(started) - 1} times"
    waits = [line["loader_wait"] for line in lines if "loader_wait" in line]
    if waits:
        text += f"; the loader's wait was {100 * sum(waits) / len(waits):.1f}% of the time"
    if checkpoint.best:
        text += f"; kept: the weights of step {checkpoint.best['step']:,}, with the best {checkpoint.best['metric']} on valid"
    return text + "."


def _commands(version: Version, shards: Shards, storage: str) -> list[str]:
    ending = {"audio": "wav", "table": "npy"}.get(shards.event.modality, "png")
    label = f' "label": "{shards.labels[-1]}",' if shards.labels else ""
    label += f' "condition": {zeros(shards.event.condition.shape) or "..."},' if shards.event.condition else ""
    given = " --condition features.npy" if shards.event.condition else ""
    return [
        f"genmodels serve {version.uri}{(where := summary.storage_option(storage))}",
        f"genmodels sample {version.uri} -n 16 --seed 0{given} -o samples.{ending}{where}",
        "",
        "# once it is served:",
        f"curl -s localhost:8000/v1/models/{version.name}/samples -H 'content-type: application/json' \\",
        f"  -H 'accept: {_TYPES.get(ending, 'application/x-npy')}' -d '{{\"n\": 1,{label} \"seed\": 7}}' -o sample.{ending}",
        "",
        "# in Python:",
        f'model = genmodels.load("{version.artifact}")' if "://" not in version.artifact else "model = genmodels.load(folder)",
    ]


def _answer(deployment: Deployment) -> dict[str, Any] | None:
    content = embedded(deployment.answer) if deployment.answer.rpartition(".")[2] in _TYPES else None
    kind = deployment.answer.rpartition(".")[2]
    receipt = [(key, value) for key, value in deployment.receipt.items() if value is not None]
    return {"image": content if kind == "png" else None, "sound": content if kind == "wav" else None, "receipt": receipt}


def _lineage(recipe: Recipe, shards: Shards, checkpoint: Checkpoint, scores: Scores, version: Version) -> Pairs:
    """What the model was made from, so that it can be made again."""
    from genmodels import artifact
    from pipelines.storage import local

    with local(scores.artifact) as folder:
        known = [(key, value) for key, value in card.flat(artifact.read(folder).lineage) if not key.startswith("recipe.")]
    return [
        ("registered", f"models:/{version.name}/{version.version}"),
        ("gate", version.reason),
        ("artifact", scores.artifact),
        ("digest", scores.digest),
        ("shards", f"{shards.fingerprint} ({shards.uri})"),
        ("training", f"{checkpoint.fingerprint} ({checkpoint.uri})"),
        ("scores", scores.uri),
        ("genmodels", installed("genmodels")),
        *known,
    ]
