"""What every part of the wire's schema is made of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

SEEDS = 2**63
DRAWN_SEEDS = 2**53
"""A seed that the server chooses is below this, so that no JSON reader rounds it."""


class Json(BaseModel):
    model_config = ConfigDict(extra="forbid")


Whole = Annotated[int, Field(strict=True)]
Label = Annotated[int, Field(strict=True)] | Annotated[str, Field(strict=True)]
"""A class by its number, or by its name."""
