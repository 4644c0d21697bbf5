"""Deploy: the endpoint answers as the version that was registered, and the answer is kept with its receipt; nothing is done twice."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from genmodels import artifact, load, media
from pipelines import deploy
from pipelines.errors import Failed, Refused
from pipelines.recipe import Recipe, check
from pipelines.records import Version
from pipelines.sections import Serve
from pipelines.storage import read_bytes, read_json
from serve.media_types import levels_hash
from tests.serve.conftest import save
from tests.services import free_port, wait_for


def recipe(storage: Path, **serve: Any) -> Recipe:
    return check(
        {
            "name": "tiny",
            "storage": str(storage),
            "data": {"source": "digits", "image": {"height": 4, "width": 4, "levels": 5}},
            "model": {"family": "gated_pixelcnn"},
            "train": {"steps": 1},
            "serve": {"port": 0, **serve},
        }
    )


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Version:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    digest = save(folder)
    return Version(name="tiny", version="3", artifact=str(folder), digest=digest, champion=True, reason="better", fingerprint="f")


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens at."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.mark.ray
def test_the_endpoint_answers_as_the_version_once_and_ends(
    ray_session: object, version: Version, tmp_path: Path, taken: int, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = recipe(tmp_path, port=taken)
    made = deploy.deploy(asked, version)
    assert f"port {taken} of 127.0.0.1 is in use; the endpoint answers at port" in " ".join(capsys.readouterr().err.split())
    drawn = load(Path(version.artifact)).sample(1, seed=deploy.SEED).numpy()
    assert (made.model, made.version, made.live) == ("tiny", "3", False)
    assert (made.receipt["artifact"], made.receipt["levels"]) == (version.digest, levels_hash(drawn))
    picture = read_bytes(made.answer)
    assert json.loads(media.png_text(picture)["genmodels-receipt"]) == made.receipt
    assert (media.levels_from_image(picture, artifact.read(Path(version.artifact)).prepare) == drawn[0]).all()
    with pytest.raises(httpx.ConnectError):
        httpx.get(made.url)
    out = deploy.output(asked, version)
    assert out.done
    before = read_json(f"{out.uri}/{deploy.MARKER}")
    assert deploy.deploy(asked, version) == made
    assert read_json(f"{out.uri}/{deploy.MARKER}") == before
    changed = replace(version, digest="0" * 64)
    with pytest.raises(
        Failed, match=r"no endpoint at 127\.0\.0\.1:\d+: tiny: .* has digest .*; wanted 0{64}: it was changed after it was registered"
    ):
        deploy.deploy(asked, changed)
    assert not deploy.output(asked, changed).done


def test_another_version_or_other_settings_are_another_deployment(version: Version, tmp_path: Path) -> None:
    made = {
        deploy.output(recipe(tmp_path), version).fingerprint,
        deploy.output(recipe(tmp_path, replicas=2), version).fingerprint,
        deploy.output(recipe(tmp_path), replace(version, version="4")).fingerprint,
        deploy.output(recipe(tmp_path), replace(version, digest="0" * 64)).fingerprint,
    }
    assert len(made) == 4
    assert not deploy.output(recipe(tmp_path), version).done


def test_a_port_in_use_is_refused_before_anything_starts(version: Version, taken: int) -> None:
    with pytest.raises(Refused, match=f"^port {taken} of 127.0.0.1 is in use; give another with --port, or --port 0 for any free one$"):
        deploy.serve_forever([version.artifact], settings=Serve(port=taken))


def test_an_unknown_model_or_address_is_refused_in_one_line(version: Version, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=rf"^no folder {tmp_path}/nothing; wanted an artifact folder, a URL or models:/name@alias$"):
        deploy.serve_forever([f"{tmp_path}/nothing"], settings=Serve(port=0))
    with pytest.raises(Refused, match=r"^this machine has no address 192\.0\.2\.1; wanted 127\.0\.0\.1, 0\.0\.0\.0 or one of its own$"):
        deploy.serve_forever([version.artifact], settings=Serve(host="192.0.2.1"))


def test_nothing_is_live_where_nothing_listens(version: Version) -> None:
    assert not deploy.live(f"http://127.0.0.1:{free_port()}", version)


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGINT])
def test_the_command_keeps_models_up_until_it_is_told_to_end(version: Version, tmp_path: Path, number: int) -> None:
    port = free_port()
    other = tmp_path / "other"
    save(other, seed=1)
    command = [sys.executable, "-m", "pipelines.cli", "serve", version.artifact, str(other), "--port", str(port)]
    log = tmp_path / "log"
    with log.open("wb") as file:
        running = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        wait_for(lambda: "Ctrl-C ends it" in log.read_text() or running.poll() is not None, seconds=90, what="the endpoint")
        models = [one["model"] for one in httpx.get(f"http://127.0.0.1:{port}/v1/models").json()["models"]]
        running.send_signal(number)
        assert running.wait(60) == 0
    finally:
        running.kill()
        running.wait()
    assert models == ["tiny", "other"]
    assert f"curl -s http://127.0.0.1:{port}/v1/models/other/samples" in log.read_text()
    assert "Traceback" not in log.read_text()
