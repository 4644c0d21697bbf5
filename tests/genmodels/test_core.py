"""Events refuse what makes no sense, each with its reason; batches are cut and moved as a whole; labels and examples are checked at the boundary."""

import json
from typing import Any

import pytest
import torch

from genmodels.core import CAPABILITIES, Batch, Density, Event, capabilities
from genmodels.zoo import MODELS, build

BAD: list[tuple[dict[str, Any], str]] = [
    ({"modality": "video", "shape": (1, 2, 2), "levels": 2}, "modality 'video'; wanted one of image, audio, table"),
    ({"modality": "image", "shape": (8, 8), "levels": 2}, "image of shape (8, 8); wanted 3 positive sides"),
    ({"modality": "image", "shape": (1, 0, 8), "levels": 2}, "image of shape (1, 0, 8); wanted 3 positive sides"),
    ({"modality": "table", "shape": (), "levels": 2}, "table of shape (); wanted 1 positive sides"),
    ({"modality": "image", "shape": (1, 8, 8), "levels": 1}, "1 levels; wanted 2 to 256, or 0 for real values"),
    ({"modality": "image", "shape": (1, 8, 8), "levels": 257}, "257 levels; wanted 2 to 256, or 0 for real values"),
    ({"modality": "audio", "shape": (8,), "levels": 256}, "audio with sample_rate None; audio has a rate in Hz, nothing else has"),
    (
        {"modality": "image", "shape": (1, 8, 8), "levels": 2, "sample_rate": 8000},
        "image with sample_rate 8000; audio has a rate in Hz, nothing else has",
    ),
    (
        {"modality": "audio", "shape": (8,), "levels": 16, "sample_rate": 8000, "companding": "mu-law"},
        "mu-law on audio of 16 levels; it is defined for audio of 256 levels",
    ),
    ({"modality": "table", "shape": (3,), "levels": 0, "classes": -1}, "-1 classes; wanted 0 (unlabelled) or more"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_an_event_that_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        Event(**settings)
    assert str(refusal.value) == message


def test_an_event_survives_json() -> None:
    smaller = Event(modality="image", shape=(3, 4, 4), levels=256)
    event = Event(modality="image", shape=(3, 8, 8), levels=256, classes=10, condition=smaller)
    assert Event.from_json(json.loads(json.dumps(event.to_json()))) == event
    assert event.dims == 192
    assert str(event) == "image 3x8x8, 256 levels, 10 classes"


def test_rows_of_a_batch_go_together() -> None:
    batch = Batch(x=torch.arange(12).reshape(4, 3), y=torch.arange(4), length=torch.arange(4), position=torch.arange(10, 14), step=7)
    part = batch.rows(1, 3)
    assert len(part) == 2 and part.step == 7 and part.c is None and part.y is not None and part.length is not None
    assert part.y.tolist() == part.length.tolist() == [1, 2] and part.position.tolist() == [11, 12]
    assert torch.equal(part.x, batch.x[1:3])


def test_unlabelled_samples_follow_the_training_frequencies() -> None:
    """A model whose class decides everything: the share of each label among samples without a label is its stored frequency."""
    event = Event(modality="image", shape=(1, 1, 1), levels=2, classes=2)
    model = build("gated_pixelcnn", event, hidden=4, layers=1, kernel=3, head=8)
    with torch.no_grad():
        model.class_frequencies.copy_(torch.tensor([0.8, 0.2]))
    ones = torch.stack([model.sample(64, seed=seed) for seed in range(4)]).float().mean()
    told = [model.sample(256, seed=9, y=label).float().mean() for label in (0, 1)]
    assert abs(ones - (0.8 * told[0] + 0.2 * told[1])) < 0.13


def test_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^unknown family 'pixelcnm'; known: "):
        build("pixelcnm", Event(modality="image", shape=(1, 2, 2), levels=2))


def test_every_capability_is_somebody_s_or_waits_for_its_family() -> None:
    known = {name for family in MODELS.values() for name in capabilities(family)}
    assert known <= set(CAPABILITIES)
    assert {"density", "bounded", "encodes", "decodes", "tempered", "progressive", "classifies"} <= known


def test_a_label_is_refused_where_there_are_none() -> None:
    event = Event(modality="image", shape=(1, 2, 2), levels=2)
    model = build("gated_pixelcnn", event, hidden=2, layers=1, head=2)
    assert isinstance(model, Density)
    with pytest.raises(ValueError, match=r"^a label was given to an unlabelled model; leave it out$"):
        model.log_prob(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
