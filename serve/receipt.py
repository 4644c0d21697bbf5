"""The receipt: what an answer can be made again from."""

from pydantic import Field

from serve.fields import Json


class Completed(Json):
    """How a completion was made."""

    method: str
    exact: bool = Field(description="Drawn from the model's own conditional distribution; false: approximately.")
    given: str = Field(description="Hash of the levels that were given, 0 where nothing was.")
    known: str = Field(description="Hash of the mask: a byte a value, 1 where it was given.")


class PathEnd(Json):
    """Where a path began or ended."""

    seed: int | None = Field(None, description="At the code of a sample of this seed.")
    index: int | None = None
    example: str | None = Field(None, description="At the mean code of the example with this hash of its levels.")


class Codes(Json):
    """What examples were decoded from."""

    codes: str = Field(description="Hash of all codes' bytes: float32, or uint8 of codes of levels, in C order.")
    ends: list[PathEnd] | None = Field(None, description="Of an interpolation.")


class Receipt(Json):
    """From this a sample can be made again: the same artifact, seed, index, label and temperature give the same levels in an equality class.

    So can an interpolation between two seeds. A completion, a decoding, and an interpolation between examples can with what was sent at hand, whose
    hash is here.
    """

    model: str
    version: str
    artifact: str = Field(description="Digest of the artifact folder.")
    seed: int | None = Field(description="null: nothing was drawn but at the ends of a path.")
    index: int = Field(description="Index of the first sample.")
    n: int
    label: int | list[int] | None = Field(description="Class numbers as asked for; null: drawn by the model.")
    temperature: float
    condition: str | None = Field(None, description="Hash of the condition, where there was one.")
    completion: Completed | None = Field(None, description="Of a completion: what was given, and how the rest was filled in.")
    decoded: Codes | None = Field(None, description="Of a decoding or an interpolation: the codes.")
    approximate: str | None = Field(None, description="Which chain drew it, or which draws of a posterior, with their R-hat; null: exact.")
    equality_class: str = Field(
        description="What else decides the last bit: device, instruction set, threads, precision, library versions."
    )
    levels: str = Field(description="blake2b-128 of the levels' bytes, all samples in C order.")
