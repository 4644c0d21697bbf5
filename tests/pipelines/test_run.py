"""From files to an answering endpoint: whole runs of the command on a laptop's storage, on S3 with MLflow over PostgreSQL, and as a cluster's job."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import s3fs
import yaml

from genmodels import media
from pipelines import storage
from tests import services

pytestmark = pytest.mark.ray

RECIPE: dict[str, Any] = {
    "name": "small",
    "data": {"source": "digits", "image": {"height": 8, "width": 8, "levels": 17}},
    "model": {"family": "gated_pixelcnn", "hidden": 8, "layers": 2},
    "train": {"steps": 40, "lr": 5e-3, "valid_every": 20, "checkpoint_every": 20, "valid_examples": 64},
    "evaluate": {"samples": 20, "max_examples": 100},
    "serve": {"port": 0},
}
SEARCH = {
    "trials": 2,
    "steps": 10,
    "search": {"algorithm": "random", "space": {"train.lr": {"loguniform": [1e-3, 1e-2]}}},
    "scheduler": "none",
}


def genmodels(*arguments: str, environment: Mapping[str, str] | None = None, cwd: Path) -> tuple[list[dict[str, Any]], str]:
    """The command with --json in a process of its own -> its records and its stderr; fails the test when it fails."""
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "pipelines.cli", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**kept, **(environment or {})}, cwd=cwd, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def write(folder: Path, **changes: Any) -> str:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    return str(path)


def statuses(records: list[dict[str, Any]]) -> dict[str, str]:
    """The last thing that was said of each stage."""
    return {record["stage"]: record["status"] for record in records if record.get("event") == "stage"}


def test_a_laptop_goes_the_whole_way_and_nothing_is_done_twice(tmp_path: Path) -> None:
    recipe = write(tmp_path, tune=SEARCH)
    records, _ = genmodels("run", recipe, cwd=tmp_path)
    result = records[-1]
    assert {"shards", "checkpoint", "scores", "version", "endpoint", "report"} <= result.keys()
    assert {stage: status for stage, status in statuses(records).items() if status != "done"} == {}
    assert sum(result["shards"]["rows"].values()) == 1797
    models = {score["model"] for score in result["scores"]}
    assert {"gated_pixelcnn", "histogram", "class_histogram"} <= models, "baselines stand under their own names"
    assert all({"model", "name", "value", "unit", "protocol", "split", "n"} <= score.keys() for score in result["scores"])
    assert result["version"]["champion"] is True
    picture = Path(result["endpoint"]["answer"]).read_bytes()
    assert media.png_text(picture)["genmodels-receipt"], "the endpoint's answer carries its receipt"
    assert "<html" in Path(result["report"]).read_text()

    again, _ = genmodels("run", recipe, cwd=tmp_path)
    assert set(statuses(again).values()) == {"reused"}
    assert again[-1] == result
    steps, _ = genmodels("plan", recipe, cwd=tmp_path)
    assert {step["stage"]: step["state"] for step in steps} == dict.fromkeys(
        ("prepare", "tune", "train", "evaluate", "register", "deploy"), "done"
    )
    changed, _ = genmodels("plan", recipe, "--set", "evaluate.samples=30", cwd=tmp_path)
    states = {step["stage"]: step["state"] for step in changed}
    assert states["train"] == "done" and states["evaluate"] == "would run" and states["register"] == "waits"
    assert next(step["why"] for step in changed if step["stage"] == "evaluate") == "since the last run: evaluate.samples 20 -> 30"

    drawn, _ = genmodels("sample", "models:/small@champion", "-n", "3", "--seed", "5", "--label", "7", cwd=tmp_path)
    answered, _ = genmodels("score", "models:/small@champion", drawn[-1]["file"], "--label", "7", cwd=tmp_path)
    assert answered[-1]["protocol"] == "exact p(x|y)"


def test_s3_and_a_registry_on_postgresql_carry_a_whole_run(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    with (
        services.s3(tmp_path, bucket="models") as s3,
        services.postgres(tmp_path) as database,
        services.mlflow_server(tmp_path, store=database) as mlflow,
    ):
        environment = {**s3, "MLFLOW_TRACKING_URI": mlflow}
        recipe = write(tmp_path, storage="s3://models/runs")
        records, _ = genmodels("run", recipe, environment=environment, cwd=tmp_path)
        result = records[-1]
        assert result["shards"]["uri"].startswith("s3://models/runs/shards/small-")
        client = MlflowClient(tracking_uri=mlflow, registry_uri=mlflow)
        champion = client.get_model_version_by_alias("small", "champion")
        assert champion.tags["genmodels.digest"] == result["version"]["digest"]
        assert not list(tmp_path.glob("runs*")), "nothing of a run on S3 is left in the working folder"
        again, _ = genmodels("run", recipe, environment=environment, cwd=tmp_path)
        assert set(statuses(again).values()) == {"reused"}
        with pytest.MonkeyPatch.context() as patch:
            for key, value in s3.items():
                patch.setenv(key, value)
            s3fs.S3FileSystem.clear_instance_cache()  # fsspec keeps a file system made for another endpoint
            assert storage.exists(result["report"])


def test_a_job_on_a_cluster_goes_on_from_what_is_done(tmp_path: Path) -> None:
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": os.environ["RAY_AUTH_TOKEN_PATH"]}
    recipe = write(tmp_path, serve={"port": services.free_port()})
    with services.ray_head(tmp_path, environment=environment) as address:
        _, log = genmodels("submit", recipe, "--address", address, environment=environment, cwd=tmp_path)
        assert "live at" in log
        _, log = genmodels("submit", recipe, "--address", address, environment=environment, cwd=tmp_path)
        assert log.count("done already") >= 5
    marker = next((tmp_path / "runs" / "deploy").glob("*/deployment.json"))
    assert json.loads(marker.read_text())["live"] is True


def test_local_paths_and_other_versions_do_not_travel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines import recipe as recipes
    from pipelines import submit
    from pipelines.errors import Refused

    recipe = recipes.load(write(tmp_path))
    with pytest.raises(Refused, match="which another machine cannot see; use a URL, as --set storage=s3://bucket/folder"):
        submit.submit(recipe, address="http://head.example:8265", follow=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENMODELS_EXPECTED_VERSIONS", json.dumps({"ray": "1.0"}))
        with pytest.raises(
            Refused, match=r"this cluster has ray .*, the submitter has 1\.0; use an image built with the same constraints\.txt"
        ):
            submit.check_versions()
