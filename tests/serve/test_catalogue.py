"""A model by folder, URL or registry name; its files come here once, and only if every byte is right."""

import functools
import http.server
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from genmodels import artifact, load
from serve import catalogue
from tests.serve.conftest import save


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def web(digits: Path, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server's folder with the model in it -> its URL, and the folder."""
    shutil.copytree(digits, tmp_path / "web" / "digits")
    handler = functools.partial(Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}", tmp_path / "web"
        server.shutdown()


def test_a_folder_is_itself(digits: Path) -> None:
    found = catalogue.resolve(str(digits))
    assert (found.name, found.artifact, found.digest) == ("digits", str(digits), artifact.read(digits).digest)
    assert found.version == found.digest[:12]
    assert catalogue.fetch(found) == digits


def test_a_url_is_fetched_once_and_loads(web: tuple[str, Path], tmp_path: Path, digits: Path) -> None:
    url, folder = web
    found = catalogue.resolve(f"{url}/digits/")
    assert (found.name, found.digest) == ("digits", artifact.read(digits).digest)
    first = catalogue.fetch(found, cache=tmp_path / "cache")
    shutil.rmtree(folder / "digits")
    assert catalogue.fetch(found, cache=tmp_path / "cache") == first
    assert load(first).sample(2, seed=1).tolist() == load(digits).sample(2, seed=1).tolist()


def test_a_byte_changed_on_the_way_is_refused(web: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = web
    found = catalogue.resolve(f"{url}/digits")
    weights = folder / "digits" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with pytest.raises(
        ValueError, match=re.escape(f"{url}/digits/model.safetensors does not match SHA256SUMS: a byte was changed or lost")
    ):
        catalogue.fetch(found, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_sums_that_name_files_outside_are_refused(web: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = web
    (folder / "digits" / "SHA256SUMS").write_text(f"{'0' * 64}  ../../outside\n")
    with pytest.raises(ValueError, match=r"names '../../outside'; wanted files of this folder alone"):
        catalogue.fetch(catalogue.resolve(f"{url}/digits"), cache=tmp_path / "cache")


def test_another_artifact_at_the_same_place_is_refused(digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "model")
    found = catalogue.resolve(str(tmp_path / "model"))
    save(tmp_path / "model", seed=3)
    with pytest.raises(ValueError, match="it was changed after it was registered"):
        catalogue.fetch(found)


def test_what_is_no_model_is_said_in_one_line(digits: Path, tmp_path: Path, web: tuple[str, Path]) -> None:
    said = {
        f"{digits.parent}/digit": f"no folder {digits.parent}/digit; did you mean '{digits}'?",
        "digits-pixelcnn": "no folder digits-pixelcnn; wanted an artifact folder, a URL or models:/name@alias (of the registry: "
        "models:/digits-pixelcnn@champion)",
        str(tmp_path): f"{tmp_path} is no model: it has no model.json; wanted an artifact folder, a URL or models:/name@alias",
        f"{web[0]}/nothing": f"no model at {web[0]}/nothing: it has no SHA256SUMS; wanted an artifact folder",
        "models:/a/b/c": "'models:/a/b/c' is no model of the registry; wanted models:/name@alias or models:/name/version",
        "gopher://x": "gopher://x cannot be read: Protocol not known: gopher",
    }
    for model, message in said.items():
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            catalogue.resolve(model)


def test_the_tracking_uri_is_the_environments_or_the_storages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert catalogue.tracking_uri(str(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)
    assert catalogue.tracking_uri("s3://bucket/runs") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
    assert catalogue.tracking_uri(str(tmp_path)) == "http://elsewhere:5000"


def test_no_registry_yet_is_said_before_one_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no registry at .*mlflow.db; run a recipe first, or set MLFLOW_TRACKING_URI or --storage"):
        catalogue.resolve("models:/digits@champion", storage=str(tmp_path))
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.ray
def test_the_registry_by_alias_and_version_and_what_it_does_not_have(digits: Path, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = catalogue.tracking_uri(str(tmp_path))
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.create_registered_model("digits-pixelcnn")
    digest = artifact.read(digits).digest
    for number in (1, 2):
        tags = {catalogue.ARTIFACT_TAG: str(digits), catalogue.DIGEST_TAG: digest if number == 2 else "0" * 64}
        client.create_model_version("digits-pixelcnn", source=str(digits), tags=tags)
    client.set_registered_model_alias("digits-pixelcnn", "champion", "2")
    found = catalogue.resolve("models:/digits-pixelcnn@champion", storage=str(tmp_path))
    assert found == catalogue.Located(name="digits-pixelcnn", version="2", artifact=str(digits), digest=digest, aliases=("champion",))
    assert catalogue.resolve("models:/digits-pixelcnn/1", storage=str(tmp_path)).digest == "0" * 64
    said = {
        "models:/digits-pixelcn@champion": "unknown model 'digits-pixelcn'; did you mean 'digits-pixelcnn'?",
        "models:/digits-pixelcnn@champ": "digits-pixelcnn: unknown alias 'champ'; did you mean 'champion'?",
        "models:/digits-pixelcnn/7": "digits-pixelcnn has no version 7; versions: 1, 2",
    }
    for model, message in said.items():
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            catalogue.resolve(model, storage=str(tmp_path))
