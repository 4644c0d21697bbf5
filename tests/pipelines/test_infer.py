"""Ways of inference on one posterior: what is far off shows, what chance explains is told apart from it, and no chain is shown without its R-hat."""

import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from genmodels.core import Batch, Event
from genmodels.iterate import Iteration
from genmodels.models.posterior import Posterior
from genmodels.models.posterior_mixture import RATE, SHAPE
from genmodels.train import TrainConfig
from genmodels.zoo import build
from pipelines import cli, comparison, infer, inference, inference_page, inference_report, plots
from pipelines import recipe as recipes
from pipelines.comparison import Evidence, Found
from pipelines.errors import Failed, Refused
from pipelines.recipe import Recipe
from pipelines.records import Shards, Version
from pipelines.shards import examples, open_shards, schema
from tests.pipelines import small
from tests.pipelines.commands import command
from tests.pipelines.test_parents import parent

FEATURES = ("height", "weight")
EVENT = Event(modality="table", shape=(1,), levels=0, condition=Event(modality="table", shape=(2,), levels=0))


def draws(seed: int, chains: int = 4, n: int = 2000) -> np.ndarray:
    """(chains, n, 3) independent, of means 1, -2, 30 and scales 1, 0.1, 7."""
    return np.random.default_rng(seed).standard_normal((chains, n, 3)) * [1, 0.1, 7] + [1, -2, 30]


REFERENCE = Found(method="gibbs", draws=draws(0, n=5000), names=("a", "b", "c"), seconds=2.0)


def row(found: Found, evidence: Evidence | None = None) -> dict[str, Any]:
    """The figures beside the reference."""
    return comparison.rows(REFERENCE, [found], evidence)[1]


def test_chance_explains_the_error_of_the_same_law_and_no_other() -> None:
    """Over 25 seeds the errors of draws from the reference's law are what chance foretells of both; a shift or a wrong scale is not."""
    same = []
    for seed in range(25):
        short = Found(method="hmc", draws=draws(100 + seed, n=500), seconds=1.0)
        same.append(comparison.rows(short, [Found(method="hmc", draws=draws(200 + seed), seconds=1.0)], None)[1])
    for what in ("mean", "variance"):
        ratio = np.sqrt(np.mean([(each[f"{what}_error"] / each[f"{what}_by_chance"]) ** 2 for each in same]))
        assert 0.8 < ratio < 1.25
    off = draws(40) + np.array([0.3, 0.0, 0.0])
    assert row(Found(method="hmc", draws=off))["mean_error"] == pytest.approx(0.3 / math.sqrt(3), rel=0.15)
    narrow = (draws(41) - [1, -2, 30]) * [1, 0.5, 1] + [1, -2, 30]
    assert row(Found(method="vi-diagonal", draws=narrow.reshape(1, -1, 3), chains=False))["variance_error"] == pytest.approx(
        0.75 / math.sqrt(3), rel=0.1
    )


def test_correlated_draws_are_counted_by_their_effective_number() -> None:
    held = np.repeat(draws(2, n=500), 8, axis=1)
    found = row(Found(method="metropolis", draws=held, seconds=4.0))
    assert found["mean_by_chance"] == pytest.approx(math.sqrt(1 / 2000 + 1 / 20_000), rel=0.15)
    assert found["ess_per_second"] == pytest.approx(found["ess"] / 4) and found["ess"] < 3000


@pytest.mark.parametrize("stuck", [False, True])
def test_chains_apart_are_told_and_never_without_their_rhat(stuck: bool) -> None:
    apart = draws(3) + np.arange(4.0)[:, None, None] * np.array([3, 0.3, 20])
    found = row(Found(method="mala", draws=np.broadcast_to(apart[:1, :1], apart.shape).copy() if stuck else apart, seconds=1.0))
    assert found["converged"] is False and (found["rhat"] is None) == stuck
    cells = inference_report.cells(found)
    assert cells[-1].endswith(", not converged")
    result = {"rows": [row(REFERENCE) | {"role": "reference"}, found], "evidence": None}
    assert any(line.startswith("mala: chains have not converged (R-hat ") for line in inference_report.notes(result))
    assert inference_report._named(result, [Found(method="mala", draws=apart)]).keys() == {f"mala (R-hat {cells[-1]})"}


