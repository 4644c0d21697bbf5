"""The endpoint on Ray Serve: an ingress at the door, and for each model an application of its own whose replicas draw and score.

A model moves to another version by user_config alone (its replicas load it and go on answering), and models come and go without the others
noticing. Ray is started by whoever calls; nothing here talks to the registry.
"""

import asyncio
import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

import genmodels
from serve.app import build
from serve.directory import Directory
from serve.messages import Classified, Decode, Decoded, Draw, Drawn, Encode, Encoded, Examples, Fill, Filled, Interpolate, Weigh, Weighed
from serve.problem import Problem
from serve.schema import Description, Settings, Target

DOOR = "genmodels"
PREFIX = "genmodels."
RETRY_AFTER = 1
"""Seconds after which a client that was turned away may ask again."""
ATTEMPTS = 5
LOST = (ActorDiedError, ActorUnavailableError, DeploymentUnavailableError)
DEAD = (503, "not-ready", "the model's replicas died one after another; ask again", {"Retry-After": "5"})
_CARE = {
    "health_check_period_s": 10,
    "health_check_timeout_s": 30,
    "graceful_shutdown_wait_loop_s": 0.2,
    "graceful_shutdown_timeout_s": 20,
    "max_constructor_retry_count": 3,
}
PATIENCE = 900.0 if os.environ.get("GENMODELS_AUTOSCALING") else 120.0
"""Seconds for replicas to start; a cluster that has to start a node for them takes minutes."""


class Replicas:
    """A model's replicas behind Ray Serve's router. A request is asked again of another replica when the one that had it dies: it has a seed,
    so the answer is the same."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def describe(self) -> Description:
        return await self._ask(lambda: self._handle.describe.remote())

    async def sample(self, asked: Draw) -> Drawn:
        return await self._ask(lambda: self._handle.sample.remote(asked))

    async def complete(self, asked: Fill) -> Filled:
        return await self._ask(lambda: self._handle.complete.remote(asked))

    async def score(self, asked: Weigh) -> Weighed:
        return await self._ask(lambda: self._handle.score.remote(asked))

    async def classify(self, asked: Examples) -> Classified:
        return await self._ask(lambda: self._handle.classify.remote(asked))

    async def encode(self, asked: Encode) -> Encoded:
        return await self._ask(lambda: self._handle.encode.remote(asked))

    async def decode(self, asked: Decode) -> Decoded:
        return await self._ask(lambda: self._handle.decode.remote(asked))

    async def interpolate(self, asked: Interpolate) -> Decoded:
        return await self._ask(lambda: self._handle.interpolate.remote(asked))

    async def listen(self, asked: Draw) -> AsyncGenerator[Drawn]:
        """When a replica dies another one goes on: it draws the same, and what was heard already is left out."""
        heard = 0
        for attempt in range(ATTEMPTS):
            response: Any = self._handle.options(stream=True).listen.remote(asked)
            at = 0
            try:
                async for piece in response:
                    new = piece.levels[:, max(0, heard - at) :]
                    at += piece.levels.shape[1]
                    if new.size:
                        heard = at
                        yield replace(piece, levels=new)
                        asked = replace(asked, version=piece.description.version)
                return
            except LOST:
                await asyncio.sleep(0.1 * 2**attempt)
            except Exception as error:
                raise _said(error) from None
            finally:
                response.cancel()
        raise Problem(*DEAD)

    async def _ask(self, call: Callable[[], Any]) -> Any:
        for attempt in range(ATTEMPTS):
            response = call()
            try:
                return await response
            except asyncio.CancelledError:  # nobody waits for it any more: the replica shall know
                response.cancel()
                raise
            except LOST:
                await asyncio.sleep(0.1 * 2**attempt)
            except Exception as error:
                raise _said(error) from None
        raise Problem(*DEAD)


def _said(error: Exception) -> Exception:
    """The Problem that a replica or its queue means by an error; else the error."""
    if isinstance(error, BackPressureError):
        return Problem(429, "overloaded", "too many requests wait already; ask again", {"Retry-After": str(RETRY_AFTER)})
    return error.cause if isinstance(error, RayTaskError) and isinstance(error.cause, Problem) else error


@serve.ingress()
class Ingress:
    """Checks requests, asks the replicas, and writes the answers. user_config: {"models": names of their applications, "settings": ...}."""

    def __init__(self, token: str | None) -> None:
        self._app = build(Directory(), Settings(), token=token)

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        self._app.state.settings = Settings.of(config["settings"])
        handles = {name.removeprefix(PREFIX): Replicas(serve.get_deployment_handle("Replica", name)) for name in config["models"]}
        self._app.state.directory.put(handles)

    def __serve_build_asgi_app__(self) -> Any:
        return self._app


def start(settings: Settings) -> None:
    """Ray Serve's HTTP proxy; does nothing where one is up already."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options={"host": settings.host, "port": settings.port, "request_timeout_s": settings.timeout_s + 10})


