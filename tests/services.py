"""Real servers for tests, on 127.0.0.1 and free ports, ended with the test: S3 (moto's), PostgreSQL, MLflow, a Ray head."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import s3fs

MODULES = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(ready: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Raises TimeoutError when `ready` has not come true in that time."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} was not ready after {seconds:g} s")
        time.sleep(0.1)


@contextmanager
def process(command: Sequence[str], *, log: Path, **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A server in a process group of its own, ended with all its children."""
    with log.open("wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, **options)
    try:
        yield server
    finally:
        for end in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(server.pid, end)
                server.wait(timeout=10)
                break
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code < 500
    except httpx.HTTPError:
        return False


S3_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def s3(folder: Path, *, bucket: str) -> Iterator[dict[str, str]]:
    """moto's S3 with one empty bucket -> the environment that leads to it."""
    port = free_port()
    environment = {**S3_CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    with process([str(MODULES / "moto_server"), "-H", "127.0.0.1", "-p", str(port)], log=folder / "moto.log"):
        wait_for(lambda: answers(environment["AWS_ENDPOINT_URL"]), seconds=60, what="moto's S3")
        s3fs.S3FileSystem(key="testing", secret="testing", endpoint_url=environment["AWS_ENDPOINT_URL"]).mkdir(bucket)
        yield environment


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL of its own in a temporary folder -> its SQLAlchemy URL."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    initdb = str(binaries[-1] / "initdb") if binaries else shutil.which("initdb")
    if initdb is None:
        raise FileNotFoundError("PostgreSQL's server is not on this machine")
    user: dict[str, Any] = {"user": "postgres"} if os.geteuid() == 0 else {}  # PostgreSQL refuses to run as root
    data, port = folder / "pg", free_port()
    data.mkdir()
    if user:
        for path in (folder, data):
            shutil.chown(path, "postgres")
        for parent in folder.parents:
            if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
                parent.chmod(parent.stat().st_mode | 0o011)
    subprocess.run([initdb, "-D", str(data), "-U", "genmodels", "-A", "trust", "--no-sync"], check=True, capture_output=True, **user)
    server = [str(Path(initdb).parent / "postgres"), "-D", str(data), "-p", str(port), "-c", "listen_addresses=127.0.0.1"]
    server += ["-c", f"unix_socket_directories={data}", "-c", "fsync=off"]
    with process(server, log=folder / "postgres.log", **user):
        ready = [str(Path(initdb).parent / "pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
        wait_for(lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0, seconds=30, what="PostgreSQL")
        yield f"postgresql+psycopg2://genmodels@127.0.0.1:{port}/postgres"


@contextmanager
def mlflow_server(folder: Path, *, store: str) -> Iterator[str]:
    """An MLflow server over that database -> its URL."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store, "--artifacts-destination", str(folder / "mlartifacts")]
    with process(command, log=folder / "mlflow.log"):
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"), seconds=90, what="MLflow's server")
        yield f"http://127.0.0.1:{port}"


@contextmanager
def ray_head(folder: Path, *, environment: dict[str, str]) -> Iterator[str]:
    """A Ray head as a cluster would run it -> its dashboard's URL."""
    port, dashboard = free_port(), free_port()
    command = [str(MODULES / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=4"]
    with (
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as short,  # a socket's path has at most 107 bytes
        process(
            [*command, f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", f"--temp-dir={short}", "--disable-usage-stats"],
            log=folder / "ray.log",
            env={**os.environ, "PATH": f"{MODULES}:{os.environ['PATH']}", **environment},
        ),
    ):
        wait_for(lambda: answers(f"http://127.0.0.1:{dashboard}/api/version"), seconds=90, what="Ray's dashboard")
        yield f"http://127.0.0.1:{dashboard}"
