"""The loop: it does what plain torch does, it can be cut anywhere without a trace, several workers equal one, and nothing that breaks is hidden."""

import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genmodels import noise
from genmodels.noise import Noise, derive
from genmodels.train import NonFinite, Record, Schedule, TrainConfig, Training, fit
from tests.genmodels.tiny import EVENT, Tiny, batches

STEPS = 20
CONFIG = TrainConfig(
    steps=STEPS,
    batch_size=6,
    accumulate=2,
    schedule=Schedule(warmup=3, decay="cosine", final=0.1),
    ema=0.9,
    seed=11,
    objectives={"likelihood": {"clip": 0.05}},
)


def tiny(**config: Any) -> Tiny:
    with noise.initialising(5):
        return Tiny(EVENT, Tiny.Config(**config))


def contents(training: Training, folder: Path) -> dict[str, bytes]:
    """Every file of a training's saved state."""
    training.save(folder)
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], list[Record]]:
    training = Training(tiny(), CONFIG)
    records = training.run(batches(6), until=STEPS)
    return contents(training, tmp_path_factory.mktemp("undisturbed")), records


@pytest.mark.parametrize("cut", range(STEPS))
def test_a_run_cut_anywhere_is_the_undisturbed_run(cut: int, undisturbed: tuple[dict[str, bytes], list[Record]], tmp_path: Path) -> None:
    first = Training(tiny(), CONFIG)
    records = first.run(batches(6), until=cut)
    first.save(tmp_path / "cut")
    torch.manual_seed(cut)  # a resumed process has another global generator; nothing may read it
    second = Training(Tiny(EVENT, Tiny.Config()), CONFIG)
    second.restore(tmp_path / "cut")
    records += second.run(batches(6), until=STEPS)
    assert (contents(second, tmp_path / "end"), records) == undisturbed


LONELY = """
import sys
from pathlib import Path
from typing import Any
from genmodels.train import Training
from tests.genmodels.test_train import CONFIG, STEPS, tiny
from tests.genmodels.tiny import batches
folder = Path(sys.argv[1])
training = Training(tiny(), CONFIG)
if (folder / "last").exists():
    training.restore(folder / "last")
while training.step < STEPS:
    training.run(batches(6), until=training.step + 1)
    part = folder / str(training.step)
    training.save(part)
    (folder / "link").symlink_to(part.name)
    (folder / "link").replace(folder / "last")
    print(training.step, flush=True)
    if training.step % 7 == 0 and len(sys.argv) > 2:
        training.run(batches(6), until=STEPS)
        print("late", flush=True)
"""


def test_a_killed_process_goes_on_bit_for_bit(undisturbed: tuple[dict[str, bytes], list[Record]], tmp_path: Path) -> None:
    for stop in ("7", "14"):
        with subprocess.Popen([sys.executable, "-c", LONELY, tmp_path, "dies"], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert any(line.strip() == stop for line in process.stdout)
            process.kill()
        assert process.returncode == -signal.SIGKILL
    subprocess.run([sys.executable, "-c", LONELY, tmp_path], check=True, capture_output=True)
    end = {file.name: file.read_bytes() for file in sorted((tmp_path / "last").iterdir())}
    assert end == undisturbed[0]


RANK = """
import json, sys, torch
from dataclasses import replace
from pathlib import Path
from typing import Any
from genmodels.train import Training
from tests.genmodels.test_train import CONFIG, STEPS, tiny
from tests.genmodels.tiny import batches
folder, rank = Path(sys.argv[1]), int(sys.argv[2])
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
training = Training(tiny(), replace(CONFIG, batch_size=7))
records = training.run(batches(7, rank=rank, workers=2), until=STEPS, sum_over_workers=torch.distributed.all_reduce)
training.save(folder / str(rank))
(folder / f"{rank}.json").write_text(json.dumps(records))
torch.distributed.destroy_process_group()
"""


def test_two_workers_with_uneven_slices_equal_one(tmp_path: Path) -> None:
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, tmp_path, str(rank)]) for rank in range(2)]
    assert [rank.wait(60) for rank in ranks] == [0, 0]
    one = Training(tiny(), CONFIG_OF_SEVEN)
    records = one.run(batches(7), until=STEPS)
    found = [Training(tiny(), CONFIG_OF_SEVEN) for _ in range(2)]
    for rank, training in enumerate(found):
        training.restore(tmp_path / str(rank))
        for name, value in parameters(one.model).items():
            torch.testing.assert_close(parameters(training.model)[name], value, rtol=1e-4, atol=1e-5)
    for name, value in parameters(found[0].model).items():
        assert torch.equal(parameters(found[1].model)[name], value), f"ranks drifted apart in {name}"
    for rank in range(2):
        for got, wanted in zip(json.loads((tmp_path / f"{rank}.json").read_text()), records, strict=True):
            assert got == pytest.approx(wanted, rel=1e-4, abs=1e-5)


