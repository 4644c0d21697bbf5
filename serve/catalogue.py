"""Where a model is: a folder, a URL, or the registry's models:/name@alias or models:/name/version; and how its files come here, verified."""

import difflib
import hashlib
import os
import re
import shutil
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec

from serve.names import unknown

ARTIFACT_TAG, DIGEST_TAG = "genmodels.artifact", "genmodels.digest"
_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[^/@]+))?")


@dataclass(frozen=True, kw_only=True)
class Located:
    """A model's artifact folder (any fsspec URL) and the digest it must have. version: the registry's number, or the digest's first digits."""

    name: str
    version: str
    artifact: str
    digest: str
    aliases: tuple[str, ...] = ()


def tracking_uri(storage: str = "./runs") -> str:
    """MLflow's address: $MLFLOW_TRACKING_URI, else mlflow.db in a local storage, else in ./runs."""
    if given := os.environ.get("MLFLOW_TRACKING_URI"):
        return given
    folder = _local(storage) if _is_local(storage) else Path("runs")
    return f"sqlite:///{folder.expanduser().resolve() / 'mlflow.db'}"


def resolve(model: str, *, storage: str = "./runs") -> Located:
    """A folder, a URL or a registered model -> where its artifact is. Raises ValueError with one line that names the nearest known one."""
    if model.startswith("models:"):
        found = _REGISTERED.fullmatch(model)
        if found is None:
            raise ValueError(f"{model!r} is no model of the registry; wanted models:/name@alias or models:/name/version")
        return _registered(tracking_uri(storage), **found.groupdict())
    if _is_local(model):
        folder = _local(model).expanduser().resolve()
        if not (folder / "model.json").is_file():
            raise ValueError(_no_folder(model, folder))
        model = str(folder)
    return _at(model.rstrip("/"))


def fetch(located: Located, *, cache: Path | None = None) -> Path:
    """The artifact as a local folder: itself where it is local, else a copy in the cache, taken once. Raises ValueError when a byte differs."""
    from genmodels import artifact

    if _is_local(located.artifact):
        folder = _local(located.artifact)
    else:
        folder = (cache or _cache()) / located.digest.replace(":", "-")
        if not folder.exists():
            _download(located.artifact, folder)
    found = artifact.read(folder).digest
    if found != located.digest:
        raise ValueError(f"{located.artifact} has digest {found}; wanted {located.digest}: it was changed after it was registered")
    return folder


def _at(url: str) -> Located:
    sums = _read(url, "SHA256SUMS")
    digest = hashlib.sha256(sums).hexdigest()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", urlsplit(url).path.rstrip("/").rpartition("/")[2]) or "model"
    return Located(name=name, version=digest[:12], artifact=url, digest=digest)


def _registered(uri: str, *, name: str, alias: str | None, version: str | None) -> Located:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise ValueError(f"no registry at {uri.removeprefix('sqlite:///')}; run a recipe first, or set MLFLOW_TRACKING_URI or --storage")
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    try:
        found = _lookup(client, name, alias, version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise ValueError(f"the registry at {uri} did not answer: {' '.join(str(error).split())[:200]}") from error
        raise ValueError(_nearest(client, name, alias, version)) from None
    aliases = tuple(sorted(key for key, at in client.get_registered_model(name).aliases.items() if str(at) == str(found.version)))
    artifact, digest = found.tags.get(ARTIFACT_TAG), found.tags.get(DIGEST_TAG)
    if artifact and digest:
        return Located(name=name, version=str(found.version), artifact=artifact, digest=digest, aliases=aliases)
    return replace(_at(_downloaded(uri, name, found.version)), name=name, version=str(found.version), aliases=aliases)


def _lookup(client: Any, name: str, alias: str | None, version: str | None) -> Any:
    if version is not None:
        return client.get_model_version(name, version)
    return client.get_model_version_by_alias(name, alias or "champion")


def _nearest(client: Any, name: str, alias: str | None, version: str | None) -> str:
    """Why the registry does not have it, naming the nearest that it has."""
    models = {model.name: model for model in client.search_registered_models(max_results=1000)}
    if name not in models:
        return unknown("model", name, models)
    if version is not None:
        versions = [str(found.version) for found in client.search_model_versions(f"name='{name}'")]
        return f"{name} has no version {version}; versions: {', '.join(sorted(versions, key=lambda v: (len(v), v))) or 'none'}"
    return f"{name}: " + unknown("alias", alias or "champion", models[name].aliases)


def _downloaded(uri: str, name: str, version: str) -> str:
    """A registered model that another tool registered: MLflow brings it to the cache."""
    from mlflow.artifacts import download_artifacts

    target = _cache() / "mlflow" / hashlib.sha256(f"{uri}\0{name}\0{version}".encode()).hexdigest()[:16]
    if not (target / "model.json").exists():
        target.mkdir(parents=True, exist_ok=True)
        download_artifacts(f"models:/{name}/{version}", dst_path=str(target), tracking_uri=uri)
    return str(target)


def _download(url: str, folder: Path) -> None:
    """Copies the files that SHA256SUMS names; the folder appears when all of them are here and right."""
    sums = _read(url, "SHA256SUMS")
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    part.mkdir(parents=True)
    try:
        (part / "SHA256SUMS").write_bytes(sums)
        for line in sums.decode().splitlines():
            wanted, _, name = line.partition("  ")
            if not name or name.startswith("/") or ".." in Path(name).parts:
                raise ValueError(f"{url}/SHA256SUMS names {name!r}; wanted files of this folder alone")
            content = _read(url, name)
            if hashlib.sha256(content).hexdigest() != wanted:
                raise ValueError(f"{url}/{name} does not match SHA256SUMS: a byte was changed or lost; copy the artifact again")
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).write_bytes(content)
        try:
            part.replace(folder)
        except OSError:  # another process was first with the same bytes
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _read(url: str, name: str) -> bytes:
    try:
        fs, root = fsspec.core.url_to_fs(url)
        return fs.cat_file(f"{root}/{name}")
    except FileNotFoundError:
        raise ValueError(f"no model at {url}: it has no {name}; wanted an artifact folder") from None
    except (ImportError, ValueError) as error:
        raise ValueError(f"{url} cannot be read: {error}") from None
    except Exception as error:  # a file system's own errors: no credentials, no connection, no such bucket
        raise ValueError(f"{url} cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


def _no_folder(model: str, folder: Path) -> str:
    if folder.is_dir():
        return f"{model} is no model: it has no model.json; wanted an artifact folder, a URL or models:/name@alias"
    beside = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
    near = difflib.get_close_matches(folder.name, beside, n=1, cutoff=0.5)
    hint = f"did you mean {str(folder.parent / near[0])!r}?" if near else "wanted an artifact folder, a URL or models:/name@alias"
    registered = f" (of the registry: models:/{model}@champion)" if re.fullmatch(r"[\w.-]+", model) else ""
    return f"no folder {model}; {hint}{registered}"


def _cache() -> Path:
    base = os.environ.get("GENMODELS_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genmodels"
    return Path(base) / "artifacts"


def _is_local(url: str) -> bool:
    return urlsplit(url).scheme in ("", "file")


def _local(url: str) -> Path:
    return Path(url.removeprefix("file://"))
