"""Pictures, sounds and arrays by media type: which one a client accepts, samples into it, and what it sends back into levels."""

import base64
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmodels import media
from serve.messages import Asked, Decoded, Draw, Drawn, End, Fill, Filled, Interpolate
from serve.problem import Problem
from serve.receipt import Codes, Completed, PathEnd, Receipt
from serve.schema import CompletionAnswer, Description, SampleAnswer, ValueMap

PNG, WAV, NPY, JSON, LINES = "image/png", "audio/wav", "application/x-npy", "application/json", "application/x-ndjson"
RECEIPT_HEADER = "X-Genmodels-Receipt"
RECEIPT_KEY = "genmodels-receipt"
"""Keyword of the receipt in a PNG's tEXt, and in the JSON of a WAV's INFO comment."""


def offered(model: Description, n: int) -> list[str]:
    """The media types that n samples can be had in; the first is what a client without a preference gets."""
    native = {"image": [PNG], "audio": [WAV] if n == 1 else []}.get(model.event["modality"], [])
    return [*(native if model.event["levels"] else []), JSON, NPY]


def check_one_sound(model: Description, n: int) -> None:
    """Raises Problem 422 for what cannot be heard while it is drawn: pictures and tables, real values, several sounds at once."""
    if WAV not in offered(model, 1):
        what = f"{model.event['modality']}s" + ("" if model.event["levels"] else " of real values")
        raise Problem(422, "no-sound", f"{model.model} models {what}; a stream of {WAV} is one sound: accept {LINES}, or leave stream out")
    if n != 1:
        raise Problem(422, "several-sounds", f"n = {n}; a stream of {WAV} is one sound: ask for n = 1, or accept {LINES}")


def choose(accept: str | None, offers: Sequence[str], *, why: str = "") -> str:
    """The offer that an Accept header likes best (RFC 9110, 12.5.1). Raises Problem 406 when it takes none of them."""
    ranges = [_range(part) for part in (accept or "*/*").split(",") if part.strip()]
    liking = {offer: max((_match(offer, pattern, q) for pattern, q in ranges), default=(0, 0.0)) for offer in offers}
    best = max(offers, key=lambda offer: (liking[offer][1], -offers.index(offer)))
    if liking[best][1] <= 0:
        raise Problem(406, "not-acceptable", f"Accept: {accept}; offered here: {', '.join(offers)}{why}")
    return best


def _range(text: str) -> tuple[str, float]:
    kind, *parameters = [part.strip() for part in text.split(";")]
    q = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
    try:
        return kind.lower(), float(q)
    except ValueError:
        return kind.lower(), 0.0


def _match(offer: str, pattern: str, q: float) -> tuple[int, float]:
    """How exactly a pattern names an offer (0: not at all), and its q; the most exact pattern decides."""
    exactness = {offer: 3, offer.split("/")[0] + "/*": 2, "*/*": 1}.get(pattern, 0)
    return exactness, q if exactness else 0.0


def receipt(drawn: Drawn, asked: Asked) -> Receipt:
    """What the samples can be made again from."""
    who, labels, draw = drawn.description, None if asked.y is None else list(asked.y), asked if isinstance(asked, Draw) else None
    return Receipt(
        model=who.model,
        version=who.version,
        artifact=who.artifact,
        seed=draw.seed if draw else None,
        index=draw.first if draw else 0,
        n=len(drawn.levels),
        label=labels[0] if labels and len(set(labels)) == 1 else labels,
        temperature=draw.temperature if draw else 1.0,
        condition=None if draw is None or draw.c is None else levels_hash(draw.c),
        completion=_completed(drawn, asked),
        decoded=_decoded(drawn, asked),
        approximate=who.chain if draw and not isinstance(draw, Fill) else None,
        equality_class=who.equality_class,
        levels=levels_hash(drawn.levels),
    )


def _completed(drawn: Drawn, asked: Asked) -> Completed | None:
    if not isinstance(drawn, Filled) or not isinstance(asked, Fill):
        return None
    return Completed(method=drawn.method, exact=drawn.exact, given=levels_hash(asked.x), known=levels_hash(asked.known))


def _decoded(drawn: Drawn, asked: Asked) -> Codes | None:
    if not isinstance(drawn, Decoded):
        return None
    ends = [_end(end) for end in asked.ends] if isinstance(asked, Interpolate) else None
    return Codes(codes=levels_hash(drawn.z), ends=ends)


def _end(end: End) -> PathEnd:
    if end.x is None:
        return PathEnd(seed=end.seed, index=end.index, example=None)
    return PathEnd(seed=None, index=None, example=levels_hash(end.x))