CONFIG_OF_SEVEN = TrainConfig(**{**vars(CONFIG), "batch_size": 7})


def parameters(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in model.named_parameters()}


def test_the_loop_does_what_plain_torch_does() -> None:
    config = TrainConfig(steps=12, batch_size=6, lr=0.02, objectives={"probe": {"lr": 0.1}}, seed=3, schedule=Schedule(warmup=4))
    trained, plain = tiny(), tiny()
    fit(trained, config, batches(6))

    own = [*plain.embedding.parameters(), *plain.logits.parameters(), plain.unused]
    adam = torch.optim.AdamW(own, lr=0.02, weight_decay=0.01)
    sgd = torch.optim.SGD(plain.probe.parameters(), lr=0.1, momentum=0.9)
    for step in range(12):
        batch = batches(6)(step)
        for name, optimizer, lr, loss in (("likelihood", adam, 0.02, plain._nll), ("probe", sgd, 0.1, plain._probe)):
            if name == "probe" and step % 3:
                continue
            optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / 4)
            plain.zero_grad(set_to_none=False)
            loss(batch, Noise(derive(3, name), position=batch.position, step=step))[0].backward()
            if name == "likelihood":
                plain.unused.grad = torch.zeros(5)
                torch.nn.utils.clip_grad_norm_(own, 1.0)
            optimizer.step()
    for name, value in parameters(plain).items():
        torch.testing.assert_close(parameters(trained)[name], value, rtol=1e-5, atol=1e-6)


def test_learning_lowers_the_loss_to_the_entropy_of_the_source() -> None:
    model = tiny()
    before = model.eval().log_prob(batches(300)(0).x, batches(300)(0).y).mean()
    fit(model, TrainConfig(steps=300, batch_size=32, lr=0.05), batches(32))
    x, y = batches(300)(0).x, batches(300)(0).y
    assert y is not None
    counts = torch.stack([torch.nn.functional.one_hot(x[y == label].flatten(1).long(), 4).float().mean(0) for label in range(3)])
    entropy = -(counts * counts.clamp(min=1e-12).log()).sum((1, 2)).mean()
    found = -model.eval().log_prob(x, y).mean()
    assert entropy - 1e-3 < found < entropy + 0.1 < -before


def test_an_objective_leaves_the_others_parameters_alone() -> None:
    model = tiny()
    training = Training(model, TrainConfig(steps=9, batch_size=6, objectives={"likelihood": {"lr": 1e-30, "weight_decay": 0.0}}))
    before = {name: value.clone() for name, value in parameters(model).items()}
    records = training.run(batches(6), until=9)
    moved = {name for name, value in parameters(model).items() if not torch.equal(value, before[name])}
    assert moved == {"probe.weight", "probe.bias"}
    assert ["probe.loss" in record for record in records] == [True, False, False] * 3
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_parts_of_a_batch_add_up() -> None:
    whole, parts = (Training(tiny(), TrainConfig(steps=5, batch_size=7, accumulate=parts)) for parts in (1, 3))
    wanted = whole.run(batches(7), until=5)
    for got, want in zip(parts.run(batches(7), until=5), wanted, strict=True):
        assert got == pytest.approx(want, rel=1e-4, abs=1e-6)


def test_schedule() -> None:
    cosine = Schedule(warmup=10, decay="cosine", final=0.2)
    assert [cosine.factor(step, 111) for step in (0, 4, 9, 10, 60, 110)] == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.6, 0.2])
    assert [Schedule(warmup=2).factor(step, 9) for step in (0, 1, 2, 8)] == [0.5, 1, 1, 1]
    assert Schedule(decay="cosine").factor(0, 1) == 1


