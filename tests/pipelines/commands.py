"""The command line run in this process, its answers read as a machine reads them."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from pipelines import cli

Command = Callable[..., list[dict[str, Any]]]


def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Takes arguments, wants exit 0, gives the JSON objects on stdout."""

    def run(*arguments: str) -> list[dict[str, Any]]:
        with pytest.raises(SystemExit) as end:
            cli.main([*arguments, "--json"])
        said = capsys.readouterr()
        assert not end.value.code, said.err
        return [json.loads(line) for line in said.out.splitlines()]

    return run