def levels_hash(levels: NDArray[Any]) -> str:
    """blake2b-128 of the array's bytes in C order, hex."""
    return hashlib.blake2b(np.ascontiguousarray(levels).tobytes(), digest_size=16).hexdigest()


def value_map(nats: NDArray[np.float32]) -> ValueMap:
    """The nats of one example's values, (*shape), for JSON."""
    content = base64.b64encode(np.ascontiguousarray(nats).tobytes()).decode()
    return ValueMap(shape=list(nats.shape), dtype=str(nats.dtype), nats=content)


def encode(media_type: str, drawn: Drawn, slip: Receipt) -> bytes:
    """The samples in a media type, with the receipt inside where the type has a place for it."""
    if media_type == NPY:
        return array(drawn.levels)
    if media_type == JSON:
        return _answer(drawn, slip).model_dump_json().encode()
    text = slip.model_dump_json()
    return _file(drawn.levels[0], drawn.description, text) if len(drawn.levels) == 1 else _sheet(drawn, text)


def array(values: NDArray[Any]) -> bytes:
    """A .npy file."""
    buffer = BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def _sheet(drawn: Drawn, slip: str) -> bytes:
    """Several pictures as one PNG, about square or where they are a path in one row, small ones enlarged."""
    n, *_, width = drawn.levels.shape
    scale = 4 if width < 64 else 1
    columns = n if isinstance(drawn, Decoded) and drawn.row else math.ceil(math.sqrt(n))
    return media.sheet(drawn.levels, drawn.description.event["levels"], columns=columns, scale=scale, text={RECEIPT_KEY: slip})


def _answer(drawn: Drawn, slip: Receipt) -> SampleAnswer:
    model = drawn.description
    native = offered(model, 1)[0]
    files = [_file(one, model, "") for one in drawn.levels] if native != JSON else []
    answer = SampleAnswer(
        receipt=slip,
        shape=list(drawn.levels.shape),
        dtype=str(drawn.levels.dtype),
        levels=base64.b64encode(np.ascontiguousarray(drawn.levels).tobytes()).decode(),
        labels=None if drawn.labels is None else list(drawn.labels),
        media_type=native if files else None,
        media=[base64.b64encode(file).decode() for file in files],
    )
    if not isinstance(drawn, Filled):
        return answer
    ess = None if drawn.ess is None else drawn.ess.tolist()
    return CompletionAnswer(**dict(answer), method=drawn.method, exact=drawn.exact, ess=ess)


def _file(levels: NDArray[Any], model: Description, slip: str) -> bytes:
    """One PNG of (C, H, W) levels or one WAV of (T,) levels, the receipt inside."""
    event = model.event
    if event["modality"] == "image":
        return media.png(levels, levels_count=event["levels"], text={RECEIPT_KEY: slip} if slip else {})
    return media.wav(
        levels,
        sample_rate=event["sample_rate"],
        levels_count=event["levels"],
        companding=event["companding"],
        info={RECEIPT_KEY: slip} if slip else {},
    )


def decode(content: bytes, model: Description, *, resample: bool = True) -> tuple[NDArray[Any], tuple[int, ...] | None]:
    """A picture or sound file -> examples (n, *shape), and for sounds how many steps of each are sound. Raises Problem 422 with the reason."""
    if not resample and model.event["modality"] == "audio":
        _check_rate(content, model)
    readers: Mapping[str, Callable[[], tuple[NDArray[Any], tuple[int, ...] | None]]] = {
        "image": lambda: (media.levels_from_image(content, model.prepare)[None], None),
        "audio": lambda: _windows(media.levels_from_sound(content, model.prepare)),
    }
    modality = model.event["modality"]
    if modality not in readers or not model.prepare:
        raise Problem(422, "no-media", f"{model.model} models {modality} without settings to decode files by; send levels as x or {NPY}")
    try:
        return readers[modality]()
    except ValueError as error:
        raise Problem(422, "unreadable", f"the {modality} cannot be read: {error}") from None


def _check_rate(content: bytes, model: Description) -> None:
    """A sound that is continued is not resampled: it would not be the given one any more."""
    try:
        rate, _ = media.sound_format(content)
    except ValueError as error:
        raise Problem(422, "unreadable", f"the audio cannot be read: {error}") from None
    wanted = model.event["sample_rate"]
    if rate != wanted:
        raise Problem(422, "wrong-rate", f"a sound of {rate} Hz; {model.model} models {wanted} Hz: resample it first")


def _windows(windows: Sequence[tuple[NDArray[Any], int]]) -> tuple[NDArray[Any], tuple[int, ...]]:
    return np.stack([levels for levels, _ in windows]), tuple(length for _, length in windows)