def test_of_many_chains_those_that_stray_furthest_are_shown() -> None:
    """By each coordinate's own scale: the third one's is seventy times the second's."""
    many = draws(8, chains=20, n=400)
    many[[3, 11], :, 1] += 0.3
    many[17, :, 0] -= 3
    shown = plots.furthest(many)
    assert {3, 11, 17} < set(shown.tolist()) and len(shown) == plots.CHAINS and (np.diff(shown) > 0).all()
    assert plots.furthest(many[:5]).tolist() == [0, 1, 2, 3, 4]


def test_a_gap_is_to_an_exact_evidence_or_called_an_estimate() -> None:
    found = Found(method="vi-full", draws=draws(4).reshape(1, -1, 3), chains=False, elbo=(-12.0, 0.03))
    exact = row(found, Evidence(value=-10.5, stderr=0.0, exact=True, method="closed form"))
    assert (exact["gap"], exact["gap_is"], exact["rhat"], exact["converged"]) == (1.5, "exact", None, None)
    estimated = row(found, Evidence(value=-10.5, stderr=0.04, exact=False, method="importance sampling"))
    assert estimated["gap_is"] == "estimate" and estimated["gap_stderr"] == pytest.approx(0.05)
    assert inference_report.cells(estimated)[4] == "1.50 (estimate)" and inference_report.cells(exact)[4] == "1.50"
    assert inference_report.cells(row(found))[4] == "-"


def test_what_the_data_decide_for_good_has_no_error() -> None:
    fixed = replace(REFERENCE, draws=np.concatenate([REFERENCE.draws, np.ones((4, 5000, 1))], 2))
    found = Found(method="gibbs", draws=np.concatenate([draws(5), np.ones((4, 2000, 1))], 2), seconds=1.0)
    first, second = comparison.rows(fixed, [found], None)
    assert first["converged"] and second["converged"] and second["mean_error"] < 0.1


def test_what_chance_explains_of_chains_that_never_moved_is_not_known() -> None:
    stuck = draws(9)
    stuck[..., 2] = 30
    found = row(Found(method="metropolis", draws=stuck, seconds=1.0))
    assert found["variance_by_chance"] is None and found["variance_error"] == pytest.approx(1 / math.sqrt(3), rel=0.1)
    assert inference_report.cells(found)[2].endswith(" (-)")
    json.dumps(found, allow_nan=False)


def table(root: Path, n: int = 60) -> Shards:
    """A target of two features, 7 + 2 height - weight and noise, as finished Shards of one split."""
    rng, folder = np.random.default_rng(6), root / "shards" / "line"
    folder.mkdir(parents=True)
    c = rng.standard_normal((n, 2)).astype(np.float32) * [1, 30] + [170, 60]
    x = (7 + 2 * c[:, :1] - c[:, 1:] + 5 * rng.standard_normal((n, 1))).astype(np.float32)
    form = schema(EVENT)
    tensors = {"values": (x, 1), "condition": (c.astype(np.float32), 2)}
    columns: dict[str, Any] = {"id": pa.array([f"{i:06d}" for i in range(n)]), "source": pa.array([f"{i}" for i in range(n)])}
    for name, (value, dims) in tensors.items():
        flat = pa.FixedSizeListArray.from_arrays(pa.array(value.reshape(-1)), dims)
        columns[name] = pa.ExtensionArray.from_storage(form.field(name).type, flat)
    columns["label"] = pa.nulls(n, pa.int32())
    pq.write_table(pa.table([columns[key] for key in form.names], schema=form), folder / "train-00000.parquet")
    files = [{"name": "train-00000.parquet", "split": "train", "rows": n, "row_groups": [n]}]
    prepare = {"modality": "table", "features": list(FEATURES), "target": "y"}
    about = {"files": files, "fingerprint": "t00000000000", "event": EVENT.to_json(), "labels": [], "prepare": prepare}
    (folder / "manifest.json").write_text(json.dumps(about))
    return open_shards(str(folder))


