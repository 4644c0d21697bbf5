"""One Ray for all stages: the cluster that RAY_ADDRESS names, or else a local one that ends with the command."""

import logging
import os
import secrets
import sys
from pathlib import Path
from typing import Any

from pipelines.errors import Failed, Refused

LOGICAL_CPUS = 4
"""A local Ray counts at least so many: with two, standing demands (replicas, workers) would starve the rest for ever, without a word."""

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_USE_DATASOURCE_V2": "0",  # else eight tiny Parquet files take seconds to open
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # else each report waits for a 2 s poll
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SERVE_ENABLE_TASK_EVENTS": "0",
}
_LOCAL_SETTINGS = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody takes this machine away; a process less that wakes a hundred times a second
}


def connect() -> Any:
    """Ray, initialised: attached where RAY_ADDRESS points, else started here. Calling it again changes nothing."""
    prepare_environment()
    import ray

    if ray.is_initialized():
        return ray
    try:
        if on_cluster():
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                address="local",
                num_cpus=max(LOGICAL_CPUS, _cores()),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, RuntimeError) as error:
        raise Failed(f"Ray did not start ({os.environ.get('RAY_ADDRESS', 'local')}): {' '.join(str(error).split())[:300]}") from error
    return ray


def prepare_environment() -> None:
    """Settings that Ray reads when it is first imported; whatever the user has set stays."""
    for name, value in (_SETTINGS if on_cluster() else _SETTINGS | _LOCAL_SETTINGS).items():
        os.environ.setdefault(name, value)
    if not on_cluster() and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN_PATH", str(_token()))


def on_cluster() -> bool:
    """Whether stages run on a cluster that outlives this command."""
    return bool(os.environ.get("RAY_ADDRESS")) and os.environ["RAY_ADDRESS"] != "local"


def core() -> float:
    """Logical CPUs of a task that keeps a core busy: as many of them run at once as there are cores, and a quarter is left for standing demands."""
    return 1.0 if on_cluster() else max(1.0, 0.75 * LOGICAL_CPUS / _cores())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def shutdown() -> None:
    """Ends a local Ray; leaves a cluster's."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


def need(*, cpus: float = 0, gpus: float = 0, what: str) -> None:
    """Raises Refused when the whole Ray, idle, could not give this: better a line now than waiting for ever."""
    total = connect().cluster_resources()
    if gpus > total.get("GPU", 0) and not os.environ.get("GENMODELS_AUTOSCALING"):
        raise Refused(
            f"{what} asks for {gpus:g} GPUs and this Ray has {total.get('GPU', 0):g}; set train.gpus_per_worker=0 to use CPUs, "
            "or GENMODELS_AUTOSCALING=1 where the cluster starts GPU nodes on demand"
        )
    if cpus > total.get("CPU", 0) and not os.environ.get("GENMODELS_AUTOSCALING"):
        raise Refused(f"{what} asks for {cpus:g} CPUs and this Ray has {total.get('CPU', 0):g}; lower it, or use a larger cluster")


def _token() -> Path:
    """A token of our own, so that no other user of this machine can reach the local Ray, and nothing is written where Ray would."""
    path = Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local" / "state")) / "genmodels" / "ray-token"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.touch(mode=0o600)
        part.write_text(secrets.token_hex(32))
        part.replace(path)
    return path
