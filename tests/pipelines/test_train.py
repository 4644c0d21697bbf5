"""Training: what the fingerprint depends on, the log, the loader; and through Ray, killed twice, the bits of a run that nobody disturbed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from genmodels import artifact
from genmodels.core import Batch
from genmodels.models.bayesnet import BayesNet
from pipelines import journal, storage
from pipelines.errors import Failed, Refused
from pipelines.journal import Journal
from pipelines.learning import Learning, Loader, fresh, numbers
from pipelines.recipe import Recipe
from pipelines.records import Shards
from pipelines.shards import open_shards
from pipelines.train import OTHER_CODE, _check, _claim, _conclude, one_line, output
from tests.pipelines import small

TINY = ("train.batch_size=16", "model.hidden=8", "model.layers=2", "train.ema=0.9")


def digits(root: Path, **rows: int) -> Shards:
    """The digits as finished Shards whose manifest counts the labels."""
    shards = small.digits(root, rows=rows or None)
    path = Path(shards.uri) / "manifest.json"
    value = json.loads(path.read_text())
    value["splits"] = {"train": {"labels": {name: 50 + index for index, name in enumerate(shards.labels)}}}
    path.write_text(json.dumps(value))
    return open_shards(shards.uri)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return digits(tmp_path_factory.mktemp("data"))


def recipe(root: Path, *changes: str) -> Recipe:
    return small.recipe(root, *TINY, *changes)


def test_the_fingerprint_follows_what_shapes_the_weights(shards: Shards, tmp_path: Path) -> None:
    plain = output(recipe(tmp_path), shards).fingerprint
    for change in (
        "train.workers=2",
        "train.gpus_per_worker=1",
        "train.checkpoint_every=7",
        "train.max_failures=0",
        "serve.port=1",
        "model.kernel=5",
    ):
        assert output(recipe(tmp_path, change), shards).fingerprint == plain, change
    for change in (
        "train.seed=1",
        "train.lr=0.5",
        "train.threads=2",
        "train.compile=true",
        "model.hidden=9",
        "train.valid_every=3",
        "train.schedule.warmup=5",
    ):
        assert output(recipe(tmp_path, change), shards).fingerprint != plain, change
    other = Shards(**{**vars(shards), "fingerprint": "other"})
    assert output(recipe(tmp_path), other).fingerprint != plain
    assert output(recipe(tmp_path), shards).uri == f"{tmp_path}/train/small-{plain}"


def test_the_recipe_reaches_the_loop(shards: Shards, tmp_path: Path) -> None:
    changes = (
        "train.schedule.decay=cosine",
        "train.objectives.likelihood.clip=0.5",
        "train.accumulate=2",
        "train.seed=9",
        "train.lr=0.1",
        "train.compile=true",
    )
    config = numbers(recipe(tmp_path, *changes).train)
    assert (config.schedule.decay, config.accumulate, config.seed, config.lr, config.batch_size) == ("cosine", 2, 9, 0.1, 16)
    assert config.objectives == {"likelihood": {"clip": 0.5}} and config.compile


def test_label_frequencies_are_those_of_the_training_set(shards: Shards, tmp_path: Path) -> None:
    expected = torch.arange(50, 60) / torch.arange(50, 60).sum()
    torch.testing.assert_close(fresh(recipe(tmp_path), shards).class_frequencies, expected)


@pytest.mark.parametrize("cut", [3, 5])
def test_learning_cut_at_a_pause_is_the_undisturbed_one(shards: Shards, tmp_path: Path, cut: int) -> None:
    wanted = recipe(tmp_path, "train.steps=8", "train.valid_every=2", "train.checkpoint_every=3")
    ends = []
    for stop in (None, cut):
        learning = Learning(wanted, shards)
        pauses = [(pause.step, pause.records, pause.score, pause.best) for pause in learning.pauses() if stop is None or pause.step <= stop]
        if stop is not None:
            learning = Learning(wanted, shards)
            for pause in learning.pauses():
                if pause.step == stop:
                    break
            learning.save(tmp_path / "state")
            learning = Learning(wanted, shards)
            learning.restore(tmp_path / "state")
            pauses += [(pause.step, pause.records, pause.score, pause.best) for pause in learning.pauses()]
        learning.save(tmp_path / f"end-{stop}")
        ends.append((pauses, {file.name: file.read_bytes() for file in (tmp_path / f"end-{stop}").iterdir()}))
    assert ends[0] == ends[1]
    assert [pause[0] for pause in ends[0][0] if pause[2]] == [2, 4, 6, 8]


def test_the_kept_weights_are_the_best_ones(shards: Shards, tmp_path: Path) -> None:
    """A learning rate that ruins the model after the first validation: what is kept scores as the log says, and the model goes on unharmed."""
    learning = Learning(recipe(tmp_path, "train.steps=6", "train.valid_every=3", "train.lr=3"), shards)
    scores = {pause.step: pause.score.value for pause in learning.pauses() if pause.score}
    assert learning.best["step"] == min(scores, key=lambda step: scores[step])
    present = {name: value.clone() for name, value in learning.training.model.state_dict().items()}
    learning._weights = {name: torch.zeros_like(value) for name, value in learning._weights.items()}
    with learning.kept() as (model, which):
        assert which == "best"
        assert all(not value.any() for value in model.state_dict().values())
    assert all(torch.equal(value, present[name]) for name, value in learning.training.model.state_dict().items())


@pytest.mark.parametrize("cut", [1, 3])
def test_passes_cut_at_a_pause_are_the_undisturbed_ones(shards: Shards, tmp_path: Path, cut: int) -> None:
    wanted = passes(tmp_path, "train.steps=5", "train.valid_every=2", "model.tolerance=0")
    ends = []
    for stop in (5, cut):
        learning, seen = Learning(wanted, shards), []
        while not learning.training.done:
            for pause in learning.pauses():
                seen.append((pause.step, pause.records, pause.score, pause.best))
                if pause.step == stop:
                    break
            learning.save(tmp_path / "state")
            learning = Learning(wanted, shards)
            learning.restore(tmp_path / "state")
        learning.save(tmp_path / f"end-{stop}")
        ends.append((seen, {file.name: file.read_bytes() for file in (tmp_path / f"end-{stop}").iterdir()}))
    assert ends[0] == ends[1]
    assert [(step, len(records), score is not None) for step, records, score, _ in ends[0][0]] == [
        (step, 1, step in (2, 4, 5)) for step in range(1, 6)
    ]


def passes(root: Path, *changes: str) -> Recipe:
    """A recipe of a family that learns by passes."""
    return small.recipe(root, "model.components=2", *changes, family="mixture")


def test_a_pass_is_every_training_example_once_and_ends_with_the_model(shards: Shards, tmp_path: Path) -> None:
    learning = Learning(small.recipe(tmp_path, "train.steps=9", "train.batch_size=70", family="bayesnet"), shards)
    seen = [batch.position for batch in learning._passes()(0)]
    assert torch.equal(torch.cat(seen), torch.arange(600)) and max(map(len, seen)) == 70
    (pause,) = learning.pauses()
    assert (pause.step, learning.training.done, learning.checkpoint_due, learning.examples_a_step) == (1, True, True, 600)
    assert pause.score is not None and pause.best
    with learning.kept() as (model, which):
        assert which == "best" and isinstance(model, BayesNet) and model.converged


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.workers=2", "train.workers: mixture learns by passes over the data, on one worker (got 2); set it to 1"),
        ("train.lr=0.1", "train.lr: mixture learns by passes over the data, not by descent; leave it out"),
        ("train.ema=0.9", "train.ema: mixture learns by passes over the data, not by descent; leave it out"),
        ("train.precision=bf16", "train.precision: mixture learns by passes over the data, not by descent; leave it out"),
        ("train.schedule.warmup=3", "train.schedule: mixture learns by passes over the data, not by descent; leave it out"),
    ],
)
def test_numbers_of_descent_are_refused_where_nothing_descends(tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(Refused, match=f"^recipe small: {re.escape(said)}$"):
        passes(tmp_path, change)


def test_loader_reads_ahead_in_order_and_passes_errors_on() -> None:
    def read(step: int) -> Batch:
        if step == 7:
            raise OSError("disk gone")
        return Batch(x=torch.full((2, 1), step), position=torch.arange(2), step=step)

    with Loader(read, 20) as loader:
        assert [int(loader(step).x[0]) for step in range(3, 7)] == [3, 4, 5, 6]
        with pytest.raises(OSError, match="disk gone"):
            loader(7)
    with Loader(lambda step: read(0), 10**9) as endless:
        assert len(endless(0)) == 2
        thread = endless._thread
    assert thread is not None and not thread.is_alive()


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_a_resumed_log_has_every_step_once(tmp_path: Path, scheme: str) -> None:
    uri = f"{scheme}{tmp_path}/log.jsonl"
    first = Journal(uri, step=0)
    first.write("started", 0)
    for step in (10, 20, 30):
        first.write("step", step, loss=float("nan") if step == 30 else 1.0 / step)
        first.flush()
    assert journal.read(uri)[-1] == {"event": "step", "step": 30, "loss": "nan"}
    if not scheme:
        with (tmp_path / "log.jsonl").open("a") as file:
            file.write('{"event": "step", "st')  # killed while it wrote
        assert journal.read(uri)[-1]["step"] == 30
    whole = journal.read(uri)
    for last, lines in ((1, 0), (80, 1), (10**6, len(whole))):  # bytes of its end, of which the first line may be cut
        assert journal.read(uri, last=last) == whole[len(whole) - lines :]
    second = Journal(uri, step=20)
    second.write("started", 20)
    second.write("step", 30, loss=0.25)
    second.write("finished", 30)
    second.flush()
    assert [(line["event"], line["step"]) for line in journal.read(uri)] == [
        ("started", 0),
        ("step", 10),
        ("step", 20),
        ("started", 20),
        ("step", 30),
        ("finished", 30),
    ]


def test_other_code_goes_on_only_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "run")
    mine = _claim(uri)
    storage.write_json(storage.join(uri, "run.json"), {"code": ["older"]})
    assert _claim(uri) == mine  # nothing was kept of it: it begins again
    storage.write_json(storage.join(uri, "run.json"), {"code": ["older"]})
    storage.write_json(storage.join(uri, "checkpoint_1", "state.json"), {})
    with pytest.raises(Refused, match="training begun by other code \\(older, this is"):
        _claim(uri)
    monkeypatch.setenv(OTHER_CODE, "1")
    assert _claim(uri) == f"older+{mine}"


def test_what_cannot_be_done_is_said(shards: Shards, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"train\.workers 20 of a batch of 16"):
        _check(recipe(tmp_path, "train.workers=20"), shards)
    log = str(tmp_path / "log.jsonl")
    with pytest.raises(Failed, match="ended without an artifact"):
        _conclude(output(recipe(tmp_path), shards), recipe(tmp_path), log)
    book = Journal(log, step=0)
    book.write("stopped", 3, message="step 3 is not finite (loss nan)")
    book.flush()
    with pytest.raises(Failed, match=r"recipe small: training stopped: step 3 is not finite \(loss nan\)"):
        _conclude(output(recipe(tmp_path), shards), recipe(tmp_path), log)
    assert (
        one_line(RuntimeError("Traceback\n  File x\nOSError: [Errno 28] No space left on device\n"))
        == "OSError: [Errno 28] No space left on device"
    )


CHANGES = (*TINY, "train.steps=1600", "train.workers=2", "train.valid_every=400", "train.checkpoint_every=50")

ALONE = """
import sys, torch
from pathlib import Path
from genmodels import artifact
from pipelines.learning import Learning
from pipelines.shards import open_shards
from pipelines.worker import _sum
from tests.pipelines import small
from tests.pipelines.test_train import CHANGES
root, uri, rank = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
torch.distributed.init_process_group("gloo", init_method=f"file://{root}/meet", rank=rank, world_size=2)
learning = Learning(small.recipe(root, *CHANGES), open_shards(uri), rank=rank, workers=2, sum_over_workers=_sum)
for pause in learning.pauses():
    if rank == 0:
        print([record["likelihood.loss"] for record in pause.records], flush=True)