def recipe(root: Path, *changes: str, **model: Any) -> Recipe:
    values = {
        "name": "line",
        "storage": str(root),
        "data": {"source": "diabetes", "table": {"target": "target", "kind": "regression"}},
        "model": {"family": "posterior", "target": "linear", "warmup": 100, "draws": 200, **model},
        "train": {"steps": 6},
        "infer": {"reference_draws": 800},
    }
    return recipes.check(recipes.set_keys(values, changes))


def test_importance_sampling_finds_the_evidence_that_is_known(tmp_path: Path) -> None:
    asked, shards = recipe(tmp_path, method="gibbs"), table(tmp_path)
    found, exact = inference.found(asked, shards)
    assert exact is not None and exact.exact and found.names == ("intercept", "w[height]", "w[weight]", "precision")
    model, data = inference.fresh(asked, shards), inference._data(asked, shards)
    target = model.target(data)
    model.theta.data.copy_(torch.from_numpy(np.concatenate([found.draws[..., :3], np.log(found.draws[..., 3:])], 2)))
    model.kept.fill_(200)
    estimate = inference.evidence(model, replace(target, evidence=lambda: None))
    assert estimate is not None and not estimate.exact and 0 < estimate.stderr < 0.05
    assert estimate.value == pytest.approx(exact.value, abs=4 * estimate.stderr)


def test_importance_sampling_counts_the_orders_of_components() -> None:
    """A mixture of two, whose evidence is a sum over who belongs where: each term is known, all priors being conjugate."""
    event = Event(modality="table", shape=(1,), levels=0)
    x = torch.tensor([[-3.1], [-2.7], [-3.3], [-2.9], [-3.0], [-2.8], [2.6], [3.2], [3.4], [2.8], [3.1], [2.9]])
    model = build("posterior", event, target="mixture", method="gibbs", prior_scale=2.0, warmup=200, draws=500)
    assert isinstance(model, Posterior)
    data = [Batch(x=x, position=torch.arange(len(x)))]
    Iteration(model, TrainConfig(steps=8)).run(lambda _: data, until=8)
    estimate = inference.evidence(model, model.target(data))
    z = torch.tensor(list(itertools.product((0, 1), repeat=len(x))))
    scale = x.double().std(correction=0)
    standard = ((x.double() - x.double().mean()) / scale)[:, 0]
    terms = _alone(standard, z == 0) + _alone(standard, z == 1) - math.lgamma(len(x) + 2)
    exact = float(torch.logsumexp(terms, 0) - len(x) * scale.log())
    assert estimate is not None and not estimate.exact and estimate.stderr < 0.05
    assert estimate.value == pytest.approx(exact, abs=4 * estimate.stderr + 0.02)


