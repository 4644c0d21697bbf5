"""From what a client wrote about codes to what a replica is asked; whatever does not fit the model is refused here."""

from typing import Any

from numpy.typing import NDArray

from serve import examples, requests
from serve.code_schema import DecodingRequest, EncodingRequest, EndRequest, InterpolationRequest
from serve.fields import Label
from serve.messages import Decode, Encode, End, Interpolate
from serve.problem import Problem
from serve.schema import Description


def encode(
    request: EncodingRequest, x: NDArray[Any], lengths: tuple[int, ...] | None, model: Description, *, version: str | None = None
) -> Encode:
    """The examples (n, *shape) or (*shape) that are to be encoded, checked against the model."""
    requests.check_can("encodes", model)
    x = examples.many(x, model)
    asked = Encode(x=x, lengths=lengths, y=requests.class_numbers(request.label, len(x), model), version=version)
    check_encode(asked, model)
    return asked


def check_encode(asked: Encode, model: Description) -> None:
    """Raises Problem 422 for what the model does not take: asked here of the ingress's view, and of the replica's own."""
    requests.check_can("encodes", model)
    requests.check_classes(asked.y, model)
    requests.check_examples(asked, model)


def decode(request: DecodingRequest, z: NDArray[Any], model: Description, *, version: str | None = None) -> Decode:
    """The codes (n, *latent.shape) or (*latent.shape) that are to be decoded, checked against the model."""
    requests.check_can("decodes", model)
    z = examples.codes(z, model)
    asked = Decode(z=z, y=_labels(request.label, len(z), model), version=version)
    check_decode(asked, model)
    return asked


def check_decode(asked: Decode, model: Description) -> None:
    requests.check_can("decodes", model)
    requests.check_classes(asked.y, model)
    examples.codes(asked.z, model)


def interpolate(request: InterpolationRequest, model: Description, *, version: str | None = None) -> Interpolate:
    """The path that a request means, checked against the model."""
    check_path(model)
    if request.steps > model.max_samples:
        raise Problem(422, "too-many-samples", f"steps = {request.steps}; this server decodes at most {model.max_samples} a request")
    y = _labels(request.label, request.steps, model)
    ends = _end(request.a, "a", model), _end(request.b, "b", model)
    asked = Interpolate(ends=ends, n=request.steps, y=y, version=version)
    check_interpolate(asked, model)
    return asked


def check_interpolate(asked: Interpolate, model: Description) -> None:
    check_path(model)
    requests.check_classes(asked.y, model)
    for end in asked.ends:
        if end.x is not None:
            check_encodes(model)
            examples.many(end.x, model)


def check_path(model: Description) -> None:
    """Raises Problem 422 where there is no way from one code to another."""
    requests.check_can("decodes", model)
    if model.latent is not None and model.latent["levels"]:
        raise Problem(
            422,
            "no-interpolation",
            f"{model.model} ({model.family}) has codes of {model.latent['levels']} levels, which have nothing between them; decode codes of "
            "your own, or interpolate in a model of real-valued codes",
        )


def check_encodes(model: Description) -> None:
    """Raises Problem 422 where an example cannot be an end of a path."""
    if "encodes" not in model.capabilities:
        raise Problem(
            422,
            "no-encoding",
            f"{model.model} ({model.family}) decodes and interpolates but does not encode: give a seed and an index in place of an example",
        )


def _end(request: EndRequest, name: str, model: Description) -> End:
    given = [key for key in ("seed", "x", "levels", "media") if getattr(request, key) is not None]
    if len(given) != 1:
        raise Problem(422, "invalid-request", f"{name}: got {' and '.join(given) or 'none'} of seed, x, levels, media; wanted one of them")
    if request.seed is not None:
        return End(seed=request.seed, index=request.index)
    check_encodes(model)
    x, lengths = examples.named(request, model)
    x = examples.many(x if lengths is None else x[:1], model)
    if len(x) != 1:
        raise Problem(422, "wrong-shape", f"{name}: {len(x)} examples; a path has one at each end")
    return End(x=x[0])


def _labels(label: Label | list[Label] | None, n: int, model: Description) -> tuple[int, ...] | None:
    """A class number for each of n codes. Raises Problem 422 where the decoder needs one and has none."""
    if label is None and model.classes:
        named = f", as {model.labels[0]}" if model.labels else ""
        raise Problem(422, "no-label", f"{model.model} decodes a code under a label; give label, 0 to {model.classes - 1}{named}")
    return requests.class_numbers(label, n, model)