def test_the_running_mean_is_the_stated_one() -> None:
    model = tiny()
    training = Training(model, TrainConfig(steps=30, batch_size=6, ema=0.5))
    mean = model.logits.weight.detach().clone()
    for step in range(30):
        training.run(batches(6), until=step + 1)
        decay = min(0.5, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * model.logits.weight.detach()
    last = model.logits.weight.detach().clone()
    with training.averaged():
        torch.testing.assert_close(model.logits.weight.detach(), mean)
        assert not torch.equal(model.logits.weight, last)
    assert torch.equal(model.logits.weight, last)


def test_clipping_bounds_the_step_and_the_norm_is_told() -> None:
    clipped = TrainConfig(
        steps=1, batch_size=6, objectives={"likelihood": {"algorithm": "sgd", "lr": 1.0, "clip": 0.01, "weight_decay": 0.0}}
    )
    model = tiny()
    before = torch.cat([value.flatten().clone() for name, value in parameters(model).items() if "probe" not in name])
    (record,) = Training(model, clipped).run(batches(6), until=1)
    after = torch.cat([value.flatten() for name, value in parameters(model).items() if "probe" not in name])
    assert record["likelihood.gradient_norm"] > 0.01
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)


def test_a_step_that_is_not_finite_stops_the_run_and_is_told() -> None:
    training = Training(tiny(breaks_at=4), TrainConfig(steps=20, batch_size=6))
    with pytest.raises(
        NonFinite, match=r"step 5 is not finite \(likelihood.loss inf, .*likelihood.gradient_norm nan; 4 such steps"
    ) as stop:
        training.run(batches(6), until=8)
    assert (stop.value.step, stop.value.count, len(stop.value.records)) == (5, 4, 8)
    assert math.isfinite(stop.value.records[3]["likelihood.loss"])


def test_no_global_generator_is_read() -> None:
    before = torch.get_rng_state()
    fit(tiny(), CONFIG, batches(6))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_state_of_another_training_is_refused(tmp_path: Path) -> None:
    training = Training(tiny(), CONFIG)
    training.save(tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint's config is another: seed 11, here 12"):
        Training(tiny(), TrainConfig(**{**vars(CONFIG), "seed": 12})).restore(tmp_path)
    with pytest.raises(ValueError, match="checkpoint's layout is another"):
        Training(tiny(width=9), CONFIG).restore(tmp_path)
    content = bytearray((tmp_path / "state.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "state.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"state\.safetensors was changed"):
        Training(tiny(), CONFIG).restore(tmp_path)


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(ValueError, match="no objective 'generator' in Tiny; known: likelihood, probe"):
        Training(tiny(), TrainConfig(steps=1, objectives={"generator": {"lr": 1.0}}))


def test_bf16_is_refused_where_it_would_be_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "cpu_name": "bf16?"})
    with pytest.raises(ValueError, match="precision bf16 on a cpu without bf16 arithmetic; set precision f32"):
        Training(tiny(), TrainConfig(steps=1, precision="bf16"))


def test_bf16_learns_nearly_the_same() -> None:
    if not any(present is True for name, present in torch.cpu.get_capabilities().items() if "bf16" in name):
        pytest.skip("this CPU has no bf16 arithmetic")
    full, half = (Training(tiny(), TrainConfig(steps=20, batch_size=32, precision=each)) for each in ("f32", "bf16"))
    wanted, got = (training.run(batches(32), until=20)[-1]["likelihood.loss"] for training in (full, half))
    assert got == pytest.approx(wanted, rel=0.02)
    assert got != wanted
    assert all(parameter.dtype == torch.float32 for parameter in half.model.parameters())


def test_shared_parameters_move_with_each_of_their_objectives() -> None:
    model = tiny()
    shared = [*model.objectives(), *Tiny.objectives(model)[:1]]
    shared[2] = type(shared[2])(name="again", loss=model._nll, parameters=list(model.logits.parameters()))
    model.objectives = lambda: shared  # type: ignore[method-assign]
    training = Training(model, TrainConfig(steps=3, batch_size=6))
    assert [sorted(piece.names) for piece in training._pieces] == [["likelihood"], ["again", "likelihood"], ["probe"]]
    record = training.run(batches(6), until=3)[-1]
    assert {"again.loss", "likelihood.loss"} <= set(record)
