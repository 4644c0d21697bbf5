"""What a person gives a model from files: examples, which part of one is known, and what to condition on."""

import io
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from genmodels import media
from pipelines.errors import Refused
from pipelines.files import content
from serve import examples, media_types
from serve.problem import Problem
from serve.replica import Replica
from serve.schema import Description

Known = dict[str, int] | list[Any] | None


def example(file: Path, model: Description, *, resample: bool = True) -> examples.Found:
    """A picture or sound file, or a .npy array of levels, as examples (n, *shape). Raises Refused naming the file."""
    try:
        if file.suffix == ".npy":
            return examples.many(examples.array(content(file)), model), None
        return media_types.decode(content(file), model, resample=resample)
    except Problem as problem:
        raise Refused(f"{file}: {problem.detail}") from None


def known(model: Description, *, mask: Path | None, rows: int | None, seconds: float | None) -> Known:
    """Which values are known, as a completion's request says it: by a mask's picture, the top rows, or the beginning of a sound."""
    if sum(value is not None for value in (mask, rows, seconds)) > 1:
        raise Refused("more than one of --known, --rows and --seconds; give one of them")
    modality = model.event["modality"]
    if seconds is not None:
        if modality != "audio":
            raise Refused(f"--seconds {seconds:g}: {model.model} models {modality}; seconds are of sounds")
        return {"first": round(seconds * model.event["sample_rate"])}
    if modality != "image" and (mask is not None or rows is not None):
        raise Refused(f"{'--rows' if mask is None else '--known'}: {model.model} models {modality}; rows and masks are of pictures")
    if mask is not None:
        return _mask(mask, model)
    if rows is None and modality == "image":
        raise Refused(
            f"nothing says what is known of the picture: give --rows N of its {model.shape[1]}, or --known MASK.png, white = known"
        )
    return None if rows is None else {"first": rows}


def _mask(file: Path, model: Description) -> list[Any]:
    channels, height, width = model.shape
    grey = np.asarray(_picture(file).convert("L"))
    if grey.shape != (height, width):
        raise Refused(f"--known {file} has {grey.shape[1]} x {grey.shape[0]} pixels; wanted the model's {width} x {height}")
    return np.broadcast_to(grey >= 128, (channels, height, width)).tolist()


async def condition(file: Path | None, model: Description, replica: Replica) -> list[Any] | None:
    """What to condition on: a .npy array as it is; a whole example of the model's own event, of which the model derives it; or a picture, decoded
    to the condition's size."""
    wanted = model.event.get("condition")
    if file is None:
        if wanted is not None:
            raise Refused(f"{model.model} draws under a condition of shape {tuple(wanted['shape'])}: give --condition FILE")
        return None
    if wanted is None:
        raise Refused(f"--condition {file}: {model.model} takes none: leave it out")
    try:
        return (await _condition(file, model, wanted, replica)).tolist()
    except Problem as problem:
        raise Refused(f"--condition {file}: {problem.detail}") from None


async def condition_of(file: Path | None, x: NDArray[Any], model: Description, replica: Replica) -> list[Any] | None:
    """What examples x (n, *shape) are weighed under: what `condition` makes of the file, for all or a row each; None where there is no file and the
    model derives it of each."""
    if file is None and (wanted := model.event.get("condition")) is not None:
        try:
            await replica.derive(x[:1])
        except Problem:
            raise Refused(
                f"{model.model} weighs examples under a condition of shape {tuple(wanted['shape'])}: give --condition FILE"
            ) from None
    return None if file is None else await condition(file, model, replica)


async def _condition(file: Path, model: Description, wanted: Mapping[str, Any], replica: Replica) -> NDArray[Any]:
    if file.suffix == ".npy":
        return examples.array(content(file))
    modality, shape = model.event["modality"], tuple(wanted["shape"])
    if modality == "audio" or shape[0] not in (1, 3):
        return await _derived(file, model, replica)
    if modality == "image" and _picture(file).size == model.shape[:0:-1]:
        with suppress(Problem):  # of a model that derives none: the picture is the condition, at another size
            return await _derived(file, model, replica)
    if wanted["modality"] != "image" or not wanted["levels"]:
        raise Problem(422, "condition", f"no {wanted['modality']} of real values can be read from it; wanted a .npy array of shape {shape}")
    settings = {
        "channels": shape[0],
        "height": shape[1],
        "width": shape[2],
        "levels": wanted["levels"],
        "fit": model.prepare.get("fit", "crop"),
    }
    try:
        return media.levels_from_image(content(file), settings)
    except ValueError as error:
        raise Problem(422, "unreadable", f"the picture cannot be read: {error}") from None


async def _derived(file: Path, model: Description, replica: Replica) -> NDArray[Any]:
    """The condition that the model makes of a whole example."""
    x, _ = media_types.decode(content(file), model)
    return (await replica.derive(x[:1]))[0]


def _picture(file: Path) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content(file))) as picture:
            picture.load()
            return picture.copy()
    except Refused:
        raise
    except Exception as error:  # Pillow's plugins raise whatever a broken file makes them raise
        raise Refused(f"{file}: the picture cannot be read: {media.reason(error)}") from None
