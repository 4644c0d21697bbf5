"""From scores to a version in the MLflow registry, and the gate that decides whether it becomes champion."""

import re
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines import console, log, tune
from pipelines.errors import Failed
from pipelines.evaluate import validate
from pipelines.fingerprint import fingerprint
from pipelines.recipe import Recipe
from pipelines.records import Checkpoint, Output, Scores, Version, to_json
from pipelines.shards import open_shards
from pipelines.storage import exists, join, local, read_json, write_json
from serve import catalogue

VERSION = 1
CANDIDATE, CHAMPION = "candidate", "champion"
TAG = "genmodels.fingerprint"
_OWN = re.compile(r"; within \S+ to \S+ nats with 95 %|, R-hat [\d.]+| \(log Z exact: [^)]*\)")
"""What a protocol says of one model and not of how it was scored: how far its log Z may be off or over which states it was counted out, and how
nearly its chains agree."""


def output(recipe: Recipe, checkpoint: Checkpoint, scores: Scores) -> Output:
    """Done where the record is there and, with an embedded registry, its database is too."""
    registry = catalogue.tracking_uri(recipe.root)
    settings = (recipe.registered_name, recipe.register_.gate.model_dump(), registry)
    name = fingerprint("register", VERSION, settings, checkpoint.fingerprint, scores.fingerprint, scores.digest)
    uri = join(recipe.root, "register", f"{recipe.name}-{name}.json")
    there = not registry.startswith("sqlite:///") or Path(registry.removeprefix("sqlite:///")).exists()
    return Output(fingerprint=name, uri=uri, done=there and exists(uri))


def register(recipe: Recipe, checkpoint: Checkpoint, scores: Scores) -> Version:
    """Registers the model folder as a new version (the same one when called again), aliased candidate; champion moves through the gate alone."""
    out = output(recipe, checkpoint, scores)
    if out.done:
        console.done("register", out.uri)
        return _today(recipe, Version(**read_json(out.uri)))
    with console.stage("register", total=4) as bar:
        bar.to(0, note="copying the log")
        run = log.copy(recipe, checkpoint, scores, tune.output(recipe, open_shards(scores.shards)).uri or None)
        with log.registry(recipe) as client:
            bar.to(1, note="registering")
            number = _version(client, recipe, checkpoint, scores, run)
            client.set_registered_model_alias(recipe.registered_name, CANDIDATE, number)
            bar.to(2, note="gate")
            passed, reason = gate(client, recipe, scores, number)
            if passed:
                client.set_registered_model_alias(recipe.registered_name, CHAMPION, number)
        found = Version(
            name=recipe.registered_name,
            version=number,
            artifact=scores.artifact,
            digest=scores.digest,
            champion=passed,
            reason=reason,
            fingerprint=out.fingerprint,
        )
        write_json(out.uri, to_json(found))
        bar.to(4, note=reason)
        return found


def _today(recipe: Recipe, recorded: Version) -> Version:
    """The record, with who is champion now: another version may have passed the gate since. As it was where the registry does not answer."""
    try:
        with log.registry(recipe) as client:
            champion = client.get_registered_model(recorded.name).aliases.get(CHAMPION)
    except Failed:
        return recorded
    if (str(champion) == recorded.version) == recorded.champion:
        return recorded
    return replace(recorded, champion=not recorded.champion, reason=f"version {champion} is champion by now")


