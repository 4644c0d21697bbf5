"""What starts a cluster: ray_cluster.yaml is valid for Ray's own schema and needs two edits; the image installs what the project needs."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())


def test_ray_accepts_the_cluster(cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    monkeypatch.chdir(ROOT)
    validate_config(prepare_config(cluster))


def test_the_head_is_a_cpu_and_gpu_workers_come_on_demand(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["node_config"]["InstanceType"].startswith("m")
    assert types["gpu"]["min_workers"] == 0 and types["gpu"]["max_workers"] > 1
    assert types["gpu"]["node_config"]["InstanceType"].startswith("g")


def test_bucket_and_region_are_the_only_edits() -> None:
    lines = [line for line in (ROOT / "ray_cluster.yaml").read_text().splitlines() if "# EDIT" in line]
    assert len(lines) == 2 and "region" in lines[0] and "BUCKET" in lines[1]


def test_the_image_has_the_ray_that_is_pinned(cluster: dict[str, Any]) -> None:
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert pinned
    images = [cluster["docker"]["head_image"], cluster["docker"]["worker_image"], (ROOT / "infra" / "Dockerfile").read_text()]
    assert all(f"rayproject/ray:{pinned[1]}-py311" in image for image in images)


def test_the_files_it_copies_are_there(cluster: dict[str, Any]) -> None:
    assert all((ROOT / source).is_file() for source in cluster["file_mounts"].values())
    done = subprocess.run([sys.executable, str(ROOT / "infra" / "dependencies.py")], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
