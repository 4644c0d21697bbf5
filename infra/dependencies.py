"""Prints the project's dependencies, one a line, so that an image can install them without the project: python infra/dependencies.py."""

import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent


def dependencies(pyproject: Path) -> list[str]:
    """The [project] dependencies of a pyproject.toml."""
    return tomllib.loads(pyproject.read_text())["project"]["dependencies"]


if __name__ == "__main__":
    beside = HERE / "pyproject.toml"
    print("\n".join(dependencies(beside if beside.exists() else HERE.parent / "pyproject.toml")))