def _version(client: Any, recipe: Recipe, checkpoint: Checkpoint, scores: Scores, run: str) -> str:
    """The number of the version with this model folder's fingerprint, made where there is none."""
    name = recipe.registered_name
    if not client.search_registered_models(filter_string=f"name = '{name}'"):
        client.create_registered_model(name, description=" ".join(recipe.about.split()))
    tags = {
        TAG: scores.fingerprint,
        catalogue.ARTIFACT_TAG: scores.artifact,
        catalogue.DIGEST_TAG: scores.digest,
        "genmodels.shards": scores.shards,
        "genmodels.checkpoint": checkpoint.fingerprint,
        "genmodels.recipe": recipe.name,
        "genmodels.family": recipe.model.family,
        "genmodels.code": version("genmodels"),
    }
    for known in client.search_model_versions(f"name = '{name}'"):
        if all(known.tags.get(key) == tags[key] for key in (TAG, catalogue.ARTIFACT_TAG, catalogue.DIGEST_TAG)):
            return str(known.version)
    experiment = client.get_run(run).info.experiment_id
    model = client.create_logged_model(experiment, name=name, source_run_id=run, tags=tags, model_type="generative")
    with local(scores.artifact) as folder:
        client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    made = client.create_model_version(name, source=f"models:/{model.model_id}", run_id=run, tags=tags, model_id=model.model_id)
    return str(made.version)


def gate(client: Any, recipe: Recipe, scores: Scores, number: str) -> tuple[bool, str]:
    """Whether this version becomes champion, and why in one line."""
    rule = recipe.register_.gate.rule
    present = client.get_registered_model(recipe.registered_name).aliases.get(CHAMPION)
    if rule == "never":
        return False, "the gate's rule is never; champion is moved by hand"
    if present is not None and str(present) == number:
        return True, "it is the champion already"
    if rule == "always":
        return True, "the gate's rule is always"
    if present is None:
        return True, "the first champion: there was none to compare with"
    return _better(recipe, scores, str(present))


def _better(recipe: Recipe, scores: Scores, present: str) -> tuple[bool, str]:
    """The candidate's valid score against the champion's, which is scored again on the candidate's data."""
    ours = scores.score("valid")
    who, way_out = f"version {present}", "set register.gate.rule=always to take it anyway"
    if ours is None:
        return False, f"{who} stays: the candidate has no score on valid; {way_out}"
    try:
        theirs = rescore(recipe, scores, present)
    except FileNotFoundError as error:
        return True, f"{who}, the champion, is gone ({error}), so nothing is left to compare with"
    except ValueError as error:
        return False, f"{who} stays: it cannot be scored on the candidate's data ({error}); {way_out}"
    if theirs is None or _OWN.sub("", theirs.protocol) != _OWN.sub("", ours.protocol):
        other = theirs.protocol if theirs else "no score"
        return False, f"{who} stays: {other} does not compare with the candidate's {ours.protocol}; {way_out}"
    gain, margin = theirs.value - ours.value, recipe.register_.gate.margin
    beats = gain > 0 and gain >= margin
    wanted = f" (margin {margin:g})" if margin else ""
    verb = "beats" if beats else "does not beat"
    return beats, f"{ours.value:.4f} {ours.unit or ours.name} on valid {verb} {who}'s {theirs.value:.4f}{wanted}"


def rescore(recipe: Recipe, scores: Scores, present: str) -> Any:
    """The champion's score on the valid split of these scores' shards. Raises FileNotFoundError where its folder is gone, ValueError where its
    event is another or its bytes were changed."""
    from genmodels import artifact
    from genmodels.core import Event

    located = catalogue.resolve(f"models:/{recipe.registered_name}/{present}", storage=recipe.root)
    if not exists(join(located.artifact, "model.json")):
        raise FileNotFoundError(f"no model at {located.artifact}")
    shards = open_shards(scores.shards)
    folder = catalogue.fetch(located)
    event = artifact.read(folder).event
    if replace(event, condition=None) != replace(shards.event, condition=None):
        raise ValueError(f"it models {event}, the data is {shards.event}")
    ours = Event.from_json(read_json(join(scores.artifact, artifact.DESCRIPTION))["event"])
    if event.condition != ours.condition:
        raise ValueError(f"its condition is {event.condition}, the candidate's is {ours.condition}")
    found = validate(recipe, artifact.load(folder), shards)
    return found[0] if found else None
