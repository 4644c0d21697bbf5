"""The driver's log: copies what storage holds of a training (JSONL, scores, pictures) into MLflow, each step once however often it is called."""

import logging
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipelines import journal
from pipelines import recipe as recipes
from pipelines.card import flat
from pipelines.errors import Failed
from pipelines.recipe import Recipe
from pipelines.records import Checkpoint, Scores
from pipelines.storage import exists, filesystem, join, read_bytes, read_json
from serve.catalogue import tracking_uri

FINGERPRINT, COPIED, PARENT = "genmodels.fingerprint", "genmodels.copied", "mlflow.parentRunId"
_BATCH = 900  # metrics a request: MLflow refuses more than 1000
_QUIET = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # else a server that is down is waited for for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


@contextmanager
def registry(recipe: Recipe) -> Iterator[Any]:
    """MLflow's client for the recipe's storage, or for MLFLOW_TRACKING_URI. Raises Failed with one line when it does not answer."""
    uri = tracking_uri(recipe.root)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError

    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    given = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        if uri.startswith("sqlite:////"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(uri)  # the registry's own store looks a logged model up under the process's default
        yield MlflowClient(tracking_uri=uri, registry_uri=uri)
    except (MlflowException, SQLAlchemyError, PermissionError) as error:
        said = " ".join(str(error).split()).replace(uri, "it")[:200]
        said = _without_password(uri, f"MLflow at {uri} did not do its part: {said}")
        raise Failed(f"{said}; what is trained and scored is kept: run again") from error
    finally:
        mlflow.set_tracking_uri(None)  # pyright: ignore[reportArgumentType]  # back to no default
        os.environ.pop("MLFLOW_TRACKING_URI", None)  # and to the environment as it was: MLflow leaves its own mark there, also when nested
        os.environ.update({} if given is None else {"MLFLOW_TRACKING_URI": given})


def copy(recipe: Recipe, checkpoint: Checkpoint, scores: Scores, tune_uri: str | None = None) -> str:
    """One MLflow run of this pipeline run: parameters, metrics by step, scores and pictures; trials of a search as its children -> run id."""
    with registry(recipe) as client:
        experiment = _experiment(client, recipe)
        run = _run(client, experiment, scores.fingerprint, recipe.name, {"genmodels.shards": scores.shards})
        _parameters(client, run, dict(flat(recipes.dump(recipe))))
        _steps(client, run, [line for line in journal.read(checkpoint.log) if line["event"] in ("step", "valid")])
        _metrics(client, run, {f"{score.split}.{score.model}.{score.name}": score.value for score in scores.scores}, checkpoint.steps)
        _artifacts(client, run, scores)
        for trial in _trials(tune_uri):
            _child(client, experiment, run, trial, scores.fingerprint)
        client.set_terminated(run, "FINISHED")
        return run


def _experiment(client: Any, recipe: Recipe) -> str:
    """The recipe's experiment; an embedded database has its artifacts beside it, a server has a place of its own."""
    found = client.get_experiment_by_name(recipe.name)
    if found is not None:
        return found.experiment_id
    uri = tracking_uri(recipe.root)
    place = str(Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts") if uri.startswith("sqlite:////") else None
    return client.create_experiment(recipe.name, artifact_location=place)


def _run(client: Any, experiment: str, fingerprint: str, name: str, tags: Mapping[str, str]) -> str:
    """The run that carries this fingerprint, or a new one."""
    found = client.search_runs([experiment], filter_string=f"tags.`{FINGERPRINT}` = '{fingerprint}'", max_results=1)
    if found:
        return found[0].info.run_id
    return client.create_run(experiment, run_name=name, tags={FINGERPRINT: fingerprint, **tags}).info.run_id


def _parameters(client: Any, run: str, values: Mapping[str, Any]) -> None:
    """Parameters that the run does not have yet: MLflow refuses to change one, and workers may differ from one run to the next."""
    from mlflow.entities import Param

    known = client.get_run(run).data.params
    new = [Param(_name(key), str(value)[:6000]) for key, value in values.items() if _name(key) not in known]
    for start in range(0, len(new), 100):
        client.log_batch(run, params=new[start : start + 100])


def _steps(client: Any, run: str, lines: list[dict[str, Any]]) -> None:
    """Metrics of the lines that are not there yet. How many are is a tag, written with them; a step has always the same timestamp, so that
    one that was sent twice is the same point."""
    from mlflow.entities import Metric, RunTag

    copied = int(client.get_run(run).data.tags.get(COPIED, 0))
    points: list[Any] = []
    for number, line in enumerate(lines[copied:], copied + 1):
        step = int(line.get("step", number))
        points += [Metric(_name(key), value, step, step) for key, value in numbers(line).items()]
        if len(points) >= _BATCH // 2 or number == len(lines):
            for start in range(0, len(points), _BATCH):
                client.log_batch(run, metrics=points[start : start + _BATCH])
            client.log_batch(run, tags=[RunTag(COPIED, str(number))])
            points = []


def _metrics(client: Any, run: str, values: Mapping[str, float], step: int) -> None:
    from mlflow.entities import Metric

    client.log_batch(run, metrics=[Metric(_name(key), value, step, step) for key, value in values.items()])


def _artifacts(client: Any, run: str, scores: Scores) -> None:
    """The pictures and sounds of the evaluation."""
    fs, root = filesystem(scores.uri)
    with tempfile.TemporaryDirectory() as folder:
        for path in fs.ls(root, detail=False):
            name = path.rpartition("/")[2]
            if name.endswith((".png", ".wav")):
                (Path(folder) / name).write_bytes(read_bytes(join(scores.uri, name)))
        client.log_artifacts(run, folder, artifact_path="samples")


def _trials(tune_uri: str | None) -> list[dict[str, Any]]:
    """The finished search's trials, and those that ran again with other seeds."""
    if tune_uri is None or not exists(join(tune_uri, "tune.json")):
        return []
    found = read_json(join(tune_uri, "tune.json"))
    return [*found["trials"], *found["reseeds"]]


def _child(client: Any, experiment: str, parent: str, trial: Mapping[str, Any], fingerprint: str) -> None:
    """A trial as a child run: its parameters, and its score where it came to one."""
    run = _run(client, experiment, f"{fingerprint}/{trial['id']}", f"trial {trial['id']}", {PARENT: parent})
    _parameters(client, run, trial["params"])
    scores = {"valid": trial["value"], "seconds": trial["seconds"]}
    _metrics(client, run, {key: value for key, value in scores.items() if value is not None}, trial.get("step", 0))
    client.set_terminated(run, "FAILED" if trial["status"] == "failed" else "FINISHED")


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """A line's finite numbers by dotted key: of a validation its metric's value, of any other line everything but the step."""
    if line.get("event") == "valid":
        line = {"valid": {line["metric"]: line["value"]}}
    values = {key: value for key, value in flat(line) if isinstance(value, int | float) and not isinstance(value, bool) and key != "step"}
    return {key: float(value) for key, value in values.items() if math.isfinite(value)}


def _name(key: str) -> str:
    """A key in the characters that MLflow takes, bits/dim as bits_per_dim: it reads a slash as a folder."""
    return re.sub(r"[^\w.\-]", "_", key.replace("/", "_per_"))[:250]


def _without_password(uri: str, text: str) -> str:
    password = urlsplit(uri).password
    return text if not password else text.replace(password, "…")
