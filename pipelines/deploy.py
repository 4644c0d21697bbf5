"""From a registered version to an endpoint that has answered as that version; and the endpoint that `genmodels serve` keeps up."""

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from pipelines import cluster, console
from pipelines.errors import Failed, Refused
from pipelines.fingerprint import fingerprint
from pipelines.recipe import Recipe
from pipelines.records import Deployment, Output, Version, to_json
from pipelines.sections import Serve
from pipelines.storage import exists, join, read_json, write_bytes, write_json

if TYPE_CHECKING:
    from serve.schema import Receipt, Settings, Target

VERSION = 1
MARKER = "deployment.json"
SEED = 1
"""Of the sample that is asked for."""
PATIENCE = 60.0
"""Seconds for an endpoint whose replicas run to answer as the version that they were told to serve."""

Put = Callable[[Sequence["Target"]], None]


def output(recipe: Recipe, version: Version) -> Output:
    """Done when the answer is kept; on a cluster, when besides the endpoint is live with this version."""
    name = fingerprint("deploy", VERSION, version.name, version.version, version.digest, recipe.serve.model_dump())
    uri = join(recipe.root, "deploy", f"{recipe.name}-{name}")
    done = exists(join(uri, MARKER))
    if done and cluster.on_cluster():
        done = live(read(uri).url, version)
    return Output(fingerprint=name, uri=uri, done=done)


def deploy(recipe: Recipe, version: Version) -> Deployment:
    """Serves the version, waits until it answers as that version, asks for one sample and keeps the answer and its receipt.

    On a local Ray the endpoint is ended again; on a cluster it stays up.
    """
    out = output(recipe, version)
    if out.done:
        console.done("deploy", out.uri)
        return read(out.uri)
    from serve.schema import Target

    aliases = ("champion",) if version.champion else ()
    target = Target(name=version.name, version=version.version, artifact=version.artifact, digest=version.digest, aliases=aliases)
    with console.stage("deploy", total=4, unit="steps") as bar, _serving(recipe.serve, other_port=True) as (url, put):
        bar.to(1, note="starting replicas")
        put([target])
        bar.to(2, note=f"waiting for version {version.version}")
        _wait(lambda: live(url, version), url)
        bar.to(3, note="one sample")
        record = _query(out.uri, url, version)
        write_json(join(out.uri, MARKER), to_json(record))
        bar.to(4, note=f"answered at {url}")
    return record


def read(uri: str) -> Deployment:
    """The record of a finished deployment."""
    return Deployment(**read_json(join(uri, MARKER)))


def live(url: str, version: Version) -> bool:
    """Whether the endpoint at a URL serves this very version: its number and its artifact's digest."""
    import httpx

    from serve.client import Client, Refused

    with suppress(httpx.HTTPError, Refused, ValueError), Client(url, timeout=10, retries=0) as client:
        said = client.model(version.name)
        return (said.version, said.artifact) == (version.version, version.digest)
    return False


def serve_forever(models: Sequence[str], *, storage: str = "./runs", settings: Serve, stop: threading.Event | None = None) -> None:
    """Keeps an endpoint of these models up until Ctrl-C or SIGTERM, or until `stop` is set. Raises Refused for an unknown model or a port in use."""
    targets = [_located(model, storage) for model in models]
    stop = stop or threading.Event()
    with _stopping(stop), _serving(settings, other_port=False) as (url, put):
        console.say(f"starting {', '.join(f'{target.name} version {target.version}' for target in targets)}; a few seconds")
        put(targets)
        _wait(lambda: stop.is_set() or _answers(url), url)
        _announce(url)
        while not stop.wait(0.5):
            pass
        console.say("ending the endpoint")
    cluster.shutdown()


def _announce(url: str) -> None:
    from serve import documentation
    from serve.client import Client

    with Client(url) as client:
        served = client.models()
    console.say(f"[bold]{url}[/bold] is up (documentation: {url}/docs); Ctrl-C ends it", event="serving", url=url)
    for model in served:
        console.result(documentation.curl(url, model))


def _located(model: str, storage: str) -> "Target":
    from serve import catalogue
    from serve.schema import Target

    try:
        return Target(**vars(catalogue.resolve(model, storage=storage)))
    except ValueError as error:
        raise Refused(str(error)) from None


