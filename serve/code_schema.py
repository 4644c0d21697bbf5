"""What goes over the wire about codes: examples into their distribution, codes into examples, and the way from one code to another."""

from typing import Annotated, Any

from pydantic import Field

from serve.fields import SEEDS, Json, Label, Whole
from serve.schema import Answer, ExamplesRequest


class EncodingRequest(ExamplesRequest):
    """What to encode."""

    label: Label | list[Label] | None = Field(None, description="q(z|x,y) under this class, or one for each; left out: q(z|x).")


class Encoding(Json):
    """The parameters of one example's q(z|x): of a Normal mean and stddev, of a Bernoulli probs; the others are null."""

    mean: list[Any] | None = None
    stddev: list[Any] | None = None
    probs: list[Any] | None = None


class EncodingAnswer(Answer):
    distribution: str = Field(description="Normal: each number of the code by itself; Bernoulli: each bit.")
    latent: dict[str, Any] = Field(description="The event of the codes.")
    encodings: list[Encoding]


class DecodingRequest(Json):
    """Codes to make examples of."""

    z: list[Any] | None = Field(None, description="Nested lists, one code or a list of them; or the body is a .npy array of them.")
    label: Label | list[Label] | None = Field(None, description="A class (number or name) for all, or one for each.")


class EndRequest(ExamplesRequest):
    """Where a path begins or ends: at a sample's code (seed, index), or at the mean code of one example (x, levels or media)."""

    seed: Annotated[Whole, Field(ge=0, lt=SEEDS)] | None = Field(None, description="At the code that a sample of this seed is made of.")
    index: Annotated[Whole, Field(ge=0, lt=2**62)] = Field(0, description="Which sample of the seed.")


class InterpolationRequest(Json):
    """A path between two codes."""

    a: EndRequest
    b: EndRequest
    steps: Annotated[Whole, Field(ge=2)] = Field(9, description="How many examples, those of both ends included.")
    label: Label | list[Label] | None = Field(
        None, description="A class for all, or one for each step; the ends are encoded under the first and the last."
    )
