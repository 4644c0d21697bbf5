"""A trained model inside another: found by its folder, named in the fingerprint by its digest, its weights taken over to the bit."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from genmodels import artifact
from genmodels.models.posterior import Posterior
from genmodels.models.posterior_latent import Latent
from genmodels.zoo import build
from pipelines import parents
from pipelines.errors import Refused
from pipelines.learning import Learning, fresh
from pipelines.recipe import Recipe
from pipelines.records import Shards
from pipelines.train import output
from tests.pipelines import small

QUICK = ("train.steps=3", "train.best=false", "train.valid_examples=4")


def parent(shards: Shards, folder: Path, *, seed: int = 0, classes: int = 10) -> Path:
    event = shards.event if classes == 10 else type(shards.event)(modality="image", shape=(1, 8, 8), levels=17, classes=classes)
    model = build("vae", event, seed=seed, latent=3, hidden=8)
    artifact.save(model, folder, family="vae", prepare={}, labels=())
    return folder


def recipe(root: Path, parent: Path | str) -> Recipe:
    settings: dict[str, Any] = {"warmup": 10, "draws": 8, "round": 8, "example": 5}
    return small.recipe(root, *QUICK, family="posterior", target="latent", parent=str(parent), **settings)


def test_a_posterior_of_codes_is_learnt_under_its_parent_s_weights(tmp_path: Path) -> None:
    shards = small.digits(tmp_path, labels=())
    folder = parent(shards, tmp_path / "vae", seed=7)
    learning = Learning(recipe(tmp_path, folder), shards)
    list(learning.pauses())
    model = learning.training.model
    assert isinstance(model, Posterior) and isinstance(model.parametric, Latent) and int(model.kept) == 8
    source = artifact.load(folder).state_dict()
    assert all(torch.equal(value, source[name]) for name, value in model.parametric.parent.state_dict().items())
    artifact.save(model, tmp_path / "posterior", family="posterior", prepare={}, labels=())
    shutil.rmtree(folder)  # what was taken over needs its origin no more
    again = artifact.load(tmp_path / "posterior")
    assert torch.equal(again.sample(3, seed=0, y=[1, 2, 3]), model.eval().sample(3, seed=0, y=[1, 2, 3]))


def test_the_fingerprint_has_the_parent_s_digest_and_not_its_place(tmp_path: Path) -> None:
    shards = small.digits(tmp_path)
    one, other = parent(shards, tmp_path / "one"), parent(shards, tmp_path / "other", seed=1)
    moved = shutil.copytree(one, tmp_path / "moved")
    names = [output(recipe(tmp_path, folder), shards).fingerprint for folder in (one, moved, other)]
    assert names[0] == names[1] != names[2]
    assert parents.lineage(recipe(tmp_path, one)) == {"parent": {"model": str(one), "digest": artifact.read(one).digest}}
    plain = small.recipe(tmp_path)
    assert (parents.lineage(plain), parents.described(plain), parents.pinned(plain)) == ({}, plain.model.config, plain)


def test_a_parent_that_cannot_be_is_refused_in_one_line(tmp_path: Path) -> None:
    shards = small.digits(tmp_path)
    with pytest.raises(Refused, match=r"^recipe small: model.parent: no folder \S*nowhere; [^\n]*$"):
        output(recipe(tmp_path, tmp_path / "nowhere"), shards)
    with pytest.raises(
        ValueError, match=r"^the parent models image 1x8x8, 17 levels; the posterior's data is image 1x8x8, 17 levels, 10 classes: "
    ):
        fresh(recipe(tmp_path, parent(shards, tmp_path / "unlabelled", classes=0)), shards)
    folder = parent(shards, tmp_path / "broken")
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(Refused, match=r"^recipe small: model.parent: \S*broken: model.safetensors was changed since it was written"):
        fresh(recipe(tmp_path, folder), shards)
