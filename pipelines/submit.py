"""A recipe as a job on a Ray cluster: our wheel travels with it, its log comes back, and submitting it again goes on from what is done."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml

from pipelines import console
from pipelines.errors import Failed, Refused
from pipelines.fingerprint import fingerprint
from pipelines.recipe import Recipe, dump
from pipelines.storage import absolute, is_local

SAME = ("ray", "torch", "pyarrow", "mlflow", "pydantic")
"""Libraries whose versions must agree between here and the cluster's image."""

PASSED_ON = ("MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "GENMODELS_AUTOSCALING")
"""Settings that travel with a job. Credentials do not: a job's environment can be read on the dashboard."""


def submit(recipe: Recipe, *, address: str, follow: bool) -> None:
    """Raises Refused for local paths on another machine or other versions, Failed when the job fails."""
    here = _is_here(address)
    values = _portable(recipe, here=here)
    _same_ray(address)
    client = _client(address)
    key = fingerprint(values)
    job = _running(client, key)
    if job:
        console.say(f"this recipe runs there already as {job}; following it", job=job)
    else:
        job = _send(client, recipe.name, values, key, here=here)
        console.say(f"submitted as {job} to {address}", job=job)
    if follow:
        _follow(client, job)


def check_versions() -> None:
    """In the job itself: refuses to run on an image whose Python or libraries differ from the submitter's."""
    expected = json.loads(os.environ.get("GENMODELS_EXPECTED_VERSIONS", "{}"))
    found = _versions() if expected else {}
    for name, wanted in expected.items():
        if found.get(name) != wanted:
            raise Refused(
                f"this cluster has {name} {found.get(name)}, the submitter has {wanted}; use an image built with the same constraints.txt"
            )


def _versions() -> dict[str, str]:
    plain = {name: version(name).partition("+")[0] for name in SAME}
    return {"python": ".".join(map(str, sys.version_info[:2])), **plain}


def _is_here(address: str) -> bool:
    host = urlsplit(address).hostname
    if urlsplit(address).scheme not in ("http", "https") or not host:
        raise Refused(f"--address {address}: wanted the dashboard's URL, as http://head:8265")
    return host in ("localhost", "127.0.0.1", "::1", socket.gethostname())


def _portable(recipe: Recipe, *, here: bool) -> dict[str, Any]:
    """The recipe's values with paths that mean the same on the cluster."""
    values = dump(recipe)
    source = recipe.data.source
    local_source = is_local(source) and ("/" in source or Path(source).exists())
    if not here:
        for key, uri, local in (("storage", recipe.storage, is_local(recipe.storage)), ("data.source", source, local_source)):
            if local:
                raise Refused(
                    f"{key} is the local path {uri}, which another machine cannot see; use a URL, as --set {key}=s3://bucket/folder"
                )
    values["storage"] = recipe.root
    if local_source:
        values["data"]["source"] = absolute(source)
    return values


def _same_ray(address: str) -> None:
    import ray

    try:
        answer = httpx.get(f"{address.rstrip('/')}/api/version", timeout=10, headers=_token())
        there = answer.raise_for_status().json()["ray_version"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise Failed(
            f"no Ray dashboard answers at {address} ({type(error).__name__}); check the address, the port and RAY_AUTH_MODE"
        ) from error
    if there != ray.__version__:
        raise Refused(f"Ray {there} at {address}, Ray {ray.__version__} here; use an image built with the same constraints.txt")


def _token() -> dict[str, str]:
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    token = os.environ.get("RAY_AUTH_TOKEN") or (Path(path).read_text().strip() if path and Path(path).exists() else "")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _client(address: str) -> Any:
    os.environ.pop("RAY_ADDRESS", None)  # Ray would prefer it to the address that was asked for
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise Failed(f"no Ray cluster answers at {address}: {' '.join(str(error).split())[:200]}") from error


def _running(client: Any, key: str) -> str | None:
    """The job that is at this recipe now, if any: two drivers must not write the same storage."""
    for job in client.list_jobs():
        if (job.metadata or {}).get("genmodels") == key and job.status in ("PENDING", "RUNNING"):
            return job.submission_id
    return None


def _send(client: Any, name: str, values: dict[str, Any], key: str, *, here: bool) -> str:
    names = (*PASSED_ON, "GENMODELS_DATA") if here else PASSED_ON
    variables = {variable: os.environ[variable] for variable in names if variable in os.environ}
    variables["GENMODELS_EXPECTED_VERSIONS"] = json.dumps(_versions())
    with tempfile.TemporaryDirectory() as folder:
        # pip would install a wheel in py_modules with all its dependencies again; unpacked, it is just found first.
        with zipfile.ZipFile(_wheel(Path(folder) / "wheel")) as wheel:
            wheel.extractall(Path(folder) / "job")
        (Path(folder) / "job" / "recipe.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        return client.submit_job(
            entrypoint="python -m pipelines.cli run recipe.yaml",
            submission_id=f"{name}-{uuid.uuid4().hex[:8]}",
            runtime_env={"working_dir": str(Path(folder) / "job"), "env_vars": variables},
            metadata={"genmodels": key, "recipe": name},
        )


def _wheel(folder: Path) -> Path:
    """Our own wheel, built from the source tree that this module lies in; with the compiled samplers where this machine has a compiler."""
    clean = sources(folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(clean)]
    built = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **_built()})
    if built.returncode:
        raise Failed(f"the wheel could not be built: {' '.join(built.stderr.split())[-300:]}")
    return next(folder.glob("genmodels-*.whl"))


def _built() -> dict[str, str]:
    """Where the checkout's own compiled samplers are, so that they are not compiled anew for every job; nothing where their sources are younger, or
    where CXX asks for a compiler."""
    if "CXX" in os.environ:
        return {}
    root = Path(__file__).resolve().parents[1]
    libraries = list((root / "genmodels" / "sampling").glob("_native_*.so"))
    texts = [root / "setup.py", *(root / "genmodels" / "sampling" / "kernels").iterdir()]
    younger = max(text.stat().st_mtime for text in texts) > min((library.stat().st_mtime for library in libraries), default=0)
    return {} if younger else {"GENMODELS_BUILT": str(root / "genmodels" / "sampling")}


def sources(folder: Path) -> Path:
    """A copy of all that a wheel is built from: in the checkout setuptools would leave a build/ behind, and ship what an older one still holds."""
    root = Path(__file__).resolve().parents[1]
    if not (root / "pyproject.toml").exists():
        raise Refused(f"no source tree around {root}; submit from a checkout, which the wheel is built from")
    for part in ("genmodels", "pipelines", "serve"):
        shutil.copytree(root / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for part in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(root / part, folder / part)
    return folder


def _follow(client: Any, job: str) -> None:
    async def tail() -> None:
        async for text in client.tail_job_logs(job):
            sys.stderr.write(text)
            sys.stderr.flush()

    asyncio.run(tail())
    info = client.get_job_info(job)
    if info.status != "SUCCEEDED":
        raise Failed(f"job {job} ended as {info.status} (exit {info.driver_exit_code}); submit it again to go on from what is done")
    console.say(f"job {job} done", job=job, status="done")
