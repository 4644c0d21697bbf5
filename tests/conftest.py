"""What all tests share: one torch thread, storage of their own, and one local Ray a module for those that need it."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # small ops on two busy threads are ten times slower
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)

import pytest

from pipelines import cluster


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Ray's token and MLflow's files stay inside the test's own folders."""
    os.environ["RAY_AUTH_MODE"] = "token"
    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text("0" * 64)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"


@pytest.fixture(scope="module")
def ray_session() -> Iterator[object]:
    """A local Ray for the tests of one module."""
    yield cluster.connect()
    cluster.shutdown()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; a test that needs it is skipped by name where GENMODELS_DATA is not set."""
    folder = os.environ.get("GENMODELS_DATA")
    if not folder:
        pytest.skip("GENMODELS_DATA is not set")
    return Path(folder).resolve()
