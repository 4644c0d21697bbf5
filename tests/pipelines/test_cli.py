"""The command: exit codes, one line for a user's mistake, JSON for machines, and --help at once."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from rich.table import Table

from pipelines import answers, cli, console, plan

ROOT = Path(__file__).parents[2]


def run(*arguments: str, cwd: Path | None = None) -> tuple[int, str]:
    """Exit code and stderr of the command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments], capture_output=True, text=True, cwd=cwd, timeout=120, check=False
    )
    return done.returncode, done.stderr


def complain(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    return int(end.value.code or 0), capsys.readouterr().err.strip()


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["trian", "x"], 2, "genmodels: unknown command 'trian'; did you mean 'train'?"),
        (
            ["run", "digits-pixelcn"],
            2,
            "genmodels: unknown recipe 'digits-pixelcn'; did you mean 'digits-pixelcnn'? (or give a path that ends in .yaml)",
        ),
        (["run", "nowhere.yaml"], 2, None),
        (
            ["plan", "digits-pixelcnn", "--set", "train.stepz=1"],
            2,
            "genmodels: recipe digits-pixelcnn: train.stepz: unknown key 'stepz'; did you mean 'steps'?",
        ),
        (["sample"], 2, "genmodels: missing argument 'MODEL'; see genmodels --help"),
        (
            ["submit", "digits-pixelcnn", "--address", "head"],
            2,
            "genmodels: --address head: wanted the dashboard's URL, as http://head:8265",
        ),
    ],
)
def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, line: str | None) -> None:
    got, text = complain(capsys, *arguments)
    assert got == code
    assert "\n" not in text and "Traceback" not in text
    assert line is None or text == line


def test_names_with_brackets_are_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    console.result("a [x] [/y].png")
    table = Table("file", box=None)
    table.add_row("b [x] [/y].png")
    answers.tell(table, [])
    console.done("prepare", "c [x] [/y]")
    plan.show([plan.Step(stage="prepare", state="done", why="data.source a -> d [x] [/y]", uri="e [x] [/y]")])
    said = capsys.readouterr()
    assert all(f"{name} [x] [/y]" in said.out for name in "abde") and "c [x] [/y]" in said.err


def test_a_path_that_cannot_be_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        Path(__file__, "below").read_text()

    assert cli._exit_code(command) == 1
    assert capsys.readouterr().err == f"genmodels: cannot write or read {__file__}/below: Not a directory; check the path\n"


def test_ctrl_c_says_how_to_go_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_stages", interrupted)
    assert complain(capsys, "train", "digits-pixelcnn") == (130, "genmodels: stopped; the same command goes on from what is done")


def test_heavy_libraries_stay_out_of_the_way() -> None:
    program = "import sys, pipelines.cli; print([n for n in ('torch', 'ray', 'mlflow', 'pyarrow', 'pydantic') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_errors_are_json_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["plan", "digits-pixelcnn", "--json", "--set", "name=No Name"])
    record = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert record["event"] == "error" and record["code"] == 2


def test_recipes_and_models_answer_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    from genmodels.zoo import MODELS
    from pipelines.recipe import names

    for command, key, wanted in (("recipes", "recipe", set(names())), ("models", "family", set(MODELS))):
        with pytest.raises(SystemExit) as end:
            cli.main([command, "--json"])
        assert not end.value.code
        assert {json.loads(line)[key] for line in capsys.readouterr().out.splitlines()} == wanted


def test_doctor_finds_what_is_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor", "--json", "--storage", str(tmp_path)])
    found = {record["what"]: record["state"] for record in map(json.loads, capsys.readouterr().out.splitlines())}
    assert not end.value.code
    assert found["torch"] == found["storage"] == "ok"


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert [name for name in wanted if re.split("[][;<>=! ]", name)[0].lower() not in pinned] == []


def test_no_color_is_honoured(tmp_path: Path) -> None:
    environment = {**os.environ, "NO_COLOR": "1", "FORCE_COLOR": ""}
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "recipes"], capture_output=True, env=environment, cwd=tmp_path, check=True
    )
    assert b"\x1b[" not in done.stdout