if rank == 0:
    with learning.kept() as (model, _):
        artifact.save(model, root / "alone", family="gated_pixelcnn", prepare={}, labels=[])
torch.distributed.destroy_process_group()
"""

DRIVER = """
import sys
from pathlib import Path
from pipelines.shards import open_shards
from pipelines.train import train
from tests.pipelines import small
from tests.pipelines.test_train import CHANGES
if __name__ == "__main__":
    print(train(small.recipe(Path(sys.argv[1]), *CHANGES), open_shards(sys.argv[2])).digest)
"""


@pytest.mark.ray
def test_killed_worker_and_killed_driver_leave_no_trace(shards: Shards, tmp_path: Path) -> None:
    alone = [subprocess.Popen([sys.executable, "-c", ALONE, tmp_path, shards.uri, str(rank)], stdout=subprocess.PIPE) for rank in range(2)]
    losses = [loss for line in (alone[0].communicate(timeout=120)[0]).splitlines() for loss in json.loads(line)]
    assert [process.wait(60) for process in alone] == [0, 0]

    out = output(small.recipe(tmp_path, *CHANGES), shards)
    log = storage.join(out.uri, "log.jsonl")
    command = [sys.executable, "-c", DRIVER, str(tmp_path), shards.uri]
    with (tmp_path / "driver.txt").open("w") as text:
        driver = subprocess.Popen(command, stdout=text, stderr=text)
        lines = _until(log, lambda lines: lines[-1]["step"] > 300, driver)  # checkpoints are there
        assert lines[-1]["event"] != "finished"
        os.kill(_workers(driver.pid)[0], signal.SIGKILL)
        _until(log, lambda lines: _starts(lines) == 2 and lines[-1]["step"] > 700, driver)
        driver.kill()
        driver.wait()
    assert not output(small.recipe(tmp_path, *CHANGES), shards).done
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr

    lines = journal.read(log)
    starts = [line["step"] for line in lines if line["event"] == "started"]
    assert starts[0] == 0 and 0 < starts[1] <= starts[2]
    steps = [line for line in lines if line["event"] == "step"]
    assert [line["step"] for line in steps] == sorted({line["step"] for line in steps})
    means, before = [], 0
    for line in steps:
        means.append(sum(losses[before : line["step"]]) / (line["step"] - before))
        before = line["step"]
    assert [line["loss"] for line in steps] == means
    done = json.loads((Path(out.uri) / "checkpoint.json").read_text())
    assert done["digest"] == again.stdout.strip().splitlines()[-1] == artifact.verify(Path(done["uri"]))
    weights = [(folder / "model.safetensors").read_bytes() for folder in (Path(done["uri"]), tmp_path / "alone")]
    assert weights[0] == weights[1]
    assert not list(Path(out.uri).glob("checkpoint_*"))


def _until(log: str, holds: Callable[[list[dict[str, Any]]], bool], driver: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
    for _ in range(1800):
        lines = journal.read(log)
        if lines and holds(lines):
            return lines
        assert driver.poll() is None, "the driver ended too early"
        time.sleep(0.05)
    raise AssertionError(f"not so after 90 s: {lines[-1:]}")


def _starts(lines: list[dict[str, Any]]) -> int:
    return sum(line["event"] == "started" for line in lines)


def _workers(driver: int) -> list[int]:
    """Pids of the training workers that descend from a driver."""
    rows = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout.splitlines()
    table = [(int(pid), int(parent), command) for pid, parent, command in (row.split(None, 2) for row in rows)]
    family = {driver}
    while grown := {pid for pid, parent, _ in table if parent in family} - family:
        family |= grown
    return [pid for pid, _, command in table if pid in family and command.startswith("ray::RayTrainWorker")]