def put(targets: Sequence[Target], settings: Settings) -> None:
    """Serves these models beside those that are served already, each in the place of any other version of it; returns when all answer."""
    slots = _slots(targets)
    models = [*(name for name in _running() if name not in slots), *slots]
    door = _ingress(settings, models)
    runs = [serve.RunTarget(_replicas(target, settings), name=name, route_prefix=None) for name, target in slots.items()]
    serve.run_many([*runs, serve.RunTarget(door, name=DOOR, route_prefix="/")], wait_for_applications_running=False)
    _wait([*slots, DOOR])


def _wait(names: Sequence[str]) -> None:
    """Until these applications run. Raises RuntimeError with the replicas' own reason, or TimeoutError when there is no room for them."""
    deadline = time.monotonic() + PATIENCE
    while True:
        applications = serve.status().applications
        found = {name: applications[name] for name in names}
        if all(application.status == "RUNNING" for application in found.values()):
            return
        for name, application in found.items():
            if application.status == "DEPLOY_FAILED":
                raise RuntimeError(f"{name.removeprefix(PREFIX)}: {_reason(application)}")
        if time.monotonic() > deadline:
            waiting = "; ".join(f"{name} {application.status}: {_reason(application)}" for name, application in found.items())
            raise TimeoutError(f"not up within {PATIENCE:.0f} s ({waiting}); is there a CPU or GPU left for serve.cpus_per_replica?")
        time.sleep(0.1)


def _reason(application: Any) -> str:
    """The last error that the replicas' messages name."""
    text = "\n".join([application.message, *(deployment.message for deployment in application.deployments.values())])
    errors = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception): (.+)$", text, re.MULTILINE)
    return errors[-1] if errors else " ".join(text.split())[-300:]


def stop() -> None:
    """Ends Ray Serve and all that it serves."""
    for name in serve.status().applications:
        serve.delete(name, _blocking=False)
    with suppress(ValueError, RayActorError):  # Serve's own call is retried for ever and says so on stdout when the controller is gone
        controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        ray.get(controller.graceful_shutdown.options(max_task_retries=0).remote(), timeout=30)
    serve.shutdown()


def token_hash() -> str | None:
    """SHA-256 of $GENMODELS_TOKEN, so that the token itself is stored nowhere."""
    token = os.environ.get("GENMODELS_TOKEN")
    return hashlib.sha256(token.encode()).hexdigest() if token else None


def _slots(targets: Sequence[Target]) -> dict[str, Target]:
    """An application for each; a further version of the same model gets one of its own."""
    slots: dict[str, Target] = {}
    for target in targets:
        name = PREFIX + target.name
        slots[name if name not in slots else f"{name}-{target.version}"] = target
    return slots


def _running() -> list[str]:
    return [name for name in serve.status().applications if name.startswith(PREFIX)]


def _ingress(settings: Settings, models: Sequence[str]) -> serve.Application:
    options: dict[str, Any] = {
        "num_replicas": 1,
        "max_ongoing_requests": 4 * settings.max_queue + 100,  # it only waits; the models' own queues say when it is too much
        "max_queued_requests": 4 * settings.max_queue,
        "backpressure_config": {"status_code": 429, "retry_after_s": RETRY_AFTER},
        **_CARE,
        "ray_actor_options": {"num_cpus": min(0.1, settings.cpus_per_replica)},
        "user_config": {"models": list(models), "settings": asdict(settings)},
    }
    return _deployment(Ingress, options, token_hash())


def _replicas(target: Target, settings: Settings) -> serve.Application:
    from serve.replica import Replica  # torch: the ingress does without

    actor: dict[str, Any] = {
        "num_cpus": settings.cpus_per_replica,
        "num_gpus": settings.gpus_per_replica,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(settings.threads)}},
    }
    options: dict[str, Any] = {
        "num_replicas": settings.replicas,
        "max_ongoing_requests": max(2, settings.max_batch),
        "max_queued_requests": settings.max_queue,
        **_CARE,
        "ray_actor_options": actor,
        "user_config": {**asdict(target), "aliases": list(target.aliases)},
    }
    return _deployment(Replica, options, asdict(settings))


def _deployment(kind: Any, options: Mapping[str, Any], argument: Any) -> serve.Application:
    """A deployment whose replicas are started anew only when their code or their argument changes; else a new user_config is all they get.

    Ray Serve gives each run a random version, by which every replica would be replaced: so the version is ours (the keyword is Ray's own, not
    public; tests/serve/test_cluster.py sees that it does what it did).
    """
    version = hashlib.blake2b(json.dumps([_code(), argument]).encode(), digest_size=8).hexdigest()
    deployment = serve.deployment(kind, name=kind.__name__, **options)
    return deployment.options(version=version, _internal=True).bind(argument)


def _code() -> str:
    """Hash of what a replica runs of ours."""
    digest = hashlib.blake2b(digest_size=8)
    for package in (genmodels, sys.modules[__package__ or "serve"]):
        for file in sorted(Path(next(iter(package.__path__))).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