def _alone(x: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """(Z,) nats of the points of one component, whose mean and precision are integrated out, and of its weight's share of the Dirichlet."""
    strength, n = 0.25, own.sum(1).double()
    first, second = own.double() @ x, own.double() @ x.square()
    rate = RATE + (second - first.square() / (strength + n)) / 2
    known = SHAPE * math.log(RATE) - math.lgamma(SHAPE) + torch.lgamma(SHAPE + n / 2) - (SHAPE + n / 2) * rate.log()
    return known + (math.log(strength) - (strength + n).log() - n * math.log(2 * math.pi)) / 2 + torch.lgamma(n + 1)


def test_a_gap_is_the_divergence_and_no_bound_passes_the_evidence(tmp_path: Path) -> None:
    shards = table(tmp_path)
    gaps = {}
    for method in ("vi-mean-field", "vi-full", "vi-diagonal"):
        found, evidence = inference.found(recipe(tmp_path, method=method), shards)
        assert not found.failed and not found.chains and found.elbo is not None and evidence is not None
        gaps[method] = evidence.value - found.elbo[0]
        assert gaps[method] > -4 * max(found.elbo[1], 1e-9)
    assert gaps["vi-mean-field"] < gaps["vi-diagonal"] + 0.1


def test_the_reference_is_a_long_run_of_a_seed_of_its_own(tmp_path: Path) -> None:
    shards = table(tmp_path)
    asked = recipe(tmp_path, method="hmc")
    long = inference.reference_recipe(asked, inference.fresh(asked, shards))
    config = long.model.config
    assert (config["method"], config["draws"], config["chains"]) == ("gibbs", 200, 4) and long.train.seed != asked.train.seed
    chosen = recipe(tmp_path, "infer.reference=hmc", "infer.reference_draws=4001")
    config = inference.reference_recipe(chosen, inference.fresh(chosen, shards)).model.config
    assert config["method"] == "hmc" and config["draws"] % 2 == 0 and 4 * config["draws"] >= 4001


@pytest.mark.parametrize(
    ("draws", "chains", "each", "warmup"), [(20_000, 32, 626, 500), (4_000, 8, 500, 500), (2_600, 5, 520, 800), (400, 4, 100, 1000)]
)
def test_the_reference_of_a_code_takes_many_chains_at_once(tmp_path: Path, draws: int, chains: int, each: int, warmup: int) -> None:
    """As many draws as asked for and as many steps of warmup in all; chains are never so short that R-hat could not be near 1."""
    shards = small.digits(tmp_path, labels=())
    keys: dict[str, Any] = {"target": "latent", "parent": str(parent(shards, tmp_path / "vae")), "warmup": 10}
    for said, path in (keys, 8), ({**keys, "leapfrog": 20}, 20):
        asked = small.recipe(tmp_path, f"infer.reference_draws={draws}", family="posterior", **said)
        long = inference.reference_recipe(asked, inference.fresh(asked, shards))
        found = {key: long.model.config[key] for key in ("chains", "draws", "warmup", "leapfrog")}
        assert found == {"chains": chains, "draws": each, "warmup": warmup, "leapfrog": path}
        assert chains * each >= draws and chains * warmup >= 4000 and long.train.steps >= 2 + each / inference.ROUND


def test_a_method_that_cannot_is_a_row_that_says_why(tmp_path: Path) -> None:
    found, _ = inference.found(recipe(tmp_path, "train.steps=2"), table(tmp_path))
    assert found.failed == "0 draws a chain after 2 passes; raise train.steps"
    cells = inference_report.cells(row(found))
    assert cells[1] == f"failed: {found.failed}" and set(cells[2:]) == {""}


def test_what_cannot_be_asked_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = recipe(tmp_path)
    model = inference.fresh(asked, table(tmp_path))
    with pytest.raises(Refused, match=r"infer\.methods: vi-wide of target linear; it has gibbs, hmc,"):
        inference.methods(model, ["vi-wide"])
    with pytest.raises(SystemExit) as end:
        cli.main(["infer", "digits-mixture", "--set", f"storage={tmp_path}"])
    said = capsys.readouterr().err.strip()
    assert end.value.code == 2 and said.endswith("model.family is mixture, wanted posterior") and "\n" not in said


@pytest.mark.ray
def test_infer_compares_registers_and_does_nothing_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """First the comparison alone, then what it leaves out, then nothing: the registered version draws, and `run` has only to deploy it."""
    path, run = tmp_path / "line.yaml", command(capsys)
    path.write_text(json.dumps(recipes.dump(recipe(tmp_path, "infer.methods=[gibbs, metropolis, vi-full]", method="gibbs"))))
    said = [run("infer", str(path), *more) for more in (["--no-register"], [], [])]
    for lines in said:
        assert [line["method"] for line in lines if line.get("row")] == ["gibbs", "gibbs", "metropolis", "vi-full"]
    alone, result, again = (lines[-1] for lines in said)
    assert alone["evidence"]["exact"] and alone["parameters"][1] == "w[age]" and "version" not in alone
    reused = [{line["stage"] for line in lines if line.get("status") == "reused"} for lines in said]
    assert reused == [set(), {"prepare", "infer"}, {"prepare", "infer", "train", "evaluate", "register"}] and again == result
    assert result["version"]["name"] == "line" and result["version"]["champion"] and result["rows"] == alone["rows"]
    assert result["scores"][0]["protocol"].startswith("exact p(x|c) given 800 draws by gibbs, R-hat ")
    page = Path(result["report"]).read_text()
    assert page.count("data:image/png;base64,") == 2 + 2 * 3 and "not converged" in page and "genmodels serve models:/line@champion" in page
    links = set(re.findall(r'href="([^"]+)"', page))
    assert {"marginals.png", "ranks-metropolis.png", "draws/reference.npz"} < links
    assert all((Path(result["uri"]) / link).exists() for link in links)
    assert np.load(Path(result["uri"]) / "draws" / "vi-full.npz")["draws"].shape[2] == 12
    patients = next(examples(open_shards(result["shards"]["uri"]), "train", 363))
    assert patients.c is not None
    np.save(tmp_path / "c.npy", patients.c.mean(0).numpy())
    out = tmp_path / "s.npy"
    run("sample", "models:/line/1", "-n", "200", "--condition", str(tmp_path / "c.npy"), "-o", str(out), "--storage", str(tmp_path))
    assert np.load(out).mean() == pytest.approx(patients.x.mean().item(), abs=4 * patients.x.std().item() / math.sqrt(200))
    states = {step["stage"]: step["state"] for step in run("plan", str(path))}
    assert states["register"] == "done" and states["deploy"] == "would run"


def test_a_method_that_came_to_nothing_is_not_registered(tmp_path: Path) -> None:
    failed = row(Found(method="hmc", draws=np.empty((0, 0, 0)), failed="0 draws"))
    found = {"rows": [row(REFERENCE) | {"role": "reference"}, failed], "chosen": "hmc"}
    with pytest.raises(Failed, match=r"recipe line: nothing is registered, as hmc came to nothing: 0 draws; choose another"):
        infer._check(recipe(tmp_path), found)
    infer._check(recipe(tmp_path), {**found, "chosen": "gibbs"})


def test_what_is_said_to_do_next_keeps_what_was_asked(tmp_path: Path) -> None:
    rows = [
        row(REFERENCE) | {"role": "reference"},
        row(REFERENCE),
        row(Found(method="mala", draws=draws(7) + np.arange(4.0)[:, None, None])),
    ]
    found = {"rows": [*rows, row(Found(method="vi-full", draws=draws(8).reshape(1, -1, 3), chains=False))], "chosen": "gibbs"}
    version = Version(name="line", version="3", artifact="", digest="", champion=False, reason="", fingerprint="")
    lines = inference_page.commands(recipe(tmp_path), version, found, "mine.yaml --set train.steps=6")
    assert lines[0].startswith(f"genmodels serve models:/line/3 --storage {tmp_path}   # ") and "gate did not" in lines[0]
    other = "genmodels infer mine.yaml --set train.steps=6 --set model.method=vi-full"
    assert [line.partition("   #")[0] for line in lines[1:]] == [other], "chains that have not converged are not proposed"
    alone = inference_page.commands(recipe(tmp_path), None, found, "mine.yaml")
    assert alone[0].startswith("genmodels infer mine.yaml   # registers")