@contextmanager
def _serving(settings: Serve, *, other_port: bool) -> Iterator[tuple[str, Put]]:
    """Ray Serve's proxy -> its URL and how to put models behind it. On a local Ray it ends with the block."""
    if cluster.on_cluster() and settings.port == 0:
        raise Refused("serve.port is 0, any free one, which is for a local Ray alone; name the cluster's port, as --set serve.port=8000")
    port = settings.port if cluster.on_cluster() else _port(settings.host, settings.port, other=other_port)
    ray = cluster.connect()
    from serve import cluster as endpoint
    from serve.schema import Settings

    chosen = Settings.of({**settings.model_dump(), "port": port})
    host = ray.util.get_node_ip_address() if settings.host in ("0.0.0.0", "::") and cluster.on_cluster() else settings.host
    url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"
    try:
        _or_fail(lambda: endpoint.start(chosen), chosen)
        yield url, lambda targets: _or_fail(lambda: endpoint.put(targets, chosen), chosen)
    finally:
        if not cluster.on_cluster():
            endpoint.stop()


def _or_fail(act: Callable[[], None], settings: "Settings") -> None:
    try:
        act()
    except (RuntimeError, TimeoutError, ValueError) as error:
        raise Failed(f"no endpoint at {settings.host}:{settings.port}: {' '.join(str(error).split())[-400:]}") from error


def _port(host: str, port: int, *, other: bool) -> int:
    """The port, if it is free; else another one, said so, or Refused."""
    if port and _free(host, port):
        return port
    if port and not other:
        raise Refused(f"port {port} of {host} is in use; give another with --port, or --port 0 for any free one")
    with socket.socket() as probe:
        probe.bind((host, 0))
        found = probe.getsockname()[1]
    if port:
        console.say(f"port {port} of {host} is in use; the endpoint answers at port {found} this time")
    return found


def _free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            raise Refused(f"port {port} of {host} needs more rights than this user has; choose one above 1023") from None
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno == 99:
                raise Refused(f"this machine has no address {host}; wanted 127.0.0.1, 0.0.0.0 or one of its own") from None
            return False
    return True


def _wait(ready: Callable[[], bool], url: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if time.monotonic() > deadline:
            raise Failed(
                f"{url} did not answer as this version within {PATIENCE:.0f} s; if Ray Serve runs at another port, set serve.port to it"
            )
        time.sleep(0.2)


def _answers(url: str) -> bool:
    import httpx

    with suppress(httpx.HTTPError):
        return httpx.get(f"{url}/readyz", timeout=10).status_code == 200
    return False


def _query(uri: str, url: str, version: Version) -> Deployment:
    """One sample from the endpoint: kept as a picture or sound, its receipt checked against the levels and against this version."""
    from serve.client import Client

    with Client(url) as client:
        # A model that draws under a condition is asked under one of zeros: whether it answers is what is tried here, not how well.
        wanted = client.model(version.name).event.get("condition")
        asked: dict[str, Any] = {"condition": _zeros(wanted["shape"])} if wanted else {}
        sample = client.sample(version.name, seed=SEED, **asked)
        media_type, content, receipt = client.file(version.name, seed=SEED, **asked)
    _check(sample.receipt, receipt, version)
    ending = {"image/png": "png", "audio/wav": "wav"}.get(media_type, "json")
    answer = join(uri, f"answer.{ending}")
    write_bytes(answer, content)
    write_json(join(uri, "receipt.json"), receipt.model_dump())
    return Deployment(
        url=url,
        model=version.name,
        version=version.version,
        live=cluster.on_cluster(),
        answer=answer,
        receipt=receipt.model_dump(),
        report="",
    )


def _zeros(shape: Sequence[int]) -> list[Any]:
    """Nested lists of zeros; shape has at least one side."""
    return [_zeros(shape[1:]) if len(shape) > 1 else 0 for _ in range(shape[0])]


def _check(first: "Receipt", second: "Receipt", version: Version) -> None:
    who = (first.model, first.version, first.artifact)
    if who != (version.name, version.version, version.digest):
        raise Failed(f"the endpoint answered as {' '.join(who)}; wanted {version.name} {version.version} {version.digest}")
    if first != second:
        raise Failed(f"the endpoint drew seed {SEED} twice and gave levels {first.levels} and {second.levels}; wanted the same")


@contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM set `stop` while the block runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, lambda *_: stop.set())
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
